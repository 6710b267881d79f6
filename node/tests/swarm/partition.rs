//! A network cut in two, and whole again.

use lca::{discovery::Discovery as _, testing::eventually};
use lca_node::link::{Links, Profile};

use crate::net::{finds, found, network, some_service};

#[tokio::test]
async fn a_partition_heals_by_itself() {
    let links = Links::default();
    let nodes = network(4, &links).await;
    let key = some_service();
    let sides = |profile: Option<Profile>| {
        for a in &nodes[..2] {
            for b in &nodes[2..] {
                match profile {
                    Some(profile) => links.set(a.peer(), b.peer(), profile),
                    None => links.clear(a.peer(), b.peer()),
                }
            }
        }
    };
    sides(Some(Profile::CUT));
    for one in &nodes {
        eventually("the other side to be noticed missing", async || {
            let status = one.node.status().borrow().clone();
            (status.peers <= 1).then_some(()).ok_or(status)
        })
        .await;
    }
    nodes[0].node.announce(key).await.unwrap();
    finds(&nodes[1].node, key, nodes[0].peer()).await;
    assert!(found(&nodes[3].node, key).await.is_empty(), "the other side cannot know");

    sides(None);
    finds(&nodes[3].node, key, nodes[0].peer()).await;
    finds(&nodes[2].node, key, nodes[0].peer()).await;
}
