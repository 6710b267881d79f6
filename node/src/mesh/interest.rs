//! What a peer is probed for, and until when.

use std::{sync::Arc, time::Duration};

use lca::{
    Requirements,
    mesh::{IN_USE, INTEREST},
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::DropGuard;

use super::probe::Reading;

/// Limits of one peer that matter at a time; the one that matters least long makes room.
/// Two each of as many services as one node is likely to use of another.
const MAX_LIMITS: usize = 16;

/// The probe of a peer of interest.
#[derive(Debug)]
pub(super) struct Probe {
    /// Of interest until then.
    until: Instant,
    /// Used until then.
    used: Instant,
    /// The limits that matter, and until when.
    limits: Vec<(Duration, Instant)>,
    pub(super) reading: watch::Sender<Reading>,
    pub(super) hurry: Arc<Notify>,
    /// Ends the task.
    _task: DropGuard,
}

/// Whether a peer is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Somebody may need it soon.
    Idle,
    /// Something depends on it now.
    Now,
}

/// What a peer is probed for.
#[derive(Clone, Debug)]
pub(super) struct Interest {
    /// Something depends on it now, and not only perhaps soon.
    pub(super) used: bool,
    /// The distances that matter to those who use it.
    pub(super) limits: Vec<Duration>,
}

impl Probe {
    pub(super) fn new(
        reading: watch::Sender<Reading>,
        hurry: Arc<Notify>,
        task: DropGuard,
        now: Instant,
    ) -> Self {
        Self { until: now, used: now, limits: Vec::new(), reading, hurry, _task: task }
    }

    /// Somebody asked for the peer. True if it was not used before.
    pub(super) fn asked(&mut self, how: Use, limits: Option<&Requirements>, now: Instant) -> bool {
        self.until = now + INTEREST;
        if how == Use::Idle {
            return false;
        }
        let begins = self.used <= now;
        self.used = now + IN_USE;
        let limits = limits.into_iter().flat_map(|limits| [limits.soft, limits.hard]);
        limits.flatten().for_each(|limit| self.matters(limit));
        begins
    }

    /// `limit` matters as long as the peer is used.
    fn matters(&mut self, limit: Duration) {
        if let Some(known) = self.limits.iter_mut().find(|(known, _)| *known == limit) {
            known.1 = self.used;
            return;
        }
        if self.limits.len() == MAX_LIMITS {
            let first = self.limits.iter().enumerate().min_by_key(|(_, (_, until))| *until);
            let first = first.map_or(0, |(at, _)| at);
            self.limits.swap_remove(first);
        }
        self.limits.push((limit, self.used));
    }

    /// What to probe for now, if for anything.
    pub(super) fn interest(&self, now: Instant) -> Option<Interest> {
        (now < self.until).then(|| {
            let limits = self.limits.iter().filter(|(_, until)| now < *until);
            Interest { used: now < self.used, limits: limits.map(|(limit, _)| *limit).collect() }
        })
    }

    /// Of interest until then.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// As if the time of interest were over.
    #[cfg(test)]
    pub(super) fn lose_interest(&mut self, now: Instant) {
        (self.until, self.used) = (now, now);
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn limits(soft: u64, hard: u64) -> Requirements {
        let ms = |ms| Some(Duration::from_millis(ms));
        Requirements { soft: ms(soft), hard: ms(hard) }
    }

    #[test]
    fn limits_of_several_services_add_up_matter_while_used_and_are_bounded() {
        let start = Instant::now();
        let task = CancellationToken::new().drop_guard();
        let reading = watch::Sender::new(Reading::default());
        let mut probe = Probe::new(reading, Arc::default(), task, start);
        assert!(probe.interest(start).is_none());
        assert!(probe.asked(Use::Now, Some(&limits(10, 20)), start), "it was not used");
        assert!(!probe.asked(Use::Now, Some(&limits(10, 40)), start + IN_USE / 2));
        let known = |probe: &Probe, at| probe.interest(at).map(|interest| interest.limits.len());
        assert_eq!(known(&probe, start + IN_USE / 2), Some(3), "10 ms is one limit");
        assert_eq!(known(&probe, start + IN_USE), Some(2), "20 ms matters no more");
        let later = start + IN_USE * 2;
        let interest = probe.interest(later).expect("it is of interest yet");
        assert!(!interest.used && interest.limits.is_empty());
        for service in 0..50 {
            probe.asked(Use::Now, Some(&limits(100 + service, 1000 + service)), later);
        }
        assert_eq!(known(&probe, later), Some(MAX_LIMITS));
        assert!(probe.interest(later).unwrap().limits.contains(&Duration::from_millis(1049)));
        assert!(probe.interest(later + INTEREST).is_none());
    }
}
