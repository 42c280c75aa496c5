//! Versions and keyframes in their stored form (protocol D16, D17).

use super::{Arrival, Judge, Travel};
use crate::core::batch::HistoryRow;
use crate::core::event::{FieldNo, Micros};
use crate::core::format::{self, Header, VersionOp};
use crate::core::image::Image;
use crate::core::position::Counter;
use crate::core::record::{CHAIN, Version};
use crate::core::value::calendar::timestamp_text;
use crate::core::value::{Kind, Value};

impl Judge<'_> {
    pub(super) fn header(&self, arrival: &Arrival<'_>, op: VersionOp, n: u8, at: Micros, travel: Travel<'_>) -> Header {
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

    pub(super) fn add_system(&self, fields: &mut Vec<(FieldNo, Value)>, travel: &Travel<'_>, known_by: Option<&str>) {
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

    pub(super) fn write(
        &mut self,
        arrival: &Arrival<'_>,
        identity: &str,
        op: VersionOp,
        time: Micros,
        travel: Travel<'_>,
        fields: Vec<(FieldNo, Value)>,
    ) {
        let rid = self.record(identity).rid;
        self.note_values(arrival, rid, &fields);
        let record = self.record(identity);
        let before = record.head.clone();
        let known_by = record.modified_by.clone();
        let seq = before.as_ref().map_or(0, |head| head.seq + 1);
        let at = before.as_ref().map_or(time, |head| head.at.max(time));
        let (kf, n) = ((seq / CHAIN) as i32, (seq % CHAIN) as u8);

        let mut header = self.header(arrival, op, n, at, travel);
        // A version may be older than its event (an insert that waited for its id) or newer (times that fall):
        // the event's own time is kept for the order of events.
        header.raw_at = arrival.ts().filter(|ts| *ts != at);
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
            let keyframe = self.keyframe(rid, kf, before, &record.image, record.stamp, known_by.as_deref());
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

        let record = self.record_mut(identity);
        record.before_delete = if op == VersionOp::Delete { before } else { None };
        record.head = Some(version);
        if op != VersionOp::Delete {
            record.deleted_key = None;
        }
        if seq == 0 {
            record.image = Image::new(fields);
        } else {
            for (no, value) in fields {
                record.image.set(no, value.view());
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

    /// Notes values of lookup fields, and values that do not fit the type declared for their field.
    fn note_values(&mut self, arrival: &Arrival<'_>, rid: i32, fields: &[(FieldNo, Value)]) {
        for (no, value) in fields {
            let Value::Text(text) = value else { continue };
            if self.object.lookups.contains(no) {
                self.batch.push_lookup(*no, rid, text);
            }
            if !fits(self.object.kind(*no), text) {
                self.batch.note_misfit(*no, arrival.position_id, arrival.offset);
            }
        }
    }

    /// The keyframe that opens chain `kf`: the state after the chain before it.
    pub(super) fn keyframe(
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
        let mut fields: Vec<(FieldNo, Value)> = image.fields().map(|(no, value)| (no, value.into())).collect();
        if let (Some(no), Some(by)) = (self.object.modified_by_no, modified_by) {
            fields.push((no, Value::Text(by.into())));
            fields.sort_by_key(|(no, _)| *no);
        }
        let d = format::encode(shown.at, &header, self.object.stamp_no, &fields);
        HistoryRow { rid, kf, at: shown.at, d }
    }
}

/// Whether a stored text is a value of its field's type. Most are what they seem at first glance; only the others are read.
fn fits(kind: Kind, text: &str) -> bool {
    let bytes = text.as_bytes();
    let seems = match kind {
        Kind::Text | Kind::Json => true,
        Kind::Bool => text == "t" || text == "f",
        Kind::Int2 | Kind::Int4 | Kind::Int8 => matches!(bytes.len(), 1..5) && bytes.iter().all(u8::is_ascii_digit),
        Kind::Float4 | Kind::Float8 | Kind::Numeric => {
            let digits = bytes.iter().filter(|b| b.is_ascii_digit()).count();
            let last_is_digit = bytes.last().is_some_and(u8::is_ascii_digit);
            let point = bytes.len() - digits == 1 && bytes[0].is_ascii_digit() && bytes.contains(&b'.');
            bytes.len() < 16 && last_is_digit && (digits == bytes.len() || point)
        }
        // As it prints: `canonical` reads only what a connector sends.
        Kind::Interval => [":", "year", "mon", "day"].iter().any(|part| text.contains(part)),
        _ => false,
    };
    // What a type can't hold stays visible with its unit.
    seems || (kind.canonical(text).is_some() && !text.starts_with("day:") && !text.starts_with("us:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_type_or_not() {
        for (kind, text) in [
            (Kind::Text, "anything"),
            (Kind::Bool, "t"),
            (Kind::Int2, "-32768"),
            (Kind::Int4, "7"),
            (Kind::Float8, "1.5e+300"),
            (Kind::Float8, "NaN"),
            (Kind::Numeric, "12345678901234567890.5"),
            (Kind::Date, "2026-03-31"),
            (Kind::Date, "infinity"),
            (Kind::Timestamp, "2026-03-31 10:00:00.5"),
            (Kind::Timestamp, "0044-03-15 00:00:00 BC"),
            (Kind::TimestampTz, "2026-03-31 10:00:00+00"),
            (Kind::Time, "24:00:00"),
            (Kind::TimeTz, "10:00:00+00"),
            (Kind::Interval, "00:00:00"),
            (Kind::Interval, "1 year -2 mons +3 days -04:05:06.789"),
            (Kind::Bytea, "\\x00ff"),
            (Kind::Uuid, "0e37df36-f698-11e6-8dd4-cb9ced3df976"),
        ] {
            assert!(fits(kind, text), "{kind:?} {text}");
        }
        for (kind, text) in [
            (Kind::Bool, "maybe"),
            (Kind::Int2, "32768"),
            (Kind::Int4, "1.5"),
            (Kind::Int4, ""),
            (Kind::Float8, "1.2.3"),
            (Kind::Float8, "."),
            (Kind::Float8, "soon"),
            (Kind::Numeric, ""),
            (Kind::Date, "soon"),
            (Kind::Date, "day:123456789012"),
            (Kind::Timestamp, "us:9"),
            (Kind::Interval, "now"),
            (Kind::Uuid, "1"),
        ] {
            assert!(!fits(kind, text), "{kind:?} {text}");
        }
    }
}
