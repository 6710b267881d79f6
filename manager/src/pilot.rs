//! What happens in a flight: search; allocate when the search goes dry; take what
//! comes first; and learn from what comes too late.

use std::{sync::Arc, time::Duration};

use futures::future::OptionFuture;
use lca::{
    Error, Kind, PeerId, Result, api::proto::allocate_request::Mode, headers::Load, specs::Cached,
};
use tokio::time::{Instant, timeout};

use crate::{
    allocate::{Order, allocate},
    claims::Ticket,
    find::{Event, Search, Seen},
    flight::{Flight, How, Landed},
    limit::{self, Leave},
    manager::Inner,
    policy::{self, Candidate},
};

/// When nothing else can be done while the search still goes on, how long it may yet
/// save the request.
const LAST_LOOK: Duration = Duration::from_millis(500);
/// How long a search goes on for the cache's sake when nobody waits any more: its
/// probes have deadlines of two seconds.
const SETTLE: Duration = Duration::from_secs(3);
/// Longest a refresh may take: the find's own deadline and a probe.
const REFRESH: Duration = Duration::from_secs(10);
/// When another attempt is worthwhile where nothing could be done.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Looks for an instance, and allocates one if that is wanted and none is found.
pub(crate) async fn fly(inner: Arc<Inner>, spec: Arc<Cached>, flight: Flight) {
    if let How::New(_) | How::More(_) = flight.question().how {
        let end = start_another(&inner, &spec, &flight).await;
        return flight.land(end);
    }
    let since = Instant::now();
    let mut search = Search::start(&inner.reach, spec.hash, []);
    let mut luck = Luck::default();
    let mut allocation = None;
    loop {
        let allocating = allocation.is_some();
        tokio::select! {
            event = search.next(), if !luck.over => match event {
                Event::Seen(seen) => {
                    if let Some(landed) = luck.judge(&inner, &flight, &seen) {
                        if !allocating {
                            flight.step("find", since, landed.endpoint.peer.short());
                        }
                        flight.land(Ok(landed));
                        break;
                    }
                }
                Event::Late => luck.dead += 1,
                Event::Dead(peer) => {
                    luck.dead += 1;
                    // One that requests go to, and that is slow to answer this, still serves.
                    if flight.question().how != How::Nearer {
                        inner.cache().forget(peer);
                    }
                }
                event @ (Event::Dry | Event::Over) => {
                    luck.over = matches!(event, Event::Over);
                    let may = matches!(flight.question().how, How::Ensure | How::Nearer)
                        && !spec.spec.is_external();
                    if may && !allocating {
                        flight.step("find", since, luck.tell());
                        allocation = Some(Box::pin(ensure(&inner, &spec, &flight)));
                    } else if !may {
                        let saved = last_look(&inner, &mut search, &mut luck, &flight).await;
                        flight.step("find", since, luck.tell());
                        flight.land(saved.ok_or_else(|| luck.error(&spec, &flight)));
                        break;
                    }
                }
            },
            Some(end) = OptionFuture::from(allocation.as_mut()), if allocating => {
                allocation = None;
                let end = match end {
                    Err(error) if may_be_saved(&error) && !luck.over => {
                        let saved = last_look(&inner, &mut search, &mut luck, &flight).await;
                        saved.ok_or(error)
                    }
                    end => end,
                };
                flight.land(end);
                break;
            }
        }
    }
    // Nobody waits any more. What is under way is still worth knowing: an instance
    // that was started shall be used.
    search.stop_finding();
    let settle = async {
        loop {
            match search.next().await {
                Event::Seen(seen) => inner.learn(spec.hash, &seen),
                Event::Dead(_) | Event::Late | Event::Dry => {}
                Event::Over => break,
            }
        }
    };
    let finish = async {
        if let Some(allocation) = allocation {
            let _failed_for_nobody = allocation.await;
        }
    };
    let _whichever = tokio::join!(timeout(SETTLE, settle), finish);
}

/// Asks everyone who is known or found to have instances of a service again. Runs
/// behind the request that noticed the age of what is known.
pub(crate) async fn refresh(inner: Arc<Inner>, spec: Arc<Cached>) {
    let known = inner.cache().peers(spec.hash);
    let mut search = Search::start(&inner.reach, spec.hash, known);
    let all = async {
        loop {
            match search.next().await {
                Event::Seen(seen) => inner.learn(spec.hash, &seen),
                Event::Dead(peer) => inner.cache().forget(peer),
                Event::Late | Event::Dry => {}
                Event::Over => break,
            }
        }
    };
    let _late_ones_next_time = timeout(REFRESH, all).await;
    inner.cache().refreshed(spec.hash, Instant::now());
}

/// Only a lack of allocators can be made up for by a late find. A program that does
/// not start has been tried.
fn may_be_saved(error: &Error) -> bool {
    matches!(error.kind(), Kind::NoCapacity | Kind::Unavailable)
}

async fn last_look(
    inner: &Inner,
    search: &mut Search,
    luck: &mut Luck,
    flight: &Flight,
) -> Option<Landed> {
    let looking = async {
        loop {
            match search.next().await {
                Event::Seen(seen) => {
                    if let Some(landed) = luck.judge(inner, flight, &seen) {
                        return Some(landed);
                    }
                }
                Event::Dead(_) | Event::Late | Event::Dry => {}
                Event::Over => return None,
            }
        }
    };
    timeout(LAST_LOOK, looking).await.ok().flatten()
}

async fn ensure(inner: &Inner, spec: &Cached, flight: &Flight) -> Result<Landed> {
    let mut order = order(spec, flight, Mode::Ensure, None);
    let mut ticket = None;
    if let Some(max) = spec.spec.max_instances {
        match limit::start_or_use(inner, spec, max, flight).await? {
            Leave::Start(leave, id) => (ticket, order.request_id) = (Some(leave), id),
            Leave::Use(landed) => return Ok(landed),
        }
    }
    let landed = carry_out(inner, order, ticket, flight, |_| {}).await?;
    if flight.question().avoids().contains(&landed.instance) {
        // The request has been there, and this manager does not start a second one.
        return Err(Error::new(
            Kind::Unavailable,
            format!("every instance of {} within reach has been tried", spec.spec.name),
        )
        .retry_after(RETRY_AFTER));
    }
    Ok(landed)
}

async fn start_another(inner: &Inner, spec: &Cached, flight: &Flight) -> Result<Landed> {
    let order = order(spec, flight, Mode::New, inner.asked_with(flight.id()));
    let limit = match flight.question().how {
        How::More(limit) => Some(limit),
        _ => spec.spec.max_instances,
    };
    let ticket = match limit {
        // The same call again is answered with what it has started.
        Some(max) if order.first.is_none() => Some(limit::start(inner, spec, max, flight).await?),
        _ => None,
    };
    carry_out(inner, order, ticket, flight, |peer| inner.remember(flight.id().clone(), peer)).await
}

fn order(spec: &Cached, flight: &Flight, mode: Mode, first: Option<PeerId>) -> Order {
    Order {
        name: spec.spec.name.clone(),
        service: spec.hash,
        runs: spec.spec.runs.clone(),
        resources: spec.spec.resources,
        limits: flight.question().limits(),
        start_timeout: spec.spec.readiness.start_timeout,
        placement: spec.spec.placement,
        mode,
        request_id: flight.id().clone(),
        first,
        hedges: true,
    }
}

async fn carry_out(
    inner: &Inner,
    mut order: Order,
    ticket: Option<Ticket>,
    flight: &Flight,
    chosen: impl Fn(PeerId),
) -> Result<Landed> {
    // Two that are at it with leave for one would be one too many.
    order.hedges = ticket.is_none();
    let service = order.service;
    let Inner { reach, allocators, spawner, .. } = inner;
    let starting = allocate(reach, allocators, spawner, order, flight, chosen);
    let landed = match &ticket {
        Some(ticket) => ticket.held(starting).await?,
        None => starting.await?,
    };
    let Landed { instance, endpoint, .. } = &landed;
    if let Some(ticket) = ticket {
        ticket.became(*instance, endpoint.peer);
    }
    inner.cache().add(service, *instance, endpoint, Load::default(), Instant::now());
    Ok(landed)
}

/// What a search has brought so far that was no use.
#[derive(Debug, Default)]
struct Luck {
    dead: u32,
    nearest_too_far: Option<Duration>,
    over: bool,
}

impl Luck {
    /// Notes what a peer said, and picks from it.
    fn judge(&mut self, inner: &Inner, flight: &Flight, seen: &Seen) -> Option<Landed> {
        let question = flight.question();
        inner.learn(question.service, seen);
        let rtt = question.distance(&inner.reach, seen.endpoint.peer, seen.rtt);
        let candidates = seen.ready.iter().map(|(instance, load)| Candidate {
            in_flight: load.in_flight,
            ..Candidate::new(*instance, Some(rtt))
        });
        let candidates: Vec<_> = candidates.collect();
        let limits = question.limits();
        if let Some(index) = policy::choose(&candidates, &limits, question.avoids()) {
            let instance = candidates[index].instance;
            return Some(Landed { instance, endpoint: seen.endpoint.clone(), allocated: None });
        }
        if !candidates.is_empty() && !limits.within_hard(rtt) {
            self.nearest_too_far = self.nearest_too_far.into_iter().chain([rtt]).min();
        }
        None
    }

    fn tell(&self) -> String {
        match (self.nearest_too_far, self.dead) {
            (Some(rtt), _) => format!("the nearest is {rtt:.1?} away"),
            (None, 0) => "none".to_owned(),
            (None, dead) => format!("none, {dead} did not answer"),
        }
    }

    fn error(&self, spec: &Cached, flight: &Flight) -> Error {
        let name = &spec.spec.name;
        let limits = flight.question().limits();
        let far = self.nearest_too_far.zip(limits.hard);
        let far = far.map(|(rtt, hard)| {
            format!("; the nearest instance is {rtt:.1?} away, beyond the hard limit of {hard:?}")
        });
        let far = far.unwrap_or_default();
        if spec.spec.is_external() {
            let text = format!("nobody represents {name}, which is an external service{far}");
            return Error::new(Kind::Unavailable, text)
                .hint("an external service is never started: some node has to announce it")
                .retry_after(RETRY_AFTER);
        }
        Error::new(Kind::NotFound, format!("no instance of {name} is known{far}"))
            .hint(format!("lcactl allocate {name}"))
    }
}
