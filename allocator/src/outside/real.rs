//! The real specs, artifacts and ingress behind the seams.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use lca::{
    Digest, Error, Kind, Result, ServiceName,
    artifact::Store,
    headers::Load,
    specs::{Cached, Specs},
};
use lca_ingress::{Ingress, Registration};

use super::{Catalog, Door, Gate, Known, Local};

/// When whoever wanted a service that this node may not run may ask again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The node's specs, and this allocator's own folder of artifacts.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) specs: Specs,
    pub(crate) store: Store,
}

#[async_trait]
impl Catalog for Shelf {
    async fn get(&self, name: &ServiceName) -> Result<Known> {
        let cached = self.specs.get(name).await?;
        told(name, &cached)
    }

    async fn refresh(&self, name: &ServiceName) -> Result<Known> {
        let cached = self.specs.refresh(name).await?;
        told(name, &cached)
    }

    async fn fetch(&self, digest: Digest) -> Result<PathBuf> {
        self.specs.fetch_artifact(digest, &self.store).await
    }

    fn kept(&self) -> Vec<Known> {
        let mut kept = self.specs.all();
        kept.retain(|cached| cached.spec.min_instances > 0 && !cached.hearsay);
        kept.into_iter()
            .map(|cached| Known { spec: cached.spec.clone(), hash: cached.hash })
            .collect()
    }

    fn cached(&self) -> Vec<Digest> {
        self.store.list()
    }
}

/// What may be run: what a registry has told this node, now or in an earlier life.
fn told(name: &ServiceName, cached: &Cached) -> Result<Known> {
    if cached.hearsay {
        let what = format!("no registry can be reached, and none has told this node of `{name}`");
        return Err(Error::new(Kind::Unavailable, what).retry_after(RETRY_AFTER));
    }
    Ok(Known { spec: cached.spec.clone(), hash: cached.hash })
}

impl Gate for Ingress {
    fn open(&self, local: Local) -> Arc<dyn Door> {
        Arc::new(self.register(local))
    }
}

#[async_trait]
impl Door for Registration {
    fn drain(&self) {
        Registration::drain(self);
    }

    fn drain_if_idle(&self, time: Duration) -> bool {
        Registration::drain_if_idle(self, time)
    }

    fn touch(&self) {
        Registration::touch(self);
    }

    fn load(&self) -> Load {
        Registration::load(self)
    }

    async fn idle_for(&self, time: Duration) {
        Registration::idle_for(self, time).await;
    }

    async fn used_within(&self, time: Duration) {
        Registration::used_within(self, time).await;
    }

    async fn drained(&self) {
        Registration::drained(self).await;
    }
}
