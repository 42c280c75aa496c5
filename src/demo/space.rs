//! Room on the disk: whether there is enough before anything is started, and whether a lack of it is why something died.

use afterimage_state::free;
use anyhow::{Error, Result, bail};

use super::options::{BrokerChoice, CaptureChoice, DemoOptions};
use super::report::size;
use super::scratch::base_dir;

/// An empty private PostgreSQL with its databases and first log segments.
const POSTGRES: u64 = 80 << 20;
/// A worker's image store and log.
const WORKER: u64 = 16 << 20;
/// A private Kafka, with a group's offsets.
const KAFKA: u64 = 40 << 20;
/// What an event takes on the disk by the end of a run, in the history and the image stores.
const EVENT: u64 = 300;
/// What it takes in a write-ahead log, as long as that grows: then PostgreSQL uses its segments again.
const LOGGED: u64 = 600;
const MOST_LOGGED: u64 = 1 << 30;
/// What it takes in a private Kafka.
const EVENT_IN_KAFKA: u64 = 4_000;
/// A disk with less is full: the next write of a server fails.
const FULL: u64 = 1 << 20;
/// How programs say so.
const WORDS: &str = "No space left on device";

/// What a demo takes where its directories are, in bytes: more than was measured, so that a run that begins can end.
fn needed(options: &DemoOptions) -> u64 {
    let events = options.events();
    let server = POSTGRES + events * EVENT + (events * LOGGED).min(MOST_LOGGED);
    let source = if options.capture == CaptureChoice::Debezium { server } else { 0 };
    let kafka = if options.broker() == BrokerChoice::Kafka { KAFKA + events * EVENT_IN_KAFKA } else { 0 };
    server + source + kafka + u64::from(options.workers) * WORKER
}

/// Fails if there is too little room for this demo. A system that doesn't say how much there is, is believed.
///
/// # Errors
/// With how much is needed, and where.
pub fn check(options: &DemoOptions) -> Result<()> {
    let dir = base_dir();
    let Ok(free) = free(&dir) else { return Ok(()) };
    let needed = needed(options);
    if free >= needed {
        return Ok(());
    }
    let (free, needed) = (size(free as f64), size(needed as f64));
    bail!(
        "{} has {free} left, and this demo needs about {needed} there: free some, or name a larger place that every \
         user can pass through in TMPDIR, or choose fewer --events",
        dir.display()
    )
}

/// Whether there is no room left at all.
pub fn is_full() -> bool {
    free(&base_dir()).is_ok_and(|free| free < FULL)
}

/// Whether a program says in its log that there was none.
pub fn is_told(log: &str) -> bool {
    log.contains(WORDS)
}

/// What went wrong, with a full disk named as the reason where the error or a log says that there was one.
pub fn explained(error: Error, logs: impl FnOnce() -> String) -> Error {
    let told = is_told(&format!("{error:#}")) || is_full() || is_told(&logs());
    if !told {
        return error;
    }
    let place = base_dir();
    error.context(format!(
        "the disk that holds {} is full: free some room, or name a larger place in TMPDIR",
        place.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_larger_demo_needs_more_room_and_servers_need_some() {
        let needed = |events, capture, broker| {
            needed(&DemoOptions { events: Some(events), capture, broker, ..DemoOptions::default() })
        };
        let small = needed(500, CaptureChoice::Simulated, None);
        assert!(small >= POSTGRES && small < needed(60_000, CaptureChoice::Simulated, None));
        assert!(small < needed(500, CaptureChoice::Simulated, Some(BrokerChoice::Kafka)));
        let guest = BrokerChoice::Given("h:9092".to_string());
        assert_eq!(small, needed(500, CaptureChoice::Simulated, Some(guest)), "its messages lie elsewhere");
        assert!(needed(500, CaptureChoice::Debezium, None) > small + POSTGRES);
        let greatest = DemoOptions { events: Some(20_000_000), ..DemoOptions::default() };
        assert!(check(&greatest).is_ok() || check(&greatest).unwrap_err().to_string().contains("TMPDIR"));
    }

    #[test]
    fn a_full_disk_is_named_where_a_log_says_so() {
        let log = |text: &str| text.to_string();
        let told = explained(anyhow!("connection closed"), || log("PANIC: could not write: No space left on device"));
        assert!(format!("{told:#}").starts_with("the disk that holds"), "{told:#}");
        assert!(format!("{told:#}").ends_with("connection closed"), "{told:#}");
        let told = explained(anyhow!("initdb: could not write: No space left on device"), String::new);
        assert!(format!("{told:#}").contains("TMPDIR"), "{told:#}");
        let told = explained(anyhow!("connection closed"), || log("LOG: checkpoint complete"));
        assert_eq!(format!("{told:#}"), "connection closed");
    }

    #[test]
    fn a_place_has_room_and_a_missing_one_says_nothing() {
        assert!(free(&base_dir()).unwrap() > 0);
        assert!(free(Path::new("/does/not/exist")).is_err());
    }
}
