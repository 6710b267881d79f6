//! What the last probes of a peer say about how far away it is. Pure.

use std::time::Duration;

/// Round trips that are remembered, and losses in a row after which a peer counts as
/// silent: enough for a median to ignore one outlier, few enough to follow a change
/// within three probes.
pub(super) const KEPT: usize = 3;

/// Losses in a row after which nothing that is open to a peer that refuses connections is
/// worth waiting for: with the pauses between its probes some four seconds, which one that
/// is stopping may need to finish what it has.
const GONE: usize = 6;

/// Round trips of which the least is remembered: on a busy machine most of a few are too
/// long, and a peer that comes or goes is followed in as many probes.
const LEAST_OF: usize = 8;

/// The last round trips of one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Oldest first, at most [`LEAST_OF`].
    answered: Vec<Duration>,
    lost_in_a_row: usize,
    /// It was refused after something else was lost.
    gone: bool,
}

impl Window {
    /// A probe came back.
    pub(super) fn answered(&mut self, took: Duration) {
        (self.lost_in_a_row, self.gone) = (0, false);
        if self.answered.len() == LEAST_OF {
            self.answered.remove(0);
        }
        self.answered.push(took);
    }

    /// A probe did not come back in time, or the peer could not be reached for one.
    pub(super) fn lost(&mut self) {
        self.lost_in_a_row = (self.lost_in_a_row + 1).min(GONE);
        if self.silent() {
            self.answered.clear(); // what it was before the silence says nothing after it
        }
    }

    /// Nobody listens where the peer should be. After a connection that broke, or another
    /// refusal, that is silence.
    pub(super) fn refused(&mut self) {
        self.gone |= self.lost_in_a_row > 0 && self.lost_in_a_row < KEPT;
        self.lost();
    }

    /// Whether nothing that is open to it is worth waiting for, unless something else tells
    /// that it lives.
    pub(super) fn is_hopeless(&self) -> bool {
        // What refuses new connections may be finishing what it has.
        self.lost_in_a_row >= if self.gone { GONE } else { KEPT }
    }

    /// Whether there are as many round trips as count, and none was lost since.
    pub(super) fn is_sure(&self) -> bool {
        self.lost_in_a_row == 0 && self.answered.len() >= KEPT
    }

    /// Whether the last probe was lost.
    #[cfg(test)]
    pub(super) fn lost_last(&self) -> bool {
        self.lost_in_a_row > 0
    }

    /// Whether the last three probes were lost, or the peer is gone.
    pub(super) fn silent(&self) -> bool {
        self.gone || self.lost_in_a_row >= KEPT
    }

    /// The last round trip.
    pub(super) fn last(&self) -> Option<Duration> {
        self.answered.last().copied()
    }

    /// The median of the last three round trips, or of as many as there are.
    pub(super) fn median(&self) -> Option<Duration> {
        let last = &self.answered[self.answered.len().saturating_sub(KEPT)..];
        let mut sorted = last.to_vec();
        sorted.sort_unstable();
        match sorted[..] {
            [] => None,
            [a, b] => Some((a + b) / 2),
            _ => sorted.get(sorted.len() / 2).copied(),
        }
    }

    /// The least of the last eight round trips, or of as many as there are.
    pub(super) fn least(&self) -> Option<Duration> {
        self.answered.iter().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn one_outlier_does_not_show() {
        let mut window = Window::default();
        assert_eq!(window.median(), None);
        window.answered(ms(10));
        assert_eq!(window.median(), Some(ms(10)));
        window.answered(ms(500));
        window.answered(ms(12));
        assert_eq!(window.median(), Some(ms(12)));
    }

    #[test]
    fn it_is_sure_of_three_answers_until_one_is_lost() {
        let mut window = Window::default();
        let sure = [10, 11, 12].map(|took| {
            window.answered(ms(took));
            window.is_sure()
        });
        assert_eq!(sure, [false, false, true]);
        window.lost();
        assert!(!window.is_sure());
        window.answered(ms(10));
        assert!(window.is_sure());
    }

    #[test]
    fn three_losses_are_silence_and_one_answer_ends_it() {
        let mut window = Window::default();
        window.answered(ms(10));
        (0..2).for_each(|_| window.lost());
        assert!(!window.silent() && !window.is_hopeless());
        assert_eq!(window.median(), Some(ms(10)));
        (0..9).for_each(|_| {
            window.lost();
            assert!(window.silent() && window.is_hopeless());
        });
        assert_eq!(window.median(), None);
        window.answered(ms(30));
        assert!(!window.silent() && !window.is_hopeless());
        assert_eq!(window.median(), Some(ms(30)), "what was before the silence is forgotten");
    }

    #[test]
    fn a_refusal_after_a_loss_is_silence_and_what_is_open_has_longer() {
        let mut window = Window::default();
        window.answered(ms(10));
        window.refused();
        assert!(!window.silent(), "it may be starting again");
        window.refused();
        assert!(window.silent());
        assert_eq!(window.median(), None);
        (0..3).for_each(|_| {
            window.refused();
            assert!(!window.is_hopeless(), "it may finish what it has");
        });
        window.refused();
        assert!(window.is_hopeless(), "what it had open is over by now");
        window.answered(ms(10));
        assert!(!window.silent());
    }

    proptest! {
        /// Against the rule in words: the median of the last three answers since the
        /// last silence, nothing if the last three probes were lost.
        #[test]
        fn the_median_is_of_the_last_three_answers(
            probes in proptest::collection::vec(proptest::option::of(0u64..2000), 0..40),
        ) {
            let mut window = Window::default();
            let mut since: Vec<u64> = Vec::new();
            let mut losses = 0;
            for probe in probes {
                match probe {
                    Some(took) => {
                        window.answered(ms(took));
                        since.push(took);
                        losses = 0;
                    }
                    None => {
                        losses += 1;
                        window.lost();
                        prop_assert_eq!(window.is_hopeless(), losses >= 3);
                        if losses >= 3 {
                            since.clear();
                        }
                    }
                }
                let mut last = since.iter().rev().take(3).copied().collect::<Vec<_>>();
                last.sort_unstable();
                let expected = match last[..] {
                    [] => None,
                    [a] => Some(ms(a)),
                    [a, b] => Some((ms(a) + ms(b)) / 2),
                    [_, b, ..] => Some(ms(b)),
                };
                prop_assert_eq!(window.median(), expected);
                let least = since.iter().rev().take(8).min().copied().map(ms);
                prop_assert_eq!(window.least(), least);
                prop_assert_eq!(window.silent(), losses >= 3);
            }
        }
    }
}
