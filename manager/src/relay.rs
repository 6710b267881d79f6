//! The other services of the local API, each passed on to the peer concerned, streams
//! included, so that one local socket is enough for `lcactl` and for any program.
//!
//! This node's own services are reached like any other peer's. Deadlines are passed
//! on, answers keep their details, and a stream flows only as fast as it is read.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use lca::{
    Error, Kind, Result,
    api::{
        self,
        proto::{
            allocator_server::AllocatorServer, instances_server::InstancesServer,
            manager_server::ManagerServer, registry_server::RegistryServer,
        },
    },
};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, service::Routes};

use crate::{
    Manager,
    service::{ForLocal, for_peers::ForPeers},
};
use known::KnownSpecs;

mod allocator;
pub(crate) mod follow;
pub(crate) mod instances;
pub(crate) mod known;
mod registry;
mod watch;

/// Longest a relayed unary call waits where the caller has no deadline of its own: a
/// registry or an allocator answers such questions in milliseconds.
const ANSWER: Duration = Duration::from_secs(30);

/// A relayed stream.
pub(crate) type Relayed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Manager {
    /// What programs of this machine may call: `Manager`, and relays of `Registry`,
    /// `Allocator` and `Instances` of all peers.
    pub fn local_routes(&self) -> Routes {
        let relay = Relay(self.clone());
        Routes::new(ManagerServer::new(ForLocal(self.clone())))
            .add_service(RegistryServer::new(relay.clone()))
            .add_service(AllocatorServer::new(relay.clone()))
            .add_service(InstancesServer::new(relay))
    }

    /// What every node lets its peers ask: `Manager.ListPeers`.
    pub fn peers_server(&self) -> ManagerServer<ForPeers> {
        ManagerServer::new(ForPeers(self.clone()))
    }

    /// What a node that is no registry lets its peers ask of one:
    /// `Registry.GetService` for the specs it knows, marked stale.
    pub fn specs_server(&self) -> RegistryServer<KnownSpecs> {
        RegistryServer::new(KnownSpecs(self.inner.specs.clone()))
    }
}

/// See the module.
#[derive(Clone, Debug)]
struct Relay(Manager);

/// How long the caller of a request will wait, by its `grpc-timeout`; never longer
/// than a server of ours lets a call take.
pub(crate) fn remaining(metadata: &MetadataMap) -> Duration {
    asked_for(metadata).unwrap_or(api::MAX_CALL).min(api::MAX_CALL)
}

fn asked_for(metadata: &MetadataMap) -> Option<Duration> {
    api::deadline::parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

/// Passes a unary call on with the deadline of the caller, or of [`ANSWER`].
async fn pass<M, R, F>(
    what: &str,
    request: Request<M>,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<Response<R>, Status>
where
    F: Future<Output = Result<Response<R>, Status>>,
{
    pass_slow(what, ANSWER, request, send).await
}

/// As [`pass`], for what may take `longest` where the caller has no deadline.
async fn pass_slow<M, R, F>(
    what: &str,
    longest: Duration,
    request: Request<M>,
    send: impl FnOnce(Request<M>) -> F,
) -> Result<Response<R>, Status>
where
    F: Future<Output = Result<Response<R>, Status>>,
{
    let deadline = asked_for(request.metadata()).unwrap_or(longest).min(api::MAX_CALL);
    Ok(Response::new(api::call(what, deadline, request.into_inner(), send).await?))
}

/// Passes a stream of answers on. What the peer says when it fails keeps its details
/// and loses the transport's.
fn flow<T: Send + 'static>(answer: Response<Streaming<T>>) -> Response<Relayed<T>> {
    let stream = answer.into_inner();
    Response::new(Box::pin(stream.map(|item| item.map_err(told))))
}

fn told(status: Status) -> Status {
    Error::from(status).into()
}

/// The head of a streamed answer has a deadline; the stream has none.
async fn head<T>(
    what: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(answer) => answer.map_err(told),
        Err(_) => {
            Err(Error::new(Kind::Timeout, format!("{what} did not answer within {ANSWER:?}"))
                .into())
        }
    }
}
