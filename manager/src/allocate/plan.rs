//! The allocators in the order in which they are asked, worked out as far as it is needed:
//! those that are sound first, and the doubtful only where those will not do.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use lca::{Error, Kind, PeerId, api::proto::allocate_request::Mode, endpoint::Endpoint};

use super::{Order, ask_facts, groups, heed_rooms, measure, refusals::Refusals, with_driver};
use crate::{
    allocators::{Allocator, Allocators},
    begun::{self, Near},
    flight::Flight,
    policy::{self, Offer},
    reach::Reach,
};

/// Of those that may be asked, how many are followed for what they have left: the first
/// is asked, and the others if it has nothing.
const MAX_FOLLOWED: usize = 3;

/// See the module.
pub(super) struct Plan<'a> {
    pub(super) reach: &'a Reach,
    pub(super) allocators: &'a Allocators,
    pub(super) order: &'a Order,
    flight: &'a Flight,
    /// Last first: who is asked, and how long measuring them may take.
    groups: Vec<(Vec<Allocator>, Duration)>,
    /// What these have begun is joined.
    doubtful: Vec<Allocator>,
    ranked: VecDeque<Arc<Endpoint>>,
    /// Nobody is named twice.
    named: Vec<PeerId>,
    /// Why those that are not named are not.
    pub(super) refusals: Refusals,
}

/// What is known of one group.
struct Ranked {
    order: VecDeque<Arc<Endpoint>>,
    offers: Vec<Offer>,
    silent: Vec<(PeerId, Error)>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(
        reach: &'a Reach,
        allocators: &'a Allocators,
        order: &'a Order,
        flight: &'a Flight,
        all: Vec<Allocator>,
    ) -> Self {
        let [sound, doubtful] = groups(all, order.first);
        Self {
            reach,
            allocators,
            order,
            flight,
            doubtful: doubtful.0.clone(),
            groups: vec![doubtful, sound],
            ranked: VecDeque::new(),
            named: Vec::new(),
            refusals: Refusals::default(),
        }
    }

    /// The next one. Dropping it before its end loses nobody.
    pub(super) async fn next(&mut self) -> Option<Arc<Endpoint>> {
        loop {
            if let Some(endpoint) = self.ranked.pop_front() {
                if self.named.contains(&endpoint.peer) {
                    continue;
                }
                self.named.push(endpoint.peer);
                return Some(endpoint);
            }
            let (group, patience) = self.groups.last()?;
            let Ranked { order, offers, silent } = self.rank(group, *patience).await;
            let asked = self.groups.pop().map(|(asked, _)| asked).unwrap_or_default();
            self.ranked = order;
            for (peer, error) in silent {
                let slow = asked.iter().find(|one| one.endpoint.peer == peer);
                match (self.groups.last_mut(), slow) {
                    // Slow to be measured is not dead: a last resort, for this one too.
                    (Some((doubtful, _)), Some(slow)) if error.kind() == Kind::Timeout => {
                        doubtful.push(slow.clone());
                    }
                    _ => self.refusals.add(peer, error),
                }
            }
            self.refusals.too_far(&offers, &self.order.limits);
        }
    }

    async fn rank(&self, group: &[Allocator], patience: Duration) -> Ranked {
        let Self { reach, allocators, order, .. } = self;
        let one = |peer: &PeerId| {
            let mut all = group.iter().chain(&self.doubtful).map(|one| &one.endpoint);
            all.find(|endpoint| endpoint.peer == *peer).cloned()
        };
        let (mut offers, mut silent) =
            measure(reach, allocators, order.service, group, patience).await;
        silent.extend(with_driver(reach, &order.runs, group, &mut offers).await);
        let question = self.flight.question();
        for offer in &mut offers {
            offer.rtt = question.distance(reach, offer.peer, offer.rtt);
        }
        let joins = order.mode != Mode::New;
        heed_rooms(&mut offers, allocators, order.resources, joins);
        ask_facts(reach, order.placement, order.service, &order.limits, group, &mut offers).await;
        let mut ranked =
            policy::rank(order.placement, joins, &offers, &order.limits, order.service);
        if let Some(first) = order.first
            && let Some(at) = ranked.iter().position(|peer| *peer == first)
        {
            ranked[..=at].rotate_right(1);
        }
        ranked.iter().take(MAX_FOLLOWED).filter_map(one).for_each(|it| allocators.rooms.need(&it));
        if order.mode == Mode::Ensure {
            let near = begun::whom(reach, &order.limits, &ranked, &offers, &self.doubtful);
            let near = near.iter().filter_map(|peer| {
                let doubtful = self.doubtful.iter().any(|one| one.endpoint.peer == *peer);
                Some(Near { endpoint: one(peer)?, doubtful })
            });
            let near: Vec<_> = near.collect();
            if near.len() > 1
                && let Some(at) = ranked.first()
            {
                let of: Vec<_> = near.iter().map(|near| near.endpoint.peer).collect();
                let begun = begun::begun(reach, order.service, near, *at, question.avoids()).await;
                // Nobody waits for these again until they have answered from behind.
                begun.mute.into_iter().for_each(|peer| allocators.failed(peer));
                // Somebody else may mean one that will not do here.
                if let Some(peer) = begun.by.filter(|peer| of.contains(peer)) {
                    ranked.retain(|one| *one != peer);
                    ranked.insert(0, peer);
                }
            }
        }
        Ranked { order: ranked.iter().filter_map(one).collect(), offers, silent }
    }
}
