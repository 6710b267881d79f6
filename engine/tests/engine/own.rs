//! An engine of the test's own: with a disk that is too small, stopped in the middle of what
//! it does, killed and started again. It needs root, `dockerd` and leave to mount; without, the
//! tests say SKIPPED, or fail with `LCA_DOCKERD=required`.

use std::{
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lca::{ImageRef, Kind, testing::eventually};
use lca_engine::{Address, Engine, Keyring, PATIENCE, Wanted};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    between::{Between, Does},
    bundle::Bundle,
    means::Bench,
};

const DEMANDED: &str = "LCA_DOCKERD";
const MEGABYTE: usize = 1 << 20;
/// What the engine needs for itself, and not a large image besides.
const DISK: usize = 48 * MEGABYTE;

/// An engine with a disk of [`DISK`], in mounts of its own, without a network for containers.
struct Own {
    dir: TempDir,
    child: Child,
}

impl Own {
    async fn start() -> Option<(Self, Engine)> {
        let missing = |reason: &str| {
            let demanded = std::env::var_os(DEMANDED).is_some_and(|value| value == "required");
            assert!(!demanded, "{DEMANDED}=required, and {reason}");
            eprintln!("SKIPPED: {reason}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return missing("only root may run an engine of its own");
        }
        if !Path::new("/usr/sbin/dockerd").exists() && !Path::new("/usr/bin/dockerd").exists() {
            return missing("there is no dockerd (Debian package docker.io)");
        }
        let mut mounting = Command::new("unshare");
        mounting.args(["-m", "mount", "-t", "tmpfs", "none", "/mnt"]).stderr(Stdio::null());
        if !mounting.status().is_ok_and(|status| status.success()) {
            return missing("this machine does not let us mount");
        }
        let dir = tempfile::tempdir().unwrap();
        for folder in ["data", "exec"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        std::fs::write(dir.path().join("daemon.json"), "{}").unwrap();
        let script = format!(
            "cd {} && mount -t tmpfs -o size={DISK} none data && exec dockerd \
             --config-file daemon.json --host unix://$PWD/sock --data-root $PWD/data \
             --exec-root $PWD/exec --pidfile $PWD/pid --storage-driver vfs --bridge none --iptables=false",
            dir.path().display()
        );
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let own = Self { dir, child };
        let address = own.address();
        let engine =
            eventually("dockerd to answer", async || Engine::connect(&address).await).await;
        Some((own, engine))
    }

    fn address(&self) -> Address {
        Address::Unix(self.dir.path().join("sock"))
    }

    fn signal(&self, signal: rustix::process::Signal) {
        // `unshare` and the shell have become the engine.
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        use rustix::process::Signal;
        self.signal(Signal::CONT);
        self.signal(Signal::TERM);
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while matches!(self.child.try_wait(), Ok(None)) && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("dockerd said: {}", &log[log.len().saturating_sub(2000)..]);
        }
    }
}

async fn published(size: usize, does: Does) -> Option<(Bench, Between, ImageRef)> {
    let mut bench = Bench::set_up().await?;
    let between = Between::start(bench.registry.address(), does).await;
    let bundle = Bundle::of(size, &bench.engine.about().architecture);
    let image = bench.publish(&between.host(), &bundle).await;
    Some((bench, between, image))
}

#[tokio::test]
async fn a_disk_that_is_full_while_an_image_comes_is_said_and_nothing_stays() {
    let Some((_bench, _between, image)) = published(DISK - 8 * MEGABYTE, Does::Pass).await else {
        return;
    };
    let Some((_own, engine)) = Own::start().await else { return };
    let wanted = Wanted::Pinned(image);
    let mut told = |_| {};
    let fetched = engine.fetch(&wanted, &Keyring::none(), PATIENCE, &mut told).await;
    let error = fetched.unwrap_err();
    assert_eq!(error.kind(), Kind::NoCapacity, "{}", error.chain());
    assert!(error.public().contains("the disk of the Docker Engine is full"), "{error}");
    assert_eq!(engine.image(&wanted).await.unwrap(), None);
}

#[tokio::test]
async fn an_engine_that_stops_in_the_middle_of_a_pull_is_given_up_and_well_again_afterwards() {
    let Some((_bench, between, image)) = published(4 * MEGABYTE, Does::StallAfter(MEGABYTE)).await
    else {
        return;
    };
    let Some((own, engine)) = Own::start().await else { return };
    let wanted = Wanted::Pinned(image);
    let mut told = |progress: lca_engine::Progress| {
        if progress.bytes > 0 {
            own.signal(rustix::process::Signal::STOP);
        }
    };
    let keys = Keyring::none();
    let fetched = engine.fetch(&wanted, &keys, Duration::from_secs(2), &mut told).await;
    assert_eq!(fetched.unwrap_err().kind(), Kind::Timeout);
    let begun = Instant::now();
    let error = Engine::connect(&own.address()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(6), "after {:?}", begun.elapsed());
    own.signal(rustix::process::Signal::CONT);
    between.now(Does::Pass);
    let mut told = |_| {};
    assert!(engine.fetch(&wanted, &keys, PATIENCE, &mut told).await.unwrap().pulled);
}
