//! A limit on instances, held by managers that do not know of each other.

use std::time::Duration;

use lca::api::proto::{
    AllocateServiceRequest, InstanceState, ListPeersRequest, ReleaseRequest,
    allocate_progress::Progress, allocate_request::Mode, allocator_client::AllocatorClient,
    manager_client::ManagerClient,
};
use lca_node::link::Profile;
use lca_tests::{Cluster, Service, eventually_within, http};
use tokio::task::JoinSet;

/// Two places, each with two allocators and three proxies, so far apart that an
/// instance in one is beyond what clients in the other are promised.
async fn two_places() -> anyhow::Result<Cluster> {
    let cluster = Cluster::builder().allocators(4).proxies(6).start().await?;
    let place = |first: usize, proxies: usize| {
        let allocators = [first, first + 1].map(|n| cluster.allocator(n).peer);
        let proxies = [proxies, proxies + 1, proxies + 2].map(|n| cluster.proxy(n).peer);
        allocators.into_iter().chain(proxies).collect::<Vec<_>>()
    };
    for here in place(0, 0) {
        for there in place(2, 3) {
            cluster.link(here, there, Profile::rtt(Duration::from_millis(50)));
        }
    }
    Ok(cluster)
}

fn slow(name: &str, max_instances: u32) -> Service {
    let mut service = Service::demo(name).args(["--start-delay", "300"]);
    service.spec.max_instances = max_instances;
    let requirements = service.spec.requirements.get_or_insert_default();
    requirements.soft_rtt_ms = 20;
    service
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stampede_in_two_places_starts_one_where_one_is_the_limit() -> anyhow::Result<()> {
    let cluster = two_places().await?;
    cluster.add(&slow("single", 1)).await?;
    // The holders of a claim are the first of all that a manager knows.
    for n in 0..6 {
        let api = cluster.proxy_api(n).await?;
        eventually_within(
            Duration::from_secs(30),
            "a manager to know all allocators",
            async || {
                let peers = ManagerClient::new(api.clone()).list_peers(ListPeersRequest {}).await;
                let peers = peers.map_err(|status| status.to_string())?.into_inner().peers;
                let allocators =
                    peers.iter().filter(|one| one.roles.iter().any(|r| r == "allocator"));
                if allocators.count() == 4 { Ok(()) } else { Err(format!("{peers:?}")) }
            },
        )
        .await;
    }
    let mut asking = JoinSet::new();
    for n in 0..60 {
        let front = cluster.front(n % 6);
        asking.spawn(async move { http::get(front, "/single/hello").await });
    }
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer??.status, 200);
    }
    let instances = cluster.instances().await?;
    assert_eq!(instances.len(), 1, "of all that ever were: {instances:?}");

    // Another by hand is refused, with the reason.
    let request = AllocateServiceRequest {
        service: "single".into(),
        mode: Mode::New.into(),
        ..Default::default()
    };
    let api = cluster.proxy_api(4).await?;
    let mut progress = ManagerClient::new(api.clone()).allocate(request).await?.into_inner();
    let refused = loop {
        match progress.message().await {
            Ok(Some(message)) => {
                assert!(!matches!(message.progress, Some(Progress::Done(_))), "{message:?}");
            }
            Ok(None) => panic!("neither done nor refused"),
            Err(status) => break status,
        }
    };
    assert!(refused.message().contains("may have 1 instances at most"), "{refused}");

    // When it ends there is room for one again.
    let release = ReleaseRequest { instance: instances[0].id.clone() };
    AllocatorClient::new(api).release(release).await?;
    eventually_within(Duration::from_secs(30), "another to be started", async || match http::get(
        cluster.front(5),
        "/single/hello",
    )
    .await
    {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let live = cluster.instances().await?;
    let live = live.iter().filter(|one| one.state() == InstanceState::Ready).count();
    assert_eq!(live, 1);
    cluster.drain().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_be_kept_runs_unasked_and_the_next_keeper_has_it_when_one_is_killed()
-> anyhow::Result<()> {
    let mut cluster = Cluster::builder().allocators(3).start().await?;
    let mut service = Service::demo("kept").idle_timeout_ms(500);
    service.spec.min_instances = 1;
    cluster.add(&service).await?;
    let mut dead = Vec::new();
    let first = keeper(&cluster, &dead).await;
    assert_eq!(cluster.get("/kept/hello").await?.status, 200);
    cluster.crash_allocator(first).await;
    dead.push(first);
    let second = keeper(&cluster, &dead).await;
    assert_ne!(first, second);
    cluster.drain().await;
    Ok(())
}

/// Waits until one of those that live has a ready instance, and says which.
async fn keeper(cluster: &Cluster, dead: &[usize]) -> usize {
    eventually_within(Duration::from_secs(30), "somebody to keep an instance", async || {
        for n in (0..3).filter(|n| !dead.contains(n)) {
            let instances = cluster.instances_of(n).await.unwrap_or_default();
            if instances.iter().any(|one| one.state() == InstanceState::Ready) {
                return Ok(n);
            }
        }
        Err("nobody has one")
    })
    .await
}
