//! What is explained, as sentences and messages.

use std::{sync::Arc, time::Duration};

use lca::{
    InstanceId, Requirements,
    api::proto::{self, Outlook, considered_instance::Verdict as Told, outlook::Action},
    endpoint::Endpoint,
    headers::Load,
    specs::Cached,
    units::show_duration as show,
};

use super::{One, allocators::Considered};
use crate::{cache::Level, moving::Reason};

/// An instance of which only this is known.
pub(super) fn instance(
    spec: &Cached,
    id: InstanceId,
    endpoint: &Arc<Endpoint>,
    rtt: Option<Duration>,
    load: Option<Load>,
) -> proto::Instance {
    proto::Instance {
        id: id.to_string(),
        service: spec.spec.name.to_string(),
        service_hash: spec.hash.to_string(),
        revision: spec.spec.revision,
        peer: endpoint.peer.to_string(),
        mesh_addresses: endpoint.mesh.iter().map(ToString::to_string).collect(),
        state: proto::InstanceState::Ready.into(),
        load: load.map(Into::into),
        rtt_us: rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        ..Default::default()
    }
}

pub(super) fn wire(limits: Requirements) -> proto::Requirements {
    let ms = |limit: Option<Duration>| {
        limit.map_or(0, |limit| u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1))
    };
    proto::Requirements { soft_rtt_ms: ms(limits.soft), hard_rtt_ms: ms(limits.hard) }
}

/// Why an instance is in or out.
pub(super) fn instance_reason(
    verdict: Told,
    one: &One,
    limits: &Requirements,
    spec: &Cached,
) -> String {
    let rtt = one.candidate.and_then(|candidate| candidate.rtt);
    let away = rtt.map_or("nobody knows how far".to_owned(), |rtt| format!("{} away", show(rtt)));
    let hard = show(limits.hard.unwrap_or_default());
    let level = one.candidate.map_or(Level::Good, |candidate| candidate.level);
    match verdict {
        Told::Chosen | Told::Usable => {
            let place = match verdict {
                Told::Chosen => "the best there is",
                _ if one.surplus => "fewer will do: it gets no requests, and idles out",
                _ => "another is better",
            };
            match limits.soft {
                Some(soft) if rtt.is_some_and(|rtt| !limits.within_soft(rtt)) => {
                    format!("{place}: {away}, above the soft limit of {}", show(soft))
                }
                _ if level == Level::Performant => {
                    format!("{place}: {away}, on probation since it broke off")
                }
                _ => format!("{place}: {away}"),
            }
        }
        Told::Suspect => {
            let ejected_for = one.candidate.and_then(|candidate| candidate.ejected_for);
            let back = ejected_for.map_or("one request at a time tries it".to_owned(), |wait| {
                format!("tried again in {} s", wait.as_secs() + 1)
            });
            format!("broke off of late, used only if there is no other; {back}")
        }
        Told::BeyondHard => format!("{away}, beyond the hard limit of {hard}"),
        Told::DistanceUnknown => {
            format!("{away}, and there is a hard limit of {hard}")
        }
        Told::Silent => "its peer does not answer".to_owned(),
        Told::NotReady if one.instance.state() == proto::InstanceState::Ready => {
            "its peer does not name it any more".to_owned()
        }
        Told::NotReady => {
            let state = one.instance.state().as_str_name().trim_start_matches("INSTANCE_STATE_");
            let state = state.to_lowercase();
            match one.instance.reason.as_str() {
                "" => format!("it is {state}"),
                reason => format!("it is {state}: {reason}"),
            }
        }
        Told::OtherVersion => format!(
            "started from revision {}, requests are for revision {}",
            one.instance.revision, spec.spec.revision
        ),
        Told::Unspecified => String::new(),
    }
}

/// A level as the API tells it.
pub(super) fn level(level: Level) -> &'static str {
    match level {
        Level::Good => "good",
        Level::Performant => "performant",
        Level::Poor => "poor",
    }
}

/// Why requests turned to another instance.
pub(super) fn move_reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Soft => "the old one was above the soft limit for too long, the new one is within",
        Reason::Hard => "the old one was beyond the hard limit",
        Reason::Gone => "the old one was gone",
        Reason::Silent => "the peer of the old one did not answer",
        Reason::Failing => "the old one kept failing",
        Reason::Better => "the new one is clearly nearer or less busy",
        Reason::Surplus => "fewer will do, and the old one is to idle out",
    }
}

/// What a request would come to.
pub(super) fn outlook(
    spec: &Cached,
    limits: &Requirements,
    chosen: Option<&One>,
    allocators: &[Considered],
) -> Outlook {
    let name = &spec.spec.name;
    if let Some(One { instance, known, .. }) = chosen {
        let reason = match known {
            true => "a request is sent to a known instance at once",
            false => {
                "none is known: a request looks for one and takes the first that will do, most \
                 likely this one"
            }
        };
        return Outlook {
            action: Action::Use.into(),
            instance: instance.id.clone(),
            peer: instance.peer.clone(),
            reason: reason.to_owned(),
        };
    }
    let refused =
        |reason: String| Outlook { action: Action::Refuse.into(), reason, ..Default::default() };
    if spec.spec.is_external() {
        return refused(format!(
            "nobody represents {name}, which is an external service and never started"
        ));
    }
    match allocators.iter().find(|one| one.will_do) {
        Some(first) => Outlook {
            action: Action::Allocate.into(),
            peer: first.told.peer.clone(),
            reason: "no instance will do: one is started, or one that starts is joined".to_owned(),
            ..Default::default()
        },
        None if allocators.is_empty() => {
            refused(format!("nobody runs {name}, and no allocator is known that could"))
        }
        None if allocators.iter().any(|one| one.told.rank > 0) => {
            refused(format!("no instance of {name} will do, and no allocator has room for one"))
        }
        None => {
            let near = match limits.hard {
                Some(hard) => format!(" and within the hard limit of {}", show(hard)),
                None => String::new(),
            };
            refused(format!("no instance of {name} will do, and no allocator answers{near}"))
        }
    }
}
