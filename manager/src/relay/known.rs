//! What a node that is no registry can say of services: the specs it knows, marked
//! stale. It keeps a fleet going while its registry is away.

use lca::{
    Error, Kind, Result, ServiceName,
    api::proto::{self, registry_server::Registry},
    specs::{Cached, Specs},
};
use tonic::{Request, Response, Status, Streaming};

use super::Relayed;

/// Answers `GetService` for specs of which a registry told this node, refuses the rest.
#[derive(Clone, Debug)]
pub struct KnownSpecs(pub(crate) Specs);

/// What this node knows of a name, as an answer.
pub(super) fn answer(known: &Cached) -> Response<proto::GetServiceResponse> {
    let spec = Some(proto::ServiceSpec::from(&known.spec));
    Response::new(proto::GetServiceResponse { spec, stale: true })
}

fn refused() -> Status {
    Error::new(Kind::NotAllowed, "this node is no registry; it only knows some specs")
        .hint("ask a node with the role registry, or your own node's local API")
        .into()
}

#[tonic::async_trait]
impl Registry for KnownSpecs {
    type WatchServicesStream = Relayed<proto::ServiceEvent>;
    type GetArtifactStream = Relayed<proto::ArtifactChunk>;

    async fn get_service(
        &self,
        request: Request<proto::GetServiceRequest>,
    ) -> Result<Response<proto::GetServiceResponse>, Status> {
        let name: ServiceName = request.into_inner().name.parse().map_err(Error::from)?;
        // What was hearsay here would be a rumour there.
        let known = self.0.known(&name).filter(|known| !known.hearsay);
        known.map(|known| answer(&known)).ok_or_else(|| {
            Error::new(Kind::NotFound, format!("this node does not know a service {name}")).into()
        })
    }

    async fn put_service(
        &self,
        _request: Request<proto::PutServiceRequest>,
    ) -> Result<Response<proto::PutServiceResponse>, Status> {
        Err(refused())
    }

    async fn list_services(
        &self,
        _request: Request<proto::ListServicesRequest>,
    ) -> Result<Response<proto::ListServicesResponse>, Status> {
        Err(refused())
    }

    async fn delete_service(
        &self,
        _request: Request<proto::DeleteServiceRequest>,
    ) -> Result<Response<proto::DeleteServiceResponse>, Status> {
        Err(refused())
    }

    async fn watch_services(
        &self,
        _request: Request<proto::WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        Err(refused())
    }

    async fn put_artifact(
        &self,
        _request: Request<Streaming<proto::PutArtifactRequest>>,
    ) -> Result<Response<proto::PutArtifactResponse>, Status> {
        Err(refused())
    }

    async fn get_artifact(
        &self,
        _request: Request<proto::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        Err(refused())
    }
}
