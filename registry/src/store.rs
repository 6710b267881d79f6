//! The boundary to whatever remembers the specs: a file in [`disk`], nothing in
//! [`memory`]. Both pass `suite`.
//!
//! Watching is part of the boundary, not built on top of it: a snapshot and the changes
//! after it join without a gap only where changes are ordered, which is in the store.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use lca::{Error, Kind, Result, ServiceName, Spec};
use tokio::sync::broadcast;

pub(crate) mod disk;
pub(crate) mod memory;
#[cfg(test)]
pub(crate) mod suite;
mod view;

/// Remembers specs.
#[async_trait]
pub(crate) trait Store: fmt::Debug + Send + Sync + 'static {
    /// Stores a spec; its `revision` is ignored. It is durable when this returns. Not
    /// cancelled by being dropped: it may still happen.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if the name has another content and `if_revision` does not name
    /// its revision; [`Kind::NoCapacity`] if there are too many; [`Kind::Unavailable`] if
    /// it cannot be written now. Nothing has changed then.
    async fn put(&self, spec: Spec, if_revision: Option<u64>) -> Result<Put>;

    /// The spec of a name.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if the store cannot be read now.
    async fn get(&self, name: &ServiceName) -> Result<Option<Arc<Spec>>>;

    /// Every spec, by name.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    async fn list(&self) -> Result<Vec<Arc<Spec>>>;

    /// Removes a name, if it has this revision. Otherwise as [`put`](Self::put).
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none; else as [`put`](Self::put).
    async fn delete(&self, name: &ServiceName, if_revision: Option<u64>) -> Result<()>;

    /// Everything as it is now, and each change after that, in order.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    async fn watch(&self) -> Result<Watch>;
}

/// What became of a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    /// As stored, with its revision.
    pub(crate) spec: Arc<Spec>,
    /// False if the same was there already.
    pub(crate) changed: bool,
}

/// One change of the specs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A spec that is new or different.
    Put(Arc<Spec>),
    /// A name that is gone.
    Deleted {
        /// Which.
        name: ServiceName,
        /// The revision it had.
        revision: u64,
    },
}

/// The specs at one moment, and all changes since.
#[derive(Debug)]
pub(crate) struct Watch {
    snapshot: Vec<Arc<Spec>>,
    changes: broadcast::Receiver<Change>,
}

impl Watch {
    pub(crate) fn new(snapshot: Vec<Arc<Spec>>, changes: broadcast::Receiver<Change>) -> Self {
        Self { snapshot, changes }
    }

    /// What was there when the watch began, by name. Empty the second time.
    pub(crate) fn snapshot(&mut self) -> Vec<Arc<Spec>> {
        std::mem::take(&mut self.snapshot)
    }

    /// The next change. `None` when the store is gone. Cancel safe.
    ///
    /// # Errors
    /// [`Kind::NoCapacity`] if more changes have gone by than are kept for a watcher; it
    /// has to begin again.
    pub(crate) async fn next(&mut self) -> Option<Result<Change>> {
        match self.changes.recv().await {
            Ok(change) => Some(Ok(change)),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                let reason = format!("the watcher did not read and has missed {missed} changes");
                Some(Err(Error::new(Kind::NoCapacity, reason).hint("watch again")))
            }
        }
    }
}
