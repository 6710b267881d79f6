//! What a limit on instances leaves to do for somebody who needs one: start it, with
//! leave; or use what there is, as far as it may be used; or neither, with the reason.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use futures::future::join_all;
use lca::{
    Error, InstanceId, Kind, PeerId, RequestId, Requirements, Result, api, endpoint::Endpoint,
    specs::Cached,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    claims::{self, Claimed, Taken, Ticket},
    find::{self, Seen},
    flight::{Flight, Landed},
    manager::Inner,
    policy::{self, Candidate},
};

/// How long to wait before holders are asked again while others start an instance, and
/// what that grows to, doubling: a fast program is ready within the first, and of a slow
/// one the last is a small part.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long to wait for what counts, where nobody starts one and its peer does not answer this
/// node: a link may come back. That it has died is not waited for here: then holders say that one is about to
/// be found gone.
const UNREACHED: Duration = Duration::from_secs(3);
/// When another attempt is worthwhile: an instance may have idled out.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What is left to do.
pub(crate) enum Leave {
    /// Start one, as the allocation with this id.
    Start(Ticket, RequestId),
    /// Use this one.
    Use(Landed),
}

/// For a request: leave to start one, or an instance that is there already, if only
/// after somebody else has got it ready.
///
/// # Errors
/// [`Kind::NoCapacity`] with the reason, where there are as many as there may be, and
/// none that may be used.
pub(crate) async fn start_or_use(
    inner: &Inner,
    spec: &Cached,
    max: NonZeroU32,
    flight: &Flight,
) -> Result<Leave> {
    let since = Instant::now();
    // What others start is ready by then, or has failed.
    let deadline = since + spec.spec.readiness.start_timeout + api::MAX_FETCH;
    let mut pause = PAUSE;
    let mut unreached: Option<Instant> = None;
    loop {
        // An id for each bid: one that is given back late must not undo the next.
        let id = RequestId::random();
        let taken = match claim(inner, spec, max, &id).await {
            Claimed::Granted(ticket) => {
                flight.step("claim", since, "granted");
                return Ok(Leave::Start(ticket, id));
            }
            Claimed::Taken(taken) => taken,
        };
        let begun = Instant::now();
        let until = unreached.map(|since| since + UNREACHED);
        let seen = look(inner, spec, &taken, until).await;
        let question = flight.question();
        match outlook(&taken, &seen, &question.limits(), question.avoids()) {
            Outlook::Use(instance, endpoint) => {
                flight.step("claim", since, format!("there are {max} already"));
                return Ok(Leave::Use(Landed { instance, endpoint, allocated: None }));
            }
            Outlook::Wait if Instant::now() + pause < deadline => unreached = None,
            Outlook::Unreached(_)
                if Instant::now() + pause < *unreached.get_or_insert(begun) + UNREACHED => {}
            outlook => {
                let error = refused(spec, max, &taken, &outlook);
                flight.step("claim", since, error.public());
                return Err(error);
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// For somebody who wants another in any case: leave to start it.
///
/// # Errors
/// [`Kind::NoCapacity`] where there are as many as there may be.
pub(crate) async fn start(
    inner: &Inner,
    spec: &Cached,
    max: NonZeroU32,
    flight: &Flight,
) -> Result<Ticket> {
    let since = Instant::now();
    match claim(inner, spec, max, flight.id()).await {
        Claimed::Granted(ticket) => {
            flight.step("claim", since, "granted");
            Ok(ticket)
        }
        Claimed::Taken(taken) => {
            let error = refused(spec, max, &taken, &Outlook::Wait);
            flight.step("claim", since, error.public());
            Err(error)
        }
    }
}

async fn claim(inner: &Inner, spec: &Cached, max: NonZeroU32, id: &RequestId) -> Claimed {
    let Inner { reach, allocators, spawner, .. } = inner;
    claims::claim(reach, allocators, spawner, spec.hash, max.get(), id).await
}

/// Asks the peers of the instances that count, no longer than `until`.
async fn look(inner: &Inner, spec: &Cached, taken: &Taken, until: Option<Instant>) -> Vec<Seen> {
    let until = until.unwrap_or_else(|| Instant::now() + UNREACHED);
    let mut peers: Vec<_> = taken.instances.iter().map(|(_, peer)| *peer).collect();
    peers.sort_unstable();
    peers.dedup();
    let asked = peers.into_iter().map(|peer| async move {
        let endpoint = timeout_at(until, endpoint(inner, peer)).await.ok()??;
        let asked = find::ask(&inner.reach, spec.hash, &endpoint);
        let seen = timeout_at(until, asked).await.ok()?.ok()?;
        inner.learn(spec.hash, &seen);
        Some(seen)
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn endpoint(inner: &Inner, peer: PeerId) -> Option<Arc<Endpoint>> {
    let listed = inner.allocators.list().into_iter().map(|one| one.endpoint);
    match listed.into_iter().find(|endpoint| endpoint.peer == peer) {
        Some(endpoint) => Some(endpoint),
        None => inner.reach.discovery.endpoint(peer).await.ok(),
    }
}

/// What can be expected of the instances that stand in the way.
#[derive(Debug)]
enum Outlook {
    /// This one will do.
    Use(InstanceId, Arc<Endpoint>),
    /// One is being started, or about to be found gone.
    Wait,
    /// Nobody starts one, and this peer, where one runs, does not answer us.
    Unreached(PeerId),
    /// None will do: each is further than the hard limit, the nearest so far, ...
    TooFar(Duration, Duration),
    /// ... or the request has been there.
    Tried,
}

fn outlook(taken: &Taken, seen: &[Seen], limits: &Requirements, avoid: &[InstanceId]) -> Outlook {
    let ready = seen.iter().flat_map(|seen| seen.ready.iter().map(move |one| (seen, one)));
    let ready: Vec<_> = ready.collect();
    let candidates = ready.iter().map(|(seen, (instance, load))| Candidate {
        in_flight: load.in_flight,
        ..Candidate::new(*instance, Some(seen.rtt))
    });
    let candidates: Vec<_> = candidates.collect();
    if let Some(index) = policy::choose(&candidates, limits, avoid) {
        return Outlook::Use(candidates[index].instance, ready[index].0.endpoint.clone());
    }
    let is_ready = |id: &InstanceId| candidates.iter().any(|one| one.instance == *id);
    let has_answered = |peer: &PeerId| seen.iter().any(|seen| seen.endpoint.peer == *peer);
    let mut missing = taken.instances.iter().filter(|(id, _)| !is_ready(id)).peekable();
    let first_missing = missing.peek().map(|(_, peer)| *peer);
    if taken.claims > 0 || missing.any(|(_, peer)| has_answered(peer)) {
        return Outlook::Wait;
    }
    if let Some(peer) = first_missing {
        return Outlook::Unreached(peer);
    }
    let nearest = seen.iter().filter(|seen| !seen.ready.is_empty()).map(|seen| seen.rtt).min();
    match (nearest, limits.hard) {
        (Some(rtt), Some(hard)) if rtt > hard => Outlook::TooFar(rtt, hard),
        _ => Outlook::Tried,
    }
}

fn refused(spec: &Cached, max: NonZeroU32, taken: &Taken, outlook: &Outlook) -> Error {
    let name = &spec.spec.name;
    let mut text = format!("{name} may have {max} instances at most");
    match (taken.instances.len(), taken.claims) {
        (n, 0) => text.push_str(&format!(", and {n} run")),
        (n, starting) => text.push_str(&format!(", {n} run and {starting} are being started")),
    }
    match outlook {
        Outlook::TooFar(rtt, hard) => text.push_str(&format!(
            "; the nearest is {rtt:.1?} away, beyond the hard limit of {hard:?}"
        )),
        Outlook::Unreached(peer) => text.push_str(&format!(
            "; peer {}, where one runs, cannot be reached from here",
            peer.short()
        )),
        Outlook::Tried => text.push_str("; every one within reach has been tried"),
        Outlook::Use(..) | Outlook::Wait => {}
    }
    Error::new(Kind::NoCapacity, text)
        .hint(format!(
            "lcactl service get {name} shows the limit, lcactl instances {name} what runs"
        ))
        .retry_after(RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use lca::headers::Load;

    use super::*;

    fn seen(n: u8, rtt_ms: u64, ready: &[InstanceId]) -> Seen {
        let endpoint = Endpoint {
            peer: PeerId::from_public_key([n; 32]),
            roles: Vec::new(),
            mesh: Vec::new(),
            boot: 1,
            sequence: 1,
            ttl: Duration::from_secs(600),
            version: String::new(),
        };
        Seen {
            endpoint: Arc::new(endpoint),
            rtt: Duration::from_millis(rtt_ms),
            ready: ready.iter().map(|id| (*id, Load::default())).collect(),
        }
    }

    #[test]
    fn what_is_near_enough_is_used_what_starts_is_waited_for_and_the_rest_is_said() {
        let peer = |n| PeerId::from_public_key([n; 32]);
        let (near, far) = (InstanceId::random(), InstanceId::random());
        let taken = Taken { instances: vec![(near, peer(1)), (far, peer(2))], claims: 0 };
        let hard = |ms| Requirements { soft: None, hard: Some(Duration::from_millis(ms)) };
        let both = [seen(1, 5, &[near]), seen(2, 50, &[far])];
        let found = outlook(&taken, &both, &hard(100), &[]);
        assert!(matches!(found, Outlook::Use(id, _) if id == near), "{found:?}");
        let found = outlook(&taken, &both, &hard(100), &[near]);
        assert!(matches!(found, Outlook::Use(id, _) if id == far), "{found:?}");
        let found = outlook(&taken, &both, &hard(100), &[near, far]);
        assert!(matches!(found, Outlook::Tried), "{found:?}");
        let found = outlook(&taken, &both, &hard(1), &[]);
        let nearest = Duration::from_millis(5);
        assert!(matches!(found, Outlook::TooFar(rtt, _) if rtt == nearest), "{found:?}");
        let starting = [seen(1, 5, &[]), seen(2, 50, &[far])];
        assert!(matches!(outlook(&taken, &starting, &hard(10), &[]), Outlook::Wait));
        let silent = [seen(2, 50, &[far])];
        let found = outlook(&taken, &silent, &hard(10), &[]);
        assert!(matches!(found, Outlook::Unreached(at) if at == peer(1)), "{found:?}");
        let coming = Taken { claims: 1, ..taken.clone() };
        assert!(matches!(outlook(&coming, &silent, &hard(10), &[]), Outlook::Wait));
        let claimed = Taken { instances: Vec::new(), claims: 1 };
        assert!(matches!(outlook(&claimed, &[], &hard(10), &[]), Outlook::Wait));
    }
}
