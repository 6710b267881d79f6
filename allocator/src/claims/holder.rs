//! The acting part of a holder of claims: asks peers what they run when the table wants
//! to know, with deadlines, and otherwise does as the table says.

use std::{
    collections::HashMap,
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
    time::{Instant, timeout, timeout_at},
};

use super::{Answer, Claimant, Claims, Running, Survey};
use crate::{
    supervisor::Supervisor,
    table::{Entry, View},
};

/// Longest a peer may take to say what it runs, connecting included: it is either two
/// round trips away, or it does not answer, and somebody waits for a start.
const LOOK: Duration = Duration::from_secs(1);
/// How long a survey listens for peers that discovery knows and this node does not: as a
/// find waits at least for its first answer.
const FIND: Duration = Duration::from_millis(50);
/// Allocators asked in one survey: as many as a manager keeps in mind.
const MAX_ASKED: usize = 256;
/// Surveys at the same time. Those who wait for one find it done by another.
const SURVEYS: usize = 4;
/// Looks one claim may cause: everywhere, at what is left, and once more for what changed
/// meanwhile.
const LOOKS: usize = 4;

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
        Ok(Self { service, claimant: Claimant { peer, request: request_id }, what })
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
        let Asked { service, claimant, what } = asked;
        match what {
            What::GiveBack => self.holder.lock().give_back(service, &claimant),
            What::Bind { instance, peer } => {
                self.holder.lock().bind(service, &claimant, instance, peer, Instant::now());
            }
            What::Claim { limit, ttl } => {
                return self.granted(service, &claimant, limit, ttl).await.map(told);
            }
        }
        Ok(proto::ClaimResponse::default())
    }

    /// Whether this holder grants one more, after it has looked where it has to.
    pub(crate) async fn granted(
        &self,
        service: ServiceHash,
        claimant: &Claimant,
        limit: u32,
        ttl: Duration,
    ) -> Result<Answer> {
        let ask = || self.holder.lock().claim(service, claimant, limit, ttl, Instant::now());
        for _ in 0..LOOKS {
            let answer = ask()?;
            if !matches!(answer, Answer::LookEverywhere | Answer::LookAt(_)) {
                return Ok(answer);
            }
            let _place = self.holder.surveys.acquire().await;
            // Whoever had the place may have looked for the same.
            let survey = match ask()? {
                Answer::LookEverywhere => self.look_everywhere(service).await,
                Answer::LookAt(peers) => self.look_at(service, &peers).await,
                answer => return Ok(answer),
            };
            self.holder.lock().surveyed(service, &survey);
        }
        Err(Error::new(Kind::Unavailable, "what runs changes faster than it can be counted"))
    }

    async fn look_everywhere(&self, service: ServiceHash) -> Survey {
        let begun = Instant::now();
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
            .map(|endpoint| async { (endpoint.peer, self.ask(service, endpoint).await) });
        let mut said: HashMap<_, _> = join_all(asked).await.into_iter().collect();
        said.insert(self.discovery.local(), Some(self.own_of(service)));
        Survey { begun, everywhere: true, said }
    }

    async fn look_at(&self, service: ServiceHash, peers: &[PeerId]) -> Survey {
        let begun = Instant::now();
        let asked = peers.iter().map(|peer| async {
            if *peer == self.discovery.local() {
                return (*peer, Some(self.own_of(service)));
            }
            let endpoint = timeout(LOOK, self.discovery.endpoint(*peer)).await;
            let said = match endpoint {
                Ok(Ok(endpoint)) => self.ask(service, &endpoint).await,
                _ => None,
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

    /// What a peer runs, if it answers.
    async fn ask(&self, service: ServiceHash, at: &Endpoint) -> Option<Vec<Running>> {
        let mesh = &self.holder.mesh;
        if mesh.is_silent(at.peer) {
            return None;
        }
        let which =
            proto::ListInstancesRequest { service_hash: service.to_string(), ..Default::default() };
        let asking = async {
            let mut client = InstancesClient::new(mesh.grpc(at).await?);
            api::call("the allocator", LOOK, which, |which| client.list_instances(which)).await
        };
        let answer = timeout(LOOK, asking).await.ok()?.ok()?;
        let peer = at.peer.to_string();
        // A peer speaks for itself alone.
        let its = answer.instances.iter().filter(|one| one.peer == peer);
        Some(its.filter_map(running).collect())
    }
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
