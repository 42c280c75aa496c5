//! How the program fails: one form of message, and exit codes that scripts can tell apart.
//!
//! ```text
//! afterimage: <what>: <reason>
//!   next: <step>
//! ```

use std::fmt;
use std::process::ExitCode;

use serde_json::json;

use crate::config::ConfigError;
use crate::telemetry::json_line;

/// The exit codes. Supervisors may restart on [`Exit::Failed`]; the others want a person first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done, or stopped in order (SIGTERM included).
    Ok = 0,
    /// 1: something outside failed: broker, database, disk.
    Failed = 1,
    /// 2: wrong usage or configuration.
    Usage = 2,
    /// 3: the sink's schema is missing, too old or too new for this binary: `afterimage migrate`.
    Schema = 3,
    /// 4: stopped on purpose because going on could lose or mix history: a recreated topic, two
    /// deployments on one sink, a flood of dead letters.
    Halted = 4,
    /// 130, as shells say of Ctrl-C: a demo was ended by a signal before it was done.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a verb ended without doing its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// (what failed, why, what to do next); an empty next step is left out.
    pub messages: Vec<(String, String, String)>,
}

impl Failure {
    /// A failure of one message; [`Failure::next`] adds the step.
    pub fn new(exit: Exit, what: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self { exit, messages: vec![(what.into(), reason.to_string(), String::new())] }
    }

    /// From an error of a verb, with its chain of causes.
    pub fn of(what: impl Into<String>, error: &anyhow::Error) -> Self {
        Self::new(Exit::Failed, what, format!("{error:#}"))
    }

    /// Adds what to do next.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        if let Some((_, _, last)) = self.messages.last_mut() {
            *last = next.into();
        }
        self
    }
}

impl Failure {
    /// As lines of a JSON log, one for each message.
    pub fn json(&self) -> String {
        let line = |(what, reason, next): &(String, String, String)| {
            let fields = json!({ "next": next, "exit_code": self.exit as u8 });
            json_line("ERROR", "afterimage", &format!("{what}: {reason}"), &fields) + "\n"
        };
        self.messages.iter().map(line).collect()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let messages = error.problems.into_iter().map(|problem| (problem.place, problem.reason, problem.next));
        Self { exit: Exit::Usage, messages: messages.collect() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, reason, next) in &self.messages {
            writeln!(f, "afterimage: {what}: {reason}")?;
            if !next.is_empty() {
                writeln!(f, "  next: {next}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_next() {
        let failure = Failure::new(Exit::Schema, "schema", "version 3, this binary needs 4").next("afterimage migrate");
        assert_eq!(
            failure.to_string(),
            "afterimage: schema: version 3, this binary needs 4\n  next: afterimage migrate\n"
        );
        let error = anyhow::anyhow!("connection refused").context("cannot reach the sink");
        assert_eq!(
            Failure::of("run", &error).to_string(),
            "afterimage: run: cannot reach the sink: connection refused\n"
        );
    }
}
