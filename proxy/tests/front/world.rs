//! One real node with a registry, an ingress and a front, and applications that do
//! byte by byte what a test says. Requests go over real TLS, from the node to itself.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use lca::{
    InstanceId, Protocol, ServiceHash,
    api::proto::{self, instances_server::InstancesServer, registry_client::RegistryClient},
    discovery::Discovery,
    endpoint::Role,
    mesh::Mesh,
    shutdown::Tasks,
    specs::Specs,
};
use lca_ingress::{Ingress, Local, Registration};
use lca_manager::Manager;
use lca_node::{Identity, Node, mesh::Handlers};
use lca_proxy::{Config, Front};
use lca_registry::Registry;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tonic::{Request, Response, Status, service::Routes};

/// Longer than anything here takes on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(15);

pub(crate) struct World {
    pub(crate) tasks: Tasks,
    pub(crate) front: SocketAddr,
    pub(crate) manager: Manager,
    pub(crate) node: Node,
    ingress: Ingress,
    listed: Listed,
    /// Requests that instances of services to come are given at once.
    pub(crate) limit: u32,
    _artifacts: TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let tasks = Tasks::default();
        let spawner = tasks.spawner();
        let roles = [Role::Registry, Role::Allocator, Role::Proxy];
        let loopback = lca_node::Config::loopback(Identity::ephemeral(), &roles);
        let (node, listener) = Node::bind(loopback, &spawner).await.unwrap();
        let (ingress, listed) =
            (Ingress::new(lca_ingress::Config::default(), Default::default()), Listed::default());
        let artifacts = TempDir::new().unwrap();
        let registry = Registry::in_memory(artifacts.path()).unwrap();
        let mut grpc = Routes::builder();
        grpc.add_service(registry.server()).add_service(InstancesServer::new(listed.clone()));
        let http = Some(Arc::new(ingress.clone()) as _);
        listener.serve(Handlers { grpc: grpc.routes(), http }, &spawner);
        let (discovery, mesh) = (Arc::new(node.clone()), Arc::new(node.clone()));
        let specs =
            Specs::start(lca::specs::Config::default(), discovery.clone(), mesh.clone(), &spawner);
        let manager = Manager::start(
            lca_manager::Config::default(),
            specs.unwrap(),
            discovery,
            mesh,
            &spawner,
        );
        let any = "127.0.0.1:0".parse().unwrap();
        let front = Front::bind(any, config, manager.clone(), node.clone()).await.unwrap();
        let address = front.address();
        front.serve(&spawner);
        let limit = 100;
        Self { tasks, front: address, manager, node, ingress, listed, limit, _artifacts: artifacts }
    }

    /// Registers a service that nobody allocates, and starts one instance of it.
    pub(crate) async fn service(&self, name: &str) -> App {
        self.speaking(name, Protocol::Http1).await
    }

    /// The same for a service that speaks `protocol`.
    pub(crate) async fn speaking(&self, name: &str, protocol: Protocol) -> App {
        let said = match protocol {
            Protocol::Http1 => proto::Protocol::Http1,
            Protocol::H2c => proto::Protocol::H2c,
        };
        let name = name.to_owned();
        let spec = proto::ServiceSpec { name, protocol: said.into(), ..Default::default() };
        self.service_of(spec, self.limit).await
    }

    /// The same of a spec, whose instance takes `limit` requests at once.
    pub(crate) async fn service_of(&self, spec: proto::ServiceSpec, limit: u32) -> App {
        let name = spec.name.clone();
        let protocol = match spec.protocol() {
            proto::Protocol::H2c => Protocol::H2c,
            _ => Protocol::Http1,
        };
        let channel = self.node.grpc(&self.node.own()).await.unwrap();
        let put = proto::PutServiceRequest { spec: Some(spec), if_revision: None };
        let put = RegistryClient::new(channel).put_service(put).await.unwrap().into_inner();
        let hash = put.spec.unwrap().service_hash.parse().unwrap();
        self.instance(&name, hash, protocol, limit).await
    }

    /// One more instance of the same service.
    pub(crate) async fn another(&self, like: &App) -> App {
        self.another_of(like, self.limit).await
    }

    /// One more instance, which takes `limit` requests at once.
    pub(crate) async fn another_of(&self, like: &App, limit: u32) -> App {
        self.instance(&like.service, like.hash, like.protocol, limit).await
    }

    async fn instance(
        &self,
        service: &str,
        hash: ServiceHash,
        protocol: Protocol,
        limit: u32,
    ) -> App {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let instance = InstanceId::random();
        let name = service.parse().unwrap();
        let local = Local { instance, hash, service: name, address, protocol, limit };
        let registration = self.ingress.register(local);
        let listed = proto::Instance {
            id: instance.to_string(),
            service: service.to_owned(),
            service_hash: hash.to_string(),
            peer: self.node.peer().to_string(),
            state: proto::InstanceState::Ready.into(),
            ..Default::default()
        };
        self.listed.0.lock().unwrap().push(listed);
        App { service: service.to_owned(), hash, protocol, listener, registration }
    }

    pub(crate) async fn client(&self) -> Wire {
        Wire(TcpStream::connect(self.front).await.unwrap())
    }

    /// Sends `request` on a connection of its own, and returns the answer's head.
    pub(crate) async fn ask(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.client().await;
        client.0.write_all(request.as_ref()).await.unwrap();
        client.head().await
    }

    /// Stops everything; nothing may have to be forced.
    pub(crate) async fn stop(self) {
        assert!(self.tasks.drain(SOON).await, "a task outlived its grace");
    }
}

/// An application.
pub(crate) struct App {
    pub(crate) service: String,
    pub(crate) hash: ServiceHash,
    pub(crate) protocol: Protocol,
    pub(crate) listener: TcpListener,
    pub(crate) registration: Registration,
}

impl App {
    pub(crate) async fn accept(&self) -> Wire {
        let accepted = timeout(SOON, self.listener.accept()).await;
        Wire(accepted.expect("a connection in time").unwrap().0)
    }

    /// Whether nobody has connected since the last accept.
    pub(crate) async fn is_untouched(&self) -> bool {
        timeout(Duration::ZERO, self.listener.accept()).await.is_err()
    }

    /// Answers one request with `answer`, and returns its head.
    pub(crate) async fn serve(&self, answer: &str) -> String {
        let mut connection = self.accept().await;
        let head = connection.head().await;
        connection.write(answer).await;
        head
    }
}

/// A connection, as text.
pub(crate) struct Wire(pub(crate) TcpStream);

impl Wire {
    pub(crate) async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    pub(crate) async fn read_to(&mut self, end: &str) -> String {
        let (mut seen, deadline) = (Vec::new(), Instant::now() + SOON);
        while !seen.ends_with(end.as_bytes()) {
            let mut byte = [0; 1];
            let read = tokio::time::timeout_at(deadline, self.0.read(&mut byte)).await;
            let so_far = || String::from_utf8_lossy(&seen).into_owned();
            let read = read.unwrap_or_else(|_| panic!("waited for {end:?}; saw {:?}", so_far()));
            assert_eq!(read.unwrap(), 1, "waited for {end:?}; ended after {:?}", so_far());
            seen.extend(byte);
        }
        String::from_utf8(seen).unwrap()
    }

    pub(crate) async fn head(&mut self) -> String {
        self.read_to("\r\n\r\n").await
    }

    /// Reads so many bytes of a body.
    pub(crate) async fn skip(&mut self, length: usize) {
        let mut body = vec![0; length];
        let read = timeout(SOON, self.0.read_exact(&mut body)).await;
        read.expect("a body in time").unwrap();
    }

    /// What comes until the connection ends, cleanly or not.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let ended = timeout(SOON, self.0.read_to_end(&mut rest)).await;
        let _reset_or_end = ended.expect("the connection ends in time");
        String::from_utf8(rest).unwrap()
    }
}

/// The lines of a head by name, and the first line under "".
pub(crate) fn lines(head: &str) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    for (number, line) in head.trim_end().split("\r\n").enumerate() {
        let (name, value) = match number {
            0 => ("", line),
            _ => line.split_once(": ").expect("a header"),
        };
        let twice = lines.insert(name.to_lowercase(), value.to_owned());
        assert_eq!(twice, None, "{name} came twice: {head}");
    }
    lines
}

/// What the node says that it runs.
#[derive(Clone, Default)]
struct Listed(Arc<Mutex<Vec<proto::Instance>>>);

#[async_trait::async_trait]
impl proto::instances_server::Instances for Listed {
    type WatchInstancesStream = tonic::codegen::BoxStream<proto::InstanceEvent>;

    async fn watch_instances(
        &self,
        _: Request<proto::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_instances(
        &self,
        request: Request<proto::ListInstancesRequest>,
    ) -> Result<Response<proto::ListInstancesResponse>, Status> {
        let wanted = request.into_inner().service_hash;
        let all = self.0.lock().unwrap();
        let instances = all.iter().filter(|instance| instance.service_hash == wanted);
        Ok(Response::new(proto::ListInstancesResponse {
            instances: instances.cloned().collect(),
            unreachable_peers: Vec::new(),
        }))
    }
}
