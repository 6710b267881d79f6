//! The local API once more, as plaintext gRPC on a loopback port, for programs in any
//! language: not every gRPC library can use a unix socket.
//!
//! Any user of this machine can connect, and whoever can register a service can run code, so
//! every call but `grpc.health.v1` has to bring the daemon's [`Token`]. Connections are
//! counted, and one that does not begin to speak HTTP/2 in time is closed.

use std::{
    convert::Infallible,
    io::{self, Cursor},
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, mpsc},
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, body::Body, service::Routes, transport::Channel};
use tower::{Layer, Service};

use super::{CONNECTIONS, LINGER, Token};
use crate::{
    Error, Kind, Result,
    api::{self, Caller, Identified},
    listen::{self, Places},
    shutdown::Spawner,
};

/// A program on this machine says at once what it speaks.
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
/// How HTTP/2 begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections on their way to the gRPC server, which takes them at once.
const BACKLOG: usize = 64;
/// What may be called without a token: load balancers and service managers have none.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Opens the local API at `address`, a port of this machine.
///
/// # Errors
/// [`Kind::Unavailable`] if no daemon answers there within two seconds.
pub async fn connect(address: SocketAddr) -> Result<Channel> {
    let unreachable = || Error::new(Kind::Unavailable, format!("no daemon answers on {address}"));
    let endpoint = api::client(&address.to_string())?;
    match timeout(super::CONNECT_WITHIN, endpoint.connect()).await {
        Ok(connected) => connected.map_err(|error| unreachable().because(error)),
        Err(_) => Err(unreachable()),
    }
}

/// The bound port. Nothing is accepted before [`serve`](Self::serve).
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    guard: Guard,
    connections: usize,
}

impl Listener {
    /// Binds `address`, port 0 for any, in front of the token in `token_file`, which is made
    /// if there is none.
    ///
    /// # Errors
    /// [`Kind::PermissionDenied`] for an address that other machines can reach,
    /// [`Kind::Conflict`] naming the address if it is in use, [`Kind::FailedPrecondition`]
    /// if the token file cannot be trusted.
    pub async fn bind(address: SocketAddr, token_file: PathBuf) -> Result<Self> {
        if !address.ip().to_canonical().is_loopback() {
            let what = format!("gRPC without TLS is not offered on {address}, which others reach");
            let port = address.port();
            return Err(Error::new(Kind::PermissionDenied, what)
                .hint(format!("use 127.0.0.1:{port} or [::1]:{port}, from elsewhere `ssh -L`")));
        }
        let token = Token::load_or_create(&token_file)?;
        let failed =
            |error| listen::cannot("gRPC", address, "choose another with --grpc-listen", error);
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let token = Arc::new(RwLock::new(token));
        let guard = Guard(Current { token, file: token_file.into() });
        Ok(Self { socket, address, guard, connections: CONNECTIONS })
    }

    /// Holds at most this many connections at once; one more is closed.
    #[must_use]
    pub fn holding(self, connections: usize) -> Self {
        Self { connections, ..self }
    }

    /// What says who is let in.
    pub fn token(&self) -> Current {
        self.guard.0.clone()
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the daemon stops.
    pub fn serve(self, routes: Routes, spawner: &Spawner) {
        let Self { socket, address, guard, connections: most } = self;
        let (accepted, connections) = mpsc::channel(BACKLOG);
        let stopping = spawner.stopping();
        let connecting = spawner.clone();
        spawner.spawn("gRPC port", async move {
            tokio::select! {
                () = stopping => {}
                () = accept(socket, Places::new(most), address, accepted, connecting) => {}
            }
        });
        let stopping = spawner.stopping();
        let stop = spawner.stop_token();
        spawner.spawn("gRPC by TCP", async move {
            let served =
                api::server().layer(guard).add_routes(routes).serve_with_incoming_shutdown(
                    ReceiverStream::new(connections).map(Ok::<_, io::Error>),
                    stop.cancelled_owned(),
                );
            let lingered = async {
                stopping.await;
                sleep(LINGER).await;
            };
            tokio::select! {
                ended = served => if let Err(error) = ended {
                    tracing::error!(%error, "gRPC by TCP failed");
                },
                () = lingered => {}
            }
        });
    }
}

/// A connection that has begun with HTTP/2, and its place among them.
type Connection = Identified<Box<dyn Io>>;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn accept(
    socket: TcpListener,
    mut places: Places,
    address: SocketAddr,
    accepted: mpsc::Sender<Connection>,
    spawner: Spawner,
) {
    let name = format!("programs on {address}");
    let mut acceptor = listen::Acceptor::new(socket, &name);
    loop {
        let (stream, _) = acceptor.accept().await;
        let Some(place) = places.enter(&name) else { continue };
        let accepted = accepted.clone();
        let stopping = spawner.stopping();
        spawner.spawn_short(async move {
            let begun = async {
                match timeout(PREFACE_WITHIN, begin(stream, place)).await {
                    Ok(Ok(connection)) => drop(accepted.send(connection).await),
                    Ok(Err(error)) => tracing::debug!(%address, %error, "not HTTP/2, closed"),
                    Err(_) => tracing::debug!(%address, "said nothing in time, closed"),
                }
            };
            tokio::select! {
                () = stopping => {}
                () = begun => {}
            }
        });
    }
}

/// Reads how HTTP/2 begins, for which hyper would wait without limit, and puts it back.
/// Whoever says something else is closed at the first byte of it.
async fn begin(mut stream: TcpStream, place: OwnedSemaphorePermit) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let mut preface = [0; PREFACE.len()];
    let mut read = 0;
    while read < preface.len() {
        match stream.read(&mut preface[read..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => read += more,
        }
        if preface[..read] != PREFACE[..read] {
            return Err(io::Error::other("something else than HTTP/2"));
        }
    }
    let (reader, writer) = stream.into_split();
    let stream = tokio::io::join(Cursor::new(preface).chain(reader), writer);
    Ok(Identified::new(Box::new(stream) as Box<dyn Io>, Caller::Local).in_place(place))
}

/// The token that counts, and where it is kept. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Current {
    token: Arc<RwLock<Token>>,
    file: Arc<std::path::Path>,
}

impl Current {
    /// Reads the token's file again, or makes a new one if it is gone: from here on no other
    /// token counts, on open connections neither. Returns whether it is another one.
    ///
    /// # Errors
    /// As [`Token::load_or_create`]; then the former token still counts.
    pub fn renew(&self) -> Result<bool> {
        let token = Token::load_or_create(&self.file)?;
        let mut now = self.token.write().unwrap_or_else(PoisonError::into_inner);
        let changed = !token.is(&now);
        *now = token;
        Ok(changed)
    }

    fn is_in(&self, headers: &http::HeaderMap) -> bool {
        self.token.read().unwrap_or_else(PoisonError::into_inner).is_in(headers)
    }
}

/// Lets through who brings the token.
#[derive(Clone, Debug)]
struct Guard(Current);

impl Guard {
    fn check<B>(&self, request: &Request<B>) -> Result<()> {
        if request.uri().path().starts_with(HEALTH) || self.0.is_in(request.headers()) {
            return Ok(());
        }
        let what = match request.headers().contains_key(http::header::AUTHORIZATION) {
            true => "`authorization` does not carry the token of this daemon",
            false => "`authorization` with the token of this daemon is missing",
        };
        Err(Error::new(Kind::Unauthenticated, what).hint(format!(
            "send `authorization: Bearer TOKEN`; the token is in {}",
            self.0.file.display()
        )))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

#[derive(Clone, Debug)]
struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response<Body>, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.guard.check(&request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(error) => Either::Left(ready(Ok(Status::from(error).into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_loopback_is_listened_on() {
        let dir = tempfile::tempdir().unwrap();
        for (address, fine) in [
            ("127.0.0.1:0", true),
            ("127.1.2.3:0", true),
            ("0.0.0.0:0", false),
            ("[::]:0", false),
            ("192.0.2.1:0", false),
            ("[::ffff:192.0.2.1]:0", false),
        ] {
            match Listener::bind(address.parse().unwrap(), dir.path().join("token")).await {
                Ok(_) => assert!(fine, "{address}"),
                Err(error) => {
                    assert!(!fine, "{address}: {error}");
                    assert_eq!(error.kind(), Kind::PermissionDenied);
                    assert!(error.hint_text().unwrap().contains("127.0.0.1:0"));
                }
            }
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let first = Listener::bind(([127, 0, 0, 1], 0).into(), file.clone()).await.unwrap();
        let error = Listener::bind(first.address(), file).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict);
        assert!(error.public().contains(&first.address().to_string()), "{error}");
    }
}
