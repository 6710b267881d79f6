//! Which call asked for which instance, so that a call repeated with the same id gets
//! the same answer and starts nothing twice.
//!
//! Ids belong to whoever used them: another peer's id is another id.

use std::{num::NonZeroUsize, time::Duration};

use lca::{
    Error, InstanceId, Kind, PeerId, RequestId, Result, ServiceHash, ServiceName, api::Caller,
};
use lru::LruCache;
use tokio::time::Instant;

/// How long an id is good for, as the proto promises.
pub(crate) const KEPT: Duration = Duration::from_secs(600);
/// Calls remembered; the least recent makes room. One a second for ten minutes from
/// every one of sixteen managers.
pub(crate) const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// Whether an instance that exists will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Join an instance that is starting or ready.
    Ensure,
    /// Always start another.
    New,
}

/// What a call asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The service.
    pub(crate) service: ServiceName,
    /// Which version of it.
    pub(crate) hash: ServiceHash,
    /// Whether one that exists will do.
    pub(crate) mode: Mode,
}

/// The calls of the last ten minutes.
#[derive(Debug)]
pub(crate) struct Requests(LruCache<(Option<PeerId>, RequestId), Record>);

#[derive(Debug)]
struct Record {
    wanted: Wanted,
    instance: InstanceId,
    at: Instant,
}

impl Default for Requests {
    fn default() -> Self {
        Self(LruCache::new(REMEMBERED))
    }
}

impl Requests {
    /// The instance an earlier call with this id was given.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if that call asked for something else.
    pub(crate) fn find(
        &mut self,
        caller: Caller,
        id: &RequestId,
        wanted: &Wanted,
        now: Instant,
    ) -> Result<Option<InstanceId>> {
        let key = key(caller, id);
        let Some(record) = self.0.get(&key).filter(|record| now < record.at + KEPT) else {
            self.0.pop(&key);
            return Ok(None);
        };
        if record.wanted != *wanted {
            let asked = &record.wanted.service;
            return Err(Error::new(
                Kind::Conflict,
                format!("request id {id} was used for another allocation, of {asked}"),
            ));
        }
        Ok(Some(record.instance))
    }

    /// Remembers what a call was given.
    pub(crate) fn record(
        &mut self,
        caller: Caller,
        id: &RequestId,
        wanted: Wanted,
        instance: InstanceId,
        now: Instant,
    ) {
        self.0.put(key(caller, id), Record { wanted, instance, at: now });
    }
}

fn key(caller: Caller, id: &RequestId) -> (Option<PeerId>, RequestId) {
    let peer = match caller {
        Caller::Peer(peer) => Some(peer),
        Caller::Local => None,
    };
    (peer, id.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_good_for_ten_minutes_for_the_peer_and_the_call_that_used_it() {
        let mut requests = Requests::default();
        let now = Instant::now();
        let peer = |byte| Caller::Peer(PeerId::from_public_key([byte; 32]));
        let id: RequestId = "r1".parse().unwrap();
        let instance = InstanceId::random();
        let wanted = Wanted {
            service: "hello".parse().unwrap(),
            hash: ServiceHash::from_sha256([1; 32]),
            mode: Mode::New,
        };
        requests.record(peer(1), &id, wanted.clone(), instance, now);

        let again = requests.find(peer(1), &id, &wanted, now + KEPT / 2);
        assert_eq!(again.unwrap(), Some(instance));
        assert_eq!(requests.find(peer(2), &id, &wanted, now).unwrap(), None);
        assert_eq!(requests.find(Caller::Local, &id, &wanted, now).unwrap(), None);
        let other = Wanted { mode: Mode::Ensure, ..wanted.clone() };
        assert_eq!(requests.find(peer(1), &id, &other, now).unwrap_err().kind(), Kind::Conflict);
        assert_eq!(requests.find(peer(1), &id, &wanted, now + KEPT).unwrap(), None);
    }
}
