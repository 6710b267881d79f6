//! What people type to start a daemon, in the original's words and some of ours.
//!
//! The values are kept as texts and read by [`plan`](crate::plan), all of them, so that
//! everything that is wrong is said at once. Of what can be said more than once, a flag
//! wins over the configuration file, and the file over the environment.

use std::path::PathBuf;

use clap::{Args, Parser};
use lca::endpoint::Role;

use crate::VERSION;

pub(crate) mod values;

/// What every daemon can be told.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Flags of every daemon")]
pub struct Common {
    /// Configuration file [default: conf/conf.json, then lca/conf.json in the user's folder]
    #[arg(long, value_name = "FILE")]
    pub configfile: Option<PathBuf>,
    /// A peer to join through, /ip4/.../tcp/.../p2p/...; repeatable
    #[arg(long, value_name = "MULTIADDR")]
    pub bootstrap: Vec<String>,
    /// Not supported yet: refused, so that no network looks closed that is open
    #[arg(long, value_name = "KEY")]
    pub psk: Option<String>,
    /// File of the private key, made if there is none [default: identity in the data folder]
    #[arg(long, value_name = "FILE")]
    pub keyfile: Option<PathBuf>,
    /// A new identity at every start, kept nowhere
    #[arg(long, conflicts_with = "keyfile")]
    pub ephemeral: bool,
    /// Kind of the key; only Ed25519
    #[arg(long, value_name = "ALGORITHM")]
    pub algo: Option<String>,
    /// Length of the key; Ed25519 keys have 256 bits
    #[arg(long, value_name = "BITS", allow_negative_numbers = true)]
    pub bits: Option<String>,
    /// How long a service's entry is used without asking a registry: seconds, or with a
    /// unit such as 500ms [default: 2s]
    #[arg(long, value_name = "TIME", allow_negative_numbers = true)]
    pub rcache_ttl: Option<String>,
    /// Where libp2p listens [default: /ip4/127.0.0.1/tcp/0, the port is kept]
    #[arg(long, value_name = "MULTIADDR")]
    pub listen: Option<String>,
    /// Where peers connect for everything else [default: 127.0.0.1:0, the port is kept]
    #[arg(long, value_name = "IP:PORT")]
    pub mesh_listen: Option<String>,
    /// The address others are told instead of those listened on; repeatable
    #[arg(long, value_name = "IP")]
    pub advertise: Vec<String>,
    /// What is to survive a restart [default: lca/DAEMON in the user's data folder,
    /// $XDG_DATA_HOME or ~/.local/share; a proxy's is lca/proxy-PORT]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Listen where other machines can connect; whoever can may use everything
    #[arg(long)]
    pub insecure_open_network: bool,
    /// gRPC for programs in any language; loopback only [default: none]
    #[arg(long, value_name = "IP:PORT")]
    pub grpc_listen: Option<String>,
    /// Prometheus metrics at GET /metrics [default: none]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<String>,
    /// Threads to work with; 1 for a small machine [default: one a core]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub worker_threads: Option<String>,
    /// Print the configuration that would be used, or all that is wrong with it, and exit
    #[arg(long)]
    pub check: bool,
    /// The log on standard error; RUST_LOG sets its level
    #[arg(long, value_name = "human|json", default_value = "human", hide_possible_values = true)]
    pub log_format: LogFormat,
}

/// What the log looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl From<LogFormat> for lca::logs::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Human,
            LogFormat::Json => Self::Json,
        }
    }
}

/// What the command line of each daemon has in common.
pub trait Command: Parser {
    /// What it runs.
    const ROLE: Role;

    /// What every daemon can be told.
    fn common(&self) -> &Common;

    /// The name of its folder in the user's data folder.
    fn folder(&self) -> String {
        Self::ROLE.to_string()
    }

    /// The flags of this daemon alone.
    fn own(&self) -> Own<'_>;
}

/// The flags that only one daemon has.
#[derive(Clone, Copy, Debug)]
pub enum Own<'a> {
    /// None.
    Registry,
    /// What it offers.
    Allocator(&'a Allocator),
    /// Where it listens, and for whom.
    Proxy(&'a Proxy),
}

/// Keep services and their programs for everyone
///
/// Maps a name to what runs, how to run it and how near it must be. Everything it was
/// told survives a restart.
#[derive(Clone, Debug, Parser)]
#[command(name = "registry", version = VERSION, after_help = REGISTRY_HELP)]
pub struct Registry {
    #[expect(missing_docs, reason = "documented at Common, which is its help")]
    #[command(flatten)]
    pub common: Common,
}

/// Run instances of services on this machine
///
/// Starts what proxies ask for, watches it, and stops it when nobody uses it.
#[derive(Clone, Debug, Parser)]
#[command(name = "allocator", version = VERSION, after_help = ALLOCATOR_HELP)]
pub struct Allocator {
    #[expect(missing_docs, reason = "documented at Common, which is its help")]
    #[command(flatten)]
    pub common: Common,
    /// Cores instances may take together, such as 1.5 or 1500m [default: all]
    #[arg(long, value_name = "CORES", allow_negative_numbers = true)]
    pub cpu: Option<String>,
    /// Memory instances may take together, such as 2GiB [default: all]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Instances at once [default: 500]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub instances: Option<String>,
    /// At a stop, leave instances running for the next start to take over
    #[arg(long)]
    pub keep_instances: bool,
    /// Tell the allocator that runs in the same data folder to accept nothing more and to
    /// stop once nothing is open there, and wait for it
    #[arg(long)]
    pub drain: bool,
    /// How long to wait for that; it goes on afterwards [default: until it is over]
    #[arg(long, value_name = "TIME", requires = "drain", value_parser = lca::units::millis)]
    pub drain_within: Option<std::time::Duration>,
    /// A file or folder that instances may read and execute; may be repeated
    #[arg(long, value_name = "PATH")]
    pub allow_read: Vec<PathBuf>,
    /// A file or folder that instances may also write; may be repeated
    #[arg(long, value_name = "PATH")]
    pub allow_write: Vec<PathBuf>,
    /// A capability that containers may keep, such as NET_RAW; may be repeated
    #[arg(long, value_name = "NAME")]
    pub allow_capability: Vec<String>,
    /// Containers may have the network of this machine
    #[arg(long)]
    pub allow_host_network: bool,
    /// Disk that images may take which this allocator has pulled: beyond it those go that
    /// were not used for the longest time [default: 20GiB]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    pub image_room: Option<String>,
    /// Run no containers, whether or not there is an engine (DOCKER_HOST)
    #[arg(long)]
    pub no_docker: bool,
}

/// Make every service answer on a port of this machine
///
/// With SERVICE and ADDRESS also represents a service that runs by itself (server mode).
#[derive(Clone, Debug, Parser)]
#[command(name = "proxy", version = VERSION, after_help = PROXY_HELP)]
pub struct Proxy {
    /// Port of the front on 127.0.0.1; 0 lets the kernel choose
    #[arg(value_name = "PORT")]
    pub port: String,
    /// A service registered with `lcactl service add SERVICE --external`
    #[arg(value_name = "SERVICE", requires = "address")]
    pub service: Option<String>,
    /// Where it answers, IP or IP:PORT; port 8080 if left out
    #[arg(value_name = "ADDRESS")]
    pub address: Option<String>,
    #[expect(missing_docs, reason = "documented at Common, which is its help")]
    #[command(flatten)]
    pub common: Common,
}

impl Command for Registry {
    const ROLE: Role = Role::Registry;

    fn common(&self) -> &Common {
        &self.common
    }

    fn own(&self) -> Own<'_> {
        Own::Registry
    }
}

impl Command for Allocator {
    const ROLE: Role = Role::Allocator;

    fn common(&self) -> &Common {
        &self.common
    }

    fn own(&self) -> Own<'_> {
        Own::Allocator(self)
    }
}

impl Command for Proxy {
    const ROLE: Role = Role::Proxy;

    fn common(&self) -> &Common {
        &self.common
    }

    /// Several proxies on one machine are usual: one a port.
    fn folder(&self) -> String {
        format!("{}-{}", Self::ROLE, self.port)
    }

    fn own(&self) -> Own<'_> {
        Own::Proxy(self)
    }
}

macro_rules! help {
    ($examples:literal) => {
        concat!(
            $examples,
            "\n\nEnvironment: P2P_BOOTSTRAPS, used if neither a flag nor the configuration file names any;",
            "\n  LCA_WORKER_THREADS likewise; RUST_LOG, the level of the log.",
            "\nSignals: TERM and INT finish what is open and stop, a second one stops at once; HUP reads",
            "\n  the configuration file again.",
            "\nExit codes: 0 stopped as asked, 1 a defect or stopped by force, 2 the command line or a file",
            "\n  is wrong, 4 something did not answer in time, 5 refused: a port is taken, the data folder",
            "\n  is in use or damaged."
        )
    };
}

const REGISTRY_HELP: &str = help!(
    "Examples:
  registry
      for programs of this machine alone
  registry --listen /ip4/10.0.0.1/tcp/4001 --mesh-listen 10.0.0.1:4002 --insecure-open-network
      for a network; the others join with the multiaddress it prints"
);
const ALLOCATOR_HELP: &str = help!(
    "Examples:
  allocator --bootstrap /ip4/10.0.0.1/tcp/4001/p2p/12D3Koo...
      on the machine of that peer, or with addresses of this one as below
  allocator --listen /ip4/10.0.0.2/tcp/4001 --mesh-listen 10.0.0.2:4002 --insecure-open-network \\
      --cpu 4 --memory 8GiB --keep-instances
      with a part of this machine; instances outlive a restart"
);
const PROXY_HELP: &str = help!(
    "Examples:
  proxy 4201
      curl http://127.0.0.1:4201/hello-world-server/hello
  proxy 4202 my-app 127.0.0.1:8080
      also makes what answers on port 8080 the service my-app for everyone"
);

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        Registry::command().debug_assert();
        Allocator::command().debug_assert();
        Proxy::command().debug_assert();
    }

    #[test]
    fn a_service_without_an_address_is_refused() {
        assert!(Proxy::try_parse_from(["proxy", "4201", "my-app"]).is_err());
        assert!(Proxy::try_parse_from(["proxy", "4201", "my-app", "1.2.3.4"]).is_ok());
        assert!(Proxy::try_parse_from(["proxy", "4201"]).is_ok());
        assert!(Proxy::try_parse_from(["proxy"]).is_err());
    }
}
