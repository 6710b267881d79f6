//! Whom to ask for a start, and when a second one is asked while the first is still at it.
//! Decides and does nothing; what becomes of each that was asked comes in.
//!
//! ```text
//!   nobody is at it          one is at it                     two are at it
//!   ┌──────────┐  ask  ┌─────────────────────┐  it is late ┌──────────────┐
//!   │          │ ────► │ within its promise  │ ──────────► │ the first    │ ──► the first of
//!   └──────────┘       └─────────────────────┘  ask next   │ late, one    │     both to be ready
//!        ▲                   │ refused                      │ more at it   │     is used, the other
//!        └───────────────────┘ ◄──── either has refused ─── └──────────────┘     is let go
//! ```
//!
//! Invariant: never more than two may be starting one at the same time, and a second only
//! after the first has broken its promise. One that was given up without an answer counts
//! as starting: it may do it yet.

use lca::PeerId;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask the next one, also while another is at it.
    Ask,
    /// Wait for those who are at it.
    Wait,
    /// Nothing: nobody is waited for, and nobody may be asked.
    Over,
}

/// How far one is that was asked and has not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Promised,
    /// It has broken its promise, and is still waited for.
    Late,
    /// It is not waited for any more, and may start one all the same.
    GivenUp,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Asking {
    /// Whether a second one may be asked at all.
    hedges: bool,
    at_it: Vec<(PeerId, Stage)>,
    /// Nobody is left to be asked, or asking more would be no use.
    exhausted: bool,
    was_hedged: bool,
}

impl Asking {
    pub(super) fn new(hedges: bool) -> Self {
        Self { hedges, at_it: Vec::with_capacity(2), exhausted: false, was_hedged: false }
    }

    pub(super) fn next(&self) -> Next {
        let may = match self.at_it.as_slice() {
            [] => true,
            [(_, Stage::Late | Stage::GivenUp)] => self.hedges,
            _ => false,
        };
        if may && !self.exhausted {
            Next::Ask
        } else if self.at_it.iter().any(|(_, stage)| *stage != Stage::GivenUp) {
            Next::Wait
        } else {
            Next::Over
        }
    }

    /// `peer` is asked.
    pub(super) fn asked(&mut self, peer: PeerId) {
        self.was_hedged |= !self.at_it.is_empty();
        self.at_it.push((peer, Stage::Promised));
    }

    /// `peer` has not answered within its promise. True if it was waited for.
    pub(super) fn late(&mut self, peer: PeerId) -> bool {
        self.becomes(peer, Stage::Late)
    }

    /// `peer` is not waited for any more, though it may start one yet.
    pub(super) fn given_up(&mut self, peer: PeerId) {
        self.becomes(peer, Stage::GivenUp);
    }

    /// `peer` will not have started one.
    pub(super) fn refused(&mut self, peer: PeerId) {
        self.at_it.retain(|(one, _)| *one != peer);
    }

    /// Nobody else is to be asked.
    pub(super) fn exhausted(&mut self) {
        self.exhausted = true;
    }

    /// Whether one was asked while another was at it.
    pub(super) fn was_hedged(&self) -> bool {
        self.was_hedged
    }

    /// Those that may be starting one, besides `winner`, and whether they are waited for.
    pub(super) fn others(&self, winner: Option<PeerId>) -> Vec<(PeerId, bool)> {
        let others = self.at_it.iter().filter(|(peer, _)| Some(*peer) != winner);
        others.map(|(peer, stage)| (*peer, *stage != Stage::GivenUp)).collect()
    }

    fn becomes(&mut self, peer: PeerId, stage: Stage) -> bool {
        let waited_for = |(one, was): &&mut (PeerId, Stage)| *one == peer && *was != Stage::GivenUp;
        let one = self.at_it.iter_mut().find(waited_for);
        one.map(|(_, was)| *was = stage).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEVER: u64 = u64::MAX;

    /// What an allocator does when it is asked, in ticks from then on.
    #[derive(Clone, Copy, Debug)]
    struct Twin {
        /// When it is late by its own promise.
        promise: u64,
        /// When it is given up.
        patience: u64,
        /// When it has one ready, if it does, and is heard of that unless it was given up.
        ready: u64,
        /// When it refuses, if it does.
        refuses: u64,
    }

    fn twins() -> impl Strategy<Value = Vec<Twin>> {
        let outcome = prop_oneof![
            3 => (1u64..60).prop_map(|at| (at, NEVER)),
            2 => (1u64..60).prop_map(|at| (NEVER, at)),
            1 => Just((NEVER, NEVER)),
        ];
        let twin = (5u64..20, outcome).prop_map(|(promise, (ready, refuses))| Twin {
            promise,
            patience: promise * 2,
            ready,
            refuses,
        });
        proptest::collection::vec(twin, 0..6)
    }

    fn peer(n: usize) -> PeerId {
        PeerId::from_public_key([n as u8; 32])
    }

    /// Runs it and says who was asked when, who won when, and the most that may have been
    /// starting or running at the same time.
    fn run(twins: &[Twin], hedges: bool) -> (Vec<u64>, Option<(usize, u64)>, usize) {
        let mut asking = Asking::new(hedges);
        let (mut asked, mut most) = (Vec::new(), 0);
        for now in 0..1000 {
            let mut events: Vec<_> = (0..asked.len()).collect();
            events.rotate_left(now as usize % asked.len().max(1));
            for n in events {
                let (twin, age) = (twins[n], now - asked[n]);
                if age == twin.ready && age <= twin.patience {
                    return (asked, Some((n, now)), most);
                }
                if age == twin.refuses && age <= twin.patience {
                    asking.refused(peer(n));
                } else if age == twin.promise {
                    asking.late(peer(n));
                } else if age == twin.patience {
                    asking.given_up(peer(n));
                }
            }
            loop {
                match asking.next() {
                    Next::Ask if asked.len() == twins.len() => asking.exhausted(),
                    Next::Ask => {
                        asking.asked(peer(asked.len()));
                        asked.push(now);
                    }
                    Next::Wait => break,
                    Next::Over => return (asked, None, most),
                }
            }
            let may_run = |(n, at): (usize, &u64)| {
                let refused = twins[n].refuses;
                refused > twins[n].patience || now < at + refused
            };
            most = most.max(asked.iter().enumerate().filter(|one| may_run(*one)).count());
        }
        panic!("it does not end");
    }

    proptest! {
        #[test]
        fn never_more_than_two_are_at_it_and_a_second_only_after_the_first_is_late(all in twins()) {
            let (asked, won, most) = run(&all, true);
            prop_assert!(most <= 2, "{most}");
            for (n, at) in asked.iter().enumerate().skip(1) {
                let before = (0..n).filter(|m| all[*m].refuses > all[*m].patience || asked[*m] + all[*m].refuses > *at);
                for m in before {
                    prop_assert!(asked[m] + all[m].promise <= *at, "{m} was not late when {n} was asked");
                }
            }
            // In vain only if two may be at it for good, or everybody has been asked.
            prop_assert!(won.is_some() || most == 2 || asked.len() == all.len());
        }

        #[test]
        fn with_a_place_for_one_there_is_never_a_second(all in twins()) {
            prop_assert!(run(&all, false).2 <= 1);
        }

        #[test]
        fn it_never_takes_longer_than_without(all in twins()) {
            let (_, without, _) = run(&all, false);
            let (_, with, _) = run(&all, true);
            if let Some((_, at)) = without {
                prop_assert!(with.is_some_and(|(_, with)| with <= at), "{with:?} {without:?}");
            }
        }
    }

    #[test]
    fn what_would_be_the_same_everywhere_ends_the_asking_and_not_the_waiting() {
        let mut asking = Asking::new(true);
        asking.asked(peer(1));
        assert_eq!(asking.next(), Next::Wait);
        assert!(asking.late(peer(1)));
        assert_eq!(asking.next(), Next::Ask);
        asking.asked(peer(2));
        assert!(asking.was_hedged());
        asking.refused(peer(2));
        asking.exhausted();
        assert_eq!(asking.next(), Next::Wait);
        asking.given_up(peer(1));
        assert_eq!((asking.next(), asking.others(None)), (Next::Over, vec![(peer(1), false)]));
        assert!(!asking.late(peer(1)), "it is not waited for");
    }
}
