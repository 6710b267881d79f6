//! No registry can be reached, and this node never heard of the service: others have.

use lca::{
    Error, Kind, ServiceName,
    api::proto::{self, registry_client::RegistryClient},
    discovery::{Discovery as _, memory::Peer},
    endpoint::Role,
    mesh::Mesh as _,
    specs::Cached,
    testing::eventually,
};
use tonic::service::Routes;

use super::{
    registry::FakeRegistry,
    world::{Client, HELLO, World, spec, wish},
};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn known(client: &Client) -> Option<std::sync::Arc<Cached>> {
    client.manager.inner.specs.known(&name(HELLO))
}

/// A node that a registry has told of [`HELLO`], and that answers its peers.
async fn told(world: &World) -> Client {
    let client = world.client();
    eventually("the registry to be followed", async || known(&client)).await;
    client.peer.serve(Routes::new(client.manager.specs_server()));
    client
}

/// A node that is no registry and says that these are services.
fn says(world: &World, specs: impl IntoIterator<Item = proto::ServiceSpec>) -> Peer {
    let said = FakeRegistry::default();
    specs.into_iter().for_each(|spec| said.put(spec));
    let peer = world.network.join(&[Role::Proxy]);
    peer.serve(Routes::new(said.into_server()));
    peer
}

/// What is said of [`HELLO`] where it was changed.
fn changed() -> [proto::ServiceSpec; 2] {
    [spec(HELLO), proto::ServiceSpec { arguments: vec!["changed".into()], ..spec(HELLO) }]
}

#[tokio::test]
async fn a_service_this_node_never_heard_of_is_used_if_any_node_in_reach_has() {
    let world = World::new();
    let (allocator, _told) = (world.allocator(), told(&world).await);
    world.network.take_down(world.registry_peer.local());
    let stranger = world.client();
    stranger.pick().await.unwrap();
    assert_eq!(allocator.asked().len(), 1);
    let learnt = known(&stranger).unwrap();
    assert!(learnt.hearsay && learnt.stale, "{learnt:?}");
    let nowhere = stranger.manager.pick(wish("nowhere")).await.unwrap_err();
    assert_eq!(nowhere.kind(), Kind::Unavailable, "nobody knows, so nobody can deny it");
}

#[tokio::test]
async fn of_several_words_the_latest_counts_until_a_registry_speaks() {
    let world = World::new();
    let _told = told(&world).await;
    world.network.take_down(world.registry_peer.local());
    let _liar = says(&world, changed());
    let stranger = world.client();
    let heard = stranger.manager.inner.specs.get(&name(HELLO)).await.unwrap();
    assert_eq!((heard.spec.revision, heard.hearsay), (2, true));
    world.network.bring_up(world.registry_peer.local());
    eventually("the registry's own word", async || match known(&stranger) {
        Some(now) if now.spec.revision == 1 && !now.hearsay && !now.stale => Ok(()),
        other => Err(other),
    })
    .await;
}

#[tokio::test]
async fn hearsay_is_not_passed_on() {
    let world = World::new();
    let told = told(&world).await;
    world.network.take_down(world.registry_peer.local());
    let stranger = world.client();
    stranger.manager.inner.specs.get(&name(HELLO)).await.unwrap();
    stranger.peer.serve(Routes::new(stranger.manager.specs_server()));
    let asker = world.network.join(&[]);
    let ask = async |client: &Client| {
        let channel = asker.grpc(&client.peer.own()).await.unwrap();
        let request = proto::GetServiceRequest { name: HELLO.into() };
        let said = RegistryClient::new(channel).get_service(request).await;
        said.map_err(Error::from).map(|said| said.into_inner().spec.unwrap().name)
    };
    assert_eq!(ask(&told).await.unwrap(), HELLO);
    assert_eq!(ask(&stranger).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn what_a_registry_denied_is_not_brought_back_by_those_who_have_not_heard() {
    let world = World::with([]);
    let client = world.client();
    let specs = &client.manager.inner.specs;
    assert_eq!(specs.get(&name(HELLO)).await.unwrap_err().kind(), Kind::NotFound);
    world.network.take_down(world.registry_peer.local());
    let _late = says(&world, [spec(HELLO)]);
    eventually("the outage to be noticed", async || match specs.get(&name(HELLO)).await {
        Err(error) if error.kind() == Kind::Unavailable => Ok(()),
        other => Err(other),
    })
    .await;
    assert_eq!(known(&client), None);
    // One that was never told otherwise believes it.
    let stranger = world.client();
    stranger.manager.inner.specs.get(&name(HELLO)).await.unwrap();
}
