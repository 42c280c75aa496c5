//! What an event changes: identity, order, content, in that order (protocol D9, D10, D11, D17).
//!
//! Pure: everything it may look at stands in the [`Overlay`]; what is missing it asks for with [`Need`],
//! before it has changed anything, and is asked again once the caller has looked it up.
//! Every event ends in exactly one outcome, named by its [`Counter`].

mod content;
mod keys;
pub mod splice;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use keys::OUTRUN;

use crate::core::batch::OpenBatch;
use crate::core::decode::Print;
use crate::core::event::{Event, FieldNo, Micros, Op};
use crate::core::format::VersionOp;
use crate::core::front::Front;
use crate::core::order::{Last, Place, Verdict, verdict};
use crate::core::overlay::{Overlay, PendingRow};
use crate::core::position::{Counter, PositionId};
use crate::core::record::{Record, key_hash};
use crate::core::unshown::Unshown;
use crate::core::value::{Kind, Value, ValueRef};

/// Source times before this are not believed (2000-01-01).
const EARLIEST: Micros = 946_684_800_000_000;
/// Source times this far ahead of our clock are not believed.
const AHEAD: Micros = 86_400_000_000;

/// A source time, unless it lies before 2000 or more than a day ahead of our clock.
pub fn believable(ts: Option<Micros>, now: Micros) -> Option<Micros> {
    ts.filter(|ts| *ts >= EARLIEST && *ts <= now.saturating_add(AHEAD))
}

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
    pub fields: HashMap<FieldNo, FieldFact, RandomState>,
    /// Lookup fields: their values are kept as search keys.
    pub lookups: Vec<FieldNo>,
    /// Field number of `systemmodstamp`.
    pub stamp_no: Option<FieldNo>,
    /// Field number of `lastmodifieddate`.
    pub modified_no: Option<FieldNo>,
    /// Field number of `lastmodifiedbyid`.
    pub modified_by_no: Option<FieldNo>,
    /// Field number of `createddate`, a visible field.
    pub created_no: Option<FieldNo>,
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
    /// What a later event may repeat of it.
    pub print: Option<Print>,
}

/// Something to look up first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// The record of this identity.
    Record(Box<str>),
    /// Owner, previous owner and pending rows of this key.
    Key(Box<str>),
}

/// Judges events of one object; see the module.
pub struct Judge<'a> {
    /// Facts of the object.
    pub object: &'a ObjectFacts,
    /// What is known.
    pub overlay: &'a mut Overlay,
    /// What is to be written.
    pub batch: &'a mut OpenBatch,
    /// What need not be judged.
    pub front: &'a mut Front,
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
        believable(self.event.ts, self.now)
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
        self.travel_as_shown()
    }

    /// Also what a local write still shows of the version before it: it tells whether a delete between was a reload's.
    fn travel_as_shown(&self) -> Travel<'_> {
        let row = &self.event.row;
        Travel {
            local: row.local,
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
        self.overlay.record(identity).map(|slot| &*slot.record).ok_or_else(|| Need::Record(identity.into()))
    }

    fn record(&self, identity: &str) -> &Record {
        &self.overlay.record(identity).expect("looked up before").record
    }

    /// To be changed: from here on it is another than what a sealed batch took along.
    fn record_mut(&mut self, identity: &str) -> &mut Record {
        Arc::make_mut(&mut self.overlay.record_mut(identity).expect("looked up before").record)
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
            Verdict::Judge => {}
            Verdict::JudgeReplaced => self.batch.regress(),
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
            self.take_home(arrival, identity);
            self.changed(identity);
            if !first_sight {
                let unshown = Unshown::after(&self.record(identity).image, &arrival.fields);
                self.record_mut(identity).unshown = unshown;
                self.anchor(arrival, identity);
            }
        }
        if first_sight {
            self.first_version(arrival, identity, waiting);
            let created = self.record(identity).head.as_ref().is_some_and(|head| head.op != VersionOp::Baseline);
            self.remember_hashes(arrival, identity);
            self.remember_print(arrival, identity, decision);
            return Ok(if created { Counter::Delta } else { Counter::Baseline });
        }
        let outcome = self.content(arrival, identity);
        self.remember_print(arrival, identity, decision);
        Ok(outcome)
    }

    /// The event's content was judged, in turn: an equal one that follows changes nothing.
    fn remember_print(&mut self, arrival: &Arrival<'_>, identity: &str, decision: Verdict) {
        // Snapshot reads have no place in the log; after a database was replaced, LSNs are not comparable.
        if let Some(print) = &arrival.print
            && decision == Verdict::Judge
            && arrival.event.op != Op::Read
            && print.record == key_hash(self.object.object_id, identity)
        {
            self.front.remember(arrival.position_id, print, arrival.event.lsn);
        }
    }

    /// The insert half of a primary-key change whose delete half was just judged. Where it is not known which rows came at their
    /// place, it seems to have been passed.
    fn completes_key_change(&self, identity: &str, event: &Event) -> bool {
        let head = self.record(identity).head.as_ref();
        event.op == Op::Create
            && head.is_some_and(|head| head.op == VersionOp::Delete && event.lsn != 0 && head.lsn == event.lsn)
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
        let travel =
            |row: &PendingRow| Travel { local: row.local, stamp: row.stamp, modified: None, modified_by: None };
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
        let image = &self.record(identity).image;
        fields
            .iter()
            .filter(|(no, value)| match (image.get(*no), value.view()) {
                (_, ValueRef::Unknown) | (None, ValueRef::Null) => false,
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
        let this_delete = record
            .head
            .as_ref()
            .is_some_and(|head| head.op == VersionOp::Delete && head.lsn == event.lsn && head.ts() == arrival.ts());
        self.batch.touch(key_hash(self.object.object_id, &old.identity));
        if arrival.passed || this_delete {
            return Ok(Counter::Duplicate);
        }
        self.late(arrival, &old.identity, OUTRUN, None);
        Ok(Counter::Stale)
    }

    fn delete_of_owner(&mut self, arrival: &Arrival<'_>, identity: &str) -> Result<Counter, Need> {
        let decision = self.verdict(arrival, identity)?;
        self.batch.touch(key_hash(self.object.object_id, identity));
        match decision {
            Verdict::Duplicate => return Ok(Counter::Duplicate),
            Verdict::Stale => {
                self.late(arrival, identity, OUTRUN, None);
                return Ok(Counter::Stale);
            }
            Verdict::Judge => {}
            Verdict::JudgeReplaced => self.batch.regress(),
        }
        let event = arrival.event;
        if self.record(identity).home != Some(arrival.position_id) {
            self.take_home(arrival, identity);
        }
        self.record_mut(identity).deleted_key = Some(event.key.clone());
        self.note_last_seen(identity);
        self.anchor(arrival, identity);
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
                    self.late(arrival, &owner, "a row without id under a key of a record", Some(&arrival.fields));
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
        Some(head) if record.floor.ts.is_some() && (record.floor.ts, record.floor.lsn) > (head.ts(), head.lsn) => {
            of_floor
        }
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
