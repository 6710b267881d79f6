//! Finds the best instance of a service, or has one allocated.
//!
//! The front asks [`Manager::pick`] where a request shall go and [`Manager::report`]s
//! what became of it. What is known answers at once; what is not makes a *flight*: a
//! search, and an allocation if the search finds nothing. One flight serves everyone
//! who waits for the same thing. The manager knows the [`Discovery`] and [`Mesh`]
//! ports, not libp2p, so all of this is tested without a network.
//!
//! Invariant: a request is never sent beyond its hard limit, and a client that goes
//! away never takes the work of others along.
//!
//! [`Discovery`]: lca::discovery::Discovery
//! [`Mesh`]: lca::mesh::Mesh

mod allocate;
mod allocators;
mod begun;
mod cache;
mod check;
mod claims;
mod explain;
mod find;
mod flight;
mod limit;
mod manager;
pub mod moving;
mod pilot;
mod policy;
mod reach;
mod relay;
mod replace;
mod representatives;
mod rooms;
mod scale;
mod service;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use lca::{
    InstanceId, Limits, RequestId, Requirements, ServiceHash, ServiceName,
    api::proto::Step,
    endpoint::Endpoint,
    headers::{Load, Refusal},
    metrics::{self, Metrics},
    specs::Cached,
};
use tokio::time::Instant;

pub use check::Checked;
pub use manager::Manager;
pub use relay::known::KnownSpecs;
pub use service::for_peers::ForPeers;

/// What a manager can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Requirements of this machine's clients, on top of each service's own.
    pub requirements: Requirements,
    /// Age from which what is known of a service is refreshed when it is used, behind
    /// the request: 30 s.
    pub hints_fresh: Duration,
    /// How often allocators are looked for: every 10 s.
    pub allocators_every: Duration,
    /// Where cold starts are counted, and requests of a front by service.
    pub metrics: Metrics,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            requirements: Requirements::default(),
            hints_fresh: Duration::from_secs(30),
            allocators_every: Duration::from_secs(10),
            metrics: Metrics::default(),
        }
    }
}

/// What a request needs.
#[derive(Clone, Debug)]
pub struct Wish {
    /// What the client asked for.
    pub service: ServiceName,
    /// What the request itself demands; it can only tighten what holds anyway.
    pub tighten: Requirements,
    /// Instances this request has been to in vain.
    pub tried: Vec<InstanceId>,
    /// When the client will have given up.
    pub deadline: Instant,
    /// Start an instance where none will do.
    pub allocate: bool,
    /// It could be sent elsewhere if an instance broke off: such a request may be the one
    /// that finds out whether an instance that failed works again.
    pub repeatable: bool,
    /// Which request it is for, in our logs.
    pub request: Option<RequestId>,
    /// What the service is, since when somebody asked: see [`Manager::resolve`].
    pub(crate) resolved: Option<(Instant, Arc<Cached>)>,
}

impl Wish {
    /// A first try for `service` without demands of its own, allocating if needed.
    pub fn new(service: ServiceName, deadline: Instant) -> Self {
        Self {
            service,
            tighten: Requirements::default(),
            tried: Vec::new(),
            deadline,
            allocate: true,
            repeatable: true,
            request: None,
            resolved: None,
        }
    }

    /// Since when it is [resolved](Manager::resolve), if it is.
    pub fn since(&self) -> Option<Instant> {
        self.resolved.as_ref().map(|(since, _)| *since)
    }
}

/// What is known of a service before it is known where its requests go.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What one request to it may be and take.
    pub limits: Limits,
    /// What it is counted under.
    pub counted: Arc<metrics::Service>,
}

/// Where a request shall go.
#[derive(Clone, Debug)]
pub struct Target {
    /// What the client asked for.
    pub service: ServiceName,
    /// What that means now.
    pub hash: ServiceHash,
    /// The instance that was chosen.
    pub instance: InstanceId,
    /// Where its peer is.
    pub endpoint: Arc<Endpoint>,
    /// What had to be done first, in order; empty when it was known.
    pub steps: Vec<Step>,
    /// What it is counted under.
    pub counted: Arc<metrics::Service>,
    /// It is under way until it is reported, or the last clone of this is dropped.
    pub(crate) ticket: Arc<moving::loads::Ticket>,
}

impl Target {
    /// The request's place at the instance, for whoever passes its answer on: from now on
    /// it counts as under way until that is dropped, whatever is reported. To be taken
    /// before the report, and once.
    pub fn under_way(&self) -> UnderWay {
        UnderWay(self.ticket.handed_on())
    }
}

/// A request that counts as under way at its instance as long as this is held.
#[derive(Debug)]
#[must_use = "the request is over as soon as this is dropped"]
pub struct UnderWay(#[expect(dead_code, reason = "held for its end")] moving::loads::Ticket);

/// What became of a request that was sent to a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The instance answered.
    Answered {
        /// How busy it is.
        load: Load,
        /// How long the request took on the way, if that could be told.
        way: Option<Duration>,
    },
    /// Its ingress refused; the application saw nothing.
    Refused(Refusal),
    /// Its peer could not be reached; nothing was sent.
    Unreachable,
    /// It broke off; the application may have acted.
    Broken,
    /// The request stood in this node's own line for a connection and was not sent. It
    /// says nothing against the instance or its peer: others are served there.
    Busy,
}
