//! What a person may do to a partition's position, and when it would do harm. Facts in, an answer or a refusal out.

use std::fmt;

/// Who holds a partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holder {
    /// Worker of the newest claim.
    pub worker: Option<String>,
    /// It has a session in the sink.
    pub seen: bool,
    /// The partition is halted: whoever claimed it last does not read it.
    pub halted: bool,
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A worker that lives holds the partition.
    Held(String),
    /// The offset lies before the position.
    Backwards {
        /// The position.
        next: i64,
    },
    /// The offset lies behind the end of the log.
    BeyondEnd {
        /// The end.
        end: i64,
    },
    /// The log ends before the position: there is nothing to go on with.
    ShortLog {
        /// The end.
        end: i64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Held(worker) => write!(f, "worker {worker} holds it and has a session in the sink"),
            Refusal::Backwards { next } => write!(f, "it lies before the position, which is {next}"),
            Refusal::BeyondEnd { end } => write!(f, "the log ends at {end}"),
            Refusal::ShortLog { end } => {
                write!(f, "the log ends at {end}, before the position: there is nothing to go on with")
            }
        }
    }
}

impl Refusal {
    /// What to do instead.
    pub fn next(&self, topic: &str, partition: i32) -> String {
        match self {
            Refusal::Held(_) => "stop that worker first, or wait until its sessions have ended".to_owned(),
            Refusal::Backwards { .. } => {
                format!(
                    "`afterimage offsets reset {topic} --partition {partition} --to … --dry-run` says what that would mean"
                )
            }
            Refusal::BeyondEnd { .. } => "name an offset up to the end".to_owned(),
            Refusal::ShortLog { .. } => {
                format!("`afterimage offsets adopt {topic} --partition {partition}`, or put the old log back")
            }
        }
    }
}

/// Whether the position may be changed by hand. A worker that comes meanwhile is fenced off; this only keeps a person from
/// pulling a partition away under one that is at work.
///
/// # Errors
/// [`Refusal::Held`].
pub fn may_change(holder: &Holder) -> Result<(), Refusal> {
    match &holder.worker {
        Some(worker) if holder.seen && !holder.halted => Err(Refusal::Held(worker.clone())),
        _ => Ok(()),
    }
}

/// Whether reading may go on at `to`: how many offsets are left out.
///
/// # Errors
/// When that would not be forwards, or beyond what the log has.
pub fn skipped(next: i64, to: i64, end: i64) -> Result<i64, Refusal> {
    if next > end {
        Err(Refusal::ShortLog { end })
    } else if to < next {
        Err(Refusal::Backwards { next })
    } else if to > end {
        Err(Refusal::BeyondEnd { end })
    } else {
        Ok(to - next)
    }
}

/// What going back would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reset {
    /// Where reading would begin: the log may begin later than was asked for.
    pub from: i64,
    /// Offsets that would be read again.
    pub again: i64,
}

/// What going back to `to` (`None` = the earliest message) would read again.
///
/// # Errors
/// [`Refusal::ShortLog`]; [`Refusal::BeyondEnd`] where it would not be backwards.
pub fn reset(next: i64, to: Option<i64>, earliest: i64, end: i64) -> Result<Reset, Refusal> {
    if next > end {
        return Err(Refusal::ShortLog { end });
    }
    let from = to.unwrap_or(earliest).max(earliest);
    if from > next {
        return Err(Refusal::BeyondEnd { end: next });
    }
    Ok(Reset { from, again: next - from })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_that_lives_and_reads_holds_a_partition() {
        let holder = |seen, halted| Holder { worker: Some("one".into()), seen, halted };
        assert_eq!(may_change(&holder(true, false)), Err(Refusal::Held("one".into())));
        assert_eq!(may_change(&holder(false, false)), Ok(()), "it is gone");
        assert_eq!(may_change(&holder(true, true)), Ok(()), "it does not read");
        assert_eq!(may_change(&Holder { worker: None, seen: true, halted: false }), Ok(()), "never claimed");
    }

    #[test]
    fn a_skip_goes_forwards_within_the_log() {
        assert_eq!(skipped(10, 14, 20), Ok(4));
        assert_eq!((skipped(10, 10, 20), skipped(10, 20, 20)), (Ok(0), Ok(10)), "both ends count");
        assert_eq!(skipped(10, 9, 20), Err(Refusal::Backwards { next: 10 }));
        assert_eq!(skipped(10, 21, 20), Err(Refusal::BeyondEnd { end: 20 }));
        assert_eq!(skipped(10, 10, 5), Err(Refusal::ShortLog { end: 5 }));
    }

    #[test]
    fn a_reset_reads_what_the_log_still_has() {
        assert_eq!(reset(10, Some(4), 0, 20), Ok(Reset { from: 4, again: 6 }));
        assert_eq!(reset(10, Some(4), 7, 20), Ok(Reset { from: 7, again: 3 }));
        assert_eq!(reset(10, None, 2, 20), Ok(Reset { from: 2, again: 8 }));
        assert_eq!(reset(10, Some(11), 0, 20), Err(Refusal::BeyondEnd { end: 10 }));
        assert_eq!(reset(10, None, 0, 5), Err(Refusal::ShortLog { end: 5 }));
    }

    #[test]
    fn every_refusal_names_a_next_step() {
        for refusal in [
            Refusal::Held("one".into()),
            Refusal::Backwards { next: 1 },
            Refusal::BeyondEnd { end: 1 },
            Refusal::ShortLog { end: 1 },
        ] {
            assert!(!refusal.to_string().is_empty() && refusal.next("t", 0).len() > 10, "{refusal:?}");
        }
    }
}
