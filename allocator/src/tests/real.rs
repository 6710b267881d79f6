//! Stories on real processes: the test binary itself is the program that serves.

use std::{fs, os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use futures::TryStreamExt as _;
use lca::{
    Kind, Spec,
    api::proto::{self, InstanceState, allocate_request::Mode, allocator_server::Allocator as _},
    testing::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Request;

use super::twins::{PATIENCE, World, config, id};
use crate::{Allocator, driver::process::Process};

/// The allocator on real processes. This very test binary serves as a program: started
/// with [`SERVE`], it is the demo.
struct Machine {
    dir: tempfile::TempDir,
    world: World,
    _last: KilledAtLast,
}

/// Leaves no process of a test that failed, or did not stop what it started.
struct KilledAtLast(Allocator);

impl Drop for KilledAtLast {
    fn drop(&mut self) {
        self.0.kill_all();
    }
}

/// Arguments that make this test binary run [`serves_when_started_as_an_instance`].
pub(super) const SERVE: [&str; 4] =
    ["--ignored", "--exact", "--nocapture", "tests::real::serves_when_started_as_an_instance"];

#[tokio::test]
#[ignore = "not a test: what instances of the tests below run"]
async fn serves_when_started_as_an_instance() {
    if std::env::var_os("LCA_INSTANCE_ID").is_some() {
        let options = hello_world_server::Options::parse([]).unwrap();
        hello_world_server::run(options).await.unwrap();
    }
}

impl Machine {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Process::open(&dir.path().join("instances")).unwrap();
        let world = World::new(Arc::new(driver), config()).await;
        let last = KilledAtLast(world.allocator.clone());
        Self { dir, world, _last: last }
    }

    /// Stops as a daemon does.
    async fn stop(self) {
        let Self { dir: _kept, world, _last } = self;
        assert!(world.tasks.drain(Duration::from_secs(5)).await, "a task had to be forced");
    }

    fn demo(&self, name: &str) -> Spec {
        let program = std::env::current_exe().unwrap();
        self.world.add(name, program.to_str().unwrap(), |spec| {
            spec.arguments = SERVE.map(str::to_owned).into();
            spec.readiness =
                Some(proto::Readiness { http_path: "/hello".into(), ..Default::default() });
        })
    }

    fn script(&self, name: &str, text: &str, start_timeout_ms: u64) -> Spec {
        let program = self.dir.path().join(name);
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o555)).unwrap();
        self.world.add(name, program.to_str().unwrap(), |spec| {
            spec.readiness = Some(proto::Readiness { start_timeout_ms, ..Default::default() });
        })
    }

    async fn logs(&self, instance: &str, tail_lines: u32, follow: bool) -> String {
        let request = proto::LogsRequest { instance: instance.into(), tail_lines, follow };
        let logs = self.world.allocator.logs(Request::new(request)).await.unwrap().into_inner();
        let read = tokio::time::timeout(PATIENCE, logs.try_collect::<Vec<_>>()).await;
        let chunks = read.expect("the end of the log").unwrap();
        let bytes: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.data).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

async fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn a_real_program_is_started_serves_and_is_gone_after_its_release() {
    let machine = Machine::new().await;
    let spec = machine.demo("demo");
    let answer = machine.world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let instance = answer.instance.clone().unwrap();
    let way = machine.world.ways.to(instance.id.parse().unwrap()).unwrap();
    let port = way.local.address.port();
    assert!(get(port, "/hello").await.ends_with("Hello, world\n"));
    let told = get(port, "/env").await;
    assert!(told.contains(&format!("SERVICE_PORT={port}\n")), "{told}");
    assert!(told.contains(&format!("LCA_INSTANCE_ID={}\n", instance.id)), "{told}");
    assert!(runs(instance.pid));
    let stopped = machine.world.release(&instance.id).await.unwrap();
    assert_eq!(stopped.state(), InstanceState::Stopped);
    assert!(!runs(instance.pid));
}

#[tokio::test]
async fn programs_that_do_not_get_ready_say_why_and_leave_nothing() {
    let machine = Machine::new().await;
    let world = &machine.world;
    let exits = machine.script("exits", "echo begun; echo 'no database' >&2; exit 3", 10_000);
    let error = world.allocate(&exits, Mode::Ensure, "r1").await.unwrap_err();
    assert_eq!(error.public(), "exits exited with code 3 before it was ready");
    assert_eq!(error.output_lines(), ["begun", "no database"]);

    let hangs = machine.script("hangs", "trap '' TERM; while :; do sleep 1000; done", 300);
    let error = world.allocate(&hangs, Mode::Ensure, "r2").await.unwrap_err();
    assert!(error.public().starts_with("hangs was not ready within 300ms"), "{error}");

    let garbage = world.add("garbage", "/dev/null", |_| {});
    let error = world.allocate(&garbage, Mode::Ensure, "r3").await.unwrap_err();
    assert_eq!(error.kind(), Kind::StartFailed);
    assert!(error.public().starts_with("garbage cannot be executed"), "{error}");

    let listed = world.list(true).await;
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|instance| instance.state() == InstanceState::Failed));
    assert!(listed.iter().all(|instance| instance.pid == 0 || !runs(instance.pid)));
}

#[tokio::test]
async fn logs_are_tailed_followed_and_kept_after_the_end() {
    let machine = Machine::new().await;
    let text = "echo one; echo two; while [ ! -e go ]; do sleep 0.01; done; echo three";
    let spec = machine.script("talks", text, 20_000);
    let starting = machine.world.allocate(&spec, Mode::Ensure, "r1");
    let watch = async {
        let instance = eventually("it to run", async || {
            machine.world.list(false).await.into_iter().find(|instance| instance.pid != 0)
        })
        .await;
        eventually("two lines", async || {
            (machine.logs(&instance.id, 1, false).await == "two\n").then_some(())
        })
        .await;
        let follow = machine.logs(&instance.id, 1, true);
        let go = machine.dir.path().join("instances").join(&instance.id).join("work/go");
        let (followed, ()) = tokio::join!(follow, async { fs::write(go, "").unwrap() });
        assert_eq!(followed, "two\nthree\n");
        instance.id
    };
    let (failed, instance) = tokio::join!(starting, watch);
    assert_eq!(failed.unwrap_err().kind(), Kind::StartFailed, "it never listened");
    assert_eq!(machine.logs(&instance[..10], 0, false).await, "one\ntwo\nthree\n");
}

#[tokio::test]
async fn a_killed_program_is_noticed_and_a_stop_leaves_no_process() {
    let machine = Machine::new().await;
    let world = &machine.world;
    let spec = machine.demo("demo");
    let killed = world.allocate(&spec, Mode::New, "r1").await.unwrap();
    let others = [
        world.allocate(&spec, Mode::New, "r2").await.unwrap(),
        world.allocate(&spec, Mode::New, "r3").await.unwrap(),
    ];
    let pid = killed.instance.as_ref().unwrap().pid;
    let process = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    let ended = world.is(&id(&killed), InstanceState::Failed).await;
    assert_eq!(ended.reason, "killed by signal 9 (SIGKILL)");

    let pids = others.map(|answer| answer.instance.unwrap().pid);
    assert!(pids.iter().all(|pid| runs(*pid)));
    // The daemon's own stop is enough.
    machine.stop().await;
    assert!(pids.iter().all(|pid| !runs(*pid)));
}

#[tokio::test]
async fn one_that_hangs_is_failed_with_the_reason_and_another_is_started() {
    let machine = Machine::new().await;
    let world = &machine.world;
    let program = std::env::current_exe().unwrap();
    let spec = world.add("hangs", program.to_str().unwrap(), |spec| {
        spec.arguments = SERVE.map(str::to_owned).into();
        spec.readiness =
            Some(proto::Readiness { http_path: "/hello".into(), ..Default::default() });
        spec.liveness = Some(proto::Liveness {
            interval_ms: 100,
            timeout_ms: 200,
            failures: 2,
            ..Default::default()
        });
    });
    let first = world.allocate(&spec, Mode::Ensure, "r1").await.unwrap().instance.unwrap();
    let process = rustix::process::Pid::from_raw(first.pid.cast_signed()).unwrap();
    // Its port goes on accepting, and its process is there.
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let ended = world.is(&first.id, InstanceState::Failed).await;
    assert_eq!(ended.reason, "hangs: GET /hello is not answered within 200ms, 2 times in a row");
    assert!(!runs(first.pid));
    let second =
        eventually("another start", async || world.allocate(&spec, Mode::Ensure, "r2").await.ok())
            .await;
    let second = second.instance.unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!((second.restarts, second.last_exit), (1, ended.reason));
    machine.stop().await;
}

#[tokio::test]
async fn a_program_that_is_given_its_socket_is_ready_once_it_accepts() {
    let machine = Machine::new().await;
    let world = &machine.world;
    let program = std::env::current_exe().unwrap();
    let given = |name: &str, path: &str| {
        world.add(name, program.to_str().unwrap(), |spec| {
            spec.arguments = SERVE.map(str::to_owned).into();
            spec.readiness =
                Some(proto::Readiness { http_path: path.into(), ..Default::default() });
            spec.socket_activation = true;
        })
    };
    for spec in [given("accepts", ""), given("answers", "/hello")] {
        let answer = world.allocate(&spec, Mode::Ensure, spec.name.as_str()).await.unwrap();
        let way = world.ways.to(id(&answer).parse().unwrap()).unwrap();
        let told = get(way.local.address.port(), "/env").await;
        let pid = answer.instance.unwrap().pid;
        assert!(told.contains("LISTEN_FDS=1\n"), "{told}");
        assert!(told.contains(&format!("LISTEN_PID={pid}\n")), "{told}");
    }
    // That its port accepts is the kernel's doing, and says nothing.
    let file = machine.dir.path().join("deaf");
    fs::write(&file, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o555)).unwrap();
    let deaf = world.add("deaf", file.to_str().unwrap(), |spec| {
        spec.readiness = Some(proto::Readiness { start_timeout_ms: 300, ..Default::default() });
        spec.socket_activation = true;
    });
    let error = world.allocate(&deaf, Mode::Ensure, "deaf").await.unwrap_err();
    let reason = "deaf was not ready within 300ms: it has not accepted a connection";
    assert_eq!(error.public(), reason);
    machine.stop().await;
}

#[tokio::test]
async fn what_an_instance_uses_is_told_to_all_who_ask() {
    let machine = Machine::new().await;
    let spec = machine.demo("demo");
    let answer = machine.world.allocate(&spec, Mode::Ensure, "r1").await.unwrap();
    let usage = eventually("a look at it", async || {
        machine.world.list(false).await.remove(0).usage.filter(|usage| usage.memory_bytes > 0)
    })
    .await;
    assert_eq!(usage.memory_limit_bytes, 64 << 20);
    assert!(usage.memory_bytes < 64 << 20, "{usage:?}");
    machine.world.allocator.count_instances();
    let text = machine.world.allocator.supervisor.config.metrics.text();
    assert!(text.contains("lca_service_memory_limit_bytes{service=\"demo\"} 67108864"), "{text}");
    machine.world.release(&id(&answer)).await.unwrap();
    machine.world.allocator.count_instances();
    let text = machine.world.allocator.supervisor.config.metrics.text();
    assert!(!text.contains("lca_service_memory_limit_bytes{"), "{text}");
}
