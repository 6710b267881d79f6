//! What a client that sends `LCA-Debug: 1` is told of its request: who answered, after how
//! many attempts, and in `Server-Timing` (W3C) where the time went. Nothing of this is
//! gathered for anybody else. Only programs of this machine reach a front, so nobody else
//! learns which peers there are.

use std::{fmt::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Response};
use lca::{
    Error, InstanceId, Kind, PeerId, Result,
    api::proto::Step,
    headers::{LOAD, Load},
};
use lca_manager::Target;
use lca_node::h1::Connected;

const DEBUG: HeaderName = HeaderName::from_static("lca-debug");
const INSTANCE: HeaderName = HeaderName::from_static("lca-debug-instance");
const PEER: HeaderName = HeaderName::from_static("lca-debug-peer");
const ATTEMPTS: HeaderName = HeaderName::from_static("lca-debug-attempts");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Steps that are told: a cold start has ten, and a header must stay readable.
const MAX_STEPS: usize = 32;
/// Characters of a step's detail that are told.
const MAX_DETAIL: usize = 80;

/// What is gathered of one request.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    attempts: u32,
    last: Option<(InstanceId, PeerId)>,
    steps: Vec<(String, Duration, String)>,
}

impl Trace {
    /// A trace to fill if the client asked for one.
    ///
    /// # Errors
    /// `InvalidArgument` for anything but `1` and `0`.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Option<Self>> {
        match headers.get(DEBUG).map(HeaderValue::as_bytes) {
            None | Some(b"0") => Ok(None),
            Some(b"1") => Ok(Some(Self::default())),
            Some(_) => Err(Error::new(Kind::InvalidArgument, format!("{DEBUG} must be 1 or 0"))),
        }
    }

    /// An instance was picked, which took so long; `target` has the steps of that.
    pub(crate) fn picked(&mut self, took: Duration, target: &Target) {
        self.attempts += 1;
        self.last = Some((target.instance, target.endpoint.peer));
        self.took("pick", took);
        for Step { name, duration_us, detail } in &target.steps {
            self.step(name, Duration::from_micros(*duration_us), detail);
        }
    }

    /// The head of `answer` came after so long, some of it for a new connection; what its
    /// ingress said of it comes last.
    pub(crate) fn answered<B>(&mut self, took: Duration, answer: &Response<B>) {
        let connect = answer.extensions().get().map(|Connected(took)| *took);
        if let Some(connect) = connect {
            self.took("connect", connect);
        }
        self.took("ttfb", took.saturating_sub(connect.unwrap_or_default()));
        if let Some(load) = answer.headers().get(LOAD).map(Load::from_header) {
            self.took("queue", load.queue);
            self.took("app", load.app);
        }
    }

    fn took(&mut self, name: &str, took: Duration) {
        self.step(name, took, "");
    }

    fn step(&mut self, name: &str, took: Duration, detail: &str) {
        if self.steps.len() < MAX_STEPS {
            self.steps.push((name.to_owned(), took, detail.to_owned()));
        }
    }

    /// Says it all in the headers of an answer. What the application measured stays.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        headers.insert(ATTEMPTS, self.attempts.into());
        let told = self.last.map(|(instance, peer)| (instance.to_string(), peer.to_string()));
        for (name, value) in told.into_iter().flat_map(|(i, p)| [(INSTANCE, i), (PEER, p)]) {
            headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
        }
        let timing = HeaderValue::try_from(self.server_timing()).ok();
        if let Some(timing) = timing.filter(|timing| !timing.is_empty()) {
            headers.append(SERVER_TIMING, timing);
        }
    }

    /// `pick;dur=1.234, find;dur=0.5;desc="miss"`: milliseconds.
    fn server_timing(&self) -> String {
        let mut text = String::new();
        for (name, took, detail) in &self.steps {
            let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            let name: String = name.chars().map(|c| if token(c) { c } else { '-' }).collect();
            let comma = if text.is_empty() { "" } else { ", " };
            let _infallible = write!(text, "{comma}{name};dur={:.3}", took.as_secs_f64() * 1e3);
            if !detail.is_empty() {
                let plain = |c: char| match c {
                    '"' | '\\' => '\'',
                    ' '..='~' => c,
                    _ => '?',
                };
                let detail: String = detail.chars().take(MAX_DETAIL).map(plain).collect();
                let _infallible = write!(text, ";desc=\"{detail}\"");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_as_server_timing_whatever_they_contain() {
        let mut trace = Trace::default();
        trace.step("pick", Duration::from_micros(1234), "");
        trace.step("a b", Duration::from_secs(2), "said \"no\\\"\r\né, twice");
        assert_eq!(
            trace.server_timing(),
            "pick;dur=1.234, a-b;dur=2000.000;desc=\"said 'no''???, twice\""
        );
        (0..100).for_each(|_| trace.took("again", Duration::ZERO));
        assert_eq!(trace.steps.len(), MAX_STEPS);
        let mut headers = HeaderMap::new();
        headers.insert(SERVER_TIMING, HeaderValue::from_static("db;dur=1"));
        trace.tell(&mut headers);
        assert_eq!(headers.get_all(SERVER_TIMING).iter().count(), 2);
        assert_eq!(headers[ATTEMPTS], "0");
        assert!(!headers.contains_key(INSTANCE));
    }

    #[test]
    fn it_is_asked_for_with_1_and_with_nothing_else() {
        let asked = |value: &'static str| {
            Trace::of(&HeaderMap::from_iter([(DEBUG, HeaderValue::from_static(value))]))
        };
        assert!(asked("1").unwrap().is_some());
        assert!(asked("0").unwrap().is_none());
        assert_eq!(asked("yes").unwrap_err().kind(), Kind::InvalidArgument);
        assert!(Trace::of(&HeaderMap::new()).unwrap().is_none());
    }
}
