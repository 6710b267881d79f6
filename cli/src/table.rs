//! Aligned columns for people: capitals in the header, `-` for what is unknown.
//!
//! On a terminal a table is fitted to its width: columns that people miss least go first,
//! then the widest cells are shortened. Nothing is cut where no person reads.
//!
//! Cells hold what peers say, so nothing in them may move the cursor or colour the
//! terminal: control characters are shown as `?`.

use std::fmt;

/// Between two columns: enough to tell them apart where both are full.
const GAP: &str = "  ";

/// What a column keeps when cells are shortened: enough to tell rows apart.
const MIN_CELL: usize = 8;

/// What a command prints for people.
pub trait Screen {
    /// As it looks on a terminal of this many columns; `None`: nobody looks.
    fn on(&self, width: Option<usize>) -> String;
}

/// One below the other, with an empty line between them.
impl Screen for Vec<Table> {
    fn on(&self, width: Option<usize>) -> String {
        let all: Vec<_> = self.iter().map(|table| table.on(width)).collect();
        all.join("\n")
    }
}

impl Screen for String {
    fn on(&self, _width: Option<usize>) -> String {
        self.clone()
    }
}

/// Rows under a header. Prints every line with a newline at its end and no trailing
/// blanks.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    spare: &'static [&'static str],
}

impl Table {
    /// An empty one with these columns.
    pub fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new(), spare: &[] }
    }

    /// Names the columns that are left out where the table is too wide, the least
    /// important first.
    #[must_use]
    pub fn spare(mut self, columns: &'static [&'static str]) -> Self {
        debug_assert!(columns.iter().all(|column| self.header.contains(column)));
        self.spare = columns;
        self
    }

    /// Adds a row; an empty cell is unknown.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.header.len(), "a row has as many cells as the header");
        self.rows.push(cells.into_iter().map(clean).collect());
    }
}

fn clean(cell: String) -> String {
    match cell.is_empty() {
        true => "-".to_owned(),
        false => cell.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
    }
}

impl Table {
    /// The widest cell of each column.
    fn widths(&self) -> Vec<usize> {
        let column = |at: usize| {
            let cells = self.rows.iter().map(|row| row[at].chars().count());
            cells.chain([self.header[at].chars().count()]).max().unwrap_or(0)
        };
        (0..self.header.len()).map(column).collect()
    }

    /// The same without a column.
    #[must_use]
    pub fn without(&self, column: &str) -> Self {
        let mut table = self.clone();
        let Some(at) = table.header.iter().position(|name| *name == column) else { return table };
        table.header.remove(at);
        table.rows.iter_mut().for_each(|row| drop(row.remove(at)));
        table
    }

    fn print(&self, widths: &[usize]) -> String {
        let header: Vec<String> = self.header.iter().map(|name| (*name).to_owned()).collect();
        let mut text = String::new();
        for line in std::iter::once(&header).chain(&self.rows) {
            let cells = line.iter().zip(widths).map(|(cell, width)| {
                let cell = shortened(cell, *width);
                format!("{cell:width$}{GAP}")
            });
            let line: String = cells.collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

impl Screen for Table {
    fn on(&self, width: Option<usize>) -> String {
        let Some(limit) = width else { return self.to_string() };
        let fits = |widths: &[usize]| total(widths) <= limit;
        let mut table = self.clone();
        for column in self.spare {
            if fits(&table.widths()) {
                break;
            }
            table = table.without(column);
        }
        let mut widths = table.widths();
        while !fits(&widths) {
            let widest = widths.iter_mut().max().filter(|widest| **widest > MIN_CELL);
            // A terminal this narrow wraps lines; nothing readable is left to cut.
            let Some(widest) = widest else { break };
            *widest -= 1;
        }
        table.print(&widths)
    }
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

fn shortened(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.print(&self.widths()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_the_unknown_is_a_dash() {
        let mut table = Table::new(["NAME", "RTT", "LAST"]);
        table.row(["a-long-name".into(), String::new(), "é\x1b[31m\n".into()]);
        table.row(["b".into(), "1.2 ms".into(), "x".into()]);
        assert_eq!(
            table.to_string(),
            "NAME         RTT     LAST\n\
             a-long-name  -       é?[31m?\n\
             b            1.2 ms  x\n"
        );
    }

    #[test]
    fn a_narrow_terminal_loses_what_is_missed_least_and_then_the_ends_of_cells() {
        let mut table = Table::new(["ID", "ADDRESS", "REASON"]).spare(&["ADDRESS"]);
        table.row(["00112233".into(), "127.0.0.1:4444".into(), "exited with code 1".into()]);
        assert_eq!(table.on(None), table.to_string());
        assert_eq!(table.on(Some(44)), table.to_string());
        assert_eq!(
            table.on(Some(43)),
            "ID        REASON\n\
             00112233  exited with code 1\n"
        );
        assert_eq!(
            table.on(Some(20)),
            "ID        REASON\n\
             00112233  exited wi…\n"
        );
        assert_eq!(
            table.on(Some(1)),
            "ID        REASON\n\
             00112233  exited …\n"
        );
    }
}
