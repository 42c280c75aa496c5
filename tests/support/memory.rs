//! A memory twin of the sink: what Postgres would hold after the same batches, in plain maps.
//!
//! It is written from the protocol, not from `src/postgres`: it applies a sealed batch as one commit does, answers
//! the same look-ups, and says at any time whether what it holds is sound ([`MemorySink::check`]).
//! It shares only the stored form (`core::format`) with the product.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use afterimage::core::batch::{Advance, Cancel, DeadLetter, HistoryRow, KeptRow, RegistryChange, SealedBatch};
use afterimage::core::event::{Class, FieldNo, Micros};
use afterimage::core::format::{self, Header, VersionOp};
use afterimage::core::image::Image;
use afterimage::core::judge::splice::{Kept, KeptEvent, Splice, StoredVersion, Unplaceable, splice};
use afterimage::core::judge::{FieldFact, ObjectFacts};
use afterimage::core::overlay::{KeySlot, OldKey, PendingRow};
use afterimage::core::position::{Counter, Counters, Passage, PositionId};
use afterimage::core::record::{CHAIN, Floor, HeadId, Record, Version};
use afterimage::core::unshown::Unshown;
use afterimage::core::value::{Kind, Value, ValueRef};

/// A field of an object's dictionary.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    pub no: FieldNo,
    pub name: String,
    pub class: Class,
    pub kind: Kind,
    pub first_seen: Option<Micros>,
}

/// A row of `record`.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordRow {
    pub object_id: i16,
    pub sfid: String,
    pub home: Option<PositionId>,
    pub row_key: Option<Box<str>>,
    pub floor: Floor,
    pub unshown: Unshown,
}

/// A row of `position`.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionRow {
    pub source_id: i16,
    pub partition: i32,
    pub first_next: i64,
    pub next: i64,
    pub passage: Passage,
    pub counters: Counters,
}

/// A stored version with its number.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub seq: u32,
    pub at: Micros,
    pub header: Header,
    pub fields: Vec<(FieldNo, Value)>,
}

/// One version as a user sees it in `changes`: every visible field with the value before and after.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub seq: u32,
    pub op: VersionOp,
    pub at: Micros,
    pub stamp: Option<Micros>,
    pub local: bool,
    pub partition: i32,
    pub offset: i64,
    pub topic: String,
    /// Old is `None` where the field was never observed.
    pub fields: BTreeMap<String, (Option<Value>, Value)>,
}

/// An object and its fields.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectRow {
    pub org: String,
    pub name: String,
    pub identity: Option<String>,
    pub fields: Vec<Field>,
}

/// A row of `late_event`.
#[derive(Debug, Clone, PartialEq)]
pub struct Late {
    pub event: KeptRow,
    pub reason: &'static str,
    /// Whether history has a version of it, once it is placed.
    pub outcome: Option<bool>,
}

impl ObjectRow {
    /// What judging needs of the object.
    pub fn facts(&self, object_id: i16, grace: Micros, create_window: Micros) -> ObjectFacts {
        let system = |name: &str| {
            let field = self.fields.iter().find(|field| field.name == name && field.class == Class::System);
            field.map(|field| field.no)
        };
        let visible = self.fields.iter().filter(|field| field.class == Class::Visible);
        ObjectFacts {
            object_id,
            grace,
            create_window,
            fields: visible
                .map(|field| (field.no, FieldFact { kind: field.kind, first_seen: field.first_seen }))
                .collect(),
            lookups: Vec::new(),
            stamp_no: system("systemmodstamp"),
            modified_no: system("lastmodifieddate"),
            modified_by_no: system("lastmodifiedbyid"),
            created_no: self
                .fields
                .iter()
                .find(|field| field.name == "createddate" && field.class == Class::Visible)
                .map(|field| field.no),
        }
    }
}

/// A row of `old_key`: record, LSN and source time of the event by which it lost the key.
type KeptKey = (i32, u64, Option<Micros>);

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemorySink {
    pub objects: Vec<ObjectRow>,
    pub sources: BTreeMap<String, (i16, i16)>,
    pub positions: BTreeMap<PositionId, PositionRow>,
    pub records: BTreeMap<i32, RecordRow>,
    by_identity: BTreeMap<(i16, String), i32>,
    pub keyframes: BTreeMap<(i32, i32), (Micros, Vec<u8>)>,
    pub deltas: BTreeMap<(i32, i32, u8), (Micros, Vec<u8>)>,
    pub pending: BTreeMap<(i16, Box<str>), Vec<PendingRow>>,
    pub old_keys: BTreeMap<(i16, Box<str>), KeptKey>,
    pub late: BTreeMap<(PositionId, i64, i32), Late>,
    pub anchors: BTreeMap<(PositionId, i64, i32), KeptRow>,
    pub dead: BTreeMap<(PositionId, i64), DeadLetter>,
}

impl MemorySink {
    // ---- registry -------------------------------------------------------------------------------------

    /// (source, object) of a topic, made if new.
    pub fn source(&mut self, topic: &str, org: &str, object: &str) -> (i16, i16) {
        if let Some(found) = self.sources.get(topic) {
            return *found;
        }
        let object_id = match self.objects.iter().position(|row| row.org == org && row.name == object) {
            Some(at) => at + 1,
            None => {
                self.objects.push(ObjectRow {
                    org: org.into(),
                    name: object.into(),
                    identity: None,
                    fields: Vec::new(),
                });
                self.objects.len()
            }
        } as i16;
        let source_id = self.sources.len() as i16 + 1;
        self.sources.insert(topic.into(), (source_id, object_id));
        (source_id, object_id)
    }

    pub fn object(&self, object_id: i16) -> &ObjectRow {
        &self.objects[object_id as usize - 1]
    }

    pub fn object_mut(&mut self, object_id: i16) -> &mut ObjectRow {
        &mut self.objects[object_id as usize - 1]
    }

    /// The position of a partition, made if new.
    pub fn position(&mut self, source_id: i16, partition: i32, earliest: i64) -> PositionId {
        let found = self.positions.iter().find(|(_, row)| row.source_id == source_id && row.partition == partition);
        if let Some((id, _)) = found {
            return *id;
        }
        let id = self.positions.len() as PositionId + 1;
        let row = PositionRow {
            source_id,
            partition,
            first_next: earliest,
            next: earliest,
            passage: Passage::default(),
            counters: Counters::default(),
        };
        self.positions.insert(id, row);
        id
    }

    /// Notes a column as an event shows it.
    pub fn note_field(&mut self, object_id: i16, name: &str, class: Class, kind: Kind, at: Option<Micros>) {
        let fields = &mut self.object_mut(object_id).fields;
        match fields.iter_mut().find(|field| field.name == name) {
            Some(field) => {
                if class == Class::Visible && field.class != Class::Visible {
                    field.first_seen = at;
                }
                (field.class, field.kind) = (class, kind);
            }
            None => {
                let no = fields.len() as FieldNo + 1;
                fields.push(Field { no, name: name.into(), class, kind, first_seen: at });
            }
        }
    }

    fn system_no(&self, object_id: i16, name: &str) -> Option<FieldNo> {
        let fields = &self.object(object_id).fields;
        fields.iter().find(|field| field.name == name && field.class == Class::System).map(|field| field.no)
    }

    /// Registers a record (its own transaction: it stays, whatever becomes of the batch).
    pub fn register(&mut self, object_id: i16, sfid: &str, home: PositionId, row_key: &str) {
        let key = (object_id, sfid.to_string());
        if self.by_identity.contains_key(&key) {
            return;
        }
        let rid = self.records.len() as i32 + 1;
        self.by_identity.insert(key, rid);
        let row = RecordRow {
            object_id,
            sfid: sfid.into(),
            home: Some(home),
            row_key: Some(row_key.into()),
            floor: Floor::default(),
            unshown: Unshown::default(),
        };
        self.records.insert(rid, row);
    }

    pub fn rid(&self, object_id: i16, sfid: &str) -> Option<i32> {
        self.by_identity.get(&(object_id, sfid.to_string())).copied()
    }

    // ---- look-ups -------------------------------------------------------------------------------------

    /// A record as a reader folds it from its last chain.
    pub fn record(&self, object_id: i16, sfid: &str) -> Option<Record> {
        let rid = self.rid(object_id, sfid)?;
        let row = &self.records[&rid];
        let mut record = Record::registered(rid, row.home, row.row_key.clone());
        record.floor = row.floor;
        record.unshown = row.unshown.clone();
        if row.row_key.is_none() {
            let held = self.old_keys.iter().filter(|((object, _), old)| *object == object_id && old.0 == rid);
            record.deleted_key = held.max_by_key(|(_, old)| (old.2, old.1)).map(|((_, key), _)| key.clone());
        }
        let last_kf = self.keyframes.range((rid, 0)..=(rid, i32::MAX)).next_back().map(|((_, kf), _)| *kf);
        let Some(kf) = last_kf else { return Some(record) };
        let (at, d) = &self.keyframes[&(rid, kf)];
        let shown = if kf == 0 { 0 } else { kf as u32 * CHAIN - 1 };
        self.fold(&mut record, object_id, shown, *at, d);
        for ((_, _, n), (at, d)) in self.deltas.range((rid, kf, 0)..=(rid, kf, u8::MAX)) {
            self.fold(&mut record, object_id, kf as u32 * CHAIN + u32::from(*n), *at, d);
        }
        Some(record)
    }

    fn fold(&self, record: &mut Record, object_id: i16, seq: u32, at: Micros, d: &[u8]) {
        let stamp_no = self.system_no(object_id, "systemmodstamp");
        let by_no = self.system_no(object_id, "lastmodifiedbyid");
        let modified_no = self.system_no(object_id, "lastmodifieddate");
        let (header, fields) = format::decode(at, d, stamp_no).expect("a stored version can be read");
        let version = Version {
            seq,
            op: header.op,
            at,
            raw_at: header.raw_at,
            no_source_time: header.no_source_time,
            lsn: if header.lsn == 0 { record.head.as_ref().map_or(0, |head| head.lsn) } else { header.lsn },
            position_id: header.position_id,
            offset: header.offset,
            recorded: header.recorded,
        };
        let before = record.head.replace(version);
        record.before_delete = before.filter(|_| header.op == VersionOp::Delete);
        record.stamp = header.stamp.or(record.stamp);
        for (no, value) in fields {
            if Some(no) == by_no {
                record.modified_by = value.text().map(Into::into);
            } else if Some(no) != modified_no {
                record.image.set(no, value.view());
            }
        }
    }

    /// What is known of a key.
    pub fn key(&self, source_id: i16, object_id: i16, key: &str) -> KeySlot {
        let owner = self.records.iter().find(|(rid, row)| {
            row.object_id == object_id
                && row.row_key.as_deref() == Some(key)
                && self.keyframes.contains_key(&(**rid, 0))
        });
        let old = self.old_keys.get(&(object_id, key.into())).map(|(rid, lsn, ts)| OldKey {
            identity: self.records[rid].sfid.as_str().into(),
            rid: *rid,
            lsn: *lsn,
            ts: *ts,
        });
        KeySlot {
            owner: owner.map(|(_, row)| row.sfid.as_str().into()),
            old,
            pending: self.pending.get(&(source_id, key.into())).cloned().unwrap_or_default(),
            ..KeySlot::default()
        }
    }

    // ---- commit ---------------------------------------------------------------------------------------

    /// One commit: everything, or a panic that says what does not fit.
    pub fn apply(&mut self, batch: &SealedBatch) {
        for change in &batch.registry {
            self.take_over(change);
        }
        for row in &batch.deltas {
            self.append_delta(row);
        }
        for row in &batch.keyframes {
            self.append_keyframe(row);
        }
        for late in &batch.late {
            let event = &late.event;
            let row = Late { event: event.clone(), reason: late.reason, outcome: None };
            let before = self.late.insert((event.position_id, event.offset, event.rid), row);
            assert!(before.is_none(), "a late event twice: {late:?}");
        }
        for anchor in &batch.anchors {
            let before = self.anchors.insert((anchor.position_id, anchor.offset, anchor.rid), anchor.clone());
            assert!(before.is_none(), "an anchor twice: {anchor:?}");
        }
        for dead in &batch.dead {
            let before = self.dead.insert((dead.position_id, dead.offset), dead.clone());
            assert!(before.is_none(), "a dead letter twice: {dead:?}");
        }
        for cancel in &batch.cancels {
            self.cancel(cancel);
        }
        for row in &batch.deltas_after {
            self.append_delta(row);
        }
        for row in &batch.keyframes_after {
            self.append_keyframe(row);
        }
        for change in &batch.registry {
            let row = self.records.get_mut(&change.rid).expect("a registered record");
            row.row_key = change.row_key.clone();
            row.floor = change.floor;
            row.unshown = Unshown::from_bytes(change.unshown.to_bytes().as_deref());
        }
        for change in &batch.keys {
            let key = (batch.object_id, change.key.clone());
            match &change.old {
                Some(old) => self.old_keys.insert(key, (old.rid, old.lsn, old.ts)),
                None => self.old_keys.remove(&key),
            };
            let key = (batch.source_id, change.key.clone());
            if change.pending.is_empty() {
                self.pending.remove(&key);
            } else {
                self.pending.insert(key, change.pending.clone());
            }
        }
        for advance in &batch.advances {
            self.advance(advance);
        }
    }

    // ---- late events ----------------------------------------------------------------------------------

    /// Places what is late of one object's records; returns the records that were rewritten, and why others were not.
    pub fn place_late(&mut self, facts: &ObjectFacts, now: Micros) -> (Vec<String>, Vec<(String, Unplaceable)>) {
        let waiting: BTreeSet<i32> = (self.late.values())
            .filter(|late| late.outcome.is_none() && self.records[&late.event.rid].object_id == facts.object_id)
            .map(|late| late.event.rid)
            .collect();
        let (mut rewritten, mut left) = (Vec::new(), Vec::new());
        for rid in waiting {
            let row = self.records[&rid].clone();
            let mut record = Record::registered(rid, row.home, row.row_key.clone());
            record.floor = row.floor;
            record.unshown = row.unshown.clone();
            let versions = self.stored_versions(rid);
            let of_anchors = self.anchors.values().map(|anchor| (anchor, Kept::Anchor));
            let of_late = (self.late.values())
                .map(|late| (&late.event, if late.outcome.is_some() { Kept::Placed } else { Kept::Late }));
            let events: Vec<KeptEvent> = of_anchors
                .chain(of_late)
                .filter(|(event, _)| event.rid == rid)
                .map(|(event, kept)| KeptEvent { row: event.clone(), kept })
                .collect();
            match splice(facts, &row.sfid, &record, &versions, &events, now) {
                Ok(splice) => {
                    rewritten.extend(splice.from.map(|_| row.sfid.clone()));
                    self.rewrite(rid, &splice);
                }
                Err(reason) => left.push((row.sfid.clone(), reason)),
            }
        }
        (rewritten, left)
    }

    fn stored_versions(&self, rid: i32) -> Vec<StoredVersion> {
        let first = self.keyframes.get(&(rid, 0)).map(|(at, d)| (0, 0, *at, d.clone()));
        let deltas = self.deltas.range((rid, 0, 0)..=(rid, i32::MAX, u8::MAX));
        let all = first.into_iter().chain(deltas.map(|((_, kf, n), (at, d))| (*kf, *n, *at, d.clone())));
        all.map(|(kf, n, at, d)| StoredVersion {
            seq: kf as u32 * CHAIN + u32::from(n),
            row: HistoryRow { rid, kf, at, d },
        })
        .collect()
    }

    fn rewrite(&mut self, rid: i32, splice: &Splice) {
        if let (Some(from), Some(keyframe)) = (splice.from, splice.from_keyframe()) {
            let before = self.deltas.len() + usize::from(self.keyframes.contains_key(&(rid, 0)));
            self.deltas.retain(|(of, kf, n), _| *of != rid || (*kf as u32 * CHAIN + u32::from(*n)) < from);
            self.keyframes.retain(|(of, kf), _| *of != rid || *kf < keyframe);
            let after = self.deltas.len() + usize::from(self.keyframes.contains_key(&(rid, 0)));
            assert_eq!((before - after) as i64, splice.removed, "as many go as are counted");
            for row in &splice.deltas {
                self.append_delta(row);
            }
            for row in &splice.keyframes {
                self.append_keyframe(row);
            }
            let home = self.records[&rid].home.expect("a record with a history has a home");
            let counters = &mut self.positions.get_mut(&home).expect("its row").counters;
            counters.add(Counter::RowsWritten, splice.written());
            counters.add(Counter::RowsCancelled, splice.removed);
        }
        if let Some(anchor) = &splice.anchor {
            self.anchors.entry((anchor.position_id, anchor.offset, rid)).or_insert(anchor.clone());
        }
        let row = self.records.get_mut(&rid).expect("a registered record");
        (row.floor, row.unshown) = (splice.floor, splice.unshown.clone());
        for (position, offset, version) in &splice.placed {
            self.late.get_mut(&(*position, *offset, rid)).expect("a late event").outcome = Some(*version);
        }
    }

    fn take_over(&mut self, change: &RegistryChange) {
        let head = self.head_id(change.rid);
        let row = self.records.get_mut(&change.rid).expect("a registered record");
        match &change.taken_from {
            Some(seen) => {
                assert_eq!(seen.home, row.home, "record {} was taken meanwhile", change.rid);
                assert_eq!(seen.floor, row.floor, "record {} has another floor", change.rid);
                assert_eq!(seen.head, head, "record {} has another newest version", change.rid);
                row.home = Some(change.home);
            }
            None => assert_eq!(row.home, Some(change.home), "record {} changes its home unsaid", change.rid),
        }
    }

    fn head_id(&self, rid: i32) -> Option<HeadId> {
        let row = &self.records[&rid];
        self.record(row.object_id, &row.sfid)?.head_id()
    }

    fn append_delta(&mut self, row: &HistoryRow) {
        let n = row.d[1] & 63;
        assert!(row.kf != 0 || n != 0, "version 0 is a keyframe");
        let before = self.deltas.insert((row.rid, row.kf, n), (row.at, row.d.clone()));
        assert!(before.is_none(), "two rows for version {} of chain {} of record {}", n, row.kf, row.rid);
    }

    fn append_keyframe(&mut self, row: &HistoryRow) {
        let before = self.keyframes.insert((row.rid, row.kf), (row.at, row.d.clone()));
        assert!(before.is_none(), "keyframe {} of record {} twice", row.kf, row.rid);
    }

    fn cancel(&mut self, cancel: &Cancel) {
        let (at, d) =
            self.deltas.remove(&(cancel.rid, cancel.kf, cancel.n)).expect("the delete to be taken back is there");
        assert_eq!((at, d[0] & 7), (cancel.at, VersionOp::Delete as u8), "what is taken back is that delete");
        if cancel.with_keyframe {
            assert!(self.keyframes.remove(&(cancel.rid, cancel.kf)).is_some(), "its keyframe goes with it");
        }
    }

    fn advance(&mut self, advance: &Advance) {
        let row = self.positions.get_mut(&advance.position_id).expect("a known position");
        assert_eq!(advance.from, row.next, "position {} is not where the batch was built on", advance.position_id);
        row.next = advance.to;
        if advance.passage.passed() >= row.passage.passed() {
            // As it is read back.
            row.passage = Passage::from(advance.passage.passed(), advance.passage.rows().as_deref());
        }
        for (sum, n) in row.counters.0.iter_mut().zip(advance.counters.0) {
            *sum += n;
        }
    }

    // ---- reading --------------------------------------------------------------------------------------

    /// All versions of a record, oldest first.
    pub fn versions(&self, rid: i32) -> Vec<Stored> {
        let object_id = self.records[&rid].object_id;
        let stamp_no = self.system_no(object_id, "systemmodstamp");
        let read = |seq, at: Micros, d: &[u8]| {
            let (header, fields) = format::decode(at, d, stamp_no).expect("a stored version can be read");
            Stored { seq, at, header, fields }
        };
        let first = self.keyframes.get(&(rid, 0)).map(|(at, d)| read(0, *at, d));
        let rest = self
            .deltas
            .range((rid, 0, 0)..=(rid, i32::MAX, u8::MAX))
            .map(|((_, kf, n), (at, d))| read(*kf as u32 * CHAIN + u32::from(*n), *at, d));
        first.into_iter().chain(rest).collect()
    }

    /// A record's history as `changes` shows it.
    pub fn changes(&self, org: &str, object: &str, sfid: &str) -> Vec<Change> {
        let at = self.objects.iter().position(|row| row.org == org && row.name == object);
        let rid = at.and_then(|at| self.rid(at as i16 + 1, sfid));
        rid.map_or(Vec::new(), |rid| self.changes_of(rid))
    }

    pub fn changes_of(&self, rid: i32) -> Vec<Change> {
        let object_id = self.records[&rid].object_id;
        let names: HashMap<FieldNo, &Field> =
            self.object(object_id).fields.iter().map(|field| (field.no, field)).collect();
        let mut image = Image::default();
        let mut changes = Vec::new();
        for version in self.versions(rid) {
            let mut fields = BTreeMap::new();
            for (no, value) in version.fields {
                let field = names[&no];
                if field.class != Class::Visible {
                    continue;
                }
                let old = image.get(no).map(Value::from);
                image.set(no, value.view());
                let first = matches!(version.header.op, VersionOp::Baseline | VersionOp::Create);
                if !(first && value == Value::Null) {
                    fields.insert(field.name.clone(), (old, value));
                }
            }
            let position = &self.positions[&version.header.position_id];
            let topic = self.sources.iter().find(|(_, ids)| ids.0 == position.source_id);
            changes.push(Change {
                seq: version.seq,
                op: version.header.op,
                at: version.at,
                stamp: version.header.stamp,
                local: version.header.local,
                partition: position.partition,
                offset: version.header.offset,
                topic: topic.map(|(name, _)| name.clone()).unwrap_or_default(),
                fields,
            });
        }
        changes
    }

    /// The last image by field name, all fields; and whether the record lives.
    pub fn image(&self, org: &str, object: &str, sfid: &str) -> Option<(bool, BTreeMap<String, Value>)> {
        let object_id = self.objects.iter().position(|row| row.org == org && row.name == object)? as i16 + 1;
        let record = self.record(object_id, sfid)?;
        record.head.as_ref()?;
        let fields = &self.object(object_id).fields;
        let named = record.image.fields().map(|(no, value)| {
            let field = fields.iter().find(|field| field.no == no).expect("a field of the dictionary");
            (field.name.clone(), value.into())
        });
        Some((!record.is_deleted(), named.collect()))
    }

    /// Everything that must not depend on how the messages were read, ordered by org, object and sfid: no registry
    /// numbers, no times of ours.
    pub fn export(&self) -> Vec<(String, String, String, Change)> {
        let mut all = Vec::new();
        for (rid, row) in &self.records {
            let object = self.object(row.object_id);
            for change in self.changes_of(*rid) {
                all.push((object.org.clone(), object.name.clone(), row.sfid.clone(), change));
            }
        }
        all.sort_by(|a, b| (&a.0, &a.1, &a.2, a.3.seq).cmp(&(&b.0, &b.1, &b.2, b.3.seq)));
        all
    }

    /// Sum of one outcome over all positions.
    pub fn count(&self, counter: Counter) -> i64 {
        self.positions.values().map(|row| row.counters.get(counter)).sum()
    }

    // ---- soundness ------------------------------------------------------------------------------------

    /// What must be true of any sink at any commit: conservation, whole chains, keyframes that are the fold, no delta
    /// without a change, one owner per key.
    pub fn check(&self) {
        self.check_conservation();
        let mut held = BTreeSet::new();
        for (rid, row) in &self.records {
            let versions = self.versions(*rid);
            if versions.is_empty() {
                continue;
            }
            if let Some(key) = &row.row_key {
                assert!(held.insert((row.object_id, key.clone())), "two records hold the key {key}");
            }
            self.check_chain(*rid, row, &versions);
        }
    }

    fn check_conservation(&self) {
        let mut rows = 0;
        for (id, row) in &self.positions {
            assert_eq!(row.next - row.first_next, row.counters.events(), "L1 of position {id}: {:?}", row.counters);
            let n = |counter| row.counters.get(counter);
            rows +=
                n(Counter::RowsWritten) - n(Counter::RowsCancelled) - n(Counter::RowsErased) - n(Counter::RowsRetired);
        }
        let stored = self.deltas.len() + self.keyframes.keys().filter(|(_, kf)| *kf == 0).count();
        assert_eq!(stored as i64, rows, "L2: rows stored against rows counted");
        assert_eq!(self.late.len() as i64, self.count(Counter::Stale), "every stale event is kept");
        assert_eq!(self.dead.len() as i64, self.count(Counter::Dead), "every dead letter is kept");
    }

    fn check_chain(&self, rid: i32, row: &RecordRow, versions: &[Stored]) {
        let who = &row.sfid;
        let fields = &self.object(row.object_id).fields;
        let field = |no: FieldNo| fields.iter().find(|field| field.no == no).expect("a field of the dictionary");
        let mut image = Image::default();
        let (mut live, mut at) = (false, Micros::MIN);
        for (place, version) in versions.iter().enumerate() {
            let Stored { seq, header, .. } = version;
            assert_eq!(*seq, place as u32, "{who}: versions are numbered without holes");
            assert!(version.at >= at, "{who} {seq}: time falls");
            at = version.at;
            if *seq > 0 && seq % CHAIN == 0 {
                self.check_keyframe(rid, row, (seq / CHAIN) as i32, &image, &versions[place - 1]);
            }
            let first = matches!(header.op, VersionOp::Baseline | VersionOp::Create);
            assert_eq!(first, *seq == 0, "{who} {seq}: {:?}", header.op);
            let lived = std::mem::replace(&mut live, header.op != VersionOp::Delete);
            match header.op {
                VersionOp::Undelete => assert!(!lived, "{who} {seq}: an undelete of a live record"),
                VersionOp::Baseline | VersionOp::Create => {}
                _ => assert!(lived, "{who} {seq}: {:?} of a deleted record", header.op),
            }
            let mut visible = 0;
            for (no, value) in &version.fields {
                let field = field(*no);
                if let Value::Text(text) = value {
                    assert!(!text.starts_with("__debezium_unavailable_value\0"), "{who} {seq}: {}", field.name);
                    assert!(&**text != "__debezium_unavailable_value", "{who} {seq}: placeholder in {}", field.name);
                }
                if field.class != Class::Visible {
                    assert_eq!(field.class, Class::System, "{who} {seq}: {} is stored", field.name);
                    continue;
                }
                visible += 1;
                let same = match (image.get(*no), value.view()) {
                    (Some(ValueRef::Text(old)), ValueRef::Text(new)) => old == new || field.kind.equal(old, new),
                    (None, ValueRef::Null) => *seq > 0,
                    (old, new) => old == Some(new),
                };
                assert!(!same, "{who} {seq}: {} has not changed", field.name);
                assert!(*seq == 0 || *value != Value::Unknown, "{who} {seq}: {} becomes unknown", field.name);
                image.set(*no, value.view());
            }
            match header.op {
                VersionOp::Update | VersionOp::Backfill => assert!(visible > 0, "{who} {seq}: nothing changed"),
                VersionOp::Delete => assert_eq!(visible, 0, "{who} {seq}: a delete with fields"),
                _ => {}
            }
        }
        let chains = versions.last().map_or(0, |last| last.seq / CHAIN) as i32;
        let keyframes: Vec<i32> = self.keyframes.range((rid, 0)..=(rid, i32::MAX)).map(|((_, kf), _)| *kf).collect();
        assert_eq!(keyframes, (0..=chains).collect::<Vec<_>>(), "{who}: one keyframe per chain");
        let read = self.record(row.object_id, who).expect("a registered record");
        assert_eq!(read.image, image, "{who}: the last chain and the whole history fold to one image");
        assert_eq!(read.is_deleted(), !live, "{who}");
        assert!(live || row.row_key.is_none(), "{who}: a deleted record holds a key");
    }

    fn check_keyframe(&self, rid: i32, row: &RecordRow, kf: i32, image: &Image, shown: &Stored) {
        let who = &row.sfid;
        let (at, d) = self.keyframes.get(&(rid, kf)).unwrap_or_else(|| panic!("{who}: chain {kf} has no keyframe"));
        let (header, fields) =
            format::decode(*at, d, self.system_no(row.object_id, "systemmodstamp")).expect("a keyframe can be read");
        let head = (header.op, *at, header.position_id, header.offset, header.raw_at, header.no_source_time);
        let want = &shown.header;
        let want = (want.op, shown.at, want.position_id, want.offset, want.raw_at, want.no_source_time);
        assert_eq!(head, want, "{who}: keyframe {kf} shows the version before it");
        assert!(header.lsn == shown.header.lsn || shown.header.lsn == 0, "{who}: keyframe {kf}");
        assert_eq!(header.n, 0, "{who}: keyframe {kf}");
        let visible = fields.into_iter().filter(|(no, _)| {
            self.object(row.object_id).fields.iter().any(|field| field.no == *no && field.class == Class::Visible)
        });
        assert_eq!(&Image::new(visible), image, "{who}: keyframe {kf} is the fold of all before it");
    }
}
