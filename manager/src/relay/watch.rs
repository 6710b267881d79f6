//! `WatchInstances` over all allocators, and all who represent external services: each is
//! followed by itself, and what they say becomes one stream that is true as a whole.
//!
//! One task serves one watcher and owns what it has been told. Allocators that appear
//! are followed too; one that is lost has its instances `gone`. Everything has a bound:
//! if the watcher does not read, this waits a little and cuts it off, and meanwhile the
//! allocators wait as well.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use lca::{
    Error, InstanceId, Kind, PeerId, Result,
    api::proto::{self, instance_event::Event},
    endpoint::Endpoint,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::follow::{Follower, Said};
use crate::{manager::Inner, representatives};

/// Longest the beginning may take because somebody does not answer.
const SYNC: Duration = Duration::from_secs(2);
/// How often to look for peers that have come.
const ROSTER: Duration = Duration::from_secs(1);
/// How many of these looks there are for each that asks the network who represents
/// external services; allocators are looked for all the time anyway.
const LOOKS_PER_FIND: u32 = 10;
/// Events that wait for a slow watcher.
const QUEUE: usize = 1024;
/// How long the queue may stay full: longer than any pause of a program that reads.
const STALL: Duration = Duration::from_secs(5);
/// What followers have to say and nobody has taken up.
const SAID: usize = 256;
/// Instances that one watcher is told of: all of a large fleet, and still a bound for
/// what peers can make us remember.
const MAX: usize = 16_384;

type Out = Result<proto::InstanceEvent, Status>;

/// Starts to watch. The task ends with the stream, and when the daemon stops.
pub(super) fn start(
    inner: Arc<Inner>,
    which: proto::WatchInstancesRequest,
    place: OwnedSemaphorePermit,
) -> ReceiverStream<Out> {
    // One place more: that a watcher is cut off must reach it though the queue is full.
    let (out, receiver) = mpsc::channel(QUEUE + 1);
    let spawner = inner.spawner.clone();
    let stopping = spawner.stopping();
    spawner.spawn_short(async move {
        let _place = place;
        let Ok(last) = out.clone().reserve_owned().await else { return };
        let (sender, said) = mpsc::channel(SAID);
        let watch = Watch {
            inner,
            which,
            out: out.clone(),
            sender,
            followed: HashMap::new(),
            running: FuturesUnordered::new(),
            there: HashMap::new(),
            awaited: Some(HashSet::new()),
            next_number: 0,
        };
        tokio::select! {
            error = watch.run(said) => {
                last.send(Err(error.into()));
            }
            () = out.closed() => {}
            () = stopping => {}
        }
    });
    ReceiverStream::new(receiver)
}

/// One watcher.
struct Watch {
    inner: Arc<Inner>,
    which: proto::WatchInstancesRequest,
    out: mpsc::Sender<Out>,
    sender: mpsc::Sender<(u64, Said)>,
    followed: HashMap<PeerId, Followed>,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
    there: HashMap<InstanceId, There>,
    /// Who has yet to say what it has before `synced`; `None` after that.
    awaited: Option<HashSet<PeerId>>,
    next_number: u64,
}

/// An allocator that is followed. Dropping it ends that.
struct Followed {
    endpoint: Arc<Endpoint>,
    number: u64,
    lost: bool,
    has_capacity: bool,
    abort: AbortHandle,
}

/// An instance the watcher knows.
struct There {
    peer: PeerId,
    /// Its peer has told of it since it last began.
    confirmed: bool,
}

impl Watch {
    /// Goes on until the watcher has to be cut off, and says why.
    async fn run(mut self, mut said: mpsc::Receiver<(u64, Said)>) -> Error {
        let Err(error) = self.watch(&mut said).await;
        error
    }

    async fn watch(
        &mut self,
        said: &mut mpsc::Receiver<(u64, Said)>,
    ) -> Result<std::convert::Infallible> {
        let mut looks = 0;
        let mut looking = Box::pin(peers(self.inner.clone(), looks));
        let first = looking.as_mut().await;
        self.look_around(&first);
        self.awaited = Some(self.followed.keys().copied().collect());
        let sync_by = Instant::now() + SYNC;
        looking.set(peers(self.inner.clone(), 1));
        loop {
            if self.awaited.as_ref().is_some_and(HashSet::is_empty) {
                self.awaited = None;
                self.tell(Event::Synced(true)).await?;
            }
            tokio::select! {
                Some((number, said)) = said.recv() => self.heard(number, said).await?,
                Some(()) = self.running.next() => {}
                listed = &mut looking => {
                    self.look_around(&listed);
                    looks += 1;
                    looking.set(peers(self.inner.clone(), looks + 1));
                }
                () = sleep_until(sync_by), if self.awaited.is_some() => {
                    self.awaited = Some(HashSet::new());
                }
            }
        }
    }

    /// Follows peers that have come or moved, and gives up lost ones that nobody names any
    /// more.
    fn look_around(&mut self, listed: &[Arc<Endpoint>]) {
        for endpoint in listed {
            let moved = |followed: &Followed| {
                (followed.endpoint.boot, &followed.endpoint.mesh) != (endpoint.boot, &endpoint.mesh)
            };
            if self.followed.get(&endpoint.peer).is_none_or(moved) {
                self.follow(endpoint);
            }
        }
        let is_listed = |peer: &PeerId| listed.iter().any(|one| one.peer == *peer);
        self.followed.retain(|peer, followed| !followed.lost || is_listed(peer));
    }

    fn follow(&mut self, endpoint: &Arc<Endpoint>) {
        let number = self.next_number;
        self.next_number += 1;
        let follower = Follower {
            reach: self.inner.reach.clone(),
            endpoint: endpoint.clone(),
            which: self.which.clone(),
            number,
            sender: self.sender.clone(),
        };
        let (abort, registration) = AbortHandle::new_pair();
        let following = Abortable::new(follower.follow(), registration);
        self.running.push(Box::pin(async {
            let _aborted = following.await;
        }));
        let has_capacity =
            self.followed.get(&endpoint.peer).is_some_and(|before| before.has_capacity);
        let followed =
            Followed { endpoint: endpoint.clone(), number, lost: false, has_capacity, abort };
        self.followed.insert(endpoint.peer, followed);
    }

    async fn heard(&mut self, number: u64, said: Said) -> Result<()> {
        let found = self.followed.iter_mut().find(|(_, followed)| followed.number == number);
        // What an earlier follower of this peer has said is out of date.
        let Some((&peer, followed)) = found else { return Ok(()) };
        match said {
            Said::Begun => {
                followed.lost = false;
                let its = self.there.values_mut().filter(|there| there.peer == peer);
                its.for_each(|there| there.confirmed = false);
                Ok(())
            }
            Said::Lost => {
                followed.lost = true;
                let had_capacity = std::mem::take(&mut followed.has_capacity);
                self.gone(|there| there.peer == peer).await?;
                if had_capacity {
                    let lost =
                        proto::PeerCapacity { peer: peer.to_string(), total: None, used: None };
                    self.tell(Event::Capacity(lost)).await?;
                }
                self.settled(peer);
                Ok(())
            }
            Said::Event(Event::Put(instance)) => self.put(peer, instance).await,
            Said::Event(Event::Gone(id)) => {
                let Ok(id) = id.parse::<InstanceId>() else { return Ok(()) };
                // A peer speaks for itself alone.
                if self.there.get(&id).is_none_or(|there| there.peer != peer) {
                    return Ok(());
                }
                self.there.remove(&id);
                self.tell(Event::Gone(id.to_string())).await
            }
            Said::Event(Event::Synced(_)) => {
                self.gone(|there| there.peer == peer && !there.confirmed).await?;
                self.settled(peer);
                Ok(())
            }
            Said::Event(Event::Capacity(capacity)) => {
                followed.has_capacity = true;
                let peer = peer.to_string();
                self.tell(Event::Capacity(proto::PeerCapacity { peer, ..capacity })).await
            }
        }
    }

    async fn put(&mut self, peer: PeerId, instance: proto::Instance) -> Result<()> {
        let Ok(id) = instance.id.parse::<InstanceId>() else { return Ok(()) };
        // A peer speaks for itself alone.
        let is_its = instance.peer == peer.to_string();
        let room = match self.there.get(&id) {
            Some(there) => there.peer == peer,
            None => self.there.len() < MAX,
        };
        if !is_its || !room {
            tracing::debug!(%peer, instance = %id, is_its, "an instance is left out");
            return Ok(());
        }
        self.there.insert(id, There { peer, confirmed: true });
        let reach = &self.inner.reach;
        let (rtt_us, rtt_deviation_us) = (reach.rtt_us(peer), reach.deviation_us(peer));
        self.tell(Event::Put(proto::Instance { rtt_us, rtt_deviation_us, ..instance })).await
    }

    /// Those instances are there no more.
    async fn gone(&mut self, which: impl Fn(&There) -> bool) -> Result<()> {
        let gone = self.there.iter().filter(|(_, there)| which(there)).map(|(id, _)| *id);
        for id in gone.collect::<Vec<_>>() {
            self.there.remove(&id);
            self.tell(Event::Gone(id.to_string())).await?;
        }
        Ok(())
    }

    /// `peer` holds up `synced` no longer.
    fn settled(&mut self, peer: PeerId) {
        if let Some(awaited) = &mut self.awaited {
            awaited.remove(&peer);
        }
    }

    /// # Errors
    /// If the watcher does not read.
    async fn tell(&mut self, event: Event) -> Result<()> {
        let event = proto::InstanceEvent { event: Some(event) };
        match timeout(STALL, self.out.send(Ok(event))).await {
            // If it is gone, so is this task soon.
            Ok(_) => Ok(()),
            Err(_) => {
                Err(Error::new(Kind::NoCapacity, format!("the watcher did not read for {STALL:?}"))
                    .hint("watch again"))
            }
        }
    }
}

/// Who may hold instances, after a while except for the first look.
async fn peers(inner: Arc<Inner>, look: u32) -> Vec<Arc<Endpoint>> {
    let (allocators, representatives) = match look {
        0 => tokio::join!(inner.allocators.list_or_find(), representatives::find(&inner.reach)),
        _ => {
            sleep(ROSTER).await;
            let find = look.is_multiple_of(LOOKS_PER_FIND);
            let representatives = match find {
                true => representatives::find(&inner.reach).await,
                false => representatives::known(&inner.reach).collect(),
            };
            (inner.allocators.list(), representatives)
        }
    };
    allocators.into_iter().map(|one| one.endpoint).chain(representatives).collect()
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.abort.abort();
    }
}
