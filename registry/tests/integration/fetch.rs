//! Fetching artifacts, also from registries that lie.

use std::time::Duration;

use lca::{
    Digest, Kind,
    artifact::Store,
    discovery::{Discovery as _, memory::Network},
};

use crate::{
    harness::{TestNode, TestRegistry},
    hostile::{Lie, lie},
};

async fn keep(registry: &TestRegistry, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut incoming =
        registry.registry.artifacts().begin(digest, bytes.len() as u64).await.unwrap();
    incoming.write(bytes).await.unwrap();
    incoming.finish().await.unwrap();
    digest
}

#[tokio::test]
async fn an_artifact_is_fetched_once_however_many_ask() {
    let network = Network::default();
    let registry = TestRegistry::start(&network);
    let bytes = vec![9; 3_000_000];
    let digest = keep(&registry, &bytes).await;
    let node = TestNode::start(&network);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let fetches = (0..20).map(|_| node.specs.fetch_artifact(digest, &store));
    let paths = futures::future::try_join_all(fetches).await.unwrap();
    assert!(std::fs::read(&paths[0]).unwrap() == bytes);
    network.take_down(registry.id());
    node.specs.fetch_artifact(digest, &store).await.expect("it is here already");
}

#[tokio::test]
async fn an_artifact_nobody_has_is_not_found() {
    let network = Network::default();
    let _registry = TestRegistry::start(&network);
    let node = TestNode::start(&network);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = Digest::of(b"nobody has this");
    let error = node.specs.fetch_artifact(digest, &store).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.public().contains(&digest.to_string()), "{error}");
}

#[tokio::test]
async fn without_a_registry_a_fetch_is_unavailable() {
    let node = TestNode::start(&Network::default());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = node.specs.fetch_artifact(Digest::of(b"x"), &store).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn bytes_of_another_digest_are_refused_deleted_and_blamed_on_their_registry() {
    let network = Network::default();
    let (liar, _) = lie(&network, Lie::OtherBytes);
    let node = TestNode::start(&network);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = Digest::of(b"right");
    let error = node.specs.fetch_artifact(digest, &store).await.unwrap_err();
    assert_eq!(error.kind(), Kind::StartFailed);
    assert!(error.public().contains(&digest.to_string()), "{error}");
    assert!(error.public().contains(&liar.local().short()), "{error}");
    assert_eq!(store.list(), []);
    assert_eq!(std::fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_next_registry_is_tried_after_a_liar() {
    for lying in [Lie::OtherBytes, Lie::TooMany, Lie::TooFew, Lie::Nothing, Lie::Huge] {
        let network = Network::default();
        let _liar = lie(&network, lying);
        let honest = TestRegistry::start(&network);
        let digest = keep(&honest, b"right").await;
        let node = TestNode::start(&network);
        network.set_rtt(node.peer.local(), honest.id(), Duration::from_millis(50));
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let path = node.specs.fetch_artifact(digest, &store).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"right", "{lying:?}");
    }
}
