//! A network cut in two halves that both go on serving and starting, and are joined again.

use std::time::Duration;

use lca::{
    PeerId,
    api::proto::{Instance, InstanceState, ListPeersRequest, manager_client::ManagerClient},
};
use lca_node::link::Profile;
use lca_tests::{Cluster, Service, eventually, eventually_within, http as client};
use tokio::time::Instant;

use crate::{
    loss::another,
    scaling::{Clients, ready},
};

/// Within this time after the cut has healed there is no more than policy asks for.
const CONVERGED: Duration = Duration::from_secs(60);
/// So long an instance that nobody uses stays.
const IDLE_MS: u64 = 2000;
/// Between the requests of a client: often enough that what it uses does not idle out.
const PAUSE: Duration = Duration::from_millis(200);
/// Each half has two allocators and a proxy; the registry is in the first.
const ALLOCATORS: usize = 4;

/// The peers of one half.
fn half(cluster: &Cluster, which: usize) -> Vec<PeerId> {
    let allocators = [2 * which, 2 * which + 1].map(|n| cluster.allocator(n).peer);
    let mut peers = vec![cluster.proxy(which).peer];
    peers.extend(allocators);
    if which == 0 {
        peers.push(cluster.registry().peer);
    }
    peers
}

/// Every pair of peers with one in each half.
fn pairs(cluster: &Cluster) -> Vec<(PeerId, PeerId)> {
    let (here, there) = (half(cluster, 0), half(cluster, 1));
    here.iter().flat_map(|a| there.iter().map(|b| (*a, *b))).collect()
}

/// How many instances of `service` are ready in each half.
async fn in_halves(cluster: &Cluster, service: &str) -> Result<[usize; 2], String> {
    let peers = [half(cluster, 0), half(cluster, 1)]
        .map(|half| half.iter().map(PeerId::to_string).collect::<Vec<_>>());
    let ready = ready(cluster).await?;
    let in_half = |half: &Vec<String>| {
        let here = |one: &&Instance| one.service == service && half.contains(&one.peer);
        ready.iter().filter(here).count()
    };
    Ok([in_half(&peers[0]), in_half(&peers[1])])
}

async fn are_in_halves(cluster: &Cluster, what: &str, wanted: [(&str, [usize; 2]); 3]) {
    eventually(what, async || {
        let mut seen = Vec::new();
        for (service, _) in wanted {
            seen.push((service, in_halves(cluster, service).await?));
        }
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Waits until every manager knows all allocators: they agree on who holds claims.
async fn all_are_known(cluster: &Cluster) -> anyhow::Result<()> {
    for n in 0..2 {
        let mut api = ManagerClient::new(cluster.proxy_api(n).await?);
        eventually("a manager to know all allocators", async || {
            let peers = api.list_peers(ListPeersRequest {}).await.map_err(|e| e.to_string())?;
            let peers = peers.into_inner().peers;
            let is_allocator = |roles: &[String]| roles.iter().any(|role| role == "allocator");
            let count = peers.iter().filter(|peer| is_allocator(&peer.roles)).count();
            if count == ALLOCATORS { Ok(()) } else { Err(format!("{count}")) }
        })
        .await;
    }
    Ok(())
}

// FAULTS 80.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_that_both_allocate_are_one_again_with_no_more_than_there_may_be()
-> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(ALLOCATORS).proxies(2).start().await?;
    let mut single = Service::demo("single").idle_timeout_ms(IDLE_MS);
    single.spec.max_instances = 1;
    let mut kept = Service::demo("kept").idle_timeout_ms(IDLE_MS);
    kept.spec.min_instances = 1;
    let free = Service::demo("free").idle_timeout_ms(IDLE_MS);
    for service in [&single, &kept, &free] {
        cluster.add(service).await?;
    }
    all_are_known(&cluster).await?;
    // The registry will be out of reach on one side: everybody has the program before.
    cluster.add(&Service::demo("before").idle_timeout_ms(100)).await?;
    for n in 0..ALLOCATORS {
        another(&cluster, n, "before").await?;
    }
    let mut clients = Vec::new();
    for service in ["single", "free"] {
        for n in 0..2 {
            let target = format!("/{service}/hello");
            clients.push(Clients::start(cluster.front(n), &target, 1, PAUSE));
            clients.last().expect("just now").answers(3).await;
        }
    }
    eventually("one of each to be enough for all", async || {
        let ready = ready(&cluster).await?;
        let services = ready.iter().map(|one| one.service.as_str());
        let mut services: Vec<_> = services.filter(|service| *service != "before").collect();
        services.sort_unstable();
        if services == ["free", "kept", "single"] { Ok(()) } else { Err(format!("{services:?}")) }
    })
    .await;

    // Holders, home and the first keeper are on one side; the other goes on without them.
    for (a, b) in pairs(&cluster) {
        cluster.link(a, b, Profile::CUT);
    }
    let one_each = ["single", "free", "kept"].map(|service| (service, [1, 1]));
    are_in_halves(&cluster, "one of each on both sides", one_each).await;
    for clients in &clients {
        clients.answers(5).await;
    }
    let cut = cluster.instances().await?.len();

    for (a, b) in pairs(&cluster) {
        cluster.heal(a, b);
    }
    let healed = Instant::now();
    // Both sides go on asking for what may be there once: one is given up all the same.
    for service in ["single", "kept"] {
        eventually_within(
            CONVERGED.saturating_sub(healed.elapsed()),
            "one that is left",
            async || {
                let [here, there] = in_halves(&cluster, service).await?;
                if here + there == 1 {
                    Ok(())
                } else {
                    Err(format!("{service}: {here} and {there}"))
                }
            },
        )
        .await;
    }
    for clients in &clients {
        clients.answers(5).await;
    }
    for clients in clients {
        assert_eq!(clients.stop().await, [""; 0]);
    }
    // What has no limit is there as long as somebody uses it: when one side stops, one is left.
    let few = Clients::start(cluster.front(0), "/free/hello", 1, PAUSE);
    eventually("one of two to idle out", async || {
        let [here, there] = in_halves(&cluster, "free").await?;
        if here + there == 1 { Ok(()) } else { Err(format!("{here} and {there}")) }
    })
    .await;
    for _ in 0..5 {
        assert_eq!(client::get(cluster.front(1), "/free/hello").await?.status, 200);
    }
    assert_eq!(few.stop().await, [""; 0]);
    let all = cluster.instances().await?;
    // A machine that is busy may lose probes once more, and one start with them.
    assert!(all.len() <= cut + 1, "started after the cut had healed: {all:#?}");
    let failed = all.iter().filter(|one| one.state() == InstanceState::Failed).count();
    assert_eq!(failed, 0, "{all:#?}");
    cluster.drain().await;
    Ok(())
}
