//! Who is connected, how far away, and who could not be reached lately. Pure.

use std::{collections::HashMap, net::SocketAddr, num::NonZeroUsize, time::Duration};

use lru::LruCache;

use libp2p::PeerId as Libp2pId;

/// Dials in vain after which a peer leaves the routing table: one may be bad luck, and
/// each costs every query that meets it.
const MAX_FAILURES: u32 = 2;
/// Peers whose failures are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

/// The peers of the swarm.
#[derive(Debug)]
pub(crate) struct Peers {
    connected: HashMap<Libp2pId, Peer>,
    failures: LruCache<Libp2pId, u32>,
}

#[derive(Debug)]
struct Peer {
    seen_at: Option<SocketAddr>,
    rtt: Option<Duration>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        Self { connected: HashMap::new(), failures: LruCache::new(REMEMBERED) }
    }

    /// A connection stands; `seen_at` is its other end. True if it is the peer's first.
    pub(crate) fn connected(&mut self, peer: Libp2pId, seen_at: Option<SocketAddr>) -> bool {
        self.failures.pop(&peer);
        let first = !self.connected.contains_key(&peer);
        self.connected.entry(peer).or_insert(Peer { seen_at, rtt: None });
        first
    }

    /// The last connection is gone.
    pub(crate) fn disconnected(&mut self, peer: &Libp2pId) {
        self.connected.remove(peer);
    }

    /// A dial failed. True if the peer should leave the routing table.
    pub(crate) fn failed(&mut self, peer: Libp2pId) -> bool {
        if self.connected.contains_key(&peer) {
            return false;
        }
        let failures = self.failures.get_or_insert_mut(peer, || 0);
        *failures += 1;
        let hopeless = *failures >= MAX_FAILURES;
        if hopeless {
            self.failures.pop(&peer);
        }
        hopeless
    }

    pub(crate) fn measured(&mut self, peer: &Libp2pId, rtt: Duration) {
        if let Some(peer) = self.connected.get_mut(peer) {
            peer.rtt = Some(rtt);
        }
    }

    pub(crate) fn seen_at(&self, peer: &Libp2pId) -> Option<SocketAddr> {
        self.connected.get(peer).and_then(|peer| peer.seen_at)
    }

    pub(crate) fn len(&self) -> usize {
        self.connected.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Libp2pId> {
        self.connected.keys()
    }

    pub(crate) fn rtts(&self) -> impl Iterator<Item = Duration> {
        self.connected.values().filter_map(|peer| peer.rtt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_cannot_be_reached_again_and_again_is_given_up() {
        let (mut peers, peer) = (Peers::new(), Libp2pId::random());
        assert!(!peers.failed(peer));
        assert!(peers.connected(peer, None), "it was bad luck");
        assert!(!peers.connected(peer, None));
        assert!(!peers.failed(peer), "another address of a peer that is connected");
        peers.disconnected(&peer);
        assert!(!peers.failed(peer));
        assert!(peers.failed(peer));
    }

    #[test]
    fn distances_are_those_of_connected_peers() {
        let (mut peers, peer) = (Peers::new(), Libp2pId::random());
        peers.measured(&peer, Duration::from_millis(3));
        assert_eq!(peers.rtts().count(), 0);
        peers.connected(peer, None);
        peers.measured(&peer, Duration::from_millis(3));
        assert_eq!(peers.rtts().collect::<Vec<_>>(), [Duration::from_millis(3)]);
        peers.disconnected(&peer);
        assert_eq!((peers.rtts().count(), peers.len()), (0, 0));
    }
}
