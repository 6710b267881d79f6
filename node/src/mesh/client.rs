//! Reaches peers: one gRPC channel and one probe each, and fresh connections for those
//! who keep their own.
//!
//! Everything known of a peer stands in one entry of a bounded table ([`peers`](super::peers));
//! the lock is held for a look-up and never while waiting. A channel dies with its connection and
//! is then made anew, by one attempt however many ask.

use std::{
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared as Flight},
};
use lca::{
    Error, Kind, PeerId, Requirements, Result,
    endpoint::Endpoint,
    mesh::{Distance, Mesh},
    metrics::Metrics,
    shutdown::Spawner,
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout},
};
use tonic::transport::Channel;

use super::{
    Alpn, Stream, Timing, channel,
    dial::Dialler,
    interest::{Interest, Probe, Use},
    peers::{Peers, Slot},
    probe::{Connection, Prober, Reading, unanswered},
};
use crate::{identity::Identity, link::Links};

/// Makes connections to peers. Cheap to clone; clones share the pool.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What the clones share, and probes come back to.
pub(super) struct Shared {
    pub(super) dialler: Dialler,
    pub(super) metrics: Metrics,
    spawner: Spawner,
    peers: Mutex<Peers>,
}

impl Client {
    /// A client in the name of `identity`. Tasks it starts end with the daemon.
    ///
    /// # Errors
    /// [`Kind::Internal`] if no certificate can be made for it.
    pub(crate) fn new(
        identity: &Identity,
        links: Links,
        timing: Timing,
        metrics: Metrics,
        spawner: &Spawner,
    ) -> Result<Self> {
        let dialler = Dialler::new(identity, links, timing)?;
        let peers = Mutex::default();
        Ok(Self { shared: Arc::new(Shared { dialler, metrics, spawner: spawner.clone(), peers }) })
    }

    /// A fresh verified connection, for those who pool their own. Has the connect
    /// deadline. One that carries HTTP makes its peer one that is used for as long as it is
    /// open, and its reads fail once the peer is gone. Cancel safe.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if no address of it answers, or somebody else does.
    pub async fn connect(&self, to: &Endpoint, alpn: Alpn) -> Result<Stream> {
        if !matches!(alpn, Alpn::H1 | Alpn::Mux) {
            return self.shared.dialler.dial(to.peer, &to.mesh, alpn).await;
        }
        self.shared.watch(to, Use::Now, None);
        let severed = self.shared.lock().enter(to).severed.child_token();
        let dialling = self.shared.dialler.dial(to.peer, &to.mesh, alpn);
        // Whoever is waited for in vain elsewhere is not waited for here.
        let dialled = severed.run_until_cancelled(dialling).await;
        let mut stream = dialled.unwrap_or_else(|| Err(unanswered(to.peer)))?;
        self.shared.lock().enter(to).hands_out(&mut stream);
        Ok(stream)
    }
}

#[async_trait]
impl Mesh for Client {
    /// The channel stays with its connection: when that breaks, calls fail and this has
    /// to be asked for another one. So ask for each call, and do not keep channels.
    async fn grpc(&self, to: &Endpoint) -> Result<Channel> {
        let flight = match self.shared.channel(to) {
            Ok(channel) => return Ok(channel),
            Err(flight) => flight,
        };
        flight.await
    }

    fn rtt(&self, peer: PeerId) -> Option<Duration> {
        if peer == self.shared.dialler.local() {
            return Some(Duration::ZERO);
        }
        self.shared.lock().probe(peer)?.reading.borrow().rtt
    }

    fn distance(&self, peer: PeerId) -> Option<Distance> {
        if peer == self.shared.dialler.local() {
            return Some(Distance::default());
        }
        let peers = self.shared.lock();
        let reading = peers.probe(peer)?.reading.borrow();
        reading.distance(Instant::now())
    }

    fn observed(&self, peer: PeerId, took: Duration) {
        let peers = self.shared.lock();
        if let Some(probe) = peers.probe(peer) {
            probe.reading.send_if_modified(|reading| {
                reading.observed(took, Instant::now());
                false // nobody waits for this
            });
        }
    }

    fn is_silent(&self, peer: PeerId) -> bool {
        self.shared.lock().probe(peer).is_some_and(|probe| probe.reading.borrow().silent)
    }

    fn is_gone(&self, peer: PeerId) -> bool {
        self.shared.lock().probe(peer).is_some_and(|probe| probe.reading.borrow().gone)
    }

    async fn measure(&self, to: &Endpoint) -> Result<Duration> {
        let Some((mut reading, hurry)) = self.shared.watch(to, Use::Idle, None) else {
            return Ok(Duration::ZERO);
        };
        let before = {
            let now = reading.borrow_and_update();
            if let Some(rtt) = now.rtt {
                return Ok(rtt);
            }
            now.failures
        };
        hurry.notify_one();
        let Timing { connect, probe_within, .. } = self.shared.dialler.timing();
        let told = async {
            let told = reading.wait_for(|now| now.rtt.is_some() || now.failures > before).await;
            told.ok().map(|now| now.clone())
        };
        match timeout(connect + 2 * probe_within, told).await {
            Ok(Some(Reading { rtt: Some(rtt), .. })) => Ok(rtt),
            Ok(Some(Reading { error: Some(error), .. })) => Err(error),
            Ok(None) => self.measure_once(to).await,
            Ok(Some(_)) | Err(_) => Err(unanswered(to.peer)),
        }
    }

    fn watch(&self, to: &Endpoint) {
        self.shared.watch(to, Use::Now, None);
    }

    fn watch_near(&self, to: &Endpoint, limits: &Requirements) {
        self.shared.watch(to, Use::Now, Some(limits));
    }

    fn watch_idly(&self, to: &Endpoint) {
        self.shared.watch(to, Use::Idle, None);
    }
}

impl Client {
    /// For when more peers are of interest at once than are probed.
    async fn measure_once(&self, to: &Endpoint) -> Result<Duration> {
        let stream = self.connect(to, Alpn::Probe).await?;
        let within = self.shared.dialler.timing().probe_within;
        let measured = Connection::new(stream, within).measure(within).await;
        measured.map_err(|error| unanswered(to.peer).because(error))
    }
}

impl Shared {
    /// The open channel to a peer, or the attempt to open one.
    fn channel(
        self: &Arc<Self>,
        to: &Endpoint,
    ) -> Result<Channel, Flight<BoxFuture<'static, Result<Channel>>>> {
        let mut peers = self.lock();
        let entry = peers.enter(to);
        let endpoint = entry.endpoint.borrow().clone();
        match &entry.channel {
            // A later start of the peer has none of the connections of an earlier one.
            Slot::Open { channel, gone, boot }
                if !gone.is_cancelled() && *boot >= endpoint.boot =>
            {
                Ok(channel.clone())
            }
            Slot::Connecting(flight) => Err(flight.clone()),
            Slot::Open { .. } | Slot::Empty => {
                let flight = self.open(endpoint);
                entry.channel = Slot::Connecting(flight.clone());
                Err(flight)
            }
        }
    }

    /// Starts connecting, in a task: it goes on when those who asked have gone away.
    fn open(self: &Arc<Self>, to: Arc<Endpoint>) -> Flight<BoxFuture<'static, Result<Channel>>> {
        let (told, answer) = oneshot::channel();
        let shared = self.clone();
        let peer = to.peer;
        self.spawner.spawn_short(async move {
            let opened = channel::open(&shared.dialler, &to).await;
            let slot = match &opened {
                Ok((channel, gone)) => {
                    Slot::Open { channel: channel.clone(), gone: gone.clone(), boot: to.boot }
                }
                Err(_) => Slot::Empty,
            };
            if let Some(entry) = shared.lock().known(to.peer) {
                entry.channel = slot;
            }
            let _nobody_waits = told.send(opened.map(|(channel, _)| channel));
        });
        let stopping = move |_| {
            let reason = format!("not connecting to peer {}: stopping", peer.short());
            Err(Error::new(Kind::Unavailable, reason))
        };
        answer.map(move |told| told.unwrap_or_else(stopping)).boxed().shared()
    }

    /// Makes a peer of interest and starts its probe if there is none. `None` for this
    /// node itself.
    fn watch(
        self: &Arc<Self>,
        to: &Endpoint,
        used: Use,
        limits: Option<&Requirements>,
    ) -> Option<(watch::Receiver<Reading>, Arc<Notify>)> {
        if to.peer == self.dialler.local() {
            return None;
        }
        let now = Instant::now();
        let mut peers = self.lock();
        if let Some(probe) = &mut peers.enter(to).probe {
            if probe.asked(used, limits, now) {
                probe.hurry.notify_one(); // its turn may be seconds away
            }
            return Some((probe.reading.subscribe(), probe.hurry.clone()));
        }
        peers.make_room();
        let entry = peers.enter(to);
        let stop = self.spawner.stop_token();
        let (reading, seen) = watch::channel(Reading::default());
        let hurry = Arc::new(Notify::new());
        let prober = Prober::new(self, entry.endpoint.subscribe(), reading.clone(), hurry.clone());
        let task = stop.clone();
        self.spawner.spawn_short(async move {
            task.run_until_cancelled(prober.run()).await;
        });
        let mut probe = Probe::new(reading, hurry.clone(), stop.drop_guard(), now);
        probe.asked(used, limits, now);
        entry.probe = Some(probe);
        Some((seen, hurry))
    }

    /// Whether to go on probing, and what for.
    pub(super) fn interest(&self, peer: PeerId) -> Option<Interest> {
        self.lock().interest(peer)
    }

    /// Gives up what is open to a peer that answers nothing any more: the next call
    /// connects anew and fails in time, instead of waiting on a dead connection, and
    /// requests under way fail now, while they may still be sent elsewhere.
    pub(super) fn give_up(&self, peer: PeerId) {
        let severed = self.lock().known(peer).map(|entry| {
            if matches!(entry.channel, Slot::Open { .. }) {
                entry.channel = Slot::Empty;
            }
            mem::take(&mut entry.severed)
        });
        // Not under the lock: it wakes everyone who reads.
        if let Some(severed) = severed {
            severed.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Peers> {
        // Nothing panics while it is held.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.dialler.local();
        f.debug_struct("Shared").field("local", &local).finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Client {
    pub(super) fn is_open(&self, peer: PeerId) -> bool {
        let mut peers = self.shared.lock();
        peers.known(peer).is_some_and(|entry| matches!(entry.channel, Slot::Open { .. }))
    }

    pub(super) fn probed(&self) -> usize {
        self.shared.lock().probed()
    }

    /// Who probes `to` on whatever connection it is given, and what it finds.
    pub(super) fn prober(&self, to: &Endpoint) -> (Prober, watch::Receiver<Reading>) {
        let (reading, seen) = watch::channel(Reading::default());
        let endpoint = watch::Sender::new(Arc::new(to.clone())).subscribe();
        (Prober::new(&self.shared, endpoint, reading, Arc::default()), seen)
    }

    pub(super) fn remembered(&self) -> usize {
        self.shared.lock().len()
    }

    /// As if the time of interest were over.
    pub(super) fn lose_interest(&self, peer: PeerId) {
        let mut peers = self.shared.lock();
        let probe = peers.known(peer).and_then(|entry| entry.probe.as_mut());
        let probe = probe.expect("it is probed");
        probe.lose_interest(Instant::now());
    }
}
