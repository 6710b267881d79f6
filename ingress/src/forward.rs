//! One peer's connection: each request on it goes to the instance it names, and the
//! answer back, both as they come.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header::UPGRADE};
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as HttpBody, Frame, SizeHint},
    server::conn::http1,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use lca::{
    Error, InstanceId, Kind, PeerId, Protocol, ServiceHash,
    headers::{self, Failure, Load, Refusal},
    metrics::{Ended, Exchange, Held},
};
use lca_node::{
    h1::{
        self, After, Body, BoxError, Cause, Dial as _, Failed, Joint, Metered, Patient, Switched,
        Tunnel, hygiene,
    },
    mux,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Notify,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Loopback, Shared,
    instance::{Instance, Local, Open},
};

/// What a front sends at most: a client's 100 headers and those it adds itself.
const MAX_HEADERS: usize = 128;
/// A client's 64 KiB of headers, and those the front adds.
const MAX_HEAD: usize = 80 << 10;

/// Serves one connection until the peer closes it, a request on it is cut off, or
/// nothing comes for too long.
pub(crate) async fn serve<S>(ingress: Arc<Shared>, stream: S, from: PeerId)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _counted = Held::new(&ingress.metrics.ingress.connections);
    let config = ingress.config;
    let end = Arc::new(Notify::new());
    let cut = end.clone();
    let stream = h1::Bounded::new(stream, config.instances.stall);
    let after = After::default();
    let left = after.clone();
    let service = service_fn(move |request| {
        answer(ingress.clone(), request, from, end.clone(), after.clone())
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.keep_alive)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let served = async {
        connection.await?;
        match left.take() {
            Some(joint) => joint.run().await.map_err(BoxError::from),
            None => Ok(()),
        }
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::debug!(peer = %from.short(), %error, "connection over");
        },
        () = cut.notified() => tracing::debug!(peer = %from.short(), "cut off: the instance is gone"),
    }
}

/// Serves one connection that carries many requests at once, until the peer closes it,
/// nothing comes for too long, or `stop` is cancelled and what is open has ended.
pub(crate) async fn serve_many<S>(
    ingress: Arc<Shared>,
    stream: S,
    from: PeerId,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _counted = Held::new(&ingress.metrics.ingress.connections);
    let config = ingress.config;
    let stream = h1::Bounded::new(stream, config.instances.stall);
    // Nothing leaves HTTP here: heads that ask for it are not taken.
    let after = After::default();
    // A request that is cut off takes no other with it.
    let each = move |request, cut| answer(ingress.clone(), request, from, cut, after.clone());
    if let Err(error) = mux::serve(stream, config.keep_alive, stop, each).await {
        tracing::debug!(peer = %from.short(), %error, "connection over");
    }
}

/// Answers one request. An error closes the connection without an answer: the
/// request itself broke off.
async fn answer<B>(
    ingress: Arc<Shared>,
    mut request: Request<B>,
    from: PeerId,
    end: Arc<Notify>,
    after: After,
) -> Result<Response<Body>, BoxError>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let id = request.headers().get(headers::REQUEST_ID).cloned();
    let id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
    let Some((instance, hash)) = wanted(&ingress, request.headers()) else {
        tracing::debug!(request = id, peer = %from.short(), "unknown instance");
        return Ok(refused(&ingress, Refusal::Unknown, Load::default()));
    };
    let open = match instance.admit(hash, &end).await {
        Ok(open) => open,
        Err(refusal) => {
            tracing::debug!(request = id, peer = %from.short(), instance = %instance.local.instance.short(),
                refusal = refusal.as_str(), "refused");
            return Ok(refused(&ingress, refusal, instance.load()));
        }
    };
    let exchange = Exchange::at_ingress(&ingress.metrics, instance.counted.clone());
    let asked = hygiene::upgrade(request.headers());
    let client = hyper::upgrade::on(&mut request);
    let tunnels = asked.as_ref().is_some_and(|protocol| protocol == headers::TUNNEL);
    let h2c = instance.local.protocol == Protocol::H2c;
    // A stream of HTTP/2 stays one: the request is answered as if it asked for nothing.
    let asked = asked.filter(|_| tunnels || !h2c);
    let mut request = match for_application(request, &ingress, &instance) {
        Ok(request) => request,
        Err(error) => {
            exchange.ended(Ended::Failed(error.kind()));
            return Ok(problem(&error, id, instance.load()));
        }
    };
    if let Some(protocol) = asked {
        hygiene::insert_upgrade(request.headers_mut(), protocol);
    }
    let started = Instant::now();
    let sent = match tunnels {
        false if h2c => ingress.streams.send(&instance.local, request).await,
        false => ingress.pool.send(&instance.local, request).await,
        true => dial(&ingress, &instance.local, request).await,
    };
    match sent {
        Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            instance.answered(started.elapsed());
            exchange.ended(Ended::Answered(answer.status()));
            Ok(switched(&ingress, answer, client, open, &after))
        }
        Ok(answer) => {
            let app = started.elapsed();
            instance.answered(app);
            exchange.ended(Ended::Answered(answer.status()));
            Ok(from_application(answer, app, open))
        }
        // The application saw nothing of it, so it may go anywhere else.
        Err(Failed::NotSent(_, error)) => {
            exchange.ended(Ended::Otherwise("unreachable"));
            tracing::debug!(request = id, peer = %from.short(), instance = %instance.local.instance.short(),
                error = error.chain(), "the instance cannot be reached");
            Ok(refused(&ingress, Refusal::Unknown, instance.load()))
        }
        // It runs, and others are being answered by it.
        Err(Failed::Busy(_, error)) => {
            exchange.ended(Ended::Otherwise("busy"));
            tracing::debug!(request = id, peer = %from.short(), instance = %instance.local.instance.short(),
                error = error.chain(), "no connection to the instance was free in time");
            Ok(refused(&ingress, Refusal::Overloaded, instance.load()))
        }
        Err(Failed::Sent(cause, error)) => {
            tracing::debug!(request = id, peer = %from.short(), instance = %instance.local.instance.short(),
                ?cause, error = error.chain(), "no answer");
            let failure = match cause {
                Cause::Silent => Failure::Silent,
                Cause::Garbled => Failure::Garbled,
                Cause::Late => Failure::Late,
                Cause::Body => {
                    exchange.ended(Ended::BROKEN_OFF);
                    return Err(error.into());
                }
            };
            exchange.ended(Ended::Otherwise(failure.as_str()));
            let mut answer = problem(&error, id, instance.load());
            let word = HeaderValue::from_static(failure.as_str());
            answer.headers_mut().insert(headers::FAILURE, word);
            Ok(answer)
        }
    }
}

/// The instance a request names, and the service it is to be of.
fn wanted(ingress: &Shared, headers: &HeaderMap) -> Option<(Arc<Instance>, ServiceHash)> {
    let text = |name| headers.get(name)?.to_str().ok();
    let hash: ServiceHash = text(headers::SERVICE)?.parse().ok()?;
    let id: InstanceId = text(headers::INSTANCE)?.parse().ok()?;
    Some((ingress.instance(id)?, hash))
}

/// The request without what concerns only the mesh.
fn for_application<B>(
    request: Request<B>,
    ingress: &Shared,
    instance: &Instance,
) -> Result<Request<Body>, Error>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Unpin + Send + 'static,
{
    let (mut parts, body) = request.into_parts();
    let invalid = |text| Err(Error::new(Kind::InvalidArgument, text));
    if parts.uri.authority().is_some() || !parts.uri.path().starts_with('/') {
        return invalid("the request is not in origin form");
    }
    if !hygiene::is_framed_clearly(&parts.headers) {
        return invalid("the end of the request is not clear");
    }
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    hygiene::strip_hop_by_hop(&mut parts.headers);
    hygiene::strip_prefix(&mut parts.headers, headers::PREFIX);
    let body = Patient::new(body, ingress.config.instances.quiet);
    let upload = instance.counted.at_ingress().upload.clone();
    Ok(Request::from_parts(parts, Metered::new(body, upload).boxed_unsync()))
}

/// The answer without what the application must not say, and with our word on load.
fn from_application(answer: Response<Body>, app: Duration, open: Open) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    parts.version = Version::HTTP_11;
    hygiene::strip_hop_by_hop(&mut parts.headers);
    hygiene::strip_prefix(&mut parts.headers, headers::PREFIX);
    // Its own time, not that of one that was answered meanwhile.
    parts.headers.insert(headers::LOAD, Load { app, ..open.load() }.to_header());
    let body = Metered::new(body, open.counted().at_ingress().download.clone());
    Response::from_parts(parts, Counted { body, _open: open }.boxed_unsync())
}

/// Connects to the port of an instance, for whatever it speaks there.
async fn dial(
    ingress: &Shared,
    local: &Local,
    request: Request<Body>,
) -> Result<Response<Body>, Failed> {
    let limit = ingress.config.instances.connect;
    let dialled = timeout(limit, Loopback.dial(local)).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Timeout, format!("no connection within {limit:?}")))
    });
    let stream = dialled.map_err(|error| Failed::NotSent(Box::new(request), error))?;
    let stream = h1::Bounded::new(stream, ingress.config.instances.stall);
    let mut answer = Response::new(h1::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(headers::TUNNEL));
    answer.extensions_mut().insert(Switched::new(Tunnel::new(stream, ())));
    Ok(answer)
}

/// The answer after which the connection is a tunnel to the application. Its request counts
/// as open until the tunnel ends.
fn switched(
    ingress: &Shared,
    mut answer: Response<Body>,
    client: OnUpgrade,
    open: Open,
    after: &After,
) -> Response<Body> {
    let protocol = answer.headers().get(UPGRADE).cloned();
    let tunnel = answer.extensions_mut().remove::<Switched>().and_then(|switched| switched.take());
    hygiene::strip_hop_by_hop(answer.headers_mut());
    hygiene::strip_prefix(answer.headers_mut(), headers::PREFIX);
    answer.headers_mut().insert(headers::LOAD, open.load().to_header());
    if let Some(protocol) = protocol {
        hygiene::insert_upgrade(answer.headers_mut(), protocol);
    }
    if let Some(server) = tunnel {
        let counted = open.counted().at_ingress();
        let bytes = [counted.upload.clone(), counted.download.clone()];
        let joint = Joint { client, server, bytes, quiet: ingress.config.instances.quiet };
        after.set(joint.holding(open));
    }
    answer
}

fn refused(ingress: &Shared, refusal: Refusal, load: Load) -> Response<Body> {
    ingress.metrics.ingress.refusals.with_label_values(&[refusal.as_str()]).inc();
    let mut answer = Response::new(h1::empty());
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let word = HeaderValue::from_static(refusal.as_str());
    answer.headers_mut().insert(headers::REFUSAL, word);
    answer.headers_mut().insert(headers::LOAD, load.to_header());
    answer
}

fn problem(error: &Error, request: &str, load: Load) -> Response<Body> {
    let mut answer = error.to_problem(request).map(h1::full);
    answer.headers_mut().insert(headers::LOAD, load.to_header());
    answer
}

/// An answer's body: its request is open as long as it lives.
struct Counted {
    body: Metered<Body>,
    _open: Open,
}

impl HttpBody for Counted {
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

#[cfg(test)]
mod tests;
