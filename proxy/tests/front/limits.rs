//! How much, how long, where, and how it ends.

use std::time::Duration;

use lca::{Kind, listen::Subnet};
use lca_proxy::{Config, Front};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::world::{SOON, Wire, World};

const GET: &str = "GET /svc/x HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_the_others_go_on() {
    let world = World::with(Config { max_connections: 1, ..Config::default() }).await;
    let app = world.service("svc").await;
    let mut first = world.client().await;
    first.write(GET).await;
    let mut connection = app.accept().await;
    let mut second = world.client().await;
    let refused = second.rest().await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after"), "{refused}");
    connection.head().await;
    connection.write("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert!(first.head().await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_head_that_trickles_and_a_body_that_stops_end_the_connection() {
    let short = Duration::from_millis(300);
    let mut config = Config { header: short, ..Config::default() };
    config.peers.stall = short;
    config.peers.quiet = short;
    let world = World::with(config).await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write("GET /svc/x HT").await;
    client.rest().await;
    let mut client = world.client().await;
    client.write("POST /svc/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf").await;
    let mut connection = app.accept().await;
    connection.read_to("half").await;
    client.rest().await;
    connection.rest().await;
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_504() {
    let mut config = Config::default();
    config.peers.head = Duration::from_millis(300);
    let world = World::with(config).await;
    let app = world.service("svc").await;
    let mut client = world.client().await;
    client.write(GET).await;
    let mut connection = app.accept().await;
    let answer = client.head().await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("problem+json"), "{answer}");
    connection.rest().await;
    assert!(app.is_untouched().await, "it was asked once");
}

#[tokio::test]
async fn a_front_is_bound_to_loopback_and_to_a_free_port() {
    let world = World::start().await;
    let bind = async |address: &str| {
        let address = address.parse().unwrap();
        let manager = world.manager.clone();
        Front::bind(address, Config::default(), manager, world.node.clone()).await.unwrap_err()
    };
    let open = bind("0.0.0.0:0").await;
    assert_eq!(open.kind(), Kind::PermissionDenied);
    let taken = bind(&world.front.to_string()).await;
    assert_eq!(taken.kind(), Kind::Conflict);
    assert!(taken.public().contains(&world.front.to_string()), "{taken}");
}

#[tokio::test]
async fn a_front_for_one_network_cuts_strangers_off_before_it_reads() {
    let world = World::start().await;
    let _app = world.service("svc").await;
    let any = "127.0.0.1:0".parse().unwrap();
    for (network, is_served) in [("10.9.0.0", false), ("127.0.0.0", true)] {
        let only = Subnet::new(network.parse().unwrap(), 16);
        let (manager, node) = (world.manager.clone(), world.node.clone());
        let front = Front::bind_within(any, only, Config::default(), manager, node).await.unwrap();
        let address = front.address();
        front.serve(&world.tasks.spawner());
        let mut stream = TcpStream::connect(address).await.unwrap();
        let asked = async {
            stream.write_all(b"GET /svc HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.map(|_| first)
        };
        let answered = timeout(SOON, asked).await.expect("an answer, or the end");
        assert_eq!(answered.is_ok_and(|first| &first == b"HTTP/1.1 308"), is_served, "{network}");
    }
}

#[tokio::test]
async fn a_stopped_front_finishes_what_is_open_and_closes_the_rest_at_once() {
    let world = World::start().await;
    let app = world.service("svc").await;
    let any = "127.0.0.1:0".parse().unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let front = Front::bind(any, Config::default(), world.manager.clone(), world.node.clone());
    let front = front.await.unwrap();
    let address = front.address();
    front.serve_until(stop.clone(), &world.tasks.spawner());

    let mut idle = Wire(TcpStream::connect(address).await.unwrap());
    idle.write("GET /svc HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    idle.head().await;
    let mut open = Wire(TcpStream::connect(address).await.unwrap());
    open.write(GET).await;
    let mut connection = app.accept().await;
    connection.head().await;

    stop.cancel();
    idle.rest().await;
    timeout(SOON, async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nothing new is taken");
    connection.write("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert!(open.head().await.contains("connection: close"));
    assert_eq!(open.rest().await, "ok");

    let answer = world.ask("GET /svc HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 308"), "the other front goes on: {answer}");
    let _idle_to_the_other = world.client().await;
    world.stop().await;
}
