//! From the tree of a file to [`Config`].

use std::time::Duration;

use super::{
    Bootstrap, Config,
    json::{Object, Problems, Ranged as _, Value, describe},
};
use crate::{
    spec::MAX_RTT_MS,
    workers::{MAX_WORKERS, Workers},
};

pub(super) fn config(root: &Value<'_>, problems: &mut Problems) -> Config {
    let mut config = Config::default();
    let Some(root) = problems.object(root, "", &["Perf", "Bootstraps", "WorkerThreads"]) else {
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
    config
}

/// `{ "RTT": milliseconds }`, and where the number is.
fn limit(perf: &Object<'_>, name: &str, problems: &mut Problems) -> Option<(usize, Duration)> {
    let path = format!("Perf.{name}");
    let rtt = problems.object(&perf.get(name)?.value, &path, &["RTT"])?.get("RTT")?;
    let at = rtt.value.start();
    // Digits alone: 1e3, 100.5 and -5 are numbers too, but no whole milliseconds.
    let millis = match &rtt.value {
        Value::NumberLit(number) if number.value.bytes().all(|b| b.is_ascii_digit()) => {
            number.value.parse().ok().filter(|millis| (1..=MAX_RTT_MS).contains(millis))
        }
        _ => None,
    };
    if millis.is_none() {
        let found = match &rtt.value {
            Value::NumberLit(number) => number.value.chars().take(20).collect::<String>(),
            other => describe(other).to_owned(),
        };
        problems.add(
            at,
            &format!("{path}.RTT"),
            format!("must be a whole number of milliseconds from 1 to {MAX_RTT_MS}, not {found}"),
        );
    }
    millis.map(|millis: u32| (at, Duration::from_millis(millis.into())))
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
