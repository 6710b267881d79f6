//! Takes charge of one process from its birth until nothing of it is left.
//!
//! One task per instance waits for the leader to end. The leader is then a zombie and
//! its number, which is also the group's, cannot be given to anybody else: the moment
//! to kill what remains in the group. Only then is it reaped.

use std::{
    fs, io,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::InstanceId;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, test_kill_process_group, waitid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Exit, blocking, output::Output, sweep};
use crate::driver::Stats;

/// Output kept in one file; as much again in the older one.
pub(super) const ROTATE_AT: u64 = 8 << 20;
/// How often a quiet instance's output is looked at.
const LOOK_QUIET: Duration = Duration::from_secs(2);
/// How often a flood is looked at: a disk writes some 100 MB meanwhile.
const LOOK_FLOOD: Duration = Duration::from_millis(100);
/// Growth between two looks that counts as a flood.
const FLOOD: u64 = 1 << 20;
/// A second look, should a signal be lost: nobody waits longer for a death.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);
/// What got SIGKILL in a group is gone within this time, unless the disk hangs.
const GROUP_GONE_WITHIN: Duration = Duration::from_millis(200);

/// How far an instance has come, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// The leader runs.
    Running,
    /// The leader has ended and its group with it; escaped children may remain.
    Exited(Exit),
    /// Nothing runs any more and the working folder is removed.
    Gone(Exit),
}

/// One instance of the driver.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) home: PathBuf,
    pub(super) output: Output,
    /// The leader, which is also the group; `None` once it may have been reaped.
    leader: Mutex<Option<Pid>>,
    life: watch::Receiver<Life>,
}

impl Held {
    /// How far it has come.
    pub(super) fn life(&self) -> watch::Receiver<Life> {
        self.life.clone()
    }

    /// Resolves when the leader has ended.
    pub(super) async fn exited(&self) -> Exit {
        self.when(|life| !matches!(life, Life::Running)).await
    }

    /// Resolves when nothing of it runs.
    pub(super) async fn gone(&self) -> Exit {
        self.when(|life| matches!(life, Life::Gone(_))).await
    }

    async fn when(&self, reached: impl FnMut(&Life) -> bool) -> Exit {
        match self.life().wait_for(reached).await.as_deref() {
            Ok(Life::Exited(exit) | Life::Gone(exit)) => *exit,
            // The watching task went with its runtime.
            Ok(Life::Running) | Err(_) => Exit::Unwatched,
        }
    }

    /// Whether the leader runs, asked of the kernel.
    pub(super) fn is_running(&self) -> bool {
        self.lock().is_some_and(|leader| !has_ended(leader))
    }

    /// Whether nothing of it runs any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(*self.life.borrow(), Life::Gone(_))
    }

    /// Sends `signal` to the whole group, if it is still ours.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = *self.lock() {
            let _gone_already = kill_process_group(group, signal);
        }
    }

    /// What the leader uses. Blocks on `/proc`.
    pub(super) fn stats(&self) -> io::Result<Stats> {
        let Some(leader) = *self.lock() else {
            return Ok(Stats::default());
        };
        let stat = fs::read_to_string(format!("/proc/{}/stat", leader.as_raw_nonzero()))?;
        parse_stat(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Pid>> {
        // Nothing panics while holding it.
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds `child` and watches it from now on.
pub(super) fn take_charge(
    id: InstanceId,
    child: Child,
    home: PathBuf,
    output: Output,
) -> Arc<Held> {
    let (report, life) = watch::channel(Life::Running);
    let leader = Mutex::new(Pid::from_raw(child.id().cast_signed()));
    let held = Arc::new(Held { home, output, leader, life });
    tokio::spawn(watch(id, child, held.clone(), report));
    held
}

async fn watch(id: InstanceId, mut child: Child, held: Arc<Held>, report: watch::Sender<Life>) {
    keep_bounded_until(&held, ended(child.id())).await;
    // The leader is a zombie: its number is still ours.
    held.signal(Signal::KILL);
    let group = held.lock().take();
    let exit = child.wait().map_or(Exit::Unwatched, Exit::from);
    report.send_replace(Life::Exited(exit));
    if let Some(group) = group {
        group_gone(group).await;
    }
    let work = held.home.join("work");
    let cleared = blocking(move || {
        sweep::kill_strays(|found| found == id);
        fs::remove_dir_all(work)
    });
    if let Err(error) = cleared.await {
        tracing::warn!(instance = %id, %error, "the working folder of an instance stays");
    }
    report.send_replace(Life::Gone(exit));
}

/// Resolves when process `pid`, a child of ours that is not reaped, has ended.
///
/// Woken by SIGCHLD: tokio's own way to wait would reap, and a pidfd needs a
/// registration with the runtime that has no safe form.
async fn ended(pid: u32) {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else { return };
    // Subscribed before the first look, so no end falls between.
    let mut children = signal(SignalKind::child()).ok();
    while !has_ended(pid) {
        let woken = async {
            match &mut children {
                Some(children) => children.recv().await,
                None => std::future::pending().await,
            }
        };
        let _woken_or_time_to_look = timeout(LOOK_ANYWAY, woken).await;
    }
}

/// Asks without reaping.
fn has_ended(child: Pid) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(child), look), Ok(None))
}

/// Rotates the output until `over`, often while it grows fast.
async fn keep_bounded_until(held: &Arc<Held>, over: impl Future<Output = ()>) {
    let mut over = std::pin::pin!(over);
    let (mut look, mut size) = (LOOK_QUIET, 0);
    loop {
        tokio::select! {
            () = &mut over => return,
            () = sleep(look) => {}
        }
        let looked = held.clone();
        // A file that cannot be looked at now is looked at again.
        let now = blocking(move || looked.output.rotate(ROTATE_AT)).await.unwrap_or(Some(size));
        look = if now.is_none_or(|now| now > size + FLOOD) { LOOK_FLOOD } else { LOOK_QUIET };
        size = now.unwrap_or(0);
    }
}

/// Waits, for a bounded time, until nothing is left of a group that got SIGKILL.
async fn group_gone(group: Pid) {
    let deadline = Instant::now() + GROUP_GONE_WITHIN;
    while test_kill_process_group(group).is_ok() && Instant::now() < deadline {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Reads memory and processor time from `/proc/<pid>/stat`.
fn parse_stat(stat: &str) -> Option<Stats> {
    // The name, in parentheses, may hold anything; the numbers begin after it.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = number(14)? + number(15)?;
    let per_second = rustix::param::clock_ticks_per_second();
    Some(Stats {
        memory_bytes: number(24)? * rustix::param::page_size() as u64,
        cpu: Duration::from_millis(ticks * 1000 / per_second.max(1)),
    })
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, Some(signal)) => Self::Signal(signal),
            (None, None) => Self::Unwatched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_numbers() {
        let rest = (4..=52).map(|field| (field * 10).to_string()).collect::<Vec<_>>().join(" ");
        let stats = parse_stat(&format!("42 (a) (b) S {rest}")).unwrap();
        assert_eq!(stats.memory_bytes, 240 * rustix::param::page_size() as u64);
        let ticks = 140 + 150;
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(stats.cpu, Duration::from_millis(ticks * 1000 / per_second));
        assert_eq!(parse_stat("nonsense"), None);
    }
}
