//! How many attempts a front may add to what its clients ask for.
//!
//! Attempts that are sent again help while few fail. When most do, because everything a
//! service has is full or breaks off, they multiply the load of what is in trouble already.
//! So there is a budget, as Finagle's and linkerd2-proxy's are: a share of the requests of the
//! last seconds, and a floor so that a service asked rarely has retries too. It is one front's,
//! for one service: one in trouble spends nothing of another's.
//!
//! What an instance says once and is then not asked any more (it is stopping, gone, or its
//! peer cannot be reached) costs nothing here: it ends by itself, however many ask.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use tokio::time::Instant;

/// Seconds that are looked at: long enough that a pause between two bursts does not forget
/// the first, short enough that yesterday's traffic pays for nothing.
const WINDOW: u64 = 10;
/// Of so many requests one may be sent again: a fifth, the share that Finagle and
/// linkerd2-proxy begin with.
const PER_RETRY: u64 = 5;
/// Retries within the window whatever was asked: ten a second, the floor of both.
const FLOOR: u64 = 100;

/// The budgets of a front, by the word that a service is counted under: bounded as those are.
#[derive(Debug)]
pub(crate) struct Budgets {
    start: Instant,
    services: RwLock<HashMap<String, Arc<Budget>>>,
}

impl Default for Budgets {
    fn default() -> Self {
        Self { start: Instant::now(), services: RwLock::default() }
    }
}

/// The budget of one service.
#[derive(Debug, Default)]
struct Budget(Mutex<Window>);

impl Budgets {
    /// Counts a request of `service`, once, however often it is sent.
    pub(crate) fn asked(&self, service: &str, now: Instant) {
        let now = self.second(now);
        self.with(service, |window| window.asked(now));
    }

    /// Whether there is an attempt left for `service`, which is then spent.
    pub(crate) fn spend(&self, service: &str, now: Instant) -> bool {
        let now = self.second(now);
        self.with(service, |window| window.spend(now))
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs()
    }

    fn with<T>(&self, service: &str, act: impl FnOnce(&mut Window) -> T) -> T {
        // Nothing panics while holding either, and numbers cannot be torn.
        let known = {
            let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
            services.get(service).cloned()
        };
        let budget = known.unwrap_or_else(|| {
            let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
            services.entry(service.to_owned()).or_default().clone()
        });
        act(&mut budget.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What happened in the last seconds, each in a slot of its own.
#[derive(Debug, Default)]
struct Window {
    slots: [Second; WINDOW as usize],
}

/// What happened in one second, counted from the front's beginning.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    second: u64,
    asked: u64,
    spent: u64,
}

impl Window {
    fn asked(&mut self, now: u64) {
        self.slot(now).asked += 1;
    }

    fn spend(&mut self, now: u64) -> bool {
        let recent = self.slots.iter().filter(|slot| slot.second + WINDOW > now);
        let (asked, spent) =
            recent.fold((0, 0), |(asked, spent), slot| (asked + slot.asked, spent + slot.spent));
        let left = spent < FLOOR + asked / PER_RETRY;
        self.slot(now).spent += u64::from(left);
        left
    }

    /// The slot of this second, emptied if it was that of one long ago.
    fn slot(&mut self, now: u64) -> &mut Second {
        let slot = &mut self.slots[(now % WINDOW) as usize];
        if slot.second != now {
            *slot = Second { second: now, ..Second::default() };
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn all_there_are(budgets: &Budgets, service: &str, now: Instant) -> u64 {
        (0..10_000).take_while(|_| budgets.spend(service, now)).count() as u64
    }

    #[test]
    fn a_fifth_of_what_was_asked_in_ten_seconds_and_a_floor_are_to_be_spent() {
        let budgets = Budgets::default();
        let now = budgets.start;
        assert_eq!(all_there_are(&budgets, "svc", now), FLOOR, "a service asked rarely");
        (0..1000).for_each(|_| budgets.asked("svc", now));
        assert_eq!(all_there_are(&budgets, "svc", now), 200);
        assert_eq!(all_there_are(&budgets, "other", now), FLOOR, "each has its own");
        let now = now + Duration::from_secs(9);
        assert_eq!(
            all_there_are(&budgets, "svc", now),
            0,
            "nothing is forgotten within ten seconds"
        );
        let now = now + Duration::from_secs(1);
        assert_eq!(all_there_are(&budgets, "svc", now), FLOOR, "neither what was spent nor asked");
    }

    #[test]
    fn what_comes_evenly_is_sent_again_a_fifth_of_the_time_and_ten_times_a_second() {
        let budgets = Budgets::default();
        let mut again = 0;
        for second in 0..60 {
            let now = budgets.start + Duration::from_secs(second);
            for _ in 0..100 {
                budgets.asked("svc", now);
                again += u64::from(budgets.spend("svc", now));
            }
        }
        let of_a_minute = 60 * (100 / PER_RETRY + FLOOR / WINDOW);
        assert!(again.abs_diff(of_a_minute) <= 2 * FLOOR, "{again}, not about {of_a_minute}");
    }

    proptest! {
        #[test]
        fn no_ten_seconds_have_more_than_their_share(
            steps in proptest::collection::vec((0u64..4, 0u64..60, 0u64..200), 1..60),
        ) {
            let mut window = Window::default();
            let (mut now, mut log) = (0, Vec::new());
            for (later, asked, tries) in steps {
                now += later;
                (0..asked).for_each(|_| window.asked(now));
                let spent = (0..tries).filter(|_| window.spend(now)).count() as u64;
                log.push((now, asked, spent));
                if spent == 0 {
                    continue;
                }
                let recent = log.iter().filter(|(at, ..)| at + WINDOW > now);
                let (asked, spent) =
                    recent.fold((0, 0), |sum, (_, asked, spent)| (sum.0 + asked, sum.1 + spent));
                prop_assert!(spent <= FLOOR + asked / PER_RETRY);
            }
        }
    }
}
