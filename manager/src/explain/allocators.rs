//! The allocators that would be asked, in their order, and what each of them offers.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use lca::{PeerId, Requirements, api::proto, specs::Cached, units::show_duration as show};

use crate::{
    allocate::{ask_facts, groups, heed_rooms, lacks, measure, with_driver},
    allocators::Allocator,
    manager::Inner,
    policy::{self, Offer},
};

/// Allocators asked at the same time what they offer.
const AT_ONCE: usize = 64;
/// Longest one of them may take.
const ASK: Duration = Duration::from_secs(1);

/// An allocator, with what the outlook needs to know of it.
pub(super) struct Considered {
    pub(super) told: proto::ConsideredAllocator,
    /// It is asked, and will most likely say yes.
    pub(super) will_do: bool,
}

/// All that are known: first those that are asked, in order.
pub(super) async fn consider(
    inner: &Inner,
    spec: &Cached,
    limits: &Requirements,
) -> Vec<Considered> {
    if spec.spec.is_external() {
        return Vec::new();
    }
    let list = inner.allocators.list();
    let (offered, ranked) =
        tokio::join!(capacities(inner, list.clone()), rank(inner, spec, limits, list));
    let mut all: Vec<_> = ranked
        .into_iter()
        .map(|one| {
            let peer = one.peer;
            let capacity = offered.iter().find(|(offering, _)| *offering == peer);
            considered(one, capacity.map(|(_, capacity)| capacity.clone()), spec, limits)
        })
        .collect();
    // Rank 0, not asked, comes last.
    all.sort_by_key(|one| (one.told.rank.wrapping_sub(1), one.told.rtt_us, one.told.peer.clone()));
    all
}

/// An allocator's place.
struct Place {
    peer: PeerId,
    offer: Option<Offer>,
    /// From 1; 0 if it is not asked.
    rank: u32,
    doubtful: bool,
}

async fn rank(
    inner: &Inner,
    spec: &Cached,
    limits: &Requirements,
    list: Vec<Allocator>,
) -> Vec<Place> {
    let [(sound, _), (doubtful, _)] = groups(list, None);
    let (reach, allocators) = (&inner.reach, &inner.allocators);
    let (first, last) = tokio::join!(
        measure(reach, allocators, spec.hash, &sound, ASK),
        measure(reach, allocators, spec.hash, &doubtful, ASK),
    );
    let mut places = Vec::new();
    let mut next = 1;
    let placement = spec.spec.placement;
    for ((mut offers, silent), group, doubtful) in [(first, &sound, false), (last, &doubtful, true)]
    {
        let lacking = with_driver(reach, &spec.spec.runs, group, &mut offers).await;
        heed_rooms(&mut offers, allocators, spec.spec.resources, true);
        ask_facts(reach, placement, spec.hash, limits, group, &mut offers).await;
        let order = policy::rank(placement, true, &offers, limits, spec.hash);
        for offer in offers {
            let at = order.iter().position(|peer| *peer == offer.peer);
            let rank = at.map_or(0, |at| next + at as u32);
            places.push(Place { peer: offer.peer, offer: Some(offer), rank, doubtful });
        }
        next += order.len() as u32;
        let silent = silent.into_iter().chain(lacking).map(|(peer, _)| peer);
        places.extend(silent.map(|peer| Place { peer, offer: None, rank: 0, doubtful }));
    }
    places
}

async fn capacities(inner: &Inner, list: Vec<Allocator>) -> Vec<(PeerId, proto::DescribeResponse)> {
    let each = list.into_iter().map(|one| async move {
        let answer = inner.reach.describe(&one.endpoint, ASK).await.ok()?;
        Some((one.endpoint.peer, answer))
    });
    let mut answers = stream::iter(each).buffer_unordered(AT_ONCE);
    let mut all = Vec::new();
    while let Some(answer) = answers.next().await {
        all.extend(answer);
    }
    all
}

fn considered(
    place: Place,
    said: Option<proto::DescribeResponse>,
    spec: &Cached,
    limits: &Requirements,
) -> Considered {
    let Place { peer, offer, rank, doubtful } = place;
    let stopping = said.as_ref().is_some_and(|said| said.stopping);
    let missing = said.as_ref().and_then(|said| missing(said, spec));
    let lacks = said.as_ref().and_then(|said| lacks(said, &spec.spec.runs));
    let refused = offer.is_some_and(|offer| !offer.room);
    let has_room = offer.is_some() && !refused && missing.is_none() && !stopping;
    let reason = match offer {
        None if let Some(lacks) = lacks => lacks.public().to_owned(),
        None => "does not answer".to_owned(),
        Some(offer) if rank == 0 => match limits.hard {
            Some(hard) => {
                format!("{} away, beyond the hard limit of {}", show(offer.rtt), show(hard))
            }
            None => "out of the question".to_owned(),
        },
        Some(_) if stopping => "is stopping".to_owned(),
        Some(_) if missing.is_some() => missing.unwrap_or_default(),
        Some(_) if refused => "refused this service a moment ago for lack of room".to_owned(),
        Some(_) if doubtful => "did not answer lately: a last resort".to_owned(),
        Some(offer) => {
            let end = show(policy::bucket_end(offer.least));
            match limits.soft {
                Some(soft) if !limits.within_soft(offer.least) => {
                    format!("under {end}, above the soft limit of {}", show(soft))
                }
                Some(soft) => format!("under {end}, within the soft limit of {}", show(soft)),
                None => format!("under {end}"),
            }
        }
    };
    let told = proto::ConsideredAllocator {
        peer: peer.to_string(),
        rtt_us: offer.map(|offer| micros(offer.rtt)),
        bucket_us: offer.map_or(0, |offer| micros(policy::bucket_end(offer.least))),
        has_room,
        rank,
        reason,
        capacity: said.map(|said| proto::PeerCapacity {
            peer: peer.to_string(),
            total: said.total,
            used: said.used,
        }),
    };
    Considered { will_do: rank > 0 && has_room, told }
}

/// What it says it has too little of, if anything.
fn missing(said: &proto::DescribeResponse, spec: &Cached) -> Option<String> {
    let (total, used) = (said.total?, said.used.unwrap_or_default());
    let wanted = spec.spec.resources;
    if used.instances >= total.instances {
        return Some(format!("all {} places are taken", total.instances));
    }
    let cpu = total.cpu_millis.saturating_sub(used.cpu_millis);
    if wanted.cpu_millis > cpu {
        let needs = wanted.cpu_millis;
        return Some(format!("too little CPU is left: {cpu} of {needs} thousandths of a core"));
    }
    let memory = total.memory_bytes.saturating_sub(used.memory_bytes);
    let mib = |bytes: u64| bytes >> 20;
    (wanted.memory_bytes > memory).then(|| {
        format!("too little memory is left: {} of {} MiB", mib(memory), mib(wanted.memory_bytes))
    })
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
