//! The allocator daemon: runs instances, takes the requests of other peers for them,
//! and gives each a front of its own, so that it can call other services and the
//! caller is known.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use async_trait::async_trait;
use lca::{InstanceId, Result, ServiceName, endpoint::Role, shutdown::Spawner};
use lca_allocator::{
    Allocator, Bridge, Collaborators, Driver, Drivers, Fronts, OpenFront,
    driver::{
        docker::{self, Docker},
        process::{Grants, Process},
    },
};
use lca_engine::{Address, Keyring, Stock, Terms};
use lca_ingress::Ingress;
use lca_manager::Manager;
use lca_node::{Node, mesh::Handlers};
use lca_proxy::Front;
use tokio_util::sync::CancellationToken;

use crate::{
    base::{self, Addresses, Base, Running, Settings},
    data::{DataDir, create_dir},
};

/// What an allocator can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all daemons can be told.
    pub settings: Settings,
    /// What it offers, and how it runs instances.
    pub allocator: lca_allocator::Config,
    /// Time-outs and limits of what its instances ask of other services.
    pub http: lca_proxy::Config,
    /// At a stop, leave what runs to be taken over by the next start.
    pub keep_instances: bool,
    /// What instances get of this machine beyond what every program needs.
    pub grants: Grants,
    /// The engine for containers, if it runs any.
    pub containers: Option<Containers>,
}

/// Where the engine is, and what containers get of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containers {
    /// Where it listens, if it runs.
    pub engine: Address,
    /// What the operator allows.
    pub grants: docker::Grants,
    /// Bytes that the images it has pulled may take.
    pub image_room: u64,
}

/// Paths as they are meant where the daemon was started, whatever its folder becomes. Those
/// that cannot be told stay as they are.
pub fn absolute(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone())).collect()
}

/// An allocator that runs.
#[derive(Debug)]
pub struct App {
    running: Running,
    instances: Instances,
    ingress: Ingress,
}

/// The instances of an allocator that is up. Dropping it kills those that still run:
/// whoever drops a daemon, or does not wait for its [`drain`](App::drain), leaves none,
/// unless they are to be kept.
#[derive(Debug)]
struct Instances {
    allocator: Allocator,
    keep: bool,
}

impl Drop for Instances {
    fn drop(&mut self) {
        if !self.keep {
            self.allocator.kill_all();
        }
    }
}

impl App {
    /// Binds every socket, then starts.
    ///
    /// # Errors
    /// If a port is taken or the data folder cannot be used; nothing was started then.
    pub async fn build(config: Config, driver: Arc<dyn Driver>) -> Result<Self> {
        let dir = DataDir::take(&config.settings.data_dir).await?;
        Self::build_in(dir, config, driver).await
    }

    /// The same with programs run as processes. Nothing in the data folder is looked at
    /// before it is this daemon's own.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub async fn open(config: Config) -> Result<Self> {
        let dir = DataDir::take(&config.settings.data_dir).await?;
        let driver = Process::open(&config.allocator.data_dir.join("instances"))?
            .with_grants(config.grants.clone());
        Self::build_in(dir, config, Arc::new(driver)).await
    }

    async fn build_in(dir: DataDir, config: Config, driver: Arc<dyn Driver>) -> Result<Self> {
        let Config { settings, mut allocator, mut http, keep_instances: keep, .. } = config;
        let containers = config.containers;
        allocator.keep_instances = keep;
        let mut base = Base::bind(&settings, Role::Allocator, dir).await?;
        let local = base.bind_local(&settings, base.mesh_port())?;
        http.keep_to(&settings.timeouts);
        let takes = lca_ingress::Config::keeping_to(&settings.timeouts);
        let ingress = Ingress::new(takes, base.metrics.clone());
        let fronts = InstanceFronts {
            http,
            manager: base.manager.clone(),
            node: base.node.clone(),
            spawner: base.spawner.clone(),
        };
        // Instances join the network where their allocator does, and through it.
        let known = settings
            .bootstraps
            .iter()
            .chain(&base.node.bootstrap_addresses())
            .map(ToString::to_string)
            .collect();
        allocator.metrics = base.metrics.clone();
        allocator.told = lca_allocator::Told { bootstraps: known };
        let drivers = Drivers::new(driver);
        let drivers = match containers {
            Some(Containers { engine, grants, image_room }) => {
                let node = base.node.peer();
                let docker = Docker::open(engine, node, grants, &base.spawner).await;
                create_dir(&allocator.data_dir)?;
                let keys = Keyring::of_the_environment();
                let terms = Terms { room: image_room, keys, ..Terms::default() };
                let stock = Stock::open(&allocator.data_dir, terms);
                drivers.with_containers(Arc::new(docker.with_stock(stock)))
            }
            None => drivers,
        };
        let collaborators = Collaborators {
            drivers,
            specs: base.specs.clone(),
            discovery: Arc::new(base.node.clone()),
            mesh: Arc::new(base.node.clone()),
            ingress: ingress.clone(),
            fronts: Some(Arc::new(fronts)),
        };
        let allocator = Allocator::start(allocator, collaborators, &base.spawner).await?;
        base.allocator = Some(allocator.clone());
        let grpc = base
            .peer_routes()
            .add_service(base.manager.specs_server())
            .add_service(allocator.allocator_server())
            .add_service(allocator.instances_server());
        let instances = Instances { allocator, keep };
        let handlers = Handlers { grpc, http: Some(Arc::new(ingress.clone())) };
        let running = base.serve(handlers, local, None).await?;
        Ok(Self { running, instances, ingress })
    }

    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Who it is and where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.running.addresses
    }

    /// Its node of the network.
    pub fn node(&self) -> &Node {
        &self.running.node
    }

    /// Resolves when a task that should not end has ended.
    pub async fn failed(&self) {
        self.running.failed().await;
    }

    /// Resolves once it has been drained.
    pub(crate) async fn drained(&self) {
        self.instances.allocator.drained().await;
    }

    /// Stops every instance, or leaves the ready ones if they are to be kept, then stops
    /// the rest. True if nothing had to be forced and no request was cut off. What runs
    /// is killed if this is dropped before its end.
    pub async fn drain(self) -> bool {
        let Self { running, instances, ingress } = self;
        let before = ingress.cut();
        running.leave();
        instances.allocator.shutdown().await;
        let in_time = running.drain().await;
        in_time && base::none_cut(&ingress, before)
    }
}

/// Opens a front for each instance on a port of its own.
#[derive(Debug)]
struct InstanceFronts {
    http: lca_proxy::Config,
    manager: Manager,
    node: Node,
    spawner: Spawner,
}

#[async_trait]
impl Fronts for InstanceFronts {
    async fn open(
        &self,
        service: &ServiceName,
        instance: InstanceId,
        port: Option<u16>,
        bridge: Option<Bridge>,
    ) -> Result<OpenFront> {
        let ip = bridge.map_or(Ipv4Addr::LOCALHOST.into(), |bridge| bridge.gateway);
        let any = SocketAddr::new(ip, port.unwrap_or(0));
        let (http, manager, node) = (self.http, self.manager.clone(), self.node.clone());
        let front = match bridge {
            Some(bridge) => Front::bind_within(any, bridge.range, http, manager, node).await?,
            None => Front::bind(any, http, manager, node).await?,
        };
        let address = front.address();
        let stop = CancellationToken::new();
        front.serve_until(stop.clone(), &self.spawner);
        tracing::debug!(%service, instance = %instance.short(), %address, "front of an instance");
        Ok(OpenFront { address, guard: Box::new(stop.drop_guard()) })
    }
}
