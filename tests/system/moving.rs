//! A service that gets too far away while it is used: it moves, and no request notices.
//! The original allocated the better instance and then threw it away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lca::api::proto::InstanceState;
use lca_manager::moving::Reason;
use lca_node::link::Profile;
use lca_tests::{Cluster, Service, eventually, http as client};

/// Far above what loopback takes on a busy machine,
const SOFT_MS: u32 = 250;
/// and above that, with room below the second after which a probe is lost.
const FAR: Duration = Duration::from_millis(400);
/// Programs that send one request after the other.
const CLIENTS: usize = 3;

#[tokio::test]
async fn a_better_instance_is_allocated_used_and_kept_and_no_request_fails() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    let service = Service::demo("near").soft_rtt_ms(SOFT_MS).hard_rtt_ms(10_000);
    cluster.add(&service.idle_timeout_ms(4_000)).await?;
    assert_eq!(cluster.get("/near/hello").await?.status, 200);
    let first = &cluster.instances().await?[0];
    let (old, new) = match cluster.allocator(0).peer.to_string() == first.peer {
        true => (0, 1),
        false => (1, 0),
    };

    let (front, stop) = (cluster.front(0), Arc::new(AtomicBool::new(false)));
    let clients = [0; CLIENTS].map(|_| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut answers = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = client::get(front, "/near/hello").await?;
                anyhow::ensure!(answer.status == 200, "{}", answer.text());
                answers += 1;
            }
            anyhow::Ok(answers)
        })
    });
    cluster.link(cluster.proxy(0).peer, cluster.allocator(old).peer, Profile::rtt(FAR));

    let name = "near".parse()?;
    let moves = || cluster.manager(0).moves(&name);
    eventually("the service to move", async || !moves().is_empty()).await;
    let made = moves();
    assert_eq!((made[0].from.to_string(), made[0].reason), (first.id.clone(), Reason::Soft));
    eventually("the old one to idle out by itself", async || {
        let all = cluster.instances_of(old).await.map_err(|error| error.to_string())?;
        let is_over = all.iter().all(|one| one.state() == InstanceState::Stopped);
        if is_over { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await?? > 0, "every client was answered");
    }

    let there = cluster.instances_of(new).await?;
    assert_eq!(there.len(), 1, "one was allocated: {there:#?}");
    assert_eq!((&there[0].id, there[0].state()), (&made[0].to.to_string(), InstanceState::Ready));
    assert_eq!(moves().len(), 1, "and it stayed there: {:?}", moves());
    assert_eq!(cluster.get("/near/hello").await?.status, 200);
    assert_eq!(cluster.instances_of(old).await?.len(), 1, "nothing was started where it is far");
    cluster.drain().await;
    Ok(())
}
