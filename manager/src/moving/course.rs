//! One service with its limits, as the clients of this node use it: where their requests
//! go (its home), and whether something nearer has to be found. Decides and does nothing;
//! time, distances, loads and luck come in.
//!
//! ```text
//!                  home above soft for the dwell time, no better one known
//!      ┌────────┐ ─────────────────────────────────────────────────────────► ┌─────────┐
//!      │  home  │                                                            │ looking │
//!      └────────┘ ◄───────────── found, started, or in vain ──────────────── └─────────┘
//!        │    ▲           in vain: the next look after 2, 4, 8 .. 60 s
//!        │    │
//!        ▼    │ a ready one within soft is known, and a tenth nearer: Soft, after the dwell
//!      ┌────────┐ time. At once, on the next request: Hard, Gone, Silent, Failing.
//!      │ another│ Better, if nothing is under way and it is clearly better.
//!      └────────┘
//! ```
//!
//! While it looks, requests go on to the old home; the new one is ready before it is known
//! at all. So nobody waits for a move.

use std::{collections::HashMap, time::Duration};

use lca::{InstanceId, Requirements};
use tokio::time::Instant;

use super::{
    record::Reason,
    standing::{DWELL, Standing},
};
use crate::policy::{
    self, Candidate, Verdict,
    two::{self, Contender, Group},
};

/// How much nearer than a home beyond soft another one has to be, as a share of the home's
/// distance: less is not worth cold connections and caches.
const GAIN: f64 = 0.9;
/// After a look in vain, until the next one: what a start takes, roughly.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// The longest wait: allocators are looked for as often while nobody needs them.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Looks in vain are forgotten after this long without another.
const FORGIVEN: Duration = Duration::from_secs(120);
/// Not looked at for so long, what was seen before says nothing.
const GAP: Duration = Duration::from_secs(5);

/// What is to be done about where a service is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Nothing.
    Stay,
    /// Find or allocate one within these limits that is not among those to avoid; then
    /// say [`Course::looked`].
    Look { within: Requirements, avoid: InstanceId },
    /// Requests go elsewhere from now on.
    Move(Change),
}

/// A change of home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) from: InstanceId,
    pub(crate) to: InstanceId,
    pub(crate) reason: Reason,
}

/// What a request leaves alone.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Avoid<'a> {
    /// It has been there in vain, which says nothing about the next one.
    pub(crate) tried: &'a [InstanceId],
    /// These are to idle out: nobody's requests go there.
    pub(crate) surplus: &'a [InstanceId],
}

/// What is known of load: requests of ours, and of others with the age of that.
pub(crate) type Busy = (u32, Option<(u32, Duration)>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Course {
    limits: Requirements,
    home: Option<Home>,
    standings: HashMap<InstanceId, Standing>,
    seen: Option<Instant>,
    looks: Looks,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    instance: InstanceId,
    since: Instant,
}

/// The looks for something nearer.
#[derive(Debug, Default)]
struct Looks {
    running: bool,
    in_vain: u32,
    /// When the last one ended, and how long to wait after it.
    last: Option<(Instant, Duration)>,
    /// An allocator within soft was known when the last one began, and ever since.
    offered: bool,
}

impl Course {
    pub(crate) fn new(limits: Requirements) -> Self {
        let (home, standings, seen) = Default::default();
        Self { limits, home, standings, seen, looks: Looks::default() }
    }

    /// Where requests go, if they have gone anywhere.
    pub(crate) fn home(&self) -> Option<InstanceId> {
        self.home.map(|home| home.instance)
    }

    /// Whether its home is above soft, so that distances of others matter.
    pub(crate) fn is_unsettled(&self) -> bool {
        let standing = self.home.and_then(|home| self.standings.get(&home.instance));
        standing.is_some_and(|standing| !standing.is_near())
    }

    /// Where a request goes, and whether that is a move.
    pub(crate) fn pick(
        &mut self,
        candidates: &[Candidate],
        avoid: Avoid<'_>,
        busy: impl Fn(InstanceId) -> Busy,
        luck: [f64; 2],
        now: Instant,
    ) -> Option<(usize, Option<Change>)> {
        if self.seen.is_some_and(|seen| now.duration_since(seen) >= GAP) {
            self.standings.clear();
        }
        let (indices, contenders) = self.contenders(candidates, avoid, busy);
        let may_leave = self.home.is_some_and(|home| now.duration_since(home.since) >= DWELL);
        let home = two::Home { at: self.home(), may_leave };
        let chosen = two::choose(&contenders, home, luck)?;
        let change = self.change(candidates, &contenders, &contenders[chosen], avoid, now);
        Some((indices[chosen], change))
    }

    /// What is to be done, seen what is known now. `offer` is the distance of the nearest
    /// allocator that may start another one.
    pub(crate) fn observe(
        &mut self,
        candidates: &[Candidate],
        offer: Option<Duration>,
        busy: impl Fn(InstanceId) -> Busy,
        luck: [f64; 2],
        now: Instant,
    ) -> Decision {
        let Some(soft) = self.limits.soft else { return Decision::Stay };
        if self.seen.is_some_and(|seen| now.duration_since(seen) >= GAP) {
            self.standings.clear();
        }
        self.seen = Some(now);
        self.standings.retain(|id, _| candidates.iter().any(|one| one.instance == *id));
        for one in candidates {
            let Some(rtt) = one.effective() else { continue };
            let standing = match self.standings.get(&one.instance) {
                Some(standing) => standing.seen(rtt, soft, now),
                None => Standing::first(rtt, soft, now),
            };
            self.standings.insert(one.instance, standing);
        }
        let Some(home) = self.home() else {
            // The first request was answered by a flight: it is wherever that brought it.
            let _no_change = self.pick(candidates, Avoid::default(), busy, luck, now);
            return Decision::Stay;
        };
        let Some(home) = candidates.iter().find(|one| one.instance == home) else {
            return Decision::Stay;
        };
        let (Some(rtt), true) = (home.effective(), self.is_far(home.instance)) else {
            return Decision::Stay;
        };
        if !self.is_usable(home) {
            return Decision::Stay;
        }
        if let Some((_, Some(change))) = self.pick(candidates, Avoid::default(), busy, luck, now) {
            return Decision::Move(change);
        }
        let reach = soft.min(rtt.mul_f64(GAIN));
        let offered = offer.is_some_and(|offer| offer <= reach);
        if !self.looks.is_due(offered, now) {
            return Decision::Stay;
        }
        let within = Requirements { soft: Some(soft), hard: Some(reach) }.tightened(self.limits);
        Decision::Look { within, avoid: home.instance }
    }

    /// A look is over, whatever it brought. `luck` is a draw from 0 to 1.
    pub(crate) fn looked(&mut self, luck: f64, now: Instant) {
        let looks = &mut self.looks;
        if looks.last.is_some_and(|(last, _)| now.duration_since(last) >= FORGIVEN) {
            looks.in_vain = 0;
        }
        let wait = FIRST_WAIT.saturating_mul(1 << looks.in_vain.min(8)).min(LONGEST_WAIT);
        looks.in_vain = looks.in_vain.saturating_add(1);
        // A fifth more or less, so that managers that lost the same thing do not come back
        // together for ever.
        looks.last = Some((now, wait.mul_f64(0.8 + 0.4 * luck.clamp(0.0, 1.0))));
        looks.running = false;
    }

    fn is_far(&self, instance: InstanceId) -> bool {
        self.standings.get(&instance).is_some_and(|standing| standing.is_far())
    }

    fn is_usable(&self, candidate: &Candidate) -> bool {
        let verdict = policy::judge(candidate, &self.limits, &[]);
        matches!(verdict, Verdict::Usable | Verdict::Suspect)
    }

    /// Those that may take a request, and which candidates they are.
    fn contenders(
        &self,
        candidates: &[Candidate],
        avoid: Avoid<'_>,
        busy: impl Fn(InstanceId) -> Busy,
    ) -> (Vec<usize>, Vec<Contender>) {
        let home = self.home().and_then(|home| candidates.iter().find(|c| c.instance == home));
        // Beyond soft for good, and still in use: only what is worth the move is near.
        let leaving = home.filter(|home| self.is_usable(home) && self.is_far(home.instance));
        let reach = leaving.and_then(Candidate::effective).map(|rtt| rtt.mul_f64(GAIN));
        let all = candidates.iter().enumerate();
        let all = all.filter(|(_, one)| !avoid.surplus.contains(&one.instance));
        let contenders = all.filter_map(|(index, one)| {
            let is_home = Some(one.instance) == self.home();
            let group = match policy::judge(one, &self.limits, avoid.tried) {
                Verdict::Usable if self.is_near(one, is_home, reach) => Group::Near,
                Verdict::Usable => Group::Far,
                Verdict::Suspect => Group::Suspect,
                _ => return None,
            };
            let (own, others) = busy(one.instance);
            let rtt = one.effective().unwrap_or(Duration::MAX);
            Some((index, Contender { instance: one.instance, group, rtt, own, others }))
        });
        contenders.unzip()
    }

    fn is_near(&self, one: &Candidate, is_home: bool, reach: Option<Duration>) -> bool {
        let Some(rtt) = one.effective() else { return is_home && self.limits.soft.is_none() };
        let near = match self.standings.get(&one.instance) {
            // Until the dwell time is over, nobody leaves it for this.
            Some(Standing::Straying { .. }) => is_home,
            Some(standing) => standing.is_near(),
            None => is_home || self.limits.within_soft(rtt),
        };
        near && reach.is_none_or(|reach| is_home || rtt <= reach)
    }

    /// Makes the chosen one the home if the old one is no choice any more, or if it was
    /// left for a better one.
    fn change(
        &mut self,
        candidates: &[Candidate],
        contenders: &[Contender],
        chosen: &Contender,
        avoid: Avoid<'_>,
        now: Instant,
    ) -> Option<Change> {
        let to = chosen.instance;
        let Some(from) = self.home() else {
            self.home = Some(Home { instance: to, since: now });
            return None;
        };
        // What one request has tried in vain may be good for the next.
        if from == to || avoid.tried.contains(&from) {
            return None;
        }
        let group = contenders.iter().find(|one| one.instance == from).map(|one| one.group);
        let reason = match (candidates.iter().find(|one| one.instance == from), group) {
            (None, _) => Reason::Gone,
            _ if avoid.surplus.contains(&from) => Reason::Surplus,
            (Some(_), Some(Group::Suspect)) if chosen.group < Group::Suspect => Reason::Failing,
            (Some(_), Some(group)) if chosen.group < group => Reason::Soft,
            // Load is spread, which is no move.
            (Some(_), Some(_)) if contenders.iter().any(|one| one.own > 0) => return None,
            (Some(_), Some(_)) => Reason::Better,
            (Some(home), None) => match policy::judge(home, &self.limits, &[]) {
                Verdict::BeyondHard | Verdict::DistanceUnknown => Reason::Hard,
                Verdict::Silent => Reason::Silent,
                _ => Reason::Failing,
            },
        };
        self.home = Some(Home { instance: to, since: now });
        self.looks.in_vain = 0;
        self.looks.last = None;
        Some(Change { from, to, reason })
    }
}

impl Looks {
    /// Whether to look now; then one is running.
    fn is_due(&mut self, offered: bool, now: Instant) -> bool {
        let is_new = offered && !self.offered;
        self.offered &= offered;
        if self.running {
            return false;
        }
        let is_over = |(last, wait): (Instant, Duration)| {
            let wait = if is_new { wait.min(FIRST_WAIT) } else { wait };
            now.duration_since(last) >= wait
        };
        self.running = self.last.is_none_or(is_over);
        if self.running {
            self.offered = offered;
        }
        self.running
    }
}
