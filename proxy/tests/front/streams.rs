//! Bodies as they flow, requests that are sent again, and those that must not be.

use std::time::Duration;

use tokio::time::timeout;

use crate::world::{SOON, Wire, World};

const GET: &str = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POST: &str = "POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn both_bodies_flow_while_neither_is_over() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client
        .write("POST /svc/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    let mut app = app.accept().await;
    app.read_to("\r\n\r\n1\r\na\r\n").await;
    app.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nb\r\n").await;
    client.read_to("\r\n\r\n1\r\nb\r\n").await;
    client.write("1\r\nc\r\n").await;
    app.read_to("1\r\nc\r\n").await;
    app.write("1\r\nd\r\n").await;
    client.read_to("1\r\nd\r\n").await;
    client.write("0\r\n\r\n").await;
    app.read_to("0\r\n\r\n").await;
    app.write("0\r\n\r\n").await;
    client.read_to("0\r\n\r\n").await;
}

#[tokio::test]
async fn an_answer_to_half_a_request_is_passed_on() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client
        .write("POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\nhalf")
        .await;
    let mut connection = app.accept().await;
    connection.read_to("half").await;
    connection.write("HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await;
    assert!(client.head().await.starts_with("HTTP/1.1 413"));
    client.read_to("no").await;
    connection.rest().await;
    timeout(SOON, app.registration.drained()).await.expect("nothing stays open");
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_its_body_is_asked() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client
        .write(
            "POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\
             Expect: 100-continue\r\n\r\n",
        )
        .await;
    assert!(client.head().await.starts_with("HTTP/1.1 100"));
    client.write("hello").await;
    let mut connection = app.accept().await;
    let seen = connection.read_to("\r\n\r\nhello").await;
    assert!(!seen.contains("expect"), "{seen}");
    connection.write(OK).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_goes_away_is_missed_by_the_application_at_once() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let upload = "POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nhalf";
    for request in [GET, upload] {
        for answered in [false, true] {
            let mut client = world.client().await;
            client.write(request).await;
            let mut connection = app.accept().await;
            connection.head().await;
            if answered {
                connection.write("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nhalf").await;
                client.head().await;
            }
            drop(client);
            connection.rest().await;
            timeout(SOON, app.registration.drained()).await.expect("nothing stays open");
        }
    }
    // Nobody thinks worse of the instance.
    let (answer, _) = tokio::join!(world.ask(GET), app.serve(OK));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_to_look_whole() {
    let world = World::start().await;
    let app = world.service("svc").await;
    for framing in ["transfer-encoding: chunked", "content-length: 99"] {
        let mut client = world.client().await;
        client.write(GET).await;
        let mut connection = app.accept().await;
        connection.head().await;
        connection.write(&format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n4\r\nhalf\r\n")).await;
        client.read_to("half\r\n").await;
        drop(connection);
        assert_eq!(client.rest().await, "", "{framing}");
        assert!(app.is_untouched().await, "nothing is sent again once an answer has begun");
    }
}

#[tokio::test]
async fn what_an_ingress_refused_another_instance_answers() {
    let world = World::start().await;
    let draining = world.service("svc").await;
    let ready = world.another(&draining).await;
    draining.registration.drain();
    let mut kept: Vec<Wire> = Vec::new();
    for request in [GET, POST, GET] {
        let mut client = world.client().await;
        client.write(request).await;
        if kept.is_empty() {
            kept.push(ready.accept().await);
        }
        let end = if request == POST { "\r\n\r\nhello" } else { "\r\n\r\n" };
        let connection = tokio::select! {
            connection = ready.accept() => { kept.push(connection); kept.last_mut() }
            _ = kept[0].0.readable() => kept.first_mut(),
        };
        let connection = connection.unwrap();
        connection.read_to(end).await;
        connection.write(OK).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    }
    assert!(draining.is_untouched().await);
}

#[tokio::test]
async fn a_post_whose_instance_does_not_listen_goes_whole_to_another() {
    // Whichever is picked first, in one of the two it is the dead one.
    for dead in [0, 1] {
        let world = World::start().await;
        let first = world.service("svc").await;
        let mut both = [world.another(&first).await, first];
        let gone = std::mem::replace(
            &mut both[dead].listener,
            tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        drop(gone);
        let alive = &both[1 - dead];
        let mut client = world.client().await;
        client.write(POST).await;
        let mut connection = alive.accept().await;
        connection.read_to("\r\n\r\nhello").await;
        connection.write(OK).await;
        assert!(client.head().await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn a_post_that_may_have_been_seen_is_delivered_once() {
    let world = World::start().await;
    let one = world.service("svc").await;
    let two = world.another(&one).await;
    let mut client = world.client().await;
    client.write(POST).await;
    let mut connection = tokio::select! {
        connection = one.accept() => connection,
        connection = two.accept() => connection,
    };
    connection.read_to("\r\n\r\nhello").await;
    drop(connection);
    let answer = client.head().await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(one.is_untouched().await && two.is_untouched().await);
}

#[tokio::test]
async fn a_get_without_a_byte_of_an_answer_is_asked_elsewhere() {
    let world = World::start().await;
    let one = world.service("svc").await;
    let two = world.another(&one).await;
    let mut client = world.client().await;
    client.write(GET).await;
    let (mut connection, other) = tokio::select! {
        connection = one.accept() => (connection, &two),
        connection = two.accept() => (connection, &one),
    };
    connection.head().await;
    drop(connection);
    other.serve(OK).await;
    assert!(client.head().await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn with_nobody_left_the_answer_is_503_and_when_to_come_again() {
    let world = World::start().await;
    let app = world.service("svc").await;
    app.registration.drain();
    let answer = world.ask(GET).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("problem+json"), "{answer}");
}

#[tokio::test]
async fn an_instance_that_vanishes_under_a_request_is_502_and_not_a_hang() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write(POST).await;
    let mut connection = app.accept().await;
    connection.read_to("hello").await;
    drop(app.registration);
    let answer = timeout(Duration::from_secs(10), client.head()).await.expect("no hang");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
}

#[tokio::test]
async fn an_instance_counts_as_busy_until_its_answer_has_come_to_its_end() {
    // Each on a connection of its own, so that it is seen who is asked.
    const ALL: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
    const HALF: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\nha";
    let world = World::start().await;
    let app = world.service("svc").await;
    let other = world.another(&app).await;
    let mut client = world.client().await;
    client.write(GET).await;
    let (mut streaming, first, second) = tokio::select! {
        connection = app.accept() => (connection, &app, &other),
        connection = other.accept() => (connection, &other, &app),
    };
    streaming.head().await;
    streaming.write(HALF).await;
    client.read_to("ha").await;
    for _ in 0..5 {
        let mut another = world.client().await;
        another.write(GET).await;
        second.serve(ALL).await;
        another.read_to("ok").await;
    }
    assert!(first.is_untouched().await, "its answer was under way");
    streaming.write("lf").await;
    client.read_to("lf").await;
    // Now the other one has an answer under way.
    client.write(GET).await;
    let mut streaming = second.accept().await;
    streaming.head().await;
    streaming.write(HALF).await;
    client.read_to("ha").await;
    for _ in 0..5 {
        let mut another = world.client().await;
        another.write(GET).await;
        first.serve(ALL).await;
        another.read_to("ok").await;
    }
    assert!(second.is_untouched().await, "its answer is under way");
}
