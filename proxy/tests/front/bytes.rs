//! What is sent is what arrives, but for what a proxy must change.

use crate::world::{World, lines};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_application_cannot_tell_by_which_way_a_request_was_routed() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let target = "/%41+b;c//d?e=%2F&?";
    let port = world.front.port();
    for (line, host) in [
        (format!("GET /svc{target}"), format!("127.0.0.1:{port}")),
        (format!("GET {target}"), format!("svc.lca.localhost:{port}")),
        (format!("GET http://svc{target}"), "svc".to_owned()),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let (answer, seen) = tokio::join!(world.ask(&request), app.serve(OK));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let mut seen = lines(&seen);
        assert_eq!(seen.remove("").unwrap(), format!("GET {target} HTTP/1.1"));
        assert_eq!(seen.remove("x-forwarded-host").unwrap(), host);
        let forwarded = format!("for=127.0.0.1;host=\"{host}\";proto=http");
        assert_eq!(seen.remove("forwarded").unwrap(), forwarded);
        let via = seen.remove("via").unwrap();
        assert_eq!(via, format!("1.1 lca-{} (svc)", world.node.peer().short()));
        let left: Vec<_> = seen.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        assert_eq!(left, ["host: svc", "x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"]);
    }
    world.stop().await;
}

#[tokio::test]
async fn redirects_and_cookies_inside_a_service_lead_there_by_the_way_the_client_came() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let answer = "HTTP/1.1 302 Found\r\nLocation: /login?next=%2F\r\nSet-Cookie: a=b; Path=/; HttpOnly\r\n\
        Content-Length: 0\r\nConnection: close\r\n\r\n";
    for (request, location, cookie) in [
        (
            "GET /svc/x HTTP/1.1\r\nHost: localhost",
            "/svc/login?next=%2F",
            "a=b; Path=/svc/; HttpOnly",
        ),
        ("GET /x HTTP/1.1\r\nHost: svc.lca.localhost", "/login?next=%2F", "a=b; Path=/; HttpOnly"),
        ("GET http://svc/x HTTP/1.1\r\nHost: svc", "/login?next=%2F", "a=b; Path=/; HttpOnly"),
    ] {
        let request = format!("{request}\r\n\r\n");
        let (told, _) = tokio::join!(world.ask(&request), app.serve(answer));
        let told = lines(&told);
        assert_eq!((&*told["location"], &*told["set-cookie"]), (location, cookie), "{request}");
    }
}

#[tokio::test]
async fn headers_of_one_connection_and_of_ours_do_not_pass() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let request = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\nConnection: X-Auth, keep-alive\r\n\
        X-Auth: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: x\r\nProxy-Foo: x\r\nTE: gzip\r\n\
        Upgrade: h2c\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Port: 6\r\nForwarded: for=6\r\n\
        LCA-Instance: 00\r\nLCA-Foo: x\r\nLCA-Soft-RTT: 1s\r\nX-Kept: \"a, b\"\r\n\r\n";
    let answer = "HTTP/1.1 299 Odd Phrase\r\ncontent-length: 2\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\
        Keep-Alive: 5\r\nlca-refusal: draining\r\nlca-foo: x\r\nX-Kept: 2\r\nDate: then\r\n\r\nok";
    let (answer, seen) = tokio::join!(world.ask(request), app.serve(answer));
    let seen = lines(&seen);
    let names: Vec<_> = seen.keys().map(String::as_str).collect();
    let ours = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-kept"];
    assert_eq!(names, [&["", "forwarded", "host", "via"], &ours[..]].concat());
    assert_eq!(seen["x-forwarded-for"], "127.0.0.1");
    assert_eq!(seen["x-kept"], "\"a, b\"");
    let mut answer = lines(&answer);
    assert_eq!(answer.remove("lca-request-id").unwrap().len(), 32);
    let left: Vec<_> = answer.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(left, [": HTTP/1.1 299 Odd Phrase", "content-length: 2", "date: then", "x-kept: 2"]);
}

#[tokio::test]
async fn the_framing_of_an_answer_is_kept() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let get = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let head = "HEAD /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for (request, answer, expected, body) in [
        (head, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", "content-length: 5", ""),
        (get, "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content", ""),
        (get, "HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n", "etag: x", ""),
        (get, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "content-length: 0", ""),
        (get, "HTTP/1.1 503 Mine\r\ncontent-length: 2\r\n\r\nno", "503 Mine", "no"),
        (get, "HTTP/1.0 200 OK\r\n\r\nuntil the end", "chunked", "D\r\nuntil the end\r\n0\r\n\r\n"),
    ] {
        let mut client = world.client().await;
        client.write(request).await;
        app.serve(answer).await;
        let seen = client.head().await;
        assert!(seen.contains(expected), "{answer}: {seen}");
        if !body.is_empty() {
            client.read_to(body).await;
        }
        // Nothing follows that was not sent: the next answer comes at once.
        client.write("GET /nobody/ HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        assert!(client.head().await.starts_with("HTTP/1.1 404"), "{answer}");
    }
}

#[tokio::test]
async fn trailers_pass_to_a_client_that_takes_them() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write("GET /svc/x HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\n\r\n").await;
    let seen = app
        .serve(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
             2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
    assert!(seen.contains("te: trailers"), "{seen}");
    client.head().await;
    assert_eq!(client.read_to("\r\n\r\n").await, "2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n");
}

#[tokio::test]
async fn an_old_client_gets_an_answer_that_ends_with_the_connection() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write("GET /svc/x HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
    app.serve("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.0 200 OK") && !head.contains("chunked"), "{head}");
    assert_eq!(client.rest().await, "ok");
}

#[tokio::test]
async fn requests_on_one_connection_are_routed_each_on_its_own() {
    let world = World::start().await;
    let (one, two) = (world.service("one").await, world.service("two").await);
    let mut client = world.client().await;
    client
        .write(
            "POST /one/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc\
             GET /two/b HTTP/1.1\r\nHost: localhost\r\n\r\nGET /one HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
        .await;
    let mut first = one.accept().await;
    assert!(first.read_to("\r\n\r\nabc").await.starts_with("POST /a HTTP/1.1"));
    first.write("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none").await;
    let seen = two.serve("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\ntwo").await;
    assert!(seen.starts_with("GET /b HTTP/1.1"), "{seen}");
    client.read_to("\r\n\r\none").await;
    client.read_to("\r\n\r\ntwo").await;
    assert!(client.head().await.contains("location: /one/"));
}

#[tokio::test]
async fn who_answered_and_where_the_time_went_is_told_to_whoever_asks_and_to_nobody_else() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let request = |debug: &str| format!("GET /svc/x HTTP/1.1\r\nHost: localhost\r\n{debug}\r\n");
    let served = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nlca-debug-peer: me\r\n\r\nok";
    let asking = request("LCA-Debug: 1\r\n");
    let (answer, seen) = tokio::join!(world.ask(&asking), app.serve(served));
    assert!(!seen.to_lowercase().contains("lca-debug"), "{seen}");
    let told = lines(&answer);
    assert_eq!(told["lca-debug-attempts"], "1");
    assert_eq!(told["lca-debug-instance"].len(), 32);
    assert!(told["lca-debug-peer"].parse::<lca::PeerId>().is_ok(), "{answer}");
    let timing = &told["server-timing"];
    for step in ["pick;dur=", "connect;dur=", "ttfb;dur=", "app;dur="] {
        assert!(timing.contains(step), "no {step} in {answer}");
    }
    for debug in ["", "LCA-Debug: 0\r\n"] {
        let plain = request(debug);
        let (answer, _) = tokio::join!(world.ask(&plain), app.serve(served));
        assert!(!answer.contains("lca-debug") && !answer.contains("pick;dur"), "{answer}");
    }
    let odd = world.ask(request("LCA-Debug: yes\r\n")).await;
    assert!(odd.starts_with("HTTP/1.1 400"), "{odd}");
    let gone = "GET /nobody/x HTTP/1.1\r\nHost: localhost\r\nLCA-Debug: 1\r\n\r\n";
    assert!(world.ask(gone).await.contains("lca-debug-attempts: 0"));
}
