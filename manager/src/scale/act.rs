//! The acting part: looks at the services in use, and has one more instance started where
//! [`control`](super::control) says so.
//!
//! Requests ask for their [`Share`] and go on at once. Behind them a tick looks at services
//! with a target that were used a moment ago; while there is none this sleeps, so an idle
//! node pays nothing. Before an instance is started others are looked for, which may have
//! been started by somebody who sees the same overload.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::{InstanceId, Requirements, ServiceHash, api, metrics::Metrics, specs::Cached};
use lru::LruCache;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    control::{Bounds, Control, Decision, Outcome, Seen},
    set::{Share, working_set},
};
use crate::{Manager, Wish, manager::Inner, pilot};

/// Services that are looked after; the least recently used makes room.
const MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// How often load is looked at: a dozen times in a window.
const TICK: Duration = Duration::from_millis(250);
/// How long after its last request a service is looked after: nobody needs more instances
/// of what is not asked for.
const IN_USE: Duration = Duration::from_secs(5);
/// What an instance said of its other requests counts for so long: they come and go.
const FRESH: Duration = Duration::from_secs(1);
/// The same while requests of ours are there, and so none of the answers that would tell.
const FRESH_WHILE_BUSY: Duration = Duration::from_secs(5);
/// How long others are looked for before one is started. A find says what it has within
/// two round trips; who is late is found by the next look.
const LOOK: Duration = Duration::from_secs(1);

/// The services of one manager that are scaled.
#[derive(Debug)]
pub(crate) struct Scale {
    services: Mutex<LruCache<ServiceHash, Service>>,
    /// Told when a service is used again.
    used: Notify,
    metrics: Metrics,
}

#[derive(Debug)]
struct Service {
    control: Control,
    spec: Arc<Cached>,
    used: Instant,
    looked: bool,
}

impl Scale {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { services: Mutex::new(LruCache::new(MAX)), used: Notify::new(), metrics }
    }

    /// A request for this service is to be sent: over how many instances it and others are
    /// spread. Nothing for a service with neither a target nor a limit.
    pub(crate) fn share(&self, spec: &Arc<Cached>, now: Instant) -> Option<Share> {
        let max = spec.spec.max_instances.map(|max| max.get() as usize);
        if spec.spec.target_concurrency.is_none() || spec.spec.is_external() {
            return max.map(|max| Share { size: None, max: Some(max) });
        }
        let mut services = self.lock();
        let new =
            || Service { control: Control::new(), spec: spec.clone(), used: now, looked: false };
        let known = services.contains(&spec.hash);
        let service = services.get_or_insert_mut(spec.hash, new);
        if !known || now.duration_since(service.used) >= IN_USE {
            self.used.notify_one();
        }
        service.used = now;
        if !Arc::ptr_eq(&service.spec, spec) {
            service.spec = spec.clone();
        }
        let size = service.looked.then(|| service.control.size());
        Some(Share { size, max })
    }

    /// The same for somebody who only wants to see it.
    pub(crate) fn peek(&self, spec: &Cached) -> Share {
        let max = spec.spec.max_instances.map(|max| max.get() as usize);
        let services = self.lock();
        let looked = services.peek(&spec.hash).filter(|one| one.looked);
        Share { size: looked.map(|one| one.control.size()), max }
    }

    fn in_use(&self, now: Instant) -> Vec<Arc<Cached>> {
        let services = self.lock();
        let in_use = services.iter().filter(|(_, one)| now.duration_since(one.used) < IN_USE);
        in_use.map(|(_, one)| one.spec.clone()).collect()
    }

    fn look(
        &self,
        service: ServiceHash,
        now: Instant,
        usable: &[Seen],
        others: usize,
        bounds: &Bounds,
    ) -> Decision {
        let mut services = self.lock();
        let Some(one) = services.peek_mut(&service) else { return Decision::Enough };
        one.looked = true;
        one.control.look(now, usable, others, bounds)
    }

    fn became(&self, service: ServiceHash, outcome: Outcome) {
        self.metrics.manager.scale_out.with_label_values(&[outcome.as_str()]).inc();
        if let Some(one) = self.lock().peek_mut(&service) {
            one.control.became(Instant::now(), outcome);
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<ServiceHash, Service>> {
        // Every operation leaves it good at each step.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks after the services in use until `stopping`.
pub(crate) async fn keep(inner: Arc<Inner>, stopping: impl Future<Output = ()>) {
    let looking = async {
        loop {
            let in_use = inner.scale.in_use(Instant::now());
            if in_use.is_empty() {
                inner.scale.used.notified().await;
                continue;
            }
            for spec in in_use {
                look_after(&inner, spec);
            }
            sleep(TICK).await;
        }
    };
    tokio::select! {
        () = stopping => {}
        () = looking => {}
    }
}

fn look_after(inner: &Arc<Inner>, spec: Arc<Cached>) {
    let Some(target) = spec.spec.target_concurrency else { return };
    let bounds = Bounds {
        target: target.get(),
        min: spec.spec.min_instances,
        max: spec.spec.max_instances.map(|max| max.get()),
    };
    let now = Instant::now();
    let known = inner.cache().peek(spec.hash, now);
    let candidates: Vec<_> = known.iter().map(|known| inner.candidate(known)).collect();
    let limits = inner.limits(&spec, Requirements::default());
    let all = Share { size: Some(usize::MAX), max: bounds.max.map(|max| max as usize) };
    let usable = working_set(&candidates, &limits, &[], all);
    let seen: Vec<_> = usable
        .iter()
        .map(|n| {
            let (own, others) = inner.moving.busy(candidates[*n].instance, now);
            let fresh = if own > 0 { FRESH_WHILE_BUSY } else { FRESH };
            let said = others.filter(|(_, age)| *age < fresh);
            Seen {
                instance: candidates[*n].instance,
                in_flight: own.saturating_add(said.map_or(0, |(others, _)| others)),
                queue: said.map_or(Duration::ZERO, |_| known[*n].load.queue),
            }
        })
        .collect();
    let others = known.len() - usable.len();
    if inner.scale.look(spec.hash, now, &seen, others, &bounds) == Decision::StartOne {
        let load: u32 = seen.iter().map(|seen| seen.in_flight).sum();
        tracing::info!(
            service = %spec.spec.name, instances = known.len(), in_flight = load,
            "more requests than its instances shall have: one more is started"
        );
        let inner = inner.clone();
        let known = known.iter().map(|known| known.instance).collect();
        inner.spawner.clone().spawn_short(async move {
            let outcome = tokio::select! {
                outcome = start_one(&inner, &spec, known) => outcome,
                () = inner.spawner.stopping() => Outcome::Refused,
            };
            inner.scale.became(spec.hash, outcome);
        });
    }
}

/// One more than `known`, unless somebody else was first.
pub(crate) async fn start_one(
    inner: &Arc<Inner>,
    spec: &Arc<Cached>,
    known: Vec<InstanceId>,
) -> Outcome {
    let _what_is_late = timeout(LOOK, pilot::refresh(inner.clone(), spec.clone())).await;
    let now = inner.cache().peek(spec.hash, Instant::now());
    if now.iter().any(|one| !known.contains(&one.instance)) {
        return Outcome::Taken;
    }
    let name = &spec.spec.name;
    let wish = Wish::new(name.clone(), Instant::now() + api::MAX_CALL);
    let manager = Manager { inner: inner.clone() };
    // All who see the same overload ask for leave to be as many, so one of them gets it.
    let there = u32::try_from(now.len()).unwrap_or(u32::MAX).saturating_add(1);
    let limit = NonZeroU32::new(there).unwrap_or(NonZeroU32::MAX);
    let limit = spec.spec.max_instances.map_or(limit, |max| max.min(limit));
    let (landed, steps) = match manager.one_more(&wish, limit).await {
        Ok(mut wait) => (wait.end(&wish).await, wait.steps()),
        Err(error) => (Err(error), Vec::new()),
    };
    match landed {
        Err(_) if steps.iter().any(|step| step.name == "claim" && step.detail != "granted") => {
            Outcome::Taken
        }
        Ok(landed) => {
            tracing::info!(
                service = %name, instance = %landed.instance.short(),
                peer = %landed.endpoint.peer.short(), "one more instance takes requests"
            );
            Outcome::Started
        }
        Err(error) => {
            tracing::info!(service = %name, error = error.chain(), "no further instance for now");
            Outcome::Refused
        }
    }
}
