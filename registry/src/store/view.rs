//! The specs in memory, as all readers see them, and the feed of their changes.
//!
//! Reads never touch a disk, so they go on while it is full or slow. A change is applied
//! and told to the watchers under one lock: nobody sees them in another order.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use lca::{Result, ServiceName, Spec};
use tokio::sync::broadcast;

use super::{Change, Watch};
use crate::table::{Step, Table};

/// Changes kept for a watcher that is slow: minutes of a busy operator, a few hundred
/// kilobytes at most since specs are shared.
const KEPT: usize = 1024;

#[derive(Debug)]
pub(super) struct View {
    table: RwLock<Table>,
    feed: broadcast::Sender<Change>,
}

impl View {
    pub(super) fn new(table: Table) -> Self {
        Self { table: RwLock::new(table), feed: broadcast::Sender::new(KEPT) }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Table> {
        // `apply` does not panic between its two halves; what is there is whole.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &ServiceName) -> Option<Arc<Spec>> {
        self.read().get(name)
    }

    pub(super) fn list(&self) -> Vec<Arc<Spec>> {
        self.read().list()
    }

    pub(super) fn watch(&self) -> Watch {
        let table = self.read();
        Watch::new(table.list(), self.feed.subscribe())
    }

    /// Lets `decide` look at the table and applies what it wants, as one.
    pub(super) fn change<T>(
        &self,
        decide: impl FnOnce(&Table) -> Result<(T, Option<Step>)>,
    ) -> Result<T> {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let (answer, step) = decide(&table)?;
        if let Some(step) = step {
            table.apply(&step);
            self.tell(step.change);
        }
        Ok(answer)
    }

    /// Shows `table` from now on, and tells the watchers what is different.
    pub(super) fn replace(&self, table: Table) {
        let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let changes = current.changes_to(&table);
        *current = table;
        changes.into_iter().for_each(|change| self.tell(change));
    }

    fn tell(&self, change: Change) {
        // An error only says that nobody watches.
        let _nobody = self.feed.send(change);
    }
}
