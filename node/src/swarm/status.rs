//! What a node can say about itself without asking its swarm: how it stands, and what
//! has been counted.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lca::config::Bootstrap;
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
#[derive(Debug, Default)]
pub(crate) struct Counters {
    refused: AtomicU64,
    finds: AtomicU64,
    requests: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    /// Where the swarm can be dialled.
    addresses: Mutex<Vec<SocketAddr>>,
}

impl Counters {
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn refused_so_far(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, purpose: Purpose, stats: &QueryStats) {
        let add = |counter: &AtomicU64, by: u32| counter.fetch_add(by.into(), Ordering::Relaxed);
        match purpose {
            Purpose::Tell => return,
            Purpose::Find(_) => drop(add(&self.finds, 1)),
            Purpose::Value(_) => {}
        }
        add(&self.requests, stats.num_requests());
        add(&self.answered, stats.num_successes());
        add(&self.failed, stats.num_failures());
    }

    pub(crate) fn find_stats(&self) -> FindStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FindStats {
            finds: read(&self.finds),
            requests: read(&self.requests),
            answered: read(&self.answered),
            failed: read(&self.failed),
        }
    }

    pub(crate) fn set_addresses(&self, addresses: Vec<SocketAddr>) {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
