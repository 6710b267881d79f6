//! The endpoints this node knows: verified, bounded, fresh for as long as they say, and
//! no longer than whoever told of them would keep them.
//!
//! Read by every handle without asking the swarm, written by the swarm. A forgotten
//! endpoint is not used again before its peer was asked again, but an older record
//! than it is still refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use lca::{PeerId, endpoint::Endpoint};

/// Peers remembered: four times the largest network planned for, some 2 MB.
const MAX_PEERS: usize = 4096;

/// What is known about where peers are. Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    entries: Arc<Mutex<HashMap<PeerId, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    received: Instant,
    expires: Instant,
    forgotten: bool,
}

impl Entry {
    fn is_fresh(&self, now: Instant) -> bool {
        !self.forgotten && now < self.expires
    }
}

/// How a record came. Both are verified; but a value of the DHT outlives its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// From the peer itself, just now.
    Itself,
    /// From whoever keeps it for the DHT.
    Value {
        /// How long it would be kept there.
        expires: Instant,
    },
}

impl Book {
    /// Takes a verified record, and returns what is best known of its peer now: this,
    /// or a later one. `None` if it is no news about an endpoint that was forgotten. A
    /// full book drops the entry heard longest ago.
    pub(crate) fn learn(
        &self,
        endpoint: Endpoint,
        source: Source,
        now: Instant,
    ) -> Option<Arc<Endpoint>> {
        let own_life = now + endpoint.ttl;
        let mut expires = match source {
            Source::Itself => own_life,
            Source::Value { expires } => expires.min(own_life),
        };
        let mut entries = self.lock();
        if let Some(entry) = entries.get(&endpoint.peer)
            && now < entry.expires
        {
            if entry.endpoint.supersedes(&endpoint) {
                return (!entry.forgotten).then(|| entry.endpoint.clone());
            }
            let news = source == Source::Itself || endpoint.supersedes(&entry.endpoint);
            if entry.forgotten && !news {
                return None;
            }
            // The same word again, from somebody who keeps it for less long.
            if !endpoint.supersedes(&entry.endpoint) {
                expires = expires.max(entry.expires);
            }
        }
        if entries.len() >= MAX_PEERS && !entries.contains_key(&endpoint.peer) {
            let oldest = entries.iter().min_by_key(|(_, entry)| entry.received);
            if let Some(oldest) = oldest.map(|(peer, _)| *peer) {
                entries.remove(&oldest);
            }
        }
        let endpoint = Arc::new(endpoint);
        let entry = Entry { endpoint: endpoint.clone(), received: now, expires, forgotten: false };
        entries.insert(endpoint.peer, entry);
        Some(endpoint)
    }

    /// Where the peer is, if that is known and fresh.
    pub(crate) fn get(&self, peer: PeerId, now: Instant) -> Option<Arc<Endpoint>> {
        let entries = self.lock();
        let entry = entries.get(&peer).filter(|entry| entry.is_fresh(now));
        entry.map(|entry| entry.endpoint.clone())
    }

    /// Whether the peer should be asked again before its endpoint goes stale.
    pub(crate) fn is_due(&self, peer: PeerId, now: Instant) -> bool {
        let entries = self.lock();
        entries.get(&peer).is_none_or(|entry| {
            !entry.is_fresh(now) || now >= entry.received + (entry.expires - entry.received) / 2
        })
    }

    /// All that is fresh.
    pub(crate) fn fresh(&self, now: Instant) -> Vec<Arc<Endpoint>> {
        let entries = self.lock();
        let fresh = entries.values().filter(|entry| entry.is_fresh(now));
        fresh.map(|entry| entry.endpoint.clone()).collect()
    }

    /// Makes the peer's endpoint stale.
    pub(crate) fn forget(&self, peer: PeerId) {
        if let Some(entry) = self.lock().get_mut(&peer) {
            entry.forgotten = true;
        }
    }

    /// Drops what is too old to matter even for order.
    pub(crate) fn sweep(&self, now: Instant) {
        self.lock().retain(|_, entry| now < entry.expires);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Entry>> {
        // Nothing panics while holding it, and every write leaves it whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Source::Itself, *};
    use crate::record::tests::endpoint_of;

    /// From a holder that would keep it for an hour.
    fn value(now: Instant) -> Source {
        Source::Value { expires: now + Duration::from_secs(3600) }
    }

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    #[test]
    fn later_word_replaces_earlier_and_never_the_other_way() {
        let (book, now) = (Book::default(), Instant::now());
        let learn = |endpoint| book.learn(endpoint, value(now), now).unwrap();
        learn(endpoint_of(peer(1), 5));
        assert_eq!(learn(endpoint_of(peer(1), 4)).sequence, 5);
        assert_eq!(learn(endpoint_of(peer(1), 6)).sequence, 6);
        let restarted = Endpoint { boot: 4, ..endpoint_of(peer(1), 1) };
        assert_eq!(learn(restarted).boot, 4);
    }

    #[test]
    fn what_is_forgotten_is_not_used_until_its_peer_says_it_again() {
        let (book, now) = (Book::default(), Instant::now());
        book.learn(endpoint_of(peer(1), 5), value(now), now);
        book.forget(peer(1));
        assert!(book.get(peer(1), now).is_none() && book.fresh(now).is_empty());
        assert!(book.is_due(peer(1), now));
        for (sequence, source, usable) in
            [(4, Itself, false), (4, value(now), false), (5, value(now), false), (5, Itself, true)]
        {
            let learnt = book.learn(endpoint_of(peer(1), sequence), source, now);
            assert_eq!(learnt.is_some(), usable, "{sequence} {source:?}");
            assert_eq!(book.get(peer(1), now).is_some(), usable);
        }
        book.forget(peer(1));
        assert!(book.learn(endpoint_of(peer(1), 6), value(now), now).is_some(), "it lives on");
    }

    #[test]
    fn an_endpoint_lives_as_long_as_it_says_from_receipt() {
        let (book, now) = (Book::default(), Instant::now());
        book.learn(endpoint_of(peer(1), 5), value(now), now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert!(!book.is_due(peer(1), later(299)) && book.is_due(peer(1), later(300)));
        assert!(book.get(peer(1), later(599)).is_some());
        assert!(book.get(peer(1), later(600)).is_none());
        book.sweep(later(600));
        assert!(book.lock().is_empty());
    }

    #[test]
    fn a_value_lives_here_no_longer_than_where_it_was_kept() {
        let (book, now) = (Book::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        book.learn(endpoint_of(peer(1), 5), Source::Value { expires: later(20) }, now);
        assert!(!book.is_due(peer(1), later(9)) && book.is_due(peer(1), later(10)));
        assert!(book.get(peer(1), later(19)).is_some() && book.get(peer(1), later(20)).is_none());
        // Heard elsewhere, or from itself, it lives longer; heard again, not less long.
        book.learn(endpoint_of(peer(1), 5), Itself, now);
        book.learn(endpoint_of(peer(1), 5), Source::Value { expires: later(20) }, now);
        assert!(book.get(peer(1), later(599)).is_some());
    }

    #[test]
    fn a_full_book_drops_what_it_heard_longest_ago() {
        let (book, start) = (Book::default(), Instant::now());
        for number in 0..=MAX_PEERS as u32 {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let peer = PeerId::from_public_key(key);
            let now = start + Duration::from_micros(number.into());
            book.learn(endpoint_of(peer, 1), value(now), now);
        }
        assert_eq!(book.lock().len(), MAX_PEERS);
        assert!(book.get(PeerId::from_public_key([0; 32]), start).is_none());
    }
}
