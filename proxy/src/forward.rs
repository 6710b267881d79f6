//! One request: routed, picked for, sent, perhaps sent again, and its answer passed
//! back.

use std::{future::pending, net::SocketAddr, pin::pin, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use lca::{
    Error, Kind, PeerId, RequestId, Result,
    endpoint::Endpoint,
    headers::{FAILURE, Failure, INSTANCE, LOAD, Load, REFUSAL, REQUEST_ID, Refusal, SERVICE},
    mesh::Mesh as _,
    metrics::{Counter, Ended, Exchange},
};
use lca_manager::{Manager, Outcome, Resolved, Target, UnderWay, Wish};
use lca_node::{
    Node,
    h1::{self, After, Body, Failed, HeadAfter, Joint, Waits},
    mesh, mux,
};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    Config,
    body::{Broke, Download, Upload},
    budget::Budgets,
    debug::Trace,
    grpc,
    headers::{self, Via},
    retry::{Trouble, is_idempotent},
    rewrite,
    route::{Route, Way, route},
    times::Times,
    upgrade::Upgrade,
    verdict::{explain, late, outcome, way},
};

/// Beyond the deadline that [`Manager::pick`] was given, which it keeps by itself.
const PICK_MARGIN: Duration = Duration::from_secs(1);

/// Connects to the ingress of peers, for requests of one kind.
#[derive(Debug)]
struct Peers(Node, mesh::Alpn);

impl h1::Dial for Peers {
    type To = Endpoint;
    type Key = PeerId;
    type Io = mesh::Stream;

    fn key(&self, to: &Endpoint) -> PeerId {
        to.peer
    }

    async fn dial(&self, to: &Endpoint) -> Result<mesh::Stream> {
        self.0.connect(to, self.1).await
    }
}

/// What all requests of a front share.
#[derive(Debug)]
pub(crate) struct Forward {
    config: Config,
    manager: Manager,
    node: Node,
    hop: mux::Hop<Peers, Peers>,
    via: Via,
    budgets: Budgets,
}

/// Who sent a request, and where it came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) from: SocketAddr,
    pub(crate) own: SocketAddr,
}

/// A request that is understood, and what it may take.
struct Asked<'a> {
    id: &'a RequestId,
    parts: request::Parts,
    upload: &'a Upload<Incoming>,
    upgrade: Option<Upgrade>,
    way: Way,
    wish: Wish,
    times: Times,
    /// When it and its answer are to be over.
    until: Option<Instant>,
}

/// The request itself broke off: nobody is there to be answered.
#[derive(Debug, thiserror::Error)]
#[error("the request broke off")]
pub(crate) struct BrokenOff;

/// Why there is no answer to pass back.
enum Stopped {
    /// This is to be said.
    Failed(Error),
    /// Nobody is there to be told: see [`BrokenOff`].
    BrokenOff,
}

impl From<Broke> for Stopped {
    fn from(broke: Broke) -> Self {
        match broke {
            Broke::Off => Self::BrokenOff,
            Broke::Malformed => {
                Error::new(Kind::InvalidArgument, "the body of the request is malformed").into()
            }
            Broke::TooLong => Error::new(Kind::TooLarge, "the body is longer than may be").into(),
        }
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Forward {
    pub(crate) fn new(config: Config, manager: Manager, node: Node) -> Self {
        let via = Via::new(node.peer());
        let [many, one] = [mesh::Alpn::Mux, mesh::Alpn::H1].map(|alpn| Peers(node.clone(), alpn));
        let hop = mux::Hop::new(many, one, config.peers);
        Self { config, manager, node, hop, via, budgets: Budgets::default() }
    }

    /// Answers one request; what went wrong on our side is `problem+json`. An error
    /// closes the connection. Dropping it gives up the request everywhere.
    pub(crate) async fn answer(
        &self,
        client: Client,
        request: Request<Incoming>,
        after: &After,
    ) -> Result<Response<Body>, BrokenOff> {
        let id = RequestId::random();
        let call = grpc::is_call(request.version(), request.headers());
        let mut exchange = Exchange::at_front(self.manager.metrics());
        let mut trace = None;
        let answered =
            self.try_answer(client, request, &id, &mut exchange, &mut trace, after).await;
        let mut answer = match answered {
            Ok((answer, ended)) => {
                exchange.ended(ended);
                answer
            }
            Err(Stopped::BrokenOff) => {
                exchange.ended(Ended::BROKEN_OFF);
                return Err(BrokenOff);
            }
            Err(Stopped::Failed(error)) => {
                exchange.ended(Ended::Failed(error.kind()));
                tracing::debug!(request = %id, kind = error.kind().slug(), error = error.chain(), "failed");
                let mut problem = match call {
                    true => error.to_grpc().map(|()| h1::empty()),
                    false => error.to_problem(id.as_str()).map(h1::full),
                };
                if problem.status() == StatusCode::METHOD_NOT_ALLOWED {
                    let methods = "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS, CONNECT";
                    problem.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
                }
                // What one reader took for an error another may have read on from.
                let unread = [Kind::InvalidArgument, Kind::TooLarge, Kind::TooSlow];
                if unread.contains(&error.kind()) && !call {
                    let close = HeaderValue::from_static("close");
                    problem.headers_mut().insert(header::CONNECTION, close);
                }
                problem
            }
        };
        answer.headers_mut().insert(REQUEST_ID, id.to_header());
        if let Some(trace) = trace {
            trace.tell(answer.headers_mut());
        }
        Ok(answer)
    }

    async fn try_answer(
        &self,
        client: Client,
        mut request: Request<Incoming>,
        id: &RequestId,
        exchange: &mut Exchange<'_>,
        trace: &mut Option<Trace>,
        after: &After,
    ) -> Result<(Response<Body>, Ended), Stopped> {
        let upgrade = Upgrade::of(&mut request);
        let (mut parts, body) = request.into_parts();
        if parts.method == Method::CONNECT && upgrade.is_none() {
            return Err(Error::new(Kind::NotAllowed, "CONNECT needs HTTP/1.1 here").into());
        }
        headers::expectation(&parts.headers)?;
        let routed = route(&parts.method, &parts.uri, &parts.headers, client.own.ip())?;
        let (service, target, authority, way) = match routed {
            Route::Service { service, target, authority, way } => (service, target, authority, way),
            Route::Redirect(location) => {
                return Ok((redirect(location), Ended::Otherwise("redirected")));
            }
        };
        exchange.named(&service);
        let begun = Instant::now();
        let asked = headers::timeout(&parts.headers)?;
        let own = [Some(self.config.start), self.config.request, asked];
        let found = own.into_iter().flatten().min().unwrap_or(self.config.start);
        let mut wish = Wish::new(service, begun + found);
        wish.request = Some(id.clone());
        wish.tighten = headers::tightening(&parts.headers)?;
        *trace = Trace::of(&parts.headers)?;
        let from = client.from.ip();
        headers::for_ingress(&mut parts.headers, from, &authority, &wish.service, &self.via)?;
        parts.headers.insert(REQUEST_ID, id.to_header());
        parts.uri = target.into();
        if let Some(upgrade) = &upgrade {
            upgrade.ask(&mut parts);
        }
        let Resolved { limits, counted } = self.manager.resolve(&mut wish).await?;
        exchange.is_for(&counted);
        let times = Times::of(&self.config, &limits, asked);
        let most = limits.max_body.unwrap_or(u64::MAX);
        if body.size_hint().lower() > most {
            let text = format!("{} takes bodies of at most {most} bytes", wish.service);
            return Err(Error::new(Kind::TooLarge, text).into());
        }
        let upload = Upload::new(body, self.config.hold, most, times.waits.quiet);
        wish.repeatable = upload.stays_whole() && is_idempotent(&parts.method);
        let until = times.request.map(|time| begun + time);
        wish.deadline = until.map_or(wish.deadline, |until| wish.deadline.min(until));
        let service = wish.service.clone();
        let asked = Asked { id, parts, upload: &upload, upgrade, way, wish, times, until };
        // One future of it, not one with and one without a limit: each connection holds it.
        let mut sent = pin!(self.send(asked, trace, after));
        tokio::select! {
            biased;
            sent = &mut sent => sent,
            time = over(times.request, until) => {
                Err(late(&service, time, upload.is_starved()).into())
            }
        }
    }

    /// Sends a request until somebody answers it, as far as it may be sent again.
    async fn send(
        &self,
        asked: Asked<'_>,
        trace: &mut Option<Trace>,
        after: &After,
    ) -> Result<(Response<Body>, Ended), Stopped> {
        let Asked { id, mut parts, upload, mut upgrade, way, mut wish, times, until } = asked;
        if let Some(waits) = times.unusual(&self.config) {
            parts.extensions.insert(waits);
        }
        let streamed = grpc::is_streamed(&parts);
        let call = grpc::is_call(parts.version, &parts.headers);
        let Config { attempts, refusals, .. } = self.config;
        let deadline = wish.deadline;
        let mut since = wish.since();
        let (mut before, mut last) = (None, None);
        let (mut unseen, mut seen) = (0, 0);
        loop {
            // The first began when it was asked what the service is.
            let begun = trace.is_some().then(|| since.take().unwrap_or_else(Instant::now));
            let target = match self.pick(wish.clone()).await {
                Ok(target) => target,
                // Nowhere else to go. If an application has had the request, or too many of
                // them, that says more than that there is no other.
                Err(error) => return Err(before.unwrap_or(error).into()),
            };
            tracing::debug!(request = %id, service = %wish.service, instance = %target.instance.short(),
                peer = %target.endpoint.peer.short(), unseen, seen, "sending");
            let sent = begun.zip(trace.as_mut()).map(|(begun, trace)| {
                trace.picked(begun.elapsed(), &target);
                Instant::now()
            });
            match last {
                Some(trouble) => self.retried(&target, trouble),
                None => self.budgets.asked(target.counted.label(), Instant::now()),
            }
            let counted = target.counted.at_front();
            let mut request = to_instance(&parts, &target, upload.attempt(&counted.upload));
            if streamed {
                request.extensions_mut().insert(mux::Streamed);
            }
            let (trouble, cause) = match self.hop.send(&target.endpoint, request).await {
                Ok(mut answer) => match self.judge(&target, &answer, upload.is_none()) {
                    Ok(under_way) => {
                        if let Some((sent, trace)) = sent.zip(trace.as_mut()) {
                            trace.answered(sent.elapsed(), &answer);
                        }
                        if let Some(upgrade) = upgrade.take_if(|it| !it.is_missed_by(&answer))
                            && let Some((told, server)) = upgrade.agreed(&mut answer)
                        {
                            let bytes = [counted.upload.clone(), counted.download.clone()];
                            let (client, quiet) = (upgrade.client, times.waits.quiet);
                            let joint = Joint { client, server, bytes, quiet };
                            after.set(joint.holding(under_way));
                            return Ok((told, Ended::Answered(answer.status())));
                        }
                        if upgrade.is_some() {
                            return Err(explain(&target, Trouble::Garbled, None).into());
                        }
                        upload.settled();
                        let ended = Ended::Answered(answer.status());
                        let bytes = counted.download.clone();
                        let mut told = to_client(answer, bytes, under_way, until, call);
                        rewrite::inside(told.headers_mut(), &wish.service, way);
                        return Ok((told, ended));
                    }
                    Err(trouble) => (trouble, None),
                },
                Err(Failed::NotSent(_, error)) => (Trouble::NotSent, Some(error)),
                // Whoever is served there waits in vain as well.
                Err(Failed::Busy(_, error)) if self.node.is_silent(target.endpoint.peer) => {
                    (Trouble::NotSent, Some(error))
                }
                Err(Failed::Busy(_, error)) => (Trouble::Busy, Some(error)),
                Err(Failed::Sent(cause, error)) => match Trouble::of(cause) {
                    Some(trouble) => (trouble, Some(error)),
                    None => return Err(upload.failed().unwrap_or(Broke::Off).into()),
                },
            };
            if let Some(broke) = upload.failed() {
                return Err(broke.into());
            }
            self.manager.report(&target, outcome(trouble));
            let error = explain(&target, trouble, cause);
            tracing::debug!(request = %id, service = %wish.service, instance = %target.instance.short(),
                peer = %target.endpoint.peer.short(), error = error.chain(), "attempt failed");
            let maybe_seen =
                !matches!(trouble, Trouble::Refused(_) | Trouble::NotSent | Trouble::Busy);
            *(if maybe_seen { &mut seen } else { &mut unseen }) += 1;
            let again = trouble.allows_another(&parts.method, upload.is_whole())
                && seen < attempts
                && unseen < refusals
                && Instant::now() < deadline;
            if !again {
                return Err(error.into());
            }
            if trouble.costs() && !self.budgets.spend(target.counted.label(), Instant::now()) {
                let denied = &self.manager.metrics().front.retries_denied;
                denied.with_label_values(&[target.counted.label()]).inc();
                return Err(error.into());
            }
            let busy = trouble == Trouble::Busy;
            // What runs already may serve it. For a line of ours nothing more is started.
            wish.allocate &= !busy;
            let full = trouble == Trouble::Refused(Refusal::Overloaded);
            before = before.or((maybe_seen || busy || full).then_some(error));
            last = Some(trouble);
            wish.tried.push(target.instance);
        }
    }

    fn retried(&self, target: &Target, because: Trouble) {
        let retries = &self.manager.metrics().front.retries;
        retries.with_label_values(&[target.counted.label(), because.as_str()]).inc();
    }

    async fn pick(&self, wish: Wish) -> Result<Target> {
        let (deadline, start) = (wish.deadline + PICK_MARGIN, self.config.start);
        timeout_at(deadline, self.manager.pick(wish)).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::Timeout, format!("no instance was found within {start:?}")))
        })
    }

    /// Whether an answer is the application's, which is reported, or says that there
    /// is none. The request is under way until all of its answer has been passed on.
    /// `bare`: it had no body, so it was sent at once.
    fn judge(
        &self,
        target: &Target,
        answer: &Response<Body>,
        bare: bool,
    ) -> Result<UnderWay, Trouble> {
        let headers = answer.headers();
        if let Some(refusal) = headers.get(REFUSAL) {
            return Err(Trouble::Refused(Refusal::from_header(refusal)));
        }
        if let Some(failure) = headers.get(FAILURE) {
            return Err(Failure::from_header(failure).into());
        }
        let load = headers.get(LOAD).map(Load::from_header);
        let after = answer.extensions().get::<HeadAfter>().filter(|_| bare);
        let way = after.zip(load.as_ref()).and_then(|(after, load)| way(*after, load));
        let load = load.unwrap_or_default();
        let under_way = target.under_way();
        self.manager.report(target, Outcome::Answered { load, way });
        Ok(under_way)
    }
}

/// Resolves with `time` once it is over; never without a limit.
async fn over(time: Option<Duration>, until: Option<Instant>) -> Duration {
    match (time, until) {
        (Some(time), Some(until)) => {
            sleep_until(until).await;
            time
        }
        _ => pending().await,
    }
}

/// The request as it goes to ingress. The headers are kept for another attempt.
fn to_instance(parts: &request::Parts, target: &Target, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.headers_mut() = parts.headers.clone();
    if let Some(waits) = parts.extensions.get::<Waits>() {
        request.extensions_mut().insert(*waits);
    }
    request.headers_mut().insert(SERVICE, target.hash.to_header());
    request.headers_mut().insert(INSTANCE, target.instance.to_header());
    request
}

/// The answer as it goes to the client, who has made a gRPC `call` or not.
fn to_client(
    answer: Response<Body>,
    bytes: Counter,
    under_way: UnderWay,
    until: Option<Instant>,
    call: bool,
) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    parts.version = Version::HTTP_11;
    headers::for_client(&mut parts.headers);
    let body = Download::new(body, bytes, under_way, until).boxed_unsync();
    let body = match call && grpc::has_its_type(&parts.headers) {
        true => grpc::Ending::new(body).boxed_unsync(),
        false => body,
    };
    Response::from_parts(parts, body)
}

fn redirect(location: HeaderValue) -> Response<Body> {
    let mut answer = Response::new(h1::empty());
    *answer.status_mut() = StatusCode::PERMANENT_REDIRECT;
    answer.headers_mut().insert(header::LOCATION, location);
    answer
}
