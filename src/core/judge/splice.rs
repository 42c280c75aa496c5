//! Puts what was read too late into its place in a record's history (protocol D20, part 3).
//!
//! The stored chain alone cannot be spliced into: a version holds only the fields that changed, and an event that moved
//! the record to another key without a change left no version at all. So besides the late events themselves the *anchors*
//! take part: every event that moved the record, and every judged delete, whole. All that lies at or behind the earliest
//! event still to be placed is put in order of source time and LSN, deletes first, and its content is judged again on the
//! image that the versions before it give. Order and keys were decided when the events were read; they are not touched.
//!
//! Versions keep their order among themselves. One that came from a kept event, or from one that was delivered again as a late
//! one, is replaced by it, the others bring the fields that they changed.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::xxh3_64;

use super::{Arrival, Judge, ObjectFacts};
use crate::core::batch::{HistoryRow, KeptRow, LookupValue, OpenBatch};
use crate::core::event::{Event, FieldNo, Lsn, Micros, Op, Row};
use crate::core::fold;
use crate::core::format::{self, Header, VersionOp};
use crate::core::front::Front;
use crate::core::overlay::Overlay;
use crate::core::position::PositionId;
use crate::core::record::{CHAIN, Floor, Record, Version};
use crate::core::unshown::Unshown;
use crate::core::value::calendar::{Parsed, parse};
use crate::core::value::{Value, ValueRef};

/// A stored version, in the order of `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVersion {
    /// `seq = 64 · kf + n`, without holes from 0 on.
    pub seq: u32,
    /// Its row as it stands in the sink: of `delta`, or of `keyframe` for version 0.
    pub row: HistoryRow,
}

/// An event that was kept whole, and why. Its key takes no part: keys were decided when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptEvent {
    /// The event.
    pub row: KeptRow,
    /// Why it was kept.
    pub kept: Kept,
}

/// Why an event was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It moved the record or deleted it, and was judged in its turn.
    Anchor,
    /// It was read too late, and waits for its place.
    Late,
    /// It was late, and was placed before.
    Placed,
}

/// What has to be rewritten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Splice {
    /// Versions from this number on are replaced, and so are the keyframes that show a version from it on; `None` = the
    /// stored ones are right.
    pub from: Option<u32>,
    /// Versions that go.
    pub removed: i64,
    /// New `delta` rows.
    pub deltas: Vec<HistoryRow>,
    /// New `keyframe` rows.
    pub keyframes: Vec<HistoryRow>,
    /// Values that lookup fields have in them.
    pub lookups: Vec<LookupValue>,
    /// The record's floor from now on.
    pub floor: Floor,
    /// What rests on rows that left no version, from now on.
    pub unshown: Unshown,
    /// What was the first version and is not any more, as an anchor: only its whole row can still tell what came before it.
    pub anchor: Option<KeptRow>,
    /// Every late event that took part: position, offset, and whether history has a version of it.
    pub placed: Vec<(PositionId, i64, bool)>,
}

impl Splice {
    /// Versions written: `delta` rows, and a first keyframe.
    pub fn written(&self) -> i64 {
        (self.deltas.len() + self.keyframes.iter().filter(|row| row.kf == 0).count()) as i64
    }

    /// The first keyframe that is replaced.
    pub fn from_keyframe(&self) -> Option<i32> {
        self.from.map(first_keyframe)
    }
}

/// Why the late events of a record keep waiting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unplaceable {
    /// Something newer than all of them is missing among the anchors: the last image would not come out.
    #[error("the event that moved the record after them was not kept")]
    NoAnchor,
    /// A row cannot be read.
    #[error(transparent)]
    Stored(#[from] format::FormatError),
}

/// A place in the source's order: time, LSN, deletes first.
type Place = (Micros, Lsn, bool);

/// Something that takes its turn in the scene.
struct Entry<'a> {
    at: Micros,
    header: Header,
    fields: Vec<(FieldNo, Value)>,
    what: What<'a>,
}

enum What<'a> {
    /// A version, and who was known as its last modifying user.
    Version(Option<Box<str>>),
    Event(&'a KeptRow, Kept),
}

/// Places the late events of one record. `record` brings number, home, key and floor, no image; `versions` are all it has;
/// `events` are all that was kept of it, each once. Without anything to place nothing changes.
///
/// # Errors
/// [`Unplaceable`]: the stored history stays as it is.
pub fn splice(
    object: &ObjectFacts,
    identity: &str,
    record: &Record,
    versions: &[StoredVersion],
    events: &[KeptEvent],
    now: Micros,
) -> Result<Splice, Unplaceable> {
    let Some(start) = events.iter().filter(|event| event.kept == Kept::Late).map(place_of).min() else {
        return Ok(Splice { floor: record.floor, unshown: record.unshown.clone(), ..Splice::default() });
    };
    let taking_part: Vec<&KeptEvent> = events.iter().filter(|event| place_of(event) >= start).collect();
    let replaced: BTreeSet<(PositionId, i64)> =
        taking_part.iter().map(|event| (event.row.position_id, event.row.offset)).collect();

    // An event that comes again as a late one, under another life of its topic, is its version's own: one record has one row
    // at one place of the log.
    let again: BTreeSet<(Micros, Lsn)> = (taking_part.iter())
        .filter(|event| event.row.op != Op::Delete && event.row.lsn != 0)
        .map(|event| (event.row.at, event.row.lsn))
        .collect();

    // What stands before the earliest late event stays. The whole chain is folded besides, as it is.
    let mut before = record.clone();
    let mut whole = record.clone();
    let mut running = (Micros::MIN, 0, false);
    let mut entries: Vec<(Place, Entry<'_>)> = Vec::new();
    let mut from = None;
    for version in versions {
        let HistoryRow { at, d, .. } = &version.row;
        let (header, fields) = format::decode(*at, d, object.stamp_no)?;
        fold::step_decoded(object, &mut whole, version.seq, *at, &header, &fields);
        running = running.max(place_of_version(&whole));
        let of_kept = replaced.contains(&(header.position_id, header.offset))
            || header.op != VersionOp::Delete
                // What waited for its id stands before the event that brought it, and holds more.
                && header.raw_at.is_none_or(|raw| raw <= *at)
                && again.contains(&(header.raw_at.unwrap_or(*at), header.lsn));
        if from.is_none() && running < start && !of_kept {
            fold::step_decoded(object, &mut before, version.seq, *at, &header, &fields);
            if header.op != VersionOp::Delete && !header.local {
                let modified = if header.modified_is_stamp { header.stamp } else { None };
                before.system_hash = system_hash(header.stamp, modified, before.modified_by.as_deref());
            }
            continue;
        }
        from.get_or_insert(version.seq);
        if !of_kept {
            let what = What::Version(whole.modified_by.clone());
            entries.push((running, Entry { at: *at, header, fields, what }));
        }
    }
    let from = from.unwrap_or(versions.len() as u32);
    for event in taking_part.iter().copied() {
        let row = &event.row;
        let (header, fields) = match &row.d {
            Some(d) => format::decode(row.at, d, object.stamp_no)?,
            None => (header_of_delete(row), Vec::new()),
        };
        let header = Header { recorded: row.recorded, ..header };
        entries.push((place_of(event), Entry { at: row.at, header, fields, what: What::Event(row, event.kept) }));
    }
    // Stable: at equal places versions come first.
    entries.sort_by_key(|(place, _)| *place);

    // What the recorded clock shows of the versions behind a late one stays as it is: that one counts as recorded
    // together with the next.
    let mut recorded = now;
    for (_, entry) in entries.iter_mut().rev() {
        recorded = recorded.min(entry.header.recorded);
        entry.header.recorded = recorded;
    }
    // Whether a whole row that was judged in its turn stands behind the newest late one.
    let mut vouched = true;
    let mut scene = Scene::new(object, identity, before);
    let mut anchor = None;
    for (_, Entry { at, header, fields, what }) in entries {
        match what {
            What::Version(user) => {
                vouched |= is_first(&header);
                if is_first(&header) && scene.record().head.is_some() {
                    anchor = versions.first().map(|first| first_as_event(&header, first));
                }
                scene.version(&header, fields, user, at);
            }
            What::Event(event, kept) => {
                vouched = match (kept, &event.d) {
                    (_, None) => vouched,
                    // One that shows a field may hide others.
                    (Kept::Anchor, _) => vouched || event.moved,
                    (Kept::Late, _) => false,
                    (Kept::Placed, _) => vouched,
                };
                scene.event(event, &header, fields);
            }
        }
    }
    let after = scene.record();
    if !vouched && changes_what_is_known(object, &whole, after) {
        return Err(Unplaceable::NoAnchor);
    }
    let floor = floor_after(record.floor, whole.head.as_ref(), after.head.as_ref());
    let shown = last_whole_row(object, versions, events, anchor.as_ref())?;
    let unshown = record.unshown.after_splice(&after.image, &shown);
    let mut splice = scene.into_splice(versions, from);
    splice.unshown = if splice.from.is_some() { unshown } else { record.unshown.clone() };
    splice.floor = floor;
    splice.anchor = anchor;
    let kept = versions.iter().take(splice.from.map_or(versions.len(), |from| from as usize)).map(|one| &one.row);
    let stored: BTreeSet<(PositionId, i64)> = kept
        .chain(&splice.deltas)
        .chain(splice.keyframes.iter().filter(|row| row.kf == 0))
        .filter_map(|row| format::decode_header(row.at, &row.d).ok())
        .map(|header| (header.position_id, header.offset))
        .collect();
    let late = taking_part.iter().filter(|event| event.kept != Kept::Anchor);
    splice.placed = late
        .map(|KeptEvent { row, .. }| (row.position_id, row.offset, stored.contains(&(row.position_id, row.offset))))
        .collect();
    Ok(splice)
}

/// The fields that the newest anchor showed, or else the first version. Where that anchor did not move the record, others
/// since the move may have shown more: what this one lacks is looked for once again.
fn last_whole_row(
    object: &ObjectFacts,
    versions: &[StoredVersion],
    events: &[KeptEvent],
    anchor: Option<&KeptRow>,
) -> Result<Vec<(FieldNo, Value)>, Unplaceable> {
    let anchors = events.iter().filter(|event| event.kept == Kept::Anchor).map(|event| &event.row);
    let newest = anchors.chain(anchor).filter(|row| row.d.is_some()).max_by_key(|row| (row.at, row.lsn));
    let stored = match (newest, versions.first()) {
        (Some(row), _) => row.d.as_ref().map(|d| (row.at, d)),
        (None, first) => first.map(|first| (first.row.at, &first.row.d)),
    };
    match stored {
        Some((at, d)) => Ok(format::decode(at, d, object.stamp_no)?.1),
        None => Ok(Vec::new()),
    }
}

fn header_of_delete(row: &KeptRow) -> Header {
    Header {
        op: VersionOp::Delete,
        n: 0,
        local: false,
        no_source_time: false,
        raw_at: None,
        stamp: None,
        modified_is_stamp: false,
        position_id: row.position_id,
        offset: row.offset,
        lsn: row.lsn,
        recorded: row.recorded,
    }
}

fn is_first(header: &Header) -> bool {
    matches!(header.op, VersionOp::Baseline | VersionOp::Create)
}

/// The event of a first sight. Of a snapshot's only its missing place in the log tells; all others are taken for inserts:
/// what comes before a record's first sight is a delete at most, and then an insert was between.
fn op_of_first(header: &Header) -> Op {
    if header.lsn == 0 { Op::Read } else { Op::Create }
}

fn first_as_event(header: &Header, version: &StoredVersion) -> KeptRow {
    KeptRow {
        position_id: header.position_id,
        offset: header.offset,
        rid: version.row.rid,
        op: op_of_first(header),
        row_key: "".into(),
        lsn: header.lsn,
        at: version.row.at,
        d: Some(version.row.d.clone()),
        recorded: header.recorded,
        moved: true,
    }
}

fn place_of(event: &KeptEvent) -> Place {
    (event.row.at, event.row.lsn, event.row.op != Op::Delete)
}

fn place_of_version(record: &Record) -> Place {
    let head = record.head.as_ref().expect("a version was folded");
    // One without a usable source time stands where its valid-from time puts it.
    (head.ts().unwrap_or(head.at), head.lsn, head.op != VersionOp::Delete)
}

/// The first keyframe that shows, or is, a version from this one on.
fn first_keyframe(from: u32) -> i32 {
    from.div_ceil(CHAIN) as i32
}

/// Whether a known value of the last image would become another one.
///
/// With a whole row behind the late ones it may: a field that this row lacks (its mapping lost it, or it is a long text
/// that was not touched) keeps what the late event gave it. Without one it must not: then what moved the record after the
/// late events is missing here.
fn changes_what_is_known(object: &ObjectFacts, known: &Record, after: &Record) -> bool {
    known.image.fields().any(|(no, old)| match (old, after.image.get(no)) {
        (ValueRef::Unknown, _) => false,
        (ValueRef::Text(old), Some(ValueRef::Text(new))) => old != new && !object.kind(no).equal(old, new),
        (old, new) => new != Some(old),
    })
}

/// A splice never lowers the record's last place: where the newest version no longer gives it, the floor does.
fn floor_after(floor: Floor, former: Option<&Version>, head: Option<&Version>) -> Floor {
    let place = |version: Option<&Version>| version.map_or((None, 0), |version| (version.ts(), version.lsn));
    let former = place(former);
    if former.0.is_some() && former > place(head) && former > (floor.ts, floor.lsn) {
        Floor { ts: former.0, lsn: former.1 }
    } else {
        floor
    }
}

/// A record of its own that is judged once more.
struct Scene<'a> {
    object: &'a ObjectFacts,
    identity: &'a str,
    overlay: Overlay,
    batch: OpenBatch,
    front: Front,
}

impl<'a> Scene<'a> {
    fn new(object: &'a ObjectFacts, identity: &'a str, before: Record) -> Self {
        let mut overlay = Overlay::default();
        overlay.load_record(identity.into(), before);
        Scene { object, identity, overlay, batch: OpenBatch::new(1), front: Front::new(0) }
    }

    fn record(&self) -> &Record {
        &self.overlay.record(self.identity).expect("loaded at the start").record
    }

    fn judge(&mut self) -> Judge<'_> {
        Judge { object: self.object, overlay: &mut self.overlay, batch: &mut self.batch, front: &mut self.front }
    }

    /// A version that came from no kept event: what it changed, where that still differs.
    fn version(&mut self, header: &Header, fields: Vec<(FieldNo, Value)>, user: Option<Box<str>>, at: Micros) {
        let first = is_first(header);
        let op = match header.op {
            VersionOp::Delete => Op::Delete,
            _ if first => op_of_first(header),
            _ => Op::Update,
        };
        let user = user.filter(|_| !header.local && op != Op::Delete);
        let event = self.event_of(op, header, &fields, user, at);
        let arrival = self.arrival(&event, header, fields, at);
        // A version may stand before its event (a row that waited for its id), or had to be moved up.
        let time = header.raw_at.map_or(at, |raw| raw.min(at));
        let identity = self.identity;
        let judge = &mut self.judge();
        let record = judge.record(identity);
        let (begun, live) = (record.head.is_some(), !record.is_deleted());
        let op = match header.op {
            _ if first && begun => {
                // What seemed the first sight of it was not. Judged by its whole row.
                judge.content(&arrival, identity);
                return;
            }
            VersionOp::Delete if !begun || !live => return,
            VersionOp::Delete => return judge.write(&arrival, identity, header.op, time, arrival.travel(), Vec::new()),
            op if first => op,
            _ if !live => VersionOp::Undelete,
            VersionOp::Undelete => VersionOp::Update,
            op => op,
        };
        let fields = if first { arrival.fields.clone() } else { judge.edits(identity, &arrival.fields) };
        if !fields.is_empty() || first || !live {
            judge.write(&arrival, identity, op, time, arrival.travel(), fields);
        }
        judge.remember_hashes(&arrival, identity);
    }

    /// A kept event, judged by its whole row.
    fn event(&mut self, kept: &KeptRow, header: &Header, fields: Vec<(FieldNo, Value)>) {
        let by = fields.iter().find(|(no, _)| Some(*no) == self.object.modified_by_no);
        let user = by.and_then(|(_, by)| Some(by.text()?.into()));
        let event = self.event_of(kept.op, header, &fields, user, kept.at);
        let arrival = self.arrival(&event, header, fields, kept.at);
        let identity = self.identity;
        let judge = &mut self.judge();
        let record = judge.record(identity);
        match (kept.op, record.head.is_some(), record.is_deleted()) {
            (Op::Delete, true, false) => {
                judge.write(&arrival, identity, VersionOp::Delete, arrival.time(), arrival.travel(), Vec::new());
            }
            (Op::Delete, ..) => {}
            (_, false, _) => {
                let op = if judge.is_create(&arrival) { VersionOp::Create } else { VersionOp::Baseline };
                judge.write(&arrival, identity, op, arrival.time(), arrival.travel(), arrival.fields.clone());
                judge.remember_hashes(&arrival, identity);
            }
            (_, true, _) => {
                judge.content(&arrival, identity);
            }
        }
    }

    fn event_of(
        &self,
        op: Op,
        header: &Header,
        fields: &[(FieldNo, Value)],
        user: Option<Box<str>>,
        at: Micros,
    ) -> Event {
        let object = self.object;
        let time_in = |no: Option<FieldNo>| {
            let (_, value) = fields.iter().find(|(field, _)| Some(*field) == no)?;
            micros(value.text()?)
        };
        let modified = if header.modified_is_stamp { header.stamp } else { time_in(object.modified_no) };
        let mut row = Row {
            stamp: object.stamp_no.map(|_| header.stamp),
            modified: object.modified_no.map(|_| modified),
            created: Some(time_in(object.created_no)),
            local: header.local,
            ..Row::default()
        };
        row.system_hash = system_hash(header.stamp, modified, user.as_deref());
        row.modified_by = object.modified_by_no.map(|_| user);
        let ts = (!header.no_source_time).then(|| header.raw_at.unwrap_or(at));
        Event { op, key: "".into(), identity: Some(self.identity.into()), lsn: header.lsn, ts, tx_id: None, row }
    }

    fn arrival<'e>(
        &self,
        event: &'e Event,
        header: &Header,
        mut fields: Vec<(FieldNo, Value)>,
        at: Micros,
    ) -> Arrival<'e> {
        let object = self.object;
        let system = [object.stamp_no, object.modified_no, object.modified_by_no];
        fields.retain(|(no, _)| !system.contains(&Some(*no)));
        Arrival {
            position_id: header.position_id,
            offset: header.offset,
            message_time: at,
            now: header.recorded,
            passed: false,
            event,
            fields,
            print: None,
        }
    }

    /// Its rows, less those that stand in the sink already.
    fn into_splice(mut self, versions: &[StoredVersion], from: u32) -> Splice {
        let sealed = self.batch.seal(&mut self.overlay, 0, self.object.object_id);
        let taken_back = sealed.cancels.iter().map(|cancel| cancel.kf as u32 * CHAIN + u32::from(cancel.n));
        let mut from = taken_back.fold(from, u32::min);
        let mut rows: BTreeMap<u32, HistoryRow> = BTreeMap::new();
        let mut keyframes: Vec<HistoryRow> = sealed.keyframes.into_iter().chain(sealed.keyframes_after).collect();
        if let Some(at) = keyframes.iter().position(|row| row.kf == 0) {
            rows.insert(0, keyframes.swap_remove(at));
        }
        for row in sealed.deltas.into_iter().chain(sealed.deltas_after) {
            rows.insert(row.kf as u32 * CHAIN + u32::from(row.d[1] & 63), row);
        }
        while let (Some(stored), Some(new)) = (versions.get(from as usize), rows.get(&from))
            && stored.row == *new
        {
            rows.remove(&from);
            from += 1;
        }
        let removed = versions.len() as i64 - i64::from(from);
        if removed == 0 && rows.is_empty() {
            return Splice::default();
        }
        let first = first_keyframe(from);
        keyframes.retain(|row| row.kf >= first);
        keyframes.extend(rows.remove(&0));
        keyframes.sort_by_key(|row| row.kf);
        Splice {
            from: Some(from),
            removed,
            deltas: rows.into_values().collect(),
            keyframes,
            lookups: sealed.lookups,
            ..Splice::default()
        }
    }
}

fn micros(text: &str) -> Option<Micros> {
    match parse(text)? {
        Parsed::Timestamp(micros) => i64::try_from(micros).ok(),
        Parsed::Infinite(true) => Some(i64::MAX),
        Parsed::Infinite(false) => Some(i64::MIN),
        Parsed::Date(days) => days.checked_mul(86_400_000_000),
    }
}

/// Stands for a row's system columns, as far as they are kept.
fn system_hash(stamp: Option<Micros>, modified: Option<Micros>, user: Option<&str>) -> u32 {
    let text = format!("{stamp:?} {modified:?} {user:?}");
    xxh3_64(text.as_bytes()) as u32
}
