//! A place for one node of a fleet: started there, crashed, started again.

use std::{fmt, time::Duration};

use lca::{
    Result,
    config::{Bootstrap, Host},
};
use lca_daemon::{Addresses, Settings, allocator, proxy, registry};
use tokio::runtime::{Builder, Runtime};

/// A runtime without a worker that is stuck is gone in no time.
const CRASHED_WITHIN: Duration = Duration::from_secs(5);

/// A place for one node, and the node while it is up.
#[derive(Debug)]
pub(crate) struct Slot<A> {
    pub(crate) settings: Settings,
    up: Option<Node<A>>,
}

/// A node on a runtime of its own.
struct Node<A> {
    app: A,
    runtime: Runtime,
}

impl<A> fmt::Debug for Node<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").finish_non_exhaustive()
    }
}

pub(crate) trait HasAddresses {
    fn addresses(&self) -> &Addresses;
}

impl HasAddresses for registry::App {
    fn addresses(&self) -> &Addresses {
        self.addresses()
    }
}

impl HasAddresses for allocator::App {
    fn addresses(&self) -> &Addresses {
        self.addresses()
    }
}

impl HasAddresses for proxy::App {
    fn addresses(&self) -> &Addresses {
        self.addresses()
    }
}

impl<A: Send + 'static> Slot<A> {
    /// A place with nothing in it yet.
    pub(crate) fn empty(settings: Settings) -> Self {
        Self { settings, up: None }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.is_some()
    }

    pub(crate) fn app(&self) -> &A {
        &self.up.as_ref().expect("the node is up").app
    }

    pub(crate) fn crash(&mut self) {
        if let Some(Node { app, runtime }) = self.up.take() {
            runtime.shutdown_background();
            drop(app);
        }
    }

    /// Returns when all that the node held is free again, as after the end of a process.
    pub(crate) async fn crash_and_wait(&mut self) {
        if let Some(Node { app, runtime }) = self.up.take() {
            let dropped = tokio::task::spawn_blocking(move || {
                runtime.shutdown_timeout(CRASHED_WITHIN);
                drop(app);
            });
            dropped.await.expect("dropping a node does not panic");
        }
    }

    pub(crate) async fn start<F>(&mut self, build: impl FnOnce(Settings) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = Result<A>> + Send + 'static,
    {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let built = runtime.spawn(build(self.settings.clone())).await;
        match built.map_err(anyhow::Error::from).and_then(|app| Ok(app?)) {
            Ok(app) => {
                self.up = Some(Node { app, runtime });
                Ok(())
            }
            Err(error) => {
                // Dropping a runtime blocks, which is not allowed here.
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    pub(crate) async fn drain<F>(mut self, drain: impl FnOnce(A) -> F)
    where
        F: Future<Output = bool> + Send + 'static,
    {
        if let Some(Node { app, runtime }) = self.up.take() {
            let in_time = runtime.spawn(drain(app)).await.expect("draining does not panic");
            runtime.shutdown_background();
            assert!(in_time, "a task outlived its grace period");
        }
    }
}

impl<A: HasAddresses + Send + 'static> Slot<A> {
    pub(crate) fn addresses(&self) -> &Addresses {
        self.app().addresses()
    }

    /// Makes a restart listen where the first start did, so that the others find it.
    pub(crate) fn keep_ports(&mut self) {
        let addresses = self.addresses().clone();
        if let Some(mesh) = addresses.mesh.first() {
            self.settings.mesh_listen = *mesh;
        }
        if let Some(Bootstrap { host: Host::Ip(ip), port, .. }) = addresses.bootstraps.first() {
            self.settings.listen = (*ip, *port).into();
        }
    }
}
