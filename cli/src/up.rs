//! `lcactl up`: a whole network in one process on this machine, with the demo service
//! registered. Each role has its own identity and its own libp2p node, joined over
//! loopback: what runs here is what runs on a fleet.

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use lca::{
    Error, Kind, Result,
    config::{self, BOOTSTRAPS_ENV, Config},
    workers::{WORKERS_ENV, Workers},
};
use lca_daemon::{STOP_WITHIN, args::LogFormat};
use tokio::time::timeout;

mod demo;
mod fleet;
mod link;
mod temporary;
mod topology;

use fleet::Fleet;
pub use link::Link;
use temporary::Temporary;

/// How long a start that is interrupted may still take to come to its end.
const START_WITHIN: Duration = Duration::from_secs(2);

/// Bring up registry, allocators and a proxy in one process
///
/// Registers hello-world-server and prints what listens where. Ctrl-C stops
/// everything, instances included.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Keep identities, services and artifacts here between runs [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Number of allocators
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub nodes: u8,
    /// How far nodes are from the front.
    ///
    /// Nodes 1 to N are the allocators; node 0 is the front, with the registry. Nodes of one
    /// link are in one place; between nodes of two links lies the sum of both. `stall` is the
    /// share of writes that wait for the RTT again, at least 200 ms, as after a loss. `+-`
    /// is the same as `±`. Example: --link far=90ms±5ms,stall=1%:4,5
    #[arg(
        help = "How far nodes are from the front: NAME=RTT[±JITTER][,stall=P%]:NODES; repeatable",
        long,
        value_name = "LINK",
        conflicts_with = "topology"
    )]
    pub link: Vec<Link>,
    /// What lies between each two nodes, and how it changes: see docs/topology.md
    #[arg(long, value_name = "FILE")]
    pub topology: Option<PathBuf>,
    /// Port of the front on 127.0.0.1; 0 lets the kernel choose
    #[arg(long, value_name = "PORT", default_value_t = 4201)]
    pub port: u16,
    /// Port of gRPC for programs in any language on 127.0.0.1; 0 lets the kernel choose
    #[arg(long, value_name = "PORT", default_value_t = 4210)]
    pub grpc_port: u16,
    /// Configuration file [default: conf/conf.json, then lca/conf.json in the user's folder]
    #[arg(long, value_name = "FILE")]
    pub configfile: Option<PathBuf>,
    /// A file or folder that instances may read and execute; may be repeated
    #[arg(long, value_name = "PATH")]
    pub allow_read: Vec<PathBuf>,
    /// A file or folder that instances may also write; may be repeated
    #[arg(long, value_name = "PATH")]
    pub allow_write: Vec<PathBuf>,
    /// Threads to work with, for all of it together [default: one a core]
    #[arg(long, value_name = "N")]
    pub worker_threads: Option<Workers>,
    /// The log on standard error: human has warnings, json also what happens; RUST_LOG
    /// overrides
    #[arg(long, value_name = "human|json", default_value = "human", hide_possible_values = true)]
    pub log_format: LogFormat,
}

/// How many threads to run with: what flag, file and environment say.
///
/// # Errors
/// If the file cannot be read, or it or the environment is wrong.
pub fn workers(args: &Args) -> Result<Option<Workers>> {
    let environment = std::env::var(WORKERS_ENV).ok();
    Workers::choose(args.worker_threads, file(args)?.workers, environment.as_deref())
}

fn file(args: &Args) -> Result<Config> {
    let found = config::find(args.configfile.as_deref());
    Ok(found.map(|path| Config::load(&path)).transpose()?.unwrap_or_default())
}

/// Runs until SIGINT, SIGTERM or SIGHUP, then stops everything; a second signal stops at once.
///
/// # Errors
/// If something cannot be started, such as a port that is taken; nothing is left
/// running then.
pub async fn run(args: Args) -> Result<ExitCode> {
    let mut config = file(&args)?;
    let environment = std::env::var(BOOTSTRAPS_ENV).ok();
    let spans = match &args.topology {
        Some(file) => topology::load(file, args.nodes)?,
        None => link::spans(&args.link, args.nodes)?,
    };
    config.bootstraps = config::bootstraps(&[], &config.bootstraps, environment.as_deref())?;
    // Held to the end: dropping it removes the folder.
    let (data_dir, _temporary) = match args.data_dir.clone() {
        Some(dir) => (dir, None),
        None => {
            let made = Temporary::create()?;
            (made.path().to_owned(), Some(made))
        }
    };
    // Programs run in folders of their own, where a relative path would lead elsewhere.
    let data_dir = std::path::absolute(&data_dir).map_err(|error| {
        let what = format!("cannot use the folder {}", data_dir.display());
        Error::new(Kind::FailedPrecondition, what).because(error)
    })?;
    let signal = shutdown_signal()?;
    tokio::pin!(signal);
    let starting = async {
        let fleet = Fleet::start(&data_dir, &args, &config, spans).await?;
        match demo::register(&fleet).await {
            Ok(()) => Ok(fleet),
            Err(error) => {
                fleet.drain().await;
                Err(error)
            }
        }
    };
    tokio::pin!(starting);
    let fleet = tokio::select! {
        () = &mut signal => {
            // Starting is quick, and what has started whole is stopped whole. What has not
            // is dropped, and its tasks and instances with it.
            if let Ok(Ok(fleet)) = timeout(START_WITHIN, &mut starting).await {
                let _forced = timeout(STOP_WITHIN, fleet.drain()).await;
            }
            return Ok(ExitCode::from(130));
        }
        fleet = &mut starting => fleet?,
    };
    // A reader that went away (`lcactl up | head`) is no reason to stop the network.
    let _reader_gone = std::io::stdout().write_all(fleet.report().as_bytes());
    let _reader_gone = std::io::stdout().flush();
    let asked = tokio::select! {
        () = &mut signal => true,
        () = fleet.failed() => false,
    };
    let again = shutdown_signal()?;
    if asked {
        tracing::info!("stopping");
    }
    // What is cut short here is dropped, and its instances are killed.
    let in_time = tokio::select! {
        in_time = timeout(STOP_WITHIN, fleet.drain()) => in_time.unwrap_or(false),
        () = again => false,
    };
    Ok(if asked && in_time { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn shutdown_signal() -> Result<impl Future<Output = ()>> {
    lca::shutdown::signal().map_err(|error| {
        Error::new(Kind::Internal, "cannot install signal handlers").because(error)
    })
}
