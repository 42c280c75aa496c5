//! Stored form.
//!
//! One encoding serves every `d` column of the sink: `delta.d` (what one version changed), `keyframe.d`
//! (every field observed so far), `pending.d` and `late_event.d` (the row of one event). SQL reads the same
//! bytes (`afterimage.op`, `header`, `fields`, …), so this page and migration `0002` must agree byte for byte;
//! `tests/sql_sink/fold.rs` holds them together.
//!
//! ```text
//! 0      op (bits 0-2) | JSON payload (3) | local (4) | `at` adjusted (5) | no source time (6) | short stamp (7)
//! 1      n (bits 0-5)  | lastmodifieddate = stamp (6) | stamp unit: 0 s, 1 ms (7)
//! 2      where the payload starts
//! 3-     stamp − `at` cut to the whole second, in four bytes, or in two if it is short; the least such number = none, or
//!        it stands in the payload
//! then   varints: position, offset, lsn, recorded − at in ms (zigzag), [raw time − at in µs (zigzag), if bit 5]
//! start- payload: no ␟ value ␟ no ␟ value …, or a JSON object
//! ```
//!
//! A stamp mostly lies within hours of the commit. Two bytes less are 2 % of a row.
//! Both forms are read; releases before the short stamp refuse it.
//!
//! Readers skip what stands between the last varint they know and the payload start: room for additions.

mod payload;
mod stamp;
mod varint;

#[cfg(test)]
mod tests;

use thiserror::Error;

use super::event::{FieldNo, Lsn, Micros};
use super::value::{Value, ValueRef};

/// Versions per chain: a keyframe is written with every 64th version. A constant of the format.
pub const CHAIN: u8 = 64;

/// Bytes before the stamp.
const FIXED: usize = 3;

const JSON: u8 = 1 << 3;
const LOCAL: u8 = 1 << 4;
const ADJUSTED: u8 = 1 << 5;
const NO_SOURCE_TIME: u8 = 1 << 6;
const SHORT_STAMP: u8 = 1 << 7;
const MODIFIED_IS_STAMP: u8 = 1 << 6;
const STAMP_IN_MS: u8 = 1 << 7;

/// What a stored version is; the numbers are the stored ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum VersionOp {
    /// First sight of a record that existed before.
    Baseline = 0,
    /// The record came into being.
    Create = 1,
    /// An edit.
    Update = 2,
    /// A field that was absent, or unknown, became known without an edit.
    Backfill = 3,
    /// The record went away; its image stays as it was.
    Delete = 4,
    /// It came back.
    Undelete = 5,
}

impl VersionOp {
    /// The word that `changes.op` shows.
    /// By its number in byte 0; `None` for one that no release writes.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Baseline, Self::Create, Self::Update, Self::Backfill, Self::Delete, Self::Undelete]
            .into_iter()
            .find(|op| *op as u8 == number)
    }

    /// The word in `changes.op`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Create => "create",
            Self::Update => "update",
            Self::Backfill => "backfill",
            Self::Delete => "delete",
            Self::Undelete => "undelete",
        }
    }

    fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Baseline,
            1 => Self::Create,
            2 => Self::Update,
            3 => Self::Backfill,
            4 => Self::Delete,
            5 => Self::Undelete,
            _ => return None,
        })
    }
}

/// Everything about a version but its fields. In a keyframe of a later chain it is the header of the version
/// that the keyframe shows, with `n` = 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the version is.
    pub op: VersionOp,
    /// Number within the chain, 0 to 63: seq = 64 · kf + n.
    pub n: u8,
    /// An application wrote it and Salesforce had not seen it yet (`_hc_lastop` = PENDING): stamp and user
    /// that the row carried were those of the version before, so neither is stored.
    pub local: bool,
    /// The message carried no usable source time; `at` is the Kafka timestamp.
    pub no_source_time: bool,
    /// The source's own commit time, when `at` had to be moved (never below the version before, never outside
    /// the sane range).
    pub raw_at: Option<Micros>,
    /// `systemmodstamp`. `i64::MAX` and `i64::MIN` stand for the infinities.
    pub stamp: Option<Micros>,
    /// `lastmodifieddate` equals the stamp, and is therefore not among the fields.
    pub modified_is_stamp: bool,
    /// The position whose batch wrote it.
    pub position_id: i32,
    /// Kafka offset of its message.
    pub offset: i64,
    /// LSN of its event, 0 = none.
    pub lsn: Lsn,
    /// When afterimage recorded it; kept to the millisecond (the rest is cut off).
    pub recorded: Micros,
}

/// Why bytes are not a stored version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Fewer bytes than the fixed part and the varints need.
    #[error("the stored version ends too early")]
    Short,
    /// Op 6 or 7: a form that this binary does not know.
    #[error("the stored version has a newer form than this binary knows: upgrade afterimage")]
    Newer,
    /// A varint of more than 64 bits.
    #[error("the stored version holds a number that is too long")]
    Varint,
    /// A time or a position outside the range of its type.
    #[error("the stored version holds a number out of range")]
    Range,
    /// Not UTF-8, not pairs, a field number that is none, or numbers that do not ascend.
    #[error("the stored version's payload is damaged")]
    Payload,
}

/// Stored form of one version.
///
/// `at` is the valid-from time that stands beside `d` in its row. `fields` ascend by number; besides what the
/// version changed they hold the system attributes that travel with it (`lastmodifiedbyid`, and
/// `lastmodifieddate` when it differs from the stamp). `stamp_field` is `systemmodstamp`'s number, needed only
/// by a stamp that does not fit four bytes (infinite, microseconds, milliseconds more than 24 days away);
/// with `None` such a stamp is not stored. An entry of that number in `fields` is ignored: the header has it.
///
/// U+0000 in a value becomes U+FFFD: PostgreSQL cannot hold it, in no form.
pub fn encode(at: Micros, h: &Header, stamp_field: Option<FieldNo>, fields: &[(FieldNo, Value)]) -> Vec<u8> {
    debug_assert!(fields.is_sorted_by(|a, b| a.0 < b.0), "fields ascend");
    let fixed_stamp = h.stamp.and_then(|stamp| stamp::offset(at, stamp));
    let payload_stamp = match (h.stamp, fixed_stamp, stamp_field) {
        (Some(stamp), None, Some(no)) => Some((no, Value::Text(stamp::to_text(stamp).into()))),
        _ => None,
    };

    let mut out = Vec::with_capacity(FIXED + 24 + payload::size_hint(fields));
    let (offset, ms) = fixed_stamp.map_or((None, false), |(offset, ms)| (Some(offset), ms));
    out.extend_from_slice(&[
        h.op as u8 | flag(h.local, LOCAL) | flag(h.raw_at.is_some(), ADJUSTED) | flag(h.no_source_time, NO_SOURCE_TIME),
        (h.n % CHAIN) | flag(h.modified_is_stamp, MODIFIED_IS_STAMP) | flag(ms, STAMP_IN_MS),
        0,
    ]);
    if stamp::put(&mut out, offset) {
        out[0] |= SHORT_STAMP;
    }
    varint::put(&mut out, u64::from(h.position_id as u32));
    varint::put(&mut out, h.offset as u64);
    varint::put(&mut out, h.lsn);
    varint::put_signed(&mut out, millis(h.recorded) - millis(at));
    if let Some(raw) = h.raw_at {
        varint::put_signed(&mut out, raw.wrapping_sub(at));
    }
    out[2] = out.len() as u8; // at most 3 + 4 + 5 + 4 · 10

    let fields = fields.iter().filter(|(no, _)| Some(*no) != stamp_field).map(|(no, v)| (*no, v));
    if payload::write(&mut out, fields, payload_stamp.as_ref().map(|(no, v)| (*no, v))) {
        out[0] |= JSON;
    }
    out
}

/// Header and fields of a stored version; the inverse of [`encode`] with the same `at` and `stamp_field`.
///
/// Never panics, whatever the bytes.
pub fn decode(
    at: Micros,
    d: &[u8],
    stamp_field: Option<FieldNo>,
) -> Result<(Header, Vec<(FieldNo, Value)>), FormatError> {
    let (mut header, json, payload) = read_header(at, d)?;
    let mut fields = payload::read(payload, json)?;
    if let Some(i) = stamp_field.and_then(|no| fields.iter().position(|(n, _)| *n == no)) {
        let (_, value) = fields.remove(i);
        if let (None, Value::Text(text)) = (header.stamp, value) {
            header.stamp = stamp::from_text(&text);
        }
    }
    Ok((header, fields))
}

/// [`decode`] for whoever copies the values anyway: hands them to `each`, ascending by number, none of them when it fails.
pub fn decode_each(
    at: Micros,
    d: &[u8],
    stamp_field: Option<FieldNo>,
    mut each: impl FnMut(FieldNo, ValueRef<'_>),
) -> Result<Header, FormatError> {
    let (mut header, json, payload) = read_header(at, d)?;
    let Some(fields) = payload::lend(payload, json)? else {
        let (header, fields) = decode(at, d, stamp_field)?;
        fields.iter().for_each(|(no, value)| each(*no, value.view()));
        return Ok(header);
    };
    for (no, value) in fields {
        match value {
            ValueRef::Text(text) if Some(no) == stamp_field => {
                header.stamp = header.stamp.or_else(|| stamp::from_text(text));
            }
            _ if Some(no) == stamp_field => {}
            value => each(no, value),
        }
    }
    Ok(header)
}

/// The header alone, without a look at the payload: a stamp that stands in there is reported as none.
pub fn decode_header(at: Micros, d: &[u8]) -> Result<Header, FormatError> {
    read_header(at, d).map(|(header, _, _)| header)
}

/// Applies a version's fields to an image; both ascend by number, the newer value wins.
pub fn fold(image: &mut Vec<(FieldNo, Value)>, fields: &[(FieldNo, Value)]) {
    for (no, value) in fields {
        match image.binary_search_by_key(no, |(n, _)| *n) {
            Ok(i) => image[i].1.clone_from(value),
            Err(i) => image.insert(i, (*no, value.clone())),
        }
    }
}

fn read_header(at: Micros, d: &[u8]) -> Result<(Header, bool, &[u8]), FormatError> {
    let &[flags, second, start] = d.first_chunk::<FIXED>().ok_or(FormatError::Short)?;
    let op = VersionOp::from_bits(flags & 7).ok_or(FormatError::Newer)?;
    let start = usize::from(start);
    let mut numbers = d.get(FIXED..start).ok_or(FormatError::Short)?;
    let payload = &d[start..];

    let stamp = match stamp::take(&mut numbers, flags & SHORT_STAMP != 0)? {
        None => None,
        Some(offset) => Some(stamp::absolute(at, offset, second & STAMP_IN_MS != 0).ok_or(FormatError::Range)?),
    };
    let position_id = varint::take(&mut numbers)?;
    let offset = varint::take(&mut numbers)? as i64;
    let lsn = varint::take(&mut numbers)?;
    let recorded = varint::take_signed(&mut numbers)?;
    let raw = if flags & ADJUSTED != 0 { Some(varint::take_signed(&mut numbers)?) } else { None };
    let header = Header {
        op,
        n: second % CHAIN,
        local: flags & LOCAL != 0,
        no_source_time: flags & NO_SOURCE_TIME != 0,
        raw_at: raw.map(|raw| at.wrapping_add(raw)),
        stamp,
        modified_is_stamp: second & MODIFIED_IS_STAMP != 0,
        position_id: u32::try_from(position_id).map_err(|_| FormatError::Range)? as i32,
        offset,
        lsn,
        recorded: millis(at).checked_add(recorded).and_then(|ms| ms.checked_mul(1000)).ok_or(FormatError::Range)?,
    };
    Ok((header, flags & JSON != 0, payload))
}

fn flag(on: bool, bit: u8) -> u8 {
    if on { bit } else { 0 }
}

/// Whole milliseconds. Both ends of `recorded − at` are cut before they are subtracted, so that equal
/// recorded times stay equal, and rising ones never fall, whatever their `at`.
fn millis(t: Micros) -> i64 {
    t.div_euclid(1000)
}
