//! Debian's `docker-registry` in a folder of its own, until it is dropped.

use std::{
    fs::File,
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use lca::{Digest, testing::eventually};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Its program.
pub(crate) const PROGRAM: &str = "/usr/bin/docker-registry";

/// What a manifest may be, as the engine asks for it.
const MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A registry that takes and gives everything to everybody.
pub(crate) struct Registry {
    address: SocketAddr,
    child: Child,
    dir: TempDir,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free); // it takes no socket, and no port 0 that one could find out
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http: {{addr: {address}}}\n",
            dir.path().join("data").display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(PROGRAM)
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let registry = Self { address, child, dir };
        eventually("the registry to answer", async || get(registry.address, "/v2/", "").await)
            .await;
        registry
    }

    /// Ends it; whoever asks is refused.
    pub(crate) fn stop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }

    /// Where it is, as names of images have it.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The digest of what a tag is.
    pub(crate) async fn digest(&self, repository: &str, tag: &str) -> Digest {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let answer = get(self.address, &path, &format!("accept: {MANIFESTS}\r\n")).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        Digest::of(body.as_bytes())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            eprintln!("the registry said: {log}");
        }
    }
}

/// The whole answer to a GET; an error unless it is 200.
async fn get(address: SocketAddr, path: &str, headers: &str) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(text)?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(text)?;
    if answer.starts_with("HTTP/1.1 200 ") { Ok(answer) } else { Err(answer) }
}
