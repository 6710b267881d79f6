//! What to use, decided from plain data: which of the known instances, and in which
//! order allocators are asked for a new one. No clock, no network, no state.
//!
//! Invariant: nothing beyond the hard limit is ever chosen, and a distance nobody has
//! measured is not within a hard limit. No answer depends on the order of its input,
//! so managers with the same view decide alike without talking to each other.

use std::time::Duration;

use lca::{InstanceId, PeerId, Requirements, ServiceHash, rendezvous};

use crate::cache::Level;

pub(crate) mod placement;
pub(crate) mod two;

pub(crate) use placement::{Facts, rank};

/// Distances below this are equal: they are the noise of a busy machine.
const NOISE: Duration = Duration::from_millis(2);

/// How much farther than it is an allocator may seem to a manager that is out of breath, in
/// ends of the nearest one's step: two steps, so that 10 ms are doubted where 2 would do.
const BREATHLESS: u32 = 5;

/// What is known of an instance when a request has to be sent somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) instance: InstanceId,
    /// Round trip to its peer, if it is known.
    pub(crate) rtt: Option<Duration>,
    /// Requests it was working on when it last answered.
    pub(crate) in_flight: u32,
    /// It has failed of late, and is used only if there is no other.
    pub(crate) passed_over: bool,
    /// How good it was when last looked at; for those who ask why.
    pub(crate) level: Level,
    /// How long it will yet be passed over in any case.
    pub(crate) ejected_for: Option<Duration>,
    /// Its peer does not answer at present: a request would wait in vain. It is used
    /// again when its peer answers, or dropped by a flight that finds it dead.
    pub(crate) silent: bool,
    /// What requests to its peer take on the way, where that contradicts `rtt`: what to
    /// rank by, see [`lca::mesh::Distance`].
    pub(crate) felt: Option<Duration>,
}

impl Candidate {
    /// One of which nothing else is known.
    pub(crate) fn new(instance: InstanceId, rtt: Option<Duration>) -> Self {
        Self {
            instance,
            rtt,
            in_flight: 0,
            passed_over: false,
            level: Level::default(),
            ejected_for: None,
            silent: false,
            felt: None,
        }
    }

    /// What to rank by: how far it is, as requests find it.
    pub(crate) fn effective(&self) -> Option<Duration> {
        self.rtt.map(|rtt| rtt.max(self.felt.unwrap_or_default()))
    }
}

/// What is to be thought of an instance, apart from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may be used.
    Usable,
    /// It may be used if there is no other.
    Suspect,
    /// The request has been there in vain.
    Tried,
    /// Its peer does not answer.
    Silent,
    /// Its peer is too far away.
    BeyondHard,
    /// Nobody knows how far its peer is, and that matters.
    DistanceUnknown,
}

/// What is known of an allocator when an instance has to be started somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) peer: PeerId,
    /// What limits are held against.
    pub(crate) rtt: Duration,
    /// The least it was lately: what managers of one place agree on, busy as they may be.
    pub(crate) least: Duration,
    /// False if it has just refused this service for lack of room.
    pub(crate) room: bool,
    /// What it says of itself, if a placement wants to know.
    pub(crate) facts: Option<Facts>,
}

/// What holds for one request: the service's promise, tightened by this node's
/// configuration and by the request itself. Nobody can loosen it.
pub(crate) fn effective(
    service: Requirements,
    client: Requirements,
    request: Requirements,
) -> Requirements {
    service.tightened(client).tightened(request)
}

/// Whether an instance may be used, and if not, why.
pub(crate) fn judge(candidate: &Candidate, limits: &Requirements, tried: &[InstanceId]) -> Verdict {
    if tried.contains(&candidate.instance) {
        return Verdict::Tried;
    }
    match candidate.rtt {
        _ if candidate.silent => Verdict::Silent,
        Some(rtt) if !limits.within_hard(rtt) => Verdict::BeyondHard,
        None if limits.hard.is_some() => Verdict::DistanceUnknown,
        _ if candidate.passed_over => Verdict::Suspect,
        _ => Verdict::Usable,
    }
}

/// The index of the instance to use: the nearest within hard that was not `tried`, the
/// less busy and then the lesser id of equally near ones. Those passed over
/// come last, as do those whose distance is unknown.
pub(crate) fn choose(
    candidates: &[Candidate],
    limits: &Requirements,
    tried: &[InstanceId],
) -> Option<usize> {
    let judged = candidates.iter().enumerate().filter_map(|(index, candidate)| {
        let is_suspect = match judge(candidate, limits, tried) {
            Verdict::Usable => false,
            Verdict::Suspect => true,
            _ => return None,
        };
        let rtt = candidate.effective().unwrap_or(Duration::MAX);
        Some(((is_suspect, rtt, candidate.in_flight, candidate.instance), index))
    });
    judged.min().map(|(_, index)| index)
}

/// The index of the instance on trial that takes a request, by what `on_trial` says of
/// each candidate: the nearest that could be used at all, if that is worth it. It must not
/// be beyond soft while another is within, nor more than twice as far: then it is not
/// missed.
pub(crate) fn trial(
    candidates: &[Candidate],
    on_trial: &[bool],
    limits: &Requirements,
    tried: &[InstanceId],
) -> Option<usize> {
    let distance = |one: &Candidate| one.effective().unwrap_or(Duration::MAX);
    let best = candidates.iter().filter(|one| judge(one, limits, tried) == Verdict::Usable);
    let best = best.map(distance).min();
    let open = |one: &Candidate| Candidate { passed_over: false, ..*one };
    let may = candidates.iter().enumerate().filter(|(index, one)| {
        on_trial.get(*index) == Some(&true) && judge(&open(one), limits, tried) == Verdict::Usable
    });
    let (index, one) = may.min_by_key(|(_, one)| (distance(one), one.instance))?;
    let worth_it = best.is_none_or(|best| {
        let near = distance(one) <= best.saturating_mul(2).max(NOISE);
        near && (limits.within_soft(distance(one)) || !limits.within_soft(best))
    });
    worth_it.then_some(index)
}

/// Of the order in which allocators are asked, those that another manager of this place
/// may have asked instead: as good by what is promised, and no farther than where
/// the noise of a busy machine may have put them.
pub(crate) fn rivals(ranked: &[PeerId], offers: &[Offer], limits: &Requirements) -> Vec<PeerId> {
    let offer = |peer: &PeerId| offers.iter().find(|offer| offer.peer == *peer);
    let Some(first) = ranked.first().and_then(offer) else { return Vec::new() };
    let far = bucket_end(first.least) * BREATHLESS;
    let is_rival = |one: &Offer| {
        one.least <= far && (limits.within_soft(one.least) || !limits.within_soft(first.least))
    };
    ranked.iter().copied().filter(|peer| offer(peer).is_some_and(is_rival)).collect()
}

/// Whom the manager that asked first means to have it started by: by the word of one of
/// those that said, the first in rendezvous order, for whom several managers asked at the
/// same instant may not have asked in the same order.
pub(crate) fn heeded(service: ServiceHash, words: &[(PeerId, PeerId)]) -> Option<PeerId> {
    let first = words.iter().max_by_key(|(by, _)| (rendezvous::weight(service, *by), *by));
    first.map(|(_, meant)| *meant)
}

/// Which of the steps 2, 5, 10, 20, 50, 100, ... milliseconds an RTT falls under.
/// Logarithmic, so that managers of one place, which measure almost the same, see the
/// same bucket almost always.
fn bucket(rtt: Duration) -> u32 {
    step_of(rtt).0
}

/// Where the step ends under which an RTT falls.
pub(crate) fn bucket_end(rtt: Duration) -> Duration {
    step_of(rtt).1
}

/// The number of the step, and its end.
fn step_of(rtt: Duration) -> (u32, Duration) {
    let rtt = rtt.as_micros();
    let mut decade = 1_000;
    let mut index = 0;
    loop {
        for step in [2, 5, 10] {
            if rtt <= step * decade {
                let end = u64::try_from(step * decade).unwrap_or(u64::MAX);
                return (index, Duration::from_micros(end));
            }
            index += 1;
        }
        // An RTT fits a Duration, so this ends long before it overflows.
        decade *= 10;
    }
}

#[cfg(test)]
mod tests {
    use lca::{Placement, ServiceHash};
    use proptest::prelude::*;

    use super::*;

    fn rank(offers: &[Offer], limits: &Requirements, service: ServiceHash) -> Vec<PeerId> {
        super::rank(Placement::Nearest, true, offers, limits, service)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn requirements() -> impl Strategy<Value = Requirements> {
        let limit = || proptest::option::of((1u64..300).prop_map(ms));
        (limit(), limit()).prop_map(|(soft, hard)| Requirements { soft, hard })
    }

    fn instance(n: u8) -> InstanceId {
        format!("{n:032x}").parse().unwrap()
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (proptest::option::of(0u64..300), 0u32..3, 0u32..5);
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let made = numbered.map(|(n, (rtt, in_flight, broken))| Candidate {
                in_flight,
                passed_over: broken >= 3,
                ..Candidate::new(instance(n as u8), rtt.map(ms))
            });
            made.collect()
        })
    }

    fn offers() -> impl Strategy<Value = Vec<Offer>> {
        let one = (0u64..300, any::<bool>());
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let made = numbered.map(|(n, (rtt, room))| Offer {
                peer: PeerId::from_public_key([n as u8; 32]),
                rtt: ms(rtt),
                least: ms(rtt),
                room,
                facts: None,
            });
            made.collect()
        })
    }

    proptest! {
        #[test]
        fn the_chosen_one_is_within_hard_and_not_tried(
            all in candidates(), limits in requirements(), skip in 0u8..12,
        ) {
            let tried = [instance(skip)];
            let chosen = choose(&all, &limits, &tried);
            let usable = |c: &Candidate| !tried.contains(&c.instance)
                && limits.hard.is_none_or(|hard| c.rtt.is_some_and(|rtt| rtt <= hard));
            prop_assert_eq!(chosen.is_some(), all.iter().any(usable));
            if let Some(chosen) = chosen.map(|index| all[index]) {
                prop_assert!(usable(&chosen));
                let nearer = |c: &&Candidate| c.rtt.is_some_and(|rtt| rtt < chosen.rtt.unwrap_or(Duration::MAX));
                let sound = |c: &&Candidate| !c.passed_over;
                prop_assert!(!all.iter().filter(|c| usable(c)).filter(sound).any(|c| nearer(&c)));
            }
        }

        #[test]
        fn the_choice_does_not_depend_on_the_order(
            all in candidates(), limits in requirements(), turn in 0usize..12,
        ) {
            let chosen = choose(&all, &limits, &[]).map(|index| all[index]);
            let mut turned = all;
            let by = turn % turned.len().max(1);
            turned.rotate_left(by);
            prop_assert_eq!(choose(&turned, &limits, &[]).map(|index| turned[index]), chosen);
        }

        #[test]
        fn the_rank_is_total_and_does_not_depend_on_the_order(
            all in offers(), limits in requirements(), turn in 0usize..12, hash: [u8; 32],
        ) {
            let service = ServiceHash::from_sha256(hash);
            let ranked = rank(&all, &limits, service);
            prop_assert_eq!(ranked.len(), all.iter().filter(|o| limits.within_hard(o.rtt)).count());
            let mut turned = all.clone();
            turned.rotate_left(turn % all.len().max(1));
            turned.reverse();
            prop_assert_eq!(rank(&turned, &limits, service), ranked);
        }

        #[test]
        fn the_rank_puts_first_what_is_promised_then_what_is_near(
            all in offers(), limits in requirements(), hash: [u8; 32],
        ) {
            let ranked = rank(&all, &limits, ServiceHash::from_sha256(hash));
            let key = |peer: &PeerId| {
                let offer = all.iter().find(|offer| offer.peer == *peer).unwrap();
                (!(limits.within_soft(offer.rtt) && offer.room), bucket(offer.rtt))
            };
            prop_assert!(ranked.is_sorted_by_key(key));
        }

        #[test]
        fn buckets_are_monotonic(a in 0u64..10_000_000, b in 0u64..10_000_000) {
            let (a, b) = (a.min(b), a.max(b));
            prop_assert!(bucket(Duration::from_micros(a)) <= bucket(Duration::from_micros(b)));
        }

        #[test]
        fn nobody_loosens(a in requirements(), b in requirements(), c in requirements(), rtt in 0u64..400) {
            let limits = effective(a, b, c);
            let rtt = ms(rtt);
            prop_assert!(!limits.within_hard(rtt) || [a, b, c].iter().all(|l| l.within_hard(rtt)));
        }
    }

    #[test]
    fn each_reason_not_to_use_an_instance_is_told_apart() {
        let limits = Requirements { soft: None, hard: Some(ms(20)) };
        let well = Candidate::new(instance(1), Some(ms(1)));
        let verdict = |candidate: Candidate| judge(&candidate, &limits, &[instance(2)]);
        assert_eq!(verdict(well), Verdict::Usable);
        assert_eq!(verdict(Candidate { instance: instance(2), ..well }), Verdict::Tried);
        assert_eq!(verdict(Candidate { silent: true, rtt: None, ..well }), Verdict::Silent);
        assert_eq!(verdict(Candidate { rtt: Some(ms(21)), ..well }), Verdict::BeyondHard);
        assert_eq!(verdict(Candidate { rtt: None, ..well }), Verdict::DistanceUnknown);
        assert_eq!(verdict(Candidate { passed_over: true, ..well }), Verdict::Suspect);
        let unknown = Candidate { rtt: None, ..well };
        assert_eq!(judge(&unknown, &Requirements::default(), &[]), Verdict::Usable);
    }

    proptest! {
        #[test]
        fn a_trial_is_of_one_that_could_be_used_and_costs_little(
            all in candidates(), limits in requirements(), on in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let on_trial: Vec<_> = on.iter().take(all.len()).copied().collect();
            let passed_over = |(one, on): (&Candidate, &bool)| Candidate { passed_over: one.passed_over || *on, ..*one };
            let all: Vec<_> = all.iter().zip(&on_trial).map(passed_over).collect();
            let Some(index) = trial(&all, &on_trial, &limits, &[]) else { return Ok(()) };
            prop_assert!(on_trial[index]);
            prop_assert!(all[index].rtt.is_none_or(|rtt| limits.within_hard(rtt)));
            if let Some(best) = choose(&all, &limits, &[]).map(|index| all[index]).filter(|best| !best.passed_over) {
                let (rtt, best) = (all[index].effective(), best.effective());
                let (rtt, best) = (rtt.unwrap_or(Duration::MAX), best.unwrap_or(Duration::MAX));
                prop_assert!(rtt <= best.saturating_mul(2).max(ms(2)));
                prop_assert!(limits.within_soft(rtt) || !limits.within_soft(best));
            }
        }
    }

    #[test]
    fn the_one_on_trial_is_found_out_about_unless_it_is_far_or_nobody_may() {
        let open = Candidate::new(instance(1), Some(ms(10)));
        let passed =
            |rtt| Candidate { passed_over: true, ..Candidate::new(instance(2), Some(ms(rtt))) };
        let limits = Requirements { soft: Some(ms(15)), hard: Some(ms(50)) };
        let tries = |rtt, on| trial(&[open, passed(rtt)], &[false, on], &limits, &[]);
        assert_eq!(tries(12, true), Some(1));
        assert_eq!(tries(12, false), None);
        assert_eq!(tries(16, true), None, "it is beyond soft and the other is not");
        assert_eq!(trial(&[passed(16)], &[true], &limits, &[]), Some(0), "there is no other");
        assert_eq!(trial(&[passed(51)], &[true], &limits, &[]), None, "it is beyond hard");
        assert_eq!(trial(&[open, passed(25)], &[false, true], &Requirements::default(), &[]), None);
    }

    #[test]
    fn buckets_end_where_the_design_says() {
        let edges = [0, 2, 3, 5, 6, 10, 11, 20, 21, 50, 51, 100, 101, 200];
        let buckets: Vec<_> = edges.into_iter().map(|edge| bucket(ms(edge))).collect();
        assert_eq!(buckets, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]);
        assert_eq!(bucket_end(ms(21)), ms(50));
        assert!(bucket(Duration::MAX) > 40, "any duration has a bucket");
    }

    #[test]
    fn services_spread_over_allocators_that_are_equally_near() {
        let peers = [1, 2, 3].map(|n| PeerId::from_public_key([n; 32]));
        let offers =
            peers.map(|peer| Offer { peer, rtt: ms(1), least: ms(1), room: true, facts: None });
        let mut firsts = std::collections::HashSet::new();
        for service in 0..100 {
            let service = ServiceHash::from_sha256([service; 32]);
            firsts.insert(rank(&offers, &Requirements::default(), service)[0]);
        }
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn managers_that_are_busy_agree_and_rivals_are_those_of_the_same_place() {
        let offer = |n: u8, rtt, least| Offer {
            peer: PeerId::from_public_key([n; 32]),
            rtt: ms(rtt),
            least: ms(least),
            room: true,
            facts: None,
        };
        let limits = Requirements { soft: Some(ms(20)), hard: None };
        let all = [offer(1, 1, 1), offer(2, 400, 1), offer(3, 30, 8), offer(4, 51, 50)];
        let calm = all.map(|one| Offer { rtt: one.least, ..one });
        for hash in 0..50 {
            let service = ServiceHash::from_sha256([hash; 32]);
            let ranked = rank(&all, &limits, service);
            assert_eq!(ranked, rank(&calm, &limits, service), "the moment does not count");
            let rivals = rivals(&ranked, &all, &limits);
            assert_eq!(rivals, ranked[..3], "the one in the other place is none");
        }
        assert_eq!(rivals(&[], &all, &limits), []);
        // Where nothing is promised, the nearest may be had elsewhere too.
        let far = [offer(1, 60, 60), offer(2, 70, 70), offer(3, 700, 700)];
        let ranked = rank(&far, &limits, ServiceHash::from_sha256([1; 32]));
        assert_eq!(rivals(&ranked, &far, &limits).len(), 2);
    }

    #[test]
    fn one_that_keeps_breaking_off_is_used_only_if_there_is_no_other() {
        let near = Candidate { passed_over: true, ..Candidate::new(instance(1), Some(ms(1))) };
        let far = Candidate::new(instance(2), Some(ms(9)));
        let limits = Requirements::default();
        assert_eq!(choose(&[near, far], &limits, &[]), Some(1));
        assert_eq!(choose(&[near], &limits, &[]), Some(0));
    }
}
