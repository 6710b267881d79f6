//! The life of one instance, as a function over data. The owner task
//! ([`crate::instance`]) does what this says; nobody else changes a state.
//!
//! ```text
//!            Begun            Fetched            Answered           Asked, Idle
//!  Pending ────────► Fetching ────────► Starting ────────► Ready ──────────────► Draining
//!     │                │   │              │   │              │ Exited              │
//!     │ Asked    Asked │   │ Failed       │   │ Failed       │ Failed              │ Drained
//!     ▼                │   ▼              │   ▼ Exited       ▼                     ▼ Exited
//!  Stopped ◄───────────┘ Failed           │ Failed         Failed               Stopped
//!                                         └──► Draining (Asked)
//! ```
//!
//! An instance that was taken over goes from Pending to Starting at once (`TakenOver`); one
//! that is left running for the next allocator goes from Draining to Stopped without
//! being stopped (`Left`).
//!
//! Every state has a deadline, which arrives as `Failed` (Fetching, Starting) or
//! `Drained` (Draining). Only Ready has none: there, [`Event::Idle`] is the deadline, and
//! `Failed` says that the program does not answer any more. The
//! actions of a step are done before its state is seen by others.

use lca::api::proto::InstanceState;

/// Where an instance is in its life. The same names as in the proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    /// Admitted, nothing done yet.
    Pending,
    /// The artifact is being fetched and verified.
    Fetching,
    /// The program runs, or is about to, and is not ready yet.
    Starting,
    /// It takes requests.
    Ready,
    /// It finishes what it has and takes nothing new.
    Draining,
    /// Ended because it was asked to.
    Stopped,
    /// Ended, or never got ready, for a reason.
    Failed,
}

impl State {
    /// Those an instance does not end in, and what each is counted under.
    pub(crate) const LIVE: [(Self, &'static str); 5] = [
        (Self::Pending, "pending"),
        (Self::Fetching, "fetching"),
        (Self::Starting, "starting"),
        (Self::Ready, "ready"),
        (Self::Draining, "draining"),
    ];

    /// Whether this is the end.
    pub(crate) const fn is_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }

    /// Whether it is on its way to be ready.
    pub(crate) const fn is_coming_up(self) -> bool {
        matches!(self, Self::Pending | Self::Fetching | Self::Starting)
    }
}

impl From<State> for InstanceState {
    fn from(state: State) -> Self {
        match state {
            State::Pending => Self::Pending,
            State::Fetching => Self::Fetching,
            State::Starting => Self::Starting,
            State::Ready => Self::Ready,
            State::Draining => Self::Draining,
            State::Stopped => Self::Stopped,
            State::Failed => Self::Failed,
        }
    }
}

/// What happens to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The owner took it up.
    Begun,
    /// The owner took up one that runs already.
    TakenOver,
    /// The artifact is here.
    Fetched,
    /// It answered like a ready one.
    Answered,
    /// What its state was for did not succeed, or took too long.
    Failed,
    /// The program ended by itself.
    Exited,
    /// No request was open for the idle time-out, and none is let in any more.
    Idle,
    /// Somebody wants it to end.
    Asked,
    /// No request is open any more, or draining took too long.
    Drained,
    /// As `Drained`, and the program is to run on.
    Left,
}

/// What the owner does at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Let requests in.
    Open,
    /// Refuse new requests, keep those that are open.
    Refuse,
    /// Reset what is still open.
    Close,
    /// Ask the program to end, then force it.
    Terminate,
    /// Force it at once, with whatever it left.
    Kill,
}

/// The state after `event`, and what to do on the way. What makes no sense in a state
/// changes nothing.
pub(crate) const fn step(state: State, event: Event) -> (State, &'static [Action]) {
    use Action::{Close, Kill, Open, Refuse, Terminate};
    match (state, event) {
        (State::Pending, Event::Begun) => (State::Fetching, &[]),
        (State::Pending, Event::TakenOver) => (State::Starting, &[]),
        (State::Fetching, Event::Fetched) => (State::Starting, &[]),
        (State::Fetching, Event::Failed) => (State::Failed, &[]),
        (State::Pending | State::Fetching, Event::Asked) => (State::Stopped, &[]),
        (State::Starting, Event::Answered) => (State::Ready, &[Open]),
        (State::Starting, Event::Failed | Event::Exited) => (State::Failed, &[Kill]),
        (State::Starting, Event::Asked) => (State::Draining, &[]),
        (State::Ready, Event::Idle | Event::Asked) => (State::Draining, &[Refuse]),
        (State::Ready, Event::Exited | Event::Failed) => (State::Failed, &[Close, Kill]),
        // Requests that outlived the drain are reset before the program sees SIGTERM.
        (State::Draining, Event::Drained) => (State::Stopped, &[Close, Terminate]),
        (State::Draining, Event::Left) => (State::Stopped, &[Close]),
        (State::Draining, Event::Exited) => (State::Stopped, &[Close, Kill]),
        (state, _) => (state, &[]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [Event; 10] = [
        Event::Begun,
        Event::TakenOver,
        Event::Fetched,
        Event::Answered,
        Event::Failed,
        Event::Exited,
        Event::Idle,
        Event::Asked,
        Event::Drained,
        Event::Left,
    ];

    #[test]
    fn a_good_life() {
        let events = [Event::Begun, Event::Fetched, Event::Answered, Event::Idle, Event::Drained];
        let mut states = vec![State::Pending];
        for event in events {
            states.push(step(states[states.len() - 1], event).0);
        }
        assert_eq!(
            states,
            [
                State::Pending,
                State::Fetching,
                State::Starting,
                State::Ready,
                State::Draining,
                State::Stopped
            ]
        );
    }

    proptest! {
        #[test]
        fn whatever_happens_nothing_is_left_over(
            events in proptest::collection::vec(proptest::sample::select(&EVENTS[..]), 0..40),
        ) {
            let mut state = State::Pending;
            let mut may_run = false; // a program may have been started
            let mut open = false;    // requests may come in
            for event in events {
                let (next, actions) = step(state, event);
                prop_assert!(next >= state || next == state, "{state:?} went back to {next:?}");
                prop_assert!(!state.is_ended() || (next == state && actions.is_empty()));
                for action in actions {
                    match action {
                        Action::Open => { prop_assert!(!open && next == State::Ready); open = true; }
                        Action::Refuse => prop_assert!(open),
                        Action::Close => open = false,
                        Action::Terminate | Action::Kill => { prop_assert!(!open); may_run = false; }
                    }
                }
                if event == Event::Left && next.is_ended() {
                    may_run = false; // somebody else's from now on
                }
                may_run |= next == State::Starting;
                prop_assert!(next != State::Ready || open);
                prop_assert!(!next.is_ended() || (!open && !may_run), "{next:?} leaves something");
                state = next;
            }
        }

        #[test]
        fn asking_always_leads_to_an_end(
            events in proptest::collection::vec(proptest::sample::select(&EVENTS[..]), 0..10),
        ) {
            let reached = events.into_iter().fold(State::Pending, |state, event| step(state, event).0);
            let asked = step(reached, Event::Asked).0;
            prop_assert!(step(asked, Event::Drained).0.is_ended());
        }
    }
}
