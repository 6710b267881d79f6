//! Aligned columns for people: capitals in the header, `-` for what is unknown.
//!
//! Cells hold what peers say, so nothing in them may move the cursor or colour the
//! terminal: control characters are shown as `?`.

use std::fmt;

/// Between two columns: enough to tell them apart where both are full.
const GAP: &str = "  ";

/// Rows under a header. Prints every line with a newline at its end and no trailing
/// blanks.
#[derive(Clone, Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one with these columns.
    pub fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
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

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self.header.iter().map(|name| (*name).to_owned()).collect();
        let lines = || std::iter::once(&header).chain(&self.rows);
        let widths: Vec<usize> = (0..header.len())
            .map(|column| lines().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        for line in lines() {
            let mut text = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                text.push_str(&format!("{cell:width$}{GAP}"));
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
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
}
