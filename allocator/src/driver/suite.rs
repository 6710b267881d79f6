//! What every [`Driver`] must do, as one test that each implementation runs.

use std::time::Duration;

use futures::{FutureExt as _, TryStreamExt as _};
use lca::{Allowance, InstanceId, Kind, testing::eventually};
use tokio::time::timeout;

use super::{Begin, Driver, Exit, Launch, last_lines};

/// What every program of the suite writes at its start.
pub(crate) const OUTPUT: &str = "first\nsecond\nthird\n";
/// Nothing in the suite takes longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// A grace that must not be used up.
const LONG: Duration = Duration::from_secs(60);
/// A grace that is.
const SHORT: Duration = Duration::from_millis(50);

/// What a program of the suite does after writing [`OUTPUT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Runs until it is asked to end.
    Runs,
    /// Runs until it is forced to end.
    IgnoresTerm,
    /// Ends by itself.
    Ends(Exit),
    /// Cannot be executed, and so writes nothing.
    CannotRun,
}

/// Checks `driver` against the contract; `launch` makes a new instance of a program.
///
/// # Panics
/// If it breaks the contract, saying how.
pub(crate) async fn passes(driver: &dyn Driver, launch: impl Fn(Program) -> Launch) {
    let all = async {
        a_running_one_is_stopped_politely(driver, launch(Program::Runs)).await;
        a_deaf_one_is_stopped_by_force(driver, launch(Program::IgnoresTerm)).await;
        an_end_is_noticed(driver, launch(Program::Ends(Exit::Code(3))), Exit::Code(3)).await;
        an_end_is_noticed(driver, launch(Program::Ends(Exit::Signal(9))), Exit::Signal(9)).await;
        one_that_cannot_run_leaves_nothing(driver, launch(Program::CannotRun)).await;
        unknown_ones_are_said_to_be(driver).await;
        a_dropped_start_leaves_nothing(driver, launch(Program::Runs)).await;
        let last = [launch(Program::Runs), launch(Program::IgnoresTerm), launch(Program::Runs)];
        all_are_killed_and_none_is_started_any_more(driver, last).await;
    };
    timeout(PATIENCE, all).await.expect("the suite takes seconds");
}

/// Checks that what `before` has started is taken over by the driver that `crash` returns.
/// Of two instances that run for ever, the second is left to be swept.
///
/// # Panics
/// At the first difference.
pub(crate) async fn takes_over<D: Driver>(
    before: &dyn Driver,
    crash: impl FnOnce() -> D,
    [taken, left]: [Launch; 2],
) {
    let all = async {
        let (id, other) = (taken.id, left.id);
        let started = before.start(taken).await.expect("starting");
        before.start(left).await.expect("starting");
        has_written(before, id).await;
        has_written(before, other).await;

        let after = crash();
        let unknown = after.adopt(InstanceId::random(), started, Allowance::default()).await;
        assert_eq!(unknown.expect_err("nothing is left of it").kind(), Kind::NotFound);
        assert!(
            after.adopt(id, started, Allowance::default()).await.expect("taking over"),
            "it runs"
        );
        let again = after.adopt(id, started, Allowance::default()).await;
        assert_eq!(again.expect_err("it is held").kind(), Kind::Conflict);
        assert!(after.is_running(id) && !after.is_running(other));
        assert!(after.wait(id).now_or_never().is_none(), "it runs");
        after.stats(id).await.expect("the stats of one that runs");
        assert_eq!(reads(&after, id, Begin::Oldest, false).await, OUTPUT.as_bytes());

        let exit = after.stop(id, LONG).await.expect("stopping");
        assert!(!after.is_running(id));
        assert_eq!(after.wait(id).await.expect("waiting for an ended one"), exit);
        assert_eq!(reads(&after, id, Begin::Oldest, true).await, OUTPUT.as_bytes());
        after.forget(id).await;
        assert_eq!(after.wait(id).await.expect_err("forgotten").kind(), Kind::NotFound);
    };
    timeout(PATIENCE, all).await.expect("taking over takes seconds");
}

async fn a_running_one_is_stopped_politely(driver: &dyn Driver, launch: Launch) {
    let id = launch.id;
    driver.start(launch).await.expect("starting");
    assert!(driver.is_running(id));
    assert!(driver.wait(id).now_or_never().is_none(), "it runs");
    driver.stats(id).await.expect("the stats of one that runs");
    has_written(driver, id).await;
    driver.forget(id).await;
    assert!(driver.is_running(id), "a running one is not forgotten");

    let exit = driver.stop(id, LONG).await.expect("stopping");
    assert_eq!(exit, Exit::Signal(15));
    assert!(!driver.is_running(id));
    assert_eq!(driver.wait(id).await.expect("waiting for an ended one"), exit);
    assert_eq!(driver.stop(id, LONG).await.expect("stopping an ended one"), exit);

    let kept: Vec<_> = reads(driver, id, Begin::Oldest, true).await;
    assert_eq!(String::from_utf8_lossy(&kept), OUTPUT, "output outlives the instance");
    driver.forget(id).await;
    assert_eq!(driver.wait(id).await.expect_err("forgotten").kind(), Kind::NotFound);
}

async fn a_deaf_one_is_stopped_by_force(driver: &dyn Driver, launch: Launch) {
    let id = launch.id;
    driver.start(launch).await.expect("starting");
    has_written(driver, id).await;
    // A follower ends with the instance.
    let follow = driver.logs(id, Begin::LastLines(1), true).await.expect("following");
    let patient = driver.stop(id, LONG);
    assert!(timeout(SHORT, patient).await.is_err(), "it ignores being asked");
    assert!(driver.is_running(id));
    assert_eq!(driver.stop(id, SHORT).await.expect("forcing"), Exit::Signal(9));
    let followed: Vec<_> = follow.try_collect().await.expect("reading to the end");
    assert_eq!(String::from_utf8_lossy(&followed.concat()), "third\n");
    driver.forget(id).await;
}

async fn an_end_is_noticed(driver: &dyn Driver, launch: Launch, expected: Exit) {
    let id = launch.id;
    driver.start(launch).await.expect("starting");
    assert_eq!(driver.wait(id).await.expect("waiting"), expected);
    assert!(!driver.is_running(id));
    assert_eq!(last_lines(driver, id, 2).await, ["second", "third"]);
    assert_eq!(reads(driver, id, Begin::LastLines(2), false).await, b"second\nthird\n");
    driver.stop(id, LONG).await.expect("stopping an ended one");
    driver.forget(id).await;
}

async fn one_that_cannot_run_leaves_nothing(driver: &dyn Driver, launch: Launch) {
    let id = launch.id;
    match driver.start(launch).await {
        Err(error) => {
            assert_eq!(error.kind(), Kind::StartFailed);
            assert!(error.public().contains("cannot be executed"), "{error}");
        }
        // The first process of a container is the engine's own, which says why it ends.
        Ok(_) => {
            assert_eq!(driver.name(), "docker");
            assert_eq!(driver.wait(id).await.expect("waiting"), Exit::Code(127));
            let said = last_lines(driver, id, 1).await.concat();
            assert!(said.contains("No such file or directory"), "{said}");
            driver.forget(id).await;
        }
    }
    assert_eq!(driver.wait(id).await.expect_err("not held").kind(), Kind::NotFound);
}

async fn unknown_ones_are_said_to_be(driver: &dyn Driver) {
    let id = InstanceId::random();
    assert!(!driver.is_running(id));
    assert_eq!(driver.wait(id).await.expect_err("unknown").kind(), Kind::NotFound);
    assert_eq!(driver.stop(id, SHORT).await.expect_err("unknown").kind(), Kind::NotFound);
    assert_eq!(driver.stats(id).await.expect_err("unknown").kind(), Kind::NotFound);
    let logs = driver.logs(id, Begin::Oldest, false).await;
    assert_eq!(logs.err().expect("unknown").kind(), Kind::NotFound);
    driver.forget(id).await;
}

async fn a_dropped_start_leaves_nothing(driver: &dyn Driver, launch: Launch) {
    let id = launch.id;
    if driver.start(launch).now_or_never().is_some() {
        // It was done within one poll: nothing could be dropped.
        driver.stop(id, SHORT).await.expect("stopping");
        driver.forget(id).await;
    }
    assert_eq!(driver.wait(id).await.expect_err("not held").kind(), Kind::NotFound);
}

async fn all_are_killed_and_none_is_started_any_more(driver: &dyn Driver, all: [Launch; 3]) {
    let [polite, deaf, late] = all;
    let ids = [polite.id, deaf.id];
    for launch in [polite, deaf] {
        let id = launch.id;
        driver.start(launch).await.expect("starting");
        has_written(driver, id).await;
    }
    driver.kill_all();
    assert!(ids.iter().all(|id| !driver.is_running(*id)), "killed at once");
    for id in ids {
        assert_eq!(driver.wait(id).await.expect("waiting"), Exit::Signal(9));
        driver.stop(id, LONG).await.expect("stopping an ended one");
        driver.forget(id).await;
    }
    let error = driver.start(late).await.expect_err("starting after the end");
    assert_eq!(error.kind(), Kind::Unavailable);
    driver.kill_all();
}

/// Waits until all of [`OUTPUT`] is there.
async fn has_written(driver: &dyn Driver, id: InstanceId) {
    eventually("all of the output", async || {
        let written = reads(driver, id, Begin::Oldest, false).await;
        if written == OUTPUT.as_bytes() { Ok(()) } else { Err(written) }
    })
    .await;
}

async fn reads(driver: &dyn Driver, id: InstanceId, from: Begin, follow: bool) -> Vec<u8> {
    let output = driver.logs(id, from, follow).await.expect("reading the output");
    let pieces: Vec<_> = output.try_collect().await.expect("reading to the end");
    pieces.concat()
}
