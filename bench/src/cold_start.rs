//! First requests for services that nobody runs, alternating with spawning the same
//! program by hand, so that what the machine does meanwhile hits both alike. By hand
//! means looking every 100 microseconds, which is where our own looking begins; the
//! difference is what finding, allocating,
//! supervising and forwarding cost.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lca::api::proto::{ReleaseRequest, Step, allocator_client::AllocatorClient};
use lca_manager::Wish;
use lca_tests::{Cluster, Service};

use crate::{
    machine,
    stats::{Samples, ms},
};

mod docker;

/// Between two looks by hand, and between the first two of an allocator.
const POLL: Duration = Duration::from_micros(100);
/// No start takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `cold-start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// First requests per program
    #[arg(long, default_value_t = 200)]
    requests: usize,
    /// What runs the programs: processes, or containers of the Docker Engine
    #[arg(
        long,
        value_name = "process|docker",
        default_value = "process",
        hide_possible_values = true
    )]
    driver: Driver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Driver {
    Process,
    Docker,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    println!("cold start, {} requests each, on {}\n", args.requests, machine::describe());
    if args.driver == Driver::Docker {
        return docker::run(args.requests).await;
    }
    println!("| program | | p50 ms | p99 ms |\n|---|---|---|---|");
    let trivial = measure("trivial", &[], args.requests).await?;
    let slow = measure("needs 100 ms", &["--start-delay", "100"], args.requests).await?;
    println!("\nwhere the time of a cold request goes, p50 ms ({} requests)\n", trivial.len() / 4);
    breakdown("trivial", &[], (args.requests / 4).max(1)).await?;
    println!();
    verdict("trivial", &trivial, |by_hand, ours| {
        ours.percentile(50) <= by_hand.percentile(50) + Duration::from_millis(8)
            && ours.percentile(99) <= by_hand.percentile(99) + Duration::from_millis(25)
    });
    verdict("needs 100 ms", &slow, |by_hand, ours| {
        ours.percentile(50).as_secs_f64() <= by_hand.percentile(50).as_secs_f64() * 1.3
    });
    Ok(())
}

/// Both sides of one program.
struct Pair {
    by_hand: Samples,
    ours: Samples,
}

impl Pair {
    fn len(&self) -> usize {
        self.ours.len()
    }
}

fn verdict(name: &str, pair: &Pair, reached: impl Fn(&Samples, &Samples) -> bool) {
    let word = if reached(&pair.by_hand, &pair.ours) { "reached" } else { "NOT reached" };
    println!("{name}: the aim of the design is {word}");
}

async fn measure(name: &str, arguments: &[&str], requests: usize) -> anyhow::Result<Pair> {
    let cluster = Cluster::builder().instances_each(requests as u32 + 8).start().await?;
    prime(&cluster).await?;
    for n in 0..requests {
        cluster.add(&service(n, arguments)).await?;
    }
    let (mut by_hand, mut ours) = (Vec::new(), Vec::new());
    for n in 0..requests {
        by_hand.push(spawn_by_hand(arguments).await?);
        let begin = Instant::now();
        let answer = cluster.get(&format!("/cold-{n}/hello")).await?;
        ours.push(begin.elapsed());
        ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
        release_all(&cluster).await?;
    }
    let pair = Pair { by_hand: Samples::new(by_hand), ours: Samples::new(ours) };
    print(name, "by hand", &pair);
    cluster.drain().await;
    Ok(pair)
}

/// Both sides and how they compare.
fn print(name: &str, hand_word: &str, pair: &Pair) {
    let (hand, own) = (&pair.by_hand, &pair.ours);
    let row = |what: &str, of: &Samples| {
        println!("| {name} | {what} | {} | {} |", ms(of.percentile(50)), ms(of.percentile(99)))
    };
    row(hand_word, hand);
    row("first request", own);
    println!(
        "| {name} | difference | {} | {} |\n| {name} | ratio | {:.2} | {:.2} |",
        difference(own.percentile(50), hand.percentile(50)),
        difference(own.percentile(99), hand.percentile(99)),
        own.percentile(50).as_secs_f64() / hand.percentile(50).as_secs_f64(),
        own.percentile(99).as_secs_f64() / hand.percentile(99).as_secs_f64(),
    );
}

fn difference(a: Duration, b: Duration) -> String {
    format!("{:+.2}", (a.as_secs_f64() - b.as_secs_f64()) * 1e3)
}

/// The same decision as a request's, taken step by step, then the request itself, warm.
async fn breakdown(name: &str, arguments: &[&str], requests: usize) -> anyhow::Result<()> {
    let cluster = Cluster::builder().instances_each(requests as u32 + 8).start().await?;
    prime(&cluster).await?;
    for n in 0..requests {
        cluster.add(&service(n, arguments)).await?;
    }
    let mut steps: Vec<(String, Vec<Duration>)> = Vec::new();
    let mut note =
        |step: &str, took: Duration| match steps.iter_mut().find(|(known, _)| known == step) {
            Some((_, samples)) => samples.push(took),
            None => steps.push((step.to_owned(), vec![took])),
        };
    for n in 0..requests {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let wish = Wish::new(format!("cold-{n}").parse()?, deadline);
        let begin = Instant::now();
        let target = cluster.manager(0).pick(wish).await?;
        note("pick, in all", begin.elapsed());
        for Step { name, duration_us, .. } in &target.steps {
            note(&format!("· {name}"), Duration::from_micros(*duration_us));
        }
        let begin = Instant::now();
        let answer = cluster.get(&format!("/cold-{n}/hello")).await?;
        note("route and forward", begin.elapsed());
        ensure!(answer.status == 200, "{}", answer.text());
        release_all(&cluster).await?;
    }
    println!("| program | step | p50 | p99 |\n|---|---|---|---|");
    for (step, samples) in steps {
        let samples = Samples::new(samples);
        println!(
            "| {name} | {step} | {} | {} |",
            ms(samples.percentile(50)),
            ms(samples.percentile(99))
        );
    }
    cluster.drain().await;
    Ok(())
}

/// The program is this very executable, as it is for `lcactl up`.
fn service(n: usize, arguments: &[&str]) -> Service {
    let mut service = Service::demo_of(&own_program(), &format!("cold-{n}"));
    service.spec.arguments = with_subcommand(arguments);
    service
}

fn own_program() -> std::path::PathBuf {
    std::env::current_exe().expect("a running program has a file")
}

fn with_subcommand(arguments: &[&str]) -> Vec<String> {
    std::iter::once("demo-hello-world-server")
        .chain(arguments.iter().copied())
        .map(str::to_owned)
        .collect()
}

/// Has the artifact fetched and the connections opened: what is measured is a service
/// that nobody runs, not a machine that was just installed.
async fn prime(cluster: &Cluster) -> anyhow::Result<()> {
    let mut service = service(0, &[]);
    service.spec.name = "prime".into();
    cluster.add(&service).await?;
    let answer = cluster.get("/prime/hello").await?;
    ensure!(answer.status == 200, "{}", answer.text());
    release_all(cluster).await
}

async fn release_all(cluster: &Cluster) -> anyhow::Result<()> {
    use lca::api::proto::InstanceState::{Failed, Stopped};
    let mut allocator =
        AllocatorClient::new(lca::local::connect(&cluster.allocator(0).socket).await?);
    for instance in cluster.instances().await? {
        if ![Failed, Stopped].contains(&instance.state()) {
            allocator.release(ReleaseRequest { instance: instance.id }).await?;
        }
    }
    Ok(())
}

/// From the decision to start it to its first 200, as a person with a shell and a
/// stopwatch would at best: on a thread of its own, without any runtime, looking again
/// every 100 microseconds.
async fn spawn_by_hand(arguments: &[&str]) -> anyhow::Result<Duration> {
    let arguments = with_subcommand(arguments);
    tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut child = Command::new(own_program())
            .args(arguments)
            .env_clear()
            .env("SERVICE_PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let took = loop {
            if answers(address) {
                break Ok(begin.elapsed());
            }
            if begin.elapsed() > PATIENCE {
                break Err(anyhow::anyhow!("the program does not answer"));
            }
            #[expect(clippy::disallowed_methods, reason = "on a thread for blocking work")]
            std::thread::sleep(POLL);
        };
        child.kill().context("stopping the program")?;
        child.wait()?;
        took
    })
    .await?
}

/// Whether a GET is answered with 200.
fn answers(address: SocketAddr) -> bool {
    let look = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET /hello HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    look().unwrap_or(false)
}
