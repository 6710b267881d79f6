//! The two hops of a request to an external service, each a process of its own with one
//! worker thread: a front in client mode, and the ingress of the proxy that represents it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lca::{api::proto::registry_client::RegistryClient, local};
use lca_tests::Service;
use tempfile::TempDir;

use crate::{
    daemons::{Daemon, Usage},
    plain::Client,
};

/// What the service is called.
pub(crate) const SERVICE: &str = "bench-app";
/// It is known and answers through both hops within this.
const READY_WITHIN: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(crate) struct Hops {
    pub(crate) front: Daemon,
    pub(crate) ingress: Daemon,
    pub(crate) at: SocketAddr,
    registry: Daemon,
    _dir: TempDir,
}

impl Hops {
    /// Starts them before `app`, of the programs in a folder or of this one, and waits until
    /// a request goes through.
    pub(crate) async fn start(app: SocketAddr, programs: Option<&Path>) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("lca-bench-").tempdir()?;
        let program = |role: &str| -> anyhow::Result<PathBuf> {
            match programs {
                // They are started in a folder of their own.
                Some(folder) => Ok(std::path::absolute(folder)?.join(role)),
                None => Ok(std::env::current_exe()?),
            }
        };
        let start = async |name: &str, role: &str, rest: &[&str], join: Option<&str>| {
            let arguments = [&["--worker-threads", "1"], rest].concat();
            Daemon::start_program(&program(role)?, dir.path(), name, role, &arguments, join).await
        };
        let registry = start("registry", "registry", &[], None).await?;
        let socket = local::connect(Path::new(registry.told("local")?)).await?;
        Service::external(SERVICE).register(&mut RegistryClient::new(socket)).await?;
        let join = registry.bootstrap()?.to_owned();
        let represented = ["0", SERVICE, &app.to_string()].map(str::to_owned);
        let represented: Vec<_> = represented.iter().map(String::as_str).collect();
        let ingress = start("ingress", "proxy", &represented, Some(&join)).await?;
        let front = start("front", "proxy", &["0"], Some(&join)).await?;
        let at = front.told("front")?.strip_prefix("http://").context("an address")?.parse()?;
        let hops = Self { front, ingress, at, registry, _dir: dir };
        let deadline = Instant::now() + READY_WITHIN;
        while let Err(error) = hops.once().await {
            ensure!(Instant::now() < deadline, "nothing goes through: {error:#}");
            tokio::time::sleep(AGAIN).await;
        }
        Ok(hops)
    }

    async fn once(&self) -> anyhow::Result<u64> {
        Client::connect(self.at, &target("hello")).await?.get().await
    }

    /// What front and ingress take of the machine now.
    pub(crate) fn usage(&self) -> anyhow::Result<[Usage; 2]> {
        Ok([self.front.usage()?, self.ingress.usage()?])
    }

    /// Stops all politely.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.front.stop().await?;
        self.ingress.stop().await?;
        self.registry.stop().await
    }
}

/// The application's `/rest` as a client of the front asks for it.
pub(crate) fn target(rest: &str) -> String {
    format!("/{SERVICE}/{rest}")
}
