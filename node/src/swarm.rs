//! The libp2p half of a node: finds peers, and lets itself be found.
//!
//! A `Swarm` makes progress only while polled, and only one task may hold it. So one
//! task owns it, the [`actor`], and everyone else holds a [`Handle`] and sends commands;
//! what a handle can answer from memory it answers without the actor. None of libp2p's
//! types leave this crate.
//!
//! ```text
//!   Handle ──commands──► Actor ──► Behaviour: Kademlia, endpoint requests, identify, ping
//!     │  ▲                 │            └──► Store: what others announced
//!     │  └──found, status──┤
//!     └──► Book, own ◄─────┘
//!
//!   pure: find (a find's state), renew, bootstrap, contacts, peers, timers, addresses, keys
//! ```

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, Stream, future::BoxFuture};
use lca::{
    Error, Kind, PeerId, Result,
    config::Bootstrap,
    discovery::{Finding, Found, Key},
    endpoint::{Endpoint, Role},
    metrics::Metrics,
    shutdown::Spawner,
};
use libp2p::{Swarm, core::upgrade::Version};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Timing,
    book::Book,
    identity::Identity,
    link::Links,
    store::{Limits, Store},
};
use actor::Actor;
use behaviour::Behaviour;
use contacts::Contacts;
pub use contacts::MAX_CONTACTS;
use find::Search;
use own::OwnEndpoint;
use status::Counters;
pub use status::{BootstrapState, FindStats, Joined, Status};
use transport::Meter;
pub use transport::Traffic;

mod actor;
pub(crate) mod addresses;
mod behaviour;
mod bootstrap;
mod codec;
mod contacts;
mod events;
mod find;
mod keys;
mod lookup;
mod own;
mod peers;
mod renew;
mod status;
mod tell;
mod timers;
mod transport;

/// Commands that wait for the actor. It takes thousands a second.
const INBOX: usize = 256;
/// Longest a connection without use stays: a lookup then need not dial again.
const IDLE_CONNECTION: Duration = Duration::from_secs(600);
/// Longest until a listener knows its own address, which needs no network.
const LISTENING: Duration = Duration::from_secs(5);
/// What a command may take beyond the query it waits for.
const MARGIN: Duration = Duration::from_secs(1);

/// What the swarm is to be.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) identity: Identity,
    pub(crate) roles: Vec<Role>,
    pub(crate) listen: SocketAddr,
    /// Where the mesh listener is bound.
    pub(crate) mesh: SocketAddr,
    pub(crate) advertise: Vec<IpAddr>,
    pub(crate) bootstraps: Vec<Bootstrap>,
    /// Peers met before the start, tried besides the bootstraps.
    pub(crate) remembered: Vec<Bootstrap>,
    pub(crate) boot: u64,
    pub(crate) max_connections: usize,
    pub(crate) links: Links,
    pub(crate) timing: Timing,
    pub(crate) metrics: Metrics,
}

/// What handles ask of the actor. Each reply is sent exactly once, or dropped with the
/// actor.
#[derive(Debug)]
pub(crate) enum Command {
    Announce { key: Key, reply: oneshot::Sender<Result<()>> },
    Withdraw { key: Key, reply: oneshot::Sender<()> },
    Find { key: Key, found: mpsc::Sender<Found> },
    Endpoint { peer: PeerId, reply: oneshot::Sender<Option<Arc<Endpoint>>> },
    JoinThrough { bootstraps: Vec<Bootstrap>, reply: oneshot::Sender<()> },
}

/// The swarm, as everyone else holds it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    local: PeerId,
    inbox: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    book: Book,
    contacts: Contacts,
    own: OwnEndpoint,
    counters: Arc<Counters>,
    meter: Arc<Meter>,
    patience: Duration,
}

impl Handle {
    /// Binds the listener and starts the actor.
    ///
    /// # Errors
    /// [`Kind::Conflict`] if the port is taken, [`Kind::FailedPrecondition`] if the
    /// address cannot be bound otherwise; both name it, and nothing is running.
    pub(crate) async fn start(setup: Setup, spawner: &Spawner) -> Result<Self> {
        let listen = setup.listen;
        // libp2p's listener sets SO_REUSEPORT, so that a second daemon on a port in use
        // would start and take half of the connections. std's does not: this fails if
        // anybody has the port.
        if listen.port() != 0 {
            drop(std::net::TcpListener::bind(listen).map_err(|e| cannot_listen(listen, e))?);
        }
        let (identity, timing) = (setup.identity.clone(), setup.timing);
        let local = identity.peer_id();
        let meter = Arc::new(Meter::new(&setup.metrics));
        let transport = transport::build(
            identity.keypair(),
            local,
            setup.links.clone(),
            meter.clone(),
            timing.connect,
        );
        let transport =
            transport.map_err(|error| cannot_listen(listen, io::Error::other(error)))?;
        let libp2p_id = identity.keypair().public().to_peer_id();
        let limits = Limits { value_life: timing.value_life, ..Limits::default() };
        let store = Store::new(libp2p_id, limits);
        let behaviour = Behaviour::new(identity.keypair(), store, &timing, setup.max_connections);
        // Lazy: a question goes out with the name of its protocol, not a round trip after it.
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(IDLE_CONNECTION)
            .with_substream_upgrade_protocol_override(Version::V1Lazy);
        let mut swarm = Swarm::new(transport, behaviour, libp2p_id, config);
        swarm
            .listen_on(addresses::to_multiaddr(listen))
            .map_err(|error| cannot_listen(listen, io::Error::other(error)))?;

        let (inbox, commands) = mpsc::channel(INBOX);
        let (publish, status) = watch::channel(Status::default());
        let (book, counters) = (Book::default(), Arc::new(Counters::new(setup.metrics.clone())));
        let mut actor = Actor::new(swarm, setup, book.clone(), counters.clone(), commands, publish);
        tokio::time::timeout(LISTENING, actor.listening())
            .await
            .map_err(|_| cannot_listen(listen, io::ErrorKind::TimedOut.into()))?;
        let (own, contacts) = (actor.own.shared(), actor.contacts.clone());
        spawner.spawn("swarm", actor.run(spawner.stopping()));
        let patience = timing.query + MARGIN;
        Ok(Self { local, inbox, status, book, contacts, own, counters, meter, patience })
    }

    pub(crate) fn local(&self) -> PeerId {
        self.local
    }

    pub(crate) fn own(&self) -> Arc<Endpoint> {
        self.own.get()
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    pub(crate) fn find_stats(&self) -> FindStats {
        self.counters.find_stats()
    }

    /// Where the swarm can be dialled.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.counters.addresses()
    }

    /// Resolves once it is known how the node stands. A node that stops is alone.
    pub(crate) async fn joined(&self) -> Joined {
        let mut status = self.status.clone();
        let known = status.wait_for(|status| status.joined.is_some()).await;
        known.ok().and_then(|status| status.joined).unwrap_or(Joined::Alone)
    }

    pub(crate) async fn announce(&self, key: Key) -> Result<()> {
        self.ask(|reply| Command::Announce { key, reply }).await?
    }

    pub(crate) async fn withdraw(&self, key: Key) -> Result<()> {
        self.ask(|reply| Command::Withdraw { key, reply }).await
    }

    pub(crate) async fn endpoint(&self, peer: PeerId) -> Result<Arc<Endpoint>> {
        if peer == self.local {
            return Ok(self.own());
        }
        if let Some(endpoint) = self.book.get(peer, Instant::now()) {
            return Ok(endpoint);
        }
        let found = self.ask(|reply| Command::Endpoint { peer, reply }).await?;
        found.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("nobody knows where peer {} is", peer.short()))
        })
    }

    pub(crate) async fn join_through(&self, bootstraps: Vec<Bootstrap>) -> Result<()> {
        self.ask(|reply| Command::JoinThrough { bootstraps, reply }).await
    }

    pub(crate) fn known(&self) -> Vec<Arc<Endpoint>> {
        self.book.fresh(Instant::now())
    }

    /// Registries and allocators before those nothing is known of, others last.
    pub(crate) fn contacts(&self) -> Vec<Bootstrap> {
        let leads_on = |role: &Role| matches!(role, Role::Registry | Role::Allocator);
        let now = Instant::now();
        self.contacts.best(|peer| match self.book.get(peer, now) {
            Some(known) if known.roles.iter().any(leads_on) => 0,
            Some(_) => 2,
            None => 1,
        })
    }

    pub(crate) fn forget(&self, peer: PeerId) {
        self.book.forget(peer);
    }

    pub(crate) fn find(&self, key: Key) -> Finding {
        let (found, receiver) = mpsc::channel(Search::MAX_SAID);
        let inbox = self.inbox.clone();
        let start = async move { drop(inbox.send(Command::Find { key, found }).await) };
        Box::pin(FindStream { start: Some(start.boxed()), receiver, said: false })
    }

    /// One question, one answer, one deadline: the shape of every command.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T> {
        let stopped = || Error::new(Kind::Unavailable, "this node is stopping");
        let (reply, answer) = oneshot::channel();
        let round_trip = async {
            self.inbox.send(question(reply)).await.map_err(|_| stopped())?;
            answer.await.map_err(|_| stopped())
        };
        tokio::time::timeout(self.patience, round_trip)
            .await
            .unwrap_or_else(|_| Err(Error::new(Kind::Timeout, "the network did not answer")))
    }
}

fn cannot_listen(address: SocketAddr, error: io::Error) -> Error {
    let hint = "choose another address with --listen, or stop what uses this one";
    lca::listen::cannot("libp2p", address, hint, error)
}

/// What a find says, as it comes. Starts when it is first polled; a find that ends
/// without a word, because there are too many or the node stops, says that it missed.
struct FindStream {
    start: Option<BoxFuture<'static, ()>>,
    receiver: mpsc::Receiver<Found>,
    said: bool,
}

impl Stream for FindStream {
    type Item = Found;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Found>> {
        if let Some(start) = &mut self.start {
            ready!(start.poll_unpin(cx));
            self.start = None;
        }
        let found = ready!(self.receiver.poll_recv(cx));
        let first = !std::mem::replace(&mut self.said, true);
        Poll::Ready(found.or(first.then_some(Found::Miss)))
    }
}
