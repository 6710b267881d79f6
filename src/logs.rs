//! How a daemon writes its log: to stderr, for people or as JSON lines.
//!
//! `RUST_LOG` overrides the level, as targets with levels (`info,lca_node=debug`); fields
//! and spans are not filtered by, which would take an engine of regular expressions into
//! every daemon. Nothing at the default level is written per request; what belongs to a
//! request carries its id and the peer.

use std::{env, io::IsTerminal as _};

use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

/// What a log line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Installs the log of this process. `level` is used where `RUST_LOG` is unset, empty or
/// not understood (which the log then says), such as `info` or `warn,lca_node=debug`. A
/// second call changes nothing.
pub fn init(format: Format, level: &str) {
    let wanted = env::var("RUST_LOG").ok();
    let (filter, misread) = filter(wanted.as_deref(), level);
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let log = match format {
        Format::Human => log.with_target(false).boxed(),
        Format::Json => log.json().flatten_event(true).boxed(),
    };
    let installed = tracing_subscriber::registry().with(filter).with(log).try_init().is_ok();
    if let Some(misread) = misread.filter(|_| installed) {
        tracing::warn!(RUST_LOG = wanted, error = %misread, "not understood, the default is used");
    }
}

/// What is let through, and what was wrong with `wanted` if that is not it.
fn filter(
    wanted: Option<&str>,
    level: &str,
) -> (Targets, Option<tracing_subscriber::filter::ParseError>) {
    let default =
        || level.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO));
    match wanted.map(str::trim).filter(|wanted| !wanted.is_empty()).map(str::parse) {
        None => (default(), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(misread)) => (default(), Some(misread)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn the_environment_says_by_target_what_is_logged() {
        let (filter, misread) = filter(Some("warn,lca_node=debug"), "info");
        assert!(misread.is_none());
        assert!(filter.would_enable("lca_node::mesh", &Level::DEBUG));
        assert!(!filter.would_enable("lca_proxy", &Level::INFO));
    }

    #[test]
    fn what_is_unset_or_empty_means_the_default() {
        for wanted in [None, Some(""), Some("  ")] {
            let (filter, misread) = filter(wanted, "info");
            assert!(misread.is_none());
            assert!(filter.would_enable("lca_proxy", &Level::INFO));
            assert!(!filter.would_enable("lca_proxy", &Level::DEBUG));
        }
    }

    #[test]
    fn what_is_not_understood_is_told_and_means_the_default() {
        let (filter, misread) = filter(Some("lca_node=loud"), "info");
        assert!(misread.is_some());
        assert!(filter.would_enable("lca_proxy", &Level::INFO));
    }
}
