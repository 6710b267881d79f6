//! The part of the actor that answers: finds, and where single peers are.
//!
//! A peer is resolved once at a time, whoever waits for it: its record is asked of the
//! DHT and of the peer itself at once, and the first that verifies is taken. Everyone
//! who waits is answered exactly once, at the latest when the query's deadline is over.

use std::{collections::HashMap, sync::Arc, time::Instant};

use lca::metrics::{self, Dropped};
use lca::{
    PeerId,
    discovery::{Found, Key},
    endpoint::Endpoint,
};
use libp2p::{PeerId as Libp2pId, kad::QueryId, request_response::OutboundRequestId};
use tokio::sync::{mpsc, oneshot};

use super::{
    actor::{Actor, Due, Purpose},
    find::{self, Search},
    keys,
};
use crate::{
    book::Source,
    identity::{from_libp2p, to_libp2p},
    record,
};

/// Finds at once. A manager joins equal ones, so that this is as many services.
const MAX_FINDS: usize = 1024;
/// Peers being resolved at once.
const MAX_RESOLVING: usize = 1024;

/// Names a find while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FindId(u64);

/// Everything that somebody waits for.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    finds: HashMap<FindId, Find>,
    last: u64,
    resolving: HashMap<PeerId, Resolving>,
    /// The one request a peer has open for its record.
    asking: HashMap<PeerId, OutboundRequestId>,
}

#[derive(Debug)]
struct Find {
    search: Search,
    query: QueryId,
    found: mpsc::Sender<Found>,
    since: Instant,
    told: bool,
}

impl Find {
    /// False if nobody listens any more.
    fn say(&mut self, found: Option<Found>, metrics: &metrics::Node) -> bool {
        let Some(found) = found else { return !self.found.is_closed() };
        let miss = matches!(found, Found::Miss);
        // There is room for everything that one find can say.
        let heard = self.found.try_send(found).is_ok();
        if heard && miss {
            metrics.misses.inc();
        } else if heard && !std::mem::replace(&mut self.told, true) {
            metrics.first_endpoint.observe(self.since.elapsed().as_secs_f64());
        }
        heard
    }
}

#[derive(Debug)]
struct Resolving {
    query: Option<QueryId>,
    waiting: Vec<Waiting>,
    until: Instant,
}

/// Who waits for a peer to be resolved.
#[derive(Debug)]
pub(crate) enum Waiting {
    Find(FindId),
    Reply(oneshot::Sender<Option<Arc<Endpoint>>>),
}

impl Actor {
    /// Starts a find. Where there are too many, `found` is dropped, which ends it.
    pub(crate) fn find(&mut self, key: Key, found: mpsc::Sender<Found>, now: Instant) {
        if self.lookups.finds.len() >= MAX_FINDS {
            tracing::warn!(limit = MAX_FINDS, "too many finds at once; one is refused");
            return;
        }
        self.lookups.last += 1;
        let id = FindId(self.lookups.last);
        let query = self.swarm.behaviour_mut().kademlia.get_providers(keys::to_kad(key));
        self.queries.insert(query, Purpose::Find(id));
        let rtts: Vec<_> = self.peers.rtts().collect();
        let patience = find::patience(rtts, self.timing.miss_floor);
        self.timers.set(now + patience, Due::Late(id));
        self.timers.set(now + self.timing.query, Due::FindOver(id));
        let search = Search::new(self.local, self.peers.len());
        self.lookups.finds.insert(id, Find { search, query, found, since: now, told: false });
    }

    /// Somebody named providers.
    pub(crate) fn on_providers(
        &mut self,
        id: FindId,
        providers: impl IntoIterator<Item = Libp2pId>,
        by_peer: bool,
        now: Instant,
    ) {
        let Some(find) = self.lookups.finds.get_mut(&id) else { return };
        let peers = providers.into_iter().filter_map(|peer| from_libp2p(&peer));
        for peer in find.search.answered(peers, by_peer) {
            match self.book.get(peer, now) {
                Some(endpoint) => self.resolved(id, Some(endpoint)),
                None => self.resolve(peer, Waiting::Find(id), now),
            }
        }
        self.look_at(id);
    }

    /// The query of a find has ended.
    pub(crate) fn on_find_ended(&mut self, id: FindId) {
        if let Some(find) = self.lookups.finds.get_mut(&id) {
            find.search.ended();
        }
        self.look_at(id);
    }

    /// A find has taken as long as one should.
    pub(crate) fn on_late(&mut self, id: FindId) {
        if let Some(find) = self.lookups.finds.get_mut(&id) {
            find.search.late();
        }
        self.look_at(id);
    }

    /// Ends a find, its query too. The caller learns it by the end of its stream.
    pub(crate) fn end_find(&mut self, id: FindId) {
        if let Some(mut find) = self.lookups.finds.remove(&id) {
            find.search.late();
            let miss = find.search.miss();
            find.say(miss, self.counters.node());
            self.finish(find.query);
        }
    }

    /// Tells a miss if it is one by now, and ends a find that is over or unwanted.
    fn look_at(&mut self, id: FindId) {
        let Some(find) = self.lookups.finds.get_mut(&id) else { return };
        let miss = find.search.miss();
        if !find.say(miss, self.counters.node()) || find.search.is_over() {
            self.end_find(id);
        }
    }

    fn resolved(&mut self, id: FindId, endpoint: Option<Arc<Endpoint>>) {
        if let Some(find) = self.lookups.finds.get_mut(&id) {
            let found = find.search.resolved(endpoint);
            find.say(found, self.counters.node());
        }
    }

    /// Finds out where a peer is, for whoever waits.
    pub(crate) fn resolve(&mut self, peer: PeerId, waiting: Waiting, now: Instant) {
        if let Some(resolving) = self.lookups.resolving.get_mut(&peer) {
            resolving.waiting.push(waiting);
            return;
        }
        if self.lookups.resolving.len() >= MAX_RESOLVING {
            self.tell(vec![waiting], None);
            return;
        }
        self.ask(peer);
        let query = self.swarm.behaviour_mut().kademlia.get_record(keys::of_value(peer));
        self.queries.insert(query, Purpose::Value(peer));
        let until = now + self.timing.query;
        self.timers.set(until, Due::Unresolved(peer));
        let resolving = Resolving { query: Some(query), waiting: vec![waiting], until };
        self.lookups.resolving.insert(peer, resolving);
    }

    /// Asks a peer for its record, unless it is being asked.
    pub(crate) fn ask(&mut self, peer: PeerId) {
        if peer != self.local && !self.lookups.asking.contains_key(&peer) {
            let endpoint = &mut self.swarm.behaviour_mut().endpoint;
            let request = endpoint.send_request(&to_libp2p(peer), ());
            self.lookups.asking.insert(peer, request);
        }
    }

    /// A peer has answered with its record, or has not.
    pub(crate) fn on_answer(
        &mut self,
        peer: &Libp2pId,
        request: OutboundRequestId,
        record: Option<Vec<u8>>,
        now: Instant,
    ) {
        let Some(peer) = from_libp2p(peer) else { return };
        if self.lookups.asking.get(&peer) == Some(&request) {
            self.lookups.asking.remove(&peer);
        }
        if let Some(record) = record {
            self.on_record(peer, &record, Source::Itself, now);
        }
        self.give_up(peer);
    }

    /// Somebody has given a record for `peer`.
    pub(crate) fn on_record(&mut self, peer: PeerId, record: &[u8], source: Source, now: Instant) {
        match record::verify(peer, record) {
            Ok(_) if peer == self.local => {}
            Ok(endpoint) => {
                if let Some(endpoint) = self.book.learn(endpoint, source, now) {
                    self.settle(peer, Some(endpoint));
                }
            }
            Err(error) => self.refuse(Dropped::Record, peer, &error),
        }
    }

    /// The DHT has no more to say about a peer.
    pub(crate) fn on_value_ended(&mut self, peer: PeerId, query: QueryId) {
        if let Some(resolving) = self.lookups.resolving.get_mut(&peer)
            && resolving.query == Some(query)
        {
            resolving.query = None;
        }
        self.give_up(peer);
    }

    /// A peer has not been resolved in time, if it is still the one meant.
    pub(crate) fn on_unresolved(&mut self, peer: PeerId, now: Instant) {
        if self.lookups.resolving.get(&peer).is_some_and(|resolving| resolving.until <= now) {
            self.settle(peer, None);
        }
    }

    /// Settles a peer of which nobody is asked any more.
    fn give_up(&mut self, peer: PeerId) {
        let resolving = self.lookups.resolving.get(&peer);
        if resolving.is_some_and(|resolving| resolving.query.is_none())
            && !self.lookups.asking.contains_key(&peer)
        {
            self.settle(peer, None);
        }
    }

    fn settle(&mut self, peer: PeerId, endpoint: Option<Arc<Endpoint>>) {
        if let Some(resolving) = self.lookups.resolving.remove(&peer) {
            resolving.query.into_iter().for_each(|query| self.finish(query));
            self.tell(resolving.waiting, endpoint);
        }
    }

    fn tell(&mut self, waiting: Vec<Waiting>, endpoint: Option<Arc<Endpoint>>) {
        for waiting in waiting {
            match waiting {
                Waiting::Find(id) => {
                    self.resolved(id, endpoint.clone());
                    self.look_at(id);
                }
                Waiting::Reply(reply) => drop(reply.send(endpoint.clone())),
            }
        }
    }

    /// Ends a query early; its last event still comes.
    pub(crate) fn finish(&mut self, query: QueryId) {
        if let Some(mut query) = self.swarm.behaviour_mut().kademlia.query_mut(&query) {
            query.finish();
        }
    }
}
