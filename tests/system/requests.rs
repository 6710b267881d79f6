//! Requests through a proxy: the cold one starts an instance, the others reuse it.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use http::Method;
use http_body_util::BodyExt as _;
use lca::api::proto::InstanceState;
use lca_tests::{Cluster, Service, eventually, http as client};
use tokio::time::Instant;

fn live(instances: &[lca::api::proto::Instance]) -> usize {
    let ended = [InstanceState::Stopped, InstanceState::Failed];
    instances.iter().filter(|instance| !ended.contains(&instance.state())).count()
}

#[tokio::test]
async fn the_first_request_starts_an_instance_and_is_answered_by_it() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("hello")).await?;
    assert!(cluster.instances().await?.is_empty(), "nothing runs before somebody asks");

    let answer = cluster.get("/hello/hello").await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hello, world\n"));
    let instances = cluster.instances().await?;
    assert_eq!(instances.len(), 1);
    assert_eq!(instances[0].state(), InstanceState::Ready);

    for _ in 0..20 {
        assert_eq!(cluster.get("/hello/").await?.text(), "Hello, world\n");
    }
    assert_eq!(cluster.instances().await?.len(), 1, "a warm request starts nothing");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn two_hundred_concurrent_first_requests_start_one_instance() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(3).start().await?;
    // Slow to start, so that all of them ask while it is starting.
    cluster.add(&Service::demo("slow-start").args(["--start-delay", "500"])).await?;

    let requests = (0..200).map(|_| cluster.get("/slow-start/hello"));
    for answer in join_all(requests).await {
        let answer = answer?;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let instances = cluster.instances().await?;
    assert_eq!(instances.len(), 1, "{instances:#?}");
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn an_instance_is_not_culled_while_a_long_request_runs() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("long").idle_timeout_ms(200)).await?;

    let answer = cluster.get("/long/slow?ms=1500").await?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        cluster.instances().await?.len(),
        1,
        "the request met one instance from start to end"
    );
    eventually("the idle instance to be stopped", async || {
        let instances = cluster.instances().await.map_err(|error| error.to_string())?;
        if live(&instances) == 0 { Ok(()) } else { Err(format!("{instances:?}")) }
    })
    .await;
    // And it comes back when somebody asks.
    assert_eq!(cluster.get("/long/hello").await?.status, 200);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn an_answer_is_streamed_and_never_buffered_whole() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("stream")).await?;
    assert_eq!(cluster.get("/stream/hello").await?.status, 200);

    // Ten chunks, 400 ms apart: the first is here long before the last is written.
    let target = "/stream/stream?chunks=10&ms=400";
    let mut answer = client::open(cluster.front(0), Method::GET, target, Bytes::new()).await?;
    assert!(answer.body_mut().frame().await.is_some());
    let first = Instant::now();
    let rest = answer.into_body().collect().await?.to_bytes();
    assert!(!rest.is_empty());
    // Had it been kept until it was whole, the rest would have come at once.
    assert!(first.elapsed() > Duration::from_secs(1), "the rest took {:?}", first.elapsed());
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_large_body_goes_through_both_ways_unchanged() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("echo")).await?;
    let body: Bytes =
        (0..4 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let answer = client::send(cluster.front(0), Method::POST, "/echo/echo", body.clone()).await?;
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "{} bytes came back", answer.body.len());
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_instance() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("left")).await?;
    assert_eq!(cluster.get("/left/hello").await?.status, 200);

    let open =
        |load: &lca::api::proto::Instance| load.load.as_ref().map_or(0, |load| load.in_flight);
    let front = cluster.front(0);
    let waiting = tokio::spawn(async move { client::get(front, "/left/slow?ms=60000").await });
    eventually("the request to reach the instance", async || {
        let instances = cluster.instances().await.map_err(|error| error.to_string())?;
        if instances.iter().any(|instance| open(instance) == 1) {
            Ok(())
        } else {
            Err(format!("{instances:?}"))
        }
    })
    .await;
    waiting.abort();
    eventually("the instance to be free again", async || {
        let instances = cluster.instances().await.map_err(|error| error.to_string())?;
        if instances.iter().all(|instance| open(instance) == 0) {
            Ok(())
        } else {
            Err(format!("{instances:?}"))
        }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_name_with_a_query_is_that_name() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("svc")).await?;
    // The original looked up a service called `svc?x=1`.
    let answer = cluster.get("/svc?x=1").await?;
    assert_eq!(answer.status, 308, "{}", answer.text());
    assert_eq!(answer.headers["location"], "/svc/?x=1");
    cluster.drain().await;
    Ok(())
}
