//! The listener of a front, and the connections of its clients.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use lca::{
    Error, Kind, Result,
    listen::{Acceptor, Subnet},
    metrics::{Held, Metrics},
    shutdown::Spawner,
};
use lca_manager::Manager;
use lca_node::{
    Node,
    h1::{After, Bounded, BoxError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    forward::{Client, Forward},
    h2,
    socket::{Clients, Socket},
};

/// Headers a request may have, and room for its head.
const MAX_HEADERS: usize = 100;
const MAX_HEAD: usize = 64 << 10;
/// Connections over the limit that are told so at once; beyond, they are just closed.
const MAX_REFUSALS: usize = 64;
/// For a client to read that it is refused.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// What it reads. Without a body: nobody knows yet what was asked.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 0\r\n\r\n";

/// A front that is bound and not serving yet.
#[derive(Debug)]
pub struct Front {
    listener: TcpListener,
    address: SocketAddr,
    /// Who may connect; `None`: whoever can.
    only: Option<Subnet>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    forward: Forward,
    clients: Clients,
    metrics: Metrics,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl AsRef<Forward> for Shared {
    fn as_ref(&self) -> &Forward {
        &self.forward
    }
}

impl Front {
    /// Binds `address`; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// [`Kind::PermissionDenied`] for an address other machines can reach, unless the
    /// configuration allows it; [`Kind::Conflict`] naming the address if it is in use;
    /// [`Kind::FailedPrecondition`] if it cannot be bound for another reason.
    pub async fn bind(
        address: SocketAddr,
        config: Config,
        manager: Manager,
        node: Node,
    ) -> Result<Self> {
        if !address.ip().to_canonical().is_loopback() && !config.allow_non_loopback {
            return Err(Error::new(
                Kind::PermissionDenied,
                format!("the front may not listen on {address}: other machines could reach it"),
            )
            .hint("use 127.0.0.1 or [::1]"));
        }
        Self::listen(address, None, config, manager, node).await
    }

    /// Binds `address`, which is this machine's on a network of its own, such as that of its
    /// containers. Whoever is not `only` of that network is cut off before anything is read:
    /// a machine answers for all of its addresses on all of its networks.
    ///
    /// # Errors
    /// As [`bind`](Self::bind), but for the first.
    pub async fn bind_within(
        address: SocketAddr,
        only: Subnet,
        config: Config,
        manager: Manager,
        node: Node,
    ) -> Result<Self> {
        Self::listen(address, Some(only), config, manager, node).await
    }

    async fn listen(
        address: SocketAddr,
        only: Option<Subnet>,
        config: Config,
        manager: Manager,
        node: Node,
    ) -> Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let hint = "another daemon may be running; choose another port";
            lca::listen::cannot("the front", address, hint, error)
        })?;
        let address = listener.local_addr().map_err(|error| {
            Error::new(Kind::Internal, "a listener has no address").because(error)
        })?;
        let shared = Arc::new(Shared {
            config,
            metrics: manager.metrics().clone(),
            forward: Forward::new(config, manager, node),
            clients: Clients::default(),
            connections: Arc::new(Semaphore::new(config.max_connections)),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
        });
        Ok(Self { listener, address, only, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the daemon is asked to stop. Then unused connections are closed
    /// at once, and open requests finish within the daemon's grace.
    pub fn serve(self, spawner: &Spawner) {
        let stop = spawner.stop_token();
        spawner.spawn("front", self.run(stop, spawner.clone()));
    }

    /// Serves until `stop` is cancelled or the daemon is asked to stop.
    pub fn serve_until(self, stop: CancellationToken, spawner: &Spawner) {
        let (stopping, spawned) = (spawner.stop_token(), spawner.clone());
        spawner.spawn_short(async move {
            let both = stop.child_token();
            tokio::join!(self.run(both.clone(), spawned), async {
                tokio::select! {
                    () = stopping.cancelled() => both.cancel(),
                    () = both.cancelled() => {}
                }
            });
        });
    }

    async fn run(self, stop: CancellationToken, spawner: Spawner) {
        let Self { listener, shared, address, only } = self;
        let mut acceptor = Acceptor::new(listener, format!("clients on {address}"));
        loop {
            let (stream, from) = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = acceptor.accept() => accepted,
            };
            if only.is_some_and(|only| !only.has(from.ip())) {
                shared.metrics.front.refusals.with_label_values(&["stranger"]).inc();
                tracing::debug!(client = %from, "a stranger was cut off");
                continue;
            }
            match shared.connections.clone().try_acquire_owned() {
                Ok(permit) => {
                    spawner.spawn_short(connection(
                        shared.clone(),
                        stream,
                        from,
                        stop.clone(),
                        permit,
                    ));
                }
                Err(_) => {
                    shared.metrics.front.refusals.with_label_values(&["connections"]).inc();
                    if let Ok(permit) = shared.refusals.clone().try_acquire_owned() {
                        spawner.spawn_short(refuse(stream, permit));
                    }
                }
            }
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    from: SocketAddr,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
) {
    let _counted = Held::new(&shared.metrics.front.connections);
    let own = match stream.set_nodelay(true).and_then(|()| stream.local_addr()) {
        Ok(own) => own,
        Err(error) => return tracing::debug!(client = %from, %error, "connection over"),
    };
    let client = Client { from, own };
    let socket = Socket::new(stream);
    let preface = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        preface = timeout(shared.config.header, socket.begins_with(h2::PREFACE)) => preface,
    };
    let Ok(Ok(preface)) = preface else {
        return tracing::debug!(client = %from, "no request came");
    };
    let serving = async {
        if preface {
            // On its own, or all others would be as large.
            let served = h2::serve(shared.clone(), shared.config, client, socket.clone(), stop);
            Box::pin(served).await.map_err(BoxError::from)
        } else {
            serve(&shared, client, socket.clone(), stop).await
        }
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::debug!(client = %from, %error, "connection over");
        },
        // Dropping what is served gives up its requests everywhere.
        () = socket.left(&shared.clients) => tracing::debug!(client = %from, "gone"),
    }
}

/// Serves HTTP/1.1 on a connection, and what it becomes after that.
async fn serve(
    shared: &Arc<Shared>,
    client: Client,
    socket: Socket,
    stop: CancellationToken,
) -> std::result::Result<(), BoxError> {
    let Config { header, grace, peers, .. } = shared.config;
    let answering = shared.clone();
    let after = After::default();
    let tunnel = after.clone();
    let service = service_fn(move |request| {
        let (shared, after) = (answering.clone(), after.clone());
        async move { shared.forward.answer(client, request, &after).await }
    });
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .half_close(true)
            .header_read_timeout(header)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(Bounded::new(socket, peers.stall)), service)
            .with_upgrades()
    );
    tokio::select! {
        served = served.as_mut() => served?,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            timeout(grace, served).await??;
        }
    }
    let Some(joint) = tunnel.take() else { return Ok(()) };
    let mut passing = pin!(joint.run());
    tokio::select! {
        passed = passing.as_mut() => passed?,
        () = stop.cancelled() => timeout(grace, passing).await??,
    }
    Ok(())
}

/// Says that there are too many, and waits for the client to have read it: closing
/// with bytes of it unread would take the answer back.
async fn refuse(mut stream: TcpStream, _permit: OwnedSemaphorePermit) {
    let told = async {
        stream.write_all(REFUSAL).await?;
        stream.shutdown().await?;
        let mut unread = [0; 4096];
        while stream.read(&mut unread).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    if !matches!(timeout(REFUSAL_TIME, told).await, Ok(Ok(()))) {
        tracing::debug!("a refused client did not leave by itself");
    }
}
