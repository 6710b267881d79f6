//! Clients that begin with HTTP/2 (RFC 9113, prior knowledge): many requests at once on one
//! connection, each routed as if it had come on its own.
//!
//! What a client can make us hold is bounded: streams, windows, headers, and streams that
//! it opened and gave up. One that floods us with any of them loses its connection.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use lca_node::h1::{self, After, Body, Bounded, BoxError};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Config,
    forward::{BrokenOff, Client, Forward},
    socket::Socket,
};

/// What every client of HTTP/2 sends first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests at once on one connection.
const MAX_STREAMS: u32 = 100;
/// Bytes of a request that wait for its instance; of all requests together, more than they
/// can have, so that slow ones do not hold up the others.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of an answer that wait for the client.
const SEND_BUFFER: usize = 128 << 10;
/// Streams that a client has given up and we have not looked at yet.
const MAX_GIVEN_UP: usize = 20;
/// Streams ended for a fault of the client's, in all.
const MAX_FAULTS: usize = 256;
/// A client that says nothing is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIME: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this: clients of this version keep one
/// for as long as they run.
const IDLE: Duration = Duration::from_secs(300);
/// Headers of a request, and bytes of them.
const MAX_HEADERS: usize = 100;
const MAX_HEAD: u32 = 64 << 10;

/// How a connection ended that served nothing more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Over {
    #[error("HTTP/2 failed")]
    Failed(#[from] hyper::Error),
    #[error("cut off after the grace")]
    Grace,
}

/// Serves a connection until its client ends it, it has been idle for long, or after `stop`
/// its requests have ended or the grace has.
pub(crate) async fn serve(
    forward: Arc<impl AsRef<Forward> + Send + Sync + 'static>,
    config: Config,
    client: Client,
    socket: Socket,
    stop: CancellationToken,
) -> Result<(), Over> {
    let requests = Arc::new(Requests::default());
    let counted = requests.clone();
    let service = service_fn(move |request| {
        let (forward, open) = (forward.clone(), Open::new(&counted));
        async move { answer((*forward).as_ref(), client, request, open).await }
    });
    let mut served = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEAD)
            .max_pending_accept_reset_streams(MAX_GIVEN_UP)
            .max_local_error_reset_streams(MAX_FAULTS)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIME)
            .serve_connection(TokioIo::new(Bounded::new(socket, config.peers.stall)), service)
    );
    tokio::select! {
        ended = served.as_mut() => return Ok(ended?),
        () = stop.cancelled() => {}
        () = requests.idle_for(IDLE) => {}
    }
    // Says so to the client, and how far it was heard.
    served.as_mut().graceful_shutdown();
    timeout(config.grace, served).await.map_err(|_| Over::Grace)?.map_err(Over::Failed)
}

async fn answer(
    forward: &Forward,
    client: Client,
    mut request: Request<Incoming>,
    open: Open,
) -> Result<Response<Body>, BrokenOff> {
    if request.headers().len() > MAX_HEADERS {
        let mut answer = Response::new(h1::empty());
        *answer.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Ok(answer);
    }
    as_in_http1(&mut request);
    // A stream does not leave HTTP: nothing is left there.
    let answer = forward.answer(client, request, &After::default()).await?;
    Ok(answer.map(|body| Body::new(Counted { body, _open: open })))
}

/// Says what HTTP/1.1 says in other words: the authority in `Host`, cookies in one line.
fn as_in_http1<B>(request: &mut Request<B>) {
    let authority = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let headers = request.headers_mut();
    if !headers.contains_key(header::HOST)
        && let Some(host) = authority.and_then(|host| HeaderValue::try_from(host).ok())
    {
        headers.insert(header::HOST, host);
    }
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<&[u8]> =
            headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(header::COOKIE, cookie);
        }
    }
}

/// The requests of a connection.
#[derive(Debug, Default)]
struct Requests {
    open: AtomicUsize,
    begun: AtomicU64,
}

impl Requests {
    /// Resolves once none was open for `time` at least, and twice as long at most.
    async fn idle_for(&self, time: Duration) {
        let mut before = None;
        loop {
            sleep(time).await;
            let begun = self.begun.load(Ordering::Relaxed);
            let idle = self.open.load(Ordering::Relaxed) == 0;
            if idle && before == Some(begun) {
                return;
            }
            before = Some(begun);
        }
    }
}

/// A request that is open until this is dropped.
#[derive(Debug)]
struct Open(Arc<Requests>);

impl Open {
    fn new(requests: &Arc<Requests>) -> Self {
        requests.open.fetch_add(1, Ordering::Relaxed);
        requests.begun.fetch_add(1, Ordering::Relaxed);
        Self(requests.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, whose request is open as long as it lives.
struct Counted {
    body: Body,
    _open: Open,
}

impl HttpBody for Counted {
    type Data = bytes::Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
