//! Clients that speak HTTP/2 with prior knowledge: what they are answered, and what they
//! cannot do to us.

use std::time::Duration;

use ::h2::client::SendRequest;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use lca_proxy::{Config, Front};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::world::{SOON, Wire, World, lines};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection, and what drives it.
async fn connect(
    world: &World,
) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), ::h2::Error>>) {
    over(TcpStream::connect(world.front).await.unwrap()).await
}

async fn over(
    stream: TcpStream,
) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), ::h2::Error>>) {
    let (sender, connection) = ::h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn get(uri: &str) -> Request<()> {
    Request::builder().version(Version::HTTP_2).uri(uri).body(()).unwrap()
}

async fn text(mut body: ::h2::RecvStream) -> (String, Option<HeaderMap>) {
    let mut text = String::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        text.push_str(std::str::from_utf8(&data).unwrap());
    }
    (text, body.trailers().await.unwrap())
}

#[tokio::test]
async fn a_request_arrives_as_if_it_had_come_in_http1() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let (mut sender, _connection) = connect(&world).await;
    let port = world.front.port();
    for (uri, host) in [
        (format!("http://127.0.0.1:{port}/svc/x?y"), format!("127.0.0.1:{port}")),
        (format!("http://svc.lca.localhost:{port}/x?y"), format!("svc.lca.localhost:{port}")),
        ("http://svc/x?y".to_owned(), "svc".to_owned()),
    ] {
        let mut request = get(&uri);
        *request.method_mut() = Method::POST;
        for cookie in ["a=1", "b=2"] {
            request.headers_mut().append("cookie", cookie.parse().unwrap());
        }
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let (answer, mut upload) = sender.send_request(request, false).unwrap();
        upload.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let mut connection = app.accept().await;
        let mut seen = lines(&connection.head().await);
        connection.read_to("5\r\nhello\r\n0\r\n\r\n").await;
        connection
            .write(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nkeep-alive: 5\r\n\
                 connection: close\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
            )
            .await;
        let answer = timeout(SOON, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.headers().contains_key("lca-request-id"));
        assert!(!answer.headers().contains_key("connection"));
        let (body, trailers) = text(answer.into_body()).await;
        assert_eq!(
            (body.as_str(), &trailers.unwrap()["x-sum"]),
            ("ok", &"7".parse::<http::HeaderValue>().unwrap())
        );
        assert_eq!(seen.remove("").unwrap(), "POST /x?y HTTP/1.1");
        assert_eq!(seen.remove("x-forwarded-host").unwrap(), host);
        assert_eq!(seen.remove("cookie").unwrap(), "a=1; b=2");
        for ours in ["forwarded", "via"] {
            seen.remove(ours).unwrap();
        }
        let left: Vec<_> = seen.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let expected = [
            "host: svc",
            "te: trailers",
            "transfer-encoding: chunked",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-proto: http",
        ];
        assert_eq!(left, expected);
    }
}

#[tokio::test]
async fn requests_on_one_connection_do_not_wait_for_each_other() {
    let world = World::start().await;
    let (slow, fast) = (world.service("slow").await, world.service("fast").await);
    let (mut sender, _connection) = connect(&world).await;
    let (waits, _) = sender.send_request(get("http://slow/x"), true).unwrap();
    let mut held = slow.accept().await;
    held.head().await;
    for _ in 0..3 {
        let (answer, _) = sender.send_request(get("http://fast/x"), true).unwrap();
        fast.serve(&OK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(text(timeout(SOON, answer).await.unwrap().unwrap().into_body()).await.0, "ok");
    }
    // One that is given up is missed by its application; the others are not.
    let (given_up, _) = sender.send_request(get("http://fast/x"), true).unwrap();
    let mut missed = fast.accept().await;
    missed.head().await;
    drop(given_up);
    missed.rest().await;
    held.write(OK).await;
    assert_eq!(text(timeout(SOON, waits).await.unwrap().unwrap().into_body()).await.0, "ok");
}

#[tokio::test]
async fn what_is_refused_in_http1_is_refused_in_http2() {
    let world = World::start().await;
    let (mut sender, _connection) = connect(&world).await;
    let connect = Request::builder().method(Method::CONNECT).uri("svc:80").body(()).unwrap();
    let mut many = get("http://svc/x");
    for number in 0..101 {
        many.headers_mut().append("a", number.to_string().parse().unwrap());
    }
    let mut two = get("http://svc/x");
    two.headers_mut().insert("host", "other".parse().unwrap());
    for (request, status) in [
        (connect, 405),
        (many, 431),
        (two, 400),
        (get("http://nobody/x"), 404),
        (get("http://10.0.0.1/svc/x"), 421),
        (get("https://svc/x"), 400),
        (get(&format!("http://svc/{}", "a".repeat(17_000))), 414),
    ] {
        let (answer, _) = sender.send_request(request, true).unwrap();
        assert_eq!(timeout(SOON, answer).await.unwrap().unwrap().status(), status);
    }
}

#[tokio::test]
async fn a_stopped_front_tells_its_clients_and_finishes_what_is_open() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let any = "127.0.0.1:0".parse().unwrap();
    let front = Front::bind(any, Config::default(), world.manager.clone(), world.node.clone());
    let front = front.await.unwrap();
    let address = front.address();
    front.serve_until(stop.clone(), &world.tasks.spawner());
    let (mut sender, connection) = over(TcpStream::connect(address).await.unwrap()).await;
    let (answer, _) = sender.send_request(get("http://svc/x"), true).unwrap();
    let mut open = app.accept().await;
    open.head().await;
    stop.cancel();
    let refused = async {
        loop {
            let Ok(ready) = sender.clone().ready().await else { return };
            drop(ready);
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, refused).await.expect("it is told to send no more");
    open.write(OK).await;
    assert_eq!(text(timeout(SOON, answer).await.unwrap().unwrap().into_body()).await.0, "ok");
    timeout(SOON, connection).await.expect("it is closed").unwrap().unwrap();
    world.stop().await;
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// GET of a path of the front that no instance is needed for.
const HEADERS: &[u8] = b"\x82\x86\x04\x06/svc/x\x01\x09localhost";

#[tokio::test]
async fn floods_end_the_connection_or_cost_nothing_and_the_front_goes_on() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let many = |make: &dyn Fn(u32) -> Vec<u8>| (0..50_000).flat_map(make).collect::<Vec<u8>>();
    let before = resident();
    for (what, flood, ends) in [
        (
            "rapid reset",
            many(&|n| {
                [frame(1, 5, 2 * n + 1, HEADERS), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()
            }),
            true,
        ),
        (
            "continuation",
            [frame(1, 1, 1, HEADERS), many(&|_| frame(9, 0, 1, b"\x00\x01a\x01b"))].concat(),
            true,
        ),
        (
            "endless headers",
            [frame(1, 1, 1, HEADERS), many(&|_| frame(9, 0, 1, &[0; 1000]))].concat(),
            true,
        ),
        ("streams at once", many(&|n| frame(1, 4, 2 * n + 1, HEADERS)), true),
        ("data for nobody", many(&|n| frame(0, 0, 2 * n + 1, b"x")), true),
        ("settings", many(&|_| frame(4, 0, 0, &[0, 3, 0, 0, 0, 1])), false),
        ("pings", many(&|_| frame(6, 0, 0, b"12345678")), false),
        ("windows", many(&|_| frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])), true),
        ("priorities", many(&|_| frame(2, 0, 1, &[0, 0, 0, 0, 1])), false),
        ("too long", frame(0, 0, 1, &[0; 20_000]), true),
    ] {
        let stream = TcpStream::connect(world.front).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let read = tokio::spawn(async move {
            let mut all = [0; 1 << 16];
            while matches!(reading.read(&mut all).await, Ok(1..)) {}
        });
        let write = async {
            writing.write_all(PREFACE).await?;
            writing.write_all(&frame(4, 0, 0, &[])).await?;
            writing.write_all(&flood).await
        };
        let written = timeout(SOON, write).await.unwrap_or_else(|_| panic!("{what} stalls"));
        if ends {
            timeout(SOON, read).await.unwrap_or_else(|_| panic!("{what} goes on")).unwrap();
        } else {
            written.unwrap_or_else(|error| panic!("{what}: {error}"));
            read.abort();
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes more");
    // Requests that were given up may have come to the application, which has not answered.
    timeout(SOON, app.registration.drained()).await.expect("nothing stays open");
    let fresh = world.another(&app).await;
    drop(app);
    let mut client = world.client().await;
    client.write("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    fresh.serve(OK).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn a_preface_in_pieces_is_one_and_what_only_begins_like_it_is_none() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    for piece in PREFACE.chunks(5) {
        client.0.write_all(piece).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.0.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    let mut settings = [0; 9];
    timeout(SOON, client.0.read_exact(&mut settings)).await.unwrap().unwrap();
    assert_eq!(settings[3], 4, "its settings");
    let mut client = Wire(TcpStream::connect(world.front).await.unwrap());
    client.write("PR").await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    client.write("OPFIND /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(app.serve(OK).await.starts_with("PROPFIND /x HTTP/1.1"));
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
}
