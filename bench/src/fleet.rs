//! A registry, allocators and proxies, each a process of its own, and what a benchmark
//! wants to know of them.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures::future::try_join_all;
use lca::{
    api::proto::{
        Instance, InstanceState, ListInstancesRequest, ListPeersRequest, ReleaseRequest,
        allocator_client::AllocatorClient, instances_client::InstancesClient,
        manager_client::ManagerClient, registry_client::RegistryClient,
    },
    local,
};
use lca_tests::{Service, processes};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::daemons::Daemon;

/// All proxies know all allocators and how far they are within this.
const KNOWN_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);
/// What an allocator is told it may give away: never what limits a benchmark.
const OFFER: [&str; 6] = ["--instances", "100", "--cpu", "1000", "--memory", "1024GiB"];

/// See the module. Dropping it kills everything, instances included.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) allocators: Vec<Daemon>,
    proxies: Vec<Daemon>,
    registry: Daemon,
    dir: TempDir,
}

impl Fleet {
    /// Starts them and waits until each proxy has measured each allocator: what is
    /// measured is a network that is in use, not one that is being built.
    pub(crate) async fn start(allocators: usize, proxies: usize) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("lca-bench-").tempdir()?;
        let registry = Daemon::start(dir.path(), "registry", "registry", &[], None).await?;
        let join = registry.bootstrap()?.to_owned();
        let (join, at) = (join.as_str(), dir.path());
        let started = try_join_all((0..allocators).map(async |n| {
            Daemon::start(at, &format!("allocator-{n}"), "allocator", &OFFER, Some(join)).await
        }));
        let allocators = started.await?;
        let started = try_join_all((0..proxies).map(async |n| {
            Daemon::start(at, &format!("proxy-{n}"), "proxy", &["0"], Some(join)).await
        }));
        let proxies = started.await?;
        let fleet = Self { allocators, proxies, registry, dir };
        fleet.know_each_other().await?;
        Ok(fleet)
    }

    async fn know_each_other(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + KNOWN_WITHIN;
        for proxy in &self.proxies {
            let mut manager = ManagerClient::new(socket(proxy).await?);
            loop {
                let peers = manager.list_peers(ListPeersRequest {}).await?.into_inner().peers;
                let measured = peers.iter().filter(|peer| {
                    peer.rtt_us.is_some() && peer.roles.iter().any(|role| role == "allocator")
                });
                if measured.count() == self.allocators.len() {
                    break;
                }
                ensure!(Instant::now() < deadline, "a proxy does not know all allocators");
                tokio::time::sleep(AGAIN).await;
            }
        }
        Ok(())
    }

    /// Where a proxy takes requests.
    pub(crate) fn front(&self, proxy: usize) -> anyhow::Result<SocketAddr> {
        let told = self.proxies[proxy].told("front")?;
        told.strip_prefix("http://").and_then(|at| at.parse().ok()).context("an address")
    }

    /// Registers the demo under this name, as this very program carries it.
    pub(crate) async fn add(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let mut registry = RegistryClient::new(socket(&self.registry).await?);
        demo(name, arguments)?.register(&mut registry).await?;
        Ok(())
    }

    /// Every instance of a service that was ever begun, by the number of its allocator.
    /// Those that cannot be asked have none.
    pub(crate) async fn instances(&self, service: &str) -> Vec<(usize, Instance)> {
        let mut all = Vec::new();
        for (n, allocator) in self.allocators.iter().enumerate() {
            let begun = instances_of(allocator).await.unwrap_or_default();
            all.extend(begun.into_iter().filter(|one| one.service == service).map(|one| (n, one)));
        }
        all
    }

    /// Starts another instance of a service on this allocator.
    pub(crate) async fn allocate(&self, service: &str, on: usize) -> anyhow::Result<Instance> {
        use lca::api::proto::{AllocateRequest, GetServiceRequest, allocate_request::Mode};
        let mut registry = RegistryClient::new(socket(&self.registry).await?);
        let request = GetServiceRequest { name: service.into() };
        let spec = registry.get_service(request).await?.into_inner().spec.context("a spec")?;
        let request = AllocateRequest {
            service: service.into(),
            service_hash: spec.service_hash,
            mode: Mode::New.into(),
            request_id: format!("bench-{service}-{on}"),
        };
        let mut allocator = AllocatorClient::new(socket(&self.allocators[on]).await?);
        allocator.allocate(request).await?.into_inner().instance.context("an instance")
    }

    /// Gives back every instance of a service.
    pub(crate) async fn release(&self, service: &str) -> anyhow::Result<()> {
        for (n, instance) in self.instances(service).await {
            if !has_ended(&instance) {
                let mut allocator = AllocatorClient::new(socket(&self.allocators[n]).await?);
                allocator.release(ReleaseRequest { instance: instance.id }).await?;
            }
        }
        Ok(())
    }

    /// The folder below which an allocator's instances run.
    pub(crate) fn allocator_dir(&self, n: usize) -> std::path::PathBuf {
        self.dir.path().join(format!("allocator-{n}"))
    }

    /// Stops all politely and fails if something is left.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let proxies = std::mem::take(&mut self.proxies);
        try_join_all(proxies.into_iter().map(Daemon::stop)).await?;
        let allocators = std::mem::take(&mut self.allocators);
        try_join_all(allocators.into_iter().map(Daemon::stop)).await?;
        // The registry runs in the folder itself and ends with this value.
        let registry = processes::below(self.dir.path()).len();
        ensure!(registry <= 1, "{} processes are left", registry - 1);
        Ok(())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        processes::kill_below(self.dir.path());
    }
}

/// The demo, ready when it answers `/hello`, as this very program carries it.
pub(crate) fn demo(name: &str, arguments: &[&str]) -> anyhow::Result<Service> {
    let mut service = Service::demo_of(&std::env::current_exe()?, name);
    let words = std::iter::once(&"demo-hello-world-server").chain(arguments);
    service.spec.arguments = words.map(|word| (*word).to_owned()).collect();
    Ok(service)
}

pub(crate) fn has_ended(instance: &Instance) -> bool {
    [InstanceState::Stopped, InstanceState::Failed].contains(&instance.state())
}

async fn socket(daemon: &Daemon) -> anyhow::Result<Channel> {
    Ok(local::connect(Path::new(daemon.told("local")?)).await?)
}

async fn instances_of(allocator: &Daemon) -> anyhow::Result<Vec<Instance>> {
    let request = ListInstancesRequest { include_ended: true, ..Default::default() };
    let mut client = InstancesClient::new(socket(allocator).await?);
    let asked = tokio::time::timeout(Duration::from_secs(5), client.list_instances(request));
    let Ok(answer) = asked.await else { bail!("it does not answer") };
    let peer = allocator.told("PeerId")?;
    let mut all = answer?.into_inner().instances;
    all.retain(|instance| instance.peer == peer);
    Ok(all)
}
