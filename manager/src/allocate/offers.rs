//! What allocators offer, before one of them is asked: how far they are, whether they have
//! room, and what they say of themselves where the placement counts it.

use std::time::Duration;

use futures::future::join_all;
use lca::{Error, Kind, PeerId, Placement, Requirements, Resources, Runs, ServiceHash, api::proto};

use crate::{
    allocators::{Allocator, Allocators},
    policy::{self, Facts, Offer, placement::share},
    reach::Reach,
};

/// How long a request waits for the distance of allocators nobody has measured yet.
/// They answer within one round trip or are not worth waiting for.
const MEASURE_NOW: Duration = Duration::from_millis(500);
/// The same for those that did not answer the last time, when there is nobody else:
/// the deadline of connecting.
const MEASURE_LAST: Duration = Duration::from_secs(3);

/// Who is asked first and who last, and how long they may take to be measured. The
/// doubtful are a last resort: nobody waits for them while others say yes.
pub(crate) fn groups(
    all: Vec<Allocator>,
    first: Option<PeerId>,
) -> [(Vec<Allocator>, Duration); 2] {
    let is_doubtful = |one: &Allocator| one.failed && Some(one.endpoint.peer) != first;
    let (doubtful, sound) = all.into_iter().partition(is_doubtful);
    [(sound, MEASURE_NOW), (doubtful, MEASURE_LAST)]
}

/// Learns how far away they are, all at once, and who does not answer.
pub(crate) async fn measure(
    reach: &Reach,
    allocators: &Allocators,
    service: ServiceHash,
    group: &[Allocator],
    patience: Duration,
) -> (Vec<Offer>, Vec<(PeerId, Error)>) {
    let measured = group.iter().map(|Allocator { endpoint, .. }| async {
        (endpoint.peer, reach.measure(endpoint, patience).await)
    });
    let (mut offers, mut silent) = (Vec::with_capacity(group.len()), Vec::new());
    for (peer, measured) in join_all(measured).await {
        match measured {
            Ok(rtt) => {
                let least = reach.mesh.distance(peer).map_or(rtt, |distance| distance.least);
                let room = allocators.has_room(peer, service);
                offers.push(Offer { peer, rtt, least, room, facts: None });
            }
            Err(error) => {
                allocators.failed(peer);
                silent.push((peer, error));
            }
        }
    }
    (offers, silent)
}

/// Marks those that have said that they have nothing left. `joins`: an instance that is
/// there will do as well.
pub(crate) fn heed_rooms(
    offers: &mut [Offer],
    allocators: &Allocators,
    needs: Resources,
    joins: bool,
) {
    for offer in offers {
        offer.room &= allocators.rooms.has_room(offer.peer, needs, joins);
    }
}

/// Leaves those out that say that they lack the driver for what `runs`, and names them. Every
/// allocator runs programs, so it is asked for images alone; one that says nothing now says it
/// when it is asked for an instance.
pub(crate) async fn with_driver(
    reach: &Reach,
    runs: &Runs,
    group: &[Allocator],
    offers: &mut Vec<Offer>,
) -> Vec<(PeerId, Error)> {
    if !matches!(runs, Runs::Image(_)) {
        return Vec::new();
    }
    let asked = offers.iter().map(|offer| async {
        let endpoint = group.iter().map(|one| &one.endpoint).find(|at| at.peer == offer.peer)?;
        let said = reach.describe(endpoint, policy::placement::ASK).await.ok()?;
        lacks(&said, runs).map(|error| (offer.peer, error))
    });
    let lacking: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
    offers.retain(|offer| lacking.iter().all(|(peer, _)| *peer != offer.peer));
    lacking
}

/// Why an allocator that says this of itself is out of the question for an image, if it is.
pub(crate) fn lacks(said: &proto::DescribeResponse, runs: &Runs) -> Option<Error> {
    let Runs::Image(_) = runs else { return None };
    let driver = runs.driver()?;
    let has = said.drivers.iter().any(|one| one == driver);
    (!has).then(|| Error::new(Kind::NotHere, format!("has no driver `{driver}` that works now")))
}

/// Learns what those within soft say of themselves, where the placement counts it.
pub(crate) async fn ask_facts(
    reach: &Reach,
    placement: Placement,
    service: ServiceHash,
    limits: &Requirements,
    group: &[Allocator],
    offers: &mut [Offer],
) {
    if placement == Placement::Nearest {
        return;
    }
    let asked = offers.iter_mut().filter(|offer| limits.within_soft(offer.rtt)).map(|offer| {
        let endpoint = group.iter().map(|one| &one.endpoint).find(|at| at.peer == offer.peer);
        async move {
            let Some(endpoint) = endpoint else { return };
            let within = policy::placement::ASK;
            let which = proto::ListInstancesRequest {
                service_hash: service.to_string(),
                ..Default::default()
            };
            let said = tokio::try_join!(
                reach.describe(endpoint, within),
                reach.instances(endpoint, which, within)
            );
            let Ok((described, instances)) = said else { return };
            let used = described.used.unwrap_or_default();
            let total = described.total.unwrap_or_default();
            let shares = [
                share(used.cpu_millis.into(), total.cpu_millis.into()),
                share(used.memory_bytes, total.memory_bytes),
                share(used.instances.into(), total.instances.into()),
            ];
            let ends = |one: &&proto::Instance| one.state() != proto::InstanceState::Draining;
            let instances = instances.iter().filter(ends).count();
            offer.facts = Some(Facts {
                instances: u32::try_from(instances).unwrap_or(u32::MAX),
                used: shares.into_iter().max().unwrap_or_default(),
            });
        }
    });
    join_all(asked).await;
}
