//! The instances this node knows, per service hash: hints from finds, allocations and
//! the outcome of requests.
//!
//! Plain data behind a short lock of the manager; time comes in as `now`. Bounded in
//! every direction. What became of requests decides how far each instance is trusted
//! ([`level`]). What nobody has confirmed for [`EXPIRE`] is not used any more;
//! what nobody has asked for lately is refreshed behind the request that uses it.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use lca::{
    InstanceId, PeerId, ServiceHash,
    endpoint::Endpoint,
    headers::{Load, Refusal},
    mesh,
};
use lru::LruCache;
use tokio::time::Instant;

use crate::Outcome;

mod level;

pub(crate) use level::{Gate, Level, Record};

/// Services one node has clients for; the least recently used makes room.
const MAX_SERVICES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Instances worth knowing of one service: choosing among more is no better.
const MAX_INSTANCES: usize = 64;
/// After this long unconfirmed a hint is dropped: its peer is not probed any more, so
/// its distance is unknown as well.
const EXPIRE: Duration = mesh::INTEREST;
/// The same age where all that is known is passed over: another is wanted soon.
const FRESH_IN_NEED: Duration = Duration::from_secs(1);
/// How often peers of known instances are said to be of interest: often enough that
/// they never stop being so while requests come.
const WATCH_AGAIN: Duration = Duration::from_secs(30);
const _: () = assert!(WATCH_AGAIN.as_secs() < mesh::IN_USE.as_secs());

/// An instance that took requests when last heard of.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) instance: InstanceId,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) load: Load,
    /// How far it is trusted.
    pub(crate) record: Record,
    confirmed: Instant,
}

/// What [`Cache::look_up`] has to say.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    pub(crate) instances: Vec<Known>,
    /// The caller shall ask again whether they are still there, and then say
    /// [`Cache::refreshed`]. Told to one caller at a time.
    pub(crate) refresh: bool,
    /// The caller shall say that their peers are of interest.
    pub(crate) watch: bool,
}

#[derive(Debug)]
struct Service {
    instances: Vec<Known>,
    refreshed: Instant,
    refreshing: bool,
    watched: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Cache {
    services: LruCache<ServiceHash, Service>,
    fresh: Duration,
}

impl Cache {
    /// `fresh`: the age from which hints are refreshed when they are used.
    pub(crate) fn new(fresh: Duration) -> Self {
        Self { services: LruCache::new(MAX_SERVICES), fresh }
    }

    /// What is known of `service`.
    pub(crate) fn look_up(&mut self, service: ServiceHash, now: Instant) -> Hints {
        let Some(known) = self.services.get_mut(&service) else { return Hints::default() };
        known.instances.retain(|instance| now.duration_since(instance.confirmed) < EXPIRE);
        if known.instances.is_empty() {
            return Hints::default();
        }
        let passed_over = |one: &Known| one.record.gate(true, now) == Gate::Closed;
        let all_passed_over = known.instances.iter().all(passed_over);
        let fresh = if all_passed_over { self.fresh.min(FRESH_IN_NEED) } else { self.fresh };
        let refresh = !known.refreshing && now.duration_since(known.refreshed) >= fresh;
        known.refreshing |= refresh;
        let watch = known.watched.is_none_or(|at| now.duration_since(at) >= WATCH_AGAIN);
        if watch {
            known.watched = Some(now);
        }
        Hints { instances: known.instances.clone(), refresh, watch }
    }

    /// What is known of `service`, for somebody who only wants to see it.
    pub(crate) fn peek(&self, service: ServiceHash, now: Instant) -> Vec<Known> {
        let known = self.services.peek(&service).into_iter().flat_map(|known| &known.instances);
        known.filter(|one| now.duration_since(one.confirmed) < EXPIRE).cloned().collect()
    }

    /// The peers that are known to have instances of `service`.
    pub(crate) fn peers(&self, service: ServiceHash) -> Vec<Arc<Endpoint>> {
        let known = self.services.peek(&service).into_iter().flat_map(|known| &known.instances);
        known.map(|known| known.endpoint.clone()).collect()
    }

    /// `endpoint`'s peer said that these are its ready instances of `service`, and no
    /// others.
    pub(crate) fn learn(
        &mut self,
        service: ServiceHash,
        endpoint: &Arc<Endpoint>,
        ready: &[(InstanceId, Load)],
        now: Instant,
    ) {
        if ready.is_empty() && self.services.peek(&service).is_none() {
            return;
        }
        let known = self.service(service, now);
        known.instances.retain(|known| {
            known.endpoint.peer != endpoint.peer
                || ready.iter().any(|(id, _)| *id == known.instance)
        });
        for (instance, load) in ready {
            known.add(*instance, endpoint, *load, now);
        }
    }

    /// One instance is ready there; nothing is said of others.
    pub(crate) fn add(
        &mut self,
        service: ServiceHash,
        instance: InstanceId,
        endpoint: &Arc<Endpoint>,
        load: Load,
        now: Instant,
    ) {
        self.service(service, now).add(instance, endpoint, load, now);
    }

    /// Everyone known of `service` has been asked.
    pub(crate) fn refreshed(&mut self, service: ServiceHash, now: Instant) {
        if let Some(known) = self.services.peek_mut(&service) {
            known.refreshing = false;
            known.refreshed = now;
        }
    }

    /// What became of a request. An unreachable peer takes all its instances along.
    pub(crate) fn report(
        &mut self,
        service: ServiceHash,
        instance: InstanceId,
        peer: PeerId,
        outcome: Outcome,
        now: Instant,
    ) {
        if outcome == Outcome::Unreachable {
            return self.forget(peer);
        }
        let Some(service) = self.services.peek_mut(&service) else { return };
        let found = service.instances.iter().position(|known| known.instance == instance);
        let Some(index) = found else { return };
        let known = &mut service.instances[index];
        match outcome {
            Outcome::Answered { load, .. } => {
                known.load = load;
                known.record.answered(now);
                known.confirmed = now;
            }
            // It is there and says so; the request that was refused avoids it.
            Outcome::Refused(Refusal::Overloaded) => {
                known.load.in_flight = known.load.in_flight.max(known.load.limit);
                known.record.undecided();
                known.confirmed = now;
            }
            Outcome::Refused(Refusal::Draining | Refusal::Unknown) => {
                service.instances.swap_remove(index);
            }
            Outcome::Broken => known.record.failed(now),
            Outcome::Busy => known.record.undecided(),
            Outcome::Unreachable => {}
        }
    }

    /// Lets one request through to an instance that others are passing over, or says that
    /// another was faster. True for what is open to all; see [`Record::begin_trial`].
    pub(crate) fn begin_trial(
        &mut self,
        service: ServiceHash,
        instance: InstanceId,
        repeatable: bool,
        now: Instant,
    ) -> bool {
        self.record(service, instance).is_some_and(|record| record.begin_trial(repeatable, now))
    }

    /// Whether an instance is within the soft limit has changed.
    pub(crate) fn set_performant(&mut self, service: ServiceHash, one: InstanceId, is: bool) {
        if let Some(record) = self.record(service, one) {
            record.set_performant(is);
        }
    }

    fn record(&mut self, service: ServiceHash, instance: InstanceId) -> Option<&mut Record> {
        let known = self.services.peek_mut(&service)?.instances.iter_mut();
        known.into_iter().find(|known| known.instance == instance).map(|known| &mut known.record)
    }

    /// Drops everything on `peer`.
    pub(crate) fn forget(&mut self, peer: PeerId) {
        for (_, service) in &mut self.services {
            service.instances.retain(|known| known.endpoint.peer != peer);
        }
    }

    fn service(&mut self, service: ServiceHash, now: Instant) -> &mut Service {
        self.services.get_or_insert_mut(service, || Service {
            instances: Vec::new(),
            refreshed: now,
            refreshing: false,
            watched: None,
        })
    }
}

impl Service {
    fn add(&mut self, instance: InstanceId, endpoint: &Arc<Endpoint>, load: Load, now: Instant) {
        if let Some(known) = self.instances.iter_mut().find(|known| known.instance == instance) {
            known.endpoint = endpoint.clone();
            known.load = load;
            known.confirmed = now;
        } else if self.instances.len() < MAX_INSTANCES {
            self.instances.push(Known {
                instance,
                endpoint: endpoint.clone(),
                load,
                record: Record::default(),
                confirmed: now,
            });
            self.watched = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Duration = Duration::from_secs(30);

    fn endpoint(n: u8) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            peer: PeerId::from_public_key([n; 32]),
            roles: Vec::new(),
            mesh: vec!["127.0.0.1:1".parse().unwrap()],
            boot: 1,
            sequence: 1,
            ttl: Duration::from_secs(600),
            version: String::new(),
        })
    }

    fn service(n: u8) -> ServiceHash {
        ServiceHash::from_sha256([n; 32])
    }

    fn ids(hints: &Hints) -> Vec<InstanceId> {
        hints.instances.iter().map(|known| known.instance).collect()
    }

    #[test]
    fn an_instance_that_drains_or_is_unknown_is_dropped_and_others_stay() {
        let now = Instant::now();
        let mut cache = Cache::new(FRESH);
        let (a, b) = (InstanceId::random(), InstanceId::random());
        let load = Load::default();
        cache.learn(service(1), &endpoint(1), &[(a, load), (b, load)], now);
        let peer = endpoint(1).peer;
        let outcome = Outcome::Refused(Refusal::Overloaded);
        cache.report(service(1), a, peer, outcome, now);
        assert_eq!(cache.look_up(service(1), now).instances.len(), 2);
        cache.report(service(1), a, peer, Outcome::Refused(Refusal::Draining), now);
        assert_eq!(ids(&cache.look_up(service(1), now)), [b]);
        cache.report(service(1), b, peer, Outcome::Refused(Refusal::Unknown), now);
        assert!(cache.look_up(service(1), now).instances.is_empty());
    }

    #[test]
    fn an_unreachable_peer_takes_all_its_instances_along() {
        let now = Instant::now();
        let mut cache = Cache::new(FRESH);
        let (a, b, c) = (InstanceId::random(), InstanceId::random(), InstanceId::random());
        cache.add(service(1), a, &endpoint(1), Load::default(), now);
        cache.add(service(1), b, &endpoint(2), Load::default(), now);
        cache.add(service(2), c, &endpoint(1), Load::default(), now);
        cache.report(service(1), a, endpoint(1).peer, Outcome::Unreachable, now);
        assert_eq!(ids(&cache.look_up(service(1), now)), [b]);
        assert!(cache.look_up(service(2), now).instances.is_empty());
    }

    #[test]
    fn what_stood_in_a_line_of_ours_costs_nobody_its_instance() {
        let now = Instant::now();
        let mut cache = Cache::new(FRESH);
        let a = InstanceId::random();
        cache.add(service(1), a, &endpoint(1), Load::default(), now);
        (0..9).for_each(|_| cache.report(service(1), a, endpoint(1).peer, Outcome::Busy, now));
        let known = cache.look_up(service(1), now).instances;
        assert_eq!(known[0].instance, a);
        assert!(known[0].record.ejected_until(now).is_none());
        assert_eq!(known[0].load.in_flight, 0);
    }

    #[test]
    fn what_a_peer_no_longer_names_is_gone() {
        let now = Instant::now();
        let mut cache = Cache::new(FRESH);
        let (a, b, c) = (InstanceId::random(), InstanceId::random(), InstanceId::random());
        cache.add(service(1), a, &endpoint(1), Load::default(), now);
        cache.add(service(1), b, &endpoint(2), Load::default(), now);
        cache.learn(service(1), &endpoint(1), &[(c, Load::default())], now);
        assert_eq!(ids(&cache.look_up(service(1), now)), [b, c]);
    }

    #[test]
    fn old_hints_are_refreshed_by_one_user_and_expire_unconfirmed() {
        let start = Instant::now();
        let mut cache = Cache::new(FRESH);
        let a = InstanceId::random();
        cache.add(service(1), a, &endpoint(1), Load::default(), start);
        assert!(!cache.look_up(service(1), start).refresh);
        let later = start + FRESH;
        assert!(cache.look_up(service(1), later).refresh);
        assert!(!cache.look_up(service(1), later).refresh, "one refresh at a time");
        cache.refreshed(service(1), later);
        assert!(!cache.look_up(service(1), later).refresh);

        let answered = Outcome::Answered { load: Load::default(), way: None };
        cache.report(service(1), a, endpoint(1).peer, answered, start + EXPIRE / 2);
        assert_eq!(cache.look_up(service(1), start + EXPIRE).instances.len(), 1);
        assert!(cache.look_up(service(1), start + EXPIRE * 2).instances.is_empty());
    }

    #[test]
    fn nothing_grows_without_bound() {
        let now = Instant::now();
        let mut cache = Cache::new(FRESH);
        for _ in 0..MAX_INSTANCES * 2 {
            cache.add(service(1), InstanceId::random(), &endpoint(1), Load::default(), now);
        }
        assert_eq!(cache.look_up(service(1), now).instances.len(), MAX_INSTANCES);
        for n in 0..MAX_SERVICES.get() * 2 {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_be_bytes());
            let hash = ServiceHash::from_sha256(hash);
            cache.add(hash, InstanceId::random(), &endpoint(1), Load::default(), now);
        }
        assert_eq!(cache.services.len(), MAX_SERVICES.get());
    }

    #[test]
    fn a_new_instance_makes_its_peer_of_interest() {
        let now = Instant::now();
        let mut cache = Cache::new(FRESH);
        cache.add(service(1), InstanceId::random(), &endpoint(1), Load::default(), now);
        assert!(cache.look_up(service(1), now).watch);
        assert!(!cache.look_up(service(1), now).watch);
        cache.add(service(1), InstanceId::random(), &endpoint(2), Load::default(), now);
        assert!(cache.look_up(service(1), now).watch);
    }
}
