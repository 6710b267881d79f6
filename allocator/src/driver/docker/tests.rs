//! The driver on the engine of this machine, where there is one.

use std::collections::BTreeMap;

use lca::{Resources, ServiceHash, shutdown::Tasks, testing::eventually};
use lca_engine::testing::{self, TestImage};

use super::*;
use crate::driver::{
    Runnable, last_lines,
    suite::{self, Program},
};

mod away;

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

#[tokio::test]
async fn somebody_who_removes_a_container_is_noticed_within_a_second() {
    let Some(bench) = Bench::new("somebody_who_removes_a_container").await else { return };
    let launch = bench.launch(&["run"]);
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let by_hand = RemoveContainerOptionsBuilder::new().force(true).build();
    bench.engine.docker().remove_container(&labels::name(id), Some(by_hand)).await.unwrap();
    let exit = timeout(Duration::from_secs(1), bench.driver.wait(id)).await;
    assert_eq!(exit.expect("noticed within a second").unwrap(), Exit::Removed);
    assert!(last_lines(&bench.driver, id, 3).await.is_empty(), "its output went with it");
    bench.driver.forget(id).await;
    bench.clear().await;
}

#[tokio::test]
async fn a_container_that_wants_more_memory_than_it_may_have_is_said_to() {
    let Some(bench) = Bench::new("a_container_that_wants_more_memory").await else { return };
    let mut launch = bench.launch(&["hog"]);
    let (id, limit) = (launch.id, 16 << 20);
    launch.allowance.memory_bytes = limit;
    bench.driver.start(launch).await.unwrap();
    assert_eq!(bench.driver.wait(id).await.unwrap(), Exit::OutOfMemory(limit));
    bench.clear().await;
}

#[tokio::test]
async fn a_container_starts_no_more_processes_than_it_may_have() {
    let Some(bench) = Bench::new("a_container_starts_no_more_processes").await else { return };
    let mut launch = bench.launch(&["fork"]);
    let id = launch.id;
    launch.allowance.processes = 20;
    bench.driver.start(launch).await.unwrap();
    let said = eventually("it to say how many it got", async || {
        let said = last_lines(&bench.driver, id, 1).await.concat();
        if said.ends_with(" threads") { Ok(said) } else { Err(said) }
    })
    .await;
    let threads: u32 = said.trim_end_matches(" threads").parse().unwrap();
    assert!((10..20).contains(&threads), "{said}");
    let stats = bench.driver.stats(id).await.unwrap();
    assert!(stats.memory_bytes > 0 && stats.memory_bytes < 64 << 20, "{stats:?}");
    bench.clear().await;
}

#[tokio::test]
async fn a_container_has_the_rights_that_are_listed_and_allowed_and_no_others() {
    let kill: lca::Capability = "KILL".parse().unwrap();
    let grants = Grants { capabilities: [kill].into(), host_network: false };
    let Some(bench) = Bench::with("a_container_has_the_rights", grants).await else { return };
    let with = |container: Container| {
        let mut launch = bench.launch(&["serve"]);
        launch.program = Runnable::Image(container);
        launch
    };
    let plain = with(bench.container());
    let more =
        with(Container { read_only_root: true, capabilities: [kill].into(), ..bench.container() });
    let ids = [plain.id, more.id];
    for launch in [plain, more] {
        bench.driver.start(launch).await.unwrap();
    }
    let [plain, more] = ids.map(|id| bench.driver.address(id).expect("an address on the bridge"));
    let rights = ask(plain, "/rights").await;
    for expected in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(rights.contains(expected), "{rights}");
    }
    assert!(rights.contains("Seccomp:\t2"), "{rights}");
    // The fifth is KILL.
    let rights = ask(more, "/rights").await;
    assert!(rights.contains("CapBnd:\t0000000000000020"), "{rights}");
    assert!(ask(plain, "/write").await.contains("written"));
    let written = ask(more, "/write").await;
    assert!(written.contains("Read-only file system"), "{written}");

    let refused = with(Container {
        capabilities: ["SYS_ADMIN".parse().unwrap()].into(),
        ..bench.container()
    });
    let error = bench.driver.start(refused).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotHere);
    assert!(error.public().contains("SYS_ADMIN"), "{error}");
    let refused = with(Container { host_network: true, ..bench.container() });
    assert_eq!(bench.driver.start(refused).await.unwrap_err().kind(), Kind::NotHere);
    bench.clear().await;
}

/// The whole answer of a container, once it listens.
async fn ask(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    eventually("an answer of the container", async || {
        let asked = async {
            let mut stream = tokio::net::TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        asked.await.map_err(|error| error.to_string())
    })
    .await
}

#[tokio::test]
async fn how_one_ended_while_nobody_watched_is_known_to_the_engine() {
    let Some(bench) = Bench::new("how_one_ended_while_nobody_watched").await else { return };
    let launch = bench.launch(&["exit", "3"]);
    let id = launch.id;
    let started = bench.driver.start(launch).await.unwrap();
    bench.driver.wait(id).await.unwrap();
    let tasks = Tasks::default();
    let address = bench.engine.address().clone();
    let after = Docker::open(address, bench.node, Grants::default(), &tasks.spawner()).await;
    assert!(!after.adopt(id, started, Allowance::default()).await.unwrap(), "it has ended");
    assert_eq!(after.wait(id).await.unwrap(), Exit::Code(3));
    assert_eq!(last_lines(&after, id, 1).await, ["third"]);
    bench.clear().await;
}
