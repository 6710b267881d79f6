//! How many threads a program of ours works with, and the runtime that has them.
//!
//! With one, everything runs on the main thread: no request wakes another thread. File
//! access and name look-ups have threads of their own in either case, while they last.

use std::{fmt, io, str::FromStr};

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Kind, Result};

/// The environment variable with the number of worker threads.
pub const WORKERS_ENV: &str = "LCA_WORKER_THREADS";
/// More than any machine has cores for; a mistyped number should not start thousands.
pub const MAX_WORKERS: u16 = 1024;

/// A number of worker threads, from 1 to [`MAX_WORKERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Workers(u16);

impl Workers {
    /// So many, if that is within bounds.
    pub fn new(count: u16) -> Option<Self> {
        (1..=MAX_WORKERS).contains(&count).then_some(Self(count))
    }

    /// How many.
    pub const fn count(self) -> u16 {
        self.0
    }

    /// The first of flag, file and environment that says anything (the text of
    /// [`WORKERS_ENV`]; an empty one says nothing). `None`: as many as there are cores.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] naming the variable. It is only looked at if it is used.
    pub fn choose(
        flag: Option<Self>,
        file: Option<Self>,
        environment: Option<&str>,
    ) -> Result<Option<Self>> {
        if let Some(workers) = flag.or(file) {
            return Ok(Some(workers));
        }
        let text = environment.map(str::trim).filter(|text| !text.is_empty());
        text.map(str::parse).transpose().map_err(|error: Error| {
            Error::new(Kind::InvalidArgument, format!("{WORKERS_ENV}: {}", error.public()))
        })
    }

    /// A runtime with so many; without a number, with as many as there are cores.
    ///
    /// # Errors
    /// If the system gives no thread or no poller.
    pub fn runtime(workers: Option<Self>) -> io::Result<Runtime> {
        let mut builder = match workers {
            Some(Self(1)) => Builder::new_current_thread(),
            _ => Builder::new_multi_thread(),
        };
        if let Some(Self(count @ 2..)) = workers {
            builder.worker_threads(count.into());
        }
        builder.enable_all().build()
    }
}

impl FromStr for Workers {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // Digits alone: no sign, no fraction.
        let count = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        count.and_then(Self::new).ok_or_else(|| {
            let shown: String = text.chars().take(20).collect();
            let why = format!("must be a whole number from 1 to {MAX_WORKERS}, not {shown:?}");
            Error::new(Kind::InvalidArgument, why)
        })
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::RuntimeFlavor;

    use super::*;

    #[test]
    fn only_whole_numbers_within_bounds_are_taken() {
        for (text, count) in [("1", 1), ("16", 16), ("1024", 1024)] {
            assert_eq!(text.parse::<Workers>().unwrap().count(), count);
        }
        for text in ["", "0", "-1", "+1", "1.5", "1025", "70000", "all", "１"] {
            let error = text.parse::<Workers>().unwrap_err();
            assert!(error.public().contains("from 1 to 1024"), "{text}: {error}");
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_that_over_the_environment() {
        let [one, two, three] = [1, 2, 3].map(Workers::new);
        assert_eq!(Workers::choose(one, two, Some("3")).unwrap(), one);
        assert_eq!(Workers::choose(None, two, Some("nonsense")).unwrap(), two);
        assert_eq!(Workers::choose(None, None, Some(" 3 ")).unwrap(), three);
        assert_eq!(Workers::choose(None, None, Some("")).unwrap(), None);
        assert_eq!(Workers::choose(None, None, None).unwrap(), None);
        let error = Workers::choose(None, None, Some("nonsense")).unwrap_err();
        assert!(error.public().starts_with("LCA_WORKER_THREADS: must be"), "{error}");
    }

    #[test]
    fn one_worker_is_the_main_thread_and_more_are_threads() {
        let flavour = |count| {
            let runtime = Workers::runtime(Workers::new(count)).unwrap();
            let metrics = runtime.metrics();
            (runtime.handle().runtime_flavor(), metrics.num_workers())
        };
        assert_eq!(flavour(1), (RuntimeFlavor::CurrentThread, 1));
        assert_eq!(flavour(3), (RuntimeFlavor::MultiThread, 3));
    }
}
