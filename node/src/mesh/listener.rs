//! Takes connections of peers in. Every handshake has a task and a deadline of its
//! own, so a client that is slow, silent or not TLS at all delays nobody; handshakes
//! and connections are counted, so it takes only its own share.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lca::{
    PeerId, Result,
    listen::Acceptor,
    metrics::{Held, Metrics},
    shutdown::Spawner,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{
    Alpn, Handlers, Io, Stream, Timing, ahead::Ahead, cannot_listen, serve::Serving, tally::Tally,
    tls,
};
use crate::identity::Identity;

/// Handshakes under way: each holds some kilobytes and at most a few milliseconds of a
/// core.
const HANDSHAKES: usize = 512;
/// Handshakes from one IP address, so that one machine cannot hold all of them; a
/// machine with dozens of nodes that all connect at once gets by.
const HANDSHAKES_EACH: usize = 256;
/// Open connections. Each costs a descriptor and some 50 KiB with TLS and HTTP buffers:
/// 200 MiB at worst.
pub(crate) const CONNECTIONS: usize = 4096;
/// Open connections of one peer: a front's HTTP/1.1 pool at 512 requests in flight,
/// twice.
const CONNECTIONS_EACH: usize = 1024;
/// Those of them with many requests at once: a front opens as many as it has worker threads,
/// four at most, and again beside those that end.
const MUX_EACH: usize = 8;
/// The bound mesh port. Nothing is accepted before [`serve`](Self::serve).
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    timing: Timing,
    connections: usize,
    metrics: Metrics,
}

impl Listener {
    /// Binds `address`, port 0 for any, in the name of `identity`.
    ///
    /// # Errors
    /// [`lca::Kind::Conflict`] if the port is taken, [`lca::Kind::FailedPrecondition`]
    /// if the address cannot be bound otherwise; both name it.
    pub(crate) async fn bind(
        address: SocketAddr,
        identity: &Identity,
        timing: Timing,
        connections: usize,
        metrics: Metrics,
    ) -> Result<Self> {
        let tls = tls::server(identity.keypair())?;
        let failed = |error| cannot_listen(address, error);
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, tls, timing, connections, metrics })
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts and serves until the daemon stops; then what is open may finish for
    /// half a second.
    pub fn serve(self, handlers: Handlers, spawner: &Spawner) {
        let Self { socket, address, tls, timing, connections, metrics } = self;
        let entrance = Entrance {
            tls,
            deadline: timing.handshake,
            handshakes: Tally::new(HANDSHAKES.min(connections), HANDSHAKES_EACH.min(connections)),
            connections: Tally::new(connections, CONNECTIONS_EACH.min(connections)),
            mux: Tally::new(connections, MUX_EACH),
            serving: Serving::start(handlers, spawner),
            spawner: spawner.clone(),
            metrics,
        };
        let stopping = spawner.stopping();
        spawner.spawn("mesh listener", async move {
            tokio::select! {
                () = stopping => {}
                () = entrance.accept(socket, address) => {}
            }
        });
    }
}

/// What every accepted connection needs. Cloned into its task.
#[derive(Clone, Debug)]
struct Entrance {
    tls: Arc<rustls::ServerConfig>,
    deadline: Duration,
    handshakes: Tally<IpAddr>,
    connections: Tally<PeerId>,
    mux: Tally<PeerId>,
    serving: Serving,
    spawner: Spawner,
    metrics: Metrics,
}

impl Entrance {
    async fn accept(self, socket: TcpListener, address: SocketAddr) {
        let mut acceptor = Acceptor::new(socket, format!("peers on {address}"));
        loop {
            let (stream, from) = acceptor.accept().await;
            self.take(stream, from);
        }
    }

    /// Handles one connection in a task, if there is a place for it.
    fn take(&self, stream: TcpStream, from: SocketAddr) {
        let Some(place) = self.handshakes.enter(from.ip().to_canonical()) else {
            self.refused("handshakes");
            tracing::debug!(%from, "too many handshakes, closed");
            return;
        };
        let entrance = self.clone();
        let stopping = self.spawner.stopping();
        self.spawner.spawn_short(async move {
            let handshake = timeout(entrance.deadline, entrance.handshake(stream));
            let stream = tokio::select! {
                handshake = handshake => handshake,
                () = stopping => return,
            };
            drop(place);
            match stream {
                Ok(Ok(stream)) => {
                    let _counted = Held::new(&entrance.metrics.node.connections);
                    entrance.serving.serve(stream, &entrance.spawner).await;
                }
                Ok(Err(error)) => {
                    let many = error.kind() == io::ErrorKind::QuotaExceeded;
                    entrance.refused(if many { "connections" } else { "handshake" });
                    tracing::debug!(%from, %error, "not a peer, closed");
                }
                Err(_) => {
                    entrance.refused("handshake");
                    tracing::debug!(%from, "no handshake in time, closed");
                }
            }
        });
    }

    fn refused(&self, reason: &str) {
        self.metrics.node.refusals.with_label_values(&[reason]).inc();
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        let stream = TlsAcceptor::from(self.tls.clone()).accept(Ahead::new(stream)).await?;
        let (peer, alpn) = tls::identify(stream.get_ref().1)?;
        // Such a one counts as one of either kind.
        let many = if alpn == Alpn::Mux { Some(self.mux.enter(peer)) } else { None };
        let place = self.connections.enter(peer);
        if place.is_none() || matches!(many, Some(None)) {
            let many = format!("too many connections of {}", peer.short());
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, many));
        }
        let places = [place, many.flatten()];
        Ok(Stream::new(Io::Accepted(Box::new(stream)), peer, alpn, places))
    }
}
