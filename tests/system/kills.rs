//! An allocator that is killed again and again while it starts, stops and serves: at the
//! end it knows everything that runs, and once it has stopped nothing is left.
//!
//! `LCA_KILLS=200` makes it as many; docs/benchmarks.md has what that gave.

use std::{collections::BTreeSet, fs, os::unix::ffi::OsStrExt as _, path::Path, time::Duration};

use anyhow::Context as _;
use lca::Digest;
use lca_tests::{eventually, http as client};
use rand::RngExt as _;
use tokio::task::JoinSet;

use crate::machines::{Daemon, Machine, free_port};

/// A kill comes at most so long after the allocator takes requests again, in milliseconds.
const LATEST: u64 = 150;

/// How often it is killed.
fn kills() -> u32 {
    std::env::var("LCA_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// What is in the control groups of the instances of the driver that uses `dir`, and the
/// folder itself where it is there.
fn groups(dir: &Path) -> BTreeSet<String> {
    let digest = Digest::of(dir.as_os_str().as_bytes()).to_string();
    let name = format!("lca-{}", &digest["sha256:".len()..][..8]);
    let (mut found, mut folders) = (BTreeSet::new(), vec![("/sys/fs/cgroup".into(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        let folder: std::path::PathBuf = folder;
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if path.ends_with(&name) {
                let inside = fs::read_dir(&path).into_iter().flatten().flatten();
                let ids = inside.filter(|entry| entry.path().is_dir());
                found.extend(ids.map(|entry| entry.file_name().to_string_lossy().into_owned()));
                found.insert(name.clone());
            } else if depth < 6 {
                folders.push((path, depth + 1));
            }
        }
    }
    found
}

/// What an allocator says it has: process ids of what is not over, and the ids of all.
#[derive(Debug, Default)]
struct Known {
    pids: BTreeSet<i64>,
    ids: BTreeSet<String>,
}

async fn known(allocator: &Machine) -> anyhow::Result<Known> {
    let said = allocator.prints("lcactl -o json instances --all kept").await?;
    let document: serde_json::Value = serde_json::from_str(&said)?;
    let mut known = Known::default();
    for one in document["instances"].as_array().context("a list")? {
        let (state, id) = (one["state"].as_str(), one["id"].as_str());
        let over = state.is_some_and(|s| s.ends_with("STOPPED") || s.ends_with("FAILED"));
        known.pids.extend(one["pid"].as_i64().filter(|_| !over));
        known.ids.insert(id.context("an id")?.to_owned());
    }
    Ok(known)
}

#[tokio::test]
async fn an_allocator_that_is_killed_at_any_moment_loses_nothing_and_leaves_nothing()
-> anyhow::Result<()> {
    let (registry, allocator, proxy) = (Machine::new()?, Machine::new()?, Machine::new()?);
    let mut registry_daemon = registry.start("registry").await?;
    registry_daemon.waits_for_requests().await?;
    let join = format!("--bootstrap {}", registry_daemon.line("libp2p")?);
    let command = format!("allocator --instances 6 {join}");
    let mut daemon: Daemon = allocator.start(&command).await?;
    daemon.waits_for_requests().await?;
    let port = free_port();
    let mut proxy_daemon = proxy.start(&format!("proxy {port} {join}")).await?;
    proxy_daemon.waits_for_requests().await?;
    let add = "lcactl service add kept --exec target/release/hello-world-server";
    proxy.prints(&format!("{add} --idle-timeout 2s")).await?;

    // Somebody allocates, somebody releases, somebody asks; what fails while it is away is
    // no matter here.
    let proxy = std::sync::Arc::new(proxy);
    let mut users = JoinSet::new();
    for _ in 0..2 {
        users.spawn(async move {
            loop {
                let front = ([127, 0, 0, 1], port).into();
                let _answered_or_not = client::get(front, "/kept/hello").await;
                tokio::task::yield_now().await;
            }
        });
    }
    for script in [
        "lcactl allocate kept --new",
        "for one in $(lcactl -o json instances kept | grep -o '\"id\": *\"[0-9a-f]*\"' | \
         cut -d'\"' -f4 | head -2); do lcactl release $one; done",
    ] {
        let proxy = proxy.clone();
        users.spawn(async move {
            loop {
                let _done_or_not = proxy.run(script).await;
            }
        });
    }

    for n in 0..kills() {
        let moment = rand::rng().random_range(0..LATEST);
        tokio::time::sleep(Duration::from_millis(moment)).await;
        daemon.kill().await?;
        daemon = allocator.start(&command).await?;
        daemon.waits_for_requests().await?;
        if n % 10 == 9 {
            println!("{} kills", n + 1);
        }
    }
    users.shutdown().await;

    // Everything that runs is known, and everything that is known runs.
    let dir = allocator.allocator_dir().canonicalize()?;
    eventually("what is known to be what runs", async || {
        let known = known(&allocator).await.map_err(|error| error.to_string())?;
        let ours = daemon.pid().as_raw_nonzero().get();
        let run = allocator.processes().into_iter();
        let run = run.filter(|pid| *pid != ours && !daemon.is_shell(*pid)).map(i64::from);
        let run: BTreeSet<_> = run.collect();
        // The output of what is over is kept for a while, and what is known of it.
        let folders = allocator.instance_folders();
        let strange = folders.iter().any(|folder| !known.ids.contains(folder));
        let right = known.pids == run && !strange;
        if right { Ok(()) } else { Err(format!("{known:?}, running {run:?}, {folders:?}")) }
    })
    .await;
    let answer = client::get(([127, 0, 0, 1], port).into(), "/kept/hello").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());

    for mut daemon in [proxy_daemon, daemon, registry_daemon] {
        daemon.stop().await?;
    }
    assert_eq!(allocator.processes(), [0; 0], "something is left running");
    assert_eq!(groups(&dir), BTreeSet::new(), "a control group is left");
    Ok(())
}
