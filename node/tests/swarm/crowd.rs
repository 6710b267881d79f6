//! More providers of one thing than one answer of the DHT can name.

use std::collections::HashSet;

use lca::{discovery::Discovery as _, testing::eventually};
use lca_node::Timing;

use crate::net::{found, some_service, started};

/// An answer names at most twenty.
const MORE: usize = 25;

// FAULTS 58.
#[tokio::test]
async fn of_more_providers_than_an_answer_holds_every_one_is_found_in_time() {
    let nodes = started(MORE + 1, &Default::default(), Timing::default()).await;
    let key = some_service();
    for node in &nodes[1..] {
        node.node.announce(key).await.unwrap();
    }
    let all: HashSet<_> = nodes[1..].iter().map(|node| node.peer()).collect();
    let mut seen = HashSet::new();
    eventually("each to be found once", async || {
        seen.extend(found(&nodes[0].node, key).await.into_iter().map(|one| one.peer));
        if seen == all { Ok(()) } else { Err(format!("{} of {MORE}", seen.len())) }
    })
    .await;
}
