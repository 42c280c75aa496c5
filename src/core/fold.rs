//! Folding stored versions back into the record that events are judged against.

use super::event::{FieldNo, Micros};
use super::format::{self, FormatError, Header, VersionOp};
use super::judge::ObjectFacts;
use super::record::{Record, Version};
use super::value::{Value, ValueRef};

/// Applies a stored version to a record, oldest first. `seq` is its number, `at` and `d` are its row.
///
/// # Errors
/// When `d` is not a stored version; the record is as before.
pub fn step(object: &ObjectFacts, record: &mut Record, seq: u32, at: Micros, d: &[u8]) -> Result<(), FormatError> {
    if record.image.fields().len() == 0 {
        record.image.reserve(32, d.len());
    }
    let header = format::decode_each(at, d, object.stamp_no, |no, value| step_field(object, record, no, value))?;
    step_header(record, seq, at, &header);
    Ok(())
}

/// The same for a version that is decoded already.
pub fn step_decoded(
    object: &ObjectFacts,
    record: &mut Record,
    seq: u32,
    at: Micros,
    header: &Header,
    fields: &[(FieldNo, Value)],
) {
    fields.iter().for_each(|(no, value)| step_field(object, record, *no, value.view()));
    step_header(record, seq, at, header);
}

fn step_header(record: &mut Record, seq: u32, at: Micros, header: &Header) {
    let before = record.head.take();
    let lsn = if header.lsn != 0 { header.lsn } else { before.as_ref().map_or(0, |head| head.lsn) };
    record.head = Some(Version {
        seq,
        op: header.op,
        at,
        raw_at: header.raw_at,
        no_source_time: header.no_source_time,
        lsn,
        position_id: header.position_id,
        offset: header.offset,
        recorded: header.recorded,
    });
    record.before_delete = if header.op == VersionOp::Delete { before } else { None };
    if header.stamp.is_some() {
        record.stamp = header.stamp;
    }
}

fn step_field(object: &ObjectFacts, record: &mut Record, no: FieldNo, value: ValueRef<'_>) {
    if Some(no) == object.modified_by_no {
        if let ValueRef::Text(by) = value {
            record.modified_by = Some(by.into());
        }
    } else if Some(no) != object.modified_no && Some(no) != object.stamp_no {
        record.image.set(no, value);
    }
}
