//! Connects to a peer, whichever of its addresses works first.
//!
//! Addresses are tried in the order given, the next as soon as one has failed or has
//! taken a while, so a dead address costs a quarter of a second and not a time-out
//! (RFC 8305 without its sorting). An attempt includes TLS: an address where somebody
//! else answers has failed, and cannot win.

use std::{io, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use lca::{Error, Kind, PeerId, Result, endpoint::MAX_ADDRESSES};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

use super::{Alpn, Io, Stream, Timing, ahead::Ahead, tls};
use crate::{identity::Identity, link::Links};

/// Before the next address is tried beside one that has not answered: RFC 8305's
/// recommendation.
const STAGGER: Duration = Duration::from_millis(250);

/// Makes verified connections in the name of one node.
#[derive(Clone, Debug)]
pub(super) struct Dialler {
    local: PeerId,
    offers: tls::Offers,
    links: Links,
    timing: Timing,
}

impl Dialler {
    pub(super) fn new(identity: &Identity, links: Links, timing: Timing) -> Result<Self> {
        let offers = tls::Offers::new(identity.keypair())?;
        Ok(Self { local: identity.peer_id(), offers, links, timing })
    }

    pub(super) fn local(&self) -> PeerId {
        self.local
    }

    pub(super) fn timing(&self) -> Timing {
        self.timing
    }

    /// A fresh connection to `peer`, verified, within the connect deadline. Cancel
    /// safe: nothing stays open.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if no address answers in time, or only somebody else does.
    pub(super) async fn dial(
        &self,
        peer: PeerId,
        addresses: &[SocketAddr],
        alpn: Alpn,
    ) -> Result<Stream> {
        match timeout(self.timing.connect, self.race(peer, addresses, alpn)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable(peer).because(error)),
            Err(_) => Err(unreachable(peer).because(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    async fn race(&self, peer: PeerId, addresses: &[SocketAddr], alpn: Alpn) -> io::Result<Stream> {
        let mut untried = addresses.iter().take(MAX_ADDRESSES).peekable();
        let mut attempts = FuturesUnordered::new();
        let mut failure: Option<io::Error> = None;
        loop {
            attempts.extend(untried.next().map(|address| self.attempt(peer, *address, alpn)));
            let more = untried.peek().is_some();
            tokio::select! {
                attempt = attempts.next() => match attempt {
                    Some(Ok(stream)) => return Ok(stream),
                    // A refusal is told only if there is nothing else to tell: then nobody
                    // listens anywhere.
                    Some(Err(error)) => {
                        failure = failure.filter(|before| !is_refusal(before)).or(Some(error));
                    }
                    None => {
                        return Err(failure.unwrap_or_else(|| io::Error::other("it has no address")));
                    }
                },
                () = sleep(STAGGER), if more => {}
            }
        }
    }

    async fn attempt(&self, peer: PeerId, address: SocketAddr, alpn: Alpn) -> io::Result<Stream> {
        let attempt = async {
            let link = self.links.link(self.local, peer);
            let stream = link
                .connect(async {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                })
                .await?;
            let tls = TlsConnector::from(self.offers.of(alpn));
            let stream = tls.connect(tls::no_name(), Ahead::new(stream)).await?;
            let (found, agreed) = tls::identify(stream.get_ref().1)?;
            if found != peer {
                return Err(io::Error::other(format!("peer {} answers", found.short())));
            }
            if agreed != alpn {
                return Err(io::Error::other(format!("it does not speak {}", alpn.as_str())));
            }
            Ok(Stream::new(Io::Dialled(Box::new(stream)), peer, alpn, [None, None]))
        };
        attempt.await.map_err(|error| io::Error::new(error.kind(), AtAddress { address, error }))
    }
}

/// Whether nobody listens at an address.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

fn unreachable(peer: PeerId) -> Error {
    Error::new(Kind::Unavailable, format!("peer {} cannot be reached", peer.short()))
}

/// Says which address failed; the cause says why.
#[derive(Debug, thiserror::Error)]
#[error("connecting to {address}: {error}")]
struct AtAddress {
    address: SocketAddr,
    error: io::Error,
}
