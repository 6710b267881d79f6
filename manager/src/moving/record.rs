//! The moves that were made, for people who ask why a service is answered from where it
//! is. Bounded: the last [`KEPT`] of each service, of the services that moved last.

use std::{collections::VecDeque, fmt, num::NonZeroUsize};

use lca::{InstanceId, ServiceName};
use lru::LruCache;
use tokio::time::Instant;

/// Moves kept of a service: minutes of one that moves all the time.
const KEPT: usize = 16;
/// Services that moves are kept of; some 300 KB at most.
const MAX_SERVICES: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Requests for a service go elsewhere from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Since when.
    pub at: Instant,
    /// What clients ask for.
    pub service: ServiceName,
    /// Where they went.
    pub from: InstanceId,
    /// Where they go.
    pub to: InstanceId,
    /// What was wrong with the old one.
    pub reason: Reason,
}

/// Why requests go elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It was beyond the soft limit for longer than the dwell time, and there is one within.
    Soft,
    /// It is beyond the hard limit.
    Hard,
    /// It is not there any more: stopped, drained, or its peer cannot be reached.
    Gone,
    /// Its peer does not answer.
    Silent,
    /// It keeps failing.
    Failing,
    /// Another one is clearly nearer or less busy.
    Better,
    /// There are more than requests need, and it is one of those that are to idle out.
    Surplus,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Soft,
        Self::Hard,
        Self::Gone,
        Self::Silent,
        Self::Failing,
        Self::Better,
        Self::Surplus,
    ];

    /// The word it is counted and shown under.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Hard => "hard",
            Self::Gone => "gone",
            Self::Silent => "silent",
            Self::Failing => "failing",
            Self::Better => "better",
            Self::Surplus => "surplus",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Record {
    services: LruCache<ServiceName, VecDeque<Move>>,
}

impl Default for Record {
    fn default() -> Self {
        Self { services: LruCache::new(MAX_SERVICES) }
    }
}

impl Record {
    pub(crate) fn add(&mut self, one: Move) {
        let moves = self.services.get_or_insert_mut(one.service.clone(), VecDeque::new);
        if moves.len() >= KEPT {
            moves.pop_front();
        }
        moves.push_back(one);
    }

    /// The last moves of `service`, the latest last.
    pub(crate) fn of(&self, service: &ServiceName) -> Vec<Move> {
        self.services.peek(service).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_moves_of_each_service_are_kept_and_no_more() {
        let mut record = Record::default();
        let one = |service: &str, to: InstanceId| Move {
            at: Instant::now(),
            service: service.parse().unwrap(),
            from: InstanceId::random(),
            to,
            reason: Reason::Soft,
        };
        let all: Vec<_> = (0..KEPT + 3).map(|_| InstanceId::random()).collect();
        all.iter().for_each(|to| record.add(one("hello", *to)));
        record.add(one("other", all[0]));
        let kept: Vec<_> = record.of(&"hello".parse().unwrap()).iter().map(|m| m.to).collect();
        assert_eq!(kept, all[3..]);
        for n in 0..MAX_SERVICES.get() * 2 {
            record.add(one(&format!("s{n}"), all[0]));
        }
        assert_eq!(record.services.len(), MAX_SERVICES.get());
    }
}
