//! What is open keeps its instance, however long and however quiet it is.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use lca::api::proto::InstanceState;
use lca_tests::{Cluster, Service, eventually, http as client};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    time::timeout,
};

/// An instance without anything open is stopped after this time,
const IDLE_MS: u64 = 500;
/// and what is open is quiet for many times as long.
const LONG: &str = "/request/slow?ms=4000";
const QUIET: &str = "/stream/stream?chunks=3&ms=1500";
const PATIENCE: Duration = Duration::from_secs(60);

/// An exchange that is open both ways, and quiet until `go_on`.
async fn exchange(
    front: std::net::SocketAddr,
    go_on: oneshot::Receiver<()>,
) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(front).await?;
    let head = "POST /both/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Transfer-Encoding: chunked\r\n\r\n6\r\nbefore\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("before") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await??;
        anyhow::ensure!(read > 0, "cut off after {}", String::from_utf8_lossy(&answer));
    }
    go_on.await?;
    stream.write_all(b"5\r\nafter\r\n0\r\n\r\n").await?;
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_long_request_a_quiet_stream_and_an_open_exchange_keep_their_instances()
-> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    for service in ["request", "stream", "both"] {
        cluster.add(&Service::demo(service).idle_timeout_ms(IDLE_MS)).await?;
    }
    let front = cluster.front(0);
    let (go_on, waits) = oneshot::channel();
    let both = tokio::spawn(exchange(front, waits));
    let stream = tokio::spawn(async move {
        let answer = client::open(front, Method::GET, QUIET, Bytes::new()).await?;
        anyhow::Ok(timeout(PATIENCE, answer.into_body().collect()).await??.to_bytes())
    });
    // None of them is one that would be repeated elsewhere if it were cut off.
    let long = client::send(front, Method::POST, LONG, Bytes::new()).await?;
    assert_eq!(long.status, 200, "{}", long.text());
    assert!(!stream.await??.is_empty(), "it came to its end");
    // By now it has been quiet for seconds.
    go_on.send(()).expect("it is open");
    let said = both.await??;
    assert!(said.starts_with("HTTP/1.1 200") && said.contains("after"), "{said}");
    eventually("them to idle out once nothing is open", async || {
        let all = cluster.instances().await.map_err(|error| error.to_string())?;
        let over = all.iter().all(|one| one.state() == InstanceState::Stopped);
        if over { Ok(()) } else { Err(format!("{all:#?}")) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}
