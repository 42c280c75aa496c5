//! Metrics of a batch, counted once per batch.

use std::collections::BTreeMap;

use metrics::counter;

use crate::core::batch::SealedBatch;
use crate::core::format::VersionOp;
use crate::core::position::{Counter, Counters};
use crate::kafka::Message;
use crate::telemetry::names;

/// Counts the versions of a committed batch by op, its dead letters, the records it took over, and events whose LSN fell.
pub(super) fn count_versions(topic: &str, batch: &SealedBatch) {
    let mut by_op: BTreeMap<&'static str, u64> = BTreeMap::new();
    let first = batch.keyframes.iter().chain(&batch.keyframes_after).filter(|row| row.kf == 0);
    for row in batch.deltas.iter().chain(&batch.deltas_after).chain(first) {
        if let Some(op) = row.d.first().and_then(|byte| VersionOp::from_number(byte & 7)) {
            *by_op.entry(op.as_str()).or_default() += 1;
        }
    }
    for (op, count) in by_op {
        counter!(names::DELTAS_WRITTEN, "op" => op).increment(count);
    }
    if batch.regressed > 0 {
        counter!(names::LSN_REGRESSED, "topic" => topic.to_string()).increment(batch.regressed);
    }
    let mut dead: BTreeMap<&str, u64> = BTreeMap::new();
    for letter in &batch.dead {
        *dead.entry(&letter.reason).or_default() += 1;
    }
    for (reason, count) in dead {
        counter!(names::DEAD_LETTERS, "topic" => topic.to_string(), "reason" => reason.to_string()).increment(count);
    }
    let taken = batch.registry.iter().filter(|change| change.taken_from.is_some()).count();
    if taken > 0 {
        counter!(names::TAKE_OVERS, "topic" => topic.to_string()).increment(taken as u64);
    }
}

/// Counts messages as they come in.
pub(super) fn count_messages(topic: &str, messages: &[Message]) {
    if messages.is_empty() {
        return;
    }
    let mut by_partition: BTreeMap<i32, u64> = BTreeMap::new();
    let mut bytes = 0;
    for message in messages {
        *by_partition.entry(message.partition).or_default() += 1;
        bytes += message.key().map_or(0, <[u8]>::len) + message.payload().map_or(0, <[u8]>::len);
    }
    for (partition, count) in by_partition {
        counter!(names::MESSAGES_CONSUMED, "topic" => topic.to_string(), "partition" => partition.to_string())
            .increment(count);
    }
    counter!(names::BYTES_CONSUMED, "topic" => topic.to_string()).increment(bytes as u64);
}

/// Counts what became of a committed range.
pub(super) fn count_outcomes(topic: &str, counters: &Counters) {
    let noops = counters.get(Counter::Noop) + counters.get(Counter::NoopStatus) + counters.get(Counter::NoopSystem);
    if noops > 0 {
        counter!(names::OUTCOMES, "topic" => topic.to_string(), "outcome" => "noop").increment(noops as u64);
    }
    let stale = counters.get(Counter::Stale);
    if stale > 0 {
        counter!(names::STALE_EVENTS, "topic" => topic.to_string()).increment(stale as u64);
    }
    for (outcome, which) in [
        ("delta", Counter::Delta),
        ("baseline", Counter::Baseline),
        ("duplicate", Counter::Duplicate),
        ("stale", Counter::Stale),
        ("tombstone", Counter::Tombstone),
        ("ignored", Counter::Ignored),
        ("pending", Counter::Pending),
        ("dead_letter", Counter::Dead),
        ("delete_unknown", Counter::DeleteUnknown),
        ("hole", Counter::Hole),
    ] {
        let n = counters.get(which);
        if n > 0 {
            counter!(names::OUTCOMES, "topic" => topic.to_string(), "outcome" => outcome).increment(n as u64);
        }
    }
    for (reason, which) in
        [("identical", Counter::Noop), ("status", Counter::NoopStatus), ("system", Counter::NoopSystem)]
    {
        let n = counters.get(which);
        if n > 0 {
            counter!(names::NOOPS_DROPPED, "reason" => reason).increment(n as u64);
        }
    }
}
