//! What instances use, looked at now and then by one task, for all who ask.
//!
//! A look costs some reads of small files for each instance, so nobody who asks makes one:
//! lists, watchers and metrics have what the last look found. What has changed by less than
//! a person would notice is not taken up, so that it is not sent to every watcher.
//!
//! Invariant: looking takes no more than a fiftieth of the time, however many instances
//! there are and however slow their driver.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use lca::{Allowance, api::proto};
use tokio::time::{Instant, sleep, timeout};

use crate::{driver::Stats, supervisor::Supervisor, table::Entry};

/// Between two looks: what a person who watches can follow.
const EVERY: Duration = Duration::from_secs(2);
/// So many times as long as a look took nobody looks again.
const REST: u32 = 50;
/// Instances looked at at the same time: their driver blocks threads for it.
const AT_ONCE: usize = 8;
/// A driver that does not answer within this is asked again at the next look.
const WITHIN: Duration = Duration::from_secs(2);

/// A change is told that is larger than the first, and than this part of what was told.
const CPU_MILLIS: u32 = 10;
const MEMORY_BYTES: u64 = 1 << 20;
const PART: u64 = 20;

/// What one instance uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// What others are told: as it was when it last changed by enough.
    told: (Stats, u32),
    /// What the last look found, and when that was.
    last: (Stats, Instant),
}

impl Used {
    /// After a look that found `stats`.
    fn next(before: Option<Self>, stats: Stats, now: Instant) -> Self {
        let last = (stats, now);
        let Some(before) = before else {
            return Self { told: (stats, 0), last };
        };
        let found = (stats, rate(before.last, last));
        Self { told: if differ(before.told, found) { found } else { before.told }, last }
    }

    /// Thousandths of a core.
    pub(crate) const fn cpu_millis(&self) -> u32 {
        self.told.1
    }

    /// Bytes.
    pub(crate) const fn memory_bytes(&self) -> u64 {
        self.told.0.memory_bytes
    }

    /// In the form of the wire.
    pub(crate) fn told(&self, allowance: &Allowance) -> proto::Usage {
        proto::Usage {
            cpu_us: u64::try_from(self.told.0.cpu.as_micros()).unwrap_or(u64::MAX),
            cpu_millis: self.cpu_millis(),
            cpu_limit_millis: allowance.cpu_millis.map_or(0, Into::into),
            memory_bytes: self.memory_bytes(),
            memory_limit_bytes: allowance.memory_bytes,
        }
    }
}

/// Processor time between two looks, in thousandths of a core.
fn rate((before, then): (Stats, Instant), (after, now): (Stats, Instant)) -> u32 {
    let used = after.cpu.saturating_sub(before.cpu).as_nanos();
    let passed = now.saturating_duration_since(then).as_nanos().max(1);
    u32::try_from(used.saturating_mul(1000) / passed).unwrap_or(u32::MAX)
}

/// Whether a person would notice.
fn differ((told, told_rate): (Stats, u32), (found, rate): (Stats, u32)) -> bool {
    let cpu = told_rate.abs_diff(rate);
    let memory = told.memory_bytes.abs_diff(found.memory_bytes);
    (cpu > CPU_MILLIS && u64::from(cpu) > u64::from(told_rate) / PART)
        || (memory > MEMORY_BYTES && memory > told.memory_bytes / PART)
}

/// Looks at what runs until `stopping`.
pub(crate) async fn keep(supervisor: Arc<Supervisor>, stopping: impl Future<Output = ()>) {
    let looking = async {
        loop {
            let begun = Instant::now();
            look(&supervisor).await;
            sleep(EVERY.max(begun.elapsed() * REST)).await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = stopping => {}
    }
}

/// Looks once at everything that runs.
pub(crate) async fn look(supervisor: &Supervisor) {
    let running: Vec<Arc<Entry>> = {
        let books = supervisor.lock();
        books.table.live().filter(|entry| entry.view.borrow().pid != 0).cloned().collect()
    };
    let looks = running.into_iter().map(|entry| {
        let driver = supervisor.drivers.of(&entry.spec.runs).cloned();
        async move {
            let Ok(driver) = driver else { return };
            if let Ok(Ok(stats)) = timeout(WITHIN, driver.stats(entry.id)).await {
                entry.set_used(Used::next(entry.used(), stats, Instant::now()));
            }
        }
    });
    stream::iter(looks).buffer_unordered(AT_ONCE).collect::<()>().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(cpu_ms: u64, memory_bytes: u64) -> Stats {
        Stats { cpu: Duration::from_millis(cpu_ms), memory_bytes }
    }

    #[test]
    fn a_rate_is_what_was_used_between_two_looks() {
        let then = Instant::now();
        let now = then + Duration::from_secs(2);
        let first = Used::next(None, stats(500, 0), then);
        assert_eq!(first.cpu_millis(), 0, "one look says nothing of it");
        let second = Used::next(Some(first), stats(1500, 0), now);
        assert_eq!(second.cpu_millis(), 500);
        // What has ended counts nothing, and no clock goes back for us.
        let ended = Used::next(Some(second), stats(0, 0), now);
        assert_eq!(ended.cpu_millis(), 0);
    }

    #[test]
    fn what_nobody_would_notice_is_not_told() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let told = Used::next(None, stats(0, 64 << 20), at(0));
        let little = Used::next(Some(told), stats(9, (64 << 20) + (1 << 20)), at(1));
        assert_eq!(little.told, told.told);
        // Little by little is measured against what was told, not against the last look.
        let more = Used::next(Some(little), stats(18, 68 << 20), at(2));
        assert_eq!(more.memory_bytes(), 68 << 20);
        let busy = Used::next(Some(more), stats(1018, 68 << 20), at(3));
        assert_eq!(busy.cpu_millis(), 1000);
        let as_busy = Used::next(Some(busy), stats(1978, 68 << 20), at(4));
        assert_eq!(as_busy.cpu_millis(), 1000);
    }
}
