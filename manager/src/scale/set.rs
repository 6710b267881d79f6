//! Which instances requests are spread over, so that what is surplus gets none and idles
//! out. Pure; applied before the choice of one for a request.
//!
//! Choosing among all known instances would keep every one of them busy for ever at the
//! smallest load: none could go. So requests go to the first few in an order that all
//! managers of one place agree on without talking to each other: near ones first, by the
//! steps that allocators are ranked by, then by id. Where requests find a peer far that probes find
//! near, the requests count: agreement is worth less than that.

use std::time::Duration;

use lca::{InstanceId, Requirements};

use crate::policy::{self, Candidate, Verdict};

/// How many instances a service shall make do with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// As the controller says; none: as many as there are.
    pub(crate) size: Option<usize>,
    /// The most there may be. Those beyond it exist because managers could not see each
    /// other for a while.
    pub(crate) max: Option<usize>,
}

/// The candidates to choose among, as indices in ascending order. All of them if there is
/// nothing to leave out; never none if there are any.
pub(crate) fn working_set(
    candidates: &[Candidate],
    limits: &Requirements,
    tried: &[InstanceId],
    share: Share,
) -> Vec<usize> {
    let all = || (0..candidates.len()).collect();
    let size = match (share.size, share.max) {
        (None, None) => return all(),
        (size, max) => size.into_iter().chain(max).min().unwrap_or(usize::MAX).max(1),
    };
    // What a request has tried in vain leaves its place to the next in order.
    let usable = |candidate: &Candidate| policy::judge(candidate, limits, tried) == Verdict::Usable;
    let mut set: Vec<_> = (0..candidates.len()).filter(|n| usable(&candidates[*n])).collect();
    if set.is_empty() {
        return all();
    }
    if let Some(max) = share.max {
        // By id alone: managers far from each other must agree on who is one too many.
        set.sort_by_key(|n| candidates[*n].instance);
        set.truncate(max.max(1));
    }
    let place = |n: &usize| {
        let (rtt, instance) = (candidates[*n].effective(), candidates[*n].instance);
        let step = rtt.map_or(Duration::MAX, policy::bucket_end);
        (!rtt.is_some_and(|rtt| limits.within_soft(rtt)), step, instance)
    };
    set.sort_by_key(place);
    // One that is too far to be chosen while another is near enough takes no load off it.
    let is_near = |n: &usize| !place(n).0;
    let near = set.iter().filter(|n| is_near(n)).count();
    set.truncate(if near > 0 { size.min(near) } else { size });
    set.sort_unstable();
    set
}

/// Those that are to idle out: the candidates outside of the working set.
pub(crate) fn surplus(
    candidates: &[Candidate],
    limits: &Requirements,
    tried: &[InstanceId],
    share: Share,
) -> Vec<InstanceId> {
    if share == Share::default() {
        return Vec::new();
    }
    let set = working_set(candidates, limits, tried, share);
    let left = candidates.iter().enumerate().filter(|(n, _)| !set.contains(n));
    left.map(|(_, one)| one.instance).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(id: u8, rtt_ms: Option<u64>, passed_over: bool) -> Candidate {
        let instance = format!("{id:032x}").parse().unwrap();
        Candidate { passed_over, ..Candidate::new(instance, rtt_ms.map(Duration::from_millis)) }
    }

    fn ids(candidates: &[Candidate], set: &[usize]) -> Vec<InstanceId> {
        let mut ids: Vec<_> = set.iter().map(|n| candidates[*n].instance).collect();
        ids.sort();
        ids
    }

    fn share(size: usize) -> Share {
        Share { size: Some(size), max: None }
    }

    proptest! {
        #[test]
        fn it_does_not_depend_on_the_order_and_grows_by_adding(
            all in proptest::collection::vec((proptest::option::of(0u64..200), any::<bool>()), 1..12),
            turn in 0usize..12, size in 1usize..12, max in proptest::option::of(1usize..12),
            soft in proptest::option::of(1u64..100), hard in proptest::option::of(100u64..200),
        ) {
            let ms = |ms: Option<u64>| ms.map(Duration::from_millis);
            let limits = Requirements { soft: ms(soft), hard: ms(hard) };
            let numbered = all.iter().enumerate();
            let all: Vec<_> = numbered.map(|(n, (rtt, passed))| candidate(n as u8, *rtt, *passed)).collect();
            let share = Share { size: Some(size), max };
            let set = working_set(&all, &limits, &[], share);
            let mut turned = all.clone();
            turned.rotate_left(turn % all.len());
            let other = working_set(&turned, &limits, &[], share);
            prop_assert_eq!(ids(&turned, &other), ids(&all, &set));
            prop_assert!(!set.is_empty() && set.is_sorted());
            let usable = |n: &usize| policy::judge(&all[*n], &limits, &[]) == Verdict::Usable;
            if (0..all.len()).any(|n| usable(&n)) {
                prop_assert!(set.len() <= size && set.len() <= max.unwrap_or(usize::MAX));
                prop_assert!(set.iter().all(usable));
                // One more instance to use never takes another away.
                let more = working_set(&all, &limits, &[], Share { size: Some(size + 1), max });
                prop_assert!(set.iter().all(|n| more.contains(n)));
            }
            let choice = policy::choose(&all, &limits, &[]);
            prop_assert!(choice.is_none() || !set.is_empty());
        }
    }

    #[test]
    fn the_nearest_come_first_and_then_the_least_ids() {
        let all = [
            candidate(1, Some(40), false),
            candidate(3, Some(1), false),
            candidate(2, Some(2), false),
        ];
        let limits = Requirements::default();
        let set = |size| ids(&all, &working_set(&all, &limits, &[], share(size)));
        assert_eq!(set(1), [all[2].instance]);
        assert_eq!(set(2), [all[2].instance, all[1].instance]);
        assert_eq!(set(9).len(), 3);
        let soft = Requirements { soft: Some(Duration::from_millis(10)), hard: None };
        assert_eq!(working_set(&all, &soft, &[], share(9)), [1, 2], "those within soft alone");
    }

    #[test]
    fn one_that_requests_find_far_comes_after_one_that_is_near() {
        let felt = Some(Duration::from_millis(80));
        let all =
            [Candidate { felt, ..candidate(1, Some(1), false) }, candidate(2, Some(2), false)];
        assert_eq!(working_set(&all, &Requirements::default(), &[], share(1)), [1]);
        let soft = Requirements { soft: Some(Duration::from_millis(10)), hard: None };
        assert_eq!(working_set(&all, &soft, &[], share(2)), [1], "it is beyond soft");
    }

    #[test]
    fn beyond_the_most_the_greatest_ids_are_left_out_wherever_they_are() {
        let all = [candidate(1, Some(40), false), candidate(2, Some(1), false)];
        let limits = Requirements::default();
        let share = Share { size: None, max: Some(1) };
        assert_eq!(working_set(&all, &limits, &[], share), [0], "the same for who is elsewhere");
    }

    #[test]
    fn without_a_number_and_without_a_usable_one_nothing_is_left_out() {
        let all = [candidate(1, Some(1), false), candidate(2, Some(90), true)];
        let limits = Requirements::default();
        assert_eq!(working_set(&all, &limits, &[], Share::default()), [0, 1]);
        let hard = Requirements { soft: None, hard: Some(Duration::from_micros(1)) };
        assert_eq!(working_set(&all, &hard, &[], share(1)), [0, 1]);
        assert_eq!(working_set(&all, &limits, &[all[0].instance], share(1)), [0, 1]);
    }
}
