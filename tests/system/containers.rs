//! Containers of the Docker Engine, from a request through a front to a container and back.
//! Without an engine each says that it is skipped, unless `LCA_DOCKER=required` is set.

use std::{process::Command, time::Duration};

use anyhow::Context as _;
use lca::api::proto::{self, InstanceState, allocator_client::AllocatorClient};
use lca_daemon::allocator::Containers;
use lca_engine::{
    Engine,
    testing::{self, TestImage},
};
use lca_tests::{Cluster, Service, eventually};
use tokio::time::Instant;

/// A fleet whose allocator runs containers, and a service that is an image.
struct Fleet {
    engine: Engine,
    image: TestImage,
    cluster: Cluster,
}

impl Fleet {
    async fn start(test: &str) -> anyhow::Result<Option<Self>> {
        let Some(engine) = testing::engine(test).await else { return Ok(None) };
        let image = TestImage::make(&engine).await;
        let containers = Containers {
            engine: engine.address().clone(),
            grants: Default::default(),
            image_room: lca_engine::Terms::DEFAULT_ROOM,
        };
        let cluster = Cluster::builder().keep_instances().containers(containers).start().await?;
        let fleet = Self { engine, image, cluster };
        fleet.cluster.add(&fleet.service("web")).await?;
        Ok(Some(fleet))
    }

    fn service(&self, name: &str) -> Service {
        let image = proto::Image {
            reference: self.image.reference(),
            id: self.image.id.to_string(),
            ..Default::default()
        };
        let readiness = proto::Readiness { http_path: "/".into(), ..Default::default() };
        Service {
            program: None,
            spec: proto::ServiceSpec {
                name: name.into(),
                image: Some(image),
                readiness: Some(readiness),
                ..Default::default()
            },
        }
    }

    /// The label of everything that the allocator has made.
    fn label(&self) -> String {
        format!("lca.node={}", self.cluster.allocator(0).peer)
    }

    async fn instance(&self, id: &str) -> anyhow::Result<proto::Instance> {
        let all = self.cluster.instances_of(0).await?;
        all.into_iter().find(|one| one.id == id).context("it is forgotten")
    }

    async fn text(&self, target: &str) -> anyhow::Result<String> {
        let answer = self.cluster.get(target).await?;
        anyhow::ensure!(answer.status == 200, "{target}: {} {}", answer.status, answer.text());
        Ok(answer.text())
    }

    /// The only container that runs, by its instance.
    async fn serving(&self) -> anyhow::Result<proto::Instance> {
        let mut all = self.cluster.instances_of(0).await?;
        all.retain(|one| one.service == "web" && one.state() == InstanceState::Ready);
        anyhow::ensure!(all.len() == 1, "{all:?}");
        Ok(all.remove(0))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // Kept instances outlive their allocator, and those that ended keep their output.
        testing::clear(self.engine.address(), &self.label());
    }
}

pub(crate) fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker").args(arguments).output().context("running docker")?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[tokio::test]
async fn a_request_starts_a_container_that_calls_others_through_its_front() -> anyhow::Result<()> {
    let Some(fleet) = Fleet::start("a_request_starts_a_container").await? else { return Ok(()) };
    fleet.cluster.add(&Service::demo("hello")).await?;
    let said = fleet.text("/web/").await?;
    let instance = fleet.serving().await?;
    assert_eq!(said, format!("hello from {}\n", instance.id));
    assert_eq!(instance.driver, "docker");
    assert!(instance.pid > 0, "the number of its process on this machine");

    let told = fleet.text("/web/env").await?;
    for line in ["SERVICE_PORT=8000", "LCA_SERVICE=web"] {
        assert!(told.lines().any(|told| told == line), "{told}");
    }
    // Another service, by the front that is for this container alone.
    let relayed = fleet.text("/web/call/hello").await?;
    assert!(relayed.contains("HTTP/1.1 200") && relayed.contains("Hello, world"), "{relayed}");
    assert!(!told.contains("PROXY_IP=127."), "its front is where it can reach it: {told}");

    // Published for this machine alone.
    let name = format!("lca-{}", instance.id);
    let published = docker(&["port", &name, "8000/tcp"])?;
    assert!(published.starts_with("127.0.0.1:"), "{published}");

    let channel = lca::local::connect(&fleet.cluster.allocator(0).socket).await?;
    let mut allocator = AllocatorClient::new(channel);
    let described = allocator.describe(proto::DescribeRequest {}).await?.into_inner();
    assert_eq!(described.drivers, ["process", "docker"]);
    let request = proto::ReleaseRequest { instance: instance.id.clone() };
    let released = allocator.release(request).await?.into_inner().instance.unwrap();
    assert_eq!(released.state(), InstanceState::Stopped, "{released:?}");
    let state = docker(&["inspect", "--format", "{{.State.Status}}", &name])?;
    assert_eq!(state, "exited", "it stays for its output alone");
    Ok(())
}

#[tokio::test]
async fn a_container_that_somebody_removes_has_failed_within_a_second() -> anyhow::Result<()> {
    let Some(fleet) = Fleet::start("a_container_that_somebody_removes").await? else {
        return Ok(());
    };
    fleet.text("/web/").await?;
    let instance = fleet.serving().await?;
    docker(&["rm", "--force", &format!("lca-{}", instance.id)])?;
    let since = Instant::now();
    let failed = eventually("the instance to have failed", async || {
        let one = fleet.instance(&instance.id).await.map_err(|error| error.to_string())?;
        if one.state() == InstanceState::Failed { Ok(one) } else { Err(format!("{one:?}")) }
    })
    .await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert!(failed.reason.contains("somebody removed its container"), "{}", failed.reason);
    Ok(())
}

#[tokio::test]
async fn a_container_outlives_its_allocator_and_is_taken_over() -> anyhow::Result<()> {
    let Some(mut fleet) = Fleet::start("a_container_outlives_its_allocator").await? else {
        return Ok(());
    };
    fleet.cluster.add(&Service::demo("hello")).await?;
    fleet.text("/web/").await?;
    let before = fleet.serving().await?;
    for _ in 0..2 {
        fleet.cluster.kill_allocator(0).await;
        fleet.cluster.start_allocator(0).await?;
        eventually("an answer of the same container", async || {
            let said = fleet.text("/web/").await.map_err(|error| error.to_string())?;
            let all = fleet.cluster.instances_of(0).await.map_err(|error| error.to_string())?;
            let ends: Vec<_> = all.into_iter().map(|one| (one.id, one.reason)).collect();
            if said.contains(&before.id) { Ok(()) } else { Err(format!("{said} {ends:?}")) }
        })
        .await;
        let now = fleet.serving().await?;
        assert_eq!((now.id, now.pid), (before.id.clone(), before.pid), "nothing was started twice");
    }
    // It reaches other services where it was told to.
    let relayed = fleet.text("/web/call/hello").await?;
    assert!(relayed.contains("Hello, world"), "{relayed}");
    // While nobody watched it was removed: that is seen, and another one is started.
    fleet.cluster.kill_allocator(0).await;
    docker(&["rm", "--force", &format!("lca-{}", before.id)])?;
    fleet.cluster.start_allocator(0).await?;
    let gone = fleet.instance(&before.id).await?;
    assert_eq!(gone.state(), InstanceState::Failed, "{gone:?}");
    eventually("an answer of another container", async || {
        let said = fleet.text("/web/").await.map_err(|error| error.to_string())?;
        if said.contains(&before.id) { Err(said) } else { Ok(()) }
    })
    .await;
    Ok(())
}
