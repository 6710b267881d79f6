//! Many clients want the same at once, and nobody coordinates them.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use lca::{
    Kind,
    api::proto::{
        ListInstancesRequest, instances_client::InstancesClient, registry_client::RegistryClient,
    },
    discovery::{
        Discovery as _,
        memory::{Network, Peer},
    },
    endpoint::Role,
    mesh::Mesh as _,
    shutdown::Tasks,
    specs::{self, Specs},
};
use lca_allocator::{Allocator, Collaborators, Drivers, driver::process::Process};
use lca_ingress::Ingress;
use lca_manager::{Manager, Wish};
use lca_tests::{Cluster, Service, eventually, http as client};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::service::Routes;

use crate::scaling::{Clients, ready};

const ALLOCATORS: usize = 5;
const MANAGERS: usize = 50;
/// Requests that each manager is given at once.
const EACH: usize = 10;
/// A start that took too long on a busy machine would be followed by another.
const START_MS: u64 = 60_000;
/// How many instances there may be.
const MOST: u32 = 3;

// FAULTS 41.
#[tokio::test]
async fn five_hundred_first_requests_of_one_proxy_start_one_instance() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(3).start().await?;
    // Slow to start, so that all of them ask while it is starting.
    cluster
        .add(&Service::demo("slow-start").args(["--start-delay", "500"]).start_timeout_ms(START_MS))
        .await?;
    let requests = (0..500).map(|_| cluster.get("/slow-start/hello"));
    for answer in join_all(requests).await {
        let answer = answer?;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let instances = cluster.instances().await?;
    assert_eq!(instances.len(), 1, "{instances:#?}");
    cluster.drain().await;
    Ok(())
}

/// Managers, allocators and a registry as they are, on a network in memory: fifty nodes
/// of libp2p would be busy with each other.
struct Crowd {
    network: Network,
    registry: Peer,
    managers: Vec<(Peer, Manager)>,
    allocators: Vec<(Peer, Allocator)>,
    _tasks: Tasks,
    dir: TempDir,
}

impl Crowd {
    /// Each allocator is the near one of a fifth of the managers.
    async fn start() -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("lca-test-").tempdir()?;
        let (network, tasks) = (Network::default(), Tasks::default());
        let registry = network.join(&[Role::Registry]);
        let kept = lca_registry::Registry::in_memory(&dir.path().join("registry"))?;
        registry.serve(Routes::new(kept.server()));
        let spawner = tasks.spawner();
        let specs = |peer: &Arc<Peer>| {
            Specs::start(specs::Config::default(), peer.clone(), peer.clone(), &spawner)
        };
        let mut allocators = Vec::new();
        for n in 0..ALLOCATORS {
            let peer = network.join(&[Role::Allocator]);
            let mut config = lca_allocator::Config::new(dir.path().join(format!("allocator-{n}")));
            config.capacity.cpu_millis = 1_000_000;
            config.capacity.memory_bytes = 1 << 40;
            let shared = Arc::new(peer.clone());
            let processes = Process::open(&config.data_dir.join("instances"))?;
            let collaborators = Collaborators {
                drivers: Drivers::new(Arc::new(processes)),
                specs: specs(&shared)?,
                discovery: shared.clone(),
                mesh: shared,
                ingress: Ingress::new(lca_ingress::Config::default(), Default::default()),
                fronts: None,
            };
            let allocator = Allocator::start(config, collaborators, &spawner).await?;
            let routes = Routes::new(allocator.allocator_server());
            peer.serve(routes.add_service(allocator.instances_server()));
            allocators.push((peer, allocator));
        }
        let mut managers = Vec::new();
        for n in 0..MANAGERS {
            let peer = network.join(&[Role::Proxy]);
            for (at, (allocator, _)) in allocators.iter().enumerate() {
                let rtt = if n % ALLOCATORS == at { 1 } else { 60 };
                network.set_rtt(peer.local(), allocator.local(), Duration::from_millis(rtt));
            }
            let shared = Arc::new(peer.clone());
            let (specs, config) = (specs(&shared)?, lca_manager::Config::default());
            let manager = Manager::start(config, specs, shared.clone(), shared, &spawner);
            managers.push((peer, manager));
        }
        Ok(Self { network, registry, managers, allocators, _tasks: tasks, dir })
    }

    async fn add(&self, service: &Service) -> anyhow::Result<()> {
        let client = self.network.join(&[]);
        let channel = client.grpc(&self.registry.own()).await?;
        service.register(&mut RegistryClient::new(channel)).await.map(drop)
    }

    /// What became of requests for `service`, [`EACH`] of each manager at once.
    async fn ask(&self, service: &str) -> Vec<lca::Result<lca_manager::Target>> {
        let asking = (0..MANAGERS * EACH).map(async |n| {
            let name = service.parse().expect("a name");
            let wish = Wish::new(name, Instant::now() + Duration::from_secs(60));
            self.managers[n % MANAGERS].1.pick(wish).await
        });
        join_all(asking).await
    }

    /// How many instances of `service` there ever were.
    async fn instances(&self, service: &str) -> anyhow::Result<usize> {
        let client = self.network.join(&[]);
        let mut count = 0;
        for (peer, _) in &self.allocators {
            let channel = client.grpc(&peer.own()).await?;
            let (service, include_ended) = (service.to_owned(), true);
            let request = ListInstancesRequest { service, include_ended, ..Default::default() };
            let all = InstancesClient::new(channel).list_instances(request).await?.into_inner();
            count += all.instances.len();
        }
        Ok(count)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        lca_tests::processes::kill_below(self.dir.path());
    }
}

// FAULTS 41.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_requests_at_fifty_managers_start_no_more_than_there_may_be() -> anyhow::Result<()> {
    let crowd = Crowd::start().await?;
    let service = |name: &str, most: u32| {
        let mut service = Service::demo(name).args(["--start-delay", "300"]).soft_rtt_ms(30);
        service = service.start_timeout_ms(START_MS);
        service.spec.max_instances = most;
        service
    };
    crowd.add(&service("few", MOST)).await?;
    crowd.add(&service("many", 0)).await?;
    let asked = crowd.ask("few").await;
    let count = crowd.instances("few").await?;
    assert!((1..=MOST as usize).contains(&count), "{count} of {MOST}");
    let refused: Vec<_> = asked.iter().filter_map(|one| one.as_ref().err()).collect();
    for error in &refused {
        assert_eq!(error.kind(), Kind::NoCapacity, "{error}");
        assert!(error.retry_delay().is_some(), "{error}");
    }
    assert!(refused.len() < asked.len(), "nobody was answered: {refused:?}");
    // Without the limit each place gets its own, and no more.
    let asked = crowd.ask("many").await;
    assert!(asked.iter().all(Result::is_ok), "{asked:?}");
    assert_eq!(crowd.instances("many").await?, ALLOCATORS);
    for (_, allocator) in &crowd.allocators {
        allocator.shutdown().await;
    }
    assert_eq!(lca_tests::processes::below(crowd.dir.path()), [0; 0], "something is left running");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overload_that_several_managers_see_gets_one_more_and_not_one_each() -> anyhow::Result<()>
{
    const FRONTS: usize = 4;
    let cluster = Cluster::builder().allocators(3).proxies(FRONTS).start().await?;
    // Eight clients are too many for one instance, and few for two.
    let mut service = Service::demo("busy").start_timeout_ms(START_MS);
    service.spec.target_concurrency = 6;
    cluster.add(&service).await?;
    for n in 0..FRONTS {
        eventually("a manager to know all allocators", async || {
            let known = cluster.proxy_node(n).known();
            known.iter().filter(|node| node.has(Role::Allocator)).count() == 3
        })
        .await;
        assert_eq!(client::get(cluster.front(n), "/busy/hello").await?.status, 200);
    }
    assert_eq!(cluster.instances().await?.len(), 1, "one is enough to begin with");
    let clients: Vec<_> = (0..FRONTS)
        .map(|n| Clients::start(cluster.front(n), "/busy/slow?ms=100", 2, Duration::ZERO))
        .collect();
    eventually("a second instance that has work", async || {
        let ready = ready(&cluster).await?;
        let working = ready.iter().filter(|one| one.load.is_some_and(|load| load.in_flight > 0));
        if working.count() == 2 { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    // More than a window of looks, on a quiet machine.
    for clients in &clients {
        clients.answers(80).await;
    }
    for clients in clients {
        assert_eq!(clients.stop().await, [""; 0]);
    }
    let said = |outcome: &str| -> f64 {
        let series = format!(r#"lca_scale_out_total{{outcome="{outcome}"}}"#);
        let managers = (0..FRONTS).map(|n| cluster.manager(n).metrics());
        managers.map(|metrics| lca::testing::counted(metrics, &series)).sum()
    };
    let (started, taken, all) = (said("started"), said("taken"), cluster.instances().await?);
    assert!(started <= 1.0, "started {started}, taken {taken}: {all:#?}");
    // On a busy machine a peer that lost its probes may have been replaced by a request.
    assert!(all.len() >= 2, "started {started}, taken {taken}: {all:#?}");
    cluster.drain().await;
    Ok(())
}
