//! Connections that both sides have agreed to use for something else than HTTP, after an
//! upgrade or a CONNECT: bytes pass both ways until one side is done or nothing moves.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use lca::metrics::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    sync::Notify,
    time::sleep,
};

use super::body::silent;

/// Of each direction, what was read and not yet written.
const BUFFER: usize = 16 << 10;
/// How long nothing may move once one side has ended: it may be waiting for the rest, or be
/// gone.
const HALF: Duration = Duration::from_secs(60);

/// A stream of bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// What lies behind a server that has switched protocols: the connection from then on, and
/// whatever has to be held while it is used.
pub struct Tunnel {
    io: Box<dyn Duplex>,
    held: Box<dyn Send>,
}

impl Tunnel {
    /// One that is `io`, and holds `held` until it ends.
    pub fn new(io: impl Duplex + 'static, held: impl Send + 'static) -> Self {
        Self { io: Box::new(io), held: Box::new(held) }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

/// In the extensions of an answer 101: its connection, for whoever takes it first.
#[derive(Clone, Debug)]
pub struct Switched(Arc<Mutex<Option<Tunnel>>>);

impl Switched {
    /// One that leads to `tunnel`.
    pub fn new(tunnel: Tunnel) -> Self {
        Self(Arc::new(Mutex::new(Some(tunnel))))
    }

    /// The connection, once.
    pub fn take(&self) -> Option<Tunnel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Where the answers of a connection leave what is to happen on it once it has left HTTP,
/// for whoever drives it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct After(Arc<Mutex<Option<Joint>>>);

impl After {
    /// The connection's bytes shall pass through `joint`, once its answer is written.
    pub fn set(&self, joint: Joint) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(joint);
    }

    /// What was left here.
    pub fn take(&self) -> Option<Joint> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A client and a server that are about to be joined.
#[derive(Debug)]
pub struct Joint {
    /// The client's connection, when its answer has been written.
    pub client: OnUpgrade,
    /// The server's.
    pub server: Tunnel,
    /// What is read from the client, and from the server.
    pub bytes: [Counter; 2],
    /// How long nothing may move in either direction.
    pub quiet: Duration,
}

impl Joint {
    /// The same, holding `held` too until it ends.
    #[must_use]
    pub fn holding(mut self, held: impl Send + 'static) -> Self {
        self.server.held = Box::new((self.server.held, held));
        self
    }

    /// Passes bytes both ways until both sides have ended, one has failed, or nothing moves.
    /// A side that ends is ended towards the other, which may go on. Dropping it closes both.
    ///
    /// # Errors
    /// If a side fails, or nothing has moved for too long.
    pub async fn run(self) -> io::Result<()> {
        let Self { client, server, bytes: [up, down], quiet } = self;
        let client = client.await.map_err(io::Error::other)?;
        let Tunnel { io, held: _held } = server;
        pass(TokioIo::new(client), io, up, down, quiet).await
    }
}

async fn pass(
    client: impl Duplex,
    server: impl Duplex,
    up: Counter,
    down: Counter,
    quiet: Duration,
) -> io::Result<()> {
    let progress = Arc::new(Progress::default());
    let mut client = Moving { io: client, bytes: up, progress: progress.clone() };
    let mut server = Moving { io: server, bytes: down, progress: progress.clone() };
    tokio::select! {
        ended = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => ended.map(drop),
        limit = progress.still(quiet) => Err(silent(limit)),
    }
}

/// What both directions of a tunnel have come to.
#[derive(Debug, Default)]
struct Progress {
    moved: AtomicU64,
    ended: AtomicBool,
    end: Notify,
}

impl Progress {
    /// Resolves once nothing has moved for `quiet`, or for less after one side has ended;
    /// with how long it was.
    async fn still(&self, quiet: Duration) -> Duration {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            let ended = self.ended.load(Ordering::Relaxed);
            let limit = if ended { quiet.min(HALF) } else { quiet };
            tokio::select! {
                () = sleep(limit) => {}
                () = self.end.notified(), if !ended => continue,
            }
            if self.moved.load(Ordering::Relaxed) == before {
                return limit;
            }
        }
    }
}

/// A stream that says how much was read from it.
struct Moving<S> {
    io: S,
    bytes: Counter,
    progress: Arc<Progress>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Moving<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let new = (buf.filled().len() - before) as u64;
        if new > 0 {
            self.bytes.inc_by(new);
            self.progress.moved.fetch_add(1, Ordering::Relaxed);
        } else if read.is_ready() {
            self.progress.ended.store(true, Ordering::Relaxed);
            self.progress.end.notify_one();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Moving<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        time::Instant,
    };

    use super::*;

    const QUIET: Duration = Duration::from_secs(300);

    /// A tunnel between two ends, and what becomes of it.
    fn tunnel() -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<io::Result<()>>, Counter) {
        let (client, near) = duplex(64);
        let (far, server) = duplex(64);
        let metrics = lca::metrics::Metrics::default();
        let (up, down) = (metrics.artifacts.sent.clone(), metrics.artifacts.sent.clone());
        let passing = tokio::spawn(pass(near, far, up.clone(), down, QUIET));
        (client, server, passing, up)
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_has_ended_may_wait_for_the_other_but_not_for_ever() {
        let (mut client, mut server, passing, up) = tunnel();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!((asked.as_str(), up.get()), ("question", 8));
        sleep(HALF / 2).await;
        server.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        let since = Instant::now();
        assert_eq!(passing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(since.elapsed() <= 2 * HALF, "{:?}", since.elapsed());
        assert_eq!(client.read(&mut answer).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_in_which_something_moves_stays_and_a_still_one_ends() {
        let (mut client, mut server, passing, _) = tunnel();
        let mut byte = [0; 1];
        for _ in 0..10 {
            server.write_all(b"x").await.unwrap();
            client.read_exact(&mut byte).await.unwrap();
            sleep(QUIET * 9 / 10).await;
            assert!(!passing.is_finished());
        }
        let since = Instant::now();
        passing.await.unwrap().unwrap_err();
        assert!(since.elapsed() <= 2 * QUIET, "{:?}", since.elapsed());
    }
}
