//! The program itself: exit codes, streams and signals as a shell sees them.

#![expect(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use lca::{
    api::proto::{
        self,
        manager_server::{Manager, ManagerServer},
    },
    local::Listener,
    shutdown::Tasks,
};
use tonic::{Request, Response, Status, codegen::BoxStream, service::Routes};

/// Longer than any command here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// `lcactl` with nothing of this machine's surroundings but the folder.
fn lcactl(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lcactl"));
    command.args(line.split_whitespace()).current_dir(dir);
    command.env_clear().env("XDG_RUNTIME_DIR", dir).env("HOME", dir).stdin(Stdio::null());
    command
}

fn run(dir: &Path, line: &str) -> Output {
    lcactl(dir, line).output().expect("lcactl can be run")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("lcactl prints UTF-8")
}

#[test]
fn a_wrong_command_line_is_told_as_json_where_json_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["-o json frobnicate", "allocate UPPER --output json", "-ojson"] {
        let ended = run(dir.path(), line);
        assert_eq!(ended.status.code(), Some(2), "{line}");
        assert!(ended.stdout.is_empty(), "{line}");
        let told: serde_json::Value = serde_json::from_slice(&ended.stderr).unwrap();
        assert_eq!(told["error"]["kind"], "invalid-argument", "{line}");
    }
}

#[test]
fn help_and_version_succeed_and_mistakes_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    for (line, code) in [
        ("--help", 0),
        ("--version", 0),
        ("service add --help", 0),
        ("", 2),
        ("frobnicate", 2),
        ("release", 2),
        ("allocate UPPER", 2),
        ("peers --address 127.0.0.1:4210", 2),
    ] {
        let ended = run(dir.path(), line);
        assert_eq!(ended.status.code(), Some(code), "{line}: {ended:?}");
        assert_eq!(ended.stdout.is_empty(), code != 0, "{line}");
        assert!(!text(&ended.stdout).contains('\x1b') && !text(&ended.stderr).contains('\x1b'));
    }
    assert!(!text(&run(dir.path(), "--help").stdout).contains("demo-hello-world-server"));
}

#[test]
fn without_a_daemon_it_says_so_at_once_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    for line in
        ["peers", "instances", "service list", "health", "allocate x", "logs 0", "release 0"]
    {
        let begun = Instant::now();
        let ended = run(dir.path(), line);
        assert_eq!(ended.status.code(), Some(4), "{line}: {ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{line} took {:?}", begun.elapsed());
        let lines: Vec<_> = text(&ended.stderr).lines().collect();
        assert_eq!(lines.len(), 2, "{line}: {lines:?}");
        assert!(lines[0].starts_with("error: no daemon answers in "), "{line}: {lines:?}");
        assert!(lines[1].starts_with("hint: start one with `lcactl up`"), "{line}: {lines:?}");
    }
}

#[test]
fn with_json_a_failure_is_one_document_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(dir.path(), "-o json instances");
    assert_eq!(text(&ended.stdout), "");
    let document: serde_json::Value = serde_json::from_slice(&ended.stderr).unwrap();
    assert_eq!(document["error"]["kind"], "unavailable");
    assert_eq!(document["error"]["exit_code"], 4);
}

#[test]
fn a_configuration_is_printed_or_refused_with_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let ended = run(dir.path(), "config check");
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(text(&ended.stderr), "there is no configuration file; these are the defaults\n");

    fs::write(dir.path().join("c.json"), r#"{"Perf":{"SoftReq":{"RTT":-5}},"X":1}"#).unwrap();
    let ended = run(dir.path(), "config check c.json");
    assert_eq!((ended.status.code(), text(&ended.stdout)), (Some(2), ""));
    assert_eq!(
        text(&ended.stderr),
        "error: c.json:1:27: Perf.SoftReq.RTT: must be a whole number of milliseconds from 1 to 3600000, not -5\n\
         error: c.json:1:32: X: is not known here; known are Perf, Bootstraps, WorkerThreads, Timeouts\n"
    );

    let peer = "/ip4/10.0.0.1/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    fs::create_dir(dir.path().join("conf")).unwrap();
    fs::write(dir.path().join("conf/conf.json"), r#"{"Perf":{"HardReq":{"RTT":7}}}"#).unwrap();
    let ended = lcactl(dir.path(), "config check").env("P2P_BOOTSTRAPS", peer).output().unwrap();
    let effective: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!(effective["Perf"]["HardReq"]["RTT"], 7);
    assert_eq!(effective["Bootstraps"][0], peer);
    assert_eq!(run(dir.path(), "config check none.json").status.code(), Some(3));
}

#[test]
fn a_reader_that_goes_away_is_quiet_success() {
    let dir = tempfile::tempdir().unwrap();
    // More than a pipe holds, so that the write meets the closed end.
    let peer = "\"/ip4/10.0.0.1/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA\"";
    let many = vec![peer; 5000].join(",");
    fs::write(dir.path().join("c.json"), format!("{{\"Bootstraps\":[{many}]}}")).unwrap();
    let mut command = lcactl(dir.path(), "config check c.json");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "{\n");
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), ""));
}

#[test]
fn a_full_disk_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    for line in ["config check", "--help"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = lcactl(dir.path(), line).stdout(full).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{line}: {ended:?}");
        assert!(text(&ended.stderr).contains("cannot write the output: "), "{line}: {ended:?}");
    }
}

/// A daemon that says that it serves, and never gets an instance started.
struct Busy(tokio::sync::mpsc::Sender<String>);

#[tonic::async_trait]
impl Manager for Busy {
    type AllocateStream = BoxStream<proto::AllocateProgress>;

    async fn allocate(
        &self,
        request: Request<proto::AllocateServiceRequest>,
    ) -> Result<Response<Self::AllocateStream>, Status> {
        self.0.send(request.into_inner().request_id).await.unwrap();
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }

    async fn resolve(
        &self,
        _: Request<proto::ResolveRequest>,
    ) -> Result<Response<proto::ResolveResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_peers(
        &self,
        _: Request<proto::ListPeersRequest>,
    ) -> Result<Response<proto::ListPeersResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn explain(
        &self,
        _: Request<proto::ExplainRequest>,
    ) -> Result<Response<proto::ExplainResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_an_older_daemon_does_not_know_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, _) = tokio::sync::mpsc::channel(1);
    let tasks = Tasks::default();
    let listener = Listener::bind(&dir.path().join("lca/proxy-4201.sock")).unwrap();
    listener.serve(Routes::new(ManagerServer::new(Busy(sender))), &tasks.spawner());
    for line in ["explain hello", "service list"] {
        let ended = run(dir.path(), line);
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains("does not know this call") && said.contains("hint: "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ctrl_c_in_an_allocation_ends_with_130_and_says_how_to_find_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let sockets = dir.path().join("lca");
    let (sender, mut asked) = tokio::sync::mpsc::channel(1);
    let tasks = Tasks::default();
    let routes = Routes::new(ManagerServer::new(Busy(sender)));
    let listener = Listener::bind(&sockets.join("proxy-4201.sock")).unwrap();
    listener.serve(routes, &tasks.spawner());
    // One that was killed left its socket, and one is stuck; both would come first.
    drop(UnixListener::bind(sockets.join("proxy-1.sock")).unwrap());
    let _stuck = UnixListener::bind(sockets.join("proxy-2.sock")).unwrap();
    let mut command = lcactl(dir.path(), "allocate hello --request-id abc");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let request = tokio::time::timeout(PATIENCE, asked.recv()).await.unwrap();
    assert_eq!(request.as_deref(), Some("abc"));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let begun = Instant::now();
    let status = child.wait().unwrap();
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(status.code(), Some(130));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(
        said,
        "interrupted\nhint: the start goes on; `lcactl allocate hello --request-id abc` waits for it again\n"
    );
}

// FAULTS 82: a black hole, at the level where a local command can meet one.
#[test]
fn a_daemon_that_is_stuck_is_given_up_within_5_s_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("stuck.sock");
    let _never_accepts = UnixListener::bind(&socket).unwrap();
    let given_up = &|line: &str| {
        let begun = Instant::now();
        let ended = lcactl(dir.path(), line).env("LCA_ADDRESS", &socket).output().unwrap();
        let took = begun.elapsed();
        assert_eq!(ended.status.code(), Some(4), "{line}: {ended:?}");
        let said = text(&ended.stderr);
        assert!(said.starts_with("error: ") && !said.contains("Timeout expired"), "{line}: {said}");
        let lines = said.lines().count();
        assert!(lines == 2 && said.contains("\nhint: ") || line == "health", "{line}: {said}");
        took
    };
    // The time of this machine is also others'; on a clock of its own the library's test
    // `a_daemon_that_never_answers_is_given_up` holds each command to the same at once.
    let lines = [
        "peers",
        "instances",
        "service list",
        "allocate x",
        "logs 0 -f",
        "release 0",
        "explain x",
        "doctor",
        "health",
    ];
    std::thread::scope(|scope| {
        for line in lines {
            scope.spawn(move || {
                let mut took = (0..4).map(|_| given_up(line));
                assert!(took.any(|took| took < Duration::from_secs(5)), "{line} takes longer");
            });
        }
    });
}

#[test]
fn an_empty_address_is_none_and_a_wrong_one_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let with =
        |address: &str| lcactl(dir.path(), "peers").env("LCA_ADDRESS", address).output().unwrap();
    let empty = with("");
    assert_eq!(empty.status.code(), Some(4), "{empty:?}");
    assert!(text(&empty.stderr).starts_with("error: no daemon answers in "), "{empty:?}");
    let wrong = with("ftp://x");
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
    assert!(text(&wrong.stderr).contains("LCA_ADDRESS"), "{wrong:?}");
    let nowhere = with("/nowhere/x.sock");
    assert_eq!(nowhere.status.code(), Some(4), "{nowhere:?}");
    assert_eq!(text(&nowhere.stderr).lines().count(), 2, "{nowhere:?}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let ended = run(dir.path(), "up --port 0 --data-dir file/data");
    assert_ne!(ended.status.code(), Some(0));
    let said = text(&ended.stderr);
    assert!(
        said.contains("cannot create the folder") && said.contains("Not a directory"),
        "{said}"
    );
    let ended = lcactl(dir.path(), "up --port 0").env("TMPDIR", dir.path().join("none")).output();
    let said = ended.unwrap().stderr;
    assert!(text(&said).contains("No such file or directory"), "{}", text(&said));
}
