//! Connections to many places, used again where that is safe, and an honest answer to
//! "can it have been seen?" where sending failed.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicU64},
    time::Duration,
};

use http::{HeaderValue, Request, Response, header};
use hyper::body::Body as _;
use lca::{Error, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::Instant,
};

use super::{
    body::{Body, Outgoing, Sent},
    lease::{Attempt, Connection, Lease},
    line::Lack,
};

/// How to reach what a pool connects to.
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// What is connected to.
    type To: Clone + Send + Sync + 'static;
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

/// In the extensions of a request: how long it waits, where that is not [`Config::head`] and
/// [`Config::quiet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// As [`Config::head`].
    pub head: Duration,
    /// As [`Config::quiet`], of the answer's body. That of the request is its source's affair.
    pub quiet: Duration,
}

impl Waits {
    /// How long this request waits.
    pub(crate) fn of<B>(request: &Request<B>, config: &Config) -> Self {
        let own = request.extensions().get::<Self>().copied();
        own.unwrap_or(Self { head: config.head, quiet: config.quiet })
    }
}

/// In the extensions of an answer whose request had to wait for a connection: how long.
#[derive(Clone, Copy, Debug)]
pub struct Connected(pub Duration);

/// Why there is no answer.
#[derive(Debug)]
pub enum Failed {
    /// Certainly nothing of it was sent, and here it is back.
    NotSent(Box<Request<Body>>, Error),
    /// The same, and nothing is known against the receiver: the request stood in line for
    /// a connection while others were open or being opened.
    Busy(Box<Request<Body>>, Error),
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
    pub(super) shared: Arc<Shared<D>>,
}

pub(super) struct Shared<D: Dial> {
    pub(super) dial: D,
    pub(super) config: Config,
    pub(super) ids: AtomicU64,
    state: Mutex<State<D::Key>>,
}

pub(super) struct State<K> {
    pub(super) slots: HashMap<K, Slot>,
    sweeping: bool,
}

#[derive(Default)]
pub(super) struct Slot {
    // The most recently used at the back.
    pub(super) idle: VecDeque<Idle>,
    // Requests without a connection, the first to come at the front. None while any is idle.
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) dialling: usize,
    pub(super) in_flight: usize,
    // When somebody in line was given a connection last.
    pub(super) moved: Option<Instant>,
}

pub(super) struct Waiting {
    pub(super) id: u64,
    // Taken when it is used.
    pub(super) give: Option<oneshot::Sender<Result<Connection>>>,
}

pub(super) struct Idle {
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
        loop {
            let mut connected = None;
            let connection = match self.shared.take(&key) {
                Some(connection) => connection,
                None => {
                    let waiting = Instant::now();
                    match self.shared.wait(&key, to).await {
                        Ok(connection) => {
                            connected = Some(Connected(waiting.elapsed()));
                            connection
                        }
                        Err(Lack::Unreachable(error)) => {
                            return Err(Failed::NotSent(returned(request), error));
                        }
                        Err(Lack::Busy(error)) => {
                            return Err(Failed::Busy(returned(request), error));
                        }
                    }
                }
            };
            let fresh = connection.fresh;
            let lease = Lease::new(self.shared.clone(), key.clone(), connection);
            let began = Instant::now();
            match lease.exchange(request, &sent).await {
                Ok(mut answer) => {
                    if !fresh {
                        answer.extensions_mut().insert(HeadAfter(began.elapsed()));
                    }
                    if let Some(connected) = connected {
                        answer.extensions_mut().insert(connected);
                    }
                    return Ok(answer);
                }
                Err(Attempt::Returned(back, error)) if fresh => {
                    return Err(Failed::NotSent(returned(*back), error));
                }
                Err(Attempt::Returned(back, _)) => request = *back,
                Err(Attempt::Failed(cause, error)) => return Err(Failed::Sent(cause, error)),
            }
        }
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
    pub(super) fn lock(&self) -> MutexGuard<'_, State<D::Key>> {
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

    /// Takes a dead connection off the list.
    pub(super) fn forget(&self, key: &D::Key, id: u64) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get_mut(key) {
            slot.idle.retain(|idle| idle.connection.id != id);
            state.tidy(key);
        }
    }

    /// For whoever waits longest, else to be used later.
    pub(super) fn put_back(self: &Arc<Self>, key: D::Key, mut connection: Connection) {
        let mut state = self.lock();
        let slot = state.slots.entry(key).or_default();
        while let Some(Waiting { give, .. }) = slot.waiting.pop_front() {
            match give.map(|give| give.send(Ok(connection))) {
                // It gave up meanwhile.
                Some(Err(Ok(back))) => connection = back,
                _ => {
                    slot.moved = Some(Instant::now());
                    return;
                }
            }
        }
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

    /// After a request: it may be used for another.
    pub(super) fn give_back(self: &Arc<Self>, key: D::Key, mut connection: Connection) {
        connection.fresh = false;
        self.put_back(key, connection);
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
    pub(super) fn tidy(&mut self, key: &K) {
        if self.slots.get(key).is_some_and(Slot::is_unused) {
            self.slots.remove(key);
        }
    }
}

impl Slot {
    fn is_unused(&self) -> bool {
        self.idle.is_empty() && self.waiting.is_empty() && self.dialling == 0 && self.in_flight == 0
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
            !slot.is_unused()
        });
        if !left {
            state.sweeping = false;
            return;
        }
    }
}
