//! What the demo shows while it works: one line on a terminal, nothing elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::backlog::Backlog;

/// The line.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A line on stderr if that is a terminal.
    pub fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar }
    }

    /// What is being done now.
    pub fn phase(&self, what: &'static str) {
        self.bar.set_message(what);
    }

    /// So many events are to come.
    pub fn begin(&self, events: u64) {
        self.bar.set_length(events);
        let template = "{spinner} {bar:32} {pos}/{len} events, {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message("");
    }

    /// So many events are produced.
    pub fn show(&self, events: u64, backlog: &Backlog) {
        self.bar.set_position(events);
        self.waiting(backlog);
    }

    /// How much has not been committed yet.
    pub fn waiting(&self, backlog: &Backlog) {
        let waiting = backlog.total_produced() - backlog.total_committed();
        self.bar.set_message(format!("{waiting} messages waiting for a commit"));
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
