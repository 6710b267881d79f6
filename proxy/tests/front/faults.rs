//! Failures: ours, of a request that comes round, and of an application that answers what is
//! not HTTP.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

use crate::world::{SOON, Wire, World};

#[tokio::test]
async fn a_failure_of_ours_says_so_and_which_request_it_was() {
    let world = World::start().await;
    let mut client = world.client().await;
    client.write("GET /nobody/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.contains("content-type: application/problem+json"), "{head}");
    let id = head.split("lca-request-id: ").nth(1).unwrap().split("\r\n").next().unwrap();
    let body = client.read_to("}\n").await;
    assert!(body.contains(id) && body.contains("nobody"), "{body}");
    let refused = world.ask("TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(refused.contains("allow: GET"), "{refused}");
}

#[tokio::test]
async fn a_missing_slash_is_answered_with_308_and_the_query_kept() {
    let world = World::start().await;
    for (target, location) in [("/svc", "/svc/"), ("/svc?x=1&y", "/svc/?x=1&y")] {
        for method in ["GET", "POST"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let answer = world.ask(request).await;
            assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
            assert!(answer.contains(&format!("location: {location}\r\n")), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_request_that_comes_back_is_answered_508_before_anything_is_picked() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let front = world.node.peer().short();
    let request = format!(
        "GET /svc/x HTTP/1.1\r\nHost: localhost\r\nVia: 1.0 x, 1.1 lca-{front} (svc)\r\n\r\n"
    );
    let answer = world.ask(&request).await;
    assert!(answer.starts_with("HTTP/1.1 508"), "{answer}");
    assert!(app.is_untouched().await);
    // The same front for another service is no loop, nor is another front for this one.
    for via in [format!("lca-{front} (other)"), "lca-hgfedcba (svc)".to_owned()] {
        let request = format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\nVia: 1.1 {via}\r\n\r\n");
        let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let (answer, seen) = tokio::join!(world.ask(&request), app.serve(ok));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(seen.contains(&format!("via: 1.1 {via}, 1.1 lca-{front} (svc)\r\n")), "{seen}");
    }
}

#[tokio::test]
async fn a_loop_that_drops_via_ends_at_the_limit_of_the_instance() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let get = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (front, round) = (world.front, Arc::new(AtomicUsize::new(0)));
    let rounds = round.clone();
    // It asks itself for its answer, and says nothing of where the request came from.
    let looping = tokio::spawn(async move {
        loop {
            let mut connection = app.accept().await;
            rounds.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                connection.head().await;
                let mut again = Wire(TcpStream::connect(front).await.unwrap());
                again.write(get).await;
                let status = again.head().await.split(' ').nth(1).unwrap().to_owned();
                let answer = format!("HTTP/1.1 {status} Passed On\r\ncontent-length: 0\r\n\r\n");
                connection.write(&answer).await;
            });
        }
    });
    let answer = timeout(4 * SOON, world.ask(get)).await.expect("it ends");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(round.load(Ordering::Relaxed), 100, "what the instance takes at once");
    looping.abort();
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_502_and_nothing_of_it_passes() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let ok = "HTTP/1.1 200 OK\r\n";
    for answer in [
        format!("{ok}x: a\rset-cookie: b\r\n\r\n"),
        format!("{ok}content-length: 1\r\ncontent-length: 2\r\n\r\nab"),
        format!("{ok}content-length: -1\r\n\r\nab"),
        format!("{ok}content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{ok}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        format!("{ok}set-cookie: {}\r\n\r\n", "x".repeat(70_000)),
        format!("{ok}{}\r\n", "set-cookie: x\r\n".repeat(101)),
        format!("{}{ok}set-cookie: x\r\n\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20_000)),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n".to_owned(),
        "220 mail.example ESMTP\r\n\r\n".to_owned(),
    ] {
        let get = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let serve = async {
            let mut connection = app.accept().await;
            connection.head().await;
            // It may be cut off before it is through.
            let _written = connection.0.write_all(answer.as_bytes()).await;
            connection.rest().await;
        };
        let (seen, ()) = tokio::join!(world.ask(get), serve);
        let told = answer.get(..80).unwrap_or(&answer);
        assert!(seen.starts_with("HTTP/1.1 502"), "{told}: {seen}");
        assert!(!seen.contains("set-cookie") && seen.contains("problem+json"), "{seen}");
    }
}
