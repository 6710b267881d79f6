//! How a link changes while time passes: a list of keyframes, straight lines between them.
//!
//! Pure, but for [`drive`], which sets what the courses say of now. A course that does not
//! change is set once.

use std::time::Duration;

use lca::PeerId;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Links, Profile};

/// How often links that change are set: a tenth of the interval of probes, so that none
/// sees a step.
const EVERY: Duration = Duration::from_millis(20);

/// What a link is like at one time of its course.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keyframe {
    /// Since the course began.
    pub at: Duration,
    /// What it is like then.
    pub profile: Profile,
}

/// What follows the last keyframe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// It stays.
    #[default]
    Hold,
    /// The course begins again; the last keyframe is the first one.
    Loop,
}

/// The course of a link. Never empty, and its keyframes are in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    frames: Vec<Keyframe>,
    end: End,
}

impl Course {
    /// A link that stays as it is.
    pub fn steady(profile: Profile) -> Self {
        Self { frames: vec![Keyframe { at: Duration::ZERO, profile }], end: End::Hold }
    }

    /// A link that changes; `None` if there is no keyframe, or one is not later than that
    /// before it.
    pub fn new(frames: Vec<Keyframe>, end: End) -> Option<Self> {
        let in_order = frames.is_sorted_by(|a, b| a.at < b.at);
        (!frames.is_empty() && in_order).then_some(Self { frames, end })
    }

    /// What the link is like so long after the beginning. Before the first keyframe it is
    /// like that one; whether it is cut does not change on the way to the next.
    pub fn at(&self, since: Duration) -> Profile {
        let last = self.frames[self.frames.len() - 1];
        let since = match self.end {
            End::Loop if !last.at.is_zero() => {
                Duration::from_secs_f64(since.as_secs_f64() % last.at.as_secs_f64())
            }
            _ => since,
        };
        let next = self.frames.partition_point(|frame| frame.at <= since);
        match (next.checked_sub(1).map(|n| self.frames[n]), self.frames.get(next)) {
            (None, Some(first)) => first.profile,
            (Some(before), Some(after)) => {
                let passed = (since - before.at).as_secs_f64();
                between(
                    before.profile,
                    after.profile,
                    passed / (after.at - before.at).as_secs_f64(),
                )
            }
            _ => last.profile,
        }
    }

    /// Whether it is never anything else than it is in the beginning.
    pub fn is_steady(&self) -> bool {
        self.frames.len() == 1
    }
}

/// `share` of the way from one to the other.
fn between(from: Profile, to: Profile, share: f64) -> Profile {
    let time = |from: Duration, to: Duration| {
        let seconds = from.as_secs_f64() + (to.as_secs_f64() - from.as_secs_f64()) * share;
        Duration::from_secs_f64(seconds.max(0.0))
    };
    Profile {
        delay: time(from.delay, to.delay),
        jitter: time(from.jitter, to.jitter),
        stall: from.stall + (to.stall - from.stall) * share,
        cut: from.cut,
    }
}

/// Lets links go their courses from now on, until dropped; what they are then, they stay.
/// Never ends.
pub async fn drive(links: Links, courses: Vec<(PeerId, PeerId, Course)>) {
    let (steady, moving): (Vec<_>, Vec<_>) =
        courses.into_iter().partition(|(.., course)| course.is_steady());
    let started = Instant::now();
    let now = |courses: &[(PeerId, PeerId, Course)]| {
        let since = started.elapsed();
        links.set_all(courses.iter().map(|(a, b, course)| (*a, *b, course.at(since))));
    };
    now(&steady);
    if moving.is_empty() {
        return std::future::pending().await;
    }
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        now(&moving);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: PeerId = PeerId::from_public_key([1; 32]);
    const B: PeerId = PeerId::from_public_key([2; 32]);

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn rtts(frames: &[(u64, u64)], end: End) -> Option<Course> {
        let frame =
            |&(at, rtt): &(u64, u64)| Keyframe { at: ms(at), profile: Profile::rtt(ms(rtt)) };
        Course::new(frames.iter().map(frame).collect(), end)
    }

    #[test]
    fn a_bus_comes_and_goes_and_comes_again() {
        let frames = [(0, 10), (50, 1), (100, 10)];
        let looping = rtts(&frames, End::Loop).unwrap();
        let rtt = |course: &Course, at: u64| course.at(ms(at)).delay.as_secs_f64() * 1e3;
        for (at, expected) in [(0, 10.0), (25, 5.5), (50, 1.0), (75, 5.5), (150, 1.0), (175, 5.5)] {
            assert!((rtt(&looping, at) - expected).abs() < 1e-3, "{at}: {}", rtt(&looping, at));
        }
        let held = rtts(&frames, End::Hold).unwrap();
        assert_eq!(rtt(&held, 100_000), 10.0);
        let late = rtts(&[(50, 1), (100, 10)], End::Hold).unwrap();
        assert_eq!(rtt(&late, 0), 1.0);
        assert_eq!(Course::steady(Profile::CUT).at(ms(9)), Profile::CUT);
    }

    #[test]
    fn a_course_without_order_is_none() {
        assert_eq!(rtts(&[], End::Hold), None);
        assert_eq!(rtts(&[(5, 1), (5, 2)], End::Hold), None);
        assert_eq!(rtts(&[(5, 1), (4, 2)], End::Loop), None);
        assert!(rtts(&[(0, 1)], End::Loop).unwrap().at(ms(7)).delay == ms(1));
    }

    #[tokio::test(start_paused = true)]
    async fn links_follow_their_courses_while_they_are_driven() {
        let links = Links::default();
        let moving = rtts(&[(0, 100), (1000, 200)], End::Hold).unwrap();
        let driving = tokio::spawn(drive(links.clone(), vec![(A, B, moving)]));
        tokio::time::sleep(ms(510)).await;
        let half_way = links.link(B, A).profile().delay;
        assert!((ms(148)..=ms(151)).contains(&half_way), "{half_way:?}");
        driving.abort();
        tokio::time::sleep(ms(600)).await;
        assert_eq!(links.link(A, B).profile().delay, half_way);
    }

    proptest! {
        /// Whatever the course, it never leaves what its keyframes span.
        #[test]
        fn between_keyframes_nothing_is_beyond_them(
            steps in proptest::collection::vec((1u64..10_000, 0u64..1000), 1..8),
            looping: bool, at in 0u64..200_000,
        ) {
            let mut time = 0;
            let frames: Vec<_> = steps.iter().map(|(step, rtt)| { time += step; (time, *rtt) }).collect();
            let end = if looping { End::Loop } else { End::Hold };
            let delay = rtts(&frames, end).unwrap().at(ms(at)).delay;
            let all = || frames.iter().map(|(_, rtt)| ms(*rtt));
            let slack = Duration::from_micros(1);
            prop_assert!(delay + slack >= all().min().unwrap() && delay <= all().max().unwrap() + slack);
        }
    }
}
