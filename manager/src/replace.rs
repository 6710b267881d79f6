//! An instance that is ready and does not answer: where all that a request could use are
//! ejected, another one is started behind the requests.
//!
//! Others are looked for every second by then, and whatever is ejected is still used, for
//! there is nothing better. But nobody else may run one, an allocator that is asked for *an*
//! instance names the one that hangs, and the program that hangs tells nobody. So one more is
//! asked for, with a claim, as for load: of managers that see the same one starts it.
//! What hangs gets no requests once another is ready, and idles out.
//!
//! Invariant: one start at a time for a service, ever more rarely as long as it keeps being
//! needed: a program that always hangs fills no machine.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::{Requirements, ServiceHash, metrics::Metrics, specs::Cached};
use lru::LruCache;
use tokio::time::Instant;

use crate::{
    cache::Known,
    manager::Inner,
    policy::{self, Candidate, Verdict},
    scale::{self, Outcome},
};

/// Services that are looked after; the least recently needed makes room.
const MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// From the end of one start until the next may begin: what comes of the first is not
/// known before three requests have failed at it.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// What that grows to, doubling.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Not needed for so long, the next one waits for the shortest time again.
const FORGIVEN: Duration = Duration::from_secs(180);

/// The services of one manager of which an instance was replaced.
#[derive(Debug)]
pub(crate) struct Replacing {
    services: Mutex<LruCache<ServiceHash, Starts>>,
    metrics: Metrics,
}

/// The starts of one service.
#[derive(Debug, Default)]
struct Starts {
    running: bool,
    /// When the last one ended, and how long to wait after it.
    last: Option<(Instant, Duration)>,
}

impl Starts {
    /// Whether one begins now, which is to be followed by [`ended`](Self::ended).
    fn begin(&mut self, now: Instant) -> bool {
        let waits = self.last.is_some_and(|(at, wait)| now.duration_since(at) < wait);
        let begins = !self.running && !waits;
        self.running |= begins;
        begins
    }

    fn ended(&mut self, now: Instant) {
        let lately = self.last.filter(|(at, _)| now.duration_since(*at) < FORGIVEN);
        let wait = lately.map_or(FIRST_WAIT, |(_, wait)| (wait * 2).min(LONGEST_WAIT));
        *self = Self { running: false, last: Some((now, wait)) };
    }
}

impl Replacing {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { services: Mutex::new(LruCache::new(MAX)), metrics }
    }

    fn became(&self, service: ServiceHash, outcome: Outcome) {
        self.metrics.manager.replacements.with_label_values(&[outcome.as_str()]).inc();
        self.lock().get_or_insert_mut(service, Starts::default).ended(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<ServiceHash, Starts>> {
        // Every operation leaves it good at each step.
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nothing is left to a request within these limits but what is ejected.
fn is_needed(known: &[Known], candidates: &[Candidate], limits: &Requirements) -> bool {
    let mut usable = known.iter().zip(candidates).filter(|(_, candidate)| {
        matches!(policy::judge(candidate, limits, &[]), Verdict::Usable | Verdict::Suspect)
    });
    let mut any = false;
    let all = usable.all(|(known, _)| {
        any = true;
        known.record.is_ejected()
    });
    any && all
}

/// Has another one started behind the request that is about to be sent, if it is needed.
/// Costs nothing where none of the candidates is passed over.
pub(crate) fn look(
    inner: &Arc<Inner>,
    spec: &Arc<Cached>,
    known: &[Known],
    candidates: &[Candidate],
    limits: &Requirements,
    now: Instant,
) {
    let suspicious = candidates.iter().any(|one| one.passed_over);
    if !suspicious || spec.spec.is_external() || !is_needed(known, candidates, limits) {
        return;
    }
    if !inner.replacing.lock().get_or_insert_mut(spec.hash, Starts::default).begin(now) {
        return;
    }
    tracing::info!(
        service = %spec.spec.name, instances = known.len(),
        "no instance answers though there are some: another one is started"
    );
    let (inner, spec) = (inner.clone(), spec.clone());
    let known = known.iter().map(|known| known.instance).collect();
    inner.spawner.clone().spawn_short(async move {
        let outcome = tokio::select! {
            outcome = scale::start_one(&inner, &spec, known) => outcome,
            () = inner.spawner.stopping() => Outcome::Refused,
        };
        inner.replacing.became(spec.hash, outcome);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_ever_more_rarely_until_it_has_not_been_needed_for_long() {
        let mut now = Instant::now();
        let mut starts = Starts::default();
        for wait in [2, 4, 8, 16, 32, 60, 60].map(Duration::from_secs) {
            assert!(starts.begin(now), "before {wait:?}");
            assert!(!starts.begin(now), "one is under way");
            starts.ended(now);
            assert!(!starts.begin(now + wait - Duration::from_millis(1)));
            now += wait;
        }
        now += FORGIVEN;
        assert!(starts.begin(now));
        starts.ended(now);
        assert!(starts.begin(now + FIRST_WAIT));
    }
}
