//! The drivers of one allocator, and which of them a spec is for.
//!
//! Programs always have one. Containers have one where the allocator was given an engine,
//! which may come and go while it runs.

use std::sync::Arc;

use futures::future::join_all;
use lca::{Error, InstanceId, Kind, PeerId, Result, Runs};

use super::{Driver, Means};

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Drivers {
    programs: Arc<dyn Driver>,
    containers: Option<Arc<dyn Driver>>,
}

impl Drivers {
    /// Programs alone.
    pub fn new(programs: Arc<dyn Driver>) -> Self {
        Self { programs, containers: None }
    }

    /// The same, and `containers` for what is an image.
    #[must_use]
    pub fn with_containers(self, containers: Arc<dyn Driver>) -> Self {
        Self { containers: Some(containers), ..self }
    }

    /// The driver for what `runs`, whether or not it works at this moment.
    ///
    /// # Errors
    /// [`Kind::NotHere`] if this allocator has none.
    pub(crate) fn of(&self, runs: &Runs) -> Result<&Arc<dyn Driver>> {
        match runs {
            Runs::Artifact(_) | Runs::External => Ok(&self.programs),
            Runs::Image(_) => self
                .containers
                .as_ref()
                .ok_or_else(|| Error::new(Kind::NotHere, "this allocator has no Docker Engine")),
        }
    }

    /// The names of those that could start something now.
    pub(crate) fn names(&self) -> Vec<String> {
        let ready = self.all().filter(|driver| driver.ready().is_ok());
        ready.map(|driver| driver.name().to_owned()).collect()
    }

    /// What all of them enforce and what they do not.
    pub(crate) fn means(&self) -> Means {
        let mut all = Means::default();
        for means in self.all().map(|driver| driver.means()) {
            all.enforced.extend(means.enforced);
            all.not_enforced.extend(means.not_enforced);
        }
        all
    }

    /// [`Driver::sweep`] of all.
    pub(crate) async fn sweep(&self, node: PeerId) {
        join_all(self.all().map(|driver| driver.sweep(node))).await;
    }

    /// [`Driver::forget`] of all: only one of them has it.
    pub(crate) async fn forget(&self, id: InstanceId) {
        join_all(self.all().map(|driver| driver.forget(id))).await;
    }

    /// [`Driver::close`] of all.
    pub(crate) async fn close(&self) {
        join_all(self.all().map(|driver| driver.close())).await;
    }

    /// [`Driver::kill_all`] of all.
    pub(crate) fn kill_all(&self) {
        self.all().for_each(|driver| driver.kill_all());
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn Driver>> {
        [Some(&self.programs), self.containers.as_ref()].into_iter().flatten()
    }
}
