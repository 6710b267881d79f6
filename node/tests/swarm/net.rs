//! Nodes for tests, and how to wait for what they should come to.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use lca::{
    PeerId, ServiceHash,
    config::Bootstrap,
    discovery::{Discovery, Found, Key},
    endpoint::Endpoint,
    shutdown::Tasks,
    testing::eventually,
};
use lca_node::{Config, Identity, Joined, Node, Timing, link::Links};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

/// Longest anything here may take; what is awaited comes much sooner, but handshakes
/// take their time without optimization on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Lives short enough to watch them end.
pub(crate) fn brisk() -> Timing {
    Timing {
        announce_every: Duration::from_millis(600),
        announcement_life: Duration::from_secs(2),
        settle: Duration::from_millis(100),
        retry_first: Duration::from_millis(100),
        retry_most: Duration::from_millis(500),
        alone_after: Duration::from_millis(300),
        ping: Duration::from_millis(500),
        ping_timeout: Duration::from_millis(1500),
        connect: Duration::from_secs(2),
        sweep: Duration::from_millis(300),
        ..Timing::default()
    }
}

/// One node with its runtime.
pub(crate) struct Running {
    pub(crate) node: Node,
    pub(crate) config: Config,
    tasks: Tasks,
    runtime: Option<Runtime>,
}

impl Running {
    pub(crate) async fn start(config: Config) -> lca::Result<Self> {
        let threads = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = threads.expect("a runtime");
        let tasks = Tasks::default();
        let (spawner, given) = (tasks.spawner(), config.clone());
        let bound = runtime.spawn(async move { Node::bind(given, &spawner).await });
        match bound.await.expect("binding does not panic") {
            // The mesh is not served: only the libp2p half is looked at here.
            Ok((node, _listener)) => Ok(Self { node, config, tasks, runtime: Some(runtime) }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// How others join through it.
    pub(crate) fn address(&self) -> Bootstrap {
        self.node.bootstrap_addresses().remove(0)
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.node.peer()
    }

    /// Takes the node away without a goodbye; what it was started with remains.
    pub(crate) fn crash(mut self) -> Config {
        let mut config = self.config.clone();
        config.listen.set_port(self.address().port);
        config.boot += 1;
        self.runtime.take().expect("it runs").shutdown_background();
        config
    }

    /// Stops it as a daemon does, and fails the test if it had to be forced.
    pub(crate) async fn stop(mut self) {
        let tasks = std::mem::take(&mut self.tasks);
        assert!(tasks.drain(Duration::from_secs(5)).await, "the node did not stop when asked");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a node of a test is started with.
pub(crate) fn config(bootstraps: Vec<Bootstrap>) -> Config {
    let config = Config::loopback(Identity::ephemeral(), &[]);
    Config { timing: brisk(), bootstraps, ..config }
}

/// So many nodes, each connected to all others; the first is everyone's bootstrap.
pub(crate) async fn network(size: usize, links: &Links) -> Vec<Running> {
    let nodes = started(size, links, brisk()).await;
    for (at, node) in nodes.iter().enumerate() {
        eventually(&format!("node {at} to know all others"), async || {
            let status = node.node.status().borrow().clone();
            (status.peers == size - 1).then_some(()).ok_or(status)
        })
        .await;
    }
    nodes
}

/// So many nodes that have joined.
pub(crate) async fn started(size: usize, links: &Links, timing: Timing) -> Vec<Running> {
    let mut nodes: Vec<Running> = Vec::new();
    for _ in 0..size {
        let bootstraps = nodes.first().map(Running::address).into_iter().collect();
        let config = Config { links: links.clone(), timing, ..config(bootstraps) };
        let node = Running::start(config).await.expect("starting a node");
        let stands = if nodes.is_empty() { Joined::Alone } else { Joined::Joined };
        let mut status = node.node.status();
        let joined = status.wait_for(|status| status.joined == Some(stands));
        timeout(PATIENCE, joined).await.expect("the node joins").expect("it runs");
        nodes.push(node);
    }
    nodes
}

pub(crate) fn some_service() -> Key {
    Key::Service(ServiceHash::from_sha256(rand::random()))
}

/// The endpoint of `provider`, once `node` finds it under `key`.
pub(crate) async fn finds(node: &Node, key: Key, provider: PeerId) -> Arc<Endpoint> {
    eventually(&format!("{provider:?} to be found"), async || {
        let found = found(node, key).await;
        let wanted = found.iter().find(|endpoint| endpoint.peer == provider);
        wanted.cloned().ok_or(found)
    })
    .await
}

/// Everyone that one find yields.
pub(crate) async fn found(node: &Node, key: Key) -> Vec<Arc<Endpoint>> {
    let found = node.find(key).filter_map(async |found| match found {
        Found::Endpoint(endpoint) => Some(endpoint),
        Found::Miss => None,
    });
    found.collect().await
}
