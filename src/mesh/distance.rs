//! How far a peer is away, from probes and from requests. Pure; time comes in as `now`.
//!
//! Three numbers, each for its own purpose. The *median* of the last three probes decides
//! on limits: one bad sample decides nothing. The *smoothed* round trip and its deviation
//! are for deadlines and for people. What requests *felt* corrects a peer that answers
//! probes better than requests.
//!
//! Invariant: what a request felt can make a peer look farther and never nearer. How long
//! it took is our own clock's word; how much of that was the application's is the peer's.

use std::time::Duration;

use tokio::time::Instant;

/// Seconds with requests whose least round trips are compared with the probe's: as many as
/// the median is of.
const SECONDS: usize = 3;
/// How much belongs to one second.
const SECOND: Duration = Duration::from_secs(1);
/// What requests felt longer ago says nothing any more: a peer that was passed over for
/// it gets no requests that could clear it, and is tried again.
const FORGET: Duration = Duration::from_secs(30);
/// Requests contradict the probe from this many times its round trip, and
const FAR: u32 = 2;
/// this much more: a request shares its connection and waits its turn at an ingress, which
/// on a busy machine is milliseconds.
const FARTHER: Duration = Duration::from_millis(10);

/// How far away a peer is. See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Distance {
    /// The median of the last three probes' round trips: what limits are decided on.
    pub median: Duration,
    /// The least of the last probes' round trips: what is left when nobody is busy, and so
    /// what managers of one place agree on. For ranking where agreement is worth more than
    /// the moment; a busy machine can only lengthen a round trip.
    pub least: Duration,
    /// The smoothed round trip of probes and requests (RFC 6298's SRTT).
    pub ewma: Duration,
    /// How far round trips stray from that (RFC 6298's RTTVAR).
    pub deviation: Duration,
    /// What requests took on the way at least, in each of the last three seconds that had
    /// some, if that is far above what the probes say. For ranking and for looking for
    /// something nearer; never to refuse, since a machine's business is in it.
    pub felt: Option<Duration>,
}

impl Distance {
    /// A distance of which nothing else is known.
    pub const fn exactly(rtt: Duration) -> Self {
        Self { median: rtt, least: rtt, ewma: rtt, deviation: Duration::ZERO, felt: None }
    }

    /// What to rank by: the probe's word, or the requests' where they contradict it.
    pub fn effective(&self) -> Duration {
        self.median.max(self.felt.unwrap_or_default())
    }
}

/// A round trip and its deviation, smoothed as in RFC 6298, section 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Smoothed {
    now: Option<(Duration, Duration)>,
}

impl Smoothed {
    /// Takes one more round trip in.
    pub fn add(&mut self, took: Duration) {
        self.now = Some(match self.now {
            None => (took, took / 2),
            Some((ewma, deviation)) => {
                let deviation = (deviation * 3 + ewma.abs_diff(took)) / 4;
                ((ewma * 7 + took) / 8, deviation)
            }
        });
    }

    /// The smoothed round trip and its deviation, if there was any.
    pub fn get(&self) -> Option<(Duration, Duration)> {
        self.now
    }
}

/// What requests felt: the least of each second that had any, for a queue or a stall can
/// only lengthen a round trip.
#[derive(Clone, Debug, Default)]
pub struct Felt {
    /// When a second began and the least of it, oldest first.
    seconds: Vec<(Instant, Duration)>,
}

impl Felt {
    /// A request took this long on the way. The least of the second before, if this
    /// begins another.
    pub fn observed(&mut self, took: Duration, now: Instant) -> Option<Duration> {
        if let Some((began, least)) = self.seconds.last_mut()
            && now.duration_since(*began) < SECOND
        {
            *least = took.min(*least);
            return None;
        }
        let over = self.seconds.last().map(|(_, least)| *least);
        if self.seconds.len() == SECONDS {
            self.seconds.remove(0);
        }
        self.seconds.push((now, took));
        over
    }

    /// What requests say of the distance, if it is far above `median`, what probes say.
    pub fn contradicts(&self, median: Duration, now: Instant) -> Option<Duration> {
        let is_recent = |began| now.duration_since(began) < FORGET;
        // The oldest of them, so all are.
        if self.seconds.len() < SECONDS || !self.seconds.first().is_some_and(|(b, _)| is_recent(*b))
        {
            return None;
        }
        let least = self.seconds.iter().map(|(_, least)| *least).min()?;
        (least > median.saturating_mul(FAR).saturating_add(FARTHER)).then_some(least)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_first_two_round_trips_are_smoothed_as_the_rfc_says() {
        let mut smoothed = Smoothed::default();
        assert_eq!(smoothed.get(), None);
        smoothed.add(ms(80));
        assert_eq!(smoothed.get(), Some((ms(80), ms(40))));
        smoothed.add(ms(160));
        assert_eq!(smoothed.get(), Some((ms(90), ms(50))));
    }

    #[test]
    fn requests_far_above_the_probe_for_three_seconds_are_believed_until_one_is_not() {
        let start = Instant::now();
        let mut felt = Felt::default();
        for second in 0..3 {
            assert_eq!(felt.contradicts(ms(1), start + SECOND * second), None, "{second} seconds");
            for quarter in 0..4 {
                felt.observed(ms(50) + ms(quarter), start + SECOND * second + ms(quarter * 250));
            }
        }
        let now = start + SECOND * 3;
        assert_eq!(felt.contradicts(ms(1), now), Some(ms(50)));
        assert_eq!(felt.contradicts(ms(20), now), None, "50 is not more than twice 20, and 10");
        assert_eq!(felt.contradicts(ms(1), now + FORGET), None, "that was long ago");
        felt.observed(ms(1), now);
        assert_eq!(felt.contradicts(ms(1), now), None);
    }

    #[test]
    fn what_every_request_of_one_second_felt_decides_nothing() {
        let start = Instant::now();
        let mut felt = Felt::default();
        for n in 0..1000 {
            felt.observed(ms(200), start + Duration::from_micros(n * 999));
        }
        assert_eq!(felt.contradicts(ms(1), start + SECOND), None);
    }

    proptest! {
        #[test]
        fn the_smoothed_round_trip_stays_among_those_it_is_of(all in vec(0u64..5_000, 1..50)) {
            let mut smoothed = Smoothed::default();
            all.iter().for_each(|took| smoothed.add(ms(*took)));
            let (ewma, deviation) = smoothed.get().unwrap();
            let (least, most) = (*all.iter().min().unwrap(), *all.iter().max().unwrap());
            prop_assert!(ewma <= ms(most) && ewma + ms(1) >= ms(least), "{ewma:?}");
            prop_assert!(deviation <= ms(most), "{deviation:?}");
        }

        /// Against the rule in words, with any requests at any times.
        #[test]
        fn only_three_seconds_without_a_single_good_request_contradict(
            requests in vec((0u64..1_500, 0u64..300), 0..40), median in 0u64..100,
        ) {
            let mut now = Instant::now();
            let mut felt = Felt::default();
            let mut seconds: Vec<(Instant, Duration)> = Vec::new();
            for (pause, took) in requests {
                now += ms(pause);
                felt.observed(ms(took), now);
                match seconds.last_mut() {
                    Some((began, least)) if now - *began < SECOND => *least = ms(took).min(*least),
                    _ => seconds.push((now, ms(took))),
                }
                let last: Vec<_> = seconds.iter().rev().take(3).filter(|(b, _)| now - *b < FORGET).collect();
                let all_far = last.iter().all(|(_, least)| *least > ms(2 * median + 10));
                let expected = (last.len() == 3 && all_far).then(|| last.iter().map(|(_, l)| *l).min().unwrap());
                prop_assert_eq!(felt.contradicts(ms(median), now), expected);
                let effective = Distance { felt: expected, ..Distance::exactly(ms(median)) }.effective();
                prop_assert!(effective >= ms(median), "a request never makes a peer nearer");
            }
        }
    }
}
