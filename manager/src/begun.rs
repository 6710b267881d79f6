//! Whether what is about to be started has been begun already: by a manager nearby that
//! measured a little differently, or a moment ago, so that no find can know of it yet.
//!
//! Managers of one place rank allocators alike as long as they measure alike, and two that
//! decide in the same instant have nothing else to go by. On a busy machine they do
//! neither: round trips differ by their noise, and decisions are tenths of seconds apart.
//! So before one is started, those that others may have preferred are asked, all at once,
//! and are told who is to start it: whoever asks next hears of it, though nothing is begun
//! yet (decision 0012).
//! It costs a round trip to a peer about as near as the one that is asked to start.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use lca::{
    InstanceId, Kind, PeerId, Requirements, ServiceHash, api::proto::IntendResponse,
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
    /// Who is to be asked first: who says that it has begun an instance, or has one; else
    /// whom a manager means that asked before.
    pub(crate) by: Option<PeerId>,
    /// Those sound ones that had all the time there is, answer probes, and did not say.
    pub(crate) mute: Vec<PeerId>,
}

/// Tells `near` that `service` is about to be started by `at`, and hears who has begun an
/// instance, or has one: the first to say so. What the request has `tried` will not do for
/// it, so it counts only if nobody has another. If nobody has any, whom the first manager
/// to ask means. Bounded by [`WITHIN`]. Cancel safe.
pub(crate) async fn begun(
    reach: &Reach,
    service: ServiceHash,
    near: Vec<Near>,
    at: PeerId,
    tried: &[InstanceId],
) -> Begun {
    let mut asked: FuturesUnordered<_> =
        near.into_iter().map(|near| ask(reach, service, near, at, tried)).collect();
    let (mut mute, mut only_tried, mut words) = (Vec::new(), None, Vec::new());
    while let Some((peer, answer)) = asked.next().await {
        match answer {
            Said::Begun { tried: false } => return Begun { by: Some(peer), mute },
            Said::Begun { tried: true } => only_tried = only_tried.or(Some(peer)),
            Said::Meant(meant) => words.push((peer, meant)),
            Said::Mute => mute.push(peer),
            Said::None => {}
        }
    }
    Begun { by: only_tried.or_else(|| policy::heeded(service, &words)), mute }
}

#[derive(Debug)]
enum Said {
    /// It has one; whether the request has tried all it has.
    Begun {
        tried: bool,
    },
    /// It has none, and the first to ask means this one.
    Meant(PeerId),
    None,
    Mute,
}

async fn ask(
    reach: &Reach,
    service: ServiceHash,
    Near { endpoint, doubtful }: Near,
    at: PeerId,
    tried: &[InstanceId],
) -> (PeerId, Said) {
    let within = if doubtful { WITHIN_DOUBTFUL } else { WITHIN };
    let peer = endpoint.peer;
    let silent = async {
        while !reach.mesh.is_silent(peer) {
            sleep(PULSE).await;
        }
    };
    let answer = tokio::select! {
        answer = reach.intend(&endpoint, service, at, within) => answer,
        () = silent => return (peer, Said::None),
    };
    let said = match answer {
        Ok(IntendResponse { instances, peer: meant }) => match meant.parse() {
            _ if !instances.is_empty() => {
                let is_tried =
                    |id: &String| id.parse().is_ok_and(|id: InstanceId| tried.contains(&id));
                Said::Begun { tried: instances.iter().all(is_tried) }
            }
            Ok(meant) => Said::Meant(meant),
            Err(_) => Said::None,
        },
        Err(error) if error.kind() == Kind::Timeout && !doubtful => Said::Mute,
        Err(_) => Said::None,
    };
    (peer, said)
}
