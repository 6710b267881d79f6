//! One failure type on its way to a caller, as a gRPC status or an HTTP answer and back.
//!
//! The public sentence may be shown to anyone; the cause is for our logs and is
//! never sent. Which status it is answered with stands in the table of [`Kind`].

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

pub use kind::Kind;

mod kind;

/// What a failure of ours is called in `ErrorInfo.domain`.
const DOMAIN: &str = "lca";
/// Output lines of a failed program that travel with an error: enough for a
/// stack trace, small enough for an HTTP/2 header block.
const MAX_OUTPUT_LINES: usize = 10;
/// Bytes kept of each such line.
const MAX_OUTPUT_LINE: usize = 256;

/// When to come again where nobody said anything better: the least that the header can
/// say.
const SOON: Duration = Duration::from_secs(1);

/// How a server says in milliseconds when a gRPC client may call again (gRFC A6).
const RETRY_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What to do about a call that the other side has never heard of.
const OLDER: &str = "stop it and start it again in this version; `lcactl peers` shows the versions";

/// Shorthand for what most calls return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure on its way to a caller: a public sentence, and a private cause.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.0.public)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    public: String,
    hint: Option<String>,
    retry_after: Option<Duration>,
    output: Vec<String>,
    cause: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
}

// Not derived through thiserror's #[source]: the cause is shared so that one failure
// can be told to everyone who waited for it.
impl Clone for Error {
    fn clone(&self) -> Self {
        let Inner { kind, public, hint, retry_after, output, cause } = &*self.0;
        Self(Box::new(Inner {
            kind: *kind,
            public: public.clone(),
            hint: hint.clone(),
            retry_after: *retry_after,
            output: output.clone(),
            cause: cause.clone(),
        }))
    }
}

impl Error {
    /// A failure with a sentence that anyone may read.
    pub fn new(kind: Kind, public: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            public: public.into(),
            hint: None,
            retry_after: None,
            output: Vec::new(),
            cause: None,
        }))
    }

    /// Adds why it failed; logged, never sent.
    #[must_use]
    pub fn because(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.0.cause = Some(std::sync::Arc::new(cause));
        self
    }

    /// Adds what a person can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds when another attempt may succeed: `Retry-After` and `RetryInfo`.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Adds the last output lines of a program that failed, bounded.
    #[must_use]
    pub fn output(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        let mut lines: Vec<String> = lines.into_iter().map(clip).collect();
        lines.drain(..lines.len().saturating_sub(MAX_OUTPUT_LINES));
        self.0.output = lines;
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The sentence anyone may read.
    pub fn public(&self) -> &str {
        &self.0.public
    }

    /// What a person can do about it.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// When another attempt may succeed.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The last output lines of the program that failed.
    pub fn output_lines(&self) -> &[String] {
        &self.0.output
    }

    /// The private cause, for logs.
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.cause.as_deref()
    }

    /// The sentence with its causes, for our own logs. What a sentence says already, such
    /// as the reason of the system where callers must know it, is not said again.
    pub fn chain(&self) -> String {
        let mut text = self.0.public.clone();
        let mut next = self.0.cause.as_deref().map(|cause| cause as &dyn std::error::Error);
        while let Some(cause) = next {
            let said = cause.to_string();
            if !text.contains(&said) {
                text.push_str(": ");
                text.push_str(&said);
            }
            next = cause.source();
        }
        text
    }

    /// The same failure as an RFC 9457 `application/problem+json` answer, with
    /// `Retry-After` in whole seconds, rounded up; every 503 has one. `instance` says
    /// which request it was: its request id.
    pub fn to_problem(&self, instance: &str) -> Response<String> {
        let status = self.kind().http_status();
        let mut problem = serde_json::json!({
            "type": format!("urn:lca:error:{}", self.kind().slug()),
            "title": self.kind().slug().replace('-', " "),
            "status": status.as_u16(),
            "detail": self.public(),
            "instance": instance,
        });
        if let Some(hint) = self.hint_text() {
            problem["hint"] = hint.into();
        }
        if !self.0.output.is_empty() {
            problem["output"] = self.0.output.clone().into();
        }
        let mut body = problem.to_string();
        body.push('\n');
        let mut response = Response::new(body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let unsaid = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(SOON);
        if let Some(after) = self.0.retry_after.or(unsaid) {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl Error {
    /// The same failure as an answer to a gRPC call: a head that ends it, with the status and
    /// its details, and when to come again where that is known.
    pub fn to_grpc(&self) -> Response<()> {
        let mut response = Response::new(());
        *response.headers_mut() = self.to_grpc_trailers();
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    /// The same as the end of an answer that has begun.
    pub fn to_grpc_trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::new();
        let status = Status::from(self.clone());
        if status.add_header(&mut trailers).is_err() {
            // What it says is no header value: its code is.
            let code = HeaderValue::from(self.kind().grpc_code() as i32);
            trailers.insert(Status::GRPC_STATUS, code);
        }
        if let Some(after) = self.0.retry_after {
            trailers.insert(RETRY_PUSHBACK, HeaderValue::from(after.as_millis() as u64));
        }
        trailers
    }
}

/// Whether this is no answer: the connection failed below gRPC, before or in the middle of
/// a call. tonic then makes up a status, whose source is the failure; one that was received
/// has none. A time-out of tonic's own is told apart.
fn is_broken_off(status: &Status) -> bool {
    let first = std::error::Error::source(status);
    let mut chain = std::iter::successors(first, |error| error.source()).peekable();
    chain.peek().is_some() && !chain.any(|error| error.is::<tonic::TimeoutExpired>())
}

/// Control characters would break a header or a terminal; long lines a header block.
fn clip(line: String) -> String {
    line.chars().filter(|c| !c.is_control() || *c == '\t').take(MAX_OUTPUT_LINE).collect()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(error.kind().slug(), DOMAIN, std::collections::HashMap::new());
        details.set_retry_info(error.retry_delay());
        if let Some(hint) = error.hint_text() {
            details.set_localized_message("en", hint);
        }
        if !error.output_lines().is_empty() {
            details.set_debug_info(error.output_lines().to_vec(), "last lines of output");
        }
        if let Some(cause) = error.cause() {
            tracing::debug!(kind = error.kind().slug(), %cause, "{}", error.public());
        }
        Self::with_error_details(error.kind().grpc_code(), error.public(), details)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let kind = details
            .error_info()
            .filter(|info| info.domain == DOMAIN)
            .and_then(|info| Kind::from_slug(&info.reason))
            .unwrap_or_else(|| {
                if is_broken_off(&status) {
                    Kind::Unavailable
                } else {
                    Kind::from_code(status.code())
                }
            });
        // What gRPC itself says of a call that it has never heard of.
        let unheard = status.code() == Code::Unimplemented && status.message().is_empty();
        let public = match status.message() {
            _ if unheard => "whoever was asked does not know this call: it is older".to_owned(),
            "" => format!("the peer answered {}", status.code()),
            text => text.to_owned(),
        };
        let mut error = Self::new(kind, public);
        error.0.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        error.0.hint = details.localized_message().map(|text| text.message.clone());
        if unheard {
            error.0.hint = Some(OLDER.to_owned());
        }
        if let Some(info) = details.debug_info() {
            error = error.output(info.stack_entries.iter().cloned());
        }
        if let Some(source) = std::error::Error::source(&status) {
            error = error.because(std::io::Error::other(source.to_string()));
        }
        error
    }
}

impl From<crate::ParseError> for Error {
    fn from(error: crate::ParseError) -> Self {
        Self::new(Kind::InvalidArgument, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{self, proto};

    #[test]
    fn every_kind_survives_a_grpc_hop_with_what_it_carries() {
        for kind in Kind::ALL {
            let sent = Error::new(kind, "the sentence")
                .hint("do this")
                .retry_after(Duration::from_millis(1500))
                .output(["one".to_owned(), "two".to_owned()])
                .because(std::io::Error::other("secret path"));
            let status = Status::from(sent);
            assert!(!format!("{status:?}").contains("secret path"), "the cause was sent");
            let received = Error::from(status);
            assert_eq!(received.kind(), kind);
            assert_eq!(received.public(), "the sentence");
            assert_eq!(received.hint_text(), Some("do this"));
            assert_eq!(received.retry_delay(), Some(Duration::from_millis(1500)));
            assert_eq!(received.output_lines(), ["one", "two"]);
        }
    }

    #[test]
    fn a_reason_is_said_once_whoever_said_it() {
        let system = || std::io::Error::from_raw_os_error(98);
        let error = Error::new(Kind::Conflict, format!("cannot listen: {}", system()));
        assert_eq!(error.because(system()).chain().matches("os error").count(), 1);
        let error = Error::new(Kind::Conflict, "cannot listen").because(system());
        assert_eq!(error.chain(), format!("cannot listen: {}", system()));
    }

    #[test]
    fn a_call_that_an_older_daemon_does_not_know_is_said_to_be_that() {
        let error = Error::from(Status::unimplemented(""));
        assert_eq!(error.kind(), Kind::NotAllowed);
        assert!(error.public().contains("does not know this call"), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("this version")));
        // One that says why knows better.
        let error = Error::from(Status::unimplemented("waits for Docker"));
        assert_eq!((error.public(), error.hint_text()), ("waits for Docker", None));
    }

    #[test]
    fn a_foreign_status_keeps_its_meaning() {
        assert_eq!(Error::from(Status::cancelled("Timeout expired")).kind(), Kind::Timeout);
        assert_eq!(Error::from(Status::not_found("")).kind(), Kind::NotFound);
        assert_eq!(Error::from(Status::resource_exhausted("")).kind(), Kind::NoCapacity);
        assert_eq!(Error::from(Status::unavailable("")).kind(), Kind::Unavailable);
    }

    /// A service that says when it was called, and nothing else, ever.
    struct Silent(tokio::sync::mpsc::Sender<()>);

    #[tonic::async_trait]
    impl proto::instances_server::Instances for Silent {
        type WatchInstancesStream = tonic::codegen::BoxStream<proto::InstanceEvent>;

        async fn watch_instances(
            &self,
            _: tonic::Request<proto::WatchInstancesRequest>,
        ) -> Result<tonic::Response<Self::WatchInstancesStream>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_instances(
            &self,
            _request: tonic::Request<proto::ListInstancesRequest>,
        ) -> Result<tonic::Response<proto::ListInstancesResponse>, Status> {
            self.0.send(()).await.expect("the test waits for it");
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_connection_that_dies_in_the_middle_of_a_call_is_unavailable() {
        let (called, mut calls) = tokio::sync::mpsc::channel(1);
        let (client_end, mut near) = tokio::io::duplex(1 << 16);
        let (mut far, server_end) = tokio::io::duplex(1 << 16);
        let cable = tokio::spawn(async move {
            let _cut = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
        let service = proto::instances_server::InstancesServer::new(Silent(called));
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server_end));
        tokio::spawn(api::server().add_service(service).serve_with_incoming(incoming));
        let mut client_end = Some(hyper_util::rt::TokioIo::new(client_end));
        let connector = tower::service_fn(move |_| {
            std::future::ready(client_end.take().ok_or_else(|| std::io::Error::other("once")))
        });
        let channel = api::client("x").unwrap().connect_with_connector(connector).await.unwrap();
        let mut client = proto::instances_client::InstancesClient::new(channel);
        let calling = tokio::spawn(async move {
            client.list_instances(proto::ListInstancesRequest::default()).await
        });
        calls.recv().await.unwrap();
        cable.abort();
        let status = calling.await.unwrap().unwrap_err();
        let code = status.code();
        assert_eq!(Error::from(status).kind(), Kind::Unavailable, "{code}");
    }

    #[test]
    fn a_problem_carries_status_sentence_and_retry_after() {
        let error =
            Error::new(Kind::StartFailed, "it \"exited\"").retry_after(Duration::from_millis(1001));
        let response = error.to_problem("req-1");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body: serde_json::Value = serde_json::from_str(response.body()).unwrap();
        assert_eq!(body["type"], "urn:lca:error:start-failed");
        assert_eq!(body["detail"], "it \"exited\"");
        assert_eq!(body["instance"], "req-1");
    }

    #[test]
    fn every_503_says_when_to_come_again() {
        for kind in Kind::ALL {
            let problem = Error::new(kind, "x").to_problem("req-1");
            let after = problem.headers().get("retry-after").map(|after| after.as_bytes());
            let expected = (problem.status() == 503).then_some(&b"1"[..]);
            assert_eq!(after, expected, "{kind:?}");
        }
    }

    #[test]
    fn output_is_bounded_and_printable() {
        let lines = (0..100).map(|n| format!("{n}\r\x1b[31m{}", "x".repeat(1000)));
        let error = Error::new(Kind::StartFailed, "x").output(lines);
        assert_eq!(error.output_lines().len(), MAX_OUTPUT_LINES);
        assert!(error.output_lines().iter().all(|line| line.len() <= MAX_OUTPUT_LINE));
        assert!(!error.output_lines()[0].contains('\x1b'));
        assert!(error.output_lines()[9].starts_with("99"));
    }
}
