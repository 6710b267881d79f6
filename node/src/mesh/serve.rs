//! What a verified connection gets, by what it carries.

use std::{io, sync::Arc, time::Duration};

use lca::{
    api::{self, Caller, Identified},
    shutdown::Spawner,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{Alpn, Handlers, ServeHttp, Stream};

/// Connections on their way to the gRPC server, which takes them at once.
const GRPC_BACKLOG: usize = 64;
/// What open connections may still do after the node was asked to stop. An idle one
/// uses all of it, so it is felt at every stop.
const LINGER: Duration = Duration::from_millis(500);
/// A prober sends every five seconds while it cares; after this it does not.
const PROBE_IDLE: Duration = Duration::from_secs(30);
/// Bytes of a probe: a nonce that cannot be guessed, and so not answered early.
pub(super) const NONCE: usize = 8;

/// Hands connections to what serves them. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Serving {
    grpc: mpsc::Sender<Stream>,
    http: Option<Arc<dyn ServeHttp>>,
    /// Cancelled when gRPC has had its time.
    severed: CancellationToken,
}

impl Serving {
    /// Starts the gRPC server, without connections yet.
    pub(super) fn start(handlers: Handlers, spawner: &Spawner) -> Self {
        let (grpc, connections) = mpsc::channel(GRPC_BACKLOG);
        let severed = CancellationToken::new();
        let serving = serve_grpc(handlers.grpc, connections, severed.clone(), spawner.clone());
        spawner.spawn("mesh grpc", serving);
        Self { grpc, http: handlers.http, severed }
    }

    /// Serves one connection. Resolves when it has ended or was handed to the gRPC
    /// server.
    pub(super) async fn serve(&self, mut stream: Stream, spawner: &Spawner) {
        let peer = stream.peer();
        let over = spawner.stopping();
        match (stream.alpn(), &self.http) {
            (Alpn::Grpc, _) => {
                stream.sever_with(&self.severed);
                if self.grpc.try_send(stream).is_err() {
                    tracing::debug!(peer = %peer.short(), "gRPC takes no connection now, closed");
                }
            }
            (Alpn::Probe, _) => tokio::select! {
                () = over => {}
                ended = echo(stream) => if let Err(error) = ended {
                    tracing::trace!(peer = %peer.short(), %error, "probe connection ended");
                },
            },
            (Alpn::H1 | Alpn::Mux, Some(http)) => {
                let lingered = async {
                    over.await;
                    sleep(LINGER).await;
                };
                tokio::select! {
                    () = http.clone().serve(stream, peer, spawner.stop_token()) => {}
                    () = lingered => {}
                }
            }
            (Alpn::H1 | Alpn::Mux, None) => {
                tracing::debug!(peer = %peer.short(), "no instances here, closed");
            }
        }
    }
}

/// Serves gRPC until the node stops. tonic waits for every connection without limit
/// and leaves their tasks behind when dropped, so they are severed after a while.
async fn serve_grpc(
    routes: Routes,
    connections: mpsc::Receiver<Stream>,
    severed: CancellationToken,
    spawner: Spawner,
) {
    let _sever = severed.drop_guard(); // however this ends
    let incoming = ReceiverStream::new(connections).map(|connection| {
        let caller = Caller::Peer(connection.peer());
        Ok::<_, io::Error>(Identified::new(connection, caller))
    });
    let served =
        api::server().add_routes(routes).serve_with_incoming_shutdown(incoming, spawner.stopping());
    let lingered = async {
        spawner.stopping().await;
        sleep(LINGER).await;
    };
    tokio::select! {
        ended = served => if let Err(error) = ended {
            tracing::error!(%error, "gRPC to peers failed");
        },
        () = lingered => {}
    }
}

/// Sends back each nonce until the peer is done.
async fn echo(mut stream: Stream) -> io::Result<()> {
    let mut nonce = [0; NONCE];
    loop {
        timeout(PROBE_IDLE, async {
            stream.read_exact(&mut nonce).await?;
            stream.write_all(&nonce).await?;
            stream.flush().await
        })
        .await??;
    }
}
