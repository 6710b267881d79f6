//! Nodes that crash and come back.

use std::time::Duration;

use lca::{discovery::Discovery as _, testing::eventually};
use lca_node::link::Links;

use crate::net::{Running, finds, found, network, some_service};

#[tokio::test]
async fn a_crashed_node_is_forgotten_and_found_again_when_it_is_back() {
    let mut nodes = network(4, &Links::default()).await;
    let key = some_service();
    let gone = nodes.pop().expect("four");
    gone.node.announce(key).await.unwrap();
    let asker = &nodes[1].node;
    let before = finds(asker, key, gone.peer()).await;

    let config = gone.crash();
    // The caller could not reach it and says so: it is not told again as if it lived,
    // although others still keep its announcement and its record.
    eventually("the crash to be noticed", async || {
        asker.forget(before.peer);
        let found = found(asker, key).await;
        found.is_empty().then_some(()).ok_or(found)
    })
    .await;

    let back = eventually("its port to be free", async || Running::start(config.clone()).await);
    let back = back.await;
    back.node.announce(key).await.unwrap();
    let again = eventually("its new word", async || {
        let endpoint = finds(asker, key, back.peer()).await;
        if endpoint.boot == before.boot + 1 { Ok(endpoint) } else { Err(endpoint) }
    });
    assert_eq!(again.await.mesh, back.node.mesh_addresses());
}

#[tokio::test]
async fn the_bootstrap_may_crash_and_return_and_everyone_is_there_again() {
    let mut nodes = network(4, &Links::default()).await;
    let key = some_service();
    let bootstrap = nodes.remove(0);
    let (peer, config) = (bootstrap.peer(), bootstrap.crash());
    nodes[0].node.announce(key).await.unwrap();
    finds(&nodes[2].node, key, nodes[0].peer()).await;

    let back = eventually("its port to be free", async || Running::start(config.clone()).await);
    let back = back.await;
    assert_eq!(back.peer(), peer);
    finds(&back.node, key, nodes[0].peer()).await;
    for one in &nodes {
        eventually("the bootstrap to be connected again", async || {
            let status = one.node.status().borrow().clone();
            (status.bootstraps_reached == 1).then_some(()).ok_or(status)
        })
        .await;
    }
}

#[tokio::test]
async fn an_announcement_survives_whoever_kept_it() {
    let mut nodes = network(5, &Links::default()).await;
    let key = some_service();
    let announcer = nodes.pop().expect("five");
    announcer.node.announce(key).await.unwrap();
    finds(&nodes[0].node, key, announcer.peer()).await;
    // All that could have kept it, but two, are gone; longer than the announcement's
    // life later it is still found, because it was renewed.
    nodes.truncate(4);
    let last = nodes.pop().expect("four");
    let _first = nodes.remove(0);
    nodes.into_iter().for_each(|node| drop(node.crash()));
    let life = last.config.timing.announcement_life + Duration::from_millis(500);
    let end = tokio::time::Instant::now() + life;
    while tokio::time::Instant::now() < end {
        finds(&last.node, key, announcer.peer()).await;
    }
}
