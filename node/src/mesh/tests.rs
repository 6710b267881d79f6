//! The mesh over real sockets on loopback: what gets through, and to whom.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use lca::metrics::Metrics;
use lca::{
    Kind, Result,
    api::{
        Caller,
        proto::{
            ListInstancesRequest, ListInstancesResponse,
            instances_client::InstancesClient,
            instances_server::{Instances, InstancesServer},
        },
    },
    endpoint::Endpoint,
    mesh::Mesh as _,
    shutdown::Tasks,
    testing::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tonic::{Request, Response, Status};

use super::*;
use crate::{
    identity::Identity,
    link::{Links, Profile},
};

mod certificates;
mod distance;
mod hostile;
mod pace;

/// Far above what anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Production's shape, faster.
const BRISK: Timing = Timing {
    handshake: Duration::from_secs(1),
    connect: Duration::from_secs(2),
    probe_every: Duration::from_millis(100),
    probe_idly_every: Duration::from_millis(500),
    probe_near_every: Duration::from_millis(20),
    probe_again: Duration::from_millis(25),
    probe_within: Duration::from_millis(500),
    gone_after: Duration::from_millis(1500),
    probe_within_least: Duration::from_millis(400),
};

/// One node's mesh.
struct Peer {
    identity: Identity,
    client: Client,
    endpoint: Endpoint,
    http: Arc<Recorder>,
    metrics: Metrics,
    tasks: Tasks,
}

impl Peer {
    async fn start(links: &Links) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_as(Identity::ephemeral(), any, 1, links).await
    }

    async fn start_as(identity: Identity, at: SocketAddr, boot: u64, links: &Links) -> Self {
        Self::start_with(identity, at, boot, links, BRISK).await
    }

    async fn start_with(
        identity: Identity,
        at: SocketAddr,
        boot: u64,
        links: &Links,
        timing: Timing,
    ) -> Self {
        let tasks = Tasks::default();
        let spawner = tasks.spawner();
        let metrics = Metrics::default();
        let listener =
            Listener::bind(at, &identity, timing, CONNECTIONS, metrics.clone()).await.unwrap();
        let client =
            Client::new(&identity, links.clone(), timing, metrics.clone(), &spawner).unwrap();
        let endpoint = endpoint(identity.peer_id(), &[listener.address()], boot);
        let http = Arc::new(Recorder::default());
        let grpc = Routes::new(InstancesServer::new(WhoAsks));
        listener.serve(Handlers { grpc, http: Some(http.clone()) }, &spawner);
        Self { identity, client, endpoint, http, metrics, tasks }
    }

    fn id(&self) -> PeerId {
        self.endpoint.peer
    }

    /// Calls `to` and returns who it says has called.
    async fn call(&self, to: &Endpoint) -> Result<String> {
        self.call_within(Duration::from_secs(1), to).await
    }

    async fn call_within(&self, patience: Duration, to: &Endpoint) -> Result<String> {
        let channel = self.client.grpc(to).await?;
        let request = lca::api::within(patience, ListInstancesRequest::default());
        let mut client = InstancesClient::new(channel);
        let answer = client.list_instances(request);
        let answer = timeout(patience, answer)
            .await
            .map_err(|_| lca::Error::new(Kind::Timeout, "no answer"))??;
        Ok(answer.into_inner().unreachable_peers.remove(0))
    }

    /// Calls until it succeeds.
    async fn reach(&self, to: &Endpoint) {
        eventually("the peer to answer", async || self.call(to).await.ok()).await;
    }
}

fn endpoint(peer: PeerId, mesh: &[SocketAddr], boot: u64) -> Endpoint {
    let (ttl, version) = (Duration::from_secs(600), lca::VERSION.to_owned());
    Endpoint { peer, roles: vec![], mesh: mesh.to_vec(), boot, sequence: 1, ttl, version }
}

/// Answers with who has asked.
#[derive(Debug)]
struct WhoAsks;

#[tonic::async_trait]
impl Instances for WhoAsks {
    type WatchInstancesStream = tonic::codegen::BoxStream<lca::api::proto::InstanceEvent>;

    async fn watch_instances(
        &self,
        _: Request<lca::api::proto::WatchInstancesRequest>,
    ) -> Result<Response<Self::WatchInstancesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_instances(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<ListInstancesResponse>, Status> {
        let caller = match Caller::of(&request) {
            Caller::Peer(peer) => peer.to_string(),
            Caller::Local => "local".to_owned(),
        };
        let unreachable_peers = vec![caller];
        Ok(Response::new(ListInstancesResponse { unreachable_peers, ..Default::default() }))
    }
}

/// Sends back what it reads on HTTP connections, and counts.
#[derive(Debug, Default)]
struct Recorder {
    connections: AtomicUsize,
    ended: AtomicUsize,
    bytes: AtomicUsize,
}

impl ServeHttp for Recorder {
    fn serve(
        self: Arc<Self>,
        mut stream: Stream,
        from: PeerId,
        _stop: CancellationToken,
    ) -> BoxFuture<'static, ()> {
        assert_eq!(stream.peer(), from);
        Box::pin(async move {
            self.connections.fetch_add(1, Ordering::SeqCst);
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                self.bytes.fetch_add(read, Ordering::SeqCst);
                if stream.write_all(&buffer[..read]).await.is_err() {
                    break;
                }
                let _told_by_the_next_read = stream.flush().await;
            }
            self.ended.fetch_add(1, Ordering::SeqCst);
        })
    }
}

/// An address that accepts and then says nothing.
async fn black_hole() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    black_hole().await.1
}

#[tokio::test]
async fn a_call_reaches_the_peer_which_knows_who_called() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    assert_eq!(a.call(&b.endpoint).await.unwrap(), a.id().to_string());
    assert_eq!(b.call(&a.endpoint).await.unwrap(), b.id().to_string());
    assert_eq!(a.call(&a.endpoint).await.unwrap(), a.id().to_string(), "itself");
}

#[tokio::test]
async fn many_callers_share_one_connection() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    // A relay in front of b that counts.
    let (relay, address) = black_hole().await;
    let (count, target) = (Arc::new(AtomicUsize::new(0)), b.endpoint.mesh[0]);
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = relay.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                let _over = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let to = endpoint(b.id(), &[address], 1);
    // Not how quick a hundred are is asked here, on a machine that may be busy.
    let calls = (0..100).map(|_| a.call_within(Duration::from_secs(30), &to));
    for answer in futures::future::join_all(calls).await {
        assert_eq!(answer.unwrap(), a.id().to_string());
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_attempt_outlives_whoever_asked_first() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    links.set(a.id(), b.id(), Profile::rtt(Duration::from_millis(50)));
    let first = timeout(Duration::from_millis(10), a.client.grpc(&b.endpoint)).await;
    assert!(first.is_err(), "the link is slower than that");
    let open = async || a.client.is_open(b.id()).then_some(());
    eventually("the channel to be open", open).await;
}

#[tokio::test]
async fn somebody_else_at_the_address_gets_no_byte() {
    let links = Links::default();
    let (a, b, c) =
        (Peer::start(&links).await, Peer::start(&links).await, Peer::start(&links).await);
    let misled = endpoint(b.id(), &c.endpoint.mesh, 1);
    let error = a.client.connect(&misled, Alpn::H1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.chain().contains(&c.id().short()), "{}", error.chain());
    assert_eq!(a.client.grpc(&misled).await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(a.client.measure(&misled).await.unwrap_err().kind(), Kind::Unavailable);
    // c may have seen the handshake, and then the end.
    let http = &c.http;
    let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
    let quiet = async || (count(&http.connections) == count(&http.ended)).then_some(());
    eventually("c's connections to end", quiet).await;
    assert_eq!(count(&http.bytes), 0);
}

#[tokio::test]
async fn dead_silent_and_foreign_addresses_do_not_hide_a_good_one() {
    let links = Links::default();
    let (a, b, c) =
        (Peer::start(&links).await, Peer::start(&links).await, Peer::start(&links).await);
    let (_kept_open, silent) = black_hole().await;
    let addresses = [nobody().await, c.endpoint.mesh[0], silent, b.endpoint.mesh[0]];
    let to = endpoint(b.id(), &addresses, 1);
    assert_eq!(a.call(&to).await.unwrap(), a.id().to_string());
}

#[tokio::test]
async fn only_dead_addresses_fail_at_once_and_silent_ones_in_time() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (links, patient) = (Links::default(), Timing { connect: PATIENCE, ..BRISK });
    let patient = Peer::start_with(Identity::ephemeral(), any, 1, &links, patient).await;
    let peer = PeerId::from_public_key([7; 32]);
    let started = Instant::now();
    let dead = endpoint(peer, &[nobody().await, nobody().await], 1);
    assert_eq!(patient.client.grpc(&dead).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(started.elapsed() < PATIENCE / 2);
    let a = Peer::start(&links).await;
    let (_kept_open, silent) = black_hole().await;
    let started = Instant::now();
    let mute = endpoint(peer, &[silent], 2);
    assert_eq!(a.client.grpc(&mute).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(started.elapsed() < BRISK.connect + PATIENCE / 4);
}

#[tokio::test]
async fn a_peer_that_restarted_at_its_address_is_reached_again() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    a.reach(&b.endpoint).await;
    let (identity, at) = (b.identity.clone(), b.endpoint.mesh[0]);
    assert!(b.tasks.drain(PATIENCE).await, "an open channel held the stop up");
    let b = Peer::start_as(identity, at, 1, &links).await;
    a.reach(&b.endpoint).await;
}

#[tokio::test]
async fn a_later_start_of_a_peer_is_believed_over_an_open_channel() {
    let links = Links::default();
    let (a, old) = (Peer::start(&links).await, Peer::start(&links).await);
    a.reach(&old.endpoint).await;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let new = Peer::start_as(old.identity.clone(), any, 2, &links).await;
    a.reach(&new.endpoint).await;
    assert!(old.tasks.drain(PATIENCE).await);
    // The old word does not lead back.
    assert_eq!(a.call(&old.endpoint).await.unwrap(), a.id().to_string());
}

#[tokio::test]
async fn http_connections_reach_their_handler_and_echo() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    let mut stream = a.client.connect(&b.endpoint, Alpn::H1).await.unwrap();
    assert_eq!((stream.peer(), stream.alpn()), (b.id(), Alpn::H1));
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn stopping_waits_for_no_idle_connection() {
    let links = Links::default();
    let (a, b) = (Peer::start(&links).await, Peer::start(&links).await);
    a.reach(&b.endpoint).await;
    let mut idle = a.client.connect(&b.endpoint, Alpn::H1).await.unwrap();
    let _probe = a.client.connect(&b.endpoint, Alpn::Probe).await.unwrap();
    let served = async || (b.http.connections.load(Ordering::SeqCst) == 1).then_some(());
    eventually("the connection to be served", served).await;
    let (_silent, started) =
        (TcpStream::connect(b.endpoint.mesh[0]).await.unwrap(), Instant::now());
    assert!(b.tasks.drain(PATIENCE).await, "something had to be forced");
    assert!(started.elapsed() < Duration::from_secs(5));
    let mut buffer = [0; 1];
    assert!(!matches!(idle.read(&mut buffer).await, Ok(1..)), "still open");
    let again = a.client.connect(&b.endpoint, Alpn::H1).await;
    assert_eq!(again.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let a = Peer::start(&Links::default()).await;
    let metrics = Metrics::default();
    let error = Listener::bind(a.endpoint.mesh[0], &a.identity, BRISK, CONNECTIONS, metrics)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.public().contains(&a.endpoint.mesh[0].to_string()), "{error}");
}
