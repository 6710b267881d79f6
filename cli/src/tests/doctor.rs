//! `lcactl doctor`: which link it names, whatever is down.

use insta::assert_snapshot;
use lca::api::proto::{self, diagnose_response::Standing};
use tokio_util::sync::CancellationToken;

use super::{
    fake::{Daemon, PEER},
    on,
};
use crate::errors::Exit;

fn answering() -> proto::PeerCheck {
    let total = proto::Capacity { cpu_millis: 4000, memory_bytes: 1 << 30, instances: 64 };
    proto::PeerCheck {
        peer: PEER.into(),
        answered: true,
        rtt_us: Some(1200),
        total: Some(total),
        ..Default::default()
    }
}

fn healthy() -> proto::DiagnoseResponse {
    proto::DiagnoseResponse {
        peer: PEER.into(),
        roles: vec!["proxy".into()],
        version: "0.1.0".into(),
        uptime_ms: 61_000,
        data_dir: "/var/lib/lca".into(),
        standing: Standing::Joined.into(),
        bootstraps: vec![proto::BootstrapState {
            address: "/ip4/10.0.0.1/tcp/4001/p2p/x".into(),
            connected: true,
            last_error: String::new(),
        }],
        connected_peers: 2,
        known_peers: 3,
        registries: vec![answering()],
        allocators: vec![answering()],
        ..Default::default()
    }
}

/// A front that gives this answer to every request.
async fn front(answer: &'static str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /hello/ HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_whole_chain_is_shown_link_by_link() {
    let daemon = Daemon::start().await;
    daemon.state(|state| state.told = healthy());
    let ended = daemon.run("doctor").await;
    assert_eq!((ended.exit, ended.err.as_str()), (Exit::Success, ""));
    let out = ended.out.replace(&daemon.socket.display().to_string(), "SOCKET");
    assert_snapshot!(out, @r"
    LINK        STATE  DETAIL
    socket      ok     SOCKET
    daemon      ok     proxy eQAJU5SA, version 0.1.0, up for 1 m 1 s, data in /var/lib/lca
    bootstraps  ok     1 of 1 reached
    network     ok     joined; 2 peers connected, 3 known
    registry    ok     1 of 1 answered, 1.2 ms away
    allocators  ok     1 of 1 answered, 1 with room
    round trip  ok     allocator eQAJU5SA answers, 1.2 ms away
    ");
    let json = daemon.run("doctor -o json").await.json();
    assert_eq!(json["first_broken"], serde_json::Value::Null);
    assert_eq!(json["links"][6]["state"], "ok");
}

#[tokio::test]
async fn the_first_broken_link_is_named_with_its_fix() {
    let daemon = Daemon::start().await;
    daemon.state(|state| {
        state.told = healthy();
        let dead = proto::PeerCheck {
            answered: false,
            error: "did not answer within 2s".into(),
            ..answering()
        };
        (state.told.registries, state.told.allocators) = (vec![dead.clone()], vec![dead]);
    });
    let ended = daemon.run("doctor").await;
    assert_eq!(ended.exit, Exit::Unavailable);
    assert_eq!(
        ended.err,
        "error: the first broken link is the registry: 0 of 1 answered; eQAJU5SA: did not answer within 2s\n\
         hint: start a registry\n"
    );
    assert!(ended.out.lines().last().unwrap().starts_with("round trip  not looked at"));
    let ended = daemon.run("-o json doctor").await;
    assert_eq!(ended.json()["first_broken"], "registry");
    assert_eq!(ended.json()["links"][5]["state"], "broken");
    let error: serde_json::Value = serde_json::from_str(&ended.err).unwrap();
    assert_eq!(error["error"]["exit_code"], 4);
}

#[tokio::test]
async fn what_is_only_amiss_is_a_warning_and_no_failure() {
    let daemon = Daemon::start().await;
    daemon.state(|state| {
        state.told = healthy();
        let one = &mut state.told.allocators[0];
        one.used = one.total;
    });
    let ended = daemon.run("doctor").await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(ended.err.starts_with("warning: allocators: no service can be started: "));
    let line = ended.out.lines().find(|line| line.starts_with("allocators"));
    let said = "allocators  warning  1 of 1 answered, none with room for more than the 64 that run";
    assert_eq!(line, Some(said));
    assert!(ended.out.lines().last().unwrap().starts_with("round trip  ok"), "{}", ended.out);
    let json = daemon.run("-o json doctor").await.json();
    assert_eq!(
        (&json["links"][5]["state"], &json["first_broken"]),
        (&"warning".into(), &().into())
    );
}

#[tokio::test]
async fn without_a_daemon_all_links_behind_the_socket_are_not_looked_at() {
    let nowhere = std::path::Path::new("/nowhere/x.sock");
    let ended = on(nowhere, "doctor", false, CancellationToken::new()).await;
    assert_eq!(ended.exit, Exit::Unavailable);
    assert!(ended.err.starts_with("error: the first broken link is the socket: /nowhere/x.sock: "));
    assert!(ended.err.contains("hint: start a daemon"), "{}", ended.err);
    assert_eq!(ended.out.matches("not looked at").count(), 6, "{}", ended.out);
}

#[tokio::test]
async fn a_request_counts_if_the_program_answers_and_not_if_the_front_does() {
    let daemon = Daemon::start().await;
    let whole = "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope";
    let whole = front(whole).await;
    daemon.state(|state| state.told = proto::DiagnoseResponse { front: whole, ..healthy() });
    let ended = daemon.run("doctor hello").await;
    assert_eq!(ended.exit, Exit::Success, "{}", ended.err);
    assert!(
        ended.out.lines().last().unwrap().contains("/hello/ answered 404 in "),
        "{}",
        ended.out
    );

    let refusal = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
                   content-length: 68\r\n\r\n\
                   {\"type\":\"urn:lca:error:start-failed\",\"detail\":\"hello exited with 1\"}";
    assert_eq!(refusal.split("\r\n\r\n").nth(1).unwrap().len(), 68);
    let refused = front(refusal).await;
    daemon.state(|state| state.told.front = refused);
    let ended = daemon.run("doctor hello").await;
    assert_eq!(ended.exit, Exit::Unavailable);
    assert!(ended.err.contains("503: hello exited with 1"), "{}", ended.err);

    daemon.state(|state| state.told.front = String::new());
    let ended = daemon.run("doctor hello").await;
    assert!(ended.err.contains("has no front"), "{}", ended.err);
}
