//! Runs instances as containers of the Docker Engine of this machine.
//!
//! The engine is a daemon of somebody else's: it may be absent, be restarted under us, or take
//! a call and never answer. So what runs is known by labels that survive all of us, one task
//! (`watch`) is told by its events what ends and asks for a list whenever it may have missed
//! some, and every call has a deadline. While the engine does not answer nothing is started,
//! and what ran is held to run until it can be asked.
//!
//! The invariant: a container with our node's label is held by us, or is being started, or is
//! removed the next time the engine is asked for a list.

mod body;
mod found;
mod grants;
mod held;
mod image;
mod kill;
mod labels;
mod link;
mod logs;
mod network;
mod start;
mod stats;
mod watch;
mod words;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::future::join_all;
use lca::{
    Allowance, Error, InstanceId, Kind, PeerId, Result, api::proto::Fetching, shutdown::Spawner,
};
use lca_engine::{
    Address, Engine, Stock,
    bollard::{
        errors::Error as Bollard,
        query_parameters::{
            InspectContainerOptions, KillContainerOptionsBuilder, RemoveContainerOptionsBuilder,
        },
    },
};
use tokio::{
    sync::{Mutex as Turn, Notify, oneshot},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

pub use grants::Grants;

use self::{found::Found, held::Held, link::Link};
use super::{
    Begin, Bridge, Container, Driver, Exit, Launch, Means, Output, Started, Stats, killed,
};

/// How long a start of the allocator waits for the engine: what runs is taken over at once
/// if it answers by then, and an engine that hangs must not keep the rest from starting.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Making and starting a container takes an engine under load seconds; whoever waits for it
/// has a deadline of its own, and a call that is given up leaves a container to be removed.
const MAKE: Duration = Duration::from_secs(60);

/// How often room is made for images: a disk fills by pulls, and each of them makes room by
/// itself.
const TIDY: Duration = Duration::from_secs(10 * 60);

/// The container driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Docker {
    inner: Arc<Inner>,
    /// Where images are kept that are pulled; `None`: none are pulled.
    stock: Option<Stock>,
}

#[derive(Debug)]
struct Inner {
    address: Address,
    /// Whose containers these are.
    node: PeerId,
    grants: Grants,
    spawner: Spawner,
    link: Link,
    books: Mutex<Books>,
    /// The bridge, as it was found last; one at a time looks for it, so that it is made once.
    bridged: Turn<Option<Bridge>>,
    /// Told when a list is wanted before its time.
    look_again: Notify,
    /// Nothing is run any more.
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Books {
    held: HashMap<InstanceId, Arc<Held>>,
    /// What an earlier run left has been taken over: the rest is nobody's.
    swept: bool,
    /// Nothing is started any more.
    killed: bool,
}

impl Docker {
    /// Looks for the engine at `address` from now on, for the containers of `node`. Returns
    /// once it has been looked for, after two seconds at most; it may come later.
    pub async fn open(address: Address, node: PeerId, grants: Grants, spawner: &Spawner) -> Self {
        let inner = Arc::new(Inner {
            address,
            node,
            grants,
            spawner: spawner.clone(),
            link: Link::new(),
            books: Mutex::default(),
            bridged: Turn::default(),
            look_again: Notify::new(),
            closed: CancellationToken::new(),
        });
        let (watching, closed) = (inner.clone(), inner.closed.clone());
        // Not only until the daemon is asked to stop: it stops its instances after that.
        spawner.spawn("docker engine", async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = watch::watch(watching) => {}
            }
        });
        inner.link.settled(FIRST_LOOK).await;
        Self { inner, stock: None }
    }

    /// Pulls what is missing and keeps it in `stock`, which is tidied from time to time.
    #[must_use]
    pub fn with_stock(self, stock: Stock) -> Self {
        let (tidied, inner) = (stock.clone(), self.inner.clone());
        self.inner.spawner.spawn("images", async move {
            tokio::select! {
                () = inner.closed.cancelled() => {}
                () = tidy(&inner, &tidied) => {}
            }
        });
        Self { stock: Some(stock), ..self }
    }

    fn held(&self, id: InstanceId) -> Result<Arc<Held>> {
        let held = self.inner.held_or_starting(id).filter(|held| !held.is_starting());
        held.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("there is no container of instance {}", id.short()))
        })
    }
}

/// Makes room from time to time: what was in use when an image was pulled may be idle now.
async fn tidy(inner: &Inner, stock: &Stock) {
    let mut often = interval(TIDY);
    often.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        often.tick().await;
        if let Ok(engine) = inner.link.engine() {
            stock.tidy_over(&engine).await;
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while holding it.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held_or_starting(&self, id: InstanceId) -> Option<Arc<Held>> {
        self.lock().held.get(&id).cloned()
    }

    /// Waits for what an engine under load takes long for.
    async fn patiently<T>(
        &self,
        engine: &Engine,
        what: &str,
        call: impl Future<Output = Result<T, Bollard>>,
    ) -> Result<T> {
        engine.call_within(what, MAKE, call).await
    }

    /// The bridge of our containers, made if it is missing.
    async fn bridge(&self, engine: &Engine) -> Result<Bridge> {
        let mut bridged = self.bridged.lock().await;
        if let Some(bridge) = *bridged {
            return Ok(bridge);
        }
        let bridge = network::ensure(engine, self.node).await?;
        *bridged = Some(bridge);
        Ok(bridge)
    }

    /// Somebody may have removed the bridge: it is looked for again.
    async fn doubt_bridge(&self) {
        *self.bridged.lock().await = None;
    }

    /// Sends a signal to the first process of a container. One that has ended needs none.
    async fn signal(&self, engine: &Engine, held: &Held, signal: &str) {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        let name = held.container();
        let sent = engine.docker().kill_container(&name, Some(options));
        match engine.call("end a container", sent).await {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => {
                // It has ended; the event may be lost.
                self.look_again.notify_one();
            }
            Err(error) => {
                tracing::warn!(instance = %held.id, error = error.chain(), "cannot end it");
            }
        }
    }

    /// Removes the container of one that is not held any more. If the engine does not answer,
    /// the next list finds it.
    async fn remove(&self, held: &Held) {
        match self.link.engine() {
            Ok(engine) => self.remove_nobodys(&engine, held.id).await,
            Err(error) => {
                tracing::warn!(instance = %held.id, error = error.chain(), "its container stays");
            }
        }
    }

    /// Removes a container by force, with its anonymous volumes.
    async fn remove_nobodys(&self, engine: &Engine, id: InstanceId) {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let name = labels::name(id);
        let removed = engine.docker().remove_container(&name, Some(options));
        match engine.call("remove a container", removed).await {
            Ok(()) => {}
            // Gone, or on its way: somebody else removes it.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Conflict) => {}
            Err(error) => {
                tracing::warn!(instance = %id, error = error.chain(), "its container stays");
            }
        }
    }
}

#[async_trait]
impl Driver for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn ready(&self) -> Result<()> {
        self.inner.link.engine().map(drop)
    }

    fn address(&self, id: InstanceId) -> Option<SocketAddr> {
        self.inner.held_or_starting(id)?.address()
    }

    async fn bridge(&self) -> Result<Option<Bridge>> {
        let engine = self.inner.link.engine()?;
        Ok(Some(self.inner.bridge(&engine).await?))
    }

    async fn image(
        &self,
        image: &lca::Image,
        told: &mut (dyn FnMut(Fetching) + Send),
    ) -> Result<Container> {
        self.inner.grants.allow(image)?;
        image::have(&self.inner.link.engine()?, self.stock.as_ref(), image, told).await
    }

    fn means(&self) -> Means {
        self.inner
            .link
            .engine()
            .map_or_else(|_| Means::default(), |engine| words::of(engine.about()))
    }

    async fn start(&self, launch: Launch) -> Result<Started> {
        let (answer, started) = oneshot::channel();
        // In a task of its own: what is begun is finished or undone, whoever waits for it.
        self.inner.spawner.spawn_short(start::run(self.inner.clone(), launch, answer));
        started.await.unwrap_or_else(|_| Err(killed()))
    }

    async fn adopt(&self, id: InstanceId, _: Started, allowance: Allowance) -> Result<bool> {
        let engine = self.inner.link.engine()?;
        let nothing =
            || Error::new(Kind::NotFound, format!("nothing is left of instance {}", id.short()));
        let held = Held::starting(id, allowance);
        let name = held.container();
        let said = engine.docker().inspect_container(&name, None::<InspectContainerOptions>);
        let said = match engine.call("look at a container", said).await {
            Err(error) if error.kind() == Kind::NotFound => return Err(nothing().because(error)),
            said => said?,
        };
        let labels = said.config.as_ref().and_then(|config| config.labels.as_ref());
        let ours = labels.and_then(|all| all.get(labels::NODE));
        if ours != Some(&self.inner.node.to_string()) {
            return Err(nothing());
        }
        let found = Found::new(&said, &allowance);
        held.is_there(&found, image::port_of(&said).and_then(|port| found.address(port)));
        let runs = held.is_running();
        let mut books = self.inner.lock();
        if books.held.contains_key(&id) {
            return Err(Error::new(Kind::Conflict, format!("instance {} is held", id.short())));
        }
        books.held.insert(id, Arc::new(held));
        Ok(runs)
    }

    async fn sweep(&self, node: PeerId) {
        debug_assert_eq!(node, self.inner.node, "one driver has the containers of one node");
        self.inner.lock().swept = true;
        let Ok(engine) = self.inner.link.engine() else { return };
        let all = match watch::list(&engine, labels::INSTANCE).await {
            Ok(all) => all,
            Err(error) => {
                return tracing::warn!(error = error.chain(), "could not look for what was left");
            }
        };
        let own = node.to_string();
        let of = |one: &lca_engine::bollard::models::ContainerSummary| {
            one.labels.as_ref().and_then(|labels| labels.get(labels::NODE)).cloned()
        };
        let (ours, strangers): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, one)| of(one).as_deref() == Some(own.as_str()));
        if !strangers.is_empty() {
            let containers = strangers.len();
            tracing::info!(containers, "containers of other nodes are left alone");
        }
        let left: Vec<_> = {
            let books = self.inner.lock();
            ours.into_iter().map(|(id, _)| id).filter(|id| !books.held.contains_key(id)).collect()
        };
        if !left.is_empty() {
            tracing::warn!(containers = left.len(), "removing what an earlier run left");
        }
        join_all(left.into_iter().map(|id| self.inner.remove_nobodys(&engine, id))).await;
    }

    async fn wait(&self, id: InstanceId) -> Result<Exit> {
        Ok(self.held(id)?.ended().await)
    }

    fn is_running(&self, id: InstanceId) -> bool {
        self.held(id).is_ok_and(|held| held.is_running())
    }

    async fn stop(&self, id: InstanceId, grace: Duration) -> Result<Exit> {
        let held = self.held(id)?;
        if let Some(exit) = held.exit() {
            return Ok(exit);
        }
        held.unwant();
        let ending = async {
            if !grace.is_zero()
                && let Ok(engine) = self.inner.link.engine()
            {
                self.inner.signal(&engine, &held, "SIGTERM").await;
            }
            held.ended().await
        };
        if let Ok(exit) = timeout(grace, ending).await {
            return Ok(exit);
        }
        // Without an engine the next list ends it.
        if let Ok(engine) = self.inner.link.engine() {
            self.inner.signal(&engine, &held, "SIGKILL").await;
        }
        Ok(held.ended().await)
    }

    async fn stats(&self, id: InstanceId) -> Result<Stats> {
        let held = self.held(id)?;
        if !held.is_running() {
            return Ok(Stats::default());
        }
        stats::of(&self.inner.link.engine()?, &held.container()).await
    }

    async fn logs(&self, id: InstanceId, from: Begin, follow: bool) -> Result<Output> {
        let held = self.held(id)?;
        logs::read(&self.inner.link.engine()?, &held.container(), from, follow).await
    }

    async fn forget(&self, id: InstanceId) {
        let held = {
            let mut books = self.inner.lock();
            let ended = books.held.get(&id).is_some_and(|held| held.exit().is_some());
            if ended { books.held.remove(&id) } else { None }
        };
        if let Some(held) = held {
            self.inner.remove(&held).await;
        }
    }

    async fn close(&self) {
        if let Ok(engine) = self.inner.link.engine() {
            network::remove_unused(&engine, self.inner.node).await;
            self.inner.doubt_bridge().await;
        }
        self.inner.closed.cancel();
    }

    fn kill_all(&self) {
        kill::all(&self.inner);
    }
}

#[cfg(test)]
mod tests;
