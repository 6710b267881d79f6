//! `allocator --drain`, typed on a machine whose allocator is in use.

use std::net::SocketAddr;

use lca_tests::{eventually, http as client};
use rustix::process::Signal;

use crate::machines::{Daemon, Machine, free_port};

async fn started(command: &str) -> anyhow::Result<(Machine, Daemon)> {
    let machine = Machine::new()?;
    let mut daemon = machine.start(command).await?;
    daemon.waits_for_requests().await?;
    Ok((machine, daemon))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allocator_in_use_is_drained_without_a_failed_request() -> anyhow::Result<()> {
    let (_registry_machine, registry) = started("registry").await?;
    let join = format!("--bootstrap {}", registry.line("libp2p")?);
    let (first_machine, mut first) = started(&format!("allocator {join}")).await?;
    let port = free_port();
    let (proxy_machine, _proxy) = started(&format!("proxy {port} {join}")).await?;
    let front = SocketAddr::from(([127, 0, 0, 1], port));
    proxy_machine
        .prints("lcactl service add kept --exec target/release/hello-world-server")
        .await?;
    eventually("an answer", async || match client::get(front, "/kept/hello").await {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (_second_machine, _second) = started(&format!("allocator {join}")).await?;
    // A request that it has is finished, however long that takes.
    let slow = tokio::spawn(client::get(front, "/kept/slow?ms=6000"));
    eventually("the request to be open", async || {
        let said = proxy_machine.prints("lcactl -o json instances kept").await.unwrap_or_default();
        said.contains("\"in_flight\": 1").then_some(()).ok_or(said)
    })
    .await;
    let waited = first_machine.run("allocator --drain --drain-within 300ms").await?;
    assert_eq!(waited.status.code(), Some(4), "{waited:?}");
    let said = String::from_utf8_lossy(&waited.stderr).into_owned();
    assert!(said.contains("1 instances left, 1 requests open"), "{said}");
    assert!(said.contains("the allocator goes on draining"), "{said}");
    // Whoever stops watching changes nothing.
    let mut watching = first_machine.start("exec allocator --drain").await?;
    eventually("it to watch", async || {
        watching.err().contains("1 requests open").then_some(()).ok_or(watching.err())
    })
    .await;
    watching.signal(Signal::INT)?;
    assert_eq!(watching.ended().await.code(), Some(130), "{}", watching.err());
    // Requests go on, at the other allocator.
    let answer = client::get(front, "/kept/hello").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!slow.is_finished(), "the request is over too soon to say anything");
    let drained = first_machine.run("allocator --drain").await?;
    assert!(drained.status.success(), "{drained:?}");
    let ended = first.ended().await;
    assert!(ended.success(), "{ended}: {}", first.err());
    assert_eq!(slow.await??.status, 200, "an open request was cut off");
    assert_eq!(first_machine.processes(), [0; 0], "something is left running");
    let again = first_machine.run("allocator --drain").await?;
    assert_eq!(again.status.code(), Some(4), "nothing runs there any more: {again:?}");
    Ok(())
}
