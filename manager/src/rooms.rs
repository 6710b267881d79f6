//! What allocators have left, so that one without room is not asked first. Known only of
//! those that somebody needed a moment ago: such an allocator is followed for a minute
//! (`WatchInstances` begins with its capacity and tells each change), and an idle node
//! follows nobody.
//!
//! Invariant: this changes the order in which allocators are asked, never whether: it may
//! be out of date, and an allocator speaks for itself when it is asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lca::{
    PeerId, Resources, ServiceHash,
    api::proto::{self, instance_event::Event},
    endpoint::Endpoint,
    shutdown::Spawner,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    reach::Reach,
    relay::follow::{Follower, Said},
};

/// Allocators followed at the same time: those first in the order of the services that a
/// node starts within a minute.
const MAX: usize = 16;
/// How long one is followed after it was last needed: services are often started together.
const NEEDED: Duration = Duration::from_secs(60);
/// How long what was said is believed after its peer has fallen silent.
const BELIEVED: Duration = Duration::from_secs(5);
/// Who only wants *an* instance joins one that is starting there, which takes no room.
/// It may be what took the last: for as long as most starts take, it is asked all the same.
const JOINS: Duration = Duration::from_secs(10);
/// Events that nobody has taken up: capacities come four times a second at most.
const SAID: usize = 8;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    reach: Reach,
    spawner: Spawner,
    known: Arc<Mutex<HashMap<PeerId, Known>>>,
}

#[derive(Debug)]
struct Known {
    needed: Instant,
    /// Which follower this is of.
    follower: u64,
    room: Option<Room>,
}

/// What one has.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Room {
    total: proto::Capacity,
    used: proto::Capacity,
    /// When something was admitted last, or it was first heard of.
    grew: Instant,
    /// When it fell silent, if it has.
    silent: Option<Instant>,
}

impl Rooms {
    pub(crate) fn new(reach: Reach, spawner: Spawner) -> Self {
        Self { reach, spawner, known: Arc::default() }
    }

    /// Whether `peer` has not said that it has no room for so much. `joins`: an instance
    /// that is there already will do as well.
    pub(crate) fn has_room(&self, peer: PeerId, needs: Resources, joins: bool) -> bool {
        let room = self.lock().get(&peer).and_then(|known| known.room);
        room.is_none_or(|room| room.takes(needs, joins, Instant::now()))
    }

    /// Somebody is about to ask `endpoint`'s allocator, or may be soon: follows it.
    pub(crate) fn need(&self, endpoint: &Arc<Endpoint>) {
        let now = Instant::now();
        let mut all = self.lock();
        if let Some(known) = all.get_mut(&endpoint.peer) {
            known.needed = now;
            return;
        }
        if all.len() >= MAX || self.spawner.is_stopping() {
            return;
        }
        let follower = rand::random();
        all.insert(endpoint.peer, Known { needed: now, follower, room: None });
        drop(all);
        let (this, endpoint) = (self.clone(), endpoint.clone());
        let stopping = self.spawner.stopping();
        self.spawner.spawn_short(async move {
            let peer = endpoint.peer;
            tokio::select! {
                () = this.follow(endpoint, follower) => {}
                () = stopping => {}
            }
            this.lock()
                .retain(|known_peer, known| *known_peer != peer || known.follower != follower);
        });
    }

    /// Follows until nobody needs it any more, or it has been silent for too long.
    async fn follow(&self, endpoint: Arc<Endpoint>, follower: u64) {
        let peer = endpoint.peer;
        let (sender, mut said) = mpsc::channel(SAID);
        // No instance has this hash: only the capacity is told.
        let nothing = ServiceHash::from_sha256([0; 32]).to_string();
        let which = proto::WatchInstancesRequest { service_hash: nothing, ..Default::default() };
        let number = follower;
        let reach = self.reach.clone();
        let following = Follower { reach, endpoint, which, number, sender }.follow();
        let hearing = async {
            while let Some(until) = self.until(peer) {
                tokio::select! {
                    Some((_, said)) = said.recv() => self.heard(peer, said, Instant::now()),
                    () = sleep_until(until) => {}
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = hearing => {}
        }
    }

    /// Until when `peer` is followed; `None` if that is over.
    fn until(&self, peer: PeerId) -> Option<Instant> {
        let now = Instant::now();
        let all = self.lock();
        let known = all.get(&peer)?;
        let silent = known.room.and_then(|room| room.silent).map(|since| since + BELIEVED);
        let until = silent.into_iter().chain([known.needed + NEEDED]).min()?;
        (until > now).then_some(until)
    }

    fn heard(&self, peer: PeerId, said: Said, now: Instant) {
        let mut all = self.lock();
        let Some(known) = all.get_mut(&peer) else { return };
        match said {
            Said::Event(Event::Capacity(proto::PeerCapacity {
                total: Some(total),
                used: Some(used),
                ..
            })) => {
                known.room = Some(Room::heard(known.room, total, used, now));
            }
            Said::Event(_) | Said::Begun => {}
            // Nothing is known of one that never said anything; it is over as well.
            Said::Lost => match &mut known.room {
                Some(room) => room.silent = room.silent.or(Some(now)),
                None => known.needed = now.checked_sub(NEEDED).unwrap_or(now),
            },
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PeerId, Known>> {
        // Every change is a single insertion or field.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn heard(
        before: Option<Self>,
        total: proto::Capacity,
        used: proto::Capacity,
        now: Instant,
    ) -> Self {
        let grown = |before: &Self| {
            used.instances > before.used.instances
                || used.cpu_millis > before.used.cpu_millis
                || used.memory_bytes > before.used.memory_bytes
        };
        let grew = before.filter(|before| !grown(before)).map_or(now, |before| before.grew);
        Self { total, used, grew, silent: None }
    }

    fn takes(&self, needs: Resources, joins: bool, now: Instant) -> bool {
        let is_old = self.silent.is_some_and(|since| now.duration_since(since) >= BELIEVED);
        let may_join = joins && now.duration_since(self.grew) < JOINS;
        is_old || may_join || self.fits(needs)
    }

    fn fits(&self, needs: Resources) -> bool {
        let Self { total, used, .. } = self;
        used.instances < total.instances
            && u64::from(used.cpu_millis) + u64::from(needs.cpu_millis) <= total.cpu_millis.into()
            && used.memory_bytes.saturating_add(needs.memory_bytes) <= total.memory_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Resources = Resources { cpu_millis: 100, memory_bytes: 1 << 20 };

    fn capacity(instances: u32) -> proto::Capacity {
        let memory_bytes = u64::from(instances) << 20;
        proto::Capacity { cpu_millis: instances * 100, memory_bytes, instances }
    }

    #[test]
    fn without_room_it_is_out_at_once_or_for_who_may_join_after_a_start() {
        let now = Instant::now();
        let full = Room::heard(None, capacity(2), capacity(2), now);
        assert!(!full.takes(SMALL, false, now));
        assert!(full.takes(SMALL, true, now), "what took the last place may be joined");
        let later = now + JOINS;
        let still = Room::heard(Some(full), capacity(2), capacity(2), later);
        assert!(!still.takes(SMALL, true, later));
        let less = Room::heard(Some(still), capacity(2), capacity(1), later);
        assert!(less.takes(SMALL, false, later) && less.takes(SMALL, true, later));
        let again = Room::heard(Some(less), capacity(2), capacity(2), later);
        assert!(again.takes(SMALL, true, later), "somebody has just been admitted");
    }

    #[test]
    fn each_of_what_is_needed_has_to_be_there() {
        let now = Instant::now();
        let room = Room::heard(None, capacity(4), capacity(1), now);
        let takes = |cpu_millis, memory_bytes| {
            room.takes(Resources { cpu_millis, memory_bytes }, false, now)
        };
        assert!(takes(300, 3 << 20));
        assert!(!takes(301, 1 << 20));
        assert!(!takes(100, (3 << 20) + 1));
        assert!(!takes(u32::MAX, u64::MAX));
    }

    #[test]
    fn what_one_said_before_it_fell_silent_is_believed_for_a_while() {
        let now = Instant::now();
        let full = Room { silent: Some(now), ..Room::heard(None, capacity(1), capacity(1), now) };
        assert!(!full.takes(SMALL, false, now + BELIEVED / 2));
        assert!(full.takes(SMALL, false, now + BELIEVED));
    }
}
