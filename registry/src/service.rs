//! The gRPC service: reads what comes in, asks the store, writes the answer.
//!
//! What a request may cost is bounded here: messages, uploads, downloads and watchers at
//! the same time, and how long a client may keep an upload waiting. Who may call is
//! settled before a request gets here.

use std::{path::Path, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::Stream;
use lca::{
    Error, Kind, Result, Runs, ServiceName, Spec,
    api::proto::{
        self,
        registry_server::{Registry as Api, RegistryServer},
    },
    artifact,
    metrics::Metrics,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    store::{Store, disk::Disk, memory::Memory},
    table::not_found,
};

mod artifacts;
mod watch;

/// Largest message taken: an artifact chunk is at most 1 MiB, a spec far less.
const MAX_MESSAGE: usize = 2 << 20;
/// Uploads at the same time: each has a file and 256 KiB of memory.
const MAX_UPLOADS: usize = 32;
/// Downloads at the same time: each has a file and a chunk; a fleet may start at once.
const MAX_DOWNLOADS: usize = 256;
/// Watchers at the same time: every node of a large network has one.
const MAX_WATCHERS: usize = 4096;
/// When to come back to a registry that has no place free: most transfers are shorter.
const BUSY: Duration = Duration::from_secs(1);

/// Keeps specs and artifacts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    artifacts: artifact::Store,
    uploads: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    metrics: Metrics,
}

impl Registry {
    /// Opens what `dir` holds, `registry.redb` and the folder `artifacts`, or begins
    /// empty if there is nothing. Blocks; meant for the start of a daemon.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if another process has it open; [`Kind::FailedPrecondition`],
    /// with a remedy, if it is damaged or cannot be written.
    pub fn open(dir: &Path) -> Result<Self> {
        let store = Disk::open(&dir.join("registry.redb"))?;
        Ok(Self::new(Arc::new(store), artifact::Store::open(&dir.join("artifacts"))?))
    }

    /// Specs in memory, artifacts in a folder.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`] if the folder cannot be used.
    pub fn in_memory(artifacts: &Path) -> Result<Self> {
        Ok(Self::new(Arc::<Memory>::default(), artifact::Store::open(artifacts)?))
    }

    /// A registry on any store.
    fn new(store: Arc<dyn Store>, artifacts: artifact::Store) -> Self {
        Self {
            store,
            artifacts,
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            downloads: Arc::new(Semaphore::new(MAX_DOWNLOADS)),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            metrics: Metrics::default(),
        }
    }

    /// The same registry, counting in `metrics`.
    #[must_use]
    pub fn counting_in(self, metrics: Metrics) -> Self {
        Self { metrics, ..self }
    }

    /// The service, to be added to any number of gRPC servers. A watch lasts until its
    /// client goes; whoever shuts a server down must not wait for it.
    pub fn server(&self) -> RegistryServer<Self> {
        RegistryServer::new(self.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Where it keeps artifacts.
    pub fn artifacts(&self) -> &artifact::Store {
        &self.artifacts
    }

    async fn put(&self, request: proto::PutServiceRequest) -> Result<proto::PutServiceResponse> {
        let message = request.spec.ok_or_else(|| invalid("spec is missing"))?;
        let spec = Spec { revision: 0, ..Spec::try_from(message)? };
        if let Runs::Artifact(digest) = spec.runs
            && self.artifacts.get(digest).is_none()
        {
            let what = format!("artifact {digest} has not been uploaded");
            return Err(Error::new(Kind::FailedPrecondition, what)
                .hint("upload it first, with PutArtifact or `lcactl service add --exec`"));
        }
        let put = self.store.put(spec, request.if_revision).await?;
        if put.changed {
            let spec = &put.spec;
            tracing::info!(service = %spec.name, revision = spec.revision, "service stored");
        }
        let spec = Some(proto::ServiceSpec::from(&*put.spec));
        Ok(proto::PutServiceResponse { spec, changed: put.changed })
    }

    async fn get(&self, request: proto::GetServiceRequest) -> Result<proto::GetServiceResponse> {
        let name: ServiceName = request.name.parse()?;
        match self.store.get(&name).await? {
            Some(spec) => {
                let spec = Some(proto::ServiceSpec::from(&*spec));
                Ok(proto::GetServiceResponse { spec, stale: false })
            }
            None => Err(not_found(&name)),
        }
    }

    async fn delete(&self, request: proto::DeleteServiceRequest) -> Result<()> {
        let name: ServiceName = request.name.parse()?;
        self.store.delete(&name, request.if_revision).await?;
        tracing::info!(service = %name, "service removed");
        Ok(())
    }
}

/// What answers with a stream.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl Api for Registry {
    type WatchServicesStream = Answers<proto::ServiceEvent>;
    type GetArtifactStream = Answers<proto::ArtifactChunk>;

    async fn put_service(
        &self,
        request: Request<proto::PutServiceRequest>,
    ) -> Result<Response<proto::PutServiceResponse>, Status> {
        Ok(Response::new(self.put(request.into_inner()).await?))
    }

    async fn get_service(
        &self,
        request: Request<proto::GetServiceRequest>,
    ) -> Result<Response<proto::GetServiceResponse>, Status> {
        Ok(Response::new(self.get(request.into_inner()).await?))
    }

    async fn list_services(
        &self,
        _request: Request<proto::ListServicesRequest>,
    ) -> Result<Response<proto::ListServicesResponse>, Status> {
        let specs = self.store.list().await?;
        let services = specs.iter().map(|spec| proto::ServiceSpec::from(&**spec)).collect();
        Ok(Response::new(proto::ListServicesResponse { services }))
    }

    async fn delete_service(
        &self,
        request: Request<proto::DeleteServiceRequest>,
    ) -> Result<Response<proto::DeleteServiceResponse>, Status> {
        self.delete(request.into_inner()).await?;
        Ok(Response::new(proto::DeleteServiceResponse {}))
    }

    async fn watch_services(
        &self,
        _request: Request<proto::WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        let permit = admit(&self.watchers, "watchers")?;
        let events = watch::events(self.store.watch().await?, permit);
        Ok(Response::new(Box::pin(events)))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<proto::PutArtifactRequest>>,
    ) -> Result<Response<proto::PutArtifactResponse>, Status> {
        let _permit = admit(&self.uploads, "uploads")?;
        Ok(Response::new(
            artifacts::receive(&self.artifacts, &self.metrics, request.into_inner()).await?,
        ))
    }

    async fn get_artifact(
        &self,
        request: Request<proto::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let permit = admit(&self.downloads, "downloads")?;
        let digest = request.into_inner().digest.parse().map_err(Error::from)?;
        let chunks = artifacts::send(&self.artifacts, &self.metrics, digest, permit).await?;
        Ok(Response::new(Box::pin(chunks)))
    }
}

fn invalid(reason: &str) -> Error {
    Error::new(Kind::InvalidArgument, reason)
}

/// A place among those that are served at the same time. No queue: a client that waits
/// in one cannot tell a busy registry from a dead one.
fn admit(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit> {
    places.clone().try_acquire_owned().map_err(|_| {
        Error::new(Kind::NoCapacity, format!("the registry has as many {what} as it serves"))
            .retry_after(BUSY)
    })
}
