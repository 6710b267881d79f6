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

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceHash = ServiceHash::from_sha256([1; 32]);
    const TTL: Duration = Duration::from_secs(10);

    fn peer(n: u8) -> PeerId {
        PeerId::from_public_key([n; 32])
    }

    fn claimant(n: u8) -> Claimant {
        Claimant { peer: Some(peer(n)), request: format!("r{n}").parse().unwrap() }
    }

    /// All of them were asked, and this is what runs.
    fn survey(begun: Instant, running: &[(u8, InstanceId, Option<u8>)]) -> Survey {
        let ran = |n| {
            let its = running.iter().filter(|(at, ..)| *at == n);
            let its = its.map(|(_, id, by)| Running { instance: *id, claimant: by.map(claimant) });
            Said::Runs(its.collect())
        };
        let said = (100..105).map(|n| (peer(n), ran(n))).collect();
        Survey { begun, everywhere: true, said }
    }

    fn looked(now: Instant) -> Claims {
        let mut claims = Claims::default();
        claims.surveyed(SERVICE, &survey(now, &[]));
        claims
    }

    fn claim(claims: &mut Claims, by: u8, limit: u32, now: Instant) -> Answer {
        claims.claim(SERVICE, &claimant(by), 0, limit, TTL, now).unwrap()
    }

    fn taken(instances: &[(InstanceId, u8)], claims: u32) -> Answer {
        let instances = instances.iter().map(|(id, at)| (*id, peer(*at))).collect();
        Answer::Taken { instances, claims }
    }

    #[test]
    fn one_claim_is_granted_and_the_next_waits_until_it_is_given_back() {
        let now = Instant::now();
        let mut claims = looked(now);
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted, "the same one, longer");
        assert_eq!(claim(&mut claims, 2, 1, now), taken(&[], 1));
        assert_eq!(claim(&mut claims, 2, 2, now), Answer::Granted, "where there may be two");
        claims.give_back(SERVICE, &claimant(1), 0, now);
        assert_eq!(claim(&mut claims, 3, 2, now), Answer::Granted);
    }

    #[test]
    fn a_claim_becomes_its_instance_and_ends_with_it() {
        let now = Instant::now();
        let mut claims = looked(now);
        let instance = InstanceId::random();
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
        claims.bind(SERVICE, &claimant(1), 0, (instance, peer(100)), now);
        assert_eq!(claim(&mut claims, 2, 1, now), taken(&[(instance, 100)], 0));
        // Before somebody is refused for what was seen a while ago, it is looked at.
        let later = now + SEEN;
        assert_eq!(claim(&mut claims, 2, 1, later), Answer::LookAt(vec![peer(100)]));
        let look = |said| Survey {
            begun: later,
            everywhere: false,
            said: HashMap::from([(peer(100), said)]),
        };
        claims.surveyed(SERVICE, &look(Said::Runs(vec![Running { instance, claimant: None }])));
        assert_eq!(claim(&mut claims, 2, 1, later), taken(&[(instance, 100)], 0));
        claims.surveyed(SERVICE, &Survey { begun: later + SEEN, ..look(Said::Gone) });
        assert_eq!(claim(&mut claims, 2, 1, later + SEEN), Answer::Granted);
    }

    #[test]
    fn what_a_slow_peer_ran_stays_counted_until_it_is_known_to_be_gone() {
        let now = Instant::now();
        let looked_at = |begun, said| Survey {
            begun,
            everywhere: true,
            said: HashMap::from([(peer(100), said)]),
        };
        let bound = |instance| {
            let mut claims = looked(now);
            assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
            claims.bind(SERVICE, &claimant(1), 0, (instance, peer(100)), now);
            claims
        };
        let instance = InstanceId::random();
        let mut claims = bound(instance);
        let later = now + SURVEYED;
        claims.surveyed(SERVICE, &looked_at(later, Said::Slow));
        assert_eq!(claim(&mut claims, 2, 1, later), taken(&[(instance, 100)], 1));
        assert_eq!(claims.undecided(SERVICE), taken(&[(instance, 100)], 1), "come again");
        claims.surveyed(SERVICE, &looked_at(later + SEEN, Said::Gone));
        assert_eq!(claim(&mut claims, 2, 1, later + SEEN), Answer::Granted);

        // Slow for ever is not slow; an answer in between is.
        let mut claims = bound(instance);
        claims.surveyed(SERVICE, &looked_at(later, Said::Slow));
        let running = vec![Running { instance, claimant: None }];
        claims.surveyed(SERVICE, &looked_at(later + SLOW / 2, Said::Runs(running)));
        claims.surveyed(SERVICE, &looked_at(later + SLOW, Said::Slow));
        let last = later + SLOW;
        assert_eq!(claim(&mut claims, 2, 1, last), taken(&[(instance, 100)], 1));
        claims.surveyed(SERVICE, &looked_at(last + SLOW, Said::Slow));
        assert_eq!(claim(&mut claims, 2, 1, last + SLOW), Answer::Granted);
    }

    #[test]
    fn a_claimant_that_dies_blocks_for_its_time_and_what_it_started_is_found() {
        let now = Instant::now();
        let mut claims = looked(now);
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
        let later = now + TTL;
        assert_eq!(claim(&mut claims, 2, 1, later), Answer::LookEverywhere);
        let instance = InstanceId::random();
        claims.surveyed(SERVICE, &survey(later, &[(101, instance, Some(1))]));
        assert_eq!(claim(&mut claims, 2, 1, later), taken(&[(instance, 101)], 0));
    }

    #[test]
    fn a_holder_that_has_started_anew_looks_before_it_grants() {
        let now = Instant::now();
        let mut claims = Claims::default();
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::LookEverywhere);
        let instance = InstanceId::random();
        claims.surveyed(SERVICE, &survey(now, &[(102, instance, None)]));
        assert_eq!(claim(&mut claims, 1, 1, now), taken(&[(instance, 102)], 0));
        assert_eq!(claim(&mut claims, 1, 2, now + SURVEYED), Answer::LookEverywhere);
    }

    #[test]
    fn an_instance_that_starts_counts_once_with_its_claim() {
        let now = Instant::now();
        let mut claims = looked(now);
        assert_eq!(claim(&mut claims, 1, 2, now), Answer::Granted);
        claims.surveyed(SERVICE, &survey(now, &[(100, InstanceId::random(), Some(1))]));
        assert_eq!(claim(&mut claims, 2, 2, now), Answer::Granted);
    }

    #[test]
    fn a_look_that_began_before_an_instance_was_bound_does_not_lose_it() {
        let now = Instant::now();
        let mut claims = looked(now);
        let begun = now + SEEN;
        let instance = InstanceId::random();
        assert_eq!(claim(&mut claims, 1, 1, now), Answer::Granted);
        claims.bind(SERVICE, &claimant(1), 0, (instance, peer(100)), begun + SEEN);
        claims.surveyed(SERVICE, &survey(begun, &[]));
        assert_eq!(claim(&mut claims, 2, 1, begun + SEEN), taken(&[(instance, 100)], 0));
    }

    #[test]
    fn a_renewal_that_the_end_of_its_claim_has_overtaken_blocks_nobody() {
        let now = Instant::now();
        let mut claims = looked(now);
        let instance = InstanceId::random();
        let says = |sequence, claims: &mut Claims| {
            claims.claim(SERVICE, &claimant(1), sequence, 2, TTL, now).unwrap()
        };
        assert_eq!(says(5, &mut claims), Answer::Granted);
        claims.bind(SERVICE, &claimant(1), 7, (instance, peer(100)), now);
        assert_eq!(says(6, &mut claims), taken(&[(instance, 100)], 0), "it is void");
        assert!(!claims.holds(SERVICE, &claimant(1), now));
        assert_eq!(claim(&mut claims, 2, 2, now), Answer::Granted, "there is a place");
        claims.give_back(SERVICE, &claimant(2), 0, now);
        // The same call again, later: it is a claim of its own, which what was said before
        // does not end.
        assert_eq!(says(8, &mut claims), Answer::Granted);
        claims.give_back(SERVICE, &claimant(1), 7, now);
        assert!(claims.holds(SERVICE, &claimant(1), now));
        claims.give_back(SERVICE, &claimant(1), 9, now);
        assert!(!claims.holds(SERVICE, &claimant(1), now));
        // An end that comes before anything else of it counts as well.
        claims.give_back(SERVICE, &claimant(3), 4, now);
        let late = claims.claim(SERVICE, &claimant(3), 3, 2, TTL, now).unwrap();
        assert_eq!(late, taken(&[(instance, 100)], 0));
        // It is not remembered for ever, and who counts nothing is heard as it comes.
        let later = now + REMEMBERED;
        claims.give_back(SERVICE, &claimant(4), 1, later);
        assert_eq!(claims.services.peek(&SERVICE).unwrap().ended.len(), 1);
        claims.surveyed(SERVICE, &survey(later, &[(100, instance, None)]));
        assert_eq!(claim(&mut claims, 4, 2, later), Answer::Granted);
    }

    #[test]
    fn nothing_grows_without_bound() {
        let now = Instant::now();
        let mut claims = Claims::default();
        for n in 0..2 * MAX_SERVICES.get() {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_be_bytes());
            claims.surveyed(ServiceHash::from_sha256(hash), &survey(now, &[]));
        }
        assert_eq!(claims.services.len(), MAX_SERVICES.get());
        for n in 0..MAX_CLAIMS {
            let claimant = Claimant { peer: None, request: format!("r{n}").parse().unwrap() };
            claims.surveyed(SERVICE, &survey(now, &[]));
            let granted = claims.claim(SERVICE, &claimant, 0, u32::MAX, MAX_TTL, now).unwrap();
            assert_eq!(granted, Answer::Granted);
        }
        let over = claims.claim(SERVICE, &claimant(1), 0, u32::MAX, MAX_TTL, now);
        assert_eq!(over.unwrap_err().kind(), Kind::NoCapacity);
        for n in 0..MAX_COUNTED + 10 {
            let claimant = Claimant { peer: None, request: format!("e{n}").parse().unwrap() };
            claims.bind(SERVICE, &claimant, 7, (InstanceId::random(), peer(1)), now);
        }
        assert_eq!(claims.services.peek(&SERVICE).unwrap().ended.len(), MAX_ENDED);
        assert_eq!(claims.services.peek(&SERVICE).unwrap().instances.len(), MAX_COUNTED);
    }
}
