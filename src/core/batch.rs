//! What one commit writes: rows, registry changes, progress. Open while events are judged, then sealed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::event::{FieldNo, Lsn, Micros, Op};
use super::overlay::{OldKey, Overlay, PendingRow, Seen};
use super::position::{Counter, Counters, Passage, PositionId};
use super::record::{Floor, Record};
use super::touched::Touched;
use super::unshown::Unshown;

/// Progress of one position: `[from, to)` and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// Whose.
    pub position_id: PositionId,
    /// The claim it is made under.
    pub epoch: i64,
    /// Next offset before.
    pub from: i64,
    /// Next offset after.
    pub to: i64,
    /// Increments.
    pub counters: Counters,
    /// Fingerprint of the last message: offset, timestamp in ms, XXH3-64 over key and value.
    pub last: Option<(i64, Option<i64>, i64)>,
    /// What was passed below `to`.
    pub passage: Passage,
}

impl Advance {
    /// Of a position that stands at `next` under this claim, and has done nothing yet.
    pub fn standing(position_id: PositionId, epoch: i64, next: i64) -> Self {
        Advance {
            position_id,
            epoch,
            from: next,
            to: next,
            counters: Counters::default(),
            last: None,
            passage: Passage::default(),
        }
    }
}

/// A row of `afterimage.delta` or `afterimage.keyframe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Record.
    pub rid: i32,
    /// Chain.
    pub kf: i32,
    /// Valid from.
    pub at: Micros,
    /// Stored form.
    pub d: Vec<u8>,
}

/// A delete row in Postgres that an equal re-insert takes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel {
    /// Record.
    pub rid: i32,
    /// Chain.
    pub kf: i32,
    /// Place in the chain.
    pub n: u8,
    /// The delete row's `at`, which names its month.
    pub at: Micros,
    /// The delete opened its chain: its keyframe goes too.
    pub with_keyframe: bool,
}

/// A change of a record's registry row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryChange {
    /// Record.
    pub rid: i32,
    /// Identity (names the record in invalidations).
    pub identity: Box<str>,
    /// New home.
    pub home: PositionId,
    /// New key.
    pub row_key: Option<Box<str>>,
    /// New floor.
    pub floor: Floor,
    /// What rests on rows that left no version.
    pub unshown: Unshown,
    /// The record is taken over from another home: what was seen there, to be checked.
    pub taken_from: Option<Seen>,
}

/// An event that is kept whole: a row of `afterimage.anchor`, and most of one of `afterimage.late_event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRow {
    /// Read by.
    pub position_id: PositionId,
    /// Offset.
    pub offset: i64,
    /// Record.
    pub rid: i32,
    /// What happened.
    pub op: Op,
    /// Key.
    pub row_key: Box<str>,
    /// LSN.
    pub lsn: Lsn,
    /// Source time.
    pub at: Micros,
    /// Its row in stored form, stamp and user of a local write included; none for a delete.
    pub d: Option<Vec<u8>>,
    /// When it was recorded.
    pub recorded: Micros,
    /// Of an anchor: it moved the record, deleted it, or was the first of it; otherwise it was kept for what it shows.
    pub moved: bool,
}

impl KeptRow {
    fn bytes(&self) -> usize {
        self.d.as_ref().map_or(0, Vec::len) + 96
    }
}

/// A row of `afterimage.late_event`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateEvent {
    /// The event.
    pub event: KeptRow,
    /// Why it is late.
    pub reason: &'static str,
}

/// A row of `afterimage.dead_letter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Read by.
    pub position_id: PositionId,
    /// Offset.
    pub offset: i64,
    /// Machine-readable reason.
    pub reason: String,
    /// What was wrong, without field values.
    pub detail: String,
    /// Record id, if one was found.
    pub sfid: Option<String>,
    /// The message's key as it came.
    pub key: Option<Vec<u8>>,
    /// The message's value as it came, cut at [`DEAD_LETTER_BYTES`].
    pub value: Option<Vec<u8>>,
    /// SHA-256 of the whole value where it was cut.
    pub sha256: Option<[u8; 32]>,
}

/// A dead letter that was retried, in the batch that brings it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Who put it aside.
    pub position_id: PositionId,
    /// Offset.
    pub offset: i64,
    /// What became of it.
    pub outcome: &'static str,
}

/// A row of `afterimage.record_lookup`: a value that a record has, or had, in a lookup field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LookupValue {
    /// Field.
    pub field_no: FieldNo,
    /// Value, of at most [`LOOKUP_BYTES`].
    pub value: Box<str>,
    /// Record.
    pub rid: i32,
}

/// Longest value of a lookup field, in bytes: a longer one does not fit into an index row.
pub const LOOKUP_BYTES: usize = 2_000;

/// A dead letter keeps at most this much of its value.
pub const DEAD_LETTER_BYTES: usize = 1 << 20;

/// The state of a key's `old_key` and `pending` rows after a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// Which key.
    pub key: Box<str>,
    /// The row of `old_key`, or none.
    pub old: Option<OldKey>,
    /// The rows of `pending`.
    pub pending: Vec<PendingRow>,
}

/// A record's state after a batch, for the image store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// Identity.
    pub identity: Box<str>,
    /// State; its `home` names the position that holds it.
    pub record: Arc<Record>,
    /// Where it lived before, if that was another position.
    pub left: Option<PositionId>,
    /// The image store does not know yet that it lives there under its key.
    pub new_key: bool,
}

/// An immutable batch, ready to commit.
#[derive(Debug, Clone, Default)]
pub struct SealedBatch {
    /// Rises by one with each batch of its topic on this worker.
    pub number: u64,
    /// Source (topic) and object that the batch belongs to.
    pub source_id: i16,
    /// Object.
    pub object_id: i16,
    /// Ascending by position.
    pub advances: Vec<Advance>,
    /// `delta` rows.
    pub deltas: Vec<HistoryRow>,
    /// `keyframe` rows.
    pub keyframes: Vec<HistoryRow>,
    /// Taken back.
    pub cancels: Vec<Cancel>,
    /// `delta` rows of records that had a row taken back: to be written after `cancels`.
    pub deltas_after: Vec<HistoryRow>,
    /// `keyframe` rows, likewise.
    pub keyframes_after: Vec<HistoryRow>,
    /// Registry changes, ascending by rid.
    pub registry: Vec<RegistryChange>,
    /// `old_key` and `pending` changes, ascending by key.
    pub keys: Vec<KeyChange>,
    /// Late events.
    pub late: Vec<LateEvent>,
    /// Events that moved or deleted their records.
    pub anchors: Vec<KeptRow>,
    /// Dead letters.
    pub dead: Vec<DeadLetter>,
    /// Dead letters that this batch settles: they must be open.
    pub resolved: Vec<Resolved>,
    /// Values of lookup fields, ascending, each once.
    pub lookups: Vec<LookupValue>,
    /// Key hashes of all records judged.
    pub touched: Touched,
    /// Events with a lower LSN and a later time than their record's last: the source database was replaced.
    pub regressed: u64,
    /// For the image store after COMMIT.
    pub records: Vec<StoredRecord>,
}

impl SealedBatch {
    /// Whether it takes records over: such a batch commits alone (protocol D2).
    pub fn takes_over(&self) -> bool {
        self.registry.iter().any(|change| change.taken_from.is_some())
    }

    /// Rows it appends.
    pub fn rows(&self) -> usize {
        self.deltas.len() + self.keyframes.len() + self.late.len() + self.anchors.len() + self.dead.len()
    }

    /// Approximate bytes of its rows.
    pub fn bytes(&self) -> usize {
        self.deltas.iter().chain(&self.keyframes).map(|row| row.d.len() + 48).sum()
    }
}

/// A batch under construction.
#[derive(Debug, Default)]
pub struct OpenBatch {
    number: u64,
    advances: BTreeMap<PositionId, Advance>,
    deltas: Vec<Option<HistoryRow>>,
    delta_at: HashMap<(i32, u32), usize, RandomState>,
    keyframes: Vec<Option<HistoryRow>>,
    keyframe_at: HashMap<(i32, i32), usize, RandomState>,
    cancels: Vec<Cancel>,
    cancelled: HashSet<i32>,
    records: HashSet<Box<str>, RandomState>,
    keys: HashSet<Box<str>, RandomState>,
    late: Vec<LateEvent>,
    anchors: Vec<KeptRow>,
    dead: Vec<DeadLetter>,
    lookups: Vec<LookupValue>,
    overlong: BTreeSet<FieldNo>,
    misfits: BTreeMap<FieldNo, (PositionId, i64)>,
    touched: Touched,
    regressed: u64,
    bytes: usize,
    events: usize,
}

impl OpenBatch {
    /// An empty batch.
    pub fn new(number: u64) -> Self {
        OpenBatch { number, ..OpenBatch::default() }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Messages taken in.
    pub fn events(&self) -> usize {
        self.events
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.deltas.len() + self.keyframes.len() + self.late.len() + self.anchors.len() + self.dead.len()
    }

    /// Approximate bytes so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.advances.is_empty()
    }

    /// The next offset of a position inside this batch, if it advanced here.
    pub fn next(&self, position_id: PositionId) -> Option<i64> {
        self.advances.get(&position_id).map(|advance| advance.to)
    }

    /// Takes one message's offset into the position's range and counts what became of it. Offsets between
    /// the range's end and this one are holes. `start` is where the range begins if it begins here.
    pub fn advance(
        &mut self,
        position_id: PositionId,
        start: impl FnOnce() -> Advance,
        offset: i64,
        outcome: Option<Counter>,
    ) {
        self.events += 1;
        let advance = self.advances.entry(position_id).or_insert_with(start);
        if offset > advance.to {
            advance.counters.add(Counter::Hole, offset - advance.to);
        }
        advance.to = offset + 1;
        if let Some(outcome) = outcome {
            advance.counters.add(outcome, 1);
        }
    }

    /// Moves a position over offsets that hold no message (the tail behind a control record).
    pub fn advance_over_hole(&mut self, start: &Advance, to: i64) {
        let advance = self.advances.entry(start.position_id).or_insert_with(|| start.clone());
        if to > advance.to {
            advance.counters.add(Counter::Hole, to - advance.to);
            advance.to = to;
        }
    }

    /// Notes the newest message of a position and what it has passed.
    pub fn progress(&mut self, position_id: PositionId, last: (i64, Option<i64>, i64), passage: &Passage) {
        if let Some(advance) = self.advances.get_mut(&position_id) {
            advance.last = Some(last);
            advance.passage.clone_from(passage);
        }
    }

    /// Adds to a counter of a position that advanced in this batch.
    pub fn count(&mut self, position_id: PositionId, counter: Counter, n: i64) {
        if let Some(advance) = self.advances.get_mut(&position_id) {
            advance.counters.add(counter, n);
        }
    }

    /// A version's row.
    pub fn push_delta(&mut self, seq: u32, row: HistoryRow) {
        self.bytes += row.d.len() + 48;
        self.delta_at.insert((row.rid, seq), self.deltas.len());
        self.deltas.push(Some(row));
    }

    /// A keyframe.
    pub fn push_keyframe(&mut self, row: HistoryRow) {
        self.bytes += row.d.len() + 48;
        self.keyframe_at.insert((row.rid, row.kf), self.keyframes.len());
        self.keyframes.push(Some(row));
    }

    /// Takes a delete back: out of this batch if it is still here, else out of Postgres.
    pub fn cancel(&mut self, seq: u32, cancel: Cancel) {
        if let Some(at) = self.delta_at.remove(&(cancel.rid, seq)) {
            self.deltas[at] = None;
            if cancel.with_keyframe
                && let Some(at) = self.keyframe_at.remove(&(cancel.rid, cancel.kf))
            {
                self.keyframes[at] = None;
            }
        } else {
            self.cancelled.insert(cancel.rid);
            self.cancels.push(cancel);
        }
    }

    /// Notes a record as changed in this batch.
    pub fn change_record(&mut self, identity: &str) {
        if !self.records.contains(identity) {
            self.records.insert(identity.into());
        }
    }

    /// Notes a key as changed in this batch.
    pub fn change_key(&mut self, key: &str) {
        if !self.keys.contains(key) {
            self.keys.insert(key.into());
        }
    }

    /// Which records were judged in this batch.
    pub fn touched(&self) -> &Touched {
        &self.touched
    }

    /// Notes a record as judged, changed or not.
    pub fn touch(&mut self, key_hash: i64) {
        self.touched.add(key_hash);
    }

    /// Notes an event whose LSN fell although its time rose.
    pub fn regress(&mut self) {
        self.regressed += 1;
    }

    /// Keeps a late event.
    pub fn push_late(&mut self, late: LateEvent) {
        self.bytes += late.event.bytes();
        self.late.push(late);
    }

    /// Keeps an event that moved or deleted its record.
    pub fn push_anchor(&mut self, anchor: KeptRow) {
        self.bytes += anchor.bytes();
        self.anchors.push(anchor);
    }

    /// Keeps a dead letter.
    pub fn push_dead(&mut self, dead: DeadLetter) {
        self.bytes += dead.value.as_ref().map_or(0, Vec::len) + 128;
        self.dead.push(dead);
    }

    /// A value of a lookup field; one that is too long for it is only noted.
    pub fn push_lookup(&mut self, field_no: FieldNo, rid: i32, value: &str) {
        if value.len() > LOOKUP_BYTES {
            self.overlong.insert(field_no);
            return;
        }
        self.bytes += value.len() + 48;
        self.lookups.push(LookupValue { field_no, value: value.into(), rid });
    }

    /// Notes a value that does not fit the type declared for its field; the first of each field counts.
    pub fn note_misfit(&mut self, field_no: FieldNo, position_id: PositionId, offset: i64) {
        self.misfits.entry(field_no).or_insert((position_id, offset));
    }

    /// Fields with values that do not fit their types, each with the first message that brought one.
    pub fn take_misfits(&mut self) -> BTreeMap<FieldNo, (PositionId, i64)> {
        std::mem::take(&mut self.misfits)
    }

    /// Lookup fields with values that are too long.
    pub fn take_overlong(&mut self) -> BTreeSet<FieldNo> {
        std::mem::take(&mut self.overlong)
    }

    /// Makes the batch final. The overlay's records take what the batch leaves in Postgres as seen.
    pub fn seal(self, overlay: &mut Overlay, source_id: i16, object_id: i16) -> SealedBatch {
        let mut sealed = SealedBatch {
            number: self.number,
            source_id,
            object_id,
            advances: self.advances.into_values().collect(),
            cancels: self.cancels,
            late: self.late,
            anchors: self.anchors,
            dead: self.dead,
            lookups: self.lookups,
            touched: self.touched,
            regressed: self.regressed,
            ..SealedBatch::default()
        };
        sealed.lookups.sort();
        sealed.lookups.dedup();
        for row in self.deltas.into_iter().flatten() {
            let after = self.cancelled.contains(&row.rid);
            if after { &mut sealed.deltas_after } else { &mut sealed.deltas }.push(row);
        }
        for row in self.keyframes.into_iter().flatten() {
            let after = self.cancelled.contains(&row.rid);
            if after { &mut sealed.keyframes_after } else { &mut sealed.keyframes }.push(row);
        }
        for identity in self.records {
            let Some(slot) = overlay.record_mut(&identity) else { continue };
            let seen = std::mem::replace(&mut slot.seen, Seen::of(&slot.record));
            let record = Arc::clone(&slot.record);
            let left = seen.home.filter(|home| Some(*home) != record.home);
            let stored = std::mem::replace(&mut slot.stored, true);
            let new_key = !stored || left.is_some() || seen.row_key != record.row_key;
            if let Some(home) = record.home
                && (seen.home != record.home
                    || seen.row_key != record.row_key
                    || seen.floor != record.floor
                    || seen.unshown != record.unshown)
            {
                sealed.registry.push(RegistryChange {
                    rid: record.rid,
                    identity: identity.clone(),
                    home,
                    row_key: record.row_key.clone(),
                    floor: record.floor,
                    unshown: record.unshown.clone(),
                    taken_from: (seen.home != record.home).then_some(seen),
                });
            }
            sealed.records.push(StoredRecord { identity, record, left, new_key });
        }
        sealed.registry.sort_by_key(|change| change.rid);
        for key in self.keys {
            if let Some(slot) = overlay.key(&key) {
                sealed.keys.push(KeyChange { old: slot.old.clone(), pending: slot.pending.clone(), key });
            }
        }
        sealed.keys.sort_by(|a, b| a.key.cmp(&b.key));
        sealed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::position::Passed;

    fn sealed(open: OpenBatch) -> Vec<Advance> {
        open.seal(&mut Overlay::default(), 1, 1).advances
    }

    fn counted(advance: &Advance) -> (i64, i64, i64, i64) {
        let Advance { from, to, counters, .. } = advance;
        assert_eq!(counters.events(), to - from, "every offset has one outcome");
        (*from, *to, counters.get(Counter::Noop), counters.get(Counter::Hole))
    }

    #[test]
    fn offsets_without_a_message_before_between_and_behind_messages_are_holes() {
        let mut open = OpenBatch::new(1);
        let start = Advance::standing(7, 3, 10);
        for offset in [12, 13, 17] {
            open.advance(7, || start.clone(), offset, Some(Counter::Noop));
        }
        assert_eq!(open.next(7), Some(18));
        open.advance_over_hole(&start, 20);
        assert_eq!((open.next(7), open.events()), (Some(20), 3), "a hole is no message");
        let advances = sealed(open);
        assert_eq!(advances.iter().map(counted).collect::<Vec<_>>(), [(10, 20, 3, 2 + 3 + 2)]);
    }

    #[test]
    fn a_position_moves_over_a_hole_once_and_never_back() {
        let mut open = OpenBatch::new(1);
        let start = Advance::standing(7, 3, 10);
        for to in [14, 14, 12] {
            open.advance_over_hole(&start, to);
        }
        open.advance(7, || start.clone(), 14, Some(Counter::Noop));
        open.advance_over_hole(&start, 15);
        let advances = sealed(open);
        assert_eq!(advances.iter().map(counted).collect::<Vec<_>>(), [(10, 15, 1, 4)]);
    }

    #[test]
    fn a_batch_of_nothing_but_a_hole_moves_its_position_alone_and_keeps_what_is_known_of_it() {
        let mut open = OpenBatch::new(1);
        let passage = Passage::from(Passed { ts: 100, lsn: 10 }, None);
        open.advance_over_hole(&Advance { passage: passage.clone(), ..Advance::standing(7, 3, 10) }, 11);
        assert!(!open.is_empty() && open.next(8).is_none());
        let advances = sealed(open);
        assert_eq!(advances.len(), 1);
        assert_eq!(
            (counted(&advances[0]), advances[0].last, advances[0].passage.clone()),
            ((10, 11, 0, 1), None, passage)
        );
    }
}
