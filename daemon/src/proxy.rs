//! The proxy daemon in client mode: a front on localhost for this machine's programs.

use std::net::SocketAddr;

use lca::{Result, ServiceName, endpoint::Role};
use lca_manager::Manager;
use lca_node::{Node, mesh::Handlers};
use lca_proxy::Front;

use crate::base::{Addresses, Base, Running, Settings};

/// What a proxy can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all daemons can be told.
    pub settings: Settings,
    /// Where the front listens; loopback.
    pub front: SocketAddr,
    /// Its time-outs and limits.
    pub http: lca_proxy::Config,
    /// What it represents in server mode; none in client mode.
    pub external: Option<External>,
}

/// A service that nobody allocates: it runs by itself, and a proxy represents it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// The name it is registered under.
    pub service: ServiceName,
    /// Where it answers. Need not be on this machine: the operator names it.
    pub address: SocketAddr,
}

/// A proxy that runs.
#[derive(Debug)]
pub struct App {
    running: Running,
}

impl App {
    /// Binds every socket, then starts.
    ///
    /// # Errors
    /// If a port is taken; nothing is running then.
    pub async fn build(config: Config) -> Result<Self> {
        let base = Base::bind(&config.settings, Role::Proxy).await?;
        let front =
            Front::bind(config.front, config.http, base.manager.clone(), base.node.clone()).await?;
        let address = front.address();
        let local = base.bind_local(&config.settings, address.port())?;
        let grpc = base.peer_routes().add_service(base.manager.specs_server());
        front.serve(&base.spawner);
        let running = base.serve(Handlers { grpc, http: None }, local, Some(address)).await?;
        Ok(Self { running })
    }

    /// Who it is and where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.running.addresses
    }

    /// Its node of the network.
    pub fn node(&self) -> &Node {
        &self.running.node
    }

    /// What decides where requests go.
    pub fn manager(&self) -> &Manager {
        &self.running.manager
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
