//! What one find has learned, and what follows from it. Pure: the actor asks the
//! network and tells the caller.
//!
//! ```text
//!   answers of peers ──► providers not yet seen ──► resolved one by one ──► Endpoint
//!                   └──► empty ones, counted ─┐
//!   the query's end ──────────────────────────┼──► Miss, once, if nothing was found
//!   the patience's end ───────────────────────┘
//! ```
//!
//! A miss ends nothing: what comes later is still told.

use std::{collections::HashSet, sync::Arc, time::Duration};

use lca::{PeerId, discovery::Found, endpoint::Endpoint};

/// Empty answers that make a miss. The peers nearest to a key are asked first, and an
/// announcement is on all twenty of them: three that have not heard of it are enough.
const EMPTY_ANSWERS: usize = 3;
/// Providers one find tells: as many as one node keeps for a key.
const MAX_PROVIDERS: usize = 256;

/// The state of one find.
#[derive(Debug)]
pub(crate) struct Search {
    local: PeerId,
    /// Empty answers that make a miss here.
    enough: usize,
    empty: usize,
    seen: HashSet<PeerId>,
    resolving: usize,
    found: bool,
    missed: bool,
    late: bool,
    ended: bool,
}

impl Search {
    /// Most that one find can say: every provider, and a miss.
    pub(crate) const MAX_SAID: usize = MAX_PROVIDERS + 1;

    /// A find by `local`, which has `live` peers to ask.
    pub(crate) fn new(local: PeerId, live: usize) -> Self {
        Self {
            local,
            enough: EMPTY_ANSWERS.min(live).max(1),
            empty: 0,
            seen: HashSet::new(),
            resolving: 0,
            found: false,
            missed: false,
            late: false,
            ended: false,
        }
    }

    /// Somebody named these providers; returns those to resolve now. `by_peer` is false
    /// for what this node had stored itself.
    pub(crate) fn answered(
        &mut self,
        providers: impl IntoIterator<Item = PeerId>,
        by_peer: bool,
    ) -> Vec<PeerId> {
        let others: Vec<_> = providers.into_iter().filter(|peer| *peer != self.local).collect();
        if others.is_empty() && by_peer {
            self.empty += 1;
        }
        let room = MAX_PROVIDERS - self.seen.len();
        let new: Vec<_> =
            others.into_iter().filter(|peer| !self.seen.contains(peer)).take(room).collect();
        let new: Vec<_> = new.into_iter().filter(|peer| self.seen.insert(*peer)).collect();
        self.resolving += new.len();
        new
    }

    /// What became of a provider that was to be resolved.
    pub(crate) fn resolved(&mut self, endpoint: Option<Arc<Endpoint>>) -> Option<Found> {
        self.resolving = self.resolving.saturating_sub(1);
        self.found |= endpoint.is_some();
        endpoint.map(Found::Endpoint)
    }

    /// The query has ended: there will be no more answers.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }

    /// The caller has waited as long as a find should take.
    pub(crate) fn late(&mut self) {
        self.late = true;
    }

    /// The miss, if it is to be told now. To be asked after every change.
    pub(crate) fn miss(&mut self) -> Option<Found> {
        let nobody = self.resolving == 0 && (self.ended || self.empty >= self.enough);
        let miss = !self.missed && !self.found && (self.late || nobody);
        self.missed |= miss;
        miss.then_some(Found::Miss)
    }

    /// Whether nothing more can come.
    pub(crate) fn is_over(&self) -> bool {
        self.ended && self.resolving == 0
    }
}

/// How long to wait before calling it a miss: twice the median round trip, because a
/// find takes one to ask and often one to connect; at least `floor`.
pub(crate) fn patience(mut rtts: Vec<Duration>, floor: Duration) -> Duration {
    let middle = rtts.len() / 2;
    if rtts.is_empty() {
        return floor;
    }
    let (_, median, _) = rtts.select_nth_unstable(middle);
    floor.max(*median * 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::record::tests::endpoint_of;

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn search(live: usize) -> Search {
        Search::new(peer(0), live)
    }

    fn endpoint(number: u8) -> Option<Arc<Endpoint>> {
        Some(Arc::new(endpoint_of(peer(number), 1)))
    }

    #[test]
    fn three_empty_answers_make_a_miss_or_all_if_there_are_fewer() {
        for (live, answers) in [(1, 1), (2, 2), (3, 3), (50, 3)] {
            let mut search = search(live);
            for _ in 1..answers {
                search.answered([], true);
                assert_eq!(search.miss(), None);
            }
            search.answered([], true);
            assert_eq!(search.miss(), Some(Found::Miss), "of {live}");
            assert_eq!(search.miss(), None, "said once");
        }
    }

    #[test]
    fn the_end_of_the_query_or_of_patience_makes_a_miss() {
        let (mut ended, mut late) = (search(9), search(9));
        ended.ended();
        late.late();
        assert_eq!(ended.miss(), Some(Found::Miss));
        assert_eq!(late.miss(), Some(Found::Miss));
        assert!(ended.is_over() && !late.is_over());
    }

    #[test]
    fn what_this_node_stored_itself_is_no_answer_of_a_peer() {
        let mut search = search(1);
        search.answered([peer(0)], false);
        assert_eq!(search.miss(), None);
        search.answered([peer(0)], true);
        assert_eq!(search.miss(), Some(Found::Miss), "only the asker has it");
    }

    #[test]
    fn a_provider_being_resolved_holds_the_miss_back_but_not_for_ever() {
        let mut search = search(1);
        assert_eq!(search.answered([peer(1), peer(2)], true), [peer(1), peer(2)]);
        assert!(search.answered([peer(2)], true).is_empty(), "resolved once");
        search.answered([], true);
        search.ended();
        assert_eq!(search.miss(), None);
        search.resolved(None);
        assert_eq!(search.miss(), None);
        search.late();
        assert_eq!(search.miss(), Some(Found::Miss));
        assert!(matches!(search.resolved(endpoint(2)), Some(Found::Endpoint(_))), "still good");
        assert!(search.is_over());
    }

    #[test]
    fn providers_that_cannot_be_resolved_are_a_miss() {
        let mut search = search(1);
        search.answered([peer(1)], true);
        search.ended();
        search.resolved(None);
        assert_eq!(search.miss(), Some(Found::Miss));
        assert!(search.is_over());
    }

    #[test]
    fn patience_is_twice_the_median_round_trip() {
        let ms = Duration::from_millis;
        assert_eq!(patience(vec![], ms(50)), ms(50));
        assert_eq!(patience(vec![ms(1), ms(2), ms(900)], ms(50)), ms(50));
        assert_eq!(patience(vec![ms(100), ms(80), ms(900)], ms(50)), ms(200));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Answered(Vec<u8>, bool),
        Resolved(bool),
        Late,
        Ended,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (proptest::collection::vec(0_u8..6, 0..4), any::<bool>())
                .prop_map(|(peers, by_peer)| Step::Answered(peers, by_peer)),
            4 => any::<bool>().prop_map(Step::Resolved),
            1 => Just(Step::Late),
            1 => Just(Step::Ended),
        ]
    }

    proptest! {
        #[test]
        fn a_miss_comes_once_and_first_and_a_find_always_says_something(
            steps in proptest::collection::vec(step(), 0..40),
            live in 0_usize..5,
        ) {
            let mut search = search(live);
            let mut waiting = Vec::new();
            let mut said = Vec::new();
            let finish = [Step::Ended, Step::Late];
            for step in steps.into_iter().chain(finish) {
                match step {
                    Step::Answered(..) if search.ended => {}
                    Step::Answered(peers, by_peer) => {
                        let new = search.answered(peers.into_iter().map(peer), by_peer);
                        prop_assert!(!new.contains(&peer(0)), "never itself");
                        waiting.extend(new);
                    }
                    Step::Resolved(good) => if let Some(peer) = waiting.pop() {
                        let endpoint = good.then(|| Arc::new(endpoint_of(peer, 1)));
                        said.extend(search.resolved(endpoint));
                    },
                    Step::Late => search.late(),
                    Step::Ended => search.ended(),
                }
                said.extend(search.miss());
            }
            let misses = said.iter().filter(|found| **found == Found::Miss).count();
            prop_assert!(misses <= 1 && !said.is_empty());
            prop_assert!(misses == 0 || said[0] == Found::Miss);
            prop_assert_eq!(search.is_over(), waiting.is_empty());
        }
    }
}
