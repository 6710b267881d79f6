//! A registry in memory that keeps what it is told and checks nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use futures::{StreamExt as _, stream};
use lca::{
    Error, Kind, Spec,
    api::proto::{
        self,
        registry_server::{Registry, RegistryServer},
    },
};
use tonic::{Request, Response, Status, Streaming};

use crate::relay::Relayed;

#[derive(Clone, Debug, Default)]
pub(crate) struct FakeRegistry {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    specs: BTreeMap<String, proto::ServiceSpec>,
    artifacts: BTreeMap<String, Vec<u8>>,
}

impl FakeRegistry {
    pub(crate) fn into_server(self) -> RegistryServer<Self> {
        RegistryServer::new(self)
    }

    pub(crate) fn put(&self, spec: proto::ServiceSpec) {
        let mut state = self.lock();
        let revision = state.specs.get(&spec.name).map_or(1, |before| before.revision + 1);
        let checked = Spec::try_from(proto::ServiceSpec { revision, ..spec }).unwrap();
        state.specs.insert(checked.name.to_string(), proto::ServiceSpec::from(&checked));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn missing(what: &str) -> Status {
    Error::new(Kind::NotFound, format!("there is no {what}")).into()
}

#[tonic::async_trait]
impl Registry for FakeRegistry {
    type WatchServicesStream = Relayed<proto::ServiceEvent>;
    type GetArtifactStream = Relayed<proto::ArtifactChunk>;

    async fn put_service(
        &self,
        request: Request<proto::PutServiceRequest>,
    ) -> Result<Response<proto::PutServiceResponse>, Status> {
        let spec = request.into_inner().spec;
        self.put(spec.clone().unwrap());
        Ok(Response::new(proto::PutServiceResponse { spec, changed: true }))
    }

    async fn get_service(
        &self,
        request: Request<proto::GetServiceRequest>,
    ) -> Result<Response<proto::GetServiceResponse>, Status> {
        let name = request.into_inner().name;
        let spec = self.lock().specs.get(&name).cloned();
        let spec = Some(spec.ok_or_else(|| missing(&name))?);
        Ok(Response::new(proto::GetServiceResponse { spec, stale: false }))
    }

    async fn list_services(
        &self,
        _request: Request<proto::ListServicesRequest>,
    ) -> Result<Response<proto::ListServicesResponse>, Status> {
        let services = self.lock().specs.values().cloned().collect();
        Ok(Response::new(proto::ListServicesResponse { services }))
    }

    async fn delete_service(
        &self,
        request: Request<proto::DeleteServiceRequest>,
    ) -> Result<Response<proto::DeleteServiceResponse>, Status> {
        let name = request.into_inner().name;
        self.lock().specs.remove(&name).ok_or_else(|| missing(&name))?;
        Ok(Response::new(proto::DeleteServiceResponse {}))
    }

    async fn watch_services(
        &self,
        _request: Request<proto::WatchServicesRequest>,
    ) -> Result<Response<Self::WatchServicesStream>, Status> {
        use proto::service_event::Event;
        let events = self.lock().specs.values().cloned().map(Event::Put).collect::<Vec<_>>();
        let events = events.into_iter().chain([Event::Synced(true)]);
        let events = events.map(|event| Ok(proto::ServiceEvent { event: Some(event) }));
        // A watch does not end by itself.
        let events: Vec<_> = events.collect();
        Ok(Response::new(Box::pin(stream::iter(events).chain(stream::pending()))))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<proto::PutArtifactRequest>>,
    ) -> Result<Response<proto::PutArtifactResponse>, Status> {
        use proto::put_artifact_request::Part;
        let mut parts = request.into_inner();
        let (mut header, mut bytes) = (proto::ArtifactHeader::default(), Vec::new());
        while let Some(part) = parts.message().await? {
            match part.part {
                Some(Part::Header(announced)) => header = announced,
                Some(Part::Data(data)) => bytes.extend_from_slice(&data),
                None => {}
            }
        }
        if bytes.len() as u64 != header.size {
            return Err(Error::new(Kind::InvalidArgument, "not as long as announced").into());
        }
        let answer = proto::PutArtifactResponse {
            digest: header.digest.clone(),
            size: header.size,
            existed: false,
        };
        self.lock().artifacts.insert(header.digest, bytes);
        Ok(Response::new(answer))
    }

    async fn get_artifact(
        &self,
        request: Request<proto::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let digest = request.into_inner().digest;
        let bytes = self.lock().artifacts.get(&digest).cloned();
        let bytes = bytes.ok_or_else(|| missing(&digest))?;
        let chunk = |part: &[u8]| {
            Ok(proto::ArtifactChunk { data: part.to_vec().into(), size: bytes.len() as u64 })
        };
        let chunks: Vec<_> = bytes.chunks(1 << 20).map(chunk).collect();
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }
}
