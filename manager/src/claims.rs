//! Leave to start one more instance, asked of the holders of a service's claims, so that
//! managers that do not know of each other do not start more than there may be.
//!
//! Holders are the first allocators in rendezvous order, of all that are known: every
//! manager asks the same ones, and in the same order. The first no is believed, and what
//! was granted before it is given back. As nobody holds a later holder's grant while
//! waiting for an earlier one's, two managers never keep each other from it.
//!
//! Invariant: a grant is bound to the instance that was started with it, or given back,
//! whatever becomes of whoever asked; if this node dies, its time runs out.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use lca::{
    InstanceId, Kind, PeerId, RequestId, Result, ServiceHash,
    api::{
        self,
        proto::{self, allocator_client::AllocatorClient},
    },
    endpoint::Endpoint,
    rendezvous, sequence,
    shutdown::Spawner,
};
use tokio::time::{Instant, sleep};

use crate::{allocators::Allocators, reach::Reach};

/// Allocators that hold the claims of a service: one may be lost without anybody noticing.
pub(crate) const HOLDERS: usize = 2;
/// Allocators asked until so many have answered. All managers know of the dead ones at
/// about the same time; after these, it is the network that is cut.
const MAX_ASKED: usize = 4;
/// Longest a holder may take: connecting (3 s at most where nobody answers) is not waited
/// for, for such a one is known to be silent; a survey of its own takes 1 s, twice if it
/// has to look at what is left, too.
const ANSWER: Duration = Duration::from_secs(3);
/// How long a grant outlives this node: well above what a renewal may be late.
pub(crate) const TTL: Duration = Duration::from_secs(10);
/// How often what is still needed is renewed: two may be lost.
const RENEW: Duration = Duration::from_secs(3);

/// What a bid for leave has come to.
#[derive(Debug)]
pub(crate) enum Claimed {
    /// One may be started with this. Dropping it gives the leave back.
    Granted(Ticket),
    /// There are as many as there may be.
    Taken(Taken),
}

/// What stands in the way of one more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The instances that count, and where they are.
    pub(crate) instances: Vec<(InstanceId, PeerId)>,
    /// How many others are about to be started.
    pub(crate) claims: u32,
}

/// One holder's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Granted,
    Taken(Taken),
    /// Nothing: it cannot be reached, or it cannot say.
    Silent,
}

/// Whom to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Ask(PeerId),
    /// Everyone who answered has granted it: these.
    Go(Vec<PeerId>),
    /// This one has not; those have, and are told that it is not needed.
    GiveBack(Taken, Vec<PeerId>),
}

/// The order of a bid, as a function over what is heard: ask, one after the other.
#[derive(Debug)]
pub(crate) struct Bid {
    /// Last first.
    order: Vec<PeerId>,
    granted: Vec<PeerId>,
    taken: Option<Taken>,
}

impl Bid {
    /// For one more of `service`, where these allocators are known.
    pub(crate) fn new(service: ServiceHash, known: &[PeerId]) -> Self {
        let mut order = rendezvous::order(service, known.iter().copied());
        order.truncate(MAX_ASKED);
        order.reverse();
        Self { order, granted: Vec::new(), taken: None }
    }

    /// What to do now.
    pub(crate) fn next(&self) -> Next {
        match (&self.taken, self.order.last()) {
            (Some(taken), _) => Next::GiveBack(taken.clone(), self.granted.clone()),
            (None, Some(holder)) if self.granted.len() < HOLDERS => Next::Ask(*holder),
            (None, _) => Next::Go(self.granted.clone()),
        }
    }

    /// The one to be asked next has been, and said this.
    pub(crate) fn heard(&mut self, heard: Heard) {
        let asked = self.order.pop();
        match heard {
            Heard::Granted => self.granted.extend(asked),
            Heard::Taken(taken) => self.taken = Some(taken),
            Heard::Silent => {}
        }
    }
}

/// Asks for leave to start one more instance of `service`, where there may be `limit`, this
/// one counted. `id` is that of the allocation that follows. Without a holder that can be
/// reached it is granted by nobody and all the same: what is too many idles out.
pub(crate) async fn claim(
    reach: &Reach,
    allocators: &Allocators,
    spawner: &Spawner,
    service: ServiceHash,
    limit: u32,
    id: &RequestId,
) -> Claimed {
    let known = allocators.list_or_find().await;
    let peers: Vec<_> = known.iter().map(|one| one.endpoint.peer).collect();
    let mut bid = Bid::new(service, &peers);
    let endpoint = |peer: PeerId| known.iter().map(|one| &one.endpoint).find(|at| at.peer == peer);
    let mut ticket = Ticket {
        reach: reach.clone(),
        spawner: spawner.clone(),
        holders: Vec::new(),
        service,
        id: id.clone(),
        limit,
    };
    loop {
        match bid.next() {
            Next::Ask(peer) => {
                let Some(holder) = endpoint(peer) else {
                    bid.heard(Heard::Silent);
                    continue;
                };
                // Before it is asked: it may grant what nobody hears.
                ticket.holders.push(holder.clone());
                let heard = ticket.ask(holder).await;
                if heard != Heard::Granted {
                    ticket.holders.pop();
                }
                if heard == Heard::Silent {
                    ticket.tell(vec![holder.clone()], Said::GiveBack);
                }
                bid.heard(heard);
            }
            Next::Go(_) => return Claimed::Granted(ticket),
            // The ticket gives back what it has.
            Next::GiveBack(taken, _) => return Claimed::Taken(taken),
        }
    }
}

/// Leave to start one instance. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Ticket {
    reach: Reach,
    spawner: Spawner,
    /// Those that have granted it.
    holders: Vec<Arc<Endpoint>>,
    service: ServiceHash,
    id: RequestId,
    limit: u32,
}

/// What holders are told at the end.
#[derive(Clone, Copy, Debug)]
enum Said {
    GiveBack,
    Bind(InstanceId, PeerId),
}

impl Ticket {
    /// Keeps it while `starting` goes on.
    pub(crate) async fn held<T>(&self, starting: impl Future<Output = T>) -> T {
        let renewing = async {
            loop {
                sleep(RENEW).await;
                join_all(self.holders.iter().map(|holder| self.ask(holder))).await;
            }
        };
        tokio::select! {
            biased;
            end = starting => end,
            () = renewing => unreachable!("renewed until the start is over"),
        }
    }

    /// It has become this instance.
    pub(crate) fn became(mut self, instance: InstanceId, peer: PeerId) {
        let holders = std::mem::take(&mut self.holders);
        self.tell(holders, Said::Bind(instance, peer));
    }

    async fn ask(&self, holder: &Endpoint) -> Heard {
        let request = proto::ClaimRequest {
            limit: self.limit,
            ttl_ms: TTL.as_millis() as u32,
            ..request(self.service, &self.id)
        };
        if self.reach.mesh.is_silent(holder.peer) {
            return Heard::Silent;
        }
        let heard = match ask(&self.reach, holder, &request).await {
            // A connection may just have been given up by the other end.
            Err(error) if error.kind() == Kind::Unavailable => {
                ask(&self.reach, holder, &request).await
            }
            heard => heard,
        };
        match heard {
            Ok(answer) if answer.granted => Heard::Granted,
            Ok(answer) => Heard::Taken(Taken {
                instances: answer
                    .instances
                    .iter()
                    .filter_map(|one| Some((one.instance.parse().ok()?, one.peer.parse().ok()?)))
                    .collect(),
                claims: answer.claims,
            }),
            // It has answered, and cannot hold one more claim of this service: no leave, for now.
            Err(error) if error.kind() == Kind::NoCapacity => {
                Heard::Taken(Taken { instances: Vec::new(), claims: 1 })
            }
            Err(error) => {
                tracing::debug!(
                    peer = %holder.peer.short(), error = error.chain(), "a holder of claims is silent"
                );
                Heard::Silent
            }
        }
    }

    /// Tells holders behind whoever has asked. What they do not hear, they notice.
    fn tell(&self, holders: Vec<Arc<Endpoint>>, said: Said) {
        if holders.is_empty() {
            return;
        }
        let mut request = request(self.service, &self.id);
        if let Said::Bind(instance, peer) = said {
            (request.instance, request.peer) = (instance.to_string(), peer.to_string());
        }
        let reach = self.reach.clone();
        self.spawner.spawn_short(async move {
            join_all(holders.iter().map(|holder| async {
                if let Err(_first) = ask(&reach, holder, &request).await {
                    let _its_time_runs_out = ask(&reach, holder, &request).await;
                }
            }))
            .await;
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let holders = std::mem::take(&mut self.holders);
        self.tell(holders, Said::GiveBack);
    }
}

/// What all messages about a claim say, in the order in which this is called.
fn request(service: ServiceHash, id: &RequestId) -> proto::ClaimRequest {
    proto::ClaimRequest {
        service_hash: service.to_string(),
        request_id: id.to_string(),
        sequence: sequence::next(),
        ..Default::default()
    }
}

async fn ask(
    reach: &Reach,
    holder: &Endpoint,
    request: &proto::ClaimRequest,
) -> Result<proto::ClaimResponse> {
    let begun = Instant::now();
    let mut client = AllocatorClient::new(reach.channel(holder, ANSWER).await?);
    let left = ANSWER.saturating_sub(begun.elapsed());
    api::call("the holder", left, request.clone(), |request| client.claim(request)).await
}
