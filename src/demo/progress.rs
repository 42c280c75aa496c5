//! What the demo shows while it works: a line that moves on a terminal, and now and then a quiet line elsewhere. All of
//! it goes to stderr; stdout is for the result.

use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::rate::Rate;
use super::report::thousands;

/// Between two lines where nothing moves.
const QUIET: Duration = Duration::from_secs(5);

/// Where the work stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Row events made so far.
    pub made: u64,
    /// Messages made so far, tombstones and repetitions included.
    pub messages: i64,
    /// Of these, committed to the history's database.
    pub committed: i64,
    /// Of these, versions.
    pub deltas: i64,
    /// Of these, without any effect.
    pub noops: i64,
}

impl Figures {
    /// Messages that are not in the history yet.
    pub fn lag(&self) -> i64 {
        self.messages - self.committed
    }
}

/// The line.
pub struct Progress {
    bar: ProgressBar,
    moves: bool,
    rate: Rate,
    events: u64,
    told: Instant,
}

impl Progress {
    /// Begins with nothing to show.
    pub fn new() -> Self {
        let moves = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            None,
            if moves { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        )
        .with_style(ProgressStyle::default_spinner());
        if moves {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Progress { bar, moves, rate: Rate::default(), events: 0, told: Instant::now() }
    }

    /// What is being done now.
    pub fn phase(&self, what: &str) {
        self.bar.set_message(what.to_string());
        if !self.moves {
            say(&format!("afterimage: {what}"));
        }
    }

    /// Something that happened, which stays to be read.
    pub fn say(&self, what: &str) {
        self.bar.suspend(|| say(&format!("afterimage: {what}")));
    }

    /// So many row events are to come.
    pub fn begin(&mut self, events: u64) {
        self.events = events;
        self.told = Instant::now();
        self.bar.set_length(events);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:20} {wide_msg}") {
            self.bar.set_style(style);
        }
        self.bar.set_message("");
    }

    /// Shows where the work stands at this moment.
    pub fn show(&mut self, now: Instant, figures: &Figures) {
        self.rate.saw(now, figures.committed);
        self.bar.set_position(figures.made);
        let rest = rest(figures, self.rate.per_second());
        // The bar says how much is to come; the whole fits 100 columns, and is cut where there are fewer.
        self.bar.set_message(format!("{} events, {rest}", thousands(figures.made as i64)));
        if !self.moves && now.duration_since(self.told) >= QUIET {
            self.told = now;
            let (made, events) = (thousands(figures.made as i64), thousands(self.events as i64));
            say(&format!("afterimage: {made} of {events} events, {rest}"));
        }
    }

    /// Takes the line away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// A line on stderr. Nobody may be listening any more (`2>&1 | head`): that is no reason to end.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The rate is that of the last seconds, in messages committed: what the workers do now.
fn rest(figures: &Figures, rate: f64) -> String {
    format!(
        "{} messages/s, {} deltas, {} no-ops, lag {}",
        thousands(rate as i64),
        thousands(figures.deltas),
        thousands(figures.noops),
        thousands(figures.lag())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_kept_dropped_and_waiting() {
        let figures = Figures { made: 24_000, messages: 26_000, committed: 21_500, deltas: 5_210, noops: 15_900 };
        assert_eq!(rest(&figures, 6_200.7), "6,200 messages/s, 5,210 deltas, 15,900 no-ops, lag 4,500");
    }
}
