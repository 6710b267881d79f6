//! Processes that fork, escape, refuse to end and flood, each a shell script.

use std::{
    collections::BTreeMap,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
};

use futures::TryStreamExt as _;
use lca::{Allowance, Digest, Resources, testing::eventually};
use tempfile::TempDir;

use super::{leader::start_time, *};
use crate::driver::{
    Runnable,
    suite::{self, Program},
};

mod confined;

/// A file of output is cut at half of what is kept.
const ROTATE_AT: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    dir: TempDir,
    /// Of this test alone: sweeps of others must not find what it starts.
    node: PeerId,
    driver: Process,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let driver = Process::open(&dir.path().join("instances")).unwrap();
        let node =
            PeerId::from_public_key(*Digest::of(dir.path().as_os_str().as_bytes()).as_bytes());
        Self { dir, node, driver }
    }

    /// The driver of the next run. What the first knew is gone, what it started is not.
    fn crash(&self) -> Process {
        flock(&self.driver.inner._lock, FlockOperation::Unlock).unwrap();
        Process::open(&self.dir.path().join("instances")).unwrap()
    }

    /// A program that is this shell script.
    fn script(&self, text: &str) -> Launch {
        let id = InstanceId::random();
        let program = self.dir.path().join(id.to_string());
        fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o555)).unwrap();
        Launch {
            id,
            service: "script".parse().unwrap(),
            hash: lca::ServiceHash::from_sha256([1; 32]),
            program: Runnable::File(program),
            arguments: Vec::new(),
            environment: BTreeMap::from([
                ("LCA_INSTANCE_ID".into(), id.to_string()),
                ("LCA_NODE".into(), self.node.to_string()),
            ]),
            port: 1,
            listener: None,
            resources: Resources::default(),
            allowance: Allowance::default(),
        }
    }

    async fn output(&self, id: InstanceId) -> String {
        let output = self.driver.logs(id, Begin::Oldest, true).await.unwrap();
        let pieces: Vec<_> = output.try_collect().await.unwrap();
        String::from_utf8_lossy(&pieces.concat()).into_owned()
    }

    /// What it has written so far.
    async fn written(&self, id: InstanceId) -> String {
        let output = self.driver.logs(id, Begin::Oldest, false).await.unwrap();
        let pieces: Vec<_> = output.try_collect().await.unwrap();
        String::from_utf8_lossy(&pieces.concat()).into_owned()
    }

    /// Waits for a line the script writes and returns what follows `key=` in it.
    async fn said(&self, id: InstanceId, key: &str) -> String {
        eventually(&format!("the script to say {key}"), async || {
            let text = self.written(id).await;
            let whole = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
            let line = whole.filter_map(|line| line.strip_prefix(&format!("{key}="))).next();
            line.map(str::to_owned)
        })
        .await
    }
}

impl Drop for Bench {
    /// What a failed test has started is not left to others.
    fn drop(&mut self) {
        self.driver.kill_all();
    }
}

/// Whether a process runs; a zombie does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[tokio::test]
async fn processes_pass_the_suite() {
    let bench = Bench::new();
    let write = "printf 'first\\nsecond\\nthird\\n'";
    suite::passes(&bench.driver, |program| match program {
        Program::Runs => bench.script(&format!("{write}; exec sleep 1000")),
        Program::IgnoresTerm => {
            bench.script(&format!("trap '' TERM; {write}; while :; do sleep 1000; done"))
        }
        Program::Ends(Exit::Code(code)) => bench.script(&format!("{write}; exit {code}")),
        Program::Ends(_) => bench.script(&format!("{write}; kill -9 $$")),
        Program::CannotRun => {
            let launch = bench.script("");
            fs::remove_file(launch.program.file().unwrap()).unwrap();
            launch
        }
    })
    .await;
    eventually("the folders to be gone", async || {
        let left = fs::read_dir(bench.dir.path().join("instances")).unwrap().flatten();
        (left.count() == 1).then_some(()) // the lock
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_executed_is_said_so() {
    let bench = Bench::new();
    let garbage = bench.script("");
    fs::set_permissions(garbage.program.file().unwrap(), fs::Permissions::from_mode(0o755))
        .unwrap();
    fs::write(garbage.program.file().unwrap(), [0u8; 64]).unwrap();
    let error = bench.driver.start(garbage).await.unwrap_err();
    assert!(error.public().contains("neither a program"), "{error}");

    let locked = bench.script("");
    fs::set_permissions(locked.program.file().unwrap(), fs::Permissions::from_mode(0o444)).unwrap();
    let error = bench.driver.start(locked).await.unwrap_err();
    assert!(error.public().contains("permission denied"), "{error}");
}

#[tokio::test]
async fn an_instance_gets_nothing_of_ours() {
    let bench = Bench::new();
    // One that our children would get.
    let open = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    let mut launch = bench.script("env; pwd; ls -l /proc/self/fd; umask; echo done=1");
    launch.environment.insert("TOLD".into(), "yes".into());
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let output = bench.output(id).await;
    let names: Vec<_> = output.lines().filter_map(|line| line.split_once('=')).collect();
    for (name, _) in &names {
        // The shell adds the last ones itself.
        let expected = [
            "PATH",
            "LANG",
            "TMPDIR",
            "TOLD",
            "LCA_INSTANCE_ID",
            "LCA_NODE",
            "PWD",
            "OLDPWD",
            "SHLVL",
            "_",
            "done",
        ];
        assert!(expected.contains(name), "{name} came along: {output}");
    }
    assert!(output.contains(&format!("{id}/work\n")), "{output}");
    let descriptors = output.lines().filter_map(|line| line.split_once(" -> "));
    let numbers = descriptors.filter_map(|(before, _)| before.rsplit(' ').next());
    // 0, 1, 2, and the folder that `ls` reads.
    let strangers: Vec<_> =
        numbers.filter(|number| !["0", "1", "2", "3"].contains(number)).collect();
    assert!(strangers.is_empty(), "{strangers:?} came along: {output}");
}

#[tokio::test]
async fn an_instance_has_the_limit_of_open_files_that_it_is_given() {
    let bench = Bench::new();
    let ours = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap();
    let driver =
        |soft| bench.driver.clone().with_grants(Grants { open_files: soft, ..Grants::default() });
    let script = "echo soft=$(ulimit -Sn); echo hard=$(ulimit -Hn)";
    let launch = bench.script(script);
    let id = launch.id;
    driver(Some(77)).start(launch).await.unwrap();
    assert_eq!(bench.said(id, "soft").await, "77");
    assert_ne!(bench.said(id, "hard").await, "77", "it could not raise its own");
    for soft in [None, Some(ours + 1)] {
        let launch = bench.script(script);
        let id = launch.id;
        driver(soft).start(launch).await.unwrap();
        assert_eq!(bench.said(id, "soft").await, ours.to_string());
    }
}

#[tokio::test]
async fn a_group_dies_with_its_leader() {
    let bench = Bench::new();
    let launch = bench.script("sleep 1000 & echo child=$!; wait");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let child = bench.said(id, "child").await;
    assert!(runs(&child));
    bench.driver.stop(id, PATIENCE).await.unwrap();
    assert!(!runs(&child), "a child outlived its group's leader");

    // Also when the leader ends by itself and the child ignores being asked.
    let launch = bench.script("(trap '' TERM HUP; exec sleep 1000) & echo child=$!; exit 0");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    assert_eq!(bench.driver.wait(id).await.unwrap(), Exit::Code(0));
    bench.driver.stop(id, PATIENCE).await.unwrap();
    let child = bench.said(id, "child").await;
    assert!(!runs(&child), "a child outlived its group's leader");
}

#[tokio::test]
async fn a_child_that_left_the_group_is_found() {
    let bench = Bench::new();
    let launch = bench.script("setsid sh -c 'echo child=$$; exec sleep 1000' & sleep 1000");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let child = bench.said(id, "child").await;
    bench.driver.stop(id, PATIENCE).await.unwrap();
    eventually("the child to be gone", async || (!runs(&child)).then_some(())).await;
}

#[test]
fn a_forced_end_kills_groups_and_whoever_left_them() {
    let bench = Bench::new();
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let stray = "setsid sh -c 'trap \"\" TERM; echo stray=$$; sleep 1000' &";
    let launch = bench.script(&format!("{stray} trap '' TERM; sleep 1000 & echo child=$!; wait"));
    let id = launch.id;
    let pids = runtime().block_on(async {
        bench.driver.start(launch).await.unwrap();
        [bench.said(id, "stray").await, bench.said(id, "child").await]
    });
    // The runtime is gone, and with it whoever would clear up after the leader's end.
    assert!(pids.iter().all(|pid| runs(pid)));
    bench.driver.kill_all();
    let gone = async || !pids.iter().any(|pid| runs(pid));
    runtime().block_on(eventually("everything to be gone", gone));
}

#[tokio::test]
async fn a_flood_is_bounded_while_the_instance_runs() {
    const FLOOD: u64 = 5 * ROTATE_AT;
    let bench = Bench::new();
    let launch =
        bench.script(&format!("head -c {FLOOD} /dev/zero; echo flooded=1; exec sleep 1000"));
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let home = bench.dir.path().join("instances").join(id.to_string());
    let size = |name: &str| fs::metadata(home.join(name)).map_or(0, |found| found.len());
    eventually("the output to be rotated", async || {
        let kept = (size("output.log"), size("output.log.1"));
        let bounded = kept.0 <= ROTATE_AT && kept.1 == ROTATE_AT;
        if bounded { Ok(()) } else { Err(kept) }
    })
    .await;
    assert!(bench.driver.is_running(id));
    bench.driver.stop(id, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn long_lines_and_binary_output_stall_nobody() {
    let bench = Bench::new();
    let launch = bench.script("head -c 10000000 /dev/zero; echo; echo end=1");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    assert_eq!(bench.driver.wait(id).await.unwrap(), Exit::Code(0));
    assert_eq!(crate::driver::last_lines(&bench.driver, id, 1).await, ["end=1"]);
    let output = bench.driver.logs(id, Begin::LastLines(1), false).await.unwrap();
    let pieces: Vec<_> = output.try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"end=1\n");
}

#[tokio::test]
async fn the_last_line_is_a_whole_one_though_programs_write_in_pieces() {
    let bench = Bench::new();
    let launch = bench.script(
        // Some milliseconds between the pieces, without a program that has to be started.
        "while :; do printf a; n=0; while [ $n -lt 3000 ]; do n=$((n+1)); done; printf 'b\\n'; done",
    );
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    eventually("a first line", async || !read(&bench.driver, id, Begin::Oldest).await.is_empty())
        .await;
    for _ in 0..30 {
        // However long the machine takes over it.
        let held = bench.driver.held(id).unwrap();
        let last = reading::read_within(held, Begin::LastLines(1), false, PATIENCE).await.unwrap();
        assert_eq!(last.try_collect::<Vec<_>>().await.unwrap().concat(), b"ab\n");
    }
    bench.driver.stop(id, PATIENCE).await.unwrap();

    let launch = bench.script("printf 'password: '; exec sleep 1000");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    eventually("a prompt to be shown", async || {
        read(&bench.driver, id, Begin::LastLines(1)).await == b"password: "
    })
    .await;
    bench.driver.stop(id, PATIENCE).await.unwrap();
}

async fn read(driver: &Process, id: InstanceId, from: Begin) -> Vec<u8> {
    let output = driver.logs(id, from, false).await.unwrap();
    output.try_collect::<Vec<_>>().await.unwrap().concat()
}

#[tokio::test]
async fn a_program_that_closes_its_output_goes_on() {
    let bench = Bench::new();
    let launch = bench.script("exec >&- 2>&-; sleep 0.01; exit 7");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    assert_eq!(bench.driver.wait(id).await.unwrap(), Exit::Code(7));
}

#[tokio::test]
async fn a_file_still_open_for_writing_is_tried_again() {
    let bench = Bench::new();
    let launch = bench.script("exit 0");
    let id = launch.id;
    fs::set_permissions(launch.program.file().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let writer = fs::OpenOptions::new().append(true).open(launch.program.file().unwrap()).unwrap();
    let starting = bench.driver.start(launch);
    let close = async {
        sleep(BUSY_WAIT * 5).await;
        drop(writer);
    };
    let (started, ()) = tokio::join!(starting, close);
    started.unwrap();
    assert_eq!(bench.driver.wait(id).await.unwrap(), Exit::Code(0));
}

/// A process that is nobody's child here: its parent has ended. Returns its pid.
fn orphan(id: &str, node: &str) -> u32 {
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"])
        .env("LCA_INSTANCE_ID", id)
        .env("LCA_NODE", node)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Waits until a process has executed what it was started for, so that it is known by its
/// environment and its start time.
async fn is_sleeping(pid: u32) {
    eventually("the program to be executed", async || {
        fs::read(format!("/proc/{pid}/cmdline")).unwrap().starts_with(b"sleep")
    })
    .await;
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
}

#[tokio::test]
async fn processes_are_taken_over() {
    let bench = Bench::new();
    let script = || bench.script("printf 'first\\nsecond\\nthird\\n'; exec sleep 1000");
    let launches = [script(), script()];
    let left = launches[1].id;
    suite::takes_over(&bench.driver, || bench.crash(), launches).await;
    // What was not taken over is swept, with its folder.
    assert!(bench.driver.is_running(left));
    bench.crash().sweep(bench.node).await;
    eventually("the process to be gone", async || !bench.driver.is_running(left)).await;
    assert!(!bench.dir.path().join("instances").join(left.to_string()).exists());
}

#[tokio::test]
async fn two_drivers_do_not_share_a_folder() {
    let bench = Bench::new();
    let again = Process::open(&bench.dir.path().join("instances"));
    assert_eq!(again.unwrap_err().kind(), Kind::Conflict);
}

#[tokio::test]
async fn one_that_is_no_child_of_ours_is_watched_and_stopped_all_the_same() {
    let bench = Bench::new();
    for ends_by_itself in [true, false] {
        let id = InstanceId::random();
        fs::create_dir_all(bench.dir.path().join(format!("instances/{id}/work"))).unwrap();
        let pid = orphan(&id.to_string(), &bench.node.to_string());
        is_sleeping(pid).await;
        let started = Started {
            pid,
            start_time: start_time(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap()),
        };
        assert!(bench.driver.adopt(id, started, Allowance::default()).await.unwrap());
        // A sweep leaves it alone.
        bench.driver.sweep(bench.node).await;
        assert!(bench.driver.is_running(id) && runs(&pid.to_string()));
        let exit = match ends_by_itself {
            true => {
                kill(pid);
                bench.driver.wait(id).await.unwrap()
            }
            false => bench.driver.stop(id, PATIENCE).await.unwrap(),
        };
        assert_eq!(exit, Exit::Unwatched);
        assert_eq!(exit.to_string(), "ended, its exit status is unknown");
        assert!(!runs(&pid.to_string()));
    }
}

#[tokio::test]
async fn a_number_that_another_process_has_now_is_not_trusted() {
    let bench = Bench::new();
    let (id, other) = (InstanceId::random(), InstanceId::random());
    let pid = orphan(&other.to_string(), "somebody else");
    is_sleeping(pid).await;
    let started = Started {
        pid,
        start_time: start_time(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap()),
    };
    for (id, started) in [
        // The same instance, later in the life of the machine.
        (other, Started { start_time: started.start_time + 1, ..started }),
        // The same moment, and another instance.
        (id, started),
        // Nobody.
        (InstanceId::random(), Started { pid: 0, start_time: 0 }),
        (InstanceId::random(), Started { pid: u32::MAX, start_time: 7 }),
    ] {
        fs::create_dir_all(bench.dir.path().join(format!("instances/{id}"))).unwrap();
        assert!(!bench.driver.adopt(id, started, Allowance::default()).await.unwrap());
        assert!(!bench.driver.is_running(id));
        bench.driver.stop(id, Duration::ZERO).await.unwrap();
        bench.driver.forget(id).await;
    }
    assert!(runs(&pid.to_string()), "a stranger was hit");
    kill(pid);
}

#[tokio::test]
async fn strays_of_ours_are_ended_and_those_of_others_are_named_and_left_alone() {
    let log = lca::testing::Log::capture();
    let bench = Bench::new();
    let stranger = Bench::new().node;
    let theirs = InstanceId::random();
    let ours = orphan(&InstanceId::random().to_string(), &bench.node.to_string());
    let foreign = orphan(&theirs.to_string(), &stranger.to_string());
    is_sleeping(ours).await;
    is_sleeping(foreign).await;
    // On the thread whose log is captured.
    bench.driver.inner.sweep(bench.node);
    eventually("ours to be gone", async || !runs(&ours.to_string())).await;
    assert!(runs(&foreign.to_string()));
    let named = log.lines().into_iter().find(|line| line.contains("left alone"));
    let named = named.expect("a line about strangers");
    // There may be more than are named when other tests run.
    assert!(named.contains("processes="), "{named}");
    kill(foreign);
}
