//! Having an instance started: the allocators in their order, one after the other,
//! until one says yes or a failure that would be the same everywhere. One that does not
//! answer within its own promise is hedged: the next is asked while it goes on, the first
//! of both to be ready is used, and the other is let go.
//!
//! The answer of the allocator is the end of it: what was started is used where it is,
//! without asking discovery where that might be.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use lca::{
    Error, Kind, PeerId, Placement, RequestId, Requirements, Resources, Result, Runs, ServiceHash,
    ServiceName, api::proto::allocate_request::Mode, endpoint::Endpoint, shutdown::Spawner,
    units::show_duration as show,
};
use tokio::time::Instant;

use crate::{
    allocators::Allocators,
    flight::{Flight, Landed},
    reach::Reach,
};
use asking::{Asking, Next};
use call::{Calls, Event, No, Refused};
use plan::Plan;
use surplus::Surplus;

mod asking;
mod call;
mod fetched;
mod offers;
mod plan;
mod refusals;
mod surplus;

pub(crate) use offers::{ask_facts, groups, heed_rooms, lacks, measure, with_driver};

/// When to try again where nobody said anything better.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What is to be started, and how.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) name: ServiceName,
    pub(crate) service: ServiceHash,
    /// What runs, and has to be fetched first where it is not there.
    pub(crate) runs: Runs,
    pub(crate) resources: Resources,
    pub(crate) limits: Requirements,
    pub(crate) start_timeout: Duration,
    pub(crate) placement: Placement,
    pub(crate) mode: Mode,
    /// Kept for every try: an allocator that has done it already says so.
    pub(crate) request_id: RequestId,
    /// Who was asked last with this id; it is asked first.
    pub(crate) first: Option<PeerId>,
    /// Whether two may be at it for a while: not where there is leave for one.
    pub(crate) hedges: bool,
}

/// Has `order` carried out by the best allocator that will. `chosen` is told who is
/// asked, before it is, for whatever becomes of the call, it may have been heard; and
/// at the end who has started it.
///
/// # Errors
/// [`Kind::StartFailed`] and other failures that would be the same everywhere, as the
/// allocator said it; [`Kind::NoCapacity`] or [`Kind::Unavailable`] with the reason
/// each allocator gave; [`Kind::Unavailable`] if none is known or near enough;
/// [`Kind::Timeout`] if those that were asked have not answered at all.
pub(crate) async fn allocate(
    reach: &Reach,
    allocators: &Allocators,
    spawner: &Spawner,
    order: Order,
    flight: &Flight,
    chosen: impl Fn(PeerId),
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
    let order = Arc::new(order);
    let mut plan = Plan::new(reach, allocators, &order, flight, all);
    let mut asking = Asking::new(order.hedges);
    let (mut calls, mut asked) = (Calls::new(), Vec::<Arc<Endpoint>>::new());
    // Those that fell silent while they were at it: followed at once, and looked after.
    let mut silent = Vec::<(Arc<Endpoint>, bool)>::new();
    let mut since = Instant::now();
    let landed = loop {
        let event = match asking.next() {
            Next::Over => break None,
            Next::Wait => calls.next().await,
            Next::Ask => tokio::select! {
                biased;
                Some(event) = calls.next(), if !calls.is_empty() => Some(event),
                next = plan.next() => {
                    match next {
                        Some(endpoint) => {
                            chosen(endpoint.peer);
                            asking.asked(endpoint.peer);
                            asked.push(endpoint.clone());
                            call::begin(reach, &order, endpoint, flight.teller(), &calls);
                        }
                        None => asking.exhausted(),
                    }
                    continue;
                }
            },
        };
        match event {
            None => break None,
            Some(Event::Late(peer, promise)) => {
                if asking.late(peer) {
                    // The next flights ask it last, until it has answered a probe.
                    allocators.failed(peer);
                    let late =
                        format!("{}: not within its promise of {}", peer.short(), show(promise));
                    tracing::debug!(service = %order.name, late, "another allocator is asked");
                    flight.step("allocate", since, late);
                    since = Instant::now();
                }
                if flight.has_landed() {
                    asking.exhausted(); // nobody waits for a second one
                }
            }
            Some(Event::Ended(endpoint, Ok(landed))) => {
                allocators.worked(endpoint.peer);
                flight.step("allocate", since, endpoint.peer.short());
                chosen(endpoint.peer);
                break Some(landed);
            }
            Some(Event::Ended(endpoint, Err(refused))) => {
                let (peer, error) = (endpoint.peer, &refused.error);
                if refused.no == No::Silent {
                    silent.push((endpoint.clone(), false));
                }
                flight.step("allocate", since, format!("{}: {}", peer.short(), error.public()));
                since = Instant::now();
                tracing::debug!(
                    service = %order.name, peer = %peer.short(), error = error.chain(),
                    "an allocator did not start an instance"
                );
                heed(refused, peer, &mut asking, &mut plan);
            }
        }
    };
    let winner = landed.as_ref().map(|landed| landed.endpoint.peer);
    if asking.was_hedged() {
        let outcome = match winner {
            None => "neither",
            Some(peer) if asked.last().is_some_and(|last| last.peer == peer) => "second",
            Some(_) => "first",
        };
        flight.metrics().manager.hedges.with_label_values(&[outcome]).inc();
    }
    // Two may have started one.
    if asked.len() > 1 {
        let at_it = asking.others(winner).into_iter().filter_map(|(peer, waited)| {
            Some((asked.iter().find(|endpoint| endpoint.peer == peer)?.clone(), waited))
        });
        let surplus = Surplus {
            reach: reach.clone(),
            metrics: flight.metrics().clone(),
            order: order.clone(),
            at_it: at_it.chain(silent).collect(),
            has_one: winner.is_some(),
        };
        surplus.let_go(calls, spawner);
    }
    let refusals = plan.refusals;
    landed.ok_or_else(|| refusals.into_error(&order))
}

/// What follows from a no for those who may be asked, now and by the next flights.
fn heed(refused: Refused, peer: PeerId, asking: &mut Asking, plan: &mut Plan<'_>) {
    let Refused { error, no } = refused;
    match no {
        No::GivenUp => asking.given_up(peer),
        _ => asking.refused(peer),
    }
    match no {
        No::Everywhere => asking.exhausted(),
        No::Full => plan.allocators.full(peer, plan.order.service),
        No::Gone | No::Silent => {
            plan.allocators.failed(peer);
            plan.reach.discovery.forget(peer);
        }
        No::GivenUp | No::Other => {}
    }
    match no {
        No::Everywhere | No::GivenUp => plan.refusals.last_word(error),
        _ => plan.refusals.add(peer, error),
    }
}
