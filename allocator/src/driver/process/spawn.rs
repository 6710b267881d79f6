//! Makes a process out of a [`Launch`]: the folder, the output file, the command, and
//! the guards that undo each of them until somebody takes charge.
//!
//! Nothing here uses a hook between fork and exec, so the standard library can take
//! the fast way (`posix_spawn`), which does not copy our page tables. So limits are set
//! right after the program has been executed, while its loader runs: on a busy machine
//! one that looks at them first thing may see ours.

use std::{
    fs, io,
    os::unix::{fs::DirBuilderExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process_group, prlimit};

use super::{leader::start_time, output::Output};
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

/// Everything a process needs, ready to be spawned as often as it takes.
#[derive(Debug)]
pub(super) struct Prepared {
    command: Command,
    open_files: Option<u64>,
    pub(super) output: Output,
    pub(super) home: Home,
}

impl Prepared {
    /// Makes the folder and the command, of a program that gets this soft limit of open
    /// files if it is below ours. Blocks on the disk.
    pub(super) fn new(home: PathBuf, launch: &Launch, open_files: Option<u64>) -> io::Result<Self> {
        let home = Home::create(home)?;
        let (output, file) = Output::create(home.path())?;
        let mut command = Command::new(&launch.program);
        command
            .args(&launch.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))
            .envs(std::env::var_os("LANG").map(|lang| ("LANG", lang)))
            .envs(&launch.environment)
            .current_dir(home.work())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Self { command, open_files, output, home })
    }

    /// Blocks until the program has been executed, or could not be.
    pub(super) fn spawn(&mut self) -> io::Result<Newborn> {
        let child = self.command.spawn()?;
        if let Some(soft) = self.open_files {
            limit_open_files(child.id(), soft);
        }
        let start_time = start_time(child.id());
        Ok(Newborn { child: Some(child), start_time })
    }
}

/// Lowers the soft limit of a child of ours, which is not reaped yet. One that has ended
/// already, or runs as somebody else, keeps what it had.
fn limit_open_files(pid: u32, soft: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|ours| ours <= soft) {
        return;
    }
    let lower = Rlimit { current: Some(soft), maximum };
    if let Err(error) = prlimit(Pid::from_raw(pid.cast_signed()), Resource::Nofile, lower) {
        tracing::debug!(pid, %error, "a program keeps the allocator's limit of open files");
    }
}
