//! What ingress knows of an instance: where it listens, what it is working on, what waits
//! for a place, and whether it takes more.
//!
//! Requests beyond the limit wait in the order they came, so many and so long at most; then
//! they are refused, and the front may go elsewhere. Invariant: an instance is idle only
//! while nothing is open, and nothing waits that could be open.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lca::{
    InstanceId, Protocol, ServiceHash, ServiceName,
    headers::{Load, Refusal},
    metrics,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

use crate::Shared;

/// Longest a request waits for a place: what people forgive, and what a burst needs that
/// is ten times too big for an instance that answers in 100 ms. After it another instance
/// is the better bet.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// Requests that may wait at one instance, whatever its limit; with a lower limit, so many
/// as it is given at once. Each holds a connection and what its peer has sent of it.
const MAX_WAITING: usize = 256;

/// An instance on this machine, or an external service that this node represents.
#[derive(Clone, Debug)]
pub struct Local {
    /// Which one.
    pub instance: InstanceId,
    /// What it is an instance of: a request for anything else is refused.
    pub hash: ServiceHash,
    /// What that service is called; requests are counted under it.
    pub service: ServiceName,
    /// Where it listens.
    pub address: SocketAddr,
    /// What it speaks there.
    pub protocol: Protocol,
    /// Requests it is given at once; more wait for a place, for a while.
    pub limit: u32,
}

/// An instance and its open requests.
pub(crate) struct Instance {
    pub(crate) local: Local,
    pub(crate) counted: Arc<metrics::Service>,
    state: watch::Sender<State>,
    app_us: AtomicU64,
    queue_us: AtomicU64,
}

struct State {
    // Each with what ends the connection it came on.
    open: HashMap<u64, Arc<Notify>>,
    // In the order they came.
    waiting: VecDeque<Waiting>,
    next: u64,
    /// When it was last used, while nothing is open.
    idle_since: Instant,
    draining: bool,
    gone: bool,
}

/// A request that waits for a place.
struct Waiting {
    id: u64,
    end: Arc<Notify>,
    place: oneshot::Sender<Result<Open, Refusal>>,
}

impl State {
    fn refuses(&self) -> Option<Refusal> {
        match (self.gone, self.draining) {
            (true, _) => Some(Refusal::Unknown),
            (_, true) => Some(Refusal::Draining),
            _ => None,
        }
    }

    fn is_idle(&self, time: Duration) -> bool {
        self.open.is_empty() && self.idle_since.elapsed() >= time
    }
}

impl Instance {
    pub(crate) fn new(local: Local, counted: Arc<metrics::Service>) -> Self {
        let state = watch::Sender::new(State {
            open: HashMap::new(),
            waiting: VecDeque::new(),
            next: 0,
            idle_since: Instant::now(),
            draining: false,
            gone: false,
        });
        Self { local, counted, state, app_us: AtomicU64::new(0), queue_us: AtomicU64::new(0) }
    }

    /// Counts one more request in, as soon as there is a place for it, or says why not.
    /// `end` is what has to be notified to cut it off. Cancel safe: one that is dropped
    /// leaves its place to the next.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        hash: ServiceHash,
        end: &Arc<Notify>,
    ) -> Result<Open, Refusal> {
        if hash != self.local.hash {
            return Err(Refusal::Unknown);
        }
        let (place, answer) = oneshot::channel();
        let open = match self.line_up(end, place)? {
            Line::In(id) => Open { instance: self.clone(), id, waited: Duration::ZERO },
            Line::Waits(id) => {
                let since = Instant::now();
                let _seat = Seat { instance: self, id };
                let open = match timeout(MAX_WAIT, answer).await {
                    Ok(Ok(answer)) => answer?,
                    Ok(Err(_)) => return Err(Refusal::Unknown),
                    Err(_) => return Err(Refusal::Overloaded),
                };
                open.after(since.elapsed())
            }
        };
        self.queue_us.store(open.waited.as_micros() as u64, Ordering::Relaxed);
        Ok(open)
    }

    fn line_up(
        &self,
        end: &Arc<Notify>,
        place: oneshot::Sender<Result<Open, Refusal>>,
    ) -> Result<Line, Refusal> {
        let limit = self.local.limit as usize;
        let mut line = Err(Refusal::Overloaded);
        self.state.send_if_modified(|state| {
            if let Some(refusal) = state.refuses() {
                line = Err(refusal);
                return false;
            }
            let id = state.next;
            if state.open.len() < limit {
                state.open.insert(id, end.clone());
                line = Ok(Line::In(id));
            } else if state.waiting.len() < limit.min(MAX_WAITING) {
                state.waiting.push_back(Waiting { id, end: end.clone(), place });
                line = Ok(Line::Waits(id));
            } else {
                return false;
            }
            state.next += 1;
            matches!(line, Ok(Line::In(_)))
        });
        line
    }

    /// Ends one request and lets in the one that has waited longest.
    fn finish(self: &Arc<Self>, id: u64) {
        let mut next = None;
        self.state.send_modify(|state| {
            if state.open.remove(&id).is_none() {
                return;
            }
            if state.refuses().is_none()
                && let Some(waiting) = state.waiting.pop_front()
            {
                state.open.insert(waiting.id, waiting.end.clone());
                next = Some(waiting);
            }
            if state.open.is_empty() {
                state.idle_since = Instant::now();
            }
        });
        if let Some(Waiting { id, place, .. }) = next {
            let open = Open { instance: self.clone(), id, waited: Duration::ZERO };
            // One that does not wait any more hands it on as it is dropped.
            drop(place.send(Ok(open)));
        }
    }

    /// Tells those who wait that it is in vain.
    fn turn_away(&self, refusal: Refusal) {
        let mut turned = VecDeque::new();
        self.state.send_if_modified(|state| {
            turned = std::mem::take(&mut state.waiting);
            false
        });
        for Waiting { place, .. } in turned {
            drop(place.send(Err(refusal)));
        }
    }

    /// How busy it is now.
    pub(crate) fn load(&self) -> Load {
        let waited = Duration::from_micros(self.queue_us.load(Ordering::Relaxed));
        self.load_after(waited)
    }

    /// How busy it is now, to somebody who has waited so long for a place.
    pub(crate) fn load_after(&self, waited: Duration) -> Load {
        let state = self.state.borrow();
        Load {
            in_flight: (state.open.len() + state.waiting.len()) as u32,
            limit: self.local.limit,
            queue: waited,
            app: Duration::from_micros(self.app_us.load(Ordering::Relaxed)),
        }
    }

    /// Remembers how long the application took for the head of an answer.
    pub(crate) fn answered(&self, app: Duration) {
        self.app_us.store(app.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Where a request is that was not refused at once.
enum Line {
    In(u64),
    Waits(u64),
}

/// A place in the line, given up when this is dropped.
struct Seat<'a> {
    instance: &'a Instance,
    id: u64,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.instance.state.send_if_modified(|state| {
            state.waiting.retain(|waiting| waiting.id != self.id);
            false
        });
    }
}

/// A request that counts as open until this is dropped.
pub(crate) struct Open {
    instance: Arc<Instance>,
    id: u64,
    waited: Duration,
}

impl Open {
    fn after(mut self, waited: Duration) -> Self {
        self.waited = waited;
        self
    }

    /// What its service is counted under.
    pub(crate) fn counted(&self) -> &metrics::Service {
        &self.instance.counted
    }

    /// How busy its instance is now, and how long this request has waited.
    pub(crate) fn load(&self) -> Load {
        self.instance.load_after(self.waited)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.instance.finish(self.id);
    }
}

/// An instance that others can reach. Dropping it makes the instance unknown and cuts
/// off what is still open.
pub struct Registration {
    ingress: Arc<Shared>,
    instance: Arc<Instance>,
}

impl Registration {
    pub(crate) const fn new(ingress: Arc<Shared>, instance: Arc<Instance>) -> Self {
        Self { ingress, instance }
    }

    /// Refuses new requests from now on, and those that wait; open ones go on.
    pub fn drain(&self) {
        // Nobody waits for this: an idle instance stays idle.
        self.instance.state.send_if_modified(|state| {
            state.draining = true;
            false
        });
        self.instance.turn_away(Refusal::Draining);
    }

    /// Refuses new requests from now on if it has been idle for `time`, and says whether
    /// it has: no request can come in between.
    pub fn drain_if_idle(&self, time: Duration) -> bool {
        let mut idle = false;
        self.instance.state.send_if_modified(|state| {
            idle = state.is_idle(time);
            state.draining |= idle;
            false
        });
        idle
    }

    /// Counts as a use: somebody was just sent here.
    pub fn touch(&self) {
        self.instance.state.send_modify(|state| state.idle_since = Instant::now());
    }

    /// Takes requests again after a [`drain`](Self::drain): what could not be reached
    /// for a while is back.
    pub fn resume(&self) {
        self.instance.state.send_if_modified(|state| {
            state.draining = false;
            false
        });
    }

    /// How busy it is now. `app` is of the last answer.
    pub fn load(&self) -> Load {
        self.instance.load()
    }

    /// Resolves once it is idle for `time`: no request was open, and nobody was sent here
    /// by a [`touch`](Self::touch), for so long without a break. Cancel safe; time that
    /// has passed before the call counts.
    pub async fn idle_for(&self, time: Duration) {
        let mut state = self.instance.state.subscribe();
        loop {
            let until = {
                let state = state.borrow_and_update();
                state.open.is_empty().then(|| state.idle_since + time)
            };
            let idle = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // First: a request that came and went within one turn is a break too.
                biased;
                _ = state.changed() => {}
                () = idle => return,
            }
        }
    }

    /// Resolves once it is not idle for `time` (any more). Cancel safe.
    pub async fn used_within(&self, time: Duration) {
        let mut state = self.instance.state.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        let _sender_is_held = state.wait_for(|state| !state.is_idle(time)).await;
    }

    /// Resolves once no request is open. Cancel safe.
    pub async fn drained(&self) {
        let mut state = self.instance.state.subscribe();
        let _sender_is_held = state.wait_for(|state| state.open.is_empty()).await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.ingress.forget(self.instance.local.instance);
        self.instance.state.send_modify(|state| {
            state.gone = true;
            self.ingress.cut.fetch_add(state.open.len() as u64, Ordering::Relaxed);
            for end in state.open.values() {
                end.notify_one();
            }
        });
        self.instance.turn_away(Refusal::Unknown);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("local", &self.instance.local).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
