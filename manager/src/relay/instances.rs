//! `Instances` of all allocators, and of those who represent external services: asked in
//! parallel, each with its own deadline, so that a dead peer is named and holds nobody up.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use lca::{
    Error, PeerId, Result, ServiceHash, ServiceName,
    api::proto::{self, instances_server::Instances},
    endpoint::Endpoint,
};
use tonic::{Request, Response, Status};

use super::Relay;
use crate::{manager::Inner, representatives};

/// Longest one allocator may take.
const ASK: Duration = Duration::from_secs(1);
/// Allocators asked at the same time.
const AT_ONCE: usize = 64;
/// The most that one answer names.
const MAX: usize = 1000;

#[tonic::async_trait]
impl Instances for Relay {
    type WatchInstancesStream = tonic::codegen::BoxStream<proto::InstanceEvent>;

    async fn watch_instances(
        &self,
        _: Request<proto::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Result<Response<proto::ListInstancesResponse>, Status> {
        let which = request.into_inner();
        if !which.service.is_empty() {
            which.service.parse::<ServiceName>().map_err(Error::from)?;
        }
        if !which.service_hash.is_empty() {
            which.service_hash.parse::<ServiceHash>().map_err(Error::from)?;
        }
        let All { mut instances, unreachable } = everywhere(&self.0.inner, &which).await;
        instances.truncate(MAX);
        let unreachable_peers = unreachable.iter().map(PeerId::to_string).collect();
        Ok(Response::new(proto::ListInstancesResponse { instances, unreachable_peers }))
    }
}

/// What all said who hold instances.
pub(super) struct All {
    /// By service, peer and id.
    pub(super) instances: Vec<proto::Instance>,
    pub(super) unreachable: Vec<PeerId>,
}

/// Asks every peer that holds instances, this node included if it does.
pub(super) async fn everywhere(inner: &Inner, which: &proto::ListInstancesRequest) -> All {
    let (mut all, external) = tokio::join!(
        async {
            let allocators = inner.allocators.list_or_find().await;
            ask(inner, which, allocators.into_iter().map(|one| one.endpoint).collect()).await
        },
        async { ask(inner, which, representatives::find(&inner.reach).await).await }
    );
    all.instances.extend(external.instances);
    all.unreachable.extend(external.unreachable);
    all.instances
        .sort_unstable_by(|a, b| (&a.service, &a.peer, &a.id).cmp(&(&b.service, &b.peer, &b.id)));
    all.unreachable.sort_unstable();
    all
}

async fn ask(inner: &Inner, which: &proto::ListInstancesRequest, peers: Vec<Arc<Endpoint>>) -> All {
    let each = peers.into_iter().map(|endpoint| async move {
        let answer = inner.reach.instances(&endpoint, which.clone(), ASK).await;
        (endpoint, answer)
    });
    let mut all = All { instances: Vec::new(), unreachable: Vec::new() };
    let mut answers = stream::iter(each).buffer_unordered(AT_ONCE);
    while let Some((endpoint, answer)) = answers.next().await {
        match answer {
            Ok(instances) => {
                let rtt_us = inner.reach.rtt_us(endpoint.peer);
                all.instances.extend(
                    instances.into_iter().map(|instance| proto::Instance { rtt_us, ..instance }),
                );
            }
            Err(error) => {
                tracing::debug!(peer = %endpoint.peer.short(), error = error.chain(),
                    "instances not known");
                all.unreachable.push(endpoint.peer);
            }
        }
    }
    all
}
