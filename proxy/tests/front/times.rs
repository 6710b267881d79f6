//! What a request may be and take, of all who have a say: the front, the service, the client.

use std::time::Duration;

use lca::{
    api::proto::{Limits, ServiceSpec},
    testing::counted,
};
use lca_proxy::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use crate::world::{App, SOON, Wire, World};

/// Far longer than a request takes here, and short enough to wait for.
const SHORT: u64 = 700;
/// Would fail the test by itself.
const LONG: Duration = Duration::from_secs(300);

async fn limited(world: &World, limits: Limits) -> App {
    let spec = ServiceSpec { name: "svc".into(), limits: Some(limits), ..Default::default() };
    world.service_of(spec, 100).await
}

/// Sends the head of a request with these lines, and lets its application see it.
async fn begin(world: &World, app: &App, lines: &str) -> (Wire, Wire) {
    let mut client = world.client().await;
    client.write(&format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")).await;
    let mut connection = app.accept().await;
    let head = connection.head().await;
    assert!(!head.contains("lca-timeout"), "{head}");
    (client, connection)
}

fn is(answer: &str, status: u16, slug: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("application/problem+json"), "{slug}: {answer}");
}

#[tokio::test]
async fn the_shortest_time_of_front_service_and_client_ends_a_request_that_is_not_answered() {
    let short = Duration::from_millis(SHORT);
    let said = |request_timeout_ms| Limits { request_timeout_ms, ..Limits::default() };
    let own = Config { request: Some(short), ..Config::default() };
    let head = |answer_timeout_ms| Limits { answer_timeout_ms, ..Limits::default() };
    for (what, config, limits, lines) in [
        ("the front's", own, said(300_000), "LCA-Timeout: 300s\r\n"),
        ("the service's", Config::default(), said(SHORT), "LCA-Timeout: 300s\r\n"),
        ("the client's", Config::default(), said(300_000), "LCA-Timeout: 700ms\r\n"),
        ("the client's alone", Config::default(), Limits::default(), "LCA-Timeout: 700ms\r\n"),
        ("the service's for a head", Config::default(), head(SHORT), ""),
    ] {
        let world = World::with(config).await;
        let app = limited(&world, limits).await;
        let begun = Instant::now();
        let (mut client, mut connection) = begin(&world, &app, lines).await;
        let answer = client.head().await;
        let took = begun.elapsed();
        is(&answer, 504, what);
        assert!(took >= short && took < SOON, "{what}: {took:?}");
        // Nobody waits for the application any more, and it was asked once.
        connection.rest().await;
        assert!(app.is_untouched().await, "{what}");
        // It is the next request's time now.
        let (mut client, mut connection) = begin(&world, &app, lines).await;
        connection.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        client.read_to("ok").await;
    }
}

#[tokio::test]
async fn a_time_nobody_can_read_is_400_and_reaches_no_application() {
    let world = World::start().await;
    let app = world.service("svc").await;
    for lines in ["LCA-Timeout: 5", "LCA-Timeout: -1s", "LCA-Timeout: 1s\r\nLCA-Timeout: 2s"] {
        let mut client = world.client().await;
        let get = format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n");
        client.write(&get).await;
        let answer = client.rest().await;
        is(&answer, 400, lines);
        assert!(answer.contains("lca-timeout must be one time like 250ms"), "{answer}");
    }
    assert!(app.is_untouched().await);
}

#[tokio::test]
async fn a_request_that_does_not_come_in_its_time_is_408() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let lines = "LCA-Timeout: 700ms\r\nContent-Length: 9\r\n";
    let (mut client, mut connection) = begin(&world, &app, lines).await;
    client.write("half").await;
    connection.read_to("half").await;
    let answer = client.rest().await;
    is(&answer, 408, "half a body");
    assert!(answer.contains("connection: close"), "{answer}");
    connection.rest().await;
}

#[tokio::test]
async fn an_answer_that_is_not_whole_in_its_time_breaks_off() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let (mut client, mut connection) = begin(&world, &app, "LCA-Timeout: 700ms\r\n").await;
    connection.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
    assert_eq!(client.rest().await, "half", "what came, and no end");
    connection.rest().await;
}

#[tokio::test]
async fn a_body_that_is_quiet_for_longer_than_its_service_is_breaks_off() {
    let world = World::start().await;
    let app = limited(&world, Limits { quiet_timeout_ms: SHORT, ..Limits::default() }).await;
    // Of an answer.
    let (mut client, mut connection) = begin(&world, &app, "").await;
    connection.write("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
    client.head().await;
    assert_eq!(client.rest().await, "half");
    connection.rest().await;
    // Of a request.
    let (mut client, mut connection) = begin(&world, &app, "Content-Length: 9\r\n").await;
    client.write("half").await;
    connection.read_to("half").await;
    assert_eq!(client.rest().await, "");
    connection.rest().await;
}

#[tokio::test]
async fn a_tunnel_is_held_to_the_time_of_a_request_until_it_is_agreed() {
    let world = World::start().await;
    let limits = Limits { request_timeout_ms: SHORT, ..Limits::default() };
    let app = limited(&world, limits).await;
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let begun = Instant::now();
    let (mut client, mut connection) = begin(&world, &app, upgrade).await;
    let agreed =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    connection.write(agreed).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101"));
    while begun.elapsed() < Duration::from_millis(2 * SHORT) {
        client.write("ping").await;
        connection.read_to("ping").await;
        connection.write("pong").await;
        client.read_to("pong").await;
    }
    drop((client, connection));
    let (mut client, mut silent) = begin(&world, &app, upgrade).await;
    is(&client.head().await, 504, "nobody agreed");
    silent.rest().await;
}

#[tokio::test]
async fn a_body_longer_than_its_service_takes_is_413_and_one_that_fits_passes() {
    let world = World::start().await;
    let app = limited(&world, Limits { max_body_bytes: 4, ..Limits::default() }).await;
    let post = "POST /svc/x HTTP/1.1\r\nHost: localhost\r\n";
    // Said beforehand: the application is not asked, nor is the client for its body.
    let mut client = world.client().await;
    client.write(&format!("{post}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")).await;
    let answer = client.rest().await;
    is(&answer, 413, "said");
    assert!(answer.contains("at most 4 bytes") && answer.contains("connection: close"), "{answer}");
    assert!(app.is_untouched().await);
    // Found out on the way: what came so far is no request.
    let mut client = world.client().await;
    client.write(&format!("{post}Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n")).await;
    let mut connection = app.accept().await;
    connection.read_to("four\r\n").await;
    client.write("1\r\n+\r\n").await;
    is(&client.rest().await, 413, "found out");
    assert_eq!(connection.rest().await, "", "no end of it, and no more");
    for body in [
        "Content-Length: 4\r\n\r\nfour",
        "Transfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n",
    ] {
        let mut client = world.client().await;
        client.write(&format!("{post}{body}")).await;
        let mut connection = app.accept().await;
        connection.read_to(if body.ends_with("four") { "four" } else { "0\r\n\r\n" }).await;
        connection
            .write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            .await;
        client.read_to("ok").await;
    }
    let too_large = r#"lca_front_requests_total{outcome="too-large",service="svc"}"#;
    assert_eq!(counted(world.manager.metrics(), too_large), 2.0);
}

#[tokio::test]
async fn times_that_are_far_off_change_nothing() {
    let world = World::start().await;
    let long = LONG.as_millis() as u64;
    let limits = Limits {
        max_body_bytes: u64::MAX,
        answer_timeout_ms: long,
        quiet_timeout_ms: long,
        request_timeout_ms: long,
    };
    let app = limited(&world, limits).await;
    let (mut client, mut connection) = begin(&world, &app, "LCA-Timeout: 86400s\r\n").await;
    connection.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    client.read_to("ok").await;
}

// FAULTS 17.
#[tokio::test]
async fn a_slow_reader_slows_its_writer_and_nobody_else() {
    const WHOLE: usize = 256 << 20;
    /// What the sockets of both hops and the windows between them hold, with room to spare.
    const HELD: usize = 64 << 20;
    let world = World::start().await;
    let app = world.service("svc").await;
    let (mut slow, mut connection) = begin(&world, &app, "").await;
    connection.write(&format!("HTTP/1.1 200 OK\r\ncontent-length: {WHOLE}\r\n\r\n")).await;
    assert!(slow.head().await.starts_with("HTTP/1.1 200"));
    let chunk = [b'x'; 64 << 10];
    let mut written = 0;
    // Until nobody takes any of it for a while.
    while let Ok(more) = timeout(Duration::from_secs(2), connection.0.write(&chunk)).await {
        written += more.unwrap();
        assert!(written < HELD, "{written} bytes are held for a client that reads none");
    }
    // Others of the same service are answered at their own pace.
    let begun = Instant::now();
    for _ in 0..20 {
        let mut client = world.client().await;
        client.write("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        app.serve("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").await;
        client.read_to("ok").await;
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    // Its writer goes on when it reads.
    let mut read = vec![0; 1 << 20];
    let goes_on = async {
        loop {
            tokio::select! {
                biased;
                more = connection.0.write(&chunk) => break more.unwrap(),
                more = slow.0.read(&mut read) => assert!(more.unwrap() > 0, "it breaks off"),
            }
        }
    };
    assert!(timeout(SOON, goes_on).await.expect("it goes on") > 0);
}
