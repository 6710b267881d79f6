//! Starts, watches and stops instances, within what this machine can give.
//!
//! The daemon builds an [`Allocator`] from a [`Config`] and the parts of its node, and
//! serves its two gRPC services. Inside, the `supervisor` decides, one owner task per
//! instance (`instance`) acts, and a [`driver`] runs programs. The
//! invariant: an instance that is ready is registered at the ingress, and whatever ends
//! it, the way in is closed before the program is.

mod admission;
pub mod announce;
pub mod claims;
mod drain;
pub mod driver;
mod failures;
mod feed;
pub mod handed;
mod history;
mod instance;
mod intents;
mod keeper;
mod ledger;
mod lifecycle;
mod outside;
mod port;
pub mod readiness;
mod requests;
mod service;
mod supervisor;
mod table;
mod takeover;
mod told;
mod usage;

use std::{any::Any, fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use lca::{
    Error, InstanceId, Kind, Result, ServiceName,
    api::proto::{allocator_server::AllocatorServer, instances_server::InstancesServer},
    artifact,
    discovery::Discovery,
    mesh::Mesh,
    metrics::Metrics,
    shutdown::Spawner,
    specs::Specs,
};
use lca_ingress::Ingress;

pub use admission::Capacity;
pub use driver::{Bridge, Driver, Drivers};
pub use told::Told;

use crate::{
    claims::holder::Holder,
    ledger::{Ledger, Left},
    lifecycle::State,
    outside::{Catalog, Gate, real},
    supervisor::Supervisor,
};

/// How an allocator behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Artifacts are kept in `artifacts` in it, what must outlive a crash in `state`.
    pub data_dir: PathBuf,
    /// What instances may take together.
    pub capacity: Capacity,
    /// What instances are told.
    pub told: Told,
    /// A stop leaves ready instances running, for the next start to take over.
    pub keep_instances: bool,
    /// Starts at the same time; more are refused rather than queued.
    pub max_starting: usize,
    /// Deadlines.
    pub timing: Timing,
    /// Where it counts.
    pub metrics: Metrics,
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// An artifact, from the first byte asked for to the last.
    pub fetch: Duration,
    /// What is open when an instance is to end.
    pub drain: Duration,
    /// A program, from SIGTERM to SIGKILL.
    pub grace: Duration,
    /// As `drain`, when the allocator stops.
    pub stop_drain: Duration,
    /// As `grace`, when the allocator stops.
    pub stop_grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            // What managers wait for.
            fetch: lca::api::MAX_FETCH,
            // What an ordinary download takes; the idle time-out knows no longer ones.
            drain: Duration::from_secs(30),
            grace: Duration::from_secs(5),
            // Short: Ctrl-C must be over in 5 s, and the rest of the daemon stops after this.
            stop_drain: Duration::from_millis(1000),
            stop_grace: Duration::from_millis(1000),
        }
    }
}

impl Timing {
    /// What an instance that stops may take beyond its deadlines: SIGKILL, and a look
    /// through `/proc`, on a machine where many stop at once.
    const MARGIN: Duration = Duration::from_millis(500);

    /// Longest [`Allocator::shutdown`] takes.
    pub const fn stop_within(&self) -> Duration {
        self.stop_drain.saturating_add(self.stop_grace).saturating_add(Self::MARGIN)
    }
}

impl Config {
    /// Counts a start that was refused, by a word for what was in the way.
    fn refused(&self, reason: &str) {
        self.metrics.allocator.refusals.with_label_values(&[reason]).inc();
    }

    /// Starts a core may have at the same time: starting is mostly waiting.
    const STARTS_PER_CORE: usize = 16;

    /// Offers all of this machine. Blocks on small files.
    pub fn new(data_dir: PathBuf) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        Self {
            data_dir,
            capacity: Capacity::of_this_machine(),
            told: Told::default(),
            keep_instances: false,
            max_starting: cores * Self::STARTS_PER_CORE,
            timing: Timing::default(),
            metrics: Metrics::default(),
        }
    }
}

/// Gives each instance a front of its own, so that a call it makes is known to be its.
#[async_trait]
pub trait Fronts: fmt::Debug + Send + Sync + 'static {
    /// Opens one on loopback, or where the machine is on `bridge` and then for nobody but
    /// who is on that; on `port` if one is given: an instance that was taken over knows where
    /// its front is. Cancel safe.
    ///
    /// # Errors
    /// If the port, or any, cannot be bound.
    async fn open(
        &self,
        service: &ServiceName,
        instance: InstanceId,
        port: Option<u16>,
        bridge: Option<Bridge>,
    ) -> Result<OpenFront>;
}

/// The front of one instance.
pub struct OpenFront {
    /// Where it listens.
    pub address: SocketAddr,
    /// Dropping it closes the front.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for OpenFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFront").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The parts of its node that an allocator works with.
#[derive(Clone, Debug)]
pub struct Collaborators {
    /// Run what is allocated.
    pub drivers: Drivers,
    /// Knows what a service name means.
    pub specs: Specs,
    /// Where instances are announced.
    pub discovery: Arc<dyn Discovery>,
    /// Asks other allocators what they run, where claims are held.
    pub mesh: Arc<dyn Mesh>,
    /// Lets requests in.
    pub ingress: Ingress,
    /// Gives each instance a front; without it instances cannot call other services.
    pub fronts: Option<Arc<dyn Fronts>>,
}

/// The allocator of one machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Allocator {
    supervisor: Arc<Supervisor>,
}

/// What [`Allocator::build`] takes besides the configuration.
#[derive(Debug)]
struct Parts {
    drivers: Drivers,
    catalog: Arc<dyn Catalog>,
    gate: Arc<dyn Gate>,
    fronts: Option<Arc<dyn Fronts>>,
    discovery: Arc<dyn Discovery>,
    mesh: Arc<dyn Mesh>,
    ledger: Ledger,
}

impl Allocator {
    /// Starts with the instances that an earlier run left, if any: they take requests as
    /// soon as they have answered once. It lives until the daemon stops.
    ///
    /// # Errors
    /// If a folder of it cannot be used; nothing was started then.
    pub async fn start(
        config: Config,
        collaborators: Collaborators,
        spawner: &Spawner,
    ) -> Result<Self> {
        let Collaborators { drivers, specs, discovery, mesh, ingress, fronts } = collaborators;
        let (artifacts, state) = (config.data_dir.join("artifacts"), config.data_dir.join("state"));
        let opened = tokio::task::spawn_blocking(move || {
            Ok::<_, Error>((artifact::Store::open(&artifacts)?, Ledger::open(&state)?))
        });
        let (store, (ledger, left)) = opened.await.map_err(|error| {
            Error::new(Kind::Internal, "opening the data folder was cut short").because(error)
        })??;
        let catalog = Arc::new(real::Shelf { specs, store });
        let gate = Arc::new(ingress);
        let parts = Parts { drivers, catalog, gate, fronts, discovery, mesh, ledger };
        Ok(Self::build(config, parts, left, spawner).await)
    }

    async fn build(config: Config, parts: Parts, left: Left, spawner: &Spawner) -> Self {
        let Parts { drivers, catalog, gate, fronts, discovery, mesh, ledger } = parts;
        let supervisor = Arc::new(Supervisor {
            config,
            drivers,
            catalog,
            gate,
            fronts,
            discovery: discovery.clone(),
            spawner: spawner.clone(),
            ledger,
            holder: Holder::new(mesh),
            ports: Default::default(),
            changed: Default::default(),
            feed: Default::default(),
            drain: Default::default(),
            books: Default::default(),
        });
        takeover::take_over(&supervisor, left).await;
        let served = supervisor.clone();
        spawner.spawn(
            "announcements",
            announce::keep(
                discovery,
                supervisor.changed.clone(),
                move || served.lock().table.serving(),
                spawner.stopping(),
            ),
        );
        spawner.spawn("keeper", keeper::keep(supervisor.clone(), spawner.stopping()));
        spawner.spawn("usage", usage::keep(supervisor.clone(), spawner.stopping()));
        spawner.spawn("watch feed", feed::keep(supervisor.clone(), spawner.stopping()));
        let allocator = Self { supervisor };
        let (last, stopping) = (allocator.clone(), spawner.stopping());
        spawner.spawn("allocator", async move {
            stopping.await;
            last.shutdown().await;
        });
        allocator
    }

    /// Serves `lca.v1.Allocator`.
    pub fn allocator_server(&self) -> AllocatorServer<Self> {
        AllocatorServer::new(self.clone())
    }

    /// Serves `lca.v1.Instances`, for the instances of this allocator.
    pub fn instances_server(&self) -> InstancesServer<Self> {
        InstancesServer::new(self.clone())
    }

    /// Brings the instances by state, and what they use, up to date in its metrics.
    pub fn count_instances(&self) {
        let metrics = &self.supervisor.config.metrics;
        let gauges = &metrics.allocator.instances;
        let books = self.supervisor.lock();
        let lca::metrics::Allocator { cpu, memory, memory_limit, .. } = &metrics.allocator;
        [cpu, memory, memory_limit].into_iter().for_each(|gauges| gauges.reset());
        for entry in books.table.live() {
            let Some(used) = entry.used() else { continue };
            let service = metrics.service(&entry.spec.name);
            let add = |gauges: &lca::metrics::Gauges, amount: u64| {
                let amount = i64::try_from(amount).unwrap_or(i64::MAX);
                gauges.with_label_values(&[service.label()]).add(amount);
            };
            add(cpu, used.cpu_millis().into());
            add(memory, used.memory_bytes());
            add(memory_limit, entry.spec.allowance.memory_bytes);
        }
        for (state, word) in State::LIVE {
            let count = books.table.live().filter(|entry| entry.state() == state).count();
            gauges.with_label_values(&[word]).set(count as i64);
        }
    }

    /// Takes no more work and stops every instance, politely, then by force, unless the
    /// configuration says that they are kept; takes [`Timing::stop_within`] at most. Happens by itself when the daemon stops; may be
    /// called twice.
    pub async fn shutdown(&self) {
        self.supervisor.shutdown().await;
    }

    /// Kills every instance and starts none any more: for whoever cannot wait. Needs no
    /// runtime; blocks for milliseconds if something runs.
    pub fn kill_all(&self) {
        self.supervisor.drivers.kill_all();
    }
}

#[cfg(test)]
mod tests;
