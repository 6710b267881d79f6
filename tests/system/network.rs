//! The network itself: starting alone, late bootstraps, noise on its ports.

use std::time::Duration;

use lca::api::proto::{ListPeersRequest, manager_client::ManagerClient};
use lca_tests::{Cluster, Service, eventually, http as client};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

#[tokio::test]
async fn a_fleet_starts_while_its_bootstrap_is_down_and_joins_it_later() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("late")).await?;
    cluster.crash_allocator(0).await;
    cluster.crash_registry().await;
    // The only bootstrap of this allocator does not answer now.
    cluster.start_allocator(0).await?;
    cluster.restart_registry().await?;
    eventually("the allocator to have joined", async || {
        let answer = cluster.get("/late/hello").await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn noise_on_any_port_is_cut_off_and_hurts_nobody() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("sturdy")).await?;
    let noise: Vec<u8> =
        (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut targets = cluster.allocator(0).mesh.clone();
    targets.extend(&cluster.registry().mesh);
    targets.push(cluster.front(0));
    for address in targets {
        for bytes in [
            &noise[..],
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ] {
            let mut stream = TcpStream::connect(address).await?;
            // A peer that closes early has answered too.
            let _closed = stream.write_all(bytes).await;
            let mut sink = Vec::new();
            let closed = timeout(Duration::from_secs(12), stream.read_to_end(&mut sink)).await;
            assert!(closed.is_ok(), "{address} holds a connection that makes no sense");
        }
    }
    assert_eq!(cluster.get("/sturdy/hello").await?.status, 200);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn every_node_is_listed_with_role_and_distance() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    let mut manager = ManagerClient::new(cluster.proxy_api(0).await?);
    let expected = [cluster.registry().peer, cluster.allocator(0).peer, cluster.allocator(1).peer];
    eventually("all peers to be known and measured", async || {
        let peers = manager
            .list_peers(ListPeersRequest {})
            .await
            .map_err(|error| error.to_string())?
            .into_inner()
            .peers;
        let own = peers.first().is_some_and(|peer| peer.local && peer.roles == ["proxy"]);
        let known =
            expected.iter().all(|peer| peers.iter().any(|known| known.peer == peer.to_string()));
        let measured = peers
            .iter()
            .filter(|peer| peer.roles == ["allocator"])
            .all(|peer| peer.rtt_us.is_some());
        if own && known && measured { Ok(()) } else { Err(format!("{peers:#?}")) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_front_answers_only_to_its_own_names() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("rebind")).await?;
    let request = b"GET /rebind/hello HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let answer = client::raw(cluster.front(0), request).await?;
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
    assert!(cluster.instances().await?.is_empty(), "a rebound name started an instance");
    cluster.drain().await;
    Ok(())
}
