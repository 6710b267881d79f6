//! `Instances` of all allocators, and of those who represent external services: asked in
//! parallel, each with its own deadline, so that a dead peer is named and holds nobody up.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use lca::{
    Error, Kind, PeerId, Result, ServiceHash, ServiceName,
    api::proto::{self, instances_server::Instances},
    endpoint::Endpoint,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Relay, watch};
use crate::{manager::Inner, representatives};

/// Longest one allocator may take.
const ASK: Duration = Duration::from_secs(1);
/// Allocators asked at the same time.
const AT_ONCE: usize = 64;
/// The most that one answer names.
const MAX: usize = 1000;
/// When one watcher too many may come again.
const BUSY: Duration = Duration::from_secs(1);

#[tonic::async_trait]
impl Instances for Relay {
    type WatchInstancesStream = ReceiverStream<Result<proto::InstanceEvent, Status>>;

    async fn watch_instances(
        &self,
        request: Request<proto::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let which = request.into_inner();
        check(&which.service, &which.service_hash)?;
        let inner = &self.0.inner;
        let place = inner.watchers.clone().try_acquire_owned().map_err(|_| {
            Error::new(Kind::NoCapacity, "the daemon has as many watchers as it serves")
                .retry_after(BUSY)
        })?;
        Ok(Response::new(watch::start(inner.clone(), which, place)))
    }

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Result<Response<proto::ListInstancesResponse>, Status> {
        let which = request.into_inner();
        check(&which.service, &which.service_hash)?;
        let All { mut instances, unreachable, .. } = everywhere(&self.0.inner, &which).await;
        instances.truncate(MAX);
        let unreachable_peers = unreachable.iter().map(PeerId::to_string).collect();
        Ok(Response::new(proto::ListInstancesResponse { instances, unreachable_peers }))
    }
}

/// Whether this is a filter: each part may be empty.
fn check(service: &str, service_hash: &str) -> Result<()> {
    if !service.is_empty() {
        service.parse::<ServiceName>()?;
    }
    if !service_hash.is_empty() {
        service_hash.parse::<ServiceHash>()?;
    }
    Ok(())
}

/// What all said who hold instances.
#[derive(Default)]
pub(crate) struct All {
    /// By service, peer and id.
    pub(crate) instances: Vec<proto::Instance>,
    pub(crate) unreachable: Vec<PeerId>,
    /// Who answered, also with nothing.
    pub(crate) answered: Vec<PeerId>,
}

/// Asks every peer that holds instances, this node included if it does.
pub(crate) async fn everywhere(inner: &Inner, which: &proto::ListInstancesRequest) -> All {
    let (mut all, external) = tokio::join!(
        async {
            let allocators = inner.allocators.list_or_find().await;
            ask(inner, which, allocators.into_iter().map(|one| one.endpoint).collect()).await
        },
        async { ask(inner, which, representatives::find(&inner.reach).await).await }
    );
    all.instances.extend(external.instances);
    all.unreachable.extend(external.unreachable);
    all.answered.extend(external.answered);
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
    let mut all = All::default();
    let mut answers = stream::iter(each).buffer_unordered(AT_ONCE);
    while let Some((endpoint, answer)) = answers.next().await {
        match answer {
            Ok(instances) => {
                all.answered.push(endpoint.peer);
                let rtt_us = inner.reach.rtt_us(endpoint.peer);
                let rtt_deviation_us = inner.reach.deviation_us(endpoint.peer);
                all.instances.extend(instances.into_iter().map(|instance| proto::Instance {
                    rtt_us,
                    rtt_deviation_us,
                    ..instance
                }));
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
