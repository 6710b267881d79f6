//! A gRPC channel over one mesh connection, and word of that connection's end.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use lca::{Error, Kind, PeerId, Result, api, endpoint::Endpoint};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{Alpn, dial::Dialler};

/// How often an open channel is checked, calls or not: its peer may vanish without a
/// word. With its answer some 300 bytes, so 0.2 kbit/s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Then it is gone.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects to a peer for gRPC. The token is cancelled when the connection is gone,
/// for whatever reason; the channel does not come back then.
///
/// # Errors
/// [`Kind::Unavailable`] if the peer cannot be reached within the connect deadline.
pub(super) async fn open(dialler: &Dialler, to: &Endpoint) -> Result<(Channel, CancellationToken)> {
    let mut stream = dialler.dial(to.peer, &to.mesh, Alpn::Grpc).await?;
    let gone = CancellationToken::new();
    stream.tell_end(&gone);
    // tonic would dial again by itself, wherever the peer was last. Once only: who
    // asks for a channel next knows better where it is now.
    let once = Arc::new(Mutex::new(Some(stream)));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        let lost = || io::Error::new(io::ErrorKind::NotConnected, "the connection was lost");
        std::future::ready(stream.map(TokioIo::new).ok_or_else(lost))
    });
    let endpoint = api::client(&authority(to.peer))?
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let connecting = endpoint.connect_with_connector(connector);
    let failed =
        || Error::new(Kind::Unavailable, format!("peer {} does not speak gRPC", to.peer.short()));
    match timeout(dialler.timing().connect, connecting).await {
        Ok(connected) => Ok((connected.map_err(|error| failed().because(error))?, gone)),
        Err(_) => Err(failed()),
    }
}

/// What goes into `:authority`. Nobody resolves it.
fn authority(peer: PeerId) -> String {
    format!("{peer}.p2p.invalid")
}
