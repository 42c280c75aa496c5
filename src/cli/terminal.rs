//! The terminal that stdout may be: its size, and a picture on it that is drawn again and again.

use std::io::IsTerminal;

use super::failure::Failure;
use super::print;

/// Columns of a line where nothing says another number.
const WIDTH: usize = 100;
/// Narrower than this, nothing can be read.
const NARROWEST: usize = 20;
/// Lines of which at least so many are shown.
const LOWEST: usize = 4;

/// Columns to print for: `$COLUMNS`, as other programs take it, else those of the terminal, else 100.
pub(super) fn width() -> usize {
    let given = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    given.or_else(|| size().map(|(columns, _)| columns)).unwrap_or(WIDTH).max(NARROWEST)
}

/// Columns and lines of the terminal that stdout is.
#[allow(unsafe_code)] // ioctl(2) is unsafe by type.
fn size() -> Option<(usize, usize)> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize`, and the pointer is to one that lives until the call is over.
    let answer = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    // A terminal that was never told its size says 0.
    (answer == 0 && size.ws_col > 0 && size.ws_row > 0).then(|| (size.ws_col.into(), size.ws_row.into()))
}

/// A picture that takes the place of the one before.
pub(super) struct Screen {
    begun: bool,
}

impl Screen {
    /// `None` if stdout is no terminal: there, what is written stays.
    pub(super) fn of_stdout() -> Option<Screen> {
        std::io::stdout().is_terminal().then_some(Screen { begun: false })
    }

    /// Draws the text, of which the last `tail` lines are never left out; whether somebody still looks.
    pub(super) fn draw(&mut self, text: &str, tail: usize) -> Result<bool, Failure> {
        // A terminal that does not say how many lines it has is taken for a long one.
        let lines = size().map_or(usize::MAX, |(_, lines)| lines);
        let mut out = String::new();
        if !self.begun {
            self.begun = true;
            // What stood there moves up, out of the way, and can still be looked at.
            out.push_str(&"\n".repeat(if lines == usize::MAX { 0 } else { lines }));
        }
        out.push_str("\x1b[H");
        // Each line over its predecessor, then the rest is cleared: nothing flickers. The last line of the screen stays
        // empty for the cursor.
        for line in fit(text, tail, width(), lines.saturating_sub(1)) {
            out.push_str(&line);
            out.push_str("\x1b[K\n");
        }
        out.push_str("\x1b[J");
        print::to_reader(&out)
    }
}

/// The text in so many columns and lines: lines are cut, and in the middle some are left out.
fn fit(text: &str, tail: usize, columns: usize, lines: usize) -> Vec<String> {
    let mut all: Vec<String> = text.lines().map(|line| cut(line, columns)).collect();
    let lines = lines.max(LOWEST);
    if all.len() > lines {
        let tail = tail.min(lines - 1);
        let left_out = all.len() - lines + 1;
        let head = lines - 1 - tail;
        all.splice(head..head + left_out, [cut(&format!("… {left_out} more lines"), columns)]);
    }
    all
}

fn cut(line: &str, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line.to_owned();
    }
    line.chars().take(columns - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_keeps_its_end_and_says_what_it_leaves_out() {
        let text: String = (1..=9).map(|n| format!("line {n}\n")).collect();
        assert_eq!(fit(&text, 2, 80, 9).len(), 9);
        assert_eq!(fit(&text, 2, 80, 5), ["line 1", "line 2", "… 5 more lines", "line 8", "line 9"]);
        assert_eq!(fit(&text, 20, 80, 5), ["… 5 more lines", "line 6", "line 7", "line 8", "line 9"]);
        assert_eq!(fit(&text, 1, 5, 0), ["line…", "line…", "… 6 …", "line…"]);
        assert_eq!(fit("żółw\n", 1, 4, 5), ["żółw"]);
    }
}
