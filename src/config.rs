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
mod reader;

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Serialize;

pub use bootstrap::{Bootstrap, Host};

use crate::{Error, Kind, Requirements, Result};

/// The environment variable with bootstraps, separated by spaces or commas.
pub const BOOTSTRAPS_ENV: &str = "P2P_BOOTSTRAPS";
/// Where a configuration file is looked for first, from the working folder.
pub const DEFAULT_FILE: &str = "conf/conf.json";
/// Largest file that is read: thousands of bootstraps, and nothing that hurts.
const MAX_FILE: u64 = 1 << 20;
/// Most problems that are told at once: a screenful.
const MAX_PROBLEMS: usize = 30;

/// What a configuration file says. The default says nothing: no limits, no bootstraps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// What this machine's clients ask for; tightens a service's own requirements.
    pub requirements: Requirements,
    /// Peers to join the network through.
    pub bootstraps: Vec<Bootstrap>,
}

/// Everything that is wrong with one file. Prints one problem a line, each as
/// `FILE:LINE:COLUMN: KEY: what is wrong`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    name: String,
    problems: Vec<Problem>,
    untold: usize,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// The path of the key, such as `Perf.SoftReq.RTT`; empty where it is about no key.
    pub key: String,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::FailedPrecondition`] if it cannot be
    /// read, [`Kind::InvalidArgument`] with every problem in it.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = read(path).map_err(|error| {
            let (kind, what) = match error.kind() {
                io::ErrorKind::NotFound => (Kind::NotFound, "there is no configuration file"),
                _ => (Kind::FailedPrecondition, "cannot read the configuration file"),
            };
            let why = if kind == Kind::NotFound { String::new() } else { format!(": {error}") };
            Error::new(kind, format!("{what} {name}{why}")).because(error)
        })?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(Invalid::at_start(&name, "the file is larger than 1 MiB").into());
        }
        match str::from_utf8(&bytes) {
            Ok(text) => Ok(Self::parse(&name, text)?),
            Err(error) => {
                let valid = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
                let problem = (valid.len(), String::new(), "is not UTF-8".to_owned());
                Err(Invalid::new(&name, valid, vec![problem]).into())
            }
        }
    }

    /// Reads the text of a file; `name` is what it is called in problems.
    ///
    /// # Errors
    /// Every problem in it.
    pub fn parse(name: &str, text: &str) -> Result<Self, Invalid> {
        if text.len() as u64 > MAX_FILE {
            return Err(Invalid::at_start(name, "the file is larger than 1 MiB"));
        }
        reader::read(text).map_err(|problems| Invalid::new(name, text, problems))
    }

    /// The same in the form that [`parse`](Self::parse) reads, for `--check`.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct File {
            perf: Perf,
            bootstraps: Vec<String>,
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

/// At most one byte more than is taken, whatever the file claims to be.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Invalid {
    fn new(name: &str, text: &str, mut found: Vec<reader::Found>) -> Self {
        found.sort_by_key(|(offset, ..)| *offset);
        let untold = found.len().saturating_sub(MAX_PROBLEMS);
        found.truncate(MAX_PROBLEMS);
        let problem = |(offset, key, reason)| {
            let (line, column) = position(text, offset);
            Problem { line, column, key, reason }
        };
        Self { name: name.to_owned(), problems: found.into_iter().map(problem).collect(), untold }
    }

    fn at_start(name: &str, reason: &str) -> Self {
        Self::new(name, "", vec![(0, String::new(), reason.to_owned())])
    }

    /// The problems, in the order of the file; at most 30.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

/// Line and column of a byte offset, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { line, column, key, reason }) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let colon = if key.is_empty() { "" } else { ": " };
            write!(f, "{newline}{}:{line}:{column}: {key}{colon}{reason}", self.name)?;
        }
        if self.untold > 0 {
            write!(f, "\nand {} more", self.untold)?;
        }
        Ok(())
    }
}

impl std::error::Error for Invalid {}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(Kind::InvalidArgument, invalid.to_string())
    }
}

#[cfg(test)]
mod tests;
