//! The `Manager` service as other peers see it: they may learn of further peers, and
//! nothing else. A manager acts for the programs of its own machine.

use lca::{
    Error, Kind, Result,
    api::proto::{self, manager_server::Manager as Rpc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::peers;
use crate::Manager;

/// Answers `ListPeers`, refuses the rest.
#[derive(Clone, Debug)]
pub struct ForPeers(pub(crate) Manager);

#[tonic::async_trait]
impl Rpc for ForPeers {
    type AllocateStream = ReceiverStream<Result<proto::AllocateProgress, Status>>;

    async fn resolve(
        &self,
        _request: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        Err(refused("Resolve").into())
    }

    async fn allocate(
        &self,
        _request: Request<proto::AllocateServiceRequest>,
    ) -> Result<Response<Self::AllocateStream>, Status> {
        Err(refused("Allocate").into())
    }

    async fn explain(
        &self,
        _request: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        Err(refused("Explain").into())
    }

    async fn list_peers(
        &self,
        _request: Request<proto::ListPeersRequest>,
    ) -> Result<Response<proto::ListPeersResponse>, Status> {
        let peers = peers::remembered(&self.0.inner);
        Ok(Response::new(proto::ListPeersResponse { peers }))
    }
}

fn refused(what: &str) -> Error {
    Error::new(
        Kind::PermissionDenied,
        format!("Manager.{what} is answered on the local API of a node, not to its peers"),
    )
    .hint("ask the manager on your own machine")
}
