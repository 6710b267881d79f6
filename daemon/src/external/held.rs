//! What is held of the service that is represented: its state and its way in. Pure but
//! for the registration at ingress, which is handed in.

use std::{net::SocketAddr, sync::Arc};

use lca::{
    InstanceId, ServiceHash, ServiceName,
    api::proto::{self, InstanceState},
    endpoint::{Endpoint, Role},
    specs::Cached,
};
use lca_ingress::{Local, Registration};
use tokio::time::Instant;

/// Looks without an answer until a service that was ready is withdrawn: one may be lost
/// to a pause of the program.
const MISSES: u32 = 2;

/// One spec's time at the address. See the module above for its states.
#[derive(Debug)]
pub(super) struct Held {
    id: InstanceId,
    since: Instant,
    spec: Option<Arc<Cached>>,
    state: InstanceState,
    /// Why it is not ready.
    reason: String,
    /// Looks without an answer, in a row.
    missed: u32,
    way_in: Option<Arc<Registration>>,
}

impl Held {
    /// There is no spec to represent.
    pub(super) fn pending(reason: &str) -> Self {
        Self {
            id: InstanceId::random(),
            since: Instant::now(),
            spec: None,
            state: InstanceState::Pending,
            reason: reason.to_owned(),
            missed: 0,
            way_in: None,
        }
    }

    /// The address has not answered yet.
    pub(super) fn starting(spec: Arc<Cached>) -> Self {
        Self { spec: Some(spec), state: InstanceState::Starting, ..Self::pending("") }
    }

    pub(super) const fn state(&self) -> InstanceState {
        self.state
    }

    pub(super) fn reason(&self) -> &str {
        &self.reason
    }

    pub(super) fn spec(&self) -> Option<Arc<Cached>> {
        self.spec.clone()
    }

    pub(super) fn is_pending_for(&self, reason: &str) -> bool {
        self.state == InstanceState::Pending && self.reason == reason
    }

    /// Whether `spec` means the same service, looked at and limited in the same way.
    pub(super) fn represents(&self, spec: &Cached) -> bool {
        self.spec.as_ref().is_some_and(|held| {
            held.hash == spec.hash
                && held.spec.readiness.http_path == spec.spec.readiness.http_path
                && held.spec.concurrency_limit == spec.spec.concurrency_limit
        })
    }

    /// What is to be announced.
    pub(super) fn serving(&self) -> Option<ServiceHash> {
        let spec = self.spec.as_ref()?;
        (self.state == InstanceState::Ready).then_some(spec.hash)
    }

    /// Takes the outcome of a look by `spec`, which it represents. `register` makes the
    /// way in when there is none yet.
    pub(super) fn saw(
        &mut self,
        spec: &Arc<Cached>,
        seen: Result<(), String>,
        register: impl FnOnce(Local) -> Registration,
        address: SocketAddr,
    ) {
        self.spec = Some(spec.clone());
        match seen {
            Ok(()) => {
                self.missed = 0;
                if self.state == InstanceState::Ready {
                    return;
                }
                match &self.way_in {
                    Some(way_in) => way_in.resume(),
                    None => {
                        let (instance, hash) = (self.id, spec.hash);
                        let limit = spec.spec.concurrency_limit;
                        let service = spec.spec.name.clone();
                        let protocol = spec.spec.protocol;
                        let local = Local { instance, hash, service, address, protocol, limit };
                        self.way_in = Some(Arc::new(register(local)));
                    }
                }
                self.state = InstanceState::Ready;
                self.reason.clear();
            }
            Err(obstacle) => {
                self.missed = self.missed.saturating_add(1);
                if self.state == InstanceState::Ready {
                    if self.missed < MISSES {
                        return;
                    }
                    self.drain();
                }
                self.reason = obstacle;
            }
        }
    }

    /// Refuses requests for good, and hands over the way in to be held until what is open
    /// has ended.
    pub(super) fn leave(&mut self, reason: &str) -> Option<Arc<Registration>> {
        self.drain();
        reason.clone_into(&mut self.reason);
        self.way_in.take()
    }

    fn drain(&mut self) {
        if let Some(way_in) = &self.way_in {
            way_in.drain();
        }
        self.state = InstanceState::Draining;
    }

    /// As the API shows it.
    pub(super) fn describe(&self, service: &ServiceName, own: &Endpoint) -> proto::Instance {
        let spec = self.spec.as_ref();
        proto::Instance {
            id: self.id.to_string(),
            service: service.to_string(),
            service_hash: spec.map(|spec| spec.hash.to_string()).unwrap_or_default(),
            revision: spec.map(|spec| spec.spec.revision).unwrap_or_default(),
            peer: own.peer.to_string(),
            mesh_addresses: own.mesh.iter().map(ToString::to_string).collect(),
            state: self.state.into(),
            reason: self.reason.clone(),
            driver: Role::External.to_string(),
            age_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            load: self.way_in.as_ref().map(|way_in| way_in.load().into()),
            ..Default::default()
        }
    }
}
