//! A service's spec, checked: what runs, how, and with which promises.
//!
//! [`Spec`] is only ever made from its form on the wire, which is checked in `wire`, so
//! whoever holds one holds values within bounds, with the defaults filled in.

use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

use sha2::{Digest as _, Sha256};

use crate::{ServiceHash, ServiceName};

pub use liveness::Liveness;
pub use runs::{Capability, Image, Pin, Runs};

mod liveness;
mod runs;
mod wire;

/// An hour: an RTT limit above it means nothing.
pub(crate) const MAX_RTT_MS: u32 = 3_600_000;

/// What the registry holds for one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// What clients ask for.
    pub name: ServiceName,
    /// What runs.
    pub runs: Runs,
    /// Arguments, `${...}` not yet filled in.
    pub arguments: Vec<String>,
    /// Environment on top of what every instance is told.
    pub environment: BTreeMap<String, String>,
    /// What it speaks on its port.
    pub protocol: Protocol,
    /// When it counts as ready.
    pub readiness: Readiness,
    /// How an instance that hangs is noticed, if it is to be.
    pub liveness: Option<Liveness>,
    /// It gets the socket of its port listening already.
    pub socket_activation: bool,
    /// What its clients are promised.
    pub requirements: Requirements,
    /// What one instance is admitted with.
    pub resources: Resources,
    /// What one instance may use at most.
    pub allowance: Allowance,
    /// How long an instance without open requests is kept.
    pub idle_timeout: Duration,
    /// Requests one instance is given at the same time.
    pub concurrency_limit: u32,
    /// So many instances are kept, used or not.
    pub min_instances: u32,
    /// So many there are at most, as far as the holders of claims are reached; `None`:
    /// no limit. Not below `min_instances`.
    pub max_instances: Option<NonZeroU32>,
    /// Requests in flight per instance above which another is started; `None`: never
    /// for load. Not above `concurrency_limit`.
    pub target_concurrency: Option<NonZeroU32>,
    /// Which allocator gets the next instance.
    pub placement: Placement,
    /// What one request may be and take.
    pub limits: Limits,
    /// Which change of the name this is, from 1; 0 before the registry took it.
    pub revision: u64,
}

/// What an instance speaks on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 in cleartext, with prior knowledge: what gRPC programs speak.
    H2c,
}

/// Which allocator, of those within the soft requirement and with room, is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Placement {
    /// The nearest.
    #[default]
    Nearest,
    /// The one with the fewest instances of the service, then the one least used.
    Spread,
    /// The one most used that still has room.
    Pack,
}

/// When an instance counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// GET this until any 2xx answers; `None`: until the port accepts.
    pub http_path: Option<String>,
    /// From the start of the program to its first sign of readiness.
    pub start_timeout: Duration,
}

/// Limits on the round-trip time between a client and an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// Above it, look for something nearer.
    pub soft: Option<Duration>,
    /// Above it, do not use.
    pub hard: Option<Duration>,
}

impl Requirements {
    /// The stricter of both, limit by limit.
    #[must_use]
    pub fn tightened(self, other: Self) -> Self {
        let stricter = |a: Option<Duration>, b: Option<Duration>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let hard = stricter(self.hard, other.hard);
        // Soft above hard would promise what hard forbids.
        let soft =
            stricter(self.soft, other.soft).map(|soft| hard.map_or(soft, |hard| soft.min(hard)));
        Self { soft, hard }
    }

    /// Whether an instance at this distance may be used at all.
    pub fn within_hard(&self, rtt: Duration) -> bool {
        self.hard.is_none_or(|hard| rtt <= hard)
    }

    /// Whether an instance at this distance is as near as it should be.
    pub fn within_soft(&self, rtt: Duration) -> bool {
        self.soft.is_none_or(|soft| rtt <= soft) && self.within_hard(rtt)
    }
}

/// What one request may be and take, as far as somebody says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of its body.
    pub max_body: Option<u64>,
    /// From its last movement to the head of its answer.
    pub answer: Option<Duration>,
    /// Until the next part of a body, either way.
    pub quiet: Option<Duration>,
    /// From its head to the last byte of its answer.
    pub request: Option<Duration>,
}

/// What one instance takes of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of one core.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}

impl Default for Resources {
    fn default() -> Self {
        Self { cpu_millis: 100, memory_bytes: 64 << 20 }
    }
}

/// What one instance may use at most, as far as its machine can enforce that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Thousandths of one core; `None`: no limit, and a share by [`Resources::cpu_millis`]
    /// where processor time is short.
    pub cpu_millis: Option<NonZeroU32>,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u32,
    /// Open files of one process; `None`: what the allocator gives.
    pub open_files: Option<NonZeroU32>,
    /// Bytes of output that are kept.
    pub log_bytes: u64,
    /// Bytes in its working folder, and of any file it writes.
    pub disk_bytes: u64,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            cpu_millis: None,
            memory_bytes: Resources::default().memory_bytes,
            processes: 512, // several times what a runtime with a thread a core has
            open_files: None,
            log_bytes: 16 << 20,
            disk_bytes: 1 << 30,
        }
    }
}

impl Spec {
    /// Start time-out where the spec names none: what a slow program needs, not a stuck one.
    pub const DEFAULT_START_TIMEOUT: Duration = Duration::from_secs(10);
    /// The same for an image: an engine under load takes seconds before the program is run.
    pub const DEFAULT_IMAGE_START_TIMEOUT: Duration = Self::MAX_START_TIMEOUT;
    /// Longest start time-out: a front waits 75 s for an instance, its fetch included,
    /// so a longer one would be promised and never kept.
    pub const MAX_START_TIMEOUT: Duration = Duration::from_secs(60);
    /// Idle time-out where the spec names none: a client with a request a minute keeps
    /// its instance.
    pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
    /// Concurrency limit where the spec names none: more than a small machine's
    /// program serves well, low enough to bound what one flood can hold open.
    pub const DEFAULT_CONCURRENCY_LIMIT: u32 = 1024;
    /// Highest of `min_instances` and `max_instances`: holders of claims count every
    /// instance in memory, and one keeper starts all it keeps.
    pub const MAX_INSTANCES: u32 = 1000;

    /// The DHT key of its instances: SHA-256 of name, what runs (an image with its port
    /// and rights, not with its reference), arguments, environment and protocol, each part
    /// length-prefixed, so that no two different specs are written alike. Requirements are not part of it, nor is how many
    /// instances there are and where: that may change under those that run.
    pub fn hash(&self) -> ServiceHash {
        let mut hasher = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        part(b"lca/service/1");
        part(self.name.as_str().as_bytes());
        self.runs.hash_into(&mut part);
        part(&(self.arguments.len() as u64).to_be_bytes());
        self.arguments.iter().for_each(|argument| part(argument.as_bytes()));
        part(&(self.environment.len() as u64).to_be_bytes());
        for (name, value) in &self.environment {
            part(name.as_bytes());
            part(value.as_bytes());
        }
        part(match self.protocol {
            Protocol::Http1 => b"http1",
            Protocol::H2c => b"h2c",
        });
        // Only where it is wanted: what was hashed before it was known stays as it was.
        if self.socket_activation {
            part(b"socket-activation");
        }
        ServiceHash::from_sha256(hasher.finalize().into())
    }

    /// Whether it is represented by a proxy and never allocated.
    pub fn is_external(&self) -> bool {
        self.runs == Runs::External
    }

    /// Whether both describe the same service, whatever their revisions.
    pub fn same_content(&self, other: &Self) -> bool {
        Self { revision: 0, ..self.clone() } == Self { revision: 0, ..other.clone() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Digest, api::proto};

    /// The least that is a spec.
    pub(super) fn least() -> proto::ServiceSpec {
        proto::ServiceSpec {
            name: "hello".into(),
            artifact: Digest::of(b"x").to_string(),
            ..Default::default()
        }
    }

    #[test]
    fn the_hash_is_what_it_was_before_there_were_images() {
        let spec = Spec::try_from(least()).unwrap();
        let hash = "022799b9414140f1041fa4c7420a8bec1506e9824066ec1338ef6ff4b337124a";
        assert_eq!(spec.hash().to_string(), hash);
        let external = Spec { runs: Runs::External, ..spec };
        let hash = "adad03d9a76a576d560d55336777035d9aca8318ab8aa48bc98a1b0e1e25f4d2";
        assert_eq!(external.hash().to_string(), hash);
    }

    #[test]
    fn the_hash_covers_what_runs_and_nothing_else() {
        let spec = Spec::try_from(least()).unwrap();
        let same = Spec {
            requirements: Requirements { soft: Some(Duration::ZERO), hard: None },
            liveness: Some(Liveness {
                http_path: "/".into(),
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                failures: 1,
            }),
            min_instances: 2,
            max_instances: NonZeroU32::new(3),
            target_concurrency: NonZeroU32::new(4),
            placement: Placement::Pack,
            limits: Limits { max_body: Some(1), ..Limits::default() },
            revision: 9,
            ..spec.clone()
        };
        assert_eq!(same.hash(), spec.hash());
        let other = Spec { arguments: vec!["x".into()], ..spec.clone() };
        assert_ne!(other.hash(), spec.hash());
        let other = Spec { socket_activation: true, ..spec.clone() };
        assert_ne!(other.hash(), spec.hash());
        // The boundary between two arguments counts.
        let ab_c = Spec { arguments: vec!["ab".into(), "c".into()], ..spec.clone() };
        let a_bc = Spec { arguments: vec!["a".into(), "bc".into()], ..spec };
        assert_ne!(ab_c.hash(), a_bc.hash());
    }

    proptest! {
        #[test]
        fn tightening_never_loosens(a in requirements(), b in requirements(), rtt in 0u64..200) {
            let both = a.tightened(b);
            let rtt = Duration::from_millis(rtt);
            prop_assert!(!both.within_hard(rtt) || (a.within_hard(rtt) && b.within_hard(rtt)));
            prop_assert!(!both.within_soft(rtt) || (a.within_soft(rtt) && b.within_soft(rtt)));
            prop_assert_eq!(both, b.tightened(a));
        }
    }

    fn requirements() -> impl Strategy<Value = Requirements> {
        let limit = || proptest::option::of((1u64..100).prop_map(Duration::from_millis));
        (limit(), limit()).prop_map(|(soft, hard)| Requirements { soft, hard })
    }
}
