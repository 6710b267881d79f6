//! One search for ready instances of a service: discovery says which peers have some,
//! and each of them is asked and measured as soon as it is named.
//!
//! Discovery is a hint: a peer that is not there is forgotten and costs nobody
//! anything but its own probe. One that is merely late is busy, and not forgotten: its
//! instances serve, and a second one would be started for nothing. One of which nothing comes
//! any more is asked as well, for it may be back, but nobody hopes for its answer. A [`Search`]
//! decides nothing; it says what it sees and when it is time to stop hoping ([`Event::Dry`]).

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use lca::{
    InstanceId, Kind, PeerId, Result, ServiceHash,
    api::proto,
    discovery::{Finding, Found, Key},
    endpoint::Endpoint,
    headers::Load,
};
use tokio::time::Instant;

use crate::reach::{Reach, ready};

/// Longest one peer may take to be measured and to say what it runs: three round trips
/// (TCP, TLS, question) of half a second, with room.
const PROBE: Duration = Duration::from_secs(2);
/// Peers asked in one search. A find yields at most 20 providers an answer.
const MAX_PROBES: usize = 64;
/// After only bad peers, how long to wait for a good one before an allocation is
/// begun: as long as a find waits at least for its first answer.
const PATIENCE: Duration = Duration::from_millis(50);

/// What a peer said.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) rtt: Duration,
    /// Its ready instances of the service; may be empty.
    pub(crate) ready: Vec<(InstanceId, Load)>,
}

/// What a search has to say.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer answered.
    Seen(Seen),
    /// A peer was named and does not answer.
    Dead(PeerId),
    /// A peer was named and did not say in time; it answers probes, or nobody knows yet.
    Late,
    /// Nothing useful for too long: begin something else. Said at most once.
    Dry,
    /// Everything there is has been said.
    Over,
}

type Probe = BoxFuture<'static, Probed>;

/// What came of asking a peer.
struct Probed {
    endpoint: Arc<Endpoint>,
    answer: Result<Seen>,
    /// An answer was hoped for.
    hoped: bool,
}

/// See the module. Dropping it ends the find.
pub(crate) struct Search {
    reach: Reach,
    service: ServiceHash,
    finding: Option<Finding>,
    probes: FuturesUnordered<Probe>,
    /// Of the probes, those whose answer is hoped for.
    hopes: usize,
    named: HashSet<PeerId>,
    dry: Dry,
}

/// When the search has gone on for too long without a word.
enum Dry {
    /// Not while peers are being named or asked.
    NotYet,
    /// At this moment, unless somebody is named before.
    At(Instant),
    Said,
}

impl Search {
    /// Begins. `also` are peers to ask whether or not they are found; this node is one
    /// of them if it holds instances, for a find leaves it out.
    pub(crate) fn start(
        reach: &Reach,
        service: ServiceHash,
        also: impl IntoIterator<Item = Arc<Endpoint>>,
    ) -> Self {
        let mut search = Self {
            reach: reach.clone(),
            service,
            finding: Some(reach.discovery.find(Key::Service(service))),
            probes: FuturesUnordered::new(),
            hopes: 0,
            named: HashSet::new(),
            dry: Dry::NotYet,
        };
        let own = reach.discovery.own();
        let own = own.holds_instances().then_some(own);
        for endpoint in also.into_iter().chain(own) {
            search.probe(endpoint);
        }
        search
    }

    /// What happens next. Cancel safe. After [`Event::Over`] it says so for ever.
    pub(crate) async fn next(&mut self) -> Event {
        loop {
            if self.finding.is_none() && self.probes.is_empty() {
                return Event::Over;
            }
            let dry_at = match self.dry {
                Dry::At(at) if self.hopes == 0 => Some(at),
                _ => None,
            };
            tokio::select! {
                biased; // an answer beats the next name, and both beat giving up
                Some(Probed { endpoint, answer, hoped }) = self.probes.next() => {
                    self.hopes -= usize::from(hoped);
                    self.worry();
                    return self.answered(endpoint, answer);
                }
                found = next_found(&mut self.finding) => match found {
                    Some(Found::Endpoint(endpoint)) => self.probe(endpoint),
                    // Those asked without being found may still have it.
                    Some(Found::Miss) => self.hope_until(Instant::now()),
                    None => self.finding = None,
                },
                () = tokio::time::sleep_until(dry_at.unwrap_or_else(Instant::now)), if dry_at.is_some() => {
                    self.dry = Dry::Said;
                    return Event::Dry;
                }
            }
        }
    }

    /// Stops looking for more peers; those being asked may still answer.
    pub(crate) fn stop_finding(&mut self) {
        self.finding = None;
    }

    /// A peer has answered; if it was no use, somebody else had better come soon.
    fn worry(&mut self) {
        self.hope_until(Instant::now() + PATIENCE);
    }

    fn hope_until(&mut self, at: Instant) {
        if matches!(self.dry, Dry::NotYet) {
            self.dry = Dry::At(at);
        }
    }

    fn answered(&self, endpoint: Arc<Endpoint>, answer: Result<Seen>) -> Event {
        match answer {
            Ok(seen) => Event::Seen(seen),
            Err(error)
                if error.kind() == Kind::Timeout && !self.reach.mesh.is_silent(endpoint.peer) =>
            {
                tracing::debug!(peer = %endpoint.peer.short(), error = error.chain(), "a hint is late");
                Event::Late
            }
            Err(error) => {
                tracing::debug!(peer = %endpoint.peer.short(), error = error.chain(), "a hint is dead");
                self.reach.discovery.forget(endpoint.peer);
                Event::Dead(endpoint.peer)
            }
        }
    }

    fn probe(&mut self, endpoint: Arc<Endpoint>) {
        if self.named.len() >= MAX_PROBES || !self.named.insert(endpoint.peer) {
            return;
        }
        let hoped = !self.reach.mesh.is_gone(endpoint.peer);
        self.hopes += usize::from(hoped);
        if !hoped {
            self.worry();
        }
        let reach = self.reach.clone();
        let service = self.service;
        self.probes.push(Box::pin(async move {
            let answer = ask(&reach, service, &endpoint).await;
            Probed { endpoint, answer, hoped }
        }));
    }
}

async fn next_found(finding: &mut Option<Finding>) -> Option<Found> {
    match finding {
        Some(finding) => finding.next().await,
        // The select has nothing to wait for here but the probes.
        None => std::future::pending().await,
    }
}

/// What one peer has ready of a service, and how far it is.
///
/// # Errors
/// If it does not answer in time.
pub(crate) async fn ask(
    reach: &Reach,
    service: ServiceHash,
    endpoint: &Arc<Endpoint>,
) -> Result<Seen> {
    let which =
        proto::ListInstancesRequest { service_hash: service.to_string(), ..Default::default() };
    let (rtt, instances) =
        tokio::try_join!(reach.measure(endpoint, PROBE), reach.instances(endpoint, which, PROBE))?;
    let ready = instances.iter().filter_map(|instance| ready(instance, service)).collect();
    Ok(Seen { endpoint: endpoint.clone(), rtt, ready })
}
