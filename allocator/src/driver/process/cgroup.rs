//! Control groups: what bounds an instance's memory, processor time and number of
//! processes, counts what it uses, and knows every process it has begun, however far it
//! forked away.
//!
//! Version 2 where its controllers are usable, version 1 otherwise, neither where nothing
//! may be written; found out once. Every driver has a group of its own under that of its
//! process, named by its folder, and in it one by instance:
//!
//! ```text
//! <our group>/lca-<8 hex of the folder>/<instance id>
//! ```
//!
//! so that the next run finds what a crash left. The invariant: a group in that folder is
//! an instance's, and its processes are nobody else's. See the kernel's
//! `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/`.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use lca::{Allowance, Digest, InstanceId};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use self::{
    files::{field, make, number, put},
    find::{HANDED_DOWN, legacy, unified},
    layout::Layout,
};
use crate::driver::Stats;

mod files;
mod find;
mod layout;

/// The period over which processor time is counted out, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// What one core is worth in `cpu.shares` of version 1, and in `cpu.weight` of version 2.
const SHARES_OF_A_CORE: u64 = 1024;
const WEIGHT_OF_A_CORE: u64 = 100;
/// The most that the kernel takes of both.
const MAX_SHARES: u64 = 262_144;
const MAX_WEIGHT: u64 = 10_000;
/// Processes that got SIGKILL are gone within this time, unless the disk hangs.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// How often that is looked at.
const GONE_LOOK: Duration = Duration::from_millis(1);

/// Which control groups there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// One folder by controller.
    V1,
    /// One folder.
    V2,
}

/// Where the groups of one driver's instances are made. The folders go with the last
/// clone, if nothing is in them.
#[derive(Clone, Debug)]
pub(super) struct Cgroups {
    version: Version,
    parents: Arc<Parents>,
}

/// By controller; one, `unified`, in version 2.
#[derive(Debug)]
struct Parents(Vec<(&'static str, PathBuf)>);

impl Drop for Parents {
    fn drop(&mut self) {
        for (_, parent) in &self.0 {
            let _used_or_gone = fs::remove_dir(parent);
        }
    }
}

impl Cgroups {
    /// Finds what is usable and makes the folder of the driver that uses `dir`. Blocks on
    /// the kernel's file systems.
    ///
    /// # Errors
    /// A sentence for people: why nothing is.
    pub(super) fn find(dir: &Path) -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let layout = Layout::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let digest = Digest::of(dir.as_os_str().as_bytes()).to_string();
        let name = format!("lca-{}", &digest["sha256:".len()..][..8]);
        let mut reasons = Vec::new();
        if let Some(own) = &layout.unified {
            match unified(own, &name) {
                Ok(parent) => {
                    return Ok(Self::new(Version::V2, vec![("unified", parent)]));
                }
                Err(reason) => reasons.push(format!("version 2: {reason}")),
            }
        }
        match legacy(&layout.legacy, &name) {
            Ok(parents) => return Ok(Self::new(Version::V1, parents)),
            Err(reason) => reasons.push(format!("version 1: {reason}")),
        }
        Err(reasons.join("; "))
    }

    fn new(version: Version, parents: Vec<(&'static str, PathBuf)>) -> Self {
        // All instances together weigh what the machine does, not what one program of the
        // group we are in does.
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let (controller, file, weight) = match version {
            Version::V1 => ("cpu", "cpu.shares", (cores * SHARES_OF_A_CORE).min(MAX_SHARES)),
            Version::V2 => ("unified", "cpu.weight", (cores * WEIGHT_OF_A_CORE).min(MAX_WEIGHT)),
        };
        if let Some((_, parent)) = parents.iter().find(|(name, _)| *name == controller)
            && let Err(error) = put(&parent.join(file), &weight.to_string())
        {
            tracing::warn!(%error, "instances weigh as much as one program where time is short");
        }
        Self { version, parents: Arc::new(Parents(parents)) }
    }

    /// In a word, for people.
    pub(super) fn word(&self) -> &'static str {
        match self.version {
            Version::V1 => "cgroup v1",
            Version::V2 => "cgroup v2",
        }
    }

    /// Makes the group of an instance, with its limits. Blocks.
    ///
    /// # Errors
    /// If one of them cannot be set; nothing is left then.
    pub(super) fn create(
        &self,
        id: InstanceId,
        limits: &Allowance,
        cpu_millis: u32,
    ) -> io::Result<Group> {
        let group = self.group(id);
        for (_, parent) in self.parents.0.iter().filter(|(_, parent)| !parent.exists()) {
            // Whoever used the folder before us has cleared up after itself.
            make(parent)?;
            if self.version == Version::V2 {
                put(&parent.join("cgroup.subtree_control"), HANDED_DOWN)?;
            }
        }
        let made = || {
            group.dirs.iter().try_for_each(|(_, dir)| match fs::create_dir(dir) {
                // Controllers that are mounted together share a folder.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => Ok(()),
            })?;
            group.limit(limits, cpu_millis)
        };
        made().inspect_err(|_| group.remove())?;
        Ok(group)
    }

    /// The group of an instance that an earlier run started, if it is there.
    pub(super) fn found(&self, id: InstanceId) -> Option<Group> {
        let group = self.group(id);
        group.dirs.iter().all(|(_, dir)| dir.is_dir()).then_some(group)
    }

    /// Every instance that has a group here.
    pub(super) fn all(&self) -> Vec<InstanceId> {
        let mut all: Vec<InstanceId> = Vec::new();
        for (_, parent) in &self.parents.0 {
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
                all.extend(id.filter(|id| !all.contains(id)));
            }
        }
        all
    }

    /// The group an instance has, or would have.
    pub(super) fn group(&self, id: InstanceId) -> Group {
        let inside = |parent: &PathBuf| parent.join(id.to_string());
        let dirs = self.parents.0.iter().map(|(name, parent)| (*name, inside(parent))).collect();
        Group { version: self.version, dirs, _parents: self.parents.clone() }
    }
}

/// The group of one instance.
#[derive(Clone, Debug)]
pub(super) struct Group {
    version: Version,
    dirs: Vec<(&'static str, PathBuf)>,
    /// They stay as long as somebody uses one.
    _parents: Arc<Parents>,
}

impl Group {
    fn dir(&self, controller: &str) -> &Path {
        let found = self.dirs.iter().find(|(name, _)| *name == controller).or(self.dirs.first());
        found.map_or(Path::new(""), |(_, dir)| dir)
    }

    fn read(&self, controller: &str, file: &str) -> io::Result<String> {
        fs::read_to_string(self.dir(controller).join(file))
    }

    fn limit(&self, limits: &Allowance, cpu_millis: u32) -> io::Result<()> {
        let set = |controller: &str, file: &str, value: u64| {
            put(&self.dir(controller).join(file), &value.to_string())
        };
        let cores = |worth: u64| u64::from(cpu_millis) * worth / 1000;
        let quota = limits.cpu_millis.map(|millis| u64::from(millis.get()) * PERIOD_US / 1000);
        match self.version {
            Version::V1 => {
                set("cpu", "cpu.shares", cores(SHARES_OF_A_CORE).clamp(2, MAX_SHARES))?;
                if let Some(quota) = quota {
                    set("cpu", "cpu.cfs_period_us", PERIOD_US)?;
                    set("cpu", "cpu.cfs_quota_us", quota.max(1000))?; // the kernel's least
                }
                set("memory", "memory.limit_in_bytes", limits.memory_bytes)?;
                let swap = "memory.memsw.limit_in_bytes"; // there if the kernel counts swap
                if self.dir("memory").join(swap).exists() {
                    set("memory", swap, limits.memory_bytes)?;
                }
            }
            Version::V2 => {
                set("", "cpu.weight", cores(WEIGHT_OF_A_CORE).clamp(1, MAX_WEIGHT))?;
                if let Some(quota) = quota {
                    let line = format!("{} {PERIOD_US}", quota.max(1000));
                    put(&self.dir("").join("cpu.max"), &line)?;
                }
                set("", "memory.max", limits.memory_bytes)?;
                if self.dir("").join("memory.swap.max").exists() {
                    set("", "memory.swap.max", 0)?;
                }
                // A program that has lost one of its processes is no good any more.
                set("", "memory.oom.group", 1)?;
            }
        }
        set("pids", "pids.max", limits.processes.into())
    }

    /// Its folder, where a process can begin in it.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(super) fn open(&self) -> io::Result<Option<OwnedFd>> {
        match self.version {
            Version::V1 => Ok(None),
            Version::V2 => File::open(self.dir("")).map(|dir| Some(dir.into())),
        }
    }

    /// Files into which a process writes `0` to enter the group, once it is there and
    /// before it has threads.
    ///
    /// Version 1 has a file for one thread, which our child is; the one for a process makes
    /// the kernel wait until no other process forks: some 20 milliseconds.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(super) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let file = match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.procs",
        };
        let mut dirs: Vec<&Path> = self.dirs.iter().map(|(_, dir)| dir.as_path()).collect();
        dirs.dedup();
        let open = |dir: &Path| OpenOptions::new().write(true).open(dir.join(file));
        dirs.into_iter().map(|dir| open(dir).map(Into::into)).collect()
    }

    /// What all its processes use together. Memory is what cannot be given back: without
    /// the file pages that have not been used for a while.
    pub(super) fn stats(&self) -> io::Result<Stats> {
        let (used, cpu) = match self.version {
            Version::V1 => (
                "memory.usage_in_bytes",
                Duration::from_nanos(number(&self.read("cpuacct", "cpuacct.usage")?)?),
            ),
            Version::V2 => {
                let stat = self.read("", "cpu.stat")?;
                ("memory.current", Duration::from_micros(field(&stat, "usage_usec").unwrap_or(0)))
            }
        };
        let used = number(&self.read("memory", used)?)?;
        let stat = self.read("memory", "memory.stat")?;
        let idle = field(&stat, "total_inactive_file").or_else(|| field(&stat, "inactive_file"));
        Ok(Stats { memory_bytes: used.saturating_sub(idle.unwrap_or(0)), cpu })
    }

    /// How many of its processes the kernel has killed for want of memory.
    pub(super) fn killed_for_memory(&self) -> u64 {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        self.read("memory", file).ok().and_then(|text| field(&text, "oom_kill")).unwrap_or(0)
    }

    /// Ends all that is in it by force, and removes it. Blocks until they are gone, for a
    /// bounded time: what hangs in the kernel stays, and so does the group, to be swept
    /// later.
    pub(super) fn destroy(&self) -> bool {
        let deadline = Instant::now() + GONE_WITHIN;
        // Nothing new begins, so that what is killed is all there is.
        let _without_it_takes_longer = put(&self.dir("pids").join("pids.max"), "0");
        loop {
            if self.try_destroy() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            #[expect(
                clippy::disallowed_methods,
                reason = "off the runtime; bounded by GONE_WITHIN"
            )]
            std::thread::sleep(GONE_LOOK);
        }
    }

    /// Kills what is in it and removes it if nothing was. Returns whether it is gone.
    pub(super) fn try_destroy(&self) -> bool {
        self.kill();
        self.remove();
        self.dirs.iter().all(|(_, dir)| !dir.exists())
    }

    /// Sends SIGKILL to all that is in it.
    pub(super) fn kill(&self) {
        if put(&self.dir("").join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for (_, dir) in &self.dirs {
            let inside = || {
                let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                procs
                    .lines()
                    .filter_map(|line| Pid::from_raw(line.parse().ok()?))
                    .collect::<Vec<_>>()
            };
            let held = inside()
                .into_iter()
                .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
                .collect::<Vec<_>>();
            // Its number is its own now that a descriptor holds it; whether it was then.
            let still = inside();
            for (_, handle) in held.iter().filter(|(pid, _)| still.contains(pid)) {
                let _gone_already = pidfd_send_signal(handle, Signal::KILL);
            }
        }
    }

    /// Removes it if nothing is in it.
    pub(super) fn remove(&self) {
        for (_, dir) in &self.dirs {
            let _still_used_or_gone = fs::remove_dir(dir);
        }
    }
}

/// Our own group of version 2, with or without controllers.
#[cfg(test)]
pub(super) fn unified_here() -> Option<PathBuf> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Layout::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")).unified
}

#[cfg(test)]
mod tests;
