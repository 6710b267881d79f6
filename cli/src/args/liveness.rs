//! What `service add` is told of how a hanging instance is noticed, and how a program gets
//! its socket.

use std::time::Duration;

use clap::Args;
use lca::{api::proto, units};

/// How an instance that was ready and hangs is noticed.
#[derive(Clone, Debug, Default, Args)]
pub struct Liveness {
    /// An instance that does not answer GET of this path with 2xx any more has failed and is
    /// replaced [default: not asked]
    #[arg(long, value_name = "PATH", conflicts_with = "external")]
    pub live_path: Option<String>,
    /// From one question to the next [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = units::millis, conflicts_with = "external")]
    pub live_interval: Option<Duration>,
    /// How long an answer may take [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = units::millis, conflicts_with = "external")]
    pub live_timeout: Option<Duration>,
    /// So many questions in a row that are not answered [default: 3]
    #[arg(long, value_name = "N", conflicts_with = "external")]
    pub live_failures: Option<u32>,
    /// The program takes its port as a listening socket, descriptor 3, with LISTEN_FDS:
    /// what connects while it starts waits for it
    #[arg(long, conflicts_with = "external")]
    pub socket_activation: bool,
}

impl Liveness {
    /// Writes what was given into `spec`. What is not named stays as it is, and one of them
    /// is enough to have it asked.
    pub(crate) fn apply(self, spec: &mut proto::ServiceSpec) {
        spec.socket_activation |= self.socket_activation;
        let Self { live_path, live_interval, live_timeout, live_failures, .. } = self;
        let times = live_interval.is_some() || live_timeout.is_some();
        if !times && live_path.is_none() && live_failures.is_none() {
            return;
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let liveness = spec.liveness.get_or_insert_default();
        if let Some(path) = live_path {
            liveness.http_path = path;
        }
        liveness.interval_ms = live_interval.map_or(liveness.interval_ms, millis);
        liveness.timeout_ms = live_timeout.map_or(liveness.timeout_ms, millis);
        liveness.failures = live_failures.unwrap_or(liveness.failures);
    }
}
