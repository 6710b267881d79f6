//! What became of each service here: how often it has failed, and why the last time. It is
//! kept for people, who ask it of the instance that came after; nothing is decided by it
//! (see [`failures`](crate::failures) for that), and it ends with the allocator.

use std::num::NonZeroUsize;

use lca::ServiceName;
use lru::LruCache;

/// Services remembered; the one that failed least recently makes room.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// The failures of one allocator's services.
#[derive(Debug)]
pub(crate) struct History(LruCache<ServiceName, Past>);

/// What became of one service before an instance was admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// Instances that have failed.
    pub(crate) failed: u32,
    /// Why the last of them did.
    pub(crate) last: String,
}

impl Default for History {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl History {
    /// An instance of `service` has failed.
    pub(crate) fn record(&mut self, service: &ServiceName, reason: &str) {
        let failed = self.0.get(service).map_or(0, |past| past.failed).saturating_add(1);
        self.0.put(service.clone(), Past { failed, last: reason.to_owned() });
    }

    /// What became of `service` so far.
    pub(crate) fn of(&self, service: &ServiceName) -> Past {
        self.0.peek(service).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_service_and_the_last_one_is_told() {
        let mut history = History::default();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(history.of(&a), Past::default());
        history.record(&a, "exited with code 1");
        history.record(&a, "exited with code 2");
        assert_eq!(history.of(&a), Past { failed: 2, last: "exited with code 2".into() });
        assert_eq!(history.of(&b).failed, 0);
        (0..REMEMBERED.get()).for_each(|n| history.record(&format!("s{n}").parse().unwrap(), ""));
        assert_eq!(history.of(&a).failed, 0, "only so many are remembered");
    }
}
