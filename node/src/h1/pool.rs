//! Connections to many places, used again where that is safe, and an honest answer to
//! "can it have been seen?" where sending failed.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, Response, header};
use hyper::{body::Body as _, client::conn::http1};
use hyper_util::rt::TokioIo;
use lca::{Error, Kind, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout},
};

use super::{
    body::{Body, Outgoing, Sent},
    io::Bounded,
    lease::{Attempt, Connection, Lease},
};

/// Headers of an answer, and the room for them: what an honest application needs, and
/// what our own servers accept too.
const MAX_HEADERS: usize = 100;
const MAX_BUFFER: usize = 64 << 10;

/// How to reach what a pool connects to.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// What is connected to.
    type To: Sync + ?Sized;
    /// What connections are shared by.
    type Key: Clone + Eq + Hash + fmt::Debug + Send + Sync + Unpin + 'static;
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Which connections will do for `to`.
    fn key(&self, to: &Self::To) -> Self::Key;

    /// A fresh connection, with `TCP_NODELAY` where that applies. The pool sets the
    /// deadline, by dropping the future.
    fn dial(&self, to: &Self::To) -> impl Future<Output = Result<Self::Io>> + Send;
}

/// How long a pool waits, and how much it keeps.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// For a connection.
    pub connect: Duration,
    /// For the head of an answer, from when the request last moved.
    pub head: Duration,
    /// For the next part of a body: how long a stream of events may be quiet.
    pub quiet: Duration,
    /// For the other end to take something.
    pub stall: Duration,
    /// How long an unused connection is kept: less than the server at the other end
    /// keeps it, or a request meets a connection that is being closed.
    pub keep: Duration,
    /// Unused connections kept for one key.
    pub max_idle: usize,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// Certainly nothing of it was sent, and here it is back.
    NotSent(Box<Request<Body>>, Error),
    /// It was sent, at least in part.
    Sent(Cause, Error),
}

/// What became of a request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The connection ended before a byte of an answer.
    Silent,
    /// Something came, and it was no whole, clear head of an answer.
    Garbled,
    /// The head did not come in time.
    Late,
    /// The request's own body failed: nothing is known against the receiver.
    Body,
}

/// In the extensions of an answer that came on a connection used before: how long after
/// its request was sent the head came. The first answer on a connection tells of the
/// handshake as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadAfter(pub Duration);

/// Connections by key. Cheap to clone; the last clone closes what is unused, an answer
/// being read keeps its own connection.
pub struct Pool<D: Dial> {
    shared: Arc<Shared<D>>,
}

pub(super) struct Shared<D: Dial> {
    dial: D,
    pub(super) config: Config,
    ids: AtomicU64,
    state: Mutex<State<D::Key>>,
}

struct State<K> {
    slots: HashMap<K, Slot>,
    sweeping: bool,
}

#[derive(Default)]
struct Slot {
    // The most recently used at the back.
    idle: VecDeque<Idle>,
    in_flight: usize,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl<D: Dial> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<D: Dial> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("dial", &self.shared.dial).finish_non_exhaustive()
    }
}

impl<D: Dial> Pool<D> {
    /// A pool with no connection yet.
    pub fn new(dial: D, config: Config) -> Self {
        let state = Mutex::new(State { slots: HashMap::new(), sweeping: false });
        Self { shared: Arc::new(Shared { dial, config, ids: AtomicU64::new(0), state }) }
    }

    /// Sends a request in origin form, and resolves with the head of the answer. An
    /// unused connection that proves dead before a byte was sent is replaced without a
    /// word. Whoever drops the future, or the answer's body before its end, closes the
    /// connection: that is how the other end learns that nobody waits any more.
    ///
    /// # Errors
    /// See [`Failed`].
    pub async fn send(
        &self,
        to: &D::To,
        request: Request<Body>,
    ) -> std::result::Result<Response<Body>, Failed> {
        let key = self.shared.dial.key(to);
        let (mut request, sent) = outgoing(request);
        while let Some(connection) = self.shared.take(&key) {
            let lease = Lease::new(self.shared.clone(), key.clone(), connection);
            let began = Instant::now();
            match lease.exchange(request, &sent).await {
                Ok(mut answer) => {
                    answer.extensions_mut().insert(HeadAfter(began.elapsed()));
                    return Ok(answer);
                }
                Err(Attempt::Returned(back, _)) => request = *back,
                Err(Attempt::Failed(cause, error)) => return Err(Failed::Sent(cause, error)),
            }
        }
        let connection = match self.shared.connect(&key, to).await {
            Ok(connection) => connection,
            Err(error) => return Err(Failed::NotSent(returned(request), error)),
        };
        let lease = Lease::new(self.shared.clone(), key, connection);
        lease.exchange(request, &sent).await.map_err(|attempt| match attempt {
            Attempt::Returned(back, error) => Failed::NotSent(returned(*back), error),
            Attempt::Failed(cause, error) => Failed::Sent(cause, error),
        })
    }

    /// Requests whose answer has not come to its end.
    #[cfg(test)]
    pub(super) fn in_flight(&self, key: &D::Key) -> usize {
        self.shared.lock().slots.get(key).map_or(0, |slot| slot.in_flight)
    }

    /// Connections that wait to be used again.
    pub fn idle(&self, key: &D::Key) -> usize {
        self.shared.lock().slots.get(key).map_or(0, |slot| slot.idle.len())
    }
}

/// Wraps the body so that it says how far it has come.
fn outgoing(request: Request<Body>) -> (Request<Outgoing>, Arc<Sent>) {
    let (mut parts, body) = request.into_parts();
    // hyper takes a GET or HEAD of unknown length for one without a body.
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let (body, sent) = Outgoing::new(body);
    (Request::from_parts(parts, body), sent)
}

fn returned(request: Request<Outgoing>) -> Box<Request<Body>> {
    Box::new(request.map(Outgoing::into_inner))
}

impl<D: Dial> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, State<D::Key>> {
        // Nothing panics while holding it, and lists of connections cannot be torn.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection used last, if it is fresh and alive. Those below it are older.
    fn take(&self, key: &D::Key) -> Option<Connection> {
        let mut state = self.lock();
        let slot = state.slots.get_mut(key)?;
        while let Some(idle) = slot.idle.pop_back() {
            if idle.since.elapsed() >= self.config.keep {
                slot.idle.clear();
                return None;
            }
            if idle.connection.usable() {
                return Some(idle.connection);
            }
        }
        None
    }

    async fn connect(self: &Arc<Self>, key: &D::Key, to: &D::To) -> Result<Connection> {
        let limit = self.config.connect;
        let dialled = timeout(limit, self.dial.dial(to)).await;
        let stream = dialled.unwrap_or_else(|_| {
            Err(Error::new(Kind::Unavailable, format!("no connection within {limit:?}")))
        })?;
        let stream = Bounded::new(stream, self.config.stall);
        let received = stream.received();
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_BUFFER)
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| {
                Error::new(Kind::Unavailable, "the connection failed at once").because(error)
            })?;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (pool, key) = (Arc::downgrade(self), key.clone());
        // Ends when its last sender is dropped, the other end closes, or it is aborted.
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection over");
            }
            if let Some(pool) = pool.upgrade() {
                pool.forget(&key, id);
            }
        });
        Ok(Connection { id, sender, received, task: task.abort_handle() })
    }

    /// Takes a dead connection off the list.
    fn forget(&self, key: &D::Key, id: u64) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get_mut(key) {
            slot.idle.retain(|idle| idle.connection.id != id);
            state.tidy(key);
        }
    }

    pub(super) fn put_back(self: &Arc<Self>, key: D::Key, connection: Connection) {
        let mut state = self.lock();
        let slot = state.slots.entry(key).or_default();
        if slot.idle.len() >= self.config.max_idle {
            slot.idle.pop_front();
        }
        if self.config.max_idle > 0 {
            slot.idle.push_back(Idle { connection, since: Instant::now() });
        }
        if !std::mem::replace(&mut state.sweeping, true) {
            tokio::spawn(sweep(Arc::downgrade(self), self.config.keep));
        }
    }

    pub(super) fn started(&self, key: &D::Key) {
        self.lock().slots.entry(key.clone()).or_default().in_flight += 1;
    }

    pub(super) fn over(&self, key: &D::Key) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get_mut(key) {
            slot.in_flight -= 1;
            state.tidy(key);
        }
    }
}

impl<K: Eq + Hash> State<K> {
    fn tidy(&mut self, key: &K) {
        if self.slots.get(key).is_some_and(|slot| slot.idle.is_empty() && slot.in_flight == 0) {
            self.slots.remove(key);
        }
    }
}

/// Closes connections nobody has used for `keep`, as long as there are any.
async fn sweep<D: Dial>(pool: Weak<Shared<D>>, keep: Duration) {
    loop {
        tokio::time::sleep(keep / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.lock();
        let mut left = false;
        state.slots.retain(|_, slot| {
            slot.idle.retain(|idle| idle.since.elapsed() < keep);
            left |= !slot.idle.is_empty();
            !slot.idle.is_empty() || slot.in_flight > 0
        });
        if !left {
            state.sweeping = false;
            return;
        }
    }
}
