//! `--watch`: a table that is redrawn in place on a terminal, printed anew elsewhere.
//!
//! Redrawing is moving up over what was drawn and drawing again, in one write, and the
//! cursor always ends below. It is never hidden: however a watch ends, by Ctrl-C or by
//! SIGKILL, the terminal is as it should be.

use std::time::Duration;

use crate::{errors::Result, output::Output, table::Screen};

/// Longest between two drawings on a terminal, so that ages go on.
pub(crate) const REDRAW: Duration = Duration::from_secs(1);
/// Shortest between two drawings: what comes together is drawn together.
pub(crate) const SETTLE: Duration = Duration::from_millis(100);

/// What has been drawn.
#[derive(Debug, Default)]
pub(crate) struct Drawing {
    /// Lines on the terminal that are ours.
    lines: usize,
    last: Option<String>,
}

impl Drawing {
    /// Draws `screen`, where the last one was if there is a terminal. Elsewhere it is
    /// printed below the last one.
    ///
    /// # Errors
    /// If standard output takes no more.
    pub(crate) fn draw(&mut self, screen: &impl Screen, output: &mut Output) -> Result<()> {
        let Some((columns, rows)) = output.terminal() else {
            let text = screen.on(None);
            let gap = if self.last.is_some() { "\n" } else { "" };
            output.raw(format!("{gap}{text}").as_bytes())?;
            self.last = Some(text);
            return Ok(());
        };
        let text = fitted(&screen.on(Some(columns)), rows);
        let frame = frame(self.lines, &text);
        self.lines = text.lines().count();
        self.last = Some(text);
        output.raw(frame.as_bytes())
    }
}

/// `text` over the `lines` drawn before.
fn frame(lines: usize, text: &str) -> String {
    match lines {
        0 => text.to_owned(),
        lines => format!("\x1b[{lines}A\r\x1b[J{text}"),
    }
}

/// As many lines as a terminal of `rows` holds above the cursor: what has scrolled away
/// could not be drawn over.
fn fitted(text: &str, rows: usize) -> String {
    let (room, all) = (rows.saturating_sub(1).max(2), text.lines().count());
    if all <= room {
        return text.to_owned();
    }
    let shown: Vec<_> = text.lines().take(room - 1).collect();
    format!("{}\n... and {} more\n", shown.join("\n"), all - shown.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Format;

    #[test]
    fn on_a_terminal_the_last_drawing_is_drawn_over() {
        let (output, captured) = Output::captured(Format::Table, true);
        let mut output = output.on_terminal(80, 24);
        let mut drawing = Drawing::default();
        drawing.draw(&"A\nB\n".to_owned(), &mut output).unwrap();
        drawing.draw(&"C\n".to_owned(), &mut output).unwrap();
        drawing.draw(&"D\n".to_owned(), &mut output).unwrap();
        assert_eq!(captured.out(), "A\nB\n\x1b[2A\r\x1b[JC\n\x1b[1A\r\x1b[JD\n");
    }

    #[test]
    fn elsewhere_nothing_is_taken_back() {
        let (mut output, captured) = Output::captured(Format::Table, false);
        let mut drawing = Drawing::default();
        drawing.draw(&"A\n".to_owned(), &mut output).unwrap();
        drawing.draw(&"B\n".to_owned(), &mut output).unwrap();
        assert_eq!(captured.out(), "A\n\nB\n");
    }

    #[test]
    fn what_is_higher_than_the_terminal_says_how_much_is_missing() {
        assert_eq!(fitted("a\nb\nc\n", 4), "a\nb\nc\n");
        assert_eq!(fitted("a\nb\nc\nd\n", 4), "a\nb\n... and 2 more\n");
        assert_eq!(fitted("a\nb\nc\nd\n", 0), "a\n... and 3 more\n");
    }
}
