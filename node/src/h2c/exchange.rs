//! One request and its answer on one stream.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::{Request, Response, Uri, Version, header, request::Parts, uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use lca::{Error, Kind};
use tokio::task::AbortHandle;

use super::{
    MAX_INTERIM,
    connection::{Blocked, Place},
};
use crate::h1::{
    Body, BoxError, Cause, Config, Patient,
    parts::{Outgoing, Sent, in_time},
};

/// Why there is no answer.
pub(super) enum Attempt {
    /// Nobody has looked at it, and here it is. Whole, if nothing of its body was taken.
    Returned { request: Box<Request<Body>>, whole: bool, error: Error },
    /// The same; the instance has said that it takes no more requests now.
    Refused(Box<Request<Body>>, Error),
    /// See [`Failed::Sent`](crate::h1::Failed::Sent).
    Failed(Cause, Error),
}

/// Sends a request in origin form on the connection of `place`. Whoever drops the future, or
/// the answer's body before its end, resets the stream.
pub(super) async fn send(
    place: Place,
    request: Request<Body>,
    config: &Config,
) -> Result<Response<Body>, Attempt> {
    let (parts, body) = request.into_parts();
    let (body, sent) = Outgoing::new(body);
    let head = match head(&parts) {
        Ok(head) => head,
        Err(error) => {
            let error =
                Error::new(Kind::InvalidArgument, "the request has no HTTP/2 form").because(error);
            return Err(returned(parts, body, true, error));
        }
    };
    let opened = place.sender().send_request(head, body.is_end_stream());
    let (response, stream) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            place.leave();
            return Err(returned(parts, body, true, gone().because(error)));
        }
    };
    let upload = (!body.is_end_stream()).then(|| Upload {
        stream,
        body,
        held: None,
        blocked: place.unblocked(),
    });
    let mut waiting = Waiting { response, upload, interim: 0 };
    let answered = in_time(std::future::poll_fn(|cx| waiting.poll(cx)), &sent, config.head).await;
    let upload = waiting.upload.take();
    match answered {
        None => {
            let limit = config.head;
            let error = Error::new(Kind::Timeout, format!("no answer within {limit:?}"));
            Err(Attempt::Failed(Cause::Late, error))
        }
        Some(Ok(answer)) => {
            // It goes on by itself: who asked may read nothing until all of it is sent.
            let upload = upload.filter(|_| !answer.body().is_end_stream()).map(|mut upload| {
                let rest = async move { std::future::poll_fn(|cx| upload.poll(cx)).await };
                Rest(tokio::spawn(rest).abort_handle())
            });
            Ok(answer.map(|body| {
                let body = Patient::new(Stream(body), config.quiet);
                Answer { body, _upload: upload, _place: place, _sent: sent }.boxed_unsync()
            }))
        }
        Some(Err(lost)) => {
            let body = upload.map(|upload| upload.body);
            Err(lost.told(&place, parts, body, &sent))
        }
    }
}

fn gone() -> Error {
    Error::new(Kind::Unavailable, "the connection was closed")
}

fn returned(parts: Parts, body: Outgoing, whole: bool, error: Error) -> Attempt {
    let request = Box::new(Request::from_parts(parts, body.into_inner()));
    Attempt::Returned { request, whole, error }
}

/// The head as HTTP/2 has it: the authority is no header there.
fn head(parts: &Parts) -> http::Result<Request<()>> {
    let mut request = Request::new(());
    let host = parts.headers.get(header::HOST).map_or(&b"localhost"[..], |host| host.as_bytes());
    let target = parts.uri.path_and_query().cloned();
    *request.uri_mut() = Uri::builder()
        .scheme(uri::Scheme::HTTP)
        .authority(host)
        .path_and_query(target.unwrap_or_else(|| uri::PathAndQuery::from_static("/")))
        .build()?;
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = parts.headers.clone();
    request.headers_mut().remove(header::HOST);
    Ok(request)
}

/// Why a stream has no head.
enum Lost {
    /// The request's own body failed.
    Body,
    /// More interim answers than anybody needs.
    Interim,
    Stream(h2::Error),
}

impl Lost {
    fn told(self, place: &Place, parts: Parts, body: Option<Outgoing>, sent: &Sent) -> Attempt {
        let failed = |cause, public: &str, error: Option<h2::Error>| {
            let told = Error::new(Kind::BadGateway, public);
            Attempt::Failed(
                cause,
                match error {
                    Some(error) => told.because(error),
                    None => told,
                },
            )
        };
        let error = match self {
            Self::Body => return failed(Cause::Body, "the request broke off", None),
            Self::Interim => return failed(Cause::Garbled, "the answer is not HTTP", None),
            Self::Stream(error) => error,
        };
        let refused =
            error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
        // Of a connection that the other end leaves, only those it has not looked at fail so.
        let left =
            error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
        if left {
            place.leave();
        }
        if refused || left {
            let whole = !sent.began();
            let body = body.map_or_else(crate::h1::empty, Outgoing::into_inner);
            let request = Box::new(Request::from_parts(parts, body));
            if refused {
                let error =
                    Error::new(Kind::NoCapacity, "the instance refused the request").because(error);
                return Attempt::Refused(request, error);
            }
            return Attempt::Returned { request, whole, error: gone().because(error) };
        }
        if error.is_remote() && error.is_reset() {
            return failed(Cause::Silent, "the instance reset the request", Some(error));
        }
        place.leave();
        if error.is_library() {
            // What came is no HTTP/2, or more of it than is taken.
            return failed(Cause::Garbled, "the answer is not HTTP", Some(error));
        }
        failed(Cause::Silent, "the connection ended without an answer", Some(error))
    }
}

/// A request whose answer has no head yet.
struct Waiting {
    response: ResponseFuture,
    upload: Option<Upload>,
    interim: u32,
}

impl Waiting {
    /// The head of the answer. Sends the body meanwhile.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<RecvStream>, Lost>> {
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(ended) = upload.poll(cx)
        {
            match ended {
                Ok(()) => self.upload = None,
                Err(_) => return Poll::Ready(Err(Lost::Body)),
            }
        }
        while let Poll::Ready(Some(Ok(_))) = self.response.poll_informational(cx) {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Poll::Ready(Err(Lost::Interim));
            }
        }
        Pin::new(&mut self.response).poll(cx).map_err(Lost::Stream)
    }
}

/// A body on its way to the instance.
struct Upload {
    stream: SendStream<Bytes>,
    body: Outgoing,
    /// Taken of it and not sent yet, and whether that is its end.
    held: Option<(Bytes, bool)>,
    blocked: Blocked,
}

impl Upload {
    /// Sends what there is and what the instance takes. Ready once all is sent, or nobody
    /// wants more of it.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        loop {
            if let Some((data, over)) = &mut self.held {
                if !data.is_empty() {
                    self.stream.reserve_capacity(data.len());
                    let room = self.stream.poll_capacity(cx);
                    self.blocked.is(room.is_pending());
                    let Some(Ok(room)) = ready!(room) else { return Poll::Ready(Ok(())) };
                    let chunk = data.split_to(room.min(data.len()));
                    let last = *over && data.is_empty();
                    if self.stream.send_data(chunk, last).is_err() || last {
                        return Poll::Ready(Ok(()));
                    }
                    continue;
                }
                self.held = None;
            }
            // Only so is it noticed that nobody wants the rest.
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(error));
                }
                None => {
                    let _closed_meanwhile = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
            };
            let over = self.body.is_end_stream();
            match frame.into_data() {
                Ok(data) if data.is_empty() && over => {
                    let _closed_meanwhile = self.stream.send_data(data, true);
                    return Poll::Ready(Ok(()));
                }
                Ok(data) => self.held = Some((data, over)),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    let _closed_meanwhile = self.stream.send_trailers(trailers);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// The task that sends what is left of a request, as long as its answer is read.
struct Rest(AbortHandle);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer as it comes; what is taken of it makes room for more.
struct Stream(RecvStream);

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let recv = &mut self.0;
        match ready!(recv.poll_data(cx)) {
            Some(Ok(data)) => {
                let _over_meanwhile = recv.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None => match ready!(recv.poll_trailers(cx)) {
                Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
                Err(error) => Poll::Ready(Some(Err(error.into()))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

/// The body of an answer, with the place on the connection it comes on.
struct Answer {
    body: Patient<Stream>,
    // With both ends of the stream dropped, it is reset if it is not over.
    _upload: Option<Rest>,
    _place: Place,
    _sent: Arc<Sent>,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
