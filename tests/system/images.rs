//! Images that come from a registry when they are first needed, and what is said when they
//! do not. Without an engine or a registry each says that it is skipped, unless
//! `LCA_DOCKER=required` is set.

use std::path::Path;

use lca::api::proto::{self, InstanceState};
use lca_daemon::allocator::Containers;
use lca_engine::{
    Engine, Terms, Wanted,
    testing::{self, TestImage},
};
use lca_tests::{Cluster, Service};

use crate::{
    containers::docker,
    debian_registry::{PROGRAM, Registry},
};

/// A fleet whose allocator runs containers, and a registry with an image that the engine
/// has not got any more.
struct Fleet {
    engine: Engine,
    registry: Registry,
    cluster: Cluster,
    /// What the registry has.
    image: proto::Image,
}

impl Fleet {
    async fn start(test: &str) -> anyhow::Result<Option<Self>> {
        let Some(engine) = testing::engine(test).await else { return Ok(None) };
        if !Path::new(PROGRAM).exists() {
            let required = std::env::var("LCA_DOCKER").is_ok_and(|value| value == "required");
            anyhow::ensure!(!required, "LCA_DOCKER=required, and there is no {PROGRAM}");
            eprintln!("SKIPPED: {test}: there is no {PROGRAM} (Debian package docker-registry)");
            return Ok(None);
        }
        let registry = Registry::start().await;
        let made = TestImage::make(&engine).await;
        let name = format!("{}/web:1", registry.host());
        docker(&["tag", &made.reference(), &name])?;
        docker(&["push", "--quiet", &name])?;
        docker(&["image", "rm", &name])?;
        drop(made);
        let digest = registry.digest("web", "1").await.to_string();
        let image = proto::Image { reference: name, digest, ..Default::default() };
        let containers = Containers {
            engine: engine.address().clone(),
            grants: Default::default(),
            image_room: Terms::DEFAULT_ROOM,
        };
        let cluster = Cluster::builder().containers(containers).start().await?;
        Ok(Some(Self { engine, registry, cluster, image }))
    }

    async fn add(&self, name: &str, image: proto::Image) -> anyhow::Result<()> {
        let readiness = proto::Readiness { http_path: "/".into(), ..Default::default() };
        let spec = proto::ServiceSpec {
            name: name.into(),
            image: Some(image),
            readiness: Some(readiness),
            ..Default::default()
        };
        self.cluster.add(&Service { program: None, spec }).await?;
        Ok(())
    }

    async fn is_here(&self) -> anyhow::Result<bool> {
        let digest = self.image.digest.parse()?;
        let reference = self.image.reference.parse::<lca::ImageRef>()?.at(digest);
        Ok(self.engine.image(&Wanted::Pinned(reference)).await?.is_some())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let label = format!("lca.node={}", self.cluster.allocator(0).peer);
        testing::clear(self.engine.address(), &label);
        let name = format!("{}/web@{}", self.registry.host(), self.image.digest);
        let _absent = docker(&["image", "rm", "--force", &name]);
    }
}

// FAULTS 68.
#[tokio::test]
async fn an_image_is_pulled_for_the_first_request_and_stays_when_its_registry_goes()
-> anyhow::Result<()> {
    let Some(mut fleet) = Fleet::start("an_image_is_pulled").await? else { return Ok(()) };
    fleet.add("web", fleet.image.clone()).await?;
    let missing = lca::Digest::of(b"nothing").to_string();
    fleet.add("none", proto::Image { digest: missing, ..fleet.image.clone() }).await?;
    assert!(!fleet.is_here().await?);

    let said = fleet.cluster.get("/web/").await?;
    assert_eq!(said.status, 200, "{}", said.text());
    assert!(fleet.is_here().await?, "it was pulled");

    // One that the registry has not got: said as it is, and everything else goes on.
    let refused = fleet.cluster.get("/none/").await?;
    assert!(refused.text().contains("does not have image"), "{}", refused.text());
    let all = fleet.cluster.instances_of(0).await?;
    let failed = all.iter().find(|one| one.service == "none").expect("it was tried");
    assert_eq!(failed.state(), InstanceState::Failed);
    assert!(failed.reason.contains("does not have image"), "{}", failed.reason);
    assert_eq!(fleet.cluster.get("/web/").await?.status, 200);

    // The registry is gone: another instance is started all the same.
    fleet.registry.stop();
    let image = proto::Image { read_only_root: true, ..fleet.image.clone() };
    fleet.add("again", image).await?;
    let said = fleet.cluster.get("/again/").await?;
    assert_eq!(said.status, 200, "{}", said.text());
    Ok(())
}
