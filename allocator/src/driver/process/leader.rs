//! The first process of an instance: a child of ours, or one that an earlier run of the
//! allocator started.
//!
//! A child that has ended stays a zombie until we reap it, so its number is safe to use.
//! One that was taken over is reaped by whoever is its parent now; it is held by a pidfd,
//! and its group is signalled only while the pidfd says that it runs.

use std::{
    io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    process::{Child, ExitStatus},
    time::Duration,
};

use lca::InstanceId;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
    },
};
use tokio::{
    net::unix::pipe,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::{sweep, watch::Stat};
use crate::driver::{Exit, Started};

/// A second look, should a wake-up be lost: nobody waits longer for a death.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);

/// The first process of an instance, which is also its group.
#[derive(Debug)]
pub(super) enum Leader {
    Child(Child),
    Adopted { pid: Pid, handle: OwnedFd },
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
        let leader = Self::Adopted { pid, handle };
        if leader.has_ended() || !same_time {
            return None;
        }
        if named != Some(id) {
            tracing::warn!(instance = %id, pid = raw, "its process runs and names another instance, or none; left alone");
            return None;
        }
        Some(leader)
    }

    pub(super) fn pid(&self) -> Option<Pid> {
        match self {
            Self::Child(child) => Pid::from_raw(child.id().cast_signed()),
            Self::Adopted { pid, .. } => Some(*pid),
        }
    }

    /// Whether it has ended, asked of the kernel, without reaping it.
    pub(super) fn has_ended(&self) -> bool {
        match self {
            Self::Child(_) => {
                let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
                let looked = self.pid().map(|pid| waitid(WaitId::Pid(pid), look));
                !matches!(looked, Some(Ok(None)))
            }
            Self::Adopted { handle, .. } => {
                let mut look = [PollFd::new(handle, PollFlags::IN)];
                !matches!(poll(&mut look, Some(&Timespec::default())), Ok(0))
            }
        }
    }

    /// Sends `signal` to the whole group. That of a taken-over leader which has ended is
    /// left alone: its number may be another's.
    pub(super) fn signal_group(&self, signal: Signal) {
        let ours = matches!(self, Self::Child(_)) || !self.has_ended();
        if let Some(group) = self.pid().filter(|_| ours) {
            let _gone_already = kill_process_group(group, signal);
        }
    }

    /// How it ended; blocks if it has not.
    pub(super) fn reap(self) -> Exit {
        match self {
            Self::Child(mut child) => child.wait().map_or(Exit::Unwatched, Exit::from),
            // Ours after all if the daemon replaced itself; else init has its status.
            Self::Adopted { handle, .. } => {
                let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                match waitid(WaitId::PidFd(handle.as_fd()), look) {
                    Ok(Some(status)) => status
                        .exit_status()
                        .map(Exit::Code)
                        .or(status.terminating_signal().map(Exit::Signal))
                        .unwrap_or(Exit::Unwatched),
                    _ => Exit::Unwatched,
                }
            }
        }
    }

    /// What tells that it may have ended.
    pub(super) fn alarm(&self) -> io::Result<Alarm> {
        match self {
            // tokio's own way to wait would reap.
            Self::Child(_) => signal(SignalKind::child()).map(Alarm::Child),
            // A pidfd is readable once its process has ended. Nothing is ever read from
            // it; this is the registration with the runtime that has a safe form.
            Self::Adopted { handle, .. } => {
                pipe::Receiver::from_owned_fd_unchecked(handle.try_clone()?).map(Alarm::Pidfd)
            }
        }
    }
}

/// Wakes up whoever waits for the end of a leader; needs a runtime.
#[derive(Debug)]
pub(super) enum Alarm {
    Child(tokio::signal::unix::Signal),
    Pidfd(pipe::Receiver),
}

/// Resolves when it is time to look whether the leader has ended.
pub(super) async fn time_to_look(alarm: &mut Option<Alarm>) {
    let woken = async {
        match alarm {
            Some(Alarm::Child(children)) => drop(children.recv().await),
            Some(Alarm::Pidfd(pidfd)) => drop(pidfd.readable().await),
            None => std::future::pending().await,
        }
    };
    let _woken_or_anyway = timeout(LOOK_ANYWAY, woken).await;
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

/// When process `pid` began, as [`Started`] has it; 0, which no process has, if that cannot
/// be read.
pub(super) fn start_time(pid: u32) -> u64 {
    let pid = Pid::from_raw(pid.cast_signed());
    pid.and_then(|pid| Stat::of(pid).ok()).map_or(0, |stat| stat.start_time)
}
