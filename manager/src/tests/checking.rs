//! Who answers, as a person is told who wants to know why nothing works.

use std::time::Duration;

use lca::{api::proto, discovery::Discovery as _, endpoint::Role, testing::eventually};
use tokio::time::Instant;

use super::world::{HELLO, World, spec};

fn of(checks: &[proto::PeerCheck], peer: lca::PeerId) -> &proto::PeerCheck {
    checks.iter().find(|check| check.peer == peer.to_string()).expect("it is among them")
}

#[tokio::test]
async fn a_check_names_who_answers_and_who_does_not() {
    let world = World::new();
    let [roomy, dead] = [0, 1].map(|_| world.allocator());
    roomy.runs(&spec(HELLO)).await;
    world.network.take_down(dead.id());
    let client = world.client();
    let checked = eventually("both to be known", async || {
        let checked = client.manager.check().await;
        (checked.allocators.len() == 2).then_some(checked)
    })
    .await;
    let registry = of(&checked.registries, world.registry_peer.local());
    assert!(registry.answered && registry.error.is_empty(), "{registry:?}");
    let roomy = of(&checked.allocators, roomy.id());
    assert!(roomy.answered);
    assert_eq!(roomy.used.as_ref().unwrap().instances, 1);
    assert_eq!(roomy.total.as_ref().unwrap().instances, 8);
    let dead = of(&checked.allocators, dead.id());
    assert!(!dead.answered && !dead.error.is_empty(), "{dead:?}");

    world.network.take_down(world.registry_peer.local());
    let checked = client.manager.check().await;
    let registry = of(&checked.registries, world.registry_peer.local());
    assert!(!registry.answered && !registry.error.is_empty(), "{registry:?}");
}

#[tokio::test(start_paused = true)]
async fn peers_that_never_answer_delay_a_check_by_no_more_than_their_deadline() {
    let world = World::new();
    let silent: Vec<_> = (0..5).map(|_| world.network.join(&[Role::Allocator])).collect();
    // Whoever never serves takes the connection and says nothing.
    let client = world.client();
    eventually("all to be known", async || {
        client.manager.inner.allocators.list().len() == silent.len()
    })
    .await;
    let begun = Instant::now();
    let checked = client.manager.check().await;
    assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    assert_eq!(checked.allocators.len(), silent.len());
    assert!(checked.allocators.iter().all(|check| !check.answered), "{checked:?}");
    assert!(checked.registries.iter().all(|check| check.answered));
}

#[tokio::test]
async fn with_nobody_there_a_check_is_empty() {
    let world = World::new();
    world.network.take_down(world.registry_peer.local());
    let client = world.client();
    let checked = client.manager.check().await;
    assert!(checked.allocators.is_empty());
    assert!(checked.registries.iter().all(|check| !check.answered));
}
