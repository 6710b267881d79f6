//! Specs in one file, `registry.redb`: what was answered survives `kill -9` and the loss
//! of power.
//!
//! The file is the truth and is written first; readers see the [`View`], which follows.
//! Only the holder of `file` writes. When a write fails nobody knows what of it reached
//! the disk, so the file is opened and read again before the next one; until that
//! succeeds writes are refused and reads go on.
//!
//! A file that is gone must not pass for a first start: `registry.begun` beside it says
//! that there was one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use lca::{Error, Kind, Result, ServiceName, Spec};
use redb::Database;
use tokio::sync::Mutex;

use super::{Put, Store, Watch, view::View};
use crate::table::{Step, Table};

#[cfg(test)]
mod faulty;
mod format;
#[cfg(test)]
mod tests;

/// Specs in a file. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    view: Arc<View>,
    /// Held by whoever writes, on the blocking pool.
    file: Arc<Mutex<Opened>>,
}

struct Opened {
    path: PathBuf,
    /// `None` after a failed write, until it could be opened again.
    database: Option<Database>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Disk {
    /// Opens `path`, or creates it if there is nothing. Checks every byte of it. Blocks;
    /// meant for the start of a daemon.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if another process has it open; [`Kind::FailedPrecondition`],
    /// with a remedy, if it is damaged, truncated, empty, of a newer version, or missing
    /// where one was, or if the folder cannot be written to; [`Kind::NoCapacity`] if
    /// there is no room. A damaged file is never replaced.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let begun = begun(path);
        if !path.exists() {
            if begun.exists() {
                return Err(format::missing(path, &begun));
            }
            create(path)?;
        }
        let (database, table) = format::open(path)?;
        remember(&begun);
        let opened = Opened { path: path.to_owned(), database: Some(database) };
        Ok(Self { view: Arc::new(View::new(table)), file: Arc::new(Mutex::new(opened)) })
    }

    /// Decides on the blocking pool, writes what was decided, and shows it. One at a
    /// time; goes on if the caller does not wait for it.
    async fn write<T: Send + 'static>(
        &self,
        decide: impl FnOnce(&Table) -> Result<(T, Option<Step>)> + Send + 'static,
    ) -> Result<T> {
        let mut file = self.file.clone().lock_owned().await;
        let view = self.view.clone();
        let done = tokio::task::spawn_blocking(move || {
            let database = file.reopened(&view)?;
            let (answer, step) = decide(&view.read())?;
            let Some(step) = step else { return Ok(answer) };
            if let Err(error) = format::write(database, &step) {
                file.database = None;
                return Err(not_written(error));
            }
            view.change(|_| Ok((answer, Some(step))))
        });
        done.await.map_err(|error| {
            Error::new(Kind::Internal, "writing the registry's store was broken off").because(error)
        })?
    }
}

impl Opened {
    /// The database, opened and read again if the last write failed.
    fn reopened(&mut self, view: &View) -> Result<&Database> {
        if self.database.is_none() {
            let (database, table) = format::open(&self.path).map_err(not_opened)?;
            view.replace(table);
            tracing::info!("the store was opened again after a failed write");
            return Ok(self.database.insert(database));
        }
        self.database.as_ref().ok_or_else(|| Error::new(Kind::Internal, "the store is closed"))
    }
}

/// Makes an empty store beside `path` and moves it there when it is whole: an empty or
/// half-made file at `path` is then always damage, never a first start.
fn create(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        let what = format!("cannot create {}: {error}", path.display());
        Error::new(Kind::FailedPrecondition, what).because(error)
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let aside = path.with_extension(format!("redb-{}.new", std::process::id()));
    // One with our process id was left by a process that is dead.
    let _absent = fs::remove_file(&aside);
    // Specs hold what programs are told, passwords too.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside).map_err(failed)?;
    format::create(&aside)?;
    // Linking, unlike renaming, does not replace what another process was faster with.
    let linked = fs::hard_link(&aside, path);
    fs::remove_file(&aside).map_err(failed)?;
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed),
    }
}

/// What says that a store was begun here, beside it.
fn begun(path: &Path) -> PathBuf {
    path.with_extension("begun")
}

/// Makes it, if it is not there. A full disk keeps nobody from reading: next time, then.
fn remember(begun: &Path) {
    let text = b"A registry was begun here: without its file it refuses to start empty.\n";
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(begun);
    match made.and_then(|mut file| file.write_all(text)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            tracing::warn!(file = %begun.display(), %error, "cannot be written");
        }
        _ => {}
    }
}

/// Whether more room would help.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn not_written(error: redb::Error) -> Error {
    let full = matches!(&error, redb::Error::Io(error) if is_full(error));
    let kind = if full { Kind::NoCapacity } else { Kind::Unavailable };
    tracing::error!(%error, "the store cannot be written");
    Error::new(kind, format!("the registry cannot write to its store: {error}")).because(error)
}

/// Where the file is, is for the log; why it cannot be written, for whoever wants to.
fn not_opened(error: Error) -> Error {
    tracing::error!(error = error.chain(), "the store cannot be opened again");
    let kind = if error.kind() == Kind::NoCapacity { error.kind() } else { Kind::Unavailable };
    let cause = error.cause().and_then(|cause| cause.downcast_ref::<io::Error>());
    let why = cause.map_or("it cannot be opened again".to_owned(), io::Error::to_string);
    Error::new(kind, format!("the registry cannot write to its store: {why}")).because(error)
}

#[async_trait]
impl Store for Disk {
    async fn put(&self, spec: Spec, if_revision: Option<u64>) -> Result<Put> {
        self.write(move |table| table.put(&spec, if_revision)).await
    }

    async fn get(&self, name: &ServiceName) -> Result<Option<Arc<Spec>>> {
        Ok(self.view.get(name))
    }

    async fn list(&self) -> Result<Vec<Arc<Spec>>> {
        Ok(self.view.list())
    }

    async fn delete(&self, name: &ServiceName, if_revision: Option<u64>) -> Result<()> {
        let name = name.clone();
        self.write(move |table| Ok(((), Some(table.delete(&name, if_revision)?)))).await
    }

    async fn watch(&self) -> Result<Watch> {
        Ok(self.view.watch())
    }
}
