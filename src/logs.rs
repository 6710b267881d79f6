//! How a daemon writes its log: to stderr, for people or as JSON lines.
//!
//! `RUST_LOG` overrides the level. Nothing at the default level is written per
//! request; what belongs to a request carries its id and the peer.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Installs the log of this process. `level` is used where `RUST_LOG` is unset, such
/// as `info` or `warn,lca_node=debug`. A second call changes nothing.
pub fn init(format: Format, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let _already_installed = match format {
        Format::Human => log.with_target(false).try_init(),
        Format::Json => log.json().flatten_event(true).try_init(),
    };
}
