//! What a front counts, while it happens.

use lca::{
    api::proto::ServiceSpec,
    testing::{counted, eventually},
};
use lca_proxy::Config;
use tokio::time::Instant;

use crate::world::World;

const GET: &str = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

fn requests(world: &World, service: &str, outcome: &str) -> f64 {
    let series = format!(r#"lca_front_requests_total{{outcome="{outcome}",service="{service}"}}"#);
    counted(world.manager.metrics(), &series)
}

#[tokio::test]
async fn a_request_is_counted_with_its_outcome_and_the_bytes_of_both_bodies() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write("POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc").await;
    let mut connection = app.accept().await;
    connection.read_to("abc").await;
    connection.write(OK).await;
    client.read_to("hello").await;
    assert_eq!(requests(&world, "svc", "2xx"), 1.0);
    let bytes = |way| {
        let series = format!(r#"lca_front_{way}_bytes_total{{service="svc"}}"#);
        counted(world.manager.metrics(), &series)
    };
    assert_eq!((bytes("upload"), bytes("download")), (3.0, 5.0));
    assert_eq!(counted(world.manager.metrics(), "lca_front_connections"), 1.0);
    drop(client);
    eventually("the connection to be gone", async || {
        counted(world.manager.metrics(), "lca_front_connections") == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_name_nobody_registered_and_nonsense_are_counted_under_no_name() {
    let world = World::start().await;
    world.ask("GET /nobody/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    world.ask("GET /SVC/x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(requests(&world, "_none", "not-found"), 1.0);
    assert_eq!(requests(&world, "_none", "invalid-argument"), 1.0);
}

#[tokio::test]
async fn a_retry_is_counted_with_why_the_attempt_before_was_in_vain() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let other = world.another(&app).await;
    let mut client = world.client().await;
    client.write(GET).await;
    // Whichever is asked first breaks off; the other answers.
    let (mut first, second) = tokio::select! {
        first = app.accept() => (first, &other),
        first = other.accept() => (first, &app),
    };
    first.head().await;
    drop(first);
    second.serve(OK).await;
    client.read_to("hello").await;
    let silent = r#"lca_front_retries_total{reason="silent",service="svc"}"#;
    assert_eq!(counted(world.manager.metrics(), silent), 1.0);
    assert_eq!(requests(&world, "svc", "2xx"), 1.0, "it is one request");
}

#[tokio::test]
async fn instances_that_always_refuse_are_asked_again_within_the_budget_and_no_more() {
    let world = World::start().await;
    // Neither has a place, nor a line to wait in.
    let spec = ServiceSpec { name: "svc".into(), ..Default::default() };
    let full = world.service_of(spec, 0).await;
    let _other = world.another_of(&full, 0).await;
    let fine = world.service("fine").await;
    let begun = Instant::now();
    let ask = async || {
        let mut client = world.client().await;
        for _ in 0..100 {
            client.write(GET).await;
            let head = client.head().await;
            assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 1"), "{head}");
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            client.skip(length).await;
        }
    };
    tokio::join!(ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask(), ask());
    let windows = 1.0 + (begun.elapsed().as_secs_f64() / 10.0).floor();
    let metrics = world.manager.metrics();
    let again = r#"lca_front_retries_total{reason="overloaded",service="svc"}"#;
    let again = counted(metrics, again);
    let denied = counted(metrics, r#"lca_front_retries_denied_total{service="svc"}"#);
    assert!(again >= 100.0, "{again}: a few are asked again");
    assert!(again <= 1000.0 / 5.0 + 100.0 * windows, "{again} in {windows} windows");
    assert!(denied > 0.0 && denied <= 1000.0, "{denied} of a thousand");
    // What is in trouble spends nothing of what is not.
    let answer = "GET /fine/x HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (answer, _) = tokio::join!(world.ask(answer), fine.serve(OK));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_as_cancelled_for_its_service() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write(GET).await;
    let mut held = app.accept().await;
    held.head().await;
    drop(client);
    eventually("the cancelled request", async || requests(&world, "svc", "cancelled") == 1.0).await;
}

#[tokio::test]
async fn a_connection_too_many_is_counted_as_refused() {
    let world = World::with(Config { max_connections: 1, ..Config::default() }).await;
    let app = world.service("svc").await;
    let mut first = world.client().await;
    first.write(GET).await;
    let _held = app.accept().await;
    world.client().await.rest().await;
    let refused = r#"lca_front_refusals_total{reason="connections"}"#;
    assert_eq!(counted(world.manager.metrics(), refused), 1.0);
}
