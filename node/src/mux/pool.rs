//! The way of requests to the ingress of peers: small ones together on few connections,
//! the rest on connections of their own.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared as Flight},
};
use http::{Method, Request, Response, header};
use hyper::body::Body as _;
use lca::{Error, Kind, Result};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    STREAMS,
    client::{Attempt, Connection},
};
use crate::h1::{self, Body, Config, Connected, Dial, Failed, Waits};

/// Longest body of a request that goes with others: such a one is held whole by the front,
/// and there are few of those that are longer.
const MAX_BODY: u64 = 64 << 10;
/// Requests on a connection before another is opened beside it, where that can be of use.
const SPREAD: usize = 64;
/// Connections to one peer at most: with more, fewer requests share a write.
const MOST: usize = 4;
/// How often a request goes on another connection because nobody looked at it.
const AGAIN: usize = 3;

/// In the extensions of a request that goes with others whatever its length, as what goes alone
/// loses trailers that were not announced: those of gRPC.
#[derive(Clone, Copy, Debug)]
pub struct Streamed;

/// Whether a request may go with others: its body is short and known to be, and it does not
/// take the connection over.
pub fn takes(request: &Request<Body>) -> bool {
    let body = request.body();
    let short = request.extensions().get::<Streamed>().is_some()
        || body.is_end_stream()
        || body.size_hint().exact().is_some_and(|length| length <= MAX_BODY);
    short
        && *request.method() != Method::CONNECT
        && !request.headers().contains_key(header::UPGRADE)
}

/// Connections of both kinds, by key. `M` opens those for many requests, `D` those for one at
/// a time. Cheap to clone.
pub struct Hop<M: Dial, D: Dial> {
    together: Arc<Together<M>>,
    alone: h1::Pool<D>,
}

struct Together<M: Dial> {
    dial: M,
    config: Config,
    most: usize,
    slots: Mutex<HashMap<M::Key, Slot>>,
}

type Dialling = Flight<BoxFuture<'static, Result<Connection>>>;

#[derive(Default)]
struct Slot {
    open: Vec<Connection>,
    /// One attempt, for everybody who asks meanwhile.
    dialling: Option<Dialling>,
}

/// Where a request can go.
enum Way {
    Open(Connection),
    Wait(Dialling),
    Full,
}

impl<M: Dial, D: Dial> Clone for Hop<M, D> {
    fn clone(&self) -> Self {
        Self { together: self.together.clone(), alone: self.alone.clone() }
    }
}

impl<M: Dial, D: Dial> fmt::Debug for Hop<M, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hop").field("alone", &self.alone).finish_non_exhaustive()
    }
}

impl<M, D> Hop<M, D>
where
    M: Dial<To = D::To>,
    D: Dial,
{
    /// No connection yet. Has to be made within a runtime: how many connections there are to
    /// one peer depends on its worker threads.
    pub fn new(together: M, alone: D, config: Config) -> Self {
        let workers = tokio::runtime::Handle::current().metrics().num_workers();
        let together = Together {
            dial: together,
            config,
            most: workers.clamp(1, MOST),
            slots: Mutex::default(),
        };
        Self { together: Arc::new(together), alone: h1::Pool::new(alone, config) }
    }

    /// Sends a request in origin form, and resolves with the head of the answer. Whoever drops
    /// the future, or the answer's body before its end, gives the request up at the other
    /// end too.
    ///
    /// # Errors
    /// See [`Failed`]. What comes back with [`Failed::NotSent`] lacks of its body what was
    /// taken already.
    pub async fn send(
        &self,
        to: &D::To,
        mut request: Request<Body>,
    ) -> std::result::Result<Response<Body>, Failed> {
        let streamed = request.extensions().get::<Streamed>().is_some();
        if takes(&request) {
            match self.together.send(to, request).await {
                Ok(answered) => return answered,
                Err(full) if streamed => {
                    let error = Error::new(Kind::NoCapacity, "all connections are full");
                    return Err(Failed::Busy(Box::new(full), error));
                }
                Err(full) => request = full,
            }
        }
        self.alone.send(to, request).await
    }
}

impl<M: Dial> Together<M> {
    /// As [`Hop::send`], or the request where there is no place for it.
    async fn send(
        self: &Arc<Self>,
        to: &M::To,
        mut request: Request<Body>,
    ) -> std::result::Result<std::result::Result<Response<Body>, Failed>, Request<Body>> {
        let limits = Waits::of(&request, &self.config);
        let key = self.dial.key(to);
        let mut tries = 0;
        let mut connected: Option<Duration> = None;
        loop {
            let connection = match self.way(&key, to) {
                Way::Open(connection) => connection,
                Way::Full => return Err(request),
                Way::Wait(dialling) => {
                    let since = Instant::now();
                    match dialling.await {
                        Ok(connection) => {
                            *connected.get_or_insert_default() += since.elapsed();
                            connection
                        }
                        Err(error) => return Ok(Err(Failed::NotSent(Box::new(request), error))),
                    }
                }
            };
            tries += 1;
            match connection.send(request, limits).await {
                Ok(mut answer) => {
                    if let Some(took) = connected {
                        answer.extensions_mut().insert(Connected(took));
                    }
                    return Ok(Ok(answer));
                }
                Err(Attempt::Returned { request: back, whole: true, .. }) if tries < AGAIN => {
                    request = *back;
                }
                Err(Attempt::Returned { request, error, .. }) => {
                    return Ok(Err(Failed::NotSent(request, error)));
                }
                Err(Attempt::Failed(cause, error)) => return Ok(Err(Failed::Sent(cause, error))),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<M::Key, Slot>> {
        // Nothing panics while holding it.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way(self: &Arc<Self>, key: &M::Key, to: &M::To) -> Way {
        let mut slots = self.lock();
        let slot = match slots.get_mut(key) {
            Some(slot) => slot,
            None => slots.entry(key.clone()).or_default(),
        };
        let mut best: Option<(usize, usize)> = None;
        let mut n = 0;
        slot.open.retain(|one| {
            let Some(load) = one.load() else { return false };
            if best.is_none_or(|(_, least)| load < least) {
                best = Some((n, load));
            }
            n += 1;
            true
        });
        let more = slot.open.len() < self.most && best.is_none_or(|(_, load)| load >= SPREAD);
        if more && slot.dialling.is_none() {
            slot.dialling = Some(self.clone().open(key.clone(), to.clone()));
        }
        match (best, &slot.dialling) {
            (Some((n, load)), _) if load < STREAMS => Way::Open(slot.open[n].clone()),
            (_, Some(dialling)) => Way::Wait(dialling.clone()),
            (_, None) => Way::Full,
        }
    }

    /// Opens a connection, in a task: it goes on when those who asked have gone away.
    fn open(self: Arc<Self>, key: M::Key, to: M::To) -> Dialling {
        let (told, answer) = oneshot::channel();
        tokio::spawn(async move {
            let Config { connect, stall, keep, .. } = self.config;
            let dialled = timeout(connect, self.dial.dial(&to)).await;
            let dialled = dialled.unwrap_or_else(|_| {
                Err(Error::new(Kind::Timeout, format!("no connection within {connect:?}")))
            });
            let opened =
                dialled.map(|stream| Connection::start(h1::Bounded::new(stream, stall), keep));
            {
                let mut slots = self.lock();
                if let Some(slot) = slots.get_mut(&key) {
                    slot.dialling = None;
                    slot.open.extend(opened.as_ref().ok().cloned());
                }
                // Peers come and go: nothing is kept of those that are gone.
                slots.retain(|_, slot| {
                    slot.open.retain(|one| one.load().is_some());
                    slot.dialling.is_some() || !slot.open.is_empty()
                });
            }
            let _nobody_waits = told.send(opened);
        });
        let stopping = |_| Err(Error::new(Kind::Unavailable, "not connecting: stopping"));
        answer.map(move |told| told.unwrap_or_else(stopping)).boxed().shared()
    }
}

impl<M: Dial> Drop for Together<M> {
    fn drop(&mut self) {
        for connection in self.lock().values().flat_map(|slot| &slot.open) {
            connection.leave();
        }
    }
}
