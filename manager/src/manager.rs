//! The handle everyone holds: where a request shall go, and what became of it.
//!
//! The warm path of [`Manager::pick`] is two lookups and a choice: it awaits nothing
//! that takes time and does no I/O. Everything slower happens in flights.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use lca::{
    Error, Kind, PeerId, RequestId, Requirements, Result, ServiceHash, ServiceName,
    api::{self, proto::Step},
    discovery::Discovery,
    mesh::Mesh,
    metrics::{self, Metrics},
    shutdown::Spawner,
    specs::{Cached, Specs},
};
use lru::LruCache;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout_at},
};

use crate::{
    Config, Outcome, Resolved, Target, Wish,
    allocators::Allocators,
    cache::{Cache, Gate, Known},
    find::Seen,
    flight::{self, Boarded, Flights, How, Landed, Progress, Question},
    moving::{self, Move, Moving, course::Avoid, loads::Ticket},
    pilot,
    policy::{self, Candidate},
    reach::Reach,
    replace::{self, Replacing},
    scale::{self, Scale},
};

/// Request ids remembered with who was asked; allocators remember for 10 minutes.
const MAX_REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// Programs that watch instances at the same time: each follows every allocator.
const MAX_WATCHERS: usize = 64;

/// When to come again after an allocator that did not want to: its registry may lag.
const REFUSED: Duration = Duration::from_secs(1);

/// Finds the best instance of a service, or has one allocated. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Manager {
    pub(crate) inner: Arc<Inner>,
}

/// What the parts of a manager share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) specs: Specs,
    pub(crate) reach: Reach,
    pub(crate) allocators: Allocators,
    pub(crate) flights: Flights,
    pub(crate) moving: Moving,
    pub(crate) scale: Scale,
    pub(crate) replacing: Replacing,
    pub(crate) spawner: Spawner,
    metrics: Metrics,
    /// Places for programs that watch instances.
    pub(crate) watchers: Arc<Semaphore>,
    /// Of this machine's clients; the configuration's, until others are set.
    requirements: RwLock<Requirements>,
    cache: Mutex<Cache>,
    asked: Mutex<LruCache<RequestId, PeerId>>,
}

/// What a wish comes to.
pub(crate) enum Way {
    /// There is one.
    Known(Target),
    /// It is being looked for.
    Flight(Wait),
}

/// A seat in a flight.
pub(crate) struct Wait {
    pub(crate) hash: ServiceHash,
    pub(crate) progress: watch::Receiver<Progress>,
    /// What this request did before it boarded.
    pub(crate) before: Vec<Step>,
    /// What the service is counted under.
    pub(crate) counted: Arc<metrics::Service>,
}

impl Manager {
    /// Starts a manager, which looks for allocators from now on until the daemon
    /// stops.
    pub fn start(
        config: Config,
        specs: Specs,
        discovery: Arc<dyn Discovery>,
        mesh: Arc<dyn Mesh>,
        spawner: &Spawner,
    ) -> Self {
        let reach = Reach { discovery, mesh };
        let allocators = Allocators::new(reach.clone(), spawner.clone());
        let keep = allocators.clone().keep(config.allocators_every, spawner.stopping());
        spawner.spawn("allocators", keep);
        let inner = Inner {
            requirements: RwLock::new(config.requirements),
            cache: Mutex::new(Cache::new(config.hints_fresh)),
            asked: Mutex::new(LruCache::new(MAX_REMEMBERED)),
            flights: Flights::new(config.metrics.clone()),
            moving: Moving::new(config.metrics.clone()),
            scale: Scale::new(config.metrics.clone()),
            replacing: Replacing::new(config.metrics.clone()),
            metrics: config.metrics,
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            spawner: spawner.clone(),
            specs,
            reach,
            allocators,
        };
        let inner = Arc::new(inner);
        spawner.spawn("moving", moving::keep(inner.clone(), spawner.stopping()));
        spawner.spawn("scale-out", scale::keep(inner.clone(), spawner.stopping()));
        Self { inner }
    }

    /// What this machine's clients ask for, on top of each service's own.
    pub fn requirements(&self) -> Requirements {
        self.inner.requirements()
    }

    /// Asks for something else from the next request on.
    pub fn require(&self, requirements: Requirements) {
        let mut current = self.inner.requirements.write().unwrap_or_else(PoisonError::into_inner);
        *current = requirements;
    }

    /// What one request to the service may be and take. `wish` knows what the service is from
    /// then on, so that a [`pick`](Self::pick) for it asks nobody again.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: no such service. [`Kind::Unavailable`], [`Kind::Timeout`]: nobody
    /// said in time.
    pub async fn resolve(&self, wish: &mut Wish) -> Result<Resolved> {
        let since = Instant::now();
        let spec = self.spec(wish).await?;
        let resolved = Resolved { limits: spec.spec.limits, counted: self.counted(&spec) };
        wish.resolved = Some((since, spec));
        Ok(resolved)
    }

    /// Where a request shall go: the nearest known instance within the hard limit that
    /// was not tried, else whatever a flight brings.
    ///
    /// Cancel safe: dropping it gives up this wait and nothing else.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: no such service, or nothing known and `wish.allocate` unset.
    /// [`Kind::StartFailed`]: the program did not start, with its output.
    /// [`Kind::NoCapacity`], [`Kind::Unavailable`]: with what each allocator said.
    /// [`Kind::Timeout`]: not before the deadline; the work goes on.
    pub async fn pick(&self, mut wish: Wish) -> Result<Target> {
        let mut again = false;
        loop {
            let mut wait = match self.way(&wish).await? {
                Way::Known(target) => return Ok(target),
                Way::Flight(wait) => wait,
            };
            match wait.end(&wish).await {
                Ok(Landed { instance, endpoint, .. }) => {
                    let (service, hash, steps) = (wish.service, wait.hash, wait.steps());
                    let ticket = self.inner.moving.begin(instance).into();
                    let counted = wait.counted;
                    return Ok(Target {
                        service,
                        hash,
                        instance,
                        endpoint,
                        steps,
                        counted,
                        ticket,
                    });
                }
                Err(error) if !again && self.is_outdated(&wish, wait.hash, &error).await => {
                    again = true;
                    wish.resolved = None;
                }
                Err(error) => return Err(not_started(error)),
            }
        }
    }

    /// Whether an allocator refused because the service, of which we knew `hash`, is
    /// another by now: then it is worth asking again. What is new is known afterwards.
    pub(crate) async fn is_outdated(&self, wish: &Wish, hash: ServiceHash, error: &Error) -> bool {
        if error.kind() != Kind::FailedPrecondition {
            return false;
        }
        let refreshed = timeout_at(wish.deadline, self.inner.specs.refresh(&wish.service)).await;
        matches!(refreshed, Ok(Ok(spec)) if spec.hash != hash)
    }

    /// Where this manager counts, and whoever works with it may.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    fn counted(&self, spec: &Cached) -> Arc<metrics::Service> {
        spec.counted.get(self.metrics(), &spec.spec.name).clone()
    }

    /// The last times that requests for `service` went to another instance, at most 16,
    /// the latest last.
    pub fn moves(&self, service: &ServiceName) -> Vec<Move> {
        self.inner.moving.moves(service)
    }

    /// Says what became of a request sent to `target`. Never blocks.
    pub fn report(&self, target: &Target, outcome: Outcome) {
        let peer = target.endpoint.peer;
        let now = Instant::now();
        self.inner.moving.report(target, outcome, now);
        self.inner.cache().report(target.hash, target.instance, peer, outcome, now);
        if let Outcome::Answered { way: Some(took), .. } = outcome {
            self.inner.reach.mesh.observed(peer, took);
        }
        if outcome == Outcome::Unreachable {
            self.inner.allocators.failed(peer);
            self.inner.reach.discovery.forget(peer);
        }
    }

    /// What is known at once, or the flight that will tell.
    pub(crate) async fn way(&self, wish: &Wish) -> Result<Way> {
        // Whoever has been elsewhere in vain may have been there for long.
        let (since, spec) = match &wish.resolved {
            Some((since, spec)) if wish.tried.is_empty() => (*since, spec.clone()),
            _ => (Instant::now(), self.spec(wish).await?),
        };
        let limits = self.inner.limits(&spec, wish.tighten);
        if let Some((known, ticket)) = self.known(&spec, &limits, wish) {
            return Ok(Way::Known(Target {
                service: wish.service.clone(),
                hash: spec.hash,
                instance: known.instance,
                endpoint: known.endpoint,
                steps: Vec::new(),
                counted: self.counted(&spec),
                ticket: ticket.into(),
            }));
        }
        let before = vec![api::step("spec", since, if spec.stale { "stale" } else { "" })];
        let how = if wish.allocate { How::Ensure } else { How::Find };
        let question = Question::new(spec.hash, limits, &wish.tried, how);
        let (hash, counted) = (spec.hash, self.counted(&spec));
        let progress = self.board(&question, spec, wish)?;
        Ok(Way::Flight(Wait { hash, progress, before, counted }))
    }

    /// Another instance in any case. The same `request_id` is the same call.
    pub(crate) async fn another(&self, wish: &Wish, request_id: RequestId) -> Result<Wait> {
        self.begin(wish, How::New(request_id)).await
    }

    /// One more instance for load, where there may be `limit` with it.
    pub(crate) async fn one_more(&self, wish: &Wish, limit: NonZeroU32) -> Result<Wait> {
        self.begin(wish, How::More(limit)).await
    }

    async fn begin(&self, wish: &Wish, how: How) -> Result<Wait> {
        let since = Instant::now();
        let spec = self.spec(wish).await?;
        if spec.spec.is_external() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!("{} is an external service: it is never allocated", wish.service),
            ));
        }
        let limits = self.inner.limits(&spec, wish.tighten);
        let before = vec![api::step("spec", since, if spec.stale { "stale" } else { "" })];
        let question = Question::new(spec.hash, limits, &[], how);
        let (hash, counted) = (spec.hash, self.counted(&spec));
        let progress = self.board(&question, spec, wish)?;
        Ok(Wait { hash, progress, before, counted })
    }

    async fn spec(&self, wish: &Wish) -> Result<Arc<Cached>> {
        match timeout_at(wish.deadline, self.inner.specs.get(&wish.service)).await {
            Ok(spec) => spec,
            Err(_) => Err(Error::new(
                Kind::Timeout,
                format!("no registry said in time what {} is", wish.service),
            )),
        }
    }

    /// Where the request goes of what is known, which counts from now on as busy with it.
    fn known(
        &self,
        spec: &Arc<Cached>,
        limits: &Requirements,
        wish: &Wish,
    ) -> Option<(Known, Ticket)> {
        let now = Instant::now();
        let mut hints = self.inner.cache().look_up(spec.hash, now);
        let mesh = &self.inner.reach.mesh;
        if hints.watch {
            hints.instances.iter().for_each(|known| mesh.watch_near(&known.endpoint, limits));
        }
        if hints.refresh {
            let refresh = pilot::refresh(self.inner.clone(), spec.clone());
            let stopping = self.inner.spawner.stopping();
            self.inner.spawner.spawn_short(async move {
                tokio::select! {
                    () = refresh => {}
                    () = stopping => {}
                }
            });
        }
        let candidates = hints.instances.iter().map(|known| self.inner.candidate_at(known, now));
        let candidates: Vec<_> = candidates.collect();
        self.inner.perform(spec, &hints.instances, &candidates);
        replace::look(&self.inner, spec, &hints.instances, &candidates, limits, now);
        let moving = &self.inner.moving;
        if let Some(index) = self.trial(&hints.instances, &candidates, limits, wish, now)
            && self.inner.cache().begin_trial(
                spec.hash,
                candidates[index].instance,
                wish.repeatable,
                now,
            )
        {
            let ticket = moving.begin(candidates[index].instance);
            return Some((hints.instances.swap_remove(index), ticket));
        }
        let tried = wish.tried.as_slice();
        let share = self.inner.scale.share(spec, now).unwrap_or_default();
        let surplus = scale::surplus(&candidates, limits, tried, share);
        let pick = |surplus| moving.pick(spec, limits, &candidates, Avoid { tried, surplus }, now);
        let (index, ticket) = match surplus.as_slice() {
            [] => pick(&[])?,
            some => pick(some).or_else(|| pick(&[]))?,
        };
        Some((hints.instances.swap_remove(index), ticket))
    }

    /// The instance that this request may find out about, if there is one to be found
    /// out about.
    fn trial(
        &self,
        known: &[Known],
        candidates: &[Candidate],
        limits: &Requirements,
        wish: &Wish,
        now: Instant,
    ) -> Option<usize> {
        if !candidates.iter().any(|one| one.passed_over) {
            return None;
        }
        let on_trial = known.iter().map(|one| one.record.gate(wish.repeatable, now) == Gate::Trial);
        let on_trial: Vec<_> = on_trial.collect();
        policy::trial(candidates, &on_trial, limits, &wish.tried)
    }

    fn board(
        &self,
        question: &Question,
        spec: Arc<Cached>,
        wish: &Wish,
    ) -> Result<watch::Receiver<Progress>> {
        let inner = self.inner.clone();
        let fly = |flight| pilot::fly(inner, spec, flight);
        let Boarded { id, progress } =
            self.inner.flights.join(question, &self.inner.spawner, fly)?;
        if let Some(request) = &wish.request {
            tracing::debug!(%request, flight = %id, service = %wish.service, "waiting for a flight");
        }
        Ok(progress)
    }
}

/// What an allocator's refusal means to whoever only wanted a service: nothing that it
/// asked for was wrong, so its sentence is told as a start that failed.
fn not_started(error: Error) -> Error {
    if !matches!(error.kind(), Kind::FailedPrecondition | Kind::InvalidArgument | Kind::Conflict) {
        return error;
    }
    let retry_after = error.retry_delay().unwrap_or(REFUSED);
    let told = Error::new(Kind::StartFailed, error.public())
        .retry_after(retry_after)
        .output(error.output_lines().iter().cloned());
    let told = match error.hint_text() {
        Some(hint) => told.hint(hint),
        None => told,
    };
    told.because(error)
}

impl Wait {
    /// The end of the flight, or of the patience of whoever made `wish`.
    pub(crate) async fn end(&mut self, wish: &Wish) -> Result<Landed> {
        let landed = self.progress.wait_for(|progress| progress.end.is_some());
        match timeout_at(wish.deadline, landed).await {
            Ok(Ok(progress)) => progress.end.clone().unwrap_or_else(|| Err(flight::stopping())),
            Ok(Err(_)) => Err(flight::stopping()),
            Err(_) => Err(Error::new(
                Kind::Timeout,
                format!("no instance of {} was ready in time", wish.service),
            )
            .hint("what was begun goes on: the next request may find it ready")),
        }
    }

    /// What has been done so far.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let progress = self.progress.borrow();
        self.before.iter().chain(&progress.steps).cloned().collect()
    }
}

impl Inner {
    /// What is known of instances. Held for one operation at a time.
    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        // Every operation leaves the cache good at each step.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the policy is told of a known instance.
    pub(crate) fn candidate(&self, known: &Known) -> Candidate {
        self.candidate_at(known, Instant::now())
    }

    fn candidate_at(&self, known: &Known, now: Instant) -> Candidate {
        let (mesh, peer) = (&self.reach.mesh, known.endpoint.peer);
        let distance = mesh.distance(peer);
        let ejected_until = known.record.ejected_until(now);
        Candidate {
            in_flight: known.load.in_flight,
            passed_over: known.record.gate(true, now) != Gate::Open,
            level: known.record.level(),
            ejected_for: ejected_until.map(|until| until.duration_since(now)),
            silent: distance.is_none() && mesh.is_silent(peer),
            felt: distance.and_then(|distance| distance.felt),
            ..Candidate::new(known.instance, distance.map(|distance| distance.median))
        }
    }

    /// Notes whose peers came within the soft limit, or left it.
    fn perform(&self, spec: &Cached, known: &[Known], candidates: &[Candidate]) {
        let soft = self.limits(spec, Requirements::default()).soft;
        for (known, candidate) in known.iter().zip(candidates) {
            let performs = known.record.performs(candidate.effective(), soft);
            if performs != known.record.is_performant() {
                self.cache().set_performant(spec.hash, known.instance, performs);
            }
        }
    }

    /// Notes what a peer said of its instances.
    pub(crate) fn learn(&self, service: ServiceHash, seen: &Seen) {
        let now = Instant::now();
        self.moving.said(&seen.ready, now);
        self.cache().learn(service, &seen.endpoint, &seen.ready, now);
    }

    /// Who was asked for another instance with this id.
    pub(crate) fn asked_with(&self, request_id: &RequestId) -> Option<PeerId> {
        self.asked().get(request_id).copied()
    }

    pub(crate) fn remember(&self, request_id: RequestId, peer: PeerId) {
        self.asked().put(request_id, peer);
    }

    fn asked(&self) -> MutexGuard<'_, LruCache<RequestId, PeerId>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this node adds to the requirements of every service.
    pub(crate) fn requirements(&self) -> Requirements {
        *self.requirements.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self, spec: &Cached, request: Requirements) -> Requirements {
        policy::effective(spec.spec.requirements, self.requirements(), request)
    }
}
