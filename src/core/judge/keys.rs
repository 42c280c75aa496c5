//! Who holds a key, who writes a record, and what is kept of events that came too late (protocol D9, D10).

use super::{Arrival, Judge, Travel, last};
use crate::core::batch::{KeptRow, LateEvent};
use crate::core::event::{FieldNo, Micros, Op};
use crate::core::format::{self, VersionOp};
use crate::core::overlay::{OldKey, PendingRow};
use crate::core::record::{Floor, key_hash};
use crate::core::value::Value;

/// Why an event is late, mostly.
pub(super) const OUTRUN: &str = "a newer event of its record was read before";

impl Judge<'_> {
    pub(super) fn changed(&mut self, identity: &str) {
        let number = self.batch.number();
        self.overlay.record_mut(identity).expect("looked up before").dirty = Some(number);
        self.batch.change_record(identity);
        self.front.forget(key_hash(self.object.object_id, identity));
    }

    /// The record lives at this position from here on, and what is older than this event is old. The floor moves as one
    /// pair, and only to a later or equal time.
    pub(super) fn take_home(&mut self, arrival: &Arrival<'_>, identity: &str) {
        let record = self.record_mut(identity);
        record.home = Some(arrival.position_id);
        let ts = arrival.ts();
        if ts.is_some() && ts >= record.floor.ts {
            record.floor = Floor { lsn: arrival.event.lsn, ts };
        }
    }

    /// The record gives up the key; `old_key` remembers it.
    pub(super) fn lose_key(&mut self, arrival: &Arrival<'_>, identity: &str, key: &str) {
        let (lsn, ts, number) = (arrival.event.lsn, arrival.ts(), self.batch.number());
        let record = self.record_mut(identity);
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
    pub(super) fn steal(&mut self, arrival: &Arrival<'_>, victim: &str, key: &str) {
        if self.record(victim).row_key.as_deref() != Some(key) {
            return;
        }
        self.record_mut(victim).home = Some(arrival.position_id);
        self.batch.touch(key_hash(self.object.object_id, victim));
        self.lose_key(arrival, victim, key);
    }

    pub(super) fn hold_key(&mut self, arrival: &Arrival<'_>, identity: &str, key: &str) {
        let number = self.batch.number();
        let record = self.record(identity);
        // A record without history holds no key: the one it was registered with is of a batch that may never have been
        // committed, and may be another record's.
        if record.head.is_some()
            && let Some(before) = record.row_key.clone()
            && *before != *key
        {
            self.lose_key(arrival, identity, &before);
        }
        self.record_mut(identity).row_key = Some(key.into());
        let slot = self.overlay.key_mut(key);
        slot.owner = Some(identity.into());
        slot.owner_dirty = Some(number);
        if slot.old.take().is_some() {
            slot.dirty = Some(number);
            self.batch.change_key(key);
        }
        self.changed(identity);
    }

    pub(super) fn stale_row(
        &mut self,
        arrival: &Arrival<'_>,
        identity: &str,
        owner: Option<&str>,
        waiting: &[PendingRow],
    ) {
        let event = arrival.event;
        if let Some(insert) = waiting.first() {
            // In its place it is the insert, valid from then, with what came of it while it waited.
            let travel = Travel { local: insert.local, stamp: insert.stamp, modified: None, modified_by: None };
            let kept = self.kept(arrival, identity, insert.at, travel, Some(&arrival.fields));
            self.batch.push_late(LateEvent { event: KeptRow { op: Op::Create, ..kept }, reason: OUTRUN });
        } else {
            self.late(arrival, identity, OUTRUN, Some(&arrival.fields));
        }
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

    pub(super) fn late(
        &mut self,
        arrival: &Arrival<'_>,
        identity: &str,
        reason: &'static str,
        fields: Option<&[(FieldNo, Value)]>,
    ) {
        let event = self.kept(arrival, identity, arrival.time(), arrival.travel_as_shown(), fields);
        self.batch.push_late(LateEvent { event, reason });
    }

    /// Keeps an event that moved the record, or deleted it, whole: what is read too late is placed before or behind it.
    pub(super) fn anchor(&mut self, arrival: &Arrival<'_>, identity: &str) {
        self.keep(arrival, identity, true);
    }

    /// Keeps an event whole that is the first one since the record moved to show a field.
    pub(super) fn anchor_for_what_it_shows(&mut self, arrival: &Arrival<'_>, identity: &str) {
        self.keep(arrival, identity, false);
    }

    fn keep(&mut self, arrival: &Arrival<'_>, identity: &str, moved: bool) {
        let fields = (arrival.event.op != Op::Delete).then_some(&arrival.fields[..]);
        let event = self.kept(arrival, identity, arrival.time(), arrival.travel_as_shown(), fields);
        self.batch.push_anchor(KeptRow { moved, ..event });
    }

    fn kept(
        &self,
        arrival: &Arrival<'_>,
        identity: &str,
        at: Micros,
        travel: Travel<'_>,
        fields: Option<&[(FieldNo, Value)]>,
    ) -> KeptRow {
        let d = fields.map(|fields| {
            let mut fields = fields.to_vec();
            let header = self.header(arrival, VersionOp::Update, 0, at, travel);
            self.add_system(&mut fields, &travel, None);
            format::encode(at, &header, self.object.stamp_no, &fields)
        });
        let event = arrival.event;
        KeptRow {
            position_id: arrival.position_id,
            offset: arrival.offset,
            rid: self.record(identity).rid,
            op: event.op,
            row_key: event.key.clone(),
            lsn: event.lsn,
            at,
            d,
            recorded: arrival.now,
            moved: false,
        }
    }
}
