//! Applications that speak HTTP/2 as `protocol: h2c` says, frame by frame: what they may ask
//! of us, and what they cannot do to us.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ::h2::{Ping, Reason, server};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Version};
use lca::Protocol;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

use crate::world::{App, SOON, World};

type Connection = server::Connection<TcpStream, Bytes>;

const GET: &str = "GET /svc/x?y HTTP/1.1\r\nHost: localhost\r\n\r\n";

async fn accept(app: &App, most: u32) -> Connection {
    let stream = app.accept().await.0;
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(most);
    timeout(SOON, builder.handshake(stream)).await.unwrap().unwrap()
}

/// The next request on a connection.
async fn next(
    connection: &mut Connection,
) -> (http::Request<::h2::RecvStream>, server::SendResponse<Bytes>) {
    timeout(SOON, connection.accept()).await.expect("a request").unwrap().unwrap()
}

fn ok() -> Response<()> {
    Response::new(())
}

/// Answers everything on a connection with its path, until it ends.
async fn serve(mut connection: Connection) {
    while let Some(Ok((request, mut answer))) = connection.accept().await {
        let path = request.uri().path().to_owned();
        tokio::spawn(async move {
            let mut body = answer.send_response(ok(), false).unwrap();
            body.send_data(Bytes::from(path), true).unwrap();
        });
    }
}

#[tokio::test]
async fn a_client_of_http1_uses_a_service_of_http2() {
    let world = World::start().await;
    let app = world.speaking("svc", Protocol::H2c).await;
    let mut client = world.client().await;
    client
        .write(
            "POST /svc/x?y HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\
             Connection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\nTE: trailers\r\nUpgrade: websocket\r\n\r\n\
             5\r\nhello\r\n0\r\n\r\n",
        )
        .await;
    let mut connection = accept(&app, 10).await;
    let (request, mut answer) = next(&mut connection).await;
    let driven = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.uri(), "http://svc/x?y");
    let names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
    for name in ["via", "forwarded", "x-end"] {
        assert!(names.contains(&name), "{names:?}");
    }
    for name in ["host", "x-hop", "connection", "transfer-encoding", "upgrade", "lca-instance"] {
        assert!(!names.contains(&name), "{names:?}");
    }
    let mut body = request.into_body();
    let data = timeout(SOON, body.data()).await.unwrap().unwrap().unwrap();
    assert_eq!(data, "hello");
    let mut head = ok();
    head.headers_mut().insert("trailer", "x-sum".parse().unwrap());
    head.headers_mut().insert("lca-load", "mine".parse().unwrap());
    let mut send = answer.send_response(head, false).unwrap();
    send.send_data(Bytes::from_static(b"ok"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    send.send_trailers(trailers).unwrap();
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(!head.contains("lca-load"), "{head}");
    client.read_to("2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n").await;
    driven.abort();
}

#[tokio::test]
async fn what_has_no_body_ends_with_its_head() {
    let world = World::start().await;
    let app = world.speaking("svc", Protocol::H2c).await;
    let mut client = world.client().await;
    let serving = tokio::spawn(async move {
        let mut connection = accept(&app, 10).await;
        while let Some(Ok((request, mut answer))) = connection.accept().await {
            let mut head = ok();
            match request.uri().path() {
                "/head" => {
                    head.headers_mut().insert("content-length", "1000".parse().unwrap());
                }
                "/204" => *head.status_mut() = StatusCode::NO_CONTENT,
                _ => *head.status_mut() = StatusCode::NOT_MODIFIED,
            }
            answer.send_response(head, true).unwrap();
        }
        drop(app);
    });
    for (request, line, length) in [
        ("HEAD /svc/head", "HTTP/1.1 200 OK", Some("content-length: 1000")),
        ("GET /svc/204", "HTTP/1.1 204 No Content", None),
        ("GET /svc/304", "HTTP/1.1 304 Not Modified", None),
    ] {
        // One after the other on the same connection: nothing may be left of the one before.
        client.write(&format!("{request} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with(line), "{head}");
        assert_eq!(length.is_some(), head.contains("content-length"), "{head}");
        assert!(length.is_none_or(|length| head.contains(length)), "{head}");
    }
    serving.abort();
}

#[tokio::test]
async fn no_more_streams_are_opened_than_the_application_allows() {
    let world = World::start().await;
    let app = world.speaking("svc", Protocol::H2c).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = world.client().await;
        client.write(GET).await;
        clients.push(client);
    }
    // Two at a time on a connection: so three connections, with two, two and one.
    let mut open = Vec::new();
    for wanted in [2, 2, 1] {
        let mut connection = accept(&app, 2).await;
        let mut answers = Vec::new();
        for _ in 0..wanted {
            answers.push(next(&mut connection).await.1);
        }
        let more = timeout(Duration::from_millis(100), connection.accept()).await;
        assert!(more.is_err(), "no third while two are open");
        open.push((connection, answers));
    }
    for (mut connection, answers) in open {
        for mut answer in answers {
            answer.send_response(ok(), true).unwrap();
        }
        tokio::spawn(async move { while connection.accept().await.is_some() {} });
    }
    for mut client in clients {
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_connection_that_the_application_leaves_is_replaced_and_its_calls_end() {
    let world = World::start().await;
    let app = world.speaking("svc", Protocol::H2c).await;
    let (mut first, mut second) = (world.client().await, world.client().await);
    first.write(GET).await;
    let mut connection = accept(&app, 10).await;
    let (_request, mut answer) = next(&mut connection).await;
    let mut word = connection.ping_pong().unwrap();
    connection.graceful_shutdown();
    let left = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    // Frames keep their order: who answers this one has read the word about leaving.
    timeout(SOON, word.ping(Ping::opaque())).await.expect("an echo").unwrap();
    second.write(GET).await;
    let fresh = accept(&app, 10).await;
    tokio::spawn(serve(fresh));
    second.read_to("/x").await;
    let mut send = answer.send_response(ok(), false).unwrap();
    send.send_data(Bytes::from_static(b"late"), true).unwrap();
    first.read_to("late").await;
    timeout(SOON, left).await.expect("it ends with its last request").unwrap();
}

#[tokio::test]
async fn what_is_refused_unseen_goes_elsewhere_and_what_was_seen_does_not() {
    let world = World::start().await;
    let one = world.speaking("svc", Protocol::H2c).await;
    let other = world.another(&one).await;
    // Whoever is asked first refuses that one.
    let refused = Arc::new(AtomicU32::new(0));
    for app in [one, other] {
        let refused = refused.clone();
        tokio::spawn(async move {
            let mut connection = accept(&app, 10).await;
            while let Some(Ok((_, mut answer))) = connection.accept().await {
                if refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    answer.send_reset(Reason::REFUSED_STREAM);
                } else {
                    answer.send_response(ok(), true).unwrap();
                }
            }
            drop(app);
        });
    }
    // Its length is said nowhere: it is held while it is small.
    let post_of_unknown_length = "POST /svc/x HTTP/1.1\r\nHost: localhost\r\n\
        Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    let head = world.ask(post_of_unknown_length).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(refused.load(Ordering::Relaxed), 2, "two were asked");
    let breaking = world.speaking("breaking", Protocol::H2c).await;
    let seen = resetting(breaking, Reason::INTERNAL_ERROR);
    let post = "POST /breaking/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nab";
    let head = world.ask(post).await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
    assert_eq!(seen.load(Ordering::Relaxed), 1, "it is sent once");
}

/// Resets every request with `reason`, and counts them.
fn resetting(app: App, reason: Reason) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        loop {
            let mut connection = accept(&app, 10).await;
            let counted = counted.clone();
            tokio::spawn(async move {
                while let Some(Ok((_, mut answer))) = connection.accept().await {
                    counted.fetch_add(1, Ordering::Relaxed);
                    answer.send_reset(reason);
                }
            });
        }
    });
    count
}

#[tokio::test]
async fn an_application_that_speaks_something_else_is_502() {
    let world = World::start().await;
    for said in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-x\r\n", "x"] {
        let app = world.speaking("svc", Protocol::H2c).await;
        let mut client = world.client().await;
        client.write(GET).await;
        let mut connection = app.accept().await;
        connection.write(said).await;
        // What it does with what it does not understand.
        connection.0.shutdown().await.unwrap();
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.1 502"), "{said:?}: {head}");
        drop((app, connection));
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn floods_of_an_application_cost_nothing_and_others_go_on() {
    let world = World::start().await;
    let good = world.speaking("good", Protocol::H2c).await;
    tokio::spawn(async move {
        // Nobody may come for long.
        while let Ok((stream, _)) = good.listener.accept().await {
            tokio::spawn(async move { serve(server::handshake(stream).await.unwrap()).await });
        }
    });
    let many = |frame: Vec<u8>| frame.repeat(100_000);
    let before = resident();
    // 8 + 5 is 200, 0 + 1 an indexed header; interim answers are written out.
    let interim = b"\x08\x03103";
    for (what, flood) in [
        ("interim answers", many(frame(1, 4, 1, interim))),
        (
            "continuation",
            [frame(1, 0, 1, b"\x88"), many(frame(9, 0, 1, b"\x00\x01a\x01b"))].concat(),
        ),
        ("settings", many(frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]))),
        ("pings", many(frame(6, 0, 0, b"12345678"))),
        ("resets", many(frame(3, 0, 1, &[0, 0, 0, 8]))),
        ("data for nobody", many(frame(0, 0, 99, b"x"))),
        ("windows", many(frame(8, 0, 1, &[0x7f, 0xff, 0xff, 0xff]))),
        ("promises", many(frame(5, 4, 1, &[0, 0, 0, 2, 0x82]))),
        ("empty data", [frame(1, 4, 1, b"\x88"), many(frame(0, 0, 1, b""))].concat()),
    ] {
        let app = world.speaking("svc", Protocol::H2c).await;
        let mut client = world.client().await;
        client.write(GET).await;
        let (mut reading, mut writing) = app.accept().await.0.into_split();
        let (seen, request) = oneshot::channel();
        let read = tokio::spawn(async move {
            until_headers(&mut reading).await.unwrap();
            seen.send(()).unwrap();
            let mut all = [0; 1 << 16];
            while matches!(reading.read(&mut all).await, Ok(1..)) {}
        });
        let write = async {
            writing.write_all(&frame(4, 0, 0, &[])).await?;
            writing.write_all(&frame(6, 1, 0, &PING)).await?;
            request.await.expect("the head of the request");
            writing.write_all(&flood).await
        };
        // It is taken, or the connection is closed: it does not hang.
        let _taken = timeout(SOON, write).await.unwrap_or_else(|_| panic!("{what} stalls"));
        let mut other = world.client().await;
        other.write("GET /good/y HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        other.read_to("/y").await;
        drop((writing, app));
        read.abort();
        drop(client);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes more");
}

/// Reads what a client of HTTP/2 says up to the head of its first request.
async fn until_headers(reading: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    const HEADERS: u8 = 1;
    let mut preface = [0; 24];
    reading.read_exact(&mut preface).await?;
    loop {
        let mut head = [0; 9];
        reading.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        reading.read_exact(&mut payload).await?;
        if head[3] == HEADERS {
            return Ok(());
        }
    }
}

/// What the echo that we ask for says.
const PING: [u8; 8] = [0x3b, 0x7c, 0xdb, 0x7a, 0x0b, 0x87, 0x16, 0xb4];

/// Bytes of memory that this process has.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
