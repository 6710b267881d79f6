//! What the two hops hold in memory: idle, and with many connections of clients open, each
//! of which has had an answer.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;
use futures::future::try_join_all;

use crate::{
    daemons::Usage,
    hops::{Hops, target},
    machine,
    plain::{App, Client},
};

/// The design's aims.
const IDLE_MB: f64 = 20.0;
const OPEN_MB: f64 = 64.0;

/// Options of `connections`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connections of clients that are open
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Requests on each before it is only open
    #[arg(long, default_value_t = 3)]
    requests: usize,
    /// Seconds from the start until they count as idle: a daemon gives back its code after 10
    #[arg(long, default_value_t = 30)]
    settle: u64,
    /// Run the daemons' own programs in this folder, which take less memory than this one
    /// under their names
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let app = App::start().await?;
    let hops = Hops::start(app.address, args.programs.as_deref()).await?;
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    let idle = hops.usage()?;
    let target = target("hello");
    let connecting = (0..args.connections).map(|_| Client::connect(hops.at, &target));
    let mut clients = try_join_all(connecting).await?;
    for _ in 0..args.requests {
        // All at once: the most that they can need.
        try_join_all(clients.iter_mut().map(Client::get)).await?;
    }
    let open = hops.usage()?;
    drop(clients);

    let count = args.connections;
    println!(
        "memory of the two hops, {count} connections, {} requests on each at the same time, on {}\n",
        args.requests,
        machine::describe()
    );
    println!("| | idle MB | {count} open MB | at most MB |\n|---|---|---|---|");
    let mb = |bytes: u64| bytes as f64 / 1e6;
    for (n, name) in ["front", "ingress"].into_iter().enumerate() {
        let [idle, open] = [idle[n], open[n]];
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} |",
            mb(idle.rss),
            mb(open.rss),
            mb(open.peak_rss)
        );
    }
    println!();
    let most = |usage: &[Usage]| usage.iter().map(|one| mb(one.rss)).fold(0.0, f64::max);
    let (idle, open) = (most(&idle), most(&open));
    for (what, value, aim) in [("idle", idle, IDLE_MB), ("open", open, OPEN_MB)] {
        let word = if value <= aim { "reached" } else { "NOT reached" };
        println!("{what}: {value:.1} MB (aim of the design: {aim}): {word}");
    }
    hops.stop().await?;
    ensure!(idle <= IDLE_MB && open <= OPEN_MB, "an aim is not reached");
    Ok(())
}
