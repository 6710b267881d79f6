//! What is known of each name, and what may be done with it at a given moment.
//!
//! Four sources tell of a name: a watch, which is complete and in order as long as it
//! lasts; answers to questions, which may be overtaken by what the watch said meanwhile;
//! and a file from before the start and other nodes, which are only better than nothing:
//! any word of a registry takes the place of theirs. The invariant:
//! an entry counts as current only if its own registry is being watched, or confirmed it
//! within the time to live; and no answer undoes what was learnt after it was asked for.

use std::{collections::HashSet, num::NonZeroUsize, sync::Arc, time::Duration};

use lru::LruCache;
use tokio::time::Instant;

use super::Cached;
use crate::{PeerId, ServiceName, Spec};

/// Names kept: as many as a registry holds.
pub(super) const MAX_NAMES: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");
/// How long a name that is nowhere is not asked for again, unless a watch tells of it:
/// enough to turn a flood into two questions a second.
const ABSENT_FOR: Duration = Duration::from_millis(500);
/// How long after a failure nobody who has something to serve tries to reach a registry
/// on the request path. The watch does, more often than this, and ends it when it
/// succeeds.
const OUTAGE: Duration = Duration::from_secs(10);

/// How long other nodes are not asked for a name that a registry said is none: they may
/// not have heard.
const DENIED_FOR: Duration = Duration::from_secs(600);

/// What a name is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As good as the registry's own word.
    Current(Arc<Cached>),
    /// Known, not current, and no registry is there to ask.
    Stale(Arc<Cached>),
    /// Known, not current: ask, and use this (it is marked stale) if nobody answers.
    Old(Arc<Cached>),
    /// There is no such name.
    Absent,
    /// Not known: ask.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Cache {
    ttl: Duration,
    entries: LruCache<ServiceName, Entry>,
    absences: LruCache<ServiceName, Absence>,
    /// The registry whose watch is complete.
    watched: Option<PeerId>,
    /// Until when there is no use in asking.
    outage: Option<Instant>,
    /// When somebody last wanted to know a name.
    used: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    cached: Arc<Cached>,
    /// Which registry said so.
    from: PeerId,
    /// When it did; `None` before the start of this process.
    confirmed: Option<Instant>,
}

#[derive(Debug)]
struct Absence {
    since: Instant,
    /// Every registry said so; otherwise the one that is watched.
    everywhere: bool,
}

impl Cache {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            entries: LruCache::sparse(MAX_NAMES),
            absences: LruCache::sparse(MAX_NAMES),
            watched: None,
            outage: None,
            used: None,
        }
    }

    pub(super) fn judge(&mut self, name: &ServiceName, now: Instant) -> Verdict {
        self.used = Some(now);
        let outage = self.outage.is_some_and(|until| now < until);
        let ttl = self.ttl;
        let Some(entry) = self.entries.get_mut(name) else {
            let absence = self.absences.get(name);
            let absent =
                absence.is_some_and(|known| known.everywhere && now - known.since < ABSENT_FOR);
            // Asked for also in an outage: there is nothing to serve instead, and the
            // failure may be that this node had not joined yet.
            return if absent { Verdict::Absent } else { Verdict::Unknown };
        };
        let watched = self.watched == Some(entry.from);
        if watched || entry.confirmed.is_some_and(|time| now.saturating_duration_since(time) < ttl)
        {
            Verdict::Current(entry.cached.clone())
        } else if outage {
            Verdict::Stale(entry.stale())
        } else {
            Verdict::Old(entry.stale())
        }
    }

    /// Whether somebody has wanted to know a name in the time `within`.
    pub(super) fn is_used(&self, within: Duration, now: Instant) -> bool {
        self.used.is_some_and(|used| now.saturating_duration_since(used) < within)
    }

    /// The revision that a registry told of.
    pub(super) fn revision(&self, name: &ServiceName) -> u64 {
        let known = self.entries.peek(name).filter(|entry| !entry.cached.hearsay);
        known.map_or(0, |entry| entry.cached.spec.revision)
    }

    /// What is known of a name, marked stale.
    pub(super) fn stale(&mut self, name: &ServiceName) -> Option<Arc<Cached>> {
        self.entries.get_mut(name).map(Entry::stale)
    }

    /// Takes over what was known before the start.
    pub(super) fn remember(&mut self, spec: Spec, from: PeerId) {
        let name = spec.name.clone();
        let cached = Arc::new(Cached::new(spec, true));
        self.entries.put(name, Entry { cached, from, confirmed: None });
    }

    /// Learns what another node knows of a name that this one does not.
    pub(super) fn heard(&mut self, spec: Spec, from: PeerId) -> Arc<Cached> {
        let name = spec.name.clone();
        let cached = Arc::new(Cached { hearsay: true, ..Cached::new(spec, true) });
        self.entries.put(name, Entry { cached: cached.clone(), from, confirmed: None });
        cached
    }

    /// Whether a registry said lately that there is no such name.
    pub(super) fn is_denied(&self, name: &ServiceName, now: Instant) -> bool {
        let absence = self.absences.peek(name);
        absence.is_some_and(|known| now.saturating_duration_since(known.since) < DENIED_FOR)
    }

    /// Learns the answer to a question, and says what to believe now.
    pub(super) fn answered(
        &mut self,
        spec: Spec,
        from: PeerId,
        asked: Instant,
        now: Instant,
    ) -> Arc<Cached> {
        if let Some(entry) = self.entries.get(&spec.name) {
            let overtaken = self.watched == Some(entry.from)
                || entry.confirmed.is_some_and(|time| time >= asked);
            if overtaken && entry.from == from && entry.cached.spec.revision >= spec.revision {
                return entry.cached.clone();
            }
        } else if self.absences.peek(&spec.name).is_some_and(|known| known.since >= asked) {
            // Deleted since: true when it was said, not to be kept.
            return Arc::new(Cached::new(spec, false));
        }
        self.put(spec, from, now)
    }

    /// Learns that every registry that could be reached denies a name; `silent` could
    /// not. Says what to believe all the same.
    pub(super) fn denied(
        &mut self,
        name: &ServiceName,
        silent: &HashSet<PeerId>,
        asked: Instant,
        now: Instant,
    ) -> Option<Arc<Cached>> {
        if let Some(entry) = self.entries.get_mut(name) {
            if entry.confirmed.is_some_and(|time| time >= asked) {
                return Some(entry.cached.clone());
            }
            // The only one that knew it is away: its word still stands.
            if silent.contains(&entry.from) {
                return Some(entry.stale());
            }
            self.entries.pop(name);
        }
        self.absences.put(name.clone(), Absence { since: now, everywhere: true });
        None
    }

    /// A registry has answered.
    pub(super) fn reached(&mut self) {
        self.outage = None;
    }

    /// No registry has answered.
    pub(super) fn unreached(&mut self, now: Instant) {
        self.outage = Some(now + OUTAGE);
    }

    /// The watch tells of a spec. True if it was news.
    pub(super) fn told(&mut self, spec: Spec, from: PeerId, now: Instant) -> bool {
        let known = self.entries.peek(&spec.name);
        // Another registry knows a later one; which of them is right is found by asking.
        let is_later = |it: &Entry| !it.cached.hearsay && it.cached.spec.revision > spec.revision;
        if known.is_some_and(|it| it.from != from && is_later(it)) {
            return false;
        }
        let news = known.is_none_or(|it| it.cached.spec != spec || it.from != from);
        self.put(spec, from, now);
        news
    }

    /// The watch tells that a name is gone. True if it was known.
    pub(super) fn told_deleted(&mut self, name: &ServiceName, from: PeerId, now: Instant) -> bool {
        self.absences.put(name.clone(), Absence { since: now, everywhere: false });
        match self.entries.peek_mut(name) {
            Some(entry) if entry.from == from => self.entries.pop(name).is_some(),
            // Perhaps both keep the same list: worth a question.
            Some(entry) => {
                entry.confirmed = None;
                false
            }
            None => false,
        }
    }

    /// The watch of a registry has told all there is: `names`. Whatever else was known
    /// from it is gone. True if there was any.
    pub(super) fn watching(&mut self, from: PeerId, names: &HashSet<ServiceName>) -> bool {
        self.watched = Some(from);
        let gone = self
            .entries
            .iter()
            .filter(|(name, entry)| entry.from == from && !names.contains(*name));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        gone.iter().for_each(|name| drop(self.entries.pop(name)));
        !gone.is_empty()
    }

    /// The watch has ended; what it covered was current until now.
    pub(super) fn unwatched(&mut self, now: Instant) {
        let Some(from) = self.watched.take() else { return };
        for (_, entry) in self.entries.iter_mut() {
            if entry.from == from {
                entry.confirmed = Some(now);
            }
        }
    }

    /// Everything that is known, and who said it, what was used last at the end.
    pub(super) fn all(&self) -> Vec<(Arc<Cached>, PeerId)> {
        self.entries.iter().rev().map(|(_, entry)| (entry.cached.clone(), entry.from)).collect()
    }

    fn put(&mut self, spec: Spec, from: PeerId, now: Instant) -> Arc<Cached> {
        let name = spec.name.clone();
        let cached = Arc::new(Cached::new(spec, false));
        self.absences.pop(&name);
        self.entries.put(name, Entry { cached: cached.clone(), from, confirmed: Some(now) });
        cached
    }
}

impl Entry {
    fn stale(&mut self) -> Arc<Cached> {
        if !self.cached.stale {
            self.cached = Arc::new(Cached { stale: true, ..Cached::clone(&self.cached) });
        }
        self.cached.clone()
    }
}

#[cfg(test)]
mod tests;
