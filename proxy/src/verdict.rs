//! What became of an attempt, in the words of those who have to know: the manager, which
//! chooses the next instance, and the client, whose request ends with it.

use std::time::Duration;

use lca::{
    Error, Kind, ServiceName,
    headers::{Load, Refusal},
};
use lca_manager::{Outcome, Target};
use lca_node::h1::HeadAfter;

use crate::retry::Trouble;

/// When to come again after a moment's trouble: by then another instance is known, or
/// this one is gone from what is known.
const MOMENT: Duration = Duration::from_secs(1);

/// How long a request was on the way: not what the application took, nor the queue before
/// it. That much of it is the other side's word; a peer that says too much for it to be
/// true has said nothing.
pub(crate) fn way(HeadAfter(after): HeadAfter, load: &Load) -> Option<Duration> {
    after.checked_sub(load.app)?.checked_sub(load.queue)
}

/// What the manager is told.
pub(crate) fn outcome(trouble: Trouble) -> Outcome {
    match trouble {
        Trouble::Refused(refusal) => Outcome::Refused(refusal),
        Trouble::NotSent => Outcome::Unreachable,
        Trouble::Busy => Outcome::Busy,
        Trouble::Silent | Trouble::Garbled | Trouble::Late => Outcome::Broken,
    }
}

/// The sentence for a client whose request ends with this.
pub(crate) fn explain(target: &Target, trouble: Trouble, cause: Option<Error>) -> Error {
    let Target { service, instance, endpoint, .. } = target;
    let (instance, peer) = (instance.short(), endpoint.peer.short());
    let who = format!("instance {instance} of {service} on peer {peer}");
    let unavailable = |text: String| Error::new(Kind::Unavailable, text).retry_after(MOMENT);
    let error = match trouble {
        Trouble::Refused(Refusal::Draining) => unavailable(format!("{who} is stopping")),
        Trouble::Refused(Refusal::Unknown) => unavailable(format!("{who} is gone")),
        Trouble::Refused(Refusal::Overloaded) => {
            Error::new(Kind::NoCapacity, format!("{who} is overloaded")).retry_after(MOMENT)
        }
        Trouble::Busy => {
            let text = format!("no connection to peer {peer} with {who} was free in time");
            Error::new(Kind::NoCapacity, text).retry_after(MOMENT)
        }
        Trouble::NotSent => unavailable(format!("peer {peer} with {who} cannot be reached")),
        Trouble::Silent => {
            Error::new(Kind::BadGateway, format!("{who} broke off without an answer"))
        }
        Trouble::Garbled => {
            Error::new(Kind::BadGateway, format!("{who} answered what is not HTTP"))
        }
        Trouble::Late => Error::new(Kind::Timeout, format!("{who} did not answer in time")),
    };
    match cause {
        Some(cause) => error.because(cause),
        None => error,
    }
}

/// The sentence for a client whose request took longer than it may: whose fault it was, as far
/// as that can be told. Nothing is held against an instance, since the client may have set
/// the time.
pub(crate) fn late(service: &ServiceName, time: Duration, starved: bool) -> Error {
    if starved {
        return Error::new(Kind::TooSlow, format!("the request did not come within {time:?}"));
    }
    Error::new(Kind::Timeout, format!("{service} did not answer within {time:?}"))
        .hint("the time is the shortest of LCA-Timeout, the service's and the front's own")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_ours_is_not_held_against_the_peer() {
        assert_eq!(outcome(Trouble::Busy), Outcome::Busy);
        assert_eq!(outcome(Trouble::NotSent), Outcome::Unreachable);
    }

    #[test]
    fn a_way_is_what_neither_the_application_nor_a_queue_took() {
        let ms = Duration::from_millis;
        let load = Load { app: ms(30), queue: ms(5), ..Load::default() };
        assert_eq!(way(HeadAfter(ms(50)), &load), Some(ms(15)));
        assert_eq!(way(HeadAfter(ms(34)), &load), None, "it cannot have taken so long");
    }
}
