//! What a daemon tells Prometheus, read from outside while a real fleet works.

use std::{collections::HashMap, net::SocketAddr};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::Method;
use lca_tests::{Cluster, Service, eventually, http as client};

/// One scrape: every series with its value, as written.
struct Scrape {
    text: String,
    values: HashMap<String, f64>,
}

impl Scrape {
    async fn of(address: Option<SocketAddr>) -> anyhow::Result<Self> {
        let address = address.expect("the fleet of these tests serves metrics");
        let answer = client::get(address, "/metrics").await?;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4");
        let text = answer.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let values = lines
            .map(|line| line.rsplit_once(' ').expect("a value after every series"))
            .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
            .collect();
        Ok(Self { text, values })
    }

    /// The value of a series; 0 if it has not begun.
    fn value(&self, series: &str) -> f64 {
        self.values.get(series).copied().unwrap_or_default()
    }

    /// What a collector would complain about, and we.
    fn lint(&self) {
        let mut kinds = HashMap::new();
        let mut helped = std::collections::HashSet::new();
        for line in self.text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert!(helped.contains(name), "no HELP before {line}");
                assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{line} twice");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end))
                    .filter(|family| kinds.get(*family).is_some_and(|kind| kind == "histogram"))
                    .unwrap_or(name);
                assert!(kinds.contains_key(family), "no TYPE before {line}");
                assert!(family.starts_with("lca_"), "{line}");
            }
        }
    }
}

/// Keeps a scrape where `LCA_SCRAPES` says, for the gate's `promtool check metrics`.
fn save(role: &str, scrape: &Scrape) -> std::io::Result<()> {
    let Some(dir) = std::env::var_os("LCA_SCRAPES") else { return Ok(()) };
    std::fs::write(std::path::Path::new(&dir).join(format!("{role}.prom")), &scrape.text)
}

fn front(service: &str, outcome: &str) -> String {
    format!(r#"lca_front_requests_total{{outcome="{outcome}",service="{service}"}}"#)
}

#[tokio::test]
async fn a_scrape_tells_of_cold_and_warm_requests_on_both_sides() -> anyhow::Result<()> {
    let cluster = Cluster::builder().metrics().start().await?;
    cluster.add(&Service::demo("hello")).await?;
    let before = Scrape::of(cluster.proxy(0).metrics).await?;
    assert_eq!(before.value(&front("hello", "2xx")), 0.0);

    cluster.get("/hello/hello").await?;
    for _ in 0..20 {
        cluster.get("/hello/hello").await?;
    }
    let upload = Bytes::from(vec![7; 100_000]);
    client::send(cluster.front(0), Method::POST, "/hello/echo", upload).await?;

    let proxy = Scrape::of(cluster.proxy(0).metrics).await?;
    proxy.lint();
    let took = r#"lca_front_request_duration_seconds_count{service="hello"}"#;
    assert_eq!(proxy.value(took), 22.0, "{}", proxy.text);
    assert_eq!(proxy.value(r#"lca_cold_starts_total{outcome="allocated"}"#), 1.0);
    let step = |name| format!(r#"lca_cold_start_step_duration_seconds_count{{step="{name}"}}"#);
    assert_eq!((proxy.value(&step("find")), proxy.value(&step("allocate"))), (1.0, 1.0));
    assert!(proxy.value("lca_find_misses_total") >= 1.0 && proxy.value("lca_finds_total") >= 1.0);
    assert_eq!(proxy.value(r#"lca_front_upload_bytes_total{service="hello"}"#), 100_000.0);
    assert!(proxy.value(r#"lca_front_download_bytes_total{service="hello"}"#) >= 13.0 * 21.0);
    assert!(proxy.value(r#"lca_peers{state="known"}"#) >= 2.0, "{}", proxy.text);
    assert!(proxy.value(r#"lca_peers{state="connected"}"#) >= 1.0);
    assert_eq!(proxy.value(r#"lca_bootstraps{state="configured"}"#), 1.0);
    assert!(proxy.value(r#"lca_libp2p_bytes_total{direction="sent"}"#) > 100.0);
    assert!(proxy.value("lca_start_time_seconds") > 1.6e9);
    let build = format!(r#"lca_build_info{{role="proxy",version="{}"}}"#, lca_daemon::VERSION);
    assert_eq!(proxy.value(&build), 1.0, "{}", proxy.text);

    let allocator = Scrape::of(cluster.allocator(0).metrics).await?;
    allocator.lint();
    let started = r#"lca_allocations_total{outcome="started",service="hello"}"#;
    assert_eq!(allocator.value(started), 1.0, "{}", allocator.text);
    assert_eq!(allocator.value(r#"lca_instances{state="ready"}"#), 1.0);
    for step in ["fetch", "spawn", "ready", "announce"] {
        let step = format!(r#"lca_instance_start_step_duration_seconds_count{{step="{step}"}}"#);
        assert_eq!(allocator.value(&step), 1.0, "{step}");
    }
    let took = r#"lca_ingress_application_duration_seconds_count{service="hello"}"#;
    assert_eq!(allocator.value(took), 22.0);
    assert_eq!(allocator.value(r#"lca_ingress_upload_bytes_total{service="hello"}"#), 100_000.0);
    assert!(allocator.value("lca_artifact_received_bytes_total") > 10_000.0);
    assert!(allocator.value("lca_mesh_connections") >= 1.0);

    let registry = Scrape::of(cluster.registry().metrics).await?;
    registry.lint();
    let fetched = allocator.value("lca_artifact_received_bytes_total");
    assert_eq!(registry.value("lca_artifact_sent_bytes_total"), fetched);
    assert_eq!(registry.value("lca_artifact_received_bytes_total"), fetched, "it was uploaded");

    save("proxy", &proxy)?;
    save("allocator", &allocator)?;
    save("registry", &registry)?;
    // Distances are measured behind the requests.
    eventually("a probe to be measured", async || {
        let scrape =
            Scrape::of(cluster.proxy(0).metrics).await.map_err(|error| error.to_string())?;
        if scrape.value("lca_probe_rtt_seconds_count") >= 1.0 { Ok(()) } else { Err(scrape.text) }
    })
    .await;
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_refusal_and_what_follows_it_are_counted_by_reason() -> anyhow::Result<()> {
    let cluster = Cluster::builder().instances_each(1).metrics().start().await?;
    cluster.add(&Service::demo("one")).await?;
    cluster.add(&Service::demo("two")).await?;
    assert_eq!(cluster.get("/one/hello").await?.status, 200);
    assert_eq!(cluster.get("/two/hello").await?.status, 503, "there is room for one");

    let allocator = Scrape::of(cluster.allocator(0).metrics).await?;
    let full = r#"lca_allocator_refusals_total{reason="instances"}"#;
    assert!(allocator.value(full) >= 1.0, "{}", allocator.text);
    let proxy = Scrape::of(cluster.proxy(0).metrics).await?;
    assert_eq!(proxy.value(&front("two", "no-capacity")), 1.0, "{}", proxy.text);
    assert_eq!(proxy.value(r#"lca_cold_starts_total{outcome="failed"}"#), 1.0);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_thousand_names_nobody_registered_add_one_series() -> anyhow::Result<()> {
    let cluster = Cluster::builder().metrics().start().await?;
    cluster.get("/nobody/x").await?;
    let before = Scrape::of(cluster.proxy(0).metrics).await?;
    let front = cluster.front(0);
    let asked = stream::iter(0..1000)
        .map(move |n| async move { client::get(front, &format!("/guess-{n}/x")).await });
    let mut asked = asked.buffer_unordered(20);
    while let Some(answer) = asked.next().await {
        assert_ne!(answer?.status, 200);
    }
    let after = Scrape::of(cluster.proxy(0).metrics).await?;
    after.lint();
    assert!(!after.text.contains("guess"), "{}", after.text);
    let requests = |scrape: &Scrape| {
        let ours = |(series, _): &(&String, &f64)| series.starts_with("lca_front_requests_total");
        scrape.values.iter().filter(ours).map(|(_, count)| count).sum::<f64>()
    };
    assert_eq!(requests(&after) - requests(&before), 1000.0, "each is counted");
    let new = after.values.len() - before.values.len();
    assert!(new < 30, "{new} new series: {}", after.text);
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn only_the_one_path_is_answered_and_only_to_readers() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(0).metrics().start().await?;
    let metrics = cluster.proxy(0).metrics.expect("it was asked for");
    assert!(metrics.ip().is_loopback());
    for (method, target, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/metrics/x", 404),
        (Method::POST, "/metrics", 405),
        (Method::GET, "/metrics?name=x", 200),
    ] {
        let answer = client::send(metrics, method.clone(), target, Bytes::new()).await?;
        assert_eq!(answer.status, status, "{method} {target}");
    }
    let head = client::send(metrics, Method::HEAD, "/metrics", Bytes::new()).await?;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    cluster.drain().await;
    Ok(())
}
