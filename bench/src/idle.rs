//! Ten daemons that nobody asks for anything: what each takes of memory and processor,
//! and what goes over the network for each pair of them.
//!
//! The daemons run in a network namespace of their own where that is allowed, so that
//! nothing else is on its loopback; every byte there is sent by one of them and received
//! by another. Counted are whole IP packets, acknowledgements and handshakes included.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{daemons::Daemon, machine};

/// Set in the process that runs inside the namespace.
const INSIDE: &str = "LCA_BENCH_INSIDE";
/// An Ethernet header, which the loopback device counts as part of a packet.
const LINK_HEADER: u64 = 14;
/// How the ten are divided.
const ALLOCATORS: usize = 4;
const PROXIES: usize = 5;

/// Options of `idle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds to look on
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Seconds from the last start until the looking begins
    #[arg(long, default_value_t = 30)]
    settle: u64,
    /// Run the daemons' own programs in this folder, which take less memory than this one
    /// under their names
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

/// Goes on inside a network namespace of its own if one can be made. For a process that
/// has no other threads yet.
pub(crate) fn isolate() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let script = r#"ip link set lo up && exec "$0" "$@""#;
    let allowed = Command::new("unshare").args(["-rn", "ip", "link", "set", "lo", "up"]).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("no network namespace of our own: everything on this machine's loopback counts");
        return;
    }
    let Ok(own) = std::env::current_exe() else { return };
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", script]).arg(own).args(std::env::args_os().skip(1));
    let error = command.env(INSIDE, "1").exec();
    eprintln!("cannot go on in a network namespace ({error})");
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("lca-bench-").tempdir()?;
    let dir = dir.path();
    let own = std::env::current_exe()?;
    let program = |role: &str| match &args.programs {
        // They are started in a folder of their own.
        Some(folder) => Ok(std::path::absolute(folder)?.join(role)),
        None => anyhow::Ok(own.clone()),
    };
    let start = async |name: &str, role: &str, arguments: &[&str], bootstrap: Option<&str>| {
        Daemon::start_program(&program(role)?, dir, name, role, arguments, bootstrap).await
    };
    let registry = start("registry", "registry", &[], None).await?;
    let bootstrap = registry.bootstrap()?.to_owned();
    let mut daemons = vec![("registry", registry)];
    for n in 0..ALLOCATORS {
        let name = format!("allocator-{n}");
        let daemon = start(&name, "allocator", &[], Some(&bootstrap)).await?;
        daemons.push(("allocator", daemon));
    }
    for n in 0..PROXIES {
        let name = format!("proxy-{n}");
        let daemon = start(&name, "proxy", &["0"], Some(&bootstrap)).await?;
        daemons.push(("proxy", daemon));
    }
    tokio::time::sleep(Duration::from_secs(args.settle)).await;

    let usage = |daemons: &[(&str, Daemon)]| {
        daemons.iter().map(|(_, daemon)| daemon.usage()).collect::<anyhow::Result<Vec<_>>>()
    };
    let (before, bytes, begin) = (usage(&daemons)?, loopback()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(args.seconds)).await;
    let (after, bytes, took) = (usage(&daemons)?, loopback()? - bytes, begin.elapsed());

    let whose = match &args.programs {
        Some(folder) => format!("the programs in {}", folder.display()),
        None => "lca-bench under their names".to_owned(),
    };
    println!("idle, 10 daemons ({whose}) for {} s, on {}\n", args.seconds, machine::describe());
    println!("| daemon | RSS MB | CPU % of a core |\n|---|---|---|");
    let (mut most_rss, mut most_cpu) = (0.0_f64, 0.0_f64);
    for ((role, _), (before, after)) in daemons.iter().zip(before.iter().zip(&after)) {
        let rss = after.rss as f64 / 1e6;
        let cpu = (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64() * 100.0;
        (most_rss, most_cpu) = (most_rss.max(rss), most_cpu.max(cpu));
        println!("| {role} | {rss:.1} | {cpu:.2} |");
    }
    let count = daemons.len() as f64;
    // What one sends another receives: each node has both directions, with nine peers.
    let each = bytes as f64 * 2.0 / count / (count - 1.0);
    let kbits = each * 8.0 / 1000.0 / took.as_secs_f64();
    println!(
        "\ntraffic of a node with each of its 9 peers, both directions, IP level: {kbits:.2} kbit/s"
    );
    for (what, value, aim, unit) in [
        ("RSS, the largest", most_rss, 20.0, "MB"),
        ("CPU, the busiest", most_cpu, 0.5, "% of a core"),
        ("traffic per peer", kbits, 4.0, "kbit/s"),
    ] {
        let word = if value <= aim { "reached" } else { "NOT reached" };
        println!("{what}: {value:.2} {unit} (aim of the design: {aim}): {word}");
    }
    for (_, daemon) in daemons.into_iter().rev() {
        daemon.stop().await?;
    }
    Ok(())
}

/// Bytes of IP packets that have gone over loopback so far.
fn loopback() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no lo")?;
    let mut numbers = line.split_whitespace().map(str::parse::<u64>);
    let bytes = numbers.next().context("received bytes")??;
    let packets = numbers.next().context("received packets")??;
    Ok(bytes - packets * LINK_HEADER)
}
