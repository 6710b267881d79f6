//! One request and its answer on one connection, and whether the connection may be
//! used again after them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    client::conn::{TrySendError, http1},
};
use hyper_util::rt::TokioIo;
use lca::{Error, Kind};
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};

use super::{
    body::{Body, BoxError, Outgoing, Patient, Sent, empty},
    hygiene::is_framed_clearly,
    io::Tally,
    pool::{Cause, Dial, Shared, Waits},
    tunnel::{Switched, Tunnel},
};

/// How long a connection may take from the end of an answer until it can be used
/// again: it is one turn of its task, unless something is wrong with it.
const SETTLE: Duration = Duration::from_secs(1);
/// Beyond [`Waits::head`] while the request still flows: the body's own clock, which
/// knows whose silence it is, should be the one that strikes.
const BODY_FIRST: Duration = Duration::from_secs(1);
/// Bytes that may come until the head of an answer is there: interim answers (1xx), which
/// hyper passes over without an end, the head itself, and what hyper reads on beyond it.
const HEAD_ROOM: u64 = 256 << 10;

/// A connection that a task drives.
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) sender: http1::SendRequest<Outgoing>,
    pub(super) tally: Arc<Tally>,
    pub(super) task: AbortHandle,
    /// No request has been sent on it.
    pub(super) fresh: bool,
}

impl Connection {
    /// Whether a request could be sent now.
    pub(super) fn usable(&self) -> bool {
        self.sender.is_ready() && !self.sender.is_closed()
    }
}

/// Why an exchange has no answer.
pub(super) enum Attempt {
    /// The connection was dead, and nothing was sent.
    Returned(Box<Request<Outgoing>>, Error),
    /// See [`Failed::Sent`](super::Failed::Sent).
    Failed(Cause, Error),
}

/// A connection in use. Dropped before [`finish`](Self::finish), it is closed.
pub(super) struct Lease<D: Dial> {
    pool: Arc<Shared<D>>,
    key: D::Key,
    connection: Option<Connection>,
}

impl<D: Dial> Lease<D> {
    pub(super) fn new(pool: Arc<Shared<D>>, key: D::Key, connection: Connection) -> Self {
        pool.started(&key);
        Self { pool, key, connection: Some(connection) }
    }

    pub(super) async fn exchange(
        mut self,
        request: Request<Outgoing>,
        sent: &Arc<Sent>,
    ) -> std::result::Result<Response<Body>, Attempt> {
        let Waits { head: limit, quiet } = Waits::of(&request, &self.pool.config);
        let connection = self.connection.as_mut().expect("a lease holds one until it is over");
        let before = connection.tally.received();
        connection.tally.allow(HEAD_ROOM);
        sent.set_out();
        let asked = request.headers().contains_key(header::UPGRADE);
        let answer = connection.sender.try_send_request(request);
        let Some(answer) = in_time(answer, sent, limit).await else {
            let error = Error::new(Kind::Timeout, format!("no answer within {limit:?}"));
            return Err(Attempt::Failed(Cause::Late, error));
        };
        let mut answer = answer.map_err(|mut failure: TrySendError<Request<Outgoing>>| {
            let back = failure.take_message();
            let source = failure.into_error();
            if let Some(request) = back {
                let error = Error::new(Kind::Unavailable, "the connection was closed");
                return Attempt::Returned(Box::new(request), error.because(source));
            }
            let (cause, public) = if sent.failed() {
                (Cause::Body, "the request broke off")
            } else if connection.tally.received() == before {
                (Cause::Silent, "the connection ended without an answer")
            } else {
                (Cause::Garbled, "the answer is not HTTP")
            };
            Attempt::Failed(cause, Error::new(Kind::BadGateway, public).because(source))
        })?;
        connection.tally.allow(u64::MAX);
        let switched = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched && asked {
            return self.switch(&mut answer).await;
        }
        if switched || !is_framed_clearly(answer.headers()) {
            let error = Error::new(Kind::BadGateway, "the answer's end is not clear");
            return Err(Attempt::Failed(Cause::Garbled, error));
        }
        let sent = sent.clone();
        Ok(answer.map(|body| {
            let mut answer = Answer { body: Patient::new(body, quiet), lease: Some(self), sent };
            answer.at_end();
            answer.boxed_unsync()
        }))
    }

    /// The connection has left HTTP: it goes with the answer, and so does the lease.
    async fn switch(
        self,
        answer: &mut Response<Incoming>,
    ) -> std::result::Result<Response<Body>, Attempt> {
        // Its task hands it over in its next turn.
        let upgraded = timeout(SETTLE, hyper::upgrade::on(&mut *answer)).await;
        let Ok(Ok(upgraded)) = upgraded else {
            let error = Error::new(Kind::BadGateway, "the protocol was not switched");
            return Err(Attempt::Failed(Cause::Garbled, error));
        };
        let mut switched = Response::new(empty());
        *switched.status_mut() = answer.status();
        *switched.headers_mut() = std::mem::take(answer.headers_mut());
        let tunnel = Tunnel::new(TokioIo::new(upgraded), self);
        switched.extensions_mut().insert(Switched::new(tunnel));
        Ok(switched)
    }

    /// The request and its answer are over, cleanly: others may use the connection.
    fn finish(mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if connection.usable() {
            self.pool.give_back(self.key.clone(), connection);
        } else if !connection.sender.is_closed() {
            let (pool, key) = (Arc::downgrade(&self.pool), self.key.clone());
            tokio::spawn(async move {
                let settled = timeout(SETTLE, connection.sender.ready()).await;
                match pool.upgrade() {
                    Some(pool) if matches!(settled, Ok(Ok(()))) => pool.give_back(key, connection),
                    _ => connection.task.abort(),
                }
            });
        }
    }
}

impl<D: Dial> Drop for Lease<D> {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.task.abort();
        }
        self.pool.over(&self.key);
    }
}

/// Waits for the head until the request has not moved for `limit`.
pub(crate) async fn in_time<T>(
    answer: impl Future<Output = T>,
    sent: &Sent,
    limit: Duration,
) -> Option<T> {
    tokio::pin!(answer);
    loop {
        let more = if sent.ended() { Duration::ZERO } else { BODY_FIRST };
        if let Ok(answer) = timeout_at(sent.last() + limit + more, &mut answer).await {
            return Some(answer);
        }
        if Instant::now() >= sent.last() + limit + more {
            return None;
        }
    }
}

/// The body of an answer, which holds the connection it comes on.
struct Answer<D: Dial> {
    body: Patient<Incoming>,
    lease: Option<Lease<D>>,
    sent: Arc<Sent>,
}

impl<D: Dial> Answer<D> {
    /// Gives the connection back once the body is at its clean end. An answer that
    /// came before its request was all sent leaves a connection with the rest of a
    /// body on it: never used again.
    fn at_end(&mut self) {
        if self.body.is_end_stream() {
            self.ended();
        }
    }

    fn ended(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.sent.ended()
        {
            lease.finish();
        }
    }
}

impl<D: Dial> HttpBody for Answer<D> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            None => self.ended(),
            Some(Ok(_)) => self.at_end(),
            Some(Err(_)) => drop(self.lease.take()),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
