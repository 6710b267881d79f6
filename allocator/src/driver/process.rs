//! Runs instances as processes of this user, with no engine and no helper process.
//!
//! Each instance is a process group with a working folder of its own, an environment
//! that holds what it was told and nothing of ours, and output that goes straight to a
//! file. It lives on if we crash. Whatever it leaves in its group is killed with it.
//!
//! ```text
//! DIR/.lock              held while a driver uses DIR
//! DIR/<instance id>/     0700, until the instance is forgotten
//!     output.log         what it writes, rotated to output.log.1
//!     work/              its working folder, until it has ended
//! ```
//!
//! The invariant: a signal is sent to a group only while its leader has not been
//! reaped, so never to a stranger that got the same number.

mod cgroup;
mod child;
mod confine;
mod folder;
mod leader;
mod output;
mod program;
mod reading;
mod shortage;
mod spawn;
mod sweep;
mod watch;
mod words;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use lca::{Allowance, Error, InstanceId, Kind, PeerId, Result};
use rustix::{
    fs::{FlockOperation, flock},
    process::Signal,
};
use tokio::time::{sleep, timeout};

use self::{
    cgroup::Cgroups,
    leader::Leader,
    output::Output as Written,
    shortage::blame,
    spawn::{Failed, Prepared, Terms},
    sweep::Belongs,
    watch::{Charge, Held},
};
use super::{Begin, Driver, Exit, Launch, Means, Output, Started, Stats, killed};

/// Executing a file fails with ETXTBSY while a child that was forked meanwhile by
/// another thread still holds our descriptor that wrote it; that child execs within
/// milliseconds.
const BUSY_WAIT: Duration = Duration::from_millis(2);
/// How long to go on with that.
const BUSY_TRIES: u32 = 250;
/// How long a forced end waits for what got SIGKILL, which is gone within milliseconds
/// unless the disk hangs.
const KILLED_WITHIN: Duration = Duration::from_millis(200);
/// How often it looks.
const KILLED_LOOK: Duration = Duration::from_millis(1);
/// Processes of other nodes that are named one by one in the log.
const STRANGERS_NAMED: usize = 8;

/// What the operator gives programs on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// Soft limit of open files, where it is below our own: a daemon that raises its limit
    /// does so for itself. With none, programs have ours.
    pub open_files: Option<u64>,
    /// Files and folders they may read and execute, with all that is in them, beyond what
    /// every program may. One that does not exist when a program is started is not given.
    pub read: Vec<PathBuf>,
    /// The same for reading, writing and making files.
    pub write: Vec<PathBuf>,
}

/// The process driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Process {
    inner: Arc<Inner>,
    terms: Arc<Terms>,
    /// Why there are no control groups.
    without_groups: Option<Arc<str>>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    books: Mutex<Books>,
    /// Released by the kernel however we end.
    _lock: fs::File,
}

#[derive(Debug, Default)]
struct Books {
    held: HashMap<InstanceId, Arc<Held>>,
    /// Nothing is started any more.
    killed: bool,
}

impl Process {
    /// Uses `dir`, made if missing, for the instances' folders. What an earlier run left
    /// there stays until it is [adopted](Driver::adopt) or [swept](Driver::sweep). Blocks.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if another allocator uses the folder,
    /// [`Kind::FailedPrecondition`] if it cannot be used.
    pub fn open(dir: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            Error::new(Kind::FailedPrecondition, format!("cannot use {}", dir.display()))
                .because(error)
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let dir = dir.canonicalize().map_err(failed)?;
        let lock = fs::File::create(dir.join(".lock")).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            Error::new(Kind::Conflict, format!("another allocator uses {}", dir.display()))
                .because(io::Error::from(error))
        })?;
        let (cgroups, without_groups) = match Cgroups::find(&dir) {
            Ok(cgroups) => (Some(cgroups), None),
            Err(reason) => (None, Some(reason.into())),
        };
        let terms =
            Terms { cgroups, means: confine::Means::of_this_machine(), grants: Grants::default() };
        let inner = Inner { dir, books: Mutex::default(), _lock: lock };
        Ok(Self { inner: Arc::new(inner), terms: Arc::new(terms), without_groups })
    }

    /// The same, whose programs get this.
    pub fn with_grants(self, grants: Grants) -> Self {
        Self { terms: Arc::new(Terms { grants, ..Terms::clone(&self.terms) }), ..self }
    }

    fn held(&self, id: InstanceId) -> Result<Arc<Held>> {
        let held = self.inner.lock().held.get(&id).cloned();
        held.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no process of instance {}", id.short()))
        })
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while holding it.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills what carries `node` and does not run as a held instance, names what other
    /// nodes started, and removes the folders of what is neither held nor alive.
    fn sweep(&self, node: PeerId) {
        let running = self.running();
        let folders = self.folders();
        let ours = |found: Belongs| match found.node {
            Some(other) => other == node,
            // Started before nodes were named, in a folder that only we use.
            None => folders.contains_key(&found.instance),
        };
        let killed = sweep::kill_strays(|found| ours(found) && !running.contains(&found.instance));
        let strangers: Vec<_> =
            sweep::all().into_iter().filter(|(_, found)| !ours(*found)).collect();
        let mut removed = 0;
        let held: HashSet<InstanceId> = self.lock().held.keys().copied().collect();
        for (id, folder) in &folders {
            let used = strangers.iter().any(|(_, found)| found.instance == *id);
            if held.contains(id) || used {
                continue;
            }
            match fs::remove_dir_all(folder) {
                Ok(()) => removed += 1,
                Err(error) => {
                    tracing::warn!(instance = %id, %error, "the folder of an instance stays");
                }
            }
        }
        if killed + removed > 0 {
            tracing::warn!(
                processes = killed,
                folders = removed,
                "cleared what an earlier run left"
            );
        }
        if !strangers.is_empty() {
            let named = strangers.iter().take(STRANGERS_NAMED).map(|(pid, found)| {
                let node = found.node.map_or_else(|| "unknown".to_owned(), |node| node.short());
                format!("{pid} (instance {} of node {node})", found.instance.short())
            });
            let named = named.collect::<Vec<_>>().join(", ");
            tracing::info!(
                processes = strangers.len(),
                named,
                "instances of other nodes run on this machine and are left alone"
            );
        }
    }

    fn running(&self) -> HashSet<InstanceId> {
        let books = self.lock();
        let running = books.held.iter().filter(|(_, held)| held.is_running());
        running.map(|(id, _)| *id).collect()
    }

    /// What looks like the folder of an instance.
    fn folders(&self) -> HashMap<InstanceId, PathBuf> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
            .collect()
    }
}

#[async_trait]
impl Driver for Process {
    fn name(&self) -> &'static str {
        "process"
    }

    fn means(&self) -> Means {
        words::of(&self.terms, self.without_groups.as_deref())
    }

    async fn start(&self, launch: Launch) -> Result<Started> {
        let (id, service, terms) = (launch.id, launch.service.clone(), self.terms.clone());
        let failed = |failed| blame(&service, failed);
        let home = self.inner.dir.join(id.to_string());
        let allowance = launch.allowance;
        let mut attempt = starting(move || {
            let prepared = Prepared::new(home, &launch, &terms)?;
            let newborn = prepared.spawn();
            Ok((prepared, newborn))
        })
        .await
        .map_err(failed)?;
        let mut tries = 0;
        let (prepared, newborn) = loop {
            let prepared = match attempt {
                // Nothing is awaited from here to the end: nobody can drop us between.
                (prepared, Ok(newborn)) => break (prepared, newborn),
                (prepared, Err(Failed::Program(error)))
                    if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES =>
                {
                    prepared
                }
                (_, Err(error)) => return Err(failed(error)),
            };
            tries += 1;
            sleep(BUSY_WAIT).await;
            attempt = starting(move || {
                let newborn = prepared.spawn();
                Ok((prepared, newborn))
            })
            .await
            .map_err(failed)?;
        };
        let mut books = self.inner.lock();
        if books.killed {
            return Err(killed()); // and so is the newborn
        }
        let (child, start_time) = newborn.keep();
        let pid = child.pid.as_raw_nonzero().get().unsigned_abs();
        let group = prepared.group.keep();
        let charge =
            Charge { id, home: prepared.home.keep(), output: prepared.output, group, allowance };
        let held = watch::take_charge(charge, child.into());
        books.held.insert(id, held);
        Ok(Started { pid, start_time })
    }

    async fn adopt(&self, id: InstanceId, started: Started, allowance: Allowance) -> Result<bool> {
        let home = self.inner.dir.join(id.to_string());
        let found = blocking(move || {
            fs::metadata(&home)?;
            let output = Written::reopen(&home);
            Ok((Leader::adopt(id, started), home, output))
        });
        let (leader, home, output) = found.await.map_err(|error| {
            let nothing = format!("nothing is left of instance {}", id.short());
            Error::new(Kind::NotFound, nothing).because(error)
        })?;
        let mut books = self.inner.lock();
        if books.held.contains_key(&id) {
            return Err(Error::new(Kind::Conflict, format!("instance {} is held", id.short())));
        }
        let runs = leader.is_some();
        let group = self.terms.cgroups.as_ref().and_then(|cgroups| cgroups.found(id));
        let charge = Charge { id, home, output, group, allowance };
        let held = match leader {
            Some(leader) => watch::take_charge(charge, leader),
            None => watch::ended_unwatched(charge),
        };
        books.held.insert(id, held);
        Ok(runs)
    }

    async fn sweep(&self, node: PeerId) {
        let (inner, cgroups) = (self.inner.clone(), self.terms.cgroups.clone());
        let swept = blocking(move || {
            inner.sweep(node);
            // Whatever an instance of ours has begun is in its group, also if it hides
            // whose it is.
            let running = inner.running();
            for id in cgroups.iter().flat_map(Cgroups::all).filter(|id| !running.contains(id)) {
                if cgroups.as_ref().is_some_and(|cgroups| !cgroups.group(id).destroy()) {
                    tracing::warn!(instance = %id, "its control group stays: a process hangs");
                }
            }
            Ok(())
        });
        if let Err(error) = swept.await {
            tracing::warn!(%error, "could not look for what an earlier run left");
        }
    }

    async fn wait(&self, id: InstanceId) -> Result<Exit> {
        Ok(self.held(id)?.exited().await)
    }

    fn is_running(&self, id: InstanceId) -> bool {
        self.held(id).is_ok_and(|held| held.is_running())
    }

    async fn stop(&self, id: InstanceId, grace: Duration) -> Result<Exit> {
        let held = self.held(id)?;
        held.signal(Signal::TERM);
        if let Ok(exit) = timeout(grace, held.gone()).await {
            return Ok(exit);
        }
        held.kill();
        Ok(held.gone().await)
    }

    async fn stats(&self, id: InstanceId) -> Result<Stats> {
        let held = self.held(id)?;
        Ok(blocking(move || held.stats()).await.unwrap_or_default())
    }

    async fn logs(&self, id: InstanceId, from: Begin, follow: bool) -> Result<Output> {
        reading::read(self.held(id)?, from, follow).await
    }

    async fn forget(&self, id: InstanceId) {
        let ended = self.held(id).is_ok_and(|held| held.is_gone());
        let Some(held) = ended.then(|| self.inner.lock().held.remove(&id)).flatten() else {
            return;
        };
        let removed = blocking(move || fs::remove_dir_all(&held.home)).await;
        if let Err(error) = removed {
            tracing::warn!(instance = %id, %error, "the folder of an instance stays");
        }
    }

    fn kill_all(&self) {
        let left: HashMap<InstanceId, Arc<Held>> = {
            let mut books = self.inner.lock();
            books.killed = true;
            let left = books.held.iter().filter(|(_, held)| !held.is_gone());
            left.map(|(id, held)| (*id, held.clone())).collect()
        };
        if left.is_empty() {
            return;
        }
        tracing::warn!(instances = left.len(), "killing what runs");
        left.values().for_each(|held| held.kill());
        sweep::kill_strays(|found| left.contains_key(&found.instance));
        let deadline = Instant::now() + KILLED_WITHIN;
        let ended = |held: &Arc<Held>| !held.is_running() && held.has_left_its_group();
        while !left.values().all(ended) && Instant::now() < deadline {
            #[expect(
                clippy::disallowed_methods,
                reason = "dropping cannot await; bounded by KILLED_WITHIN"
            )]
            std::thread::sleep(KILLED_LOOK);
        }
    }
}

/// Starts a program off the runtime.
async fn starting<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Runs what blocks on the disk off the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
