//! A request and its answer, as the front and ingress both count them: by service and
//! outcome, how long until the head of the answer, and the bytes of both bodies.

use std::{borrow::Cow, sync::Arc, time::Instant};

use http::StatusCode;

use super::{Counter, Counters, Histogram, Histograms, Metrics, Service, family::Families};
use crate::{Kind, ServiceName};

/// Seconds: from a request on one machine to a cold start.
const LATENCY: [f64; 15] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// First digits of status codes.
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With the application's own answer.
    Answered(StatusCode),
    /// With an answer of ours, of this kind.
    Failed(Kind),
    /// In another way of ours.
    Otherwise(&'static str),
    /// Whoever waited went away before the head of an answer.
    Cancelled,
}

impl Ended {
    /// The request itself broke off.
    pub const BROKEN_OFF: Self = Self::Otherwise("broken-off");

    fn class(self) -> Option<usize> {
        let Self::Answered(status) = self else { return None };
        Some(usize::from(status.as_u16() / 100).clamp(1, CLASSES.len()) - 1)
    }

    fn label(self) -> Cow<'static, str> {
        match self {
            Self::Answered(_) => self.class().map_or("5xx", |class| CLASSES[class]).into(),
            Self::Failed(kind) => kind.slug().into(),
            Self::Otherwise(word) => word.into(),
            Self::Cancelled => "cancelled".into(),
        }
    }
}

/// The families of one side.
#[derive(Clone, Debug)]
pub(super) struct Exchanges {
    requests: Counters,
    duration: Histograms,
    upload: Counters,
    download: Counters,
}

/// What a side calls its families, and what they count.
pub(super) struct Names {
    pub(super) requests: [&'static str; 2],
    pub(super) duration: [&'static str; 2],
    pub(super) upload: [&'static str; 2],
    pub(super) download: [&'static str; 2],
}

impl Exchanges {
    pub(super) fn new(families: &mut Families, names: Names) -> Self {
        let Names { requests, duration, upload, download } = names;
        let service = &["service"];
        Self {
            requests: families.counters(requests[0], &["service", "outcome"], &[], requests[1]),
            duration: families.histograms(duration[0], service, &LATENCY, duration[1]),
            upload: families.counters(upload[0], service, &[], upload[1]),
            download: families.counters(download[0], service, &[], download[1]),
        }
    }

    pub(super) fn of(&self, service: &str) -> Handles {
        Handles {
            classes: CLASSES.map(|class| self.requests.with_label_values(&[service, class])),
            duration: self.duration.with_label_values(&[service]),
            upload: self.upload.with_label_values(&[service]),
            download: self.download.with_label_values(&[service]),
            requests: self.requests.clone(),
        }
    }
}

/// What one side counts of one service, resolved.
#[derive(Debug)]
pub struct Handles {
    /// Of requests, in bytes.
    pub upload: Counter,
    /// Of answers, in bytes.
    pub download: Counter,
    classes: [Counter; CLASSES.len()],
    duration: Histogram,
    requests: Counters,
}

impl Handles {
    fn count(&self, service: &str, ended: Ended, since: Instant) {
        match ended.class() {
            Some(class) => self.classes[class].inc(),
            None => self.requests.with_label_values(&[service, &*ended.label()]).inc(),
        }
        if !matches!(ended, Ended::Cancelled | Ended::BROKEN_OFF) {
            self.duration.observe(since.elapsed().as_secs_f64());
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Front,
    Ingress,
}

/// One request on its way. Counted when it ends, and as cancelled if it is dropped
/// before.
#[derive(Debug)]
#[must_use = "dropping it counts a request that was cancelled"]
pub struct Exchange<'a> {
    metrics: &'a Metrics,
    side: Side,
    since: Instant,
    /// What the client asked for, which may be anything.
    name: Option<ServiceName>,
    service: Option<Arc<Service>>,
    over: bool,
}

impl<'a> Exchange<'a> {
    /// A request that has come in at the front.
    pub fn at_front(metrics: &'a Metrics) -> Self {
        let (side, since) = (Side::Front, Instant::now());
        Self { metrics, side, since, name: None, service: None, over: false }
    }

    /// A request that ingress gives to an instance of `service`.
    pub fn at_ingress(metrics: &'a Metrics, service: Arc<Service>) -> Self {
        let (side, since) = (Side::Ingress, Instant::now());
        Self { metrics, side, since, name: None, service: Some(service), over: false }
    }

    /// What the client asked for; counts only if it turns out to be a service.
    pub fn named(&mut self, name: &ServiceName) {
        self.name = Some(name.clone());
    }

    /// The service it is for.
    pub fn is_for(&mut self, service: &Arc<Service>) {
        self.service = Some(service.clone());
    }

    /// Counts it.
    pub fn ended(mut self, ended: Ended) {
        self.count(ended);
    }

    fn count(&mut self, ended: Ended) {
        self.over = true;
        let service = self.service.take().unwrap_or_else(|| match &self.name {
            Some(name) => self.metrics.seen_service(name),
            None => self.metrics.no_service().clone(),
        });
        let handles = match self.side {
            Side::Front => service.at_front(),
            Side::Ingress => service.at_ingress(),
        };
        handles.count(service.label(), ended, self.since);
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.count(Ended::Cancelled);
        }
    }
}
