//! Which of several instances a request goes to when more than one would do: two are
//! drawn, and the cheaper one takes it (the power of two choices, M. Mitzenmacher 2001).
//! Who looks at all of them and takes the best does what everyone else does at the same
//! moment; who draws two spreads, and is never far from the best.
//!
//! A client with nothing under way stays where it is: there is no load of its own to
//! spread, and what it has warmed up (connections, caches) is worth something.
//!
//! Invariant: a worse group is used only where a better one is empty. Data in, decision
//! out; the draws are passed in.

use std::{cmp::Ordering, time::Duration};

use lca::InstanceId;

/// Shorter round trips count as this: differences below it are the noise of a busy
/// machine, and load tells more.
const FLOOR: Duration = Duration::from_micros(500);
/// How much cheaper another one has to be for a quiet client to leave: by a third. Less
/// is within what the median of three round trips wavers on an uneven link.
const CLEARLY: f64 = 1.5;
/// After so long, half of what an instance said of its load is believed: requests come
/// and go within seconds.
const HALF_LIFE: Duration = Duration::from_secs(2);

/// In which order instances are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// Within soft.
    Near,
    /// Beyond soft and within hard, or at an unknown distance.
    Far,
    /// Keeps failing.
    Suspect,
}

/// An instance that may be sent a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Contender {
    pub(crate) instance: InstanceId,
    pub(crate) group: Group,
    /// Round trip to it; the longest there is if nobody knows.
    pub(crate) rtt: Duration,
    /// Requests of this manager that it is working on.
    pub(crate) own: u32,
    /// Requests of others it was working on when it said so, and how long ago that was.
    pub(crate) others: Option<(u32, Duration)>,
}

/// The client before this request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Home {
    /// Where it is, if it is anywhere.
    pub(crate) at: Option<InstanceId>,
    /// It has been there long enough to leave for a better one.
    pub(crate) may_leave: bool,
}

/// The index of the one that takes the request. `luck` are draws from 0 to 1.
pub(crate) fn choose(contenders: &[Contender], home: Home, luck: [f64; 2]) -> Option<usize> {
    let group = contenders.iter().map(|one| one.group).min()?;
    let pool = || contenders.iter().enumerate().filter(|(_, one)| one.group == group);
    if let (Some((only, _)), 1) = (pool().next(), pool().count()) {
        return Some(only);
    }
    let expected = expected(pool().map(|(_, one)| one));
    let pool: Vec<_> = pool().map(|(index, one)| Priced::new(index, one, expected)).collect();
    let quiet = contenders.iter().all(|one| one.own == 0);
    let at_home = pool.iter().find(|one| Some(one.instance) == home.at);
    let chosen = match (at_home, quiet) {
        (Some(at_home), true) if !home.may_leave => at_home,
        (Some(at_home), true) => {
            let other = draw(&pool, Some(at_home.index), luck[0])?;
            if other.cost * CLEARLY < at_home.cost { other } else { at_home }
        }
        (None, true) => pool.iter().min_by(|a, b| a.compare(b, home.at))?,
        (_, false) => {
            let first = draw(&pool, None, luck[0])?;
            let second = draw(&pool, Some(first.index), luck[1])?;
            if first.compare(second, home.at).is_le() { first } else { second }
        }
    };
    Some(chosen.index)
}

/// What others are expected to have at an instance that has not said so lately: what
/// they have at those that have. Taking silence for idleness would make everyone run to
/// whoever has been silent longest.
fn expected<'a>(pool: impl Iterator<Item = &'a Contender>) -> f64 {
    let said = pool.filter_map(|one| one.others).map(|(others, age)| (others, belief(age)));
    let (sum, weight) = said.fold((0.0, 0.0), |(sum, weight), (others, belief)| {
        (sum + f64::from(others) * belief, weight + belief)
    });
    // What was said minutes ago is not even a hint.
    if weight < 0.01 { 0.0 } else { sum / weight }
}

fn belief(age: Duration) -> f64 {
    0.5f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

/// One with what it costs to be sent there.
#[derive(Clone, Copy, Debug)]
struct Priced {
    index: usize,
    instance: InstanceId,
    rtt: Duration,
    cost: f64,
}

impl Priced {
    fn new(index: usize, one: &Contender, expected: f64) -> Self {
        let (said, belief) = one.others.map_or((0.0, 0.0), |(n, age)| (f64::from(n), belief(age)));
        let others = said * belief + expected * (1.0 - belief);
        let cost = one.rtt.max(FLOOR).as_secs_f64() * (1.0 + f64::from(one.own) + others);
        Self { index, instance: one.instance, rtt: one.rtt, cost }
    }

    /// The cheaper one first; of equals the one at home, the nearer, the lesser id.
    fn compare(&self, other: &Self, home: Option<InstanceId>) -> Ordering {
        let rest = |one: &Self| (Some(one.instance) != home, one.rtt, one.instance);
        self.cost.total_cmp(&other.cost).then_with(|| rest(self).cmp(&rest(other)))
    }

    /// How likely it is drawn: the nearer the likelier, so that two draws rarely miss the
    /// near ones however many are far.
    fn weight(&self) -> f64 {
        1.0 / self.rtt.max(FLOOR).as_secs_f64()
    }
}

/// Draws one, but not `not`, if there is another.
fn draw(pool: &[Priced], not: Option<usize>, luck: f64) -> Option<&Priced> {
    let others = || pool.iter().filter(|one| Some(one.index) != not);
    let mut left = luck.clamp(0.0, 1.0) * others().map(Priced::weight).sum::<f64>();
    let hit = others().find(|one| {
        left -= one.weight();
        left <= 0.0
    });
    // Rounding may leave a last crumb of luck.
    hit.or_else(|| others().next_back()).or_else(|| pool.first())
}

#[cfg(test)]
mod tests;
