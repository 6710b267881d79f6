//! `GET /metrics`: what a daemon has counted, for Prometheus and for people with curl.
//!
//! As small as an HTTP server can be: one path, two methods, a few connections at once,
//! each with a deadline, because whoever reaches the port is asked for nothing. The
//! invariant: a scrape reads what is in memory and asks nobody, so that a slow network
//! or a dead peer never shows as a missing scrape.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use lca::{
    Error, Kind, Result,
    discovery::Discovery as _,
    endpoint::Role,
    listen,
    metrics::{CONTENT_TYPE, Metrics},
    shutdown::Spawner,
};
use lca_allocator::Allocator;
use lca_node::Node;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The one path.
const PATH: &str = "/metrics";
/// Connections at once: a few collectors and a person.
const CONNECTIONS: usize = 16;
/// For the head of a request, and for a connection between two scrapes.
const HEADER: Duration = Duration::from_secs(10);
/// Longest a connection lasts, however it is used: a collector that scrapes every 15 s
/// connects anew, and one that takes nothing is not served for ever.
const WHOLE: Duration = Duration::from_secs(60);

/// Whom a scrape asks for what is not counted as it happens.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) metrics: Metrics,
    pub(crate) node: Node,
    pub(crate) allocator: Option<Allocator>,
}

impl Sources {
    /// Everything, up to date.
    fn text(&self) -> String {
        let (families, status) = (&self.metrics.node, self.node.status().borrow().clone());
        let set =
            |state, peers: usize| families.peers.with_label_values(&[state]).set(peers as i64);
        set("known", self.node.known().len());
        set("connected", status.peers);
        let set = |state, many: usize| {
            families.bootstraps.with_label_values(&[state]).set(many as i64);
        };
        set("configured", status.bootstraps);
        set("reached", status.bootstraps_reached);
        if let Some(allocator) = &self.allocator {
            allocator.count_instances();
        }
        self.metrics.text()
    }
}

/// Notes what runs, and that it has just started.
pub(crate) fn started(metrics: &Metrics, role: Role) {
    metrics.build.info.with_label_values(&[crate::VERSION, &role.to_string()]).set(1);
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    metrics.build.started.set(since.map_or(0, |since| since.as_secs() as i64));
}

/// A bound port for scrapes that answers nobody yet.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// [`Kind::PermissionDenied`] for an address other machines can reach, unless
    /// `open_network`; else as [`listen::cannot`].
    pub(crate) async fn bind(address: SocketAddr, open_network: bool) -> Result<Self> {
        if !address.ip().to_canonical().is_loopback() && !open_network {
            let reason =
                format!("metrics may not listen on {address}: other machines could read them");
            return Err(Error::new(Kind::PermissionDenied, reason)
                .hint("use 127.0.0.1 or [::1], or give --insecure-open-network"));
        }
        let hint = "choose another address with --metrics-listen";
        let failed = |error| listen::cannot("metrics", address, hint, error);
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the daemon stops.
    pub(crate) fn serve(self, sources: Sources, spawner: &Spawner) {
        let (stopping, spawned) = (spawner.stopping(), spawner.clone());
        spawner.spawn("metrics", async move {
            tokio::select! {
                () = stopping => {}
                () = accept(self, Arc::new(sources), spawned) => {}
            }
        });
    }
}

async fn accept(listener: Listener, sources: Arc<Sources>, spawner: Spawner) {
    let Listener { socket, address } = listener;
    let mut acceptor = listen::Acceptor::new(socket, format!("scrapes on {address}"));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let (stream, _) = acceptor.accept().await;
        // Over the limit it is just closed: whoever asks comes again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (stopping, served) = (spawner.stopping(), connection(stream, sources.clone(), place));
        spawner.spawn_short(async move {
            tokio::select! {
                () = stopping => {}
                () = served => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, sources: Arc<Sources>, _place: OwnedSemaphorePermit) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &sources);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(WHOLE, served).await {
        tracing::debug!(%error, "a connection for metrics is over");
    }
}

fn answer(request: &Request<Incoming>, sources: &Sources) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *answer.status_mut() = status;
        answer
    };
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n");
        answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    // hyper leaves the body of an answer to HEAD out.
    let mut answer = Response::new(Full::new(Bytes::from(sources.text())));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    answer
}
