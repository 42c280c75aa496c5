//! What an event changes: identity, order, content, in that order (protocol D9, D10, D11, D17).
//!
//! Pure: everything it may look at stands in the [`Overlay`]; what is missing it asks for with [`Need`],
//! before it has changed anything, and is asked again once the caller has looked it up.
//! Every event ends in exactly one outcome, named by its [`Counter`].

use std::collections::HashMap;

use super::batch::{Cancel, HistoryRow, LateEvent, OpenBatch};
use super::event::{Event, FieldNo, Micros, Op};
use super::format::{self, Header, VersionOp};
use super::order::{Last, Place, Verdict, verdict};
use super::overlay::{OldKey, Overlay, PendingRow};
use super::position::{Counter, PositionId};
use super::record::{CHAIN, Floor, Image, Record, Version, key_hash};
use super::value::calendar::timestamp_text;
use super::value::{Kind, Value};

/// Source times before this are not believed (2000-01-01).
const EARLIEST: Micros = 946_684_800_000_000;
/// Source times this far ahead of our clock are not believed.
const AHEAD: Micros = 86_400_000_000;

/// One field as the object's dictionary knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldFact {
    /// Its type now.
    pub kind: Kind,
    /// Source time of the first event that had it; `None` = not known.
    pub first_seen: Option<Micros>,
}

/// What judging needs to know of the object.
#[derive(Debug, Clone, Default)]
pub struct ObjectFacts {
    /// Object.
    pub object_id: i16,
    /// A re-insert within this many µs of its delete may cancel it.
    pub grace: Micros,
    /// An insert is a create if its `createddate` lies at most this many µs before its commit.
    pub create_window: Micros,
    /// Visible and system fields by number.
    pub fields: HashMap<FieldNo, FieldFact>,
    /// Field number of `systemmodstamp`.
    pub stamp_no: Option<FieldNo>,
    /// Field number of `lastmodifieddate`.
    pub modified_no: Option<FieldNo>,
    /// Field number of `lastmodifiedbyid`.
    pub modified_by_no: Option<FieldNo>,
}

impl ObjectFacts {
    fn kind(&self, no: FieldNo) -> Kind {
        self.fields.get(&no).map_or(Kind::Text, |fact| fact.kind)
    }
}

/// A decoded event at its place in Kafka.
#[derive(Debug, Clone)]
pub struct Arrival<'a> {
    /// The position that reads it.
    pub position_id: PositionId,
    /// Its offset.
    pub offset: i64,
    /// The message's own time, for events without a usable source time.
    pub message_time: Micros,
    /// Our clock.
    pub now: Micros,
    /// This position passed it before.
    pub passed: bool,
    /// The event.
    pub event: &'a Event,
    /// Its visible fields by number, ascending.
    pub fields: Vec<(FieldNo, Value)>,
}

/// Something to look up first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// The record of this identity.
    Record(Box<str>),
    /// Owner, previous owner and pending rows of this key.
    Key(Box<str>),
}

/// Last seen hashes of status and system columns, to tell apart why nothing changed. Best effort, bounded.
#[derive(Debug, Default)]
pub struct SideHashes(HashMap<i64, (u32, u32)>);

impl SideHashes {
    const MOST: usize = 1 << 18;

    fn swap(&mut self, key: i64, now: (u32, u32)) -> Option<(u32, u32)> {
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(key, now)
    }
}

/// Judges events of one object; see the module.
pub struct Judge<'a> {
    /// Facts of the object.
    pub object: &'a ObjectFacts,
    /// What is known.
    pub overlay: &'a mut Overlay,
    /// What is to be written.
    pub batch: &'a mut OpenBatch,
    /// No-op reasons.
    pub side: &'a mut SideHashes,
}

/// How the fields of an event differ from the image.
#[derive(Debug, Default)]
struct Difference {
    /// Edits.
    update: Vec<(FieldNo, Value)>,
    /// Keys the image lacks, filled by a mapping change rather than by an edit.
    backfill: Vec<(FieldNo, Value)>,
    /// Unknown texts that came to light.
    learned: Vec<(FieldNo, Value)>,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.update.is_empty() && self.backfill.is_empty() && self.learned.is_empty()
    }
}

/// Attributes of the row that travel with a version.
#[derive(Debug, Clone, Copy)]
struct Travel<'a> {
    local: bool,
    stamp: Option<Micros>,
    modified: Option<Micros>,
    modified_by: Option<&'a str>,
}

impl Arrival<'_> {
    /// Source time if it can be believed.
    fn ts(&self) -> Option<Micros> {
        self.event.ts.filter(|ts| *ts >= EARLIEST && *ts <= self.now.saturating_add(AHEAD))
    }

    /// Source time, else the message's, else ours.
    fn time(&self) -> Micros {
        self.ts().unwrap_or_else(|| {
            let message = self.message_time;
            if message >= EARLIEST && message <= self.now.saturating_add(AHEAD) { message } else { self.now }
        })
    }

    fn travel(&self) -> Travel<'_> {
        let row = &self.event.row;
        if row.local || self.event.op == Op::Delete {
            // A local write still shows the stamp and the user of the version before it.
            return Travel { local: row.local, stamp: None, modified: None, modified_by: None };
        }
        Travel {
            local: false,
            stamp: row.stamp.flatten(),
            modified: row.modified.flatten(),
            modified_by: row.modified_by.as_ref().and_then(|by| by.as_deref()),
        }
    }
}

impl Judge<'_> {
    /// Judges one event. On [`Need`] nothing has changed.
    pub fn judge(&mut self, mut arrival: Arrival<'_>) -> Result<Counter, Need> {
        match (&arrival.event.identity, arrival.event.op) {
            (_, Op::Delete) => self.delete(&arrival),
            (Some(identity), _) => {
                let identity = identity.clone();
                self.row(&mut arrival, &identity)
            }
            (None, _) => self.without_identity(&mut arrival),
        }
    }

    // ---- looking things up ------------------------------------------------------------------------------

    fn need_record(&self, identity: &str) -> Result<&Record, Need> {
        self.overlay.record(identity).map(|slot| &slot.record).ok_or_else(|| Need::Record(identity.into()))
    }

    fn record(&mut self, identity: &str) -> &mut Record {
        &mut self.overlay.record_mut(identity).expect("looked up before").record
    }

    fn verdict(&self, arrival: &Arrival<'_>, identity: &str) -> Result<Verdict, Need> {
        let record = self.need_record(identity)?;
        let event = arrival.event;
        let last = last(record, arrival.position_id, &event.key);
        let place = Place {
            lsn: event.lsn,
            ts: arrival.ts(),
            read: event.op == Op::Read,
            delete: event.op == Op::Delete,
            key: &event.key,
            passed: arrival.passed,
        };
        Ok(verdict(place, last))
    }

    // ---- a row with an identity -------------------------------------------------------------------------

    fn row(&mut self, arrival: &mut Arrival<'_>, identity: &str) -> Result<Counter, Need> {
        let event = arrival.event;
        let record = self.need_record(identity)?;
        let first_sight = record.head.is_none();
        let key_current = record.row_key.as_deref() == Some(&event.key);
        let look_at_key = first_sight || !key_current;
        let owner = if look_at_key {
            let slot = self.overlay.key(&event.key).ok_or_else(|| Need::Key(event.key.clone()))?;
            slot.owner.clone().filter(|owner| **owner != *identity)
        } else {
            None
        };
        if let Some(owner) = &owner {
            self.need_record(owner)?;
        }
        let mut decision = self.verdict(arrival, identity)?;
        if !key_current && !first_sight && arrival.passed && !self.completes_key_change(identity, event) {
            // Re-keying needs a first delivery: an old event delivered again would take its key back, and
            // the delete of the key's new owner would be lost.
            if matches!(decision, Verdict::Judge | Verdict::JudgeReplaced) {
                decision = Verdict::Duplicate;
            }
        }
        self.batch.touch(key_hash(self.object.object_id, identity));

        // A row waiting for an id under this key belongs to whoever brings one, whatever the verdict.
        let waiting = if look_at_key { self.take_pending(arrival, event.op) } else { Vec::new() };
        if let Some(newest) = waiting.last() {
            fill_placeholders(&mut arrival.fields, &newest.fields);
        }
        match decision {
            Verdict::Duplicate => return Ok(Counter::Duplicate),
            Verdict::Stale => {
                self.stale_row(arrival, identity, owner.as_deref(), &waiting);
                return Ok(Counter::Stale);
            }
            Verdict::Judge | Verdict::JudgeReplaced => {}
        }

        let foreign = self.record(identity).home != Some(arrival.position_id);
        if let Some(owner) = &owner {
            self.steal(arrival, owner, &event.key);
        }
        if look_at_key {
            self.hold_key(arrival, identity, &event.key);
        }
        // An insert under the key that the record holds: a TRUNCATE came between, and the ids restarted. What other
        // partitions still have of the time between is older, although no version will tell.
        let came_back = event.op == Op::Create && !first_sight;
        if (!first_sight && !key_current) || came_back || foreign || decision == Verdict::JudgeReplaced {
            let floor = arrival.ts().map(|ts| Floor { lsn: event.lsn, ts: Some(ts) });
            let record = self.record(identity);
            record.home = Some(arrival.position_id);
            if let Some(floor) = floor
                && floor.ts >= record.floor.ts
            {
                record.floor = floor;
            }
            self.changed(identity);
        }
        if first_sight {
            self.first_version(arrival, identity, waiting);
            let created = self.record(identity).head.as_ref().is_some_and(|head| head.op != VersionOp::Baseline);
            self.remember_hashes(arrival, identity);
            return Ok(if created { Counter::Delta } else { Counter::Baseline });
        }
        Ok(self.content(arrival, identity))
    }

    /// The insert half of a primary-key change whose delete half was just judged: same LSN, same partition,
    /// so "passed before" by time and LSN alone, yet a first delivery.
    fn completes_key_change(&self, identity: &str, event: &Event) -> bool {
        event.op == Op::Create
            && self.overlay.record(identity).is_some_and(|slot| {
                slot.record.head.as_ref().is_some_and(|head| {
                    head.op == VersionOp::Delete && event.lsn != 0 && head.lsn == event.lsn
                })
            })
    }

    fn take_pending(&mut self, arrival: &Arrival<'_>, op: Op) -> Vec<PendingRow> {
        let number = self.batch.number();
        let slot = self.overlay.key_mut(&arrival.event.key);
        if slot.pending.is_empty() || comes_before(arrival, &slot.pending) {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut slot.pending);
        slot.dirty = Some(number);
        self.batch.change_key(&arrival.event.key);
        // An insert under the same key is another row: ids restarted. What waited there is gone.
        if op == Op::Create { Vec::new() } else { waiting }
    }

    fn first_version(&mut self, arrival: &Arrival<'_>, identity: &str, waiting: Vec<PendingRow>) {
        let mut waiting = waiting.into_iter();
        let Some(insert) = waiting.next() else {
            let op = if self.is_create(arrival) { VersionOp::Create } else { VersionOp::Baseline };
            self.write(arrival, identity, op, arrival.time(), arrival.travel(), arrival.fields.clone());
            return;
        };
        let travel = |row: &PendingRow| Travel { local: row.local, stamp: row.stamp, modified: None, modified_by: None };
        let of_insert = travel(&insert);
        self.write(arrival, identity, VersionOp::Create, insert.at, of_insert, insert.fields);
        for edit in waiting {
            let of_edit = travel(&edit);
            let update = self.edits(identity, &edit.fields);
            if !update.is_empty() {
                self.write(arrival, identity, VersionOp::Update, edit.at, of_edit, update);
            }
        }
        let update = self.edits(identity, &arrival.fields);
        if !update.is_empty() {
            self.write(arrival, identity, VersionOp::Update, arrival.time(), arrival.travel(), update);
        }
    }

    /// Fields that differ from the image, every one taken as an edit.
    fn edits(&self, identity: &str, fields: &[(FieldNo, Value)]) -> Vec<(FieldNo, Value)> {
        let image = &self.overlay.record(identity).expect("looked up before").record.image;
        fields
            .iter()
            .filter(|(no, value)| match (image.get(*no), value) {
                (_, Value::Unknown) | (None, Value::Null) => false,
                (None, _) => true,
                (Some(old), new) => !self.equal(*no, old, new),
            })
            .cloned()
            .collect()
    }

    fn is_create(&self, arrival: &Arrival<'_>) -> bool {
        arrival.event.op == Op::Create
            && match arrival.event.row.created {
                None | Some(None) => true,
                Some(Some(created)) => created >= arrival.time().saturating_sub(self.object.create_window),
            }
    }

    // ---- content ----------------------------------------------------------------------------------------

    fn content(&mut self, arrival: &Arrival<'_>, identity: &str) -> Counter {
        let difference = self.difference(arrival, identity);
        if self.record(identity).is_deleted() {
            return self.content_of_deleted(arrival, identity, difference);
        }
        if difference.is_empty() {
            return self.noop_reason(arrival, identity);
        }
        self.write_difference(arrival, identity, difference);
        self.remember_hashes(arrival, identity);
        Counter::Delta
    }

    /// A backfill stands before an edit of the same event; what came to light stands with the edit, or with
    /// the backfill if there is no edit.
    fn write_difference(&mut self, arrival: &Arrival<'_>, identity: &str, difference: Difference) {
        let Difference { mut update, mut backfill, learned } = difference;
        if update.is_empty() { &mut backfill } else { &mut update }.extend(learned);
        for (op, mut fields) in [(VersionOp::Backfill, backfill), (VersionOp::Update, update)] {
            if !fields.is_empty() {
                fields.sort_by_key(|(no, _)| *no);
                self.write(arrival, identity, op, arrival.time(), arrival.travel(), fields);
            }
        }
    }

    fn content_of_deleted(&mut self, arrival: &Arrival<'_>, identity: &str, difference: Difference) -> Counter {
        if self.cancels_delete(arrival, identity, &difference) {
            self.cancel_delete(arrival, identity);
            if difference.is_empty() {
                return self.noop_reason(arrival, identity);
            }
            self.write_difference(arrival, identity, difference);
        } else {
            let Difference { mut update, backfill, learned } = difference;
            update.extend(backfill);
            update.extend(learned);
            update.sort_by_key(|(no, _)| *no);
            self.write(arrival, identity, VersionOp::Undelete, arrival.time(), arrival.travel(), update);
        }
        self.remember_hashes(arrival, identity);
        Counter::Delta
    }

    /// Whether this insert says that the delete before it was a reload's (protocol D11).
    fn cancels_delete(&self, arrival: &Arrival<'_>, identity: &str, difference: &Difference) -> bool {
        let record = &self.overlay.record(identity).expect("looked up before").record;
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
            // No-ops do not move the known stamp, so a touched row comes back with a newer one; but an
            // undelete in Salesforce raises it above the delete.
            Some(Some(stamp)) => stamp < cut_like(deleted_at, stamp),
        }
    }

    fn cancel_delete(&mut self, arrival: &Arrival<'_>, identity: &str) {
        let record = self.record(identity);
        let rid = record.rid;
        let Some(before) = record.before_delete.take() else { return };
        let Some(delete) = record.head.replace(before) else { return };
        record.deleted_key = None;
        let n = delete.seq % CHAIN;
        let cancel = Cancel {
            rid,
            kf: (delete.seq / CHAIN) as i32,
            n: n as u8,
            at: delete.at,
            with_keyframe: n == 0,
        };
        self.batch.cancel(delete.seq, cancel);
        self.batch.count(arrival.position_id, Counter::RowsCancelled, 1);
        self.changed(identity);
    }

    fn difference(&self, arrival: &Arrival<'_>, identity: &str) -> Difference {
        let record = &self.overlay.record(identity).expect("looked up before").record;
        let deleted = record.is_deleted();
        let mut difference = Difference::default();
        for (no, new) in &arrival.fields {
            let kind = match (record.image.get(*no), new) {
                (_, Value::Unknown) | (None, Value::Null) => continue,
                (None, _) if self.is_backfill(arrival, *no) => &mut difference.backfill,
                (None, _) => &mut difference.update,
                (Some(Value::Unknown), _) if deleted || arrival.event.op != Op::Update => &mut difference.learned,
                (Some(old), new) if self.equal(*no, old, new) => continue,
                (Some(_), _) => &mut difference.update,
            };
            kind.push((*no, new.clone()));
        }
        difference
    }

    /// A key the image lacks got a value: by a mapping change (the row's last edit in Salesforce is older than
    /// the field's first appearance), or by an edit.
    fn is_backfill(&self, arrival: &Arrival<'_>, no: FieldNo) -> bool {
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

    fn equal(&self, no: FieldNo, old: &Value, new: &Value) -> bool {
        match (old, new) {
            (Value::Text(old), Value::Text(new)) => old == new || self.object.kind(no).equal(old, new),
            (old, new) => old == new,
        }
    }

    fn noop_reason(&mut self, arrival: &Arrival<'_>, identity: &str) -> Counter {
        let row = &arrival.event.row;
        let now = (row.status_hash, row.system_hash);
        let record = self.record(identity);
        let stored = (record.status_hash, record.system_hash);
        let before = self.side.swap(key_hash(self.object.object_id, identity), now).unwrap_or(stored);
        if before.1 != now.1 {
            Counter::NoopSystem
        } else if before.0 != now.0 {
            Counter::NoopStatus
        } else {
            Counter::Noop
        }
    }

    fn remember_hashes(&mut self, arrival: &Arrival<'_>, identity: &str) {
        let now = (arrival.event.row.status_hash, arrival.event.row.system_hash);
        self.side.swap(key_hash(self.object.object_id, identity), now);
        let record = self.record(identity);
        (record.status_hash, record.system_hash) = now;
    }

    // ---- deletes ----------------------------------------------------------------------------------------

    fn delete(&mut self, arrival: &Arrival<'_>) -> Result<Counter, Need> {
        let event = arrival.event;
        if let Some(identity) = &event.identity
            && let Some(slot) = self.overlay.record(identity)
            && slot.record.row_key.as_deref() == Some(&event.key)
            && slot.record.head.is_some()
        {
            return self.delete_of_owner(arrival, identity);
        }
        let slot = self.overlay.key(&event.key).ok_or_else(|| Need::Key(event.key.clone()))?;
        if let Some(owner) = slot.owner.clone() {
            self.need_record(&owner)?;
            return self.delete_of_owner(arrival, &owner);
        }
        if !slot.pending.is_empty() && !comes_before(arrival, &slot.pending) {
            self.take_pending(arrival, Op::Delete);
            return Ok(Counter::Pending);
        }
        let Some(old) = slot.old.clone() else { return Ok(Counter::DeleteUnknown) };
        let record = self.need_record(&old.identity)?;
        let last = last(record, arrival.position_id, &event.key);
        let known = if event.lsn != 0 && last.lsn != 0 { event.lsn <= last.lsn } else { arrival.ts() <= last.ts };
        if !known {
            return Ok(Counter::DeleteUnknown);
        }
        let this_delete = record.head.as_ref().is_some_and(|head| {
            head.op == VersionOp::Delete && head.lsn == event.lsn && head.ts() == arrival.ts()
        });
        self.batch.touch(key_hash(self.object.object_id, &old.identity));
        if arrival.passed || this_delete {
            return Ok(Counter::Duplicate);
        }
        self.late(arrival, &old.identity, "a newer event of its record was read before", arrival.time(), None);
        Ok(Counter::Stale)
    }

    fn delete_of_owner(&mut self, arrival: &Arrival<'_>, identity: &str) -> Result<Counter, Need> {
        let decision = self.verdict(arrival, identity)?;
        self.batch.touch(key_hash(self.object.object_id, identity));
        match decision {
            Verdict::Duplicate => return Ok(Counter::Duplicate),
            Verdict::Stale => {
                self.late(arrival, identity, "a newer event of its record was read before", arrival.time(), None);
                return Ok(Counter::Stale);
            }
            Verdict::Judge | Verdict::JudgeReplaced => {}
        }
        let event = arrival.event;
        let floor = arrival.ts().map(|ts| Floor { lsn: event.lsn, ts: Some(ts) });
        let record = self.record(identity);
        if record.home != Some(arrival.position_id) {
            record.home = Some(arrival.position_id);
            if let Some(floor) = floor
                && floor.ts >= record.floor.ts
            {
                record.floor = floor;
            }
        }
        record.deleted_key = Some(event.key.clone());
        self.write(arrival, identity, VersionOp::Delete, arrival.time(), arrival.travel(), Vec::new());
        self.lose_key(arrival, identity, &event.key);
        Ok(Counter::Delta)
    }

    // ---- rows without an identity -----------------------------------------------------------------------

    fn without_identity(&mut self, arrival: &mut Arrival<'_>) -> Result<Counter, Need> {
        let event = arrival.event;
        let slot = self.overlay.key(&event.key).ok_or_else(|| Need::Key(event.key.clone()))?;
        if let Some(owner) = slot.owner.clone() {
            self.need_record(&owner)?;
            let decision = self.verdict(arrival, &owner)?;
            self.batch.touch(key_hash(self.object.object_id, &owner));
            match decision {
                Verdict::Duplicate => return Ok(Counter::Duplicate),
                Verdict::Stale => {
                    let fields = arrival.fields.clone();
                    self.late(arrival, &owner, "a row without id under a key of a record", arrival.time(), Some(fields));
                    return Ok(Counter::Stale);
                }
                Verdict::Judge | Verdict::JudgeReplaced => self.steal(arrival, &owner, &event.key),
            }
        } else if let Some(old) = slot.old.clone() {
            let record = self.need_record(&old.identity)?;
            let last = last(record, arrival.position_id, &event.key);
            if arrival.passed && event.lsn <= last.lsn {
                self.batch.touch(key_hash(self.object.object_id, &old.identity));
                return Ok(Counter::Duplicate);
            }
        }
        let Travel { local, stamp, .. } = arrival.travel();
        let (time, number) = (arrival.time(), self.batch.number());
        let slot = self.overlay.key_mut(&event.key);
        if slot.pending.last().is_some_and(|last| event.lsn != 0 && event.lsn <= last.lsn) {
            return Ok(Counter::Duplicate);
        }
        if event.op == Op::Create {
            slot.pending.clear();
        }
        let mut fields = std::mem::take(&mut arrival.fields);
        let n = match slot.pending.last() {
            Some(before) => {
                fill_placeholders(&mut fields, &before.fields);
                if fields == before.fields {
                    return Ok(Counter::Pending);
                }
                before.n.saturating_add(1)
            }
            None => 0,
        };
        slot.pending.push(PendingRow {
            n,
            at: slot.pending.last().map_or(time, |before| before.at.max(time)),
            lsn: event.lsn,
            position_id: arrival.position_id,
            offset: arrival.offset,
            local,
            stamp,
            fields,
        });
        slot.dirty = Some(number);
        self.batch.change_key(&event.key);
        Ok(Counter::Pending)
    }

    // ---- keys and homes ---------------------------------------------------------------------------------

    fn changed(&mut self, identity: &str) {
        let number = self.batch.number();
        self.overlay.record_mut(identity).expect("looked up before").dirty = Some(number);
        self.batch.change_record(identity);
    }

    /// The record gives up the key; `old_key` remembers it.
    fn lose_key(&mut self, arrival: &Arrival<'_>, identity: &str, key: &str) {
        let (lsn, ts, number) = (arrival.event.lsn, arrival.ts(), self.batch.number());
        let record = self.record(identity);
        record.row_key = None;
        let rid = record.rid;
        let slot = self.overlay.key_mut(key);
        slot.owner = None;
        slot.owner_dirty = Some(number);
        slot.old = Some(OldKey { identity: identity.into(), rid, lsn, ts });
        slot.dirty = Some(number);
        self.batch.change_key(key);
        self.changed(identity);
    }

    /// Another row arrived under a key that `victim` still owns: ids restarted. Its floor stays, since its own
    /// insert under a new id may have a lower LSN.
    fn steal(&mut self, arrival: &Arrival<'_>, victim: &str, key: &str) {
        self.record(victim).home = Some(arrival.position_id);
        self.batch.touch(key_hash(self.object.object_id, victim));
        self.lose_key(arrival, victim, key);
    }

    fn hold_key(&mut self, arrival: &Arrival<'_>, identity: &str, key: &str) {
        let number = self.batch.number();
        if let Some(before) = self.record(identity).row_key.clone()
            && *before != *key
        {
            self.lose_key(arrival, identity, &before);
        }
        self.record(identity).row_key = Some(key.into());
        let slot = self.overlay.key_mut(key);
        slot.owner = Some(identity.into());
        slot.owner_dirty = Some(number);
        if slot.old.take().is_some() {
            slot.dirty = Some(number);
            self.batch.change_key(key);
        }
        self.changed(identity);
    }

    // ---- late events ------------------------------------------------------------------------------------

    fn stale_row(&mut self, arrival: &Arrival<'_>, identity: &str, owner: Option<&str>, waiting: &[PendingRow]) {
        let event = arrival.event;
        let at = waiting.first().map_or(arrival.time(), |insert| insert.at);
        let fields = arrival.fields.clone();
        self.late(arrival, identity, "a newer event of its record was read before", at, Some(fields));
        if let Some(owner) = owner {
            let position = arrival.position_id;
            let newer = event.lsn > last(self.record(owner), position, &event.key).lsn;
            if newer {
                self.steal(arrival, owner, &event.key);
            } else {
                return;
            }
        }
        let (lsn, ts, number) = (event.lsn, arrival.ts(), self.batch.number());
        let rid = self.record(identity).rid;
        if self.record(identity).row_key.as_deref() == Some(&event.key) {
            return;
        }
        let slot = self.overlay.key_mut(&event.key);
        slot.old = Some(OldKey { identity: identity.into(), rid, lsn, ts });
        slot.dirty = Some(number);
        self.batch.change_key(&event.key);
    }

    fn late(
        &mut self,
        arrival: &Arrival<'_>,
        identity: &str,
        reason: &'static str,
        at: Micros,
        fields: Option<Vec<(FieldNo, Value)>>,
    ) {
        let event = arrival.event;
        let travel = arrival.travel();
        let rid = self.record(identity).rid;
        let d = fields.map(|mut fields| {
            let header = self.header(arrival, VersionOp::Update, 0, at, travel);
            self.add_system(&mut fields, &travel, None);
            format::encode(at, &header, self.object.stamp_no, &fields)
        });
        self.batch.push_late(LateEvent {
            position_id: arrival.position_id,
            offset: arrival.offset,
            rid,
            op: match event.op {
                Op::Create => 'c',
                Op::Update => 'u',
                Op::Delete => 'd',
                Op::Read => 'r',
            },
            row_key: event.key.clone(),
            lsn: event.lsn,
            at: Some(at),
            reason,
            d,
            recorded: arrival.now,
        });
    }

    // ---- writing versions -------------------------------------------------------------------------------

    fn header(&self, arrival: &Arrival<'_>, op: VersionOp, n: u8, at: Micros, travel: Travel<'_>) -> Header {
        let raw = arrival.time();
        Header {
            op,
            n,
            local: travel.local,
            no_source_time: arrival.ts().is_none(),
            raw_at: (arrival.ts().is_some() && raw < at).then_some(raw),
            stamp: travel.stamp,
            modified_is_stamp: travel.modified.is_some() && travel.modified == travel.stamp,
            position_id: arrival.position_id,
            offset: arrival.offset,
            lsn: arrival.event.lsn,
            recorded: arrival.now,
        }
    }

    fn add_system(&self, fields: &mut Vec<(FieldNo, Value)>, travel: &Travel<'_>, known_by: Option<&str>) {
        if let (Some(no), Some(modified)) = (self.object.modified_no, travel.modified)
            && travel.stamp != Some(modified)
        {
            fields.push((no, Value::Text(timestamp_text(modified, false).into())));
        }
        if let (Some(no), Some(by)) = (self.object.modified_by_no, travel.modified_by)
            && known_by != Some(by)
        {
            fields.push((no, Value::Text(by.into())));
        }
        fields.sort_by_key(|(no, _)| *no);
    }

    fn write(
        &mut self,
        arrival: &Arrival<'_>,
        identity: &str,
        op: VersionOp,
        time: Micros,
        travel: Travel<'_>,
        fields: Vec<(FieldNo, Value)>,
    ) {
        let record = self.record(identity);
        let before = record.head.clone();
        let known_by = record.modified_by.clone();
        let (rid, stamp_before) = (record.rid, record.stamp);
        let image_before = record.image.clone();
        let seq = before.as_ref().map_or(0, |head| head.seq + 1);
        let at = before.as_ref().map_or(time, |head| head.at.max(time));
        let (kf, n) = ((seq / CHAIN) as i32, (seq % CHAIN) as u8);

        let mut header = self.header(arrival, op, n, at, travel);
        // A version may be older than its event (an insert that waited for its id): its own time counts.
        header.raw_at = (arrival.ts().is_some() && time < at).then_some(time);
        header.recorded = before.as_ref().map_or(header.recorded, |head| head.recorded.max(header.recorded));
        let version = Version {
            seq,
            op,
            at,
            raw_at: header.raw_at,
            no_source_time: header.no_source_time,
            lsn: if header.lsn != 0 { header.lsn } else { before.as_ref().map_or(0, |head| head.lsn) },
            position_id: header.position_id,
            offset: header.offset,
            recorded: header.recorded,
        };

        let mut stored = fields.clone();
        if let (0, Some(before)) = (n, before.as_ref()) {
            let keyframe = self.keyframe(rid, kf, before, &image_before, stamp_before, known_by.as_deref());
            self.batch.push_keyframe(keyframe);
        }
        self.add_system(&mut stored, &travel, known_by.as_deref());
        let d = format::encode(at, &header, self.object.stamp_no, &stored);
        let row = HistoryRow { rid, kf, at, d };
        if seq == 0 {
            self.batch.push_keyframe(row);
        } else {
            self.batch.push_delta(seq, row);
        }
        self.batch.count(arrival.position_id, Counter::RowsWritten, 1);

        let record = self.record(identity);
        record.before_delete = if op == VersionOp::Delete { before } else { None };
        record.head = Some(version);
        if op != VersionOp::Delete {
            record.deleted_key = None;
        }
        if seq == 0 {
            record.image = Image::new(fields);
        } else {
            for (no, value) in fields {
                record.image.set(no, value);
            }
        }
        if travel.stamp.is_some() {
            record.stamp = travel.stamp;
        }
        if let Some(by) = travel.modified_by {
            record.modified_by = Some(by.into());
        }
        self.changed(identity);
    }

    /// The keyframe that opens chain `kf`: the state after the chain before it.
    fn keyframe(
        &self,
        rid: i32,
        kf: i32,
        shown: &Version,
        image: &Image,
        stamp: Option<Micros>,
        modified_by: Option<&str>,
    ) -> HistoryRow {
        let header = Header {
            op: shown.op,
            n: 0,
            local: false,
            no_source_time: shown.no_source_time,
            raw_at: shown.raw_at,
            stamp,
            modified_is_stamp: false,
            position_id: shown.position_id,
            offset: shown.offset,
            lsn: shown.lsn,
            recorded: shown.recorded,
        };
        let mut fields = image.fields().to_vec();
        if let (Some(no), Some(by)) = (self.object.modified_by_no, modified_by) {
            fields.push((no, Value::Text(by.into())));
            fields.sort_by_key(|(no, _)| *no);
        }
        let d = format::encode(shown.at, &header, self.object.stamp_no, &fields);
        HistoryRow { rid, kf, at: shown.at, d }
    }
}

/// The record's last place in the source's order: its newest version or its floor, whichever is later.
fn last<'r>(record: &'r Record, me: PositionId, key: &str) -> Last<'r> {
    let home = record.home == Some(me);
    let key_current = record.row_key.as_deref() == Some(key);
    let of_floor = Last {
        lsn: record.floor.lsn,
        ts: record.floor.ts,
        delete: false,
        key: record.row_key.as_deref(),
        home,
        key_current,
    };
    match &record.head {
        None => of_floor,
        Some(head) if record.floor.ts.is_some() && (record.floor.ts, record.floor.lsn) > (head.ts(), head.lsn) => of_floor,
        Some(head) => {
            let delete = head.op == VersionOp::Delete;
            let key = if delete { record.deleted_key.as_deref() } else { record.row_key.as_deref() };
            Last { lsn: head.lsn, ts: head.ts(), delete, key, home, key_current }
        }
    }
}

/// An event delivered again from before the row that waits under its key now: ids restarted in between, it speaks of
/// another row.
fn comes_before(arrival: &Arrival<'_>, waiting: &[PendingRow]) -> bool {
    let place = (arrival.ts(), arrival.event.lsn);
    arrival.passed && waiting.first().is_some_and(|insert| place < (Some(insert.at), insert.lsn))
}

fn fill_placeholders(fields: &mut [(FieldNo, Value)], known: &[(FieldNo, Value)]) {
    for (no, value) in fields.iter_mut() {
        if *value == Value::Unknown
            && let Ok(at) = known.binary_search_by_key(no, |(n, _)| *n)
        {
            *value = known[at].1.clone();
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
