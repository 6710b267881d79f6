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
    InstanceId, Kind, PeerId, Requirements, ServiceHash,
    api::proto::{Instance, InstanceState, ListInstancesRequest},
    endpoint::Endpoint,
};
use tokio::time::sleep;

use crate::{
    allocators::Allocator,
    policy::{self, Offer},
    reach::Reach,
};

/// Allocators that are asked: who ranks behind these was hardly anybody's choice.
const ASKED: usize = 8;
/// Of the doubtful, how many are asked besides: few are in doubt and answer probes.
const DOUBTFUL: usize = 4;
/// Longest to wait for those that are sound. They are near and answer probes, so this is only
/// waited for where a machine is out of breath, as when all of a fleet open their connections
/// at once, and there a second instance would be worse. Who falls silent ends the wait.
const WITHIN: Duration = Duration::from_secs(4);
/// The same for the doubtful: they did not answer the last time.
const WITHIN_DOUBTFUL: Duration = Duration::from_secs(1);
/// How often to look whether one that is waited for has fallen silent.
const PULSE: Duration = Duration::from_millis(250);

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

/// Who is asked, and whether it did not answer the last time.
pub(crate) struct Near {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) doubtful: bool,
}

/// What came of asking.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// The first to say that it has begun an instance, or has one.
    pub(crate) by: Option<PeerId>,
    /// Those sound ones that had all the time there is, answer probes, and did not say.
    pub(crate) mute: Vec<PeerId>,
}

/// The first of `near` to say that it has begun an instance of `service`, or has one. What
/// the request has `tried` will not do for it, so it counts only if nobody has another.
/// Bounded by [`WITHIN`]. Cancel safe.
pub(crate) async fn begun(
    reach: &Reach,
    service: ServiceHash,
    near: Vec<Near>,
    tried: &[InstanceId],
) -> Begun {
    let mut asked: FuturesUnordered<_> =
        near.into_iter().map(|near| ask(reach, service, near, tried)).collect();
    let (mut mute, mut only_tried) = (Vec::new(), None);
    while let Some((peer, answer)) = asked.next().await {
        match answer {
            Said::Begun { tried: false } => return Begun { by: Some(peer), mute },
            Said::Begun { tried: true } => only_tried = only_tried.or(Some(peer)),
            Said::Mute => mute.push(peer),
            Said::None => {}
        }
    }
    Begun { by: only_tried, mute }
}

enum Said {
    /// It has one; whether the request has tried all it has.
    Begun {
        tried: bool,
    },
    None,
    Mute,
}

async fn ask(
    reach: &Reach,
    service: ServiceHash,
    Near { endpoint, doubtful }: Near,
    tried: &[InstanceId],
) -> (PeerId, Said) {
    let which = ListInstancesRequest { service_hash: service.to_string(), ..Default::default() };
    let within = if doubtful { WITHIN_DOUBTFUL } else { WITHIN };
    let peer = endpoint.peer;
    let silent = async {
        while !reach.mesh.is_silent(peer) {
            sleep(PULSE).await;
        }
    };
    let answer = tokio::select! {
        answer = reach.instances(&endpoint, which, within) => answer,
        () = silent => return (peer, Said::None),
    };
    let said = match answer {
        Ok(instances) => {
            let mut coming = instances.iter().filter(|one| is_coming(one, service)).peekable();
            match coming.peek() {
                Some(_) => Said::Begun { tried: coming.all(|one| is_one_of(one, tried)) },
                None => Said::None,
            }
        }
        Err(error) if error.kind() == Kind::Timeout && !doubtful => Said::Mute,
        Err(_) => Said::None,
    };
    (peer, said)
}

fn is_one_of(instance: &Instance, tried: &[InstanceId]) -> bool {
    instance.id.parse().is_ok_and(|id: InstanceId| tried.contains(&id))
}

fn is_coming(instance: &Instance, service: ServiceHash) -> bool {
    use InstanceState::{Fetching, Pending, Ready, Starting};
    instance.service_hash == service.to_string()
        && [Pending, Fetching, Starting, Ready].contains(&instance.state())
}
