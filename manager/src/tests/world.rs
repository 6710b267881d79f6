//! A network of fakes around real managers: a registry, allocators that do as they are
//! told, and distances set by hand.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::{StreamExt as _, TryStreamExt as _};
use lca::{
    Digest, Error, InstanceId, Kind, PeerId, Result, ServiceHash, Spec,
    api::{
        Caller,
        proto::{
            self, AllocateRequest, Instance, InstanceState,
            allocator_server::{Allocator, AllocatorServer},
            instance_event::Event,
            instances_server::{Instances, InstancesServer},
        },
    },
    discovery::{
        Discovery, Key,
        memory::{Network, Peer},
    },
    endpoint::Role,
    mesh::Mesh,
    shutdown::Tasks,
    specs::{self, Specs},
};
use tokio::{
    sync::{Semaphore, broadcast},
    time::Instant,
};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status, service::Routes};

use super::registry::FakeRegistry;
use crate::{Config, Manager, Target, Wish, relay::Relayed};

/// Longest anything may take in a test, by the test's clock.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The name of the service of most tests.
pub(crate) const HELLO: &str = "hello";

pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) registry_peer: Peer,
    pub(crate) registry: FakeRegistry,
    tasks: Mutex<Tasks>,
}

/// A node with a manager.
pub(crate) struct Client {
    pub(crate) peer: Peer,
    pub(crate) manager: Manager,
}

impl World {
    /// A network with a registry that knows these specs.
    pub(crate) fn with(specs: impl IntoIterator<Item = proto::ServiceSpec>) -> Self {
        let network = Network::default();
        let registry = FakeRegistry::default();
        specs.into_iter().for_each(|spec| registry.put(spec));
        let registry_peer = network.join(&[Role::Registry]);
        registry_peer.serve(Routes::new(registry.clone().into_server()));
        Self { network, registry_peer, registry, tasks: Mutex::default() }
    }

    /// A network whose registry knows [`HELLO`] without requirements.
    pub(crate) fn new() -> Self {
        Self::with([spec(HELLO)])
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(Config::default())
    }

    pub(crate) fn client_with(&self, config: Config) -> Client {
        let peer = self.network.join(&[Role::Proxy]);
        self.client_at(peer.clone(), Arc::new(peer), config)
    }

    /// A client that discovers through `discovery`.
    pub(crate) fn client_at(
        &self,
        peer: Peer,
        discovery: Arc<dyn Discovery>,
        config: Config,
    ) -> Client {
        let mesh: Arc<dyn Mesh> = Arc::new(peer.clone());
        let spawner = self.tasks.lock().unwrap().spawner();
        let ttl = Duration::from_secs(2);
        let specs = specs::Config { ttl, ..Default::default() };
        let specs = Specs::start(specs, discovery.clone(), mesh.clone(), &spawner).unwrap();
        let manager = Manager::start(config, specs, discovery, mesh, &spawner);
        Client { peer, manager }
    }

    /// An allocator that starts whatever it is asked for.
    pub(crate) fn allocator(&self) -> FakeAllocator {
        self.allocator_that(Behaviour::Starts)
    }

    pub(crate) fn allocator_that(&self, behaviour: Behaviour) -> FakeAllocator {
        let peer = self.network.join(&[Role::Allocator]);
        let state = State {
            behaviour,
            instances: Vec::new(),
            asked: Vec::new(),
            claimed: Vec::new(),
            intents: HashMap::new(),
            taken: None,
            cached: Vec::new(),
            drivers: vec!["process".into()],
            claim_error: None,
            lists_after: Duration::ZERO,
        };
        let (state, feed) = (Arc::new(Mutex::new(state)), broadcast::Sender::new(64));
        let allocator = FakeAllocator { peer, state, feed };
        allocator.peer.serve(
            Routes::new(AllocatorServer::new(allocator.clone()))
                .add_service(InstancesServer::new(allocator.clone())),
        );
        allocator
    }

    /// Stops everything that the managers have spawned. True if nothing was forced.
    pub(crate) async fn drain(&self) -> bool {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        tasks.drain(PATIENCE).await
    }

    pub(crate) fn distance(&self, client: &Client, allocator: &FakeAllocator, ms: u64) {
        let rtt = Duration::from_millis(ms);
        self.network.set_rtt(client.peer.local(), allocator.id(), rtt);
    }
}

impl Client {
    pub(crate) async fn pick(&self) -> Result<Target> {
        self.manager.pick(wish(HELLO)).await
    }
}

pub(crate) fn wish(service: &str) -> Wish {
    Wish::new(service.parse().unwrap(), Instant::now() + PATIENCE)
}

/// A spec with defaults and a program of its own.
pub(crate) fn spec(name: &str) -> proto::ServiceSpec {
    let artifact = Digest::of(name.as_bytes()).to_string();
    proto::ServiceSpec { name: name.into(), artifact, ..Default::default() }
}

pub(crate) fn hash_of(spec: &proto::ServiceSpec) -> ServiceHash {
    Spec::try_from(spec.clone()).unwrap().hash()
}

/// What a fake allocator does when it is asked to start something.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Starts,
    /// Starts or stops one for each permit.
    Waits(Arc<Semaphore>),
    /// Begins one at once, which is ready after so long, whether or not the caller waits.
    Takes(Duration),
    Refuses(Error),
    /// Never answers, whatever it is asked.
    Hangs,
    /// Starts this, and refuses whatever else the service is said to be.
    StartsOnly(ServiceHash),
}

impl Behaviour {
    pub(crate) fn full(of: &str) -> Self {
        Self::Refuses(Error::new(Kind::NoCapacity, of))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct FakeAllocator {
    pub(crate) peer: Peer,
    state: Arc<Mutex<State>>,
    /// What its watchers are told; `None` breaks off.
    feed: broadcast::Sender<Option<Event>>,
}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    instances: Vec<Instance>,
    asked: Vec<AllocateRequest>,
    claimed: Vec<proto::ClaimRequest>,
    /// Who was the first to say that it is about to have a service started, and where.
    intents: HashMap<String, (Caller, String)>,
    /// What it says to claims; `None`: granted.
    taken: Option<proto::ClaimResponse>,
    cached: Vec<String>,
    drivers: Vec<String>,
    /// What it refuses claims with, if it does.
    claim_error: Option<Error>,
    /// How long it takes to say what it runs.
    lists_after: Duration,
}

impl FakeAllocator {
    pub(crate) fn id(&self) -> PeerId {
        self.peer.local()
    }

    /// What it was asked to start.
    pub(crate) fn asked(&self) -> Vec<AllocateRequest> {
        self.lock().asked.clone()
    }

    /// What it was told of claims.
    pub(crate) fn claimed(&self) -> Vec<proto::ClaimRequest> {
        self.lock().claimed.clone()
    }

    /// What it says from now on to whoever claims; `None`: granted.
    pub(crate) fn says_taken(&self, taken: Option<proto::ClaimResponse>) {
        self.lock().taken = taken;
    }

    /// Takes so long from now on to say what it runs.
    pub(crate) fn lists_after(&self, time: Duration) {
        self.lock().lists_after = time;
    }

    /// What it refuses all claims with from now on, if it does.
    pub(crate) fn refuses_claims(&self, error: Option<Error>) {
        self.lock().claim_error = error;
    }

    /// Starts an instance by itself and announces it.
    pub(crate) async fn runs(&self, spec: &proto::ServiceSpec) -> InstanceId {
        let hash = hash_of(spec);
        self.peer.announce(Key::Service(hash)).await.unwrap();
        self.runs_quietly(spec, InstanceId::random())
    }

    /// Starts an instance that nobody is told of.
    pub(crate) fn runs_quietly(&self, spec: &proto::ServiceSpec, id: InstanceId) -> InstanceId {
        let instance = self.instance(&spec.name, &hash_of(spec).to_string(), id);
        self.lock().instances.push(instance);
        id
    }

    /// Puts an instance of it into another state.
    pub(crate) fn set(&self, id: InstanceId, state: InstanceState) {
        for instance in &mut self.lock().instances {
            if instance.id == id.to_string() {
                instance.state = state.into();
            }
        }
    }

    /// Makes it claim that an instance of it lives on another peer.
    pub(crate) fn set_peer(&self, id: InstanceId, peer: PeerId) {
        for instance in &mut self.lock().instances {
            if instance.id == id.to_string() {
                instance.peer = peer.to_string();
            }
        }
    }

    /// Tells its watchers; `None` breaks off.
    pub(crate) fn tell(&self, event: Option<Event>) {
        self.feed.send(event).unwrap();
    }

    /// Does this from now on.
    pub(crate) fn becomes(&self, behaviour: Behaviour) {
        self.lock().behaviour = behaviour;
    }

    /// Whether anybody follows what it has.
    pub(crate) fn is_watched(&self) -> bool {
        self.feed.receiver_count() > 0
    }

    /// It has an engine for containers.
    pub(crate) fn runs_images(&self) {
        self.lock().drivers = vec!["process".into(), "docker".into()];
    }

    /// It has the program of `spec` and need not fetch it.
    pub(crate) fn has(&self, spec: &proto::ServiceSpec) {
        self.lock().cached.push(spec.artifact.clone());
    }

    /// Its instances are working on so many requests.
    pub(crate) fn is_used(&self, in_flight: u32) {
        for instance in &mut self.lock().instances {
            instance.load = Some(proto::Load { in_flight, ..Default::default() });
        }
    }

    /// Its only instance is no more, and nobody is told.
    pub(crate) fn loses_all(&self) {
        self.lock().instances.clear();
    }

    pub(crate) fn instances(&self) -> Vec<Instance> {
        self.lock().instances.clone()
    }

    fn instance(&self, service: &str, hash: &str, id: InstanceId) -> Instance {
        Instance {
            id: id.to_string(),
            service: service.to_owned(),
            service_hash: hash.to_owned(),
            peer: self.id().to_string(),
            state: InstanceState::Ready.into(),
            ..Default::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// For ever, if that is what it does.
    async fn hang(&self) {
        let hangs = matches!(self.lock().behaviour, Behaviour::Hangs);
        if hangs {
            std::future::pending().await
        }
    }
}

#[tonic::async_trait]
impl Allocator for FakeAllocator {
    type LogsStream = Relayed<proto::LogChunk>;

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<proto::AllocateResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let behaviour = {
            let mut state = self.lock();
            state.asked.push(request.clone());
            state.behaviour.clone()
        };
        match behaviour {
            Behaviour::Starts => {}
            Behaviour::Waits(permits) => permits.acquire().await.unwrap().forget(),
            Behaviour::Takes(time) => {
                let answer = |instance| {
                    let instance = Some(instance);
                    Ok(Response::new(proto::AllocateResponse { instance, ..Default::default() }))
                };
                let same = |one: &Instance| one.request_id == request.request_id;
                if let Some(before) = self.instances().into_iter().find(same) {
                    return answer(before);
                }
                let id = InstanceId::random();
                let mut begun = self.instance(&request.service, &request.service_hash, id);
                begun.state = InstanceState::Starting.into();
                begun.request_id = request.request_id.clone();
                if let Caller::Peer(peer) = caller {
                    begun.requested_by = peer.to_string();
                }
                self.lock().instances.push(begun);
                let this = self.clone();
                let ready = tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    this.set(id, InstanceState::Ready);
                });
                ready.await.unwrap();
                let this = |one: &Instance| one.id == id.to_string();
                return answer(self.instances().into_iter().find(this).unwrap());
            }
            Behaviour::Hangs => std::future::pending().await,
            Behaviour::Refuses(error) => return Err(error.into()),
            Behaviour::StartsOnly(hash) if request.service_hash != hash.to_string() => {
                return Err(Error::new(Kind::FailedPrecondition, "not as asked for").into());
            }
            Behaviour::StartsOnly(_) => {}
        }
        let mut state = self.lock();
        let ready = state.instances.iter().find(|instance| {
            instance.service_hash == request.service_hash
                && instance.state() == InstanceState::Ready
                && request.mode() != proto::allocate_request::Mode::New
        });
        let joined = ready.cloned();
        let instance = joined.clone().unwrap_or_else(|| {
            self.instance(&request.service, &request.service_hash, InstanceId::random())
        });
        if joined.is_none() {
            state.instances.push(instance.clone());
        }
        let steps =
            vec![proto::Step { name: "spawn".into(), duration_us: 7, ..Default::default() }];
        Ok(Response::new(proto::AllocateResponse {
            instance: Some(instance),
            joined: joined.is_some(),
            steps,
        }))
    }

    async fn claim(
        &self,
        request: Request<proto::ClaimRequest>,
    ) -> Result<Response<proto::ClaimResponse>, Status> {
        self.lock().claimed.push(request.into_inner());
        self.hang().await;
        let state = self.lock();
        if let Some(error) = &state.claim_error {
            return Err(error.clone().into());
        }
        let granted = proto::ClaimResponse { granted: true, ..Default::default() };
        Ok(Response::new(state.taken.clone().unwrap_or(granted)))
    }

    async fn intend(
        &self,
        request: Request<proto::IntendRequest>,
    ) -> Result<Response<proto::IntendResponse>, Status> {
        let caller = Caller::of(&request);
        let proto::IntendRequest { service_hash, peer } = request.into_inner();
        let first = match self.lock().intents.entry(service_hash.clone()) {
            Entry::Occupied(first) if first.get().0 != caller => first.get().1.clone(),
            other => other.insert_entry((caller, peer)).get().1.clone(),
        };
        self.hang().await;
        let after = self.lock().lists_after;
        tokio::time::sleep(after).await;
        let mut begun = self.instances();
        begun.retain(|one| {
            use InstanceState::{Fetching, Pending, Ready, Starting};
            one.service_hash == service_hash
                && [Pending, Fetching, Starting, Ready].contains(&one.state())
        });
        let instances = begun.into_iter().map(|one| one.id).collect();
        Ok(Response::new(proto::IntendResponse { instances, peer: first }))
    }

    async fn release(
        &self,
        request: Request<proto::ReleaseRequest>,
    ) -> Result<Response<proto::ReleaseResponse>, Status> {
        let id: InstanceId = request.into_inner().instance.parse().map_err(Error::from)?;
        let behaviour = self.lock().behaviour.clone();
        if let Behaviour::Waits(permits) = behaviour {
            permits.acquire().await.unwrap().forget();
        }
        self.set(id, InstanceState::Stopped);
        let instance = self.instances().into_iter().find(|one| one.id == id.to_string());
        Ok(Response::new(proto::ReleaseResponse { instance }))
    }

    async fn describe(
        &self,
        _request: Request<proto::DescribeRequest>,
    ) -> Result<Response<proto::DescribeResponse>, Status> {
        self.hang().await;
        let capacity = |instances| Some(proto::Capacity { instances, ..Default::default() });
        let used = capacity(self.instances().len() as u32);
        let total = Some(proto::Capacity { cpu_millis: 8000, memory_bytes: 8 << 30, instances: 8 });
        let cached_artifacts = self.lock().cached.clone();
        Ok(Response::new(proto::DescribeResponse {
            total,
            used,
            cached_artifacts,
            drivers: self.lock().drivers.clone(),
            ..Default::default()
        }))
    }

    async fn logs(
        &self,
        request: Request<proto::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let id = request.into_inner().instance;
        let chunk = |text: String| Ok(proto::LogChunk { data: text.into_bytes().into() });
        let chunks = [chunk(format!("log of {id}\n")), chunk("the end\n".to_owned())];
        Ok(Response::new(Box::pin(futures::stream::iter(chunks))))
    }
}

#[tonic::async_trait]
impl Instances for FakeAllocator {
    type WatchInstancesStream = Relayed<proto::InstanceEvent>;

    async fn watch_instances(
        &self,
        request: Request<proto::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let service = request.into_inner().service;
        self.hang().await;
        let changes = BroadcastStream::new(self.feed.subscribe());
        let mut there = self.instances();
        there.retain(|instance| service.is_empty() || service == instance.service);
        let total = Some(proto::Capacity { instances: 8, ..Default::default() });
        let capacity = proto::PeerCapacity { total, ..Default::default() };
        let now = there.into_iter().map(Event::Put);
        let now = now.chain([Event::Capacity(capacity), Event::Synced(true)]);
        let now = futures::stream::iter(now.map(|event| Some(Ok(event))));
        // `None` ends it: the allocator breaks off.
        // One that lags is patient here.
        let then = changes.filter_map(|change| std::future::ready(change.ok()));
        let then = then.map(|event| event.map(Ok));
        let events = now.chain(then).take_while(|event| std::future::ready(event.is_some()));
        let events = events.filter_map(std::future::ready);
        Ok(Response::new(Box::pin(
            events.map_ok(|event| proto::InstanceEvent { event: Some(event) }),
        )))
    }

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Result<Response<proto::ListInstancesResponse>, Status> {
        self.hang().await;
        let after = self.lock().lists_after;
        tokio::time::sleep(after).await;
        let which = request.into_inner();
        let mut instances = self.instances();
        instances.retain(|instance| {
            (which.service.is_empty() || which.service == instance.service)
                && (which.service_hash.is_empty() || which.service_hash == instance.service_hash)
                && (which.include_ended || instance.state() != InstanceState::Stopped)
        });
        Ok(Response::new(proto::ListInstancesResponse { instances, ..Default::default() }))
    }
}
