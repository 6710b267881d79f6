//! How an allocator notices that a program which was ready does not answer any more.

use std::time::Duration;

use super::wire::{invalid, millis};
use crate::{Result, api::proto};

/// Between two questions where the spec names no time: a program that hangs is noticed
/// within half a minute, and a question every ten seconds disturbs nobody.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);
/// An hour, and a tenth of a second: what is asked more often is busy with that.
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// An answer that takes longer is none, where the spec names no time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Questions in a row: one may fall into a pause of the machine.
const DEFAULT_FAILURES: u32 = 3;
const MAX_FAILURES: u32 = 100;

/// A program that does not answer so many questions in a row has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Asked with GET; any 2xx is an answer.
    pub http_path: String,
    /// From one question to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// So many in a row that are not answered.
    pub failures: u32,
}

impl Liveness {
    /// From its form on the wire; `ready_path` is asked where it names none.
    pub(super) fn read(
        sent: proto::Liveness,
        ready_path: Option<&String>,
        external: bool,
    ) -> Result<Self> {
        if external {
            return Err(invalid("liveness: an external service is never allocated"));
        }
        let http_path = match (sent.http_path.as_str(), ready_path) {
            ("", Some(path)) => path.clone(),
            ("", None) => {
                let reason = "liveness.http_path: a program that hangs still accepts connections";
                return Err(invalid(format!("{reason}, so name a path that it answers")));
            }
            (path, _) if super::wire::is_path(path) => path.to_owned(),
            _ => return Err(invalid("liveness.http_path must be a path such as /healthz")),
        };
        let interval =
            millis("liveness.interval_ms", sent.interval_ms, DEFAULT_INTERVAL, MAX_INTERVAL)?;
        if interval < MIN_INTERVAL {
            return Err(invalid(format!(
                "liveness.interval_ms is less than {} ms",
                MIN_INTERVAL.as_millis()
            )));
        }
        let timeout = millis("liveness.timeout_ms", sent.timeout_ms, DEFAULT_TIMEOUT, MAX_TIMEOUT)?;
        let failures = match sent.failures {
            0 => DEFAULT_FAILURES,
            n if n > MAX_FAILURES => {
                return Err(invalid(format!("liveness.failures is more than {MAX_FAILURES}")));
            }
            n => n,
        };
        Ok(Self { http_path, interval, timeout, failures })
    }
}

impl From<&Liveness> for proto::Liveness {
    fn from(liveness: &Liveness) -> Self {
        Self {
            http_path: liveness.http_path.clone(),
            interval_ms: liveness.interval.as_millis() as u64,
            timeout_ms: liveness.timeout.as_millis() as u64,
            failures: liveness.failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sent: proto::Liveness, ready_path: Option<&str>) -> Result<Liveness, String> {
        let ready_path = ready_path.map(str::to_owned);
        let read = Liveness::read(sent, ready_path.as_ref(), false);
        read.map_err(|error| error.public().to_owned())
    }

    #[test]
    fn what_is_not_named_has_a_default_and_the_path_is_that_of_readiness() {
        let read = read(proto::Liveness::default(), Some("/ready")).unwrap();
        assert_eq!((read.http_path.as_str(), read.failures), ("/ready", DEFAULT_FAILURES));
        assert_eq!((read.interval, read.timeout), (DEFAULT_INTERVAL, DEFAULT_TIMEOUT));
        assert_eq!(Liveness::read((&read).into(), None, false).unwrap(), read);
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_field() {
        let path = || proto::Liveness { http_path: "/live".into(), ..Default::default() };
        assert!(read(proto::Liveness::default(), None).unwrap_err().contains("http_path"));
        let refused = |change: fn(&mut proto::Liveness)| {
            let mut sent = path();
            change(&mut sent);
            read(sent, None).unwrap_err()
        };
        assert!(refused(|sent| sent.http_path = "live".into()).contains("/healthz"));
        assert!(refused(|sent| sent.interval_ms = 99).contains("less than 100 ms"));
        assert!(refused(|sent| sent.interval_ms = u64::MAX).contains("interval_ms is more"));
        assert!(refused(|sent| sent.timeout_ms = 60_001).contains("timeout_ms is more"));
        assert!(refused(|sent| sent.failures = 101).contains("failures is more than 100"));
        assert!(Liveness::read(path(), None, true).unwrap_err().public().contains("external"));
    }
}
