//! What the last probes of a peer say about how far away it is. Pure.

use std::time::Duration;

/// Round trips that are remembered, and losses in a row after which a peer counts as
/// silent: enough for a median to ignore one outlier, few enough to follow a change
/// within three probes.
const KEPT: usize = 3;

/// The last round trips of one peer.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Oldest first.
    answered: Vec<Duration>,
    lost_in_a_row: usize,
}

impl Window {
    /// A probe came back.
    pub(super) fn answered(&mut self, took: Duration) {
        self.lost_in_a_row = 0;
        if self.answered.len() == KEPT {
            self.answered.remove(0);
        }
        self.answered.push(took);
    }

    /// A probe did not come back in time, or the peer could not be reached for one.
    /// True if that makes it silent.
    pub(super) fn lost(&mut self) -> bool {
        self.lost_in_a_row = (self.lost_in_a_row + 1).min(KEPT + 1);
        let now_silent = self.lost_in_a_row == KEPT;
        if now_silent {
            self.answered.clear(); // what it was before the silence says nothing after it
        }
        now_silent
    }

    /// Whether there are as many round trips as count, and none was lost since.
    pub(super) fn is_sure(&self) -> bool {
        self.lost_in_a_row == 0 && self.answered.len() == KEPT
    }

    /// Whether the last three probes were lost.
    pub(super) fn silent(&self) -> bool {
        self.lost_in_a_row >= KEPT
    }

    /// The median of the last three round trips, or of as many as there are.
    pub(super) fn median(&self) -> Option<Duration> {
        let mut sorted = self.answered.clone();
        sorted.sort_unstable();
        match sorted[..] {
            [] => None,
            [a, b] => Some((a + b) / 2),
            _ => sorted.get(sorted.len() / 2).copied(),
        }
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
    fn three_losses_are_silence_told_once_and_one_answer_ends_it() {
        let mut window = Window::default();
        window.answered(ms(10));
        assert!(!window.lost() && !window.lost());
        assert_eq!(window.median(), Some(ms(10)));
        assert!(window.lost());
        assert!(!window.lost(), "it is silent already");
        assert!(window.silent());
        assert_eq!(window.median(), None);
        window.answered(ms(30));
        assert!(!window.silent());
        assert_eq!(window.median(), Some(ms(30)), "what was before the silence is forgotten");
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
                        prop_assert_eq!(window.lost(), losses == 3);
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
                prop_assert_eq!(window.silent(), losses >= 3);
            }
        }
    }
}
