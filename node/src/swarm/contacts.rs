//! Where peers were met, for the next start: those through whom a node comes back when
//! its bootstraps are gone.
//!
//! Known is the address that was dialled and where the peer proved who it is; of a peer
//! that came by itself, what it says of itself at the address it came from, so that
//! nobody can have others dialled in its name. Read by handles without asking the swarm.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use lca::{
    PeerId,
    config::{Bootstrap, Host},
};
use lru::LruCache;

/// Peers known here, so that a crowd of those one can do without does not crowd out the
/// rest: a hundred bytes each.
const MAX_KNOWN: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");
/// Peers worth keeping for the next start: one that answers is enough.
pub const MAX_CONTACTS: usize = 16;

/// The peers that were met, the last one first. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Contacts(Arc<Mutex<LruCache<PeerId, SocketAddr>>>);

impl Contacts {
    /// Starts with what is remembered: it stays until others take its place.
    pub(crate) fn new(remembered: &[Bootstrap]) -> Self {
        let mut known = LruCache::new(MAX_KNOWN);
        for at in remembered.iter().rev() {
            if let Host::Ip(ip) = at.host {
                known.put(at.peer, SocketAddr::new(ip, at.port));
            }
        }
        Self(Arc::new(Mutex::new(known)))
    }

    /// The peer was dialled at this address, and is there.
    pub(crate) fn dialled(&self, peer: PeerId, at: SocketAddr) {
        self.known().put(peer, at);
    }

    /// The peer, whose end of the connection is at `seen`, says that it can be dialled at
    /// these addresses.
    pub(crate) fn told(&self, peer: PeerId, seen: SocketAddr, told: &[SocketAddr]) {
        let mut known = self.known();
        if known.get(&peer).is_some_and(|held| *held == seen || told.contains(held)) {
            return;
        }
        if let Some(at) = told.iter().find(|at| at.ip() == seen.ip()) {
            known.put(peer, *at);
        }
    }

    /// The best ones to come back through, by `rank` (lowest first), then the last met.
    pub(crate) fn best(&self, rank: impl Fn(PeerId) -> u8) -> Vec<Bootstrap> {
        let mut all: Vec<_> = self.known().iter().map(|(peer, at)| (*peer, *at)).collect();
        all.sort_by_cached_key(|(peer, _)| rank(*peer));
        all.truncate(MAX_CONTACTS);
        let contact = |(peer, at): (PeerId, SocketAddr)| Bootstrap {
            host: Host::Ip(at.ip()),
            port: at.port(),
            peer,
        };
        all.into_iter().map(contact).collect()
    }

    fn known(&self) -> MutexGuard<'_, LruCache<PeerId, SocketAddr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn at(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    fn ports(contacts: &Contacts) -> Vec<u16> {
        contacts.best(|_| 0).iter().map(|contact| contact.port).collect()
    }

    #[test]
    fn the_last_met_come_first_and_each_once() {
        let contacts = Contacts::new(&[]);
        contacts.dialled(peer(1), at(1));
        contacts.dialled(peer(2), at(2));
        contacts.dialled(peer(1), at(3));
        assert_eq!(ports(&contacts), [3, 2]);
        let again = Contacts::new(&contacts.best(|_| 0));
        assert_eq!(ports(&again), [3, 2], "the order survives a restart");
    }

    #[test]
    fn a_crowd_does_not_displace_those_that_matter() {
        let contacts = Contacts::new(&[]);
        contacts.dialled(peer(0), at(1));
        (1..=100).for_each(|number| contacts.dialled(peer(number), at(number.into())));
        let best = contacts.best(|one| u8::from(one != peer(0)));
        assert_eq!((best.len(), best[0].peer), (MAX_CONTACTS, peer(0)));
    }

    #[test]
    fn a_peer_is_believed_about_the_machine_it_comes_from() {
        let contacts = Contacts::new(&[]);
        let elsewhere = SocketAddr::from(([10, 0, 0, 2], 5));
        contacts.told(peer(1), at(40_000), &[elsewhere]);
        assert!(ports(&contacts).is_empty(), "others would be dialled in its name");
        contacts.told(peer(1), at(40_000), &[elsewhere, at(5)]);
        assert_eq!(ports(&contacts), [5]);
        contacts.told(peer(1), at(40_001), &[at(6)]);
        assert_eq!(ports(&contacts), [6], "it has moved");
        contacts.dialled(peer(1), at(7));
        contacts.told(peer(1), at(7), &[at(6)]);
        assert_eq!(ports(&contacts), [7], "where it was dialled it is");
    }
}
