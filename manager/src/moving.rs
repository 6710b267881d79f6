//! Where requests go, service by service, and moving them when that is too far: the
//! acting part of `course`, which decides.
//!
//! A request asks for its target and goes on at once. Behind the requests a tick looks at
//! the services with a soft limit that were in use a moment ago, and starts a flight for
//! one that has to be found or allocated nearer. While nobody uses such a service this
//! sleeps, so an idle node pays nothing for it.
//!
//! Invariant: no request waits for a move. The old home serves until a new one is ready;
//! then it is left alone and idles out by itself.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::{
    InstanceId, PeerId, Requirements, ServiceHash, ServiceName,
    headers::{Load, Refusal},
    metrics::Metrics,
    specs::Cached,
};
use lru::LruCache;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{
    Outcome, Target,
    allocators::Allocator,
    flight::{Boarded, How, Question},
    manager::Inner,
    pilot,
    policy::Candidate,
};
use course::{Avoid, Change, Course, Decision};
use loads::{Loads, Ticket};
use record::Record;

pub(crate) mod course;
pub(crate) mod loads;
mod record;
mod standing;
#[cfg(test)]
mod tests;

pub use record::{Move, Reason};

/// Services, each with the limits of one kind of clients, whose home is remembered; the
/// least recently used makes room.
const MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How often distances are looked at: as often as the mesh probes a peer that matters at
/// its most attentive, and a small part of the dwell time.
const TICK: Duration = Duration::from_millis(250);
/// How long after its last request a service is looked after: long enough for a dwell and
/// a start, short enough not to start anything for somebody who has gone.
const IN_USE: Duration = Duration::from_secs(10);
/// Allocators whose distance is kept fresh while a home is too far: one of the nearest
/// will be it.
const MAX_WATCHED: usize = 8;
/// Of these, within soft, how many are followed for what they have left.
const MAX_FOLLOWED: usize = 3;
/// How often that is said: well within what the mesh calls used.
const WATCH_AGAIN: Duration = Duration::from_secs(20);
const _: () = assert!(WATCH_AGAIN.as_secs() < lca::mesh::IN_USE.as_secs());

/// A service and what its clients require: each gets its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    service: ServiceHash,
    soft: Option<Duration>,
    hard: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Moving {
    state: Mutex<State>,
    /// Told when a service with a soft limit is used again.
    used: Notify,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    uses: LruCache<Key, Use>,
    loads: Loads,
    record: Record,
}

/// A service in use.
#[derive(Debug)]
struct Use {
    course: Course,
    spec: Arc<Cached>,
    used: Option<Instant>,
    watched: Option<Instant>,
}

impl Moving {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let state =
            State { uses: LruCache::new(MAX), loads: Loads::default(), record: Record::default() };
        Self { state: Mutex::new(state), used: Notify::new(), metrics }
    }

    /// Which of the candidates takes a request, and its place there. To be asked also if
    /// there are none: it is a sign of use.
    pub(crate) fn pick(
        &self,
        spec: &Arc<Cached>,
        limits: &Requirements,
        candidates: &[Candidate],
        avoid: Avoid<'_>,
        now: Instant,
    ) -> Option<(usize, Ticket)> {
        let key = Key::new(spec.hash, limits);
        let mut state = self.lock();
        let State { uses, loads, record } = &mut *state;
        let one = uses.get_or_insert_mut(key, || Use {
            course: Course::new(*limits),
            spec: spec.clone(),
            used: None,
            watched: None,
        });
        if limits.soft.is_some() && !one.is_used(now) {
            self.used.notify_one();
        }
        one.used = Some(now);
        if !Arc::ptr_eq(&one.spec, spec) {
            one.spec = spec.clone();
        }
        let luck = [rand::random(), rand::random()];
        let busy = |instance| loads.of(instance, now);
        let (index, change) = one.course.pick(candidates, avoid, busy, luck, now)?;
        if let Some(change) = change {
            self.moved(record, spec.spec.name.clone(), change, now);
        }
        Some((index, loads.begin(candidates[index].instance)))
    }

    /// A request is sent to `instance`, which was not picked here.
    pub(crate) fn begin(&self, instance: InstanceId) -> Ticket {
        self.lock().loads.begin(instance)
    }

    /// How busy `instance` is as far as anybody knows: requests of ours, and of others
    /// with the age of that.
    pub(crate) fn busy(&self, instance: InstanceId, now: Instant) -> course::Busy {
        self.lock().loads.of(instance, now)
    }

    /// What became of a request: it is over, unless its place was handed on.
    pub(crate) fn report(&self, target: &Target, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Answered { load, .. } => self.lock().loads.said(target.instance, load, now),
            Outcome::Refused(Refusal::Overloaded) => {
                self.lock().loads.overloaded(target.instance, now);
            }
            _ => {}
        }
        target.ticket.end();
    }

    /// A peer said how busy its instances are.
    pub(crate) fn said(&self, ready: &[(InstanceId, Load)], now: Instant) {
        let mut state = self.lock();
        ready.iter().for_each(|(instance, load)| state.loads.said(*instance, *load, now));
    }

    /// The last moves of `service`, the latest last.
    pub(crate) fn moves(&self, service: &ServiceName) -> Vec<Move> {
        self.lock().record.of(service)
    }

    /// Where requests for `service` with these limits go, if any were sent.
    pub(crate) fn home(&self, service: ServiceHash, limits: &Requirements) -> Option<InstanceId> {
        self.lock().uses.peek(&Key::new(service, limits))?.course.home()
    }

    /// Services to look after now.
    fn in_use(&self, now: Instant) -> Vec<(Key, Arc<Cached>)> {
        let state = self.lock();
        let uses = state.uses.iter();
        let uses = uses.filter(|(key, one)| key.soft.is_some() && one.is_used(now));
        uses.map(|(key, one)| (*key, one.spec.clone())).collect()
    }

    /// Whether the service's home is above soft, and whether it is time to have
    /// allocators watched for it.
    fn unsettled(&self, key: &Key, now: Instant) -> (bool, bool) {
        let mut state = self.lock();
        let Some(one) = state.uses.peek_mut(key).filter(|one| one.course.is_unsettled()) else {
            return (false, false);
        };
        let watch = one.watched.is_none_or(|at| now.duration_since(at) >= WATCH_AGAIN);
        if watch {
            one.watched = Some(now);
        }
        (true, watch)
    }

    fn observe(
        &self,
        key: &Key,
        candidates: &[Candidate],
        offer: Option<Duration>,
        now: Instant,
    ) -> Decision {
        let mut state = self.lock();
        let State { uses, loads, record } = &mut *state;
        let Some(one) = uses.peek_mut(key) else { return Decision::Stay };
        let luck = [rand::random(), rand::random()];
        let busy = |instance| loads.of(instance, now);
        let decision = one.course.observe(candidates, offer, busy, luck, now);
        if let Decision::Move(change) = decision {
            self.moved(record, one.spec.spec.name.clone(), change, now);
        }
        decision
    }

    fn looked(&self, key: &Key, now: Instant) {
        if let Some(one) = self.lock().uses.peek_mut(key) {
            one.course.looked(rand::random(), now);
        }
    }

    fn moved(&self, record: &mut Record, service: ServiceName, change: Change, now: Instant) {
        let Change { from, to, reason } = change;
        tracing::info!(
            %service, from = %from.short(), to = %to.short(), %reason,
            "requests go to another instance"
        );
        self.metrics.manager.moves.with_label_values(&[reason.as_str()]).inc();
        record.add(Move { at: now, service, from, to, reason });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every operation leaves it good at each step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    fn is_used(&self, now: Instant) -> bool {
        self.used.is_some_and(|used| now.duration_since(used) < IN_USE)
    }
}

impl Key {
    fn new(service: ServiceHash, limits: &Requirements) -> Self {
        Self { service, soft: limits.soft, hard: limits.hard }
    }

    fn limits(&self) -> Requirements {
        Requirements { soft: self.soft, hard: self.hard }
    }
}

/// Looks after the services in use until `stopping`.
pub(crate) async fn keep(inner: Arc<Inner>, stopping: impl Future<Output = ()>) {
    let looking = async {
        loop {
            let in_use = inner.moving.in_use(Instant::now());
            if in_use.is_empty() {
                inner.moving.used.notified().await;
                continue;
            }
            let mut allocators = None;
            for (key, spec) in in_use {
                look_after(&inner, key, spec, &mut allocators);
            }
            sleep(TICK).await;
        }
    };
    tokio::select! {
        () = stopping => {}
        () = looking => {}
    }
}

/// Looks at one service. `allocators` are listed once for all that need them.
fn look_after(
    inner: &Arc<Inner>,
    key: Key,
    spec: Arc<Cached>,
    allocators: &mut Option<Vec<(Duration, Allocator)>>,
) {
    let now = Instant::now();
    let known = inner.cache().peek(key.service, now);
    let candidates: Vec<_> = known.iter().map(|known| inner.candidate(known)).collect();
    let (unsettled, watch) = inner.moving.unsettled(&key, now);
    let mut offer = None;
    if unsettled && !spec.spec.is_external() {
        let near = allocators.get_or_insert_with(|| nearest(inner));
        if watch {
            let watched = near.iter().take(MAX_WATCHED);
            let limits = key.limits();
            watched.for_each(|(_, one)| inner.reach.mesh.watch_near(&one.endpoint, &limits));
            let needed = near.iter().filter(|(rtt, _)| key.limits().within_soft(*rtt));
            let needed = needed.take(MAX_FOLLOWED);
            needed.for_each(|(_, one)| inner.allocators.rooms.need(&one.endpoint));
        }
        let home = inner.moving.home(key.service, &key.limits());
        let home = known.iter().find(|one| Some(one.instance) == home);
        offer = nearest_offer(inner, near, &spec, home.map(|home| home.endpoint.peer));
    }
    if let Decision::Look { within, avoid } = inner.moving.observe(&key, &candidates, offer, now) {
        look(inner, key, spec, within, avoid);
    }
}

/// Allocators whose distance is known, the nearest first, as requests find them.
fn nearest(inner: &Inner) -> Vec<(Duration, Allocator)> {
    let all = inner.allocators.list().into_iter().filter(|one| !one.failed);
    let reach = &inner.reach;
    let all = all.filter_map(|one| {
        let peer = one.endpoint.peer;
        Some((reach.effective(peer, reach.mesh.rtt(peer)?), one))
    });
    let mut all: Vec<_> = all.collect();
    all.sort_unstable_by_key(|(rtt, one)| (*rtt, one.endpoint.peer));
    all
}

/// How far the nearest one is that may start another instance.
fn nearest_offer(
    inner: &Inner,
    near: &[(Duration, Allocator)],
    spec: &Cached,
    home: Option<PeerId>,
) -> Option<Duration> {
    let may = |peer: PeerId| {
        Some(peer) != home && inner.allocators.rooms.has_room(peer, spec.spec.resources, true)
    };
    near.iter().find(|(_, one)| may(one.endpoint.peer)).map(|(rtt, _)| *rtt)
}

/// Has one found or allocated within these limits, behind the requests.
fn look(inner: &Arc<Inner>, key: Key, spec: Arc<Cached>, within: Requirements, avoid: InstanceId) {
    let question = Question::new(key.service, within, &[avoid], How::Nearer);
    let name = spec.spec.name.clone();
    let fly = |flight| pilot::fly(inner.clone(), spec, flight);
    let boarded = inner.flights.join(&question, &inner.spawner, fly);
    let this = inner.clone();
    inner.spawner.spawn_short(async move {
        // A flight always ends, and says so; one that was dropped as well.
        let end = match boarded {
            Ok(Boarded { mut progress, .. }) => {
                let landed = progress.wait_for(|progress| progress.end.is_some()).await;
                landed.ok().and_then(|progress| progress.end.clone())
            }
            Err(error) => Some(Err(error)),
        };
        let outcome = match &end {
            Some(Ok(landed)) if landed.allocated.is_some() => "allocated",
            Some(Ok(_)) => "found",
            _ => "failed",
        };
        if let Some(Err(error)) = &end {
            tracing::debug!(service = %name, error = error.chain(), "nothing nearer for now");
        }
        this.moving.metrics.manager.looks.with_label_values(&[outcome]).inc();
        this.moving.looked(&key, Instant::now());
    });
}
