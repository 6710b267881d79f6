//! The one task that owns the swarm.
//!
//! It waits for whatever comes first: an event of libp2p, a command of a handle, a name
//! that was looked up, or the next thing due. It never waits for any single peer, and
//! nothing that a peer sends can end it: what is malformed is dropped and counted.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use lca::metrics::Dropped;
use lca::{
    PeerId,
    config::{Bootstrap, Host},
    endpoint::MAX_ADDRESSES,
};
use libp2p::{
    Multiaddr, Swarm,
    kad::QueryId,
    swarm::dial_opts::{DialOpts, PeerCondition},
};
use tokio::sync::{mpsc, watch};

use super::{
    Command, Counters, Joined, Setup, Status, addresses,
    behaviour::Behaviour,
    bootstrap::Bootstraps,
    contacts::Contacts,
    lookup::{FindId, Lookups, Waiting},
    own::Own,
    peers::Peers,
    renew::Renewals,
    tell::Told,
    timers::Timers,
};
use crate::{
    Timing,
    book::Book,
    identity::{from_libp2p, to_libp2p},
};

/// Peers asked again for their endpoints at each sweep: a thousand within the life of
/// a record.
const REFRESHED: usize = 16;

/// Why a query of ours runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Find(FindId),
    Value(PeerId),
    Tell,
}

/// What is due at some time.
#[derive(Debug)]
pub(crate) enum Due {
    Late(FindId),
    FindOver(FindId),
    Unresolved(PeerId),
    QueryOver(QueryId),
    Alone,
    Sweep,
}

/// A bootstrap, and the addresses its name has.
type LookedUp = (PeerId, Vec<Multiaddr>);

/// See the module.
pub(crate) struct Actor {
    pub(crate) swarm: Swarm<Behaviour>,
    pub(crate) local: PeerId,
    pub(crate) timing: Timing,
    pub(crate) book: Book,
    pub(crate) peers: Peers,
    pub(crate) lookups: Lookups,
    pub(crate) queries: HashMap<QueryId, Purpose>,
    pub(crate) timers: Timers<Due>,
    pub(crate) renewals: Renewals<Told>,
    pub(crate) own: Own,
    pub(crate) counters: Arc<Counters>,
    inbox: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
    pub(crate) bootstraps: Bootstraps,
    /// Peers of earlier starts that were not met in this one yet.
    pub(crate) remembered: Bootstraps,
    pub(crate) contacts: Contacts,
    names: FuturesUnordered<BoxFuture<'static, LookedUp>>,
    /// The addresses of this machine on which the swarm listens.
    pub(crate) machine: Vec<IpAddr>,
    pub(crate) setup: Places,
    alone: bool,
    pub(crate) table: usize,
    pub(crate) table_changed: bool,
    pub(crate) broken: bool,
    /// When the log last said that the system accepts no connection.
    pub(crate) said_unaccepted: Option<Instant>,
}

/// Where this node listens, and where it is told to say that it is.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) swarm: SocketAddr,
    pub(crate) mesh: SocketAddr,
    pub(crate) advertise: Vec<IpAddr>,
}

impl Actor {
    /// Takes a swarm that listens already.
    pub(crate) fn new(
        swarm: Swarm<Behaviour>,
        setup: Setup,
        book: Book,
        counters: Arc<Counters>,
        inbox: mpsc::Receiver<Command>,
        status: watch::Sender<Status>,
    ) -> Self {
        let now = Instant::now();
        let Setup { identity, roles, listen, mesh, advertise, boot, timing, .. } = setup;
        let (bootstraps, remembered) = (setup.bootstraps, setup.remembered);
        let local = identity.peer_id();
        let waits = (timing.retry_first, timing.retry_most);
        let mut actor = Self {
            swarm,
            local,
            book,
            peers: Peers::new(),
            lookups: Lookups::default(),
            queries: HashMap::new(),
            timers: Timers::new(),
            renewals: Renewals::new(timing.settle),
            own: Own::new(identity, roles.clone(), boot, timing.value_life),
            counters,
            inbox,
            status,
            bootstraps: Bootstraps::new(&bootstraps, local, waits, now),
            remembered: Bootstraps::new(&remembered, local, waits, now),
            contacts: Contacts::new(&remembered),
            names: FuturesUnordered::new(),
            machine: Vec::new(),
            setup: Places { swarm: listen, mesh, advertise },
            alone: false,
            table: 0,
            table_changed: false,
            broken: false,
            said_unaccepted: None,
            timing,
        };
        actor.alone = actor.bootstraps.count().0 == 0;
        actor.timers.set(now + actor.timing.alone_after, Due::Alone);
        actor.timers.set(now + actor.timing.sweep, Due::Sweep);
        actor.announce_roles(&roles, now);
        actor
    }

    /// Runs until the first address of the swarm's listener is known and, where there
    /// may be several, no more come.
    pub(crate) async fn listening(&mut self) {
        /// Longest pause between two addresses of one machine.
        const QUIET: Duration = Duration::from_millis(20);
        while self.machine.is_empty() {
            let event = self.swarm.select_next_some().await;
            self.on_event(event);
        }
        if self.setup.swarm.ip().is_unspecified() {
            while let Ok(event) = tokio::time::timeout(QUIET, self.swarm.select_next_some()).await {
                self.on_event(event);
            }
        }
    }

    /// Runs until asked to stop.
    pub(crate) async fn run(mut self, stopping: impl Future<Output = ()>) {
        let mut stopping = std::pin::pin!(stopping);
        while !self.broken {
            let now = Instant::now();
            self.act_on_due(now);
            self.publish_status();
            let next = self.next_due().unwrap_or(now + self.timing.sweep);
            tokio::select! {
                () = &mut stopping => return,
                event = self.swarm.select_next_some() => self.on_event(event),
                Some((peer, addresses)) = self.names.next() => self.dial(peer, addresses),
                Some(command) = self.inbox.recv() => self.on_command(command),
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let renewal = self.renewals.next().filter(|_| self.may_tell());
        let dials = [self.bootstraps.next(), self.remembered.next()];
        [self.timers.next(), renewal].into_iter().chain(dials).flatten().min()
    }

    fn act_on_due(&mut self, now: Instant) {
        while let Some(due) = self.timers.take_due(now) {
            match due {
                Due::Late(find) => self.on_late(find),
                Due::FindOver(find) => self.end_find(find),
                Due::Unresolved(peer) => self.on_unresolved(peer, now),
                Due::QueryOver(query) => self.finish(query),
                Due::Alone => self.alone = true,
                Due::Sweep => self.sweep(now),
            }
        }
        self.tell_due(now);
        for (bootstrap, attempts) in self.bootstraps.take_due(now, rand::random) {
            if attempts == 1 {
                tracing::warn!(%bootstrap, "the bootstrap does not answer; going on trying");
            }
            self.dial_at(bootstrap);
        }
        for (peer, _attempts) in self.remembered.take_due(now, rand::random) {
            self.dial_at(peer);
        }
    }

    fn dial_at(&mut self, at: Bootstrap) {
        match at.host {
            Host::Ip(ip) => {
                let address = addresses::to_multiaddr(SocketAddr::new(ip, at.port));
                self.dial(at.peer, vec![address]);
            }
            Host::Dns(name) => {
                self.names.push(look_up(at.peer, name, at.port, self.timing.query));
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Announce { key, reply } => drop(reply.send(self.announce(key, now))),
            Command::Withdraw { key, reply } => {
                self.withdraw(key);
                let _nobody_waits = reply.send(());
            }
            Command::Find { key, found } => self.find(key, found, now),
            Command::JoinThrough { bootstraps, reply } => {
                let peers: Vec<_> = self.peers.iter().filter_map(from_libp2p).collect();
                self.bootstraps.replace(&bootstraps, self.local, &peers, now);
                let _nobody_waits = reply.send(());
            }
            Command::Endpoint { peer, reply } => {
                self.resolve(peer, Waiting::Reply(reply), now);
            }
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options = DialOpts::peer_id(to_libp2p(peer))
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        if let Err(error) = self.swarm.dial(options) {
            tracing::debug!(%error, "a bootstrap was not dialled");
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.timers.set(now + self.timing.sweep, Due::Sweep);
        self.book.sweep(now);
        self.swarm.behaviour_mut().kademlia.store_mut().sweep(now);
        let connected = self.peers.iter().filter_map(from_libp2p);
        let due: Vec<_> =
            connected.filter(|peer| self.book.is_due(*peer, now)).take(REFRESHED).collect();
        due.into_iter().for_each(|peer| self.ask(peer));
    }

    /// Counts something that was dropped because it was not as it must be.
    pub(crate) fn refuse(
        &mut self,
        what: Dropped,
        from: impl std::fmt::Display,
        why: &dyn std::fmt::Display,
    ) {
        self.counters.refused(what);
        tracing::debug!(%from, %why, "dropped what a peer sent");
    }

    fn publish_status(&mut self) {
        if std::mem::take(&mut self.table_changed) {
            let buckets = self.swarm.behaviour_mut().kademlia.kbuckets();
            self.table = buckets.map(|bucket| bucket.num_entries()).sum();
        }
        let (bootstraps, reached) = self.bootstraps.count();
        let held = self.swarm.behaviour_mut().kademlia.store_mut().len();
        let joined = match (self.table, self.alone) {
            (0, false) => None,
            (0, true) => Some(Joined::Alone),
            _ => Some(Joined::Joined),
        };
        let status = Status {
            joined,
            peers: self.peers.len(),
            bootstraps,
            bootstraps_reached: reached,
            bootstrap_states: self.bootstraps.states(),
            announced: self.renewals.len().saturating_sub(1),
            announcements_held: held.0,
            records_held: held.1,
            refused: self.counters.refused_so_far(),
        };
        self.status.send_if_modified(|current| {
            let news = *current != status;
            *current = status;
            news
        });
    }
}

/// Looks a name up, without blocking anything.
fn look_up(
    peer: PeerId,
    name: String,
    port: u16,
    patience: Duration,
) -> BoxFuture<'static, LookedUp> {
    async move {
        let looked_up = tokio::time::timeout(patience, tokio::net::lookup_host((&*name, port)));
        let addresses = match looked_up.await {
            Ok(Ok(sockets)) => sockets.take(MAX_ADDRESSES).map(addresses::to_multiaddr).collect(),
            Ok(Err(error)) => {
                tracing::debug!(name, %error, "a bootstrap's name has no address");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        (peer, addresses)
    }
    .boxed()
}
