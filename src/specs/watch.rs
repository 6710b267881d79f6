//! Follows the nearest registry, so that changes come by themselves and a registry that
//! returns is noticed.
//!
//! ```text
//!            ┌────────── none reachable: 1 s, 2 s, 2 s ... ──────────┐
//!            v                                                       │
//!   connecting ── stream open ──> syncing ── synced ──> watching     │
//!            ^                       │                      │        │
//!            └───────────────────────┴─── lost: at once ────┴────────┘
//! ```
//! Only in `watching` are entries of that registry current without a time to live.

use std::{collections::HashSet, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tonic::Streaming;

use super::{Specs, cache::MAX_NAMES, registries::is_answer};
use crate::{
    Error, Kind, PeerId, Result, ServiceName, Spec,
    api::proto::{self, service_event::Event},
    endpoint::Endpoint,
    mesh,
};

/// Longest from asking for the watch to its stream.
const OPEN: Duration = Duration::from_secs(2);
/// Longest without an event until all is synced.
const SYNC_STALLED: Duration = Duration::from_secs(10);
/// Longest until all is synced, however it trickles: 32 MiB of specs at 5 Mbit/s, twice.
const SYNC: Duration = Duration::from_secs(120);
/// How often a watched registry is looked at: probes of one in use come as often.
const LOOK: Duration = Duration::from_secs(1);
/// A watch that lasted so long was good; the next is tried at once.
const GOOD: Duration = Duration::from_secs(5);
/// Wait after the first attempt that failed.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Wait after later ones: a registry that returns is to be noticed in about two seconds.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How often registries are looked for behind everything else, at first.
const SEARCH: Duration = Duration::from_secs(15);
/// The same when no new one is found: whoever loses the one it follows looks at once.
const SEARCH_QUIET: Duration = Duration::from_secs(60);

/// Follows registries until the daemon stops.
pub(super) async fn run(specs: Specs, stopping: impl Future<Output = ()>) {
    let following = async {
        let mut wait = FIRST_WAIT;
        loop {
            let begun = Instant::now();
            let followed = follow_nearest(&specs).await;
            specs.cache().unwatched(Instant::now());
            if followed && begun.elapsed() >= GOOD {
                wait = FIRST_WAIT;
                continue;
            }
            // Apart from each other, so that a fleet does not come all at once.
            sleep(wait.mul_f64(rand::random_range(0.8..1.1))).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
    };
    tokio::select! {
        () = stopping => {}
        () = following => {}
    }
}

/// Keeps up to date which registries there are, until the daemon stops.
pub(super) async fn search(specs: Specs, stopping: impl Future<Output = ()>) {
    let searching = async {
        let mut pause = SEARCH;
        loop {
            let news = specs.shared.registries.look().await;
            pause = if news { SEARCH } else { (pause * 2).min(SEARCH_QUIET) };
            sleep(pause).await;
        }
    };
    tokio::select! {
        () = stopping => {}
        () = searching => {}
    }
}

/// Watches the first registry that lets us, until it is lost. False if none did.
async fn follow_nearest(specs: &Specs) -> bool {
    let registries = &specs.shared.registries;
    let mut candidates = registries.measured().await;
    let mut silence = true;
    while let Some(registry) = candidates.next().await {
        match open(specs, &registry).await {
            Ok(events) => {
                let error = follow(specs, &registry, events).await;
                registries.failed(registry.peer, &error);
                let registry = registry.peer.short();
                tracing::info!(registry, error = error.chain(), "registry lost");
                return true;
            }
            Err(error) => {
                // One that has no room for another watcher can still be asked.
                silence &= !is_answer(&error);
                registries.failed(registry.peer, &error);
            }
        }
        if candidates.is_exhausted() {
            candidates.search();
        }
    }
    if silence {
        specs.cache().unreached(Instant::now());
    }
    false
}

async fn open(specs: &Specs, registry: &Endpoint) -> Result<Streaming<proto::ServiceEvent>> {
    let registries = &specs.shared.registries;
    let opening = async {
        // Probes are what tells later that it is gone.
        registries.mesh().measure(registry).await?;
        let mut client = registries.client(registry).await?;
        Ok(client.watch_services(proto::WatchServicesRequest {}).await?.into_inner())
    };
    timeout(OPEN, opening)
        .await
        .unwrap_or_else(|_| Err(Error::new(Kind::Timeout, "it did not begin to tell of changes")))
}

/// Takes over what a registry tells. Returns why it ended.
async fn follow(
    specs: &Specs,
    registry: &Endpoint,
    mut events: Streaming<proto::ServiceEvent>,
) -> Error {
    let registries = &specs.shared.registries;
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut snapshot = Some(HashSet::new());
    let begun = Instant::now();
    let mut heard = begun;
    loop {
        let event = tokio::select! {
            event = events.message() => event,
            _ = look.tick() => {
                // In use, its silence has to be known soon: what it told counts as current.
                if specs.cache().is_used(mesh::IN_USE, Instant::now()) {
                    registries.mesh().watch(registry);
                } else {
                    registries.mesh().watch_idly(registry);
                }
                if registries.mesh().rtt(registry.peer).is_none() {
                    return Error::new(Kind::Unavailable, "it does not answer probes any more");
                }
                let late = heard.elapsed() > SYNC_STALLED || begun.elapsed() > SYNC;
                if snapshot.is_some() && late {
                    return Error::new(Kind::Timeout, "it did not finish telling what there is");
                }
                continue;
            }
        };
        heard = Instant::now();
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return Error::new(Kind::Unavailable, "it ended the watch"),
            Err(status) => return status.into(),
        };
        if let Err(error) = take(specs, registry.peer, event, &mut snapshot) {
            return error;
        }
    }
}

/// Learns from one event. `snapshot`: the names told so far, until all are.
fn take(
    specs: &Specs,
    from: PeerId,
    event: proto::ServiceEvent,
    snapshot: &mut Option<HashSet<ServiceName>>,
) -> Result<()> {
    let now = Instant::now();
    let news = match event.event {
        Some(Event::Put(spec)) => {
            let spec = match Spec::try_from(spec) {
                Ok(spec) => spec,
                Err(error) => {
                    // Perhaps of a newer version; the others are none the worse.
                    let registry = from.short();
                    let error = error.chain();
                    tracing::warn!(registry, error, "the registry told of what is no spec");
                    return Ok(());
                }
            };
            if let Some(names) = snapshot {
                names.insert(spec.name.clone());
                if names.len() > MAX_NAMES.get() {
                    return Err(Error::new(
                        Kind::NoCapacity,
                        format!("it tells of more than {MAX_NAMES} services"),
                    ));
                }
            }
            specs.cache().told(spec, from, now)
        }
        Some(Event::Deleted(name)) => specs.cache().told_deleted(&name.parse()?, from, now),
        Some(Event::Synced(_)) => {
            let names = snapshot.take().unwrap_or_default();
            tracing::info!(registry = from.short(), services = names.len(), "registry followed");
            let mut cache = specs.cache();
            cache.reached();
            cache.watching(from, &names)
        }
        None => false, // an event of a newer version
    };
    if news {
        specs.shared.changed.notify_one();
    }
    Ok(())
}
