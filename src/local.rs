//! The local API's unix socket: where it is, who may open it, how it is served.
//!
//! A daemon listens on `<dir>/<role>-<port>.sock`, 0600, where `<dir>` is
//! `$XDG_RUNTIME_DIR/lca`, or `/tmp/lca-<uid>` where that is unset, and `<port>` is the
//! front's, else the mesh port. The folder is made with mode 0700; one that exists must
//! be this user's, and nobody else may write to it. Whoever can open the socket may do
//! what a daemon's user may do.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tonic::{service::Routes, transport::Channel};

use crate::{
    Error, Kind, Result,
    api::{self, Caller, Identified},
    endpoint::Role,
    listen::{Acceptor, Places},
    shutdown::Spawner,
};

pub use token::Token;

pub mod tcp;
mod token;

/// A daemon on this machine accepts at once or is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// What remains of a call when the daemon stops: hyper may wait for an idle
/// connection for ever.
const LINGER: Duration = Duration::from_millis(500);

/// Open connections of programs by one listener, unless told otherwise: a program needs one;
/// each costs a descriptor and some kilobytes.
pub const CONNECTIONS: usize = 1024;

/// The folder of this user's sockets.
pub fn default_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if !dir.is_empty() => PathBuf::from(dir).join("lca"),
        _ => PathBuf::from(format!("/tmp/lca-{}", rustix::process::geteuid().as_raw())),
    }
}

/// The socket of one daemon.
pub fn socket(dir: &Path, role: Role, port: u16) -> PathBuf {
    dir.join(format!("{role}-{port}.sock"))
}

/// The sockets in `dir`, in the order a client tries them: proxies, allocators,
/// registries, each by port, so that `proxy-4201` usually comes first.
pub fn sockets(dir: &Path) -> Vec<PathBuf> {
    let order = [Role::Proxy, Role::Allocator, Role::Registry];
    let rank = |path: &Path| {
        let (role, port) = path.file_stem()?.to_str()?.rsplit_once('-')?;
        let role = order.iter().position(|known| known.as_str() == role)?;
        (path.extension()? == "sock").then_some(())?;
        Some((role, port.parse::<u16>().ok()?))
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found: Vec<_> = entries.filter_map(|path| Some((rank(&path)?, path))).collect();
    found.sort_unstable();
    found.into_iter().map(|(_, path)| path).collect()
}

/// Opens the local API at `path`.
///
/// # Errors
/// [`Kind::Unavailable`] if no daemon answers there within two seconds.
pub async fn connect(path: &Path) -> Result<Channel> {
    let unreachable =
        || Error::new(Kind::Unavailable, format!("no daemon answers on {}", path.display()));
    let target = path.to_owned();
    let connector = tower::service_fn(move |_| {
        let target = target.clone();
        async move { UnixStream::connect(target).await.map(TokioIo::new) }
    });
    // h2 takes no socket path as authority.
    let endpoint = api::client("localhost")?;
    let connecting = endpoint.connect_with_connector(connector);
    match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
        Ok(connected) => connected.map_err(|error| unreachable().because(error)),
        Err(_) => Err(unreachable()),
    }
}

/// A bound socket; the file goes when this is dropped, or when serving ends.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    file: RemoveOnDrop,
    connections: usize,
}

impl Listener {
    /// Binds `path`, replacing what a dead daemon left there. Needs a runtime.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if a daemon answers there; [`Kind::FailedPrecondition`] if
    /// the folder is somebody else's or open to others, or the path too long.
    pub fn bind(path: &Path) -> Result<Self> {
        let failed = |what: &str, error: io::Error| {
            Error::new(Kind::FailedPrecondition, format!("{what} {}", path.display()))
                .because(error)
        };
        if let Some(dir) = path.parent() {
            make_private(dir)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(Error::new(
                Kind::Conflict,
                format!("another daemon listens on {}", path.display()),
            ));
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("cannot replace", error));
            }
            _ => {}
        }
        let socket = UnixListener::bind(path).map_err(|error| failed("cannot listen on", error))?;
        let file = RemoveOnDrop(path.to_owned());
        let listener = Self { socket, file, connections: CONNECTIONS };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| failed("cannot protect", error))?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// Holds at most this many connections at once; one more is closed.
    #[must_use]
    pub fn holding(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    /// Serves the local API until the daemon stops.
    pub fn serve(self, routes: Routes, spawner: &Spawner) {
        let stop = spawner.stop_token();
        let stopping = spawner.stopping();
        spawner.spawn("local api", async move {
            const NAME: &str = "programs of this machine";
            let Self { socket, file, connections } = self;
            let entrance = (Acceptor::new(socket, NAME), Places::new(connections));
            let incoming = futures::stream::unfold(entrance, async |(mut acceptor, mut places)| {
                loop {
                    let stream = acceptor.accept().await;
                    if let Some(place) = places.enter(NAME) {
                        let stream = Identified::new(stream, Caller::Local).in_place(place);
                        return Some((Ok::<_, io::Error>(stream), (acceptor, places)));
                    }
                }
            });
            let served = api::server()
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
            let lingered = async {
                stopping.await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::select! {
                ended = served => if let Err(error) = ended {
                    tracing::error!(%error, "the local API failed");
                },
                () = lingered => {}
            }
            drop(file);
        });
    }
}

#[derive(Debug)]
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _gone_already = fs::remove_file(&self.0);
    }
}

/// Creates `dir` with mode 0700, or checks that it is ours and nobody else may write to
/// it. Reading it does not help anybody: the sockets are 0600.
fn make_private(dir: &Path) -> Result<()> {
    let refused = |reason: String| Error::new(Kind::FailedPrecondition, reason);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| refused(format!("cannot create {}", dir.display())).because(error))?;
    let found = fs::symlink_metadata(dir)
        .map_err(|error| refused(format!("cannot look at {}", dir.display())).because(error))?;
    let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if !ours || found.mode() & 0o022 != 0 {
        return Err(refused(format!(
            "{} must be a folder of yours that others cannot write to",
            dir.display()
        ))
        .hint(format!("chmod 700 {}", dir.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_tried_proxies_first_and_by_port() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "registry-1.sock",
            "proxy-4202.sock",
            "proxy-4201.sock",
            "allocator-9.sock",
            "x",
            "proxy-a.sock",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let names: Vec<_> =
            sockets(dir.path()).iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(
            names,
            ["proxy-4201.sock", "proxy-4202.sock", "allocator-9.sock", "registry-1.sock"]
        );
    }

    #[tokio::test]
    async fn a_live_socket_is_not_taken_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lca/proxy-1.sock");
        let first = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Listener::bind(&path).unwrap_err().kind(), Kind::Conflict);
        drop(first);
        assert!(!path.exists(), "a daemon that did not start leaves nothing");
        drop(UnixListener::bind(&path).unwrap()); // the file stays, as after kill -9
        assert!(path.exists());
        Listener::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_until_another_ends() {
        use tokio::io::AsyncReadExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lca/proxy-1.sock");
        let tasks = crate::shutdown::Tasks::default();
        Listener::bind(&path).unwrap().holding(1).serve(Routes::default(), &tasks.spawner());
        let heard = async || {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            let mut first = [0; 1];
            let heard = stream.read(&mut first).await.unwrap_or(0) > 0;
            heard.then_some(stream)
        };
        // A server of HTTP/2 speaks first.
        let first = heard().await.expect("there is room for one");
        assert!(heard().await.is_none(), "it took two");
        drop(first);
        crate::testing::eventually("a place", heard).await;
    }

    #[tokio::test]
    async fn a_folder_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("lca");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let error = Listener::bind(&open.join("proxy-1.sock")).unwrap_err();
        assert!(error.hint_text().unwrap().starts_with("chmod 700"));
    }
}
