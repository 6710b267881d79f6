//! What a daemon counts about itself, as Prometheus reads it.
//!
//! One [`Metrics`] a daemon, handed to every part of it: a process may run many daemons,
//! so nothing here is global. A default one counts all the same and is served by nobody.
//! Two invariants. What a client or another peer sends never becomes a label: labels are
//! words of ours, or the first [`MAX_SERVICES`] services that a registry vouched for. And
//! the path of a warm request takes no lock here: its counters are resolved once a
//! service ([`Slot`]) and are atomics from then on.
//!
//! Every family is listed in docs/metrics.md, which a test compares with the code.

mod exchange;
mod family;
mod parts;
mod service;

use std::{fmt, ops::Deref, sync::Arc};

use prometheus::{Registry, TextEncoder};

pub use exchange::{Ended, Exchange, Handles};
pub use family::Family;
pub use parts::{Allocator, Artifacts, Build, Dropped, Front, Ingress, Manager, Node, Parts};
pub use service::{MAX_SERVICES, Service, Slot};

use family::Families;
use service::Services;

/// Something that only grows.
pub type Counter = prometheus::IntCounter;
/// [`Counter`]s told apart by labels.
pub type Counters = prometheus::IntCounterVec;
/// Something that is as it is.
pub type Gauge = prometheus::IntGauge;
/// [`Gauge`]s told apart by labels.
pub type Gauges = prometheus::IntGaugeVec;
/// How often something took how long; observed in seconds.
pub type Histogram = prometheus::Histogram;
/// [`Histogram`]s told apart by labels.
pub type Histograms = prometheus::HistogramVec;

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// Everything one daemon counts. Cheap to clone; clones count together.
#[derive(Clone)]
pub struct Metrics {
    shared: Arc<Shared>,
}

struct Shared {
    registry: Registry,
    families: Vec<Family>,
    parts: Arc<Parts>,
    services: Services,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut families = Families::default();
        let parts = Arc::new(Parts::new(&mut families));
        let (registry, families) = families.finish();
        let services = Services::new(parts.clone());
        Self { shared: Arc::new(Shared { registry, families, parts, services }) }
    }
}

impl Deref for Metrics {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.shared.parts
    }
}

impl Metrics {
    /// Everything counted so far, in the text format of Prometheus ([`CONTENT_TYPE`]).
    pub fn text(&self) -> String {
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&self.shared.registry.gather(), &mut text)
            .expect("a string takes everything, and every family has its name and help");
        text
    }

    /// Every family there is, counted or not.
    pub fn families(&self) -> &[Family] {
        &self.shared.families
    }

    fn services(&self) -> &Services {
        &self.shared.services
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("families", &self.shared.families.len()).finish()
    }
}

/// Counts one while it lives, such as an open connection.
#[derive(Debug)]
pub struct Held(Gauge);

impl Held {
    /// Counts one in.
    pub fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
