//! How nodes talk: identity, the libp2p swarm and its DHT, endpoint records, and the
//! mesh of TLS connections between peers.
//!
//! A [`Node`] is what the roles hold. It answers two questions for them: who has
//! something and where ([`lca::discovery::Discovery`], by libp2p), and how to talk to
//! that peer ([`lca::mesh::Mesh`], by TLS that proves the PeerId). Every socket of a
//! node is bound in [`Node::bind`], with real ports known before anything is served.
//!
//! This is the only crate that links libp2p.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use lca::{config::Bootstrap, endpoint::Role, metrics::Metrics};

use link::Links;

mod book;
pub mod h1;
pub mod h2c;
pub mod identity;
pub mod link;
pub mod mesh;
pub mod mux;
mod node;
pub mod record;
mod store;
mod swarm;

pub use identity::Identity;
pub use node::Node;
pub use swarm::{BootstrapState, FindStats, Joined, MAX_CONTACTS, Status, Traffic};

/// What a node is to be.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who it is.
    pub identity: Identity,
    /// What it does. Registries and allocators are announced as such.
    pub roles: Vec<Role>,
    /// Where libp2p listens; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where the mesh listens; port 0 lets the kernel choose.
    pub mesh_listen: SocketAddr,
    /// The addresses others are told, instead of those it listens on.
    pub advertise: Vec<IpAddr>,
    /// Through whom to join.
    pub bootstraps: Vec<Bootstrap>,
    /// Peers met before, tried too until they are met again. They are not counted as
    /// bootstraps: a node with no others does not wait for them.
    pub remembered: Vec<Bootstrap>,
    /// Counts the starts with this identity: greater than at every earlier one.
    pub boot: u64,
    /// Connections of peers over the mesh at once; one more is closed.
    pub max_connections: usize,
    /// What is done to its links, for tests.
    pub links: Links,
    /// How long things take.
    pub timing: Timing,
    /// Where it counts.
    pub metrics: Metrics,
}

impl Config {
    /// A node on this machine alone, on ports the kernel chooses.
    pub fn loopback(identity: Identity, roles: &[Role]) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            identity,
            roles: roles.to_vec(),
            listen: any,
            mesh_listen: any,
            advertise: Vec::new(),
            bootstraps: Vec::new(),
            remembered: Vec::new(),
            boot: 1,
            max_connections: mesh::CONNECTIONS,
            links: Links::default(),
            timing: Timing::default(),
            metrics: Metrics::default(),
        }
    }
}

/// How often and how long. All nodes of one network should agree on the lives; tests
/// shorten them.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often an announcement is renewed: three times within its life, so that two
    /// may be lost.
    pub announce_every: Duration,
    /// How long others believe an announcement.
    pub announcement_life: Duration,
    /// How often the endpoint record is put into the DHT: twice within its life.
    pub value_every: Duration,
    /// How long others believe an endpoint record; whole seconds.
    pub value_life: Duration,
    /// Least time between two announcements of one thing, however many peers appear.
    pub settle: Duration,
    /// Longest a query may take: by then what it could bring is of no use to a request.
    pub query: Duration,
    /// Longest one peer may take to answer within a query.
    pub request: Duration,
    /// Longest a dial may take, handshakes included.
    pub connect: Duration,
    /// How often connections are probed.
    pub ping: Duration,
    /// A connection that does not answer a probe for so long is closed.
    pub ping_timeout: Duration,
    /// Wait before a bootstrap is dialled again, at first.
    pub retry_first: Duration,
    /// The same after many attempts.
    pub retry_most: Duration,
    /// How long bootstraps are tried before the node says that it is alone.
    pub alone_after: Duration,
    /// Least time before a find says that it missed: a round trip within a site, and
    /// the computer busy.
    pub miss_floor: Duration,
    /// How often what has expired is dropped, and what will be is asked for again.
    pub sweep: Duration,
    /// Of the mesh.
    pub mesh: mesh::Timing,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            announce_every: Duration::from_secs(15),
            announcement_life: Duration::from_secs(45),
            value_every: Duration::from_secs(240),
            value_life: Duration::from_secs(600),
            settle: Duration::from_millis(500),
            query: Duration::from_secs(5),
            request: Duration::from_secs(2),
            connect: Duration::from_secs(3),
            ping: Duration::from_secs(15),
            ping_timeout: Duration::from_secs(10),
            retry_first: Duration::from_secs(1),
            retry_most: Duration::from_secs(30),
            alone_after: Duration::from_secs(3),
            miss_floor: Duration::from_millis(50),
            sweep: Duration::from_secs(5),
            mesh: mesh::Timing::default(),
        }
    }
}
