//! What ingress knows of an instance: where it listens, what it is working on, and
//! whether it takes more.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lca::{
    InstanceId, ServiceHash, ServiceName,
    headers::{Load, Refusal},
    metrics,
};
use tokio::sync::{Notify, watch};

use crate::Shared;

/// An instance on this machine, or an external service that this node represents.
#[derive(Clone, Debug)]
pub struct Local {
    /// Which one.
    pub instance: InstanceId,
    /// What it is an instance of: a request for anything else is refused.
    pub hash: ServiceHash,
    /// What that service is called; requests are counted under it.
    pub service: ServiceName,
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests it is given at once; one more is refused.
    pub limit: u32,
}

/// An instance and its open requests.
pub(crate) struct Instance {
    pub(crate) local: Local,
    pub(crate) counted: Arc<metrics::Service>,
    state: watch::Sender<State>,
    app_us: AtomicU64,
}

#[derive(Default)]
struct State {
    // Each with what ends the connection it came on.
    open: HashMap<u64, Arc<Notify>>,
    next: u64,
    draining: bool,
    gone: bool,
}

impl Instance {
    pub(crate) fn new(local: Local, counted: Arc<metrics::Service>) -> Self {
        Self { local, counted, state: watch::Sender::default(), app_us: AtomicU64::new(0) }
    }

    /// Counts one more request in, or says why not. `end` is what has to be notified
    /// to cut it off.
    pub(crate) fn admit(
        self: &Arc<Self>,
        hash: ServiceHash,
        end: &Arc<Notify>,
    ) -> Result<Open, Refusal> {
        let mut admitted = Err(Refusal::Unknown);
        self.state.send_if_modified(|state| {
            admitted = if state.gone || hash != self.local.hash {
                Err(Refusal::Unknown)
            } else if state.draining {
                Err(Refusal::Draining)
            } else if state.open.len() >= self.local.limit as usize {
                Err(Refusal::Overloaded)
            } else {
                state.next += 1;
                state.open.insert(state.next, end.clone());
                Ok(state.next)
            };
            admitted.is_ok()
        });
        Ok(Open { instance: self.clone(), id: admitted? })
    }

    /// How busy it is now.
    pub(crate) fn load(&self) -> Load {
        Load {
            in_flight: self.state.borrow().open.len() as u32,
            limit: self.local.limit,
            queue: Duration::ZERO,
            app: Duration::from_micros(self.app_us.load(Ordering::Relaxed)),
        }
    }

    /// Remembers how long the application took for the head of an answer.
    pub(crate) fn answered(&self, app: Duration) {
        self.app_us.store(app.as_micros() as u64, Ordering::Relaxed);
    }
}

/// A request that counts as open until this is dropped.
pub(crate) struct Open {
    instance: Arc<Instance>,
    id: u64,
}

impl Open {
    /// What its service is counted under.
    pub(crate) fn counted(&self) -> &metrics::Service {
        &self.instance.counted
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.instance.state.send_modify(|state| {
            state.open.remove(&self.id);
        });
    }
}

/// An instance that others can reach. Dropping it makes the instance unknown and cuts
/// off what is still open.
pub struct Registration {
    ingress: Arc<Shared>,
    instance: Arc<Instance>,
}

impl Registration {
    pub(crate) const fn new(ingress: Arc<Shared>, instance: Arc<Instance>) -> Self {
        Self { ingress, instance }
    }

    /// Refuses new requests from now on; open ones go on.
    pub fn drain(&self) {
        // Nobody waits for this: an idle instance stays idle.
        self.instance.state.send_if_modified(|state| {
            state.draining = true;
            false
        });
    }

    /// Takes requests again after a [`drain`](Self::drain): what could not be reached
    /// for a while is back.
    pub fn resume(&self) {
        self.instance.state.send_if_modified(|state| {
            state.draining = false;
            false
        });
    }

    /// How busy it is now. `app` is of the last answer.
    pub fn load(&self) -> Load {
        self.instance.load()
    }

    /// Resolves once no request was open for `time` without a break. Cancel safe; a
    /// new call counts from its start.
    pub async fn idle_for(&self, time: Duration) {
        let mut state = self.instance.state.subscribe();
        // The sender lives in `self`: waiting cannot fail.
        while state.wait_for(|state| state.open.is_empty()).await.is_ok() {
            tokio::select! {
                // First: a request that came and went within one turn is a break too.
                biased;
                _ = state.changed() => {}
                () = tokio::time::sleep(time) => return,
            }
        }
    }

    /// Resolves once no request is open. Cancel safe.
    pub async fn drained(&self) {
        let mut state = self.instance.state.subscribe();
        let _sender_is_held = state.wait_for(|state| state.open.is_empty()).await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.ingress.forget(self.instance.local.instance);
        self.instance.state.send_modify(|state| {
            state.gone = true;
            for end in state.open.values() {
                end.notify_one();
            }
        });
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("local", &self.instance.local).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use lca::metrics::Metrics;

    use super::*;
    use crate::{Config, Ingress};

    fn local(limit: u32) -> Local {
        Local {
            instance: InstanceId::random(),
            hash: ServiceHash::from_sha256([7; 32]),
            service: "hello".parse().unwrap(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            limit,
        }
    }

    fn registered(limit: u32) -> (Ingress, Registration, Arc<Instance>) {
        let ingress = Ingress::new(Config::default(), Metrics::default());
        let local = local(limit);
        let registration = ingress.register(local.clone());
        let instance = ingress.shared.instance(local.instance).unwrap();
        (ingress, registration, instance)
    }

    #[tokio::test]
    async fn the_limit_is_kept_and_a_finished_request_makes_room() {
        let (_ingress, registration, instance) = registered(1);
        let hash = instance.local.hash;
        let first = instance.admit(hash, &Arc::default()).ok().unwrap();
        assert_eq!(instance.admit(hash, &Arc::default()).err(), Some(Refusal::Overloaded));
        assert_eq!(registration.load().in_flight, 1);
        drop(first);
        assert!(instance.admit(hash, &Arc::default()).is_ok());
    }

    #[tokio::test]
    async fn another_service_a_drained_and_a_gone_instance_refuse() {
        let (ingress, registration, instance) = registered(1);
        let other = ServiceHash::from_sha256([8; 32]);
        let refused = |hash| instance.admit(hash, &Arc::default()).err();
        assert_eq!(refused(other), Some(Refusal::Unknown));
        registration.drain();
        assert_eq!(refused(instance.local.hash), Some(Refusal::Draining));
        registration.resume();
        assert_eq!(refused(instance.local.hash), None);
        drop(registration);
        assert_eq!(refused(instance.local.hash), Some(Refusal::Unknown));
        assert!(ingress.shared.instance(instance.local.instance).is_none());
    }

    #[tokio::test]
    async fn a_gone_instance_cuts_off_what_is_open() {
        let (_ingress, registration, instance) = registered(1);
        let end = Arc::new(Notify::new());
        let _open = instance.admit(instance.local.hash, &end).ok().unwrap();
        drop(registration);
        end.notified().await;
    }

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_request_however_short() {
        let (_ingress, registration, instance) = registered(9);
        let started = tokio::time::Instant::now();
        let idle = registration.idle_for(Duration::from_secs(60));
        let requests = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(59)).await;
                drop(instance.admit(instance.local.hash, &Arc::default()));
            }
            let long = instance.admit(instance.local.hash, &Arc::default());
            tokio::time::sleep(Duration::from_secs(600)).await;
            drop(long);
        };
        tokio::join!(idle, requests);
        assert_eq!(started.elapsed().as_secs(), 3 * 59 + 600 + 60);
    }

    #[tokio::test(start_paused = true)]
    async fn draining_does_not_make_an_idle_instance_busy() {
        let (_ingress, registration, _instance) = registered(1);
        let started = tokio::time::Instant::now();
        let drain = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            registration.drain();
            registration.drained().await;
        };
        tokio::join!(registration.idle_for(Duration::from_secs(60)), drain);
        assert_eq!(started.elapsed().as_secs(), 60);
    }
}
