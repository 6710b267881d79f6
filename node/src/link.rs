//! The link profile: makes the network between chosen peers slow, uneven or absent,
//! for tests and demonstrations on one machine.
//!
//! Whoever dials takes the stream through `Link::connect`: the mesh for its TLS
//! connections, the swarm for libp2p's. A profile belongs to a pair of peers and works
//! on the dialling side for both directions, so it covers every connection between
//! the two exactly once, whoever dialled. It may change while connections are open.
//!
//! Invariant: no byte is lost, repeated or overtaken, whatever the profile does; a cut
//! link holds bytes back, it does not break connections. Where no profile was ever set
//! for a pair, its streams are used directly, at the cost of one atomic read a call.
//!
//! This is a collaborator, handed over in code; no daemon's configuration reaches it, only
//! `lcactl up`, which is a network on one machine.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll, Waker},
    time::Duration,
};

use lca::PeerId;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::watch,
    time::Instant,
};
use tokio_util::sync::DropGuard;

pub mod course;
mod pump;
#[cfg(test)]
mod tests;

/// The shortest wait of a stalled write: the shortest retransmission time-out of
/// Linux's TCP, which is what a lost segment costs.
const MIN_STALL: Duration = Duration::from_millis(200);

/// What is done to the bytes between two peers. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Profile {
    /// Round-trip time added: half of it to each direction, all of it to connecting.
    pub delay: Duration,
    /// Up to this much more on a round trip, at random: up to half of it in each
    /// direction. Order is kept.
    pub jitter: Duration,
    /// Share of writes, 0 to 1, that wait as if a segment had been lost: longer by
    /// the round-trip time set here, at least 200 ms. What was written later waits too.
    pub stall: f64,
    /// Nothing gets through: bytes are held, connecting hangs until whoever dials gives
    /// up. When the cut ends, what was held goes on.
    pub cut: bool,
}

impl Profile {
    /// A link on which nothing gets through.
    pub const CUT: Self =
        Self { delay: Duration::ZERO, jitter: Duration::ZERO, stall: 0.0, cut: true };

    /// A steady link with this much round-trip time.
    pub const fn rtt(delay: Duration) -> Self {
        Self { delay, jitter: Duration::ZERO, stall: 0.0, cut: false }
    }

    fn is_clear(&self) -> bool {
        *self == Self::default()
    }

    /// How long bytes are under way, going in one direction; `luck` is two draws from
    /// 0 to 1.
    fn one_way(&self, luck: [f64; 2]) -> Duration {
        let steady = self.delay / 2 + (self.jitter / 2).mul_f64(luck[0]);
        let lost = luck[1] < self.stall;
        if lost { steady + (self.delay + self.jitter).max(MIN_STALL) } else { steady }
    }
}

/// An unordered pair of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair(PeerId, PeerId);

impl Pair {
    fn new(a: PeerId, b: PeerId) -> Self {
        Self(a.min(b), a.max(b))
    }
}

/// The profiles of all pairs. Cheap to clone; clones share the profiles, so one handed
/// to every node of a test cluster governs all of its links.
#[derive(Clone, Debug, Default)]
pub struct Links {
    profiles: Arc<watch::Sender<HashMap<Pair, Profile>>>,
    names: Arc<RwLock<HashMap<Pair, Arc<str>>>>,
}

impl Links {
    /// From now on the link between `a` and `b` is like this, whoever dialled, and also
    /// for connections that are open. Bytes under way keep the delay they set out with.
    pub fn set(&self, a: PeerId, b: PeerId, profile: Profile) {
        self.profiles.send_modify(|profiles| {
            profiles.insert(Pair::new(a, b), profile);
        });
    }

    /// As [`set`](Self::set), for many links at once.
    pub fn set_all(&self, profiles: impl IntoIterator<Item = (PeerId, PeerId, Profile)>) {
        self.profiles.send_modify(|all| {
            let pairs = profiles.into_iter().map(|(a, b, profile)| (Pair::new(a, b), profile));
            all.extend(pairs);
        });
    }

    /// What people call the link between `a` and `b`, for lists; nothing depends on it.
    pub fn call(&self, a: PeerId, b: PeerId, name: &str) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        names.insert(Pair::new(a, b), name.into());
    }

    /// What the link was [called](Self::call).
    pub fn name(&self, a: PeerId, b: PeerId) -> Option<Arc<str>> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&Pair::new(a, b)).cloned()
    }

    /// Takes the profile away; what a cut held back goes on.
    pub fn clear(&self, a: PeerId, b: PeerId) {
        self.profiles.send_modify(|profiles| {
            profiles.remove(&Pair::new(a, b));
        });
    }

    /// The link over which `local` dials `remote`.
    pub(crate) fn link(&self, local: PeerId, remote: PeerId) -> Link {
        let mut profiles = self.profiles.subscribe();
        // Not seen yet, so that the first use of a stream looks.
        profiles.mark_changed();
        Link { pair: Pair::new(local, remote), profiles, _owner: self.clone() }
    }
}

/// The link between two peers, as one connection sees it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pair: Pair,
    profiles: watch::Receiver<HashMap<Pair, Profile>>,
    /// Keeps the sender, so that waiting for a change never fails.
    _owner: Links,
}

impl Link {
    /// Dials over this link. Takes a round trip longer than `dial`, and hangs while the
    /// link is cut: callers have a deadline. Cancel safe if `dial` is.
    ///
    /// # Errors
    /// Those of `dial`.
    pub(crate) async fn connect<S>(
        &self,
        dial: impl Future<Output = io::Result<S>>,
    ) -> io::Result<Delayed<S>> {
        let mut link = self.clone();
        link.open().await;
        let profile = link.profile();
        if !profile.is_clear() {
            let round_trip = [profile.one_way(luck()), profile.one_way(luck())];
            tokio::time::sleep(round_trip.iter().sum()).await;
        }
        let stream = dial.await?;
        link.open().await; // cut while dialling
        Ok(Delayed { route: Route::Direct(stream), link: self.clone(), parked: [None, None] })
    }

    /// The profile now.
    fn profile(&self) -> Profile {
        self.profiles.borrow().get(&self.pair).copied().unwrap_or_default()
    }

    /// Whether a profile is set and the stream must not be used directly any more.
    /// Cheap while nobody changes any profile.
    fn shapes(&mut self) -> bool {
        self.profiles.has_changed().unwrap_or(false)
            && !self.profiles.borrow_and_update().get(&self.pair).is_none_or(Profile::is_clear)
    }

    /// Resolves when the link is not cut.
    async fn open(&mut self) {
        let pair = self.pair;
        let open = |profiles: &HashMap<Pair, Profile>| !profiles.get(&pair).is_some_and(|p| p.cut);
        let _the_owner_keeps_the_sender = self.profiles.wait_for(open).await;
    }

    /// When bytes that set out now arrive.
    fn arrival(&self) -> Instant {
        let profile = self.profile();
        if profile.is_clear() {
            return Instant::now();
        }
        Instant::now() + profile.one_way(luck())
    }
}

fn luck() -> [f64; 2] {
    [rand::random(), rand::random()]
}

/// A dialled stream that follows its link's profile.
#[derive(Debug)]
pub(crate) struct Delayed<S> {
    route: Route<S>,
    link: Link,
    /// Who waits to read and to write on the direct stream, so that they can be told
    /// when a pump takes it over: the two need not be one task.
    parked: [Option<Waker>; 2],
}

/// How bytes travel. It starts direct and becomes pumped when the pair first gets a
/// profile; it stays so, a cleared profile then costs a copy.
#[derive(Debug)]
enum Route<S> {
    Direct(S),
    Pumped {
        near: DuplexStream,
        _gone: DropGuard,
    },
    /// Only while a pump takes the stream over.
    Moving,
}

const READ: usize = 0;
const WRITE: usize = 1;

impl<S> Delayed<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Hands the stream to a pump if the pair has a profile now.
    fn follow(&mut self) {
        if matches!(self.route, Route::Direct(_))
            && self.link.shapes()
            && let Route::Direct(stream) = std::mem::replace(&mut self.route, Route::Moving)
        {
            let (near, gone) = pump::start(stream, self.link.clone());
            self.route = Route::Pumped { near, _gone: gone };
            self.parked.iter_mut().filter_map(Option::take).for_each(Waker::wake);
        }
    }

    /// Polls whichever stream the bytes take, remembering who waits on a direct one.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        side: usize,
        operation: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.follow();
        match &mut self.route {
            Route::Direct(stream) => {
                let polled = operation(Pin::new(stream), cx);
                if polled.is_pending() {
                    match &mut self.parked[side] {
                        Some(waker) => waker.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                }
                polled
            }
            Route::Pumped { near, .. } => operation(Pin::new(near), cx),
            Route::Moving => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

/// What both routes are.
trait Io: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Io for S {}

impl<S> AsyncRead for Delayed<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(cx, READ, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl<S> AsyncWrite for Delayed<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, WRITE, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, WRITE, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, WRITE, |stream, cx| stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, WRITE, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.route {
            Route::Direct(stream) => stream.is_write_vectored(),
            Route::Pumped { near, .. } => near.is_write_vectored(),
            Route::Moving => false,
        }
    }
}
