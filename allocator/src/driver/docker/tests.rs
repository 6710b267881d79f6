//! The driver on the engine of this machine, where there is one.

use std::collections::BTreeMap;

use lca::{Resources, ServiceHash, shutdown::Tasks, testing::eventually};
use lca_engine::testing::{self, TestImage};

use super::*;
use crate::driver::{
    Runnable,
    suite::{self, Program},
};

/// One driver, of a node of its own, with an image of its own.
struct Bench {
    engine: Engine,
    image: TestImage,
    node: PeerId,
    tasks: Tasks,
    driver: Docker,
}

impl Bench {
    async fn new(test: &str) -> Option<Self> {
        Self::with(test, Grants::default()).await
    }

    async fn with(test: &str, grants: Grants) -> Option<Self> {
        let engine = testing::engine(test).await?;
        let image = TestImage::make(&engine).await;
        let node = PeerId::from_public_key(*image.id.as_bytes());
        let tasks = Tasks::default();
        let driver = Docker::open(engine.address().clone(), node, grants, &tasks.spawner()).await;
        Some(Self { engine, image, node, tasks, driver })
    }

    /// What is made of the image.
    fn container(&self) -> Container {
        Container {
            image: self.image.id,
            port: 8000,
            read_only_root: false,
            capabilities: Default::default(),
            host_network: false,
        }
    }

    /// A container of the image with these arguments.
    fn launch(&self, arguments: &[&str]) -> Launch {
        let id = InstanceId::random();
        let environment =
            [("SERVICE_PORT", "8000".to_owned()), ("LCA_INSTANCE_ID", id.to_string())];
        Launch {
            id,
            service: "web".parse().unwrap(),
            hash: ServiceHash::from_sha256([1; 32]),
            program: Runnable::Image(self.container()),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: BTreeMap::from(environment.map(|(name, value)| (name.to_owned(), value))),
            port: 1,
            listener: None,
            resources: Resources::default(),
            allowance: Allowance::default(),
        }
    }

    /// The containers of this node that are left.
    async fn left(&self) -> usize {
        watch::list(&self.engine, &labels::of_node(self.node)).await.unwrap().len()
    }

    /// Forgets what is left, with the network.
    async fn clear(mut self) {
        self.driver.kill_all();
        let held: Vec<_> = self.driver.inner.lock().held.keys().copied().collect();
        for id in held {
            self.driver.forget(id).await;
        }
        eventually("the containers to be gone", async || {
            let left = self.left().await;
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
        self.driver.close().await;
        let network = network::name(self.node);
        let gone = self.engine.docker().inspect_network(&network, None).await;
        assert!(gone.is_err(), "the network stays");
        assert!(
            std::mem::take(&mut self.tasks).drain(Duration::from_secs(5)).await,
            "a task had to be forced"
        );
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            testing::clear(self.engine.address(), &labels::of_node(self.node));
        }
    }
}

#[tokio::test]
async fn containers_pass_the_suite() {
    let Some(bench) = Bench::new("containers_pass_the_suite").await else { return };
    let absent = TestImage::starting(&bench.engine, "absent").await;
    suite::passes(&bench.driver, |program| match program {
        Program::Runs => bench.launch(&["run"]),
        Program::IgnoresTerm => bench.launch(&["deaf"]),
        Program::Ends(Exit::Code(code)) => bench.launch(&["exit", &code.to_string()]),
        Program::Ends(_) => bench.launch(&["die"]),
        Program::CannotRun => {
            let mut launch = bench.launch(&[]);
            launch.program = Runnable::Image(Container { image: absent.id, ..bench.container() });
            launch
        }
    })
    .await;
    eventually("the containers to be gone", async || {
        let left = bench.left().await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    bench.clear().await;
}

#[tokio::test]
async fn what_a_crash_left_is_taken_over_and_the_rest_is_swept() {
    let Some(bench) = Bench::new("what_a_crash_left_is_taken_over").await else { return };
    let launches = [bench.launch(&["run"]), bench.launch(&["run"])];
    let tasks = Tasks::default();
    let after = Docker::open(
        bench.engine.address().clone(),
        bench.node,
        Grants::default(),
        &tasks.spawner(),
    )
    .await;
    suite::takes_over(&bench.driver, || after.clone(), launches).await;
    after.sweep(bench.node).await;
    assert_eq!(bench.left().await, 0, "one was taken over and forgotten, the other swept");
    after.close().await;
    drop(tasks);
    bench.clear().await;
}
