//! The peers a node knows, itself first.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use lca::{
    PeerId,
    api::proto,
    endpoint::{Endpoint, Role},
};

use crate::{manager::Inner, reach::Reach};

/// Longest a peer may take to show that it is there.
const ASK: Duration = Duration::from_secs(1);
/// Peers asked at the same time: all of a small fleet at once, and not a thousand
/// connections.
const AT_ONCE: usize = 64;
/// The most that one answer names.
const MAX: usize = 1000;

/// The peers as this node remembers them, nobody asked: for other peers, who must not
/// be able to make this node knock on every door.
pub(crate) fn remembered(inner: &Inner) -> Vec<proto::Peer> {
    let local = inner.reach.discovery.local();
    all(inner).iter().map(|endpoint| describe(&inner.reach, endpoint, local)).collect()
}

/// The peers, each of them asked just now, all in parallel.
pub(crate) async fn asked(inner: &Inner) -> Vec<proto::Peer> {
    let local = inner.reach.discovery.local();
    let each = all(inner).into_iter().map(|endpoint| async move {
        let reach = &inner.reach;
        let (measured, described) = tokio::join!(reach.measure(&endpoint, ASK), async {
            if endpoint.has(Role::Allocator) {
                reach.describe(&endpoint, ASK).await.ok()
            } else {
                None
            }
        });
        let mut peer = describe(reach, &endpoint, local);
        peer.reachable |= measured.is_ok() || described.is_some();
        if let Some(proto::DescribeResponse { total, used, .. }) = described {
            peer.instances = used.unwrap_or_default().instances;
            peer.max_instances = total.unwrap_or_default().instances;
        }
        peer
    });
    // In order, whoever answers first.
    stream::iter(each).buffered(AT_ONCE).collect().await
}

/// This node, then the others by roles and id.
fn all(inner: &Inner) -> Vec<Arc<Endpoint>> {
    let mut others = inner.reach.discovery.known();
    others.sort_unstable_by(|a, b| (&a.roles, a.peer).cmp(&(&b.roles, b.peer)));
    let own = inner.reach.discovery.own();
    std::iter::once(own).chain(others).take(MAX).collect()
}

fn describe(reach: &Reach, endpoint: &Endpoint, local: PeerId) -> proto::Peer {
    let is_local = endpoint.peer == local;
    let rtt_us = reach.rtt_us(endpoint.peer);
    proto::Peer {
        peer: endpoint.peer.to_string(),
        roles: endpoint.roles.iter().map(Role::to_string).collect(),
        mesh_addresses: endpoint.mesh.iter().map(ToString::to_string).collect(),
        rtt_us,
        rtt_deviation_us: reach.deviation_us(endpoint.peer),
        version: endpoint.version.clone(),
        local: is_local,
        reachable: is_local || rtt_us.is_some(),
        instances: 0,
        max_instances: 0,
        link: reach.mesh.link(endpoint.peer).map(|name| name.to_string()).unwrap_or_default(),
    }
}
