//! What it costs to say where a request goes, where that is known: the manager's part of
//! every warm request, from picking to reporting the answer. The manager is a proxy's,
//! among real nodes that probe each other; nothing is sent.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lca::{
    ServiceName,
    api::proto::{AllocateRequest, allocate_request::Mode, allocator_client::AllocatorClient},
    headers::Load,
    local,
};
use lca_manager::{Manager, Outcome, Wish};
use lca_tests::{Cluster, Service, eventually_within};

use crate::machine;

const SERVICE: &str = "picked";
/// Until every instance is known and every distance measured.
const WARM_WITHIN: Duration = Duration::from_secs(60);
/// Of several rounds the best counts: what else the machine does can only lengthen them.
const ROUNDS: u32 = 5;

/// Options of `pick`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Picks of each thread and round
    #[arg(long, default_value = "20000")]
    picks: NonZeroU32,
    /// Instances to choose from, each on an allocator of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    instances: u8,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let count = usize::from(args.instances);
    let cluster = Cluster::builder().allocators(count).proxies(1).start().await?;
    let program = std::env::current_exe()?;
    let service = Service::demo_of(&program, SERVICE).args(["demo-hello-world-server"]);
    let spec = cluster.add(&service).await?;
    for n in 0..count {
        let channel = local::connect(&cluster.allocator(n).socket).await?;
        let request = AllocateRequest {
            service: SERVICE.into(),
            service_hash: spec.service_hash.clone(),
            mode: Mode::New.into(),
            request_id: format!("bench-{n}"),
        };
        AllocatorClient::new(channel).allocate(request).await?;
    }
    let manager = cluster.manager(0).clone();
    eventually_within(WARM_WITHIN, "all instances to be known", async || {
        known(&manager, count).await
    })
    .await;
    println!(
        "warm picks of {count} instances, best of {ROUNDS} rounds of {} on each thread, on {}\n",
        args.picks,
        machine::describe()
    );
    println!("| threads | ns for a pick and its report | allocations for one |\n|---|---|---|");
    for threads in [1, 4] {
        let mut best: Option<(Duration, Option<u64>)> = None;
        for _ in 0..ROUNDS {
            let round = measure(&manager, threads, args.picks.get())?;
            best = Some(best.map_or(round, |best| best.min(round)));
        }
        let (took, allocations) = best.context("a round")?;
        let each = f64::from(args.picks.get());
        let allocations = match allocations {
            Some(all) => format!("{:.1}", all as f64 / each / f64::from(threads)),
            None => "-".into(),
        };
        println!("| {threads} | {:.0} | {allocations} |", took.as_nanos() as f64 / each);
    }
    cluster.drain().await;
    Ok(())
}

fn wish() -> anyhow::Result<Wish> {
    let service: ServiceName = SERVICE.parse()?;
    Ok(Wish::new(service, tokio::time::Instant::now() + Duration::from_secs(30)))
}

/// Whether requests may go to so many.
async fn known(manager: &Manager, count: usize) -> Result<(), String> {
    let mut wish = wish().map_err(|error| error.to_string())?;
    wish.allocate = false;
    while wish.tried.len() < count {
        let target = manager.pick(wish.clone()).await.map_err(|error| error.to_string())?;
        wish.tried.push(target.instance);
    }
    Ok(())
}

/// So many picks by each of several threads: how long one thread took for its own, and
/// what all of them allocated, if that is counted.
fn measure(manager: &Manager, threads: u32, picks: u32) -> anyhow::Result<(Duration, Option<u64>)> {
    let runtime = tokio::runtime::Handle::current();
    let before = allocations();
    let one = || -> anyhow::Result<Duration> {
        runtime.block_on(async {
            let wish = wish()?;
            let begin = Instant::now();
            for _ in 0..picks {
                let target = manager.pick(wish.clone()).await?;
                ensure!(target.steps.is_empty(), "it was not known");
                let under_way = target.under_way();
                let load = Load::default();
                manager.report(&target, Outcome::Answered { load, way: None });
                drop(under_way);
            }
            Ok(begin.elapsed())
        })
    };
    let took = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            let joined = running.into_iter().map(|one| one.join().expect("it does not panic"));
            joined.collect::<anyhow::Result<Vec<_>>>()
        })
    })?;
    let longest = took.into_iter().max().unwrap_or_default();
    Ok((longest, allocations().zip(before).map(|(after, before)| after - before)))
}

#[cfg(feature = "allocations")]
fn allocations() -> Option<u64> {
    Some(crate::allocations::so_far())
}

#[cfg(not(feature = "allocations"))]
fn allocations() -> Option<u64> {
    None
}
