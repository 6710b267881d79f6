//! Counts what is open, in all and for each key, and refuses beyond either limit, so
//! that one peer or host cannot take every place.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Places, some of them taken. Cheap to clone; clones share the places.
#[derive(Debug)]
pub(super) struct Tally<K> {
    all: usize,
    each: usize,
    taken: Arc<Mutex<Taken<K>>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

/// A place taken; dropping it gives it back.
pub(super) struct Entered<K: Eq + Hash> {
    key: K,
    taken: Arc<Mutex<Taken<K>>>,
}

impl<K: Eq + Hash + Copy> Tally<K> {
    /// `all` places, at most `each` of them for one key.
    pub(super) fn new(all: usize, each: usize) -> Self {
        let taken = Taken { total: 0, by_key: HashMap::new() };
        Self { all, each, taken: Arc::new(Mutex::new(taken)) }
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(&self, key: K) -> Option<Entered<K>> {
        let mut taken = lock(&self.taken);
        let mine = taken.by_key.get(&key).copied().unwrap_or(0);
        if taken.total >= self.all || mine >= self.each {
            return None;
        }
        taken.total += 1;
        taken.by_key.insert(key, mine + 1);
        Some(Entered { key, taken: self.taken.clone() })
    }
}

impl<K> Clone for Tally<K> {
    fn clone(&self) -> Self {
        Self { all: self.all, each: self.each, taken: self.taken.clone() }
    }
}

impl<K: Eq + Hash> Drop for Entered<K> {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.total -= 1;
        if let Some(mine) = taken.by_key.get_mut(&self.key) {
            *mine -= 1;
            if *mine == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

impl<K: Eq + Hash + fmt::Debug> fmt::Debug for Entered<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Entered").field(&self.key).finish()
    }
}

fn lock<K>(taken: &Mutex<Taken<K>>) -> MutexGuard<'_, Taken<K>> {
    // Nothing panics while it is held.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_cannot_take_every_place_and_places_come_back() {
        let tally = Tally::new(3, 2);
        let first = tally.enter("a");
        let second = tally.enter("a");
        assert!(first.is_some() && second.is_some());
        assert!(tally.enter("a").is_none(), "its share is used up");
        let third = tally.enter("b");
        assert!(third.is_some());
        assert!(tally.enter("c").is_none(), "all places are taken");
        drop(first);
        assert!(tally.enter("c").is_some());
        drop((second, third));
        assert!(lock(&tally.taken).by_key.is_empty());
        assert_eq!(lock(&tally.taken).total, 0);
    }
}
