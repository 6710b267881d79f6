//! What an allocator must know after a restart: its instances, and which call was given
//! which of them.
//!
//! ```text
//! DATA/state/<instance id>   one instance, replaced as a whole (`record`)
//! DATA/state/calls           one line a call, the last ten minutes of them (`calls`)
//! DATA/state/calls.old       the lines before
//! ```
//!
//! Files are written aside and renamed, and never synced: what a killed allocator wrote is
//! in the kernel's hands and survives it, and a machine that loses power loses the
//! instances too. So nothing waits for a disk on the path of a start. Whatever is read
//! back is taken for what anybody could have written.

mod calls;
mod record;

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use lca::{Error, InstanceId, Kind, Result};
use tokio::time::Instant;

pub(crate) use self::{
    calls::Call,
    record::{Phase, Record},
};

/// Largest record that is read: a spec of the largest size the API takes, and the last
/// lines of its instance.
const MAX_RECORD: u64 = 1 << 20;
/// Most records that are read: several times what one machine runs and remembers.
const MAX_RECORDS: usize = 10_000;

/// The files of one allocator. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ledger(Option<Arc<Files>>);

#[derive(Debug)]
struct Files {
    dir: PathBuf,
    calls: calls::Journal,
}

/// What an earlier run left.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub(crate) records: Vec<Record>,
    /// Oldest first.
    pub(crate) calls: Vec<Call>,
}

impl Ledger {
    /// One that keeps nothing.
    #[cfg(test)]
    pub(crate) const fn nowhere() -> Self {
        Self(None)
    }

    /// Uses `dir`, made if missing, and reads what is there. What cannot be read is named
    /// in the log and removed: its instance is a stray then. Blocks.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the folder cannot be used.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Left)> {
        let failed = |error: io::Error| {
            Error::new(Kind::FailedPrecondition, format!("cannot use {}", dir.display()))
                .because(error)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let (journal, calls) = calls::Journal::open(dir).map_err(failed)?;
        let records = read_records(dir).map_err(failed)?;
        let files = Files { dir: dir.to_owned(), calls: journal };
        Ok((Self(Some(Arc::new(files))), Left { records, calls }))
    }

    /// Remembers a call. Begins at once; what is returned need not be waited for.
    pub(crate) fn note(&self, call: Call) -> Written {
        self.write(move |files| files.calls.append(&call))
    }

    /// Where an instance is remembered.
    pub(crate) fn page(&self) -> Page {
        Page { ledger: self.clone(), next: 0, written: Arc::default() }
    }

    /// Forgets an instance.
    pub(crate) fn forget(&self, id: InstanceId) -> Written {
        self.write(move |files| match fs::remove_file(files.dir.join(id.to_string())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }

    fn write(&self, work: impl FnOnce(&Files) -> io::Result<()> + Send + 'static) -> Written {
        let files = self.0.clone();
        Written(files.map(|files| tokio::task::spawn_blocking(move || work(&files))))
    }
}

/// The record of one instance, written in the order of the calls.
#[derive(Debug)]
pub(crate) struct Page {
    ledger: Ledger,
    next: u64,
    /// The newest that is on the disk.
    written: Arc<Mutex<u64>>,
}

impl Page {
    /// Replaces the record. Begins at once; what is returned need not be waited for.
    pub(crate) fn write(&mut self, record: Record) -> Written {
        self.next += 1;
        let (number, written) = (self.next, self.written.clone());
        self.ledger.write(move |files| {
            // Nothing panics while holding it.
            let mut newest = written.lock().unwrap_or_else(PoisonError::into_inner);
            if number > *newest {
                replace(&files.dir.join(record.instance.to_string()), &record.encode())?;
                *newest = number;
            }
            Ok(())
        })
    }
}

/// Something on its way to the disk.
#[derive(Debug)]
#[must_use = "wait for it, or say that nobody has to with `drop`"]
pub(crate) struct Written(Option<tokio::task::JoinHandle<io::Result<()>>>);

impl Written {
    /// Resolves when a crash cannot lose it any more. What cannot be written is said in
    /// the log and stops nobody: a full disk must not end what works.
    pub(crate) async fn done(self) {
        let Some(writing) = self.0 else { return };
        let error = match writing.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(error) => io::Error::other(error),
        };
        tracing::warn!(%error, "a restart will not know this: it cannot be written");
    }
}

/// Replaces a file as a whole, for our eyes only: environments may be secret.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    fs::rename(aside, path)
}

fn read_records(dir: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let Ok(id) = name.parse::<InstanceId>() else {
            // Half written by a run that was killed.
            if name.ends_with(".new") {
                let _gone_already = fs::remove_file(&path);
            }
            continue;
        };
        let read = match records.len() {
            MAX_RECORDS => Err("there are too many".to_owned()),
            _ => read_record(&path, id),
        };
        match read {
            Ok(record) => records.push(record),
            Err(reason) => {
                tracing::warn!(
                    file = %path.display(), reason,
                    "what is remembered of an instance cannot be used; it is stopped if it runs"
                );
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(records)
}

fn read_record(path: &Path, id: InstanceId) -> std::result::Result<Record, String> {
    let found = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("it is no file".to_owned());
    }
    if found.len() > MAX_RECORD {
        return Err(format!("it has {} bytes, more than {MAX_RECORD}", found.len()));
    }
    let record = Record::decode(&fs::read(path).map_err(|error| error.to_string())?)?;
    if record.instance != id {
        return Err(format!("it is about instance {}", record.instance.short()));
    }
    Ok(record)
}

/// Milliseconds since 1970: the one clock that goes on over a restart.
pub(crate) fn wall_ms(at: Instant) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.saturating_sub(at.elapsed()).as_millis()).unwrap_or(u64::MAX)
}

/// When that was, by our own clock; now, for what lies in the future or before the boot.
pub(crate) fn since_wall(ms: u64) -> Instant {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(Duration::from_millis(ms));
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}

#[cfg(test)]
mod tests;
