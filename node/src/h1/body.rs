//! Bodies as they pass through: boxed once, never collected, never waited for without
//! an end.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use lca::metrics::Counter;
use tokio::time::{Instant, Sleep, sleep_until};

/// What a body may fail with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body on its way through.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body of nothing.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that fails when its source stays silent for too long while somebody waits
/// for it. A reader that takes its time costs the source nothing: no clock runs then.
pub struct Patient<B> {
    inner: B,
    limit: Duration,
    // Made at the first wait: most bodies are there at once.
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<B> Patient<B> {
    /// Lets `inner` be silent for `limit` between two frames.
    pub const fn new(inner: B, limit: Duration) -> Self {
        Self { inner, limit, timer: None, waiting: false }
    }
}

impl<B> fmt::Debug for Patient<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patient").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<B> HttpBody for Patient<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            self.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = self.limit;
        let fresh = !std::mem::replace(&mut self.waiting, true);
        ready!(poll_timer(&mut self.timer, fresh, limit, cx));
        Poll::Ready(Some(Err(silent(limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A body whose bytes are counted as they pass.
#[derive(Debug)]
pub struct Metered<B> {
    inner: B,
    bytes: Counter,
}

impl<B> Metered<B> {
    /// Counts the bytes of `inner` in `bytes`.
    pub const fn new(inner: B, bytes: Counter) -> Self {
        Self { inner, bytes }
    }
}

impl<B> HttpBody for Metered<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.bytes.inc_by(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Polls a timer that is made at its first use and set anew when a wait is `fresh`.
pub(super) fn poll_timer(
    timer: &mut Option<Pin<Box<Sleep>>>,
    fresh: bool,
    limit: Duration,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let until = || Instant::now() + limit;
    let timer = match timer {
        Some(timer) => {
            if fresh {
                timer.as_mut().reset(until());
            }
            timer
        }
        None => timer.insert(Box::pin(sleep_until(until()))),
    };
    timer.as_mut().poll(cx)
}

pub(super) fn silent(limit: Duration) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, format!("nothing moved for {limit:?}"))
}

/// How far the sending of a request has come, shared between its body, which hyper
/// owns, and whoever waits for the answer.
#[derive(Debug)]
pub(crate) struct Sent {
    started: Instant,
    last_ms: AtomicU64,
    began: AtomicBool,
    ended: AtomicBool,
    failed: AtomicBool,
}

impl Sent {
    /// Whether all of it was handed to the connection.
    pub(crate) fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether the body itself failed: its source's fault, not the receiver's.
    pub(crate) fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Whether any of it was taken.
    pub(crate) fn began(&self) -> bool {
        self.began.load(Ordering::Acquire)
    }

    /// When it last moved.
    pub(crate) fn last(&self) -> Instant {
        self.started + Duration::from_millis(self.last_ms.load(Ordering::Relaxed))
    }

    /// There is a connection for it: what went before is no silence of the receiver's.
    pub(crate) fn set_out(&self) {
        self.last_ms.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn moved(&self) {
        self.began.store(true, Ordering::Release);
        self.set_out();
    }
}

/// A request's body that says how far it has come.
#[derive(Debug)]
pub(crate) struct Outgoing {
    inner: Body,
    sent: Arc<Sent>,
}

impl Outgoing {
    pub(crate) fn new(inner: Body) -> (Self, Arc<Sent>) {
        let sent = Arc::new(Sent {
            started: Instant::now(),
            last_ms: AtomicU64::new(0),
            began: AtomicBool::new(false),
            ended: AtomicBool::new(inner.is_end_stream()),
            failed: AtomicBool::new(false),
        });
        (Self { inner, sent: sent.clone() }, sent)
    }

    pub(crate) fn into_inner(self) -> Body {
        self.inner
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.sent.moved();
        match &frame {
            Some(Ok(_)) if !self.inner.is_end_stream() => {}
            Some(Err(_)) => self.sent.failed.store(true, Ordering::Release),
            _ => self.sent.ended.store(true, Ordering::Release),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
