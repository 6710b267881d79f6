//! What a program may not do, tried by programs that do it. What a machine cannot enforce
//! the driver says (`means`); a test of that says so too, and ends.

use std::net::{Ipv4Addr, TcpListener};

use super::*;

/// What [`a_child_tries_to_listen`] is told by.
const PORTS: &str = "TRY_PORTS";

fn enforced(bench: &Bench, what: &str) -> bool {
    let means = bench.driver.means();
    let enforced = means.enforced.iter().any(|line| line.starts_with(&format!("{what}: ")));
    if !enforced {
        eprintln!("NOT ENFORCED HERE: {what} ({:?})", means.not_enforced);
    }
    enforced
}

/// Everything `script` wrote, after it has ended.
async fn ran(bench: &Bench, script: &str) -> String {
    let launch = bench.script(script);
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let exit = bench.driver.wait(id).await.unwrap();
    let output = bench.output(id).await;
    assert_eq!(exit, Exit::Code(0), "{output}");
    output
}

fn group_of(bench: &Bench, id: InstanceId) -> cgroup::Group {
    bench.driver.terms.cgroups.as_ref().unwrap().group(id)
}

#[tokio::test]
async fn more_memory_than_the_limit_ends_it_and_is_said() {
    let bench = Bench::new();
    if !enforced(&bench, "processes") {
        return; // memory is one process's then
    }
    for script in ["exec tail /dev/zero", "tail /dev/zero; exit 3"] {
        let mut launch = bench.script(script);
        launch.allowance.memory_bytes = 16 << 20;
        let id = launch.id;
        bench.driver.start(launch).await.unwrap();
        let exit = bench.driver.wait(id).await.unwrap();
        assert_eq!(exit, Exit::OutOfMemory(16 << 20), "{script}");
        assert_eq!(exit.to_string(), "ran out of memory: its limit is 16 MiB");
    }
}

#[tokio::test]
async fn no_more_processes_run_than_the_limit() {
    let bench = Bench::new();
    if !enforced(&bench, "processes") {
        return;
    }
    // Forks without end, as fast as it can, each child as well.
    let mut launch = bench.script("f() { f & f & wait; }; echo forks=on; while :; do f; done");
    launch.allowance.processes = 10;
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    bench.said(id, "forks").await;
    eventually("a fork to be refused", async || {
        let refused = bench.written(id).await;
        refused.to_lowercase().contains("fork").then_some(()).ok_or(refused)
    })
    .await;
    bench.driver.stop(id, Duration::from_millis(10)).await.unwrap();
    let left = group_of(&bench, id);
    assert!(left.try_destroy(), "processes of it are left");
}

#[tokio::test]
async fn processor_time_is_no_more_than_named() {
    let bench = Bench::new();
    if !enforced(&bench, "cpu") {
        return;
    }
    let mut launch = bench.script("while :; do :; done");
    launch.allowance.cpu_millis = std::num::NonZeroU32::new(50);
    let id = launch.id;
    let began = Instant::now();
    bench.driver.start(launch).await.unwrap();
    // What the kernel has held back is only held back at a limit.
    let used = eventually("a hundred milliseconds of use", async || {
        let used = bench.driver.stats(id).await.unwrap().cpu;
        (used >= Duration::from_millis(100)).then_some(used).ok_or(used)
    })
    .await;
    // A period's share may be begun before the first is over, and one more at the look.
    let allowed = began.elapsed().mul_f64(0.05) + Duration::from_millis(15);
    assert!(used <= allowed, "{used:?} of {allowed:?}");
    bench.driver.stop(id, Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn files_of_others_are_closed_to_it_and_its_own_are_open() {
    let bench = Bench::new();
    if !enforced(&bench, "files") {
        return;
    }
    let secret = bench.dir.path().join("secret");
    fs::write(&secret, "hidden=leaked\n").unwrap();
    let (secret, ours) = (secret.display(), std::process::id());
    let output = ran(
        &bench,
        &format!(
            "cat {secret}; (echo x >> {secret}) ; (echo x > ../beside) ; ls {home}; \
             cat /proc/{ours}/environ; \
             echo own > file && cat file; mktemp >/dev/null && echo temporary=yes; \
             echo again >> /dev/stdout; rm file && echo removed=yes; true",
            home = bench.dir.path().display(),
        ),
    )
    .await;
    assert!(!output.contains("leaked"), "{output}");
    assert_eq!(output.matches("Permission denied").count(), 5, "{output}");
    for expected in ["own\n", "temporary=yes", "again\n", "removed=yes"] {
        assert!(output.contains(expected), "{expected} is missing: {output}");
    }
    assert_eq!(fs::read_to_string(bench.dir.path().join("secret")).unwrap(), "hidden=leaked\n");
}

#[tokio::test]
async fn what_the_operator_allows_is_open_to_it() {
    let bench = Bench::new();
    let (read, write) = (bench.dir.path().join("read"), bench.dir.path().join("write"));
    for dir in [&read, &write] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("file"), "seen=yes\n").unwrap();
    }
    let open = bench.driver.clone().with_grants(Grants {
        read: vec![read.clone()],
        write: vec![write.clone()],
        ..Grants::default()
    });
    let launch = bench.script(&format!(
        "cat {0}/file; cat {1}/file; echo new > {1}/made; echo no > {0}/made; true",
        read.display(),
        write.display()
    ));
    let id = launch.id;
    open.start(launch).await.unwrap();
    open.wait(id).await.unwrap();
    assert_eq!(bench.output(id).await.matches("seen=yes").count(), 2);
    assert!(write.join("made").exists());
    if enforced(&bench, "files") {
        assert!(!read.join("made").exists(), "what may be read was written");
    }
}

#[tokio::test]
async fn it_signals_nobody_but_its_own() {
    let bench = Bench::new();
    if !enforced(&bench, "signals") {
        return;
    }
    let ours = std::process::id();
    let output = ran(
        &bench,
        &format!("kill -0 {ours} || echo ours=safe; sleep 100 & kill -9 $! && echo own=ended"),
    )
    .await;
    assert!(output.contains("ours=safe") && output.contains("own=ended"), "{output}");
}

#[tokio::test]
async fn it_listens_on_its_own_port_and_no_other() {
    let bench = Bench::new();
    if !enforced(&bench, "listening") {
        return;
    }
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let (own, other) = (free(), free());
    let mut launch = bench.script("");
    launch.program = Runnable::File(std::env::current_exe().unwrap());
    let name = "driver::process::tests::confined::a_child_tries_to_listen";
    launch.arguments = ["--exact", name, "--ignored", "--nocapture"].map(Into::into).into();
    launch.environment.insert(PORTS.into(), format!("{own} {other}"));
    launch.port = own;
    launch.allowance.memory_bytes = 1 << 30;
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    bench.driver.wait(id).await.unwrap();
    let output = bench.output(id).await;
    assert!(output.contains(&format!("{own}: listens")), "{output}");
    assert!(output.contains(&format!("{other}: Permission denied")), "{output}");
}

#[test]
#[ignore = "the program of `it_listens_on_its_own_port_and_no_other`"]
fn a_child_tries_to_listen() {
    for port in std::env::var(PORTS).unwrap().split(' ') {
        let tried = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse::<u16>().unwrap()));
        println!("{port}: {}", tried.map_or_else(|error| error.to_string(), |_| "listens".into()));
    }
}

#[tokio::test]
async fn rights_it_has_none_and_gets_none() {
    let bench = Bench::new();
    let output =
        ran(&bench, "cat /proc/self/status; unshare --user true || echo unshared=no").await;
    let value = |key: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).unwrap_or_default()
    };
    assert_eq!(value("NoNewPrivs"), "1");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    if enforced(&bench, "capabilities") {
        assert_eq!(value("CapBnd"), "0000000000000000");
    }
    if enforced(&bench, "system calls") {
        assert_eq!(value("Seccomp"), "2", "a filter");
        assert!(output.contains("unshared=no"), "{output}");
    }
}

#[tokio::test]
async fn a_folder_that_is_filled_ends_it() {
    let bench = Bench::new();
    // Each file is within the limit of one.
    let fill = "for n in 1 2 3 4; do head -c 700000 /dev/zero > $n; done; exec sleep 1000";
    let mut launch = bench.script(fill);
    launch.allowance.disk_bytes = 1 << 20;
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let exit = bench.driver.wait(id).await.unwrap();
    assert_eq!(exit, Exit::OutOfDisk(1 << 20));
    assert_eq!(exit.to_string(), "filled its working folder: its limit is 1 MiB");

    let mut launch = bench.script("exec head -c 2000000 /dev/zero > large");
    launch.allowance.disk_bytes = 1 << 20;
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    assert_eq!(bench.driver.wait(id).await.unwrap(), Exit::Signal(25), "too large a file");
}

#[tokio::test]
async fn one_that_hides_whose_it_is_ends_with_its_instance() {
    let bench = Bench::new();
    if !enforced(&bench, "processes") {
        return; // known by its environment alone, which it can change
    }
    let launch = bench.script("setsid env -i sleep 1000 & echo hidden=$!; wait");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let hidden = bench.said(id, "hidden").await;
    assert!(runs(&hidden));
    bench.driver.stop(id, PATIENCE).await.unwrap();
    assert!(!runs(&hidden), "it outlived its instance");

    // Also where the next run finds it.
    let launch = bench.script("setsid env -i sleep 1000 & echo hidden=$!; wait");
    let id = launch.id;
    bench.driver.start(launch).await.unwrap();
    let hidden = bench.said(id, "hidden").await;
    let after = bench.crash();
    after.sweep(bench.node).await;
    assert!(!runs(&hidden), "it outlived a crash");
}
