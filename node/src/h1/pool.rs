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
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
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
/// Connections to one key that are being opened at the same time. Whoever comes meanwhile
/// takes what is opened or given back first: a thousand requests at once need no thousand
/// handshakes, which would keep a peer from its work. A peer 100 ms away, with a handshake
/// of 300 ms, still serves the first hundred of a burst within a second.
pub(super) const MAX_DIALS: usize = 16;
/// How many times [`Config::connect`] a request stands in line at most while the line moves:
/// thirty seconds to a peer. Where everybody is served, only slowly, to send
/// a request away helps nobody.
const LONGEST_LINE: u32 = 10;

/// Why there is no connection for a request.
enum Lack {
    /// None could be opened.
    Unreachable(Error),
    /// Others were first.
    Busy(Error),
}

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
    // Requests without a connection, the first to come at the front. None while any is idle.
    waiting: VecDeque<Waiting>,
    dialling: usize,
    in_flight: usize,
    // When somebody in line was given a connection last.
    moved: Option<Instant>,
}

struct Waiting {
    id: u64,
    // Taken when it is used.
    give: Option<oneshot::Sender<Result<Connection>>>,
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

    /// The first connection that is opened for us or given back by another request: as long
    /// as others are given some, and then for [`Config::connect`].
    async fn wait(
        self: &Arc<Self>,
        key: &D::Key,
        to: &D::To,
    ) -> std::result::Result<Connection, Lack> {
        let limit = self.config.connect;
        let since = Instant::now();
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (give, given) = oneshot::channel();
        let dial = {
            let mut state = self.lock();
            let slot = state.slots.entry(key.clone()).or_default();
            slot.waiting.push_back(Waiting { id, give: Some(give) });
            let dial = slot.dialling < MAX_DIALS;
            slot.dialling += usize::from(dial);
            dial
        };
        if dial {
            tokio::spawn(self.clone().dial(key.clone(), to.clone(), id));
        }
        let mut wait = Wait { pool: self, key, id, given };
        let (mut until, last) = (since + limit, since + limit * LONGEST_LINE);
        let given = loop {
            if let Ok(given) = timeout_at(until, &mut wait.given).await {
                break Some(given);
            }
            match self.moved(key).map(|moved| (moved + limit).min(last)) {
                Some(later) if later > until => until = later,
                _ => break None,
            }
        };
        match given {
            Some(Ok(Ok(connection))) => Ok(connection),
            // Others are served meanwhile: this one came too late, and that is all.
            Some(Ok(Err(error))) if error.kind() == Kind::Timeout && self.serves(key) => {
                Err(Lack::Busy(error))
            }
            Some(Ok(Err(error))) => Err(Lack::Unreachable(error)),
            _ if !dial || self.serves(key) => Err(Lack::Busy(not_within(limit))),
            _ => Err(Lack::Unreachable(not_within(limit))),
        }
    }

    /// When the line moved last.
    fn moved(&self, key: &D::Key) -> Option<Instant> {
        self.lock().slots.get(key).and_then(|slot| slot.moved)
    }

    /// Whether there are connections that are used, or could be.
    fn serves(&self, key: &D::Key) -> bool {
        let state = self.lock();
        state.slots.get(key).is_some_and(|slot| slot.in_flight > 0 || !slot.idle.is_empty())
    }

    /// Opens connections until nobody lacks one, or one cannot be opened. That is told to
    /// `whose` it was, and to everyone if no other is being opened; where it only took too
    /// long and others are served, to nobody.
    async fn dial(self: Arc<Self>, key: D::Key, to: D::To, whose: u64) {
        loop {
            match self.connect(&key, &to).await {
                Ok(connection) => self.put_back(key.clone(), connection),
                Err(error) => return self.not_opened(&key, whose, &error),
            }
            let mut state = self.lock();
            let Some(slot) = state.slots.get_mut(&key) else { return };
            // Until here this one counted as being opened.
            if slot.waiting.len() < slot.dialling {
                slot.dialling -= 1;
                return state.tidy(&key);
            }
        }
    }

    fn not_opened(&self, key: &D::Key, whose: u64, error: &Error) {
        let mut state = self.lock();
        let Some(slot) = state.slots.get_mut(key) else { return };
        slot.dialling -= 1;
        let lately = slot.moved.is_some_and(|moved| moved.elapsed() < self.config.connect);
        if error.kind() == Kind::Timeout && lately {
            return;
        }
        let none_left = slot.dialling == 0;
        slot.waiting.retain_mut(|waiting| {
            let told = none_left || waiting.id == whose;
            if told && let Some(give) = waiting.give.take() {
                let _gone_meanwhile = give.send(Err(error.clone()));
            }
            !told
        });
        state.tidy(key);
    }

    async fn connect(self: &Arc<Self>, key: &D::Key, to: &D::To) -> Result<Connection> {
        let limit = self.config.connect;
        let dialled = timeout(limit, self.dial.dial(to)).await;
        let stream = dialled.unwrap_or_else(|_| Err(not_within(limit)))?;
        let stream = Bounded::new(stream, self.config.stall);
        let tally = stream.tally();
        let (mut sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_BUFFER)
            .max_buf_size(MAX_BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed_at_once)?;
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let (pool, key) = (Arc::downgrade(self), key.clone());
        // Ends when its last sender is dropped, the other end closes, or it is aborted.
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection over");
            }
            if let Some(pool) = pool.upgrade() {
                pool.forget(&key, id);
            }
        });
        // Its task has to run once before it can be told from a dead one.
        sender.ready().await.map_err(failed_at_once)?;
        Ok(Connection { id, sender, tally, task: task.abort_handle(), fresh: true })
    }

    /// Takes a dead connection off the list.
    fn forget(&self, key: &D::Key, id: u64) {
        let mut state = self.lock();
        if let Some(slot) = state.slots.get_mut(key) {
            slot.idle.retain(|idle| idle.connection.id != id);
            state.tidy(key);
        }
    }

    /// For whoever waits longest, else to be used later.
    fn put_back(self: &Arc<Self>, key: D::Key, mut connection: Connection) {
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
    fn tidy(&mut self, key: &K) {
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

/// A place among those who wait. Dropping it leaves, and passes on what has been given.
struct Wait<'a, D: Dial> {
    pool: &'a Arc<Shared<D>>,
    key: &'a D::Key,
    id: u64,
    given: oneshot::Receiver<Result<Connection>>,
}

impl<D: Dial> Drop for Wait<'_, D> {
    fn drop(&mut self) {
        if self.given.is_terminated() {
            return; // it was given something
        }
        self.given.close();
        if let Ok(Ok(connection)) = self.given.try_recv() {
            return self.pool.put_back(self.key.clone(), connection);
        }
        let mut state = self.pool.lock();
        if let Some(slot) = state.slots.get_mut(self.key) {
            slot.waiting.retain(|waiting| waiting.id != self.id);
            state.tidy(self.key);
        }
    }
}

fn failed_at_once(error: hyper::Error) -> Error {
    Error::new(Kind::Unavailable, "the connection failed at once").because(error)
}

fn not_within(limit: Duration) -> Error {
    Error::new(Kind::Timeout, format!("no connection within {limit:?}"))
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
