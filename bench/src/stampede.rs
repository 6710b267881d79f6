//! A thousand first requests at the same moment, through ten proxies that do not know of
//! each other, for a service that nobody runs yet: how many instances are started.
//!
//! In one place, every daemon is a process of its own and one instance is what is wanted.
//! In two places, 50 ms apart, with a soft limit of 20 ms, it is one in each; the
//! distance is made by the link profile, which is handed over in code, so that fleet runs in
//! the measuring process, each node with a runtime of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures::future::join_all;
use lca::{PeerId, api::proto::Instance};
use lca_node::link::Profile;
use lca_tests::{Cluster, eventually, http};

use crate::{
    fleet::{self, Fleet},
    machine,
    stats::{Samples, ms},
};

/// What lies between the two places, and what the service asks for.
const APART: Duration = Duration::from_millis(50);
const SOFT_MS: u32 = 20;
/// Kinds of errors that are printed.
const SHOWN: usize = 5;

/// Options of `stampede`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests at the same moment, from all proxies together
    #[arg(long, default_value_t = 1000)]
    requests: usize,
    /// Proxies
    #[arg(long, default_value_t = 10)]
    proxies: usize,
    /// Allocators
    #[arg(long, default_value_t = 5)]
    allocators: usize,
    /// Milliseconds the program needs until it listens
    #[arg(long, default_value_t = 500)]
    start_delay: u64,
    /// Stampedes, each for a service of a new name
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Only in this many places: 1 or 2 [default: both]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=2))]
    places: Option<u8>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    println!(
        "stampede, {} first requests at once through {} proxies, {} allocators, a program that \
         needs {} ms, {} rounds, on {}\n",
        args.requests,
        args.proxies,
        args.allocators,
        args.start_delay,
        args.rounds,
        machine::describe()
    );
    let mut all = Vec::new();
    if args.places != Some(2) {
        all.push(one_place(&args).await?);
    }
    if args.places != Some(1) {
        all.push(two_places(&args).await?);
    }
    println!(
        "| places | instances wanted | rounds with as many | instances, most | errors \
         | last answer p50 ms | max ms |\n|---|---|---|---|---|---|---|"
    );
    all.iter().for_each(Tally::print);
    let mut errors = BTreeMap::new();
    for error in all.iter().flat_map(|tally| tally.rounds.iter().flat_map(|round| &round.errors)) {
        *errors.entry(error).or_insert(0) += 1;
    }
    for (error, times) in errors.into_iter().take(SHOWN) {
        println!("\n{times} times: {error}");
    }
    let reached = all.iter().all(Tally::is_reached);
    let word = if reached { "reached" } else { "NOT reached" };
    println!("\naim of the design (in every round as many instances as places, no error): {word}");
    ensure!(reached, "the aim is not reached");
    Ok(())
}

/// What came of one stampede.
struct Round {
    /// Instances begun, whatever became of them.
    started: usize,
    /// Where they were wanted.
    fits: bool,
    errors: Vec<String>,
    last: Duration,
}

/// What came of all of one kind.
struct Tally {
    places: usize,
    rounds: Vec<Round>,
}

impl Tally {
    fn is_reached(&self) -> bool {
        self.rounds.iter().all(|round| round.fits && round.errors.is_empty())
    }

    fn print(&self) {
        let rounds = &self.rounds;
        let fitting = rounds.iter().filter(|round| round.fits).count();
        let most = rounds.iter().map(|round| round.started).max().unwrap_or_default();
        let errors: usize = rounds.iter().map(|round| round.errors.len()).sum();
        let last = Samples::new(rounds.iter().map(|round| round.last).collect());
        println!(
            "| {} | {} | {fitting} of {} | {most} | {errors} | {} | {} |",
            self.places,
            self.places,
            rounds.len(),
            ms(last.percentile(50)),
            ms(last.percentile(100))
        );
    }
}

async fn one_place(args: &Args) -> anyhow::Result<Tally> {
    let fleet = Fleet::start(args.allocators, args.proxies).await?;
    let fronts = (0..args.proxies).map(|n| fleet.front(n)).collect::<anyhow::Result<Vec<_>>>()?;
    let delay = args.start_delay.to_string();
    // The program is fetched and connections are open: what is measured is a service that
    // nobody runs, not a machine that was just installed.
    fleet.add("prime", &[]).await?;
    for n in 0..args.allocators {
        fleet.allocate("prime", n).await?;
    }
    let warm = stampede(&fronts, "prime", args.proxies).await;
    ensure!(warm.0.is_empty(), "{:?}", warm.0);
    fleet.release("prime").await?;
    let mut rounds = Vec::new();
    for n in 0..args.rounds {
        let name = format!("stampede-{n}");
        fleet.add(&name, &["--start-delay", &delay]).await?;
        let (errors, last) = stampede(&fronts, &name, args.requests).await;
        let started = fleet.instances(&name).await;
        fleet.release(&name).await?;
        let round = Round { started: started.len(), fits: started.len() == 1, errors, last };
        report(n, &round, started.iter().map(|(at, one)| (*at, one)));
        rounds.push(round);
    }
    fleet.stop().await?;
    Ok(Tally { places: 1, rounds })
}

async fn two_places(args: &Args) -> anyhow::Result<Tally> {
    let cluster = Cluster::builder().allocators(args.allocators).proxies(args.proxies);
    let cluster = cluster.instances_each(100).start().await?;
    // The first half here, the second there, the registry here.
    let place = |n: usize, all: usize| usize::from(n >= all.div_ceil(2));
    let allocators = (0..args.allocators)
        .map(|n| (cluster.allocator(n).peer, place(n, args.allocators)))
        .collect::<Vec<_>>();
    let proxies = (0..args.proxies)
        .map(|n| (cluster.proxy(n).peer, place(n, args.proxies)))
        .collect::<Vec<_>>();
    let here = [(cluster.registry().peer, 0)];
    let all = here.iter().chain(&allocators).chain(&proxies).copied().collect::<Vec<_>>();
    for (a, in_a) in &all {
        for (b, _) in all.iter().filter(|(b, in_b)| a < b && in_a != in_b) {
            cluster.link(*a, *b, Profile::rtt(APART));
        }
    }
    for n in 0..args.proxies {
        sees_the_distance(&cluster, n, place(n, args.proxies), &allocators).await;
    }
    let fronts = (0..args.proxies).map(|n| cluster.front(n)).collect::<Vec<_>>();
    let delay = args.start_delay.to_string();
    let mut rounds = Vec::new();
    for n in 0..args.rounds {
        let name = format!("stampede-{n}");
        let mut service = fleet::demo(&name, &["--start-delay", &delay])?;
        service.spec.requirements.get_or_insert_default().soft_rtt_ms = SOFT_MS;
        cluster.add(&service).await?;
        let (errors, last) = stampede(&fronts, &name, args.requests).await;
        let mut started = Vec::new();
        for at in 0..args.allocators {
            let begun = cluster.instances_of(at).await?;
            let begun = begun.into_iter().filter(|one| one.service == name);
            started.extend(begun.map(|one| (place(at, args.allocators), one)));
        }
        release(&cluster, &name).await?;
        let mut places: Vec<_> = started.iter().map(|(place, _)| *place).collect();
        places.sort_unstable();
        let fits = places == [0, 1];
        let round = Round { started: started.len(), fits, errors, last };
        report(n, &round, started.iter().map(|(place, one)| (*place, one)));
        rounds.push(round);
    }
    cluster.drain().await;
    Ok(Tally { places: 2, rounds })
}

/// Waits until a manager has measured every allocator as being in its place.
async fn sees_the_distance(
    cluster: &Cluster,
    proxy: usize,
    place: usize,
    allocators: &[(PeerId, usize)],
) {
    use lca::mesh::Mesh as _;
    let node = cluster.proxy_node(proxy);
    eventually("the distances to be measured", async || {
        let right = |(peer, at): &(PeerId, usize)| {
            let rtt = node.rtt(*peer);
            rtt.is_some_and(|rtt| (rtt >= APART) == (*at != place))
        };
        match allocators.iter().find(|one| !right(one)) {
            None => Ok(()),
            Some((peer, _)) => Err((peer.short().to_string(), node.rtt(*peer))),
        }
    })
    .await;
}

async fn release(cluster: &Cluster, service: &str) -> anyhow::Result<()> {
    use lca::api::proto::{ReleaseRequest, allocator_client::AllocatorClient};
    for instance in cluster.instances().await? {
        if instance.service == service && !fleet::has_ended(&instance) {
            let mut any =
                AllocatorClient::new(lca::local::connect(&cluster.allocator(0).socket).await?);
            any.release(ReleaseRequest { instance: instance.id }).await?;
        }
    }
    Ok(())
}

/// So many requests at once, divided among the fronts: the errors, and how long the last
/// answer took.
async fn stampede(
    fronts: &[SocketAddr],
    service: &str,
    requests: usize,
) -> (Vec<String>, Duration) {
    let begin = Instant::now();
    let target = format!("/{service}/hello");
    let asked = (0..requests).map(|n| http::get(fronts[n % fronts.len()], &target));
    let answers = join_all(asked).await;
    let last = begin.elapsed();
    let errors = answers.into_iter().filter_map(|answer| match answer {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => Some(format!("{}: {}", answer.status, answer.text().trim())),
        Err(error) => Some(format!("{error:#}")),
    });
    (errors.collect(), last)
}

/// One line a round on standard error, so that a long run can be watched.
fn report<'a>(n: usize, round: &Round, started: impl Iterator<Item = (usize, &'a Instance)>) {
    let started: Vec<_> = started.map(|(at, one)| format!("{}@{at}", &one.id[..8])).collect();
    eprintln!(
        "round {n}: started {}, {} errors, last answer after {} ms",
        started.join(" "),
        round.errors.len(),
        ms(round.last)
    );
}
