//! The body of an answer on its way to a client: ended with DEADLINE_EXCEEDED at the
//! caller's deadline, and given up when the client has not read for long.
//!
//! HTTP/2 asks for the next piece only when the client has room for it. A client that never
//! reads is therefore not noticed by whoever makes the pieces: what it holds, such as a
//! place among the watchers, would be held until it goes away. So what makes the pieces is
//! kept where it can be dropped from outside.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Status, body::Body};

use super::deadline::exceeded;
use crate::{Error, Kind};

/// See the module.
pub(super) struct Answer {
    held: Arc<Mutex<Held>>,
    deadline: Option<Pin<Box<Sleep>>>,
    /// Gives up what is not read; started with the first piece.
    guard: Option<AbortOnDrop>,
    unread: Duration,
    ended: bool,
}

/// What makes the pieces.
struct Held {
    /// `None` once it was given up.
    body: Option<Body>,
    /// When the last piece was handed out, unless the next has been asked for.
    handed: Option<Instant>,
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answer {
    /// Ends `body` at `deadline`, and gives it up when no piece is taken for `unread`.
    pub(super) fn wrap(body: Body, deadline: Option<Instant>, unread: Duration) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let held = Held { body: Some(body), handed: None };
        Body::new(Self {
            held: Arc::new(Mutex::new(held)),
            deadline: deadline.map(|at| Box::pin(sleep_until(at))),
            guard: None,
            unread,
            ended: false,
        })
    }

    /// The last that is sent, instead of what is dropped here.
    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.ended = true;
        drop(lock(&self.held).body.take());
        let mut trailers = HeaderMap::new();
        let _only_ours_are_added = status.add_header(&mut trailers);
        Frame::trailers(trailers)
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Ok(self.end(&exceeded()))));
        }
        let polled = {
            let mut held = lock(&self.held);
            held.handed = None;
            let Some(body) = &mut held.body else {
                drop(held);
                let status = not_read(self.unread);
                return Poll::Ready(Some(Ok(self.end(&status))));
            };
            let polled = Pin::new(body).poll_frame(cx);
            if matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data()) {
                held.handed = Some(Instant::now());
            }
            polled
        };
        if matches!(&polled, Poll::Ready(Some(Ok(_)))) && self.guard.is_none() {
            let guard = tokio::spawn(give_up(self.held.clone(), self.unread));
            self.guard = Some(AbortOnDrop(guard));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.ended || lock(&self.held).body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Drops what makes the pieces once none was taken for `unread`.
async fn give_up(held: Arc<Mutex<Held>>, unread: Duration) {
    loop {
        let now = Instant::now();
        let since = lock(&held).handed.unwrap_or(now);
        if now - since >= unread {
            let unread = lock(&held).body.take();
            tracing::info!("a stream that its client does not read was given up");
            return drop(unread);
        }
        sleep_until(since + unread).await;
    }
}

fn not_read(unread: Duration) -> Status {
    Error::new(Kind::NoCapacity, format!("nothing of the stream was read for {unread:?}")).into()
}

/// A panic while it is held leaves nothing half done.
fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::sync::mpsc;
    use tonic::Code;

    use super::*;

    const UNREAD: Duration = Duration::from_secs(600);

    /// Pieces as somebody sends them.
    struct Pieces(mpsc::Receiver<&'static str>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|piece| Some(Ok(Frame::data(piece?.into()))))
        }
    }

    fn stream(deadline: Option<Duration>) -> (mpsc::Sender<&'static str>, Body) {
        let (sender, receiver) = mpsc::channel(8);
        let deadline = deadline.map(|after| Instant::now() + after);
        (sender, Answer::wrap(Body::new(Pieces(receiver)), deadline, UNREAD))
    }

    async fn next(body: &mut Body) -> Option<Result<Bytes, Code>> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?.unwrap();
        Some(frame.into_data().map_err(|frame| {
            Status::from_header_map(frame.trailers_ref().unwrap()).unwrap().code()
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_its_deadline_and_what_made_it_is_dropped() {
        let (sender, mut body) = stream(Some(Duration::from_secs(5)));
        sender.send("one").await.unwrap();
        assert_eq!(next(&mut body).await, Some(Ok("one".into())));
        let since = Instant::now();
        assert_eq!(next(&mut body).await, Some(Err(Code::DeadlineExceeded)));
        assert_eq!(since.elapsed(), Duration::from_secs(5));
        assert_eq!(next(&mut body).await, None);
        assert!(sender.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_nobody_reads_is_dropped_and_its_reader_told_later() {
        let (sender, mut body) = stream(None);
        sender.send("one").await.unwrap();
        assert_eq!(next(&mut body).await, Some(Ok("one".into())));
        sender.send("two").await.unwrap();
        let since = Instant::now();
        sender.closed().await;
        assert_eq!(since.elapsed(), UNREAD);
        assert_eq!(next(&mut body).await, Some(Err(Code::ResourceExhausted)));
        assert_eq!(next(&mut body).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_may_wait_for_ever_and_may_be_slow() {
        let (sender, mut body) = stream(None);
        for pause in [UNREAD * 5, UNREAD - Duration::from_secs(1), UNREAD * 3] {
            sender.send("one").await.unwrap();
            assert_eq!(next(&mut body).await, Some(Ok("one".into())));
            if pause < UNREAD {
                // Slow: it does not come back for the next at once.
                tokio::time::advance(pause).await;
                continue;
            }
            // Quick: it waits, and nothing comes.
            let waiting = tokio::time::timeout(pause, next(&mut body)).await;
            assert!(waiting.is_err(), "{waiting:?}");
            assert!(!sender.is_closed());
        }
    }
}
