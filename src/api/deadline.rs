//! How long a call may take on a server of ours: what its caller asked for with
//! `grpc-timeout`, and never longer than a maximum. At that moment the work is dropped and
//! the caller hears DEADLINE_EXCEEDED. Every listener has this layer, mesh and local.
//!
//! tonic has a timer of its own that cannot be turned off. It says CANCELLED, as if the
//! caller had given up, and does not look at streams once they have begun. Ours is always
//! first.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tokio::time::{Instant, timeout_at};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::answer::Answer;
use crate::{Error, Kind};

/// What tokio's timer resolves. Our deadline is so much before the caller's: tonic's timer
/// must not be first, and the answer has to travel. Less cannot be kept and is over at once.
const TICK: Duration = Duration::from_millis(1);

/// Gives every call its deadline.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// Until the head of an answer where the caller does not ask for less.
    pub longest: Duration,
    /// A streamed answer of which nothing is taken for so long is given up.
    pub unread: Duration,
}

impl<S> Layer<S> for Deadlines {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, limits: *self }
    }
}

/// A service whose calls have deadlines.
#[derive(Clone, Debug)]
pub struct Timed<S> {
    inner: S,
    limits: Deadlines,
}

impl<S> Service<Request<Body>> for Timed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send + 'static>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Deadlines { longest, unread } = self.limits;
        let begun = Instant::now();
        let asked = asked_for(request.headers());
        let limit = asked.unwrap_or(longest).min(longest).saturating_sub(TICK);
        if limit.is_zero() {
            return Box::pin(async { Ok(exceeded().into_http()) });
        }
        let working = self.inner.call(request);
        Box::pin(async move {
            match timeout_at(begun + limit, working).await {
                Ok(answer) => {
                    // The maximum is for the head: a watch goes on as long as it is wanted.
                    let end = asked.map(|asked| begun + asked.saturating_sub(TICK).min(AGES));
                    Ok(answer?.map(|body| Answer::wrap(body, end, unread)))
                }
                Err(_) => Ok(exceeded().into_http()),
            }
        })
    }
}

/// More than any stream lasts, and little enough to be added to any instant.
const AGES: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// What a caller is told whose time is over.
pub(super) fn exceeded() -> Status {
    Error::new(Kind::Timeout, "the deadline of the call has passed").into()
}

/// How long the caller of a request waits, by its `grpc-timeout`. `None` if it does not say,
/// or not as the protocol writes it.
pub fn asked_for(headers: &HeaderMap) -> Option<Duration> {
    parse(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// The value of `grpc-timeout`: at most eight digits and a unit.
pub fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = plain.then(|| digits.parse().ok())??;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    };

    use tower::ServiceExt as _;

    use super::*;

    const LIMITS: Deadlines =
        Deadlines { longest: Duration::from_secs(300), unread: Duration::from_secs(600) };

    /// Says when the work it is part of has been dropped.
    #[derive(Clone, Default)]
    struct Dropped(Arc<AtomicBool>);

    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }

    /// Calls work that never ends; how long that took, and whether the work began, was
    /// dropped, and what was said.
    async fn endless(timeout: Option<&str>) -> (Duration, bool, bool, tonic::Code) {
        let (began, dropped) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (begins, drops) = (began.clone(), Dropped(dropped.clone()));
        let work = tower::service_fn(move |_: Request<Body>| {
            begins.store(true, SeqCst);
            let held = Dropped(drops.0.clone());
            async move {
                let _held = held;
                std::future::pending::<Result<Response<Body>, Infallible>>().await
            }
        });
        let mut request = Request::new(Body::empty());
        if let Some(timeout) = timeout {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        let since = Instant::now();
        let mut service = LIMITS.layer(work);
        let answer = service.ready().await.unwrap().call(request).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        let dropped = dropped.load(SeqCst);
        (since.elapsed(), began.load(SeqCst), dropped, status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_the_work_is_dropped_and_the_caller_is_told() {
        for (timeout, at) in [
            (Some("500m"), Duration::from_millis(500)),
            (Some("99999999H"), LIMITS.longest),
            (None, LIMITS.longest),
            (Some("nonsense"), LIMITS.longest),
        ] {
            let (took, began, dropped, code) = endless(timeout).await;
            assert!(began && dropped, "{timeout:?}");
            assert_eq!(code, tonic::Code::DeadlineExceeded, "{timeout:?}");
            assert!(took <= at && took + TICK * 2 >= at, "{timeout:?}: {took:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_no_time_is_not_begun() {
        for timeout in ["0S", "1n", "1u", "1m"] {
            let (took, began, _, code) = endless(Some(timeout)).await;
            assert!(!began, "{timeout}");
            assert_eq!((took, code), (Duration::ZERO, tonic::Code::DeadlineExceeded), "{timeout}");
        }
    }

    #[test]
    fn a_deadline_is_read_as_the_protocol_writes_it() {
        assert_eq!(parse("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse("7S"), Some(Duration::from_secs(7)));
        assert_eq!(parse("0n"), Some(Duration::ZERO));
        assert_eq!(parse("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for junk in ["", "S", "1", "-1S", "+1S", "999999999S", "1 S", "1x", "1µ"] {
            assert_eq!(parse(junk), None, "{junk:?}");
        }
    }

    #[test]
    fn what_our_clients_write_is_read_back() {
        let request = crate::api::within(Duration::from_millis(1500), ());
        let headers = request.metadata().clone().into_headers();
        assert_eq!(asked_for(&headers), Some(Duration::from_millis(1500)));
    }
}
