//! When to look again. A daemon that starts looks before it has reached a registry, so the
//! first looks follow each other closely: what it represents is announced as soon as
//! somebody can say what that is. Pure.

use std::time::Duration;

/// Between two looks: a service that is back is found again after a moment, and a
/// request a second is nothing to any service.
const EVERY: Duration = Duration::from_secs(1);
/// After the first look, if it was in vain: a registry is reached within some round trips.
const SOON: Duration = Duration::from_millis(50);

/// The pauses between looks: short ones, each twice as long as the one before, until the
/// service has been ready once; from then on always [`EVERY`].
#[derive(Debug)]
pub(super) struct Rhythm {
    next: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { next: SOON }
    }
}

impl Rhythm {
    /// How long to wait after a look that has found the service ready, or not.
    pub(super) fn pause(&mut self, is_ready: bool) -> Duration {
        let pause = if is_ready { EVERY } else { self.next };
        self.next = (pause * 2).min(EVERY);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_come_soon_until_the_first_that_finds_it_ready() {
        let mut rhythm = Rhythm::default();
        let pauses: Vec<_> = (0..7).map(|_| rhythm.pause(false).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);

        let mut rhythm = Rhythm::default();
        let seen = [false, false, true, false, false, true];
        let pauses = seen.map(|is_ready| rhythm.pause(is_ready).as_millis());
        assert_eq!(pauses, [50, 100, 1000, 1000, 1000, 1000]);
    }
}
