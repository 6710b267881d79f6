//! How long finds and misses take among fifty nodes.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use lca::discovery::{Discovery as _, Found};
use lca_node::{Timing, link::Links};

use crate::net::{finds, some_service, started};

/// How many nodes, and the most a find and a miss may take at the median: ten times
/// what this takes on two busy cores without optimization.
const NODES: usize = 50;
const QUICK: Duration = Duration::from_secs(1);

#[tokio::test]
async fn among_fifty_nodes_a_find_and_a_miss_are_quick() {
    let nodes = started(NODES, &Links::default(), Timing::default()).await;
    let key = some_service();
    let provider = &nodes[NODES / 2];
    provider.node.announce(key).await.unwrap();
    finds(&nodes[NODES - 1].node, key, provider.peer()).await;

    let mut finds = Vec::new();
    let mut misses = Vec::new();
    for node in nodes.iter().filter(|node| node.peer() != provider.peer()).take(15) {
        let started = Instant::now();
        let mut finding = node.node.find(key);
        while let Some(found) = finding.next().await {
            if matches!(found, Found::Endpoint(_)) {
                break;
            }
        }
        finds.push(started.elapsed());
        let started = Instant::now();
        let said = node.node.find(some_service()).next().await;
        assert_eq!(said, Some(Found::Miss));
        misses.push(started.elapsed());
    }
    finds.sort();
    misses.sort();
    let cost = nodes[0].node.find_stats();
    assert!(finds[finds.len() / 2] < QUICK, "{finds:?}");
    assert!(misses[misses.len() / 2] < QUICK, "{misses:?}");
    assert!(nodes[0].node.traffic().read > 0 && cost.finds > 0 && cost.answered > 0);
}
