//! Tells the network which services have an instance here, and when they have none. An
//! allocator says so of what it runs, a proxy of the external service it represents.
//!
//! Level-triggered: whenever something changed, what should be announced is compared
//! with what is, so the order of events cannot leave a wrong announcement behind. A
//! failed announcement is tried again and never harms an instance: those who allocated
//! know it already.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use lca::{
    Result, ServiceHash,
    discovery::{Discovery, Key},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

/// Longest an announcement may keep the next one waiting.
const WITHIN: Duration = Duration::from_secs(5);
/// Until a failed one is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How many are told at the same time.
const AT_ONCE: usize = 16;
/// Longest the farewell may take when the daemon stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// Keeps announcements equal to what `serving` returns, until `stopping`. `changed` is
/// notified when that may be different.
pub async fn keep(
    discovery: Arc<dyn Discovery>,
    changed: Arc<Notify>,
    serving: impl Fn() -> HashSet<ServiceHash>,
    stopping: impl Future<Output = ()>,
) {
    let mut announced = HashSet::new();
    let mut stopping = std::pin::pin!(stopping);
    loop {
        let wanted = serving();
        let all_told = tokio::select! {
            told = tell(&*discovery, &mut announced, &wanted) => told,
            () = &mut stopping => break,
        };
        let again = async {
            match all_told {
                true => std::future::pending().await,
                false => sleep(AGAIN).await,
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = again => {}
            () = &mut stopping => break,
        }
    }
    let _or_the_records_expire =
        timeout(FAREWELL, tell(&*discovery, &mut announced, &HashSet::new())).await;
}

/// Announces and withdraws the difference. True if everything was told.
///
/// A dropped call counts as told neither way: `announced` is changed per success, and
/// both calls may be repeated.
async fn tell(
    discovery: &dyn Discovery,
    announced: &mut HashSet<ServiceHash>,
    wanted: &HashSet<ServiceHash>,
) -> bool {
    let new = wanted.difference(announced).map(|hash| (*hash, true));
    let gone = announced.difference(wanted).map(|hash| (*hash, false));
    let changes: Vec<_> = new.chain(gone).collect();
    let mut told = stream::iter(changes)
        .map(async |(hash, is_new)| (hash, is_new, one(discovery, hash, is_new).await))
        .buffer_unordered(AT_ONCE);
    let mut all = true;
    while let Some((hash, is_new, result)) = told.next().await {
        match result {
            Ok(()) if is_new => drop(announced.insert(hash)),
            Ok(()) => drop(announced.remove(&hash)),
            Err(error) => {
                all = false;
                tracing::warn!(service_hash = %hash, error = error.chain(), "not announced; trying again");
            }
        }
    }
    all
}

async fn one(discovery: &dyn Discovery, hash: ServiceHash, is_new: bool) -> Result<()> {
    let key = Key::Service(hash);
    let telling = async {
        if is_new { discovery.announce(key).await } else { discovery.withdraw(key).await }
    };
    timeout(WITHIN, telling).await.unwrap_or_else(|_| {
        Err(lca::Error::new(lca::Kind::Timeout, format!("the network took more than {WITHIN:?}")))
    })
}
