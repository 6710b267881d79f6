//! The instances that a service has whether or not somebody uses it (`min_instances`).
//!
//! The first allocator in rendezvous order that lives keeps them: on its own machine, for
//! so it knows without asking how many there are, and nobody else has to be told not to
//! stop one. Every allocator sees for itself whether it is the first. When a nearer one in
//! that order appears it starts its own, and here they are kept no longer and idle out;
//! when it dies the next is the first. On both sides of a cut network somebody is.
//!
//! Invariant: an instance that is kept does not idle out, and only the first keeps any.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use lca::{
    Digest, PeerId, RequestId, Result, ServiceHash,
    api::{
        self, Caller,
        proto::{self, allocator_client::AllocatorClient},
    },
    endpoint::{Endpoint, Role},
};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    claims::{Answer, Claimant, MAX_TTL},
    outside::Known,
    requests::{Mode, Wanted},
    supervisor::Supervisor,
    table::Entry,
};

/// How often it is looked at who is the first and what is missing: a part of what it takes
/// to find that a machine is dead (3 s).
const ROUND: Duration = Duration::from_secs(1);
/// So long an allocator has to be the first before it keeps anything: one that has just
/// started knows nobody yet, and a lost probe is not a death.
const HOLD: Duration = Duration::from_secs(3);
/// Those before us in the order that are probed: if all of them die at once, the next ones
/// are, from then on.
const WATCHED: usize = 3;
/// Longest the other holder of claims may take.
const ANSWER: Duration = Duration::from_secs(3);

/// Who keeps which service, as one allocator sees it.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    /// Since when this allocator is the first, where it is.
    first: HashMap<ServiceHash, Instant>,
    /// How many it keeps.
    kept: HashMap<ServiceHash, u32>,
    /// Those it is starting some of.
    starting: HashSet<ServiceHash>,
}

impl Keeper {
    /// Takes in which services are to be kept, and of which this allocator is the first.
    pub(crate) fn look(&mut self, wanted: &[(ServiceHash, u32, bool)], now: Instant) {
        let firsts = wanted.iter().filter(|(_, _, first)| *first);
        let firsts: HashMap<_, _> = firsts.map(|(service, min, _)| (*service, *min)).collect();
        self.first.retain(|service, _| firsts.contains_key(service));
        for service in firsts.keys() {
            self.first.entry(*service).or_insert(now);
        }
        self.kept = firsts;
        let first = &self.first;
        self.kept.retain(|service, _| first.get(service).is_some_and(|at| now >= *at + HOLD));
    }

    /// How many instances of `service` are kept here.
    pub(crate) fn kept(&self, service: ServiceHash) -> u32 {
        self.kept.get(&service).copied().unwrap_or_default()
    }
}

/// Peers in the order that all nodes share, as managers have it for claims: the highest
/// SHA-256 of service and key first.
fn in_order(service: ServiceHash, peers: impl IntoIterator<Item = PeerId>) -> Vec<PeerId> {
    let weight = |peer: PeerId| {
        let mut bytes = b"lca/rendezvous/1".to_vec();
        bytes.extend_from_slice(service.as_bytes());
        bytes.extend_from_slice(peer.public_key());
        Digest::of(&bytes).to_string()
    };
    let mut peers: Vec<_> = peers.into_iter().collect();
    peers.sort_by_cached_key(|peer| (Reverse(weight(*peer)), *peer));
    peers
}

/// Keeps what this allocator is to keep until `stopping`.
pub(crate) async fn keep(supervisor: Arc<Supervisor>, stopping: impl Future<Output = ()>) {
    let keeping = async {
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            round.tick().await;
            look(&supervisor);
        }
    };
    tokio::select! {
        () = stopping => {}
        () = keeping => {}
    }
}

fn look(supervisor: &Arc<Supervisor>) {
    let specs = supervisor.catalog.kept();
    if specs.is_empty() && supervisor.lock().keeper.first.is_empty() {
        return;
    }
    let known = supervisor.discovery.known();
    let others = known.into_iter().filter(|endpoint| endpoint.has(Role::Allocator));
    let others: HashMap<_, _> = others.map(|endpoint| (endpoint.peer, endpoint)).collect();
    let wanted: Vec<_> = specs
        .iter()
        .map(|known| {
            let first = supervisor.is_first(known.hash, &others);
            (known.hash, known.spec.min_instances, first)
        })
        .collect();
    let mut books = supervisor.lock();
    books.keeper.look(&wanted, Instant::now());
    for known in specs {
        let enough = books.table.doing(known.hash).len() >= books.keeper.kept(known.hash) as usize;
        if enough || books.stopping || !books.keeper.starting.insert(known.hash) {
            continue;
        }
        let supervisor = supervisor.clone();
        supervisor.spawner.clone().spawn_short(async move {
            if let Err(error) = supervisor.start_kept(&known).await {
                let service = &known.spec.name;
                tracing::debug!(%service, error = error.chain(), "none to be kept was started");
            }
            supervisor.lock().keeper.starting.remove(&known.hash);
        });
    }
}

impl Supervisor {
    /// Whether an instance is one of those that are kept: they are the oldest.
    pub(crate) fn is_kept(&self, entry: &Entry) -> bool {
        let books = self.lock();
        let kept = books.keeper.kept(entry.hash) as usize;
        kept > 0 && books.table.doing(entry.hash).iter().take(kept).any(|one| one.id == entry.id)
    }

    /// Whether all allocators before this one are silent. Those are probed from now on.
    fn is_first(&self, service: ServiceHash, others: &HashMap<PeerId, Arc<Endpoint>>) -> bool {
        let own = self.discovery.local();
        let order = in_order(service, others.keys().copied().chain([own]));
        let mesh = self.holder.mesh();
        let before = order.into_iter().take_while(|peer| *peer != own);
        let mut alive = 0;
        for endpoint in before.filter_map(|peer| others.get(&peer)) {
            alive += usize::from(!mesh.is_silent(endpoint.peer));
            if alive <= WATCHED {
                mesh.watch_idly(endpoint);
            }
        }
        alive == 0
    }

    /// Starts one more instance to be kept, with leave if there is a limit.
    async fn start_kept(self: &Arc<Self>, known: &Known) -> Result<()> {
        let Known { spec, hash } = known;
        let own = self.discovery.local();
        let request = RequestId::random();
        let claimant = Claimant { peer: Some(own), request: request.clone() };
        if let Some(max) = spec.max_instances {
            // The first in the order is the first holder, too.
            let answer = self.granted(*hash, &claimant, max.get(), MAX_TTL).await?;
            if answer != Answer::Granted {
                return Ok(()); // there are enough elsewhere: until one of them ends
            }
            if !self.second_grants(*hash, &claimant, max.get()).await {
                self.holder.lock().give_back(*hash, &claimant);
                return Ok(());
            }
        }
        let wanted = Wanted { service: spec.name.clone(), hash: *hash, mode: Mode::New };
        let started = self.allocate(Caller::Peer(own), wanted, request).await;
        if spec.max_instances.is_some() {
            match &started {
                Ok(started) => {
                    let (id, now) = (started.entry.id, Instant::now());
                    self.holder.lock().bind(*hash, &claimant, id, own, now);
                }
                Err(_) => self.holder.lock().give_back(*hash, &claimant),
            }
        }
        let id = started?.entry.id;
        tracing::info!(service = %spec.name, instance = %id, "started, and kept");
        Ok(())
    }

    /// Whether the next holder that answers grants it, too. What it grants runs out by
    /// itself, when a look there has found the instance.
    async fn second_grants(&self, service: ServiceHash, claimant: &Claimant, max: u32) -> bool {
        let known = self.discovery.known();
        let known = known.into_iter().filter(|endpoint| endpoint.has(Role::Allocator));
        let known: HashMap<_, _> = known.map(|endpoint| (endpoint.peer, endpoint)).collect();
        let mesh = self.holder.mesh();
        for peer in in_order(service, known.keys().copied()).into_iter().take(WATCHED) {
            let Some(endpoint) = known.get(&peer).filter(|_| !mesh.is_silent(peer)) else {
                continue;
            };
            let request = proto::ClaimRequest {
                service_hash: service.to_string(),
                request_id: claimant.request.to_string(),
                limit: max,
                ttl_ms: MAX_TTL.as_millis() as u32,
                ..Default::default()
            };
            let asking = async {
                let mut client = AllocatorClient::new(mesh.grpc(endpoint).await?);
                api::call("the holder", ANSWER, request, |request| client.claim(request)).await
            };
            if let Ok(Ok(answer)) = timeout(ANSWER, asking).await {
                return answer.granted;
            }
        }
        true // nobody else can be reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ServiceHash = ServiceHash::from_sha256([1; 32]);
    const B: ServiceHash = ServiceHash::from_sha256([2; 32]);

    #[test]
    fn only_who_has_been_the_first_for_a_while_keeps_and_only_as_long() {
        let now = Instant::now();
        let mut keeper = Keeper::default();
        keeper.look(&[(A, 2, true), (B, 1, false)], now);
        assert_eq!(keeper.kept(A), 0, "it has just become the first");
        keeper.look(&[(A, 2, true), (B, 1, true)], now + HOLD);
        assert_eq!((keeper.kept(A), keeper.kept(B)), (2, 0));
        keeper.look(&[(A, 3, true), (B, 1, true)], now + HOLD + ROUND);
        assert_eq!((keeper.kept(A), keeper.kept(B)), (3, 0), "the number holds at once");
        keeper.look(&[(A, 3, false), (B, 1, true)], now + 2 * HOLD);
        assert_eq!((keeper.kept(A), keeper.kept(B)), (0, 1), "a nearer one has come");
        keeper.look(&[(A, 3, true)], now + 3 * HOLD);
        assert_eq!((keeper.kept(A), keeper.kept(B)), (0, 0), "B is not to be kept any more");
    }

    #[test]
    fn allocators_agree_on_one_order_whatever_they_know_first() {
        let peers: Vec<_> = (0..9).map(|n| PeerId::from_public_key([n; 32])).collect();
        let order = in_order(A, peers.iter().copied());
        assert_eq!(in_order(A, peers.iter().rev().copied()), order);
        assert_ne!(in_order(B, peers), order);
    }
}
