//! `lca-bench`: measures what docs/benchmarks.md reports, each figure beside what it is
//! to be compared with, in one run on one machine.

use std::process::ExitCode;

use clap::Parser;
use hello_world_server::Options;

#[cfg(feature = "allocations")]
mod allocations;
mod bodies;
mod cold_start;
mod connections;
mod daemons;
mod discovery;
mod failover;
mod fleet;
mod hops;
mod idle;
mod machine;
mod mobility;
mod others;
mod pick;
mod plain;
mod stampede;
mod stats;
mod storm;
mod two_hop;

/// Benchmarks of service-manager
#[derive(Debug, Parser)]
#[command(name = "lca-bench", version)]
enum Args {
    /// First requests for services that nobody runs, beside spawning the program by hand
    ColdStart(cold_start::Args),
    /// Finds in the DHT with a cold cache: first endpoint, miss, whole query, traffic
    Discovery(discovery::Args),
    /// Ten daemons nobody asks for anything: memory, processor, traffic
    Idle(idle::Args),
    /// More calls of Allocate than an allocator has room for
    Storm(storm::Args),
    /// A steady stream of requests while what serves them is taken away
    Failover(failover::Args),
    /// A thousand first requests at once through ten proxies: how many instances that starts
    Stampede(stampede::Args),
    /// Buses that come and go: a client that moves, beside one that stays
    Mobility(mobility::Args),
    /// What it costs to say where a request goes, where that is known
    Pick(pick::Args),
    /// Small requests through front and ingress: requests a second, and what each costs
    TwoHop(two_hop::Args),
    /// Memory of front and ingress, idle and with many connections open
    Connections(connections::Args),
    /// Long bodies through front and ingress, beside nginx and haproxy
    Bodies(bodies::Args),
    /// The application that two-hop, connections and bodies measure with
    #[command(hide = true)]
    PlainApp,
    /// The program that cold-start measures with
    #[command(hide = true, name = "demo-hello-world-server")]
    Demo {
        /// As the demo's own
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    if let Some(code) = daemons::main() {
        return code;
    }
    let result = match Args::parse() {
        Args::Demo { arguments } => demo(arguments),
        Args::ColdStart(args) => runtime().block_on(cold_start::run(args)),
        Args::Discovery(args) => runtime().block_on(discovery::run(args)),
        Args::Idle(args) => {
            idle::isolate();
            runtime().block_on(idle::run(args))
        }
        Args::Mobility(args) => runtime().block_on(mobility::run(args)),
        Args::Pick(args) => runtime().block_on(pick::run(args)),
        Args::Storm(args) => runtime().block_on(storm::run(args)),
        Args::Failover(args) => runtime().block_on(failover::run(args)),
        Args::Stampede(args) => runtime().block_on(stampede::run(args)),
        Args::TwoHop(args) => single().block_on(two_hop::run(args)),
        Args::Connections(args) => single().block_on(connections::run(args)),
        Args::Bodies(args) => single().block_on(bodies::run(args)),
        Args::PlainApp => single().block_on(plain::serve()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: Vec<String>) -> anyhow::Result<()> {
    hello_world_server::run_to_end(Options::parse(arguments)?)?;
    Ok(())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made where a process can be started")
}

/// For what only sends and waits: one thread, as a load generator has.
fn single() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made where a process can be started")
}
