//! Which images go when those an allocator has pulled take more than they may.

use std::collections::{BTreeMap, HashSet};

use lca::Digest;

/// What was used so lately may be on its way into a container that nobody can see yet: as
/// long as a start takes at most, and then some.
pub(crate) const RECENT_MS: u64 = 5 * 60 * 1000;

/// An image that is kept, under one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) id: Digest,
    /// Bytes, as if it shared none.
    pub(crate) size: u64,
    /// When it was last needed, in milliseconds of the wall clock.
    pub(crate) used_ms: u64,
}

/// The images to remove, all names of each, the least recently used first: as few as bring
/// the sum down to `room`. What is in use and what was needed lately stays, and counts.
pub(crate) fn surplus(
    kept: &[Kept],
    in_use: &HashSet<Digest>,
    room: u64,
    now_ms: u64,
) -> Vec<Digest> {
    let mut images = BTreeMap::<Digest, (u64, u64)>::new();
    for Kept { id, size, used_ms, .. } in kept {
        let (largest, latest) = images.entry(*id).or_default();
        *largest = (*largest).max(*size);
        *latest = (*latest).max(*used_ms);
    }
    let mut total: u64 = images.values().fold(0, |sum, (size, _)| sum.saturating_add(*size));
    // A clock that was set back makes nothing old.
    let is_recent = |used_ms: u64| now_ms.saturating_sub(used_ms) < RECENT_MS;
    let mut idle: Vec<_> = images
        .into_iter()
        .filter(|(id, (_, used_ms))| !in_use.contains(id) && !is_recent(*used_ms))
        .collect();
    idle.sort_by_key(|(id, (_, used_ms))| (*used_ms, *id));
    let mut gone = Vec::new();
    for (id, (size, _)) in idle {
        if total <= room {
            break;
        }
        total = total.saturating_sub(size);
        gone.push(id);
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 100 * RECENT_MS;

    fn kept(id: u8, size: u64, used_ms: u64) -> Kept {
        Kept { name: format!("i{id}"), id: Digest::of(&[id]), size, used_ms }
    }

    #[test]
    fn the_least_recently_used_goes_first_and_only_as_much_as_must() {
        let all = [kept(1, 40, 3), kept(2, 40, 1), kept(3, 40, 2), kept(4, 40, NOW)];
        let none = HashSet::new();
        assert_eq!(surplus(&all, &none, 160, NOW), []);
        assert_eq!(surplus(&all, &none, 159, NOW), [Digest::of(&[2])]);
        assert_eq!(surplus(&all, &none, 100, NOW), [Digest::of(&[2]), Digest::of(&[3])]);
        // What runs stays, and so does what may be about to.
        let in_use = HashSet::from([Digest::of(&[2])]);
        assert_eq!(surplus(&all, &in_use, 0, NOW), [Digest::of(&[3]), Digest::of(&[1])]);
    }

    fn some() -> impl Strategy<Value = Vec<Kept>> {
        // Few ids, so that images have several names.
        let one = (0..6u8, 0..50u64, 0..101u64);
        proptest::collection::vec(
            one.prop_map(|(id, size, t)| kept(id, size, t * RECENT_MS)),
            0..10,
        )
    }

    proptest! {
        #[test]
        fn what_stays_fits_or_could_not_go_and_nothing_goes_in_vain(
            all in some(), used in proptest::collection::hash_set(0..6u8, 0..4), room in 0..200u64,
        ) {
            let in_use: HashSet<_> = used.iter().map(|id| Digest::of(&[*id])).collect();
            let gone = surplus(&all, &in_use, room, NOW);
            let last_used = |id: &Digest| all.iter().filter(|kept| kept.id == *id).map(|kept| kept.used_ms).max().unwrap();
            let may_go = |id: &Digest| !in_use.contains(id) && NOW - last_used(id) >= RECENT_MS;
            let rest = |gone: &[Digest]| {
                let mut left = BTreeMap::new();
                for kept in all.iter().filter(|kept| !gone.contains(&kept.id)) {
                    let size: &mut u64 = left.entry(kept.id).or_default();
                    *size = kept.size.max(*size);
                }
                left
            };
            prop_assert!(gone.iter().all(may_go), "something in use was removed");
            let left = rest(&gone);
            prop_assert!(left.values().sum::<u64>() <= room || !left.keys().any(may_go));
            if let [first @ .., _] = &gone[..] {
                prop_assert!(rest(first).values().sum::<u64>() > room, "one too many");
            }
            for id in left.keys().filter(|id| may_go(id)) {
                prop_assert!(gone.iter().all(|gone| last_used(gone) <= last_used(id)), "not the oldest");
            }
        }
    }
}
