//! Daemons that are killed, as processes of machines of their own: what runs is taken
//! over, requests go on elsewhere, and `lcactl doctor` names what is missing.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use lca_tests::{eventually, http as client};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::machines::{Daemon, Machine, free_port};

/// Within this time requests go on elsewhere.
const FAILOVER: Duration = Duration::from_secs(5);

/// A registry, allocators with room for one instance each, and a proxy.
struct Fleet {
    registry: (Machine, Daemon),
    allocators: Vec<(Machine, Daemon)>,
    proxy: (Machine, Daemon),
    commands: [String; 3],
    front: SocketAddr,
}

async fn started(command: &str) -> anyhow::Result<(Machine, Daemon)> {
    let machine = Machine::new()?;
    let mut daemon = machine.start(command).await?;
    daemon.waits_for_requests().await?;
    Ok((machine, daemon))
}

/// Kills nothing: starts again what has ended.
async fn start_again(
    (machine, daemon): &mut (Machine, Daemon),
    command: &str,
) -> anyhow::Result<()> {
    *daemon = machine.start(command).await?;
    daemon.waits_for_requests().await
}

impl Fleet {
    async fn start(allocators: usize) -> anyhow::Result<Self> {
        let registry = started("registry").await?;
        let join = format!("--bootstrap {}", registry.1.line("libp2p")?);
        let port = free_port();
        let commands = [
            "registry".to_owned(),
            format!("allocator --instances 1 {join}"),
            format!("proxy {port} {join}"),
        ];
        let mut all = Vec::new();
        for _ in 0..allocators {
            all.push(started(&commands[1]).await?);
        }
        let proxy = started(&commands[2]).await?;
        let add = "lcactl service add kept --exec target/release/hello-world-server";
        proxy.0.prints(add).await?;
        let front = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self { registry, allocators: all, proxy, commands, front })
    }

    /// What is ready, as the proxy tells it: ids and process ids.
    async fn ready(&self) -> anyhow::Result<Vec<(String, i64)>> {
        let said = self.proxy.0.prints("lcactl -o json instances kept").await?;
        let document: serde_json::Value = serde_json::from_str(&said)?;
        let all = document["instances"].as_array().context("a list")?;
        let ready =
            all.iter().filter(|one| one["state"].as_str().is_some_and(|s| s.ends_with("READY")));
        let mut ready = ready
            .map(|one| {
                let id = one["id"].as_str().context("an id")?.to_owned();
                Ok((id, one["pid"].as_i64().with_context(|| format!("no pid in {one}"))?))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        ready.sort();
        Ok(ready)
    }

    async fn are_ready(&self, what: &str, wanted: &[(String, i64)]) {
        eventually(what, async || {
            let ready = self.ready().await.map_err(|error| error.to_string())?;
            if ready == wanted { Ok(()) } else { Err(format!("{ready:?}")) }
        })
        .await;
    }

    async fn answers(&self, what: &str) {
        eventually(what, async || match client::get(self.front, "/kept/hello").await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// Everything is asked to stop, and nothing is left.
    async fn stop(mut self) -> anyhow::Result<()> {
        self.proxy.1.stop().await?;
        for (_, allocator) in &mut self.allocators {
            allocator.stop().await?;
        }
        self.registry.1.stop().await?;
        for (machine, _) in self.allocators.iter().chain([&self.registry, &self.proxy]) {
            assert_eq!(machine.processes(), [0; 0], "something is left running");
        }
        Ok(())
    }
}

/// Clients that ask one after the other; remembers the longest time without an answer.
struct Load {
    seen: Arc<Mutex<Seen>>,
    clients: tokio::task::JoinSet<()>,
}

struct Seen {
    answered: u64,
    failed: Vec<String>,
    last: Instant,
    longest: Duration,
}

fn note(seen: &mut Seen, answer: anyhow::Result<client::Answer>) {
    match answer {
        Ok(answer) if answer.status == 200 => {
            seen.answered += 1;
            seen.longest = seen.longest.max(seen.last.elapsed());
            seen.last = Instant::now();
        }
        Ok(answer) => seen.failed.push(answer.text()),
        Err(error) => seen.failed.push(format!("{error:#}")),
    }
}

impl Load {
    fn on(front: SocketAddr) -> Self {
        let (failed, last, longest) = (Vec::new(), Instant::now(), Duration::ZERO);
        let seen = Seen { answered: 0, failed, last, longest };
        let seen = Arc::new(Mutex::new(seen));
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let seen = seen.clone();
            clients.spawn(async move {
                loop {
                    let answer = client::get(front, "/kept/slow?ms=5").await;
                    note(&mut seen.lock().expect("nobody panics with it"), answer);
                    tokio::task::yield_now().await;
                }
            });
        }
        Self { seen, clients }
    }

    /// What has failed since somebody last asked.
    fn failed(&self) -> Vec<String> {
        std::mem::take(&mut self.seen.lock().expect("nobody panics with it").failed)
    }

    /// Waits for many more answers, and says how long there was none meanwhile.
    async fn longest_gap(&self) -> Duration {
        let before = self.seen.lock().expect("nobody panics with it").answered;
        eventually("more answers", async || {
            let now = self.seen.lock().expect("nobody panics with it").answered;
            if now >= before + 200 { Ok(()) } else { Err(now - before) }
        })
        .await;
        std::mem::take(&mut self.seen.lock().expect("nobody panics with it").longest)
    }
}

// FAULTS 79.
#[tokio::test]
async fn any_daemon_killed_under_load_comes_back_to_what_was() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(2).await?;
    for _ in 0..2 {
        fleet.proxy.0.prints("lcactl allocate kept --new").await?;
    }
    let before = fleet.ready().await?;
    assert_eq!(before.len(), 2, "one on each: {before:?}");
    let mut load = Load::on(fleet.front);
    load.longest_gap().await;

    let [registry, allocator, proxy] = fleet.commands.clone();
    for n in 0..2 {
        fleet.allocators[n].1.kill().await?;
        let gap = load.longest_gap().await;
        assert!(gap <= FAILOVER, "no request was answered for {gap:?}");
        assert_eq!(load.failed(), [""; 0], "with another instance there, none has to fail");
        let left = fleet.allocators[n].0.processes();
        let mine = before.iter().filter(|(_, pid)| left.contains(&(*pid as i32))).count();
        assert_eq!(mine, 1, "the instance outlives its allocator: {left:?}, {before:?}");
        start_again(&mut fleet.allocators[n], &allocator).await?;
        fleet.are_ready("both instances, as they were", &before).await;
    }

    load.longest_gap().await;
    fleet.registry.1.kill().await?;
    let gap = load.longest_gap().await;
    assert!(gap <= FAILOVER, "without a registry no request was answered for {gap:?}");
    start_again(&mut fleet.registry, &registry).await?;
    let list = async || fleet.registry.0.prints("lcactl service get kept").await;
    eventually("the registry to know what it knew", list).await;

    fleet.proxy.1.kill().await?;
    start_again(&mut fleet.proxy, &proxy).await?;
    fleet.answers("the proxy to answer again").await;
    let gap = load.longest_gap().await;
    assert!(gap > Duration::ZERO, "nobody noticed");
    load.clients.shutdown().await;
    fleet.are_ready("both instances, as they were", &before).await;
    fleet.stop().await
}

#[tokio::test]
async fn kept_instances_wait_for_their_allocator_to_start_again() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(1).await?;
    fleet.answers("a first request").await;
    let before = fleet.ready().await?;
    assert_eq!(before.len(), 1);
    // From now on it keeps what runs; it was killed to change that.
    fleet.allocators[0].1.kill().await?;
    let keeps = format!("{} --keep-instances", fleet.commands[1]);
    start_again(&mut fleet.allocators[0], &keeps).await?;
    fleet.are_ready("the instance, as it was", &before).await;

    let second = fleet.allocators[0].0.run(&keeps).await?;
    assert_eq!(second.status.code(), Some(5), "two daemons in one folder: {second:?}");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("in use"), "{said}");

    fleet.allocators[0].1.stop().await?;
    let left = fleet.allocators[0].0.processes();
    assert_eq!(left, [before[0].1 as i32], "it runs on");
    start_again(&mut fleet.allocators[0], &keeps).await?;
    fleet.are_ready("the instance, as it was", &before).await;
    fleet.answers("a request").await;

    fleet.allocators[0].1.stop().await?;
    let without = fleet.commands[1].clone();
    start_again(&mut fleet.allocators[0], &without).await?;
    fleet.are_ready("the instance, as it was", &before).await;
    fleet.stop().await
}

#[tokio::test]
async fn doctor_names_each_daemon_that_was_killed() -> anyhow::Result<()> {
    let mut fleet = Fleet::start(1).await?;
    fleet.is_well().await;
    let [registry, allocator, _] = fleet.commands.clone();

    fleet.allocators[0].1.kill().await?;
    fleet.doctor_says("the first broken link is the allocators").await;
    start_again(&mut fleet.allocators[0], &allocator).await?;
    fleet.is_well().await;

    // It is the bootstrap, too; but the others have joined, and have each other.
    fleet.registry.1.kill().await?;
    fleet.doctor_says("the first broken link is the registry").await;
    start_again(&mut fleet.registry, &registry).await?;
    fleet.is_well().await;

    fleet.registry.1.kill().await?;
    fleet.allocators[0].1.kill().await?;
    fleet.doctor_says("the first broken link is the bootstraps").await;
    for broken in ["registry", "allocators"] {
        fleet.doctor_says(&format!("{broken:<11} broken")).await;
    }
    // One that hangs delays nothing either.
    fleet.proxy.1.signal(Signal::STOP)?;
    fleet.doctor_says("the first broken link is the daemon").await;
    fleet.proxy.1.kill().await?;
    fleet.doctor_says("the first broken link is the socket").await;
    Ok(())
}

impl Fleet {
    /// Each look ends in time; sooner or later it says so, and exits with 4.
    async fn doctor_says(&self, text: &str) {
        eventually(text, async || {
            let began = Instant::now();
            let output = self.proxy.0.run("lcactl doctor").await.map_err(|e| e.to_string())?;
            let took = began.elapsed();
            assert!(took < Duration::from_secs(10), "doctor took {took:?}");
            let (out, err) = (String::from_utf8(output.stdout), String::from_utf8(output.stderr));
            let said = out.unwrap_or_default() + &err.unwrap_or_default();
            let fits = output.status.code() == Some(4) && said.contains(text);
            if fits { Ok(()) } else { Err(format!("{}: {said}", output.status)) }
        })
        .await;
    }

    async fn is_well(&self) {
        eventually("doctor to find nothing", async || self.proxy.0.prints("lcactl doctor").await)
            .await;
    }
}
