//! What holds whoever is drawn, and how load spreads over simulated fleets.

use proptest::prelude::*;

use super::*;

fn id(n: usize) -> InstanceId {
    format!("{n:032x}").parse().unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn one(n: usize, rtt: u64, own: u32) -> Contender {
    Contender { instance: id(n), group: Group::Near, rtt: ms(rtt), own, others: None }
}

fn at(n: usize) -> Home {
    Home { at: Some(id(n)), may_leave: true }
}

/// Numbers that look random and are the same in each run.
struct Luck(u64);

impl Luck {
    fn draw(&mut self) -> f64 {
        // Xorshift64 (G. Marsaglia 2003).
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn two(&mut self) -> [f64; 2] {
        [self.draw(), self.draw()]
    }
}

fn contenders() -> impl Strategy<Value = Vec<Contender>> {
    let group = prop_oneof![Just(Group::Near), Just(Group::Far), Just(Group::Suspect)];
    let others = proptest::option::of((0u32..50, (0u64..60_000).prop_map(ms)));
    let one = (group, 0u64..300, 0u32..5, others);
    proptest::collection::vec(one, 0..12).prop_map(|all| {
        let numbered = all.into_iter().enumerate();
        let made = numbered.map(|(n, (group, rtt, own, others))| Contender {
            instance: id(n),
            group,
            rtt: ms(rtt),
            own,
            others,
        });
        made.collect()
    })
}

proptest! {
    #[test]
    fn somebody_of_the_best_group_is_chosen_whatever_the_luck(
        all in contenders(), home in 0usize..14, may_leave: bool, luck in [0.0..=1.0f64, 0.0..=1.0f64],
    ) {
        let home = Home { at: Some(id(home)), may_leave };
        let chosen = choose(&all, home, luck);
        prop_assert_eq!(chosen.is_some(), !all.is_empty());
        if let Some(chosen) = chosen {
            let best = all.iter().map(|one| one.group).min();
            prop_assert_eq!(Some(all[chosen].group), best);
        }
    }

    #[test]
    fn a_quiet_client_leaves_its_home_only_for_a_clearly_cheaper_one(
        all in contenders(), home in 0usize..12, luck in [0.0..=1.0f64, 0.0..=1.0f64],
    ) {
        let all: Vec<_> = all.into_iter().map(|one| Contender { own: 0, others: None, ..one }).collect();
        let best = all.iter().map(|one| one.group).min();
        let chosen = choose(&all, at(home), luck).map(|index| all[index]);
        let home = all.get(home).filter(|home| Some(home.group) == best);
        if let (Some(home), Some(chosen)) = (home, chosen) {
            let is_clear = chosen.rtt.max(FLOOR).mul_f64(CLEARLY) < home.rtt;
            prop_assert!(chosen == *home || is_clear, "{home:?} for {chosen:?}");
        }
    }
}

#[test]
fn a_quiet_client_that_has_just_come_stays() {
    let all = [one(0, 30, 0), one(1, 1, 0)];
    let settling = Home { may_leave: false, ..at(0) };
    assert_eq!(choose(&all, settling, [0.5; 2]), Some(0));
    assert_eq!(choose(&all, at(0), [0.5; 2]), Some(1));
}

#[test]
fn who_is_nowhere_yet_takes_the_nearest() {
    let all = [one(0, 30, 0), one(1, 3, 0), one(2, 9, 0)];
    for luck in [0.0, 0.5, 1.0] {
        assert_eq!(choose(&all, Home::default(), [luck; 2]), Some(1));
    }
}

#[test]
fn the_cheaper_of_two_takes_it_by_distance_and_load_together() {
    let luck = [0.1, 0.9];
    assert_eq!(choose(&[one(0, 4, 3), one(1, 4, 1)], at(0), luck), Some(1));
    assert_eq!(choose(&[one(0, 4, 3), one(1, 20, 1)], at(0), luck), Some(0));
    let busy_elsewhere = Contender { others: Some((40, ms(10))), ..one(0, 4, 1) };
    assert_eq!(
        choose(&[busy_elsewhere, one(1, 20, 1)], at(0), luck),
        Some(0),
        "nothing else known"
    );
    let idle = Contender { others: Some((0, ms(10))), ..one(1, 20, 1) };
    assert_eq!(choose(&[busy_elsewhere, idle], at(0), luck), Some(1));
}

#[test]
fn what_was_said_long_ago_counts_for_little() {
    let luck = [0.1, 0.9];
    let was_busy = Contender { others: Some((40, ms(60_000))), ..one(0, 4, 1) };
    let is_idle = Contender { others: Some((0, ms(10))), ..one(1, 8, 1) };
    assert_eq!(choose(&[was_busy, is_idle], at(1), luck), Some(0));
}

/// One client keeps `open` requests under way at all times; which end is random.
fn spread(rtts: &[u64], open: usize, requests: usize) -> Vec<usize> {
    let mut luck = Luck(0x9e37_79b9_7f4a_7c15);
    let mut all: Vec<_> = rtts.iter().enumerate().map(|(n, rtt)| one(n, *rtt, 0)).collect();
    let (mut under_way, mut taken) = (Vec::new(), vec![0; rtts.len()]);
    for _ in 0..requests {
        if under_way.len() == open {
            let ends = (luck.draw() * open as f64) as usize % open;
            let ended: usize = under_way.swap_remove(ends);
            all[ended].own -= 1;
        }
        let chosen = choose(&all, at(0), luck.two()).unwrap();
        all[chosen].own += 1;
        under_way.push(chosen);
        taken[chosen] += 1;
    }
    taken
}

#[test]
fn under_load_equals_share_it_evenly() {
    let taken = spread(&[4; 8], 64, 20_000);
    let mean = 20_000.0 / 8.0;
    let max = *taken.iter().max().unwrap() as f64;
    assert!(max / mean < 1.1, "{taken:?}");
    // One that is ten times as far is spared, and not forgotten.
    let taken = spread(&[2, 2, 2, 20], 64, 20_000);
    assert!(taken[3] * 5 < taken[0] && taken[3] > 100, "{taken:?}");
}

#[test]
fn many_near_the_far_are_rarely_taken_however_many_they_are() {
    let mut rtts = vec![1, 1];
    rtts.extend([90; 14]);
    let taken = spread(&rtts, 8, 20_000);
    let near = taken[0] + taken[1];
    assert!(near > 19_000, "{taken:?}");
}

/// Many clients, each with one request at a time and therefore quiet, start at one
/// instance; all hear of the load of all at the same moment, and then only of their own.
#[test]
fn quiet_clients_spread_without_running_together() {
    const CLIENTS: usize = 160;
    const INSTANCES: usize = 8;
    let mut luck = Luck(0x0123_4567_89ab_cdef);
    let mut homes = [0usize; CLIENTS];
    let mut heard = vec![vec![None::<(u32, u64)>; INSTANCES]; CLIENTS];
    let mut worst_later = 0;
    for second in 0..60u64 {
        let mut load = [0u32; INSTANCES];
        homes.iter().for_each(|home| load[*home] += 1);
        for (home, heard) in homes.iter_mut().zip(&mut heard) {
            // A refresh every half a minute, for all at once; their own home with each answer.
            if second % 30 == 5 {
                heard.iter_mut().zip(load).for_each(|(heard, load)| *heard = Some((load, second)));
            }
            heard[*home] = Some((load[*home].saturating_sub(1), second));
            let all: Vec<_> = (0..INSTANCES)
                .map(|n| Contender {
                    others: heard[n].map(|(load, at)| (load, ms((second - at) * 1000))),
                    ..one(n, 4, 0)
                })
                .collect();
            *home = choose(&all, at(*home), luck.two()).unwrap();
        }
        if second > 5 {
            worst_later = worst_later.max(*load.iter().skip(1).max().unwrap());
        }
    }
    let mut load = [0u32; INSTANCES];
    homes.iter().for_each(|home| load[*home] += 1);
    let mean = (CLIENTS / INSTANCES) as u32;
    assert!(load.iter().all(|load| *load <= mean * 2), "{load:?}");
    assert!(worst_later <= mean * 3, "a herd of {worst_later} ran to one");
}
