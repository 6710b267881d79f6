//! Makes a process out of a [`Launch`]: the folder, the output file, the command, and
//! the guards that undo each of them until somebody takes charge.
//!
//! What the program may not do it is told before it is executed ([`confine`]); the folder
//! and the group of a process that could not be started go with their guard.
//!
//! [`confine`]: super::confine

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use rustix::process::{Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{
    Grants,
    cgroup::{Cgroups, Group},
    child::Born,
    confine::{self, Allowed, Confinement},
    leader::start_time,
    output::Output,
    program::{Program, Told},
};
use crate::driver::Launch;

/// Where programs are looked for by instances, if we have no `PATH` ourselves.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// The folder of one instance. Dropping it removes it with everything in it.
#[derive(Debug)]
pub(super) struct Home(Option<PathBuf>);

impl Home {
    fn create(dir: PathBuf) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700).create(&dir)?;
        let home = Self(Some(dir));
        builder.create(home.work())?;
        Ok(home)
    }

    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    /// The program's working folder.
    fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    /// The folder, no longer guarded.
    pub(super) fn keep(mut self) -> PathBuf {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(dir) = &self.0 {
            let _gone_already = fs::remove_dir_all(dir);
        }
    }
}

/// A process that nobody takes charge of yet. Dropping it kills its group.
#[derive(Debug)]
pub(super) struct Newborn {
    child: Option<Born>,
    start_time: u64,
}

impl Newborn {
    /// The process, no longer guarded, and when it began.
    pub(super) fn keep(mut self) -> (Born, u64) {
        (self.child.take().expect("taken only here, and self is gone then"), self.start_time)
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _gone_already = kill_process_group(child.pid, Signal::KILL);
            // What got SIGKILL ends at once; waiting reaps it.
            let _reaped = waitid(WaitId::PidFd(child.handle.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// The control group of one instance. Dropping it ends what is in it and removes it.
#[derive(Debug)]
pub(super) struct Grouped(Option<Group>);

impl Grouped {
    /// The group, no longer guarded.
    pub(super) fn keep(mut self) -> Option<Group> {
        self.0.take()
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        if let Some(group) = &self.0 {
            let _swept_later_if_it_stays = group.destroy();
        }
    }
}

/// What a program gets besides its launch: the same for all of a driver.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) cgroups: Option<Cgroups>,
    pub(super) means: confine::Means,
    pub(super) grants: Grants,
}

/// Why no process was made.
#[derive(Debug)]
pub(super) enum Failed {
    /// The program cannot be executed, or its folder not be made.
    Program(io::Error),
    /// It cannot be confined as promised, for this reason.
    Confining(&'static str, io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Program(error)
    }
}

/// Everything a process needs, ready to be spawned as often as it takes. The fields are
/// dropped in this order: a group before the folder its processes work in.
#[derive(Debug)]
pub(super) struct Prepared {
    program: Program,
    confinement: Confinement,
    pub(super) output: Output,
    pub(super) group: Grouped,
    pub(super) home: Home,
}

impl Prepared {
    /// Makes the folder, the group and all that the child needs. Blocks on the disk.
    pub(super) fn new(home: PathBuf, launch: &Launch, terms: &Terms) -> Result<Self, Failed> {
        let executed = launch.program.file()?;
        let home = Home::create(home)?;
        let (output, file) = Output::create(home.path())?;
        let (limits, cpu) = (&launch.allowance, launch.resources.cpu_millis);
        let group = terms
            .cgroups
            .as_ref()
            .map(|cgroups| cgroups.create(launch.id, limits, cpu))
            .transpose()
            .map_err(|error| Failed::Confining("its control group could not be made", error))?;
        let group = Grouped(group);
        let allowed = Allowed {
            program: executed,
            work: &home.work(),
            output: output.path(),
            port: launch.port,
            read: &terms.grants.read,
            write: &terms.grants.write,
        };
        let (group_of_it, soft) = (group.0.as_ref(), terms.grants.open_files);
        let confinement =
            Confinement::prepare(&terms.means, group_of_it, limits, soft, &allowed)
                .map_err(|error| Failed::Confining("its limits could not be prepared", error))?;
        let program = Program::new(Told {
            path: executed,
            arguments: &launch.arguments,
            environment: environment(launch, &home),
            folder: &home.work(),
            output: file.into(),
            socket: launch.listener.as_ref(),
        })?;
        Ok(Self { program, confinement, output, group, home })
    }

    /// Blocks until the program has been executed, or could not be.
    pub(super) fn spawn(&self) -> Result<Newborn, Failed> {
        let child =
            self.confinement.spawn(&self.program)?.map_err(|(step, error)| match step.words() {
                Some(words) => Failed::Confining(words, error.into()),
                None => Failed::Program(error.into()),
            })?;
        let start_time = start_time(child.pid);
        Ok(Newborn { child: Some(child), start_time })
    }
}

/// The whole environment of a program: what finds other programs, where it may put
/// temporary files, and what it is told, which may overrule both.
fn environment(launch: &Launch, home: &Home) -> BTreeMap<OsString, OsString> {
    let ours = std::env::var_os;
    let mut environment = BTreeMap::from([
        ("PATH".into(), ours("PATH").unwrap_or_else(|| DEFAULT_PATH.into())),
        ("TMPDIR".into(), home.work().into()),
    ]);
    environment.extend(ours("LANG").map(|lang| ("LANG".into(), lang)));
    let told = launch.environment.iter();
    environment.extend(told.map(|(name, value)| (name.into(), value.into())));
    environment
}
