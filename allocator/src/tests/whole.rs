//! The whole of it: a registry's spec, started over gRPC, behind a real ingress.

use std::{path::Path, sync::Arc};

use lca::{
    Digest, Kind, Spec,
    api::{
        call,
        proto::{
            self, AllocateResponse, InstanceState, allocate_request::Mode,
            allocator_client::AllocatorClient, instances_client::InstancesClient,
        },
    },
    artifact::Store,
    discovery::{
        Discovery as _,
        memory::{Network, Peer},
    },
    endpoint::Role,
    mesh::Mesh as _,
    shutdown::Tasks,
    specs::{self, Specs},
};
use lca_ingress::Ingress;
use lca_registry::Registry;
use tonic::service::Routes;

use super::{real::SERVE, twins::PATIENCE};
use crate::{
    Allocator, Collaborators, Config, Drivers,
    driver::process::{Grants, Process},
};

/// Keeps these bytes as a registry does.
async fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let mut incoming = store.begin(digest, bytes.len() as u64).await.unwrap();
    incoming.write(bytes).await.unwrap();
    incoming.finish().await.unwrap();
    digest
}

/// A peer that runs a real allocator with real specs and a real ingress.
async fn allocator(network: &Network, dir: &Path, tasks: &Tasks) -> Peer {
    let peer = network.join(&[Role::Allocator]);
    let spawner = tasks.spawner();
    let (discovery, mesh) = (Arc::new(peer.clone()), Arc::new(peer.clone()));
    let specs =
        Specs::start(specs::Config::default(), discovery.clone(), mesh.clone(), &spawner).unwrap();
    // The program is a script that becomes this test binary.
    let read = vec![std::env::current_exe().unwrap()];
    let driver = Process::open(&dir.join("instances")).unwrap();
    let driver = driver.with_grants(Grants { read, ..Grants::default() });
    let collaborators = Collaborators {
        drivers: Drivers::new(Arc::new(driver)),
        specs,
        discovery,
        mesh,
        ingress: Ingress::new(lca_ingress::Config::default(), Default::default()),
        fronts: None,
    };
    let allocator =
        Allocator::start(Config::new(dir.to_owned()), collaborators, &spawner).await.unwrap();
    let routes = Routes::new(allocator.allocator_server());
    peer.serve(routes.add_service(allocator.instances_server()));
    peer
}

#[tokio::test]
async fn a_peer_has_a_service_of_the_registry_started_over_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::default();
    let registry = Registry::in_memory(&dir.path().join("registry")).unwrap();
    // This test binary, without sending all of it around.
    let program = std::env::current_exe().unwrap();
    let script = format!("#!/bin/sh\nexec '{}' \"$@\"\n", program.display());
    let digest = put(registry.artifacts(), script.as_bytes()).await;
    let server = network.join(&[Role::Registry]);
    server.serve(Routes::new(registry.server()));
    let tasks = Tasks::default();
    let peer = allocator(&network, &dir.path().join("allocator"), &tasks).await;

    let client = network.join(&[]);
    let put = proto::PutServiceRequest {
        spec: Some(proto::ServiceSpec {
            name: "demo".into(),
            artifact: digest.to_string(),
            arguments: SERVE.map(str::to_owned).into(),
            ..Default::default()
        }),
        if_revision: None,
    };
    let channel = client.grpc(&server.own()).await.unwrap();
    let mut registry = proto::registry_client::RegistryClient::new(channel);
    let spec = registry.put_service(put).await.unwrap().into_inner().spec.unwrap();
    let spec = Spec::try_from(spec).unwrap();

    let channel = client.grpc(&peer.own()).await.unwrap();
    let mut allocator = AllocatorClient::new(channel.clone());
    let request = proto::AllocateRequest {
        service: "demo".into(),
        service_hash: spec.hash().to_string(),
        mode: Mode::Ensure.into(),
        request_id: "r1".into(),
    };
    let allocated = call("the allocator", PATIENCE, request, |r| allocator.allocate(r)).await;
    let allocated: AllocateResponse = allocated.unwrap();
    let instance = allocated.instance.unwrap();
    assert_eq!(instance.state(), InstanceState::Ready);
    assert_eq!(instance.peer, peer.local().to_string());
    assert_eq!(instance.load.unwrap().limit, spec.concurrency_limit);

    let listed = InstancesClient::new(channel)
        .list_instances(proto::ListInstancesRequest {
            service: "demo".into(),
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.instances.len(), 1);
    let described = allocator.describe(proto::DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!(described.used.unwrap().instances, 1);
    assert_eq!(described.cached_artifacts, [digest.to_string()]);
    assert_eq!(described.drivers, ["process"]);
    assert!(tasks.drain(PATIENCE).await, "a task had to be forced");
}

#[tokio::test]
async fn what_other_nodes_say_of_a_service_is_never_run() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::default();
    let tasks = Tasks::default();
    // No registry, but a node that speaks like one.
    let registry = Registry::in_memory(&dir.path().join("registry")).unwrap();
    let script = b"#!/bin/sh\nexec sleep 60\n";
    let digest = put(registry.artifacts(), script).await;
    let liar = network.join(&[Role::Proxy]);
    liar.serve(Routes::new(registry.server()));
    let folder = dir.path().join("allocator");
    let peer = allocator(&network, &folder, &tasks).await;
    // It has the program from an earlier life.
    put(&Store::open(&folder.join("artifacts")).unwrap(), script).await;

    let client = network.join(&[]);
    let spec = proto::ServiceSpec {
        name: "demo".into(),
        artifact: digest.to_string(),
        arguments: vec!["of the liar".into()],
        ..Default::default()
    };
    let channel = client.grpc(&liar.own()).await.unwrap();
    let mut said = proto::registry_client::RegistryClient::new(channel);
    let put = proto::PutServiceRequest { spec: Some(spec), if_revision: None };
    let spec = said.put_service(put).await.unwrap().into_inner().spec.unwrap();
    let request = proto::AllocateRequest {
        service: "demo".into(),
        service_hash: Spec::try_from(spec).unwrap().hash().to_string(),
        mode: Mode::Ensure.into(),
        request_id: "r1".into(),
    };
    let channel = client.grpc(&peer.own()).await.unwrap();
    let mut api = AllocatorClient::new(channel);
    let refused = call("the allocator", PATIENCE, request, |r| api.allocate(r)).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.kind(), Kind::Unavailable, "{refused}");
    assert!(refused.public().contains("none has told this node of `demo`"), "{refused}");
    assert!(tasks.drain(PATIENCE).await, "a task had to be forced");
}
