//! An allocator that falls silent in the middle of a start, as processes of machines of
//! their own: another one starts it, and what comes second is released.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Duration};

use anyhow::Context as _;
use lca_tests::{eventually, http as client, program};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::machines::{Daemon, Machine, free_port};

/// What an allocator promises for a start of this service: the start time-out, and 3 s for
/// what surrounds it (decision 9).
const PROMISE: Duration = Duration::from_secs(60 + 3);
/// Until a peer counts as silent. That another is asked takes no longer.
const DETECTION: Duration = Duration::from_secs(3);
/// What a machine that is busy with other things adds to that.
const BUSY: Duration = Duration::from_secs(12);

/// One machine and what runs there but for instances.
struct Host {
    machine: Machine,
    daemon: Daemon,
    own: Vec<i32>,
}

impl Host {
    async fn start(command: &str) -> anyhow::Result<Self> {
        let machine = Machine::new()?;
        let mut daemon = machine.start(command).await?;
        daemon.waits_for_requests().await?;
        let own = machine.processes();
        Ok(Self { machine, daemon, own })
    }

    /// Processes of instances.
    fn instances(&self) -> usize {
        self.machine.processes().iter().filter(|pid| !self.own.contains(pid)).count()
    }
}

#[tokio::test]
async fn what_an_allocator_starts_that_falls_silent_meanwhile_comes_second_and_is_released()
-> anyhow::Result<()> {
    // A program that is ready when the test says so.
    let dir = tempfile::tempdir()?;
    let (gate, script, demo) =
        (dir.path().join("gate"), dir.path().join("waits"), dir.path().join("demo"));
    fs::copy(program("hello-world-server"), &demo)?;
    let (gate_is, demo) = (gate.display(), demo.display());
    fs::write(
        &script,
        format!(
            "#!/bin/sh\nPATH=/bin:/usr/bin\nuntil [ -e '{gate_is}' ]; do sleep 0.05; done\nexec '{demo}'\n"
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;

    let mut registry = Host::start("registry").await?;
    let join = format!("--bootstrap {}", registry.daemon.line("libp2p")?);
    let command = format!("allocator --allow-read {} {join}", dir.path().display());
    let mut hosts = [Host::start(&command).await?, Host::start(&command).await?];
    let [front, metrics] =
        [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let mut proxy =
        Host::start(&format!("proxy {} --metrics-listen {metrics} {join}", front.port())).await?;

    let times = "--start-timeout 60s --idle-timeout 1h";
    let add = format!("lcactl service add kept --exec {} {times}", script.display());
    proxy.machine.prints(&add).await?;

    // Who has just joined is known to some.
    eventually("the proxy to know both allocators", async || {
        let said = proxy.machine.prints("lcactl peers").await?;
        let known = said.lines().filter(|line| line.contains("allocator")).count();
        anyhow::ensure!(known == hosts.len(), "{said}");
        Ok(())
    })
    .await;

    let began = Instant::now();
    let mut request = tokio::spawn(async move { client::get(front, "/kept/hello").await });
    let silent = eventually("one of them to start it", async || {
        let at = hosts.iter().position(|host| host.instances() > 0);
        at.context("neither has a process of an instance")
    })
    .await;
    hosts[silent].daemon.signal(Signal::STOP)?;
    let stopped = Instant::now();
    let other = 1 - silent;
    let other_starts_it = eventually("the other to start it", async || {
        if hosts[other].instances() > 0 { Ok(()) } else { Err(stopped.elapsed()) }
    });
    tokio::select! {
        () = other_starts_it => {}
        answer = &mut request => anyhow::bail!("before it was started: {:?}", answer??.text()),
    }
    let followed = stopped.elapsed();
    anyhow::ensure!(followed < DETECTION + BUSY, "the other was asked after {followed:?}");
    fs::write(&gate, "")?;
    let answer = request.await??;
    let took = began.elapsed();
    assert_eq!(answer.status, 200, "{}", answer.text());
    anyhow::ensure!(took < PROMISE, "answered after {took:?}");

    // It has gone on without its allocator, which is back in time to find it ready.
    assert!(hosts[silent].instances() > 0, "there is nothing to release");
    hosts[silent].daemon.signal(Signal::CONT)?;
    eventually("what came second to be released", async || match hosts[silent].instances() {
        0 => Ok(()),
        left => Err(format!("{left} processes")),
    })
    .await;
    let released = r#"lca_surplus_instances_total{outcome="released"} 1"#;
    eventually("the proxy to say so", async || {
        let said = client::get(metrics, "/metrics").await?.text();
        anyhow::ensure!(said.contains(released), "{said}");
        Ok(())
    })
    .await;
    assert_eq!(hosts[other].instances(), 1, "the one that is used stays");
    assert_eq!(client::get(front, "/kept/hello").await?.status, 200);

    proxy.daemon.stop().await?;
    for host in &mut hosts {
        host.daemon.stop().await?;
    }
    registry.daemon.stop().await
}
