//! Every metric, declared once, in dataflow order: name, kind, labels, unit, help.
//!
//! Use a name through its constant (`metrics::counter!(names::MESSAGES_CONSUMED, "topic" => t)`; the module
//! is not called `metrics` so that the crate of that name keeps it), and emit once per batch, not once per event. Labels are topics, partitions, reasons and the like: never a
//! record's key or value.

use metrics::Unit;

use crate::core::decode::Reason;

/// How a metric is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counted into these upper bounds (`+Inf` is added).
    Histogram(&'static [f64]),
}

/// A declared metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name, starting with `afterimage_`.
    pub name: &'static str,
    /// Its form.
    pub form: Form,
    /// The labels that it carries, all of them, always.
    pub labels: &'static [&'static str],
    /// What one of it is.
    pub unit: Unit,
    /// What it says, and what to think of it.
    pub help: &'static str,
}

/// Bounds for durations in seconds: half a millisecond to half a minute.
pub const SECONDS: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Bounds for counts within a batch.
pub const COUNTS: &[f64] =
    &[1.0, 10.0, 100.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0, 100_000.0];

macro_rules! declare {
    ($($constant:ident = $name:literal, $form:expr, [$($label:literal),*], $unit:ident, $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*
        /// All of them, in dataflow order.
        pub const ALL: &[Metric] = &[
            $(Metric { name: $name, form: $form, labels: &[$($label),*], unit: Unit::$unit, help: $help },)*
        ];
    };
}

declare! {
    BUILD_INFO = "afterimage_build_info", Form::Gauge, ["version"], Count,
        "Always 1; the version is in the label.";

    // kafka: messages in
    MESSAGES_CONSUMED = "afterimage_messages_consumed_total", Form::Counter, ["topic", "partition"], Count,
        "Messages taken from Kafka, repeats after a rewind included.";
    BYTES_CONSUMED = "afterimage_consumed_bytes_total", Form::Counter, ["topic"], Bytes,
        "Bytes of keys and values of the messages taken from Kafka.";
    REBALANCES = "afterimage_rebalances_total", Form::Counter, ["kind"], Count,
        "Group rebalances that touched this worker; kind: assigned, revoked, lost.";
    UNMAPPED_TOPICS = "afterimage_unmapped_topics", Form::Gauge, [], Count,
        "Table topics of a connector that is read, which belong to no org and are ignored. Should be 0.";
    TASKS = "afterimage_task_state", Form::Gauge, ["state"], Count,
        "Partitions of this worker by state: created (not claimed yet), restoring (the image store catches up), running, waiting (for slower workers on the topic), closed (resting after another worker's claim), halted (a person has to look). halted should be 0.";

    // decode
    EVENTS_DECODED = "afterimage_events_decoded_total", Form::Counter, ["topic", "op"], Count,
        "Events decoded; op: create, update, delete, read.";
    DEAD_LETTERS = "afterimage_dead_letters_total", Form::Counter, ["topic", "reason"], Count,
        "Messages that could not be decoded and were kept as dead letters. Should be 0.";

    // image lookup
    IMAGE_LOOKUPS = "afterimage_image_lookups_total", Form::Counter, ["result"], Count,
        "Where the image of a record was found; result: store, postgres, new, key.";
    READ_THROUGH_SECONDS = "afterimage_read_through_duration_seconds", Form::Histogram(SECONDS), [], Seconds,
        "Time of one batched image lookup in Postgres.";
    STATE_SECONDS = "afterimage_state_operation_duration_seconds", Form::Histogram(SECONDS), ["operation"], Seconds,
        "Time of one batched operation of the image store; operation: get, put.";
    STATE_INVALIDATED = "afterimage_state_invalidated_records_total", Form::Counter, ["reason"], Count,
        "Images dropped from the store; reason: catch_up.";
    STATE_CLEARED = "afterimage_state_cleared_total", Form::Counter, ["reason"], Count,
        "Partitions whose images were dropped whole; reason: damaged (the whole store, once), other_sink, unknown_claim, ahead, invalidations_ahead, too_far_behind, log_gone, invalidations_gone.";
    STATE_DISK_FULL = "afterimage_state_disk_full", Form::Gauge, [], Count,
        "1 while the worker holds no partition because the disk under its image store is full. Should be 0.";

    RESTORED = "afterimage_restore_records_total", Form::Counter, ["topic"], Count,
        "Records read back from Postgres into an image store that was lost or is new, beside the stream.";
    RESTORE_LEFT = "afterimage_restore_remaining_records", Form::Gauge, ["topic"], Count,
        "At most so many records the image store of this worker still lacks; until it is 0, what it lacks is looked up in Postgres.";
    RESTORE_SECONDS_LEFT = "afterimage_restore_remaining_seconds", Form::Gauge, ["topic"], Seconds,
        "When the image store will be whole, at the rate so far; NaN until there is one, 0 when it is whole or was given up (see the log).";

    // delta
    OUTCOMES = "afterimage_outcomes_total", Form::Counter, ["topic", "outcome"], Count,
        "What became of every event, exactly one outcome each (the view afterimage.outcomes has the durable counts).";
    NOOPS_DROPPED = "afterimage_noops_dropped_total", Form::Counter, ["reason"], Count,
        "Events that changed nothing visible; reason: identical, status, system.";
    STALE_EVENTS = "afterimage_stale_events_total", Form::Counter, ["topic"], Count,
        "Events read after a newer one of their record and kept as late events.";
    LSN_REGRESSED = "afterimage_lsn_regressed_total", Form::Counter, ["topic"], Count,
        "Events with a lower LSN but a later time than their record's last: the source database was replaced.";
    LATE_PLACED = "afterimage_late_events_placed_total", Form::Counter, ["topic", "outcome"], Count,
        "Late events put in their place in the history; outcome: version (history has one of it), no-op (it changes nothing there), kept (it can't be placed; should be 0).";
    LEFT_BEHIND = "afterimage_partitions_left_behind_total", Form::Counter, ["topic"], Count,
        "Partitions that had more to read but were not waited for any longer: one that did not deliver while partitions were merged by source time, or one of another worker that committed nothing for a minute.";
    TAKE_OVERS = "afterimage_take_overs_total", Form::Counter, ["topic"], Count,
        "Records whose home moved. A rate that stays high means two live topics for one table.";

    // batch
    BATCH_EVENTS = "afterimage_batch_events", Form::Histogram(COUNTS), [], Count,
        "Events of one sealed batch.";
    BATCH_ROWS = "afterimage_batch_rows", Form::Histogram(COUNTS), [], Count,
        "Rows that one sealed batch writes.";

    // commit
    DELTAS_WRITTEN = "afterimage_deltas_written_total", Form::Counter, ["op"], Count,
        "Versions committed; op: baseline, create, update, backfill, delete, undelete.";
    COMMITS = "afterimage_commits_total", Form::Counter, ["result"], Count,
        "Commits by result: committed, fenced, rewound, again, unknown, refused.";
    COMMIT_SECONDS = "afterimage_commit_duration_seconds", Form::Histogram(SECONDS), ["step"], Seconds,
        "Time of a commit; step: whole.";
    FENCED_COMMITS = "afterimage_fenced_commits_total", Form::Counter, [], Count,
        "Commits refused because another worker claimed the partition. It rises with rebalances only.";
    REWINDS = "afterimage_rewinds_total", Form::Counter, ["reason"], Count,
        "Partitions read again from their committed position; reason: error (a commit failed or was undone), claimed (claimed again).";
    CLAIMS = "afterimage_claims_total", Form::Counter, ["result"], Count,
        "Claims of partitions; result: claimed, refused, timed_out.";
    GAPS = "afterimage_gaps_total", Form::Counter, ["topic"], Count,
        "Ranges that Kafka had dropped before they were read: history is missing. Should be 0.";
    POSITION = "afterimage_position", Form::Gauge, ["topic", "partition"], Count,
        "The committed position: the next offset to read.";
    LAG = "afterimage_lag_messages", Form::Gauge, ["topic", "partition"], Count,
        "Messages between the committed position and the partition's end.";
    EVENT_TO_COMMIT = "afterimage_event_to_commit_seconds", Form::Histogram(SECONDS), [], Seconds,
        "Time from the source's commit of a batch's last event to its own commit here (the clocks of two machines).";
    OLDEST_SNAPSHOT = "afterimage_oldest_snapshot_seconds", Form::Gauge, [], Seconds,
        "Age of the oldest snapshot in the sink, as far as the worker's role sees others' sessions; asked every 2 s. A long one makes every commit slower until it ends.";
}

/// Counters with one label of a closed set: (counter, label, its values). They stand at zero from the start.
pub const CLOSED: &[(&str, &str, &[&str])] = &[
    (REBALANCES, "kind", &["assigned", "revoked", "lost"]),
    (STATE_INVALIDATED, "reason", &["catch_up"]),
    (
        STATE_CLEARED,
        "reason",
        &[
            "other_sink",
            "unknown_claim",
            "ahead",
            "invalidations_ahead",
            "too_far_behind",
            "log_gone",
            "invalidations_gone",
        ],
    ),
    (COMMITS, "result", &["committed", "fenced", "rewound", "again", "unknown", "refused"]),
    (REWINDS, "reason", &["error", "claimed"]),
    (CLAIMS, "result", &["claimed", "refused", "timed_out"]),
];

/// Why messages become dead letters: the texts of the decoder.
const DEAD: &[Reason] = &[
    Reason::Empty,
    Reason::NotUtf8,
    Reason::NotJson,
    Reason::NotAnEnvelope,
    Reason::UnknownOp,
    Reason::BadSource,
    Reason::BadRow,
    Reason::BadSchema,
    Reason::BadValue,
    Reason::NoKey,
    Reason::BadKey,
    Reason::BadSfid,
    Reason::NoIdentity,
    Reason::TooManyColumns,
    Reason::WrongMessage,
];

/// Lets the counters of a topic that say what should not happen, or seldom, stand at zero: the first increase of a series
/// that was not there before is none to `increase()`.
pub fn show_zeros(topic: &str) {
    for name in [LSN_REGRESSED, LEFT_BEHIND, GAPS, STALE_EVENTS, TAKE_OVERS] {
        metrics::counter!(name, "topic" => topic.to_owned()).increment(0);
    }
    for reason in DEAD {
        metrics::counter!(DEAD_LETTERS, "topic" => topic.to_owned(), "reason" => reason.as_str()).increment(0);
    }
}

/// Tells the installed recorder the unit and help of every metric. Once, after installing it.
pub fn describe() {
    for metric in ALL {
        match metric.form {
            Form::Counter => metrics::describe_counter!(metric.name, metric.unit, metric.help),
            Form::Gauge => metrics::describe_gauge!(metric.name, metric.unit, metric.help),
            Form::Histogram(_) => metrics::describe_histogram!(metric.name, metric.unit, metric.help),
        }
    }
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    // Without labels a series can stand at zero from the start, so that its first increase is a rate.
    for metric in ALL.iter().filter(|metric| metric.labels.is_empty()) {
        match metric.form {
            Form::Counter => metrics::counter!(metric.name).absolute(0),
            Form::Gauge => metrics::gauge!(metric.name).set(0.0),
            Form::Histogram(_) => {}
        }
    }
    for (name, label, values) in CLOSED {
        for value in *values {
            metrics::counter!(*name, *label => *value).increment(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules_and_are_declared_once() {
        for (i, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            assert!(name.starts_with("afterimage_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
            assert_eq!(name.ends_with("_total"), metric.form == Form::Counter, "{name}");
            assert!(!ALL[..i].iter().any(|other| other.name == name), "{name} is declared twice");
            assert!(metric.help.len() > 15 && metric.help.ends_with('.') | metric.help.ends_with(')'), "{name}");
            if let Form::Histogram(bounds) = metric.form {
                assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
                assert_eq!(metric.unit == Unit::Seconds, name.ends_with("_seconds"), "{name}");
            }
            for label in metric.labels {
                assert!(!["sfid", "key", "record", "value", "field"].contains(label), "{name} has the label {label}");
            }
        }
    }

    #[test]
    fn every_value_of_a_closed_label_is_named_in_its_help() {
        for (name, label, values) in CLOSED {
            let metric = ALL.iter().find(|metric| metric.name == *name).expect("declared");
            assert_eq!(metric.labels, [*label], "{name}");
            for value in *values {
                assert!(metric.help.contains(value), "{name}: {value} is not in its help");
            }
        }
    }

    #[test]
    fn every_reason_of_a_dead_letter_is_shown() {
        // Whoever adds a reason is asked for it here, and then below.
        let known = |reason: Reason| match reason {
            Reason::Empty | Reason::NotUtf8 | Reason::NotJson | Reason::NotAnEnvelope | Reason::UnknownOp => 5,
            Reason::BadSource | Reason::BadRow | Reason::BadSchema | Reason::BadValue | Reason::NoKey => 5,
            Reason::BadKey | Reason::BadSfid | Reason::NoIdentity | Reason::TooManyColumns | Reason::WrongMessage => 5,
        };
        assert_eq!(known(Reason::Empty) * 3, DEAD.len());
        let texts: std::collections::BTreeSet<&str> = DEAD.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(texts.len(), DEAD.len());
    }

    #[test]
    fn the_readme_of_grafana_names_every_metric_and_no_other() {
        let page = include_str!("../../grafana/README.md");
        let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let said: std::collections::BTreeSet<&str> =
            page.split(|c| !part(c)).filter(|word| word.starts_with("afterimage_")).collect();
        let declared: std::collections::BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(said, declared);
    }
}
