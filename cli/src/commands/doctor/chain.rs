//! What a daemon's own account means for each link: a function over what it said.

use lca::{
    Resources,
    api::proto::{Capacity, DiagnoseResponse, PeerCheck, diagnose_response::Standing},
};

use super::Link;
use crate::view::{micros, short_peer};

const BOOTSTRAPS: &str = "bootstraps";
const NETWORK: &str = "network";
const REGISTRY: &str = "registry";
const ALLOCATORS: &str = "allocators";

/// The links between the daemon and an instance, in the order in which they are needed.
pub(super) fn links(told: Option<&DiagnoseResponse>) -> Vec<Link> {
    match told {
        None => [BOOTSTRAPS, NETWORK, REGISTRY, ALLOCATORS].map(Link::skipped).into(),
        Some(told) => vec![bootstraps(told), network(told), registry(told), allocators(told)],
    }
}

fn bootstraps(told: &DiagnoseResponse) -> Link {
    let all = &told.bootstraps;
    let Some(first) = all.first() else {
        return Link::ok(BOOTSTRAPS, "none configured: others join through this node");
    };
    let reached = all.iter().filter(|one| one.connected).count();
    let lost = all.iter().find(|one| !one.connected);
    let why = lost.map(|one| {
        let error = if one.last_error.is_empty() { "no answer yet" } else { &one.last_error };
        format!("{}: {error}", one.address)
    });
    match (reached, why) {
        // Whoever has joined through others needs them only to come back.
        (0, Some(why)) if told.standing() != Standing::Joined => Link::broken(
            BOOTSTRAPS,
            format!("0 of {} reached; {why}", all.len()),
            format!("start the daemon at {}, or correct --bootstrap", first.address),
        ),
        (_, Some(why)) => {
            Link::ok(BOOTSTRAPS, format!("{reached} of {} reached; {why}", all.len()))
        }
        (_, None) => Link::ok(BOOTSTRAPS, format!("{reached} of {} reached", all.len())),
    }
}

fn network(told: &DiagnoseResponse) -> Link {
    match told.standing() {
        Standing::Joined => {
            let (connected, known) = (told.connected_peers, told.known_peers);
            Link::ok(NETWORK, format!("joined; {connected} peers connected, {known} known"))
        }
        Standing::Alone if told.bootstraps.is_empty() => {
            Link::ok(NETWORK, "alone: nobody has joined through this node")
        }
        Standing::Alone => Link::broken(
            NETWORK,
            "alone: no bootstrap has answered",
            "see the bootstraps; the daemon goes on trying",
        ),
        Standing::Unspecified => {
            Link::broken(NETWORK, "the daemon is still joining", "wait some seconds and ask again")
        }
    }
}

fn registry(told: &DiagnoseResponse) -> Link {
    const START: &str = "start a registry";
    let answered: Vec<_> = told.registries.iter().filter(|one| one.answered).collect();
    match (answered.as_slice(), told.registries.first()) {
        ([one, ..], _) => {
            let detail = format!(
                "{} of {} answered{}",
                answered.len(),
                told.registries.len(),
                distance(one)
            );
            Link::ok(REGISTRY, detail)
        }
        ([], Some(_)) => Link::broken(REGISTRY, silent(&told.registries), START),
        ([], None) => Link::broken(REGISTRY, "none is known", unknown(told, START)),
    }
}

fn allocators(told: &DiagnoseResponse) -> Link {
    const START: &str = "start an allocator";
    let all = &told.allocators;
    let answered: Vec<_> = all.iter().filter(|one| one.answered).collect();
    let roomy = answered.iter().filter(|one| !one.stopping && has_room(one)).count();
    match (answered.len(), roomy) {
        (0, _) if all.is_empty() => Link::broken(ALLOCATORS, "none is known", unknown(told, START)),
        (0, _) => Link::broken(ALLOCATORS, silent(all), START),
        (some, 0) => Link::broken(
            ALLOCATORS,
            format!("{some} of {} answered, and none has room for another instance", all.len()),
            "`lcactl instances` shows what runs, `lcactl release` stops it; or start another allocator",
        ),
        (some, roomy) => {
            Link::ok(ALLOCATORS, format!("{some} of {} answered, {roomy} with room", all.len()))
        }
    }
}

/// Without a service to ask, the nearest allocator's answer is the round trip.
pub(super) fn nearest(told: &DiagnoseResponse) -> Link {
    let answered = told.allocators.iter().filter(|one| one.answered);
    let nearest = answered.min_by_key(|one| one.rtt_us.unwrap_or(u64::MAX));
    let detail = match nearest {
        Some(one) => format!("allocator {} answers{}", short_peer(&one.peer), distance(one)),
        None => String::new(),
    };
    Link::ok("round trip", detail)
}

fn distance(one: &PeerCheck) -> String {
    one.rtt_us.map(|rtt| format!(", {} away", micros(Some(rtt)))).unwrap_or_default()
}

/// Who did not answer, and why the first of them did not.
fn silent(all: &[PeerCheck]) -> String {
    let why = all.first().map(|one| format!("{}: {}", short_peer(&one.peer), one.error));
    format!("0 of {} answered; {}", all.len(), why.unwrap_or_default())
}

fn unknown(told: &DiagnoseResponse, start: &str) -> String {
    match told.bootstraps.is_empty() {
        true => format!("{start} that joins through this node, or give this one a --bootstrap"),
        false => format!("{start} that joins through the same bootstraps"),
    }
}

/// Whether an instance fits that asks for nothing in particular.
fn has_room(one: &PeerCheck) -> bool {
    let least = Resources::default();
    let (total, used) = (one.total.unwrap_or_default(), one.used.unwrap_or_default());
    let Capacity { cpu_millis, memory_bytes, instances } = total;
    cpu_millis.saturating_sub(used.cpu_millis) >= least.cpu_millis
        && memory_bytes.saturating_sub(used.memory_bytes) >= least.memory_bytes
        && instances > used.instances
}

#[cfg(test)]
mod tests {
    use lca::api::proto::BootstrapState;

    use super::{super::State, *};

    fn answered(error: &str) -> PeerCheck {
        PeerCheck {
            peer: "a".into(),
            answered: error.is_empty(),
            error: error.into(),
            total: Some(Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, instances: 2 }),
            ..Default::default()
        }
    }

    fn healthy() -> DiagnoseResponse {
        DiagnoseResponse {
            standing: Standing::Joined.into(),
            bootstraps: vec![BootstrapState {
                address: "/ip4/10.0.0.1/tcp/1/p2p/x".into(),
                connected: true,
                last_error: String::new(),
            }],
            registries: vec![answered("")],
            allocators: vec![answered("")],
            ..Default::default()
        }
    }

    fn first_broken(change: impl FnOnce(&mut DiagnoseResponse)) -> Option<Link> {
        let mut told = healthy();
        change(&mut told);
        links(Some(&told)).into_iter().find(|link| link.state == State::Broken)
    }

    #[test]
    fn the_first_broken_link_is_the_one_that_explains_the_others() {
        assert_eq!(first_broken(|_| ()), None);
        let lost = |told: &mut DiagnoseResponse| {
            told.bootstraps[0].connected = false;
            told.bootstraps[0].last_error = "Connection refused".into();
        };
        assert_eq!(first_broken(lost), None, "it has joined through others");
        let link = first_broken(|told| {
            lost(told);
            told.standing = Standing::Alone.into();
            (told.registries, told.allocators) = (vec![], vec![]);
        });
        let link = link.expect("nothing works");
        assert_eq!(link.name, BOOTSTRAPS);
        assert!(link.detail.ends_with("Connection refused"), "{link:?}");

        let alone = |told: &mut DiagnoseResponse| {
            told.bootstraps.clear();
            told.standing = Standing::Alone.into();
        };
        assert_eq!(first_broken(alone), None, "a machine of its own that has everything");
        let link = first_broken(|told| {
            alone(told);
            told.registries.clear();
        });
        assert!(
            link.as_ref()
                .is_some_and(|link| link.name == REGISTRY && link.fix.contains("--bootstrap")),
            "{link:?}"
        );
        let link = first_broken(|told| told.registries = vec![answered("timed out")]);
        assert!(link.is_some_and(|link| link.detail.contains("timed out")));
        let link = first_broken(|told| told.standing = Standing::Unspecified.into());
        assert_eq!(link.map(|link| link.name), Some(NETWORK));
    }

    #[test]
    fn allocators_count_only_if_they_answer_and_have_room() {
        let detail = |allocators: Vec<PeerCheck>| {
            let link = first_broken(|told| told.allocators = allocators);
            link.map(|link| (link.name, link.detail))
        };
        assert_eq!(detail(vec![]), Some((ALLOCATORS, "none is known".into())));
        let (_, dead) = detail(vec![answered("gone")]).expect("it does not answer");
        assert_eq!(dead, "0 of 1 answered; a: gone");
        let used = Some(Capacity { instances: 2, ..Default::default() });
        let full = PeerCheck { used, ..answered("") };
        let stopping = PeerCheck { stopping: true, ..answered("") };
        for useless in [full, stopping] {
            let (_, said) = detail(vec![useless.clone()]).expect("there is no room");
            assert!(said.contains("none has room"), "{said}");
            assert_eq!(detail(vec![useless, answered("")]), None);
        }
    }
}
