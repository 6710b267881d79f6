//! Who may start one more instance of a service, as far as this allocator is asked: it
//! is one of the two *holders* of that service's claims.
//!
//! ```text
//!            claim                       bind
//!  nobody ───────────► claim of a caller ───────► instance ───► gone
//!            ▲               │                        (a peer says that it has ended,
//!            └───────────────┘                         or is known to be dead)
//!        given back, or its time is over
//! ```
//!
//! Plain data; the time comes in as `now`, and what peers say of their instances as
//! [`Survey`]s, which `holder` makes. Nothing is written to disk and nobody renews what
//! an instance counts: a holder that has started anew, or has not looked for a while, asks
//! the allocators before it grants, and those where instances are before it refuses.
//!
//! Messages carry the order in which they were made, and an end is remembered for a while: a
//! renewal that was overtaken by it on the way would be a claim of nobody's otherwise.
//!
//! Invariant: what is granted, together with what is known to run, is never more than the
//! limit it was granted under.

pub(crate) mod holder;

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    time::Duration,
};

use lca::{Error, InstanceId, Kind, PeerId, RequestId, Result, ServiceHash};
use lru::LruCache;
use tokio::time::Instant;

/// Services whose claims are held; the one claimed least recently makes room, and is
/// surveyed anew when it is claimed again.
const MAX_SERVICES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Claims of one service at the same time: as many as it may have instances.
const MAX_CLAIMS: usize = lca::Spec::MAX_INSTANCES as usize;
/// Instances counted of one service: those of all its claims, and as many again that
/// were started without.
const MAX_COUNTED: usize = 2 * MAX_CLAIMS;
/// Longest a claim is held without being renewed. Managers ask for less; this bounds what
/// a wrong one can block.
pub const MAX_TTL: Duration = Duration::from_secs(60);
/// How long a look at all allocators is good for. What is started meanwhile is claimed
/// here; what was claimed elsewhere, by a manager that knows other holders, is noticed
/// after this.
pub const SURVEYED: Duration = Duration::from_secs(10);
/// How long it is believed that an instance is there, before somebody is refused because
/// of it: as long as losing one peer's probe may take.
pub const SEEN: Duration = Duration::from_secs(1);
/// How long a peer that answers nobody in time counts as slow before what it ran is given up:
/// probes find within seconds that one is dead; this is for one that nobody can probe.
pub const SLOW: Duration = Duration::from_secs(60);
/// How long the end of a claim is remembered: longer than a message is on its way.
const REMEMBERED: Duration = MAX_TTL;
/// Ends remembered of one service; the oldest makes room.
const MAX_ENDED: usize = 256;
/// When there may be room for another claim.
const BUSY: Duration = Duration::from_secs(1);

/// Who claims, and for which call.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Claimant {
    /// The peer; `None` is a program of this machine.
    pub peer: Option<PeerId>,
    /// The id of the allocation that is to follow.
    pub request: RequestId,
}

/// What a holder says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is held for the caller.
    Granted,
    /// There are as many as there may be.
    Taken {
        /// The instances that count.
        instances: Vec<(InstanceId, PeerId)>,
        /// Claims of others that count.
        claims: u32,
    },
    /// All allocators are to be asked first.
    LookEverywhere,
    /// These peers are to be asked first.
    LookAt(Vec<PeerId>),
}

/// What peers said when they were asked for their instances of a service.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Before anybody was asked.
    pub begun: Instant,
    /// Whether all known allocators were asked.
    pub everywhere: bool,
    /// What became of asking each.
    pub said: HashMap<PeerId, Said>,
}

/// What a peer said that was asked for its instances of a service.
#[derive(Clone, Debug)]
pub enum Said {
    /// It runs these.
    Runs(Vec<Running>),
    /// Nothing in time, and nothing says that it is dead: what it ran is there.
    Slow,
    /// It is known to be silent, or nobody listens there: what it ran is lost.
    Gone,
}

/// An instance that is starting or takes requests.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its id.
    pub instance: InstanceId,
    /// Whose call started it, if that is known.
    pub claimant: Option<Claimant>,
}

/// The claims one allocator holds.
#[derive(Debug)]
pub struct Claims {
    services: LruCache<ServiceHash, Service>,
}

#[derive(Debug, Default)]
struct Service {
    claims: HashMap<Claimant, Held>,
    /// Those that ended lately: the number of the message that said so, and when it came.
    ended: HashMap<Claimant, (u64, Instant)>,
    instances: HashMap<InstanceId, Counted>,
    /// When all allocators were last asked.
    surveyed: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    until: Instant,
    /// Of the last message about it.
    sequence: u64,
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    peer: PeerId,
    /// When it was last known to be there.
    seen: Instant,
    /// Since when its peer answers no look in time.
    slow_since: Option<Instant>,
}

impl Default for Claims {
    fn default() -> Self {
        Self { services: LruCache::new(MAX_SERVICES) }
    }
}

impl Claims {
    /// Asks for one more, where there may be `limit`, or to hold it longer. `sequence` is the
    /// number of the message, 0 if it has none: what was said before the end of the claim is void.
    ///
    /// # Errors
    /// [`Kind::NoCapacity`] if there are too many claims of this service.
    pub fn claim(
        &mut self,
        service: ServiceHash,
        claimant: &Claimant,
        sequence: u64,
        limit: u32,
        ttl: Duration,
        now: Instant,
    ) -> Result<Answer> {
        let held = self.services.get_or_insert_mut(service, Service::default);
        held.expire(now);
        let until = now + ttl.min(MAX_TTL);
        if let Some(held) = held.claims.get_mut(claimant) {
            *held = Held { until, sequence: held.sequence.max(sequence) };
            return Ok(Answer::Granted);
        }
        if sequence > 0 && held.ended.get(claimant).is_some_and(|(end, _)| sequence <= *end) {
            return Ok(held.taken());
        }
        if held.surveyed.is_none_or(|at| now >= at + SURVEYED) {
            return Ok(Answer::LookEverywhere);
        }
        let counts = held.claims.len() + held.instances.len();
        if counts < limit as usize {
            if held.claims.len() >= MAX_CLAIMS {
                return Err(Error::new(Kind::NoCapacity, "too many claims are held for it")
                    .retry_after(BUSY));
            }
            held.claims.insert(claimant.clone(), Held { until, sequence });
            return Ok(Answer::Granted);
        }
        let old = held.instances.values().filter(|counted| now >= counted.seen + SEEN);
        let old: HashSet<_> = old.map(|counted| counted.peer).collect();
        if !old.is_empty() {
            return Ok(Answer::LookAt(old.into_iter().collect()));
        }
        Ok(held.taken())
    }

    /// What is said to one who cannot wait until all that has to be looked at has been: no.
    /// At least one claim is said to stand in the way, so that it comes again.
    pub fn undecided(&mut self, service: ServiceHash) -> Answer {
        match self.services.get_or_insert_mut(service, Service::default).taken() {
            Answer::Taken { instances, claims } => {
                Answer::Taken { instances, claims: claims.max(1) }
            }
            answer => answer,
        }
    }

    /// The claim is no longer wanted: nothing was started with it.
    pub fn give_back(
        &mut self,
        service: ServiceHash,
        claimant: &Claimant,
        sequence: u64,
        now: Instant,
    ) {
        if let Some(held) = self.services.peek_mut(&service) {
            held.end(claimant, sequence, now);
        }
    }

    /// Whether the claim is held at `now`.
    pub fn holds(&self, service: ServiceHash, claimant: &Claimant, now: Instant) -> bool {
        let held = self.services.peek(&service).and_then(|held| held.claims.get(claimant));
        held.is_some_and(|held| now < held.until)
    }

    /// The claim has become this instance, which counts instead of it.
    pub fn bind(
        &mut self,
        service: ServiceHash,
        claimant: &Claimant,
        sequence: u64,
        (instance, peer): (InstanceId, PeerId),
        now: Instant,
    ) {
        let held = self.services.get_or_insert_mut(service, Service::default);
        held.end(claimant, sequence, now);
        held.count(instance, peer, now);
    }

    /// What peers said. An instance of a claim that is held counts as that claim; one that
    /// was bound after the survey began is not undone by it. What a slow peer ran is taken
    /// to be there, for [`SLOW`] at most.
    pub fn surveyed(&mut self, service: ServiceHash, survey: &Survey) {
        let held = self.services.get_or_insert_mut(service, Service::default);
        held.instances.retain(|id, counted| {
            let there = match survey.said.get(&counted.peer) {
                None => return true,
                Some(Said::Runs(running)) => {
                    counted.slow_since = None;
                    running.iter().any(|running| running.instance == *id)
                }
                Some(Said::Slow) => {
                    survey.begun < *counted.slow_since.get_or_insert(survey.begun) + SLOW
                }
                Some(Said::Gone) => false,
            };
            if there {
                counted.seen = counted.seen.max(survey.begun);
            }
            there || counted.seen >= survey.begun
        });
        for (peer, said) in &survey.said {
            let Said::Runs(running) = said else { continue };
            for Running { instance, claimant } in running {
                if !claimant.as_ref().is_some_and(|claimant| held.claims.contains_key(claimant)) {
                    held.count(*instance, *peer, survey.begun);
                }
            }
        }
        if survey.everywhere {
            held.surveyed = held.surveyed.max(Some(survey.begun));
        }
    }
}

impl Service {
    /// Drops claims whose time is over. Whoever had one may have started something and
    /// died before saying so: that is looked for before anything is granted again.
    fn expire(&mut self, now: Instant) {
        let before = self.claims.len();
        self.claims.retain(|_, held| now < held.until);
        if self.claims.len() < before {
            self.surveyed = None;
        }
    }

    /// A claim is over, unless it was made again since.
    fn end(&mut self, claimant: &Claimant, sequence: u64, now: Instant) {
        let is_newer = |held: &Held| sequence > 0 && held.sequence > sequence;
        if self.claims.get(claimant).is_some_and(is_newer) {
            return;
        }
        self.claims.remove(claimant);
        if sequence == 0 {
            return;
        }
        self.ended.retain(|_, (_, at)| now < *at + REMEMBERED);
        if self.ended.len() >= MAX_ENDED && !self.ended.contains_key(claimant) {
            let oldest = self.ended.iter().min_by_key(|(_, (_, at))| *at);
            let oldest = oldest.map(|(claimant, _)| claimant.clone());
            oldest.and_then(|oldest| self.ended.remove(&oldest));
        }
        let end = self.ended.entry(claimant.clone()).or_insert((sequence, now));
        *end = (end.0.max(sequence), now);
    }

    fn count(&mut self, instance: InstanceId, peer: PeerId, seen: Instant) {
        if let Some(counted) = self.instances.get_mut(&instance) {
            counted.seen = counted.seen.max(seen);
        } else if self.instances.len() < MAX_COUNTED {
            self.instances.insert(instance, Counted { peer, seen, slow_since: None });
        }
    }

    fn taken(&self) -> Answer {
        let slow = self.instances.values().any(|counted| counted.slow_since.is_some());
        Answer::Taken {
            instances: self.instances.iter().map(|(id, counted)| (*id, counted.peer)).collect(),
            // One whose peer is slow may be about to be found gone: whoever asks comes again.
            claims: u32::try_from(self.claims.len().max(usize::from(slow))).unwrap_or(u32::MAX),
        }
    }
}
