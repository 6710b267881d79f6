//! The data folder of a daemon: made for its user alone, and used by one daemon at a
//! time. Two daemons in one folder would be the same peer twice, and each would take
//! the other's instances for leftovers.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use lca::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

/// For a predecessor to let go: after `kill -9` a program it was just starting may hold
/// the lock for as long as an exec takes.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
/// A process id and a newline.
const MAX_LOCK: u64 = 32;

/// A data folder that is ours as long as this is held.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the folder if there is none, and takes it.
    ///
    /// # Errors
    /// [`Kind::Conflict`] naming the folder if another daemon uses it, after a second;
    /// [`Kind::FailedPrecondition`] if it cannot be made or is open to others.
    pub(crate) async fn take(path: &Path) -> Result<Self> {
        create_dir(path)?;
        let file = path.join("lock");
        let refused = |error: std::io::Error| {
            let what = format!("cannot use the data folder {}: {error}", path.display());
            Error::new(Kind::FailedPrecondition, what).because(error)
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options.open(&file).map_err(refused)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => sleep(PAUSE).await,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut holder = String::new();
                    let _unknown = (&lock).take(MAX_LOCK).read_to_string(&mut holder);
                    return Err(in_use(path, holder.trim()));
                }
                Err(error) => return Err(refused(error.into())),
            }
        }
        let noted = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        noted.map_err(refused)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn in_use(path: &Path, holder: &str) -> Error {
    let who = match holder.parse::<u32>() {
        Ok(pid) => format!("another daemon (pid {pid})"),
        Err(_) => "another daemon".to_owned(),
    };
    let what = format!("the data folder {} is in use by {who}", path.display());
    Error::new(Kind::Conflict, what)
        .hint("stop that daemon, or give this one a folder of its own with --data-dir")
}

/// Makes the data folder for us alone. One that exists is used as it is, unless others
/// could put an identity or a program of theirs in it.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    let refused = |reason: String| Error::new(Kind::FailedPrecondition, reason);
    let cannot = |what: &str, error: std::io::Error| {
        refused(format!("cannot {what} the folder {}: {error}", dir.display())).because(error)
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| cannot("create", error))?;
    let found = std::fs::metadata(dir).map_err(|error| cannot("look at", error))?;
    if found.mode() & 0o022 != 0 {
        let reason = format!("the data folder {} can be written to by others", dir.display());
        return Err(refused(reason).hint(format!("chmod go-w {}", dir.display())));
    }
    Ok(())
}
