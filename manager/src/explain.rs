//! What a request would come to, and why: the same policy that decides, asked to say
//! what it thinks of everything there is.
//!
//! It looks as a request looks (what is known, then a find, then the allocators) and more
//! widely, for people also want to see what is out of the question. It starts nothing and
//! changes nothing of what requests do; what does not answer in time is named.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use lca::{
    Error, InstanceId, Kind, PeerId, Requirements, Result, ServiceHash, ServiceName,
    api::proto::{self, considered_instance::Verdict as Told},
    specs::Cached,
};
use tokio::time::{Instant, timeout};

use crate::{
    cache::Known,
    find::{Event, Search, Seen},
    manager::Inner,
    moving::Move,
    policy::{self, Candidate, Verdict},
    relay::instances::{All, everywhere},
    scale::{self, Share},
};

mod allocators;
mod words;

/// Longest the registry may take, and allocators that nobody knows yet to be found.
const FIRST: Duration = Duration::from_secs(1);
/// Longest looking at instances and allocators may take: a probe and a find.
const LOOK: Duration = Duration::from_millis(1500);
/// The most instances one answer names.
const MAX: usize = 1000;

/// An instance that is considered.
struct One {
    instance: proto::Instance,
    known: bool,
    /// `None`: not to be considered for a request, for the reason of `told`.
    candidate: Option<Candidate>,
    told: Told,
    /// There are more than requests need, and it is one of those that are to idle out.
    surplus: bool,
}

/// Explains what requests for `name` would come to.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such service; [`Kind::Unavailable`] or
/// [`Kind::Timeout`] if nobody can say.
pub(crate) async fn explain(inner: &Inner, name: &ServiceName) -> Result<proto::ExplainResponse> {
    let spec = timeout(FIRST, inner.specs.get(name)).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Timeout, format!("no registry said in time what {name} is")))
    })?;
    let limits = inner.limits(&spec, Requirements::default());
    let known = inner.cache().peek(spec.hash, Instant::now());
    if !spec.spec.is_external() {
        let _or_there_is_none = timeout(FIRST, inner.allocators.list_or_find()).await;
    }
    let which = proto::ListInstancesRequest { service: name.to_string(), ..Default::default() };
    let (listed, found, allocators) = tokio::join!(
        timeout(LOOK, everywhere(inner, &which)),
        search(inner, spec.hash),
        allocators::consider(inner, &spec, &limits),
    );
    let All { instances, unreachable, answered } = listed.unwrap_or_default();
    let mut all = merge(inner, &spec, &known, instances, &answered, &found);
    note_surplus(&mut all, &limits, inner.scale.peek(&spec));
    let home = inner.moving.home(spec.hash, &limits);
    let moves = moves(inner.moving.moves(name), &all, Instant::now());
    let chosen = at_home(&all, home, &limits).or_else(|| choose(&all, &limits));
    let outlook = words::outlook(&spec, &limits, chosen.map(|at| &all[at]), &allocators);
    if let Some(at) = chosen {
        all[at].told = Told::Chosen;
    }
    let mut instances: Vec<_> = all.into_iter().map(|one| consider(one, &limits, &spec)).collect();
    instances.sort_by_key(|one| {
        let instance = one.instance.as_ref();
        let rtt = instance.and_then(|instance| instance.rtt_us).unwrap_or(u64::MAX);
        (one.verdict, rtt, instance.map(|instance| instance.id.clone()))
    });
    instances.truncate(MAX);
    Ok(proto::ExplainResponse {
        stale: spec.stale,
        requirements: Some(proto::RequirementsInForce {
            in_force: Some(words::wire(limits)),
            service: Some(words::wire(spec.spec.requirements)),
            node: Some(words::wire(inner.requirements())),
        }),
        spec: Some(proto::ServiceSpec::from(&spec.spec)),
        instances,
        allocators: allocators.into_iter().map(|one| one.told).collect(),
        outlook: Some(outlook),
        moves,
        unreachable_peers: unreachable.iter().map(ToString::to_string).collect(),
    })
}

/// What a find brings within [`LOOK`].
async fn search(inner: &Inner, service: ServiceHash) -> Vec<Seen> {
    let mut search = Search::start(&inner.reach, service, []);
    let mut found = Vec::new();
    let looking = async {
        loop {
            match search.next().await {
                Event::Seen(seen) => found.push(seen),
                Event::Dead(_) | Event::Late | Event::Dry => {}
                Event::Over => break,
            }
        }
    };
    let _what_came_in_time = timeout(LOOK, looking).await;
    found
}

/// Everything that is known, listed or found, each once.
fn merge(
    inner: &Inner,
    spec: &Cached,
    known: &[Known],
    listed: Vec<proto::Instance>,
    answered: &[PeerId],
    found: &[Seen],
) -> Vec<One> {
    let known_ids: HashMap<_, _> = known.iter().map(|one| (one.instance, one)).collect();
    let found_at = found.iter().map(|seen| seen.endpoint.peer);
    let answered: HashSet<_> = answered.iter().copied().chain(found_at).collect();
    let mut seen_ids = HashSet::new();
    let mut all = Vec::new();
    for instance in listed {
        let Ok(id) = instance.id.parse() else { continue };
        if !seen_ids.insert(id) {
            continue;
        }
        let told = if instance.service_hash != spec.hash.to_string() {
            Told::OtherVersion
        } else if instance.state() != proto::InstanceState::Ready {
            Told::NotReady
        } else {
            Told::Usable
        };
        let known = known_ids.get(&id);
        let candidate = (told == Told::Usable).then(|| match known {
            Some(known) => inner.candidate(known),
            None => Candidate {
                in_flight: instance.load.unwrap_or_default().in_flight,
                ..Candidate::new(id, instance.rtt_us.map(Duration::from_micros))
            },
        });
        all.push(One { known: known.is_some(), candidate, told, instance, surplus: false });
    }
    // Found, but not listed by an allocator: a proxy represents it, or it was too slow.
    for seen in found {
        for (id, load) in seen.ready.iter().filter(|(id, _)| seen_ids.insert(*id)) {
            let rtt = Some(seen.rtt);
            let instance = words::instance(spec, *id, &seen.endpoint, rtt, Some(*load));
            let candidate = match known_ids.get(id) {
                Some(known) => inner.candidate(known),
                None => Candidate { in_flight: load.in_flight, ..Candidate::new(*id, rtt) },
            };
            let known = known_ids.contains_key(id);
            all.push(One {
                known,
                candidate: Some(candidate),
                told: Told::Usable,
                instance,
                surplus: false,
            });
        }
    }
    // Known, and not confirmed just now.
    for one in known.iter().filter(|one| !seen_ids.contains(&one.instance)) {
        let candidate = inner.candidate(one);
        let instance =
            words::instance(spec, one.instance, &one.endpoint, candidate.rtt, Some(one.load));
        let is_over = answered.contains(&one.endpoint.peer);
        let (told, candidate) = match is_over {
            true => (Told::NotReady, None),
            false => (Told::Usable, Some(candidate)),
        };
        all.push(One { known: true, candidate, told, instance, surplus: false });
    }
    all
}

/// Marks those of the known ones that get no requests, because fewer will do.
fn note_surplus(all: &mut [One], limits: &Requirements, share: Share) {
    let known = all.iter().filter(|one| one.known).filter_map(|one| one.candidate);
    let known: Vec<_> = known.collect();
    let surplus = scale::surplus(&known, limits, &[], share);
    for one in all {
        one.surplus = one.candidate.is_some_and(|it| surplus.contains(&it.instance));
    }
}

/// Where requests go already, if they may go on to.
fn at_home(all: &[One], home: Option<InstanceId>, limits: &Requirements) -> Option<usize> {
    let is_home = |one: &One| {
        let candidate = one.candidate.filter(|candidate| Some(candidate.instance) == home);
        let may = one.known && !one.surplus;
        may && candidate.is_some_and(|it| policy::judge(&it, limits, &[]) == Verdict::Usable)
    };
    all.iter().position(is_home)
}

/// The moves, the latest first, with the peers of the instances that are still known.
fn moves(moves: Vec<Move>, all: &[One], now: Instant) -> Vec<proto::Move> {
    let peer = |instance: &str| {
        let found = all.iter().find(|one| one.instance.id == instance);
        found.map(|one| one.instance.peer.clone()).unwrap_or_default()
    };
    let told = |one: Move| {
        let (from_instance, to_instance) = (one.from.to_string(), one.to.to_string());
        proto::Move {
            age_ms: u64::try_from(now.duration_since(one.at).as_millis()).unwrap_or(u64::MAX),
            from_peer: peer(&from_instance),
            to_peer: peer(&to_instance),
            from_instance,
            to_instance,
            reason: words::move_reason(one.reason).to_owned(),
        }
    };
    moves.into_iter().rev().map(told).collect()
}

/// What a request would take: the best of what is known, else of what would be found.
fn choose(all: &[One], limits: &Requirements) -> Option<usize> {
    let best = |known: bool| {
        let some = all.iter().enumerate().filter(|(_, one)| one.known == known && !one.surplus);
        let some = some.filter_map(|(at, one)| Some((at, one.candidate?)));
        let (at, candidates): (Vec<_>, Vec<_>) = some.unzip();
        policy::choose(&candidates, limits, &[]).map(|index| at[index])
    };
    best(true).or_else(|| best(false))
}

fn consider(one: One, limits: &Requirements, spec: &Cached) -> proto::ConsideredInstance {
    let verdict = match (one.told, &one.candidate) {
        (Told::Usable, Some(candidate)) => match policy::judge(candidate, limits, &[]) {
            Verdict::Usable | Verdict::Tried => Told::Usable,
            Verdict::Suspect => Told::Suspect,
            Verdict::Silent => Told::Silent,
            Verdict::BeyondHard => Told::BeyondHard,
            Verdict::DistanceUnknown => Told::DistanceUnknown,
        },
        (told, _) => told,
    };
    let known = one.candidate.filter(|_| one.known);
    let level = known.map(|candidate| words::level(candidate.level));
    let ejected = known.and_then(|candidate| candidate.ejected_for);
    proto::ConsideredInstance {
        reason: words::instance_reason(verdict, &one, limits, spec),
        instance: Some(one.instance),
        verdict: verdict.into(),
        known: one.known,
        level: level.unwrap_or_default().to_owned(),
        ejected_ms: ejected.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
    }
}
