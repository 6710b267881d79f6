//! How busy instances are: what this manager has under way at each, which it knows
//! exactly, and what they said of their other work.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use lca::{InstanceId, headers::Load};
use lru::LruCache;
use tokio::time::Instant;

use super::course::Busy;

/// Instances whose load is remembered: those of a busy node, and a bound. What is under
/// way at one that is forgotten is not counted any more, and nothing worse.
const MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// See the module.
#[derive(Debug)]
pub(crate) struct Loads {
    instances: LruCache<InstanceId, One>,
}

#[derive(Debug, Default)]
struct One {
    own: Arc<AtomicU32>,
    others: Option<(u32, Instant)>,
    /// The most it is given.
    limit: u32,
}

/// A request under way. It is over when somebody says so, or when this is dropped:
/// whatever becomes of a request, it is not counted for ever.
#[derive(Debug)]
pub(crate) struct Ticket {
    own: Arc<AtomicU32>,
    over: AtomicBool,
}

impl Default for Loads {
    fn default() -> Self {
        Self { instances: LruCache::new(MAX) }
    }
}

impl Loads {
    /// A request is sent to `instance`.
    pub(crate) fn begin(&mut self, instance: InstanceId) -> Ticket {
        let own = self.instances.get_or_insert_mut(instance, One::default).own.clone();
        own.fetch_add(1, Ordering::Relaxed);
        Ticket { own, over: AtomicBool::new(false) }
    }

    /// `instance` said how busy it is. What is ours of that is known better here.
    pub(crate) fn said(&mut self, instance: InstanceId, load: Load, now: Instant) {
        let one = self.instances.get_or_insert_mut(instance, One::default);
        let others = load.in_flight.saturating_sub(one.own.load(Ordering::Relaxed));
        one.others = Some((others, now));
        one.limit = load.limit;
    }

    /// `instance` refused because it has as much as it may have.
    pub(crate) fn overloaded(&mut self, instance: InstanceId, now: Instant) {
        let one = self.instances.get_or_insert_mut(instance, One::default);
        let own = one.own.load(Ordering::Relaxed);
        one.others = Some((one.limit.saturating_sub(own).max(1), now));
    }

    /// How busy `instance` is as far as anybody knows.
    pub(crate) fn of(&self, instance: InstanceId, now: Instant) -> Busy {
        let Some(one) = self.instances.peek(&instance) else { return (0, None) };
        let others = one.others.map(|(others, at)| (others, now.duration_since(at)));
        (one.own.load(Ordering::Relaxed), others)
    }
}

impl Ticket {
    /// The place of the request, which somebody else holds from now on: this one's end
    /// is of no account any more. It is over if this one was.
    pub(crate) fn handed_on(&self) -> Self {
        let over = self.over.swap(true, Ordering::Relaxed);
        Self { own: self.own.clone(), over: AtomicBool::new(over) }
    }

    /// The request is over. Only the first call counts.
    pub(crate) fn end(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            self.own.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_counted_until_it_ends_or_is_dropped() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        let id = InstanceId::random();
        let own = |loads: &Loads| loads.of(id, now).0;
        let (a, b) = (loads.begin(id), loads.begin(id));
        assert_eq!(own(&loads), 2);
        a.end();
        a.end();
        drop(a);
        assert_eq!(own(&loads), 1);
        drop(b);
        assert_eq!(own(&loads), 0);
    }

    #[test]
    fn what_is_handed_on_is_counted_once_and_until_its_new_holder_lets_go() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        let id = InstanceId::random();
        let own = |loads: &Loads| loads.of(id, now).0;
        let first = loads.begin(id);
        let second = first.handed_on();
        assert_eq!(own(&loads), 1);
        first.end();
        drop(first);
        assert_eq!(own(&loads), 1, "it is not its any more");
        second.end();
        assert_eq!(own(&loads), 0);
        drop(second.handed_on());
        assert_eq!(own(&loads), 0, "it was over");
    }

    #[test]
    fn what_an_instance_says_counts_without_what_is_ours() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        let id = InstanceId::random();
        let _ours = [loads.begin(id), loads.begin(id)];
        loads.said(id, Load { in_flight: 5, ..Load::default() }, now);
        let age = std::time::Duration::from_secs(1);
        assert_eq!(loads.of(id, now + age), (2, Some((3, age))));
    }

    #[test]
    fn instances_are_not_remembered_without_bound() {
        let mut loads = Loads::default();
        (0..MAX.get() * 2).for_each(|_| drop(loads.begin(InstanceId::random())));
        assert_eq!(loads.instances.len(), MAX.get());
    }
}
