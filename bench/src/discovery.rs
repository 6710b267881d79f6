//! Finds in a DHT of many nodes in one process, each by a node that has never looked for
//! the key: how soon the first verified endpoint is there, how soon a miss is known, how
//! long the whole query goes on, and what it costs in messages and bytes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt as _, future::join_all};
use lca::{
    Digest, ServiceHash,
    discovery::{Discovery as _, Found, Key},
    endpoint::Role,
    shutdown::Tasks,
};
use lca_node::{Config, Identity, Node, mesh::Handlers};
use tonic::service::Routes;

use crate::{
    machine,
    stats::{Samples, ms},
};

/// An announcement is in the DHT well within this.
const SETTLE_WITHIN: Duration = Duration::from_secs(30);
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(50);
/// One round of renewals, so that the rate is not that of a burst.
const UPKEEP: Duration = Duration::from_secs(15);
/// Keys from here on are announced by nobody.
const UNANNOUNCED: usize = 1_000_000;

/// Options of `discovery`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes in this process
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Finds of each kind
    #[arg(long, default_value_t = 200)]
    finds: usize,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let tasks = Tasks::default();
    let nodes = start(args.nodes, &tasks).await?;
    println!(
        "discovery, {} nodes in one process, {} finds each, on {}\n",
        args.nodes,
        args.finds,
        machine::describe()
    );
    let node = |n: usize| &nodes[n % nodes.len()];

    let mut keys = Vec::new();
    for n in 0..args.finds {
        node(n).announce(key(n)).await?;
        keys.push(key(n));
    }
    settle(&nodes, &keys).await?;

    let (mut first, mut whole, mut missed) = (Vec::new(), Vec::new(), Vec::new());
    // What goes on without finds, so that it can be taken off.
    let idle = upkeep(&nodes).await;
    let (before, begin) = (traffic(&nodes), Instant::now());
    for (n, key) in keys.iter().enumerate() {
        // Far from the announcer in the list, and different each time.
        let one = find(node(n + nodes.len() / 2), *key).await;
        first.push(one.first.context("what was announced is found")?);
        whole.push(one.whole);
    }
    let after = traffic(&nodes);
    let upkeep = idle * begin.elapsed().as_secs_f64();
    for n in 0..args.finds {
        let one = find(node(n), key(UNANNOUNCED + n)).await;
        missed.push(one.miss.context("what nobody has is missed")?);
    }
    println!("| | p50 ms | p90 ms | p99 ms |\n|---|---|---|---|");
    let first = Samples::new(first);
    let whole = Samples::new(whole);
    for (what, samples) in [
        ("first verified endpoint", &first),
        ("whole query", &whole),
        ("miss", &Samples::new(missed)),
    ] {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| ms(samples.percentile(percent)));
        println!("| {what} | {p50} | {p90} | {p99} |");
    }
    let finds = args.finds as f64;
    println!(
        "\nper find: {:.1} requests of its own queries, {:.1} KiB sent by all nodes together, \
         upkeep taken off ({:.0} KiB/s)",
        (after.0 - before.0) as f64 / finds,
        ((after.1 - before.1) as f64 - upkeep).max(0.0) / finds / 1024.0,
        idle / 1024.0,
    );
    let ratio = first.percentile(50).as_secs_f64() / whole.percentile(50).as_secs_f64();
    println!("first endpoint / whole query, p50: {ratio:.2} (aim of the design: 0.5)");
    tasks.drain(Duration::from_secs(5)).await;
    Ok(())
}

/// What one find told, and when.
struct One {
    first: Option<Duration>,
    miss: Option<Duration>,
    whole: Duration,
}

/// Looks for `key` to the end of the query.
async fn find(node: &Node, key: Key) -> One {
    let begin = Instant::now();
    let (mut first, mut miss) = (None, None);
    let mut finding = node.find(key);
    while let Some(found) = finding.next().await {
        match found {
            Found::Endpoint(_) => first = first.or(Some(begin.elapsed())),
            Found::Miss => miss = Some(begin.elapsed()),
        }
    }
    One { first, miss, whole: begin.elapsed() }
}

/// Starts `count` nodes, each joining through the first.
async fn start(count: usize, tasks: &Tasks) -> anyhow::Result<Vec<Node>> {
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..count.max(2) {
        let mut config = Config::loopback(Identity::ephemeral(), &[Role::Proxy]);
        config.bootstraps = nodes.first().map(Node::bootstrap_addresses).unwrap_or_default();
        let (node, listener) = Node::bind(config, &tasks.spawner()).await?;
        let handlers = Handlers { grpc: Routes::default(), http: None };
        listener.serve(handlers, &tasks.spawner());
        nodes.push(node);
    }
    join_all(nodes.iter().map(Node::joined)).await;
    Ok(nodes)
}

/// Waits until every announcement has reached the DHT: until the bootstrap, which knows
/// everybody, finds each key.
async fn settle(nodes: &[Node], keys: &[Key]) -> anyhow::Result<()> {
    let announcers = |n: usize| n % nodes.len();
    for (n, key) in keys.iter().enumerate() {
        // The bootstrap does not find itself.
        let asker = &nodes[usize::from(announcers(n) == 0)];
        let deadline = Instant::now() + SETTLE_WITHIN;
        while find(asker, *key).await.first.is_none() {
            ensure!(Instant::now() < deadline, "an announcement does not arrive");
            tokio::time::sleep(AGAIN).await;
        }
    }
    Ok(())
}

/// Bytes a second that all nodes together send while nobody looks for anything.
async fn upkeep(nodes: &[Node]) -> f64 {
    let (before, begin) = (traffic(nodes), Instant::now());
    tokio::time::sleep(UPKEEP).await;
    (traffic(nodes).1 - before.1) as f64 / begin.elapsed().as_secs_f64()
}

/// Requests of finds and bytes of libp2p so far, of all nodes.
fn traffic(nodes: &[Node]) -> (u64, u64) {
    let each = nodes.iter().map(|node| (node.find_stats().requests, node.traffic().written));
    each.fold((0, 0), |(requests, bytes), (r, b)| (requests + r, bytes + b))
}

/// A key that depends on `n` alone, spread over the key space.
fn key(n: usize) -> Key {
    Key::Service(ServiceHash::from_sha256(*Digest::of(&n.to_be_bytes()).as_bytes()))
}
