//! The front: the HTTP side on localhost, where programs ask for services by name.
//!
//! A request is routed to a service, the manager picks an instance, and the
//! request streams over the mesh to that peer's ingress and the answer back, neither
//! ever held whole. Invariants: an application sees a request at most once unless it
//! is idempotent, sees path and query byte for byte, and never believes a client about
//! who the client is.
//!
//! A connection may leave HTTP by an upgrade or `CONNECT`; its bytes then pass as they are.

mod body;
mod budget;
mod debug;
mod forward;
mod front;
mod grpc;
mod h2;
pub mod headers;
mod retry;
pub mod rewrite;
pub mod route;
mod socket;
mod times;
mod upgrade;
mod verdict;

use std::time::Duration;

use lca::config::Timeouts;
use lca_node::h1;

pub use front::Front;

/// What a front can be told.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Connections of clients at once; one more is answered 503 and closed. A client
    /// has one request at a time on each, so this bounds requests too.
    pub max_connections: usize,
    /// For the head of a request, and for a client's unused connection.
    pub header: Duration,
    /// For finding or starting an instance: a start's own deadline is at most 60 s,
    /// plus fetching what it runs.
    pub start: Duration,
    /// How often a request that an application may have seen is sent at most, where that
    /// is safe.
    pub attempts: usize,
    /// How many instances are tried at most that certainly did not see it: they are gone,
    /// stopping or full. Each costs a round trip, and what is known may be old.
    pub refusals: usize,
    /// Bytes of a request's body held for another attempt, if it says that it is no
    /// longer than this.
    pub hold: u64,
    /// How long open requests get to finish once the front was asked to stop.
    pub grace: Duration,
    /// From the head of a request to the last byte of its answer; none for no limit.
    pub request: Option<Duration>,
    /// Towards peers. `head` is what a long poll may take, `quiet` a stream of events or
    /// an upload: give them longer ones if services here need more than five minutes.
    /// `stall` holds for clients that take nothing, too.
    pub peers: h1::Config,
    /// Whether to listen where other machines can reach it. Nothing but the address
    /// guards a front.
    pub allow_non_loopback: bool,
}

impl Config {
    /// Takes up what a configuration file says of times.
    pub fn keep_to(&mut self, timeouts: &Timeouts) {
        let Timeouts { header, connect, answer, quiet, request } = *timeouts;
        self.header = header.unwrap_or(self.header);
        self.peers.connect = connect.unwrap_or(self.peers.connect);
        self.peers.head = answer.unwrap_or(self.peers.head);
        self.peers.quiet = quiet.unwrap_or(self.peers.quiet);
        self.request = request.or(self.request);
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // With their descriptors towards peers still under common limits (16 Ki).
            max_connections: 4096,
            header: Duration::from_secs(10),
            start: Duration::from_secs(75),
            attempts: 3,
            refusals: 64,
            hold: 64 << 10,
            request: None,
            grace: Duration::from_secs(30),
            peers: h1::Config {
                connect: Duration::from_secs(3),
                // Far longer than the idle time-out of an instance, which is no limit on
                // requests. A peer that died is noticed by its probes long before.
                head: Duration::from_secs(300),
                quiet: Duration::from_secs(300),
                stall: Duration::from_secs(60),
                // Ingress closes after 90 s.
                keep: Duration::from_secs(60),
                // A burst's worth to one peer; each costs a descriptor on both sides.
                max_idle: 128,
            },
            allow_non_loopback: false,
        }
    }
}
