//! How a command fails: one sentence, what can be done about it, and a stable exit
//! code.
//!
//! | code | means | kinds |
//! |---|---|---|
//! | 0 | done; also when the reader of our output went away (`lcactl ... \| head`) | |
//! | 1 | a defect, or our output could not be written | `internal`, `bad-gateway`, `loop` |
//! | 2 | the command line or a file is wrong | `invalid-argument`, `misdirected`, `not-allowed` |
//! | 3 | there is nothing of that name | `not-found` |
//! | 4 | nobody answered, in time or at all; or not everything is serving | `unavailable`, `timeout` |
//! | 5 | refused | `conflict`, `failed-precondition`, `no-capacity`, `not-here`, `start-failed`, `permission-denied`, `unauthenticated` |
//! | 130 | interrupted | |

use std::{fmt::Write as _, io};

pub use lca::Exit;
use lca::Kind;
use serde_json::json;

use crate::units::show_duration;

/// Shorthand for what commands return.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// Something to tell.
    Told(Box<Told>),
    /// Standard output or error took no more.
    Output(io::Error),
    /// Ctrl-C, and what remains to be said.
    Interrupted(Vec<String>),
}

/// A failure as people and programs are told it.
#[derive(Debug)]
pub struct Told {
    error: lca::Error,
    /// Lines between the sentence and the hints.
    details: Vec<String>,
    hints: Vec<String>,
}

impl Failure {
    /// A failure with a sentence.
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        lca::Error::new(kind, sentence).into()
    }

    /// Adds what can be done about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Told(told) = &mut self {
            told.hints.push(hint.into());
        }
        self
    }

    /// Adds what can be done about a failure of this kind, unless whoever failed has
    /// said it already.
    #[must_use]
    pub fn hint_for(self, kind: Kind, hint: &str) -> Self {
        match &self {
            Self::Told(told) if told.error.kind() == kind && told.hints().is_empty() => {
                self.hint(hint)
            }
            _ => self,
        }
    }

    /// Adds lines that belong to the sentence.
    #[must_use]
    pub fn details(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        if let Self::Told(told) = &mut self {
            told.details.extend(lines);
        }
        self
    }

    /// What kind of failure was told.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::Told(told) => Some(told.error.kind()),
            _ => None,
        }
    }

    /// How the program ends because of it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Told(told) => Exit::of(told.error.kind()),
            // `lcactl ... | head` has got what it wanted.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Success,
            Self::Output(_) => Exit::Other,
            Self::Interrupted(_) => Exit::Interrupted,
        }
    }

    /// What goes to standard error, for people. Empty where nothing is to be said.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut lines = |prefix: &str, lines: &mut dyn Iterator<Item = &str>| {
            for line in lines {
                // What comes from a peer must not reach the terminal as it is.
                let line: String =
                    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                // Writing to a string cannot fail.
                let _infallible = writeln!(text, "{prefix}{line}");
            }
        };
        match self {
            Self::Told(told) => {
                lines("error: ", &mut told.error.public().lines());
                lines("  ", &mut told.details.iter().map(String::as_str));
                lines("  | ", &mut told.error.output_lines().iter().map(String::as_str));
                lines("hint: ", &mut told.hints().iter().flat_map(|hint| hint.lines()));
            }
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Self::Output(error) => {
                lines(
                    "error: ",
                    &mut [format!("cannot write the output: {error}")].iter().map(String::as_str),
                );
            }
            Self::Interrupted(notes) => {
                lines("", &mut std::iter::once("interrupted"));
                lines("hint: ", &mut notes.iter().map(String::as_str));
            }
        }
        text
    }

    /// The same as one JSON document. Empty where nothing is to be said.
    pub fn to_json(&self) -> String {
        let mut error = match self {
            Self::Told(told) => json!({
                "kind": told.error.kind().slug(),
                "message": told.error.public(),
                "details": told.details,
                "output": told.error.output_lines(),
                "hints": told.hints(),
                "retry_after_ms": told.error.retry_delay().map(|delay| delay.as_millis() as u64),
            }),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return String::new();
            }
            Self::Output(error) => {
                json!({ "kind": "internal", "message": format!("cannot write the output: {error}") })
            }
            Self::Interrupted(notes) => {
                json!({ "kind": "interrupted", "message": "interrupted", "hints": notes })
            }
        };
        error["exit_code"] = self.exit().code().into();
        format!("{:#}\n", json!({ "error": error }))
    }
}

impl Told {
    /// Ours and those that came with the error, and when to try again.
    fn hints(&self) -> Vec<String> {
        let mut hints = self.hints.clone();
        hints.extend(self.error.hint_text().map(str::to_owned));
        if let Some(delay) = self.error.retry_delay() {
            hints.push(format!("try again in {}", show_duration(delay)));
        }
        hints
    }
}

impl From<lca::Error> for Failure {
    fn from(error: lca::Error) -> Self {
        Self::Told(Box::new(Told { error, details: Vec::new(), hints: Vec::new() }))
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        lca::Error::from(status).into()
    }
}

impl From<lca::ParseError> for Failure {
    fn from(error: lca::ParseError) -> Self {
        lca::Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_kind_fails_and_never_as_interrupted() {
        for kind in Kind::ALL {
            assert!(!matches!(Exit::of(kind), Exit::Success | Exit::Interrupted), "{kind:?}");
        }
        assert_eq!(Exit::of(Kind::NotFound).code(), 3);
        assert_eq!(Exit::of(Kind::Timeout).code(), 4);
        assert_eq!(Exit::of(Kind::StartFailed).code(), 5);
    }

    #[test]
    fn a_failed_start_is_told_with_its_output_and_the_next_attempt() {
        let error = lca::Error::new(Kind::StartFailed, "it exited with 1")
            .output(["panic: no config".to_owned()])
            .hint("look at the logs")
            .retry_after(Duration::from_secs(2));
        assert_eq!(
            Failure::from(error).to_text(),
            "error: it exited with 1\n  | panic: no config\nhint: look at the logs\n\
             hint: try again in 2.0 s\n"
        );
    }

    #[test]
    fn what_a_peer_says_cannot_colour_the_terminal() {
        let failure = Failure::new(Kind::Internal, "a\x1b[31mb\rc\nd");
        assert_eq!(failure.to_text(), "error: a [31mb c\nerror: d\n");
    }

    #[test]
    fn json_says_the_same() {
        let failure =
            Failure::new(Kind::Conflict, "exists").hint("use --replace").details(["x".into()]);
        let json: serde_json::Value = serde_json::from_str(&failure.to_json()).unwrap();
        assert_eq!(json["error"]["kind"], "conflict");
        assert_eq!(json["error"]["exit_code"], 5);
        assert_eq!(json["error"]["hints"][0], "use --replace");
        assert_eq!(json["error"]["details"][0], "x");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let failure = Failure::Output(io::ErrorKind::BrokenPipe.into());
        assert_eq!(
            (failure.exit(), failure.to_text(), failure.to_json()),
            (Exit::Success, String::new(), String::new())
        );
        assert_eq!(Failure::Output(io::ErrorKind::StorageFull.into()).exit(), Exit::Other);
    }
}
