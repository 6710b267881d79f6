//! Whether this machine has room for one more instance, as a function over data.

use lca::{Error, Kind, ServiceName, api::proto};

/// What instances may take together, or take now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of one core.
    pub cpu_millis: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// How many.
    pub instances: u32,
}

/// Instances one machine is given at most unless told otherwise: more than fit most
/// machines by CPU, few enough that descriptors and ports never run out first.
const DEFAULT_INSTANCES: u32 = 500;
/// What to offer where the size of the machine cannot be read.
const FALLBACK_MEMORY: u64 = 1 << 30;
/// Limits of our own control group, version 2 and 1: a container has less memory than
/// the machine it is on.
const MEMORY_LIMITS: [&str; 2] =
    ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];

impl Capacity {
    /// What this machine has: all its cores and all its memory, as far as this process
    /// may use them. Blocks on small files.
    pub fn of_this_machine() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let system = rustix::system::sysinfo();
        let total = (system.totalram as u64).saturating_mul(u64::from(system.mem_unit.max(1)));
        let limits = MEMORY_LIMITS.iter().filter_map(|path| std::fs::read_to_string(path).ok());
        let limit = limits.filter_map(|text| text.trim().parse().ok()).min().unwrap_or(u64::MAX);
        Self {
            cpu_millis: u32::try_from(cores).unwrap_or(u32::MAX).saturating_mul(1000),
            memory_bytes: if total == 0 { FALLBACK_MEMORY } else { total.min(limit) },
            instances: DEFAULT_INSTANCES,
        }
    }

    /// One of `parts` equal parts, for allocators that share a machine; never less than
    /// an instance takes whose spec asks for nothing in particular, so that each of many
    /// can run something.
    #[must_use]
    pub fn share(self, parts: u32) -> Self {
        let parts = parts.max(1);
        let least = lca::Resources::default();
        Self {
            cpu_millis: (self.cpu_millis / parts).max(least.cpu_millis),
            memory_bytes: (self.memory_bytes / u64::from(parts)).max(least.memory_bytes),
            instances: (self.instances / parts).max(1),
        }
    }

    /// Both together, without overflowing.
    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_add(other.cpu_millis),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            instances: self.instances.saturating_add(other.instances),
        }
    }
}

impl From<Capacity> for proto::Capacity {
    fn from(capacity: Capacity) -> Self {
        let Capacity { cpu_millis, memory_bytes, instances } = capacity;
        Self { cpu_millis, memory_bytes, instances }
    }
}

/// Lets one more instance in, or says what is missing.
///
/// # Errors
/// [`Kind::NoCapacity`], saying of what and how much; and the word for what is missing.
pub(crate) fn admit(
    service: &ServiceName,
    total: Capacity,
    used: Capacity,
    wanted: Capacity,
) -> Result<(), (&'static str, Error)> {
    let full = |what, sentence| Err((what, Error::new(Kind::NoCapacity, sentence)));
    if used.instances >= total.instances {
        return full(
            "instances",
            format!("all {} places for instances are taken", total.instances),
        );
    }
    let left = total.cpu_millis.saturating_sub(used.cpu_millis);
    if wanted.cpu_millis > left {
        let (total, needs) = (total.cpu_millis, wanted.cpu_millis);
        return full(
            "cpu",
            format!(
                "{left} of {total} thousandths of a core are free, and {service} needs {needs}"
            ),
        );
    }
    let left = total.memory_bytes.saturating_sub(used.memory_bytes);
    if wanted.memory_bytes > left {
        let (left, total) = (left >> 20, total.memory_bytes >> 20);
        let needs = wanted.memory_bytes.div_ceil(1 << 20);
        return full(
            "memory",
            format!("{left} of {total} MiB of memory are free, and {service} needs {needs}"),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn capacity() -> impl Strategy<Value = Capacity> {
        (0u32..50, 0u64..50, 0u32..10).prop_map(|(cpu_millis, memory_bytes, instances)| Capacity {
            cpu_millis,
            memory_bytes,
            instances,
        })
    }

    #[test]
    fn a_refusal_says_of_what_and_how_much() {
        let service = "hello".parse().unwrap();
        let total = Capacity { cpu_millis: 4000, memory_bytes: 8 << 20, instances: 2 };
        let wanted = Capacity { cpu_millis: 100, memory_bytes: 4 << 20, instances: 1 };
        let refused =
            |used| admit(&service, total, used, wanted).unwrap_err().1.public().to_owned();
        assert_eq!(
            refused(Capacity { cpu_millis: 3950, ..Capacity::default() }),
            "50 of 4000 thousandths of a core are free, and hello needs 100"
        );
        assert_eq!(
            refused(Capacity { memory_bytes: 5 << 20, ..Capacity::default() }),
            "3 of 8 MiB of memory are free, and hello needs 4"
        );
        assert_eq!(
            refused(Capacity { instances: 2, ..Capacity::default() }),
            "all 2 places for instances are taken"
        );
        let word = |used| admit(&service, total, used, wanted).unwrap_err().0;
        assert_eq!(word(Capacity { cpu_millis: 3950, ..Capacity::default() }), "cpu");
        assert_eq!(word(Capacity { memory_bytes: 5 << 20, ..Capacity::default() }), "memory");
        assert_eq!(word(Capacity { instances: 2, ..Capacity::default() }), "instances");
    }

    #[test]
    fn a_share_of_a_small_machine_has_room_for_one_instance() {
        let spec = lca::Resources::default();
        let one =
            Capacity { cpu_millis: spec.cpu_millis, memory_bytes: spec.memory_bytes, instances: 1 };
        let small = Capacity { cpu_millis: 2000, memory_bytes: 1 << 30, instances: 20 };
        let service = "hello".parse().unwrap();
        admit(&service, small.share(32), Capacity::default(), one).unwrap();
        assert_eq!(
            small.share(2),
            Capacity { cpu_millis: 1000, memory_bytes: 1 << 29, instances: 10 }
        );
    }

    #[test]
    fn this_machine_has_something_to_offer() {
        let offer = Capacity::of_this_machine();
        assert!(offer.cpu_millis >= 1000 && offer.memory_bytes > 0 && offer.instances > 0);
    }

    proptest! {
        #[test]
        fn what_is_admitted_one_by_one_never_exceeds_the_total(
            total in capacity(), wishes in proptest::collection::vec(capacity(), 0..40),
        ) {
            let service = "hello".parse().unwrap();
            let mut used = Capacity::default();
            for wish in wishes {
                let wish = Capacity { instances: 1, ..wish };
                let after = used.plus(wish);
                let fits = after.cpu_millis <= total.cpu_millis
                    && after.memory_bytes <= total.memory_bytes
                    && after.instances <= total.instances;
                prop_assert_eq!(admit(&service, total, used, wish).is_ok(), fits);
                if fits { used = after; }
            }
        }
    }
}
