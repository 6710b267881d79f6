//! The registry and all bootstraps are gone for good: services that somebody in reach knows
//! are found, allocated and served, over restarts, also by managers that never saw them.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use lca_tests::{eventually, http as client};
use tokio::time::Instant;

use crate::machines::{Daemon, Machine, free_port};

/// A request that took longer has waited for one who does not come back.
const WAITED: Duration = Duration::from_secs(30);

/// A daemon on a machine of its own.
struct Node {
    machine: Machine,
    daemon: Daemon,
    command: String,
    port: u16,
}

impl Node {
    /// `PORT` in the command is that of its front.
    async fn start(command: &str) -> anyhow::Result<Self> {
        let port = free_port();
        let command = command.replace("PORT", &port.to_string());
        let machine = Machine::new()?;
        let mut daemon = machine.start(&command).await?;
        daemon.waits_for_requests().await?;
        Ok(Self { machine, daemon, command, port })
    }

    async fn start_again(&mut self) -> anyhow::Result<()> {
        self.daemon = self.machine.start(&self.command).await?;
        self.daemon.waits_for_requests().await
    }

    async fn get(&self, target: &str) -> anyhow::Result<client::Answer> {
        client::get(SocketAddr::from(([127, 0, 0, 1], self.port)), target).await
    }

    async fn answers(&self, what: &str, target: &str) {
        eventually(what, async || match self.get(target).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}: {}", self.daemon.err())),
        })
        .await;
    }

    /// Waits until a file of its data folder holds `text`.
    async fn keeps(&self, file: &str, text: &str) {
        eventually("it to be on disk", async || {
            let look = format!("grep -qaF {text} $HOME/.local/share/lca/*/{file}");
            self.machine.prints(&look).await
        })
        .await;
    }
}

#[tokio::test]
async fn without_registry_and_bootstraps_what_anybody_knows_is_started_and_served()
-> anyhow::Result<()> {
    let mut registry = Node::start("registry").await?;
    let join = format!("--bootstrap {}", registry.daemon.line("libp2p")?);
    let mut allocators = Vec::new();
    for _ in 0..2 {
        allocators.push(Node::start(&format!("allocator {join}")).await?);
    }
    let mut user = Node::start(&format!("proxy PORT {join}")).await?;
    // One that knows whom to ask, and nothing of what comes after it.
    let mut stranger = Node::start(&format!("proxy PORT {join}")).await?;
    for allocator in &allocators {
        stranger.keeps("peers.json", &allocator.daemon.line("PeerId")?).await;
    }
    stranger.daemon.stop().await?;
    let add = "lcactl service add kept --exec target/release/hello-world-server";
    user.machine.prints(add).await?;
    // The program is on one of the two machines from now on.
    user.answers("the first request", "/kept/hello").await;
    for node in allocators.iter().chain([&user]) {
        node.keeps("specs.cache", "kept").await;
    }

    registry.daemon.kill().await?;
    for node in allocators.iter_mut().chain([&mut user]) {
        node.daemon.stop().await?;
        assert_eq!(node.machine.processes(), [0; 0], "something is left running");
    }
    for node in allocators.iter_mut().chain([&mut user, &mut stranger]) {
        node.start_again().await?;
    }
    user.answers("it to be allocated by one that knew it", "/kept/hello").await;
    stranger.answers("it to be found by one that did not", "/kept/hello").await;
    let said = user.machine.prints("lcactl -o json instances kept").await?;
    let document: serde_json::Value = serde_json::from_str(&said)?;
    let all = document["instances"].as_array().context("a list")?;
    assert_eq!(all.len(), 1, "both use the same: {said}");

    // It is allocated for one that did not know it, too, and joined through one who did.
    let id = all[0]["id"].as_str().context("an id")?;
    user.machine.prints(&format!("lcactl release {id}")).await?;
    user.daemon.stop().await?;
    let join = format!("--bootstrap {}", allocators[0].daemon.line("libp2p")?);
    let newcomer = Node::start(&format!("proxy PORT {join}")).await?;
    newcomer.answers("it to be allocated for one that did not know it", "/kept/hello").await;

    let begun = Instant::now();
    let unknown = newcomer.get("/never-heard-of/hello").await?;
    assert_eq!(unknown.status, 503, "nobody can say that there is none: {unknown:?}");
    assert!(begun.elapsed() < WAITED, "the answer took {:?}", begun.elapsed());
    let said = newcomer.machine.prints("lcactl service get kept").await?;
    assert!(said.contains("kept"), "{said}");
    Ok(())
}
