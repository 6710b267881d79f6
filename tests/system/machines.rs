//! Machines of a test: folders that nobody else has, a shell that finds the programs of
//! this build, and daemons that are processes started from it.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use lca_tests::{eventually, processes, program};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

/// Longer than any command of a story takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// One machine: its home, and the clone of the repository it works in.
pub(crate) struct Machine {
    home: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("lca-machine-").tempdir()?;
        let machine = Self { home };
        fs::create_dir_all(machine.clone_dir().join("conf"))?;
        fs::create_dir_all(machine.clone_dir().join("target"))?;
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/conf.json");
        fs::copy(shipped, machine.clone_dir().join("conf/conf.json"))?;
        symlink(built(), machine.clone_dir().join("target/release"))?;
        Ok(machine)
    }

    fn clone_dir(&self) -> PathBuf {
        self.home.path().join("clone")
    }

    /// A shell with nothing of the environment of the test.
    fn shell(&self, script: &str) -> Command {
        let mut shell = Command::new("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        shell
            .env_clear()
            .env("PATH", format!("{}:{path}", built().display()))
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.home.path())
            .current_dir(self.clone_dir())
            .stdin(Stdio::null())
            .args(["-c", script]);
        shell
    }

    /// Types a command and waits for its end.
    pub(crate) async fn run(&self, command: &str) -> anyhow::Result<Output> {
        let mut shell = tokio::process::Command::from(self.shell(command));
        let output = timeout(PATIENCE, shell.kill_on_drop(true).output()).await;
        output.with_context(|| format!("{command} takes too long"))?.context("sh")
    }

    /// As [`run`](Self::run): what was printed by a command that succeeds.
    pub(crate) async fn prints(&self, command: &str) -> anyhow::Result<String> {
        let output = self.run(command).await?;
        anyhow::ensure!(output.status.success(), "{command}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Types a command that goes on, and leaves it its terminal.
    pub(crate) async fn start(&self, command: &str) -> anyhow::Result<Daemon> {
        let number = fs::read_dir(self.home.path())?.count();
        let file = |kind: &str| self.home.path().join(format!("{number}.{kind}"));
        let (out, err, pid) = (file("out"), file("err"), file("pid"));
        let script = format!("{command} &\necho $! > {}\nwait $!", pid.display());
        let mut shell = self.shell(&script);
        shell.stdout(File::create(&out)?).stderr(File::create(&err)?);
        let shell = shell.spawn()?;
        let pid = eventually("the shell to start it", async || {
            let text = fs::read_to_string(&pid).map_err(|error| error.to_string())?;
            text.trim().parse().ok().and_then(Pid::from_raw).ok_or(text)
        })
        .await;
        Ok(Daemon { command: command.to_owned(), shell, pid, out, err })
    }

    /// Processes that work somewhere below this machine's home.
    pub(crate) fn processes(&self) -> Vec<i32> {
        processes::below(self.home.path())
    }

    /// Where its allocator keeps the folders of instances.
    pub(crate) fn allocator_dir(&self) -> PathBuf {
        self.home.path().join(".local/share/lca/allocator/allocator/instances")
    }

    /// Folders of instances that its allocator has.
    pub(crate) fn instance_folders(&self) -> Vec<String> {
        let entries = fs::read_dir(self.allocator_dir()).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.path().is_dir());
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Sockets of daemons that are there.
    pub(crate) fn sockets(&self) -> usize {
        lca::local::sockets(&self.home.path().join("lca")).len()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        processes::kill_below(self.home.path());
    }
}

/// The folder with the programs.
fn built() -> PathBuf {
    let lcactl = program("lcactl");
    lcactl.parent().expect("a file is in a folder").to_owned()
}

/// A process that was started from a shell.
pub(crate) struct Daemon {
    command: String,
    shell: Child,
    pid: Pid,
    out: PathBuf,
    err: PathBuf,
}

impl Daemon {
    pub(crate) fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    pub(crate) fn err(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    pub(crate) async fn waits_for_requests(&mut self) -> anyhow::Result<()> {
        eventually("`Waiting for requests`", async || {
            if let Some(status) = self.shell.try_wait()? {
                panic!("{} ended: {status}: {}", self.command, self.err());
            }
            let out = self.out();
            anyhow::ensure!(out.ends_with("\nWaiting for requests\n"), "{out}{}", self.err());
            Ok(())
        })
        .await;
        Ok(())
    }

    /// A line of the report.
    pub(crate) fn line(&self, name: &str) -> anyhow::Result<String> {
        let out = self.out();
        let line = out.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name} in {out}"))?.trim().to_owned())
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether this is the shell it was started from.
    pub(crate) fn is_shell(&self, pid: i32) -> bool {
        self.shell.id().cast_signed() == pid
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// The end of it, as the shell tells it.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("it to end", async || self.shell.try_wait().ok().flatten()).await
    }

    /// As if the machine had lost it.
    pub(crate) async fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.ended().await;
        Ok(())
    }

    /// Asks it to stop, and waits for a clean end.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.ended().await;
        anyhow::ensure!(status.success(), "{}: {status}: {}", self.command, self.err());
        Ok(())
    }
}

/// The machine goes after its daemons and takes them with it; this reaps the shell.
impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone_already = kill_process(self.pid, Signal::KILL);
        let _gone_already = self.shell.kill();
        let _reaped_already = self.shell.wait();
    }
}

/// A port that is free on every address of this computer, and outside of the range from
/// which the kernel gives ports to others: it stays free until it is used.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() % 11_000) as u16;
    for _ in 0..11_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + (first + step % 11_000) % 11_000;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}
