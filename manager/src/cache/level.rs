//! How far a known instance is to be trusted: the peer cache's three levels. Pure; time
//! comes in as `now`.
//!
//! An instance is *performant* while its peer is within the soft limit, and *reliable* by
//! what became of requests. Both together are its [`Level`]; `docs/peer-cache.md` draws it.
//!
//! ```text
//!                      3 answers in a row
//!             ┌──────────────────────────────────────┐
//!   new       ▼             a failure                │
//!  ─────► Reliable ─────────────────────────► on probation ◄──────────────┐
//!          open to all                      one request at a time         │ answered
//!                     3 failures in a row, or        │                    │
//!                     4 of the last 8                ▼      time over     │
//!                                                 ejected ──────────► on trial
//!                                             1 s, 2 s, ... 60 s      one request
//!                                                    ▲                    │ failed
//!                                                    └────────────────────┘
//! ```
//!
//! Invariant: of those passed over, at most one request at a time is let through while
//! another instance could take it; where there is no other, what is passed over is used.

use std::time::Duration;

use tokio::time::Instant;

/// Answers in a row that make an instance reliable again.
const ANSWERS: u8 = 3;
/// Failures in a row after which an instance is ejected: one is bad luck, three are a
/// habit.
const FAILURES: u8 = 3;
/// The same of the last eight requests: half of them is no better than every one.
const FAILURES_OF_8: u32 = 4;
/// How long an instance is ejected for the first time: a program that is starting again
/// is often back by then.
const FIRST: Duration = Duration::from_secs(1);
/// Twice as long each time, up to this: what is repaired is used again within a minute.
const LONGEST: Duration = Duration::from_secs(60);
/// Reliable for so long, it is ejected for the first time again.
const FORGIVEN: Duration = LONGEST;
/// How long the one that was let through may be without an outcome: then its client is
/// gone, or waits for a long answer, and another is let through.
const TRIAL: Duration = Duration::from_secs(10);
/// How long to wait for a request that could be repeated elsewhere if it fails; then any
/// is let through, for some services get no others.
const CHOOSY: Duration = Duration::from_secs(10);
/// Performant again at so many hundredths of the soft limit: at the limit itself it would
/// change with every probe.
const PERFORMANT_AGAIN: u32 = 90;

/// How good a known instance is. The order is from best to worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Performant and reliable.
    #[default]
    Good,
    /// Performant, and on probation: it failed of late.
    Performant,
    /// Neither: beyond the soft limit, or ejected.
    Poor,
}

/// Whether a request may be sent to an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Like to any other.
    #[default]
    Open,
    /// This one may be let through; who takes it says [`Record::begin_trial`].
    Trial,
    /// Only if there is no other.
    Closed,
}

/// What became of requests to an instance, and what follows.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    standing: Standing,
    /// Failures in a row.
    failures: u8,
    /// The last eight outcomes, the latest lowest; 1 is a failure.
    history: u8,
    /// Ejections since it was last forgiven.
    ejections: u32,
    /// Until when the outcome of the one that was let through is awaited.
    trial: Option<Instant>,
    performant: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// `None`: from its first sight on.
    Reliable {
        since: Option<Instant>,
    },
    Probation {
        answers: u8,
        since: Instant,
    },
    /// Until then; on trial afterwards.
    Ejected {
        until: Instant,
    },
}

impl Default for Record {
    /// A new instance is trusted: its allocator has just seen that it is ready, and one
    /// that had to earn its first requests beside older ones would never get any.
    fn default() -> Self {
        Self {
            standing: Standing::Reliable { since: None },
            failures: 0,
            history: 0,
            ejections: 0,
            trial: None,
            performant: true,
        }
    }
}

impl Record {
    /// A request was answered.
    pub(crate) fn answered(&mut self, now: Instant) {
        self.trial = None;
        self.failures = 0;
        self.history <<= 1;
        let answers = match self.standing {
            Standing::Reliable { .. } => return,
            Standing::Probation { answers, .. } => answers + 1,
            Standing::Ejected { .. } => 1,
        };
        self.standing = if answers >= ANSWERS {
            self.history = 0;
            Standing::Reliable { since: Some(now) }
        } else {
            Standing::Probation { answers, since: now }
        };
    }

    /// A request broke off.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.trial = None;
        self.failures = self.failures.saturating_add(1);
        self.history = self.history << 1 | 1;
        let habit = self.failures >= FAILURES || self.history.count_ones() >= FAILURES_OF_8;
        match self.standing {
            // Sent before it was ejected, or for want of another: nothing new.
            Standing::Ejected { until } if now < until => {}
            Standing::Ejected { .. } => self.eject(now),
            Standing::Reliable { since } => {
                if since.is_some_and(|since| now.duration_since(since) >= FORGIVEN) {
                    self.ejections = 0;
                }
                self.standing = Standing::Probation { answers: 0, since: now };
            }
            Standing::Probation { .. } if habit => self.eject(now),
            Standing::Probation { .. } => {
                self.standing = Standing::Probation { answers: 0, since: now };
            }
        }
    }

    /// The one that was let through ended without telling anything.
    pub(crate) fn undecided(&mut self) {
        self.trial = None;
    }

    fn eject(&mut self, now: Instant) {
        let wait = FIRST.saturating_mul(1 << self.ejections.min(16)).min(LONGEST);
        self.standing = Standing::Ejected { until: now + wait };
        self.ejections = self.ejections.saturating_add(1);
        self.history = 0;
    }

    /// Whether a request may be sent there now. `repeatable`: it could be sent elsewhere
    /// if it failed.
    pub(crate) fn gate(&self, repeatable: bool, now: Instant) -> Gate {
        let due = match self.standing {
            Standing::Reliable { .. } => return Gate::Open,
            Standing::Probation { since, .. } => since,
            Standing::Ejected { until } => until,
        };
        let due = if repeatable { due } else { due + CHOOSY };
        let taken = self.trial.is_some_and(|until| now < until);
        if now < due || taken { Gate::Closed } else { Gate::Trial }
    }

    /// Lets one request through. False if another was faster.
    pub(crate) fn begin_trial(&mut self, repeatable: bool, now: Instant) -> bool {
        match self.gate(repeatable, now) {
            Gate::Open => true,
            Gate::Trial => {
                self.trial = Some(now + TRIAL);
                true
            }
            Gate::Closed => false,
        }
    }

    /// Whether it was ejected and has not answered since.
    pub(crate) fn is_ejected(&self) -> bool {
        matches!(self.standing, Standing::Ejected { .. })
    }

    /// Until when it is ejected, if it is.
    pub(crate) fn ejected_until(&self, now: Instant) -> Option<Instant> {
        match self.standing {
            Standing::Ejected { until } if now < until => Some(until),
            _ => None,
        }
    }

    /// Whether it is performant at this distance, having been so or not before.
    pub(crate) fn performs(&self, rtt: Option<Duration>, soft: Option<Duration>) -> bool {
        match (rtt, soft) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(rtt), Some(soft)) if self.performant => rtt <= soft,
            (Some(rtt), Some(soft)) => {
                rtt.saturating_mul(100) <= soft.saturating_mul(PERFORMANT_AGAIN)
            }
        }
    }

    /// Says which [`performs`](Self::performs) has found.
    pub(crate) fn set_performant(&mut self, performant: bool) {
        self.performant = performant;
    }

    /// Whether it was performant when last looked at.
    pub(crate) fn is_performant(&self) -> bool {
        self.performant
    }

    pub(crate) fn level(&self) -> Level {
        match self.standing {
            Standing::Reliable { .. } if self.performant => Level::Good,
            Standing::Probation { .. } if self.performant => Level::Performant,
            _ => Level::Poor,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn failing(times: u32, now: Instant) -> Record {
        let mut record = Record::default();
        (0..times).for_each(|_| record.failed(now));
        record
    }

    #[test]
    fn a_failure_demotes_three_answers_in_a_row_promote() {
        let now = Instant::now();
        let mut record = failing(1, now);
        assert_eq!((record.level(), record.gate(true, now)), (Level::Performant, Gate::Trial));
        record.answered(now);
        record.answered(now);
        record.failed(now);
        record.answered(now);
        record.answered(now);
        assert_eq!(record.level(), Level::Performant, "not in a row");
        record.answered(now);
        assert_eq!((record.level(), record.gate(true, now)), (Level::Good, Gate::Open));
    }

    #[test]
    fn three_failures_eject_and_the_wait_doubles_to_a_minute() {
        let mut now = Instant::now();
        let mut record = failing(3, now);
        let waits = [0; 8].map(|_| {
            assert_eq!((record.level(), record.gate(true, now)), (Level::Poor, Gate::Closed));
            let until = record.ejected_until(now).expect("it is ejected");
            record.failed(now);
            assert_eq!(record.ejected_until(now), Some(until), "what was under way is no news");
            let wait = until - now;
            now = until;
            assert_eq!(record.ejected_until(now), None);
            assert!(record.begin_trial(true, now));
            record.failed(now);
            wait.as_secs()
        });
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn one_request_at_a_time_probes_back() {
        let start = Instant::now();
        let mut record = failing(3, start);
        let due = start + FIRST;
        assert!(!record.begin_trial(true, due - ms(1)));
        assert!(record.begin_trial(true, due));
        assert!(!record.begin_trial(true, due), "one is under way");
        record.answered(due);
        assert_eq!(record.level(), Level::Performant);
        assert!(record.begin_trial(true, due));
        assert!(!record.begin_trial(true, due));
        assert!(record.begin_trial(true, due + TRIAL), "the first never came back");
    }

    #[test]
    fn what_cannot_be_repeated_is_let_through_last() {
        let start = Instant::now();
        let record = failing(3, start);
        let due = start + FIRST;
        assert_eq!(record.gate(false, due), Gate::Closed);
        assert_eq!(record.gate(true, due), Gate::Trial);
        assert_eq!(record.gate(false, due + CHOOSY), Gate::Trial);
    }

    #[test]
    fn every_second_one_failing_ejects_as_well() {
        let now = Instant::now();
        let mut record = Record::default();
        for _ in 0..3 {
            record.failed(now);
            record.answered(now);
        }
        assert_eq!(record.level(), Level::Performant);
        record.failed(now);
        assert!(record.ejected_until(now).is_some());
    }

    #[test]
    fn a_minute_of_reliability_makes_the_next_ejection_the_first() {
        let start = Instant::now();
        let mut record = failing(3, start);
        let back = start + FIRST;
        (0..3).for_each(|_| record.answered(back));
        let soon = back + FORGIVEN - ms(1);
        let mut again = record.clone();
        (0..3).for_each(|_| again.failed(soon));
        assert_eq!(again.ejected_until(soon), Some(soon + FIRST * 2));
        let later = back + FORGIVEN;
        (0..3).for_each(|_| record.failed(later));
        assert_eq!(record.ejected_until(later), Some(later + FIRST));
    }

    #[test]
    fn what_is_beyond_soft_is_poor_until_it_is_well_within() {
        let mut record = Record::default();
        let mut level = |rtt: Option<u64>, soft: Option<u64>| {
            record.set_performant(record.performs(rtt.map(ms), soft.map(ms)));
            record.level()
        };
        assert_eq!(level(Some(20), Some(20)), Level::Good);
        assert_eq!(level(Some(21), Some(20)), Level::Poor);
        assert_eq!(level(Some(19), Some(20)), Level::Poor, "not well within");
        assert_eq!(level(Some(18), Some(20)), Level::Good);
        assert_eq!(level(None, Some(20)), Level::Poor, "nobody knows");
        assert_eq!(level(None, None), Level::Good, "nobody asks");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(u64),
        Sent { repeatable: bool },
        Answered,
        Failed,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u64..5_000).prop_map(Step::Pass),
            (0u64..90_000).prop_map(Step::Pass),
            any::<bool>().prop_map(|repeatable| Step::Sent { repeatable }),
            Just(Step::Answered),
            Just(Step::Failed),
        ];
        vec(step, 0..120)
    }

    proptest! {
        #[test]
        fn whatever_happens_the_rules_hold(steps in steps()) {
            let mut now = Instant::now();
            let mut record = Record::default();
            let mut let_through: Option<Instant> = None;
            for step in steps {
                let before = record.clone();
                match step {
                    Step::Pass(time) => now += ms(time),
                    Step::Sent { repeatable } => {
                        let gate = record.gate(repeatable, now);
                        prop_assert_eq!(record.begin_trial(repeatable, now), gate != Gate::Closed);
                        if gate == Gate::Trial {
                            let free = let_through.is_none_or(|at| now >= at + TRIAL);
                            prop_assert!(free, "two at a time");
                            let_through = Some(now);
                        }
                    }
                    Step::Answered => {
                        record.answered(now);
                        let_through = None;
                        prop_assert!(record.ejected_until(now).is_none(), "it works");
                        prop_assert!(record.level() <= before.level(), "an answer demotes nobody");
                    }
                    Step::Failed => {
                        record.failed(now);
                        let_through = None;
                        prop_assert!(record.level() >= before.level(), "a failure promotes nobody");
                        prop_assert!(record.level() > Level::Good);
                    }
                }
                if let Some(until) = record.ejected_until(now) {
                    prop_assert!(until - now <= LONGEST);
                    prop_assert_eq!(record.gate(true, now), Gate::Closed);
                }
                // Nobody is passed over for ever.
                let latest = now + LONGEST + CHOOSY + TRIAL;
                prop_assert!(record.gate(false, latest) != Gate::Closed);
            }
        }
    }
}
