//! A request's body that can be sent again: from its beginning if it was small enough
//! to hold, or as long as nobody has taken any of it. And an answer's, with which the
//! request is over.
//!
//! What can be sent again is held while it is sent, not before: the first attempt waits
//! for nothing.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use lca::metrics::Counter;
use lca_manager::UnderWay;
use lca_node::h1::{self, Body, BoxError, Metered, Patient};
use tokio::time::{Instant, Sleep, sleep_until};

/// The body of one request, for all its attempts.
pub(crate) struct Upload<B> {
    // None: there is no body, which is trivially whole.
    state: Option<Arc<Mutex<State<B>>>>,
}

/// How a body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broke {
    /// What came is no body: somebody is there to be told.
    Malformed,
    /// It is longer than its service takes: somebody is there to be told.
    TooLong,
    /// Its source has gone, or is silent.
    Off,
}

/// A body was longer than its service takes.
#[derive(Debug, thiserror::Error)]
#[error("the body is longer than {0} bytes")]
struct TooLong(u64);

impl Broke {
    fn of(error: &BoxError) -> Self {
        let first: &(dyn std::error::Error + 'static) = error.as_ref();
        let causes = std::iter::successors(Some(first), |error| error.source());
        let malformed = causes.filter_map(|error| error.downcast_ref::<io::Error>()).any(|error| {
            matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
        });
        if malformed { Self::Malformed } else { Self::Off }
    }
}

struct State<B> {
    // With an attempt while that lives.
    source: Option<Patient<B>>,
    hint: SizeHint,
    // Bytes that may still be held; `None`: it is too long to be.
    hold: Option<u64>,
    // Bytes that may still come.
    room: u64,
    most: u64,
    held: Vec<Bytes>,
    // Something was taken that is not held.
    lost: bool,
    // Somebody waits for the client to send more.
    starved: bool,
    failed: Option<Broke>,
    // The attempt that waits for the one before it to let go.
    waiting: Option<Waker>,
}

impl<B> Upload<B>
where
    B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    /// Holds the body unless it says that it has more than `hold` bytes, and no more than so
    /// many of one that does not say. Its source may be silent for `quiet`; it fails when it
    /// turns out to have more than `most` bytes.
    pub(crate) fn new(body: B, hold: u64, most: u64, quiet: Duration) -> Self {
        if body.is_end_stream() {
            return Self { state: None };
        }
        let hint = body.size_hint();
        let hold = hint.exact().is_none_or(|length| length <= hold).then_some(hold);
        let state = State {
            source: Some(Patient::new(body, quiet)),
            hint,
            hold,
            room: most,
            most,
            held: Vec::new(),
            lost: false,
            starved: false,
            failed: None,
            waiting: None,
        };
        Self { state: Some(Arc::new(Mutex::new(state))) }
    }

    /// Whether there is no body at all.
    pub(crate) fn is_none(&self) -> bool {
        self.state.is_none()
    }

    /// Whether another attempt will be able to send all of it, however far one has come.
    pub(crate) fn stays_whole(&self) -> bool {
        self.state.as_ref().is_none_or(|state| {
            let state = lock(state);
            state.hold.is_some() && state.hint.exact().is_some()
        })
    }

    /// There will be no other attempt: nothing more is held.
    pub(crate) fn settled(&self) {
        if let Some(state) = &self.state {
            lock(state).let_go();
        }
    }

    /// Whether another attempt could send all of it.
    pub(crate) fn is_whole(&self) -> bool {
        self.state.as_ref().is_none_or(|state| {
            let state = lock(state);
            !state.lost && state.failed.is_none()
        })
    }

    /// Whether it is the client who is waited for.
    pub(crate) fn is_starved(&self) -> bool {
        self.state.as_ref().is_some_and(|state| lock(state).starved)
    }

    /// How its source failed, if it did.
    pub(crate) fn failed(&self) -> Option<Broke> {
        self.state.as_ref().and_then(|state| lock(state).failed)
    }

    /// The body for one more attempt. It begins once the one before is dropped.
    /// What it takes from the source is counted in `bytes`.
    pub(crate) fn attempt(&self, bytes: &Counter) -> Body {
        match &self.state {
            None => h1::empty(),
            Some(state) => {
                let hint = lock(state).hint;
                let (state, bytes) = (state.clone(), bytes.clone());
                Attempt { state, source: None, next: 0, hint, bytes }.boxed_unsync()
            }
        }
    }
}

impl<B> State<B> {
    /// Holds `data` as well, if there is room for it.
    fn holds(&mut self, data: &Bytes) -> bool {
        let left = self.hold.and_then(|left| left.checked_sub(data.len() as u64));
        match left {
            Some(_) => self.held.push(data.clone()),
            None => self.let_go(),
        }
        self.hold = left;
        left.is_some()
    }

    fn let_go(&mut self) {
        self.hold = None;
        self.held = Vec::new();
        self.lost = true;
    }
}

fn lock<B>(state: &Mutex<State<B>>) -> MutexGuard<'_, State<B>> {
    // Nothing panics while holding it.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Attempt<B> {
    state: Arc<Mutex<State<B>>>,
    source: Option<Patient<B>>,
    // Of what is held, the first that this attempt has not sent.
    next: usize,
    hint: SizeHint,
    bytes: Counter,
}

impl<B> HttpBody for Attempt<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let mut state = lock(&this.state);
        if let Some(held) = state.held.get(this.next) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(held.clone()))));
        }
        if this.source.is_none() {
            this.source = state.source.take();
        }
        let Some(source) = &mut this.source else {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let frame = Pin::new(source).poll_frame(cx);
        state.starved = frame.is_pending();
        let frame = ready!(frame);
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            let length = data.len() as u64;
            this.bytes.inc_by(length);
            let Some(room) = state.room.checked_sub(length) else {
                state.failed = Some(Broke::TooLong);
                return Poll::Ready(Some(Err(TooLong(state.most).into())));
            };
            state.room = room;
        }
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => {
                    if state.holds(data) {
                        this.next += 1;
                    }
                }
                None => state.let_go(),
            },
            Some(Err(error)) => state.failed = Some(Broke::of(error)),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.as_ref().is_some_and(HttpBody::is_end_stream)
            && self.next >= lock(&self.state).held.len()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked once, for the head.
        self.hint
    }
}

impl<B> Drop for Attempt<B> {
    fn drop(&mut self) {
        if let Some(source) = self.source.take() {
            let mut state = lock(&self.state);
            state.source = Some(source);
            if let Some(waiting) = state.waiting.take() {
                waiting.wake();
            }
        }
    }
}

/// The body of an answer: its bytes are counted, and its request is under way until it has
/// come to its end or nobody wants it any more.
pub(crate) struct Download {
    inner: Metered<Body>,
    under_way: Option<UnderWay>,
    // When it breaks off, wherever it is then.
    until: Option<Pin<Box<Sleep>>>,
}

impl Download {
    /// Passes `inner` on, whose bytes are counted in `bytes`, until it ends or `until` is here.
    pub(crate) fn new(
        inner: Body,
        bytes: Counter,
        under_way: UnderWay,
        until: Option<Instant>,
    ) -> Self {
        let more = !inner.is_end_stream();
        let under_way = more.then_some(under_way);
        let until = until.filter(|_| more).map(|until| Box::pin(sleep_until(until)));
        Self { inner: Metered::new(inner, bytes), under_way, until }
    }
}

impl HttpBody for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let late = self.until.as_mut().is_some_and(|until| until.as_mut().poll(cx).is_ready());
        let frame = match late {
            true => Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())),
            false => ready!(Pin::new(&mut self.inner).poll_frame(cx)),
        };
        if self.inner.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            self.under_way = None;
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

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use http_body_util::{Full, StreamBody};

    use super::*;

    const STALL: Duration = Duration::from_secs(60);

    fn bytes() -> Counter {
        lca::metrics::Metrics::default().artifacts.sent.clone()
    }

    async fn all(body: Body) -> Bytes {
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn a_small_body_can_be_sent_from_its_beginning_again_and_again() {
        let upload = Upload::new(Full::new(Bytes::from_static(b"small")), 5, u64::MAX, STALL);
        for _ in 0..3 {
            assert!(upload.is_whole());
            let attempt = upload.attempt(&bytes());
            assert_eq!(attempt.size_hint().exact(), Some(5));
            assert_eq!(all(attempt).await, "small");
        }
    }

    #[tokio::test]
    async fn a_large_body_is_whole_until_some_of_it_is_taken() {
        let upload = Upload::new(Full::new(Bytes::from_static(b"larger")), 5, u64::MAX, STALL);
        drop(upload.attempt(&bytes()));
        assert!(upload.is_whole());
        assert_eq!(all(upload.attempt(&bytes())).await, "larger");
        assert!(!upload.is_whole());
    }

    #[tokio::test]
    async fn an_attempt_waits_until_the_one_before_lets_go() {
        let frames = ["a", "b"].map(|text| Ok::<_, BoxError>(Frame::data(Bytes::from(text))));
        let body = Sized(StreamBody::new(stream::iter(frames)));
        assert_eq!(body.size_hint().exact(), Some(2));
        let upload = Upload::new(body, 5, u64::MAX, STALL);
        let mut first = upload.attempt(&bytes());
        first.frame().await.unwrap().unwrap();
        let mut second = upload.attempt(&bytes());
        assert_eq!(second.frame().await.unwrap().unwrap().into_data().unwrap(), "a");
        assert!(second.frame().now_or_never().is_none());
        drop(first);
        assert_eq!(all(second).await, "b");
        assert!(upload.is_whole());
    }

    #[tokio::test]
    async fn a_body_that_turns_out_too_long_breaks_off_where_it_does() {
        let body = || {
            let frames = ["ab", "c", "d"].map(|text| Frame::data(Bytes::from(text)));
            StreamBody::new(stream::iter(frames.map(Ok::<_, BoxError>)))
        };
        let upload = Upload::new(body(), 5, 4, STALL);
        assert_eq!(all(upload.attempt(&bytes())).await, "abcd", "as long as may be");
        let upload = Upload::new(body(), 5, 3, STALL);
        let mut attempt = upload.attempt(&bytes());
        assert_eq!(attempt.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        assert_eq!(attempt.frame().await.unwrap().unwrap().into_data().unwrap(), "c");
        assert!(attempt.frame().await.unwrap().is_err());
        assert_eq!(upload.failed(), Some(Broke::TooLong));
        assert!(!upload.is_whole());
    }

    #[tokio::test]
    async fn no_body_is_always_whole_and_a_broken_one_never() {
        let none = Upload::new(Full::new(Bytes::new()), 5, u64::MAX, STALL);
        assert!(none.is_whole() && none.attempt(&bytes()).is_end_stream());
        let frames = [Err::<Frame<Bytes>, BoxError>("reset".into())];
        let upload = Upload::new(StreamBody::new(stream::iter(frames)), 5, u64::MAX, STALL);
        assert!(upload.attempt(&bytes()).collect().await.is_err());
        assert_eq!(upload.failed(), Some(Broke::Off));
        assert!(!upload.is_whole());
    }

    /// A body of two bytes that knows it.
    struct Sized<B>(B);

    impl<B: HttpBody + Unpin> HttpBody for Sized<B> {
        type Data = B::Data;
        type Error = B::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
            Pin::new(&mut self.0).poll_frame(cx)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(2)
        }
    }
}
