//! Whether a row says anything new, and what a re-insert makes of the delete before it (protocol D11, D17).

use super::{Arrival, Judge};
use crate::core::batch::Cancel;
use crate::core::event::{FieldNo, Micros, Op};
use crate::core::format::VersionOp;
use crate::core::position::Counter;
use crate::core::record::{CHAIN, key_hash};
use crate::core::value::{Value, ValueRef};

/// How the fields of an event differ from the image.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Edits.
    update: Vec<(FieldNo, Value)>,
    /// Keys the image lacks, filled by a mapping change rather than by an edit.
    backfill: Vec<(FieldNo, Value)>,
    /// Unknown texts that came to light.
    learned: Vec<(FieldNo, Value)>,
    /// Empty fields that the image lacks, shown so for the first time. They change nothing.
    empty: Vec<FieldNo>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.update.is_empty() && self.backfill.is_empty() && self.learned.is_empty()
    }
}

impl Judge<'_> {
    pub(super) fn content(&mut self, arrival: &Arrival<'_>, identity: &str) -> Counter {
        let difference = self.difference(arrival, identity);
        if self.record(identity).is_deleted() {
            return self.content_of_deleted(arrival, identity, difference);
        }
        if let Some(unshown) = self.record(identity).unshown.seen(&arrival.fields, &difference.empty) {
            self.record_mut(identity).unshown = unshown;
            self.changed(identity);
            self.anchor_for_what_it_shows(arrival, identity);
        }
        if difference.is_empty() {
            let reason = self.noop_reason(arrival, identity);
            // Not stored, for a no-op changes nothing; but a delete may follow soon (see `note_last_seen`).
            self.remember_hashes(arrival, identity);
            return reason;
        }
        self.write_difference(arrival, identity, difference);
        self.remember_hashes(arrival, identity);
        Counter::Delta
    }

    /// A backfill stands before an edit of the same event; what came to light stands with the edit, or with
    /// the backfill if there is no edit.
    pub(super) fn write_difference(&mut self, arrival: &Arrival<'_>, identity: &str, difference: Difference) {
        let Difference { mut update, mut backfill, learned, .. } = difference;
        if update.is_empty() { &mut backfill } else { &mut update }.extend(learned);
        for (op, mut fields) in [(VersionOp::Backfill, backfill), (VersionOp::Update, update)] {
            if !fields.is_empty() {
                fields.sort_by_key(|(no, _)| *no);
                self.write(arrival, identity, op, arrival.time(), arrival.travel(), fields);
            }
        }
    }

    pub(super) fn content_of_deleted(
        &mut self,
        arrival: &Arrival<'_>,
        identity: &str,
        difference: Difference,
    ) -> Counter {
        if self.cancels_delete(arrival, identity, &difference) {
            self.cancel_delete(arrival, identity);
            if difference.is_empty() {
                return self.noop_reason(arrival, identity);
            }
            self.write_difference(arrival, identity, difference);
        } else {
            let Difference { mut update, backfill, learned, .. } = difference;
            update.extend(backfill);
            update.extend(learned);
            update.sort_by_key(|(no, _)| *no);
            self.write(arrival, identity, VersionOp::Undelete, arrival.time(), arrival.travel(), update);
        }
        self.remember_hashes(arrival, identity);
        Counter::Delta
    }

    /// Whether this insert says that the delete before it was a reload's (protocol D11).
    pub(super) fn cancels_delete(&self, arrival: &Arrival<'_>, identity: &str, difference: &Difference) -> bool {
        let record = self.record(identity);
        let Some(delete) = record.head.as_ref() else { return false };
        if arrival.event.op != Op::Create || !difference.update.is_empty() || record.before_delete.is_none() {
            return false;
        }
        let deleted_at = delete.raw_at.unwrap_or(delete.at);
        if arrival.time().saturating_sub(deleted_at) > self.object.grace {
            return false;
        }
        match arrival.event.row.stamp {
            None => true,
            Some(stamp) if stamp == record.stamp => true,
            Some(None) => false,
            // No-ops do not move the known stamp, so a touched row comes back with a newer one; but an undelete in
            // Salesforce raises it above the delete. A stamp can lie ahead of its own commit, so a row that was
            // touched right before a reload is not older than the delete: it is known by all its system columns being
            // those of its last event, if this process saw that (see `note_last_seen`).
            Some(Some(stamp)) => {
                stamp < cut_like(deleted_at, stamp) || arrival.event.row.system_hash == record.system_hash
            }
        }
    }

    pub(super) fn cancel_delete(&mut self, arrival: &Arrival<'_>, identity: &str) {
        let record = self.record_mut(identity);
        let rid = record.rid;
        let Some(before) = record.before_delete.take() else { return };
        let Some(delete) = record.head.replace(before) else { return };
        record.deleted_key = None;
        let n = delete.seq % CHAIN;
        let cancel = Cancel { rid, kf: (delete.seq / CHAIN) as i32, n: n as u8, at: delete.at, with_keyframe: n == 0 };
        self.batch.cancel(delete.seq, cancel);
        self.batch.count(arrival.position_id, Counter::RowsCancelled, 1);
        self.changed(identity);
    }

    pub(super) fn difference(&self, arrival: &Arrival<'_>, identity: &str) -> Difference {
        let record = self.record(identity);
        let deleted = record.is_deleted();
        let mut difference = Difference::default();
        for (no, new) in &arrival.fields {
            let kind = match (record.image.get(*no), new.view()) {
                (_, ValueRef::Unknown) => continue,
                (None, ValueRef::Null) => {
                    if !record.unshown.knows_empty(*no) {
                        difference.empty.push(*no);
                    }
                    continue;
                }
                (None, _) if self.is_backfill(arrival, *no) => &mut difference.backfill,
                (None, _) => &mut difference.update,
                (Some(ValueRef::Unknown), _) if deleted || arrival.event.op != Op::Update => &mut difference.learned,
                (Some(old), new) if self.equal(*no, old, new) => continue,
                (Some(_), _) => &mut difference.update,
            };
            kind.push((*no, new.clone()));
        }
        difference
    }

    /// A key the image lacks got a value: by a mapping change (the row's last edit in Salesforce is older than
    /// the field's first appearance), or by an edit.
    pub(super) fn is_backfill(&self, arrival: &Arrival<'_>, no: FieldNo) -> bool {
        let row = &arrival.event.row;
        match row.stamp {
            None => true,
            Some(_) if row.local => false,
            Some(None) => false,
            Some(Some(stamp)) => {
                self.object.fields.get(&no).and_then(|fact| fact.first_seen).is_some_and(|seen| stamp <= seen)
            }
        }
    }

    pub(super) fn equal(&self, no: FieldNo, old: ValueRef<'_>, new: ValueRef<'_>) -> bool {
        match (old, new) {
            (ValueRef::Text(old), ValueRef::Text(new)) => old == new || self.object.kind(no).equal(old, new),
            (old, new) => old == new,
        }
    }

    pub(super) fn noop_reason(&mut self, arrival: &Arrival<'_>, identity: &str) -> Counter {
        let row = &arrival.event.row;
        let now = (row.status_hash, row.system_hash);
        let record = self.record(identity);
        let stored = (record.status_hash, record.system_hash);
        // Best effort: the image keeps them as of its newest version, the front as of the last event.
        let before = self.front.sides(key_hash(self.object.object_id, identity)).unwrap_or(stored);
        if before.1 != now.1 {
            Counter::NoopSystem
        } else if before.0 != now.0 {
            Counter::NoopStatus
        } else {
            Counter::Noop
        }
    }

    /// Keeps what the status and system columns were before a delete, which tells nothing of them: the newest are those of
    /// the last event, no-op or not, where the front still has it or the same chunk held it.
    pub(super) fn note_last_seen(&mut self, identity: &str) {
        if let Some(sides) = self.front.sides(key_hash(self.object.object_id, identity)) {
            let record = self.record_mut(identity);
            (record.status_hash, record.system_hash) = sides;
        }
    }

    pub(super) fn remember_hashes(&mut self, arrival: &Arrival<'_>, identity: &str) {
        let now = (arrival.event.row.status_hash, arrival.event.row.system_hash);
        let record = self.record(identity);
        // What a sealed batch shares is copied to be changed.
        if (record.status_hash, record.system_hash) != now {
            let record = self.record_mut(identity);
            (record.status_hash, record.system_hash) = now;
        }
    }
}

/// `at` cut to the precision that `stamp` shows.
fn cut_like(at: Micros, stamp: Micros) -> Micros {
    let unit = if stamp % 1_000_000 == 0 {
        1_000_000
    } else if stamp % 1_000 == 0 {
        1_000
    } else {
        1
    };
    at.div_euclid(unit) * unit
}
