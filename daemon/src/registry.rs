//! The registry daemon: keeps specs and artifacts for whoever asks.

use lca::{Result, endpoint::Role};
use lca_node::{Node, mesh::Handlers};
use lca_registry::Registry;

use crate::{
    base::{Addresses, Base, Running, Settings},
    data::DataDir,
};

/// A registry that runs.
#[derive(Debug)]
pub struct App {
    running: Running,
    registry: Registry,
}

impl App {
    /// Opens the store and binds every socket, then starts.
    ///
    /// # Errors
    /// If a port is taken, or the store is damaged or in use; nothing is running then.
    pub async fn build(settings: Settings) -> Result<Self> {
        // Before anything is bound: a second daemon with our identity stays off the network.
        let dir = DataDir::take(&settings.data_dir).await?;
        let registry = Registry::open(&settings.data_dir)?;
        let base = Base::bind(&settings, Role::Registry, dir).await?;
        let registry = registry.counting_in(base.metrics.clone());
        let local = base.bind_local(&settings, base.mesh_port())?;
        let grpc = base.peer_routes().add_service(registry.server());
        let running = base.serve(Handlers { grpc, http: None }, local, None).await?;
        Ok(Self { running, registry })
    }

    pub(crate) fn running(&self) -> &Running {
        &self.running
    }

    /// Who it is and where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.running.addresses
    }

    /// Its node of the network.
    pub fn node(&self) -> &Node {
        &self.running.node
    }

    /// What it keeps, for programs in the same process.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Resolves when a task that should not end has ended.
    pub async fn failed(&self) {
        self.running.failed().await;
    }

    /// Stops. True if nothing had to be forced.
    pub async fn drain(self) -> bool {
        self.running.drain().await
    }
}
