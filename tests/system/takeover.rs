//! Instances that outlive their allocator.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use lca::{api::proto::InstanceState, endpoint::Endpoint, headers, shutdown::Tasks};
use lca_node::{Node, mesh::Alpn};
use lca_tests::{Cluster, Service, eventually, processes};
use rustix::process::Pid;

use crate::machines::{Daemon, Machine};

async fn answers(cluster: &Cluster, target: &str) {
    eventually("an answer", async || {
        let answer = cluster.get(target).await.map_err(|error| error.to_string())?;
        if answer.status == 200 { Ok(()) } else { Err(answer.text()) }
    })
    .await;
}

#[tokio::test]
async fn a_killed_allocator_finds_its_instances_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::builder().keep_instances().start().await?;
    cluster.add(&Service::demo("kept")).await?;
    assert_eq!(cluster.get("/kept/hello").await?.status, 200);
    let before = cluster.instances_of(0).await?.remove(0);
    for _ in 0..2 {
        cluster.kill_allocator(0).await;
        let runs = processes::below(cluster.dir());
        assert!(runs.contains(&before.pid.cast_signed()), "it did not outlive its allocator");
        cluster.start_allocator(0).await?;
        answers(&cluster, "/kept/hello").await;
        let mut live = cluster.instances_of(0).await?;
        live.retain(|one| one.state() == InstanceState::Ready);
        let known: Vec<_> = live.iter().map(|one| (&one.id, one.pid)).collect();
        assert_eq!(known, [(&before.id, before.pid)], "something was started twice");
    }
    // The instance reaches other services where it was told to.
    cluster.add(&Service::demo("other")).await?;
    answers(&cluster, "/other/hello").await;
    Ok(())
}

/// Within this time of being able to run, a daemon answers for what it found running.
const BACK_WITHIN: Duration = Duration::from_secs(1);
/// How many run when their allocator goes away.
const MANY: usize = 20;

/// An allocator on a machine of its own, and a node that asks it as a peer does.
struct Alone {
    machine: Machine,
    daemon: Daemon,
    node: Node,
    at: Endpoint,
    _tasks: Tasks,
}

/// What runs, as the allocator tells it: id, process id and service hash.
type Runs = Vec<(String, i64, String)>;

impl Alone {
    const COMMAND: &str = "allocator --instances 20 --keep-instances --bootstrap";

    async fn start(bootstrap: &str) -> anyhow::Result<Self> {
        let machine = Machine::new()?;
        let mut daemon = machine.start(&format!("{} {bootstrap}", Self::COMMAND)).await?;
        daemon.waits_for_requests().await?;
        let at = Endpoint {
            peer: daemon.line("PeerId")?.parse()?,
            roles: vec![],
            mesh: vec![daemon.line("mesh")?.parse()?],
            boot: 1,
            sequence: 1,
            ttl: Duration::from_secs(600),
            version: lca::VERSION.to_owned(),
        };
        let tasks = Tasks::default();
        let config = lca_node::Config::loopback(lca_node::Identity::ephemeral(), &[]);
        let (node, _listener) = Node::bind(config, &tasks.spawner()).await?;
        Ok(Self { machine, daemon, node, at, _tasks: tasks })
    }

    async fn runs(&self) -> anyhow::Result<Runs> {
        let said = self.machine.prints("lcactl -o json instances kept").await?;
        let document: serde_json::Value = serde_json::from_str(&said)?;
        let all = document["instances"].as_array().context("a list")?;
        let mut runs = Vec::new();
        for one in all {
            let state = one["state"].as_str().unwrap_or_default();
            anyhow::ensure!(state.ends_with("READY"), "{one}");
            let text = |key: &str| Some(one[key].as_str()?.to_owned());
            let pid = one["pid"].as_i64().context("a process id")?;
            runs.push((text("id").context("id")?, pid, text("service_hash").context("hash")?));
        }
        runs.sort();
        Ok(runs)
    }

    /// One request to each, by one connection to the mesh port it had.
    async fn ask_all(&self, runs: &Runs) -> anyhow::Result<()> {
        let stream = self.node.connect(&self.at, Alpn::H1).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let ask = async {
            for (id, _, hash) in runs {
                let request = hyper::Request::get("/hello")
                    .header(hyper::header::HOST, "kept")
                    .header(headers::SERVICE, hash)
                    .header(headers::INSTANCE, id)
                    .body(http_body_util::Empty::<bytes::Bytes>::new())?;
                let answer = sender.send_request(request).await?;
                let (status, refusal) =
                    (answer.status(), answer.headers().get(&headers::REFUSAL).cloned());
                anyhow::ensure!(status == 200, "{id}: {status} {refusal:?}");
                answer.into_body().collect().await?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            asked = ask => asked,
            ended = connection => anyhow::bail!("cut off: {ended:?}"),
        }
    }

    /// Starts it again: how long until all of them are answered for, less what it had to wait
    /// for a core.
    async fn back(&mut self, bootstrap: &str, runs: &Runs) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.daemon = self.machine.start(&format!("{} {bootstrap}", Self::COMMAND)).await?;
        eventually("each to be answered for", async || {
            self.ask_all(runs).await.map_err(|error| format!("{error:#}: {}", self.daemon.err()))
        })
        .await;
        let took = begun.elapsed();
        let waited = waited_for_a_core(self.daemon.pid());
        self.daemon.waits_for_requests().await?;
        Ok(took.saturating_sub(waited))
    }
}

/// How long one thread of a process was ready to run and did not, the one that had to most.
fn waited_for_a_core(process: Pid) -> Duration {
    let process = process.as_raw_nonzero();
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    let waited = threads.flatten().filter_map(|thread| {
        let line = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or_default())
}

// FAULTS 79, with a clock: the same ids, processes and mesh port, and no second copy.
#[tokio::test]
async fn twenty_instances_are_answered_for_within_a_second_of_their_allocators_start()
-> anyhow::Result<()> {
    let registry = Machine::new()?;
    let mut first = registry.start("registry").await?;
    first.waits_for_requests().await?;
    let bootstrap = first.line("libp2p")?;
    let mut allocator = Alone::start(&bootstrap).await?;
    let add = "lcactl service add kept --exec target/release/hello-world-server --memory 16MiB --cpu 0.01";
    registry.prints(add).await?;
    for _ in 0..MANY {
        allocator.machine.prints("lcactl allocate kept --new").await?;
    }
    let runs = allocator.runs().await?;
    assert_eq!(runs.len(), MANY);
    for killed in [true, false] {
        let mut took = Vec::new();
        // A busy machine has other waits, too.
        while took.len() < 5 && !took.iter().any(|took| *took < BACK_WITHIN) {
            if killed {
                allocator.daemon.kill().await?
            } else {
                allocator.daemon.stop().await?
            }
            took.push(allocator.back(&bootstrap, &runs).await?);
            assert_eq!(allocator.runs().await?, runs, "something was lost or started twice");
        }
        assert!(took.iter().any(|took| *took < BACK_WITHIN), "killed: {killed}: {took:?}");
    }
    let log = allocator.daemon.err();
    assert_eq!(log.matches("instance taken over").count(), MANY, "{log}");
    assert!(!log.contains("instance ready"), "{log}");
    Ok(())
}
