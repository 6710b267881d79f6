//! Decides what is started, joined, refused and stopped on this machine.
//!
//! Everything decided about who runs is decided under one lock, on plain data
//! ([`Books`]), so any number of calls at the same moment start one instance where one
//! will do. What takes time happens outside it, in the owner task of each instance.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use lca::{
    Error, InstanceId, InstancePrefix, Kind, RequestId, Result, Spec,
    api::{self, Caller, proto},
    discovery::Discovery,
    shutdown::Spawner,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

use crate::{
    Config, Fronts, admission,
    claims::holder::Holder,
    driver::Drivers,
    failures::Failures,
    feed::Feed,
    history::History,
    instance,
    intents::Intents,
    keeper::Keeper,
    ledger::{Call, Ledger, wall_ms},
    lifecycle::State,
    outside::{Catalog, Gate},
    port::Ports,
    requests::{Mode, Requests, Wanted},
    table::{self, Ask, Entry, Table, View},
};

/// When to try again what was refused for too many starts, or for a stop: either takes
/// about so long.
const BUSY: Duration = Duration::from_secs(1);

/// The state of one allocator. Shared by its services and by the owners of its instances.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) config: Config,
    pub(crate) drivers: Drivers,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) gate: Arc<dyn Gate>,
    pub(crate) fronts: Option<Arc<dyn Fronts>>,
    pub(crate) discovery: Arc<dyn Discovery>,
    pub(crate) spawner: Spawner,
    pub(crate) ledger: Ledger,
    pub(crate) holder: Holder,
    pub(crate) ports: Ports,
    /// Told when what is served may have changed.
    pub(crate) changed: Arc<Notify>,
    pub(crate) feed: Feed,
    /// Whether it is being drained.
    pub(crate) drain: watch::Sender<bool>,
    pub(crate) books: Mutex<Books>,
}

/// What is decided upon.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) table: Table,
    pub(crate) requests: Requests,
    pub(crate) failures: Failures,
    pub(crate) history: History,
    pub(crate) keeper: Keeper,
    pub(crate) intents: Intents,
    pub(crate) stopping: bool,
    /// Nothing is started any more, and what runs is to end when it is idle.
    pub(crate) draining: bool,
}

/// An instance that is ready for the caller.
#[derive(Debug)]
pub(crate) struct Allocated {
    pub(crate) entry: Arc<Entry>,
    pub(crate) joined: bool,
    pub(crate) steps: Vec<proto::Step>,
}

impl Supervisor {
    /// Starts an instance or joins one, and resolves when it takes requests. Dropping
    /// it gives up the wait, not the start.
    ///
    /// # Errors
    /// See `Allocator.Allocate` in the proto.
    pub(crate) async fn allocate(
        self: &Arc<Self>,
        caller: Caller,
        wanted: Wanted,
        request_id: RequestId,
    ) -> Result<Allocated> {
        let since = Instant::now();
        let earlier = self.lock().earlier(caller, &request_id, &wanted)?;
        if let Some(entry) = earlier {
            return joined(entry, Vec::new()).await;
        }
        let spec = self.resolve(&wanted).await?;
        let driver = self.drivers.of(&spec.runs)?.clone();
        driver.ready()?;
        let mut steps = vec![api::step("spec", since, "")];
        let since = Instant::now();
        let decided =
            self.lock().decide(&self.config, caller, &request_id, &wanted, spec, since)?;
        let (Decided::Join(entry) | Decided::Start(entry) | Decided::Known(entry)) = &decided;
        let call =
            Call { caller, id: request_id, wanted, instance: entry.id, at_ms: wall_ms(since) };
        match decided {
            Decided::Known(entry) => joined(entry, steps).await,
            Decided::Join(entry) => {
                let noted = self.ledger.note(call).done();
                let (joined, ()) = tokio::join!(joined(entry, steps), noted);
                joined
            }
            Decided::Start(entry) => {
                steps.push(api::step("admit", since, ""));
                // The owner waits for it before anything runs.
                let noted = self.ledger.note(call);
                instance::run(self.clone(), entry.clone(), driver, noted);
                let view = when_ready(&entry).await?;
                steps.extend(view.steps);
                Ok(Allocated { entry, joined: false, steps })
            }
        }
    }

    /// The spec that is wanted, whatever version of it we knew.
    async fn resolve(&self, wanted: &Wanted) -> Result<Spec> {
        let mut known = self.catalog.get(&wanted.service).await?;
        if known.hash != wanted.hash {
            known = self.catalog.refresh(&wanted.service).await?;
        }
        let service = &wanted.service;
        if known.hash != wanted.hash {
            let reason = format!(
                "{service} is {} in the registry, not {} as asked for",
                known.hash, wanted.hash
            );
            return Err(Error::new(Kind::FailedPrecondition, reason)
                .hint("it was changed meanwhile; ask again"));
        }
        if known.spec.is_external() {
            let reason = format!("{service} is an external service, which is never allocated");
            return Err(Error::new(Kind::FailedPrecondition, reason));
        }
        Ok(known.spec)
    }

    /// Stops the instance and resolves when it has ended; at once if it had before.
    ///
    /// # Errors
    /// If there is no such instance, or several.
    pub(crate) async fn release(&self, prefix: &InstancePrefix) -> Result<Arc<Entry>> {
        let entry = self.lock().table.find(prefix)?;
        entry.ask(Ask::Release);
        entry.when(State::is_ended).await;
        Ok(entry)
    }

    /// Forgets an ended instance, with its output.
    pub(crate) async fn forget(&self, id: InstanceId) {
        self.ledger.forget(id).done().await;
        self.drivers.forget(id).await;
    }

    /// Takes no more work and stops every instance, politely, then by force. With
    /// `keep_instances` those that are ready are only closed to requests, and run on.
    pub(crate) async fn shutdown(&self) {
        let live: Vec<_> = {
            let mut books = self.lock();
            books.stopping = true;
            books.table.live().cloned().collect()
        };
        let ends = live.iter().map(async |entry| {
            let leave = self.config.keep_instances && entry.state() == State::Ready;
            entry.ask(if leave { Ask::Leave } else { Ask::Stop });
            entry.when(State::is_ended).await
        });
        let within = self.config.timing.stop_within();
        if timeout(within, join_all(ends)).await.is_err() {
            let left = self.lock().table.live().count();
            tracing::error!(left, "instances are left after {within:?}");
        }
        self.drivers.close().await;
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while holding it, and a panic elsewhere must not stop us.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is done about a wish.
enum Decided {
    /// The same call came before.
    Known(Arc<Entry>),
    Join(Arc<Entry>),
    Start(Arc<Entry>),
}

impl Books {
    /// What an earlier call with this id was given.
    fn earlier(
        &mut self,
        caller: Caller,
        id: &RequestId,
        wanted: &Wanted,
    ) -> Result<Option<Arc<Entry>>> {
        let Some(instance) = self.requests.find(caller, id, wanted, Instant::now())? else {
            return Ok(None);
        };
        match self.table.get(instance) {
            Some(entry) => Ok(Some(entry.clone())),
            None => Err(Error::new(
                Kind::FailedPrecondition,
                format!("instance {instance} of request {id} has ended and is forgotten"),
            )),
        }
    }

    /// The whole decision, at one moment: join, start, or why not.
    fn decide(
        &mut self,
        config: &Config,
        caller: Caller,
        id: &RequestId,
        wanted: &Wanted,
        spec: Spec,
        now: Instant,
    ) -> Result<Decided> {
        if self.stopping {
            config.refused("stopping");
            return Err(
                Error::new(Kind::Unavailable, "this allocator is stopping").retry_after(BUSY)
            );
        }
        if self.draining {
            config.refused("draining");
            return Err(Error::new(Kind::Unavailable, "this allocator is being drained"));
        }
        // Another call with this id may have come first.
        if let Some(entry) = self.earlier(caller, id, wanted)? {
            return Ok(Decided::Known(entry));
        }
        let joinable = match wanted.mode {
            Mode::Ensure => self.table.joinable(wanted.hash).cloned(),
            Mode::New => None,
        };
        let decided = match joinable {
            Some(entry) => {
                // Under the lock under which it would be closed for idleness.
                entry.touch();
                Decided::Join(entry)
            }
            None => Decided::Start(self.admit(config, (caller, id.clone()), wanted, spec, now)?),
        };
        let (Decided::Join(entry) | Decided::Start(entry) | Decided::Known(entry)) = &decided;
        self.requests.record(caller, id, wanted.clone(), entry.id, now);
        Ok(decided)
    }

    fn admit(
        &mut self,
        config: &Config,
        call: (Caller, RequestId),
        wanted: &Wanted,
        spec: Spec,
        now: Instant,
    ) -> Result<Arc<Entry>> {
        if let Some(failure) = self.failures.check(wanted.hash, now) {
            config.refused("failed-before");
            return Err(failure);
        }
        if self.table.coming_up() >= config.max_starting {
            config.refused("starting");
            let reason = format!("{} instances are starting here already", config.max_starting);
            return Err(Error::new(Kind::NoCapacity, reason).retry_after(BUSY));
        }
        let room = table::room(&spec);
        let admitted = admission::admit(&spec.name, config.capacity, self.table.used(), room);
        admitted.map_err(|(missing, error)| {
            config.refused(missing);
            error
        })?;
        let past = self.history.of(&spec.name);
        let entry = Arc::new(Entry::new(spec, wanted.hash, Some(call), past, now));
        self.table.insert(entry.clone());
        Ok(entry)
    }
}

async fn joined(entry: Arc<Entry>, mut steps: Vec<proto::Step>) -> Result<Allocated> {
    let since = Instant::now();
    when_ready(&entry).await?;
    steps.push(api::step("ready", since, "joined an instance"));
    Ok(Allocated { entry, joined: true, steps })
}

/// Waits for a start to succeed or fail; the owner's deadlines bound it.
async fn when_ready(entry: &Entry) -> Result<View> {
    let view = entry.when(|state| !state.is_coming_up()).await;
    match view.state {
        State::Ready => Ok(view),
        State::Failed if let Some(error) = &view.error => Err(error.clone()),
        _ => Err(Error::new(
            Kind::Unavailable,
            format!(
                "instance {} of {} has ended: {}",
                entry.id.short(),
                entry.spec.name,
                view.reason
            ),
        )
        .retry_after(BUSY)),
    }
}
