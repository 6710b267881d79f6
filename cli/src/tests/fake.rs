//! A local API with canned answers on a socket of its own: one peer, one instance, and
//! whatever services a test registers.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use lca::{
    Digest, Error, Kind, Runs, Spec,
    api::proto::{
        self, allocate_progress::Progress, instance_event::Event, put_artifact_request::Part,
        registry_client::RegistryClient,
    },
    local,
    shutdown::Tasks,
    testing::eventually,
};
use proto::{
    allocator_server::{Allocator, AllocatorServer},
    instances_server::{Instances, InstancesServer},
    manager_server::{Manager, ManagerServer},
    node_server::{Node, NodeServer},
    registry_server::{Registry, RegistryServer},
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, service::Routes};

use crate::connect::{self, Api};

pub(super) const PEER: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
pub(super) const INSTANCE: &str = "00112233445566778899aabbccddeeff";

type Stream1<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

/// What the fake has been given.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) specs: BTreeMap<String, proto::ServiceSpec>,
    pub(super) artifacts: BTreeMap<String, Vec<u8>>,
    /// Services that were to be allocated.
    asked: Vec<String>,
    /// How often it was asked for its peers.
    peers_asked: u32,
    /// What it says of itself.
    pub(super) told: proto::DiagnoseResponse,
    /// Artifact bytes that came over the wire, known or not.
    pub(super) received: usize,
}

/// Answers for the daemon. `allocate` of a service called `never` never ends, of one
/// called `broken` fails to start.
#[derive(Clone, Debug, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

/// A daemon that runs until this is dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) fake: Fake,
    pub(super) socket: PathBuf,
    /// gRPC by TCP, and the file of its token.
    pub(super) port: std::net::SocketAddr,
    pub(super) token_file: PathBuf,
    _dir: tempfile::TempDir,
    _tasks: Tasks,
}

impl Daemon {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("proxy-4201.sock");
        let (fake, tasks) = (Fake::default(), Tasks::default());
        let (reporter, health) = tonic_health::server::health_reporter();
        reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
        let mut routes = Routes::builder();
        routes
            .add_service(RegistryServer::new(fake.clone()))
            .add_service(AllocatorServer::new(fake.clone()))
            .add_service(InstancesServer::new(fake.clone()))
            .add_service(ManagerServer::new(fake.clone()))
            .add_service(NodeServer::new(fake.clone()))
            .add_service(health);
        let (routes, spawner) = (routes.routes(), tasks.spawner());
        local::Listener::bind(&socket).unwrap().serve(routes.clone(), &spawner);
        let token_file = dir.path().join("token");
        let any = ([127, 0, 0, 1], 0).into();
        let tcp = local::tcp::Listener::bind(any, token_file.clone()).await.unwrap();
        let port = tcp.address();
        tcp.serve(routes, &spawner);
        Self { fake, socket, port, token_file, _dir: dir, _tasks: tasks }
    }

    pub(super) async fn registry(&self) -> RegistryClient<Api> {
        RegistryClient::new(connect::socket(&self.socket).await.unwrap())
    }

    pub(super) fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        self.fake.state(look)
    }
}

impl Fake {
    /// Resolves once a start of `service` was asked for.
    pub(super) async fn asked(&self, service: &str) {
        let asked = async || self.state(|state| state.asked.iter().any(|asked| asked == service));
        eventually("the start to be asked for", asked).await;
    }

    fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

fn instance(state: proto::InstanceState) -> proto::Instance {
    proto::Instance {
        id: INSTANCE.into(),
        service: "hello".into(),
        service_hash: "ab".repeat(32),
        revision: 1,
        peer: PEER.into(),
        mesh_addresses: vec!["127.0.0.1:4444".into()],
        state: state.into(),
        driver: "process".into(),
        age_ms: 61_000,
        load: Some(proto::Load { in_flight: 2, limit: 1024, queue_us: 0, app_us: 900 }),
        rtt_us: Some(412),
        rtt_deviation_us: Some(38),
        pid: 77,
        usage: Some(proto::Usage {
            cpu_us: 1_500_000,
            cpu_millis: 120,
            cpu_limit_millis: 500,
            memory_bytes: 12 << 20,
            memory_limit_bytes: 64 << 20,
        }),
        restarts: 1,
        last_exit: "exited with code 3".into(),
        ..Default::default()
    }
}

fn explained() -> proto::ExplainResponse {
    use proto::{considered_instance::Verdict, outlook::Action};
    let limits = |soft_rtt_ms, hard_rtt_ms| Some(proto::Requirements { soft_rtt_ms, hard_rtt_ms });
    let one = |verdict: Verdict, reason: &str, instance| proto::ConsideredInstance {
        instance: Some(instance),
        verdict: verdict.into(),
        reason: reason.into(),
        known: verdict == Verdict::Chosen,
        level: if verdict == Verdict::Chosen { "good" } else { "" }.into(),
        ejected_ms: 0,
    };
    let ready = instance(proto::InstanceState::Ready);
    let far = proto::Instance {
        id: "ff".repeat(16),
        rtt_us: Some(30_000),
        rtt_deviation_us: Some(1_460),
        ..ready.clone()
    };
    let total = proto::Capacity { cpu_millis: 4000, memory_bytes: 1 << 30, instances: 64 };
    let used = proto::Capacity { cpu_millis: 100, memory_bytes: 64 << 20, instances: 1 };
    let near = proto::ConsideredAllocator {
        peer: PEER.into(),
        rtt_us: Some(412),
        bucket_us: 2000,
        has_room: true,
        rank: 1,
        reason: "under 2.0 ms, within the soft limit of 10.0 ms".into(),
        capacity: Some(proto::PeerCapacity {
            peer: PEER.into(),
            total: Some(total),
            used: Some(used),
        }),
    };
    let dead = proto::ConsideredAllocator {
        rtt_us: None,
        rank: 0,
        has_room: false,
        reason: "does not answer".into(),
        capacity: None,
        ..near.clone()
    };
    proto::ExplainResponse {
        spec: Some(proto::ServiceSpec { name: "hello".into(), revision: 3, ..Default::default() }),
        stale: false,
        requirements: Some(proto::RequirementsInForce {
            in_force: limits(10, 20),
            service: limits(100, 20),
            node: limits(10, 0),
        }),
        instances: vec![
            one(Verdict::Chosen, "the best there is: 412 us away", ready),
            one(Verdict::BeyondHard, "30.0 ms away, beyond the hard limit of 20.0 ms", far),
        ],
        allocators: vec![near, dead],
        outlook: Some(proto::Outlook {
            action: Action::Use.into(),
            instance: INSTANCE.into(),
            peer: PEER.into(),
            reason: "a request is sent to a known instance at once".into(),
        }),
        unreachable_peers: vec![PEER.into()],
        moves: vec![proto::Move {
            age_ms: 61_000,
            from_instance: "ff".repeat(16),
            from_peer: PEER.into(),
            to_instance: INSTANCE.into(),
            to_peer: PEER.into(),
            reason: "above the soft limit of 10.0 ms for 2.0 s".into(),
        }],
    }
}

fn steps() -> Vec<proto::Step> {
    let step = |name: &str, duration_us, detail: &str| proto::Step {
        name: name.into(),
        duration_us,
        detail: detail.into(),
    };
    vec![step("find", 52_000, ""), step("spawn", 850, ""), step("ready", 1_230, "AJU5SA")]
}

fn unknown(what: &str) -> Status {
    Error::new(Kind::NotFound, format!("no {what}")).into()
}

#[tonic::async_trait]
impl Manager for Fake {
    type AllocateStream = Stream1<proto::AllocateProgress>;

    async fn resolve(&self, _: Request<proto::ResolveRequest>) -> Answer<proto::ResolveResponse> {
        Err(Status::unimplemented(""))
    }

    async fn allocate(
        &self,
        request: Request<proto::AllocateServiceRequest>,
    ) -> Answer<Self::AllocateStream> {
        let request = request.into_inner();
        self.state(|state| state.asked.push(request.service.clone()));
        match request.service.as_str() {
            "never" => return Ok(Response::new(Box::pin(tokio_stream::pending()))),
            "broken" => {
                return Err(Error::new(
                    Kind::StartFailed,
                    "broken exited with code 1 before it was ready",
                )
                .output(["no such table".to_owned(), "giving up".to_owned()])
                .retry_after(std::time::Duration::from_secs(2))
                .into());
            }
            _ => {}
        }
        let progress = |progress| Ok(proto::AllocateProgress { progress: Some(progress) });
        let done = proto::AllocateResponse {
            instance: Some(instance(proto::InstanceState::Ready)),
            joined: request.mode() == proto::allocate_request::Mode::Ensure,
            steps: steps(),
        };
        let mut messages: Vec<_> =
            steps().into_iter().map(|step| progress(Progress::Step(step))).collect();
        if request.service == "pulled" {
            for (bytes, layers) in [(3 << 20, 1), (0, 0)] {
                let total_bytes = if bytes == 0 { 0 } else { 12 << 20 };
                let fetching = proto::Fetching { bytes, total_bytes, layers, total_layers: 4 };
                messages.insert(1, progress(Progress::Fetching(fetching)));
            }
        }
        if request.service != "cut" {
            messages.push(progress(Progress::Done(done)));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Answer<proto::ExplainResponse> {
        let service = request.into_inner().service;
        if service != "hello" {
            return Err(unknown("such service"));
        }
        Ok(Response::new(explained()))
    }

    async fn list_peers(
        &self,
        _: Request<proto::ListPeersRequest>,
    ) -> Answer<proto::ListPeersResponse> {
        let asked = self.state(|state| {
            state.peers_asked += 1;
            state.peers_asked
        });
        let here = proto::Peer {
            peer: PEER.into(),
            roles: vec!["proxy".into()],
            mesh_addresses: vec!["127.0.0.1:4444".into()],
            version: "0.1.0".into(),
            local: true,
            reachable: true,
            ..Default::default()
        };
        let there = proto::Peer {
            peer: "junk\x1b[31m".into(),
            roles: vec!["registry".into(), "allocator".into()],
            rtt_us: Some(1_250),
            rtt_deviation_us: Some(310),
            link: "edge".into(),
            local: false,
            reachable: false,
            instances: 3,
            max_instances: 64,
            ..here.clone()
        };
        // The third to ask hears of another one, the fourth of one less.
        let peers = match asked {
            3 => vec![here, proto::Peer { reachable: true, ..there }],
            4.. => vec![here],
            _ => vec![here, there],
        };
        Ok(Response::new(proto::ListPeersResponse { peers }))
    }
}

#[tonic::async_trait]
impl Node for Fake {
    async fn diagnose(
        &self,
        _: Request<proto::DiagnoseRequest>,
    ) -> Answer<proto::DiagnoseResponse> {
        Ok(Response::new(self.state(|state| state.told.clone())))
    }
}

#[tonic::async_trait]
impl Instances for Fake {
    type WatchInstancesStream = tonic::codegen::BoxStream<proto::InstanceEvent>;

    async fn watch_instances(
        &self,
        request: Request<proto::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        let service = request.into_inner().service;
        let ready = instance(proto::InstanceState::Ready);
        let busy = proto::Instance {
            load: Some(proto::Load { in_flight: 7, limit: 1024, queue_us: 0, app_us: 900 }),
            ..ready.clone()
        };
        let total = proto::Capacity { cpu_millis: 4000, memory_bytes: 1 << 30, instances: 64 };
        let used = proto::Capacity { cpu_millis: 100, memory_bytes: 64 << 20, instances: 1 };
        let capacity =
            proto::PeerCapacity { peer: PEER.into(), total: Some(total), used: Some(used) };
        let now = [Event::Put(ready), Event::Capacity(capacity), Event::Synced(true)];
        let then = [Event::Put(busy), Event::Gone(INSTANCE.into())];
        let event = |event| Ok(proto::InstanceEvent { event: Some(event) });
        let now = tokio_stream::iter(now.map(event));
        let paces = then.map(event).map(|event| async {
            // Longer than what is drawn together.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            event
        });
        let then = futures::stream::iter(paces).then(|pace| pace);
        Ok(Response::new(match service.as_str() {
            "endless" => Box::pin(now.chain(tokio_stream::pending())),
            _ => Box::pin(now.chain(then)),
        }))
    }

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Answer<proto::ListInstancesResponse> {
        let request = request.into_inner();
        let mut instances = vec![instance(proto::InstanceState::Ready)];
        if request.include_ended {
            instances.push(proto::Instance {
                id: "ff".repeat(16),
                reason: "exited with code 1".into(),
                load: None,
                rtt_us: None,
                ..instance(proto::InstanceState::Failed)
            });
        }
        instances.retain(|i| request.service.is_empty() || i.service == request.service);
        let unreachable_peers = if request.include_ended { vec![PEER.into()] } else { vec![] };
        Ok(Response::new(proto::ListInstancesResponse { instances, unreachable_peers }))
    }
}

#[tonic::async_trait]
impl Allocator for Fake {
    type LogsStream = Stream1<proto::LogChunk>;

    async fn allocate(
        &self,
        _: Request<proto::AllocateRequest>,
    ) -> Answer<proto::AllocateResponse> {
        Err(Status::unimplemented(""))
    }

    async fn claim(&self, _: Request<proto::ClaimRequest>) -> Answer<proto::ClaimResponse> {
        Err(Status::unimplemented(""))
    }

    async fn intend(&self, _: Request<proto::IntendRequest>) -> Answer<proto::IntendResponse> {
        Err(Status::unimplemented(""))
    }

    async fn release(
        &self,
        request: Request<proto::ReleaseRequest>,
    ) -> Answer<proto::ReleaseResponse> {
        match INSTANCE.starts_with(&request.into_inner().instance) {
            true => Ok(Response::new(proto::ReleaseResponse {
                instance: Some(instance(proto::InstanceState::Stopped)),
            })),
            false => Err(unknown("such instance")),
        }
    }

    async fn describe(
        &self,
        _: Request<proto::DescribeRequest>,
    ) -> Answer<proto::DescribeResponse> {
        Err(Status::unimplemented(""))
    }

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let lines: Vec<&[u8]> = match request.tail_lines {
            0 => vec![b"listening\nfirst", b" request\n", b"\xff\n"],
            _ => vec![b"\xff\n"],
        };
        let chunks =
            lines.into_iter().map(|data| Ok(proto::LogChunk { data: data.to_vec().into() }));
        let chunks: Vec<_> = chunks.collect();
        let chunks = tokio_stream::iter(chunks);
        Ok(Response::new(match request.follow {
            true => Box::pin(chunks.chain(tokio_stream::pending())),
            false => Box::pin(chunks),
        }))
    }
}

#[tonic::async_trait]
impl Registry for Fake {
    type WatchServicesStream = Stream1<proto::ServiceEvent>;
    type GetArtifactStream = Stream1<proto::ArtifactChunk>;

    async fn put_service(
        &self,
        request: Request<proto::PutServiceRequest>,
    ) -> Answer<proto::PutServiceResponse> {
        let request = request.into_inner();
        let mut new = Spec::try_from(request.spec.unwrap())?;
        self.state(|state| {
            if let Runs::Artifact(digest) = new.runs
                && !state.artifacts.contains_key(&digest.to_string())
            {
                return Err(
                    Error::new(Kind::FailedPrecondition, "upload the artifact first").into()
                );
            }
            let old =
                state.specs.get(new.name.as_str()).cloned().map(Spec::try_from).transpose()?;
            let revision = old.as_ref().map_or(0, |old| old.revision);
            let same = old.as_ref().is_some_and(|old| old.same_content(&new));
            if !same && old.is_some() && request.if_revision != Some(revision) {
                return Err(Error::new(Kind::Conflict, "exists").into());
            }
            new.revision = if same { revision } else { revision + 1 };
            let spec = proto::ServiceSpec::from(&new);
            state.specs.insert(new.name.to_string(), spec.clone());
            Ok(Response::new(proto::PutServiceResponse { spec: Some(spec), changed: !same }))
        })
    }

    async fn get_service(
        &self,
        request: Request<proto::GetServiceRequest>,
    ) -> Answer<proto::GetServiceResponse> {
        let name = request.into_inner().name;
        let spec = self.state(|state| state.specs.get(&name).cloned());
        let spec = Some(spec.ok_or_else(|| unknown(&format!("service {name}")))?);
        Ok(Response::new(proto::GetServiceResponse { spec, stale: false }))
    }

    async fn list_services(
        &self,
        _: Request<proto::ListServicesRequest>,
    ) -> Answer<proto::ListServicesResponse> {
        let services = self.state(|state| state.specs.values().cloned().collect());
        Ok(Response::new(proto::ListServicesResponse { services }))
    }

    async fn delete_service(
        &self,
        request: Request<proto::DeleteServiceRequest>,
    ) -> Answer<proto::DeleteServiceResponse> {
        let name = request.into_inner().name;
        match self.state(|state| state.specs.remove(&name)) {
            Some(_) => Ok(Response::new(proto::DeleteServiceResponse {})),
            None => Err(unknown(&format!("service {name}"))),
        }
    }

    async fn watch_services(
        &self,
        _: Request<proto::WatchServicesRequest>,
    ) -> Answer<Self::WatchServicesStream> {
        Err(Status::unimplemented(""))
    }

    async fn put_artifact(
        &self,
        request: Request<tonic::Streaming<proto::PutArtifactRequest>>,
    ) -> Answer<proto::PutArtifactResponse> {
        let mut parts = request.into_inner();
        let Some(proto::PutArtifactRequest { part: Some(Part::Header(header)) }) =
            parts.message().await?
        else {
            return Err(Status::invalid_argument("no header"));
        };
        let proto::ArtifactHeader { digest, size } = header;
        if self.state(|state| state.artifacts.contains_key(&digest)) {
            return Ok(Response::new(proto::PutArtifactResponse { digest, size, existed: true }));
        }
        let mut bytes = Vec::new();
        while let Some(message) = parts.message().await? {
            let Some(Part::Data(data)) = message.part else { continue };
            if data.len() > 1 << 20 {
                return Err(Status::invalid_argument("chunk too large"));
            }
            bytes.extend(data);
        }
        self.state(|state| state.received += bytes.len());
        if Digest::of(&bytes).to_string() != digest || bytes.len() as u64 != size {
            return Err(
                Error::new(Kind::InvalidArgument, "the bytes do not have the digest").into()
            );
        }
        self.state(|state| state.artifacts.insert(digest.clone(), bytes));
        Ok(Response::new(proto::PutArtifactResponse { digest, size, existed: false }))
    }

    async fn get_artifact(
        &self,
        _: Request<proto::GetArtifactRequest>,
    ) -> Answer<Self::GetArtifactStream> {
        Err(Status::unimplemented(""))
    }
}
