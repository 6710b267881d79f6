//! Which allocators there are, kept up to date behind the requests: found, measured
//! and of interest before the first of them is needed. Rounds get rarer while nobody
//! needs one and nothing changes (decision 0004).
//!
//! Invariant: an allocator that was tried and did not answer is not waited for again
//! by any request until it has answered a probe from behind; it remains a last resort.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, future::join_all};
use lca::{
    PeerId, ServiceHash,
    discovery::{Found, Key},
    endpoint::{Endpoint, Role},
    shutdown::Spawner,
};
use lru::LruCache;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};

use crate::{reach::Reach, rooms::Rooms};

/// Allocators a node keeps in mind; more would only be ranked behind.
const MAX: usize = 256;
/// Of these, how many are probed all the time: the nearest are the ones that are used.
const MAX_WATCHED: usize = 32;
/// One that nobody has named for this long is gone: a DHT record's life (45 s) and the
/// longest pause between rounds.
const KEEP: Duration = Duration::from_secs(120);
/// How soon to look again while none is known: somebody may be waiting for the first.
const EAGER: Duration = Duration::from_secs(1);
/// Rounds of nothing new make the pause grow to so many times its length: a minute.
const QUIET: u32 = 6;
/// Longest a round's find may take.
const FIND: Duration = Duration::from_secs(5);
/// Longest a request waits for a first allocator to be found.
const FIND_NOW: Duration = Duration::from_secs(3);
/// After the first one, how long to wait for others: they are named together.
const FIND_MORE: Duration = Duration::from_millis(50);
/// Longest a probe from behind may take: connecting has a deadline of 3 s.
const MEASURE: Duration = Duration::from_secs(3);
/// How long a refusal for lack of room is believed: instances idle out and are
/// released, but not every second.
const FULL: Duration = Duration::from_secs(10);
/// Refusals remembered.
const MAX_FULL: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Allocators {
    reach: Reach,
    /// What those have left that were needed a moment ago.
    pub(crate) rooms: Rooms,
    state: Arc<Mutex<State>>,
    /// Told when somebody needs an allocator: rounds come often again.
    needed: Arc<Notify>,
}

#[derive(Debug)]
struct State {
    seen: HashMap<PeerId, Seen>,
    full: LruCache<(PeerId, ServiceHash), Instant>,
}

#[derive(Debug)]
struct Seen {
    endpoint: Arc<Endpoint>,
    at: Instant,
    failed: bool,
}

/// An allocator and what is to be thought of it.
#[derive(Clone, Debug)]
pub(crate) struct Allocator {
    pub(crate) endpoint: Arc<Endpoint>,
    /// It did not answer when it was last tried.
    pub(crate) failed: bool,
}

impl Allocators {
    pub(crate) fn new(reach: Reach, spawner: Spawner) -> Self {
        let state = State { seen: HashMap::new(), full: LruCache::new(MAX_FULL) };
        let rooms = Rooms::new(reach.clone(), spawner);
        Self { reach, rooms, state: Arc::new(Mutex::new(state)), needed: Arc::default() }
    }

    /// Keeps the list until `stopping`, with a round `every` so often while allocators are
    /// needed, come or go.
    pub(crate) async fn keep(self, every: Duration, stopping: impl Future<Output = ()>) {
        let rounds = async {
            let mut pause = Pause::new(every);
            let mut before = HashSet::new();
            loop {
                self.find(Instant::now() + FIND, FIND).await;
                self.measure_all().await;
                let now = self.list().iter().map(|one| one.endpoint.peer).collect::<HashSet<_>>();
                let pause = pause.after_round(now.is_empty(), now != before);
                before = now;
                self.pause(pause, every).await;
            }
        };
        tokio::select! {
            () = stopping => {}
            () = rounds => {}
        }
    }

    /// Waits for `longest`, or, once somebody needs an allocator, for `every`.
    async fn pause(&self, longest: Duration, every: Duration) {
        let round = Instant::now();
        tokio::select! {
            () = sleep(longest) => {}
            () = self.needed.notified() => sleep_until(round + every.min(longest)).await,
        }
    }

    /// Those that are known, this node first if it is one.
    pub(crate) fn list(&self) -> Vec<Allocator> {
        let known = self.reach.discovery.known();
        let own = self.reach.discovery.own();
        let now = Instant::now();
        let mut state = self.lock();
        known.iter().for_each(|endpoint| state.saw(endpoint, now));
        state.seen.retain(|_, seen| now.duration_since(seen.at) < KEEP);
        let others = state.seen.values().filter(|seen| seen.endpoint.peer != own.peer);
        let mesh = &self.reach.mesh;
        let others = others.map(|seen| Allocator {
            endpoint: seen.endpoint.clone(),
            failed: seen.failed || mesh.is_silent(seen.endpoint.peer),
        });
        let own =
            own.has(Role::Allocator).then(|| Allocator { endpoint: own.clone(), failed: false });
        own.into_iter().chain(others).collect()
    }

    /// [`list`](Self::list), after looking for some if there is none. Bounded.
    pub(crate) async fn list_or_find(&self) -> Vec<Allocator> {
        self.needed.notify_one();
        let list = self.list();
        if !list.is_empty() {
            return list;
        }
        self.find(Instant::now() + FIND_NOW, FIND_MORE).await;
        self.list()
    }

    /// `peer` did not answer.
    pub(crate) fn failed(&self, peer: PeerId) {
        if let Some(seen) = self.lock().seen.get_mut(&peer) {
            seen.failed = true;
        }
    }

    /// `peer` answered.
    pub(crate) fn worked(&self, peer: PeerId) {
        if let Some(seen) = self.lock().seen.get_mut(&peer) {
            seen.failed = false;
        }
    }

    /// `peer` had no room for `service`.
    pub(crate) fn full(&self, peer: PeerId, service: ServiceHash) {
        self.lock().full.put((peer, service), Instant::now());
    }

    /// Whether `peer` has not refused `service` for lack of room a moment ago.
    pub(crate) fn has_room(&self, peer: PeerId, service: ServiceHash) -> bool {
        self.lock().full.peek(&(peer, service)).is_none_or(|at| at.elapsed() >= FULL)
    }

    /// Looks for allocators until `deadline`, or `more` after the first.
    async fn find(&self, deadline: Instant, more: Duration) {
        let mut finding = self.reach.discovery.find(Key::Role(Role::Allocator));
        let mut deadline = deadline;
        while let Ok(Some(found)) = timeout_at(deadline, finding.next()).await {
            if let Found::Endpoint(endpoint) = found {
                let now = Instant::now();
                self.lock().saw(&endpoint, now);
                deadline = deadline.min(now + more);
            }
        }
    }

    /// Learns the distance of those where it is not known, and has the nearest probed
    /// from now on.
    async fn measure_all(&self) {
        let unknown = self.list().into_iter().map(|allocator| allocator.endpoint);
        let unknown = unknown.filter(|endpoint| self.reach.mesh.rtt(endpoint.peer).is_none());
        join_all(unknown.map(async |endpoint| {
            match timeout(MEASURE, self.reach.mesh.measure(&endpoint)).await {
                Ok(Ok(_)) => self.worked(endpoint.peer),
                _ => self.failed(endpoint.peer),
            }
        }))
        .await;
        let near = self.list().into_iter().filter_map(|allocator| {
            Some((self.reach.mesh.rtt(allocator.endpoint.peer)?, allocator.endpoint))
        });
        let mut near: Vec<_> = near.collect();
        near.sort_unstable_by_key(|(rtt, endpoint)| (*rtt, endpoint.peer));
        for (_, endpoint) in near.iter().take(MAX_WATCHED) {
            self.worked(endpoint.peer);
            self.reach.mesh.watch_idly(endpoint);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or flag; a panic leaves none half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait between rounds.
#[derive(Debug)]
struct Pause {
    every: Duration,
    last: Duration,
}

impl Pause {
    fn new(every: Duration) -> Self {
        Self { every, last: EAGER.min(every) / 2 }
    }

    /// After a round that left the list `empty`, or has `changed` it.
    fn after_round(&mut self, empty: bool, changed: bool) -> Duration {
        self.last = match (empty, changed) {
            (true, true) => EAGER.min(self.every),
            (true, false) => (self.last * 2).min(self.every),
            (false, true) => self.every,
            (false, false) => (self.last * 2).clamp(self.every, self.every * QUIET),
        };
        self.last
    }
}

impl State {
    fn saw(&mut self, endpoint: &Arc<Endpoint>, now: Instant) {
        if !endpoint.has(Role::Allocator) {
            return;
        }
        if let Some(seen) = self.seen.get_mut(&endpoint.peer) {
            seen.at = now;
            if endpoint.supersedes(&seen.endpoint) {
                seen.endpoint = endpoint.clone();
                seen.failed = false;
            }
        } else if self.seen.len() < MAX {
            let seen = Seen { endpoint: endpoint.clone(), at: now, failed: false };
            self.seen.insert(endpoint.peer, seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    #[test]
    fn rounds_get_rarer_while_nothing_changes() {
        let mut pause = Pause::new(EVERY);
        assert_eq!(pause.after_round(false, true), EVERY);
        let pauses = [0; 4].map(|_| pause.after_round(false, false).as_secs());
        assert_eq!(pauses, [20, 40, 60, 60]);
        assert_eq!(pause.after_round(false, true), EVERY, "one came or went");
    }

    #[test]
    fn with_no_allocator_at_all_the_first_is_looked_for_sooner() {
        let mut pause = Pause::new(EVERY);
        let pauses = [0; 6].map(|_| pause.after_round(true, false).as_secs());
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert_eq!(pause.after_round(false, true), EVERY);
        assert_eq!(pause.after_round(true, true), EAGER, "the last is gone");
    }
}
