//! A connection that gives up when the other end takes nothing for too long, and
//! counts what it has received.
//!
//! hyper bounds neither: a peer that stops reading would hold a request, and the
//! instance behind it, for ever.

use std::{
    fmt,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

use super::body::{poll_timer, silent};

/// A stream whose writes fail once nothing could be written for a while.
pub struct Bounded<S> {
    inner: S,
    limit: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
    tally: Arc<Tally>,
}

/// The bytes received on a connection.
#[derive(Debug)]
pub(super) struct Tally {
    received: AtomicU64,
    most: AtomicU64,
}

impl Tally {
    /// So many so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Lets reads fail once there are more than `more` beyond those received so far.
    pub(super) fn allow(&self, more: u64) {
        self.most.store(self.received().saturating_add(more), Ordering::Relaxed);
    }
}

impl<S> Bounded<S> {
    /// Lets the other end of `inner` take nothing for `limit` at most.
    pub fn new(inner: S, limit: Duration) -> Self {
        let tally = Tally { received: AtomicU64::new(0), most: AtomicU64::new(u64::MAX) };
        Self { inner, limit, timer: None, waiting: false, tally: Arc::new(tally) }
    }

    /// Counts the bytes received so far, and limits them.
    pub(super) fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    fn bounded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        let fresh = !std::mem::replace(&mut self.waiting, true);
        poll_timer(&mut self.timer, fresh, self.limit, cx).map(|()| Err(silent(self.limit)))
    }
}

impl<S> fmt::Debug for Bounded<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let new = (buf.filled().len() - before) as u64;
        let received = self.tally.received.fetch_add(new, Ordering::Relaxed) + new;
        if received > self.tally.most.load(Ordering::Relaxed) {
            let error = "more came than a head may have";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.bounded(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.bounded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.bounded(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.bounded(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
