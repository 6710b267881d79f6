//! The headers that peers exchange around an application's request. Ingress and front
//! agree on them here; applications and clients never see them.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::api::proto;

/// All our headers begin like this; neither clients nor applications may send them.
pub const PREFIX: &str = "lca-";
/// Front to ingress: the service hash that is wanted.
pub const SERVICE: HeaderName = HeaderName::from_static("lca-service");
/// Front to ingress: the instance that was picked.
pub const INSTANCE: HeaderName = HeaderName::from_static("lca-instance");
/// Front to ingress, and front to client: names the request in logs.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("lca-request-id");
/// Ingress to front: why the request was refused; the application saw nothing of it.
pub const REFUSAL: HeaderName = HeaderName::from_static("lca-refusal");
/// Ingress to front: the application gave no answer, and this one is ingress's own.
/// See [`Failure`].
pub const FAILURE: HeaderName = HeaderName::from_static("lca-failure");
/// Ingress to front, on every answer: see [`Load`].
pub const LOAD: HeaderName = HeaderName::from_static("lca-load");

/// Front to ingress, in `Upgrade`: the bytes that follow are for the port of the instance,
/// whatever it speaks. No client can ask for it by this name.
pub const TUNNEL: &str = "lca-tunnel";

/// Why ingress refused a request. The application saw nothing of it, so the front may
/// send it anywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The instance finishes what it has.
    Draining,
    /// There is no such instance, or it is of another service.
    Unknown,
    /// It has as many requests as it may.
    Overloaded,
}

impl Refusal {
    /// The word in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Unknown => "unknown",
            Self::Overloaded => "overloaded",
        }
    }

    /// Reads the header; a word from a newer peer counts as unknown.
    pub fn from_header(value: &HeaderValue) -> Self {
        match value.as_bytes() {
            b"draining" => Self::Draining,
            b"overloaded" => Self::Overloaded,
            _ => Self::Unknown,
        }
    }
}

/// Why there is no answer of an application that was sent a request and may have acted
/// on it. Its own failures (5xx) are answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It ended the connection before a byte of an answer.
    Silent,
    /// It answered something that is not HTTP.
    Garbled,
    /// It took too long.
    Late,
}

impl Failure {
    /// The word in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Garbled => "garbled",
            Self::Late => "late",
        }
    }

    /// Reads the header; a word from a newer peer counts as garbled, after which
    /// nothing is repeated.
    pub fn from_header(value: &HeaderValue) -> Self {
        match value.as_bytes() {
            b"silent" => Self::Silent,
            b"late" => Self::Late,
            _ => Self::Garbled,
        }
    }
}

/// How busy an instance is, as its ingress says with every answer:
/// `in-flight=3, limit=100, queue-us=0, app-us=1200`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests it has, this one and those that wait for a place included.
    pub in_flight: u32,
    /// Requests it works on at most; more wait, and then are refused.
    pub limit: u32,
    /// How long this request waited at ingress for a place.
    pub queue: Duration,
    /// How long the application took for the head of this answer.
    pub app: Duration,
}

impl Load {
    /// As the header.
    pub fn to_header(self) -> HeaderValue {
        let Self { in_flight, limit, queue, app } = self;
        let text = format!(
            "in-flight={in_flight}, limit={limit}, queue-us={}, app-us={}",
            queue.as_micros(),
            app.as_micros()
        );
        HeaderValue::try_from(text).expect("digits and letters are a header value")
    }

    /// Reads the header; what is missing or odd counts as zero, since a peer's junk
    /// must not fail a request.
    pub fn from_header(value: &HeaderValue) -> Self {
        let mut load = Self::default();
        for (name, value) in
            value.to_str().unwrap_or_default().split(", ").filter_map(|part| part.split_once('='))
        {
            let number = || value.parse().unwrap_or_default();
            let micros = || Duration::from_micros(value.parse().unwrap_or_default());
            match name {
                "in-flight" => load.in_flight = number(),
                "limit" => load.limit = number(),
                "queue-us" => load.queue = micros(),
                "app-us" => load.app = micros(),
                _ => {}
            }
        }
        load
    }
}

impl From<Load> for proto::Load {
    fn from(load: Load) -> Self {
        Self {
            in_flight: load.in_flight,
            limit: load.limit,
            queue_us: load.queue.as_micros() as u64,
            app_us: load.app.as_micros() as u64,
        }
    }
}

impl From<proto::Load> for Load {
    fn from(load: proto::Load) -> Self {
        Self {
            in_flight: load.in_flight,
            limit: load.limit,
            queue: Duration::from_micros(load.queue_us),
            app: Duration::from_micros(load.app_us),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn load_survives_its_header(in_flight: u32, limit: u32, queue: u32, app: u32) {
            let load = Load {
                in_flight,
                limit,
                queue: Duration::from_micros(queue.into()),
                app: Duration::from_micros(app.into()),
            };
            prop_assert_eq!(Load::from_header(&load.to_header()), load);
        }

        #[test]
        fn junk_from_a_peer_is_no_error(junk in "[ -~]{0,80}") {
            let _ = Load::from_header(&HeaderValue::try_from(junk).unwrap());
        }
    }
}
