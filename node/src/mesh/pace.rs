//! When a peer is probed next, and how long its answer may take. Pure.
//!
//! Invariant: a peer that is used and stops answering is silent at most
//! [`silent_after`] later, which is under three seconds while its answers are waited for
//! at most half a second (a round trip of up to a quarter of a second); and one stall of a
//! lost segment is no loss.

use std::time::Duration;

use super::{Timing, window::KEPT};

/// What one lost segment adds to a short round trip: the shortest retransmission time-out
/// of Linux's TCP. On a long one it is about a round trip more.
const STALL: Duration = Duration::from_millis(200);
/// How near to a limit is near, in hundredths of the limit: within these a change of the
/// distance soon matters. Farther to stop than to begin, so that a distance at the edge
/// does not change the pace with every probe.
const BEGIN: u32 = 25;
const STOP: u32 = 35;

/// What the next probe depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// Something depends on the peer now.
    pub(super) used: bool,
    /// There is a median, and nothing was lost since.
    pub(super) sure: bool,
    /// The last probe was lost.
    pub(super) lost: bool,
    /// See [`is_near`].
    pub(super) near: bool,
}

/// How long to wait for the next probe, `since` the last was sent.
pub(super) fn next_probe_in(timing: &Timing, state: State, since: Duration) -> Duration {
    let every = match state {
        // Counted from when the loss was known, not from when the probe was sent.
        State { lost: true, .. } => return timing.probe_again,
        State { used: true, near: true, .. } => timing.probe_near_every,
        State { used: false, sure: true, .. } => timing.probe_idly_every,
        _ => timing.probe_every,
    };
    every.saturating_sub(since)
}

/// How long an answer is waited for, by the smoothed round trip and its deviation: as
/// RFC 6298 has it (four deviations), and a stall.
pub(super) fn deadline(timing: &Timing, smoothed: Option<(Duration, Duration)>) -> Duration {
    let most = timing.probe_within;
    let Some((ewma, deviation)) = smoothed else { return most };
    (ewma + ewma.max(STALL) + deviation * 4).clamp(timing.probe_within_least.min(most), most)
}

/// How long after its last answer a peer that is used is known to be silent, at the
/// longest: a turn, and three losses with the pauses between them.
pub(super) const fn silent_after(timing: &Timing, deadline: Duration) -> Duration {
    let losses = deadline.saturating_mul(KEPT as u32);
    let pauses = timing.probe_again.saturating_mul(KEPT as u32 - 1);
    timing.probe_every.saturating_add(losses).saturating_add(pauses)
}

const _: () = {
    let timing = Timing::PRODUCTION;
    assert!(silent_after(&timing, timing.probe_within_least).as_millis() < 3000);
};

/// Whether a limit is so near that probes shall come often: the median is within a quarter
/// of it, or the last round trip lies on its other side, which two more would decide.
pub(super) fn is_near(
    was: bool,
    median: Option<Duration>,
    last: Option<Duration>,
    limits: &[Duration],
) -> bool {
    let (Some(median), Some(last)) = (median, last) else { return false };
    let share = if was { STOP } else { BEGIN };
    limits.iter().any(|limit| {
        median.abs_diff(*limit).saturating_mul(100) <= limit.saturating_mul(share)
            || (last <= *limit) != (median <= *limit)
    })
}

#[cfg(test)]
mod tests {
    use lca::mesh::Smoothed;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::mesh::window::Window;

    const TIMING: Timing = Timing::PRODUCTION;
    const CALM: State = State { used: true, sure: true, lost: false, near: false };

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_pace_is_what_the_peer_is_probed_for() {
        let wait = |state| next_probe_in(&TIMING, state, ms(20));
        assert_eq!(wait(CALM), ms(980));
        assert_eq!(wait(State { near: true, ..CALM }), ms(180));
        assert_eq!(wait(State { used: false, ..CALM }), ms(4980));
        assert_eq!(wait(State { used: false, near: true, ..CALM }), ms(4980), "nobody uses it");
        assert_eq!(wait(State { used: false, sure: false, ..CALM }), ms(980));
        assert_eq!(wait(State { used: false, sure: false, lost: true, ..CALM }), ms(250));
        assert_eq!(next_probe_in(&TIMING, CALM, ms(1500)), Duration::ZERO);
    }

    #[test]
    fn a_limit_is_near_within_a_quarter_of_it_and_until_more_than_a_third() {
        let near = |was, rtt| is_near(was, Some(ms(rtt)), Some(ms(rtt)), &[ms(20), ms(100)]);
        assert!(near(false, 75) && near(false, 125) && near(false, 25) && near(false, 15));
        assert!(!near(false, 74) && !near(false, 126) && !near(false, 14) && !near(false, 26));
        assert!(near(true, 74) && near(true, 134) && !near(true, 136));
        assert!(!is_near(false, Some(ms(1)), Some(ms(1)), &[]));
        assert!(!is_near(true, None, None, &[ms(1)]));
    }

    #[test]
    fn one_round_trip_on_the_other_side_of_a_limit_brings_the_next_soon() {
        assert!(is_near(false, Some(ms(1)), Some(ms(150)), &[ms(100)]), "it rose");
        assert!(is_near(false, Some(ms(150)), Some(ms(1)), &[ms(100)]), "it fell");
        assert!(!is_near(false, Some(ms(1)), Some(ms(50)), &[ms(100)]), "it does not matter");
    }

    /// The paces in use, with a peer that answers after `trip(probe)` and not at all from
    /// `dies` on. When it is silent.
    fn silent_at(dies: Duration, trip: impl Fn(usize) -> Duration) -> Duration {
        let (mut window, mut smoothed) = (Window::default(), Smoothed::default());
        let mut now = Duration::ZERO;
        for probe in 0.. {
            let within = deadline(&TIMING, smoothed.get());
            let sent = now;
            if sent + trip(probe) <= dies && trip(probe) <= within {
                now += trip(probe);
                window.answered(trip(probe));
                smoothed.add(trip(probe));
            } else {
                now += within;
                window.lost();
                if window.silent() {
                    break;
                }
            }
            let (sure, lost) = (window.is_sure(), window.lost_last());
            let state = State { used: true, near: false, sure, lost };
            now += next_probe_in(&TIMING, state, now - sent);
        }
        now
    }

    proptest! {
        #[test]
        fn a_used_peer_within_a_quarter_of_a_second_is_out_three_seconds_after_it_dies(
            rtt in 1u64..=240, dies in 10_000u64..60_000,
        ) {
            let dies = ms(dies);
            let silent = silent_at(dies, |_| ms(rtt));
            // It may have died just after an answer left, which arrives yet.
            prop_assert!(silent - dies <= ms(3000) + ms(rtt), "{:?}", silent - dies);
        }

        #[test]
        fn a_single_stall_is_no_loss(rtt in 1u64..=450, before in 1usize..20) {
            let mut smoothed = Smoothed::default();
            (0..before).for_each(|_| smoothed.add(ms(rtt)));
            prop_assert!(deadline(&TIMING, smoothed.get()) >= ms(rtt + rtt.max(200)));
        }

        #[test]
        fn a_deadline_is_within_its_bounds_whatever_was_measured(all in vec(0u64..10_000, 0..30)) {
            let mut smoothed = Smoothed::default();
            all.iter().for_each(|took| smoothed.add(ms(*took)));
            let within = deadline(&TIMING, smoothed.get());
            prop_assert!(within >= TIMING.probe_within_least && within <= TIMING.probe_within);
        }
    }
}
