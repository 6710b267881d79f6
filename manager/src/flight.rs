//! One question, one flight: requests that need the same thing at the same time wait
//! for the same search and the same allocation.
//!
//! The flight is a task of the manager's, not of any client: whoever goes away drops
//! only its own wait. Its end is told to all who wait and is not kept: failures are
//! remembered by allocators, successes by the cache.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lca::{
    Error, InstanceId, Kind, PeerId, RequestId, Requirements, Result, ServiceHash,
    api::{
        self,
        proto::{self, Step},
    },
    endpoint::Endpoint,
    metrics::Metrics,
    shutdown::Spawner,
};
use tokio::{sync::watch, time::Instant};
use tracing::Instrument as _;

use crate::reach::Reach;

/// Flights one node may have at a time: more services than a machine's programs ask
/// for at once. Beyond it requests are refused, not queued.
const MAX: usize = 1024;
/// When to come again then: most flights last less.
const BUSY: Duration = Duration::from_secs(1);

/// What makes two requests wait for the same flight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    pub(crate) service: ServiceHash,
    soft: Option<Duration>,
    hard: Option<Duration>,
    /// Instances that are no answer: the request has tried them.
    avoid: Vec<InstanceId>,
    pub(crate) how: How,
}

/// What may be done about it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum How {
    /// Only look.
    Find,
    /// Look, and allocate if there is none.
    Ensure,
    /// The same behind the requests, to move there: it is no cold start.
    Nearer,
    /// Start another in any case; the id makes it the same call again.
    New(RequestId),
    /// Start one more for load, with leave to be that many at most, behind the requests.
    More(NonZeroU32),
}

impl Question {
    pub(crate) fn new(
        service: ServiceHash,
        limits: Requirements,
        avoid: &[InstanceId],
        how: How,
    ) -> Self {
        let mut avoid = avoid.to_vec();
        avoid.sort_unstable();
        avoid.dedup();
        Self { service, soft: limits.soft, hard: limits.hard, avoid, how }
    }

    pub(crate) fn limits(&self) -> Requirements {
        Requirements { soft: self.soft, hard: self.hard }
    }

    pub(crate) fn avoids(&self) -> &[InstanceId] {
        &self.avoid
    }

    /// What its limits are held against where probes say `rtt`. What is left because it is too far
    /// may be so only as requests find it: then its peer, and others as far, are no answer.
    pub(crate) fn distance(&self, reach: &Reach, peer: PeerId, rtt: Duration) -> Duration {
        if self.how == How::Nearer { reach.effective(peer, rtt) } else { rtt }
    }
}

/// Where a flight has brought those who waited.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    pub(crate) instance: InstanceId,
    pub(crate) endpoint: Arc<Endpoint>,
    /// The allocator's own words, if one was asked.
    pub(crate) allocated: Option<Arc<proto::AllocateResponse>>,
}

/// How far a flight is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress {
    /// What is over, in order.
    pub(crate) steps: Vec<Step>,
    /// How far the fetch is that is waited for; `None` while none is known of.
    pub(crate) fetching: Option<proto::Fetching>,
    /// The end. Steps do not change after it.
    pub(crate) end: Option<Result<Landed>>,
}

/// A seat in a flight, and which one it is.
#[derive(Clone, Debug)]
pub(crate) struct Boarded {
    /// What the allocator is given as the id of the request.
    pub(crate) id: RequestId,
    pub(crate) progress: watch::Receiver<Progress>,
}

type Open = Arc<Mutex<HashMap<Question, Boarded>>>;

/// All flights of a manager.
#[derive(Debug)]
pub(crate) struct Flights {
    open: Open,
    metrics: Metrics,
}

impl Flights {
    /// None yet. What they do is counted in `metrics`.
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { open: Open::default(), metrics }
    }

    /// Joins the flight for `question`, or starts it with `fly`.
    ///
    /// # Errors
    /// [`Kind::NoCapacity`] if there are too many; [`Kind::Unavailable`] if the daemon
    /// is stopping.
    pub(crate) fn join<F>(
        &self,
        question: &Question,
        spawner: &Spawner,
        fly: impl FnOnce(Flight) -> F,
    ) -> Result<Boarded>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        if spawner.is_stopping() {
            return Err(stopping());
        }
        let mut open = lock(&self.open);
        if let Some(boarded) = open.get(question) {
            return Ok(boarded.clone());
        }
        if open.len() >= MAX {
            return Err(Error::new(Kind::NoCapacity, "too many services are being looked for")
                .retry_after(BUSY));
        }
        let (sender, progress) = watch::channel(Progress::default());
        let id = match &question.how {
            How::New(id) => id.clone(),
            How::Find | How::Ensure | How::Nearer | How::More(_) => RequestId::random(),
        };
        let boarded = Boarded { id: id.clone(), progress };
        open.insert(question.clone(), boarded.clone());
        drop(open);
        let span = tracing::info_span!("flight", id = %id);
        let flight = Flight {
            id,
            question: question.clone(),
            open: self.open.clone(),
            progress: sender,
            landed: AtomicBool::new(false),
            metrics: self.metrics.clone(),
        };
        let stop = spawner.stopping();
        let flying = fly(flight);
        let flying = async move {
            // A flight dropped in the air tells everyone, see below.
            tokio::select! {
                () = flying => {}
                () = stop => {}
            }
        };
        // Whatever is logged on the way says for which flight.
        spawner.spawn_short(flying.instrument(span));
        Ok(boarded)
    }

    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        lock(&self.open).len()
    }
}

/// The pilot's side of a flight. Dropping it before it has landed tells those who wait
/// that the daemon is stopping: they never hang.
#[derive(Debug)]
pub(crate) struct Flight {
    id: RequestId,
    question: Question,
    open: Open,
    progress: watch::Sender<Progress>,
    landed: AtomicBool,
    metrics: Metrics,
}

impl Flight {
    /// The id of what it asks an allocator for.
    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    pub(crate) fn question(&self) -> &Question {
        &self.question
    }

    /// Whether requests wait for it, so that it counts as a cold start.
    fn is_waited_for(&self) -> bool {
        self.question.how != How::Nearer
    }

    /// Whether those who waited have been told its end.
    pub(crate) fn has_landed(&self) -> bool {
        self.landed.load(Ordering::Relaxed)
    }

    /// Where what it does is counted.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Notes that a step which began at `since` is over. `name` is also a label.
    pub(crate) fn step(&self, name: &'static str, since: Instant, detail: impl Into<String>) {
        if self.is_waited_for() {
            let steps = self.metrics.manager.steps.with_label_values(&[name]);
            steps.observe(since.elapsed().as_secs_f64());
        }
        let step = api::step(name, since, detail);
        self.progress.send_if_modified(|progress| {
            let flying = progress.end.is_none();
            if flying {
                progress.steps.push(step);
                progress.fetching = None;
            }
            flying
        });
    }

    /// Somebody who may say how far a fetch is.
    pub(crate) fn teller(&self) -> Teller {
        Teller(self.progress.clone())
    }

    /// Tells everyone who waits, and whoever asks next begins a new flight. What is
    /// learnt goes into the cache before. Only the first call counts.
    pub(crate) fn land(&self, end: Result<Landed>) {
        if self.landed.swap(true, Ordering::Relaxed) {
            return;
        }
        let outcome = match &end {
            Ok(landed) if landed.allocated.is_some() => "allocated",
            Ok(_) => "found",
            Err(_) => "failed",
        };
        if self.is_waited_for() {
            self.metrics.manager.flights.with_label_values(&[outcome]).inc();
        }
        lock(&self.open).remove(&self.question);
        self.progress.send_modify(|progress| {
            if let Ok(Landed { allocated: Some(answer), .. }) = &end {
                progress.steps.extend(answer.steps.iter().cloned());
            }
            progress.end = Some(end);
        });
    }
}

/// Says to those who wait for a flight how far a fetch is. Nothing, once it has landed.
#[derive(Clone, Debug)]
pub(crate) struct Teller(watch::Sender<Progress>);

impl Teller {
    pub(crate) fn fetching(&self, fetching: proto::Fetching) {
        self.0.send_if_modified(|progress| {
            let news = progress.end.is_none() && progress.fetching != Some(fetching);
            if news {
                progress.fetching = Some(fetching);
            }
            news
        });
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.land(Err(stopping()));
    }
}

pub(crate) fn stopping() -> Error {
    Error::new(Kind::Unavailable, "this node is stopping")
}

fn lock(open: &Open) -> MutexGuard<'_, HashMap<Question, Boarded>> {
    // Held for one map operation at a time.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}
