//! The local API of a node: its own `Manager` service and everyone else's services
//! behind it; and what peers are told.

use std::{sync::Arc, time::Duration};

use lca::{
    Digest, Error, InstanceId, Kind,
    api::proto::{
        self, InstanceState, allocate_progress::Progress, allocate_request::Mode,
        allocator_client::AllocatorClient, instances_client::InstancesClient,
        manager_client::ManagerClient, put_artifact_request::Part, registry_client::RegistryClient,
        service_event::Event,
    },
    discovery::Discovery as _,
    endpoint::Role,
    mesh::Mesh as _,
    testing::eventually,
};
use tokio::sync::Semaphore;
use tonic::{service::Routes, transport::Channel};

use super::world::{Behaviour, Client, FakeAllocator, HELLO, World, spec, wish};
use crate::Config;

/// The local API of `client`, as a program of its machine reaches it.
pub(super) async fn local_api(world: &World, client: &Client) -> Channel {
    client.peer.serve(client.manager.local_routes());
    world.network.join(&[]).grpc(&client.peer.own()).await.unwrap()
}

async fn release(api: &Channel, instance: &str) -> Result<proto::Instance, Error> {
    let request = proto::ReleaseRequest { instance: instance.to_owned() };
    let released = AllocatorClient::new(api.clone()).release(request).await?;
    Ok(released.into_inner().instance.unwrap())
}

fn runs_as(allocator: &FakeAllocator, id: &str) -> InstanceId {
    allocator.runs_quietly(&spec(HELLO), id.parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_release_may_take_as_long_as_a_drain() {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let (slow, client) = (world.allocator_that(Behaviour::Waits(gate.clone())), world.client());
    let id = slow.runs(&spec(HELLO)).await;
    let api = local_api(&world, &client).await;
    let released = tokio::spawn(async move { release(&api, &id.to_string()).await });
    tokio::time::sleep(lca::api::MAX_RELEASE - Duration::from_secs(5)).await;
    gate.add_permits(1);
    assert_eq!(released.await.unwrap().unwrap().state(), InstanceState::Stopped);
}

#[tokio::test]
async fn instances_of_all_allocators_are_listed_and_a_dead_one_is_named() {
    let world = World::with([spec(HELLO), spec("other")]);
    let [a, b, dead] = [0, 1, 2].map(|_| world.allocator());
    let client = world.client();
    world.distance(&client, &a, 7);
    let here = a.runs(&spec(HELLO)).await;
    b.runs(&spec("other")).await;
    world.network.take_down(dead.id());
    let mut api = InstancesClient::new(local_api(&world, &client).await);
    let all = api.list_instances(proto::ListInstancesRequest::default()).await.unwrap();
    let all = all.into_inner();
    let services: Vec<_> = all.instances.iter().map(|one| one.service.as_str()).collect();
    assert_eq!(services, [HELLO, "other"]);
    assert_eq!(all.instances[0].rtt_us, Some(7000));
    assert_eq!(all.unreachable_peers, [dead.id().to_string()]);

    let which = proto::ListInstancesRequest { service: HELLO.into(), ..Default::default() };
    let some = api.list_instances(which).await.unwrap().into_inner().instances;
    assert_eq!(some.iter().map(|one| one.id.clone()).collect::<Vec<_>>(), [here.to_string()]);

    let which = proto::ListInstancesRequest { service: "No Name".into(), ..Default::default() };
    let refused = Error::from(api.list_instances(which).await.unwrap_err());
    assert_eq!(refused.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn an_instance_is_released_by_its_prefix_wherever_it_is() {
    let world = World::new();
    let (a, b, client) = (world.allocator(), world.allocator(), world.client());
    runs_as(&a, "aaaa0000000000000000000000000001");
    runs_as(&a, "aaaa0000000000000000000000000002");
    runs_as(&b, "bbbb0000000000000000000000000001");
    let api = local_api(&world, &client).await;

    let released = release(&api, "bb").await.unwrap();
    assert_eq!(released.state(), InstanceState::Stopped);
    assert_eq!(release(&api, "bb").await.unwrap().id, released.id, "again is no error");

    let ambiguous = release(&api, "aaaa").await.unwrap_err();
    assert_eq!(ambiguous.kind(), Kind::InvalidArgument);
    assert!(ambiguous.public().contains("aaaa0000000000000000000000000002"), "{ambiguous}");
    release(&api, "aaaa0000000000000000000000000001").await.unwrap();
    let alive = release(&api, "aaaa").await.unwrap();
    assert_eq!(alive.id, "aaaa0000000000000000000000000002", "one that runs is meant");

    assert_eq!(release(&api, "xyz").await.unwrap_err().kind(), Kind::InvalidArgument);
    world.network.take_down(b.id());
    let unknown = release(&api, "cc").await.unwrap_err();
    assert_eq!(unknown.kind(), Kind::NotFound);
    assert!(unknown.public().contains(&b.id().short()), "{unknown}");
}

#[tokio::test]
async fn logs_are_streamed_from_whoever_has_them() {
    let world = World::new();
    let (_other, allocator, client) = (world.allocator(), world.allocator(), world.client());
    let id = runs_as(&allocator, "abcd0000000000000000000000000001");
    let mut api = AllocatorClient::new(local_api(&world, &client).await);
    let request = proto::LogsRequest { instance: "abcd".into(), ..Default::default() };
    let mut chunks = api.logs(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        text.extend_from_slice(&chunk.data);
    }
    assert_eq!(String::from_utf8(text).unwrap(), format!("log of {id}\nthe end\n"));
}

#[tokio::test]
async fn allocate_and_describe_concern_the_nodes_own_allocator() {
    let world = World::new();
    let (_somebody_elses, client) = (world.allocator(), world.client());
    let mut api = AllocatorClient::new(local_api(&world, &client).await);
    let error = Error::from(api.describe(proto::DescribeRequest {}).await.unwrap_err());
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.hint_text().unwrap().contains("Manager.Allocate"));
    let error = api.allocate(proto::AllocateRequest::default()).await.unwrap_err();
    assert_eq!(Error::from(error).kind(), Kind::FailedPrecondition);
}

#[tokio::test]
async fn services_and_artifacts_pass_through_to_the_registry() {
    let world = World::new();
    let client = world.client();
    let mut api = RegistryClient::new(local_api(&world, &client).await);
    let put = proto::PutServiceRequest { spec: Some(spec("new")), if_revision: None };
    assert!(api.put_service(put).await.unwrap().into_inner().changed);
    eventually("this node to know it first", async || {
        client.manager.inner.specs.known(&"new".parse().unwrap()).is_some()
    })
    .await;
    let listed = api.list_services(proto::ListServicesRequest {}).await.unwrap().into_inner();
    let names: Vec<_> = listed.services.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, [HELLO, "new"]);

    // More than the windows of both hops together, so that it has to flow.
    let bytes: Vec<u8> = (0..5 << 20).map(|n: u32| (n % 251) as u8).collect();
    let digest = Digest::of(&bytes).to_string();
    let header = proto::ArtifactHeader { digest: digest.clone(), size: bytes.len() as u64 };
    let mut parts = vec![Part::Header(header)];
    parts.extend(bytes.chunks(1 << 20).map(|part| Part::Data(part.to_vec())));
    let parts = parts.into_iter().map(|part| proto::PutArtifactRequest { part: Some(part) });
    let parts: Vec<_> = parts.collect();
    let stored = api.put_artifact(futures::stream::iter(parts.clone())).await.unwrap();
    assert_eq!(stored.into_inner().size, bytes.len() as u64);
    let short = futures::stream::iter(parts[..3].to_vec());
    let refused = Error::from(api.put_artifact(short).await.unwrap_err());
    assert_eq!(refused.kind(), Kind::InvalidArgument, "the registry's own words");

    let get = proto::GetArtifactRequest { digest };
    let mut chunks = api.get_artifact(get).await.unwrap().into_inner();
    let mut got = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        got.extend_from_slice(&chunk.data);
    }
    assert!(got == bytes, "the artifact came back changed");

    let delete = |name: &str| proto::DeleteServiceRequest { name: name.into(), if_revision: None };
    api.delete_service(delete("new")).await.unwrap();
    let gone = Error::from(api.delete_service(delete("new")).await.unwrap_err());
    assert_eq!(gone.kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_watch_passes_through_and_ends_when_the_daemon_stops() {
    let world = World::new();
    let client = world.client();
    let mut api = RegistryClient::new(local_api(&world, &client).await);
    let mut watch = api.watch_services(proto::WatchServicesRequest {}).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap().event;
    assert!(matches!(first, Some(Event::Put(spec)) if spec.name == HELLO));
    let second = watch.message().await.unwrap().unwrap().event;
    assert_eq!(second, Some(Event::Synced(true)));
    world.drain().await;
    assert!(watch.message().await.unwrap().is_none());
}

#[tokio::test]
async fn without_a_registry_what_is_known_is_answered_as_stale() {
    let world = World::new();
    let (_allocator, client) = (world.allocator(), world.client());
    client.pick().await.unwrap();
    world.network.take_down(world.registry_peer.local());
    let mut api = RegistryClient::new(local_api(&world, &client).await);
    let get = |name: &str| proto::GetServiceRequest { name: name.into() };
    let known = api.get_service(get(HELLO)).await.unwrap().into_inner();
    assert!(known.stale);
    assert_eq!(known.spec.unwrap().name, HELLO);
    let unknown = Error::from(api.get_service(get("other")).await.unwrap_err());
    assert_eq!(unknown.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_person_is_told_each_step_of_an_allocation() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let mut api = ManagerClient::new(local_api(&world, &client).await);
    let mut allocate = async |mode: Mode| {
        let request = proto::AllocateServiceRequest {
            service: HELLO.into(),
            mode: mode.into(),
            request_id: String::new(),
        };
        let mut said = api.allocate(request).await.unwrap().into_inner();
        let mut steps = Vec::new();
        while let Some(next) = said.message().await.unwrap() {
            match next.progress.unwrap() {
                Progress::Step(step) => steps.push(step.name),
                Progress::Fetching(fetching) => panic!("nothing is fetched: {fetching:?}"),
                Progress::Done(done) => {
                    let names: Vec<_> = done.steps.iter().map(|step| step.name.clone()).collect();
                    assert_eq!(names, steps);
                    return (steps, done);
                }
            }
        }
        panic!("no end")
    };
    let (steps, done) = allocate(Mode::Ensure).await;
    assert_eq!(steps, ["spec", "find", "allocate", "spawn"]);
    assert!(!done.joined);
    let first = done.instance.unwrap();
    assert_eq!(first.peer, allocator.id().to_string());
    assert!(!first.mesh_addresses.is_empty());

    let (_, done) = allocate(Mode::Ensure).await;
    assert!(done.joined);
    assert_eq!(done.instance.unwrap().id, first.id);

    let (_, done) = allocate(Mode::New).await;
    assert!(!done.joined);
    assert_ne!(done.instance.unwrap().id, first.id);
}

#[tokio::test]
async fn what_is_resolved_is_there() {
    let world = World::new();
    let (allocator, client) = (world.allocator(), world.client());
    let mut api = ManagerClient::new(local_api(&world, &client).await);
    let ask = |allocate| proto::ResolveRequest { service: HELLO.into(), allocate };
    let nobody = Error::from(api.resolve(ask(false)).await.unwrap_err());
    assert_eq!(nobody.kind(), Kind::NotFound);
    let first = api.resolve(ask(true)).await.unwrap().into_inner().instance.unwrap();
    // The manager still believes in it; a person is told better.
    allocator.set(first.id.parse().unwrap(), InstanceState::Stopped);
    let nobody = Error::from(api.resolve(ask(false)).await.unwrap_err());
    assert_eq!(nobody.kind(), Kind::NotFound);
    let second = api.resolve(ask(true)).await.unwrap().into_inner().instance.unwrap();
    assert_ne!(second.id, first.id);
    let refused = proto::ResolveRequest { service: "../x".into(), allocate: true };
    let refused = Error::from(api.resolve(refused).await.unwrap_err());
    assert_eq!(refused.kind(), Kind::InvalidArgument);
}

#[tokio::test]
async fn peers_are_listed_with_this_node_first() {
    let world = World::new();
    let (alive, dead, client) = (world.allocator(), world.allocator(), world.client());
    world.distance(&client, &alive, 4);
    alive.runs(&spec(HELLO)).await;
    world.network.take_down(dead.id());
    let mut api = ManagerClient::new(local_api(&world, &client).await);
    let peers = api.list_peers(proto::ListPeersRequest {}).await.unwrap().into_inner().peers;
    assert!(peers[0].local && peers[0].reachable);
    assert_eq!(peers[0].peer, client.peer.local().to_string());
    let find = |id: lca::PeerId| peers.iter().find(|peer| peer.peer == id.to_string()).unwrap();
    let shown = find(alive.id());
    assert_eq!((shown.instances, shown.max_instances), (1, 8));
    assert_eq!((shown.rtt_us, shown.reachable), (Some(4000), true));
    assert_eq!(shown.roles, ["allocator"]);
    assert!(!find(dead.id()).reachable);
}

#[tokio::test]
async fn peers_may_learn_of_peers_and_known_specs_and_nothing_else() {
    let world = World::new();
    let (_allocator, client) = (world.allocator(), world.client());
    client.pick().await.unwrap();
    let routes = Routes::new(client.manager.peers_server());
    client.peer.serve(routes.add_service(client.manager.specs_server()));
    let channel = world.network.join(&[]).grpc(&client.peer.own()).await.unwrap();
    let mut manager = ManagerClient::new(channel.clone());
    let peers = manager.list_peers(proto::ListPeersRequest {}).await.unwrap().into_inner().peers;
    assert_eq!(peers[0].peer, client.peer.local().to_string());
    let resolve = proto::ResolveRequest { service: HELLO.into(), allocate: true };
    let refused = Error::from(manager.resolve(resolve).await.unwrap_err());
    assert_eq!(refused.kind(), Kind::PermissionDenied);
    let allocate = proto::AllocateServiceRequest { service: HELLO.into(), ..Default::default() };
    let refused = Error::from(manager.allocate(allocate).await.unwrap_err());
    assert_eq!(refused.kind(), Kind::PermissionDenied);

    let mut registry = RegistryClient::new(channel);
    let get = |name: &str| proto::GetServiceRequest { name: name.into() };
    assert!(registry.get_service(get(HELLO)).await.unwrap().into_inner().stale);
    let unknown = Error::from(registry.get_service(get("other")).await.unwrap_err());
    assert_eq!(unknown.kind(), Kind::NotFound);
    let list = registry.list_services(proto::ListServicesRequest {}).await.unwrap_err();
    assert_eq!(Error::from(list).kind(), Kind::NotAllowed);
}

#[tokio::test]
async fn an_allocators_own_api_reaches_its_own_allocator() {
    let world = World::new();
    let allocator = world.allocator();
    let own = std::sync::Arc::new(allocator.peer.clone());
    let client = world.client_at(allocator.peer.clone(), own, Config::default());
    // Its mesh serves the allocator; the local API is reached by another way.
    let door = world.network.join(&[Role::Proxy]);
    door.serve(client.manager.local_routes());
    let channel = world.network.join(&[]).grpc(&door.own()).await.unwrap();
    let mut api = AllocatorClient::new(channel);
    let described = api.describe(proto::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(described.total.unwrap().instances, 8);
    client.manager.pick(wish(HELLO)).await.unwrap();
    assert_eq!(allocator.asked().len(), 1);
}
