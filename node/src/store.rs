//! What this node keeps for the DHT: who announced what, and signed endpoint records.
//!
//! Everything in it was sent by somebody else, so the invariant is that it stays small
//! and stays fair: every list is bounded, one publisher fills only its own share, the
//! oldest make room, and what has expired is swept without being asked for (libp2p's
//! own store keeps it until then, and ignores the newest once it is full).
//!
//! Values are only endpoint records, verified, under the id of the peer that signed
//! them. Providers come out in random order, because an answer carries twenty at most:
//! so each asker gets another twenty. Time is passed in.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
    vec,
};

use lca::{Error, Kind, Result, endpoint::Endpoint};
use libp2p::{
    Multiaddr, PeerId as Libp2pId,
    kad::{
        ProviderRecord, Record, RecordKey as Key,
        store::{self, RecordStore},
    },
};
use rand::seq::SliceRandom as _;

use crate::{identity::from_libp2p, record, swarm::addresses};

#[cfg(test)]
mod tests;

/// Addresses kept with one announcement: what a node may name in its endpoint record.
const MAX_ADDRESSES: usize = lca::endpoint::MAX_ADDRESSES;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Announcements in all.
    pub(crate) providers: usize,
    /// Announcements of one key.
    pub(crate) per_key: usize,
    /// Announcements of one peer. Also the most that this node announces, so that an
    /// honest peer never meets it elsewhere.
    pub(crate) per_publisher: usize,
    /// Endpoint records.
    pub(crate) values: usize,
    /// Longest life of an endpoint record.
    pub(crate) value_life: Duration,
}

impl Default for Limits {
    /// At most some 10 MB, all full: 200 bytes an announcement, 1 KiB a record.
    fn default() -> Self {
        Self {
            providers: 16_384,
            per_key: 256,
            per_publisher: 256,
            values: 4096,
            value_life: Duration::from_secs(600),
        }
    }
}

/// A value that lives less long is not handed out: on the wire its life is in whole
/// seconds, and 0 means for ever.
const SHORTEST_SAID: Duration = Duration::from_secs(2);

/// The store. See the module.
#[derive(Debug)]
pub(crate) struct Store {
    local: Libp2pId,
    limits: Limits,
    /// What this node announces itself: never expires, never makes room.
    own: BTreeSet<Vec<u8>>,
    providers: HashMap<Key, HashMap<Libp2pId, Provider>>,
    /// Announcements of others by age, all together and by publisher.
    by_age: BTreeMap<Stamp, (Key, Libp2pId)>,
    by_publisher: HashMap<Libp2pId, BTreeMap<Stamp, Key>>,
    values: HashMap<Key, Value>,
    values_by_age: BTreeMap<Stamp, Key>,
    stamp: Stamp,
}

/// Counts what was stored: a greater one was stored later.
type Stamp = u64;

#[derive(Debug)]
struct Provider {
    addresses: Vec<Multiaddr>,
    expires: Instant,
    stamp: Stamp,
}

#[derive(Debug)]
struct Value {
    record: Record,
    endpoint: Endpoint,
    expires: Instant,
    stamp: Stamp,
}

impl Store {
    pub(crate) fn new(local: Libp2pId, limits: Limits) -> Self {
        Self {
            local,
            limits,
            own: BTreeSet::new(),
            providers: HashMap::new(),
            by_age: BTreeMap::new(),
            by_publisher: HashMap::new(),
            values: HashMap::new(),
            values_by_age: BTreeMap::new(),
            stamp: 0,
        }
    }

    /// Keeps an announcement of another peer, or renews it. Others of its key, of its
    /// publisher, or of all, may make room: the oldest.
    pub(crate) fn announce(
        &mut self,
        key: Key,
        publisher: Libp2pId,
        mut addresses: Vec<Multiaddr>,
        expires: Instant,
    ) {
        addresses.retain(addresses::can_be_dialled);
        addresses.truncate(MAX_ADDRESSES);
        self.withdraw(&key, &publisher);
        if self.providers.get(&key).is_some_and(|of_key| of_key.len() >= self.limits.per_key) {
            let oldest = self.providers[&key].iter().min_by_key(|(_, provider)| provider.stamp);
            if let Some((&oldest, _)) = oldest {
                self.withdraw(&key, &oldest);
            }
        }
        let shares = self.by_publisher.get(&publisher);
        if let Some(share) = shares.filter(|share| share.len() >= self.limits.per_publisher)
            && let Some(oldest) = share.values().next().cloned()
        {
            self.withdraw(&oldest, &publisher);
        }
        if self.by_age.len() >= self.limits.providers
            && let Some((key, publisher)) = self.by_age.values().next().cloned()
        {
            self.withdraw(&key, &publisher);
        }
        let stamp = self.next_stamp();
        self.by_age.insert(stamp, (key.clone(), publisher));
        self.by_publisher.entry(publisher).or_default().insert(stamp, key.clone());
        let provider = Provider { addresses, expires, stamp };
        self.providers.entry(key).or_default().insert(publisher, provider);
    }

    /// Keeps an endpoint record. One that is kept already stays as it is, so that
    /// repeating it does not lengthen its life.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if it is not the word of the peer it is filed under, or
    /// its time is over;
    /// [`Kind::Conflict`] if that peer has said something later.
    pub(crate) fn keep(&mut self, record: Record, now: Instant) -> Result<()> {
        let endpoint = record::of_value(record.key.as_ref(), &record.value)?;
        if let Some(kept) = self.values.get(&record.key).filter(|kept| kept.expires > now) {
            if kept.endpoint.supersedes(&endpoint) {
                return Err(Error::new(Kind::Conflict, "endpoint record: is not the latest"));
            }
            if !endpoint.supersedes(&kept.endpoint) {
                return Ok(());
            }
        }
        if record.expires.is_some_and(|given| given <= now) {
            return Err(Error::new(Kind::InvalidArgument, "endpoint record: has expired"));
        }
        let own_life = now + endpoint.ttl.min(self.limits.value_life);
        let expires = record.expires.map_or(own_life, |given| given.min(own_life));
        self.drop_value(&record.key.clone());
        if self.values.len() >= self.limits.values
            && let Some(oldest) = self.values_by_age.values().next().cloned()
        {
            self.drop_value(&oldest);
        }
        let stamp = self.next_stamp();
        self.values_by_age.insert(stamp, record.key.clone());
        let record = Record { expires: Some(expires), ..record };
        self.values.insert(record.key.clone(), Value { record, endpoint, expires, stamp });
        Ok(())
    }

    /// Drops what has expired.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let mut expired = Vec::new();
        for (key, of_key) in &self.providers {
            let over = of_key.iter().filter(|(_, provider)| provider.expires <= now);
            expired.extend(over.map(|(publisher, _)| (key.clone(), *publisher)));
        }
        for (key, publisher) in expired {
            self.withdraw(&key, &publisher);
        }
        let over = self.values.iter().filter(|(_, value)| value.expires <= now);
        for key in over.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.drop_value(&key);
        }
    }

    /// Announcements and endpoint records of others held, for status.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.by_age.len(), self.values.len())
    }

    fn withdraw(&mut self, key: &Key, publisher: &Libp2pId) {
        let Some(of_key) = self.providers.get_mut(key) else { return };
        let Some(provider) = of_key.remove(publisher) else { return };
        if of_key.is_empty() {
            self.providers.remove(key);
        }
        self.by_age.remove(&provider.stamp);
        if let Some(share) = self.by_publisher.get_mut(publisher) {
            share.remove(&provider.stamp);
            if share.is_empty() {
                self.by_publisher.remove(publisher);
            }
        }
    }

    fn drop_value(&mut self, key: &Key) {
        if let Some(value) = self.values.remove(key) {
            self.values_by_age.remove(&value.stamp);
        }
    }

    fn next_stamp(&mut self) -> Stamp {
        self.stamp += 1;
        self.stamp
    }
}

/// What libp2p asks for. It is called for this node's own records, and to answer
/// others; what others send arrives through [`Store::announce`] and [`Store::keep`].
impl RecordStore for Store {
    type RecordsIter<'a> = vec::IntoIter<Cow<'a, Record>>;
    type ProvidedIter<'a> = vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &Key) -> Option<Cow<'_, Record>> {
        let sayable = Instant::now() + SHORTEST_SAID;
        let value = self.values.get(key).filter(|value| value.expires > sayable)?;
        Some(Cow::Borrowed(&value.record))
    }

    fn put(&mut self, record: Record) -> store::Result<()> {
        self.keep(record, Instant::now()).map_err(|_| store::Error::MaxRecords)
    }

    fn remove(&mut self, key: &Key) {
        self.drop_value(key);
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        let records = self.values.values().map(|value| Cow::Borrowed(&value.record));
        records.collect::<Vec<_>>().into_iter()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> store::Result<()> {
        if record.provider == self.local {
            self.own.insert(record.key.to_vec());
            return Ok(());
        }
        // A peer whose key is not Ed25519 can never be reached over the mesh.
        if from_libp2p(&record.provider).is_none() {
            return Err(store::Error::MaxProvidedKeys);
        }
        let expires = record.expires.ok_or(store::Error::MaxProvidedKeys)?;
        self.announce(record.key, record.provider, record.addresses, expires);
        Ok(())
    }

    fn providers(&self, key: &Key) -> Vec<ProviderRecord> {
        let others = self.providers.get(key).into_iter().flatten();
        let mut records: Vec<_> = others
            .map(|(publisher, provider)| ProviderRecord {
                key: key.clone(),
                provider: *publisher,
                expires: Some(provider.expires),
                addresses: provider.addresses.clone(),
            })
            .collect();
        records.shuffle(&mut rand::rng());
        if self.own.contains(key.as_ref()) {
            records.insert(0, ProviderRecord::new(key.clone(), self.local, Vec::new()));
        }
        records
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        let own = self
            .own
            .iter()
            .map(|key| Cow::Owned(ProviderRecord::new(key.clone(), self.local, Vec::new())));
        own.collect::<Vec<_>>().into_iter()
    }

    fn remove_provider(&mut self, key: &Key, provider: &Libp2pId) {
        if *provider == self.local {
            self.own.remove(key.as_ref());
        } else {
            self.withdraw(key, provider);
        }
    }
}
