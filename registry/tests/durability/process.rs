//! The registry's process: this very test program, started again.

use std::{
    env,
    io::Read as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use lca::{
    Digest, Error, Result,
    api::proto::{self, registry_client::RegistryClient},
    local,
    shutdown::Tasks,
    testing::eventually,
};
use lca_registry::Registry;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};
use tonic::{service::Routes, transport::Channel};

/// Tells the program started again which folder to serve, and where.
const DATA: &str = "DURABILITY_DATA";
const SOCKET: &str = "DURABILITY_SOCKET";
/// How the process ends if it may not use its folder.
pub(crate) const REFUSED: i32 = 2;

/// A registry's process. Killed when dropped.
pub(crate) struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Serves `dir/data` and waits until it does.
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_after(dir, None).await
    }

    /// The same, with a file system of its own prepared by a shell command first.
    pub(crate) async fn start_after(dir: &Path, prepare: Option<&str>) -> Self {
        let socket = dir.join("run/registry.sock");
        let child = command(dir, &socket, prepare).spawn().unwrap();
        let server = Self { child, socket };
        eventually("the registry to serve", async || local::connect(&server.socket).await).await;
        server
    }

    pub(crate) async fn client(&self) -> RegistryClient<Channel> {
        RegistryClient::new(local::connect(&self.socket).await.unwrap())
    }

    /// Ends it where it stands.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Longest file it can write from now on.
    pub(crate) fn limit_files(&self, bytes: Option<u64>) {
        let pid = Pid::from_raw(self.id().cast_signed());
        let limit = Rlimit { current: bytes, maximum: None };
        rustix::process::prlimit(pid, Resource::Fsize, limit).unwrap();
    }

    /// A path as the process sees it.
    pub(crate) fn inside(&self, path: &Path) -> PathBuf {
        Path::new("/proc")
            .join(self.id().to_string())
            .join("root")
            .join(path.strip_prefix("/").unwrap())
    }

    fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }
}

/// Starts a registry that must not serve; what it says.
pub(crate) async fn refused(dir: &Path, prepare: Option<&str>) -> String {
    let output = command(dir, &dir.join("run/other.sock"), prepare).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(REFUSED), "{said}{output:?}");
    said
}

fn command(dir: &Path, socket: &Path, prepare: Option<&str>) -> Command {
    let program = env::current_exe().unwrap();
    let mut command = match prepare {
        None => Command::new(&program),
        Some(prepare) => {
            let mut command = Command::new("unshare");
            command.args(["--map-root-user", "--mount", "sh", "-ec"]);
            command.arg(format!("{prepare}\nexec \"$0\" \"$@\"")).arg(&program);
            command
        }
    };
    command.args(["--exact", "process::serves_until_it_is_ended", "--ignored", "--nocapture"]);
    command.env(DATA, dir.join("data")).env(SOCKET, socket);
    // It ends when nobody holds the other end any more.
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

/// Whether this machine lets us have a file system of our own.
pub(crate) async fn can_mount() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]);
    let works = command.stderr(Stdio::null()).status().await.is_ok_and(|status| status.success());
    if !works {
        println!("not checked: this machine does not let us mount");
    }
    works
}

#[test]
#[ignore = "the process that the other tests start"]
fn serves_until_it_is_ended() {
    let (Some(data), Some(socket)) = (env::var_os(DATA), env::var_os(SOCKET)) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tasks = Tasks::default();
    let serving = runtime.enter();
    // A file that may not grow is an error to be told, not the end.
    let _handled = signal(SignalKind::from_raw(Signal::XFSZ.as_raw())).unwrap();
    let registry = Registry::open(Path::new(&data)).unwrap_or_else(|error| {
        println!("{error} ({})", error.hint_text().unwrap_or("no hint"));
        std::process::exit(REFUSED);
    });
    let listener = local::Listener::bind(Path::new(&socket)).unwrap();
    listener.serve(Routes::new(registry.server()), &tasks.spawner());
    drop(serving);
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).unwrap();
    std::process::exit(0);
}

/// A spec without an artifact; what differs between two of a name is `content`.
pub(crate) fn spec(name: &str, content: &str) -> proto::ServiceSpec {
    proto::ServiceSpec { name: name.into(), arguments: vec![content.into()], ..Default::default() }
}

/// Stores it; returns its revision.
pub(crate) async fn put(
    client: &mut RegistryClient<Channel>,
    spec: proto::ServiceSpec,
    if_revision: Option<u64>,
) -> Result<u64> {
    let request = proto::PutServiceRequest { spec: Some(spec), if_revision };
    let answer = client.put_service(request).await.map_err(Error::from)?.into_inner();
    Ok(answer.spec.unwrap().revision)
}

/// Every spec there is.
pub(crate) async fn list(client: &mut RegistryClient<Channel>) -> Vec<proto::ServiceSpec> {
    let answer = client.list_services(proto::ListServicesRequest::default()).await;
    answer.unwrap().into_inner().services
}

/// Uploads an artifact.
pub(crate) async fn upload(client: &mut RegistryClient<Channel>, bytes: &[u8]) -> Result<Digest> {
    use proto::put_artifact_request::Part;
    let digest = Digest::of(bytes);
    let header = proto::ArtifactHeader { digest: digest.to_string(), size: bytes.len() as u64 };
    let chunks = bytes.chunks(128 << 10).map(|chunk| Part::Data(chunk.to_vec()));
    let parts = std::iter::once(Part::Header(header)).chain(chunks);
    let parts: Vec<_> = parts.map(|part| proto::PutArtifactRequest { part: Some(part) }).collect();
    client.put_artifact(futures::stream::iter(parts)).await.map_err(Error::from)?;
    Ok(digest)
}
