//! The acting part of a holder of claims: asks peers what they run when the table wants
//! to know, with deadlines, and otherwise does as the table says.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::join_all};
use lca::{
    Error, InstanceId, Kind, PeerId, RequestId, Result, ServiceHash,
    api::{
        self, Caller,
        proto::{self, InstanceState, instances_client::InstancesClient},
    },
    discovery::{Found, Key},
    endpoint::{Endpoint, Role},
    mesh::Mesh,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{Answer, Claimant, Claims, Running, Said, Survey};
use crate::{
    supervisor::Supervisor,
    table::{Entry, View},
};

/// Longest a survey may take, finding and connecting included: a peer is either two round
/// trips away, or it does not answer, and somebody waits for a start.
const LOOK: Duration = Duration::from_secs(1);
/// How long a survey listens for peers that discovery knows and this node does not: as a
/// find waits at least for its first answer.
const FIND: Duration = Duration::from_millis(50);
/// Allocators asked in one survey: as many as a manager keeps in mind.
const MAX_ASKED: usize = 256;
/// Surveys at the same time. Those who wait for one find it done by another.
const SURVEYS: usize = 4;
/// Looks one claim may cause: everywhere, and at what is left.
const LOOKS: usize = 2;
/// The last of them begins so long after the claim, at most: with [`LOOK`] it is answered
/// within 2.5 s, before the 3 s are over after which whoever asks takes a holder for silent.
const LAST_LOOK: Duration = Duration::from_millis(1500);

/// See the module.
#[derive(Debug)]
pub(crate) struct Holder {
    mesh: Arc<dyn Mesh>,
    claims: Mutex<Claims>,
    surveys: Semaphore,
}

/// What a caller asks a holder, read from the wire.
#[derive(Debug)]
pub(crate) struct Asked {
    service: ServiceHash,
    claimant: Claimant,
    sequence: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Claim { limit: u32, ttl: Duration },
    GiveBack,
    Bind { instance: InstanceId, peer: PeerId },
}

impl Holder {
    pub(crate) fn new(mesh: Arc<dyn Mesh>) -> Self {
        Self { mesh, claims: Mutex::default(), surveys: Semaphore::new(SURVEYS) }
    }

    /// The way to other allocators.
    pub(crate) fn mesh(&self) -> &dyn Mesh {
        &*self.mesh
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Claims> {
        // Every operation leaves the table good at each step.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    pub(crate) fn read(caller: Caller, request: &proto::ClaimRequest) -> Result<Self> {
        let peer = match caller {
            Caller::Peer(peer) => Some(peer),
            Caller::Local => None,
        };
        let request_id: RequestId = request.request_id.parse()?;
        let what = match (request.instance.as_str(), request.ttl_ms, request.limit) {
            ("", 0, _) => What::GiveBack,
            ("", _, 0) => {
                return Err(Error::new(Kind::InvalidArgument, "limit must be at least 1"));
            }
            ("", ttl, limit) => What::Claim { limit, ttl: Duration::from_millis(ttl.into()) },
            (instance, ..) => {
                What::Bind { instance: instance.parse()?, peer: request.peer.parse()? }
            }
        };
        let service = request.service_hash.parse()?;
        let claimant = Claimant { peer, request: request_id };
        Ok(Self { service, claimant, sequence: request.sequence, what })
    }
}

impl Supervisor {
    /// Answers `Allocator.Claim`.
    ///
    /// # Errors
    /// See there.
    pub(crate) async fn claim(&self, asked: Asked) -> Result<proto::ClaimResponse> {
        if self.lock().stopping {
            return Err(Error::new(Kind::Unavailable, "this allocator is stopping"));
        }
        let Asked { service, claimant, sequence, what } = asked;
        let now = Instant::now();
        match what {
            What::GiveBack => self.holder.lock().give_back(service, &claimant, sequence, now),
            What::Bind { instance, peer } => {
                self.holder.lock().bind(service, &claimant, sequence, (instance, peer), now);
            }
            What::Claim { limit, ttl } => {
                return self.granted(service, &claimant, sequence, limit, ttl).await.map(told);
            }
        }
        Ok(proto::ClaimResponse::default())
    }

    /// Whether this holder grants one more, after it has looked where it has to.
    pub(crate) async fn granted(
        &self,
        service: ServiceHash,
        claimant: &Claimant,
        sequence: u64,
        limit: u32,
        ttl: Duration,
    ) -> Result<Answer> {
        let ask = || {
            let now = Instant::now();
            self.holder.lock().claim(service, claimant, sequence, limit, ttl, now)
        };
        let last = Instant::now() + LAST_LOOK;
        for _ in 0..LOOKS {
            let answer = ask()?;
            if !matches!(answer, Answer::LookEverywhere | Answer::LookAt(_)) {
                return Ok(answer);
            }
            let Ok(_place) = timeout_at(last, self.holder.surveys.acquire()).await else { break };
            // Whoever had the place may have looked for the same.
            let survey = match ask()? {
                Answer::LookEverywhere => self.look_everywhere(service).await,
                Answer::LookAt(peers) => self.look_at(service, &peers).await,
                answer => return Ok(answer),
            };
            self.holder.lock().surveyed(service, &survey);
        }
        Ok(match ask()? {
            Answer::LookEverywhere | Answer::LookAt(_) => self.holder.lock().undecided(service),
            answer => answer,
        })
    }

    async fn look_everywhere(&self, service: ServiceHash) -> Survey {
        let begun = Instant::now();
        let by = begun + LOOK;
        let mut known: HashMap<PeerId, Arc<Endpoint>> = HashMap::new();
        let all = self.discovery.known().into_iter();
        for endpoint in all.filter(|endpoint| endpoint.has(Role::Allocator)) {
            known.insert(endpoint.peer, endpoint);
        }
        let mut finding = self.discovery.find(Key::Service(service));
        while let Ok(Some(found)) = timeout_at(begun + FIND, finding.next()).await {
            match found {
                Found::Endpoint(endpoint) => drop(known.insert(endpoint.peer, endpoint)),
                Found::Miss => break,
            }
        }
        let asked = known
            .values()
            .take(MAX_ASKED)
            .map(|endpoint| async { (endpoint.peer, self.ask(service, endpoint, by).await) });
        let mut said: HashMap<_, _> = join_all(asked).await.into_iter().collect();
        said.insert(self.discovery.local(), Said::Runs(self.own_of(service)));
        Survey { begun, everywhere: true, said }
    }

    async fn look_at(&self, service: ServiceHash, peers: &[PeerId]) -> Survey {
        let begun = Instant::now();
        let by = begun + LOOK;
        let asked = peers.iter().map(|peer| async move {
            if *peer == self.discovery.local() {
                return (*peer, Said::Runs(self.own_of(service)));
            }
            if self.holder.mesh.is_silent(*peer) {
                return (*peer, Said::Gone);
            }
            let said = match timeout_at(by, self.discovery.endpoint(*peer)).await {
                Ok(Ok(endpoint)) => self.ask(service, &endpoint, by).await,
                Ok(Err(_)) | Err(_) => Said::Slow,
            };
            (*peer, said)
        });
        let said = join_all(asked).await.into_iter().collect();
        Survey { begun, everywhere: false, said }
    }

    fn own_of(&self, service: ServiceHash) -> Vec<Running> {
        let books = self.lock();
        let own = books.table.live().filter(|entry| entry.hash == service && counts(entry));
        let own = own.map(|entry| Running { instance: entry.id, claimant: entry.claimant() });
        own.collect()
    }

    /// What a peer runs, as far as it says so until `by`. One that is slow is probed from now
    /// on, so that it becomes known soon if it is dead.
    async fn ask(&self, service: ServiceHash, at: &Endpoint, by: Instant) -> Said {
        let mesh = &self.holder.mesh;
        if mesh.is_silent(at.peer) {
            return Said::Gone;
        }
        let asking = async {
            match self.listed(service, at).await {
                // A connection may just have been given up by the other end.
                Err(error) if error.kind() == Kind::Unavailable && !is_refusal(&error) => {
                    self.listed(service, at).await
                }
                listed => listed,
            }
        };
        match timeout_at(by, asking).await {
            Ok(Ok(answer)) => {
                let peer = at.peer.to_string();
                // A peer speaks for itself alone.
                let its = answer.instances.iter().filter(|one| one.peer == peer);
                Said::Runs(its.filter_map(running).collect())
            }
            Ok(Err(error)) if is_refusal(&error) => Said::Gone,
            Ok(Err(_)) | Err(_) => {
                mesh.watch(at);
                Said::Slow
            }
        }
    }

    async fn listed(
        &self,
        service: ServiceHash,
        at: &Endpoint,
    ) -> Result<proto::ListInstancesResponse> {
        let which =
            proto::ListInstancesRequest { service_hash: service.to_string(), ..Default::default() };
        let mut client = InstancesClient::new(self.holder.mesh.grpc(at).await?);
        api::call("the allocator", LOOK, which, |which| client.list_instances(which)).await
    }
}

/// Whether nobody listens where the peer was.
fn is_refusal(error: &Error) -> bool {
    let cause = error.cause().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionRefused)
}

impl Entry {
    fn claimant(&self) -> Option<Claimant> {
        let (caller, request) = self.call.clone()?;
        let peer = match caller {
            Caller::Peer(peer) => Some(peer),
            Caller::Local => None,
        };
        Some(Claimant { peer, request })
    }
}

/// Whether it takes requests or will: one that drains makes room.
fn counts(entry: &Entry) -> bool {
    let View { state, reason, .. } = &*entry.view.borrow();
    reason.is_empty() && !state.is_ended() && *state != crate::lifecycle::State::Draining
}

fn running(instance: &proto::Instance) -> Option<Running> {
    use InstanceState as State;
    let counts = matches!(
        instance.state(),
        State::Pending | State::Fetching | State::Starting | State::Ready
    );
    let request = instance.request_id.parse().ok();
    let claimant =
        request.map(|request| Claimant { peer: instance.requested_by.parse().ok(), request });
    (counts && instance.reason.is_empty())
        .then_some(Running { instance: instance.id.parse().ok()?, claimant })
}

fn told(answer: Answer) -> proto::ClaimResponse {
    match answer {
        Answer::Taken { instances, claims } => proto::ClaimResponse {
            granted: false,
            instances: instances
                .into_iter()
                .map(|(instance, peer)| proto::ClaimedInstance {
                    instance: instance.to_string(),
                    peer: peer.to_string(),
                })
                .collect(),
            claims,
        },
        answer => proto::ClaimResponse { granted: answer == Answer::Granted, ..Default::default() },
    }
}
