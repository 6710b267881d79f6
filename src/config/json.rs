//! JSON files that people write: read strictly, refused whole, with every problem named
//! by line, column and key.
//!
//! The syntax is parsed strictly. If that fails, the text is parsed again leniently,
//! only to find what else is wrong: a trailing comma must not hide a negative RTT.

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::Path,
};

use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
pub use jsonc_parser::{
    ast::{Object, Value},
    common::Ranged,
};

use crate::{Error, Kind, Result};

/// Largest file that is read: thousands of bootstraps, and nothing that hurts.
pub(super) const MAX_FILE: u64 = 1 << 20;
/// Most problems that are told at once: a screenful.
pub(super) const MAX_PROBLEMS: usize = 30;

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

/// A byte offset, the path of the key, and what is wrong with it.
type Found = (usize, String, String);

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

/// Reads a file; `what` is what it is called in errors, `meaning` makes of its tree what
/// it means, and adds what is wrong with it.
///
/// # Errors
/// [`Kind::NotFound`] if there is none, [`Kind::FailedPrecondition`] if it cannot be
/// read, [`Kind::InvalidArgument`] with every problem in it.
pub fn load<T>(
    path: &Path,
    what: &str,
    meaning: impl FnOnce(&Value<'_>, &mut Problems) -> T,
) -> Result<T> {
    let name = path.display().to_string();
    let bytes = read(path).map_err(|error| {
        let (kind, said) = match error.kind() {
            io::ErrorKind::NotFound => (Kind::NotFound, format!("there is no {what}")),
            _ => (Kind::FailedPrecondition, format!("cannot read the {what}")),
        };
        let why = if kind == Kind::NotFound { String::new() } else { format!(": {error}") };
        Error::new(kind, format!("{said} {name}{why}")).because(error)
    })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Invalid::at_start(&name, "the file is larger than 1 MiB").into());
    }
    match str::from_utf8(&bytes) {
        Ok(text) => Ok(parse(&name, text, meaning)?),
        Err(error) => {
            let valid = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
            let problem = (valid.len(), String::new(), "is not UTF-8".to_owned());
            Err(Invalid::new(&name, valid, vec![problem]).into())
        }
    }
}

/// Reads the text of a file; `name` is what it is called in problems, `meaning` as in
/// [`load`].
///
/// # Errors
/// Every problem in it.
pub fn parse<T>(
    name: &str,
    text: &str,
    meaning: impl FnOnce(&Value<'_>, &mut Problems) -> T,
) -> Result<T, Invalid> {
    if text.len() as u64 > MAX_FILE {
        return Err(Invalid::at_start(name, "the file is larger than 1 MiB"));
    }
    let mut problems = Problems::default();
    let body = text.strip_prefix('\u{feff}');
    if body.is_some() {
        problems.add(0, "", "the file begins with a byte order mark: save it as plain UTF-8");
    }
    let skipped = text.len() - body.unwrap_or(text).len();
    let read = tree(body.unwrap_or(text), &mut problems, meaning);
    problems
        .0
        .iter_mut()
        .skip(usize::from(skipped > 0))
        .for_each(|(offset, ..)| *offset += skipped);
    match read {
        Some(read) if problems.0.is_empty() => Ok(read),
        _ => Err(Invalid::new(name, text, problems.0)),
    }
}

fn tree<T>(
    text: &str,
    problems: &mut Problems,
    meaning: impl FnOnce(&Value<'_>, &mut Problems) -> T,
) -> Option<T> {
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
    let read = meaning(&root, problems);
    // The parser knows more white space than JSON has, and control characters in strings.
    if problems.0.is_empty()
        && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text)
    {
        let before: usize = text.split_inclusive('\n').take(error.line() - 1).map(str::len).sum();
        let offset = (before + error.column().saturating_sub(1)).min(text.len());
        problems.add(offset, "", "is not JSON: there is a character that JSON does not allow");
    }
    Some(read)
}

/// At most one byte more than is taken, whatever the file claims to be.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Invalid {
    fn new(name: &str, text: &str, mut found: Vec<Found>) -> Self {
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

/// What kind of value stands there, in words.
pub fn describe(value: &Value<'_>) -> &'static str {
    match value {
        Value::StringLit(_) => "a string",
        Value::NumberLit(_) => "a number",
        Value::BooleanLit(_) => "a boolean",
        Value::NullKeyword(_) => "null",
        Value::Object(_) => "an object",
        Value::Array(_) => "a list",
    }
}

/// What was found wrong so far.
#[derive(Debug, Default)]
pub struct Problems(Vec<Found>);

impl Problems {
    /// Something at this byte offset is wrong; `key` is the path of the key it is about,
    /// empty where it is about none.
    pub fn add(&mut self, offset: usize, key: &str, reason: impl Into<String>) {
        self.0.push((offset, key.to_owned(), reason.into()));
    }

    /// `value` as an object, its keys checked: none unknown, none twice.
    pub fn object<'v, 't>(
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
