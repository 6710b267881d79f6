//! When to tell the network again what it would otherwise forget. Pure: time and luck
//! are passed in.
//!
//! Every item is told when it is new, then again each period, and early when somebody
//! appears who has not heard it; but never twice within the settling time, so that a
//! network that starts all at once does not shout.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What is told, and when next.
#[derive(Debug)]
pub(crate) struct Renewals<T> {
    settle: Duration,
    items: BTreeMap<T, Item>,
}

#[derive(Debug)]
struct Item {
    every: Duration,
    due: Instant,
    last: Option<Instant>,
}

impl<T: Ord + Clone> Renewals<T> {
    /// Nothing to tell yet.
    pub(crate) const fn new(settle: Duration) -> Self {
        Self { settle, items: BTreeMap::new() }
    }

    /// Has `item` told now and then `every` so often. One that is told already is told
    /// again no sooner than it would have been.
    pub(crate) fn add(&mut self, item: T, every: Duration, now: Instant) {
        self.items.entry(item).or_insert(Item { every, due: now, last: None });
    }

    /// Stops telling it.
    pub(crate) fn remove(&mut self, item: &T) {
        self.items.remove(item);
    }

    /// Whether it is told.
    pub(crate) fn contains(&self, item: &T) -> bool {
        self.items.contains_key(item)
    }

    /// How many are told.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Has those that `which` chooses told as soon as the settling time allows.
    pub(crate) fn hurry(&mut self, which: impl Fn(&T) -> bool, now: Instant) {
        for (_, item) in self.items.iter_mut().filter(|(item, _)| which(item)) {
            let soonest = item.last.map_or(now, |last| now.max(last + self.settle));
            item.due = item.due.min(soonest);
        }
    }

    /// When something is due next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.items.values().map(|item| item.due).min()
    }

    /// What is due, the longest overdue first, at most `room`; the caller tells it now.
    /// `luck`, 0 to 1, spreads the next time over the last tenth of the period, so that
    /// what began together does not stay together.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        room: usize,
        mut luck: impl FnMut() -> f64,
    ) -> Vec<T> {
        let due = self.items.iter().filter(|(_, item)| item.due <= now);
        let mut due: Vec<_> = due.map(|(key, item)| (item.due, key.clone())).collect();
        due.sort();
        due.truncate(room);
        for (_, key) in &due {
            if let Some(item) = self.items.get_mut(key) {
                item.last = Some(now);
                item.due = now + item.every.mul_f64(1.0 - 0.1 * luck());
            }
        }
        due.into_iter().map(|(_, key)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(15);
    const SETTLE: Duration = Duration::from_millis(500);

    fn one() -> (Renewals<&'static str>, Instant) {
        let (mut renewals, now) = (Renewals::new(SETTLE), Instant::now());
        renewals.add("a", EVERY, now);
        (renewals, now)
    }

    #[test]
    fn what_is_new_is_told_at_once_and_then_each_period() {
        let (mut renewals, now) = one();
        assert_eq!(renewals.take_due(now, 9, || 0.0), ["a"]);
        assert!(renewals.take_due(now, 9, || 0.0).is_empty());
        assert_eq!(renewals.next(), Some(now + EVERY));
        assert_eq!(renewals.take_due(now + EVERY, 9, || 1.0), ["a"]);
        assert_eq!(renewals.next(), Some(now + EVERY + EVERY.mul_f64(0.9)));
    }

    #[test]
    fn it_is_told_again_when_somebody_appears_but_not_twice_at_once() {
        let (mut renewals, now) = one();
        renewals.take_due(now, 9, || 0.0);
        renewals.hurry(|_| true, now);
        assert_eq!(renewals.next(), Some(now + SETTLE));
        let later = now + SETTLE * 4;
        renewals.take_due(later, 9, || 0.0);
        renewals.hurry(|_| true, later + SETTLE * 2);
        assert_eq!(renewals.next(), Some(later + SETTLE * 2), "it is quiet enough by now");
        renewals.hurry(|_| false, later);
        assert_eq!(renewals.len(), 1);
    }

    #[test]
    fn what_waits_longest_goes_first_and_the_rest_stays_due() {
        let (mut renewals, now) = one();
        renewals.add("b", EVERY, now - EVERY);
        renewals.add("c", EVERY, now);
        assert_eq!(renewals.take_due(now, 2, || 0.0), ["b", "a"]);
        assert_eq!(renewals.take_due(now, 2, || 0.0), ["c"]);
    }

    #[test]
    fn adding_twice_changes_nothing_and_what_is_removed_is_not_told() {
        let (mut renewals, now) = one();
        renewals.take_due(now, 9, || 0.0);
        renewals.add("a", EVERY, now);
        assert_eq!(renewals.next(), Some(now + EVERY));
        renewals.remove(&"a");
        assert!(!renewals.contains(&"a") && renewals.next().is_none());
    }
}
