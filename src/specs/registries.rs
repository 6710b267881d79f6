//! Which registries there are, nearest first, and asking them for a name.
//!
//! The DHT is asked now and then in the background, and on the request path only when
//! no registry that is known answers. One that has just failed is tried last.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::join_all};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::transport::Channel;

use crate::{
    Error, Kind, PeerId, Result, ServiceName, Spec,
    api::{
        self,
        proto::{self, registry_client::RegistryClient},
    },
    discovery::{Discovery, Finding, Found, Key},
    endpoint::{Endpoint, Role},
    mesh::Mesh,
};

/// Longest a registry may take to be connected to and to answer for one name, before
/// the next is asked: ten times a bad round trip.
const ANSWER: Duration = Duration::from_millis(1500);
/// Longest a connection alone may take.
const CONNECT: Duration = Duration::from_millis(1500);
/// Longest all of them may take together.
const ALL_ANSWERS: Duration = Duration::from_secs(5);
/// Longest wait for a registry to be found while somebody waits for it.
const FIND: Duration = Duration::from_secs(1);
/// Longest a probe may take when registries are put in order.
const PROBE: Duration = Duration::from_secs(1);
/// How long a failure counts against a registry.
const DISTRUST: Duration = Duration::from_secs(10);
/// Registries remembered; more than one network needs.
const MAX_REGISTRIES: usize = 64;

/// The way to the registries of the network.
#[derive(Debug)]
pub(super) struct Registries {
    discovery: Arc<dyn Discovery>,
    mesh: Arc<dyn Mesh>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// Those that a find has yielded.
    found: HashMap<PeerId, Arc<Endpoint>>,
    /// When those that failed did.
    failed: HashMap<PeerId, Instant>,
}

/// What the registries say of a name.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is this.
    Spec {
        /// The spec.
        spec: Box<Spec>,
        /// Who says so.
        from: PeerId,
    },
    /// All that can be reached say that there is none; these cannot.
    Denied {
        /// Those that did not answer.
        silent: HashSet<PeerId>,
    },
    /// None can be reached.
    Silence,
}

impl Registries {
    pub(super) fn new(discovery: Arc<dyn Discovery>, mesh: Arc<dyn Mesh>) -> Self {
        Self { discovery, mesh, memory: Mutex::default() }
    }

    pub(super) fn mesh(&self) -> &dyn Mesh {
        &*self.mesh
    }

    /// The registries that are known, to be tried in this order, the nearest first.
    pub(super) fn candidates(&self) -> Candidates<'_> {
        let mut queue = self.known();
        let now = Instant::now();
        queue.sort_by_cached_key(|registry| {
            let failed = self.memory().failed.get(&registry.peer).copied();
            let distrusted = failed.is_some_and(|at| now.saturating_duration_since(at) < DISTRUST);
            (distrusted, self.mesh.rtt(registry.peer).unwrap_or(Duration::MAX))
        });
        let tried = queue.iter().map(|registry| registry.peer).collect();
        let mut candidates =
            Candidates { registries: self, queue: queue.into(), tried, finding: None };
        if candidates.queue.is_empty() {
            candidates.search();
        }
        candidates
    }

    /// As [`candidates`](Self::candidates), after measuring those that never were; those
    /// that do not answer a probe come last.
    pub(super) async fn measured(&self) -> Candidates<'_> {
        let known = self.known();
        let probes = known.iter().filter(|registry| self.mesh.rtt(registry.peer).is_none());
        join_all(probes.map(|registry| timeout(PROBE, self.mesh.measure(registry)))).await;
        self.candidates()
    }

    /// Looks for registries and remembers them. True if one was not known before.
    pub(super) async fn look(&self) -> bool {
        let mut news = false;
        let mut finding = self.discovery.find(Key::Role(Role::Registry));
        let deadline = Instant::now() + ANSWER;
        while let Ok(Some(found)) = timeout_at(deadline, finding.next()).await {
            if let Found::Endpoint(registry) = found {
                news |= self.remember(registry);
            }
        }
        news
    }

    /// A client of this registry.
    pub(super) async fn client(&self, to: &Endpoint) -> Result<RegistryClient<Channel>> {
        let connected = timeout(CONNECT, self.mesh.grpc(to)).await.unwrap_or_else(|_| {
            let what = format!("registry {} cannot be reached", to.peer.short());
            Err(Error::new(Kind::Unavailable, what))
        });
        match connected {
            Ok(channel) => {
                Ok(RegistryClient::new(channel).max_decoding_message_size(api::MAX_ANSWER))
            }
            Err(error) => {
                self.failed(to.peer, &error);
                Err(error)
            }
        }
    }

    /// Asks for a name. The first answer with at least the revision `least` counts; if
    /// there is only older word, the latest of it.
    pub(super) async fn ask(&self, name: &ServiceName, least: u64) -> Answer {
        let mut best: Option<(Spec, PeerId)> = None;
        let mut silent = HashSet::new();
        let mut denied = false;
        let deadline = Instant::now() + ALL_ANSWERS;
        let mut candidates = self.candidates();
        while let Ok(Some(registry)) = timeout_at(deadline, candidates.next()).await {
            let peer = registry.peer;
            match self.ask_one(&registry, name).await {
                Ok(spec) if spec.revision >= least => {
                    return Answer::Spec { spec: Box::new(spec), from: peer };
                }
                Ok(spec) => {
                    if best.as_ref().is_none_or(|(best, _)| best.revision < spec.revision) {
                        best = Some((spec, peer));
                    }
                }
                Err(error) if error.kind() == Kind::NotFound => denied = true,
                Err(error) => {
                    self.failed(peer, &error);
                    silent.insert(peer);
                }
            }
            // Looking further is for when nobody has said anything.
            if candidates.is_exhausted() && !denied && best.is_none() {
                candidates.search();
            }
        }
        match best {
            Some((spec, from)) => Answer::Spec { spec: Box::new(spec), from },
            None if denied => Answer::Denied { silent },
            None => Answer::Silence,
        }
    }

    async fn ask_one(&self, registry: &Endpoint, name: &ServiceName) -> Result<Spec> {
        let who = format!("registry {}", registry.peer.short());
        let answer = async {
            let mut client = self.client(registry).await?;
            let request = proto::GetServiceRequest { name: name.to_string() };
            api::call(&who, ANSWER, request, |request| client.get_service(request)).await
        };
        let late = |_| Err(Error::new(Kind::Timeout, format!("{who} did not answer")));
        let answer = timeout(ANSWER, answer).await.unwrap_or_else(late)?;
        let spec = Spec::try_from(answer.spec.unwrap_or_default()).map_err(|error| {
            Error::new(Kind::Internal, format!("{who} sent what is no spec")).because(error)
        })?;
        if spec.name != *name || answer.stale {
            return Err(Error::new(Kind::Internal, format!("{who} answered something else")));
        }
        Ok(spec)
    }

    /// Notes that a registry did not do what it is for.
    pub(super) fn failed(&self, peer: PeerId, error: &Error) {
        tracing::debug!(registry = %peer.short(), error = error.chain(), "registry failed");
        if !is_answer(error) {
            self.discovery.forget(peer);
        }
        let mut memory = self.memory();
        let now = Instant::now();
        memory.failed.retain(|_, at| now.saturating_duration_since(*at) < DISTRUST);
        memory.failed.insert(peer, now);
    }

    /// This node if it is one, and all others that are known.
    pub(super) fn known(&self) -> Vec<Arc<Endpoint>> {
        let mut known = self.memory().found.clone();
        let others = self.discovery.known().into_iter();
        let all = others.chain([self.discovery.own()]).filter(|peer| peer.has(Role::Registry));
        known.extend(all.map(|registry| (registry.peer, registry)));
        known.into_values().collect()
    }

    /// True if it is new.
    fn remember(&self, registry: Arc<Endpoint>) -> bool {
        let mut memory = self.memory();
        if memory.found.len() >= MAX_REGISTRIES && !memory.found.contains_key(&registry.peer) {
            // Any may go: those that live are found again.
            let gone = memory.found.keys().next().copied();
            gone.map(|peer| memory.found.remove(&peer));
        }
        memory.found.insert(registry.peer, registry).is_none()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Held for a few instructions that leave it whole.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a registry has said this itself, so that it is there, unlike one that cannot
/// be reached, does not answer, or breaks off.
pub(super) fn is_answer(error: &Error) -> bool {
    !matches!(error.kind(), Kind::Unavailable | Kind::Timeout | Kind::Internal)
}

/// Registries to try, one after the other.
pub(super) struct Candidates<'a> {
    registries: &'a Registries,
    queue: VecDeque<Arc<Endpoint>>,
    tried: HashSet<PeerId>,
    finding: Option<(Finding, Instant)>,
}

impl Candidates<'_> {
    /// The next one to try. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Arc<Endpoint>> {
        if let Some(next) = self.queue.pop_front() {
            return Some(next);
        }
        let (finding, deadline) = self.finding.as_mut()?;
        while let Ok(Some(found)) = timeout_at(*deadline, finding.next()).await {
            if let Found::Endpoint(registry) = found
                && self.tried.insert(registry.peer)
            {
                self.registries.remember(registry.clone());
                return Some(registry);
            }
        }
        None
    }

    /// Whether all that are known have been handed out.
    pub(super) fn is_exhausted(&self) -> bool {
        self.queue.is_empty()
    }

    /// Goes on with those that a find yields. It ends within a second.
    pub(super) fn search(&mut self) {
        if self.finding.is_none() {
            let finding = self.registries.discovery.find(Key::Role(Role::Registry));
            self.finding = Some((finding, Instant::now() + FIND));
        }
    }
}
