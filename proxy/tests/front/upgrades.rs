//! Connections that leave HTTP: WebSocket and other upgrades, and tunnels by `CONNECT`.

use std::time::Duration;

use lca::testing::eventually;
use lca_proxy::{Config, Front};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use crate::world::{App, SOON, Wire, World, lines};

const ASK: &str = "GET /svc/chat?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nlca-x: y\r\n\r\n";
const CONNECT: &str = "CONNECT svc:4711 HTTP/1.1\r\nHost: svc:4711\r\n\r\n";

/// A client and the application, joined.
async fn joined(world: &World, app: &App, first: &str) -> (Wire, Wire) {
    let mut client = world.client().await;
    client.write(first).await;
    let mut server = app.accept().await;
    if first == ASK {
        server.head().await;
        server.write(AGREE).await;
    }
    client.head().await;
    (client, server)
}

#[tokio::test]
async fn a_websocket_passes_both_ways_at_once_and_closes_both_ways() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write(ASK).await;
    let mut server = app.accept().await;
    let asked = lines(&server.head().await);
    assert_eq!(asked[""], "GET /chat?x=1 HTTP/1.1");
    assert_eq!((&*asked["upgrade"], &*asked["connection"]), ("websocket", "upgrade"));
    assert_eq!(asked["sec-websocket-key"], "dGhlIHNhbXBsZSBub25jZQ==");
    // The first bytes may come with the answer.
    server.write(&format!("{AGREE}hello")).await;
    let agreed = lines(&client.head().await);
    assert_eq!(agreed[""], "HTTP/1.1 101 Switching Protocols");
    assert_eq!((&*agreed["upgrade"], &*agreed["connection"]), ("websocket", "upgrade"));
    assert_eq!(agreed["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert!(!agreed.contains_key("lca-x") && !agreed.contains_key("lca-load"));
    client.read_to("hello").await;

    let many = "\u{0}\u{1}frames ".repeat(200_000);
    let up = async {
        let (mut reading, mut writing) = server.0.split();
        let write = async {
            writing.write_all(many.as_bytes()).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        tokio::join!(write, whole(&mut reading)).1
    };
    let down = async {
        let (mut reading, mut writing) = client.0.split();
        let write = async {
            writing.write_all(many.as_bytes()).await.unwrap();
            // A close frame, and then no more: both ends say so.
            writing.write_all(b"\x88\x82\x00\x00\x00\x00\x03\xe8").await.unwrap();
            writing.shutdown().await.unwrap();
        };
        tokio::join!(write, whole(&mut reading)).1
    };
    assert_eq!(app.registration.load().in_flight, 1, "it is open, so its instance is not idle");
    let (at_server, at_client) = timeout(SOON, async { tokio::join!(up, down) }).await.unwrap();
    assert!(at_client == many.as_bytes());
    assert!(
        at_server.strip_prefix(many.as_bytes()).unwrap() == b"\x88\x82\x00\x00\x00\x00\x03\xe8"
    );
    timeout(SOON, app.registration.drained()).await.expect("nothing stays open");
    world.stop().await;
}

async fn whole(from: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(from, &mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn an_application_that_does_not_switch_answers_as_ever() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    let mut server = None;
    for _ in 0..2 {
        client.write(ASK).await;
        let server = match &mut server {
            Some(server) => server,
            none => none.insert(app.accept().await),
        };
        server.head().await;
        server.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        client.read_to("no").await;
    }
}

#[tokio::test]
async fn what_is_no_upgrade_for_applications_is_not_passed_on() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    for asked in [
        "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: upgrade\r\nUpgrade: lca-tunnel\r\n",
        "Connection: upgrade\r\nUpgrade: LCA-Tunnel\r\n",
        "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let request = format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n{asked}\r\n");
        let (answer, seen) = tokio::join!(world.ask(&request), app.serve(ok));
        let seen = seen.to_lowercase();
        assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{asked}: {seen}");
        assert!(answer.starts_with("HTTP/1.1 200"), "{asked}: {answer}");
    }
    // Neither version 1.0 nor a request with a body can leave HTTP.
    let old = ASK.replace("HTTP/1.1", "HTTP/1.0");
    let (_, seen) = tokio::join!(world.ask(&old), app.serve(ok));
    assert!(!seen.contains("upgrade"), "{seen}");
    let body = ASK.replace("\r\n\r\n", "\r\nContent-Length: 2\r\n\r\nab");
    let (_, seen) = tokio::join!(world.ask(&body), app.serve(ok));
    assert!(!seen.contains("upgrade"), "{seen}");
}

#[tokio::test]
async fn connect_is_a_tunnel_to_the_port_of_an_instance_and_to_nothing_else() {
    let world = World::start().await;
    let app = world.service("svc").await;
    // Any bytes, the application's first.
    let mut client = world.client().await;
    client.write(CONNECT).await;
    let mut server = app.accept().await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 200") && !head.contains("content-length"), "{head}");
    server.write("220 mail ESMTP\n").await;
    client.read_to("220 mail ESMTP\n").await;
    client.write("HELO\n").await;
    assert_eq!(server.read_to("HELO\n").await, "HELO\n");
    assert_eq!(app.registration.load().in_flight, 1);
    drop(server);
    assert_eq!(client.rest().await, "");
    drop(client);
    timeout(SOON, app.registration.drained()).await.expect("nothing stays open");

    let elsewhere = app.listener.local_addr().unwrap();
    for (to, status) in [
        (elsewhere.to_string(), "421"),
        (format!("localhost:{}", elsewhere.port()), "421"),
        ("nobody:80".to_owned(), "404"),
        ("svc".to_owned(), "400"),
        ("svc/x:80".to_owned(), "400"),
    ] {
        let answer = world.ask(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n")).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{to}: {answer}");
    }
    assert!(app.is_untouched().await);
    drop(app.listener);
    let answer = world.ask(CONNECT).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn a_tunnel_ends_for_the_one_when_the_other_is_gone() {
    let world = World::start().await;
    for first in [ASK, CONNECT] {
        let app = world.service("svc").await;
        let (client, mut server) = joined(&world, &app, first).await;
        drop(client);
        server.rest().await;
        drop(server);
        timeout(SOON, app.registration.drained()).await.expect("nothing stays open");
        let (mut client, server) = joined(&world, &app, first).await;
        drop(server);
        client.rest().await;
        let (mut client, mut server) = joined(&world, &app, first).await;
        drop(app.registration);
        client.rest().await;
        server.rest().await;
    }
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_is_closed() {
    let mut config = Config::default();
    config.peers.quiet = Duration::from_millis(500);
    let world = World::with(config).await;
    let app = world.service("svc").await;
    let (mut client, mut server) = joined(&world, &app, ASK).await;
    server.write("ping").await;
    client.read_to("ping").await;
    client.rest().await;
    server.rest().await;
}

#[tokio::test]
async fn a_stopped_front_closes_its_tunnels_after_the_grace() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let stop = tokio_util::sync::CancellationToken::new();
    let config = Config { grace: Duration::from_millis(500), ..Config::default() };
    let any = "127.0.0.1:0".parse().unwrap();
    let front = Front::bind(any, config, world.manager.clone(), world.node.clone()).await.unwrap();
    let address = front.address();
    front.serve_until(stop.clone(), &world.tasks.spawner());
    let mut client = Wire(TcpStream::connect(address).await.unwrap());
    client.write(ASK).await;
    let mut server = app.accept().await;
    server.head().await;
    server.write(AGREE).await;
    client.head().await;
    stop.cancel();
    let refused = async || TcpStream::connect(address).await.is_err();
    eventually("the front to take nothing more", refused).await;
    server.write("last words").await;
    client.read_to("last words").await;
    client.rest().await;
    server.rest().await;
    world.stop().await;
}
