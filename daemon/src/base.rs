//! What every daemon has whatever its role: an identity, a node of the network, the
//! specs it knows, a manager, and the local API.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use lca::{
    Kind, PeerId, Requirements, Result,
    config::{Bootstrap, Timeouts},
    discovery::Discovery,
    endpoint::Role,
    local::{self, Token},
    mesh::Mesh,
    metrics::Metrics,
    shutdown::{Spawner, Tasks},
    specs::{self, Specs},
};
use lca_allocator::Allocator;
use lca_ingress::Ingress;
use lca_manager::Manager;
use lca_node::{Identity, Node, identity::next_boot, link::Links, mesh};
use tonic::service::Routes;

use crate::{
    data::DataDir, diagnose::Diagnosis, drain, health::Health, limits, peers, plan::Read,
    ports::Ports, reflection,
};

/// Every daemon that is asked to stop has stopped, instances included, within this time:
/// below the 5 s in which Ctrl-C must be over.
pub const STOP_WITHIN: Duration = Duration::from_millis(4500);
/// How long requests in flight may go on once the daemon was asked to stop; in an
/// allocator after its instances have ended.
const GRACE: Duration = Duration::from_millis(1500);

/// What all daemons can be told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Identity, specs and whatever else survives a restart.
    pub data_dir: PathBuf,
    /// Where libp2p listens.
    pub listen: SocketAddr,
    /// Where other peers connect over the mesh.
    pub mesh_listen: SocketAddr,
    /// Addresses told to others instead of those listened on.
    pub advertise: Vec<IpAddr>,
    /// Peers to join through.
    pub bootstraps: Vec<Bootstrap>,
    /// Requirements of this machine's clients, on top of each service's own.
    pub requirements: Requirements,
    /// How long a spec is used without asking a registry.
    pub spec_ttl: Duration,
    /// The folder of the local API's socket.
    pub socket_dir: PathBuf,
    /// Where gRPC for programs in any language listens, if anywhere; loopback only.
    pub grpc_listen: Option<SocketAddr>,
    /// Where `GET /metrics` is answered, if anywhere.
    pub metrics_listen: Option<SocketAddr>,
    /// The file of the identity; `identity` in the data folder if there is none.
    pub keyfile: Option<PathBuf>,
    /// A new identity at every start, kept nowhere.
    pub ephemeral: bool,
    /// Connections of peers over the mesh at once.
    pub max_connections: usize,
    /// Connections of this machine's programs at once, by the socket and by TCP each.
    pub max_programs: usize,
    /// How long requests may take.
    pub timeouts: Timeouts,
    /// Whether to listen where other machines can connect. Until a network has members,
    /// whoever can connect is one.
    pub insecure_open_network: bool,
    /// Distances to other nodes, for tests; the default adds none.
    pub links: Links,
    /// How often the node announces, renews and probes.
    pub timing: lca_node::Timing,
}

impl Settings {
    /// Everything on loopback, on ports of the kernel's choice, joining nobody.
    pub fn loopback(data_dir: PathBuf, socket_dir: PathBuf) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data_dir,
            listen: any,
            mesh_listen: any,
            advertise: Vec::new(),
            bootstraps: Vec::new(),
            requirements: Requirements::default(),
            spec_ttl: Duration::from_secs(2),
            socket_dir,
            grpc_listen: None,
            metrics_listen: None,
            keyfile: None,
            ephemeral: false,
            max_connections: limits::MOST,
            max_programs: local::CONNECTIONS,
            timeouts: Timeouts::default(),
            insecure_open_network: false,
            links: Links::default(),
            timing: lca_node::Timing::default(),
        }
    }

    /// Where the identity is kept.
    pub fn key(&self) -> PathBuf {
        self.keyfile.clone().unwrap_or_else(|| self.data_dir.join("identity"))
    }

    /// Who this start is, and its number among the starts with that identity.
    fn identity(&self) -> Result<(Identity, u64)> {
        if self.ephemeral {
            return Ok((Identity::ephemeral(), 1));
        }
        let key = self.key();
        Ok((Identity::load_or_create(&key)?, next_boot(&key)?))
    }
}

/// Who a daemon is and where it can be reached.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Its identity.
    pub peer: PeerId,
    /// What others give as `--bootstrap`.
    pub bootstraps: Vec<Bootstrap>,
    /// Where its mesh listener is.
    pub mesh: Vec<SocketAddr>,
    /// The front on localhost, where there is one.
    pub front: Option<SocketAddr>,
    /// gRPC for programs in any language, where it was asked for.
    pub grpc: Option<SocketAddr>,
    /// The metrics, where they were asked for.
    pub metrics: Option<SocketAddr>,
    /// The local API.
    pub socket: PathBuf,
}

/// A daemon under construction: bound, joined to nothing yet, serving nothing yet.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) tasks: Tasks,
    pub(crate) spawner: Spawner,
    pub(crate) node: Node,
    pub(crate) specs: Specs,
    pub(crate) manager: Manager,
    pub(crate) metrics: Metrics,
    /// Whose instances are counted at a scrape.
    pub(crate) allocator: Option<Allocator>,
    scrapes: Option<crate::metrics::Listener>,
    role: Role,
    listener: mesh::Listener,
    grpc: Option<local::tcp::Listener>,
    health: Health,
    diagnosis: Diagnosis,
    dir: DataDir,
}

impl Base {
    /// Binds the network side of a daemon with this role, which lives in `dir`.
    pub(crate) async fn bind(settings: &Settings, role: Role, dir: DataDir) -> Result<Self> {
        Self::bind_as(settings, role, &[role], dir).await
    }

    /// As [`bind`](Self::bind), for a daemon with further roles in the network.
    pub(crate) async fn bind_as(
        settings: &Settings,
        role: Role,
        roles: &[Role],
        dir: DataDir,
    ) -> Result<Self> {
        let metrics = Metrics::default();
        crate::metrics::started(&metrics, role);
        let scrapes = match settings.metrics_listen {
            Some(address) => {
                Some(crate::metrics::Listener::bind(address, settings.insecure_open_network).await?)
            }
            None => None,
        };
        let ports = Ports::read(dir.path());
        let (listen, mesh_listen) = ports.wanted(settings);
        let grpc = match settings.grpc_listen {
            Some(address) => {
                let token = Token::file(&settings.data_dir);
                let listener = local::tcp::Listener::bind(address, token).await?;
                Some(listener.holding(settings.max_programs))
            }
            None => None,
        };
        let (identity, boot) = settings.identity()?;
        let remembered = if settings.ephemeral { Vec::new() } else { peers::read(dir.path()) };
        let node = lca_node::Config {
            boot,
            listen,
            mesh_listen,
            advertise: settings.advertise.clone(),
            bootstraps: settings.bootstraps.clone(),
            remembered: remembered.clone(),
            max_connections: settings.max_connections,
            links: settings.links.clone(),
            timing: settings.timing,
            metrics: metrics.clone(),
            ..lca_node::Config::loopback(identity, roles)
        };
        let mut tasks = Tasks::default();
        let bound = match Node::bind(node.clone(), &tasks.spawner()).await {
            // A port of the last start that was free a moment ago.
            Err(error)
                if error.kind() == Kind::Conflict
                    && (listen, mesh_listen) != (settings.listen, settings.mesh_listen) =>
            {
                tracing::warn!(%error, "the port of the last start is taken, another is chosen");
                tasks = Tasks::default();
                let (listen, mesh_listen) = (settings.listen, settings.mesh_listen);
                let node = lca_node::Config { listen, mesh_listen, ..node };
                Node::bind(node, &tasks.spawner()).await
            }
            bound => bound,
        };
        let (node, listener) = bound?;
        let spawner = tasks.spawner();
        let libp2p = node.bootstrap_addresses().first().map(|at| at.port);
        ports.keep(settings, libp2p, listener.address().port());
        if !settings.ephemeral {
            let keeper = peers::keep(dir.path(), remembered, node.clone(), spawner.clone());
            spawner.spawn("peers kept", keeper);
        }
        let discovery: Arc<dyn Discovery> = Arc::new(node.clone());
        let peers: Arc<dyn Mesh> = Arc::new(node.clone());
        let specs = specs::Config {
            ttl: settings.spec_ttl,
            file: Some(settings.data_dir.join("specs.cache")),
            metrics: metrics.clone(),
        };
        let specs = Specs::start(specs, discovery.clone(), peers.clone(), &spawner)?;
        let manager = lca_manager::Config {
            requirements: settings.requirements,
            metrics: metrics.clone(),
            ..Default::default()
        };
        let manager = Manager::start(manager, specs.clone(), discovery, peers, &spawner);
        let health = Health::start(role, node.clone(), &spawner).await;
        let diagnosis = Diagnosis {
            node: node.clone(),
            manager: manager.clone(),
            role,
            since: tokio::time::Instant::now(),
            data_dir: settings.data_dir.clone(),
            front: None,
        };
        Ok(Self {
            tasks,
            spawner,
            node,
            specs,
            manager,
            metrics,
            allocator: None,
            scrapes,
            role,
            listener,
            grpc,
            health,
            diagnosis,
            dir,
        })
    }

    /// The mesh routes every daemon has: health, and who its peers are.
    pub(crate) fn peer_routes(&self) -> Routes {
        Routes::new(self.health.server()).add_service(self.manager.peers_server())
    }

    /// The port of the mesh listener, which names the socket of a daemon without front.
    pub(crate) fn mesh_port(&self) -> u16 {
        self.listener.address().port()
    }

    /// Binds the local API, named after `port`.
    pub(crate) fn bind_local(&self, settings: &Settings, port: u16) -> Result<local::Listener> {
        let socket = local::socket(&settings.socket_dir, self.role, port);
        Ok(local::Listener::bind(&socket)?.holding(settings.max_programs))
    }

    /// Starts serving: from here on peers and local programs are answered.
    pub(crate) async fn serve(
        self,
        handlers: mesh::Handlers,
        local: local::Listener,
        front: Option<SocketAddr>,
    ) -> Result<Running> {
        let addresses = Addresses {
            peer: self.node.peer(),
            bootstraps: self.node.bootstrap_addresses(),
            mesh: self.node.mesh_addresses(),
            front,
            grpc: self.grpc.as_ref().map(local::tcp::Listener::address),
            metrics: self.scrapes.as_ref().map(crate::metrics::Listener::address),
            socket: local.path().to_owned(),
        };
        self.listener.serve(handlers, &self.spawner);
        drain::note(self.dir.path(), &addresses.socket);
        let operation = self.allocator.as_ref().map(Allocator::operation_server);
        if let Some(scrapes) = self.scrapes {
            let (metrics, node) = (self.metrics.clone(), self.node.clone());
            let sources = crate::metrics::Sources { metrics, node, allocator: self.allocator };
            scrapes.serve(sources, &self.spawner);
        }
        let diagnosis = Diagnosis { front, ..self.diagnosis };
        let routes = self.manager.local_routes();
        let routes = routes.add_service(self.health.server()).add_service(diagnosis.server());
        let routes = match operation {
            Some(operation) => routes.add_service(operation),
            None => routes,
        };
        let routes = reflection::added_to(routes)?;
        let token = self.grpc.as_ref().map(local::tcp::Listener::token);
        if let Some(grpc) = self.grpc {
            grpc.serve(routes.clone(), &self.spawner);
        }
        local.serve(routes, &self.spawner);
        tracing::info!(
            role = %self.role, peer = %addresses.peer, mesh = ?addresses.mesh,
            listen = ?addresses.bootstraps.iter().map(Bootstrap::to_string).collect::<Vec<_>>(),
            local = %addresses.socket.display(), front = ?addresses.front,
            grpc = ?addresses.grpc, "listening"
        );
        let Self { tasks, node, manager, health, dir, .. } = self;
        Ok(Running { tasks, node, manager, health, token, addresses, _dir: dir })
    }
}

/// Whether every request at `ingress` could end since it had cut off `before`. One that could
/// not is said in the log.
pub(crate) fn none_cut(ingress: &Ingress, before: u64) -> bool {
    let cut = ingress.cut().saturating_sub(before);
    if cut > 0 {
        tracing::warn!(cut, "requests did not end in time and were cut off");
    }
    cut == 0
}

/// A daemon that runs.
#[derive(Debug)]
pub(crate) struct Running {
    tasks: Tasks,
    pub(crate) node: Node,
    pub(crate) manager: Manager,
    health: Health,
    token: Option<local::tcp::Current>,
    pub(crate) addresses: Addresses,
    /// Let go last: until then nobody else is this peer.
    _dir: DataDir,
}

impl Running {
    /// Takes up what of a configuration can change while it runs, and the token.
    ///
    /// # Errors
    /// If the node is stopping.
    pub(crate) async fn reload(&self, read: &Read) -> Result<()> {
        match self.token.as_ref().map(local::tcp::Current::renew) {
            Some(Ok(true)) => tracing::info!("changed: the token of gRPC, for every call from now"),
            Some(Err(error)) => {
                tracing::error!(error = error.chain(), "the token of gRPC is not changed");
            }
            Some(Ok(false)) | None => {}
        }
        self.manager.require(read.requirements);
        self.node.join_through(read.bootstraps.clone()).await
    }

    /// From here on the daemon says that it does not serve. Part of [`drain`](Self::drain).
    pub(crate) fn leave(&self) {
        self.health.leave();
    }

    /// Resolves when a task that should not end has ended.
    pub(crate) async fn failed(&self) {
        self.tasks.stopping().await;
    }

    /// Asks everything to stop and waits, then forces. True if nothing was forced.
    pub(crate) async fn drain(self) -> bool {
        self.leave();
        let Self { tasks, _dir, .. } = self;
        tasks.drain(GRACE).await
    }
}

#[cfg(test)]
mod tests;
