//! A network in one process with registries and nodes that use them.

use std::sync::Arc;

use lca::{
    PeerId, ServiceName,
    api::proto::{self, registry_client::RegistryClient},
    discovery::{
        Discovery as _,
        memory::{Network, Peer},
    },
    endpoint::Role,
    mesh::Mesh as _,
    shutdown::Tasks,
    specs::{Config, Specs},
    testing::eventually,
};
use lca_registry::Registry;
use tempfile::TempDir;
use tonic::{service::Routes, transport::Channel};

/// A registry that is a peer.
pub(crate) struct TestRegistry {
    pub(crate) registry: Registry,
    pub(crate) peer: Peer,
    pub(crate) folder: TempDir,
    /// The same on a network of its own, which nobody takes down.
    beside: Peer,
}

impl TestRegistry {
    /// Serves an empty one.
    pub(crate) fn start(network: &Network) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::in_memory(folder.path()).unwrap();
        let peer = network.join(&[Role::Registry]);
        peer.serve(Routes::new(registry.server()));
        let beside = Network::default().join(&[]);
        beside.serve(Routes::new(registry.server()));
        Self { registry, peer, folder, beside }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.peer.local()
    }

    /// A client beside it, which reaches it also while it is down.
    pub(crate) async fn client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.beside.grpc(&self.beside.own()).await.unwrap())
    }

    /// Stores an external service with this content; returns its revision.
    pub(crate) async fn put(&self, name: &str, content: &str, if_revision: Option<u64>) -> u64 {
        let request = proto::PutServiceRequest { spec: Some(spec(name, content)), if_revision };
        let answer = self.client().await.put_service(request).await.unwrap().into_inner();
        answer.spec.unwrap().revision
    }

    pub(crate) async fn delete(&self, name: &str) {
        let request = proto::DeleteServiceRequest { name: name.into(), if_revision: None };
        self.client().await.delete_service(request).await.unwrap();
    }
}

/// A node that uses registries.
pub(crate) struct TestNode {
    pub(crate) specs: Specs,
    pub(crate) peer: Peer,
    pub(crate) tasks: Tasks,
}

impl TestNode {
    pub(crate) fn start(network: &Network) -> Self {
        Self::with(network, Config::default())
    }

    pub(crate) fn with(network: &Network, config: Config) -> Self {
        let peer = network.join(&[Role::Proxy]);
        let tasks = Tasks::default();
        let port = Arc::new(peer.clone());
        let specs = Specs::start(config, port.clone(), port, &tasks.spawner()).unwrap();
        Self { specs, peer, tasks }
    }

    /// Waits until it follows a registry, which tells it of `name`.
    pub(crate) async fn follows(&self, name: &str) {
        let name: ServiceName = name.parse().unwrap();
        eventually("the registry to be followed", async || match self.specs.known(&name) {
            Some(cached) if !cached.stale => Ok(()),
            other => Err(other),
        })
        .await;
    }
}

/// A spec without an artifact; what differs between two of a name is `content`.
pub(crate) fn spec(name: &str, content: &str) -> proto::ServiceSpec {
    proto::ServiceSpec { name: name.into(), arguments: vec![content.into()], ..Default::default() }
}
