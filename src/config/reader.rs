//! From the tree of a file to [`Config`].

use std::time::Duration;

use super::{
    Bootstrap, Config, Timeouts,
    json::{Object, Problems, Ranged as _, Value, describe},
};
use crate::{
    spec::MAX_RTT_MS,
    workers::{MAX_WORKERS, Workers},
};

/// A day in milliseconds, as in specs: whoever means for ever should have to say which.
const MAX_TIMEOUT_MS: u32 = 24 * 60 * 60 * 1000;

const KEYS: &[&str] = &["Perf", "Bootstraps", "WorkerThreads", "Timeouts"];

pub(super) fn config(root: &Value<'_>, problems: &mut Problems) -> Config {
    let mut config = Config::default();
    let Some(root) = problems.object(root, "", KEYS) else {
        return config;
    };
    if let Some(perf) = root.get("Perf")
        && let Some(perf) = problems.object(&perf.value, "Perf", &["SoftReq", "HardReq"])
    {
        let soft = limit(perf, "SoftReq", problems);
        let hard = limit(perf, "HardReq", problems);
        if let (Some((at, soft)), Some((_, hard))) = (soft, hard)
            && soft > hard
        {
            let reason = format!(
                "is above Perf.HardReq.RTT ({} ms): soft is where to look for better, hard where to stop",
                hard.as_millis()
            );
            problems.add(at, "Perf.SoftReq.RTT", reason);
        }
        config.requirements.soft = soft.map(|(_, limit)| limit);
        config.requirements.hard = hard.map(|(_, limit)| limit);
    }
    if let Some(bootstraps) = root.get("Bootstraps") {
        config.bootstraps = read_bootstraps(&bootstraps.value, problems);
    }
    if let Some(workers) = root.get("WorkerThreads") {
        config.workers = read_workers(&workers.value, problems);
    }
    if let Some(timeouts) = root.get("Timeouts") {
        config.timeouts = read_timeouts(&timeouts.value, problems);
    }
    config
}

fn read_timeouts(value: &Value<'_>, problems: &mut Problems) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let keys = timeouts.each().map(|(key, _)| key);
    let Some(object) = problems.object(value, "Timeouts", &keys) else { return timeouts };
    let mut read = |key: &str| {
        let time = &object.get(key)?.value;
        whole(time, &format!("Timeouts.{key}"), MAX_TIMEOUT_MS, problems)
    };
    timeouts.header = read("Header");
    timeouts.connect = read("Connect");
    timeouts.answer = read("Answer");
    timeouts.quiet = read("Quiet");
    timeouts.request = read("Request");
    timeouts
}

/// `{ "RTT": milliseconds }`, and where the number is.
fn limit(perf: &Object<'_>, name: &str, problems: &mut Problems) -> Option<(usize, Duration)> {
    let path = format!("Perf.{name}");
    let rtt = problems.object(&perf.get(name)?.value, &path, &["RTT"])?.get("RTT")?;
    let limit = whole(&rtt.value, &format!("{path}.RTT"), MAX_RTT_MS, problems)?;
    Some((rtt.value.start(), limit))
}

/// A whole number of milliseconds from 1 to `most`.
fn whole(value: &Value<'_>, path: &str, most: u32, problems: &mut Problems) -> Option<Duration> {
    // Digits alone: 1e3, 100.5 and -5 are numbers too, but no whole milliseconds.
    let millis = match value {
        Value::NumberLit(number) if number.value.bytes().all(|b| b.is_ascii_digit()) => {
            number.value.parse().ok().filter(|millis| (1..=most).contains(millis))
        }
        _ => None,
    };
    if millis.is_none() {
        let found = match value {
            Value::NumberLit(number) => number.value.chars().take(20).collect::<String>(),
            other => describe(other).to_owned(),
        };
        let reason =
            format!("must be a whole number of milliseconds from 1 to {most}, not {found}");
        problems.add(value.start(), path, reason);
    }
    millis.map(|millis: u32| Duration::from_millis(millis.into()))
}

fn read_workers(value: &Value<'_>, problems: &mut Problems) -> Option<Workers> {
    let (workers, found) = match value {
        Value::NumberLit(number) => {
            (number.value.parse().ok(), number.value.chars().take(20).collect::<String>())
        }
        other => (None, describe(other).to_owned()),
    };
    if workers.is_none() {
        let reason = format!("must be a whole number from 1 to {MAX_WORKERS}, not {found}");
        problems.add(value.start(), "WorkerThreads", reason);
    }
    workers
}

fn read_bootstraps(value: &Value<'_>, problems: &mut Problems) -> Vec<Bootstrap> {
    let Value::Array(array) = value else {
        let reason = format!("must be a list of strings, not {}", describe(value));
        problems.add(value.start(), "Bootstraps", reason);
        return Vec::new();
    };
    let mut bootstraps = Vec::with_capacity(array.elements.len());
    for (index, element) in array.elements.iter().enumerate() {
        let read = match element {
            Value::StringLit(text) => {
                text.value.parse().map_err(|error: crate::Error| error.public().to_owned())
            }
            other => Err(format!("must be a string, not {}", describe(other))),
        };
        match read {
            Ok(bootstrap) => bootstraps.push(bootstrap),
            Err(reason) => problems.add(element.start(), &format!("Bootstraps[{index}]"), reason),
        }
    }
    bootstraps
}
