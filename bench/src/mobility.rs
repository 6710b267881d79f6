//! The ride of the paper: buses come near and go away, and a client of the one that serves it
//! turns to the next before the first is too far, beside a client that stays.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use lca_tests::{
    Service,
    mobility::{Recording, Ride, Sample},
};

use crate::{
    machine,
    stats::{Samples, ms},
};

mod plot;

/// Options of `mobility`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// So many times as fast as the paper's ride, probes included
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    speed: u32,
    /// Distances and limits so many times as long as the paper's
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=20))]
    farther: u32,
    /// Where the picture goes
    #[arg(long, default_value = "docs/mobility.svg")]
    svg: PathBuf,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let ride = Ride::paper().farther(args.farther).faster(args.speed);
    let program = std::env::current_exe()?;
    let service = |name: &str| Service::demo_of(&program, name).args(["demo-hello-world-server"]);
    let recording = ride.record(service).await?;
    report(&recording);
    plot::draw(&recording, &args.svg)?;
    println!("\ndrawn: {}", shown(&args.svg));
    for failed in recording.failures().iter().take(5) {
        eprintln!("{failed}");
    }
    ensure!(recording.failures().is_empty(), "{} requests failed", recording.failures().len());
    Ok(())
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn report(recording: &Recording) {
    let Recording { ride, moving, staying, .. } = recording;
    println!(
        "mobility, soft {} ms, hard {} ms, RTT {} to {} to {} ms within {} s, a request each {} ms \
         of each client, on {}\n",
        ride.soft.as_millis(),
        ride.hard.as_millis(),
        ride.far.as_millis(),
        ride.near.as_millis(),
        ride.far.as_millis(),
        ride.pass.as_secs_f64(),
        ride.every.as_millis(),
        machine::describe(),
    );
    println!(
        "| client | requests | failed | moves | p50 ms | p99 ms | worst ms | bus beyond soft | bus beyond hard |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let row = |name: &str, samples: &[Sample], moves: String| {
        let failed = samples.iter().filter(|sample| sample.bus.is_err()).count();
        let latency = Samples::new(samples.iter().map(|sample| sample.latency).collect());
        println!(
            "| {name} | {} | {failed} | {moves} | {} | {} | {} | {:.1} % | {:.1} % |",
            samples.len(),
            ms(latency.percentile(50)),
            ms(latency.percentile(99)),
            ms(Recording::worst(samples)),
            recording.share_above(samples, ride.soft) * 100.0,
            recording.share_above(samples, ride.hard) * 100.0,
        );
    };
    row("moves", moving, recording.moves().len().to_string());
    row("stays", staying, "0".into());
    println!();
    for one in recording.moves() {
        println!(
            "at {:.1} s from bus {} ({} ms away) to bus {} ({} ms)",
            one.at.as_secs_f64(),
            one.from + 1,
            ms(ride.rtt(one.from, one.at)),
            one.to + 1,
            ms(ride.rtt(one.to, one.at)),
        );
    }
}
