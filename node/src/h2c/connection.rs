//! One connection to an instance: what drives it, and what is on it.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, client};
use http::{Request, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, oneshot},
    time::sleep,
};

use super::{CONNECTION_WINDOW, MAX_HEAD, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW};

/// A connection that a task drives.
pub(super) struct Connection {
    sender: client::SendRequest<Bytes>,
    /// Requests on it.
    load: AtomicUsize,
    /// Those of them whose body waits until more of it is taken.
    blocked: AtomicUsize,
    /// No more requests on it.
    left: AtomicBool,
    /// Since the task has looked last.
    used: AtomicBool,
    freed: Arc<Notify>,
}

impl Connection {
    /// One without requests. `freed` is told when there may be a place.
    pub(super) fn new(sender: client::SendRequest<Bytes>, freed: Arc<Notify>) -> Self {
        let (load, blocked) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (left, used) = (AtomicBool::new(false), AtomicBool::new(true));
        Self { sender, load, blocked, left, used, freed }
    }

    /// A place on it. To be called by one at a time, and only where there is room.
    pub(super) fn place(self: &Arc<Self>) -> Place {
        self.load.fetch_add(1, Ordering::AcqRel);
        self.used.store(true, Ordering::Release);
        Place(self.clone())
    }

    /// Requests on it.
    pub(super) fn load(&self) -> usize {
        self.load.load(Ordering::Acquire)
    }

    /// Requests on it whose body waits.
    pub(super) fn blocked(&self) -> usize {
        self.blocked.load(Ordering::Acquire)
    }

    /// Whether nothing is on it, nor was since the last call.
    pub(super) fn is_idle(&self) -> bool {
        !self.used.swap(false, Ordering::AcqRel) && self.load() == 0
    }

    /// How many requests it takes beside those it has; `None` if none ever again.
    pub(super) fn room(&self) -> Option<usize> {
        if self.left.load(Ordering::Acquire) {
            return None;
        }
        let most = self.sender.current_max_send_streams().min(MAX_STREAMS);
        Some(most.saturating_sub(self.load()))
    }

    /// No more requests are to go on it.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.freed.notify_waiters();
    }
}

/// A request's place on a connection, until this is dropped.
pub(super) struct Place(Arc<Connection>);

impl Place {
    pub(super) fn sender(&self) -> client::SendRequest<Bytes> {
        self.0.sender.clone()
    }

    /// No more requests are to go on this connection.
    pub(super) fn leave(&self) {
        self.0.leave();
    }

    /// Of its body, which does not wait yet.
    pub(super) fn unblocked(&self) -> Blocked {
        Blocked { connection: self.0.clone(), now: false }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_one();
    }
}

/// Whether a body waits until the instance takes more of it.
pub(super) struct Blocked {
    connection: Arc<Connection>,
    now: bool,
}

impl Blocked {
    pub(super) fn is(&mut self, now: bool) {
        if now == self.now {
            return;
        }
        self.now = now;
        match now {
            true => {
                self.connection.blocked.fetch_add(1, Ordering::AcqRel);
            }
            false => {
                self.connection.blocked.fetch_sub(1, Ordering::AcqRel);
                self.connection.freed.notify_one();
            }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.is(false);
    }
}

/// What drives a connection over `S`.
pub(super) type Driven<S> = client::Connection<S, Bytes>;

/// Greets, and asks for an echo: what comes before it says how many requests are taken at once.
pub(super) async fn begin<S>(
    stream: S,
) -> Result<(client::SendRequest<Bytes>, Driven<S>, PingPong), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (sender, mut connection) = client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEAD)
        .enable_push(false)
        .handshake(stream)
        .await?;
    let mut ping = connection.ping_pong().expect("it is taken once");
    ping.send_ping(Ping::opaque())?;
    Ok((sender, connection, ping))
}

/// Drives a connection until the other end closes it, or `end_if_idle`, called every `keep`,
/// has let go of it. Says once that the other end speaks HTTP/2.
pub(super) async fn drive<S>(
    mut connection: Driven<S>,
    mut ping: PingPong,
    tell: oneshot::Sender<()>,
    driven: Weak<Connection>,
    keep: Duration,
    end_if_idle: impl Fn() -> bool,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let echo = std::future::poll_fn(|cx| ping.poll_pong(cx));
    tokio::select! {
        ended = &mut connection => return over(ended, &driven),
        echo = echo => if echo.is_err() { return },
        // Whoever wanted it has its own deadline, and has gone.
        () = sleep(keep) => return,
    }
    if tell.send(()).is_err() {
        return;
    }
    loop {
        tokio::select! {
            ended = &mut connection => return over(ended, &driven),
            () = sleep(keep) => {}
        }
        if end_if_idle() {
            // Nobody can send on it: it ends by itself, after what is left on it.
            return over(connection.await, &driven);
        }
    }
}

fn over(ended: Result<(), h2::Error>, driven: &Weak<Connection>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection over");
    }
    if let Some(connection) = driven.upgrade() {
        connection.leave();
    }
}

/// Sends a request without a body to whoever listens at the other end of `stream`, in HTTP/2
/// with prior knowledge, and returns the status. What it takes is bounded, its time is not.
///
/// # Errors
/// If it is not answered in HTTP/2.
pub async fn status<S>(stream: S, request: Request<()>) -> Result<StatusCode, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection, _ping) = begin(stream).await?;
    let (response, _) = sender.send_request(request, true)?;
    tokio::select! {
        biased;
        answer = response => Ok(answer?.status()),
        ended = connection => Err(ended.err().unwrap_or(h2::Reason::NO_ERROR.into())),
    }
}
