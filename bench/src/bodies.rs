//! Long bodies through both hops, beside nginx and haproxy on the same two hops with mutual
//! TLS: how many bytes a second. All paths end in the same application, and the rounds
//! alternate, so that what else the machine does hits all of them alike.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;

use crate::{
    hops::{Hops, target},
    machine,
    others::Others,
    plain::{App, load},
};

/// Options of `bodies`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Bytes of a body
    #[arg(long, value_delimiter = ',', default_values_t = [64 << 10, 10 << 20])]
    sizes: Vec<usize>,
    /// Connections of clients
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Rounds, of which medians are taken
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Run the daemons' own programs in this folder, not this one under their names
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "no round, no median");
    let app = App::start().await?;
    let others = Others::start(app.address).await?;
    let hops = Hops::start(app.address, args.programs.as_deref()).await?;
    let time = Duration::from_secs(args.seconds);
    println!(
        "bodies by {} connections, medians of {} rounds of {} s, on {}\n",
        args.connections,
        args.rounds,
        args.seconds,
        machine::describe()
    );
    println!("| bytes | path | MB/s | to the better |\n|---|---|---|---|");
    let mut reached = true;
    for size in args.sizes {
        let rest = format!("bytes/{size}");
        let ours = target(&rest);
        let paths = [
            ("direct", app.address, format!("/{rest}")),
            ("nginx", others.nginx, ours.clone()),
            ("haproxy", others.haproxy, ours.clone()),
            ("front and ingress", hops.at, ours),
        ];
        let mut rates = vec![Vec::new(); paths.len()];
        for round in 0..=args.rounds {
            for (rates, (_, at, target)) in rates.iter_mut().zip(&paths) {
                let time = if round == 0 { Duration::from_millis(300) } else { time };
                let done = load(*at, target, args.connections, time).await?;
                // The first opens connections.
                if round > 0 {
                    rates.push(done.megabytes());
                }
            }
        }
        let medians: Vec<f64> = rates
            .into_iter()
            .map(|mut rates| {
                rates.sort_by(f64::total_cmp);
                rates[rates.len() / 2]
            })
            .collect();
        let better = medians[1].max(medians[2]);
        for ((name, ..), rate) in paths.iter().zip(&medians) {
            let ratio =
                if *name == "direct" { String::new() } else { format!("{:.2}", rate / better) };
            println!("| {size} | {name} | {rate:.0} | {ratio} |");
        }
        reached &= medians[3] >= better;
    }
    let word = if reached { "reached" } else { "NOT reached" };
    println!("\naim of the design (as much as the better of the two): {word}");
    hops.stop().await?;
    ensure!(reached, "the aim is not reached");
    Ok(())
}
