//! `Allocator`: `Release` and `Logs` go to whoever has the instance; `Allocate`, `Claim`
//! and `Describe` to this node's own allocator, for choosing one is the `Manager`
//! service's work.

use std::{sync::Arc, time::Duration};

use lca::{
    Error, InstancePrefix, Kind, PeerId, Result,
    api::{
        self,
        proto::{
            self, InstanceState, allocator_client::AllocatorClient, allocator_server::Allocator,
        },
    },
    endpoint::{Endpoint, Role},
};
use tonic::{Request, Response, Status, transport::Channel};

use super::{
    Relay, Relayed, flow, head,
    instances::{All, everywhere},
    pass, pass_slow,
};

const WHAT: &str = "the allocator";
/// Longest a connection to the allocator concerned may take: the mesh's own deadline.
const CONNECT: Duration = Duration::from_secs(3);

#[tonic::async_trait]
impl Allocator for Relay {
    type LogsStream = Relayed<proto::LogChunk>;

    async fn allocate(
        &self,
        request: Request<proto::AllocateRequest>,
    ) -> Result<Response<proto::AllocateResponse>, Status> {
        let mut allocator = self.own_allocator().await?;
        pass_slow(WHAT, api::MAX_CALL, request, |request| allocator.allocate(request)).await
    }

    async fn claim(
        &self,
        request: Request<proto::ClaimRequest>,
    ) -> Result<Response<proto::ClaimResponse>, Status> {
        let mut allocator = self.own_allocator().await?;
        pass(WHAT, request, |request| allocator.claim(request)).await
    }

    async fn intend(
        &self,
        request: Request<proto::IntendRequest>,
    ) -> Result<Response<proto::IntendResponse>, Status> {
        let mut allocator = self.own_allocator().await?;
        pass(WHAT, request, |request| allocator.intend(request)).await
    }

    async fn release(
        &self,
        mut request: Request<proto::ReleaseRequest>,
    ) -> Result<Response<proto::ReleaseResponse>, Status> {
        let (id, mut allocator) = self.who_has(&request.get_ref().instance).await?;
        request.get_mut().instance = id;
        pass_slow(WHAT, api::MAX_RELEASE, request, |request| allocator.release(request)).await
    }

    async fn describe(
        &self,
        request: Request<proto::DescribeRequest>,
    ) -> Result<Response<proto::DescribeResponse>, Status> {
        let mut allocator = self.own_allocator().await?;
        pass(WHAT, request, |request| allocator.describe(request)).await
    }

    async fn logs(
        &self,
        request: Request<proto::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let (id, mut allocator) = self.who_has(&request.get_ref().instance).await?;
        let request = proto::LogsRequest { instance: id, ..request.into_inner() };
        let answer = head(WHAT, allocator.logs(request)).await?;
        Ok(self.until_stopping(flow(answer)))
    }
}

impl Relay {
    async fn own_allocator(&self) -> Result<AllocatorClient<Channel>> {
        let own = self.0.inner.reach.discovery.own();
        if !own.has(Role::Allocator) {
            return Err(Error::new(Kind::FailedPrecondition, "this node is no allocator")
                .hint("Manager.Allocate chooses one: lcactl allocate SERVICE"));
        }
        self.allocator(&own).await
    }

    async fn allocator(&self, at: &Endpoint) -> Result<AllocatorClient<Channel>> {
        Ok(AllocatorClient::new(self.0.inner.reach.channel(at, CONNECT).await?))
    }

    /// The whole id of the instance that begins with `prefix`, and its allocator.
    async fn who_has(&self, prefix: &str) -> Result<(String, AllocatorClient<Channel>)> {
        let prefix: InstancePrefix = prefix.parse()?;
        let which = proto::ListInstancesRequest { include_ended: true, ..Default::default() };
        let All { instances, unreachable, .. } = everywhere(&self.0.inner, &which).await;
        let owner = owner(&prefix, &instances, &unreachable)?;
        let peer: PeerId = owner.peer.parse()?;
        if owner.driver == Role::External.as_str() {
            let text = format!(
                "peer {} only represents {prefix}, an instance of {}",
                peer.short(),
                owner.service
            );
            return Err(Error::new(Kind::FailedPrecondition, text)
                .hint("an external service is started, stopped and logged where it runs"));
        }
        let at = self.endpoint(peer).await?;
        Ok((owner.id.clone(), self.allocator(&at).await?))
    }

    async fn endpoint(&self, peer: PeerId) -> Result<Arc<Endpoint>> {
        let inner = &self.0.inner;
        let listed = inner.allocators.list().into_iter().map(|allocator| allocator.endpoint);
        match listed.into_iter().find(|endpoint| endpoint.peer == peer) {
            Some(endpoint) => Ok(endpoint),
            None => inner.reach.discovery.endpoint(peer).await,
        }
    }

    /// Ends a stream that may go on for ever when the daemon stops.
    pub(super) fn until_stopping<T: Send + 'static>(
        &self,
        answer: Response<Relayed<T>>,
    ) -> Response<Relayed<T>> {
        let stopping = self.0.inner.spawner.stopping();
        answer
            .map(|stream| Box::pin(futures::StreamExt::take_until(stream, stopping)) as Relayed<T>)
    }
}

/// The one instance that `prefix` means. One that runs is preferred to those that have
/// ended: people mean what they see.
fn owner<'a>(
    prefix: &InstancePrefix,
    instances: &'a [proto::Instance],
    unreachable: &[PeerId],
) -> Result<&'a proto::Instance> {
    let fits = |instance: &&proto::Instance| instance.id.parse().is_ok_and(|id| prefix.matches(id));
    let ended = |instance: &proto::Instance| {
        matches!(instance.state(), InstanceState::Stopped | InstanceState::Failed)
    };
    let (ended, alive): (Vec<_>, Vec<_>) =
        instances.iter().filter(fits).partition(|instance| ended(instance));
    match (alive.as_slice(), ended.as_slice()) {
        ([one], _) | ([], [one]) => Ok(one),
        ([], []) => {
            let mut text = format!("there is no instance {prefix}");
            if !unreachable.is_empty() {
                let peers: Vec<_> = unreachable.iter().map(PeerId::short).collect();
                text.push_str(&format!("; did not answer: {}", peers.join(", ")));
            }
            Err(Error::new(Kind::NotFound, text).hint("lcactl instances shows what runs"))
        }
        ([], several) | (several, _) => {
            Err(prefix.ambiguous(several.iter().map(|one| one.id.clone())))
        }
    }
}
