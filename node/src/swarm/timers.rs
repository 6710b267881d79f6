//! What is to happen when. A timer is never taken back: whoever acts on one first looks
//! whether it still means anything, which costs less than keeping handles.

use std::{collections::BTreeMap, time::Instant};

/// Things due, in order. Those of one instant come in the order they were set.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    due: BTreeMap<(Instant, u64), T>,
    serial: u64,
}

impl<T> Timers<T> {
    pub(crate) const fn new() -> Self {
        Self { due: BTreeMap::new(), serial: 0 }
    }

    pub(crate) fn set(&mut self, at: Instant, what: T) {
        self.serial += 1;
        self.due.insert((at, self.serial), what);
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<T> {
        let first = self.due.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_in_order_and_once() {
        let (mut timers, now) = (Timers::new(), Instant::now());
        timers.set(now + Duration::from_secs(1), "later");
        timers.set(now, "a");
        timers.set(now, "b");
        assert_eq!(timers.next(), Some(now));
        let mut due = std::iter::from_fn(|| timers.take_due(now));
        assert_eq!([due.next(), due.next(), due.next()], [Some("a"), Some("b"), None]);
        assert_eq!(timers.next(), Some(now + Duration::from_secs(1)));
    }
}
