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
/// How many of those that are missing are named: what a person can go and look at; a
/// list of 64 hides the links after it.
const NAMED: usize = 5;

/// The links between the daemon and an instance, in the order in which they are needed.
pub(super) fn links(told: Option<&DiagnoseResponse>) -> Vec<Link> {
    match told {
        None => [BOOTSTRAPS, NETWORK, REGISTRY, ALLOCATORS].map(Link::skipped).into(),
        Some(told) => vec![bootstraps(told), network(told), registry(told), allocators(told)],
    }
}

fn bootstraps(told: &DiagnoseResponse) -> Link {
    let all = &told.bootstraps;
    let lost: Vec<_> = all.iter().filter(|one| !one.connected).collect();
    let reached = format!("{} of {} reached", all.len() - lost.len(), all.len());
    let Some(first) = lost.first() else {
        return match all.is_empty() {
            true => Link::ok(BOOTSTRAPS, "none configured: others join through this node"),
            false => Link::ok(BOOTSTRAPS, reached),
        };
    };
    let why = lost.iter().map(|one| {
        let error = if one.last_error.is_empty() { "no answer yet" } else { &one.last_error };
        format!("{}: {error}", one.address)
    });
    let detail = format!("{reached}; {}", named(why));
    let fix = format!("start the daemon at {}, or correct --bootstrap", first.address);
    // Whoever has joined through others needs them only to come back.
    if lost.len() == all.len() && told.standing() != Standing::Joined {
        return Link::broken(BOOTSTRAPS, detail, fix);
    }
    Link::warning(BOOTSTRAPS, detail, format!("this node has joined through others; {fix}"))
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
    let all = &told.registries;
    let Some(one) = all.iter().find(|one| one.answered) else {
        return match all.is_empty() {
            true => Link::broken(REGISTRY, "none is known", unknown(told, START)),
            false => Link::broken(REGISTRY, answered(all, ""), START),
        };
    };
    whole(REGISTRY, all, &distance(one))
}

fn allocators(told: &DiagnoseResponse) -> Link {
    const START: &str = "start an allocator";
    const MAKE_ROOM: &str =
        "`lcactl instances` shows what runs, `lcactl release` stops it; or start another allocator";
    let all = &told.allocators;
    let staying: Vec<_> = all.iter().filter(|one| one.answered && !one.stopping).collect();
    let roomy = staying.iter().filter(|one| has_room(one)).count();
    let running: u32 = staying.iter().map(|one| one.used.unwrap_or_default().instances).sum();
    if all.is_empty() {
        return Link::broken(ALLOCATORS, "none is known", unknown(told, START));
    }
    if !all.iter().any(|one| one.answered) {
        return Link::broken(ALLOCATORS, answered(all, ""), START);
    }
    match (roomy, running) {
        (0, 0) => {
            let detail = answered(all, ", and none has room for another instance");
            Link::broken(ALLOCATORS, detail, MAKE_ROOM)
        }
        // What runs is found and used without any of them.
        (0, running) => {
            let none = format!(", none with room for more than the {running} that run");
            let detail = answered(all, &none);
            Link::warning(ALLOCATORS, detail, format!("no service can be started: {MAKE_ROOM}"))
        }
        (roomy, _) => whole(ALLOCATORS, all, &format!(", {roomy} with room")),
    }
}

/// A link that holds: as it should be only if everybody who is known answered.
fn whole(name: &'static str, all: &[PeerCheck], also: &str) -> Link {
    let detail = answered(all, also);
    match all.iter().all(|one| one.answered) {
        true => Link::ok(name, detail),
        false => Link::warning(name, detail, "start again those that did not answer"),
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

/// How many answered, what else there is to say of them, and who did not, and why.
fn answered(all: &[PeerCheck], also: &str) -> String {
    let silent: Vec<_> = all.iter().filter(|one| !one.answered).collect();
    let count = format!("{} of {} answered{also}", all.len() - silent.len(), all.len());
    if silent.is_empty() {
        return count;
    }
    let why = silent.iter().map(|one| format!("{}: {}", short_peer(&one.peer), one.error));
    format!("{count}; {}", named(why))
}

/// The first few, and how many there are besides.
fn named(mut all: impl ExactSizeIterator<Item = String>) -> String {
    let named: Vec<_> = all.by_ref().take(NAMED).collect();
    match all.len() {
        0 => named.join("; "),
        more => format!("{}; and {more} more", named.join("; ")),
    }
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

    fn check(error: &str) -> PeerCheck {
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
            registries: vec![check("")],
            allocators: vec![check("")],
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
        let link = first_broken(|told| told.registries = vec![check("timed out")]);
        assert!(link.is_some_and(|link| link.detail.contains("timed out")));
        let link = first_broken(|told| told.standing = Standing::Unspecified.into());
        assert_eq!(link.map(|link| link.name), Some(NETWORK));
    }

    fn of(name: &str, told: &DiagnoseResponse) -> Link {
        links(Some(told)).into_iter().find(|link| link.name == name).expect("there is one")
    }

    #[test]
    fn allocators_count_only_if_they_answer_and_have_room() {
        let link = |allocators: Vec<PeerCheck>| {
            let link = of(ALLOCATORS, &DiagnoseResponse { allocators, ..healthy() });
            (link.state, link.detail)
        };
        assert_eq!(link(vec![]), (State::Broken, "none is known".into()));
        assert_eq!(link(vec![check("gone")]), (State::Broken, "0 of 1 answered; a: gone".into()));
        let used = Some(Capacity { instances: 2, ..Default::default() });
        let full = PeerCheck { used, ..check("") };
        let offers_nothing = PeerCheck { total: Some(Capacity::default()), ..check("") };
        let stopping = PeerCheck { stopping: true, used, ..check("") };
        for useless in [offers_nothing, stopping.clone()] {
            let (state, said) = link(vec![useless.clone()]);
            assert!(state == State::Broken && said.contains("none has room"), "{said}");
            assert_eq!(link(vec![useless, check("")]).0, State::Ok);
        }
        // Full, and what runs there serves.
        let (state, said) = link(vec![full.clone(), stopping]);
        assert_eq!(state, State::Warning);
        assert_eq!(said, "2 of 2 answered, none with room for more than the 2 that run");
        assert_eq!(link(vec![full, check("")]).0, State::Ok);
    }

    #[test]
    fn what_is_missing_beside_what_works_is_a_warning_that_names_it() {
        let mut told = healthy();
        told.allocators = ["", "gone", "cut off"].map(check).into();
        told.registries = ["gone", ""].map(check).into();
        let lost = |n: u8| BootstrapState {
            address: format!("/ip4/10.0.0.{n}/tcp/1"),
            connected: false,
            last_error: "Connection refused".into(),
        };
        told.bootstraps = vec![lost(1)];
        let said = [BOOTSTRAPS, REGISTRY, ALLOCATORS].map(|name| {
            let link = of(name, &told);
            assert_eq!(link.state, State::Warning, "{link:?}");
            assert!(!link.fix.is_empty(), "{link:?}");
            link.detail
        });
        let [bootstraps, registry, allocators] = said;
        assert_eq!(bootstraps, "0 of 1 reached; /ip4/10.0.0.1/tcp/1: Connection refused");
        assert_eq!(registry, "1 of 2 answered; a: gone");
        assert_eq!(allocators, "1 of 3 answered, 1 with room; a: gone; a: cut off");

        told.allocators = vec![check("gone"); 64];
        let link = of(ALLOCATORS, &told);
        assert_eq!(link.state, State::Broken);
        assert_eq!(link.detail.matches("gone").count(), NAMED, "{link:?}");
        assert!(link.detail.ends_with("; and 59 more"), "{link:?}");
    }
}
