//! Having an instance started: the allocators in their order, one after the other,
//! until one says yes or a failure that would be the same everywhere.
//!
//! The answer of the allocator is the end of it: what was started is used where it is,
//! without asking discovery where that might be.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use lca::{
    Error, InstanceId, Kind, PeerId, Placement, RequestId, Requirements, Resources, Result,
    ServiceHash, ServiceName,
    api::{
        self,
        proto::{self, allocate_request::Mode, allocator_client::AllocatorClient},
    },
    endpoint::Endpoint,
    headers::Load,
};
use tokio::time::{Instant, sleep};

use crate::{
    allocators::{Allocator, Allocators},
    begun,
    flight::{Flight, Landed},
    policy::{self, Facts, Offer, placement::share},
    reach::{Reach, ready},
};

/// How long a request waits for the distance of allocators nobody has measured yet.
/// They answer within one round trip or are not worth waiting for.
const MEASURE_NOW: Duration = Duration::from_millis(500);
/// The same for those that did not answer the last time, when there is nobody else:
/// the deadline of connecting.
const MEASURE_LAST: Duration = Duration::from_secs(3);
/// Longest a connection to an allocator may take: the mesh's own deadline.
const CONNECT: Duration = Duration::from_secs(3);
/// What an allocation may take besides fetching and starting: connecting twice and
/// asking a registry.
const MARGIN: Duration = Duration::from_secs(10);
/// What the allocator is told beyond our own patience, so that ours is over first and
/// no other end of the call can be taken for it.
const BEYOND: Duration = Duration::from_secs(1);
/// When to try again where nobody said anything better.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Of those that may be asked, how many are followed for what they have left: the first
/// is asked, and the others if it has nothing.
const MAX_FOLLOWED: usize = 3;
/// Allocators named in one refusal, and characters kept of what each said: enough to
/// see why, and still a header block.
const MAX_REASONS: usize = 8;
const MAX_REASON: usize = 160;

/// What is to be started, and how.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) name: ServiceName,
    pub(crate) service: ServiceHash,
    pub(crate) resources: Resources,
    pub(crate) limits: Requirements,
    pub(crate) start_timeout: Duration,
    pub(crate) placement: Placement,
    pub(crate) mode: Mode,
    /// Kept for every try: an allocator that has done it already says so.
    pub(crate) request_id: RequestId,
    /// Who was asked last with this id; it is asked first.
    pub(crate) first: Option<PeerId>,
}

/// Has `order` carried out by the best allocator that will. `asking` is told who is
/// asked, before it is: whatever becomes of the call, it may have been heard.
///
/// # Errors
/// [`Kind::StartFailed`] and other failures that would be the same everywhere, as the
/// allocator said it; [`Kind::NoCapacity`] or [`Kind::Unavailable`] with the reason
/// each allocator gave; [`Kind::Unavailable`] if none is known or near enough.
pub(crate) async fn allocate(
    reach: &Reach,
    allocators: &Allocators,
    order: &Order,
    flight: &Flight,
    asking: impl Fn(PeerId),
) -> Result<Landed> {
    let all = allocators.list_or_find().await;
    if all.is_empty() {
        return Err(Error::new(
            Kind::Unavailable,
            format!("nobody runs {}, and no allocator is known that could", order.name),
        )
        .hint("start an allocator, or give the address of a peer with --bootstrap")
        .retry_after(RETRY_AFTER));
    }
    let mut refusals = Refusals::default();
    let groups = groups(all, order.first);
    let doubtful = groups[1].0.clone();
    for (group, patience) in groups {
        let one = |peer| group.iter().chain(&doubtful).find(|one| one.endpoint.peer == peer);
        let (mut offers, silent) =
            measure(reach, allocators, order.service, &group, patience).await;
        silent.into_iter().for_each(|(peer, error)| refusals.add(peer, error));
        let joins = order.mode != Mode::New;
        heed_rooms(&mut offers, allocators, order.resources, joins);
        ask_facts(reach, order.placement, order.service, &order.limits, &group, &mut offers).await;
        let mut ranked =
            policy::rank(order.placement, joins, &offers, &order.limits, order.service);
        if let Some(first) = order.first
            && let Some(at) = ranked.iter().position(|peer| *peer == first)
        {
            ranked[..=at].rotate_right(1);
        }
        refusals.too_far(&offers, &order.limits);
        for peer in ranked.iter().take(MAX_FOLLOWED) {
            one(*peer).into_iter().for_each(|one| allocators.rooms.need(&one.endpoint));
        }
        let mut since = Instant::now();
        if order.mode == Mode::Ensure {
            let near = begun::whom(reach, &order.limits, &ranked, &offers, &doubtful);
            let near: Vec<_> =
                near.into_iter().filter_map(|peer| Some(one(peer)?.endpoint.clone())).collect();
            let tried = flight.question().avoids();
            if near.len() > 1
                && let Some(peer) = begun::begun(reach, order.service, near, tried).await
            {
                ranked.retain(|one| *one != peer);
                ranked.insert(0, peer);
            }
        }
        for peer in ranked {
            let Some(Allocator { endpoint, .. }) = one(peer) else { continue };
            asking(peer);
            match ask(reach, order, endpoint).await {
                Ok(landed) => {
                    allocators.worked(peer);
                    flight.step("allocate", since, peer.short());
                    return Ok(landed);
                }
                Err(refused) => {
                    let reason = format!("{}: {}", peer.short(), refused.error.public());
                    flight.step("allocate", since, reason);
                    since = Instant::now();
                    tracing::debug!(
                        service = %order.name, peer = %peer.short(), error = refused.error.chain(),
                        "an allocator did not start an instance"
                    );
                    match refused.next {
                        Next::Stop => return Err(refused.error),
                        Next::Full => allocators.full(peer, order.service),
                        Next::Gone => {
                            allocators.failed(peer);
                            reach.discovery.forget(peer);
                        }
                        Next::Other => {}
                    }
                    refusals.add(peer, refused.error);
                }
            }
        }
    }
    Err(refusals.into_error(order))
}

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

/// One allocator's no.
struct Refused {
    error: Error,
    next: Next,
}

/// What a no means for the others.
enum Next {
    /// Others would say the same, or start a second one.
    Stop,
    /// It has no room; others may.
    Full,
    /// It cannot be reached.
    Gone,
    /// It cannot or does not want to.
    Other,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let next = match error.kind() {
            Kind::NoCapacity => Next::Full,
            Kind::StartFailed
            | Kind::FailedPrecondition
            | Kind::InvalidArgument
            | Kind::Conflict => Next::Stop,
            _ => Next::Other,
        };
        Self { error, next }
    }
}

async fn ask(reach: &Reach, order: &Order, endpoint: &Arc<Endpoint>) -> Result<Landed, Refused> {
    let gone = |error| Refused { error, next: Next::Gone };
    let channel = reach.channel(endpoint, CONNECT).await.map_err(gone)?;
    let request = proto::AllocateRequest {
        service: order.name.to_string(),
        service_hash: order.service.to_string(),
        mode: order.mode.into(),
        request_id: order.request_id.to_string(),
    };
    let patience = (order.start_timeout + api::MAX_FETCH + MARGIN).min(api::MAX_CALL - BEYOND);
    let call = async |channel| {
        let mut client = AllocatorClient::new(channel);
        api::call("the allocator", patience + BEYOND, request.clone(), |request| {
            client.allocate(request)
        })
        .await
    };
    let asked = async {
        match call(channel).await {
            // The connection may have broken while it was at work: with the same id it
            // answers with what it has begun.
            Err(error) if error.kind() == Kind::Unavailable => {
                call(reach.channel(endpoint, CONNECT).await?).await
            }
            answer => answer,
        }
    };
    let answer = tokio::select! {
        answer = asked => answer?,
        // It may start it yet: another one asked now would start a second.
        () = sleep(patience) => return Err(Refused { error: late(endpoint, patience), next: Next::Stop }),
        () = reach.dies(endpoint) => {
            return Err(gone(Error::new(Kind::Unavailable, "stopped answering while it started it")));
        }
    };
    let odd = || Error::new(Kind::Internal, "answered with something that was not asked for");
    let (instance, _) = started(&answer, order, endpoint).ok_or_else(odd)?;
    Ok(Landed { instance, endpoint: endpoint.clone(), allocated: Some(Arc::new(answer)) })
}

fn late(endpoint: &Endpoint, patience: Duration) -> Error {
    let peer = endpoint.peer.short();
    Error::new(Kind::Timeout, format!("allocator {peer} did not answer within {patience:?}"))
        .hint("it may start it yet: the next request asks it again")
        .retry_after(RETRY_AFTER)
}

fn started(
    answer: &proto::AllocateResponse,
    order: &Order,
    endpoint: &Endpoint,
) -> Option<(InstanceId, Load)> {
    let instance = answer.instance.as_ref()?;
    (instance.peer == endpoint.peer.to_string()).then_some(())?;
    ready(instance, order.service)
}

/// Why nobody would.
#[derive(Debug, Default)]
struct Refusals {
    said: Vec<(PeerId, Error)>,
    nearest_too_far: Option<(Duration, PeerId)>,
}

impl Refusals {
    fn add(&mut self, peer: PeerId, error: Error) {
        self.said.push((peer, error));
    }

    fn too_far(&mut self, offers: &[Offer], limits: &Requirements) {
        let far = offers.iter().filter(|offer| !limits.within_hard(offer.rtt));
        let far = far.map(|offer| (offer.rtt, offer.peer)).min();
        self.nearest_too_far = self.nearest_too_far.into_iter().chain(far).min();
    }

    fn into_error(self, order: &Order) -> Error {
        let Self { said, nearest_too_far } = self;
        let full = said.iter().any(|(_, error)| error.kind() == Kind::NoCapacity);
        let retry_after = said.iter().filter_map(|(_, error)| error.retry_delay()).min();
        let (kind, what) = if full {
            (Kind::NoCapacity, "no allocator has room for")
        } else if said.is_empty() {
            (Kind::Unavailable, "no allocator is near enough for")
        } else {
            (Kind::Unavailable, "no allocator can start")
        };
        let mut reasons: Vec<_> = said
            .iter()
            .take(MAX_REASONS)
            .map(|(peer, error)| {
                let reason: String = error.public().chars().take(MAX_REASON).collect();
                format!("{}: {reason}", peer.short())
            })
            .collect();
        if said.len() > MAX_REASONS {
            reasons.push(format!("and {} more", said.len() - MAX_REASONS));
        }
        if let (Some((rtt, peer)), Some(hard)) = (nearest_too_far, order.limits.hard) {
            reasons.push(format!(
                "{}: {rtt:.1?} away, the nearest beyond the hard limit of {hard:?}",
                peer.short()
            ));
        }
        Error::new(kind, format!("{what} {}: {}", order.name, reasons.join("; ")))
            .retry_after(retry_after.unwrap_or(RETRY_AFTER))
    }
}
