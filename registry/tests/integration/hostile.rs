//! A registry that does not keep to the contract.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use lca::{
    api::proto::{self, registry_server},
    discovery::memory::{Network, Peer},
    endpoint::Role,
};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use crate::harness::spec;

/// How it answers `GetArtifact` for five bytes, or `WatchServices`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lie {
    OtherBytes,
    TooMany,
    TooFew,
    Nothing,
    Huge,
    /// Tells a watcher of one service after the other, for ever.
    NewNames,
    /// Tells a watcher of the same service every few seconds, for ever.
    SameName,
}

/// A registry that knows every name, but tells nobody of changes, or nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Hostile {
    lie: Lie,
    /// How often somebody wanted to watch.
    pub(crate) watches: Arc<AtomicUsize>,
}

/// Joins such a registry.
pub(crate) fn lie(network: &Network, lie: Lie) -> (Peer, Hostile) {
    let peer = network.join(&[Role::Registry]);
    let hostile = Hostile { lie, watches: Arc::default() };
    peer.serve(Routes::new(registry_server::RegistryServer::new(hostile.clone())));
    (peer, hostile)
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

fn no<T>() -> Answer<T> {
    Err(Status::unimplemented("a hostile registry does only this"))
}

#[tonic::async_trait]
impl registry_server::Registry for Hostile {
    type WatchServicesStream = Answers<proto::ServiceEvent>;
    type GetArtifactStream = Answers<proto::ArtifactChunk>;

    async fn get_artifact(
        &self,
        _request: Request<proto::GetArtifactRequest>,
    ) -> Answer<Self::GetArtifactStream> {
        let chunk = |bytes: &'static [u8], size| proto::ArtifactChunk { data: bytes.into(), size };
        let chunks = match self.lie {
            Lie::OtherBytes => vec![chunk(b"wro", 5), chunk(b"ng", 0)],
            Lie::TooMany => vec![chunk(b"right", 5), chunk(b"er", 0)],
            Lie::TooFew => vec![chunk(b"rig", 5)],
            Lie::Nothing | Lie::NewNames | Lie::SameName => vec![],
            Lie::Huge => vec![chunk(b"right", u64::MAX)],
        };
        Ok(Response::new(stream::iter(chunks).map(Ok).boxed()))
    }

    async fn put_service(
        &self,
        _request: Request<proto::PutServiceRequest>,
    ) -> Answer<proto::PutServiceResponse> {
        no()
    }

    async fn get_service(
        &self,
        request: Request<proto::GetServiceRequest>,
    ) -> Answer<proto::GetServiceResponse> {
        let spec = proto::ServiceSpec { revision: 1, ..spec(&request.into_inner().name, "") };
        Ok(Response::new(proto::GetServiceResponse { spec: Some(spec), stale: false }))
    }

    async fn list_services(
        &self,
        _request: Request<proto::ListServicesRequest>,
    ) -> Answer<proto::ListServicesResponse> {
        no()
    }

    async fn delete_service(
        &self,
        _request: Request<proto::DeleteServiceRequest>,
    ) -> Answer<proto::DeleteServiceResponse> {
        no()
    }

    async fn watch_services(
        &self,
        _request: Request<proto::WatchServicesRequest>,
    ) -> Answer<Self::WatchServicesStream> {
        self.watches.fetch_add(1, Ordering::Relaxed);
        let put = |name: String| {
            let spec = proto::ServiceSpec { revision: 1, ..spec(&name, "") };
            let event = Some(proto::service_event::Event::Put(spec));
            Ok(proto::ServiceEvent { event })
        };
        match self.lie {
            Lie::NewNames => {
                let names = stream::iter(0_u64..).map(move |number| put(format!("n{number}")));
                Ok(Response::new(names.boxed()))
            }
            Lie::SameName => {
                let same = stream::repeat("same").then(move |name| async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    put(name.to_owned())
                });
                Ok(Response::new(same.boxed()))
            }
            _ => Err(Status::resource_exhausted("no room for another watcher")),
        }
    }

    async fn put_artifact(
        &self,
        _request: Request<Streaming<proto::PutArtifactRequest>>,
    ) -> Answer<proto::PutArtifactResponse> {
        no()
    }
}
