//! A proxy in server mode: it represents an external service, one that runs somewhere
//! by other means, so that clients find it and reach it like any other.
//!
//! It does for the service what an allocator does for an instance, but start and stop
//! it: looks whether it is ready, lets requests in at its ingress, announces it. All of
//! it follows from two looks a second apart (sooner until it is ready for the first
//! time: `rhythm`), at the spec and at the address; nothing
//! else is remembered, so a registry or a service that is away and comes back needs no
//! special case. The invariant: it is announced and lets requests in only while `Ready`.
//!
//! ```text
//!                spec known            answers
//!   Pending ────────────────> Starting ───────> Ready ──┐
//!      ^                         │                ^     │ silent twice in a row
//!      │ spec gone, or it has    │        answers │     v
//!      └─── a program of its own ┴──────────────── Draining
//! ```
//! A spec that changes what is represented (its hash, readiness or limit) begins anew with
//! an instance id of its own, ready before the one before it drains.

mod held;
mod instances;
mod rhythm;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::{
    Error, Kind, Result, ServiceHash,
    api::proto::{InstanceState, instances_server::InstancesServer},
    discovery::Discovery,
    shutdown::Spawner,
    specs::{Cached, Specs},
};
use lca_allocator::{
    announce,
    readiness::{Obstacle, Probe},
};
use lca_ingress::Ingress;
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::proxy::External;
use held::Held;
use rhythm::Rhythm;

/// Longest that requests of an earlier spec go on: as those of an instance that ends.
const RETIRE: Duration = Duration::from_secs(30);
/// Longest that requests go on when the daemon stops: as in an allocator.
const STOP_DRAIN: Duration = Duration::from_millis(1000);

/// Represents one external service as long as the daemon runs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Representative {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    what: External,
    specs: Specs,
    discovery: Arc<dyn Discovery>,
    ingress: Ingress,
    held: Mutex<Held>,
    /// Told when it may have to be announced, or not any more.
    changed: Arc<Notify>,
    /// Told whenever what is shown of it has changed.
    changes: watch::Sender<()>,
    watchers: Arc<Semaphore>,
    /// The daemon is about to stop.
    leaving: CancellationToken,
    /// Registrations of earlier specs with requests still open.
    retiring: TaskTracker,
    spawner: Spawner,
}

impl Representative {
    /// Begins to look at the spec and at the address.
    pub(crate) fn start(
        what: External,
        specs: Specs,
        discovery: Arc<dyn Discovery>,
        ingress: Ingress,
        spawner: &Spawner,
    ) -> Self {
        let held = Held::pending("nothing is known of it yet");
        let shared = Arc::new(Shared {
            what,
            specs,
            discovery: discovery.clone(),
            ingress,
            held: Mutex::new(held),
            changed: Arc::new(Notify::new()),
            changes: watch::Sender::new(()),
            watchers: Arc::new(Semaphore::new(instances::WATCHERS)),
            leaving: spawner.stop_token(),
            retiring: TaskTracker::new(),
            spawner: spawner.clone(),
        });
        let this = Self { shared };
        let (looking, stopping) = (this.clone(), spawner.stopping());
        spawner.spawn("external service", async move {
            let leaving = looking.shared.leaving.clone();
            leaving.run_until_cancelled(looking.look_for_ever()).await;
            stopping.await;
        });
        let (telling, stopping) = (this.clone(), spawner.stopping());
        spawner.spawn("announcement of the external service", async move {
            let Shared { changed, leaving, .. } = &*telling.shared;
            let serving = || telling.serving();
            announce::keep(discovery, changed.clone(), serving, leaving.cancelled()).await;
            stopping.await;
        });
        this
    }

    /// `Instances` as peers see it: the one instance that is represented here.
    pub(crate) fn instances_server(&self) -> InstancesServer<Self> {
        InstancesServer::new(self.clone())
    }

    /// Withdraws the service, lets what is open end, for a second at most, and cuts off
    /// the rest.
    pub(crate) async fn leave(&self) {
        let Shared { leaving, retiring, .. } = &*self.shared;
        let way_in = {
            let mut held = self.held();
            leaving.cancel();
            held.leave("its proxy is stopping")
        };
        self.tell();
        retiring.close();
        let drained = async {
            if let Some(way_in) = &way_in {
                way_in.drained().await;
            }
            retiring.wait().await;
        };
        let _or_what_is_open_is_cut_off = timeout(STOP_DRAIN, drained).await;
    }

    async fn look_for_ever(&self) {
        let mut rhythm = Rhythm::default();
        loop {
            self.look().await;
            let is_ready = self.held().state() == InstanceState::Ready;
            sleep(rhythm.pause(is_ready)).await;
        }
    }

    /// Looks at the spec, then at the address, and draws the consequences.
    async fn look(&self) {
        let External { service, address } = &self.shared.what;
        let spec = match self.shared.specs.get(service).await {
            Ok(known) => self.external(known),
            // Not denied, only not confirmed: what is known of it holds.
            Err(error) if error.kind() != Kind::NotFound => self.held().spec().ok_or(error),
            Err(denied) => Err(denied.hint(format!("lcactl service add {service} --external"))),
        };
        match spec {
            Ok(spec) => {
                let path = spec.spec.readiness.http_path.clone();
                match Probe::new(*address, spec.spec.protocol, path).look().await {
                    // It may answer or not: what is known of it holds.
                    Err(Obstacle::NoDescriptor) => {
                        tracing::debug!(%service, "{}", Obstacle::NoDescriptor);
                    }
                    seen => self.saw(&spec, seen.map_err(|obstacle| obstacle.to_string())),
                }
            }
            Err(error) => self.cannot(&error),
        }
    }

    fn external(&self, known: Arc<Cached>) -> Result<Arc<Cached>> {
        if known.spec.is_external() {
            return Ok(known);
        }
        let service = &self.shared.what.service;
        let reason = format!("{service} has a program of its own, which allocators start");
        Err(Error::new(Kind::FailedPrecondition, reason)
            .hint("only a service added with --external can be represented by a proxy"))
    }

    /// There is nothing to represent, for now.
    fn cannot(&self, error: &Error) {
        let mut held = self.held();
        if held.is_pending_for(error.public()) {
            return;
        }
        let service = &self.shared.what.service;
        let hint = error.hint_text().unwrap_or_default();
        tracing::warn!(%service, error = error.chain(), hint, "not represented; trying again");
        let before = std::mem::replace(&mut *held, Held::pending(error.public()));
        drop(held);
        self.tell();
        self.retire(before);
    }

    /// Has those who announce and those who watch look again.
    fn tell(&self) {
        self.shared.changed.notify_one();
        self.shared.changes.send_replace(());
    }

    /// The address answered, or not, to a look by this spec.
    fn saw(&self, spec: &Arc<Cached>, seen: Result<(), String>) {
        let External { service, address } = &self.shared.what;
        let mut held = self.held();
        if self.shared.leaving.is_cancelled() {
            return;
        }
        let anew = !held.represents(spec);
        let before = anew.then(|| std::mem::replace(&mut *held, Held::starting(spec.clone())));
        let was = held.state();
        held.saw(spec, seen, |local| self.shared.ingress.register(local), *address);
        let (is, reason) = (held.state(), held.reason().to_owned());
        drop(held);
        self.tell();
        if anew || was != is {
            tracing::info!(%service, %address, state = ?is, reason, "external service");
        }
        if let Some(before) = before {
            self.retire(before);
        }
    }

    /// Lets what is open at an earlier registration end.
    fn retire(&self, mut before: Held) {
        let Some(way_in) = before.leave("its spec has changed") else { return };
        let stopping = self.shared.spawner.stopping();
        let retired = async move {
            tokio::select! {
                _ = timeout(RETIRE, way_in.drained()) => {}
                () = stopping => {}
            }
        };
        self.shared.spawner.spawn_short(self.shared.retiring.track_future(retired));
    }

    /// What is to be announced.
    fn serving(&self) -> HashSet<ServiceHash> {
        self.held().serving().into_iter().collect()
    }

    /// Held for a few instructions, never across an await.
    fn held(&self) -> MutexGuard<'_, Held> {
        // Every change leaves it good; a panic leaves none half done.
        self.shared.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
