//! Bad requests, by the numbers of the list of faults they come from.

use crate::world::World;

#[tokio::test]
async fn what_is_no_request_for_a_service_is_refused_and_no_application_sees_it() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let many = format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "a: b\r\n".repeat(101));
    let long =
        format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\na: {}\r\n\r\n", "b".repeat(66_000));
    let bytes: [(&str, &[u8], &str); 37] = [
        ("1 version", b"GET /svc/x HTTP/9.9\r\nHost: localhost\r\n\r\n", "400"),
        ("1 garbage", b"\x01\x02 /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("2 no host", b"GET /svc/x HTTP/1.1\r\n\r\n", "400"),
        ("2 old, no host", b"GET /svc/x HTTP/1.0\r\n\r\n", "400"),
        ("2 two hosts", b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", "400"),
        ("2 empty host", b"GET /svc/x HTTP/1.1\r\nHost:\r\n\r\n", "400"),
        ("2 mismatch", b"GET http://svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("4 two lengths", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400"),
        ("4 plus", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nabcde", "400"),
        ("4 hex", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0x5\r\n\r\nabcde", "400"),
        ("5 gzip", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", "400"),
        ("5 gzip, chunked", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"),
        ("5 twice", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "400"),
        ("5 parameter", b"POST /svc/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked;x\r\n\r\n0\r\n\r\n", "400"),
        ("7 NUL", b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\na: b\0c\r\n\r\n", "400"),
        ("7 fold", b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\na: b\r\n c\r\n\r\n", "400"),
        ("7 blank", b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\na : b\r\n\r\n", "400"),
        ("8 fields", many.as_bytes(), "431"),
        ("8 bytes", long.as_bytes(), "431"),
        ("9 dots", b"GET /../x/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 coded dots", b"GET /%2e%2e/ HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 slashes", b"GET //svc HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 coded slash", b"GET /svc%2Fadmin HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 coded NUL", b"GET /%00 HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 upper case", b"GET /SVC/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 overlong", b"GET /svc\xc0\xaf HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("9 unknown", b"GET /nobody/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "404"),
        ("10 slashes", b"GET // HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("10 star", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("10 GET star", b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", "400"),
        ("10 connect", b"CONNECT svc:80 HTTP/1.1\r\nHost: svc:80\r\n\r\n", "405"),
        ("10 trace", b"TRACE /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
        ("10 authority", b"GET svc:80 HTTP/1.1\r\nHost: svc:80\r\n\r\n", "400"),
        ("10 https", b"GET https://svc/x HTTP/1.1\r\nHost: svc\r\n\r\n", "400"),
        ("30 rebinding", b"GET /svc/x HTTP/1.1\r\nHost: evil.example\r\n\r\n", "421"),
        ("30 absolute", b"GET http://10.0.0.1/svc/x HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n", "421"),
        ("rtt", b"GET /svc/x HTTP/1.1\r\nHost: localhost\r\nLCA-Soft-RTT: -5\r\n\r\n", "400"),
    ];
    for (what, request, status) in bytes {
        let answer = world.ask(request).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{what}: {answer}");
    }
    assert!(app.is_untouched().await);
    let good = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let (answer, _) = tokio::join!(world.ask(good), app.serve(ok));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

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
async fn a_length_beside_chunks_never_reaches_the_application() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let chunks = "0\r\n\r\n";
    for framing in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 3",
    ] {
        let mut client = world.client().await;
        let head = format!("POST /svc/x HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n{chunks}");
        client.write(&head).await;
        let seen = app.serve("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(!seen.contains("content-length"), "{seen}");
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
        assert_eq!(client.rest().await, "", "the connection is closed: who knows what follows");
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
async fn an_answer_that_is_not_http_is_502_and_nothing_of_it_passes() {
    let world = World::start().await;
    let app = world.service("svc").await;
    for answer in [
        "HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
        "220 mail.example ESMTP\r\n\r\n",
    ] {
        let get = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let (seen, _) = tokio::join!(world.ask(get), app.serve(answer));
        assert!(seen.starts_with("HTTP/1.1 502"), "{answer}: {seen}");
        assert!(!seen.contains("set-cookie") && seen.contains("problem+json"), "{seen}");
    }
}
