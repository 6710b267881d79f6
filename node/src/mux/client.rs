//! The front's side of a connection: opens a stream for each request.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame as BodyFrame, SizeHint};
use lca::{Error, Kind as Fault};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
    time::Instant,
};

use super::{
    STREAMS,
    body::Incoming,
    driver::{After, Side, drive},
    frame::{self, Frame, Kind, NoFrame, Reset},
    head,
    shared::{Closed, Shared, State, Stream, put_trailers},
};
use crate::h1::{
    Body, BoxError, Cause, HeadAfter, Patient, Waits,
    parts::{Outgoing, Sent, in_time},
};

/// A connection to an ingress. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Front;

impl Side for Front {
    fn frame(&mut self, state: &mut State, frame: Frame, after: &mut After) -> Result<(), NoFrame> {
        state.told(frame, &mut after.wakers)
    }
}

/// Why there is no answer.
pub(super) enum Attempt {
    /// Nobody has looked at it, and here it is, without what was taken of its body: whole if
    /// nothing was.
    Returned { request: Box<Request<Body>>, whole: bool, error: Error },
    /// See [`Failed::Sent`].
    Failed(Cause, Error),
}

impl Connection {
    /// Starts to drive a connection, which ends by itself after it was unused for `keep`.
    pub(super) fn start<S>(stream: S, keep: Duration) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = Shared::new();
        let driven = shared.clone();
        tokio::spawn(async move {
            if let Err(error) = drive(driven, stream, Front, keep).await {
                tracing::debug!(%error, "connection over");
            }
        });
        Self { shared }
    }

    /// Requests under way, if it takes one more; `None` if it is over.
    pub(super) fn load(&self) -> Option<usize> {
        let state = self.shared.lock();
        state.is_open().then_some(state.streams.len())
    }

    /// Ends it as soon as nothing is under way.
    pub(super) fn leave(&self) {
        self.shared.tell(|state| state.leaving = true);
    }

    /// Sends a request in origin form. Whoever drops the future, or the answer's body
    /// before its end, gives up this request and no other.
    pub(super) async fn send(
        &self,
        request: Request<Body>,
        limits: Waits,
    ) -> Result<Response<Body>, Attempt> {
        let (parts, body) = request.into_parts();
        let (body, sent) = Outgoing::new(body);
        let kind = if body.is_end_stream() { Kind::HeadOnly } else { Kind::Head };
        let opened = self.shared.tell(|state| {
            if !state.is_open() || state.streams.len() >= STREAMS {
                return None;
            }
            let id = state.last + 1;
            let put = |out: &mut BytesMut| head::put_request(out, &parts);
            Some(frame::put_with(&mut state.out, kind, id, put).map(|()| {
                state.last = id;
                let used = id > 1;
                state.streams.insert(id, Stream::new());
                (id, used)
            }))
        });
        let (id, used) = match opened {
            Some(Ok(opened)) => opened,
            Some(Err(_)) => {
                let error = Error::new(Fault::InvalidArgument, "the request's head is too long");
                return Err(returned(parts, body, true, error));
            }
            None => return Err(returned(parts, body, true, gone())),
        };
        let began = Instant::now();
        let mut exchange = Exchange {
            open: Some(Open { shared: self.shared.clone(), id }),
            upload: (kind == Kind::Head).then(|| Upload {
                shared: self.shared.clone(),
                id,
                body,
                held: None,
            }),
            rest: None,
        };
        let answered =
            in_time(std::future::poll_fn(|cx| exchange.poll_head(cx)), &sent, limits.head);
        let Some(answered) = answered.await else {
            let error = Error::new(Fault::Timeout, format!("no answer within {:?}", limits.head));
            return Err(Attempt::Failed(Cause::Late, error));
        };
        match answered {
            Ok((head, whole)) => {
                let length = head::length(head.headers()).unwrap_or_default();
                let body = Incoming::new(self.shared.clone(), id, length, whole);
                exchange.go_on(whole);
                exchange.finish_if(whole);
                let mut answer = head.map(|()| {
                    Answer { body: Patient::new(body, limits.quiet), exchange, _sent: sent }
                        .boxed_unsync()
                });
                if used {
                    answer.extensions_mut().insert(HeadAfter(began.elapsed()));
                }
                Ok(answer)
            }
            Err(Lost::Unseen) => {
                let whole = kind == Kind::HeadOnly || !sent.began();
                Err(returned(parts, exchange.take_body(), whole, gone()))
            }
            Err(Lost::Sent) => {
                let (cause, public) = if sent.failed() {
                    (Cause::Body, "the request broke off")
                } else {
                    (Cause::Silent, "the connection ended without an answer")
                };
                Err(Attempt::Failed(cause, Error::new(Fault::BadGateway, public)))
            }
            Err(Lost::Garbled) => {
                let error = Error::new(Fault::BadGateway, "the answer is not HTTP");
                Err(Attempt::Failed(Cause::Garbled, error))
            }
        }
    }
}

fn gone() -> Error {
    Error::new(Fault::Unavailable, "the connection was closed")
}

fn returned(parts: Parts, body: Outgoing, whole: bool, error: Error) -> Attempt {
    let request = Box::new(Request::from_parts(parts, body.into_inner()));
    Attempt::Returned { request, whole, error }
}

/// Why a stream has no head.
enum Lost {
    Unseen,
    Sent,
    Garbled,
}

/// A stream of ours. Dropped, it is over, and the other end is told if it does not know.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    id: u32,
}

impl Open {
    /// It is over, and both ends know.
    fn done(self) {
        let (shared, id) = (self.shared.clone(), self.id);
        std::mem::forget(self);
        shared.tell(|state| state.remove(id));
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let id = self.id;
        self.shared.tell(|state| {
            let known = state.remove(id).is_none_or(|stream| stream.reset().is_some());
            if !known && state.closed.is_none() {
                frame::put_reset(&mut state.out, id, Reset::Cut);
            }
        });
    }
}

/// A stream and what is still to be sent on it.
#[derive(Debug)]
struct Exchange {
    open: Option<Open>,
    upload: Option<Upload>,
    /// The task that goes on with it once the head of the answer is there: who asked may
    /// read nothing of the answer until all is sent.
    rest: Option<Rest>,
}

impl Exchange {
    /// The head of the answer, and whether that is all of it. Sends the body meanwhile.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Response<()>, bool), Lost>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(ended) = upload.poll(cx)
        {
            if ended.is_err() {
                return Poll::Ready(Err(Lost::Sent));
            }
            self.upload = None;
        }
        let Some(Open { shared, id }) = &self.open else { return Poll::Ready(Err(Lost::Sent)) };
        let mut state = shared.lock();
        let (written, closed) = (state.written, state.closed);
        let Some(stream) = state.streams.get_mut(id) else { return Poll::Ready(Err(Lost::Sent)) };
        match stream.head.take() {
            Some(Ok(head)) => {
                stream.answered = true;
                return Poll::Ready(Ok((head, stream.is_whole())));
            }
            Some(Err(_)) => return Poll::Ready(Err(Lost::Garbled)),
            None => {}
        }
        match (stream.reset(), closed) {
            (Some(Reset::Refused), _) => Poll::Ready(Err(Lost::Unseen)),
            (_, Some(_)) if *id > written => Poll::Ready(Err(Lost::Unseen)),
            (_, Some(Closed::Garbled)) => Poll::Ready(Err(Lost::Garbled)),
            (Some(Reset::Cut), _) | (_, Some(Closed::Gone)) => Poll::Ready(Err(Lost::Sent)),
            (None, None) => {
                stream.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Leaves what is not sent yet to a task, unless the answer is whole already.
    fn go_on(&mut self, whole: bool) {
        if !whole && let Some(mut upload) = self.upload.take() {
            let rest = async move {
                // If the request breaks off now, the answer has come nevertheless.
                let _ended_early = std::future::poll_fn(|cx| upload.poll(cx)).await;
            };
            self.rest = Some(Rest(tokio::spawn(rest)));
        }
    }

    fn finish_if(&mut self, whole: bool) {
        if whole
            && self.upload.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.0.is_finished())
            && let Some(open) = self.open.take()
        {
            open.done();
        }
    }

    fn take_body(&mut self) -> Outgoing {
        let upload = self.upload.take().map(|upload| upload.body);
        upload.unwrap_or_else(|| Outgoing::new(crate::h1::empty()).0)
    }
}

/// Ended with the answer that it belongs to.
#[derive(Debug)]
struct Rest(JoinHandle<()>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of a request, as far as it is not sent.
#[derive(Debug)]
struct Upload {
    shared: Arc<Shared>,
    id: u32,
    body: Outgoing,
    /// Taken of it and not sent yet, and whether that is its end.
    held: Option<(Bytes, bool)>,
}

impl Upload {
    /// Sends what there is and what the other end takes; ready once that is all.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Self { shared, id, body, held } = self;
        loop {
            if let Some((data, over)) = held {
                loop {
                    ready!(shared.poll_send(cx, *id, data, *over));
                    if data.is_empty() {
                        break;
                    }
                }
                let over = *over;
                *held = None;
                if over {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose()?;
            let over = frame.is_none() || body.is_end_stream();
            match frame.map(BodyFrame::into_data) {
                Some(Ok(data)) if data.is_empty() && !over => {}
                Some(Ok(data)) => *held = Some((data, over)),
                Some(Err(frame)) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    shared.tell(|state| put_trailers(state, *id, &trailers));
                    return Poll::Ready(Ok(()));
                }
                None => {
                    shared.tell(|state| frame::put(&mut state.out, Kind::LastData, *id, &[]));
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// The body of an answer, with which its request ends.
struct Answer {
    body: Patient<Incoming>,
    exchange: Exchange,
    _sent: Arc<Sent>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => this.exchange.finish_if(this.body.is_end_stream()),
            None => this.exchange.finish_if(true),
            Some(Err(_)) => drop(this.exchange.open.take()),
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
