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
    InstanceId, PeerId, Requirements, ServiceHash,
    api::proto::{Instance, InstanceState, ListInstancesRequest},
    endpoint::Endpoint,
};
use tokio::time::timeout;

use crate::{
    allocators::Allocator,
    policy::{self, Offer},
    reach::Reach,
};

/// Allocators that are asked: who ranks behind these was hardly anybody's choice.
const ASKED: usize = 8;
/// Of the doubtful, how many are asked besides: few are in doubt and answer probes.
const DOUBTFUL: usize = 4;
/// Longest to wait for all of them. They are near and answered probes, so this is only
/// waited for where a machine is out of breath, and there a second instance would be worse.
const WITHIN: Duration = Duration::from_secs(1);

/// Whom to ask: of those `ranked`, and of the `doubtful`, those that others may have
/// preferred. Who did not answer once, and answers probes, was busy: perhaps with this.
pub(crate) fn whom(
    reach: &Reach,
    limits: &Requirements,
    ranked: &[PeerId],
    offers: &[Offer],
    doubtful: &[Allocator],
) -> Vec<PeerId> {
    let mut offers = offers.to_vec();
    let mut order = ranked.to_vec();
    for one in doubtful {
        let peer = one.endpoint.peer;
        let Some(distance) = reach.mesh.distance(peer) else { continue };
        let rtt = distance.median;
        if limits.within_hard(rtt) && !offers.iter().any(|offer| offer.peer == peer) {
            offers.push(Offer { peer, rtt, least: distance.least, room: true, facts: None });
            order.push(peer);
        }
    }
    // Who is ranked first sets how far others may be.
    if ranked.is_empty() {
        return Vec::new();
    }
    let (sound, doubtful): (Vec<_>, Vec<_>) =
        policy::rivals(&order, &offers, limits).into_iter().partition(|peer| ranked.contains(peer));
    sound.into_iter().take(ASKED).chain(doubtful.into_iter().take(DOUBTFUL)).collect()
}

/// The first of `near` to say that it has begun an instance of `service`, or has one. What
/// the request has `tried` will not do for it, so it counts only if nobody has another.
/// Bounded by [`WITHIN`]. Cancel safe.
pub(crate) async fn begun(
    reach: &Reach,
    service: ServiceHash,
    near: Vec<Arc<Endpoint>>,
    tried: &[InstanceId],
) -> Option<PeerId> {
    let asked = near.into_iter().map(|endpoint| async move {
        let which =
            ListInstancesRequest { service_hash: service.to_string(), ..Default::default() };
        let instances = reach.instances(&endpoint, which, WITHIN).await.ok()?;
        let mut coming = instances.iter().filter(|one| is_coming(one, service)).peekable();
        coming.peek()?;
        Some((endpoint.peer, coming.all(|one| is_one_of(one, tried))))
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut only_tried = None;
    let first = async {
        loop {
            match asked.next().await {
                Some(Some((peer, false))) => return Some(peer),
                Some(Some((peer, true))) => only_tried = only_tried.or(Some(peer)),
                Some(None) => {}
                None => return None,
            }
        }
    };
    let first = timeout(WITHIN, first).await.ok().flatten();
    first.or(only_tried)
}

fn is_one_of(instance: &Instance, tried: &[InstanceId]) -> bool {
    instance.id.parse().is_ok_and(|id: InstanceId| tried.contains(&id))
}

fn is_coming(instance: &Instance, service: ServiceHash) -> bool {
    use InstanceState::{Fetching, Pending, Ready, Starting};
    instance.service_hash == service.to_string()
        && [Pending, Fetching, Starting, Ready].contains(&instance.state())
}
