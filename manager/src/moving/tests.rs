//! The controller against distances that change: ramps, noise, square waves.

use std::time::Duration;

use lca::{InstanceId, Requirements};
use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    Reason,
    course::{Avoid, Change, Course, Decision},
    standing::DWELL,
};
use crate::policy::Candidate;

/// As often as the controller looks.
const TICK: Duration = Duration::from_millis(250);
/// From the start of a look to the new one being ready.
const READY: Duration = Duration::from_millis(1500);
const SOFT: f64 = 20.0;
const HARD: f64 = 40.0;

/// How far places are at a moment, in milliseconds.
type Trace<'a> = dyn Fn(f64) -> f64 + 'a;

/// One client that sends a request each tick, places with an allocator each, of which
/// some run an instance.
struct Simulation<'a> {
    places: Vec<&'a Trace<'a>>,
    ids: Vec<InstanceId>,
    runs: Vec<bool>,
    course: Course,
    start: Instant,
    now: Instant,
    /// What is found or started, and when it is ready.
    look: Option<(Option<usize>, Instant)>,
    looks: Vec<f64>,
    moves: Vec<(f64, Change)>,
    allocated: usize,
    /// How long at a stretch requests were answered from beyond soft though a place was
    /// clearly within.
    beyond_soft: Duration,
    longest_beyond_soft: Duration,
}

impl<'a> Simulation<'a> {
    fn new(places: Vec<&'a Trace<'a>>, runs: &[usize]) -> Self {
        let ids = (0..places.len()).map(|n| format!("{n:032x}").parse().unwrap()).collect();
        let start = Instant::now();
        let limits = Requirements {
            soft: Some(Duration::from_secs_f64(SOFT / 1e3)),
            hard: Some(Duration::from_secs_f64(HARD / 1e3)),
        };
        Self {
            ids,
            runs: (0..places.len()).map(|n| runs.contains(&n)).collect(),
            places,
            course: Course::new(limits),
            start,
            now: start,
            look: None,
            looks: Vec::new(),
            moves: Vec::new(),
            allocated: 0,
            beyond_soft: Duration::ZERO,
            longest_beyond_soft: Duration::ZERO,
        }
    }

    fn at(&self) -> f64 {
        self.now.duration_since(self.start).as_secs_f64()
    }

    fn rtt(&self, place: usize) -> f64 {
        (self.places[place])(self.at())
    }

    fn candidates(&self) -> Vec<Candidate> {
        let running = (0..self.places.len()).filter(|n| self.runs[*n]);
        running
            .map(|n| {
                let rtt = Duration::from_secs_f64(self.rtt(n) / 1e3);
                Candidate::new(self.ids[n], Some(rtt))
            })
            .collect()
    }

    fn tick(&mut self) {
        if let Some((place, ready)) = self.look
            && self.now >= ready
        {
            self.look = None;
            if let Some(place) = place {
                self.allocated += usize::from(!self.runs[place]);
                self.runs[place] = true;
            }
            self.course.looked(0.5, self.now);
        }
        let candidates = self.candidates();
        let home = self.course.home();
        let offers = (0..self.places.len()).filter(|n| Some(self.ids[*n]) != home);
        let offer = offers.map(|n| self.rtt(n)).reduce(f64::min);
        let offer = offer.map(|rtt| Duration::from_secs_f64(rtt / 1e3));
        let idle = |_| (0, None);
        match self.course.observe(&candidates, offer, idle, [0.5; 2], self.now) {
            Decision::Stay => {}
            Decision::Move(change) => self.moves.push((self.at(), change)),
            Decision::Look { within, avoid } => {
                assert!(self.look.is_none(), "one look at a time");
                assert!(within.hard <= within.soft, "nothing beyond soft just to move");
                let may = |n: &usize| {
                    self.ids[*n] != avoid
                        && within.within_soft(Duration::from_secs_f64(self.rtt(*n) / 1e3))
                };
                let place = (0..self.places.len()).find(may);
                self.looks.push(self.at());
                self.look = Some((place, self.now + READY));
            }
        }
        match self.course.pick(&candidates, Avoid::default(), idle, [0.5; 2], self.now) {
            Some((_, change)) => self.moves.extend(change.map(|change| (self.at(), change))),
            // A cold request: it is started where it is nearest.
            None => {
                let nearest =
                    (0..self.places.len()).min_by(|a, b| self.rtt(*a).total_cmp(&self.rtt(*b)));
                nearest.into_iter().for_each(|nearest| self.runs[nearest] = true);
            }
        }
        let home = self.ids.iter().position(|id| Some(*id) == self.course.home());
        let clearly = |n: usize| self.rtt(n) < 0.8 * SOFT;
        let is_beyond = home.is_some_and(|home| self.rtt(home) > SOFT);
        if is_beyond && (0..self.places.len()).any(clearly) {
            self.beyond_soft += TICK;
        } else {
            self.beyond_soft = Duration::ZERO;
        }
        self.longest_beyond_soft = self.longest_beyond_soft.max(self.beyond_soft);
        self.now += TICK;
    }

    fn run(&mut self, seconds: f64) {
        while self.at() < seconds {
            self.tick();
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        self.moves.iter().map(|(_, change)| change.reason).collect()
    }
}

/// Draws from −1 to 1, the same for the same second of a place: a median of probes does
/// not change more often.
fn noise(seed: u64, second: f64) -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (second as u64).wrapping_mul(0xd134_2543_de82_ef95);
    for shift in [31, 27, 33] {
        x = (x ^ (x >> shift)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
    (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// As probes once a second and their median of three see it.
fn median(seed: u64, second: f64) -> f64 {
    let mut three = [0.0, 1.0, 2.0].map(|ago| noise(seed, second + 2.0 - ago));
    three.sort_by(f64::total_cmp);
    three[1]
}

#[test]
fn a_home_that_drifts_beyond_soft_is_left_once_a_nearer_one_is_ready() {
    let drifts = |at: f64| (1.0 + at).min(35.0);
    let steady = |_: f64| 5.0;
    let mut simulation = Simulation::new(vec![&drifts, &steady], &[0]);
    simulation.run(60.0);
    assert_eq!(simulation.reasons(), [Reason::Soft]);
    assert_eq!(simulation.allocated, 1);
    let (at, _) = simulation.moves[0];
    let crossed = SOFT - 1.0;
    let promised = DWELL + READY + TICK * 3;
    assert!((crossed + 2.0..=crossed + promised.as_secs_f64()).contains(&at), "moved at {at} s");
    assert_eq!(simulation.looks.len(), 1);
}

#[test]
fn a_burst_shorter_than_the_dwell_time_changes_nothing() {
    let bursts = |at: f64| if at % 10.0 < 1.5 { 30.0 } else { 5.0 };
    let steady = |_: f64| 4.0;
    let mut simulation = Simulation::new(vec![&bursts, &steady], &[0]);
    simulation.run(300.0);
    assert!(simulation.moves.is_empty() && simulation.looks.is_empty(), "{:?}", simulation.moves);
}

#[test]
fn beyond_hard_nobody_waits_for_the_dwell_time() {
    let jumps = |at: f64| if at < 10.0 { 5.0 } else { 50.0 };
    let steady = |_: f64| 19.0;
    let mut simulation = Simulation::new(vec![&jumps, &steady], &[0, 1]);
    simulation.run(20.0);
    assert_eq!(simulation.reasons(), [Reason::Hard]);
    assert_eq!(simulation.moves[0].0, 10.0);
}

#[test]
fn where_nothing_is_near_looks_get_rarer_up_to_a_minute() {
    let far = |_: f64| 30.0;
    let mut simulation = Simulation::new(vec![&far, &far], &[0]);
    simulation.run(600.0);
    assert!(simulation.moves.is_empty());
    let pauses: Vec<_> = simulation.looks.windows(2).map(|w| (w[1] - w[0]).round()).collect();
    // Each is the wait and the look itself.
    assert_eq!(pauses[..6], [4.0, 6.0, 10.0, 18.0, 34.0, 62.0]);
    assert!(pauses[5..].iter().all(|pause| *pause == 62.0), "{pauses:?}");
}

#[test]
fn an_allocator_that_comes_near_ends_the_back_off() {
    let far = |_: f64| 30.0;
    let comes = |at: f64| if at < 100.0 { 35.0 } else { 5.0 };
    let mut simulation = Simulation::new(vec![&far, &comes], &[0]);
    simulation.run(110.0);
    assert_eq!(simulation.reasons(), [Reason::Soft]);
    assert!(simulation.moves[0].0 < 105.0, "{:?}", simulation.moves);
}

#[test]
fn what_is_hardly_nearer_is_not_worth_a_move() {
    let slightly_far = |_: f64| SOFT * 1.02;
    let slightly_near = |_: f64| SOFT * 0.97;
    let mut simulation = Simulation::new(vec![&slightly_far, &slightly_near], &[0, 1]);
    // The home is the nearest at first; put it where it would have to leave.
    simulation.runs[1] = false;
    simulation.run(1.0);
    simulation.runs[1] = true;
    simulation.run(300.0);
    assert!(simulation.moves.is_empty(), "{:?}", simulation.moves);
}

/// Buses come by one after the other and go again, as in the mobile scenario.
#[test]
fn each_bus_that_passes_is_taken_before_the_last_one_is_beyond_hard() {
    let pass = |centre: f64| {
        move |at: f64| {
            let away = (at - centre).abs();
            if away > 70.0 { 45.0 } else { 2.0 + away * 0.9 }
        }
    };
    let (first, second, third) = (pass(0.0), pass(35.0), pass(70.0));
    let mut simulation = Simulation::new(vec![&first, &second, &third], &[0]);
    simulation.run(90.0);
    assert_eq!(simulation.reasons(), [Reason::Soft, Reason::Soft], "{:?}", simulation.moves);
    assert!(simulation.longest_beyond_soft <= DWELL + READY + TICK * 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn noise_around_soft_moves_hardly_more_often_than_there_are_places(
        seeds in proptest::collection::vec(any::<u64>(), 2..6), centre in 0.92..1.1f64,
    ) {
        let traces: Vec<Box<Trace<'_>>> = seeds.iter().map(|seed| {
            let seed = *seed;
            Box::new(move |at: f64| SOFT * (centre + 0.09 * median(seed, at))) as _
        }).collect();
        let places: Vec<&Trace<'_>> = traces.iter().map(|trace| &**trace).collect();
        let all: Vec<_> = (0..places.len()).collect();
        let mut simulation = Simulation::new(places, &all);
        simulation.run(600.0);
        // Each is left once, but for what comes back clearly or for ten quiet seconds.
        let bound = seeds.len() - 1 + 600 / 30;
        prop_assert!(simulation.moves.len() <= bound, "{:?}", simulation.moves);
    }

    #[test]
    fn square_waves_move_no_more_often_than_they_come(
        periods in proptest::collection::vec(5.0..60.0f64, 2..5), highs in 25.0..39.0f64,
    ) {
        let traces: Vec<Box<Trace<'_>>> = periods.iter().map(|period| {
            let period = *period;
            Box::new(move |at: f64| if at % period < period / 2.0 { 5.0 } else { highs }) as _
        }).collect();
        let mut places: Vec<&Trace<'_>> = traces.iter().map(|trace| &**trace).collect();
        let steady = |_: f64| 12.0;
        places.push(&steady);
        let mut simulation = Simulation::new(places, &[0]);
        simulation.run(300.0);
        // Each time one becomes far is one move away from it; what is clearly better may
        // cause another one back.
        let waves: f64 = periods.iter().map(|period| (300.0 / period).ceil()).sum();
        prop_assert!(simulation.moves.len() as f64 <= 2.0 * waves, "{:?}", simulation.moves);
        // Each that is lost while it is being started costs another look, after a wait that
        // doubles: two of them are bad luck, three do not happen here.
        let promised = DWELL + READY * 3 + Duration::from_secs(2 + 4) + TICK * 4;
        prop_assert!(simulation.longest_beyond_soft <= promised, "{:?}", simulation.longest_beyond_soft);
    }

    #[test]
    fn with_something_within_soft_nobody_stays_beyond_it(
        slopes in proptest::collection::vec((-0.5..0.5f64, 1.0..60.0f64), 1..5), seed: u64,
    ) {
        let traces: Vec<Box<Trace<'_>>> = slopes.iter().enumerate().map(|(n, (slope, from))| {
            let (slope, from, seed) = (*slope, *from, seed ^ n as u64);
            Box::new(move |at: f64| (from + slope * at + noise(seed, at)).max(0.5)) as _
        }).collect();
        let mut places: Vec<&Trace<'_>> = traces.iter().map(|trace| &**trace).collect();
        let steady = |_: f64| 10.0;
        places.push(&steady);
        let mut simulation = Simulation::new(places, &[0]);
        simulation.run(200.0);
        let promised = DWELL + READY * 2 + Duration::from_secs(3);
        prop_assert!(
            simulation.longest_beyond_soft <= promised,
            "{:?} {:?} {:?}", simulation.longest_beyond_soft, simulation.moves, simulation.looks
        );
    }

    #[test]
    fn nothing_beyond_hard_is_ever_picked(
        waves in proptest::collection::vec((1.0..60.0f64, 2.0..30.0f64, any::<u64>()), 1..6),
    ) {
        let traces: Vec<Box<Trace<'_>>> = waves.iter().map(|(centre, swing, seed)| {
            let (centre, swing, seed) = (*centre, *swing, *seed);
            Box::new(move |at: f64| (centre + swing * noise(seed, at)).max(0.1)) as _
        }).collect();
        let places: Vec<&Trace<'_>> = traces.iter().map(|trace| &**trace).collect();
        let all: Vec<_> = (0..places.len()).collect();
        let mut simulation = Simulation::new(places, &all);
        for _ in 0..400 {
            let candidates = simulation.candidates();
            let now = simulation.now;
            let picked = simulation.course.pick(&candidates, Avoid::default(), |_| (1, None), [0.3, 0.7], now);
            if let Some((index, _)) = picked {
                prop_assert!(candidates[index].rtt.unwrap() <= Duration::from_secs_f64(HARD / 1e3));
            }
            let usable = candidates.iter().any(|one| one.rtt.unwrap() <= Duration::from_secs_f64(HARD / 1e3));
            prop_assert_eq!(picked.is_some(), usable);
            simulation.tick();
        }
    }
}

#[test]
fn a_home_that_is_to_idle_out_is_left_once_and_the_new_one_is_home() {
    let now = Instant::now();
    let mut course = Course::new(Requirements::default());
    let all = [1, 2, 3].map(|n: u8| {
        Candidate::new(format!("{n:032x}").parse().unwrap(), Some(Duration::from_millis(1)))
    });
    let idle = |_| (0, None);
    let home = course.pick(&all, Avoid::default(), idle, [0.5; 2], now).unwrap().0;
    let surplus = [all[home].instance];
    let avoid = Avoid { tried: &[], surplus: &surplus };
    let (to, change) = course.pick(&all, avoid, idle, [0.5; 2], now).unwrap();
    let (from, to) = (all[home].instance, all[to].instance);
    assert_eq!(change, Some(Change { from, to, reason: Reason::Surplus }));
    assert_eq!(course.home(), Some(to));
    for luck in 0..10 {
        let luck = f64::from(luck) / 10.0;
        let (at, change) = course.pick(&all, avoid, idle, [luck, 1.0 - luck], now).unwrap();
        assert_eq!((all[at].instance, change), (to, None), "a quiet client stays there");
    }
    // What a request has tried is another matter: the next one goes home.
    let tried = Avoid { tried: &[to], surplus: &surplus };
    assert_eq!(course.pick(&all, tried, idle, [0.5; 2], now).unwrap().1, None);
    assert_eq!(course.home(), Some(to));
}
