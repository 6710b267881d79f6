//! The README's first command, as a real process: `lcactl up`.

use std::{
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use lca_tests::{eventually, http as client, processes, program};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, timeout},
};

/// A running `lcactl up` and what it printed.
pub(crate) struct Up {
    child: Child,
    pub(crate) front: SocketAddr,
    pub(crate) report: String,
    runtime_dir: tempfile::TempDir,
}

impl Up {
    pub(crate) async fn start(arguments: &[&str]) -> anyhow::Result<Self> {
        let runtime_dir = tempfile::Builder::new().prefix("lca-up-test-").tempdir()?;
        let mut child = lcactl(runtime_dir.path())
            .args(["up", "--port", "0", "--grpc-port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(runtime_dir.path().join("log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let mut report = String::new();
        let read = async {
            while let Some(line) = lines.next_line().await? {
                report += &line;
                report.push('\n');
                if line.starts_with("Waiting for requests") {
                    return anyhow::Ok(());
                }
            }
            anyhow::bail!("it ended after printing {report:?}")
        };
        timeout(Duration::from_secs(30), read).await.context("waiting for it to be up")??;
        let curl = report.lines().find(|line| line.contains("curl ")).context("no curl line")?;
        let url = curl.trim().trim_start_matches("curl http://");
        let front = url.split('/').next().context("no address")?.parse()?;
        Ok(Self { child, front, report, runtime_dir })
    }

    pub(crate) async fn lcactl(&self, arguments: &[&str]) -> anyhow::Result<(ExitStatus, String)> {
        let output = lcactl(self.runtime_dir.path()).args(arguments).output();
        let output = timeout(Duration::from_secs(20), output).await??;
        Ok((output.status, String::from_utf8(output.stdout)?))
    }

    pub(crate) async fn stop(self, signal: Signal) -> anyhow::Result<ExitStatus> {
        Ok(self.stop_and_read_log(signal).await?.0)
    }

    /// Resolves when some instance has an open request.
    async fn is_busy(&self) {
        eventually("a request to be in flight", async || {
            let (_, json) = self.lcactl(&["-o", "json", "instances"]).await?;
            let document: serde_json::Value = serde_json::from_str(&json)?;
            let busy = |instance: &serde_json::Value| instance["load"]["in_flight"] == 1;
            let found = document["instances"].as_array().is_some_and(|all| all.iter().any(busy));
            anyhow::ensure!(found, "{document}");
            Ok(())
        })
        .await;
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid =
            self.child.id().and_then(|pid| Pid::from_raw(pid as i32)).context("it still runs")?;
        Ok(kill_process(pid, signal)?)
    }

    fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.runtime_dir.path().join("log"))?)
    }

    async fn stop_and_read_log(mut self, signal: Signal) -> anyhow::Result<(ExitStatus, String)> {
        self.signal(signal)?;
        let status = timeout(Duration::from_secs(5), self.child.wait()).await;
        let log = self.log()?;
        Ok((status.with_context(|| format!("stopping within 5 s; it said {log}"))??, log))
    }
}

/// A test that fails leaves no instance behind: they outlive an `up` that is killed.
impl Drop for Up {
    fn drop(&mut self) {
        let _gone_already = self.child.start_kill();
        processes::kill_below(self.runtime_dir.path());
    }
}

fn lcactl(runtime_dir: &Path) -> Command {
    let mut command = Command::new(program("lcactl"));
    // Nothing of whoever runs the tests: no address, no configuration, no bootstraps.
    let folders = ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "HOME", "TMPDIR"];
    command.env_clear().envs(folders.map(|name| (name, runtime_dir))).current_dir("/");
    command
}

#[tokio::test]
async fn the_readme_story_is_true() -> anyhow::Result<()> {
    let up = Up::start(&[]).await?;
    let (_, none) = up.lcactl(&["instances"]).await?;
    assert!(!none.contains("hello-world-server"), "nothing runs before the first request: {none}");

    let answer = client::get(up.front, "/hello-world-server/hello").await?;
    assert_eq!(answer.text(), "Hello, world\n");

    let (status, instances) = up.lcactl(&["instances"]).await?;
    assert!(status.success() && instances.contains("hello-world-server"), "{instances}");
    let (status, peers) = up.lcactl(&["peers"]).await?;
    assert!(status.success(), "{peers}");
    for role in ["registry", "allocator", "proxy"] {
        assert!(peers.contains(role), "{role} is missing in {peers}");
    }
    let (status, services) = up.lcactl(&["service", "list"]).await?;
    assert!(status.success() && services.contains("hello-world-server"), "{services}");
    let (status, allocated) = up.lcactl(&["allocate", "hello-world-server", "--new"]).await?;
    assert!(status.success(), "{allocated}");
    let (status, health) = up.lcactl(&["health"]).await?;
    assert!(status.success(), "{health}");
    let (status, doctor) = up.lcactl(&["doctor", "hello-world-server"]).await?;
    assert!(status.success() && doctor.contains("answered 200"), "{doctor}");

    // The port for peers speaks TLS; a person who mistakes it for the API is told so.
    let mesh =
        up.report.lines().find_map(|line| line.strip_prefix("proxy")?.split_whitespace().nth(1));
    let wrong = format!("http://{}", mesh.context("no mesh address")?);
    let output = lcactl(up.runtime_dir.path()).args(["--address", &wrong, "peers"]).output();
    let output = timeout(Duration::from_secs(5), output).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("does not speak gRPC without TLS"), "{said}");

    let dir = up.runtime_dir.path().to_owned();
    assert_eq!(processes::below(&dir).len(), 2, "two instances run");
    let status = up.stop(Signal::INT).await?;
    assert!(status.success(), "Ctrl-C is a clean end: {status}");
    assert!(processes::below(&dir).is_empty(), "an instance outlived its network");
    Ok(())
}

// FAULTS 82: what shells do with the output of a command.
#[tokio::test]
async fn a_closed_pipe_is_quiet_and_a_full_disk_is_a_failure() -> anyhow::Result<()> {
    let up = Up::start(&[]).await?;
    let shell = async |line: &str| {
        let mut command = Command::new("sh");
        command.env_clear().env("LCACTL", program("lcactl"));
        command.env("XDG_RUNTIME_DIR", up.runtime_dir.path()).args(["-c", line]);
        timeout(Duration::from_secs(20), command.output()).await
    };
    assert_eq!(client::get(up.front, "/hello-world-server/hello").await?.status, 200);
    let all = [
        "service list",
        "service get hello-world-server",
        "instances",
        "peers",
        "health",
        "doctor",
        "explain hello-world-server",
        "allocate hello-world-server",
        "config check",
    ];
    for command in all {
        let line = format!(r#"{{ "$LCACTL" {command}; echo "ended with $?" >&2; }} | head -1"#);
        let cut = shell(&line).await??;
        assert!(cut.stdout.ends_with(b"\n"), "{command}: {cut:?}");
        let said = String::from_utf8_lossy(&cut.stderr).into_owned();
        assert!(said.ends_with("ended with 0\n") && !said.contains("error"), "{command}: {said}");
        let full = shell(&format!(r#""$LCACTL" {command} > /dev/full"#)).await??;
        assert_eq!(full.status.code(), Some(1), "{command}: {full:?}");
        let said = String::from_utf8_lossy(&full.stderr).into_owned();
        let why = "error: cannot write the output: No space left";
        assert!(said.lines().any(|line| line.starts_with(why)), "{command}: {said}");
        let full = shell(&format!(r#""$LCACTL" -o json {command} > /dev/full"#)).await??;
        assert_eq!(full.status.code(), Some(1), "{command}: {full:?}");
        let told: serde_json::Value = serde_json::from_slice(&full.stderr)
            .with_context(|| format!("{command}: not JSON: {full:?}"))?;
        assert_eq!(told["error"]["exit_code"], 1, "{command}: {told}");
    }
    assert!(up.stop(Signal::INT).await?.success());
    Ok(())
}

#[tokio::test]
async fn logs_are_followed_across_peers_to_the_end_of_the_instance() -> anyhow::Result<()> {
    let up = Up::start(&["--nodes", "2"]).await?;
    let (_, json) = up.lcactl(&["allocate", "hello-world-server", "-o", "json"]).await?;
    let document: serde_json::Value = serde_json::from_str(&json)?;
    let id = document["instance"]["id"].as_str().context("an id")?.to_owned();
    // Asked of the proxy's socket, answered by one of the two allocators.
    let following = lcactl(up.runtime_dir.path())
        .args(["logs", &id[..8], "-f"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (status, released) = up.lcactl(&["release", &id]).await?;
    assert!(status.success(), "{released}");
    let ended = timeout(Duration::from_secs(20), following.wait_with_output()).await??;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success(), "{ended:?}");
    assert!(said.starts_with("the instance has ended: "), "{said}");
    assert!(up.stop(Signal::INT).await?.success());
    Ok(())
}

#[tokio::test]
async fn a_stop_cuts_a_long_request_and_still_ends_in_time() -> anyhow::Result<()> {
    let up = Up::start(&[]).await?;
    assert_eq!(client::get(up.front, "/hello-world-server/hello").await?.status, 200);
    let front = up.front;
    let dir = up.runtime_dir.path().to_owned();
    let long =
        tokio::spawn(async move { client::get(front, "/hello-world-server/slow?ms=60000").await });
    up.is_busy().await;
    let _forced_or_not = up.stop(Signal::TERM).await?;
    assert!(processes::below(&dir).is_empty(), "an instance outlived its network");
    long.abort();
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_leaves_no_instance() -> anyhow::Result<()> {
    // The request and the instance alone would be given two seconds; a busy machine may
    // take as long now and then, but not each time.
    let mut took = Vec::new();
    while took.len() < 5 && !took.iter().any(|took| *took < Duration::from_millis(1500)) {
        took.push(ended_by_a_second_signal().await?);
    }
    assert!(took.iter().any(|took| *took < Duration::from_millis(1500)), "took {took:?}");
    Ok(())
}

/// How long it takes from the second signal to the end.
async fn ended_by_a_second_signal() -> anyhow::Result<Duration> {
    let mut up = Up::start(&["--log-format", "json"]).await?;
    let program = program("hello-world-server");
    let program = program.to_str().context("a plain path")?;
    let add = ["service", "add", "deaf", "--exec", program, "--", "--ignore-term"];
    let (status, said) = up.lcactl(&add).await?;
    assert!(status.success(), "{said}");
    let front = up.front;
    let long = tokio::spawn(async move { client::get(front, "/deaf/slow?ms=60000").await });
    up.is_busy().await;
    let dir = up.runtime_dir.path().to_owned();
    assert_eq!(processes::below(&dir).len(), 1, "one instance runs");

    up.signal(Signal::INT)?;
    eventually("it to begin to stop", async || {
        let log = up.log()?;
        anyhow::ensure!(log.contains(r#""message":"stopping""#), "{log}");
        Ok(())
    })
    .await;
    let since = Instant::now();
    up.signal(Signal::INT)?;
    let status = timeout(Duration::from_secs(30), up.child.wait()).await??;
    let took = since.elapsed();
    assert!(!status.success(), "it was forced: {status}");
    assert!(processes::below(&dir).is_empty(), "an instance outlived its network");
    long.abort();
    Ok(took)
}

#[tokio::test]
async fn a_data_dir_keeps_identities_and_services() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let data_dir = data.path().to_str().context("a plain path")?;
    let up = Up::start(&["--data-dir", data_dir, "--nodes", "2"]).await?;
    let ids = |report: &str| -> Vec<String> {
        let ids = report.split_whitespace().filter_map(|word| word.split("/p2p/").nth(1));
        ids.map(str::to_owned).collect()
    };
    let before = ids(&up.report);
    assert_eq!(before.len(), 4, "a registry, two allocators, a proxy: {}", up.report);
    let (status, _) = up.lcactl(&["service", "add", "other", "--external"]).await?;
    assert!(status.success());
    assert!(up.stop(Signal::TERM).await?.success());

    let up = Up::start(&["--data-dir", data_dir, "--nodes", "2"]).await?;
    assert_eq!(ids(&up.report), before, "each node is who it was");
    let (_, services) = up.lcactl(&["service", "list"]).await?;
    assert!(services.contains("other"), "{services}");
    assert_eq!(client::get(up.front, "/hello-world-server/hello").await?.text(), "Hello, world\n");
    assert!(up.stop(Signal::INT).await?.success());
    Ok(())
}

#[tokio::test]
async fn a_relative_data_dir_works_and_a_closed_terminal_is_a_clean_end() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    // `lcactl` is started in the root folder.
    let relative = data.path().strip_prefix("/")?.join("data");
    let up = Up::start(&["--data-dir", relative.to_str().context("a plain path")?]).await?;
    assert_eq!(client::get(up.front, "/hello-world-server/hello").await?.text(), "Hello, world\n");
    assert_eq!(processes::below(data.path()).len(), 1);
    let status = up.stop(Signal::HUP).await?;
    assert!(status.success(), "{status}");
    assert!(processes::below(data.path()).is_empty(), "an instance outlived its network");
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_named_and_nothing_is_half_started() -> anyhow::Result<()> {
    let holder = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = holder.local_addr()?.port().to_string();
    let runtime_dir = tempfile::tempdir()?;
    let output =
        lcactl(runtime_dir.path()).args(["up", "--port", &port, "--grpc-port", "0"]).output();
    let output = timeout(Duration::from_secs(20), output).await??;
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr)?;
    assert!(said.contains(&format!("127.0.0.1:{port}")), "{said}");
    assert!(output.stdout.is_empty(), "it claimed to be up");
    assert!(processes::below(runtime_dir.path()).is_empty());
    let sockets = lca::local::sockets(&runtime_dir.path().join("lca"));
    assert!(sockets.is_empty(), "sockets are left: {sockets:?}");
    Ok(())
}

#[tokio::test]
async fn the_log_says_who_each_node_is_and_is_json_on_request() -> anyhow::Result<()> {
    let up = Up::start(&["--log-format", "json"]).await?;
    assert_eq!(client::get(up.front, "/hello-world-server/hello").await?.status, 200);
    let (_, log) = up.stop_and_read_log(Signal::INT).await?;
    let mut roles = Vec::new();
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("{line:?} is not JSON"))?;
        if line["message"] == "listening" {
            assert!(
                line["peer"].as_str().is_some_and(|peer| peer.starts_with("12D3Koo")),
                "{line}"
            );
            assert!(
                line["mesh"].as_str().is_some_and(|mesh| mesh.contains("127.0.0.1:")),
                "{line}"
            );
            roles.push(line["role"].as_str().unwrap_or_default().to_owned());
        }
    }
    roles.sort();
    assert_eq!(roles, ["allocator", "proxy", "registry"], "{log}");
    assert!(!log.contains("/hello\""), "no line for each request at the default level: {log}");
    Ok(())
}
