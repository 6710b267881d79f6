//! The port to whatever finds peers: the libp2p DHT in `lca-node`, a shared table in
//! [`memory`]. Both pass [`suite`].
//!
//! Discovery is a hint, never truth: what it yields was verified to be a peer's own
//! word, but the peer may be gone. Callers dial, verify, try the next, and
//! [`forget`](Discovery::forget) what failed.

use std::{fmt, pin::Pin, sync::Arc};

use async_trait::async_trait;
use futures::Stream;

use crate::{
    PeerId, Result, ServiceHash,
    endpoint::{Endpoint, Role},
};

pub mod memory;
pub mod suite;

/// What can be announced and found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// Peers that hold a ready instance of this service.
    Service(ServiceHash),
    /// Peers that do this.
    Role(Role),
}

/// One thing a find has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A peer has it, and here it is. Each peer is yielded at most once a find.
    Endpoint(Arc<Endpoint>),
    /// Nothing was found where it should be: three of the nearest live peers answered
    /// empty, or a short while has passed. Said at most once, and only before the first
    /// endpoint. What comes later is still good.
    Miss,
}

/// A find in progress. It ends by itself within seconds; dropping it ends it early.
pub type Finding = Pin<Box<dyn Stream<Item = Found> + Send>>;

/// Announces what this node has and finds who else has something.
#[async_trait]
pub trait Discovery: fmt::Debug + Send + Sync + 'static {
    /// Who this node is.
    fn local(&self) -> PeerId;

    /// Where this node itself can be reached, as it tells others.
    fn own(&self) -> Arc<Endpoint>;

    /// Tells the network that this node has `key`, and goes on telling it until
    /// [`withdraw`](Self::withdraw). Success means that the renewal is arranged, not
    /// that somebody heard.
    ///
    /// # Errors
    /// [`Kind::NoCapacity`](crate::Kind::NoCapacity) when too many keys are announced;
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) when the node is stopping.
    async fn announce(&self, key: Key) -> Result<()>;

    /// Stops announcing `key`. Others may believe the last announcement for its time
    /// to live (45 s in the DHT). Withdrawing what was not announced succeeds.
    ///
    /// # Errors
    /// As [`announce`](Self::announce).
    async fn withdraw(&self, key: Key) -> Result<()>;

    /// Looks for peers that have `key`, other than this node. Cancel safe.
    fn find(&self, key: Key) -> Finding;

    /// Where a peer is, from memory if fresh, else by asking. Bounded by seconds.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) if nobody can say.
    async fn endpoint(&self, peer: PeerId) -> Result<Arc<Endpoint>>;

    /// The peers whose endpoint is known and fresh, without asking anybody; this node
    /// is not among them.
    fn known(&self) -> Vec<Arc<Endpoint>>;

    /// Says that the endpoint of `peer` did not work: it is asked for again before it
    /// is used again.
    fn forget(&self, peer: PeerId);
}
