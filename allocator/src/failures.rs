//! Starts that failed, remembered so that the next one is answered at once instead of
//! failing slowly again: a broken program must cost neither the machine nor its
//! callers a start per request.

use std::{num::NonZeroUsize, time::Duration};

use lca::{Error, Kind, ServiceHash};
use lru::LruCache;
use tokio::time::Instant;

/// What the first failure costs.
const FIRST: Duration = Duration::from_secs(1);
/// What it grows to, doubling: soon enough that a repaired machine is noticed.
const LONGEST: Duration = Duration::from_secs(30);
/// A failure so long after the last one begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(300);
/// Services remembered; the one failing least recently makes room.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// The failures of one allocator, by service hash. Time is given by the caller.
#[derive(Debug)]
pub(crate) struct Failures(LruCache<ServiceHash, Failure>);

#[derive(Debug)]
struct Failure {
    error: Error,
    wait: Duration,
    until: Instant,
}

impl Default for Failures {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl Failures {
    /// Remembers that a start failed and returns the error to tell those who waited,
    /// with the time until another start will be tried.
    ///
    /// Failures that say nothing about the service itself are not remembered.
    pub(crate) fn record(&mut self, hash: ServiceHash, error: Error, now: Instant) -> Error {
        let passing = matches!(error.kind(), Kind::Unavailable | Kind::Timeout | Kind::NoCapacity);
        if passing {
            return error;
        }
        let wait = match self.0.peek(&hash) {
            Some(last) if now < last.until + FORGIVEN_AFTER => (last.wait * 2).min(LONGEST),
            _ => FIRST,
        };
        let error = error.retry_after(wait);
        self.0.put(hash, Failure { error: error.clone(), wait, until: now + wait });
        error
    }

    /// The failure that answers a start of `hash` now, if one does.
    pub(crate) fn check(&self, hash: ServiceHash, now: Instant) -> Option<Error> {
        let failure = self.0.peek(&hash)?;
        (now < failure.until).then(|| failure.error.clone().retry_after(failure.until - now))
    }

    /// A start succeeded: the slate is clean.
    pub(crate) fn clear(&mut self, hash: ServiceHash) {
        self.0.pop(&hash);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: ServiceHash = ServiceHash::from_sha256([1; 32]);

    fn failed() -> Error {
        Error::new(Kind::StartFailed, "exited with code 1")
    }

    #[test]
    fn the_wait_doubles_to_half_a_minute_and_is_forgotten_by_success() {
        let mut failures = Failures::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..7 {
            let wait = failures.record(HASH, failed(), now).retry_delay().unwrap();
            waits.push(wait.as_secs());
            now += wait;
            assert!(failures.check(HASH, now).is_none(), "the wait is over");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        failures.clear(HASH);
        assert_eq!(failures.record(HASH, failed(), now).retry_delay(), Some(FIRST));
        now += FORGIVEN_AFTER + FIRST;
        assert_eq!(failures.record(HASH, failed(), now).retry_delay(), Some(FIRST));
    }

    #[test]
    fn what_is_not_the_services_fault_is_not_held_against_it() {
        let mut failures = Failures::default();
        let now = Instant::now();
        for kind in [Kind::Unavailable, Kind::Timeout, Kind::NoCapacity] {
            failures.record(HASH, Error::new(kind, "no registry"), now);
            assert!(failures.check(HASH, now).is_none());
        }
    }

    proptest! {
        #[test]
        fn a_remembered_failure_says_exactly_how_long_it_lasts(at in 0u64..3000) {
            let mut failures = Failures::default();
            let start = Instant::now();
            failures.record(HASH, failed(), start);
            let now = start + Duration::from_millis(at);
            let answer = failures.check(HASH, now).map(|error| error.retry_delay().unwrap());
            prop_assert_eq!(answer, FIRST.checked_sub(Duration::from_millis(at)).filter(|left| !left.is_zero()));
        }
    }
}
