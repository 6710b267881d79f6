//! Which bootstrap to dial when. Pure: time and luck are passed in.
//!
//! A bootstrap that is not connected is dialled for ever, less and less often, whatever
//! else is connected: when all neighbours are gone or hostile, it is the way back.
//! Dialling sets the next time already, so that no outcome has to be waited for.

use std::time::{Duration, Instant};

use lca::{PeerId, config::Bootstrap};

use super::BootstrapState;

/// All bootstraps of this node.
#[derive(Debug)]
pub(crate) struct Bootstraps {
    first: Duration,
    most: Duration,
    targets: Vec<Target>,
}

#[derive(Debug)]
struct Target {
    at: Bootstrap,
    connected: bool,
    attempts: u32,
    due: Instant,
    /// Why the last attempt failed.
    error: Option<String>,
}

/// Characters kept of why one could not be reached: a sentence or two.
const MAX_ERROR: usize = 300;

impl Bootstraps {
    /// Waits grow from `first` to `most`. This node itself is not among its bootstraps,
    /// even if it was named.
    pub(crate) fn new(
        named: &[Bootstrap],
        local: PeerId,
        (first, most): (Duration, Duration),
        now: Instant,
    ) -> Self {
        let others = named.iter().filter(|at| at.peer != local);
        let target = |at: &Bootstrap| Target {
            at: at.clone(),
            connected: false,
            attempts: 0,
            due: now,
            error: None,
        };
        Self { first, most, targets: others.map(target).collect() }
    }

    /// How many there are, and how many are connected.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.targets.len(), self.targets.iter().filter(|target| target.connected).count())
    }

    /// Others are to be used from now on. What is known about those that stay is kept;
    /// of the `peers` that are connected, new ones count as reached.
    pub(crate) fn replace(
        &mut self,
        named: &[Bootstrap],
        local: PeerId,
        peers: &[PeerId],
        now: Instant,
    ) {
        let before = std::mem::take(&mut self.targets);
        let mut after = Self::new(named, local, (self.first, self.most), now);
        for target in &mut after.targets {
            target.connected = peers.contains(&target.at.peer);
        }
        for old in before {
            if let Some(same) = after.targets.iter_mut().find(|target| target.at == old.at) {
                *same = old;
            }
        }
        *self = after;
    }

    /// How it stands with each.
    pub(crate) fn states(&self) -> Vec<BootstrapState> {
        let state = |target: &Target| BootstrapState {
            at: target.at.clone(),
            connected: target.connected,
            last_error: target.error.clone(),
        };
        self.targets.iter().map(state).collect()
    }

    /// An attempt to connect to the peer has failed.
    pub(crate) fn failed(&mut self, peer: PeerId, why: &str) {
        for target in self.targets.iter_mut().filter(|t| t.at.peer == peer && !t.connected) {
            target.error = Some(why.chars().take(MAX_ERROR).collect());
        }
    }

    /// Whether this is one of them.
    pub(crate) fn contains(&self, peer: PeerId) -> bool {
        self.targets.iter().any(|target| target.at.peer == peer)
    }

    /// The peer is connected.
    pub(crate) fn connected(&mut self, peer: PeerId) {
        for target in self.targets.iter_mut().filter(|target| target.at.peer == peer) {
            target.connected = true;
            target.attempts = 0;
            target.error = None;
        }
    }

    /// The last connection to the peer is gone: it is dialled again after the first
    /// wait, so that two who lost each other do not both dial at once for ever.
    pub(crate) fn disconnected(&mut self, peer: PeerId, now: Instant, luck: f64) {
        for target in self.targets.iter_mut().filter(|target| target.at.peer == peer) {
            target.connected = false;
            target.due = now + wait(0, self.first, self.most, luck);
        }
    }

    /// The peer is none of them any more.
    pub(crate) fn remove(&mut self, peer: PeerId) {
        self.targets.retain(|target| target.at.peer != peer);
    }

    /// When one is to be dialled next.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.targets.iter().filter(|target| !target.connected).map(|target| target.due).min()
    }

    /// Those to dial now, with how often each was dialled in vain.
    pub(crate) fn take_due(
        &mut self,
        now: Instant,
        mut luck: impl FnMut() -> f64,
    ) -> Vec<(Bootstrap, u32)> {
        let mut due = Vec::new();
        for target in self.targets.iter_mut().filter(|t| !t.connected && t.due <= now) {
            due.push((target.at.clone(), target.attempts));
            target.due = now + wait(target.attempts, self.first, self.most, luck());
            target.attempts = target.attempts.saturating_add(1);
        }
        due
    }
}

/// The wait after this many attempts in vain: doubled each time, less up to a half by
/// `luck` (0 to 1), so that many nodes do not return to a bootstrap in one wave.
fn wait(attempts: u32, first: Duration, most: Duration, luck: f64) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(attempts)).min(most);
    doubled.mul_f64(1.0 - 0.5 * luck)
}

#[cfg(test)]
mod tests {
    use lca::config::Host;
    use proptest::prelude::*;

    use super::*;

    const FIRST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(30);

    fn peer(number: u8) -> PeerId {
        PeerId::from_public_key([number; 32])
    }

    fn two() -> (Bootstraps, Instant) {
        let named = [1, 2, 9].map(|number| Bootstrap {
            host: Host::Ip([127, 0, 0, 1].into()),
            port: number.into(),
            peer: peer(number),
        });
        let now = Instant::now();
        (Bootstraps::new(&named, peer(9), (FIRST, MOST), now), now)
    }

    #[test]
    fn all_are_dialled_at_once_but_never_oneself() {
        let (mut bootstraps, now) = two();
        assert_eq!(bootstraps.count(), (2, 0));
        assert_eq!(bootstraps.take_due(now, || 0.0).len(), 2);
        assert!(bootstraps.take_due(now, || 0.0).is_empty());
        assert_eq!(bootstraps.next(), Some(now + FIRST));
    }

    #[test]
    fn one_that_is_connected_is_left_alone_until_it_is_lost() {
        let (mut bootstraps, now) = two();
        bootstraps.take_due(now, || 0.0);
        bootstraps.connected(peer(1));
        assert_eq!(bootstraps.count(), (2, 1));
        let due = bootstraps.take_due(now + MOST, || 0.0);
        assert!(due.iter().all(|(at, attempts)| at.peer == peer(2) && *attempts == 1));
        bootstraps.disconnected(peer(1), now + MOST, 0.0);
        assert_eq!(bootstraps.next(), Some(now + MOST + FIRST));
    }

    #[test]
    fn why_one_could_not_be_reached_is_known_until_it_is() {
        let (mut bootstraps, now) = two();
        bootstraps.failed(peer(1), &"x".repeat(10 * MAX_ERROR));
        let kept = bootstraps.states()[0].last_error.clone();
        assert_eq!(kept.map(|error| error.len()), Some(MAX_ERROR));
        assert_eq!(bootstraps.states()[1].last_error, None);
        bootstraps.connected(peer(1));
        // A second connection attempt may lose the race; nothing is wrong then.
        bootstraps.failed(peer(1), "too late");
        assert_eq!(bootstraps.states()[0].last_error, None);
        bootstraps.disconnected(peer(1), now, 0.0);
        bootstraps.failed(peer(1), "refused");
        assert_eq!(bootstraps.states()[0].last_error.as_deref(), Some("refused"));
    }

    #[test]
    fn others_can_be_used_later_and_those_that_stay_are_not_dialled_anew() {
        let (mut bootstraps, now) = two();
        bootstraps.take_due(now, || 0.0);
        let at = |number: u8| Bootstrap {
            host: Host::Ip([127, 0, 0, 1].into()),
            port: number.into(),
            peer: peer(number),
        };
        bootstraps.replace(&[at(2), at(3), at(4)], peer(9), &[peer(4)], now);
        assert_eq!(bootstraps.count(), (3, 1), "4 was connected before it was a bootstrap");
        let due = bootstraps.take_due(now, || 0.0);
        assert!(due.iter().all(|(at, _)| at.peer == peer(3)) && due.len() == 1, "{due:?}");
        assert!(!bootstraps.contains(peer(1)));
    }

    #[test]
    fn waits_grow_to_the_longest_and_go_on_for_ever() {
        let seconds = |attempts| wait(attempts, FIRST, MOST, 0.0).as_secs();
        assert_eq!([0, 1, 2, 3, 4, 5, 1000, u32::MAX].map(seconds), [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    proptest! {
        #[test]
        fn a_wait_is_never_nothing_and_never_too_long(attempts: u32, luck in 0.0..=1.0) {
            let wait = wait(attempts, FIRST, MOST, luck);
            prop_assert!(wait >= FIRST / 2 && wait <= MOST);
        }
    }
}
