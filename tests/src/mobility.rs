//! The ride of the paper: a sensor asks an aggregator that runs on buses, which come near and
//! go away one after the other. Used by a test, with time and distances of its own, and by
//! the benchmark, with the paper's.
//!
//! The sensor is a proxy, each bus an allocator. Bus `n` is nearest at `first + n * apart`;
//! its RTT falls from `far` to `near` in half of a `pass`, and rises again in the other
//! half. Two clients ask at the same times: one for a service with the limits, one for the same
//! program without any, which therefore stays with its first choice.

use std::{sync::Arc, time::Duration};

use lca::{PeerId, api::proto};
use lca_node::link::{
    Profile,
    course::{self, Course, End, Keyframe},
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::{Cluster, Service, eventually_within, http};

/// How many buses there are.
pub const BUSES: usize = 3;
/// Longest until the first request of each client is answered.
const BEGIN_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks whether the machine keeps up.
const BREATH: Duration = Duration::from_millis(5);
/// The service with limits, and the same without.
const MOVING: &str = "aggregator";
const STAYING: &str = "aggregator-stays";

/// One ride.
#[derive(Clone, Debug)]
pub struct Ride {
    /// The limits of the aggregator; whole milliseconds.
    pub soft: Duration,
    /// See `soft`.
    pub hard: Duration,
    /// A bus is at most so far away, and at least so near.
    pub far: Duration,
    /// See `far`.
    pub near: Duration,
    /// From `far` through `near` to `far` again.
    pub pass: Duration,
    /// When the first bus is nearest.
    pub first: Duration,
    /// From one bus being nearest to the next one being.
    pub apart: Duration,
    /// How long it takes.
    pub length: Duration,
    /// Between two requests of a client.
    pub every: Duration,
    /// How often nodes probe, and the like.
    pub timing: lca_node::Timing,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was sent, since the ride began.
    pub at: Duration,
    /// Until its whole answer was there.
    pub latency: Duration,
    /// The bus that answered, or why there is no good answer.
    pub bus: Result<usize, String>,
}

/// What the sensor's node thought of the distances at one time.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Since the ride began.
    pub at: Duration,
    /// The median of its last three probes of each bus, if it looks at it.
    pub rtts: [Option<Duration>; BUSES],
}

/// From one bus to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// When the first request went to the new one, since the ride began.
    pub at: Duration,
    /// The bus it was, and the bus it is.
    pub from: usize,
    /// See `from`.
    pub to: usize,
}

/// A whole ride.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What was recorded.
    pub ride: Ride,
    /// The client with limits, in the order of sending.
    pub moving: Vec<Sample>,
    /// The client that stays.
    pub staying: Vec<Sample>,
    /// In order.
    pub measured: Vec<Measured>,
    /// The most by which anything here ran later than it was due, because the machine was
    /// doing something else. Round trips are longer by as much, several times over.
    pub out_of_breath: Duration,
}

impl Ride {
    /// The paper's: soft 5 ms, hard 10 ms, 10 to 1 to 10 ms over 100 s, 20 requests a second.
    pub fn paper() -> Self {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        Self {
            soft: ms(5),
            hard: ms(10),
            far: ms(10),
            near: ms(1),
            pass: s(100),
            first: s(10),
            apart: s(50),
            length: s(125),
            every: ms(50),
            timing: lca_node::Timing::default(),
        }
    }

    /// The same with distances `by` times as long, so that what a busy machine adds to a
    /// round trip does not count, and with requests that do not overlap: what overlaps is
    /// spread over several instances.
    #[must_use]
    pub fn farther(mut self, by: u32) -> Self {
        self.every = self.every.max(self.hard * by * 2);
        for distance in [&mut self.soft, &mut self.hard, &mut self.far, &mut self.near] {
            *distance *= by;
        }
        self
    }

    /// The same, and a bus comes from and goes on to `by` times as far, no faster: a client
    /// that stays with it is then beyond hard, where the paper's is at most just there.
    #[must_use]
    pub fn longer(mut self, by: u32) -> Self {
        self.far = self.near + (self.far - self.near) * by;
        self.pass *= by;
        self
    }

    /// The same in less time, its probes more often to match.
    #[must_use]
    pub fn faster(mut self, by: u32) -> Self {
        let mesh = &mut self.timing.mesh;
        for time in [
            &mut self.pass,
            &mut self.first,
            &mut self.apart,
            &mut self.length,
            &mut mesh.probe_every,
            &mut mesh.probe_idly_every,
        ] {
            *time /= by;
        }
        self
    }

    /// What lies between the sensor and a bus, from the beginning of the ride.
    fn course(&self, bus: usize) -> Course {
        let nearest = self.first + self.apart * bus as u32;
        let half = self.pass / 2;
        let frame = |at, rtt| Keyframe { at, profile: Profile::rtt(rtt) };
        let begin = match nearest.checked_sub(half) {
            Some(begin) => vec![frame(begin, self.far)],
            // It is on its way already.
            None => {
                let share = nearest.as_secs_f64() / half.as_secs_f64();
                vec![frame(Duration::ZERO, self.near + (self.far - self.near).mul_f64(share))]
            }
        };
        let rest = [frame(nearest, self.near), frame(nearest + half, self.far)];
        Course::new(begin.into_iter().chain(rest).collect(), End::Hold)
            .expect("a bus comes before it goes")
    }

    /// How far away a bus is at a time of the ride.
    pub fn rtt(&self, bus: usize, at: Duration) -> Duration {
        self.course(bus).at(at).delay
    }

    /// Rides; `service` makes the demo under a name.
    ///
    /// # Errors
    /// If the fleet cannot be started, or the first requests are not answered.
    pub async fn record(&self, service: impl Fn(&str) -> Service) -> anyhow::Result<Recording> {
        let cluster = Cluster::builder().allocators(BUSES).timing(self.timing).start().await?;
        let buses: [PeerId; BUSES] = std::array::from_fn(|n| cluster.allocator(n).peer);
        let sensor = cluster.proxy(0).peer;
        for (n, bus) in buses.iter().enumerate() {
            cluster.link(sensor, *bus, self.course(n).at(Duration::ZERO));
        }
        let millis = |limit: Duration| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        let mut moving = service(MOVING);
        moving.spec.requirements = Some(proto::Requirements {
            soft_rtt_ms: millis(self.soft),
            hard_rtt_ms: millis(self.hard),
        });
        cluster.add(&moving).await?;
        cluster.add(&service(STAYING)).await?;
        let asking = Arc::new(Asking { front: cluster.front(0), buses });
        // A machine that is busy building may see too far a bus in its first probes.
        for name in [MOVING, STAYING] {
            let what = format!("a first answer of {name}");
            eventually_within(BEGIN_WITHIN, &what, async || asking.ask(name).await.1).await;
        }

        let courses = (0..BUSES).map(|n| (sensor, buses[n], self.course(n))).collect();
        let driving = tokio::spawn(course::drive(cluster.links().clone(), courses));
        let began = Instant::now();
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut requests = JoinSet::new();
        let mut recording = Recording {
            ride: self.clone(),
            moving: Vec::new(),
            staying: Vec::new(),
            measured: Vec::new(),
            out_of_breath: Duration::ZERO,
        };
        let breath = tokio::spawn(out_of_breath(began + self.length));
        while began.elapsed() < self.length {
            ticks.tick().await;
            let at = began.elapsed();
            for name in [MOVING, STAYING] {
                let asking = asking.clone();
                requests.spawn(async move {
                    let (latency, bus) = asking.ask(name).await;
                    (name, Sample { at, latency, bus })
                });
            }
            let node = cluster.proxy_node(0);
            let rtts = buses.map(|bus| lca::mesh::Mesh::rtt(node, bus));
            recording.measured.push(Measured { at, rtts });
        }
        while let Some(done) = requests.join_next().await {
            let (name, sample) = done?;
            let samples =
                if name == MOVING { &mut recording.moving } else { &mut recording.staying };
            samples.push(sample);
        }
        recording.out_of_breath = breath.await?;
        recording.moving.sort_by_key(|sample| sample.at);
        recording.staying.sort_by_key(|sample| sample.at);
        driving.abort();
        for bus in buses {
            cluster.heal(sensor, bus);
        }
        cluster.drain().await;
        Ok(recording)
    }
}

/// By how much a timer is late at worst until `end`, on the runtime that the nodes share.
async fn out_of_breath(end: Instant) -> Duration {
    let mut worst = Duration::ZERO;
    while Instant::now() < end {
        let due = Instant::now() + BREATH;
        sleep_until(due).await;
        worst = worst.max(due.elapsed());
    }
    worst
}

/// Who asks.
struct Asking {
    front: std::net::SocketAddr,
    buses: [PeerId; BUSES],
}

impl Asking {
    /// One request: how long it took, and which bus answered.
    async fn ask(&self, name: &str) -> (Duration, Result<usize, String>) {
        let began = Instant::now();
        let answer = http::get_debug(self.front, &format!("/{name}/hello")).await;
        let latency = began.elapsed();
        let bus = answer.map_err(|error| format!("{error:#}")).and_then(|answer| {
            if answer.status != 200 {
                return Err(format!("{}: {}", answer.status, answer.text()));
            }
            let peer = answer.headers.get("lca-debug-peer").and_then(|peer| peer.to_str().ok());
            let peer: Option<PeerId> = peer.and_then(|peer| peer.parse().ok());
            let bus = self.buses.iter().position(|bus| Some(*bus) == peer);
            bus.ok_or_else(|| format!("answered by {peer:?}, which is no bus"))
        });
        (latency, bus)
    }
}

impl Recording {
    /// What went wrong with requests without a good answer, of both clients, and when.
    pub fn failures(&self) -> Vec<String> {
        let failed = |one: &Sample| {
            let reason = one.bus.as_ref().err()?;
            Some(format!("at {:.2} s: {reason}", one.at.as_secs_f64()))
        };
        self.moving.iter().chain(&self.staying).filter_map(failed).collect()
    }

    /// The moves of the client with limits.
    pub fn moves(&self) -> Vec<Move> {
        self.moves_of(&self.moving)
    }

    /// The moves of a client.
    pub fn moves_of(&self, samples: &[Sample]) -> Vec<Move> {
        moves(samples)
    }

    /// How far away the bus that answered was when a request was sent.
    pub fn rtt_of(&self, sample: &Sample) -> Option<Duration> {
        sample.bus.as_ref().ok().map(|bus| self.ride.rtt(*bus, sample.at))
    }

    /// The share of answers, 0 to 1, from a bus that was further away than `limit`.
    pub fn share_above(&self, samples: &[Sample], limit: Duration) -> f64 {
        let above = |sample: &&Sample| self.rtt_of(sample).is_some_and(|rtt| rtt > limit);
        samples.iter().filter(above).count() as f64 / samples.len().max(1) as f64
    }

    /// The longest request.
    pub fn worst(samples: &[Sample]) -> Duration {
        samples.iter().map(|sample| sample.latency).max().unwrap_or_default()
    }
}

fn moves(samples: &[Sample]) -> Vec<Move> {
    let served = samples.iter().filter_map(|one| Some((one.at, *one.bus.as_ref().ok()?)));
    let served: Vec<_> = served.collect();
    let pairs = served.windows(2).filter(|pair| pair[0].1 != pair[1].1);
    pairs.map(|pair| Move { at: pair[1].0, from: pair[0].1, to: pair[1].1 }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bus_is_near_when_it_should_be_and_the_next_one_overlaps() {
        let ride = Ride::paper();
        let rtt = |bus, s| ride.rtt(bus, Duration::from_secs(s)).as_secs_f64() * 1e3;
        let close = |a: f64, b: f64| (a - b).abs() < 0.01;
        assert!(close(rtt(0, 0), 2.8) && close(rtt(0, 10), 1.0) && close(rtt(0, 60), 10.0));
        assert!(close(rtt(1, 0), 10.0) && close(rtt(1, 10), 10.0) && close(rtt(2, 60), 10.0));
        // Where one has gone half of its way, the next one has come half of its own.
        assert!(close(rtt(0, 35), 5.5) && close(rtt(1, 35), 5.5));
        assert!(close(rtt(1, 60), 1.0) && close(rtt(2, 110), 1.0));
        let longer = Ride::paper().longer(2);
        let rtt = |bus, s| longer.rtt(bus, Duration::from_secs(s)).as_secs_f64() * 1e3;
        assert!(close(rtt(0, 35), 5.5) && close(rtt(0, 60), 10.0) && close(rtt(0, 110), 19.0));
        let quick = Ride::paper().farther(10).faster(5);
        assert_eq!(quick.rtt(2, Duration::from_secs(22)), Duration::from_millis(10));
        assert_eq!(quick.timing.mesh.probe_every, Duration::from_millis(200));
    }

    #[test]
    fn a_move_is_where_another_bus_answers_and_a_failure_is_none() {
        let sample = |at, bus: Result<usize, &str>| Sample {
            at: Duration::from_secs(at),
            latency: Duration::ZERO,
            bus: bus.map_err(str::to_owned),
        };
        let all = [sample(1, Ok(0)), sample(2, Err("x")), sample(3, Ok(0)), sample(4, Ok(2))];
        let at = Duration::from_secs(4);
        assert_eq!(moves(&all), [Move { at, from: 0, to: 2 }]);
    }
}
