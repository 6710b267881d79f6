//! Makes a process out of a [`Launch`]: the folder, the output file, the command, and
//! the guards that undo each of them until somebody takes charge.
//!
//! What the program may not do it is told between fork and exec ([`confine`]); the folder
//! and the group of a process that could not be started go with their guard.
//!
//! [`confine`]: super::confine

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs, io,
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{
    Grants,
    cgroup::{Cgroups, Group},
    confine::{self, Allowed, Confinement, Program, Report},
    leader::start_time,
    output::Output,
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
    child: Option<Child>,
    start_time: u64,
}

impl Newborn {
    /// The process, no longer guarded, and when it began.
    pub(super) fn keep(mut self) -> (Child, u64) {
        (self.child.take().expect("taken only here, and self is gone then"), self.start_time)
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
                let _gone_already = kill_process_group(group, Signal::KILL);
            }
            // What got SIGKILL ends at once; waiting reaps it.
            let _reaped = child.wait();
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
    command: Command,
    report: Report,
    pub(super) output: Output,
    pub(super) group: Grouped,
    pub(super) home: Home,
}

impl Prepared {
    /// Makes the folder, the group and the command. Blocks on the disk.
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
        let program = Program::new(executed, &launch.arguments, environment(launch, &home))?;
        let (group_of_it, soft) = (group.0.as_ref(), terms.grants.open_files);
        let (confinement, report) =
            Confinement::prepare(&terms.means, group_of_it, limits, soft, &allowed, program)
                .map_err(|error| Failed::Confining("its limits could not be prepared", error))?;
        let mut command = Command::new(executed);
        command
            .env_clear()
            .current_dir(home.work())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        confinement.put_on(&mut command);
        Ok(Self { command, report, output, group, home })
    }

    /// Blocks until the program has been executed, or could not be.
    pub(super) fn spawn(&mut self) -> Result<Newborn, Failed> {
        let child = self.command.spawn().map_err(|error| match self.report.failure() {
            Some(step) => Failed::Confining(step, error),
            None => Failed::Program(error),
        })?;
        let start_time = start_time(child.id());
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
