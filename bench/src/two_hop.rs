//! Small requests through both hops: how many a second, how long each, and what they cost
//! the processors, which says more on a machine that does other things as well.

use std::{path::PathBuf, time::Duration};

use anyhow::ensure;

use crate::{
    hops::{Hops, target},
    machine,
    plain::{App, Done, load},
    stats::Samples,
};

/// Options of `two-hop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Connections of clients
    #[arg(long, value_delimiter = ',', default_values_t = [1_usize, 32, 256])]
    connections: Vec<usize>,
    /// Rounds, of which medians are taken
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Run the daemons' own programs in this folder, not this one under their names
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// What one round was like.
struct Round {
    rate: f64,
    p50: Duration,
    p99: Duration,
    /// Microseconds of front and ingress for a request.
    cpu: [f64; 2],
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.rounds > 0, "no round, no median");
    let app = App::start().await?;
    let hops = Hops::start(app.address, args.programs.as_deref()).await?;
    let time = Duration::from_secs(args.seconds);
    println!(
        "two hops, medians of {} rounds of {} s, one worker thread each, on {}\n",
        args.rounds,
        args.seconds,
        machine::describe()
    );
    println!(
        "| connections | path | req/s | p50 ms | p99 ms | front us | ingress us |\n\
         |---|---|---|---|---|---|---|"
    );
    for connections in args.connections {
        let (mut direct, mut through) = (Vec::new(), Vec::new());
        load(hops.at, &target("hello"), connections, Duration::from_secs(1)).await?;
        for _ in 0..args.rounds {
            direct.push(round(load(app.address, "/hello", connections, time).await?, [0.0; 2]));
            let before = hops.usage()?;
            let done = load(hops.at, &target("hello"), connections, time).await?;
            let after = hops.usage()?;
            let count = done.took.len() as f64;
            let each = |n: usize| (after[n].cpu - before[n].cpu).as_secs_f64() * 1e6 / count;
            through.push(round(done, [each(0), each(1)]));
        }
        let [rate, p50, p99, ..] = medians(&direct);
        println!("| {connections} | direct | {rate:.0} | {p50:.3} | {p99:.3} | | |");
        let [rate, p50, p99, front, ingress] = medians(&through);
        println!(
            "| {connections} | front and ingress | {rate:.0} | {p50:.3} | {p99:.3} | {front:.1} | {ingress:.1} |"
        );
    }
    let [front, ingress] = hops.usage()?;
    println!();
    for (name, usage) in [("front", front), ("ingress", ingress)] {
        let [now, most] = [usage.rss, usage.peak_rss].map(|bytes| bytes as f64 / 1e6);
        println!("{name}: RSS {now:.1} MB, {most:.1} at its peak");
    }
    hops.stop().await
}

fn round(done: Done, cpu: [f64; 2]) -> Round {
    let rate = done.rate();
    let took = Samples::new(done.took);
    Round { rate, p50: took.percentile(50), p99: took.percentile(99), cpu }
}

/// Requests a second, p50 and p99 in milliseconds, microseconds of front and ingress.
fn medians(rounds: &[Round]) -> [f64; 5] {
    let of = |value: fn(&Round) -> f64| {
        let mut values: Vec<_> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    [
        of(|round| round.rate),
        of(|round| round.p50.as_secs_f64() * 1e3),
        of(|round| round.p99.as_secs_f64() * 1e3),
        of(|round| round.cpu[0]),
        of(|round| round.cpu[1]),
    ]
}
