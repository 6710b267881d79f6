//! What these tests need of the machine, and what is made of its lack.

use std::{
    mem::take,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use futures::TryStreamExt as _;
use lca::{Digest, ImageRef};
use lca_engine::{
    Address, Engine, Wanted,
    bollard::{
        body_full,
        models::ContainerCreateBody,
        query_parameters::{
            CreateContainerOptions, ImportImageOptions, PushImageOptionsBuilder,
            RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
        },
    },
};

use crate::{
    bundle::Bundle,
    registry::{PROGRAM, Registry},
};

/// A variable that says that a missing engine is a failure.
const DEMANDED: &str = "LCA_DOCKER";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// An engine with a registry, and what is to be cleared away.
pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) registry: Registry,
    names: Vec<String>,
    containers: Vec<String>,
}

impl Bench {
    /// `None` if this machine has not got what it takes, which is said.
    pub(crate) async fn set_up() -> Option<Self> {
        let missing = |reason: String| {
            let demanded = std::env::var_os(DEMANDED).is_some_and(|value| value == "required");
            assert!(!demanded, "{DEMANDED}=required, and {reason}");
            eprintln!("SKIPPED: {reason}");
            None
        };
        if !Path::new(PROGRAM).exists() {
            return missing(format!("there is no {PROGRAM} (Debian package docker-registry)"));
        }
        let address = Address::of_the_environment().unwrap();
        match Engine::connect(&address).await {
            Ok(engine) => Some(Self {
                engine,
                registry: Registry::start().await,
                names: Vec::new(),
                containers: Vec::new(),
            }),
            Err(error) => missing(error.public().to_owned()),
        }
    }

    /// A repository name that nobody else uses.
    pub(crate) fn repository(&self) -> String {
        format!("lca-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Loads an image under `HOST/REPOSITORY:1`; it has no repository digest then.
    pub(crate) async fn load(&mut self, host: &str, repository: &str, bundle: &Bundle) -> ImageRef {
        let name: ImageRef = format!("{host}/{repository}:1").parse().unwrap();
        let tar = bundle.archive(&name.familiar());
        let options = ImportImageOptions::default();
        let loading = self.engine.docker().import_image(options, body_full(tar.into()), None);
        loading.try_collect::<Vec<_>>().await.unwrap();
        self.names.push(name.to_string());
        name
    }

    /// Has the registry take an image, and forgets it here: what remains is its name at
    /// `host`, which leads to the registry, pinned by its digest.
    pub(crate) async fn publish(&mut self, host: &str, bundle: &Bundle) -> ImageRef {
        let repository = self.repository();
        let direct = self.registry.host();
        let name = self.load(&direct, &repository, bundle).await;
        let options = PushImageOptionsBuilder::new().tag("1").build();
        let docker = self.engine.docker();
        // Nobody has to be known to it; the engine wants to be told something.
        let push = docker.push_image(&name.name(), Some(options), Some(Default::default()));
        push.try_collect::<Vec<_>>().await.unwrap();
        let digest = self.registry.digest(&repository, "1").await;
        self.forget(&name).await;
        let pinned: ImageRef = format!("{host}/{repository}@{digest}").parse().unwrap();
        self.names.push(pinned.to_string());
        pinned
    }

    /// Gives an image another name.
    pub(crate) async fn tag(&mut self, image: &ImageRef, repository: &str, tag: &str) {
        let options = TagImageOptionsBuilder::new().repo(repository).tag(tag).build();
        self.engine.docker().tag_image(&image.to_string(), Some(options)).await.unwrap();
        self.names.push(format!("{repository}:{tag}"));
    }

    /// Removes every name of an image from the engine.
    pub(crate) async fn forget(&self, image: &ImageRef) {
        let options = RemoveImageOptionsBuilder::new().force(true).build();
        drop(self.engine.docker().remove_image(&image.to_string(), Some(options), None).await);
    }

    pub(crate) async fn is_here(&self, image: &ImageRef) -> bool {
        self.engine.image(&Wanted::Pinned(image.clone())).await.unwrap().is_some()
    }

    /// Makes a container that is never started, and says how it is called.
    pub(crate) async fn container(&mut self, image: &ImageRef) -> String {
        let body = ContainerCreateBody { image: Some(image.to_string()), ..Default::default() };
        let docker = self.engine.docker();
        let made = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap();
        self.containers.push(made.id.clone());
        made.id
    }
}

impl Drop for Bench {
    /// Clears away what was made, also after a test that failed: in a runtime of its own,
    /// since that of the test is busy dropping this.
    fn drop(&mut self) {
        let (names, containers) = (take(&mut self.names), take(&mut self.containers));
        let clear = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let Ok(address) = Address::of_the_environment() else { return };
                let Ok(engine) = Engine::connect(&address).await else { return };
                for container in &containers {
                    let options = RemoveContainerOptionsBuilder::new().force(true).build();
                    drop(engine.docker().remove_container(container, Some(options)).await);
                }
                for name in &names {
                    let options = RemoveImageOptionsBuilder::new().force(true).build();
                    drop(engine.docker().remove_image(name, Some(options), None).await);
                }
            });
            Ok::<_, std::io::Error>(())
        };
        drop(std::thread::spawn(clear).join());
    }
}

/// The digest a pinned reference has.
pub(crate) fn digest(image: &ImageRef) -> Digest {
    image.digest().unwrap()
}
