//! libp2p over TCP, through the link profile and past a counter.
//!
//! libp2p dials from the port it listens on, which fails while an old connection of the
//! same two lingers: here every dial has a port of its own.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use lca::{
    PeerId,
    metrics::{Counter, Metrics},
};
use libp2p::{
    Multiaddr, PeerId as Libp2pId, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent},
        upgrade::Version,
    },
    identity::Keypair,
    multiaddr::Protocol,
    noise, tcp, yamux,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::{
    identity::from_libp2p,
    link::{Delayed, Links},
};

/// Bytes of libp2p traffic since the start, on the wire: Noise and Yamux included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes received.
    pub read: u64,
    /// Bytes sent.
    pub written: u64,
}

/// Counts [`Traffic`].
#[derive(Debug)]
pub(crate) struct Meter {
    read: Counter,
    written: Counter,
}

impl Meter {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let [read, written] =
            ["received", "sent"].map(|way| metrics.node.bytes.with_label_values(&[way]));
        Self { read, written }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { read: self.read.get(), written: self.written.get() }
    }
}

/// The whole transport: TCP, Noise, Yamux. `timeout` bounds a dial with its handshakes.
///
/// # Errors
/// If Noise does not take the key.
pub(crate) fn build(
    keypair: &Keypair,
    local: PeerId,
    links: Links,
    meter: Arc<Meter>,
    timeout: Duration,
) -> Result<Boxed<(Libp2pId, StreamMuxerBox)>, noise::Error> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default()).boxed();
    let linked = Linked { tcp, local, links, meter };
    Ok(linked
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(keypair)?)
        .multiplex(yamux::Config::default())
        .timeout(timeout)
        .boxed())
}

/// TCP through the link profile of whom it dials.
struct Linked {
    tcp: Boxed<tcp::tokio::TcpStream>,
    local: PeerId,
    links: Links,
    meter: Arc<Meter>,
}

impl Transport for Linked {
    type Output = Wire;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<Wire>>;
    type Dial = BoxFuture<'static, io::Result<Wire>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.tcp.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.tcp.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let remote = address.iter().find_map(|part| match part {
            Protocol::P2p(peer) => from_libp2p(&peer),
            _ => None,
        });
        // Everyone we dial is known by id; a key that is not Ed25519 is not of ours.
        let Some(remote) = remote else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let link = self.links.link(self.local, remote);
        let meter = self.meter.clone();
        let options = DialOpts { port_use: PortUse::New, ..options };
        let dial = self.tcp.dial(address, options)?.map(|dialled| dialled.map(|stream| stream.0));
        Ok(async move {
            let stream = link.connect(dial).await?;
            Ok(Wire { stream: Stream::Dialled(stream), meter })
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        let event = ready!(Pin::new(&mut self.tcp).poll(cx));
        let meter = self.meter.clone();
        Poll::Ready(event.map_upgrade(|upgrade| {
            let accepted =
                |stream: tcp::tokio::TcpStream| Wire { stream: Stream::Accepted(stream.0), meter };
            upgrade.map(|stream| stream.map(accepted)).boxed()
        }))
    }
}

/// One TCP connection, counted.
struct Wire {
    stream: Stream,
    meter: Arc<Meter>,
}

enum Stream {
    Accepted(TcpStream),
    Dialled(Delayed<TcpStream>),
}

/// Calls a method of whichever stream it is.
macro_rules! either {
    ($wire:expr, $method:ident($($argument:expr),*)) => {
        match &mut $wire.stream {
            Stream::Accepted(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Dialled(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl futures::AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(either!(self, poll_read(cx, &mut buffer)))?;
        let read = buffer.filled().len();
        self.meter.read.inc_by(read as u64);
        Poll::Ready(Ok(read))
    }
}

impl futures::AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(either!(self, poll_write(cx, bytes)))?;
        self.meter.written.inc_by(written as u64);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown(cx))
    }
}
