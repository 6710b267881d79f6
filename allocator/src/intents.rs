//! Where starts that are about to be asked for were meant to happen: what managers that
//! do not know of each other say here before they choose (decision 0012).
//!
//! Whoever comes first is told to go on, and for a while everybody after it is told where
//! it goes. It is a word and no leave: nothing is refused or reserved by it, so what
//! is forgotten here, or was never meant, costs at worst a question to another allocator.

use std::{num::NonZeroUsize, time::Duration};

use lca::{PeerId, ServiceHash, api::Caller};
use lru::LruCache;
use tokio::time::Instant;

/// How long it is told: longer than it takes the one that is chosen to hear of it, to look
/// up the spec and to have something to show, on a machine that is out of breath.
const TOLD: Duration = Duration::from_secs(10);
/// Services remembered; the one asked for least recently makes room.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1000).expect("not zero");

/// The intents one allocator has heard, one a service. Time is given by the caller.
#[derive(Debug)]
pub(crate) struct Intents(LruCache<ServiceHash, Intent>);

#[derive(Debug)]
struct Intent {
    by: Caller,
    at: PeerId,
    until: Instant,
}

impl Default for Intents {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl Intents {
    /// `by` is about to have `service` started at `at`: where whoever came first means to,
    /// which is `at` itself for the first.
    pub(crate) fn heard(
        &mut self,
        service: ServiceHash,
        by: Caller,
        at: PeerId,
        now: Instant,
    ) -> PeerId {
        match self.0.get(&service) {
            Some(first) if first.by != by && now < first.until => first.at,
            _ => {
                self.0.put(service, Intent { by, at, until: now + TOLD });
                at
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceHash = ServiceHash::from_sha256([7; 32]);

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    #[test]
    fn the_first_is_followed_until_its_word_is_old() {
        let (a, b) = (Caller::Peer(peer(1)), Caller::Peer(peer(2)));
        let (x, y) = (peer(11), peer(12));
        let mut intents = Intents::default();
        let now = Instant::now();
        assert_eq!(intents.heard(SERVICE, a, x, now), x);
        assert_eq!(intents.heard(SERVICE, b, y, now + TOLD / 2), x);
        assert_eq!(intents.heard(SERVICE, b, y, now + TOLD), y, "not for longer by the question");
        assert_eq!(intents.heard(SERVICE, a, x, now + TOLD), y);
        let other = ServiceHash::from_sha256([8; 32]);
        assert_eq!(intents.heard(other, a, x, now + TOLD), x);
    }

    #[test]
    fn whoever_was_first_may_change_its_mind() {
        let (a, b) = (Caller::Peer(peer(1)), Caller::Local);
        let mut intents = Intents::default();
        let now = Instant::now();
        intents.heard(SERVICE, a, peer(11), now);
        assert_eq!(intents.heard(SERVICE, a, peer(12), now), peer(12));
        assert_eq!(intents.heard(SERVICE, b, peer(13), now), peer(12));
    }

    #[test]
    fn no_more_services_are_remembered_than_fit() {
        let mut intents = Intents::default();
        let now = Instant::now();
        for n in 0..u16::try_from(REMEMBERED.get() * 2).unwrap() {
            let mut hash = [0; 32];
            hash[..2].copy_from_slice(&n.to_be_bytes());
            intents.heard(ServiceHash::from_sha256(hash), Caller::Local, peer(1), now);
        }
        assert_eq!(intents.0.len(), REMEMBERED.get());
    }
}
