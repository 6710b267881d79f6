//! The same two hops (client, proxy, mutual TLS, proxy, application) through nginx and through
//! haproxy, one worker each, connections to the next hop kept. Needs both and openssl.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::process::Child;

use crate::{hops::target, plain::Client};

/// They answer through both hops within this.
const READY_WITHIN: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(50);

/// See the module. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Others {
    pub(crate) nginx: SocketAddr,
    pub(crate) haproxy: SocketAddr,
    _children: Vec<Child>,
    _dir: TempDir,
}

impl Others {
    /// Starts both before `app`, and waits until each answers.
    pub(crate) async fn start(app: SocketAddr) -> anyhow::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("lca-bench-").tempdir()?;
        let dir = temporary.path();
        certificates(dir)?;
        let [nb, na, hb, ha] = ports()?;
        let d = dir.display();
        let prefix = target("");
        let behind = format!(
            "upstream app {{ server {app}; keepalive 256; keepalive_requests 100000000; }}
server {{ listen {nb} ssl; ssl_certificate {d}/b.crt; ssl_certificate_key {d}/b.key;
  ssl_client_certificate {d}/ca.crt; ssl_verify_client on;
  location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; }} }}"
        );
        let before = format!(
            "upstream b {{ server {nb}; keepalive 256; keepalive_requests 100000000; }}
server {{ listen {na};
  location {prefix} {{ proxy_pass https://b/; proxy_http_version 1.1;
    proxy_set_header Connection ''; proxy_ssl_certificate {d}/a.crt;
    proxy_ssl_certificate_key {d}/a.key; proxy_ssl_trusted_certificate {d}/ca.crt;
    proxy_ssl_verify on; proxy_ssl_name b; }} }}"
        );
        let mut children = Vec::new();
        for (name, servers) in [("nb", behind), ("na", before)] {
            let file = nginx_file(dir, name, &servers)?;
            let mut command = Command::new(found("nginx"));
            children.push(spawn(command.arg("-p").arg(dir).arg("-c").arg(file))?);
        }
        let common = "global\n  nbthread 1\n  maxconn 8000\ndefaults\n  mode http\n  \
            timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n  http-reuse always\n  \
            option http-keep-alive\n";
        let behind = format!(
            "{common}frontend f\n  bind {hb} ssl crt {d}/b.pem ca-file {d}/ca.crt verify required\n  \
             default_backend app\nbackend app\n  server s {app}\n"
        );
        let before = format!(
            "{common}frontend f\n  bind {ha}\n  http-request replace-path {prefix}(.*) /\\1\n  \
             default_backend b\nbackend b\n  server s {hb} ssl crt {d}/a.pem ca-file {d}/ca.crt \
             verify required verifyhost b\n"
        );
        for (name, text) in [("hb.cfg", behind), ("ha.cfg", before)] {
            let file = dir.join(name);
            fs::write(&file, text)?;
            children.push(spawn(Command::new(found("haproxy")).arg("-db").arg("-f").arg(file))?);
        }
        let deadline = Instant::now() + READY_WITHIN;
        for (name, at) in [("nginx", na), ("haproxy", ha)] {
            while let Err(error) = once(at).await {
                ensure!(Instant::now() < deadline, "{name} does not answer: {error:#}");
                tokio::time::sleep(AGAIN).await;
            }
        }
        Ok(Self { nginx: na, haproxy: ha, _children: children, _dir: temporary })
    }
}

async fn once(at: SocketAddr) -> anyhow::Result<u64> {
    Client::connect(at, &target("hello")).await?.get().await
}

/// Four that are free now.
fn ports() -> anyhow::Result<[SocketAddr; 4]> {
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    let ports = held.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
    ports.try_into().ok().context("four were asked for")
}

fn nginx_file(dir: &Path, name: &str, servers: &str) -> anyhow::Result<PathBuf> {
    let at = dir.join(name);
    let at = at.display();
    let folders: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {at}-{what}; "))
        .collect();
    let file = dir.join(format!("{name}.conf"));
    let text = format!(
        "worker_processes 1; master_process off; daemon off; pid {at}.pid; error_log {at}.err;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 100000000; {folders}
{servers} }}\n"
    );
    fs::write(&file, text)?;
    Ok(file)
}

fn spawn(command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let name = command.get_program().to_owned();
    let command = std::mem::replace(command, Command::new(""));
    let child = tokio::process::Command::from(command).kill_on_drop(true).spawn();
    child
        .with_context(|| format!("cannot start {} (apt-get install nginx haproxy)", name.display()))
}

/// Debian has them where a user's `PATH` does not look.
fn found(program: &str) -> PathBuf {
    let system = Path::new("/usr/sbin").join(program);
    if system.exists() { system } else { program.into() }
}

/// An authority, and a certificate of it for each of the two hops.
fn certificates(dir: &Path) -> anyhow::Result<()> {
    let openssl = |words: &str| -> anyhow::Result<()> {
        let mut command = Command::new("openssl");
        command.args(words.split(' ')).current_dir(dir).stderr(Stdio::null());
        let status = command.stdout(Stdio::null()).status().context("cannot start openssl")?;
        ensure!(status.success(), "openssl {words}: {status}");
        Ok(())
    };
    let key = "ecparam -name prime256v1 -genkey -noout -out";
    openssl(&format!("{key} ca.key"))?;
    openssl("req -x509 -new -key ca.key -subj /CN=ca -days 2 -out ca.crt")?;
    for name in ["a", "b"] {
        openssl(&format!("{key} {name}.key"))?;
        openssl(&format!("req -new -key {name}.key -subj /CN={name} -out {name}.csr"))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -out {name}.crt"
        ))?;
        let [certificate, key] = ["crt", "key"].map(|kind| dir.join(format!("{name}.{kind}")));
        let both = fs::read_to_string(certificate)? + &fs::read_to_string(key)?;
        fs::write(dir.join(format!("{name}.pem")), both)?;
    }
    Ok(())
}
