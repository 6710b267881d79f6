//! The folder of an `up` that was given none: gone when `up` ends, and if it was
//! killed, swept away by the next one.
//!
//! A folder is in use for as long as somebody holds the lock on it, which the kernel
//! lets go of however a process ends. One that is just being made has no lock yet, so
//! young ones are left alone; so are those in which an instance still runs.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use lca::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

const PREFIX: &str = "lca-up-";
/// Younger than this, a folder without a lock may be about to get one.
const JUST_MADE: Duration = Duration::from_secs(5);

/// A folder that goes when this is dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    dir: TempDir,
    _lock: File,
}

impl Temporary {
    /// Sweeps away what killed ones left, and makes a new one. Blocks on the disk.
    pub(super) fn create() -> Result<Self> {
        let parent = std::env::temp_dir();
        sweep(&parent, JUST_MADE);
        let cannot = |error: std::io::Error| {
            let what = format!("cannot create a temporary folder in {}: {error}", parent.display());
            Error::new(Kind::FailedPrecondition, what)
                .hint("name one with --data-dir, or set TMPDIR")
        };
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&parent).map_err(cannot)?;
        let lock = File::open(dir.path()).map_err(cannot)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| cannot(e.into()))?;
        Ok(Self { dir, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes the folders in `parent` of which no `up` is alive.
fn sweep(parent: &Path, just_made: Duration) {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for dir in ours.map(|entry| entry.path()).filter(|dir| is_left_behind(dir, just_made)) {
        let running = running_below(&dir);
        if running.is_empty() {
            match fs::remove_dir_all(&dir) {
                Ok(()) => tracing::info!(dir = %dir.display(), "removed what a killed up left"),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "what a killed up left stays");
                }
            }
        } else {
            tracing::warn!(
                dir = %dir.display(), pids = ?running,
                "an up that was killed left instances running: end them, and the next up removes the folder"
            );
        }
    }
}

fn is_left_behind(dir: &Path, just_made: Duration) -> bool {
    let looked = || -> std::io::Result<bool> {
        let found = fs::symlink_metadata(dir)?;
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        let age = found.modified()?.elapsed().unwrap_or_default();
        if !ours || age < just_made {
            return Ok(false);
        }
        let lock = File::open(dir)?;
        Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok())
    };
    looked().unwrap_or(false)
}

/// The processes whose working folder is in `dir`, as those of instances are.
fn running_below(dir: &Path) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let works_in = |pid: &u32| fs::read_link(PathBuf::from(format!("/proc/{pid}/cwd")));
    pids.filter(|pid| works_in(pid).is_ok_and(|cwd| cwd.starts_with(dir))).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_what_nobody_uses_any_more_is_swept() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = parent.path().join(name);
            fs::create_dir_all(dir.join("proxy")).unwrap();
            dir
        };
        let [dead, alive, busy] = ["lca-up-dead", "lca-up-alive", "lca-up-busy"].map(make);
        let elses = make("somebody-elses");
        let lock = File::open(&alive).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut instance = Command::new("sleep")
            .arg("1000")
            .current_dir(busy.join("proxy"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        sweep(parent.path(), Duration::from_secs(1000));
        assert!(dead.exists(), "it may be about to be locked");
        sweep(parent.path(), Duration::ZERO);
        assert!(!dead.exists());
        assert!(alive.exists() && busy.exists() && elses.exists());
        instance.kill().unwrap();
        instance.wait().unwrap();
        drop(lock);
        sweep(parent.path(), Duration::ZERO);
        assert!(!alive.exists() && !busy.exists() && elses.exists());
    }

    #[test]
    fn one_that_is_used_is_locked_and_goes_with_its_owner() {
        let one = Temporary::create().unwrap();
        let path = one.path().to_owned();
        assert!(!is_left_behind(&path, Duration::ZERO));
        drop(one);
        assert!(!path.exists());
    }
}
