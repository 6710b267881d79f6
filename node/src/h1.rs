//! HTTP/1.1 between two processes: what the front uses towards a peer's ingress, and
//! ingress towards an instance.
//!
//! hyper speaks the protocol; what it leaves out is here: a [`Pool`] that says whether
//! a request that failed can have been seen, bodies and connections that do not wait
//! for ever, and the [`hygiene`] a proxy owes. One invariant: a connection is used
//! again only after a request and its answer both came to their clean end on it.

mod body;
pub mod hygiene;
mod io;
mod lease;
mod line;
mod pool;
mod tunnel;

pub use body::{Body, BoxError, Metered, Patient, empty, full};
pub use io::Bounded;
pub use pool::{Cause, Config, Connected, Dial, Failed, HeadAfter, Pool, Waits};
pub use tunnel::{After, Duplex, Joint, Switched, Tunnel};

/// What [`mux`](crate::mux) has in common with this.
pub(crate) mod parts {
    pub(crate) use super::{
        body::{Outgoing, Sent},
        lease::in_time,
    };
}

#[cfg(test)]
mod tests;
