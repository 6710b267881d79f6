//! Real daemons as processes of their own: this program again, under a daemon's name, so
//! that a benchmark needs nothing built beside it.

use std::{
    collections::HashMap,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lca_daemon::{args, run};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// A daemon says that it waits for requests well within this.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A daemon that was asked to stop has stopped within this.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Does what the daemon does whose name this process was started under, if it is one.
pub(crate) fn main() -> Option<ExitCode> {
    match std::env::args().next()?.as_str() {
        "registry" => Some(run::main::<args::Registry>()),
        "allocator" => Some(run::main::<args::Allocator>()),
        "proxy" => Some(run::main::<args::Proxy>()),
        _ => None,
    }
}

/// A daemon that waits for requests.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    report: HashMap<String, String>,
}

impl Daemon {
    /// Starts one with its state and its socket below `dir`, joining through `bootstrap`.
    pub(crate) async fn start(
        dir: &Path,
        name: &str,
        role: &str,
        arguments: &[&str],
        bootstrap: Option<&str>,
    ) -> anyhow::Result<Self> {
        Self::start_program(&std::env::current_exe()?, dir, name, role, arguments, bootstrap).await
    }

    /// The same of `program`, which is this one or the daemon's own.
    pub(crate) async fn start_program(
        program: &Path,
        dir: &Path,
        name: &str,
        role: &str,
        arguments: &[&str],
        bootstrap: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut command = std::process::Command::new(program);
        command.arg0(role).arg("--data-dir").arg(dir.join(name));
        command.args(bootstrap.iter().flat_map(|address| ["--bootstrap", address]));
        command.args(arguments);
        let log = std::env::var_os("RUST_LOG").unwrap_or_else(|| "error".into());
        command.env_clear().env("XDG_RUNTIME_DIR", dir).env("HOME", dir).env("RUST_LOG", log);
        command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = Command::from(command).kill_on_drop(true).spawn();
        let mut child = child.with_context(|| format!("cannot start {}", program.display()))?;
        let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
        let reading = timeout(READY_WITHIN, report(lines)).await;
        let report = reading.with_context(|| format!("{name} does not get ready"))??;
        Ok(Self { child, report })
    }

    /// What others give as `--bootstrap` to join through it.
    pub(crate) fn bootstrap(&self) -> anyhow::Result<&str> {
        self.told("libp2p")
    }

    /// A line of its report, by its first word.
    pub(crate) fn told(&self, what: &str) -> anyhow::Result<&str> {
        let value = self.report.get(what).map(String::as_str);
        value.with_context(|| format!("the report has no line {what}"))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().context("it still runs")
    }

    /// What it takes of the machine now.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(self.pid()?)
    }

    /// Stops it politely.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("it still runs")?, Signal::TERM)?;
        let status =
            timeout(STOP_WITHIN, self.child.wait()).await.context("it does not stop")??;
        ensure!(status.success(), "it ended with {status}, signal {:?}", status.signal());
        Ok(())
    }
}

/// The lines of a report up to the last, by their first word, which in a name of two words
/// counts as `local`.
async fn report(
    mut lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
) -> anyhow::Result<HashMap<String, String>> {
    let mut report = HashMap::new();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("Waiting for requests") {
            return Ok(report);
        }
        let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
        let value = value.trim().trim_start_matches("API").trim_start();
        report.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    anyhow::bail!("it ended after saying {report:?}")
}

/// What a process has taken so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// Resident memory now, and at most so far, in bytes.
    pub(crate) rss: u64,
    pub(crate) peak_rss: u64,
    /// Processor time of all its threads since its start.
    pub(crate) cpu: Duration,
}

impl Usage {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in brackets may contain blanks; utime and stime are the 12th and 13th
        // field after it (proc(5)).
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let ticks =
            |n| fields.split_whitespace().nth(n).and_then(|field| field.parse::<u64>().ok());
        let ticks = ticks(11).zip(ticks(12)).context("/proc/PID/stat has its fields")?;
        Ok(Self {
            rss: kib("VmRSS:").context("VmRSS")? << 10,
            peak_rss: kib("VmHWM:").context("VmHWM")? << 10,
            cpu: Duration::from_secs_f64(
                (ticks.0 + ticks.1) as f64 / rustix::param::clock_ticks_per_second() as f64,
            ),
        })
    }
}
