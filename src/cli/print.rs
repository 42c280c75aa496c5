//! Verbs that only print.

use std::io::Write;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::failure::{Exit, Failure};
use crate::config::{Config, without_passwords};

/// Writes to stdout. A reader that has seen enough (`| head`) is not a failure.
pub(super) fn stdout(text: &str) -> Result<(), Failure> {
    to_reader(text).map(drop)
}

/// Writes to stdout; whether somebody reads it. Whoever would write more can end when nobody does.
pub(super) fn to_reader(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(Exit::Failed, "stdout", error)),
    }
}

/// Writes to stderr, without passwords. Nobody may be reading it: that changes no exit code.
pub(super) fn stderr(text: &str) {
    let _ = std::io::stderr().write_all(without_passwords(text).as_bytes());
}

/// `config show`.
pub(super) fn config(config: &Config, json: bool) -> Result<(), Failure> {
    for warning in &config.warnings {
        eprintln!("afterimage: warning: {warning}");
    }
    if json { stdout(&format!("{:#}\n", config.shown().json())) } else { stdout(&config.shown().toml()) }
}

/// `completions`.
pub(super) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "afterimage", &mut script);
    stdout(&String::from_utf8_lossy(&script))
}
