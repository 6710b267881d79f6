//! One answer at a time for each question, however many ask.
//!
//! The work belongs to the daemon, not to the one who asked first: a caller that goes
//! away drops its own wait and nothing else.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio::sync::oneshot;

use crate::{Error, Kind, Result, shutdown::Spawner};

/// Most questions at a time: beyond it somebody makes up names.
const MAX_FLIGHTS: usize = 1024;

/// Resolves for everybody at once. Cancel safe.
pub(super) type Flight<T> = Shared<BoxFuture<'static, Result<T>>>;

/// What is being answered.
pub(super) struct Flights<K, T> {
    current: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { current: Arc::default() }
    }
}

impl<K, T> fmt::Debug for Flights<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K, T> Flights<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The answer that is on its way, if there is one.
    pub(super) fn current(&self, key: &K) -> Option<Flight<T>> {
        lock(&self.current).get(key).cloned()
    }

    /// Joins the answer that is on its way, or begins one.
    pub(super) fn join<F>(
        &self,
        key: K,
        spawner: &Spawner,
        begin: impl FnOnce() -> F,
    ) -> Result<Flight<T>>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut current = lock(&self.current);
        if let Some(flight) = current.get(&key) {
            return Ok(flight.clone());
        }
        if current.len() >= MAX_FLIGHTS {
            return Err(Error::new(Kind::NoCapacity, "too many names are being asked for"));
        }
        let (sender, answer) = oneshot::channel();
        let broken_off = || Error::new(Kind::Unavailable, "this node is stopping");
        let flight = answer.map(move |answer| answer.unwrap_or_else(|_| Err(broken_off())));
        let flight = flight.boxed().shared();
        current.insert(key.clone(), flight.clone());
        drop(current);
        let landing = Landing { key, current: self.current.clone() };
        let work = begin();
        spawner.spawn_short(async move {
            let landing = landing;
            let answer = work.await;
            // First out of the table, then told: whoever asks after that asks anew.
            drop(landing);
            let _nobody_waits = sender.send(answer);
        });
        Ok(flight)
    }
}

/// Takes a flight out of the table however it ends.
struct Landing<K: Eq + Hash, T> {
    key: K,
    current: Arc<Mutex<HashMap<K, Flight<T>>>>,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        lock(&self.current).remove(&self.key);
    }
}

fn lock<K, T>(current: &Mutex<HashMap<K, Flight<T>>>) -> MutexGuard<'_, HashMap<K, Flight<T>>> {
    // Only inserted into and removed from; whole after any panic.
    current.lock().unwrap_or_else(PoisonError::into_inner)
}
