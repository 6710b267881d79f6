//! A machine of a test: a home that nobody else has, and daemons started in it.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use lca::testing::eventually;
use rustix::process::{Pid, Signal, kill_process};

/// The binary of a daemon.
pub(crate) fn binary(name: &str) -> &'static str {
    match name {
        "registry" => env!("CARGO_BIN_EXE_registry"),
        "allocator" => env!("CARGO_BIN_EXE_allocator"),
        _ => env!("CARGO_BIN_EXE_proxy"),
    }
}

/// Folders that look to a daemon like a user's.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("work")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with nothing of the environment of the test.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path())
            .current_dir(self.path("work"));
        command
    }

    /// A daemon with these arguments.
    pub(crate) fn daemon(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(binary(name));
        command.args(arguments);
        command
    }

    /// Starts it without waiting for anything.
    pub(crate) fn spawn(&self, mut command: Command) -> Process {
        let number = std::fs::read_dir(self.dir.path()).unwrap().count();
        let (out, err) = (self.path(&format!("{number}.out")), self.path(&format!("{number}.err")));
        let file = |path: &Path| Stdio::from(File::create(path).unwrap());
        let child = command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        Process { child: child.spawn().unwrap(), out, err }
    }

    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(&self, name: &str, arguments: &[&str]) -> Process {
        let mut process = self.spawn(self.daemon(name, arguments));
        process.ready().await;
        process
    }

    /// Runs it to its end: exit code, standard output, standard error.
    pub(crate) fn run(&self, mut command: Command) -> (i32, String, String) {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}

/// A daemon of a test; killed with it.
pub(crate) struct Process {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn out(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub(crate) fn err(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub(crate) async fn ready(&mut self) {
        eventually("the daemon to be ready", async || {
            if let Some(ended) = self.child.try_wait().unwrap() {
                panic!("it ended: {ended}: {}", self.err());
            }
            if self.out().ends_with("Waiting for requests\n") { Ok(()) } else { Err(self.err()) }
        })
        .await;
    }

    /// The value of a line of the report.
    pub(crate) fn line(&self, name: &str) -> String {
        let out = self.out();
        let value = out.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap_or_else(|| panic!("no {name} in {out}")).trim().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        eventually("the daemon to end", async || self.child.try_wait().unwrap()).await
    }

    /// Asks it to stop, and returns its exit code.
    pub(crate) async fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.ended().await.code()
    }

    pub(crate) async fn says(&self, text: &str) {
        eventually(text, async || {
            let err = self.err();
            if err.contains(text) { Ok(()) } else { Err(err) }
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped_already = self.child.wait();
    }
}
