//! The label `service`: bounded, and never a word of a client.
//!
//! ```text
//!   spec of a registry ──Slot──► Service, resolved once ──► counters, without a lock
//!   anything else ─────────────► `_none`
//!   one service too many ──────► `_other`
//! ```

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{Metrics, Parts, exchange::Handles};
use crate::ServiceName;

/// Services told apart by one daemon; those first used after that are counted together.
/// Each costs some fifty lines of a scrape.
pub const MAX_SERVICES: usize = 200;
/// What no service is called: names do not begin with an underscore.
const OTHER: &str = "_other";
const NONE: &str = "_none";

/// What is counted of one service. Shared by everyone who serves or asks for it.
pub struct Service {
    label: String,
    parts: Arc<Parts>,
    front: OnceLock<Handles>,
    ingress: OnceLock<Handles>,
}

impl Service {
    fn new(label: &str, parts: Arc<Parts>) -> Arc<Self> {
        let (front, ingress) = Default::default();
        Arc::new(Self { label: label.to_owned(), parts, front, ingress })
    }

    /// The value of the label `service`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What the front counts of it.
    pub fn at_front(&self) -> &Handles {
        self.front.get_or_init(|| self.parts.front.exchanges.of(&self.label))
    }

    /// What ingress counts of it.
    pub fn at_ingress(&self) -> &Handles {
        self.ingress.get_or_init(|| self.parts.ingress.exchanges.of(&self.label))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("label", &self.label).finish_non_exhaustive()
    }
}

/// Where a spec keeps the [`Service`] it is counted under, once somebody has asked.
/// Equal to every other: it says nothing about the spec.
#[derive(Clone, Debug, Default)]
pub struct Slot(Arc<OnceLock<Arc<Service>>>);

impl Slot {
    /// What `name` is counted under. To be asked for names a registry vouched for.
    pub fn get(&self, metrics: &Metrics, name: &ServiceName) -> &Arc<Service> {
        self.0.get_or_init(|| metrics.service(name))
    }
}

impl PartialEq for Slot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Slot {}

/// The services of one daemon.
pub(super) struct Services {
    known: Mutex<HashMap<ServiceName, Arc<Service>>>,
    other: Arc<Service>,
    none: Arc<Service>,
    parts: Arc<Parts>,
}

impl Services {
    pub(super) fn new(parts: Arc<Parts>) -> Self {
        let [other, none] = [OTHER, NONE].map(|label| Service::new(label, parts.clone()));
        Self { known: Mutex::default(), other, none, parts }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceName, Arc<Service>>> {
        // Nothing panics while holding it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Metrics {
    /// What a service is counted under. `name` must be one that a registry vouched for:
    /// it becomes a label. Takes a lock; see [`Slot`] for the path of requests.
    pub fn service(&self, name: &ServiceName) -> Arc<Service> {
        let services = self.services();
        let mut known = services.lock();
        if let Some(service) = known.get(name) {
            return service.clone();
        }
        if known.len() >= MAX_SERVICES {
            return services.other.clone();
        }
        let service = Service::new(name.as_str(), services.parts.clone());
        known.insert(name.clone(), service.clone());
        service
    }

    /// The same for a name that may be anything: `_none` if it has not become a label
    /// yet.
    pub fn seen_service(&self, name: &ServiceName) -> Arc<Service> {
        let services = self.services();
        let known = services.lock();
        known.get(name).unwrap_or(&services.none).clone()
    }

    /// What is counted of requests for no service, or none that exists.
    pub fn no_service(&self) -> &Arc<Service> {
        &self.services().none
    }
}
