//! A node: its libp2p half and its mesh half, bound together and seen as the two ports
//! that everything else is written against.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use lca::{
    PeerId, Requirements, Result,
    config::{Bootstrap, Host},
    discovery::{Discovery, Finding, Key},
    endpoint::Endpoint,
    mesh::{Distance, Mesh},
    shutdown::Spawner,
};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::{
    Config, FindStats, Joined, Status, Traffic,
    link::Links,
    mesh::{self, Alpn},
    swarm,
};

/// A node of the network. Cheap to clone; clones are the same node.
#[derive(Clone, Debug)]
pub struct Node {
    swarm: swarm::Handle,
    mesh: mesh::Client,
    links: Links,
}

impl Node {
    /// Binds every socket and starts looking for peers. Nothing is accepted on the mesh
    /// before the listener is told to serve; until then connections wait.
    ///
    /// # Errors
    /// [`lca::Kind::Conflict`] if a port is taken, [`lca::Kind::FailedPrecondition`] if
    /// an address cannot be bound otherwise; both name it. Then nothing is running.
    pub async fn bind(config: Config, spawner: &Spawner) -> Result<(Self, mesh::Listener)> {
        let Config { identity, roles, listen, mesh_listen, .. } = config;
        let Config { advertise, bootstraps, remembered, boot, links, timing, .. } = config;
        let Config { max_connections, metrics, .. } = config;
        let (at, counted) = (mesh_listen, metrics.clone());
        let listener =
            mesh::Listener::bind(at, &identity, timing.mesh, max_connections, counted).await?;
        let client =
            mesh::Client::new(&identity, links.clone(), timing.mesh, metrics.clone(), spawner)?;
        let mesh = listener.address();
        let setup = swarm::Setup {
            identity,
            roles,
            listen,
            mesh,
            advertise,
            bootstraps,
            remembered,
            boot,
            max_connections,
            links,
            timing,
            metrics,
        };
        let links = setup.links.clone();
        let swarm = swarm::Handle::start(setup, spawner).await?;
        Ok((Self { swarm, mesh: client, links }, listener))
    }

    /// Who this node is.
    pub fn peer(&self) -> PeerId {
        self.swarm.local()
    }

    /// Where the mesh can be reached, as others are told.
    pub fn mesh_addresses(&self) -> Vec<SocketAddr> {
        self.swarm.own().mesh.clone()
    }

    /// What others give as `--bootstrap` to join through this node.
    pub fn bootstrap_addresses(&self) -> Vec<Bootstrap> {
        let at = |address: SocketAddr| Bootstrap {
            host: Host::Ip(address.ip()),
            port: address.port(),
            peer: self.peer(),
        };
        self.swarm.addresses().into_iter().map(at).collect()
    }

    /// The peers to come back through if the bootstraps are gone at the next start, the
    /// best first: at most [`MAX_CONTACTS`](crate::MAX_CONTACTS). They are what
    /// [`Config::remembered`] takes.
    pub fn contacts(&self) -> Vec<Bootstrap> {
        self.swarm.contacts()
    }

    /// Resolves once the node knows peers that will keep its announcements, or knows
    /// that it is alone: no bootstrap is configured, or all were tried for a while
    /// ([`Timing::alone_after`](crate::Timing::alone_after)). An announcement made
    /// earlier is repeated when somebody appears. Cancel safe.
    pub async fn joined(&self) -> Joined {
        self.swarm.joined().await
    }

    /// How the node stands, as it changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.swarm.status()
    }

    /// Bytes of libp2p since the start.
    pub fn traffic(&self) -> Traffic {
        self.swarm.traffic()
    }

    /// What finds have cost since the start.
    pub fn find_stats(&self) -> FindStats {
        self.swarm.find_stats()
    }

    /// Joins through these from now on; connections to the former ones stay. Cancel safe.
    ///
    /// # Errors
    /// If the node is stopping.
    pub async fn join_through(&self, bootstraps: Vec<Bootstrap>) -> Result<()> {
        self.swarm.join_through(bootstraps).await
    }

    /// A fresh verified connection, for those who keep a pool of their own. Connecting
    /// has a deadline of its own. Cancel safe.
    ///
    /// # Errors
    /// [`lca::Kind::Unavailable`] if no address of it answers, or somebody else does.
    pub async fn connect(&self, to: &Endpoint, alpn: Alpn) -> Result<mesh::Stream> {
        self.mesh.connect(to, alpn).await
    }
}

#[async_trait]
impl Discovery for Node {
    fn local(&self) -> PeerId {
        self.peer()
    }

    fn own(&self) -> Arc<Endpoint> {
        self.swarm.own()
    }

    async fn announce(&self, key: Key) -> Result<()> {
        self.swarm.announce(key).await
    }

    async fn withdraw(&self, key: Key) -> Result<()> {
        self.swarm.withdraw(key).await
    }

    fn find(&self, key: Key) -> Finding {
        self.swarm.find(key)
    }

    async fn endpoint(&self, peer: PeerId) -> Result<Arc<Endpoint>> {
        self.swarm.endpoint(peer).await
    }

    fn known(&self) -> Vec<Arc<Endpoint>> {
        self.swarm.known()
    }

    fn forget(&self, peer: PeerId) {
        self.swarm.forget(peer);
    }
}

#[async_trait]
impl Mesh for Node {
    async fn grpc(&self, to: &Endpoint) -> Result<Channel> {
        self.mesh.grpc(to).await
    }

    fn rtt(&self, peer: PeerId) -> Option<Duration> {
        self.mesh.rtt(peer)
    }

    fn distance(&self, peer: PeerId) -> Option<Distance> {
        self.mesh.distance(peer)
    }

    fn observed(&self, peer: PeerId, took: Duration) {
        self.mesh.observed(peer, took);
    }

    fn link(&self, peer: PeerId) -> Option<Arc<str>> {
        self.links.name(self.peer(), peer)
    }

    fn is_silent(&self, peer: PeerId) -> bool {
        self.mesh.is_silent(peer)
    }

    fn is_gone(&self, peer: PeerId) -> bool {
        self.mesh.is_gone(peer)
    }

    async fn measure(&self, to: &Endpoint) -> Result<Duration> {
        self.mesh.measure(to).await
    }

    fn watch(&self, to: &Endpoint) {
        self.mesh.watch(to);
    }

    fn watch_near(&self, to: &Endpoint, limits: &Requirements) {
        self.mesh.watch_near(to, limits);
    }

    fn watch_idly(&self, to: &Endpoint) {
        self.mesh.watch_idly(to);
    }
}
