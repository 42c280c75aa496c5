//! Plain tables for terminals: aligned columns, numbers to the right.

use std::fmt::{self, Write as _};

/// A last column is never squeezed below this.
const NARROWEST: usize = 16;

/// A table under construction.
#[derive(Debug, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new<S: ToString>(header: impl IntoIterator<Item = S>) -> Self {
        Table { header: header.into_iter().map(|name| name.to_string()).collect(), rows: Vec::new() }
    }

    /// A table without a header, of two columns.
    pub fn plain() -> Self {
        Table { header: vec![String::new(); 2], rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<S: ToString>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| cell.to_string()).collect());
    }

    fn cell(row: &[String], column: usize) -> &str {
        row.get(column).map_or("", String::as_str)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.header.len();
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| Self::cell(row, column));
            cells.chain([Self::cell(&self.header, column)]).map(display_width).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let is_number = |text: &str| text.chars().all(|c| c.is_ascii_digit() || ".,-%".contains(c));
        let to_the_right: Vec<bool> = (0..columns)
            .map(|column| {
                let mut cells =
                    self.rows.iter().map(|row| Self::cell(row, column)).filter(|cell| !cell.is_empty()).peekable();
                cells.peek().is_some() && cells.all(is_number)
            })
            .collect();
        // What does not fit the width of the format, as in `{table:80}`, goes on below, in its own column.
        let before: usize = 2 + widths.iter().rev().skip(1).map(|width| width + 2).sum::<usize>();
        let last = out.width().map_or(usize::MAX, |width| width.saturating_sub(before).max(NARROWEST));
        let header = self.header.iter().any(|name| !name.is_empty()).then_some(&self.header);
        for row in header.into_iter().chain(&self.rows) {
            let mut line = String::from("  ");
            for (column, width) in widths.iter().enumerate() {
                let cell = Self::cell(row, column);
                let blanks = " ".repeat(width - display_width(cell));
                let (left, right) = if to_the_right[column] { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
                if column + 1 == columns && display_width(cell) > last {
                    let indent = format!("\n{}", " ".repeat(before));
                    line.push_str(&folded(cell, last, 2).trim_end().replace('\n', &indent));
                } else {
                    let _ = write!(line, "{left}{cell}{right}  ");
                }
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

fn display_width(text: &str) -> usize {
    text.chars().count()
}

/// Text in lines of so many columns, broken between words where there are any; what follows a break is indented.
pub fn folded(text: &str, columns: usize, indent: usize) -> String {
    let mut folded = String::new();
    for line in text.lines() {
        let mut used = 0;
        let turn = |folded: &mut String| {
            folded.truncate(folded.trim_end_matches(' ').len());
            folded.push('\n');
            folded.push_str(&" ".repeat(indent));
            indent
        };
        for word in line.split_inclusive(' ') {
            if used > indent && used + display_width(word.trim_end()) > columns {
                used = turn(&mut folded);
            }
            for letter in word.chars() {
                // A word that is longer than a line.
                if used >= columns && letter != ' ' {
                    used = turn(&mut folded);
                }
                folded.push(letter);
                used += 1;
            }
        }
        folded.truncate(folded.trim_end_matches(' ').len());
        folded.push('\n');
    }
    folded
}

/// `1234567` → `1,234,567`.
pub fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut grouped = if number < 0 { String::from("-") } else { String::new() };
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1234567` → `1.2 MB` (powers of 1024, as PostgreSQL's `pg_size_pretty`).
pub fn size(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "kB", "MB"] {
        if value < 1_024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1_024.0;
    }
    format!("{value:.1} GB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let mut table = Table::new(["op", "rows"]);
        table.row(["update", "1,204"]);
        table.row(["délete", "7"]);
        table.row(["x"]);
        assert_eq!(table.to_string(), "  op       rows\n  update  1,204\n  délete      7\n  x\n");
    }

    #[test]
    fn a_last_column_that_does_not_fit_goes_on_below() {
        let mut table = Table::new(["seq", "changes"]);
        table.row(["1", "phone: 5555551212 → 967-160-7974"]);
        table.row(["2", "short"]);
        let folded = "  seq  changes\n    1  phone: 5555551212 →\n         967-160-7974\n    2  short\n";
        assert_eq!(format!("{table:28}"), folded);
        assert!(format!("{table:1}").lines().all(|line| line.chars().count() <= 7 + NARROWEST));
        assert_eq!(format!("{table:99}"), table.to_string());
        let mut plain = Table::plain();
        plain.row(["make demo", "once more"]);
        assert_eq!(plain.to_string(), "  make demo  once more\n");
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        assert_eq!(folded("one two three\n  four\n", 8, 0), "one two\nthree\n  four\n");
        assert_eq!(folded("one two three four", 9, 2), "one two\n  three\n  four\n");
        assert_eq!(folded("abcdefghij kl", 4, 0), "abcd\nefgh\nij\nkl\n");
        assert_eq!(folded("exactly eight", 7, 0), "exactly\neight\n");
        assert_eq!(folded("→ żółw\n\nx", 6, 0), "→ żółw\n\nx\n");
    }

    #[test]
    fn numbers_and_sizes_are_readable() {
        assert_eq!(thousands(8_857_770), "8,857,770");
        assert_eq!((thousands(-1_000), thousands(999), thousands(0)), ("-1,000".into(), "999".into(), "0".into()));
        assert_eq!(size(512.0), "512 B");
        assert_eq!(size(4_274.0 * 1_048_576.0), "4.2 GB");
        assert_eq!(size(1_572_864.0), "1.5 MB");
    }
}
