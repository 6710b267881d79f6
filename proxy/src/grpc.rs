//! What gRPC asks of a proxy beyond HTTP/2: that its trailers pass, and that a failure of the
//! proxy's is told in its own words, as its clients read nothing else.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Version, header, request};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use lca::{Error, Kind};
use lca_node::h1::{Body, BoxError};

/// Whether this is a call: HTTP/2 with the content type of gRPC, whatever its messages are
/// written in. gRPC-Web, which has no trailers, is another.
pub(crate) fn is_call(version: Version, headers: &HeaderMap) -> bool {
    version == Version::HTTP_2 && has_its_type(headers)
}

/// Whether the content type is gRPC's.
pub(crate) fn has_its_type(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = kind.get(.."application/grpc".len()).zip(kind.get("application/grpc".len()..));
    rest.is_some_and(|(kind, rest)| {
        kind.eq_ignore_ascii_case(b"application/grpc")
            && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
    })
}

/// Whether its trailers must pass as they are, announced or not.
pub(crate) fn is_streamed(parts: &request::Parts) -> bool {
    let takes_trailers = || {
        let te = parts.headers.get(header::TE);
        te.is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"))
    };
    parts.version == Version::HTTP_2 && (takes_trailers() || has_its_type(&parts.headers))
}

/// The answer to a call, which always ends with a status: if the application breaks off in the
/// middle or its time is over, with one of ours.
pub(crate) struct Ending {
    inner: Body,
    over: bool,
}

impl Ending {
    pub(crate) fn new(inner: Body) -> Self {
        Self { inner, over: false }
    }
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let Some(Err(error)) = frame else { return Poll::Ready(frame) };
        tracing::debug!(error, "a call broke off");
        self.over = true;
        let late = error.downcast_ref::<io::Error>();
        let error = match late.map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => {
                Error::new(Kind::Timeout, "the answer did not go on, or end, in its time")
            }
            _ => Error::new(Kind::Unavailable, "the application broke off in its answer"),
        };
        Poll::Ready(Some(Ok(Frame::trailers(error.to_grpc_trailers()))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_type_and_version() {
        let is = |version, kind: &'static str| {
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
            is_call(version, &headers.into_iter().collect())
        };
        for kind in ["application/grpc", "application/grpc+proto", "Application/gRPC;x=y"] {
            assert!(is(Version::HTTP_2, kind), "{kind}");
            assert!(!is(Version::HTTP_11, kind), "{kind}");
        }
        for kind in ["application/grpc-web", "application/grpcx", "application/json", ""] {
            assert!(!is(Version::HTTP_2, kind), "{kind}");
        }
    }
}
