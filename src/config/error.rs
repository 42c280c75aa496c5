//! Why a configuration was refused: every problem at once, each with its place and the next step.

use std::fmt;

/// One thing that is wrong. Holds no secret: values of secret keys are never quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: file and key, environment variable, or flag.
    pub place: String,
    /// What is wrong with it.
    pub reason: String,
    /// What to do about it.
    pub next: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// A refused configuration: one problem or more, in the order they were met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    /// An error of one problem.
    pub fn one(place: impl Into<String>, reason: impl Into<String>, next: impl Into<String>) -> Self {
        Self { problems: vec![Problem { place: place.into(), reason: reason.into(), next: next.into() }] }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
