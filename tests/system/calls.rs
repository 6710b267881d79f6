//! Instances that call other services through the front they are given.

use lca_tests::{Cluster, Service};

#[tokio::test]
async fn an_instance_is_told_who_it_is_and_where_its_front_is() -> anyhow::Result<()> {
    let cluster = Cluster::builder().start().await?;
    cluster.add(&Service::demo("told")).await?;
    let told = cluster.get("/told/env").await?.text();
    for name in [
        "SERVICE_PORT=",
        "PROXY_IP=127.0.0.1",
        "PROXY_PORT=",
        "P2P_BOOTSTRAPS=/ip4/",
        "LCA_SERVICE=told",
        "LCA_INSTANCE_ID=",
    ] {
        assert!(told.contains(name), "{name} is missing in {told}");
    }
    cluster.drain().await;
    Ok(())
}

#[tokio::test]
async fn a_service_calls_another_through_its_front_and_starts_it() -> anyhow::Result<()> {
    let cluster = Cluster::builder().allocators(2).start().await?;
    cluster.add(&Service::demo("caller")).await?;
    cluster.add(&Service::demo("callee")).await?;
    let answer = cluster.get("/caller/call/callee/hello").await?;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "Hello, world\n"));
    let mut services: Vec<_> =
        cluster.instances().await?.into_iter().map(|instance| instance.service).collect();
    services.sort();
    assert_eq!(services, ["callee", "caller"]);
    cluster.drain().await;
    Ok(())
}
