//! The instances that a service has whether or not somebody uses it (`min_instances`).
//!
//! The first allocator in rendezvous order that lives keeps them: on its own machine, for
//! so it knows without asking how many there are, and nobody else has to be told not to
//! stop one. Every allocator sees for itself whether it is the first. When a nearer one in
//! that order appears it starts its own, and here they are kept no longer and idle out;
//! when it dies the next is the first. On both sides of a cut network somebody is.
//!
//! Invariant: an instance that is kept does not idle out, and only the first keeps any.
//! Leave to start one is bound to it or given back, by every holder that has granted it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use lca::{
    Error, InstanceId, Kind, PeerId, RequestId, Result, ServiceHash,
    api::{
        self, Caller,
        proto::{self, allocator_client::AllocatorClient},
    },
    endpoint::{Endpoint, Role},
    rendezvous, sequence,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::{
    claims::{Answer, Claimant},
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
/// How long a grant outlives this node, as with managers: well above what a renewal may be
/// late.
const TTL: Duration = Duration::from_secs(10);
/// How often what is still needed is renewed: two may be lost.
const RENEW: Duration = Duration::from_secs(3);
/// What the first start that fails costs, ...
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// ... and what that grows to, doubling: a full machine is asked seldom, and room on it is
/// noticed soon.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Who keeps which service, as one allocator sees it.
#[derive(Debug, Default)]
pub(crate) struct Keeper {
    /// Since when this allocator is the first, where it is.
    first: HashMap<ServiceHash, Instant>,
    /// How many it keeps.
    kept: HashMap<ServiceHash, u32>,
    /// Those it is starting some of.
    starting: HashSet<ServiceHash>,
    /// Those of which the last start failed: what that cost, and until when none is begun.
    failed: HashMap<ServiceHash, (Duration, Instant)>,
}

impl Keeper {
    /// Takes in which services are to be kept, and of which this allocator is the first.
    pub(crate) fn look(&mut self, wanted: &[(ServiceHash, u32, bool)], now: Instant) {
        let firsts = wanted.iter().filter(|(_, _, first)| *first);
        let firsts: HashMap<_, _> = firsts.map(|(service, min, _)| (*service, *min)).collect();
        self.first.retain(|service, _| firsts.contains_key(service));
        self.failed.retain(|service, _| firsts.contains_key(service));
        for service in firsts.keys() {
            self.first.entry(*service).or_insert(now);
        }
        self.kept = firsts;
        let first = &self.first;
        self.kept.retain(|service, _| first.get(service).is_some_and(|at| now >= *at + HOLD));
    }

    /// Whether a start may begin now, which then is to be followed by [`ended`](Self::ended).
    fn begin(&mut self, service: ServiceHash, now: Instant) -> bool {
        let waits = self.failed.get(&service).is_some_and(|(_, until)| now < *until);
        !waits && self.starting.insert(service)
    }

    /// A start that was begun is over.
    fn ended(&mut self, service: ServiceHash, failed: bool, now: Instant) {
        self.starting.remove(&service);
        let before = self.failed.remove(&service);
        if failed {
            let wait = before.map_or(FIRST_WAIT, |(wait, _)| (wait * 2).min(LONGEST_WAIT));
            self.failed.insert(service, (wait, now + wait));
        }
    }

    /// How many instances of `service` are kept here.
    pub(crate) fn kept(&self, service: ServiceHash) -> u32 {
        self.kept.get(&service).copied().unwrap_or_default()
    }
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
        if enough || books.stopping || !books.keeper.begin(known.hash, Instant::now()) {
            continue;
        }
        let mut start = Start { supervisor: supervisor.clone(), service: known.hash, failed: true };
        supervisor.spawner.spawn_short(async move {
            match start.supervisor.start_kept(&known).await {
                Ok(()) => start.succeeded(),
                Err(error) => {
                    let service = &known.spec.name;
                    tracing::debug!(%service, error = error.chain(), "none to be kept was started");
                }
            }
        });
    }
}

/// One start that was begun. Dropping it ends it, also where it panics or is killed.
struct Start {
    supervisor: Arc<Supervisor>,
    service: ServiceHash,
    failed: bool,
}

impl Start {
    fn succeeded(&mut self) {
        self.failed = false;
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.supervisor.lock().keeper.ended(self.service, self.failed, Instant::now());
    }
}

/// Leave to start one, of the holders that have granted it. Dropping it gives it back.
struct Leave {
    supervisor: Arc<Supervisor>,
    service: ServiceHash,
    claimant: Claimant,
    limit: u32,
    /// The holder beside this one, from before it is asked: it may grant what nobody hears.
    second: Option<Arc<Endpoint>>,
    bound: bool,
}

impl Leave {
    /// It has become this instance, here.
    fn became(mut self, instance: InstanceId) {
        let own = self.supervisor.discovery.local();
        self.bound = true;
        self.supervisor.holder.lock().bind(
            self.service,
            &self.claimant,
            sequence::next(),
            (instance, own),
            Instant::now(),
        );
        let (instance, peer) = (instance.to_string(), own.to_string());
        self.tell(proto::ClaimRequest { instance, peer, ..self.request() });
    }

    /// Keeps it while `starting` goes on.
    async fn held<T>(&self, starting: impl Future<Output = T>) -> T {
        let renewing = async {
            loop {
                sleep(RENEW).await;
                let Self { supervisor, service, claimant, limit, .. } = self;
                // Without it, what starts here is found by whoever looks.
                let (sequence, now) = (sequence::next(), Instant::now());
                let _renewed =
                    supervisor.holder.lock().claim(*service, claimant, sequence, *limit, TTL, now);
                if let Some(second) = &self.second {
                    let _its_time_runs_out = ask(supervisor, second, self.claim()).await;
                }
            }
        };
        tokio::select! {
            biased;
            end = starting => end,
            () = renewing => unreachable!("renewed until the start is over"),
        }
    }

    /// Whether the next holder that answers grants it, too.
    async fn second_grants(&mut self) -> bool {
        let known = self.supervisor.discovery.known();
        let known = known.into_iter().filter(|endpoint| endpoint.has(Role::Allocator));
        let known: HashMap<_, _> = known.map(|endpoint| (endpoint.peer, endpoint)).collect();
        for peer in rendezvous::order(self.service, known.keys().copied()).into_iter().take(WATCHED)
        {
            let silent = self.supervisor.holder.mesh().is_silent(peer);
            let Some(endpoint) = known.get(&peer).filter(|_| !silent) else { continue };
            self.second = Some(endpoint.clone());
            match ask(&self.supervisor, endpoint, self.claim()).await {
                Ok(answer) if answer.granted => return true,
                Ok(_) => {
                    self.second = None;
                    return false;
                }
                // It answers, and holds as many claims of this service as it can.
                Err(error) if error.kind() == Kind::NoCapacity => {
                    self.second = None;
                    return false;
                }
                Err(_) => self.tell(self.request()),
            }
        }
        true // nobody else can be reached
    }

    fn claim(&self) -> proto::ClaimRequest {
        proto::ClaimRequest { limit: self.limit, ttl_ms: TTL.as_millis() as u32, ..self.request() }
    }

    /// As it is, it gives back.
    fn request(&self) -> proto::ClaimRequest {
        proto::ClaimRequest {
            service_hash: self.service.to_string(),
            request_id: self.claimant.request.to_string(),
            sequence: sequence::next(),
            ..Default::default()
        }
    }

    /// Tells the second holder, behind whoever has asked, that it is over. What it does not
    /// hear, it notices.
    fn tell(&mut self, request: proto::ClaimRequest) {
        let Some(second) = self.second.take() else { return };
        let supervisor = self.supervisor.clone();
        self.supervisor.spawner.spawn_short(async move {
            if ask(&supervisor, &second, request.clone()).await.is_err() {
                let _its_time_runs_out = ask(&supervisor, &second, request).await;
            }
        });
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.bound {
            let (sequence, now) = (sequence::next(), Instant::now());
            self.supervisor.holder.lock().give_back(self.service, &self.claimant, sequence, now);
            self.tell(self.request());
        }
    }
}

async fn ask(
    supervisor: &Supervisor,
    holder: &Endpoint,
    request: proto::ClaimRequest,
) -> Result<proto::ClaimResponse> {
    let asking = async {
        let mut client = AllocatorClient::new(supervisor.holder.mesh().grpc(holder).await?);
        api::call("the holder", ANSWER, request, |request| client.claim(request)).await
    };
    let silent = |_| Error::new(Kind::Timeout, "the holder did not answer in time");
    timeout(ANSWER, asking).await.map_err(silent)?
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
        let order = rendezvous::order(service, others.keys().copied().chain([own]));
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
        let mut leave = None;
        if let Some(max) = spec.max_instances {
            // The first in the order is the first holder, too.
            let answer = self.granted(*hash, &claimant, sequence::next(), max.get(), TTL).await?;
            if answer != Answer::Granted {
                return Ok(()); // there are enough elsewhere: until one of them ends
            }
            let leave = leave.insert(Leave {
                supervisor: self.clone(),
                service: *hash,
                claimant,
                limit: max.get(),
                second: None,
                bound: false,
            });
            if !leave.second_grants().await {
                return Ok(());
            }
        }
        let wanted = Wanted { service: spec.name.clone(), hash: *hash, mode: Mode::New };
        let starting = self.allocate(Caller::Peer(own), wanted, request);
        let id = match leave {
            Some(leave) => {
                let id = leave.held(starting).await?.entry.id;
                leave.became(id);
                id
            }
            None => starting.await?.entry.id,
        };
        tracing::info!(service = %spec.name, instance = %id, "started, and kept");
        Ok(())
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
    fn a_start_that_fails_is_followed_by_a_pause_that_grows_and_one_that_does_not_by_none() {
        let mut now = Instant::now();
        let mut keeper = Keeper::default();
        for wait in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            assert!(keeper.begin(A, now) && keeper.begin(B, now), "before {wait:?}");
            assert!(!keeper.begin(A, now), "one at a time");
            keeper.ended(A, true, now);
            keeper.ended(B, false, now);
            assert!(!keeper.begin(A, now + wait - Duration::from_millis(1)));
            now += wait;
        }
        assert!(keeper.begin(A, now));
        keeper.ended(A, false, now);
        assert!(keeper.begin(A, now), "it has succeeded");
    }
}
