//! The twin that forgets: for tests and for registries that are filled by a program.

use std::sync::Arc;

use async_trait::async_trait;
use lca::{Result, ServiceName, Spec};

use super::{Put, Store, Watch, view::View};
use crate::table::Table;

/// Specs in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    view: View,
}

impl Default for Memory {
    fn default() -> Self {
        Self { view: View::new(Table::default()) }
    }
}

#[async_trait]
impl Store for Memory {
    async fn put(&self, spec: Spec, if_revision: Option<u64>) -> Result<Put> {
        self.view.change(|table| table.put(&spec, if_revision))
    }

    async fn get(&self, name: &ServiceName) -> Result<Option<Arc<Spec>>> {
        Ok(self.view.get(name))
    }

    async fn list(&self) -> Result<Vec<Arc<Spec>>> {
        Ok(self.view.list())
    }

    async fn delete(&self, name: &ServiceName, if_revision: Option<u64>) -> Result<()> {
        self.view.change(|table| Ok(((), Some(table.delete(name, if_revision)?))))
    }

    async fn watch(&self) -> Result<Watch> {
        Ok(self.view.watch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite;

    #[tokio::test]
    async fn the_twin_passes_the_suite() {
        suite::passes(Arc::new(Memory::default())).await;
    }
}
