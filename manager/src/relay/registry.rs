//! `Registry`, passed on to the nearest registry. While none answers, `GetService` is
//! answered from what this node knows, marked stale.

use lca::{
    Error, Kind, Result, ServiceName,
    api::proto::{self, registry_server::Registry},
};
use tonic::{Request, Response, Status, Streaming};

use super::{Relay, Relayed, flow, head, known, pass};

const WHAT: &str = "the registry";

#[tonic::async_trait]
impl Registry for Relay {
    type WatchServicesStream = Relayed<proto::ServiceEvent>;
    type GetArtifactStream = Relayed<proto::ArtifactChunk>;

    async fn put_service(
        &self,
        request: Request<proto::PutServiceRequest>,
    ) -> Result<Response<proto::PutServiceResponse>, Status> {
        let name = request.get_ref().spec.as_ref().map(|spec| spec.name.clone());
        let mut registry = self.specs().registry().await?;
        let answer = pass(WHAT, request, |request| registry.put_service(request)).await?;
        self.changed(name.as_deref());
        Ok(answer)
    }

    async fn get_service(
        &self,
        request: Request<proto::GetServiceRequest>,
    ) -> Result<Response<proto::GetServiceResponse>, Status> {
        let name: ServiceName = request.get_ref().name.parse().map_err(Error::from)?;
        let asked = async {
            let mut registry = self.specs().registry().await?;
            pass(WHAT, request, |request| registry.get_service(request)).await
        };
        match asked.await.map_err(Error::from) {
            Err(error) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
                // Other nodes may know it, where this one does not.
                let known = self.specs().get(&name).await;
                known.map(|known| known::answer(&known)).map_err(|_| error.into())
            }
            answer => Ok(answer?),
        }
    }

    async fn list_services(
        &self,
        request: Request<proto::ListServicesRequest>,
    ) -> Result<Response<proto::ListServicesResponse>, Status> {
        let mut registry = self.specs().registry().await?;
        pass(WHAT, request, |request| registry.list_services(request)).await
    }

    async fn delete_service(
        &self,
        request: Request<proto::DeleteServiceRequest>,
    ) -> Result<Response<proto::DeleteServiceResponse>, Status> {
        let name = request.get_ref().name.clone();
        let mut registry = self.specs().registry().await?;
        let answer = pass(WHAT, request, |request| registry.delete_service(request)).await?;
        self.changed(Some(&name));
        Ok(answer)
    }

    async fn watch_services(
        &self,
        request: Request<proto::WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        let mut registry = self.specs().registry().await?;
        let watch = registry.watch_services(request.into_inner());
        let answer = head(WHAT, watch).await?;
        Ok(self.until_stopping(flow(answer)))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<proto::PutArtifactRequest>>,
    ) -> Result<Response<proto::PutArtifactResponse>, Status> {
        let mut registry = self.specs().registry().await?;
        // If the caller breaks off, so does the upload: the registry counts the bytes.
        let parts = tokio_stream::StreamExt::map_while(request.into_inner(), Result::ok);
        Ok(Response::new(registry.put_artifact(parts).await.map_err(super::told)?.into_inner()))
    }

    async fn get_artifact(
        &self,
        request: Request<proto::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let mut registry = self.specs().registry().await?;
        let get = registry.get_artifact(request.into_inner());
        Ok(flow(head(WHAT, get).await?))
    }
}

impl Relay {
    /// A service was changed through this node: it should be the first to know.
    fn changed(&self, name: Option<&str>) {
        let Some(Ok(name)) = name.map(str::parse::<ServiceName>) else { return };
        let specs = self.specs().clone();
        let stopping = self.0.inner.spawner.stopping();
        self.0.inner.spawner.spawn_short(async move {
            let refreshed = async {
                if let Err(error) = specs.refresh(&name).await {
                    tracing::debug!(service = %name, error = error.chain(), "not known any more");
                }
            };
            tokio::select! {
                () = refreshed => {}
                () = stopping => {}
            }
        });
    }

    fn specs(&self) -> &lca::specs::Specs {
        &self.0.inner.specs
    }
}
