//! A network in one process: the twin of `lca-node` for tests of policy. Finds are
//! answered from a shared table, gRPC runs over in-memory pipes, distances are set by
//! hand.
//!
//! It fails the way the real one does: a peer that is [`Network::take_down`]n stays
//! announced, and connecting to it fails.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::stream;
use hyper_util::rt::TokioIo;
use tokio::{io::DuplexStream, sync::mpsc, time::Instant};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{service::Routes, transport::Channel};

use super::{Discovery, Finding, Found, Key};
use crate::{
    Error, Kind, PeerId, Requirements, Result,
    api::{self, Caller, Identified},
    endpoint::{Endpoint, Role},
    mesh::{Distance, Felt, Mesh, Smoothed},
};

/// Bytes a pipe holds before its writer waits.
const PIPE: usize = 256 << 10;
/// Connections waiting to be accepted.
const BACKLOG: usize = 64;

type Incoming = Identified<DuplexStream>;

/// The network all its peers share.
#[derive(Clone, Debug, Default)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    peers: HashMap<PeerId, (Arc<Endpoint>, Option<mpsc::Sender<Incoming>>)>,
    announced: HashMap<Key, BTreeSet<PeerId>>,
    rtt: HashMap<(PeerId, PeerId), Duration>,
    /// What requests took, where any were reported.
    felt: HashMap<(PeerId, PeerId), (Felt, Smoothed)>,
    down: HashSet<PeerId>,
    mute: HashSet<PeerId>,
    /// Nobody knows how far they are until one has waited so long.
    slow: HashMap<PeerId, Duration>,
    /// Finds so far.
    finds: HashMap<Key, u64>,
}

/// One peer of a [`Network`].
#[derive(Clone, Debug)]
pub struct Peer {
    id: PeerId,
    network: Network,
}

impl Network {
    /// Adds a peer with these roles, and announces them.
    pub fn join(&self, roles: &[Role]) -> Peer {
        let id = PeerId::from_public_key(rand::random());
        let mut state = self.lock();
        let port = 1024 + state.peers.len() as u16;
        let endpoint = Endpoint {
            peer: id,
            roles: roles.to_vec(),
            mesh: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))],
            boot: 1,
            sequence: 1,
            ttl: Duration::from_secs(600),
            version: crate::VERSION.to_owned(),
        };
        state.peers.insert(id, (Arc::new(endpoint), None));
        for role in roles {
            state.announced.entry(Key::Role(*role)).or_default().insert(id);
        }
        Peer { id, network: self.clone() }
    }

    /// Sets the round trip between two peers, both ways. 1 ms where nothing was set.
    pub fn set_rtt(&self, a: PeerId, b: PeerId, rtt: Duration) {
        let mut state = self.lock();
        state.rtt.insert((a, b), rtt);
        state.rtt.insert((b, a), rtt);
    }

    /// Makes connecting to `peer` fail from now on; what it announced stays.
    pub fn take_down(&self, peer: PeerId) {
        self.lock().down.insert(peer);
    }

    /// Makes `peer` one of which nothing comes any more: whoever connects to it waits.
    pub fn cut_off(&self, peer: PeerId) {
        self.lock().mute.insert(peer);
    }

    /// Makes `peer` one whose distance nobody knows, and that answers its first probe after
    /// so long: it is out of breath.
    pub fn slow_down(&self, peer: PeerId, first_probe: Duration) {
        self.lock().slow.insert(peer, first_probe);
    }

    /// Undoes [`take_down`](Self::take_down) and [`cut_off`](Self::cut_off).
    pub fn bring_up(&self, peer: PeerId) {
        let mut state = self.lock();
        state.down.remove(&peer);
        state.mute.remove(&peer);
    }

    /// How often `key` has been looked for, by all peers together.
    pub fn finds(&self, key: Key) -> u64 {
        self.lock().finds.get(&key).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing here panics while holding it; after a test's panic the table is good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Serves gRPC to the other peers until the runtime ends.
    pub fn serve(&self, routes: Routes) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        if let Some((_, server)) = self.network.lock().peers.get_mut(&self.id) {
            *server = Some(sender);
        }
        let incoming = ReceiverStream::new(receiver).map(Ok::<_, std::io::Error>);
        tokio::spawn(api::server().add_routes(routes).serve_with_incoming(incoming));
    }

    /// Lets the other peers connect and answers nothing, until [`serve`](Self::serve).
    pub fn stall(&self) {
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        if let Some((_, server)) = self.network.lock().peers.get_mut(&self.id) {
            *server = Some(sender);
        }
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Some(connection) = receiver.recv().await {
                open.push(connection);
            }
        });
    }

    fn server_of(&self, peer: PeerId) -> Result<mpsc::Sender<Incoming>> {
        let state = self.network.lock();
        let server = state.peers.get(&peer).and_then(|(_, server)| server.clone());
        server.filter(|_| !state.down.contains(&peer)).ok_or_else(|| {
            Error::new(Kind::Unavailable, format!("peer {} cannot be reached", peer.short()))
        })
    }
}

#[async_trait]
impl Discovery for Peer {
    fn local(&self) -> PeerId {
        self.id
    }

    fn own(&self) -> Arc<Endpoint> {
        let state = self.network.lock();
        state
            .peers
            .get(&self.id)
            .map(|(endpoint, _)| endpoint.clone())
            .expect("a peer never leaves the table")
    }

    async fn announce(&self, key: Key) -> Result<()> {
        self.network.lock().announced.entry(key).or_default().insert(self.id);
        Ok(())
    }

    async fn withdraw(&self, key: Key) -> Result<()> {
        if let Some(peers) = self.network.lock().announced.get_mut(&key) {
            peers.remove(&self.id);
        }
        Ok(())
    }

    fn find(&self, key: Key) -> Finding {
        let mut state = self.network.lock();
        *state.finds.entry(key).or_default() += 1;
        let providers =
            state.announced.get(&key).into_iter().flatten().filter(|peer| **peer != self.id);
        let endpoints = providers.filter_map(|peer| state.peers.get(peer));
        let mut found: Vec<_> =
            endpoints.map(|(endpoint, _)| Found::Endpoint(endpoint.clone())).collect();
        if found.is_empty() {
            found.push(Found::Miss);
        }
        Box::pin(stream::iter(found))
    }

    async fn endpoint(&self, peer: PeerId) -> Result<Arc<Endpoint>> {
        let state = self.network.lock();
        let known = state.peers.get(&peer).map(|(endpoint, _)| endpoint.clone());
        known.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("peer {} is not known", peer.short()))
        })
    }

    fn known(&self) -> Vec<Arc<Endpoint>> {
        let state = self.network.lock();
        let others = state.peers.iter().filter(|(peer, _)| **peer != self.id);
        others.map(|(_, (endpoint, _))| endpoint.clone()).collect()
    }

    fn forget(&self, _peer: PeerId) {}
}

impl Peer {
    /// Who waits has a deadline of its own.
    async fn wait_if_mute(&self, peer: PeerId) {
        if self.network.lock().mute.contains(&peer) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Mesh for Peer {
    async fn grpc(&self, to: &Endpoint) -> Result<Channel> {
        self.wait_if_mute(to.peer).await;
        let server = self.server_of(to.peer)?;
        let caller = Caller::Peer(self.id);
        let connector = tower::service_fn(move |_| {
            let server = server.clone();
            async move {
                let (ours, theirs) = tokio::io::duplex(PIPE);
                server
                    .send(Identified::new(theirs, caller))
                    .await
                    .map_err(|_| std::io::Error::other("the peer has stopped"))?;
                Ok::<_, std::io::Error>(TokioIo::new(ours))
            }
        });
        api::client("peer.invalid")?.connect_with_connector(connector).await.map_err(|error| {
            Error::new(Kind::Unavailable, "the peer cannot be reached").because(error)
        })
    }

    fn rtt(&self, peer: PeerId) -> Option<Duration> {
        let state = self.network.lock();
        let unknown = state.down.contains(&peer) || state.mute.contains(&peer);
        if unknown || state.slow.contains_key(&peer) {
            return None;
        }
        if peer == self.id {
            return Some(Duration::ZERO);
        }
        Some(state.rtt.get(&(self.id, peer)).copied().unwrap_or(Duration::from_millis(1)))
    }

    /// The distance that was set, which never strays, and what requests reported.
    fn distance(&self, peer: PeerId) -> Option<Distance> {
        let median = self.rtt(peer)?;
        let state = self.network.lock();
        let Some((felt, smoothed)) = state.felt.get(&(self.id, peer)) else {
            return Some(Distance::exactly(median));
        };
        let (ewma, deviation) = smoothed.get().unwrap_or((median, Duration::ZERO));
        let felt = felt.contradicts(median, Instant::now());
        Some(Distance { median, least: median, ewma, deviation, felt })
    }

    fn observed(&self, peer: PeerId, took: Duration) {
        let mut state = self.network.lock();
        let (felt, smoothed) = state.felt.entry((self.id, peer)).or_default();
        if let Some(least) = felt.observed(took, Instant::now()) {
            smoothed.add(least);
        }
    }

    fn is_silent(&self, peer: PeerId) -> bool {
        let state = self.network.lock();
        state.down.contains(&peer) || state.mute.contains(&peer)
    }

    fn is_gone(&self, peer: PeerId) -> bool {
        self.is_silent(peer)
    }

    async fn measure(&self, to: &Endpoint) -> Result<Duration> {
        self.wait_if_mute(to.peer).await;
        self.server_of(to.peer)?;
        let slow = self.network.lock().slow.get(&to.peer).copied();
        if let Some(first_probe) = slow {
            tokio::time::sleep(first_probe).await;
            self.network.lock().slow.remove(&to.peer);
        }
        self.rtt(to.peer).ok_or_else(|| Error::new(Kind::Unavailable, "the peer does not answer"))
    }

    fn watch(&self, _to: &Endpoint) {}

    fn watch_near(&self, _to: &Endpoint, _limits: &Requirements) {}

    fn watch_idly(&self, _to: &Endpoint) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::suite;

    #[tokio::test]
    async fn the_twin_passes_the_suite() {
        let network = Network::default();
        let peers: [Arc<dyn Discovery>; 3] =
            std::array::from_fn(|_| Arc::new(network.join(&[])) as _);
        suite::passes(peers).await;
    }
}
