//! Which of the allocators near enough gets the next instance (decision 0007).
//!
//! A placement looks only at what every manager sees alike: what allocators say of
//! themselves, coarsely. What is left open is decided by the rendezvous hash, so that
//! managers of one place agree, and whoever joins an instance comes where one is.

use std::{cmp::Reverse, time::Duration};

use lca::{PeerId, Placement, Requirements, ServiceHash, rendezvous};

use super::{Offer, bucket};

/// Steps in which the use of an allocator is seen: fine enough to fill one before the
/// next, coarse enough that two managers which ask one after the other see the same.
const STEPS: u64 = 8;

/// What an allocator says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Instances of the service that it runs or starts.
    pub(crate) instances: u32,
    /// How much of what it offers is taken, of what is scarcest there: 0 to 1 000.
    pub(crate) used: u32,
}

/// An order of allocators that are equally good otherwise: the least comes first.
trait Place {
    /// Whether the nearer one comes first, whatever is said below.
    const NEAREST: bool;
    fn key(facts: &Facts) -> (u32, u32);
}

/// The nearest.
struct Nearest;
/// The fewest instances of the service, then the least used.
struct Spread;
/// The most used.
struct Pack;

impl Place for Nearest {
    const NEAREST: bool = true;

    fn key(_: &Facts) -> (u32, u32) {
        (0, 0)
    }
}

impl Place for Spread {
    const NEAREST: bool = false;

    fn key(facts: &Facts) -> (u32, u32) {
        (facts.instances, step(facts.used))
    }
}

impl Place for Pack {
    const NEAREST: bool = false;

    fn key(facts: &Facts) -> (u32, u32) {
        (0, u32::MAX - step(facts.used))
    }
}

/// Which step of use this is.
fn step(used: u32) -> u32 {
    u32::try_from(u64::from(used) * STEPS / 1000).unwrap_or(u32::MAX)
}

/// How much of a total is taken, in thousandths; all of nothing.
pub(crate) fn share(used: u64, total: u64) -> u32 {
    let share = u128::from(used.min(total)) * 1000;
    share.checked_div(u128::from(total)).and_then(|share| u32::try_from(share).ok()).unwrap_or(1000)
}

/// The order in which allocators are asked: none beyond hard; those within soft that
/// have room first, of them, where an instance that exists will do (`join`), those that
/// have one; then as `placement` says; then by the bucket of the least RTT; then by rendezvous hash, which
/// spreads services over the allocators of one place and lets its managers agree on one.
/// Nearness goes before the placement beyond soft, where none is near enough.
pub(crate) fn rank(
    placement: Placement,
    join: bool,
    offers: &[Offer],
    limits: &Requirements,
    service: ServiceHash,
) -> Vec<PeerId> {
    match placement {
        Placement::Nearest => ranked::<Nearest>(join, offers, limits, service),
        Placement::Spread => ranked::<Spread>(join, offers, limits, service),
        Placement::Pack => ranked::<Pack>(join, offers, limits, service),
    }
}

fn ranked<P: Place>(
    join: bool,
    offers: &[Offer],
    limits: &Requirements,
    service: ServiceHash,
) -> Vec<PeerId> {
    let mut usable: Vec<_> = offers.iter().filter(|offer| limits.within_hard(offer.rtt)).collect();
    usable.sort_by_cached_key(|offer| {
        let best = limits.within_soft(offer.least) && offer.room;
        let distance = bucket(offer.least);
        // Where nobody asked, nobody knows: the same for all managers.
        let facts = offer.facts.filter(|_| !P::NEAREST);
        let has_one = join && facts.is_some_and(|facts| facts.instances > 0);
        let placed = facts.map_or((u32::MAX, u32::MAX), |facts| P::key(&facts));
        let near_first = if P::NEAREST || !best { distance } else { 0 };
        let key = (Reverse(best), near_first, Reverse(has_one), placed, distance);
        (key, Reverse(rendezvous::weight(service, offer.peer)), offer.peer)
    });
    usable.into_iter().map(|offer| offer.peer).collect()
}

/// How long allocators have to say what [`Facts`] tell. They have just answered a probe.
pub(crate) const ASK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn offer(n: u8, rtt_ms: u64, facts: Option<(u32, u32)>) -> Offer {
        let facts = facts.map(|(instances, used)| Facts { instances, used });
        let rtt = Duration::from_millis(rtt_ms);
        Offer { peer: peer(n), rtt, least: rtt, room: true, facts }
    }

    fn first(placement: Placement, join: bool, offers: &[Offer]) -> PeerId {
        let soft = Some(Duration::from_millis(20));
        let limits = Requirements { soft, hard: None };
        rank(placement, join, offers, &limits, ServiceHash::from_sha256([9; 32]))[0]
    }

    #[test]
    fn each_placement_chooses_within_soft_and_none_beyond() {
        let offers = [
            offer(1, 1, Some((2, 300))),
            offer(2, 8, Some((1, 900))),
            offer(3, 15, Some((0, 100))),
            offer(4, 60, Some((0, 999))),
        ];
        assert_eq!(first(Placement::Nearest, false, &offers), peer(1));
        assert_eq!(first(Placement::Spread, false, &offers), peer(3));
        assert_eq!(first(Placement::Pack, false, &offers), peer(2));
    }

    #[test]
    fn whoever_may_join_an_instance_comes_where_one_is() {
        let offers = [offer(1, 1, Some((0, 999))), offer(2, 8, Some((1, 500)))];
        assert_eq!(first(Placement::Spread, true, &offers), peer(2));
        assert_eq!(first(Placement::Pack, true, &offers), peer(2));
        assert_eq!(first(Placement::Spread, false, &offers), peer(1));
    }

    #[test]
    fn who_does_not_say_comes_last_and_a_small_difference_in_use_counts_for_nothing() {
        let offers = [offer(1, 1, None), offer(2, 8, Some((3, 999)))];
        assert_eq!(first(Placement::Spread, false, &offers), peer(2));
        assert_eq!(first(Placement::Pack, false, &offers), peer(2));
        let seen_by = |used| [offer(1, 1, Some((0, used))), offer(2, 1, Some((0, 510)))];
        let agreed = first(Placement::Pack, false, &seen_by(505));
        assert_eq!(first(Placement::Pack, false, &seen_by(515)), agreed);
    }

    #[test]
    fn shares_of_nothing_and_of_too_much_are_all_of_it() {
        assert_eq!((share(1, 4), share(0, 4), share(5, 4), share(0, 0)), (250, 0, 1000, 1000));
        assert_eq!(share(u64::MAX, u64::MAX), 1000);
    }

    fn offers() -> impl Strategy<Value = Vec<Offer>> {
        let facts = proptest::option::of((0u32..3, 0u32..=1000));
        let one = (0u64..300, any::<bool>(), facts);
        proptest::collection::vec(one, 0..12).prop_map(|all| {
            let numbered = all.into_iter().enumerate();
            let made = numbered
                .map(|(n, (rtt, room, facts))| Offer { room, ..offer(n as u8, rtt, facts) });
            made.collect()
        })
    }

    proptest! {
        #[test]
        fn no_placement_depends_on_the_order_goes_beyond_hard_or_leaves_soft_in_need(
            all in offers(), turn in 0usize..12, join: bool, which in 0usize..3, hash: [u8; 32],
        ) {
            let placement = [Placement::Nearest, Placement::Spread, Placement::Pack][which];
            let ms = Duration::from_millis;
            let limits = Requirements { soft: Some(ms(50)), hard: Some(ms(200)) };
            let service = ServiceHash::from_sha256(hash);
            let ranked = rank(placement, join, &all, &limits, service);
            let mut turned = all.clone();
            turned.rotate_left(turn % all.len().max(1));
            prop_assert_eq!(&rank(placement, join, &turned, &limits, service), &ranked);
            let of = |peer: &PeerId| all.iter().find(|offer| offer.peer == *peer).unwrap();
            prop_assert!(ranked.iter().all(|peer| limits.within_hard(of(peer).rtt)));
            let best = |peer: &PeerId| limits.within_soft(of(peer).rtt) && of(peer).room;
            prop_assert!(ranked.is_sorted_by_key(|peer| !best(peer)));
        }
    }
}
