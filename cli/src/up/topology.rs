//! `--topology FILE`: what lies between each two nodes of `up`, and how it changes while
//! time passes. The form is described in docs/topology.md. A file is taken whole or refused
//! whole, with every problem in it named by line, column and key, as conf.json is.

use std::{collections::BTreeSet, path::Path, time::Duration};

use lca::{
    Result,
    config::json::{self, Object, Problems, Ranged as _, Value, describe},
    units,
};
use lca_node::link::{
    Profile,
    course::{Course, End, Keyframe},
};

use super::link::{self, Span};

/// Longest a course may take: a day.
const LONGEST_COURSE: Duration = Duration::from_secs(86_400);

/// Reads the file for a network of nodes 0 to `nodes`.
///
/// # Errors
/// As [`json::load`].
pub(super) fn load(path: &Path, nodes: u8) -> Result<Vec<Span>> {
    json::load(path, "topology file", |root, problems| topology(root, nodes, problems))
}

fn topology(root: &Value<'_>, nodes: u8, problems: &mut Problems) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let Some(object) = problems.object(root, "", &["Links"]) else { return spans };
    let Some(links) = object.get("Links") else {
        problems.add(root.start(), "Links", "is missing: a list of what lies between two nodes");
        return spans;
    };
    let Some(links) = list(&links.value, "Links", problems) else { return spans };
    let mut pairs = BTreeSet::new();
    for (n, value) in links.iter().enumerate() {
        let path = format!("Links[{n}]");
        let Some(span) = read_link(value, &path, nodes, problems) else { continue };
        if pairs.insert(span.between) {
            spans.push(span);
        } else {
            let [a, b] = span.between;
            let reason = format!("nodes {a} and {b} have a link already");
            problems.add(value.start(), &format!("{path}.Between"), reason);
        }
    }
    spans
}

fn read_link(value: &Value<'_>, path: &str, nodes: u8, problems: &mut Problems) -> Option<Span> {
    const KEYS: [&str; 8] = ["Between", "Name", "RTT", "Jitter", "Stall", "Cut", "Course", "End"];
    let object = problems.object(value, path, &KEYS)?;
    let between = match object.get("Between") {
        Some(between) => pair(&between.value, &format!("{path}.Between"), nodes, problems),
        None => {
            problems.add(value.start(), &format!("{path}.Between"), "is missing: two node numbers");
            None
        }
    };
    let name = text(object, "Name", path, problems, link::name);
    let course = match object.get("Course") {
        Some(course) => {
            for key in ["RTT", "Jitter", "Stall", "Cut"] {
                if let Some(there) = object.get(key) {
                    let reason = "belongs into the keyframes of Course";
                    problems.add(there.start(), &format!("{path}.{key}"), reason);
                }
            }
            let end = text(object, "End", path, problems, |text| match text {
                "hold" => Ok(End::Hold),
                "loop" => Ok(End::Loop),
                _ => Err("must be \"hold\" or \"loop\"".into()),
            });
            read_course(&course.value, &format!("{path}.Course"), end.unwrap_or_default(), problems)
        }
        None => {
            if let Some(end) = object.get("End") {
                let reason = "says what follows the last keyframe of Course, which is missing";
                problems.add(end.start(), &format!("{path}.End"), reason);
            }
            profile(value, object, path, problems).map(Course::steady)
        }
    };
    let (between, course) = (between?, course?);
    let name = name.unwrap_or_else(|| format!("{}-{}", between[0], between[1]));
    Some(Span { name, between, course })
}

fn read_course(value: &Value<'_>, path: &str, end: End, problems: &mut Problems) -> Option<Course> {
    let mut frames: Vec<Keyframe> = Vec::new();
    let list = list(value, path, problems)?;
    for (n, value) in list.iter().enumerate() {
        let path = format!("{path}[{n}]");
        let keys = ["At", "RTT", "Jitter", "Stall", "Cut"];
        let Some(object) = problems.object(value, &path, &keys) else { continue };
        if object.get("At").is_none() {
            let reason = "is missing: when, since the start, such as 50s";
            problems.add(value.start(), &format!("{path}.At"), reason);
        }
        let before = frames.last().map(|frame| frame.at);
        let at = text(object, "At", &path, problems, |text| {
            let at = units::duration(text)?;
            match before {
                _ if at > LONGEST_COURSE => Err("is more than a day".into()),
                Some(before) if at <= before => {
                    Err(format!("is not after {}", units::show_duration(before)))
                }
                None if !at.is_zero() => Err("must be 0s: a course begins at once".into()),
                _ => Ok(at),
            }
        });
        let profile = profile(value, object, &path, problems);
        frames.extend(at.zip(profile).map(|(at, profile)| Keyframe { at, profile }));
    }
    if list.is_empty() {
        problems.add(value.start(), path, "must have at least one keyframe");
    }
    Course::new(frames, end)
}

/// RTT, Jitter, Stall and Cut of an object.
fn profile(
    value: &Value<'_>,
    object: &Object<'_>,
    path: &str,
    problems: &mut Problems,
) -> Option<Profile> {
    if let Some(cut) = object.get("Cut") {
        match &cut.value {
            Value::BooleanLit(cut) if cut.value => return Some(Profile::CUT),
            Value::BooleanLit(_) => {}
            other => {
                let reason = format!("must be true or false, not {}", describe(other));
                problems.add(other.start(), &format!("{path}.Cut"), reason);
            }
        }
    }
    if object.get("RTT").is_none() {
        let reason = "is missing: a round-trip time such as 10ms";
        problems.add(value.start(), &format!("{path}.RTT"), reason);
    }
    let rtt = text(object, "RTT", path, problems, link::time)?;
    let jitter = text(object, "Jitter", path, problems, link::time).unwrap_or_default();
    let stall = text(object, "Stall", path, problems, link::share).unwrap_or_default();
    let profile = link::profile(rtt, jitter, stall);
    profile.map_err(|reason| problems.add(value.start(), &format!("{path}.Jitter"), reason)).ok()
}

/// Two different node numbers, the smaller first.
fn pair(value: &Value<'_>, path: &str, nodes: u8, problems: &mut Problems) -> Option<[u8; 2]> {
    let numbers: Vec<u8> = list(value, path, problems)?
        .iter()
        .filter_map(|value| match value {
            Value::NumberLit(number) if number.value.bytes().all(|b| b.is_ascii_digit()) => {
                number.value.parse().ok().filter(|number| *number <= nodes)
            }
            _ => None,
        })
        .collect();
    let elements = list(value, path, problems)?.len();
    match numbers[..] {
        [a, b] if elements == 2 && a != b => Some([a.min(b), a.max(b)]),
        _ => {
            let reason = format!(
                "must be two different node numbers from 0, where the front is, to {nodes}"
            );
            problems.add(value.start(), path, reason);
            None
        }
    }
}

fn list<'v, 't>(
    value: &'v Value<'t>,
    path: &str,
    problems: &mut Problems,
) -> Option<&'v [Value<'t>]> {
    let Value::Array(array) = value else {
        let reason = format!("must be a list, not {}", describe(value));
        problems.add(value.start(), path, reason);
        return None;
    };
    Some(&array.elements)
}

/// What a string under `key` means, if it is there.
fn text<T>(
    object: &Object<'_>,
    key: &str,
    path: &str,
    problems: &mut Problems,
    meaning: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let value = &object.get(key)?.value;
    let read = match value {
        Value::StringLit(text) => meaning(&text.value),
        other => Err(format!("must be a string, not {}", describe(other))),
    };
    read.map_err(|reason| problems.add(value.start(), &format!("{path}.{key}"), reason)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Span>, String> {
        json::parse("f", text, |root, problems| topology(root, 3, problems))
            .map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn the_shipped_example_is_the_papers_bus_ride() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/topology/buses.json");
        let spans = load(&path, 3).unwrap();
        let rtt = |n: usize, at| {
            let profile = spans[n].course.at(Duration::from_secs(at));
            (profile.delay + profile.jitter / 2).as_millis()
        };
        assert_eq!([0, 1, 2].map(|n| rtt(n, 50)), [1, 10, 10]);
        assert_eq!([0, 1, 2].map(|n| rtt(n, 150)), [10, 10, 1], "it loops");
        assert!(spans.iter().all(|span| span.between[0] == 0));
    }

    #[test]
    fn everything_that_is_wrong_is_named_where_it_is() {
        let text = r#"{ "Links": [
  { "Between": [0, 1], "RTT": 10 },
  { "Between": [0, 4], "RTT": "10ms", "Colour": "red" },
  { "Between": [2, 2], "RTT": "2ms", "Jitter": "3ms" },
  { "Between": [0, 3], "Course": [ { "At": "0s", "RTT": "1ms" }, { "At": "0s", "RTT": "2ms" } ], "End": "stop" },
  { "Between": [0, 2], "Course": [], "RTT": "1ms" },
  { "Between": [3, 1], "RTT": "2ms", "Stall": "1", "End": "loop" },
  { "RTT": "2ms" },
  { "Between": [1, 2] },
  { "Between": [3, 2], "Cut": true }, { "Between": [2, 3], "Cut": true },
  7
] }"#;
        let refused = parse(text).unwrap_err();
        let expected = [
            "f:2:31: Links[0].RTT: must be a string, not a number",
            "f:3:16: Links[1].Between: must be two different node numbers from 0, where the front is, to 3",
            "f:3:39: Links[1].Colour: is not known here; known are Between, Name, RTT, Jitter, Stall, Cut, Course, End",
            "f:4:3: Links[2].Jitter: the jitter of 3.0 ms is above the RTT of 2.0 ms",
            "f:4:16: Links[2].Between: must be two different node numbers from 0, where the front is, to 3",
            "f:5:74: Links[3].Course[1].At: is not after 0 us",
            "f:5:105: Links[3].End: must be \"hold\" or \"loop\"",
            "f:6:34: Links[4].Course: must have at least one keyframe",
            "f:6:38: Links[4].RTT: belongs into the keyframes of Course",
            "f:7:47: Links[5].Stall: a stall is a share such as 1% or 0.5%, not \"1\"",
            "f:7:52: Links[5].End: says what follows the last keyframe of Course, which is missing",
            "f:8:3: Links[6].Between: is missing: two node numbers",
            "f:9:3: Links[7].RTT: is missing: a round-trip time such as 10ms",
            "f:10:39: Links[9].Between: nodes 2 and 3 have a link already",
            "f:11:3: Links[10]: must be an object, not a number",
        ];
        assert_eq!(refused.lines().collect::<Vec<_>>(), expected);
        assert!(parse("{}").unwrap_err().contains("f:1:1: Links: is missing"));
        assert!(parse("{ \"Links\": 1 }").unwrap_err().contains("must be a list"));
        assert!(parse("{ \"Links\": [], }").unwrap_err().contains("is not JSON"));
        assert_eq!(parse("{ \"Links\": [] }").unwrap(), []);
    }
}
