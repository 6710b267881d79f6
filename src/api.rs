//! The gRPC API generated from `proto/lca/v1`, and what every server and client of it
//! shares: who is calling, and the limits of a connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::Instant,
};
use tonic::{
    Request,
    transport::{Endpoint, Server, server::Connected},
};
use tower::layer::util::{Identity, Stack};

use crate::PeerId;
use deadline::Deadlines;

mod answer;
pub mod deadline;

/// The generated messages, clients and servers. Their documentation is the comments
/// in `proto/lca/v1`.
pub mod proto {
    #![allow(
        missing_docs,
        missing_debug_implementations,
        unreachable_pub,
        clippy::all,
        clippy::unwrap_used,
        reason = "generated from proto/, which carries the documentation"
    )]
    tonic::include_proto!("lca.v1");
}

/// The API as an encoded `FileDescriptorSet` with its comments, for reflection and for the
/// reference documentation.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Longest a unary call may take on the server, whatever the client asks for:
/// longer than any start with its fetch, short enough that nothing is held for ever.
pub const MAX_CALL: Duration = Duration::from_secs(300);
/// A streamed answer of which a client takes nothing for so long is given up. People stop
/// a stream to read a page of it and come back; a program that hangs does not.
pub const UNREAD: Duration = Duration::from_secs(600);
/// Largest message a client takes from a registry, or from a daemon that relays one: all
/// specs at once are at most 32 MiB. tonic's own limit is 4 MiB.
pub const MAX_ANSWER: usize = 40 << 20;
/// Longest an allocator may take to fetch an artifact. Who asks it to start something
/// waits for that and for the start, or it would have a second one started elsewhere.
/// Below [`MAX_CALL`], so that the caller hears the reason.
pub const MAX_FETCH: Duration = Duration::from_secs(120);
/// Longest an allocator may take to stop an instance that is released, from draining its
/// requests to clearing away what is left of it.
pub const MAX_RELEASE: Duration = Duration::from_secs(60);
/// h2's guard against floods of small frames is half this window, and one slow
/// stream must not stall the others of a connection.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// What one stream may have unread.
const STREAM_WINDOW: u32 = 1 << 20;
/// A peer that does not answer a ping for this long is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Rare enough to be nothing beside the RTT probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// Calls one connection may have open: more than an honest peer needs.
const MAX_STREAMS: u32 = 1024;

/// Who is at the other end of a connection. In every gRPC request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A node that has proved to hold this key.
    Peer(PeerId),
    /// A program on this machine, through the local API.
    Local,
}

impl Caller {
    /// The caller of `request`. A request that came through no listener of ours is
    /// taken as local: it was made in this process.
    pub fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get().copied().unwrap_or(Self::Local)
    }
}

/// A connection whose other end is known, as tonic wants it.
#[derive(Debug)]
pub struct Identified<S> {
    stream: S,
    caller: Caller,
    /// Its place among the connections of its listener, free when it has ended.
    place: Option<OwnedSemaphorePermit>,
}

impl<S> Identified<S> {
    /// Says who is at the other end of `stream`.
    pub const fn new(stream: S, caller: Caller) -> Self {
        Self { stream, caller, place: None }
    }

    /// Holds its place among the connections of a listener until it has ended.
    #[must_use]
    pub(crate) fn in_place(mut self, place: OwnedSemaphorePermit) -> Self {
        self.place = Some(place);
        self
    }
}

impl<S> Connected for Identified<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Identified<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Identified<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A gRPC server with the limits all our listeners share.
pub fn server() -> Server<Stack<Deadlines, Identity>> {
    Server::builder()
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(Deadlines { longest: MAX_CALL, unread: UNREAD })
}

/// A gRPC client endpoint with the limits all our clients share. `authority` is what
/// goes into `:authority`; the connector decides where bytes really go.
///
/// # Errors
/// If `authority` is not one.
pub fn client(authority: &str) -> crate::Result<Endpoint> {
    // http, not https: the connector has done TLS before tonic sees a byte.
    let endpoint = Endpoint::from_shared(format!("http://{authority}")).map_err(|error| {
        crate::Error::new(crate::Kind::Internal, "not an authority").because(error)
    })?;
    Ok(endpoint
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .http2_adaptive_window(false)
        .tcp_nodelay(true))
}

/// A request that tells the server how long we will wait (`grpc-timeout`). The
/// caller still has to stop waiting by itself.
pub fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// A step of something longer that began at `since` and is over now.
pub fn step(name: &str, since: Instant, detail: impl Into<String>) -> proto::Step {
    let duration_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    proto::Step { name: name.to_owned(), duration_us, detail: detail.into() }
}

/// Makes a unary call and stops waiting after `deadline`, which the server is told.
///
/// # Errors
/// What the server answered, or [`Kind::Timeout`](crate::Kind::Timeout) naming `what`.
pub async fn call<M, R, F>(
    what: &str,
    deadline: Duration,
    message: M,
    send: impl FnOnce(Request<M>) -> F,
) -> crate::Result<R>
where
    F: Future<Output = Result<tonic::Response<R>, tonic::Status>>,
{
    let begun = Instant::now();
    let silent = || {
        let sentence = format!("{what} did not answer within {deadline:?}");
        crate::Error::new(crate::Kind::Timeout, sentence)
    };
    match tokio::time::timeout(deadline, send(within(deadline, message))).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => match crate::Error::from(status) {
            // tonic's own clock, here or there, may be over first: the same in its words.
            error if error.kind() == crate::Kind::Timeout && begun.elapsed() >= deadline => {
                Err(silent().because(error))
            }
            error => Err(error),
        },
        Err(_) => Err(silent()),
    }
}
