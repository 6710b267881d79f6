//! Messages that no honest program sends, and those of newer ones. After each the
//! connection is as good as before.

use lca::api::proto;
use prost::Message as _;
use tonic::Code;

use crate::raw::{Daemon, call, framed};

const GET: &str = "lca.v1.Registry/GetService";
const LIST: &str = "lca.v1.Registry/ListServices";
const PUT: &str = "lca.v1.Registry/PutService";
const ALLOCATE: &str = "lca.v1.Manager/Allocate";

#[tokio::test]
async fn a_message_over_the_limit_is_refused_and_the_connection_lives() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    let spec = proto::ServiceSpec {
        name: "big".into(),
        environment: [("BIG".to_owned(), "x".repeat(10 << 20))].into(),
        ..Default::default()
    };
    let message = proto::PutServiceRequest { spec: Some(spec), if_revision: None };
    let reply = daemon.call(&client, PUT, &message.encode_to_vec()).await;
    let refused = matches!(reply.code, Code::ResourceExhausted | Code::OutOfRange);
    assert!(refused, "{}", reply.message());
    assert_eq!(daemon.call(&client, LIST, &[]).await.code, Code::Ok);
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_and_nothing_panics() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    // Groups within groups, which prost skips field by field.
    let mut deep = vec![0x7b; 2000];
    deep.extend([0x7c; 2000]);
    for (what, bytes) in [
        ("a field that ends too early", &b"\x0a\x05ab"[..]),
        ("a tag that never ends", &[0xff; 12]),
        ("field number 0", &[0x00, 0x00]),
        ("wire type 6", &[0x0e]),
        ("a length of 2^63", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("a name that is not UTF-8", b"\x0a\x02\xff\xfe"),
        ("a number for a name", b"\x08\x01"),
        ("a group that nobody opened", &[0x0c]),
        ("2000 groups in each other", &deep),
    ] {
        let reply = daemon.call(&client, GET, bytes).await;
        let refused = matches!(reply.code, Code::InvalidArgument | Code::Internal);
        assert!(refused, "{what}: {}", reply.message());
        assert!(!reply.status.message().contains("panic"), "{what}: {}", reply.message());
    }
    assert_eq!(daemon.call(&client, LIST, &[]).await.code, Code::Ok);
}

#[tokio::test]
async fn what_a_newer_client_knows_is_unimplemented_or_ignored() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    for method in ["lca.v1.Registry/Teleport", "lca.v9.Registry/GetService", "nothing"] {
        let reply = daemon.call(&client, method, &[]).await;
        assert_eq!(reply.code, Code::Unimplemented, "{method}: {}", reply.message());
    }
    let reply = daemon.call(&client, LIST, b"\xba\x3e\x03new").await;
    assert_eq!(reply.code, Code::Ok, "an unknown field: {}", reply.message());
    // mode = 99
    let reply = daemon.call(&client, ALLOCATE, b"\x0a\x05hello\x10\x63").await;
    assert_eq!(reply.code, Code::InvalidArgument, "{}", reply.message());
    let enveloped = call(&client, "grpc.health.v1.Health/Check", &[], framed(b"\x10\x01")).await;
    assert_eq!(enveloped.code, Code::Ok, "{}", enveloped.message());
}

#[tokio::test]
async fn a_spec_that_makes_no_sense_is_refused_and_not_stored() {
    let daemon = Daemon::start().await;
    let client = daemon.client().await;
    let spec = |change: fn(&mut proto::ServiceSpec)| {
        let artifact = format!("sha256:{}", "0".repeat(64));
        let mut spec = proto::ServiceSpec { name: "odd".into(), artifact, ..Default::default() };
        change(&mut spec);
        spec
    };
    for (what, spec) in [
        ("no name", spec(|spec| spec.name.clear())),
        ("a name out of its folder", spec(|spec| spec.name = "../up".into())),
        ("all processors", spec(|spec| resources(spec).cpu_millis = u32::MAX)),
        ("all memory", spec(|spec| resources(spec).memory_bytes = u64::MAX)),
        ("soft above hard", spec(|spec| *requirements(spec) = rtt(1000, 100))),
        ("an RTT of weeks", spec(|spec| *requirements(spec) = rtt(u32::MAX, u32::MAX))),
        ("NUL in a value", spec(|spec| drop(spec.environment.insert("A".into(), "a\0b".into())))),
        ("NUL in a name", spec(|spec| drop(spec.environment.insert("A\0".into(), "b".into())))),
        ("NUL in an argument", spec(|spec| spec.arguments = vec!["a\0b".into()])),
        (
            "an environment of 1 MiB",
            spec(|spec| {
                drop(spec.environment.insert("A".into(), "x".repeat(1 << 20)));
            }),
        ),
    ] {
        let message = proto::PutServiceRequest { spec: Some(spec), if_revision: None };
        let reply = daemon.call(&client, PUT, &message.encode_to_vec()).await;
        assert_eq!(reply.code, Code::InvalidArgument, "{what}: {}", reply.message());
    }
    let all: proto::ListServicesResponse = daemon.call(&client, LIST, &[]).await.decoded();
    assert!(all.services.is_empty(), "{all:?}");
}

fn resources(spec: &mut proto::ServiceSpec) -> &mut proto::Resources {
    spec.resources.get_or_insert_default()
}

fn requirements(spec: &mut proto::ServiceSpec) -> &mut proto::Requirements {
    spec.requirements.get_or_insert_default()
}

fn rtt(soft_rtt_ms: u32, hard_rtt_ms: u32) -> proto::Requirements {
    proto::Requirements { soft_rtt_ms, hard_rtt_ms }
}
