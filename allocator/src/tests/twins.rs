//! An allocator with twins around it, and what tests ask of it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use lca::{
    Digest, Error, InstanceId, Kind, PeerId, Result, ServiceName, Spec,
    api::{Caller, proto},
    discovery::memory::{Network, Peer},
    endpoint::Role,
    headers::Load,
    shutdown::Tasks,
    testing::eventually,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Request, service::Routes};

use crate::{
    Allocator, Bridge, Capacity, Config, Fronts, OpenFront, Parts, Timing,
    driver::{Driver, Drivers},
    ledger::{Ledger, Left},
    outside::{Catalog, Door, Gate, Known, Local},
};

pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Specs and artifacts of which a test decides everything.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    pub(super) specs: Mutex<HashMap<ServiceName, Spec>>,
    /// What `get` still believes, if not the truth.
    pub(super) stale: Mutex<HashMap<ServiceName, Spec>>,
    pub(super) programs: Mutex<HashMap<Digest, PathBuf>>,
    pub(super) fetch_takes: Mutex<Duration>,
}

#[async_trait]
impl Catalog for Shelf {
    async fn get(&self, name: &ServiceName) -> Result<Known> {
        let stale = self.stale.lock().unwrap().get(name).cloned();
        match stale {
            Some(spec) => Ok(Known { hash: spec.hash(), spec }),
            None => self.refresh(name).await,
        }
    }

    async fn refresh(&self, name: &ServiceName) -> Result<Known> {
        let spec = self.specs.lock().unwrap().get(name).cloned();
        let spec = spec.ok_or_else(|| Error::new(Kind::NotFound, format!("no service {name}")))?;
        Ok(Known { hash: spec.hash(), spec })
    }

    async fn fetch(&self, digest: Digest) -> Result<PathBuf> {
        let takes = *self.fetch_takes.lock().unwrap();
        sleep(takes).await;
        let program = self.programs.lock().unwrap().get(&digest).cloned();
        program.ok_or_else(|| Error::new(Kind::Unavailable, format!("nobody has {digest}")))
    }

    fn kept(&self) -> Vec<Known> {
        let specs = self.specs.lock().unwrap();
        let kept = specs.values().filter(|spec| spec.min_instances > 0);
        kept.map(|spec| Known { hash: spec.hash(), spec: spec.clone() }).collect()
    }

    fn cached(&self) -> Vec<Digest> {
        self.programs.lock().unwrap().keys().copied().collect()
    }
}

/// An ingress whose requests are counted by hand.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    doors: Arc<Mutex<HashMap<InstanceId, std::sync::Weak<Way>>>>,
}

#[derive(Debug)]
pub(super) struct Way {
    pub(super) local: Local,
    pub(super) open: watch::Sender<u32>,
    pub(super) draining: watch::Sender<bool>,
    /// How often somebody was sent here.
    pub(super) touched: watch::Sender<u32>,
}

impl Ways {
    /// The way in to an instance, while it is registered.
    pub(super) fn to(&self, id: InstanceId) -> Option<Arc<Way>> {
        self.doors.lock().unwrap().get(&id)?.upgrade()
    }
}

impl Gate for Ways {
    fn open(&self, local: Local) -> Arc<dyn Door> {
        let (open, draining) = (watch::Sender::new(0), watch::Sender::new(false));
        let id = local.instance;
        let touched = watch::Sender::new(0);
        let way = Arc::new(Way { local, open, draining, touched });
        self.doors.lock().unwrap().insert(id, Arc::downgrade(&way));
        way
    }
}

#[async_trait]
impl Door for Way {
    fn drain(&self) {
        self.draining.send_replace(true);
    }

    fn drain_if_idle(&self, _: Duration) -> bool {
        let idle = *self.open.borrow() == 0;
        self.draining.send_replace(idle);
        idle
    }

    fn touch(&self) {
        self.touched.send_modify(|touched| *touched += 1);
    }

    fn load(&self) -> Load {
        Load { in_flight: *self.open.borrow(), limit: self.local.limit, ..Load::default() }
    }

    /// Counts from the call.
    async fn idle_for(&self, time: Duration) {
        let (mut open, mut touched) = (self.open.subscribe(), self.touched.subscribe());
        loop {
            drop(open.wait_for(|open| *open == 0).await);
            tokio::select! {
                _ = open.wait_for(|open| *open > 0) => {}
                _ = touched.changed() => {}
                () = sleep(time) => return,
            }
        }
    }

    async fn used_within(&self, _: Duration) {
        let (mut open, mut touched) = (self.open.subscribe(), self.touched.subscribe());
        tokio::select! {
            _ = open.wait_for(|open| *open > 0) => {}
            _ = touched.changed() => {}
        }
    }

    async fn drained(&self) {
        drop(self.open.subscribe().wait_for(|open| *open == 0).await);
    }
}

/// Fronts that are told apart by their port, and counted.
#[derive(Debug, Default)]
pub(super) struct Doors {
    pub(super) open: Arc<()>,
    /// The ports that were asked for.
    pub(super) asked: Mutex<Vec<Option<u16>>>,
}

#[async_trait]
impl Fronts for Doors {
    async fn open(
        &self,
        _: &ServiceName,
        _: InstanceId,
        port: Option<u16>,
        _: Option<Bridge>,
    ) -> Result<OpenFront> {
        self.asked.lock().unwrap().push(port);
        Ok(OpenFront {
            address: ([127, 0, 0, 1], port.unwrap_or(4999)).into(),
            guard: Box::new(self.open.clone()),
        })
    }
}

/// One allocator, and everything around it.
pub(super) struct World {
    pub(super) allocator: Allocator,
    pub(super) shelf: Arc<Shelf>,
    pub(super) ways: Ways,
    pub(super) fronts: Arc<Doors>,
    pub(super) own: Peer,
    pub(super) other: Peer,
    pub(super) tasks: Tasks,
}

/// Deadlines short enough to be waited for.
pub(super) fn config() -> Config {
    Config {
        data_dir: PathBuf::new(),
        capacity: Capacity { cpu_millis: 100_000, memory_bytes: 1 << 40, instances: 1000 },
        told: crate::Told::default(),
        keep_instances: false,
        max_starting: 100,
        timing: Timing {
            fetch: Duration::from_secs(1),
            grace: Duration::from_millis(200),
            ..Timing::default()
        },
        metrics: lca::metrics::Metrics::default(),
    }
}

impl World {
    pub(super) async fn new(driver: Arc<dyn Driver>, config: Config) -> Self {
        let network = Network::default();
        let peers = (network.join(&[Role::Allocator]), network.join(&[]));
        Self::on(peers, Arc::default(), driver, config).await
    }

    /// Two allocators in one network.
    pub(super) async fn pair(
        network: &Network,
        one: Arc<dyn Driver>,
        two: Arc<dyn Driver>,
    ) -> (Self, Self) {
        let join = || (network.join(&[Role::Allocator]), network.join(&[]));
        let one = Self::on(join(), Arc::default(), one, config()).await;
        (one, Self::on(join(), Arc::default(), two, config()).await)
    }

    /// Two allocators that answer each other, both like this.
    pub(super) async fn peers(driver: Arc<dyn Driver>, config: Config) -> [Self; 2] {
        let network = Network::default();
        let mut worlds = Vec::new();
        for _ in 0..2 {
            let peers = (network.join(&[Role::Allocator]), network.join(&[]));
            let world = Self::on(peers, Arc::default(), driver.clone(), config.clone()).await;
            let routes = Routes::new(world.allocator.allocator_server());
            world.own.serve(routes.add_service(world.allocator.instances_server()));
            worlds.push(world);
        }
        worlds.try_into().ok().unwrap()
    }

    /// The next run of this allocator, after a crash or a stop.
    pub(super) async fn again(self, driver: Arc<dyn Driver>, config: Config) -> Self {
        let Self { own, other, shelf, .. } = self;
        Self::on((own, other), shelf, driver, config).await
    }

    async fn on(
        (own, other): (Peer, Peer),
        shelf: Arc<Shelf>,
        driver: Arc<dyn Driver>,
        config: Config,
    ) -> Self {
        let (ways, fronts) = (Ways::default(), Arc::new(Doors::default()));
        let (ledger, left) = match config.data_dir.as_os_str().is_empty() {
            true => (Ledger::nowhere(), Left::default()),
            false => Ledger::open(&config.data_dir.join("state")).unwrap(),
        };
        let tasks = Tasks::default();
        let parts = Parts {
            drivers: Drivers::new(driver),
            catalog: shelf.clone(),
            gate: Arc::new(ways.clone()),
            fronts: Some(fronts.clone()),
            discovery: Arc::new(own.clone()),
            mesh: Arc::new(own.clone()),
            ledger,
        };
        let allocator = Allocator::build(config, parts, left, &tasks.spawner()).await;
        Self { allocator, shelf, ways, fronts, own, other, tasks }
    }

    /// Registers a service; `program` is where its artifact is.
    pub(super) fn add(
        &self,
        name: &str,
        program: &str,
        change: impl FnOnce(&mut proto::ServiceSpec),
    ) -> Spec {
        let digest = Digest::of(program.as_bytes());
        let mut spec = proto::ServiceSpec {
            name: name.into(),
            artifact: digest.to_string(),
            ..Default::default()
        };
        change(&mut spec);
        let spec = Spec::try_from(spec).unwrap();
        self.shelf.programs.lock().unwrap().insert(digest, program.into());
        self.shelf.specs.lock().unwrap().insert(spec.name.clone(), spec.clone());
        spec
    }

    /// An `Allocate` as a peer sends it.
    pub(super) async fn allocate(
        &self,
        spec: &Spec,
        mode: proto::allocate_request::Mode,
        id: &str,
    ) -> Result<proto::AllocateResponse> {
        self.allocate_as(1, spec, mode, id).await
    }

    pub(super) async fn allocate_as(
        &self,
        peer: u8,
        spec: &Spec,
        mode: proto::allocate_request::Mode,
        id: &str,
    ) -> Result<proto::AllocateResponse> {
        use proto::allocator_server::Allocator as _;
        let mut request = Request::new(proto::AllocateRequest {
            service: spec.name.to_string(),
            service_hash: spec.hash().to_string(),
            mode: mode.into(),
            request_id: id.to_owned(),
        });
        let caller = Caller::Peer(PeerId::from_public_key([peer; 32]));
        request.extensions_mut().insert(caller);
        let answered = timeout(PATIENCE, self.allocator.allocate(request)).await;
        Ok(answered.expect("an answer within its deadlines")?.into_inner())
    }

    pub(super) async fn list(&self, include_ended: bool) -> Vec<proto::Instance> {
        use proto::instances_server::Instances as _;
        let request = proto::ListInstancesRequest { include_ended, ..Default::default() };
        let listed = self.allocator.list_instances(Request::new(request)).await;
        listed.unwrap().into_inner().instances
    }

    pub(super) async fn release(&self, instance: &str) -> Result<proto::Instance> {
        use proto::allocator_server::Allocator as _;
        let request = proto::ReleaseRequest { instance: instance.to_owned() };
        let released = timeout(PATIENCE, self.allocator.release(Request::new(request))).await;
        Ok(released.expect("a release within its deadlines")?.into_inner().instance.unwrap())
    }

    /// Waits until an instance is listed in this state.
    pub(super) async fn is(&self, id: &str, state: proto::InstanceState) -> proto::Instance {
        eventually(&format!("instance {id} to be {state:?}"), async || {
            let listed = self.list(true).await;
            let found = listed.into_iter().find(|instance| instance.id == id);
            found.filter(|instance| instance.state() == state)
        })
        .await
    }
}

/// The instance an answer names.
pub(super) fn id(answer: &proto::AllocateResponse) -> String {
    answer.instance.as_ref().unwrap().id.clone()
}
