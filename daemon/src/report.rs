//! What a daemon says on standard output when it is ready: who it is, where it can be
//! reached, whom it has reached, and last that it waits for requests.

use std::fmt::Write as _;

use lca_node::{Joined, Status};

use crate::{Addresses, VERSION};

/// What is known at that moment.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) role: lca::endpoint::Role,
    pub(crate) addresses: &'a Addresses,
    pub(crate) data_dir: &'a std::path::Path,
    pub(crate) status: &'a Status,
    pub(crate) peers_known: usize,
    /// The service a proxy represents, and where.
    pub(crate) external: Option<&'a crate::proxy::External>,
}

impl std::fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { role, addresses, data_dir, status, peers_known, external } = self;
        let mut row = |name: &str, value: &dyn std::fmt::Display| writeln!(f, "{name:<11} {value}");
        row("service-manager", &format_args!("{role} {VERSION}"))?;
        row("PeerId", &addresses.peer)?;
        for address in &addresses.bootstraps {
            row("libp2p", address)?;
        }
        for address in &addresses.mesh {
            row("mesh", address)?;
        }
        if let Some(front) = addresses.front {
            row("front", &format_args!("http://{front}"))?;
        }
        if let Some(external) = external {
            row("represents", &format_args!("{} at {}", external.service, external.address))?;
        }
        row("local API", &addresses.socket.display())?;
        if let Some(grpc) = addresses.grpc {
            let token = lca::local::Token::file(data_dir);
            row("gRPC", &format_args!("{grpc}, token in {}", token.display()))?;
        }
        if let Some(metrics) = addresses.metrics {
            row("metrics", &format_args!("http://{metrics}/metrics"))?;
        }
        row("data", &data_dir.display())?;
        row("bootstraps", &bootstraps(status))?;
        // One that is connected is known, also while its record is on its way.
        row("peers", &format_args!("{} known", status.peers.max(*peers_known)))?;
        row("network", &network(status))?;
        writeln!(f, "\nWaiting for requests")
    }
}

fn bootstraps(status: &Status) -> String {
    let mut text = match (status.bootstraps, status.bootstraps_reached) {
        (0, _) => "none configured".to_owned(),
        (all, reached) => format!("{reached} of {all} reached"),
    };
    for missing in status.bootstrap_states.iter().filter(|state| !state.connected) {
        let why = missing.last_error.as_deref().map(|why| format!(" ({why})")).unwrap_or_default();
        let _infallible = write!(text, "\n{:<11} not yet: {}{why}", "", missing.at);
    }
    text
}

fn network(status: &Status) -> &'static str {
    match (status.joined, status.bootstraps) {
        (Some(Joined::Joined), _) => "joined",
        (_, 0) => "alone: no bootstrap is configured, others join through this one",
        _ => "alone: no bootstrap has answered, they are tried on and on",
    }
}
