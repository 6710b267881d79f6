//! Daemons at their limits: of descriptors, and of patience.

use std::{collections::HashSet, fs};

use anyhow::Context as _;
use lca_tests::eventually;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::machines::{Daemon, Machine};

/// A registry and an allocator, each on a machine of its own; the service is known.
struct Pair {
    registry: (Machine, Daemon),
    allocator: (Machine, Daemon),
}

impl Pair {
    /// `before` is typed in the shell that becomes the allocator, `add` adds a service.
    async fn start(before: &str, add: &str) -> anyhow::Result<Self> {
        let machine = Machine::new()?;
        let mut registry = machine.start("registry").await?;
        registry.waits_for_requests().await?;
        let joins = format!("--bootstrap {}", registry.line("libp2p")?);
        machine.prints(add).await?;
        let second = Machine::new()?;
        let mut allocator = second.start(&format!("({before} exec allocator {joins})")).await?;
        allocator.waits_for_requests().await?;
        Ok(Self { registry: (machine, registry), allocator: (second, allocator) })
    }

    /// Asks for one more instance by way of the registry: its id, or all that was said.
    async fn another(&self) -> anyhow::Result<Result<String, String>> {
        let output = self.registry.0.run("lcactl -o json allocate hello --new").await?;
        let out = String::from_utf8(output.stdout)?;
        if !output.status.success() {
            return Ok(Err(out + &String::from_utf8(output.stderr)?));
        }
        let said: serde_json::Value = serde_json::from_str(&out)?;
        let id = said["instance"]["id"].as_str().or(said["id"].as_str());
        Ok(Ok(id.unwrap_or_else(|| panic!("no id in {said}")).to_owned()))
    }

    async fn release(&self, id: &str) -> anyhow::Result<()> {
        self.registry.0.prints(&format!("lcactl release {id}")).await.map(drop)
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.allocator.1.stop().await?;
        self.registry.1.stop().await?;
        assert_eq!(self.allocator.0.processes(), [0; 0], "something is left running");
        Ok(())
    }
}

const ADD: &str = "lcactl service add hello --exec target/release/hello-world-server";

#[tokio::test]
async fn an_allocator_with_64_descriptors_runs_what_fits_and_refuses_the_rest() -> anyhow::Result<()>
{
    let pair = Pair::start("ulimit -n 64;", ADD).await?;
    let mut running = Vec::new();
    let refused = loop {
        match pair.another().await? {
            Ok(id) => running.push(id),
            Err(said) => break said,
        }
        assert!(running.len() < 64, "never refused");
    };
    assert!(!running.is_empty(), "{refused}");
    assert!(refused.contains("places for instances are taken"), "{refused}");
    let folders = || pair.allocator.0.instance_folders();
    assert_eq!(folders().len(), running.len(), "the refused left a folder");
    pair.release(&running.remove(0)).await?;
    running.push(pair.another().await?.expect("there is room again"));
    for id in &running {
        pair.release(id).await?;
    }
    pair.stop().await
}

#[tokio::test]
async fn out_of_descriptors_the_machine_is_blamed_and_not_the_service() -> anyhow::Result<()> {
    let pair = Pair::start("", ADD).await?;
    // Everything that is opened once is open.
    let first = pair.another().await?.expect("nothing is short yet");
    pair.release(&first).await?;
    let pid = pair.allocator.1.pid();
    let all = getrlimit(Resource::Nofile);
    let mut refused = 0;
    // A front, a port, the output, the pipes of the start: each is the one too many once.
    for spare in 0..8 {
        limit(pid, Rlimit { current: Some(with_spare(pid, spare)), ..all });
        let told = pair.another().await?;
        limit(pid, Rlimit { current: all.maximum, ..all });
        match told {
            Ok(id) => pair.release(&id).await?,
            Err(said) => {
                refused += 1;
                assert!(said.contains("no allocator has room for"), "{spare} spare: {said}");
            }
        }
        // At once: nothing is held against the service.
        eventually("the allocator to be asked again", async || {
            match pair.another().await.map_err(|error| error.to_string())? {
                Ok(id) => pair.release(&id).await.map_err(|error| error.to_string()),
                Err(said) => {
                    assert!(!said.contains("start-failed"), "{said}");
                    Err(said)
                }
            }
        })
        .await;
    }
    assert!(refused > 0, "it never ran out");
    pair.stop().await
}

#[tokio::test]
async fn instances_start_with_the_limit_of_open_files_that_their_allocator_was_given()
-> anyhow::Result<()> {
    let pair = Pair::start("ulimit -Sn 300;", ADD).await?;
    let id = pair.another().await?.expect("there is room");
    let said = pair.registry.0.prints("lcactl -o json instances hello").await?;
    let document: serde_json::Value = serde_json::from_str(&said)?;
    let pid = document["instances"][0]["pid"].as_i64().context("a pid")?;
    let soft = |pid: String| -> anyhow::Result<String> {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"));
        let mut words = line.context("a limit of open files")?.split_whitespace();
        Ok(words.nth(3).context("a soft limit")?.to_owned())
    };
    assert_eq!(soft(pid.to_string())?, "300");
    let own = soft(pair.allocator.1.pid().as_raw_nonzero().to_string())?;
    assert_ne!(own, "300", "the allocator has raised its own");
    pair.release(&id).await?;
    pair.stop().await
}

#[tokio::test]
async fn a_signal_while_an_allocator_starts_stops_what_it_takes_over() -> anyhow::Result<()> {
    let mut pair = Pair::start("", ADD).await?;
    pair.another().await?.expect("it starts");
    pair.allocator.1.kill().await?;
    assert_eq!(pair.allocator.0.processes().len(), 1, "the instance lives on");
    // One of its files cannot be read before somebody writes.
    let pipe = "$HOME/.local/share/lca/allocator/specs.cache";
    pair.allocator.0.prints(&format!("rm -f {pipe}; mkfifo {pipe}")).await?;
    let joins = format!("--bootstrap {}", pair.registry.1.line("libp2p")?);
    pair.allocator.1 = pair.allocator.0.start(&format!("allocator {joins}")).await?;
    // Opening a pipe for writing waits for its reader, which is in the middle of the start.
    let pid = pair.allocator.1.pid().as_raw_nonzero();
    pair.allocator.0.prints(&format!("exec 3> {pipe}; kill -TERM {pid}; sleep 0.2")).await?;
    let status = pair.allocator.1.ended().await;
    let said = pair.allocator.1.err();
    assert!(said.contains("took over"), "it had not begun to take over: {said}");
    assert!(status.success(), "{status}: {said}");
    assert!(!pair.allocator.1.out().contains("Waiting for requests"), "{said}");
    assert_eq!(pair.allocator.0.processes(), [0; 0], "something is left running: {said}");
    pair.registry.1.stop().await
}

#[tokio::test]
async fn a_second_signal_ends_an_allocator_at_once_with_what_it_runs() -> anyhow::Result<()> {
    let add = format!("{ADD} -- --ignore-term");
    let mut pair = Pair::start("", &add).await?;
    pair.another().await?.expect("it starts");
    pair.allocator.1.signal(Signal::TERM)?;
    eventually("it to stop", async || {
        let said = pair.allocator.1.err();
        if said.contains("stopping") { Ok(()) } else { Err(said) }
    })
    .await;
    pair.allocator.1.signal(Signal::TERM)?;
    let status = pair.allocator.1.ended().await;
    let said = pair.allocator.1.err();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("stopping at once"), "{said}");
    assert_eq!(pair.allocator.0.processes(), [0; 0], "something is left running");
    pair.registry.1.stop().await
}

fn limit(pid: Pid, to: Rlimit) {
    prlimit(Some(pid), Resource::Nofile, to).expect("it is ours");
}

/// The limit that leaves it this many descriptors to open.
fn with_spare(pid: Pid, spare: usize) -> u64 {
    let open = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("it runs");
    let numbers = open.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let open: HashSet<u64> = numbers.collect();
    (0..).filter(|number| !open.contains(number)).nth(spare).expect("there are endless numbers")
}
