//! What a node can say about itself without asking its swarm: how it stands, and what
//! has been counted.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use lca::{
    config::Bootstrap,
    metrics::{self, Counter, Dropped, Metrics},
};
use libp2p::kad::QueryStats;

use super::actor::Purpose;

/// How a node stands with the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joined {
    /// It knows peers that will keep its announcements.
    Joined,
    /// It has no bootstrap, or none answered in time. It goes on trying.
    Alone,
}

/// What a node can say about its place in the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `None` until it is known.
    pub joined: Option<Joined>,
    /// Peers connected over libp2p.
    pub peers: usize,
    /// Bootstraps configured, this node itself not counted.
    pub bootstraps: usize,
    /// Those of them that are connected.
    pub bootstraps_reached: usize,
    /// Each of them, in the order they were given.
    pub bootstrap_states: Vec<BootstrapState>,
    /// Keys this node announces.
    pub announced: usize,
    /// Announcements of others kept for the DHT.
    pub announcements_held: usize,
    /// Endpoint records kept for the DHT, its own included.
    pub records_held: usize,
    /// Records and messages dropped since the start: forged, expired, oversized,
    /// malformed.
    pub refused: u64,
}

/// How a node stands with one peer it was told to join through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapState {
    /// Where it is, and who it must be.
    pub at: Bootstrap,
    /// Whether there is a connection.
    pub connected: bool,
    /// Why the last attempt failed. `None` while connected.
    pub last_error: Option<String>,
}

/// What finds have cost since the start: the queries for providers and for their
/// records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FindStats {
    /// Finds that are over.
    pub finds: u64,
    /// Requests sent for them.
    pub requests: u64,
    /// Requests that were answered while the query ran.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// What the actor counts and handles read, without a message.
#[derive(Debug)]
pub(crate) struct Counters {
    metrics: Metrics,
    /// Requests of finds, by how they ended.
    answered: Counter,
    failed: Counter,
    unfinished: Counter,
    dropped: [Counter; Dropped::ALL.len()],
    /// Where the swarm can be dialled.
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Counters {
    pub(crate) fn new(metrics: Metrics) -> Self {
        let [answered, failed, unfinished] = ["answered", "failed", "unfinished"]
            .map(|outcome| metrics.node.find_requests.with_label_values(&[outcome]));
        let dropped =
            Dropped::ALL.map(|what| metrics.node.dropped.with_label_values(&[what.as_str()]));
        let addresses = Mutex::default();
        Self { metrics, answered, failed, unfinished, dropped, addresses }
    }

    pub(crate) fn node(&self) -> &metrics::Node {
        &self.metrics.node
    }

    pub(crate) fn refused(&self, what: Dropped) {
        self.node().dropped.with_label_values(&[what.as_str()]).inc();
    }

    pub(crate) fn refused_so_far(&self) -> u64 {
        self.dropped.iter().map(Counter::get).sum()
    }

    pub(crate) fn count(&self, purpose: Purpose, stats: &QueryStats) {
        match purpose {
            Purpose::Tell => return,
            Purpose::Find(_) => self.node().finds.inc(),
            Purpose::Value(_) => {}
        }
        let (answered, failed) = (stats.num_successes(), stats.num_failures());
        let unfinished = stats.num_requests().saturating_sub(answered).saturating_sub(failed);
        self.answered.inc_by(answered.into());
        self.failed.inc_by(failed.into());
        self.unfinished.inc_by(unfinished.into());
    }

    pub(crate) fn find_stats(&self) -> FindStats {
        let [answered, failed, unfinished] =
            [&self.answered, &self.failed, &self.unfinished].map(Counter::get);
        FindStats {
            finds: self.node().finds.get(),
            requests: answered + failed + unfinished,
            answered,
            failed,
        }
    }

    pub(crate) fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
