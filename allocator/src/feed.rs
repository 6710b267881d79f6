//! What watchers of instances are told: everything that is there, then each change.
//!
//! One look at the table serves all watchers. What is found different since the last look
//! goes into one feed that is shared and bounded, so a watcher costs a place in it and
//! nothing else; one that does not read falls out of it and is told so. While nobody
//! watches, nobody looks.
//!
//! Invariant: a watcher that has been told everything up to now knows each live instance
//! in its present state; of load and capacity it knows what was true a [`TICK`] ago.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use lca::{
    Error, InstanceId, Kind, Result, ServiceHash, ServiceName,
    api::proto::{self, instance_event::Event},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast},
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{admission::Capacity, supervisor::Supervisor, table::Entry};

/// How often load and capacity are looked at: what a person can follow with the eyes.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks for changes of state: in a storm of starts they are told together.
const SPACING: Duration = Duration::from_millis(5);
/// Changes kept for a watcher that is slow: seconds of a machine where everything changes.
const KEPT: usize = 1024;
/// Watchers at the same time: every manager whose clients watch has one.
const MAX_WATCHERS: usize = 256;
/// When one watcher too many may come again.
const BUSY: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Feed {
    told: Mutex<Told>,
    changes: broadcast::Sender<Arc<Change>>,
    /// Something may have changed, or somebody has come to watch.
    poked: Notify,
    places: Arc<Semaphore>,
}

/// Of which instances somebody wants to hear.
#[derive(Clone, Debug, Default)]
pub(crate) struct Which {
    pub(crate) service: Option<ServiceName>,
    pub(crate) hash: Option<ServiceHash>,
}

/// One thing that watchers are told.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "each is behind an Arc, and most are the large one")]
enum Change {
    /// There it is, or it has changed.
    Put(Arc<Entry>, proto::Instance),
    /// It has ended.
    Gone(Arc<Entry>),
    Capacity(proto::PeerCapacity),
}

/// What all watchers know.
#[derive(Debug, Default)]
struct Told {
    instances: HashMap<InstanceId, Arc<Change>>,
    used: Option<Capacity>,
    /// How many have ended, of those the table has seen end.
    ended: u64,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            told: Mutex::default(),
            changes: broadcast::Sender::new(KEPT),
            poked: Notify::new(),
            places: Arc::new(Semaphore::new(MAX_WATCHERS)),
        }
    }
}

impl Which {
    pub(crate) fn fits(&self, entry: &Entry) -> bool {
        self.service.as_ref().is_none_or(|service| *service == entry.spec.name)
            && self.hash.is_none_or(|hash| hash == entry.hash)
    }
}

impl Feed {
    /// An instance may look different now.
    pub(crate) fn poke(&self) {
        self.poked.notify_one();
    }

    fn tell(&self, change: Arc<Change>) {
        // An error only says that nobody watches.
        let _nobody = self.changes.send(change);
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Nothing panics while holding it.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps watchers up to date until `stopping`.
pub(crate) async fn keep(supervisor: Arc<Supervisor>, stopping: impl Future<Output = ()>) {
    let feed = &supervisor.feed;
    let looking = async {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if feed.changes.receiver_count() == 0 {
                feed.poked.notified().await;
                continue;
            }
            tokio::select! {
                () = feed.poked.notified() => {
                    feed.lock().look(&supervisor, Look::States);
                    sleep(SPACING).await;
                }
                _ = tick.tick() => feed.lock().look(&supervisor, Look::All),
            }
        }
    };
    tokio::select! {
        () = looking => {}
        () = stopping => {}
    }
}

/// The events of one more watcher. Ends after the first error, and when the daemon stops.
///
/// # Errors
/// [`Kind::NoCapacity`] if there are too many.
pub(crate) fn watch(
    supervisor: &Supervisor,
    which: Which,
) -> Result<impl Stream<Item = Result<proto::InstanceEvent>> + Send + use<>> {
    let feed = &supervisor.feed;
    let place = feed.places.clone().try_acquire_owned().map_err(|_| {
        Error::new(Kind::NoCapacity, "the allocator has as many watchers as it serves")
            .retry_after(BUSY)
    })?;
    let (snapshot, changes) = {
        let mut told = feed.lock();
        told.look(supervisor, Look::All);
        (told.snapshot(supervisor, &which), feed.changes.subscribe())
    };
    // It may have been asleep.
    feed.poke();
    let now = snapshot.into_iter().chain([Event::Synced(true)]).map(Ok);
    let events = stream::iter(now).chain(follow(changes, which, place));
    Ok(events
        .map(|event| Ok(proto::InstanceEvent { event: Some(event?) }))
        .take_until(supervisor.spawner.stopping()))
}

/// What comes after the snapshot, as it is taken: what is not taken waits in the feed.
fn follow(
    changes: broadcast::Receiver<Arc<Change>>,
    which: Which,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event>> + Send {
    stream::unfold(Some((changes, which, place)), async |watcher| {
        let (mut changes, which, place) = watcher?;
        loop {
            match changes.recv().await {
                Ok(change) => {
                    if let Some(event) = change.event(&which) {
                        return Some((Ok(event), Some((changes, which, place))));
                    }
                }
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let reason =
                        format!("the watcher did not read and has missed {missed} changes");
                    let error = Error::new(Kind::NoCapacity, reason).hint("watch again");
                    return Some((Err(error), None));
                }
            }
        }
    })
}

/// What a look is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// What must be told at once.
    States,
    /// That, and what changes all the time.
    All,
}

/// The instances of an allocator at one moment.
struct Seen {
    live: Vec<Arc<Entry>>,
    /// Those that have ended since the last look, oldest first, as far as the table
    /// remembers them.
    ended: Vec<Arc<Entry>>,
    /// How many had ended before these.
    ended_before: u64,
    used: Capacity,
}

impl Told {
    /// Looks at the table and tells what is different.
    fn look(&mut self, supervisor: &Supervisor, look: Look) {
        let Seen { live, ended, ended_before, used } = {
            let table = &supervisor.lock().table;
            let live = table.live().cloned().collect();
            let ended: Vec<_> = table.ended_since(self.ended).cloned().collect();
            let ended_before = table.ended_ever() - ended.len() as u64;
            Seen { live, ended, ended_before, used: table.used() }
        };
        for entry in &live {
            let known = self.instances.get(&entry.id);
            if known.is_none_or(|known| known.is_outdated(supervisor, look)) {
                self.put(supervisor, entry);
            }
        }
        self.ended = ended_before;
        // The owner of one that has only just ended is about to say how, and pokes again.
        for entry in ended.iter().take_while(|entry| entry.state().is_ended()) {
            self.ended += 1;
            let known = self.instances.get(&entry.id);
            if known.is_none_or(|known| known.is_outdated(supervisor, Look::States)) {
                self.put(supervisor, entry);
            }
            self.gone(supervisor, entry.id);
        }
        self.sweep(supervisor, &live, &ended);
        if look == Look::All && self.used != Some(used) {
            self.used = Some(used);
            supervisor.feed.tell(Arc::new(Change::Capacity(self.capacity(supervisor))));
        }
    }

    fn put(&mut self, supervisor: &Supervisor, entry: &Arc<Entry>) {
        let change = Arc::new(Change::Put(entry.clone(), supervisor.describe(entry)));
        self.instances.insert(entry.id, change.clone());
        supervisor.feed.tell(change);
    }

    fn gone(&mut self, supervisor: &Supervisor, id: InstanceId) {
        if let Some(Change::Put(entry, _)) = self.instances.remove(&id).as_deref() {
            supervisor.feed.tell(Arc::new(Change::Gone(entry.clone())));
        }
    }

    /// Those that ended while nobody watched, and so long ago that the table has
    /// forgotten them.
    fn sweep(&mut self, supervisor: &Supervisor, live: &[Arc<Entry>], ended: &[Arc<Entry>]) {
        if self.instances.len() <= live.len() {
            return;
        }
        let there: HashSet<_> = live.iter().chain(ended).map(|entry| entry.id).collect();
        let lost = self.instances.keys().filter(|id| !there.contains(id)).copied();
        for id in lost.collect::<Vec<_>>() {
            self.gone(supervisor, id);
        }
    }

    fn capacity(&self, supervisor: &Supervisor) -> proto::PeerCapacity {
        let used = self.used.unwrap_or_default();
        // One that is drained has room for nothing more.
        let total = if supervisor.lock().draining { used } else { supervisor.config.capacity };
        proto::PeerCapacity {
            peer: supervisor.discovery.local().to_string(),
            total: Some(total.into()),
            used: Some(used.into()),
        }
    }

    /// Everything that has been told so far, for somebody who comes now.
    fn snapshot(&self, supervisor: &Supervisor, which: &Which) -> Vec<Event> {
        let instances = self.instances.values().filter_map(|change| change.event(which));
        let capacity = Event::Capacity(self.capacity(supervisor));
        instances.chain([capacity]).collect()
    }
}

impl Change {
    /// As it is told to somebody who asked for `which`, if it concerns him.
    fn event(&self, which: &Which) -> Option<Event> {
        match self {
            Self::Put(entry, instance) => which.fits(entry).then(|| {
                let age_ms = entry.age_ms();
                Event::Put(proto::Instance { age_ms, ..instance.clone() })
            }),
            Self::Gone(entry) => which.fits(entry).then(|| Event::Gone(entry.id.to_string())),
            Self::Capacity(capacity) => Some(Event::Capacity(capacity.clone())),
        }
    }

    /// Whether what was told of an instance is no longer true.
    fn is_outdated(&self, supervisor: &Supervisor, look: Look) -> bool {
        let Self::Put(entry, told) = self else { return true };
        match look {
            Look::States => {
                let view = entry.view.borrow();
                let same = told.state() == view.state.into()
                    && told.reason == view.reason
                    && told.pid == view.pid;
                !same
            }
            Look::All => {
                let now = supervisor.describe(entry);
                *told != proto::Instance { age_ms: told.age_ms, ..now }
            }
        }
    }
}
