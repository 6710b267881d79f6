//! An artifact on its way in: set aside, hashed as it arrives, renamed when it is right.
//!
//! Whatever goes wrong, and wherever the future is dropped, the file set aside goes with
//! the [`Partial`] that owns it; only a crash leaves one, which [`sweep`] takes at the
//! next start. A lock on the file tells one that is being written from one left behind,
//! so processes may share a folder.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{Store, no_room, not_kept, room::Promise, set_mark};
use crate::{Digest, Error, Kind, Result};

/// Bytes gathered before they are hashed and written off the runtime: large enough that
/// the hop costs nothing beside the hashing, small enough to hold one for each upload.
const GATHERED: usize = 256 << 10;
/// How often a sweeper may take our new file from us before we give up: once is luck.
const ATTEMPTS: usize = 4;

/// An artifact of which not all bytes are here yet. Dropping it removes them.
#[derive(Debug)]
pub struct Incoming {
    store: Store,
    digest: Digest,
    size: u64,
    /// `None` once it was refused, or while a write that was given up still runs.
    work: Option<Work>,
}

/// What the blocking pool works on, moved there and back.
#[derive(Debug)]
struct Work {
    partial: Partial,
    promise: Promise,
    hasher: Sha256,
    gathered: Vec<u8>,
    /// Bytes taken so far, gathered ones included.
    taken: u64,
}

impl Incoming {
    pub(super) async fn begin(store: Store, digest: Digest, size: u64) -> Result<Self> {
        let (room, folders) = (store.room.clone(), store.folders.clone());
        let begin = move || -> Result<Work> {
            let promise = room.promise(size, &folders.kept);
            let promise = promise.map_err(|full| no_room(digest, size, &full))?;
            let partial = Partial::create(&folders.incoming);
            let partial = partial.map_err(|error| not_kept(digest, error))?;
            let (hasher, gathered) = (Sha256::new(), Vec::new());
            Ok(Work { partial, promise, hasher, gathered, taken: 0 })
        };
        let work = blocking(begin).await??;
        Ok(Self { store, digest, size, work: Some(work) })
    }

    /// Takes the next bytes, however many. Not cancel safe: after a dropped write, or
    /// a failed one, everything is gone and whatever is called next says so.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if there are more than were announced,
    /// [`Kind::NoCapacity`] if the disk is full, [`Kind::Internal`] otherwise.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let mut work = self.take()?;
        work.taken += bytes.len() as u64;
        if work.taken > self.size {
            let Self { digest, size, .. } = self;
            return Err(refused(format!("{digest}: more bytes came than the {size} announced")));
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(GATHERED - work.gathered.len()));
            work.gathered.extend_from_slice(now);
            bytes = later;
            if work.gathered.len() == GATHERED {
                let digest = self.digest;
                let flushed = blocking(move || work.flush().map(|()| work)).await?;
                work = flushed.map_err(|error| not_kept(digest, error))?;
            }
        }
        self.work = Some(work);
        Ok(())
    }

    /// Checks that all bytes are there and are the right ones, and keeps them. If
    /// somebody else was faster, theirs stay: they are the same. Cancel safe: either all
    /// is kept or nothing.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] naming the digest if size or digest differ; else as
    /// [`write`](Self::write). Nothing is kept then.
    pub async fn finish(mut self) -> Result<PathBuf> {
        let work = self.take()?;
        let Self { store, digest, size, .. } = self;
        blocking(move || work.finish(&store, digest, size)).await?
    }

    fn take(&mut self) -> Result<Work> {
        let digest = self.digest;
        self.work.take().ok_or_else(|| {
            Error::new(Kind::Internal, format!("{digest}: an earlier write was not finished"))
        })
    }
}

impl Work {
    fn flush(&mut self) -> io::Result<()> {
        self.hasher.update(&self.gathered);
        self.partial.file.write_all(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }

    fn finish(mut self, store: &Store, digest: Digest, size: u64) -> Result<PathBuf> {
        self.flush().map_err(|error| not_kept(digest, error))?;
        let Self { partial, promise, hasher, taken, .. } = self;
        if taken != size {
            return Err(refused(format!("{digest}: {taken} bytes came of {size} announced")));
        }
        let found = Digest::from_sha256(hasher.finalize().into());
        if found != digest {
            return Err(refused(format!("the bytes sent as {digest} have the digest {found}")));
        }
        if let Some(path) = store.get(digest) {
            return Ok(path);
        }
        let path = store.path(digest);
        let before = fs::symlink_metadata(&path).map_or(0, |found| found.len());
        partial.keep(&path).map_err(|error| not_kept(digest, error))?;
        promise.keep(before);
        Ok(path)
    }
}

/// A file set aside, removed when dropped. The lock it holds says that somebody writes.
#[derive(Debug)]
struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    fn create(folder: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let path = folder.join(format!("{:032x}", rand::random::<u128>()));
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            // Between creating and locking, a process that starts may sweep it away.
            let locked = file.try_lock().is_ok();
            let partial = Self { file, path };
            if locked && partial.file.metadata()?.nlink() > 0 {
                return Ok(partial);
            }
        }
        Err(io::Error::other("the file set aside was taken away"))
    }

    /// Makes it the artifact at `path`, on disk before this returns.
    fn keep(self, path: &Path) -> io::Result<()> {
        set_mark(&self.file)?;
        self.file.sync_all()?;
        fs::rename(&self.path, path)?;
        // The name is on disk when its folder is.
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already after a rename; otherwise the next start sweeps what remains.
        let _swept_later = fs::remove_file(&self.path);
    }
}

/// Removes the files that nobody writes to any more.
pub(super) fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // One that is gone by now was finished by its writer.
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() {
            fs::remove_file(&path)?;
            tracing::info!("removed an artifact that never arrived whole");
        }
    }
    Ok(())
}

fn refused(reason: String) -> Error {
    Error::new(Kind::InvalidArgument, reason)
}

/// Runs what may wait for the disk where waiting does not hold up the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        Error::new(Kind::Internal, "writing an artifact was broken off").because(error)
    })
}
