//! Nodes that come together: early, late, alone, and by the suite of the port.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use lca::{
    Kind,
    discovery::{Discovery, Found, Key, suite},
    endpoint::Role,
    mesh::Mesh as _,
    testing::eventually,
};
use lca_node::{Config, Identity, Joined, link::Links};
use tokio::time::timeout;

use crate::net::{PATIENCE, Running, config, finds, network, some_service};

#[tokio::test]
async fn three_real_nodes_pass_the_suite_of_discovery() {
    let nodes = network(3, &Links::default()).await;
    let ports: Vec<Arc<dyn Discovery>> =
        nodes.iter().map(|one| Arc::new(one.node.clone()) as _).collect();
    suite::passes(ports.try_into().expect("three")).await;
}

#[tokio::test]
async fn a_node_without_bootstraps_is_alone_at_once_and_stops_when_asked() {
    let one = Running::start(config(vec![])).await.unwrap();
    assert_eq!(timeout(PATIENCE, one.node.joined()).await, Ok(Joined::Alone));
    assert_eq!(one.node.rtt(one.peer()), Some(Duration::ZERO));
    one.stop().await;
}

#[tokio::test]
async fn a_node_whose_bootstrap_is_down_starts_alone_and_joins_when_it_appears() {
    let down = Running::start(config(vec![])).await.unwrap();
    let bootstrap = down.address();
    let down = down.crash();
    let early = Running::start(config(vec![bootstrap])).await.unwrap();
    assert_eq!(timeout(PATIENCE, early.node.joined()).await, Ok(Joined::Alone));
    assert_eq!(early.node.status().borrow().bootstraps_reached, 0);

    // It works meanwhile, for what it can.
    let key = some_service();
    early.node.announce(key).await.expect("nobody hears it, and that is no error");
    let said: Vec<_> = early.node.find(key).collect().await;
    assert_eq!(said, [Found::Miss]);

    let late = eventually("the port to be free", async || Running::start(down.clone()).await).await;
    let mut status = early.node.status();
    let joined = status.wait_for(|status| status.joined == Some(Joined::Joined));
    timeout(PATIENCE, joined).await.expect("joins by itself").expect("it runs");
    finds(&late.node, key, early.peer()).await;
    assert_eq!(early.node.status().borrow().bootstraps_reached, 1);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_blocks_nothing() {
    let other = Running::start(config(vec![])).await.unwrap();
    let mut nameless = other.address();
    nameless.host = lca::config::Host::Dns("no-such-host.invalid".to_owned());
    nameless.peer = Identity::ephemeral().peer_id();
    let mut by_name = other.address();
    by_name.host = lca::config::Host::Dns("localhost".to_owned());
    let one = Running::start(config(vec![nameless, by_name])).await.unwrap();
    let mut status = one.node.status();
    let reached = status.wait_for(|status| status.bootstraps_reached == 1);
    timeout(PATIENCE, reached).await.expect("the other is reached").expect("it runs");
}

#[tokio::test]
async fn allocators_and_registries_are_found_by_their_role() {
    let first = Running::start(config(vec![])).await.unwrap();
    let roles = [Role::Allocator, Role::Proxy];
    let second = Config { roles: roles.to_vec(), ..config(vec![first.address()]) };
    let second = Running::start(second).await.unwrap();
    let endpoint = finds(&first.node, Key::Role(Role::Allocator), second.peer()).await;
    assert_eq!(endpoint.mesh, second.node.mesh_addresses());
    assert!(endpoint.roles == roles && endpoint.version == lca::VERSION);
    let known = first.node.known();
    assert!(known.iter().any(|known| known.peer == second.peer()), "{known:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_nothing_runs() {
    let first = Running::start(config(vec![])).await.unwrap();
    let taken = first.address().port;
    let mut again = config(vec![]);
    again.listen.set_port(taken);
    let error = Running::start(again).await.err().expect("libp2p alone would share the port");
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.public().contains(&taken.to_string()), "{error}");
}

#[tokio::test]
async fn a_node_that_listens_everywhere_says_where_it_can_be_reached() {
    let mut everywhere = config(vec![]);
    everywhere.listen = "0.0.0.0:0".parse().unwrap();
    everywhere.mesh_listen = "0.0.0.0:0".parse().unwrap();
    let one = Running::start(everywhere.clone()).await.unwrap();
    let told = one.node.mesh_addresses();
    assert!(!told.is_empty() && told.iter().all(|a| !a.ip().is_unspecified()), "{told:?}");
    assert!(one.node.bootstrap_addresses().iter().all(|at| at.port != 0));

    everywhere.advertise = vec!["192.0.2.7".parse().unwrap()];
    let one = Running::start(everywhere).await.unwrap();
    assert_eq!(one.node.mesh_addresses()[0].ip().to_string(), "192.0.2.7");
}
