//! What a node knows of the registry, while it is there, away, and back.

use std::{sync::atomic::Ordering, time::Duration};

use lca::{
    Kind, ServiceName,
    discovery::{Discovery as _, memory::Network},
    specs::Config,
    testing::eventually,
};
use tokio::time::{Instant, timeout};

use crate::{
    harness::{TestNode, TestRegistry},
    hostile::{Lie, lie},
};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_change_is_known_within_two_seconds_without_asking() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    registry.put("hello", "1", None).await;
    let node = TestNode::start(&network);
    node.follows("hello").await;
    let before = node.specs.get(&name("hello")).await.unwrap();
    assert_eq!((before.spec.revision, before.stale), (1, false));
    assert_eq!(before.hash, before.spec.hash());

    registry.put("hello", "2", Some(1)).await;
    registry.put("new", "1", None).await;
    let soon = timeout(Duration::from_secs(2), async {
        while node.specs.known(&name("new")).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    soon.await.expect("a change takes longer than two seconds");
    assert_eq!(node.specs.get(&name("hello")).await.unwrap().spec.revision, 2);

    registry.delete("hello").await;
    let error =
        eventually("the name to be gone", async || match node.specs.get(&name("hello")).await {
            Err(error) => Ok(error),
            Ok(cached) => Err(cached),
        })
        .await;
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.public().contains("`hello`"), "{error}");
}

#[tokio::test]
async fn an_unknown_name_is_denied_and_found_as_soon_as_it_is_there() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    registry.put("known", "1", None).await;
    let node = TestNode::start(&network);
    node.follows("known").await;
    let error = node.specs.get(&name("late")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    registry.put("late", "1", None).await;
    eventually("the name to be found", async || node.specs.get(&name("late")).await).await;
}

#[tokio::test]
async fn without_a_registry_an_unknown_name_is_unavailable_and_may_be_tried_again() {
    let node = TestNode::start(&Network::default());
    let error = node.specs.get(&name("hello")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(error.public(), "no registry can be reached and `hello` is not cached");
    assert_eq!(error.retry_delay(), Some(Duration::from_secs(1)));
    assert_eq!(node.specs.registry().await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn an_outage_serves_what_is_known_as_stale_and_its_end_is_noticed() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    registry.put("hello", "1", None).await;
    let config = Config { ttl: Duration::from_millis(50), ..Config::default() };
    let node = TestNode::with(&network, config);
    node.follows("hello").await;

    network.take_down(registry.id());
    eventually("the outage to be noticed", async || {
        let begun = Instant::now();
        let cached = node.specs.get(&name("hello")).await.expect("it is known");
        assert!(begun.elapsed() < Duration::from_secs(1), "a request waited for the registry");
        assert_eq!(cached.spec.revision, 1);
        if cached.stale { Ok(()) } else { Err("still followed") }
    })
    .await;
    registry.put("hello", "2", Some(1)).await;
    let error = node.specs.get(&name("other")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);

    network.bring_up(registry.id());
    eventually("the registry to be followed again", async || {
        let cached = node.specs.get(&name("hello")).await.expect("it is known");
        if cached.spec.revision == 2 && !cached.stale { Ok(()) } else { Err(cached) }
    })
    .await;
}

#[tokio::test]
async fn a_node_that_restarts_in_an_outage_serves_what_it_remembers() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    registry.put("kept", "1", None).await;
    registry.put("removed", "1", None).await;
    let dir = tempfile::tempdir().unwrap();
    let file = Some(dir.path().join("specs.cache"));
    let config = Config { file, ..Config::default() };
    let node = TestNode::with(&network, config.clone());
    node.follows("kept").await;
    assert!(node.tasks.drain(Duration::from_secs(10)).await, "it stops when asked");

    network.take_down(registry.id());
    let node = TestNode::with(&network, config.clone());
    let cached = node.specs.get(&name("kept")).await.unwrap();
    assert!(cached.stale);
    assert!(node.tasks.drain(Duration::from_secs(10)).await);

    network.bring_up(registry.id());
    registry.delete("removed").await;
    let node = TestNode::with(&network, config);
    node.follows("kept").await;
    let error = node.specs.get(&name("removed")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "deleted while this node was away");
}

#[tokio::test]
async fn a_name_is_denied_only_if_every_registry_does_and_found_in_any() {
    let network = Network::default();
    let (near, far) = (TestRegistry::start(&network), TestRegistry::start(&network));
    near.put("near", "1", None).await;
    far.put("far", "1", None).await;
    let node = TestNode::start(&network);
    network.set_rtt(node.peer.local(), far.id(), Duration::from_millis(20));
    node.follows("near").await;
    assert_eq!(node.specs.get(&name("far")).await.unwrap().spec.name, name("far"));
    let error = node.specs.get(&name("nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);

    network.take_down(near.id());
    node.specs.refresh(&name("far")).await.unwrap();
    node.specs.registry().await.expect("the other one is there");
}

#[tokio::test]
async fn refresh_sees_what_was_stored_before_it_was_called() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    let node = TestNode::start(&network);
    let mut revision = registry.put("hello", "0", None).await;
    for n in 1..50 {
        let waiting = node.specs.clone();
        let other = tokio::spawn(async move { waiting.refresh(&name("hello")).await });
        revision = registry.put("hello", &n.to_string(), Some(revision)).await;
        let seen = node.specs.refresh(&name("hello")).await.unwrap();
        assert_eq!(seen.spec.revision, revision);
        other.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_registry_node_uses_itself() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    registry.put("hello", "1", None).await;
    let other = TestRegistry::start(&network);
    network.take_down(other.id());
    let tasks = lca::shutdown::Tasks::default();
    let port = std::sync::Arc::new(registry.peer.clone());
    let specs =
        lca::specs::Specs::start(Config::default(), port.clone(), port, &tasks.spawner()).unwrap();
    assert_eq!(specs.get(&name("hello")).await.unwrap().spec.revision, 1);
}

#[tokio::test]
async fn a_registry_that_has_no_room_for_a_watcher_is_asked_instead() {
    let network = Network::default();
    let (_peer, registry) = lie(&network, Lie::Nothing);
    let node = TestNode::start(&network);
    eventually("two attempts to watch", async || match registry.watches.load(Ordering::Relaxed) {
        count @ 0..2 => Err(count),
        _ => Ok(()),
    })
    .await;
    let cached = node.specs.get(&name("hello")).await.unwrap();
    assert!(!cached.stale, "it was said to be away");
}

#[tokio::test]
async fn a_registry_that_tells_of_ever_new_names_is_left_for_another() {
    let network = Network::default();
    let (liar, _) = lie(&network, Lie::NewNames);
    let honest = TestRegistry::start(&network);
    honest.put("honest", "", None).await;
    let node = TestNode::start(&network);
    network.set_rtt(node.peer.local(), liar.local(), Duration::from_millis(1));
    network.set_rtt(node.peer.local(), honest.id(), Duration::from_millis(50));
    node.follows("honest").await;
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_never_finishes_telling_is_not_followed_for_ever() {
    let network = Network::default();
    let (_liar, hostile) = lie(&network, Lie::SameName);
    let _node = TestNode::start(&network);
    let again = async {
        while hostile.watches.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(200), again).await.expect("the sync has a deadline");
}
