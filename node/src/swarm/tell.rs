//! The part of the actor that tells the network what this node has and where it is.

use std::time::Instant;

use lca::{Error, Kind, Result, discovery::Key, endpoint::Role};
use libp2p::kad::{Quorum, Record, RecordKey};

use super::{
    actor::{Actor, Due, Purpose},
    keys,
};

/// Queries that tell something, at once: the rest waits, so that finds are not slowed
/// by a node that holds hundreds of services.
const MAX_TELLING: usize = 16;
/// Keys announced at once: what every node keeps of one publisher.
const MAX_ANNOUNCED: usize = 256;

/// What is told again and again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
    /// Where this node is.
    Record,
    /// That this node has something: its key in the DHT.
    Announcement(Vec<u8>),
}

impl Actor {
    /// Has this node's record and those of its roles that are looked for told.
    pub(crate) fn announce_roles(&mut self, roles: &[Role], now: Instant) {
        self.renewals.add(Told::Record, self.timing.value_every, now);
        // Nobody looks for proxies; each key costs traffic as long as the node lives.
        for role in roles.iter().filter(|role| **role != Role::Proxy) {
            if let Err(error) = self.announce(Key::Role(*role), now) {
                tracing::error!(error = error.chain(), %role, "a role is not announced");
            }
        }
    }

    /// Announces `key` from now on.
    pub(crate) fn announce(&mut self, key: Key, now: Instant) -> Result<()> {
        let told = Told::Announcement(keys::to_kad(key).to_vec());
        if self.renewals.len() > MAX_ANNOUNCED && !self.renewals.contains(&told) {
            return Err(Error::new(Kind::NoCapacity, "this node announces too many services"));
        }
        self.renewals.add(told, self.timing.announce_every, now);
        Ok(())
    }

    /// Announces `key` no longer.
    pub(crate) fn withdraw(&mut self, key: Key) {
        let key = keys::to_kad(key);
        self.swarm.behaviour_mut().kademlia.stop_providing(&key);
        self.renewals.remove(&Told::Announcement(key.to_vec()));
    }

    /// Whether another query that tells something may start.
    pub(crate) fn may_tell(&self) -> bool {
        self.telling() < MAX_TELLING
    }

    fn telling(&self) -> usize {
        self.queries.values().filter(|purpose| matches!(purpose, Purpose::Tell)).count()
    }

    /// Tells what is due.
    pub(crate) fn tell_due(&mut self, now: Instant) {
        let room = MAX_TELLING.saturating_sub(self.telling());
        for told in self.renewals.take_due(now, room, rand::random) {
            let query = match told {
                Told::Announcement(key) => {
                    self.swarm.behaviour_mut().kademlia.start_providing(RecordKey::from(key))
                }
                Told::Record => {
                    self.own.renew();
                    let Some(record) = self.own.signed() else { continue };
                    let mut record = Record::new(keys::of_value(self.local), record.to_vec());
                    record.expires = Some(now + self.timing.value_life);
                    // One answer is success: there may be but one other node.
                    self.swarm.behaviour_mut().kademlia.put_record(record, Quorum::One)
                }
            };
            match query {
                Ok(query) => {
                    self.queries.insert(query, Purpose::Tell);
                    self.timers.set(now + self.timing.query, Due::QueryOver(query));
                }
                Err(error) => tracing::warn!(%error, "not told the network; trying again later"),
            }
        }
    }
}
