//! Who runs, and who did: the instances of one allocator and what others see of them.
//!
//! An [`Entry`] is written by its owner task alone; everyone else watches it and may
//! ask it to end. The table itself is plain data behind the supervisor's lock.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use lca::{
    Error, InstanceId, InstancePrefix, Kind, RequestId, Result, ServiceHash, Spec,
    api::{Caller, proto},
    headers::Load,
};
use tokio::{sync::watch, time::Instant};

use crate::{admission::Capacity, history::Past, lifecycle::State, outside::Door, usage::Used};

/// Ended instances that are remembered with their output.
const REMEMBERED: usize = 100;

/// What somebody wants of an instance. Later ones outrank earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ask {
    /// Go on.
    Live,
    /// Take no more requests, and leave the program running: the allocator stops and
    /// keeps its instances.
    Leave,
    /// Take no more requests, and end once none is open, however long that takes: the
    /// allocator is drained.
    Drain,
    /// End, with all the time that draining takes.
    Release,
    /// End within seconds: the allocator stops.
    Stop,
}

/// What others see of an instance.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) state: State,
    /// Why it ended or is about to; empty while all is well.
    pub(crate) reason: String,
    /// What is told to those who wait for it to be ready, once it has failed.
    pub(crate) error: Option<Error>,
    pub(crate) output: Vec<String>,
    pub(crate) steps: Vec<proto::Step>,
    pub(crate) pid: u32,
    /// It is not announced any more, being about to idle out, but takes whoever comes.
    pub(crate) withdrawn: bool,
    /// How far what it is made of has come, while that is fetched and known.
    pub(crate) fetching: Option<proto::Fetching>,
}

/// One instance.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: InstanceId,
    pub(crate) spec: Spec,
    pub(crate) hash: ServiceHash,
    pub(crate) admitted: Instant,
    /// The call that had it started, if that is remembered.
    pub(crate) call: Option<(Caller, RequestId)>,
    pub(crate) view: watch::Sender<View>,
    pub(crate) ask: watch::Sender<Ask>,
    /// What became of its service here before it.
    pub(crate) past: Past,
    used: Mutex<Option<Used>>,
    /// The owner's, so that the load can be seen; it goes with the owner.
    door: Mutex<Option<Weak<dyn Door>>>,
}

impl Entry {
    pub(crate) fn new(
        spec: Spec,
        hash: ServiceHash,
        call: Option<(Caller, RequestId)>,
        past: Past,
        now: Instant,
    ) -> Self {
        Self { call, past, ..Self::made(InstanceId::random(), spec, hash, now) }
    }

    /// One that an earlier run admitted.
    pub(crate) fn restored(id: InstanceId, spec: Spec, admitted: Instant) -> Self {
        let hash = spec.hash();
        Self::made(id, spec, hash, admitted)
    }

    fn made(id: InstanceId, spec: Spec, hash: ServiceHash, now: Instant) -> Self {
        let view = View {
            state: State::Pending,
            reason: String::new(),
            error: None,
            output: Vec::new(),
            steps: Vec::new(),
            pid: 0,
            withdrawn: false,
            fetching: None,
        };
        Self {
            id,
            spec,
            hash,
            admitted: now,
            call: None,
            view: watch::Sender::new(view),
            ask: watch::Sender::new(Ask::Live),
            past: Past::default(),
            used: Mutex::default(),
            door: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.view.borrow().state
    }

    /// Milliseconds since it was admitted.
    pub(crate) fn age_ms(&self) -> u64 {
        u64::try_from(self.admitted.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether it takes requests, or soon will.
    fn will_do(&self) -> bool {
        let view = self.view.borrow();
        let coming = view.state == State::Ready || view.state.is_coming_up();
        coming && view.reason.is_empty() && *self.ask.borrow() == Ask::Live
    }

    fn is_serving(&self) -> bool {
        let view = self.view.borrow();
        view.state == State::Ready && view.reason.is_empty() && !view.withdrawn
    }

    /// Wants it to end. What was asked more urgently before stays.
    pub(crate) fn ask(&self, ask: Ask) {
        self.ask.send_if_modified(|asked| {
            let more = ask > *asked;
            *asked = ask.max(*asked);
            more
        });
    }

    /// Resolves once somebody has asked for at least `ask`.
    pub(crate) async fn asked(&self, ask: Ask) {
        let mut asked = self.ask.subscribe();
        // Cannot fail: the sender is ours.
        drop(asked.wait_for(|asked| *asked >= ask).await);
    }

    /// Resolves once it is to end, or to be left, because the allocator stops.
    pub(crate) async fn hurried(&self) {
        let mut asked = self.ask.subscribe();
        // Cannot fail: the sender is ours.
        drop(asked.wait_for(|asked| matches!(asked, Ask::Leave | Ask::Stop)).await);
    }

    /// Resolves once its state is `reached`.
    pub(crate) async fn when(&self, mut reached: impl FnMut(State) -> bool) -> View {
        let mut view = self.view.subscribe();
        let found = view.wait_for(|view| reached(view.state)).await.map(|view| view.clone());
        // Cannot fail: the sender is ours.
        found.unwrap_or_else(|_| self.view.borrow().clone())
    }

    /// What one instance is admitted with.
    fn room(&self) -> Capacity {
        room(&self.spec)
    }

    pub(crate) fn set_door(&self, door: &Arc<dyn Door>) {
        // Nothing panics while holding it.
        *self.door.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(door));
    }

    pub(crate) fn load(&self) -> Option<Load> {
        Some(self.door()?.load())
    }

    /// What it uses, as others are told.
    pub(crate) fn used(&self) -> Option<Used> {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_used(&self, used: Used) {
        // Nothing panics while holding it.
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Some(used);
    }

    /// Somebody is sent there: if it takes requests, it is not idle.
    pub(crate) fn touch(&self) {
        if let Some(door) = self.door() {
            door.touch();
        }
    }

    fn door(&self) -> Option<Arc<dyn Door>> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }
}

/// What an instance of `spec` takes.
pub(crate) fn room(spec: &Spec) -> Capacity {
    let lca::Resources { cpu_millis, memory_bytes } = spec.resources;
    Capacity { cpu_millis, memory_bytes, instances: 1 }
}

/// The instances of one allocator.
#[derive(Debug, Default)]
pub(crate) struct Table {
    live: HashMap<InstanceId, Arc<Entry>>,
    /// Oldest first.
    ended: VecDeque<Arc<Entry>>,
    /// How many have ended, with those that are forgotten.
    ended_ever: u64,
}

impl Table {
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) {
        self.live.insert(entry.id, entry);
    }

    /// Moves an instance to those that have ended. Returns one that is forgotten for it.
    pub(crate) fn end(&mut self, id: InstanceId) -> Option<InstanceId> {
        self.ended.push_back(self.live.remove(&id)?);
        self.ended_ever += 1;
        let over = self.ended.len() > REMEMBERED;
        over.then(|| self.ended.pop_front().map(|entry| entry.id)).flatten()
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.live.values()
    }

    pub(crate) fn ended(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.ended.iter()
    }

    /// Those that have ended after the first `seen`, oldest first, as far as they are
    /// remembered.
    pub(crate) fn ended_since(&self, seen: u64) -> impl Iterator<Item = &Arc<Entry>> {
        let new = usize::try_from(self.ended_ever.saturating_sub(seen)).unwrap_or(usize::MAX);
        self.ended.range(self.ended.len().saturating_sub(new)..)
    }

    /// How many have ended, with those that are forgotten.
    pub(crate) fn ended_ever(&self) -> u64 {
        self.ended_ever
    }

    pub(crate) fn get(&self, id: InstanceId) -> Option<&Arc<Entry>> {
        self.live.get(&id).or_else(|| self.ended.iter().find(|entry| entry.id == id))
    }

    /// What live instances are admitted with, together.
    pub(crate) fn used(&self) -> Capacity {
        self.live.values().fold(Capacity::default(), |sum, entry| sum.plus(entry.room()))
    }

    /// How many are on their way to be ready.
    pub(crate) fn coming_up(&self) -> usize {
        self.live.values().filter(|entry| entry.state().is_coming_up()).count()
    }

    /// The instance of `hash` that an `ENSURE` joins: the least busy of those that are
    /// ready, else the one that was admitted first.
    pub(crate) fn joinable(&self, hash: ServiceHash) -> Option<&Arc<Entry>> {
        let will_do = self.live.values().filter(|entry| entry.hash == hash && entry.will_do());
        will_do.min_by_key(|entry| {
            let busy = entry.load().map_or(0, |load| load.in_flight);
            (entry.state() != State::Ready, busy, entry.admitted)
        })
    }

    /// The instances of `hash` that take requests or soon will, the oldest first.
    pub(crate) fn doing(&self, hash: ServiceHash) -> Vec<&Arc<Entry>> {
        let will_do = self.live.values().filter(|entry| entry.hash == hash && entry.will_do());
        let mut will_do: Vec<_> = will_do.collect();
        will_do.sort_unstable_by_key(|entry| (entry.admitted, entry.id));
        will_do
    }

    /// The services of which there is an instance to be found.
    pub(crate) fn serving(&self) -> HashSet<ServiceHash> {
        let serving = self.live.values().filter(|entry| entry.is_serving());
        serving.map(|entry| entry.hash).collect()
    }

    /// The instance whose id begins like this, ended ones included.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::InvalidArgument`] naming some if there are several.
    pub(crate) fn find(&self, prefix: &InstancePrefix) -> Result<Arc<Entry>> {
        let all = self.live.values().chain(&self.ended);
        let found: Vec<_> = all.filter(|entry| prefix.matches(entry.id)).collect();
        match found.as_slice() {
            [] => Err(Error::new(Kind::NotFound, format!("there is no instance {prefix} here"))),
            [one] => Ok(Arc::clone(one)),
            several => Err(prefix.ambiguous(several.iter().map(|entry| entry.id.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use lca::Digest;

    use super::*;

    fn entry(name: &str) -> Arc<Entry> {
        let spec = Spec::try_from(proto::ServiceSpec {
            name: name.into(),
            artifact: Digest::of(b"x").to_string(),
            ..Default::default()
        })
        .unwrap();
        let hash = spec.hash();
        Arc::new(Entry::new(spec, hash, None, Past::default(), Instant::now()))
    }

    #[test]
    fn a_ready_instance_is_joined_before_one_that_starts_and_none_that_ends() {
        let (starting, ready, failing) = (entry("a"), entry("a"), entry("a"));
        let mut table = Table::default();
        for entry in [&failing, &starting, &ready, &entry("b")] {
            table.insert(entry.clone());
        }
        failing.ask(Ask::Release);
        assert_eq!(table.joinable(ready.hash).unwrap().id, starting.id);
        ready.view.send_modify(|view| view.state = State::Ready);
        assert_eq!(table.joinable(ready.hash).unwrap().id, ready.id);
        assert_eq!(table.serving(), HashSet::from([ready.hash]));
        assert_eq!((table.coming_up(), table.used().instances), (3, 4));
        ready.view.send_modify(|view| view.reason = "killed".into());
        assert_eq!(table.joinable(ready.hash).unwrap().id, starting.id);
        assert!(table.serving().is_empty());
    }

    #[test]
    fn a_prefix_finds_one_or_says_which() {
        let mut table = Table::default();
        let entries: Vec<_> = (0..40).map(|_| entry("a")).collect();
        entries.iter().for_each(|entry| table.insert(entry.clone()));
        let whole: InstancePrefix = entries[0].id.to_string().parse().unwrap();
        assert_eq!(table.find(&whole).unwrap().id, entries[0].id);
        table.end(entries[0].id);
        assert_eq!(table.find(&whole).unwrap().id, entries[0].id, "ended ones are found");
        // Among 40 ids two begin alike: there are 16 digits.
        let errors = ('0'..='9')
            .chain('a'..='f')
            .filter_map(|digit| table.find(&digit.to_string().parse().unwrap()).err());
        let ambiguous: Vec<_> =
            errors.filter(|error| error.kind() == Kind::InvalidArgument).collect();
        assert!(ambiguous.iter().any(|error| error.public().contains("could be")));
        let none = "0123456789abcdef0123456789abcdef".parse().unwrap();
        assert_eq!(table.find(&none).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn only_the_last_hundred_that_ended_are_remembered() {
        let mut table = Table::default();
        let entries: Vec<_> = (0..=REMEMBERED).map(|_| entry("a")).collect();
        let mut forgotten = Vec::new();
        for entry in &entries {
            table.insert(entry.clone());
            forgotten.extend(table.end(entry.id));
        }
        assert_eq!(forgotten, [entries[0].id]);
        assert_eq!((table.ended().count(), table.live().count()), (REMEMBERED, 0));
    }
}
