//! More instances while there is more to do, and fewer when there is not; and an instance
//! that idles out, is released or drains costs nobody a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use lca::api::proto::{Instance, InstanceState, ReleaseRequest, allocator_client::AllocatorClient};
use lca_tests::{Cluster, Service, eventually, http as client};
use tokio::{task::JoinSet, time::sleep};

/// Clients that ask for the same thing, one request after the other, until told to stop.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    tasks: JoinSet<Vec<String>>,
}

impl Clients {
    /// So many, each with this pause after an answer.
    pub(crate) fn start(
        front: std::net::SocketAddr,
        target: &str,
        count: usize,
        pause: Duration,
    ) -> Self {
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let (stop, answered) = (stop.clone(), answered.clone());
            let target = target.to_owned();
            tasks.spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match client::get(front, &target).await {
                        Ok(answer) if answer.status == 200 => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => failed.push(format!("{}: {}", answer.status, answer.text())),
                        Err(error) => failed.push(format!("{error:#}")),
                    }
                    sleep(pause).await;
                }
                failed
            });
        }
        Self { stop, answered, tasks }
    }

    /// Waits for so many more answers.
    pub(crate) async fn answers(&self, more: usize) {
        let before = self.answered.load(Ordering::Relaxed);
        eventually("more answers", async || {
            let now = self.answered.load(Ordering::Relaxed);
            if now >= before + more { Ok(()) } else { Err(now - before) }
        })
        .await;
    }

    /// Stops them; what failed.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await.into_iter().flatten().collect()
    }
}

pub(crate) async fn ready(cluster: &Cluster) -> Result<Vec<Instance>, String> {
    let all = cluster.instances().await.map_err(|error| error.to_string())?;
    Ok(all.into_iter().filter(|one| one.state() == InstanceState::Ready).collect())
}

#[tokio::test]
async fn load_above_the_target_gets_a_second_instance_and_less_lets_one_go() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    let mut service = Service::demo("busy").idle_timeout_ms(2000);
    service.spec.target_concurrency = 4;
    service.spec.max_instances = 2;
    cluster.add(&service).await?;
    let few = Clients::start(cluster.front(0), "/busy/slow?ms=100", 2, Duration::ZERO);
    few.answers(20).await;
    let many = Clients::start(cluster.front(0), "/busy/slow?ms=100", 8, Duration::ZERO);
    eventually("a second instance that has work", async || {
        let ready = ready(&cluster).await?;
        let busy = |one: &Instance| one.load.is_some_and(|load| load.in_flight > 0);
        if ready.len() == 2 && ready.iter().all(busy) { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    many.answers(200).await;
    assert_eq!(cluster.instances().await?.len(), 2, "never more than there may be");
    assert_eq!(many.stop().await, [""; 0]);
    // Two clients go on, and one instance is enough for them.
    eventually("one of the two to idle out", async || {
        let ready = ready(&cluster).await?;
        if ready.len() == 1 { Ok(()) } else { Err(format!("{} are ready", ready.len())) }
    })
    .await;
    few.answers(20).await;
    assert_eq!(few.stop().await, [""; 0]);
    assert_eq!(cluster.instances().await?.len(), 2, "none was started again");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn requests_at_the_moment_of_an_idle_stop_are_all_answered() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    const SERVICES: usize = 8;
    const ROUNDS: usize = 40;
    const IDLE: u64 = 40;
    for n in 0..SERVICES {
        cluster.add(&Service::demo(&format!("race-{n}")).idle_timeout_ms(IDLE)).await?;
    }
    let races = (0..SERVICES).map(async |n| {
        let target = format!("/race-{n}/hello");
        for round in 0..ROUNDS {
            let answer = cluster.get(&target).await.expect("an answer");
            assert_eq!(answer.status, 200, "round {round} of {n}: {}", answer.text());
            // From before the moment to after it, a millisecond at a time.
            sleep(Duration::from_millis(IDLE - 20 + round as u64)).await;
        }
    });
    join_all(races).await;
    let idled = cluster.instances().await?.len();
    assert!(idled > SERVICES * 2, "only {idled} instances: nothing idled out, the race was none");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_request_that_meets_a_draining_instance_is_answered_by_another() -> anyhow::Result<()> {
    // Two machines; what is released is started anew on either, while requests go on.
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("drained")).await?;
    assert_eq!(cluster.get("/drained/hello").await?.status, 200);
    let clients = Clients::start(cluster.front(0), "/drained/slow?ms=20", 6, Duration::ZERO);
    for _ in 0..10 {
        clients.answers(20).await;
        let Some(instance) = ready(&cluster).await.map_err(anyhow::Error::msg)?.pop() else {
            continue;
        };
        let release = ReleaseRequest { instance: instance.id };
        AllocatorClient::new(cluster.proxy_api(0).await?).release(release).await?;
    }
    assert_eq!(clients.stop().await, [""; 0]);
    let all = cluster.instances().await?;
    assert!(all.len() > 5, "only {} instances", all.len());
    cluster.drain().await;
    Ok(())
}
