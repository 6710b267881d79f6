//! The configuration file, in the original's form, and which source of a setting wins.
//!
//! ```json
//! { "Perf": { "SoftReq": { "RTT": 100 }, "HardReq": { "RTT": 1000 } }, "Bootstraps": [] }
//! ```
//!
//! RTTs are **milliseconds**. A file is taken whole or refused whole, with every
//! problem in it named by line, column and key: a limit that is misread is worse than
//! a daemon that does not start. Whoever holds a [`Config`] holds values within bounds.

mod bootstrap;
pub mod json;
mod reader;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

pub use bootstrap::{Bootstrap, Host};
pub use json::{Invalid, Problem};

use json::MAX_PROBLEMS;

use crate::{Error, Kind, Requirements, Result, workers::Workers};

/// The environment variable with bootstraps, separated by spaces or commas.
pub const BOOTSTRAPS_ENV: &str = "P2P_BOOTSTRAPS";
/// Where a configuration file is looked for first, from the working folder.
pub const DEFAULT_FILE: &str = "conf/conf.json";
/// What a configuration file says. The default says nothing: no limits, no bootstraps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What this machine's clients ask for; tightens a service's own requirements.
    pub requirements: Requirements,
    /// Peers to join the network through.
    pub bootstraps: Vec<Bootstrap>,
    /// Threads to work with; none for as many as there are cores.
    pub workers: Option<Workers>,
    /// How long requests may take here.
    pub timeouts: Timeouts,
}

/// How long requests may take on this machine; what is not said has its default. All that
/// a service or a client says on top can only shorten it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// For the head of a request, and the pause between two on a connection.
    pub header: Option<Duration>,
    /// For a connection to a peer, and of ingress to an instance.
    pub connect: Option<Duration>,
    /// From the last movement of a request to the head of its answer.
    pub answer: Option<Duration>,
    /// Until the next part of a body, either way.
    pub quiet: Option<Duration>,
    /// From the head of a request to the last byte of its answer.
    pub request: Option<Duration>,
}

impl Timeouts {
    /// Each with its key.
    fn each(&self) -> [(&'static str, Option<Duration>); 5] {
        let Self { header, connect, answer, quiet, request } = *self;
        [
            ("Header", header),
            ("Connect", connect),
            ("Answer", answer),
            ("Quiet", quiet),
            ("Request", request),
        ]
    }
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::FailedPrecondition`] if it cannot be
    /// read, [`Kind::InvalidArgument`] with every problem in it.
    pub fn load(path: &Path) -> Result<Self> {
        json::load(path, "configuration file", reader::config)
    }

    /// Reads the text of a file; `name` is what it is called in problems.
    ///
    /// # Errors
    /// Every problem in it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Invalid> {
        json::parse(name, text, reader::config)
    }

    /// The same in the form that [`parse`](Self::parse) reads, for `--check`.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct File {
            perf: Perf,
            bootstraps: Vec<String>,
            #[serde(skip_serializing_if = "Option::is_none")]
            worker_threads: Option<u16>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            timeouts: BTreeMap<&'static str, u128>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Perf {
            #[serde(skip_serializing_if = "Option::is_none")]
            soft_req: Option<Req>,
            #[serde(skip_serializing_if = "Option::is_none")]
            hard_req: Option<Req>,
        }
        #[derive(Serialize)]
        struct Req {
            #[serde(rename = "RTT")]
            rtt: u128,
        }
        let req = |limit: Option<Duration>| limit.map(|limit| Req { rtt: limit.as_millis() });
        let file = File {
            perf: Perf {
                soft_req: req(self.requirements.soft),
                hard_req: req(self.requirements.hard),
            },
            bootstraps: self.bootstraps.iter().map(Bootstrap::to_string).collect(),
            worker_threads: self.workers.map(Workers::count),
            timeouts: self
                .timeouts
                .each()
                .into_iter()
                .filter_map(|(key, time)| Some((key, time?.as_millis())))
                .collect(),
        };
        serde_json::to_string_pretty(&file).expect("strings and numbers always serialise")
    }
}

/// The file to read: `given`, else [`DEFAULT_FILE`] if it is there, else `lca/conf.json`
/// in the user's configuration folder if that is there, else none.
///
/// A file that was asked for is returned whether or not it exists, so that
/// [`Config::load`] can say that it does not.
pub fn find(given: Option<&Path>) -> Option<PathBuf> {
    if let Some(given) = given {
        return Some(given.to_owned());
    }
    let user = match (non_empty("XDG_CONFIG_HOME"), non_empty("HOME")) {
        (Some(folder), _) => Some(folder),
        (None, home) => home.map(|home| home.join(".config")),
    };
    let candidates = [Some(PathBuf::from(DEFAULT_FILE)), user.map(|dir| dir.join("lca/conf.json"))];
    candidates.into_iter().flatten().find(|path| path.exists())
}

fn non_empty(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The bootstraps to use: those from flags if there are any, else those of the file,
/// else those of the environment (the text of [`BOOTSTRAPS_ENV`]).
///
/// # Errors
/// [`Kind::InvalidArgument`] naming each entry of the environment that is none, one a line. It
/// is only looked at if it is used.
pub fn bootstraps(
    flags: &[Bootstrap],
    file: &[Bootstrap],
    environment: Option<&str>,
) -> Result<Vec<Bootstrap>> {
    if let Some(first) = [flags, file].into_iter().find(|source| !source.is_empty()) {
        return Ok(first.to_vec());
    }
    let entries = environment.unwrap_or_default().split([',', ' ', '\t', '\n']);
    let (mut read, mut wrong) = (Vec::new(), Vec::new());
    for entry in entries.filter(|entry| !entry.is_empty()) {
        match entry.parse::<Bootstrap>() {
            Ok(bootstrap) => read.push(bootstrap),
            Err(error) => wrong.push(error),
        }
    }
    let Some(first) = wrong.first() else { return Ok(read) };
    let hint = first.hint_text().unwrap_or_default();
    let told = wrong.iter().take(MAX_PROBLEMS).map(|error| format!("{BOOTSTRAPS_ENV}: {error}"));
    let untold = wrong.len().saturating_sub(MAX_PROBLEMS);
    let more = (untold > 0).then(|| format!("{BOOTSTRAPS_ENV}: and {untold} more"));
    let all: Vec<_> = told.chain(more).collect();
    Err(Error::new(Kind::InvalidArgument, all.join("\n")).hint(hint))
}

#[cfg(test)]
mod tests;
