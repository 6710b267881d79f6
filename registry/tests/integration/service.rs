//! The RPCs about specs.

use lca::{
    Digest, Error, Kind,
    api::proto::{self, service_event::Event},
    discovery::memory::Network,
};
use tonic::{Code, Streaming};

use crate::harness::{TestRegistry, spec};

#[tokio::test]
async fn a_spec_is_checked_completed_stored_listed_and_removed() {
    let registry = TestRegistry::start(&Network::default());
    let mut client = registry.client().await;

    let bad = proto::PutServiceRequest { spec: Some(spec("../x", "")), if_revision: None };
    let status = client.put_service(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = client.put_service(proto::PutServiceRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let sent = proto::ServiceSpec { revision: 77, service_hash: "x".into(), ..spec("hello", "1") };
    let request = proto::PutServiceRequest { spec: Some(sent), if_revision: None };
    let answer = client.put_service(request.clone()).await.unwrap().into_inner();
    let stored = answer.spec.unwrap();
    assert_eq!((stored.revision, answer.changed), (1, true));
    assert_eq!(stored.service_hash.len(), 64);
    assert_eq!(stored.idle_timeout_ms, 60_000, "defaults are filled in");
    let again = client.put_service(request).await.unwrap().into_inner();
    assert!(!again.changed);

    let other = proto::PutServiceRequest { spec: Some(spec("hello", "2")), if_revision: None };
    let error = Error::from(client.put_service(other).await.unwrap_err());
    assert_eq!(error.kind(), Kind::Conflict);
    assert!(error.hint_text().unwrap().contains("revision 1"));

    let get = proto::GetServiceRequest { name: "hello".into() };
    let found = client.get_service(get.clone()).await.unwrap().into_inner();
    assert_eq!((found.spec, found.stale), (Some(stored.clone()), false));
    let list = client.list_services(proto::ListServicesRequest {}).await.unwrap().into_inner();
    assert_eq!(list.services, [stored]);

    registry.delete("hello").await;
    let error = Error::from(client.get_service(get).await.unwrap_err());
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.public().contains("`hello`"), "{error}");
}

#[tokio::test]
async fn a_spec_of_nonsense_is_refused_whole_and_the_connection_lives() {
    let registry = TestRegistry::start(&Network::default());
    let mut client = registry.client().await;
    let with = |change: fn(&mut proto::ServiceSpec)| {
        let mut spec = spec("hello", "1");
        change(&mut spec);
        proto::PutServiceRequest { spec: Some(spec), if_revision: None }
    };
    for (what, request) in [
        ("env with NUL", with(|spec| drop(spec.environment.insert("A".into(), "x\0y".into())))),
        ("env name with =", with(|spec| drop(spec.environment.insert("A=B".into(), "".into())))),
        (
            "1 MiB of env",
            with(|spec| drop(spec.environment.insert("A".into(), "x".repeat(1 << 20)))),
        ),
        (
            "huge memory",
            with(|spec| spec.resources.get_or_insert_default().memory_bytes = u64::MAX),
        ),
        ("huge RTT", with(|spec| spec.requirements.get_or_insert_default().hard_rtt_ms = u32::MAX)),
        (
            "soft above hard",
            with(|spec| {
                let limits = proto::Requirements { soft_rtt_ms: 9, hard_rtt_ms: 5 };
                spec.requirements = Some(limits);
            }),
        ),
        ("huge idle time-out", with(|spec| spec.idle_timeout_ms = u64::MAX)),
        ("a protocol to come", with(|spec| spec.protocol = 77)),
    ] {
        let status = client.put_service(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    }
    let vast = with(|spec| drop(spec.environment.insert("A".into(), "x".repeat(10 << 20))));
    let status = client.put_service(vast).await.unwrap_err();
    let expected = [Code::InvalidArgument, Code::OutOfRange, Code::ResourceExhausted];
    assert!(expected.contains(&status.code()), "10 MiB of env: {status:?}");
    let list = client.list_services(proto::ListServicesRequest {}).await.unwrap().into_inner();
    assert_eq!(list.services, []);
}

#[tokio::test]
async fn names_that_are_none_are_refused_and_nothing_is_stored() {
    let registry = TestRegistry::start(&Network::default());
    let mut client = registry.client().await;
    let long = "a".repeat(256);
    // The last but one begins with a Cyrillic letter.
    for name in [
        "",
        &long,
        "../",
        "..",
        "a/b",
        "a b",
        "a\0",
        "A",
        "localhost",
        "10.0.0.1",
        "\u{441}at",
        "é",
    ] {
        let request = proto::PutServiceRequest { spec: Some(spec(name, "")), if_revision: None };
        let error = Error::from(client.put_service(request).await.unwrap_err());
        assert_eq!(error.kind(), Kind::InvalidArgument, "{name:?}");
        assert!(error.public().contains("service name"), "{error}");
    }
    let list = client.list_services(proto::ListServicesRequest {}).await.unwrap().into_inner();
    assert_eq!(list.services, []);
}

#[tokio::test]
async fn a_spec_whose_artifact_is_not_there_is_refused() {
    let registry = TestRegistry::start(&Network::default());
    let digest = Digest::of(b"nobody has this").to_string();
    let spec = proto::ServiceSpec { artifact: digest.clone(), ..spec("hello", "") };
    let request = proto::PutServiceRequest { spec: Some(spec), if_revision: None };
    let error = Error::from(registry.client().await.put_service(request).await.unwrap_err());
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error.public().contains(&digest), "{error}");
}

#[tokio::test]
async fn a_watcher_is_told_what_there_is_and_then_each_change() {
    let registry = TestRegistry::start(&Network::default());
    registry.put("b", "1", None).await;
    registry.put("a", "1", None).await;
    let mut client = registry.client().await;
    let request = proto::WatchServicesRequest {};
    let mut events = client.watch_services(request).await.unwrap().into_inner();
    assert_eq!(put_of(next(&mut events).await), ("a".into(), 1));
    assert_eq!(put_of(next(&mut events).await), ("b".into(), 1));
    assert_eq!(next(&mut events).await, Event::Synced(true));
    registry.put("b", "2", Some(1)).await;
    registry.delete("a").await;
    assert_eq!(put_of(next(&mut events).await), ("b".into(), 2));
    assert_eq!(next(&mut events).await, Event::Deleted("a".into()));
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_cut_off() {
    let registry = TestRegistry::start(&Network::default());
    let mut client = registry.client().await;
    let request = proto::WatchServicesRequest {};
    let mut events = client.watch_services(request).await.unwrap().into_inner();
    // More than the windows of the connection and the feed hold together.
    let large = "x".repeat(4 << 10);
    for n in 0..2000 {
        let spec = Some(spec("busy", &format!("{n}{large}")));
        let request = proto::PutServiceRequest { spec, if_revision: Some(n) };
        client.put_service(request).await.unwrap();
    }
    let status = loop {
        match events.message().await {
            Ok(event) => assert!(event.is_some(), "the watch ended without saying why"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
}

async fn next(events: &mut Streaming<proto::ServiceEvent>) -> Event {
    let next = tokio::time::timeout(std::time::Duration::from_secs(10), events.message());
    next.await.expect("an event in time").unwrap().unwrap().event.unwrap()
}

fn put_of(event: Event) -> (String, u64) {
    let Event::Put(spec) = event else { panic!("{event:?} is no put") };
    (spec.name, spec.revision)
}
