//! How many instances a service needs, decided from what is seen of them at each look.
//! No clock, no network: who looks and who starts is elsewhere.
//!
//! ```text
//!              above target for a window
//!   Watching ───────────────────────────► Starting        (the answer is StartOne)
//!      ▲  ▲                                │   │
//!      │  │     Refused: 2 s, doubling     │   │ Started, Taken
//!      │  └──────────── BackingOff ◄───────┘   ▼
//!      └──────────────────────────────────── Settling
//!        the new one has taken load, or time is up
//! ```
//!
//! Out is fast and careful: one at a time, and only when requests in flight (or the time
//! they wait) stayed too high for a whole [`WINDOW`]. In is nobody's decision: instances
//! that get no requests idle out, so all this says is over how many of them requests are
//! spread ([`Control::size`]). That number grows at once and shrinks when less would have
//! done for the whole of a [`HOLD`], which doubles each time that turned out to be too
//! soon. So a load that comes and goes costs fewer and fewer stops.
//!
//! Invariant: a start is asked for only while every known instance that may be used has
//! more than its share, and never beyond `max`.

use std::{collections::VecDeque, time::Duration};

use lca::InstanceId;
use tokio::time::Instant;

/// Over how long the load is watched before an instance is started: longer than
/// a burst, which is over before a new instance could help, and short beside the seconds
/// in which a person notices.
pub(crate) const WINDOW: Duration = Duration::from_secs(3);
/// How many of a window's looks must be above the target: three in four. A load that is
/// on for as long as it is off never reaches it.
const MOST: (usize, usize) = (3, 4);
/// Looks in a window at least; fewer after a pause in which nobody looked.
const LEAST_LOOKS: usize = 4;
/// Requests wait for a place at every instance for this long: there are too few, whatever
/// the numbers in flight say. Above what scheduling costs, below what a person feels.
const WAITING: Duration = Duration::from_millis(10);
/// How long a new instance is waited for to take load before the window begins again: it
/// takes some at the next request, so after this nobody asks any more.
const SETTLE: Duration = Duration::from_secs(10);
/// After a start that was refused: no room comes free in less, and it doubles to a minute.
const BACK_OFF: Duration = Duration::from_secs(2);
const MAX_BACK_OFF: Duration = Duration::from_secs(60);
/// Before fewer instances are used, fewer must have been enough for this long: a few
/// windows, so that what was started for one wave is there for the next.
pub(crate) const HOLD: Duration = Duration::from_secs(10);
/// What that grows to where waves keep coming back: most idle time-outs are no longer.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(320);
/// One that was wrong to shrink finds out within so many of its holds.
const REGRET: u32 = 4;
/// Fewer are enough when they would be filled to three quarters of their target: the
/// distance between growing and shrinking.
const FILL: (u64, u64) = (3, 4);

/// What a service is promised about its instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Requests in flight an instance shall have at most on average.
    pub(crate) target: u32,
    /// Instances that are there at least.
    pub(crate) min: u32,
    /// Instances that are there at most.
    pub(crate) max: Option<u32>,
}

/// One instance that may be used, as it looks now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) instance: InstanceId,
    /// Requests it has, of everybody, as far as it is known.
    pub(crate) in_flight: u32,
    /// How long a request waited there for a place.
    pub(crate) queue: Duration,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing.
    Enough,
    /// Have one more started, and then say what [became](Control::became) of it.
    StartOne,
}

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There is one more.
    Started,
    /// Somebody else has started one, or is about to.
    Taken,
    /// Nobody would, or it failed.
    Refused,
}

impl Outcome {
    /// The word it is counted under.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Taken => "taken",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Watching,
    Starting,
    Settling { until: Instant },
    BackingOff { until: Instant },
}

/// The controller of one service, on one manager.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    phase: Phase,
    /// The looks of a window: when, and whether the load was too high.
    looks: VecDeque<(Instant, bool)>,
    /// Those known when the last start was asked for: any other is new.
    before: Vec<InstanceId>,
    back_off: Duration,
    size: usize,
    /// Since when fewer would do, and how many would have done at the worst moment since.
    lower: Option<(Instant, usize)>,
    hold: Duration,
    shrunk: Option<Instant>,
}

impl Control {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Watching,
            looks: VecDeque::new(),
            before: Vec::new(),
            back_off: BACK_OFF,
            size: 1,
            lower: None,
            hold: HOLD,
            shrunk: None,
        }
    }

    /// Over how many instances requests are to be spread.
    pub(crate) const fn size(&self) -> usize {
        self.size
    }

    /// One look. `usable` are the instances that requests may go to, `others` how many
    /// more are known of, those on their way included.
    pub(crate) fn look(
        &mut self,
        now: Instant,
        usable: &[Seen],
        others: usize,
        bounds: &Bounds,
    ) -> Decision {
        let target = u64::from(bounds.target.max(1));
        let load: u64 = usable.iter().map(|seen| u64::from(seen.in_flight)).sum();
        let waits = !usable.is_empty() && usable.iter().all(|seen| seen.queue >= WAITING);
        self.resize(now, load, waits, target, usable.len(), bounds);
        let above = waits || load > target * usable.len() as u64;
        self.note(now, above && !usable.is_empty());
        match self.phase {
            Phase::Watching => {}
            Phase::Starting => return Decision::Enough,
            Phase::Settling { until } => {
                let is_new = |seen: &&Seen| !self.before.contains(&seen.instance);
                let has_load = usable.iter().filter(is_new).any(|seen| seen.in_flight > 0);
                if !has_load && now < until {
                    return Decision::Enough;
                }
                // What was seen before it took its share says nothing any more.
                self.watch();
                return Decision::Enough;
            }
            Phase::BackingOff { until } if now < until => return Decision::Enough,
            Phase::BackingOff { .. } => self.phase = Phase::Watching,
        }
        let all = usable.len() + others;
        let may = bounds.max.is_none_or(|max| all < max as usize);
        if !may || !self.stayed_above(now) {
            return Decision::Enough;
        }
        self.before = usable.iter().map(|seen| seen.instance).collect();
        self.phase = Phase::Starting;
        Decision::StartOne
    }

    /// What became of the start that was asked for.
    pub(crate) fn became(&mut self, now: Instant, outcome: Outcome) {
        match outcome {
            Outcome::Started | Outcome::Taken => {
                self.back_off = BACK_OFF;
                self.phase = Phase::Settling { until: now + SETTLE };
            }
            Outcome::Refused => {
                self.phase = Phase::BackingOff { until: now + self.back_off };
                self.back_off = (self.back_off * 2).min(MAX_BACK_OFF);
            }
        }
    }

    fn watch(&mut self) {
        self.phase = Phase::Watching;
        self.looks.clear();
        self.before.clear();
    }

    fn note(&mut self, now: Instant, above: bool) {
        // Nobody looked for a while, because nobody asked: what was is over.
        if self.looks.back().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW / 2) {
            self.looks.clear();
        }
        self.looks.push_back((now, above));
        // The oldest look is the one that covers the beginning of the window.
        while self.looks.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.looks.pop_front();
        }
    }

    /// Whether most looks of a whole window were above, the last one too.
    fn stayed_above(&self, now: Instant) -> bool {
        let whole = self.looks.front().is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW);
        let last = self.looks.back().is_some_and(|(_, above)| *above);
        let count = self.looks.iter().filter(|(_, above)| *above).count();
        let most = count * MOST.1 >= self.looks.len() * MOST.0;
        whole && last && most && self.looks.len() >= LEAST_LOOKS
    }

    fn resize(
        &mut self,
        now: Instant,
        load: u64,
        waits: bool,
        target: u64,
        usable: usize,
        bounds: &Bounds,
    ) {
        let least = (bounds.min as usize).max(1);
        let at_most = |need: u64| usize::try_from(need).unwrap_or(usize::MAX).min(usable);
        let need = if waits { usable } else { at_most(load.div_ceil(target)) }.max(least);
        if need > self.size {
            if let Some(shrunk) = self.shrunk.take() {
                let soon = now.duration_since(shrunk) < self.hold * REGRET;
                self.hold = if soon { (self.hold * 2).min(MAX_HOLD) } else { HOLD };
            }
            self.size = need;
        }
        let enough = at_most((load * FILL.1).div_ceil(target * FILL.0)).max(need);
        if enough >= self.size {
            self.lower = None;
            return;
        }
        let (since, worst) = self.lower.unwrap_or((now, enough));
        let worst = worst.max(enough);
        self.lower = Some((since, worst));
        if now.duration_since(since) >= self.hold {
            self.size = worst;
            self.lower = None;
            self.shrunk = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
