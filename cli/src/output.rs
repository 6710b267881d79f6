//! Where a command's words go: data to standard output, everything else to standard
//! error.
//!
//! With `-o json`, standard output is one JSON document or empty, and a failure is one
//! JSON document on standard error. (`logs` and `--watch` have no end: one JSON object a
//! line.) Every write is checked and flushed: a full disk must not look like success.

use std::io::{self, BufRead, IsTerminal as _, Read as _, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    errors::{Failure, Result},
    table::{Screen, Table},
};

#[cfg(test)]
pub(crate) mod captured;

/// What standard output looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON document with the field names of `proto/lca/v1`.
    Json,
}

/// The two streams of a command.
pub struct Output {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    /// What was asked for.
    pub format: Format,
    err_is_terminal: bool,
    /// Where a person types, if one is there to be asked.
    answers: Option<Box<dyn BufRead + Send>>,
    /// Columns and rows of the terminal that standard output is.
    terminal: Option<(usize, usize)>,
    if_interrupted: Vec<String>,
}

/// The longest answer to a question that is read.
const MAX_ANSWER: u64 = 1024;

impl Output {
    /// Standard output and error of this process.
    pub fn standard(format: Format) -> Self {
        let err_is_terminal = io::stderr().is_terminal();
        let asked = err_is_terminal && io::stdin().is_terminal() && format == Format::Table;
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            format,
            err_is_terminal,
            answers: asked.then(|| Box::new(io::BufReader::new(io::stdin())) as _),
            terminal: terminal(),
            if_interrupted: Vec::new(),
        }
    }

    /// Prints the data of a command: `table` for people, or `document` as JSON.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn data<S: Screen>(
        &mut self,
        document: &impl Serialize,
        table: impl FnOnce() -> S,
    ) -> Result<()> {
        let text = match self.format {
            Format::Table => table().on(self.terminal.map(|(width, _)| width)),
            Format::Json => {
                let document = serde_json::to_string_pretty(document);
                document.expect("views hold only strings, numbers and lists") + "\n"
            }
        };
        self.raw(text.as_bytes())
    }

    /// Prints a list: a table, or one line saying that there is nothing.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn list(
        &mut self,
        document: &impl Serialize,
        empty: Option<&str>,
        table: impl FnOnce() -> Table,
    ) -> Result<()> {
        match empty {
            Some(nothing) if self.format == Format::Table => {
                self.note(nothing);
                Ok(())
            }
            _ => self.data(document, table),
        }
    }

    /// Prints one JSON object on a line of its own.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn line(&mut self, document: &impl Serialize) -> Result<()> {
        let document = serde_json::to_string(document);
        let line = document.expect("views hold only strings, numbers and lists") + "\n";
        self.raw(line.as_bytes())
    }

    /// Columns and rows of the terminal that standard output is, as they are now.
    pub(crate) fn terminal(&mut self) -> Option<(usize, usize)> {
        // The window may have been resized; a captured output has none to ask.
        if self.terminal.is_some() {
            self.terminal = terminal().or(self.terminal);
        }
        self.terminal
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).and_then(|()| self.out.flush()).map_err(Failure::Output)
    }

    /// Says something beside the data: a warning, what was done. Not with `-o json`,
    /// where the document says it.
    pub fn note(&mut self, line: &str) {
        if self.format == Format::Table {
            self.say(&format!("{line}\n"));
        }
    }

    /// Says how far the work is, if somebody is watching.
    pub fn progress(&mut self, line: &str) {
        if self.err_is_terminal && self.format == Format::Table {
            self.say(&format!("{line}\n"));
        }
    }

    /// Shows how far the work is in a line that is written over by the next, if somebody
    /// is watching. An empty one takes it away.
    pub fn progress_in_place(&mut self, line: &str) {
        if self.err_is_terminal && self.format == Format::Table {
            self.say(&format!("\r{line}\x1b[K"));
        }
    }

    /// Whether somebody is there to be asked.
    pub fn can_ask(&self) -> bool {
        self.answers.is_some()
    }

    /// Asks whoever is there for a yes. `None` where nobody is. Waits for as long as a
    /// person thinks; Ctrl-C ends it.
    pub async fn ask(&mut self, question: &str) -> Option<bool> {
        let answers = self.answers.take()?;
        self.say(&format!("{question} [y/N] "));
        let read = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let mut limited = answers.take(MAX_ANSWER);
            let ended = limited.read_line(&mut line);
            (ended.map(|_| line), limited.into_inner())
        });
        let (line, answers) = read.await.ok()?;
        self.answers = Some(answers);
        let line = line.unwrap_or_default();
        Some(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// What to say should the command be interrupted from here on.
    pub fn if_interrupted(&mut self, hints: Vec<String>) {
        self.if_interrupted = hints;
    }

    /// The failure that an interruption is now.
    pub(crate) fn interrupted(&mut self) -> Failure {
        Failure::Interrupted(std::mem::take(&mut self.if_interrupted))
    }

    /// Tells a failure.
    pub fn failure(&mut self, failure: &Failure) {
        let text = match self.format {
            Format::Table => failure.to_text(),
            Format::Json => failure.to_json(),
        };
        self.say(&text);
    }

    /// If nobody can be told, the exit code still says it.
    fn say(&mut self, text: &str) {
        let _nobody_reads = self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush());
    }
}

/// The size of the terminal that standard output is. Columns 0 is what a terminal says
/// that does not know.
fn terminal() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("format", &self.format).finish_non_exhaustive()
    }
}
