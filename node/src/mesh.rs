//! The mesh: mutually verified TLS connections between peers, and what they carry.
//!
//! One TCP port a node. TLS 1.3 proves both PeerIds, ALPN says what follows: gRPC,
//! HTTP/1.1 on its way to an instance, or round-trip probes. The [`Listener`] takes
//! connections in, the [`Client`] makes them, one pool a peer; both are bound together
//! by [`Node`](crate::Node).
//!
//! Invariant: no byte of an application or of gRPC is sent before the other side has
//! proved to be the peer that was meant, and none is handed on without saying whose it
//! is. Discovery may be wrong, an address may be somebody else's: that costs one
//! handshake.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use lca::PeerId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::service::Routes;

use self::ahead::Ahead;
use crate::link::Delayed;

mod ahead;
mod channel;
mod client;
mod dial;
mod interest;
mod listener;
mod pace;
mod peers;
mod probe;
mod serve;
mod tally;
#[cfg(test)]
mod tests;
mod tls;
mod verify;
mod window;

pub use client::Client;
pub(crate) use listener::CONNECTIONS;
pub use listener::Listener;

/// What a mesh connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    /// gRPC: `lca-grpc`.
    Grpc,
    /// HTTP/1.1 from a front to an ingress: `lca-h1`.
    H1,
    /// Many requests at once from a front to an ingress: `lca-mux`, see
    /// [`mux`](crate::mux).
    Mux,
    /// Nonces of 8 bytes, echoed: `lca-probe`. Why it is not gRPC: decision 0002.
    Probe,
}

impl Alpn {
    const ALL: [Self; 4] = [Self::Grpc, Self::H1, Self::Mux, Self::Probe];

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "lca-grpc",
            Self::H1 => "lca-h1",
            Self::Mux => "lca-mux",
            Self::Probe => "lca-probe",
        }
    }

    fn from_wire(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_str().as_bytes() == name)
    }
}

/// What peers get from this node, by what their connection carries.
#[derive(Debug)]
pub struct Handlers {
    /// The gRPC services for peers. Requests carry an [`lca::api::Caller`].
    pub grpc: Routes,
    /// Takes connections with requests of fronts; without it they are closed.
    pub http: Option<Arc<dyn ServeHttp>>,
}

/// Serves connections of peers that carry requests: [`Alpn::H1`] and [`Alpn::Mux`].
pub trait ServeHttp: fmt::Debug + Send + Sync + 'static {
    /// Serves one connection until it ends. It is dropped where it stands shortly after
    /// the node was asked to stop, of which `stop` tells.
    fn serve(
        self: Arc<Self>,
        stream: Stream,
        from: PeerId,
        stop: CancellationToken,
    ) -> BoxFuture<'static, ()>;
}

/// How long things may take. The default is for production; tests shorten it.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A TLS handshake taken in. Two round trips and an unlucky retransmission over a
    /// bad line fit; a silent client holds its slot no longer.
    pub handshake: Duration,
    /// Connecting to a peer, all its addresses and TLS included. What the port to the
    /// mesh promises ([`lca::mesh::Mesh::grpc`]).
    pub connect: Duration,
    /// Between probes of a peer that is used: fresh enough to leave a slow instance
    /// within seconds, rare enough to be 2 kbit/s (decision 0002).
    pub probe_every: Duration,
    /// The same of a peer that is only of interest: its silence is known within eight
    /// seconds, for 0.4 kbit/s.
    pub probe_idly_every: Duration,
    /// The same of a peer that is used and near a limit: two more answers, which decide,
    /// come within half a second, for 9 kbit/s.
    pub probe_near_every: Duration,
    /// From a probe that was lost to the next: soon, since three losses are silence, and
    /// yet longer than what made one late is likely to last.
    pub probe_again: Duration,
    /// An answer later than this is lost; after three losses the peer is silent. Above
    /// any round trip worth using.
    pub probe_within: Duration,
    /// A silent peer of which nothing has come for so long, not even an answer that was
    /// lost, is gone: what is open to it is given up. One that is merely slow is not.
    pub gone_after: Duration,
    /// The same at least, for peers whose round trip is known to be short: as long as
    /// three losses may take for a dead peer to be out after three seconds.
    pub probe_within_least: Duration,
}

impl Timing {
    /// See [`Timing`].
    pub const PRODUCTION: Self = Self {
        handshake: Duration::from_secs(5),
        connect: Duration::from_secs(3),
        probe_every: Duration::from_secs(1),
        probe_idly_every: Duration::from_secs(5),
        probe_near_every: Duration::from_millis(200),
        probe_again: Duration::from_millis(250),
        probe_within: Duration::from_secs(1),
        gone_after: Duration::from_secs(3),
        probe_within_least: Duration::from_millis(450),
    };
}

impl Default for Timing {
    fn default() -> Self {
        Self::PRODUCTION
    }
}

/// A TLS connection whose other end has proved who it is.
#[derive(Debug)]
pub struct Stream {
    io: Io,
    peer: PeerId,
    alpn: Alpn,
    /// Given back with the stream: its places among the open connections.
    _places: [Option<tally::Entered<PeerId>>; 2],
    /// Cancels a token when the stream is dropped.
    told: Option<DropGuard>,
    /// Its place among the streams that are open to the peer.
    open: Option<Arc<()>>,
    /// Breaks the stream, whoever owns it by then.
    severed: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

#[derive(Debug)]
enum Io {
    Dialled(Box<tokio_rustls::client::TlsStream<Ahead<Delayed<TcpStream>>>>),
    Accepted(Box<tokio_rustls::server::TlsStream<Ahead<TcpStream>>>),
}

impl Stream {
    /// Who is at the other end.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// What was agreed to be carried.
    pub fn alpn(&self) -> Alpn {
        self.alpn
    }

    fn new(io: Io, peer: PeerId, alpn: Alpn, places: [Option<tally::Entered<PeerId>>; 2]) -> Self {
        Self { io, peer, alpn, _places: places, told: None, open: None, severed: None }
    }

    /// Cancels `gone` when the stream is dropped.
    fn tell_end(&mut self, gone: &CancellationToken) {
        self.told = Some(gone.clone().drop_guard());
    }

    /// Holds a clone of `streams` as long as it is open.
    fn counts_as(&mut self, streams: &Arc<()>) {
        self.open = Some(streams.clone());
    }

    /// Reads fail once `severed` is cancelled; an owner that always reads while it waits,
    /// as HTTP does, gives up then.
    fn sever_with(&mut self, severed: &CancellationToken) {
        self.severed = Some(Box::pin(severed.clone().cancelled_owned()));
    }

    fn io(&mut self) -> Pin<&mut dyn Duplex> {
        match &mut self.io {
            Io::Dialled(stream) => Pin::new(&mut **stream),
            Io::Accepted(stream) => Pin::new(&mut **stream),
        }
    }
}

/// What both directions of making a connection end in.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Duplex for S {}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(severed) = &mut self.severed
            && severed.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.io().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Dialled(stream) => stream.is_write_vectored(),
            Io::Accepted(stream) => stream.is_write_vectored(),
        }
    }
}

/// A failure to listen that names the address and what is wrong with it.
fn cannot_listen(address: SocketAddr, error: io::Error) -> lca::Error {
    lca::listen::cannot("peers", address, "choose another address with --mesh-listen", error)
}
