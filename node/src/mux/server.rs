//! Ingress's side of a connection: a task for each request.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame as BodyFrame};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    STREAMS,
    body::Incoming,
    driver::{After, Side, drive},
    frame::{self, Frame, Kind, NoFrame, Reset},
    head,
    shared::{Cut, Opened, Shared, State, put_trailers},
};
use crate::h1::{Body, BoxError};

/// Streams that the other end may reset, or open beyond what is taken, within a second. Each
/// costs the work of a request and brings nothing.
const MAX_RESETS: u32 = 1000;
/// In which they are counted.
const RESETS_IN: Duration = Duration::from_secs(1);

/// Answers the requests of one connection until it ends, nothing is open on it for `keep`, or
/// `leave` is cancelled and nothing is open any more. A request's [`Cut`], once notified, breaks
/// off that request alone, as an error of `answer` does.
pub async fn serve<S, A, F>(
    stream: S,
    keep: Duration,
    leave: CancellationToken,
    answer: A,
) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(Request<Incoming>, Cut) -> F,
    F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
{
    let shared = Shared::new();
    let driving = drive(shared.clone(), stream, Ingress { answer }, keep);
    tokio::pin!(driving);
    tokio::select! {
        ended = &mut driving => return ended,
        () = leave.cancelled() => {}
    }
    shared.tell(|state| {
        state.leaving = true;
        let last = state.last;
        frame::put(&mut state.out, Kind::Leave, last, &[]);
    });
    driving.await
}

struct Ingress<A> {
    answer: A,
}

impl<A, F> Side for Ingress<A>
where
    A: Fn(Request<Incoming>, Cut) -> F,
    F: Future<Output = Result<Response<Body>, BoxError>> + Send + 'static,
{
    fn frame(&mut self, state: &mut State, frame: Frame, after: &mut After) -> Result<(), NoFrame> {
        after.opened.extend(state.asked(frame, STREAMS, &mut after.wakers, &mut after.over)?);
        Ok(())
    }

    fn bears(&self, state: &mut State) -> bool {
        if state.resets < MAX_RESETS {
            return true;
        }
        if state.resets_since.elapsed() < RESETS_IN {
            return false;
        }
        (state.resets, state.resets_since) = (0, Instant::now());
        true
    }

    fn serve(&mut self, shared: &Arc<Shared>, Opened { id, head, whole }: Opened) {
        // It may have been given up in the same breath.
        if !shared.lock().streams.contains_key(&id) {
            return;
        }
        let length = head::length(head.headers()).unwrap_or_default();
        let body = Incoming::new(shared.clone(), id, length, whole);
        let cut = Arc::new(Notify::new());
        // Large, as it holds all of forwarding: put once where it stays.
        let answered = Box::pin((self.answer)(head.map(|()| body), cut.clone()));
        let open = Open { shared: shared.clone(), id, over: false };
        let task = tokio::spawn(async move {
            tokio::select! {
                biased;
                () = reply(answered, open) => {}
                () = cut.notified() => {}
            }
        });
        // It cannot be over already where nothing else runs, and if it is, this is nothing.
        if let Some(stream) = shared.lock().streams.get_mut(&id) {
            stream.task = Some(task.abort_handle());
        }
    }
}

/// A stream that is served. Dropped before its answer is whole, it is reset.
struct Open {
    shared: Arc<Shared>,
    id: u32,
    /// The end of its answer is written.
    over: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let (id, over) = (self.id, self.over);
        self.shared.tell(|state| {
            // Nobody is left to be told of one that the front has reset.
            if state.remove(id).is_some() && !over && state.closed.is_none() {
                frame::put_reset(&mut state.out, id, Reset::Cut);
            }
        });
    }
}

/// Sends an answer, as far as the other end takes it.
async fn reply(answered: impl Future<Output = Result<Response<Body>, BoxError>>, mut open: Open) {
    let answer = match answered.await {
        Ok(answer) => answer,
        Err(error) => return tracing::debug!(%error, "a request broke off"),
    };
    let (parts, mut body) = answer.into_parts();
    let (shared, id) = (open.shared.clone(), open.id);
    // What of the body is there already goes with the head, in one write.
    let mut next = match body.is_end_stream() {
        true => Some(None),
        false => body.frame().now_or_never(),
    };
    let kind = if matches!(next, Some(None)) { Kind::HeadOnly } else { Kind::Head };
    let put = |out: &mut BytesMut| head::put_response(out, &parts);
    if shared.tell(|state| frame::put_with(&mut state.out, kind, id, put)).is_err() {
        return tracing::debug!("the head of an answer is too long");
    }
    while kind == Kind::Head && !open.over {
        let frame = match next.take() {
            Some(frame) => frame,
            None => body.frame().await,
        };
        open.over = frame.is_none() || body.is_end_stream();
        match frame.transpose().map(|frame| frame.map(BodyFrame::into_data)) {
            Ok(Some(Ok(data))) => send(&shared, id, data, open.over).await,
            Ok(Some(Err(frame))) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                shared.tell(|state| put_trailers(state, id, &trailers));
                open.over = true;
            }
            Ok(None) => shared.tell(|state| frame::put(&mut state.out, Kind::LastData, id, &[])),
            Err(error) => {
                open.over = false;
                return tracing::debug!(%error, "an answer broke off");
            }
        }
    }
    open.over = true;
}

/// Writes some of a body, as much at a time as the other end takes.
async fn send(shared: &Shared, id: u32, mut data: Bytes, over: bool) {
    while over || !data.is_empty() {
        poll_fn(|cx| shared.poll_send(cx, id, &mut data, over)).await;
        if data.is_empty() {
            return;
        }
    }
}
