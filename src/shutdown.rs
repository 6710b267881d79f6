//! One way to stop: ask, wait a bounded while, then force.
//!
//! Two tokens, because they mean different things: `stop` asks a task to finish what
//! it holds and take no more; `kill` drops its future where it stands. A daemon owns
//! one [`Tasks`]; everyone who spawns holds a [`Spawner`].

use std::time::Duration;

use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

/// Every task of one daemon. Dropping it kills them.
#[derive(Debug, Default)]
pub struct Tasks {
    spawner: Spawner,
}

/// Spawns tasks of a daemon without owning it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Spawner {
    stop: CancellationToken,
    kill: CancellationToken,
    running: TaskTracker,
}

impl Tasks {
    /// For everyone who spawns.
    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Resolves once the daemon was asked to stop, or a task of it ended early.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.spawner.stopping()
    }

    /// Asks every task to finish; after `grace`, forces. True if none was forced.
    pub async fn drain(self, grace: Duration) -> bool {
        let Spawner { stop, kill, running } = &self.spawner;
        stop.cancel();
        running.close();
        let in_time = tokio::time::timeout(grace, running.wait()).await.is_ok();
        kill.cancel();
        running.wait().await;
        in_time
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.spawner.stop.cancel();
        self.spawner.kill.cancel();
    }
}

impl Spawner {
    /// Runs a task that lives as long as the daemon. If it ends before the daemon was
    /// asked to stop, or panics, the whole daemon stops: half a daemon answers health
    /// checks and does no work.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let whole = self.stop.clone().drop_guard();
        let stop = self.stop.clone();
        let kill = self.kill.clone();
        self.running.spawn(async move {
            let _whole = whole;
            let finished = run_unless(kill, task).await;
            if finished && !stop.is_cancelled() {
                tracing::error!(task = name, "a task that should not end has ended; stopping");
            }
        });
    }

    /// Runs a task that may end whenever it is done: a connection, an instance, a
    /// flight. It is waited for when the daemon stops, and killed after the grace.
    pub fn spawn_short(&self, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        self.running.spawn(async move {
            run_unless(kill, task).await;
        });
    }

    /// Resolves once the daemon was asked to stop.
    pub fn stopping(&self) -> WaitForCancellationFutureOwned {
        self.stop.clone().cancelled_owned()
    }

    /// Whether the daemon was asked to stop.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Cancelled when the daemon should take no more work, for those who need a token.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.child_token()
    }
}

/// Runs `task` to its end, true then, or drops it once `kill` is cancelled. Killed, it is not
/// polled again: what dropped the daemon also asked it to stop, and a task must not begin
/// to do that.
async fn run_unless(kill: CancellationToken, task: impl Future<Output = ()>) -> bool {
    tokio::select! {
        biased;
        () = kill.cancelled() => false,
        () = task => true,
    }
}

/// Installs handlers for SIGINT, SIGTERM and SIGHUP (the terminal is closed) at once; what
/// it returns resolves at the first of them after that.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_listens_is_not_forced() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping();
        tasks.spawner().spawn("polite", stopping);
        assert!(tasks.drain(Duration::from_secs(5)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_listen_is_forced_and_said_so() {
        let tasks = Tasks::default();
        tasks.spawner().spawn("deaf", std::future::pending());
        assert!(!tasks.drain(Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn a_task_that_ends_early_stops_the_daemon() {
        let tasks = Tasks::default();
        tasks.spawner().spawn("short-lived", async {});
        tasks.stopping().await;
        let tasks = Tasks::default();
        tasks.spawner().spawn("panics", async { panic!("on purpose") });
        tasks.stopping().await;
    }

    #[tokio::test]
    async fn a_dropped_daemon_does_not_begin_to_stop() {
        let tasks = Tasks::default();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let stopping = tasks.stopping();
        tasks.spawner().spawn("polite", async {
            stopping.await;
            let _told = begun.send(());
        });
        tokio::task::yield_now().await;
        drop(tasks);
        assert!(begins.await.is_err(), "it was dropped where it stood");
    }

    #[tokio::test]
    async fn a_short_task_may_end() {
        let tasks = Tasks::default();
        tasks.spawner().spawn_short(async {});
        tokio::task::yield_now().await;
        assert!(!tasks.spawner().is_stopping());
        assert!(tasks.drain(Duration::from_secs(5)).await);
    }
}
