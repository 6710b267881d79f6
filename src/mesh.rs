//! The port to other peers: a verified gRPC channel to one, and how far it is away.
//! `lca-node` implements it over mutual TLS, [`crate::discovery::memory`] in process.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use tonic::transport::Channel;

use crate::{PeerId, Requirements, Result, endpoint::Endpoint};

mod distance;

pub use distance::{Distance, Felt, Smoothed};

/// Reaches peers over the mesh.
#[async_trait]
pub trait Mesh: fmt::Debug + Send + Sync + 'static {
    /// A channel to `to`, whose PeerId has been proved before a byte was sent. Cheap
    /// when a connection is open. Connecting has a deadline of its own (3 s).
    ///
    /// # Errors
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) if no address of it answers, or
    /// somebody else does.
    async fn grpc(&self, to: &Endpoint) -> Result<Channel>;

    /// Median of the last three round trips. `None` if it was never measured, or the
    /// last three probes went unanswered. Zero for this node itself.
    fn rtt(&self, peer: PeerId) -> Option<Duration>;

    /// All that is known of how far `peer` is away, [`rtt`](Self::rtt) being its median.
    fn distance(&self, peer: PeerId) -> Option<Distance>;

    /// A request to `peer` took this long on the way: from sending it whole to the head of
    /// its answer, without what the application and the queue before it took. Of no account
    /// for a peer that is not of interest. Never blocks.
    fn observed(&self, peer: PeerId, took: Duration);

    /// What people call the simulated link to `peer`, if there is one.
    fn link(&self, _peer: PeerId) -> Option<Arc<str>> {
        None
    }

    /// Whether the last three probes of `peer` went unanswered: what is sent there now
    /// would most likely wait in vain. False if nobody has probed it yet, so that one
    /// just heard of can be used at once.
    fn is_silent(&self, peer: PeerId) -> bool;

    /// Whether `peer` is silent and nothing at all has come from it for three seconds: it
    /// is dead or cut off, and what was open to it has been given up. One that answers
    /// probes too late to count, as on a machine that is overloaded, is silent only. False
    /// if nobody has probed it yet.
    fn is_gone(&self, peer: PeerId) -> bool;

    /// [`rtt`](Self::rtt), after a probe of its own if nothing is known yet. Also
    /// [`watch_idly`](Self::watch_idly).
    ///
    /// # Errors
    /// As [`grpc`](Self::grpc).
    async fn measure(&self, to: &Endpoint) -> Result<Duration>;

    /// Makes `to` a peer that is used: probed once a second for the next [`IN_USE`],
    /// longer if called again, and from then on as by [`watch_idly`](Self::watch_idly).
    fn watch(&self, to: &Endpoint);

    /// [`watch`](Self::watch), for somebody to whom these limits matter: near one of them
    /// the peer is probed five times a second, for the next [`IN_USE`]. The limits of
    /// several callers add up, to a bounded number.
    fn watch_near(&self, to: &Endpoint, limits: &Requirements);

    /// Makes `to` a peer of interest, though nobody uses it now: probed every few
    /// seconds, and once a second from the first probe that is lost, for the next
    /// [`INTEREST`], longer if called again. Bounded: the peer least recently asked for
    /// makes room.
    fn watch_idly(&self, to: &Endpoint);
}

/// How long a peer counts as used after somebody last said so.
pub const IN_USE: Duration = Duration::from_secs(45);

/// How long a peer stays of interest after somebody last asked for it: long enough
/// that a client with a request a minute finds fresh numbers.
pub const INTEREST: Duration = Duration::from_secs(120);
