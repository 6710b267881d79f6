//! From text to [`Config`], keeping the offset of everything so that problems can be
//! shown where they are.
//!
//! The syntax is parsed strictly. If that fails, the text is parsed again leniently,
//! only to find what else is wrong: a trailing comma must not hide a negative RTT.

use std::time::Duration;

use jsonc_parser::{
    CollectOptions, ParseOptions,
    ast::{Object, Value},
    common::Ranged as _,
    parse_to_ast,
};

use super::{Bootstrap, Config};
use crate::spec::MAX_RTT_MS;

/// A byte offset, the path of the key, and what is wrong with it.
pub(super) type Found = (usize, String, String);

/// Nothing of JSONC or JSON5: the file is the original's, and other programs read it.
const STRICT: ParseOptions = ParseOptions {
    allow_comments: false,
    allow_loose_object_property_names: false,
    allow_trailing_commas: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

pub(super) fn read(text: &str) -> Result<Config, Vec<Found>> {
    let mut problems = Problems::default();
    let body = text.strip_prefix('\u{feff}');
    if body.is_some() {
        problems.add(0, "", "the file begins with a byte order mark: save it as plain UTF-8");
    }
    let skipped = text.len() - body.unwrap_or(text).len();
    let mut config = tree(body.unwrap_or(text), &mut problems);
    problems
        .0
        .iter_mut()
        .skip(usize::from(skipped > 0))
        .for_each(|(offset, ..)| *offset += skipped);
    match config.take() {
        Some(config) if problems.0.is_empty() => Ok(config),
        _ => Err(problems.0),
    }
}

fn tree(text: &str, problems: &mut Problems) -> Option<Config> {
    let collect = CollectOptions::default();
    let parsed = match parse_to_ast(text, &collect, &STRICT) {
        Ok(parsed) => parsed,
        Err(error) => {
            let reason = error.kind().to_string();
            let reason = reason.replacen(char::is_uppercase, &reason[..1].to_ascii_lowercase(), 1);
            problems.add(error.range().start, "", format!("is not JSON: {reason}"));
            parse_to_ast(text, &collect, &ParseOptions::default()).ok()?
        }
    };
    let Some(root) = parsed.value else {
        problems.add(0, "", "the file is empty: write {} for no settings");
        return None;
    };
    let config = config(&root, problems);
    // The parser knows more white space than JSON has, and control characters in strings.
    if problems.0.is_empty()
        && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text)
    {
        let before: usize = text.split_inclusive('\n').take(error.line() - 1).map(str::len).sum();
        let offset = (before + error.column().saturating_sub(1)).min(text.len());
        problems.add(offset, "", "is not JSON: there is a character that JSON does not allow");
    }
    Some(config)
}

fn config(root: &Value<'_>, problems: &mut Problems) -> Config {
    let mut config = Config::default();
    let Some(root) = problems.object(root, "", &["Perf", "Bootstraps"]) else { return config };
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

fn describe(value: &Value<'_>) -> &'static str {
    match value {
        Value::StringLit(_) => "a string",
        Value::NumberLit(_) => "a number",
        Value::BooleanLit(_) => "a boolean",
        Value::NullKeyword(_) => "null",
        Value::Object(_) => "an object",
        Value::Array(_) => "a list",
    }
}

#[derive(Default)]
struct Problems(Vec<Found>);

impl Problems {
    fn add(&mut self, offset: usize, key: &str, reason: impl Into<String>) {
        self.0.push((offset, key.to_owned(), reason.into()));
    }

    /// `value` as an object, its keys checked: none unknown, none twice.
    fn object<'v, 't>(
        &mut self,
        value: &'v Value<'t>,
        path: &str,
        known: &[&str],
    ) -> Option<&'v Object<'t>> {
        let Value::Object(object) = value else {
            self.add(value.start(), path, format!("must be an object, not {}", describe(value)));
            return None;
        };
        let mut seen = Vec::with_capacity(known.len());
        for property in &object.properties {
            let name = property.name.as_str();
            let dot = if path.is_empty() { "" } else { "." };
            // A key may be as long as the file, and of anything.
            let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
            let key = format!("{path}{dot}{shown}");
            if !known.contains(&name) {
                let similar = known.iter().find(|known| known.eq_ignore_ascii_case(name));
                let reason = match similar {
                    Some(similar) => format!("is not known; did you mean {similar}?"),
                    None => format!("is not known here; known are {}", known.join(", ")),
                };
                self.add(property.start(), &key, reason);
            } else if seen.contains(&name) {
                self.add(property.start(), &key, "is there twice");
            } else {
                seen.push(name);
            }
        }
        Some(object)
    }
}
