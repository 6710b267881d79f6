//! Starting, crashing, separating and stopping the nodes of a fleet.

use std::{mem, net::SocketAddr, path::Path, sync::Arc};

use lca::{
    PeerId, Requirements, Result,
    api::proto::{self, instances_client::InstancesClient, registry_client::RegistryClient},
    local,
};
use lca_allocator::driver::process::{Grants, Process};
use lca_daemon::{Addresses, Settings, allocator, proxy, registry};
use lca_node::{
    Timing,
    link::{Links, Profile},
};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::{Service, eventually, http, processes, slot::Slot};

/// What a fleet looks like.
#[derive(Clone, Debug)]
pub struct Builder {
    allocators: usize,
    proxies: usize,
    instances_each: u32,
    keep_instances: bool,
    containers: Option<allocator::Containers>,
    requirements: Requirements,
    timing: Timing,
    metrics: bool,
}

/// A registry, allocators and proxies, joined over loopback.
#[derive(Debug)]
pub struct Cluster {
    links: Links,
    registry: Slot<registry::App>,
    allocators: Vec<Slot<allocator::App>>,
    proxies: Vec<Slot<proxy::App>>,
    instances_each: u32,
    keep_instances: bool,
    containers: Option<allocator::Containers>,
    dir: TempDir,
}

impl Builder {
    /// So many allocators.
    #[must_use]
    pub fn allocators(self, allocators: usize) -> Self {
        Self { allocators, ..self }
    }

    /// So many proxies.
    #[must_use]
    pub fn proxies(self, proxies: usize) -> Self {
        Self { proxies, ..self }
    }

    /// Each allocator has room for so many instances.
    #[must_use]
    pub fn instances_each(self, instances_each: u32) -> Self {
        Self { instances_each, ..self }
    }

    /// Allocators leave their instances running, however they end.
    #[must_use]
    pub fn keep_instances(self) -> Self {
        Self { keep_instances: true, ..self }
    }

    /// Allocators run containers, too.
    #[must_use]
    pub fn containers(self, containers: allocator::Containers) -> Self {
        Self { containers: Some(containers), ..self }
    }

    /// What the clients of this fleet require.
    #[must_use]
    pub fn requirements(self, requirements: Requirements) -> Self {
        Self { requirements, ..self }
    }

    /// Nodes announce, renew and probe as often as this says.
    #[must_use]
    pub fn timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Every node serves its metrics.
    #[must_use]
    pub fn metrics(self) -> Self {
        Self { metrics: true, ..self }
    }

    /// Starts all nodes and waits until each has joined.
    ///
    /// # Errors
    /// If one does not start.
    pub async fn start(self) -> anyhow::Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("lca-test-").tempdir()?;
        let links = Links::default();
        let common = Settings {
            requirements: self.requirements,
            links: links.clone(),
            timing: self.timing,
            metrics_listen: self.metrics.then(|| ([127, 0, 0, 1], 0).into()),
            ..Settings::loopback(dir.path().to_owned(), dir.path().join("run"))
        };
        let named = |name: &str| Settings { data_dir: dir.path().join(name), ..common.clone() };
        let mut registry = Slot::empty(named("registry"));
        registry.start(registry::App::build).await?;
        registry.keep_ports();
        let bootstraps = registry.addresses().bootstraps.clone();
        let joining = |name: String| Settings { bootstraps: bootstraps.clone(), ..named(&name) };
        let slots = |role: &str, count| {
            (0..count).map(|n| joining(format!("{role}-{n}"))).collect::<Vec<_>>()
        };
        let (allocators, proxies) =
            (slots("allocator", self.allocators), slots("proxy", self.proxies));
        let mut cluster = Cluster {
            links: links.clone(),
            registry,
            allocators: Vec::new(),
            proxies: Vec::new(),
            instances_each: self.instances_each,
            keep_instances: self.keep_instances,
            containers: self.containers,
            dir,
        };
        for (n, settings) in allocators.into_iter().enumerate() {
            cluster.allocators.push(Slot::empty(settings));
            cluster.start_allocator(n).await?;
        }
        for (n, settings) in proxies.into_iter().enumerate() {
            cluster.proxies.push(Slot::empty(settings));
            cluster.start_proxy(n).await?;
        }
        Ok(cluster)
    }
}

impl Cluster {
    /// A registry, an allocator and a proxy, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            allocators: 1,
            proxies: 1,
            instances_each: 16,
            keep_instances: false,
            containers: None,
            requirements: Requirements::default(),
            timing: Timing::default(),
            metrics: false,
        }
    }

    /// The folder of everything, whose processes end with the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data folder of an allocator.
    pub fn allocator_dir(&self, n: usize) -> &Path {
        &self.allocators[n].settings.data_dir
    }

    /// The data folder of the registry.
    pub fn registry_dir(&self) -> &Path {
        &self.registry.settings.data_dir
    }

    /// Registers a service, replacing what has its name.
    ///
    /// # Errors
    /// What the registry says.
    pub async fn add(&self, service: &Service) -> anyhow::Result<proto::ServiceSpec> {
        service.register(&mut self.registry_client().await?).await
    }

    /// GET through the first proxy.
    ///
    /// # Errors
    /// If no complete answer comes.
    pub async fn get(&self, target: &str) -> anyhow::Result<http::Answer> {
        http::get(self.front(0), target).await
    }

    /// Where a proxy's front is.
    pub fn front(&self, n: usize) -> SocketAddr {
        self.proxies[n].addresses().front.expect("a proxy has a front")
    }

    /// Who the nodes are.
    pub fn proxy(&self, n: usize) -> &Addresses {
        self.proxies[n].addresses()
    }

    /// Who the nodes are.
    pub fn allocator(&self, n: usize) -> &Addresses {
        self.allocators[n].addresses()
    }

    /// Who the nodes are.
    pub fn registry(&self) -> &Addresses {
        self.registry.addresses()
    }

    /// What decides where a proxy's requests go.
    pub fn manager(&self, n: usize) -> &lca_manager::Manager {
        self.proxies[n].app().manager()
    }

    /// A proxy's node of the network.
    pub fn proxy_node(&self, n: usize) -> &lca_node::Node {
        self.proxies[n].app().node()
    }

    /// Every instance an allocator knows, those that ended included.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn instances_of(&self, allocator: usize) -> anyhow::Result<Vec<proto::Instance>> {
        let channel = local::connect(&self.allocator(allocator).socket).await?;
        let mut instances = InstancesClient::new(channel);
        let peer = self.allocator(allocator).peer.to_string();
        // On a busy machine it may be too late even for its own local API, which says so.
        let all = eventually("an allocator's word of what it runs", async || {
            let request = proto::ListInstancesRequest { include_ended: true, ..Default::default() };
            let all = instances.list_instances(request).await.map_err(|error| error.to_string())?;
            let all = all.into_inner();
            let left_out = all.unreachable_peers.contains(&peer);
            if left_out { Err("it did not answer in time".to_owned()) } else { Ok(all.instances) }
        })
        .await;
        Ok(all.into_iter().filter(|instance| instance.peer == peer).collect())
    }

    /// Every instance of all allocators that are up, those that ended included.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn instances(&self) -> anyhow::Result<Vec<proto::Instance>> {
        let mut all = Vec::new();
        for n in (0..self.allocators.len()).filter(|n| self.allocators[*n].is_up()) {
            all.extend(self.instances_of(n).await?);
        }
        Ok(all)
    }

    /// A client of the registry's local API.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn registry_client(&self) -> Result<RegistryClient<Channel>> {
        Ok(RegistryClient::new(local::connect(&self.registry().socket).await?))
    }

    /// A channel to a proxy's local API.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn proxy_api(&self, n: usize) -> Result<Channel> {
        local::connect(&self.proxy(n).socket).await
    }

    /// Takes an allocator away without a goodbye, its instances too, as a machine that
    /// loses power does.
    pub async fn crash_allocator(&mut self, n: usize) {
        self.allocators[n].crash_and_wait().await;
        processes::kill_below(&self.allocators[n].settings.data_dir);
    }

    /// Kills an allocator whose instances are kept; they run on. It listens where it did
    /// when it is started again.
    pub async fn kill_allocator(&mut self, n: usize) {
        self.allocators[n].keep_ports();
        self.allocators[n].crash_and_wait().await;
    }

    /// Takes the registry away without a goodbye.
    pub async fn crash_registry(&mut self) {
        self.registry.crash_and_wait().await;
    }

    /// Starts a registry again, on the same ports and data.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn restart_registry(&mut self) -> anyhow::Result<()> {
        self.registry.start(registry::App::build).await
    }

    /// Starts an allocator (again).
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_allocator(&mut self, n: usize) -> anyhow::Result<()> {
        let (instances, keep_instances) = (self.instances_each, self.keep_instances);
        let containers = self.containers.clone();
        let slot = &mut self.allocators[n];
        slot.start(move |settings| async move {
            let mut allocator = lca_allocator::Config::new(settings.data_dir.join("allocator"));
            allocator.capacity.cpu_millis = 1_000_000;
            allocator.capacity.memory_bytes = 1 << 40;
            allocator.capacity.instances = instances;
            let driver = Process::open(&allocator.data_dir.join("instances"))?;
            let config = allocator::Config {
                settings,
                allocator,
                http: lca_proxy::Config::default(),
                keep_instances,
                grants: Grants::default(),
                containers,
            };
            allocator::App::build(config, Arc::new(driver)).await
        })
        .await?;
        slot.app().node().joined().await;
        Ok(())
    }

    /// Takes a proxy away without a goodbye.
    pub async fn crash_proxy(&mut self, n: usize) {
        self.proxies[n].crash_and_wait().await;
    }

    /// The data folder of a proxy.
    pub fn proxy_dir(&self, n: usize) -> &Path {
        &self.proxies[n].settings.data_dir
    }

    /// Starts a proxy (again).
    ///
    /// # Errors
    /// If it does not start.
    pub async fn start_proxy(&mut self, n: usize) -> anyhow::Result<()> {
        let slot = &mut self.proxies[n];
        slot.start(|settings| async move {
            let front = ([127, 0, 0, 1], 0).into();
            proxy::App::build(proxy::Config {
                settings,
                front,
                http: lca_proxy::Config::default(),
                external: None,
            })
            .await
        })
        .await?;
        slot.app().node().joined().await;
        Ok(())
    }

    /// Starts one more proxy, in server mode for what is at `address`; returns its number.
    ///
    /// # Errors
    /// If it does not start.
    ///
    /// # Panics
    /// If the fleet has no proxy yet.
    pub async fn represent(&mut self, service: &str, address: SocketAddr) -> anyhow::Result<usize> {
        let n = self.proxies.len();
        let data_dir = self.dir.path().join(format!("proxy-{n}"));
        let mut slot = Slot::empty(Settings { data_dir, ..self.proxies[0].settings.clone() });
        let external = Some(proxy::External { service: service.parse()?, address });
        slot.start(|settings| async move {
            let front = ([127, 0, 0, 1], 0).into();
            let http = lca_proxy::Config::default();
            proxy::App::build(proxy::Config { settings, front, http, external }).await
        })
        .await?;
        slot.app().node().joined().await;
        self.proxies.push(slot);
        Ok(n)
    }

    /// Stops a proxy politely.
    ///
    /// # Panics
    /// If something had to be forced.
    pub async fn stop_proxy(&mut self, n: usize) {
        let empty = Slot::empty(self.proxies[n].settings.clone());
        mem::replace(&mut self.proxies[n], empty).drain(proxy::App::drain).await;
    }

    /// Sets what lies between two nodes, for all their connections.
    pub fn link(&self, a: PeerId, b: PeerId, profile: Profile) {
        self.links.set(a, b, profile);
    }

    /// What lies between all nodes.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Takes away whatever was set between two nodes.
    pub fn heal(&self, a: PeerId, b: PeerId) {
        self.links.clear(a, b);
    }

    /// Stops all that is up politely.
    ///
    /// # Panics
    /// If something had to be forced, or a process is left.
    pub async fn drain(mut self) {
        for slot in mem::take(&mut self.proxies) {
            slot.drain(proxy::App::drain).await;
        }
        for slot in mem::take(&mut self.allocators) {
            slot.drain(allocator::App::drain).await;
        }
        let empty = Slot::empty(self.registry.settings.clone());
        mem::replace(&mut self.registry, empty).drain(registry::App::drain).await;
        // A start that was given up ends what it forked, after whoever gave it up went on.
        eventually("no process to be left", async || {
            let left = processes::below(self.dir.path());
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.proxies.iter_mut().for_each(Slot::crash);
        self.allocators.iter_mut().for_each(Slot::crash);
        self.registry.crash();
        processes::kill_below(self.dir.path());
    }
}
