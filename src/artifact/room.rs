//! How many bytes the artifacts of one folder may take, and how many they do.
//!
//! The invariant: what is kept and what is promised to artifacts that are arriving is
//! together never above the limit. Other processes may share the folder and people may
//! delete from it, so before a refusal it is measured again.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The room of one folder. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Room {
    limit: u64,
    used: Arc<Mutex<Used>>,
}

#[derive(Debug)]
struct Used {
    kept: u64,
    promised: u64,
}

/// Bytes promised to an artifact that is arriving, given back when dropped.
#[derive(Debug)]
pub(super) struct Promise {
    room: Room,
    bytes: u64,
}

/// It does not fit.
#[derive(Debug)]
pub(super) struct Full {
    pub(super) used: u64,
    pub(super) limit: u64,
}

impl Room {
    /// The room of `folder`, which may take `limit` bytes.
    pub(super) fn measure(folder: &Path, limit: u64) -> io::Result<Self> {
        let used = Used { kept: bytes_in(folder)?, promised: 0 };
        Ok(Self { limit, used: Arc::new(Mutex::new(used)) })
    }

    /// The same folder with another limit.
    pub(super) fn limited(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Promises room for an artifact in `folder`. May block to measure it.
    pub(super) fn promise(&self, bytes: u64, folder: &Path) -> Result<Promise, Full> {
        let mut used = self.lock();
        if !used.fits(bytes, self.limit)
            && let Ok(kept) = bytes_in(folder)
        {
            used.kept = kept;
        }
        if !used.fits(bytes, self.limit) {
            return Err(Full { used: used.kept + used.promised, limit: self.limit });
        }
        used.promised += bytes;
        Ok(Promise { room: self.clone(), bytes })
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> u64 {
        self.lock().kept
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Every change is one addition or subtraction; whole after any panic.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    fn fits(&self, bytes: u64, limit: u64) -> bool {
        self.kept.saturating_add(self.promised).saturating_add(bytes) <= limit
    }
}

impl Promise {
    /// The artifact is kept; `before` bytes stood where it stands now.
    pub(super) fn keep(self, before: u64) {
        let mut used = self.room.lock();
        used.kept = (used.kept + self.bytes).saturating_sub(before);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.room.lock().promised -= self.bytes;
    }
}

/// What the files of a folder have.
fn bytes_in(folder: &Path) -> io::Result<u64> {
    let sizes = fs::read_dir(folder)?.map(|entry| match entry?.metadata() {
        // Gone since the folder was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        found => found.map(|found| found.len()),
    });
    sizes.sum()
}
