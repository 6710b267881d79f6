//! Who is let in.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tonic::Code;

use crate::raw::{Daemon, call, framed};

const HEALTH: &str = "grpc.health.v1.Health/Check";
const LIST: &str = "lca.v1.Registry/ListServices";
const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// `ServerReflectionRequest { list_services: "" }`
const ALL_SERVICES: &[u8] = &[0x3a, 0];

#[tokio::test]
async fn every_call_but_health_needs_the_token() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    let health = call(&client, HEALTH, &[], framed(&[])).await;
    assert_eq!(health.code, Code::Ok, "{}", health.message());
    let file = daemon.dir.path().join("data/token");
    for method in [LIST, REFLECTION[0], REFLECTION[1], "lca.v1.Manager/Allocate", "no.Such/Thing"] {
        for given in [&[][..], &[("authorization", "Bearer 1234")], &[("authorization", "x")]] {
            let reply = call(&client, method, given, framed(&[])).await;
            assert_eq!(reply.code, Code::Unauthenticated, "{method}: {}", reply.message());
            assert!(reply.hint().contains(file.to_str().unwrap()), "{method}: {}", reply.hint());
        }
    }
    let reply = daemon.call(&client, LIST, &[]).await;
    assert_eq!(reply.code, Code::Ok, "{}", reply.message());
}

#[tokio::test]
async fn a_program_without_generated_code_can_ask_what_there_is() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    for method in REFLECTION {
        let reply = daemon.call(&client, method, ALL_SERVICES).await;
        assert_eq!(reply.code, Code::Ok, "{}", reply.message());
        let text = String::from_utf8_lossy(&reply.body);
        for service in ["Allocator", "Instances", "Manager", "Registry"] {
            assert!(text.contains(&format!("lca.v1.{service}")), "{method}: {text:?}");
        }
        assert!(text.contains("grpc.health.v1.Health"), "{method}: {text:?}");
    }
}

#[tokio::test]
async fn what_is_not_http2_or_says_nothing_is_closed() {
    let daemon = Daemon::start().await;
    let closed = async |said: &[u8]| {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut answer = Vec::new();
        // Closed with or without a reset, but closed, and nothing is told.
        let end = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "still open after {said:?}");
        assert!(answer.is_empty(), "{answer:?}");
    };
    tokio::join!(
        closed(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        closed(b"\x16\x03\x01\x02\x00\x01\x00"),
        closed(b"PRI * HTTP/2.0\r\n"),
        closed(b""),
    );
    let client = daemon.client().await;
    assert_eq!(daemon.call(&client, LIST, &[]).await.code, Code::Ok);
}
