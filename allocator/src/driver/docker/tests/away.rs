//! An engine that goes away, hangs and comes back, as an allocator sees it: between it and
//! the engine of this machine is a relay that does all of that on command. What would a real
//! restart of the engine do to whoever else uses it?

use std::path::PathBuf;

use lca_engine::Address;
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    sync::watch,
};

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Passes,
    /// Connections break off, and no new one is answered.
    Gone,
    /// Nothing breaks off, and nothing comes.
    Hangs,
}

/// A way to the engine.
struct Relay {
    address: Address,
    mode: watch::Sender<Mode>,
    _dir: tempfile::TempDir,
}

impl Relay {
    fn to(engine: &Address, mode: Mode) -> Option<Self> {
        let Address::Unix(engine) = engine.clone() else { return None };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mode = watch::Sender::new(mode);
        let told = mode.subscribe();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(relay(stream, engine.clone(), told.clone()));
            }
        });
        Some(Self { address: Address::Unix(path), mode, _dir: dir })
    }

    fn becomes(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn relay(mut stream: UnixStream, engine: PathBuf, mut mode: watch::Receiver<Mode>) {
    let mut there = UnixStream::connect(engine).await.unwrap();
    let mut ended = mode.clone();
    let gone = ended.wait_for(|mode| *mode == Mode::Gone);
    let passing = async {
        loop {
            drop(mode.wait_for(|mode| *mode == Mode::Passes).await);
            let mut stalled = mode.clone();
            tokio::select! {
                _ = copy_bidirectional(&mut stream, &mut there) => return,
                _ = stalled.wait_for(|mode| *mode != Mode::Passes) => {}
            }
        }
    };
    tokio::select! {
        _ = gone => {}
        () = passing => {}
    }
}

/// The bench, with a second driver of its node behind a relay.
async fn behind(bench: &Bench, mode: Mode, tasks: &Tasks) -> Option<(Relay, Docker)> {
    let relay = Relay::to(bench.engine.address(), mode)?;
    let driver =
        Docker::open(relay.address.clone(), bench.node, Grants::default(), &tasks.spawner()).await;
    Some((relay, driver))
}

async fn becomes_ready(driver: &Docker, ready: bool) {
    eventually("the driver to notice how the engine is", async || driver.ready().is_ok() == ready)
        .await;
}

#[tokio::test]
async fn what_happened_while_the_engine_was_away_is_made_good_when_it_is_back() {
    let Some(bench) = Bench::new("what_happened_while_the_engine_was_away").await else { return };
    let tasks = Tasks::default();
    let Some((relay, driver)) = behind(&bench, Mode::Passes, &tasks).await else { return };
    let [runs, removed, unwanted] = [(); 3].map(|()| bench.launch(&["deaf"]));
    let ids = [runs.id, removed.id, unwanted.id];
    for launch in [runs, removed, unwanted] {
        driver.start(launch).await.unwrap();
    }
    driver.inner.lock().swept = true;

    relay.becomes(Mode::Gone);
    becomes_ready(&driver, false).await;
    let [runs, removed, unwanted] = ids;
    assert!(driver.is_running(runs), "it is held to run until the engine says otherwise");
    let error = driver.start(bench.launch(&["run"])).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotHere);
    assert!(error.public().contains("Docker Engine"), "{error}");
    let by_hand = RemoveContainerOptionsBuilder::new().force(true).build();
    let docker = bench.engine.docker();
    docker.remove_container(&labels::name(removed), Some(by_hand)).await.unwrap();
    let stopping = driver.stop(unwanted, Duration::from_millis(10));
    assert!(timeout(Duration::from_millis(50), stopping).await.is_err(), "nobody can end it");
    // One that nobody holds, as a start that was cut off leaves it.
    let nobodys = bench.launch(&["deaf"]);
    bench.driver.start(nobodys).await.unwrap();
    assert_eq!(bench.left().await, 3);

    relay.becomes(Mode::Passes);
    assert_eq!(driver.wait(removed).await.unwrap(), Exit::Removed);
    assert_eq!(driver.wait(unwanted).await.unwrap(), Exit::Signal(9));
    becomes_ready(&driver, true).await;
    assert!(driver.is_running(runs));
    eventually("what nobody holds to be removed", async || {
        let left = bench.left().await;
        if left == 2 { Ok(()) } else { Err(left) } // the one that ended is kept for its output
    })
    .await;
    for id in ids {
        driver.stop(id, Duration::ZERO).await.unwrap();
        driver.forget(id).await;
    }
    driver.close().await;
    bench.clear().await;
}

#[tokio::test]
async fn an_engine_that_hangs_keeps_nobody_waiting() {
    let Some(bench) = Bench::new("an_engine_that_hangs").await else { return };
    let tasks = Tasks::default();
    let begun = tokio::time::Instant::now();
    let Some((relay, driver)) = behind(&bench, Mode::Hangs, &tasks).await else { return };
    assert!(begun.elapsed() < FIRST_LOOK + Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(driver.ready().unwrap_err().kind(), Kind::NotHere);
    let refused = timeout(Duration::from_secs(1), driver.start(bench.launch(&["run"]))).await;
    assert_eq!(refused.expect("at once").unwrap_err().kind(), Kind::NotHere);

    relay.becomes(Mode::Passes);
    becomes_ready(&driver, true).await;
    // In the middle of a start.
    relay.becomes(Mode::Hangs);
    let begun = tokio::time::Instant::now();
    let error = driver.start(bench.launch(&["run"])).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::Unavailable), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    becomes_ready(&driver, false).await;
    relay.becomes(Mode::Passes);
    becomes_ready(&driver, true).await;
    driver.sweep(bench.node).await;
    assert_eq!(bench.left().await, 0, "nothing is left of the start that failed");
    driver.close().await;
    bench.clear().await;
}
