//! The folder in which registries keep artifacts and allocators run them from: named
//! by digest, verified while they arrive, immutable afterwards.
//!
//! The invariant: a path that [`Store::get`] hands out holds bytes that had that digest
//! when they were stored, all of them on disk. Bytes arrive in a file set aside, which
//! is renamed only when it is whole, verified and synced; so neither a crash nor a
//! second writer of the same digest can be seen half way.
//!
//! A stored file carries a fixed time of modification. Whoever writes to it afterwards
//! changes that, so tampering by accident is noticed with one `stat` and without
//! hashing gigabytes before each start of a program. It is no defence against somebody
//! who may write to the folder and means harm.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sha2::{Digest as _, Sha256};

use crate::{Digest, Error, Kind, Result};

pub use incoming::Incoming;
use room::{Full, Room};

mod incoming;
mod room;
#[cfg(test)]
mod tests;

/// Largest artifact taken: room for a big static binary or a small image, an hour at
/// 5 Mbit/s.
const LIMIT: u64 = 2 << 30;
/// What all artifacts of a folder may take together: dozens of the largest, hundreds of
/// usual ones, and still less than a server's disk has.
const TOTAL: u64 = 64 << 30;
/// Read and execute for all, write for none.
const MODE: u32 = 0o555;
/// How many bytes are hashed at a time when a file is checked again.
const BLOCK: usize = 256 << 10;

/// When every stored file was modified, if one believes it. Not the epoch itself, which
/// broken tools leave behind.
fn mark() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1)
}

/// A folder of artifacts. Cheap to clone; several processes may share one folder.
#[derive(Clone, Debug)]
pub struct Store {
    folders: Arc<Folders>,
    limit: u64,
    room: Room,
}

#[derive(Debug)]
struct Folders {
    /// Whole artifacts, each under the hex digits of its digest.
    kept: PathBuf,
    /// Those that are still arriving, under random names.
    incoming: PathBuf,
}

impl Store {
    /// Opens `dir`, creating it if missing, and removes what a crash left behind. Files
    /// that were changed or copied here by hand are hashed again, and removed if they
    /// are not what they are called. Blocks; meant for the start of a daemon.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the folder cannot be created, read or written.
    pub fn open(dir: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            let what = format!("cannot use the artifact folder {}: {error}", dir.display());
            Error::new(Kind::FailedPrecondition, what).because(error)
        };
        let folders = Folders { kept: dir.join("sha256"), incoming: dir.join("incoming") };
        for folder in [&folders.kept, &folders.incoming] {
            // Others of this machine have no business with what this user runs.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        incoming::sweep(&folders.incoming).map_err(failed)?;
        check_unmarked(&folders.kept).map_err(failed)?;
        let room = Room::measure(&folders.kept, TOTAL).map_err(failed)?;
        Ok(Self { folders: Arc::new(folders), limit: LIMIT, room })
    }

    /// The same store, whose artifacts may take `bytes` together instead of 64 GiB. What
    /// is there already stays.
    #[must_use]
    pub fn at_most(self, bytes: u64) -> Self {
        Self { room: self.room.limited(bytes), ..self }
    }

    /// Where the artifact is, ready to be read or executed; `None` if it is not here,
    /// or was changed since it was stored. One `stat`.
    pub fn get(&self, digest: Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        is_marked(&path).then_some(path)
    }

    /// Everything that is here, in order.
    pub fn list(&self) -> Vec<Digest> {
        let names = fs::read_dir(&self.folders.kept).into_iter().flatten().flatten();
        let digests = names.filter_map(|entry| digest_of(&entry.path()));
        let mut here: Vec<_> = digests.filter(|digest| self.get(*digest).is_some()).collect();
        here.sort_unstable();
        here
    }

    /// Makes room for an artifact of `size` bytes and takes them as they come. Nothing
    /// remains of it until [`Incoming::finish`] has succeeded.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is larger than the limit, [`Kind::NoCapacity`] if
    /// the disk is full or all artifacts together would be too large, naming both,
    /// [`Kind::Internal`] if it cannot be written to.
    pub async fn begin(&self, digest: Digest, size: u64) -> Result<Incoming> {
        if size > self.limit {
            let limit = self.limit;
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("{digest} has {size} bytes, more than the limit of {limit}"),
            ));
        }
        Incoming::begin(self.clone(), digest, size).await
    }

    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.folders.kept.join(digest.hex())
    }
}

/// Settles what to think of files in `folder` that do not carry the mark.
fn check_unmarked(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let Some(digest) = digest_of(&path) else { continue };
        if is_marked(&path) {
            continue;
        }
        let found = fs::symlink_metadata(&path)?;
        if found.is_file() && hash(&path)? == digest {
            set_mark(&File::open(&path)?)?;
            tracing::info!(%digest, "an artifact put here by hand was checked and taken");
        } else if found.is_dir() {
            tracing::warn!(%digest, "a folder stands where an artifact belongs");
        } else {
            tracing::warn!(%digest, "an artifact was not what it is called; removed");
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn is_marked(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| {
        let whole = found.is_file() && found.permissions().mode() & 0o777 == MODE;
        whole && found.modified().is_ok_and(|time| time == mark())
    })
}

/// Makes a file immutable as far as its owner is concerned, and says that it is whole.
fn set_mark(file: &File) -> io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(MODE))?;
    file.set_modified(mark())
}

fn digest_of(path: &Path) -> Option<Digest> {
    format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()
}

fn hash(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(Digest::from_sha256(hasher.finalize().into())),
            read => hasher.update(&block[..read]),
        }
    }
}

/// All artifacts together take too much.
fn no_room(digest: Digest, size: u64, full: &Full) -> Error {
    let Full { used, limit } = full;
    let what = format!(
        "cannot keep {digest} of {size} bytes: artifacts take {used} of the {limit} bytes they may"
    );
    Error::new(Kind::NoCapacity, what)
        .hint("delete files from `sha256` in the artifact folder that no service uses any more")
}

/// What a failed write means to a caller.
fn not_kept(digest: impl fmt::Display, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Kind::NoCapacity
        }
        _ => Kind::Internal,
    };
    Error::new(kind, format!("cannot keep {digest}: {error}")).because(error)
}
