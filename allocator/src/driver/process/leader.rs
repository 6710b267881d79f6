//! The first process of an instance: a child of ours, or one that an earlier run of the
//! allocator started.
//!
//! Either is held by a pidfd, which tells that it has ended. A child that has stays a zombie
//! until we reap it, so its number is safe to use. One that was taken over is reaped by
//! whoever is its parent now; its group is signalled only while the pidfd says that it runs.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use lca::InstanceId;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
    },
};
use tokio::{net::unix::pipe, time::timeout};

use super::{child::Born, sweep, watch::Stat};
use crate::driver::{Exit, Started};

/// A second look, should a wake-up be lost: nobody waits longer for a death.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// The first process of an instance, which is also its group.
#[derive(Debug)]
pub(super) struct Leader {
    pid: Pid,
    handle: OwnedFd,
    /// Whether it is a child of ours, so that nobody else reaps it.
    child: bool,
}

impl From<Born> for Leader {
    fn from(Born { pid, handle }: Born) -> Self {
        Self { pid, handle, child: true }
    }
}

impl Leader {
    /// The process, if it is still the one that was started as this instance. Its number
    /// is believed only together with its start time and the id in its environment, all
    /// read while a descriptor keeps the number from being given to another. Blocks on
    /// `/proc`.
    pub(super) fn adopt(id: InstanceId, started: Started) -> Option<Self> {
        let raw = i32::try_from(started.pid).ok()?;
        let pid = Pid::from_raw(raw)?;
        let handle = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let same_time = Stat::of(pid).ok()?.start_time == started.start_time;
        let named = sweep::belongs(raw).ok().flatten().map(|belongs| belongs.instance);
        let leader = Self { pid, handle, child: false };
        if leader.has_ended() || !same_time {
            return None;
        }
        if named != Some(id) {
            tracing::warn!(instance = %id, pid = raw, "its process runs and names another instance, or none; left alone");
            return None;
        }
        Some(leader)
    }

    /// Its number, which is also its group's.
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has ended, asked of the kernel, without reaping it.
    pub(super) fn has_ended(&self) -> bool {
        let mut look = [PollFd::new(&self.handle, PollFlags::IN)];
        loop {
            match poll(&mut look, Some(&Timespec::default())) {
                // A signal of ours came, which says nothing.
                Err(Errno::INTR) => {}
                looked => return !matches!(looked, Ok(0)),
            }
        }
    }

    /// Sends `signal` to the whole group. That of a taken-over leader which has ended is
    /// left alone: its number may be another's.
    pub(super) fn signal_group(&self, signal: Signal) {
        if self.child || !self.has_ended() {
            let _gone_already = kill_process_group(self.pid, signal);
        }
    }

    /// How it ended; blocks if it is our child and has not.
    pub(super) fn reap(self) -> Exit {
        let wait = match self.child {
            true => WaitIdOptions::EXITED,
            // Ours after all if the daemon replaced itself; else init has its status.
            false => WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        };
        match waitid(WaitId::PidFd(self.handle.as_fd()), wait) {
            Ok(Some(status)) => status
                .exit_status()
                .map(Exit::Code)
                .or(status.terminating_signal().map(Exit::Signal))
                .unwrap_or(Exit::Unwatched),
            _ => Exit::Unwatched,
        }
    }

    /// What tells that it may have ended; needs a runtime. A pidfd is readable once its
    /// process has ended. Nothing is ever read from it; this is the registration with the
    /// runtime that has a safe form. (tokio's own way to wait would reap.)
    pub(super) fn alarm(&self) -> io::Result<Alarm> {
        pipe::Receiver::from_owned_fd_unchecked(self.handle.try_clone()?).map(Alarm)
    }
}

/// Wakes up whoever waits for the end of a leader.
#[derive(Debug)]
pub(super) struct Alarm(pipe::Receiver);

/// Resolves when it is time to look whether the leader has ended.
pub(super) async fn time_to_look(alarm: &Option<Alarm>) {
    let woken = async {
        match alarm {
            Some(Alarm(pidfd)) => drop(pidfd.readable().await),
            None => std::future::pending().await,
        }
    };
    let _woken_or_anyway = timeout(LOOK_ANYWAY, woken).await;
}

/// When process `pid` began, as [`Started`] has it; 0, which no process has, if that cannot
/// be read.
pub(super) fn start_time(pid: Pid) -> u64 {
    Stat::of(pid).map_or(0, |stat| stat.start_time)
}
