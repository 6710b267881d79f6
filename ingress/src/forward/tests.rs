//! Ingress between a peer that sends bytes and an application that answers bytes.

mod burst;

use std::{net::SocketAddr, time::Duration};

use lca::{
    metrics::Metrics,
    testing::{counted, eventually},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{Config, Ingress, Local, Registration};

const SOON: Duration = Duration::from_secs(5);

/// One end of a connection, read and written as text.
struct Wire<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn read_to(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(text.as_bytes()) {
            let mut byte = [0; 1];
            let read = timeout(SOON, self.0.read(&mut byte)).await;
            let read = read.unwrap_or_else(|_| {
                panic!("waited for {text:?}; saw {:?}", String::from_utf8_lossy(&seen))
            });
            assert_eq!(read.unwrap(), 1, "ended at {:?}", String::from_utf8_lossy(&seen));
            seen.extend(byte);
        }
        String::from_utf8(seen).unwrap()
    }

    async fn head(&mut self) -> String {
        self.read_to("\r\n\r\n").await
    }

    async fn write(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// What comes until the connection ends, cleanly or not.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let ended = timeout(SOON, self.0.read_to_end(&mut rest)).await;
        let _reset_or_end = ended.expect("the connection ends in time");
        String::from_utf8(rest).unwrap()
    }
}

struct World {
    ingress: Ingress,
    app: TcpListener,
    local: Local,
}

impl World {
    async fn new() -> Self {
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = Local {
            instance: InstanceId::random(),
            hash: ServiceHash::from_sha256([7; 32]),
            service: "hello".parse().unwrap(),
            address: app.local_addr().unwrap(),
            protocol: Protocol::Http1,
            limit: 1,
        };
        Self { ingress: Ingress::new(Config::default(), Metrics::default()), app, local }
    }

    fn register(&self) -> Registration {
        self.ingress.register(self.local.clone())
    }

    fn peer(&self) -> Wire<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let from = PeerId::from_public_key([1; 32]);
        tokio::spawn(serve(self.ingress.shared.clone(), theirs, from));
        Wire(ours)
    }

    async fn app(&self) -> Wire<TcpStream> {
        Wire(timeout(SOON, self.app.accept()).await.expect("a connection in time").unwrap().0)
    }

    /// A request's head without its end, with our headers.
    fn head(&self, line: &str) -> String {
        let Local { hash, instance, .. } = self.local;
        format!(
            "{line} HTTP/1.1\r\nhost: svc\r\nlca-service: {hash}\r\nlca-instance: {instance}\r\n\
             lca-request-id: r1\r\n"
        )
    }

    fn get(&self) -> String {
        self.head("GET /x") + "\r\n"
    }
}

#[tokio::test]
async fn a_request_passes_without_our_headers_and_an_answer_without_theirs() {
    let world = World::new().await;
    let _registration = world.register();
    let mut peer = world.peer();
    let line = "GET /%41+;//b?c=%2F&";
    peer.write(&(world.head(line) + "connection: x-hop\r\nx-hop: 1\r\nx-end: 2\r\n\r\n")).await;
    let mut app = world.app().await;
    let seen = app.head().await;
    assert_eq!(seen, format!("{line} HTTP/1.1\r\nhost: svc\r\nx-end: 2\r\n\r\n"));
    app.write(
        "HTTP/1.1 404 Gone Fishing\r\ncontent-length: 2\r\nlca-refusal: unknown\r\nlca-x: y\r\n\
         connection: x-hop\r\nx-hop: 1\r\nx-end: 2\r\ndate: now\r\n\r\nno",
    )
    .await;
    let answer = peer.head().await;
    assert!(answer.starts_with("HTTP/1.1 404 Gone Fishing\r\n"), "{answer}");
    assert!(answer.contains("lca-load: in-flight=1, limit=1, queue-us=0, app-us="), "{answer}");
    assert!(answer.contains("x-end: 2") && answer.contains("content-length: 2"), "{answer}");
    assert!(!answer.contains("x-hop") && !answer.contains("lca-refusal"), "{answer}");
    assert!(!answer.contains("lca-x"), "{answer}");
    peer.read_to("no").await;
}

#[tokio::test]
async fn a_refusal_says_why_and_the_application_sees_nothing() {
    let world = World::new().await;
    let mut peer = world.peer();
    let ask = async |peer: &mut Wire<DuplexStream>, text: String| {
        peer.write(&text).await;
        peer.head().await
    };
    assert!(ask(&mut peer, world.get()).await.contains("lca-refusal: unknown"));
    let registration = world.register();
    let other = world.get().replace("0707", "0808");
    assert!(ask(&mut peer, other).await.contains("lca-refusal: unknown"));
    let nameless = "GET /x HTTP/1.1\r\nhost: svc\r\n\r\n".to_owned();
    assert!(ask(&mut peer, nameless).await.contains("lca-refusal: unknown"));

    let mut first = world.peer();
    first.write(&world.get()).await;
    let mut app = world.app().await;
    app.head().await;
    let refused = ask(&mut peer, world.get()).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("lca-refusal: overloaded"), "{refused}");
    assert!(refused.contains("lca-load: in-flight=1, limit=1"), "{refused}");

    registration.drain();
    assert!(ask(&mut peer, world.get()).await.contains("lca-refusal: draining"));
    app.write("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(first.head().await.starts_with("HTTP/1.1 204"), "an open request goes on");
    timeout(SOON, registration.drained()).await.expect("nothing is open");
    assert!(timeout(Duration::ZERO, world.app.accept()).await.is_err(), "one connection in all");
    let refused = |reason| {
        let series = format!(r#"lca_ingress_refusals_total{{reason="{reason}"}}"#);
        counted(&world.ingress.shared.metrics, &series)
    };
    let counts = (refused("unknown"), refused("overloaded"), refused("draining"));
    assert_eq!(counts, (3.0, 1.0, 1.0));
}

#[tokio::test]
async fn a_request_is_counted_under_its_service_with_its_bytes() {
    let world = World::new().await;
    let _registration = world.register();
    let mut peer = world.peer();
    peer.write(&(world.head("POST /x") + "content-length: 3\r\n\r\nabc")).await;
    let mut app = world.app().await;
    app.read_to("abc").await;
    app.write("HTTP/1.1 404 Gone\r\ncontent-length: 2\r\n\r\nno").await;
    peer.read_to("no").await;
    let counted = |series: &str| counted(&world.ingress.shared.metrics, series);
    assert_eq!(counted(r#"lca_ingress_requests_total{outcome="4xx",service="hello"}"#), 1.0);
    let took = r#"lca_ingress_application_duration_seconds_count{service="hello"}"#;
    assert_eq!(counted(took), 1.0);
    assert_eq!(counted(r#"lca_ingress_upload_bytes_total{service="hello"}"#), 3.0);
    assert_eq!(counted(r#"lca_ingress_download_bytes_total{service="hello"}"#), 2.0);
    assert_eq!(counted("lca_ingress_connections"), 1.0);
}

#[tokio::test]
async fn an_application_that_does_not_listen_saw_nothing() {
    let mut world = World::new().await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.local.address = free.local_addr().unwrap();
    drop(free);
    let _registration = world.register();
    let mut peer = world.peer();
    peer.write(&world.get()).await;
    let answer = peer.head().await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("lca-refusal: unknown"), "{answer}");
}

#[tokio::test]
async fn an_application_that_answers_nothing_sensible_is_our_502() {
    for (script, word) in [
        ("", "silent"),
        ("hello?\r\n\r\n", "garbled"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "garbled"),
        ("HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\n\r\n", "garbled"),
    ] {
        let world = World::new().await;
        let registration = world.register();
        let mut peer = world.peer();
        peer.write(&world.get()).await;
        let mut app = world.app().await;
        app.head().await;
        app.write(script).await;
        app.0.shutdown().await.unwrap();
        let answer = peer.head().await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert!(answer.contains(&format!("lca-failure: {word}")), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
        peer.read_to("\"urn:lca:error:bad-gateway\"}\n").await;
        app.rest().await;
        assert_eq!(registration.load().in_flight, 0);
    }
}

#[tokio::test]
async fn both_bodies_flow_while_neither_is_over() {
    let world = World::new().await;
    let registration = world.register();
    let mut peer = world.peer();
    peer.write(&(world.head("POST /x") + "transfer-encoding: chunked\r\n\r\n1\r\na\r\n")).await;
    let mut app = world.app().await;
    app.read_to("\r\n\r\n1\r\na\r\n").await;
    app.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n").await;
    peer.read_to("\r\n\r\n1\r\nb\r\n").await;
    peer.write("1\r\nc\r\n").await;
    app.read_to("1\r\nc\r\n").await;
    peer.write("0\r\n\r\n").await;
    app.read_to("0\r\n\r\n").await;
    assert_eq!(registration.load().in_flight, 1, "open until its answer has ended");
    app.write("0\r\n\r\n").await;
    peer.read_to("0\r\n\r\n").await;
    timeout(SOON, registration.drained()).await.expect("over with the answer's body");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_to_look_whole() {
    let world = World::new().await;
    let _registration = world.register();
    let mut peer = world.peer();
    peer.write(&world.get()).await;
    let mut app = world.app().await;
    app.head().await;
    app.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    peer.read_to("half\r\n").await;
    drop(app);
    assert_eq!(peer.rest().await, "");
}

#[tokio::test]
async fn a_peer_that_goes_away_takes_the_applications_connection_with_it() {
    let world = World::new().await;
    let registration = world.register();
    for request in ["POST /x", "GET /x"] {
        let mut peer = world.peer();
        let length = if request.starts_with('P') { "content-length: 9\r\n" } else { "" };
        peer.write(&(world.head(request) + length + "\r\n")).await;
        let mut app = world.app().await;
        app.head().await;
        drop(peer);
        app.rest().await;
        timeout(SOON, registration.drained()).await.expect("over with its peer");
    }
}

#[tokio::test]
async fn a_gone_instance_cuts_off_even_a_reader_that_does_not_read() {
    let world = World::new().await;
    let registration = world.register();
    let mut peer = world.peer();
    peer.write(&world.get()).await;
    let mut app = world.app().await;
    app.head().await;
    app.write("HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n").await;
    let flood = tokio::spawn(async move { while app.0.write_all(&[b'x'; 4096]).await.is_ok() {} });
    peer.head().await;
    drop(registration);
    timeout(SOON, flood).await.expect("the application's connection is closed").unwrap();
    assert!(peer.rest().await.len() < 10_000_000);
}

#[tokio::test]
async fn a_request_with_two_ends_is_not_passed_on() {
    let world = World::new().await;
    let _registration = world.register();
    for framing in ["transfer-encoding: gzip, chunked", "transfer-encoding: chunked, chunked"] {
        let mut peer = world.peer();
        peer.write(&(world.head("POST /x") + framing + "\r\n\r\n0\r\n\r\n")).await;
        assert!(peer.head().await.starts_with("HTTP/1.1 400"), "{framing}");
    }
    assert!(timeout(Duration::ZERO, world.app.accept()).await.is_err());
}

#[tokio::test]
async fn an_idle_connection_to_the_application_is_used_again() {
    let world = World::new().await;
    let registration = world.register();
    let address: SocketAddr = world.local.address;
    let mut peer = world.peer();
    let mut app = None;
    for _ in 0..3 {
        peer.write(&world.get()).await;
        if app.is_none() {
            app = Some(world.app().await);
        }
        let app = app.as_mut().unwrap();
        app.head().await;
        app.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        peer.read_to("\r\n\r\nok").await;
        timeout(SOON, registration.drained()).await.unwrap();
        let key = (world.local.instance, address);
        let back = async || world.ingress.shared.pool.idle(&key) > 0;
        eventually("the connection to come back", back).await;
    }
}

#[tokio::test]
async fn a_port_that_is_another_instances_by_now_gets_nothing_meant_for_the_first() {
    let mut world = World::new().await;
    let (first, first_get) = (world.register(), world.get());
    let mut peer = world.peer();
    peer.write(&first_get).await;
    let mut old = world.app().await;
    old.head().await;
    // Kept open by both, to be used again.
    old.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    peer.head().await;
    drop(first);
    world.local.instance = InstanceId::random();
    world.local.hash = ServiceHash::from_sha256([8; 32]);
    let _second = world.register();
    peer.write(&first_get).await;
    assert!(peer.head().await.contains("lca-refusal: unknown"));
    // The second is asked over a connection of its own.
    peer.write(&world.get()).await;
    let mut new = world.app().await;
    new.head().await;
    new.write("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert!(peer.head().await.starts_with("HTTP/1.1 204"));
}

/// The idle time-out of the tests below, and how long what they have open moves nothing.
const IDLE: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_secs(90);

/// Lets so much time pass at once. Only the clock stands still in between: whatever has to
/// be read or written was, before and after.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
    // Those whose time has come have their turn.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Whether an instance with a request open stays for [`QUIET`], and goes [`IDLE`] after it.
async fn stays_while_open(
    open: impl AsyncFnOnce(&mut Wire<DuplexStream>, &World) -> Wire<TcpStream>,
    close: impl AsyncFnOnce(&mut Wire<DuplexStream>, &mut Wire<TcpStream>),
) {
    let world = World::new().await;
    let registration = Arc::new(world.register());
    let idle = registration.clone();
    let idle = tokio::spawn(async move { idle.idle_for(IDLE).await });
    let mut peer = world.peer();
    let mut app = open(&mut peer, &world).await;
    pass(QUIET).await;
    assert_eq!(registration.load().in_flight, 1, "it was cut off");
    assert!(!idle.is_finished() && !registration.drain_if_idle(IDLE), "it counts as idle");
    close(&mut peer, &mut app).await;
    timeout(SOON, registration.drained()).await.expect("over with its answer");
    pass(IDLE - Duration::from_secs(1)).await;
    assert!(!idle.is_finished(), "idle too early");
    pass(Duration::from_secs(1)).await;
    timeout(SOON, idle).await.expect("idle in time").unwrap();
    assert!(registration.drain_if_idle(IDLE));
}

#[tokio::test]
async fn a_request_that_takes_longer_than_the_idle_time_out_keeps_its_instance() {
    stays_while_open(
        async |peer, world| {
            peer.write(&world.get()).await;
            let mut app = world.app().await;
            app.head().await;
            app
        },
        async |peer, app| {
            app.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            peer.read_to("\r\n\r\nok").await;
        },
    )
    .await;
}

#[tokio::test]
async fn a_stream_of_events_that_is_quiet_for_longer_keeps_its_instance() {
    stays_while_open(
        async |peer, world| {
            peer.write(&world.get()).await;
            let mut app = world.app().await;
            app.head().await;
            let event = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                         transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
            app.write(event).await;
            peer.read_to("data: 1\n\n\r\n").await;
            app
        },
        async |peer, app| {
            app.write("9\r\ndata: 2\n\n\r\n0\r\n\r\n").await;
            peer.read_to("data: 2\n\n\r\n0\r\n\r\n").await;
        },
    )
    .await;
}

#[tokio::test]
async fn an_exchange_open_both_ways_that_is_quiet_for_longer_keeps_its_instance() {
    stays_while_open(
        async |peer, world| {
            let head = world.head("POST /x");
            peer.write(&(head + "transfer-encoding: chunked\r\n\r\n1\r\na\r\n")).await;
            let mut app = world.app().await;
            app.read_to("1\r\na\r\n").await;
            app.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n").await;
            peer.read_to("1\r\nb\r\n").await;
            app
        },
        async |peer, app| {
            peer.write("1\r\nc\r\n0\r\n\r\n").await;
            app.read_to("1\r\nc\r\n0\r\n\r\n").await;
            app.write("0\r\n\r\n").await;
            peer.read_to("0\r\n\r\n").await;
        },
    )
    .await;
}

#[tokio::test]
async fn an_application_too_busy_to_take_another_connection_is_overloaded_and_not_gone() {
    // It takes one connection and leaves the next ones outside.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let app = socket.listen(0).unwrap();
    let mut config = Config::default();
    config.instances.connect = Duration::from_millis(500);
    let mut world = World::new().await;
    world.ingress = Ingress::new(config, Metrics::default());
    world.local.address = app.local_addr().unwrap();
    world.local.limit = 4;
    let _registration = world.register();
    let (mut served, mut queued, mut late) = (world.peer(), world.peer(), world.peer());
    served.write(&world.get()).await;
    let mut at_app = Wire(app.accept().await.unwrap().0);
    at_app.head().await;
    queued.write(&world.get()).await;
    late.write(&world.get()).await;
    // One of them is connected by the system, and waits for its answer.
    let answer = tokio::select! {
        answer = queued.head() => answer,
        answer = late.head() => answer,
    };
    assert!(answer.contains("lca-refusal: overloaded"), "{answer}");
}

/// Opens connections that carry many requests to an ingress.
#[derive(Debug)]
struct Many(Ingress);

impl h1::Dial for Many {
    type To = ();
    type Key = ();
    type Io = DuplexStream;

    fn key(&self, (): &()) {}

    async fn dial(&self, (): &()) -> lca::Result<DuplexStream> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let from = PeerId::from_public_key([1; 32]);
        let stop = CancellationToken::new();
        tokio::spawn(serve_many(self.0.shared.clone(), theirs, from, stop));
        Ok(ours)
    }
}

#[tokio::test]
async fn an_instance_that_goes_takes_no_request_of_another_with_it() {
    let (gone, stays) = (World::new().await, World::new().await);
    let cut = gone.register();
    let _registration = gone.ingress.register(stays.local.clone());
    let dial = || Many(gone.ingress.clone());
    let hop = mux::Hop::new(dial(), dial(), gone.ingress.shared.config.instances);
    let ask = async |world: &World| {
        let request = Request::get("/x")
            .header(headers::SERVICE, world.local.hash.to_string())
            .header(headers::INSTANCE, world.local.instance.to_string());
        hop.send(&(), request.body(h1::empty()).unwrap()).await
    };
    let go = async {
        let (mut first, mut second) = (gone.app().await, stays.app().await);
        tokio::join!(first.head(), second.head());
        assert_eq!(gone.ingress.shared.metrics.ingress.connections.get(), 1);
        drop(cut);
        first.rest().await;
        second.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        second
    };
    let (lost, answered, _second) = tokio::join!(ask(&gone), ask(&stays), go);
    assert!(matches!(lost, Err(Failed::Sent(Cause::Silent, _))), "{lost:?}");
    let body = answered.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.to_bytes(), "ok");
}
