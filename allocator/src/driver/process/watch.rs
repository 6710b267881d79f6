//! Takes charge of one process until nothing of it is left.
//!
//! One task per instance waits for the leader to end. A child of ours is then a zombie and
//! its number, which is also the group's, cannot be given to anybody else: the moment
//! to kill what remains in the group. Only then is it reaped. What a taken-over leader
//! leaves in its group is found by its environment alone.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lca::{Allowance, InstanceId};
use rustix::process::{Pid, Signal, test_kill_process_group};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::{
    Exit, blocking,
    cgroup::Group,
    folder,
    leader::{Leader, time_to_look},
    output::Output,
    sweep,
};
use crate::driver::Stats;

/// How often a quiet instance's output and folder are looked at.
const LOOK_QUIET: Duration = Duration::from_secs(2);
/// How often a flood is looked at: a disk writes some 100 MB meanwhile.
const LOOK_FLOOD: Duration = Duration::from_millis(100);
/// Growth between two looks that counts as a flood.
const FLOOD: u64 = 1 << 20;
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
    allowance: Allowance,
    group: Option<Group>,
    /// Whether it was killed for what it has in its folder.
    overfull: AtomicBool,
    /// `None` once it may have been reaped.
    leader: Mutex<Option<Leader>>,
    life: watch::Receiver<Life>,
}

impl Drop for Held {
    /// Whoever watched it may have gone with its runtime before the group was empty.
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            group.remove();
        }
    }
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
        self.lock().as_ref().is_some_and(|leader| !leader.has_ended())
    }

    /// Whether nothing of it runs any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(*self.life.borrow(), Life::Gone(_))
    }

    /// Sends `signal` to the whole group, if it is still ours.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(leader) = &*self.lock() {
            leader.signal_group(signal);
        }
    }

    /// Ends all of it by force that can be found at once: its group, and what has left
    /// that but not its control group.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
        if let Some(group) = &self.group {
            group.kill();
        }
    }

    /// Whether its control group is gone; if nothing is in it any more, it is now.
    pub(super) fn has_left_its_group(&self) -> bool {
        self.group.as_ref().is_none_or(Group::try_destroy)
    }

    /// What it uses: all its processes where it has a control group, else the leader.
    /// Blocks on `/proc` and the like.
    pub(super) fn stats(&self) -> io::Result<Stats> {
        if let Some(group) = &self.group {
            return if self.is_running() { group.stats() } else { Ok(Stats::default()) };
        }
        // Held meanwhile: a child is not reaped, so its number is its own.
        let leader = self.lock();
        let Some(pid) = leader.as_ref().map(Leader::pid) else {
            return Ok(Stats::default());
        };
        let stats = Stat::of(pid)?.stats;
        let runs = leader.as_ref().is_some_and(|leader| !leader.has_ended());
        Ok(if runs { stats } else { Stats::default() })
    }

    /// Why it ended, where more is known than how.
    fn why(&self, exit: Exit) -> Exit {
        let forced = !matches!(exit, Exit::Code(0) | Exit::Signal(15));
        let starved = || self.group.as_ref().is_some_and(|group| group.killed_for_memory() > 0);
        if self.overfull.load(Ordering::Relaxed) {
            Exit::OutOfDisk(self.allowance.disk_bytes)
        } else if forced && starved() {
            Exit::OutOfMemory(self.allowance.memory_bytes)
        } else {
            exit
        }
    }

    /// Kills it if its folder holds more than it may. Blocks on the disk.
    fn check_folder(&self) {
        if folder::size(&self.home.join("work")) > self.allowance.disk_bytes {
            self.overfull.store(true, Ordering::Relaxed);
            self.kill();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Leader>> {
        // Nothing panics while holding it.
        self.leader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What somebody takes charge of.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) id: InstanceId,
    pub(super) home: PathBuf,
    pub(super) output: Output,
    pub(super) group: Option<Group>,
    pub(super) allowance: Allowance,
}

impl Charge {
    fn held(self, leader: Option<Leader>, life: watch::Receiver<Life>) -> Arc<Held> {
        let Self { home, output, group, allowance, .. } = self;
        let (overfull, leader) = (AtomicBool::new(false), Mutex::new(leader));
        Arc::new(Held { home, output, allowance, group, overfull, leader, life })
    }
}

/// Holds `leader` and watches it from now on.
pub(super) fn take_charge(charge: Charge, leader: Leader) -> Arc<Held> {
    let (report, life) = watch::channel(Life::Running);
    let id = charge.id;
    let held = charge.held(Some(leader), life);
    tokio::spawn(watch(id, held.clone(), report));
    held
}

/// Holds what is left of an instance that ended while nobody watched.
pub(super) fn ended_unwatched(charge: Charge) -> Arc<Held> {
    let (_, life) = watch::channel(Life::Gone(Exit::Unwatched));
    charge.held(None, life)
}

async fn watch(id: InstanceId, held: Arc<Held>, report: watch::Sender<Life>) {
    keep_bounded_until(&held, ended(&held)).await;
    // A child is a zombie: its number is still ours.
    held.signal(Signal::KILL);
    let leader = held.lock().take();
    let process_group = leader.as_ref().map(Leader::pid);
    let exit = held.why(leader.map_or(Exit::Unwatched, Leader::reap));
    report.send_replace(Life::Exited(exit));
    if let Some(group) = process_group {
        group_gone(group).await;
    }
    let (work, group) = (held.home.join("work"), held.group.clone());
    let cleared = blocking(move || {
        if group.is_some_and(|group| !group.destroy()) {
            tracing::warn!(instance = %id, "some of its processes hang; they are swept later");
        }
        sweep::kill_strays(|found| found.instance == id);
        fs::remove_dir_all(work)
    });
    if let Err(error) = cleared.await {
        tracing::warn!(instance = %id, %error, "the working folder of an instance stays");
    }
    report.send_replace(Life::Gone(exit));
}

/// Resolves when the leader has ended.
async fn ended(held: &Held) {
    // Subscribed before the first look, so no end falls between.
    let alarm = held.lock().as_ref().and_then(|leader| leader.alarm().ok());
    while held.is_running() {
        time_to_look(&alarm).await;
    }
}

/// Rotates the output and counts the folder until `over`, often while it grows fast.
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
        let now = blocking(move || {
            looked.check_folder();
            looked.output.rotate(looked.allowance.log_bytes / 2)
        });
        let now = now.await.unwrap_or(Some(size));
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

/// What `/proc/<pid>/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) stats: Stats,
    /// Ticks since boot.
    pub(super) start_time: u64,
}

impl Stat {
    pub(super) fn of(pid: Pid) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
        Self::parse(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    fn parse(stat: &str) -> Option<Self> {
        // The name, in parentheses, may hold anything; the numbers begin after it.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 2..)?.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = number(14)? + number(15)?;
        let per_second = rustix::param::clock_ticks_per_second();
        let stats = Stats {
            memory_bytes: number(24)? * rustix::param::page_size() as u64,
            cpu: Duration::from_millis(ticks * 1000 / per_second.max(1)),
        };
        Some(Self { stats, start_time: number(22)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_numbers() {
        let rest = (4..=52).map(|field| (field * 10).to_string()).collect::<Vec<_>>().join(" ");
        let Stat { stats, start_time } = Stat::parse(&format!("42 (a) (b) S {rest}")).unwrap();
        assert_eq!(start_time, 220);
        assert_eq!(stats.memory_bytes, 240 * rustix::param::page_size() as u64);
        let ticks = 140 + 150;
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(stats.cpu, Duration::from_millis(ticks * 1000 / per_second));
        assert_eq!(Stat::parse("nonsense"), None);
    }
}
