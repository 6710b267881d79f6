//! The proxy daemon: a front on localhost for this machine's programs, and in server
//! mode the representative of an external service.

use std::{net::SocketAddr, sync::Arc};

use lca::{Result, ServiceName, endpoint::Role};
use lca_ingress::Ingress;
use lca_manager::Manager;
use lca_node::{
    Node,
    mesh::{Handlers, ServeHttp},
};
use lca_proxy::Front;

use crate::{
    base::{self, Addresses, Base, Running, Settings},
    data::DataDir,
    external::Representative,
};

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
    external: Option<Outside>,
}

/// What is represented, and the way in to it.
type Outside = (Representative, Ingress);

impl App {
    /// Binds every socket, then starts.
    ///
    /// # Errors
    /// If a port is taken; nothing is running then.
    pub async fn build(config: Config) -> Result<Self> {
        let dir = DataDir::take(&config.settings.data_dir).await?;
        let also = config.external.as_ref().map(|_| Role::External);
        let roles: Vec<_> = [Role::Proxy].into_iter().chain(also).collect();
        let base = Base::bind_as(&config.settings, Role::Proxy, &roles, dir).await?;
        let mut http = config.http;
        http.keep_to(&config.settings.timeouts);
        let front =
            Front::bind(config.front, http, base.manager.clone(), base.node.clone()).await?;
        let address = front.address();
        let local = base.bind_local(&config.settings, address.port())?;
        let mut grpc = base.peer_routes().add_service(base.manager.specs_server());
        let mut http: Option<Arc<dyn ServeHttp>> = None;
        let external = config.external.map(|what| {
            let takes = lca_ingress::Config::keeping_to(&config.settings.timeouts);
            let ingress = Ingress::new(takes, base.metrics.clone());
            http = Some(Arc::new(ingress.clone()));
            let (specs, discovery) = (base.specs.clone(), Arc::new(base.node.clone()));
            let spawner = &base.spawner;
            let outside = Representative::start(what, specs, discovery, ingress.clone(), spawner);
            (outside, ingress)
        });
        if let Some((external, _)) = &external {
            grpc = grpc.add_service(external.instances_server());
        }
        front.serve(&base.spawner);
        let running = base.serve(Handlers { grpc, http }, local, Some(address)).await?;
        Ok(Self { running, external })
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

    /// What decides where requests go.
    pub fn manager(&self) -> &Manager {
        &self.running.manager
    }

    /// Resolves when a task that should not end has ended.
    pub async fn failed(&self) {
        self.running.failed().await;
    }

    /// Stops. True if nothing had to be forced and no request was cut off.
    pub async fn drain(self) -> bool {
        let Self { running, external } = self;
        running.leave();
        let Some((external, ingress)) = external else { return running.drain().await };
        let before = ingress.cut();
        external.leave().await;
        let in_time = running.drain().await;
        in_time && base::none_cut(&ingress, before)
    }
}
