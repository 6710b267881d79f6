//! Requests after which a connection is no HTTP any more: `Upgrade`, and `CONNECT` as a
//! tunnel to the port of a service. Towards ingress both are an upgrade.

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use lca::headers::{PREFIX, TUNNEL};
use lca_node::h1::{Body, Switched, Tunnel, empty, hygiene};

use crate::headers;

/// What a client asks to go on with.
pub(crate) struct Upgrade {
    /// Its connection, once the answer is written.
    pub(crate) client: OnUpgrade,
    protocol: HeaderValue,
    connect: bool,
}

impl Upgrade {
    /// What this request asks for, if that can be passed on. One with a body cannot: the
    /// body would have to be through first.
    pub(crate) fn of(request: &mut Request<Incoming>) -> Option<Self> {
        if request.version() == Version::HTTP_2 {
            return None; // a stream among others: it stays what it is
        }
        if *request.method() == Method::CONNECT {
            let protocol = HeaderValue::from_static(TUNNEL);
            return Some(Self { client: hyper::upgrade::on(request), protocol, connect: true });
        }
        let protocol = hygiene::upgrade(request.headers())?;
        let ours = protocol.as_bytes().get(..PREFIX.len());
        let ours = ours.is_some_and(|begin| begin.eq_ignore_ascii_case(PREFIX.as_bytes()));
        if ours || request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
            return None;
        }
        Some(Self { client: hyper::upgrade::on(request), protocol, connect: false })
    }

    /// Makes the request one that asks ingress for the same.
    pub(crate) fn ask(&self, parts: &mut request::Parts) {
        if self.connect {
            parts.method = Method::GET;
        }
        hygiene::insert_upgrade(&mut parts.headers, self.protocol.clone());
    }

    /// Whether an answer is none to what was asked: only a tunnel is one to `CONNECT`.
    pub(crate) fn is_missed_by(&self, answer: &Response<Body>) -> bool {
        self.connect && answer.status() != StatusCode::SWITCHING_PROTOCOLS
    }

    /// The answer for the client, and the server's connection, if the server agreed.
    pub(crate) fn agreed(&self, answer: &mut Response<Body>) -> Option<(Response<Body>, Tunnel)> {
        let tunnel = answer.extensions_mut().remove::<Switched>()?.take()?;
        let mut told = Response::new(empty());
        if self.connect {
            return Some((told, tunnel));
        }
        *told.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *told.headers_mut() = std::mem::take(answer.headers_mut());
        let protocol = told.headers_mut().remove(header::UPGRADE);
        headers::for_client(told.headers_mut());
        let protocol = protocol.unwrap_or_else(|| self.protocol.clone());
        hygiene::insert_upgrade(told.headers_mut(), protocol);
        Some((told, tunnel))
    }
}
