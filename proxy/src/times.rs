//! How long one request may take, of all who have a say: the front's configuration, the
//! service's spec, and the client.
//!
//! | time | front | service | client |
//! |---|---|---|---|
//! | head of a request | `Timeouts.Header` | | |
//! | connecting to a peer | `Timeouts.Connect` | | |
//! | head of the answer | `Timeouts.Answer` | `answer_timeout_ms` | |
//! | next part of a body | `Timeouts.Quiet` | `quiet_timeout_ms` | |
//! | the whole request | `Timeouts.Request` | `request_timeout_ms` | `LCA-Timeout` |
//!
//! The shortest counts, so nobody can loosen what somebody else relies on. The first two are
//! the front's alone: no service is known yet, and a connection is shared by many.

use std::time::Duration;

use lca::Limits;
use lca_node::h1::Waits;

use crate::Config;

/// How long one request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// For the head of the answer, and the next part of its body.
    pub(crate) waits: Waits,
    /// For the request and all of its answer.
    pub(crate) request: Option<Duration>,
}

impl Times {
    /// Of a request to a service with `limits`, whose client said `asked`.
    pub(crate) fn of(config: &Config, limits: &Limits, asked: Option<Duration>) -> Self {
        let shorter =
            |ours: Duration, theirs: Option<Duration>| theirs.map_or(ours, |it| it.min(ours));
        let waits = Waits {
            head: shorter(config.peers.head, limits.answer),
            quiet: shorter(config.peers.quiet, limits.quiet),
        };
        let request = [config.request, limits.request, asked].into_iter().flatten().min();
        Self { waits, request }
    }

    /// What has to be said of it to whoever sends the request; none if that is what holds anyway.
    pub(crate) fn unusual(&self, config: &Config) -> Option<Waits> {
        let usual = Waits { head: config.peers.head, quiet: config.peers.quiet };
        (self.waits != usual).then_some(self.waits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Option<Duration>> {
        proptest::option::of((1u64..1000).prop_map(Duration::from_secs))
    }

    proptest! {
        #[test]
        fn the_shortest_counts_and_nobody_lengthens(
            own in time(), answer in time(), quiet in time(), service in time(), client in time(),
        ) {
            let config = Config { request: own, ..Config::default() };
            let limits = Limits { answer, quiet, request: service, ..Limits::default() };
            let times = Times::of(&config, &limits, client);
            prop_assert!(times.waits.head <= config.peers.head);
            prop_assert!(times.waits.quiet <= config.peers.quiet);
            prop_assert!(answer.is_none_or(|answer| times.waits.head <= answer));
            prop_assert!(quiet.is_none_or(|quiet| times.waits.quiet <= quiet));
            let said = [own, service, client];
            prop_assert_eq!(times.request, said.into_iter().flatten().min());
            let usual = Times::of(&config, &Limits::default(), client);
            prop_assert_eq!(usual.unusual(&config), None);
        }
    }
}
