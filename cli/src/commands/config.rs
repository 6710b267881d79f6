//! `lcactl config check`

use std::path::Path;

use lca::{
    config::{self, Config},
    workers::{WORKERS_ENV, Workers},
};

use crate::{errors::Result, output::Output};

/// Prints what a daemon would use: the file, and the environment where it counts.
pub(super) fn check(file: Option<&Path>, output: &mut Output) -> Result<()> {
    let mut config = match config::find(file) {
        Some(path) => Config::load(&path)?,
        None => {
            output.note("there is no configuration file; these are the defaults");
            Config::default()
        }
    };
    let environment = std::env::var(config::BOOTSTRAPS_ENV).ok();
    config.bootstraps = config::bootstraps(&[], &config.bootstraps, environment.as_deref())?;
    let environment = std::env::var(WORKERS_ENV).ok();
    config.workers = Workers::choose(None, config.workers, environment.as_deref())?;
    // The file's own form is JSON already, for people as well.
    output.raw(format!("{}\n", config.to_json()).as_bytes())
}
