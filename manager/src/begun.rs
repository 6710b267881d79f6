//! Whether what is about to be started has been begun already: by a manager nearby that
//! measured a little differently, or a moment ago, so that no find can know of it yet.
//!
//! Managers of one place rank allocators alike as long as they measure alike, and two that
//! decide in the same instant have nothing else to go by. On a busy machine they do
//! neither: round trips differ by their noise, and decisions are tenths of seconds apart.
//! So before one is started, those that others may have preferred are asked, all at once.
//! It costs a round trip to a peer about as near as the one that is asked to start.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use lca::{
    PeerId, ServiceHash,
    api::proto::{Instance, InstanceState, ListInstancesRequest},
    endpoint::Endpoint,
};
use tokio::time::timeout;

use crate::reach::Reach;

/// Allocators that are asked: who ranks behind these was hardly anybody's choice.
pub(crate) const ASKED: usize = 8;
/// Longest to wait for all of them. They are near and answered probes, so this is only
/// waited for where a machine is out of breath, and there a second instance would be worse.
const WITHIN: Duration = Duration::from_secs(1);

/// The first of `near` to say that it has begun an instance of `service`, or has one.
/// Bounded by [`WITHIN`]. Cancel safe.
pub(crate) async fn begun(
    reach: &Reach,
    service: ServiceHash,
    near: impl Iterator<Item = Arc<Endpoint>>,
) -> Option<PeerId> {
    let asked = near.map(|endpoint| async move {
        let which =
            ListInstancesRequest { service_hash: service.to_string(), ..Default::default() };
        let instances = reach.instances(&endpoint, which, WITHIN).await.ok()?;
        instances.iter().any(|one| is_coming(one, service)).then_some(endpoint.peer)
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let first = async {
        loop {
            match asked.next().await {
                Some(Some(peer)) => return Some(peer),
                Some(None) => {}
                None => return None,
            }
        }
    };
    timeout(WITHIN, first).await.ok().flatten()
}

fn is_coming(instance: &Instance, service: ServiceHash) -> bool {
    use InstanceState::{Fetching, Pending, Ready, Starting};
    instance.service_hash == service.to_string()
        && [Pending, Fetching, Starting, Ready].contains(&instance.state())
}
