//! Far more calls of `Allocate` than an allocator has room for: what it still does, what
//! it refuses and how quickly, and whether anything gets lost on the way.
//!
//! Fifty peers, each a node with an identity and a mesh connection of its own, together
//! ask for a new instance 500 times a second, on a schedule that does not wait for answers.
//! Who gets an instance keeps it for a second and gives it back.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use futures::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use lca::{
    Kind, PeerId, ServiceHash, api,
    api::proto::{
        self, AllocateRequest, ReleaseRequest, allocate_request::Mode,
        allocator_client::AllocatorClient, instances_client::InstancesClient,
        registry_client::RegistryClient,
    },
    config::Bootstrap,
    discovery::Discovery as _,
    endpoint::Role,
    local,
    mesh::Mesh as _,
    shutdown::Tasks,
};
use lca_node::{Config, Identity, Node, mesh::Handlers};
use lca_tests::{Service, processes};
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tonic::{service::Routes, transport::Channel};

use crate::{
    daemons::{Daemon, Usage},
    machine,
    stats::{Samples, ms},
};

/// The name of what is asked for.
const SERVICE: &str = "storm";
/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long who got an instance keeps it.
const KEPT: Duration = Duration::from_secs(1);
/// The allocator is known to its peers within this.
const KNOWN_WITHIN: Duration = Duration::from_secs(30);
/// Answers that have not been counted yet.
const WAITING: usize = 1024;
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);

/// Options of `storm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Calls a second, from all connections together
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Connections, each a peer of its own
    #[arg(long, default_value_t = 50)]
    connections: u32,
    /// Instances the allocator has room for
    #[arg(long, default_value_t = 20)]
    room: u32,
    /// Seconds
    #[arg(long, default_value_t = 20)]
    seconds: u32,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("lca-bench-").tempdir()?;
    let result = storm(dir.path(), &args).await;
    processes::kill_below(dir.path());
    result
}

async fn storm(dir: &Path, args: &Args) -> anyhow::Result<()> {
    let registry = Daemon::start(dir, "registry", "registry", &[], None).await?;
    let bootstrap = registry.bootstrap()?.to_owned();
    let room = args.room.to_string();
    let offer = ["--instances", &room, "--cpu", "1000", "--memory", "1024GiB"];
    let allocator = Daemon::start(dir, "allocator", "allocator", &offer, Some(&bootstrap)).await?;
    let hash = register(Path::new(registry.told("local")?)).await?;
    let tasks = Tasks::default();
    let peer: PeerId = allocator.told("PeerId")?.parse()?;
    let bootstrap: Bootstrap = bootstrap.parse()?;
    let clients = join_all((0..args.connections).map(|_| client(&tasks, bootstrap.clone(), peer)));
    let clients = clients.await.into_iter().collect::<anyhow::Result<Vec<_>>>()?;

    println!(
        "storm, {} Allocate a second from {} connections for {} s, room for {}, on {}\n",
        args.rate,
        args.connections,
        args.seconds,
        args.room,
        machine::describe()
    );
    let before = allocator.usage()?;
    let begin = Instant::now();
    let calls = args.rate * args.seconds / args.connections;
    let (answered, mut answers) = mpsc::channel(WAITING);
    for (n, client) in clients.iter().enumerate() {
        let caller = Caller {
            client: client.clone(),
            name: n as u32,
            hash,
            calls,
            every: Duration::from_secs(1) * args.connections / args.rate,
            answered: answered.clone(),
        };
        tasks.spawner().spawn_short(caller.call());
    }
    drop(answered);
    let mut tally = Tally::default();
    while let Some(answer) = answers.recv().await {
        tally.add(answer);
    }
    let took = begin.elapsed();
    let after = allocator.usage()?;
    let left = settled(Path::new(allocator.told("local")?)).await?;
    let offered = u64::from(calls * args.connections);
    let lost = tally.lost();
    let answered = tally.print(offered, took, &before, &after);
    ensure!(answered == offered, "{} calls were not answered", offered - answered);
    ensure!(lost.is_empty(), "not only refusals for lack of room: {}", lost.join(", "));
    ensure!(left == 0, "{left} instances are left that nobody has");
    allocator.stop().await?;
    // Both daemons' own folders are elsewhere: what is below is an instance.
    let orphans = processes::below(&dir.join("allocator")).len();
    ensure!(orphans == 0, "{orphans} processes outlive their allocator");
    println!("nothing lost: every call answered, every instance released, no process left");
    tasks.drain(Duration::from_secs(5)).await;
    registry.stop().await
}

/// One peer that calls on a schedule.
struct Caller {
    client: AllocatorClient<Channel>,
    name: u32,
    hash: ServiceHash,
    calls: u32,
    every: Duration,
    answered: mpsc::Sender<Answer>,
}

/// What came of one call.
struct Answer {
    took: Duration,
    /// What was given and given back, or why not.
    outcome: Result<(), String>,
}

impl Caller {
    async fn call(self) {
        let this = Arc::new(self);
        let mut ticks = tokio::time::interval(this.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut open = FuturesUnordered::new();
        let mut made = 0;
        loop {
            tokio::select! {
                _ = ticks.tick(), if made < this.calls => {
                    open.push(this.clone().one(made));
                    made += 1;
                }
                Some(()) = open.next() => {}
                else => return,
            }
        }
    }

    async fn one(self: Arc<Self>, call: u32) {
        let request = AllocateRequest {
            service: SERVICE.into(),
            service_hash: self.hash.to_string(),
            mode: Mode::New.into(),
            request_id: format!("storm-{}-{call}", self.name),
        };
        let begin = Instant::now();
        let mut client = self.client.clone();
        let answer = api::call("the allocator", PATIENCE, request, |request| async move {
            client.allocate(request).await
        })
        .await;
        let took = begin.elapsed();
        let outcome = match answer {
            Ok(answer) => {
                tokio::time::sleep(KEPT).await;
                self.give_back(answer.instance.unwrap_or_default()).await
            }
            Err(error) => Err(error.kind().slug().to_owned()),
        };
        let _nobody_counts = self.answered.send(Answer { took, outcome }).await;
    }

    async fn give_back(&self, instance: proto::Instance) -> Result<(), String> {
        let mut client = self.client.clone();
        let request = ReleaseRequest { instance: instance.id };
        let released = api::call("the allocator", PATIENCE, request, |request| async move {
            client.release(request).await
        });
        released.await.map(drop).map_err(|error| format!("release: {error}"))
    }
}

/// All answers.
#[derive(Debug, Default)]
struct Tally {
    given: Vec<Duration>,
    refused: BTreeMap<String, Vec<Duration>>,
}

impl Tally {
    fn add(&mut self, answer: Answer) {
        match answer.outcome {
            Ok(()) => self.given.push(answer.took),
            Err(why) => self.refused.entry(why).or_default().push(answer.took),
        }
    }

    /// What should not have come of any call.
    fn lost(&self) -> Vec<String> {
        self.refused.keys().filter(|why| *why != Kind::NoCapacity.slug()).cloned().collect()
    }

    /// Prints the table and returns how many calls were answered.
    fn print(self, offered: u64, took: Duration, before: &Usage, after: &Usage) -> u64 {
        println!("| answer | calls | a second | p50 ms | p99 ms |\n|---|---|---|---|---|");
        let given = ("an instance, released after 1 s".to_owned(), self.given);
        let mut answered = 0;
        for (what, times) in std::iter::once(given).chain(self.refused) {
            let times = Samples::new(times);
            answered += times.len() as u64;
            println!(
                "| {what} | {} | {:.0} | {} | {} |",
                times.len(),
                times.len() as f64 / took.as_secs_f64(),
                ms(times.percentile(50)),
                ms(times.percentile(99)),
            );
        }
        println!("\n{answered} of {offered} calls answered");
        println!(
            "allocator: RSS {:.1} MB before, {:.1} MB after, {:.1} MB at most; CPU {:.1} % of a core",
            before.rss as f64 / 1e6,
            after.rss as f64 / 1e6,
            after.peak_rss as f64 / 1e6,
            (after.cpu - before.cpu).as_secs_f64() / took.as_secs_f64() * 100.0,
        );
        answered
    }
}

/// Registers the demo, through the registry's local API.
async fn register(socket: &Path) -> anyhow::Result<ServiceHash> {
    let mut registry = RegistryClient::new(local::connect(socket).await?);
    let demo =
        Service::demo_of(&std::env::current_exe()?, SERVICE).args(["demo-hello-world-server"]);
    Ok(demo.register(&mut registry).await?.service_hash.parse()?)
}

/// A peer with a mesh connection to the allocator.
async fn client(
    tasks: &Tasks,
    bootstrap: Bootstrap,
    allocator: PeerId,
) -> anyhow::Result<AllocatorClient<Channel>> {
    let config = Config {
        bootstraps: vec![bootstrap],
        ..Config::loopback(Identity::ephemeral(), &[Role::Proxy])
    };
    let (node, listener) = Node::bind(config, &tasks.spawner()).await?;
    listener.serve(Handlers { grpc: Routes::default(), http: None }, &tasks.spawner());
    node.joined().await;
    let deadline = Instant::now() + KNOWN_WITHIN;
    let endpoint = loop {
        match node.endpoint(allocator).await {
            Ok(endpoint) => break endpoint,
            Err(error) if Instant::now() > deadline => bail!(error),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    Ok(AllocatorClient::new(node.grpc(&endpoint).await?))
}

/// Instances that have not ended, once no more are ending.
async fn settled(socket: &Path) -> anyhow::Result<usize> {
    let mut instances = InstancesClient::new(local::connect(socket).await?);
    let deadline = Instant::now() + KNOWN_WITHIN;
    loop {
        let answer = instances.list_instances(proto::ListInstancesRequest::default()).await?;
        let left = answer.into_inner().instances.len();
        if left == 0 || Instant::now() > deadline {
            return Ok(left);
        }
        tokio::time::sleep(AGAIN).await;
    }
}
