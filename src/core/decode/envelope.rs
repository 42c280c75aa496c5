//! The first look at a message: what it is, when it happened, and where its parts lie.
//!
//! One pass over the payload, and none over the row: enough to merge partitions by source time. What is found is
//! kept as byte ranges, so a message and its look can wait in a queue without borrowing from each other.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::quick::{self, Layout, Print};
use super::{DecodeError, Reason};
use crate::core::event::{Lsn, Micros, Op};

/// What a first look at a message tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peek {
    /// Null bytes, the literal `null`, or a schema wrapper around null: the row of this key is gone. It follows a
    /// delete and says nothing new.
    Tombstone,
    /// A row event; [`super::Decoder::decode`] reads the row, and may find that the message is no text.
    Row(Envelope),
    /// The table was emptied. It lies on one partition only, so it has no order against row events.
    Truncate {
        /// Source commit time, if present.
        ts: Option<Micros>,
        /// `source.lsn`, 0 if absent.
        lsn: Lsn,
    },
    /// A message that is no row event and not meant to be one.
    Ignored(Ignored),
    /// Junk, with the reason.
    Undecodable(DecodeError),
}

impl Peek {
    /// Source commit time, for merging partitions; `None` where the message has none.
    pub fn ts(&self) -> Option<Micros> {
        match self {
            Self::Row(envelope) => envelope.ts,
            Self::Truncate { ts, .. } => *ts,
            _ => None,
        }
    }

    /// LSN, for merging partitions; 0 where the message has none.
    pub fn lsn(&self) -> Lsn {
        match self {
            Self::Row(envelope) => envelope.lsn,
            Self::Truncate { lsn, .. } => *lsn,
            _ => 0,
        }
    }

    /// An update's print and LSN, by which the [front](crate::core::front) may know it. Inserts and deletes are always judged,
    /// and so is what has no place in the log.
    pub fn may_repeat(&self) -> Option<(&Print, Lsn)> {
        match self {
            Self::Row(Envelope { op: Op::Update, lsn, print: Some(print), .. }) if *lsn != 0 => Some((print, *lsn)),
            _ => None,
        }
    }

    /// Whether this is a delete (deletes go first among events of one time and LSN).
    pub fn is_delete(&self) -> bool {
        matches!(self, Self::Row(Envelope { op: Op::Delete, .. }))
    }
}

/// A message that is consumed, counted and never an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// `op` `t`.
    Truncate,
    /// `op` `m`: a logical message.
    Message,
    /// A Debezium heartbeat.
    Heartbeat,
    /// A record of the transaction topic.
    Transaction,
}

impl Ignored {
    /// The word used in counters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncate => "truncate",
            Self::Message => "message",
            Self::Heartbeat => "heartbeat",
            Self::Transaction => "transaction",
        }
    }
}

/// A row event as seen by the first look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// What happened.
    pub op: Op,
    /// Source commit time: `source.ts_us`, else `ts_ns`, else `ts_ms`.
    pub ts: Option<Micros>,
    /// `source.lsn`, 0 if absent; always 0 for [`Op::Read`].
    pub lsn: Lsn,
    /// `source.txId`.
    pub tx_id: Option<u64>,
    pub(super) after: Option<Span>,
    pub(super) before: Option<Span>,
    pub(super) source: Span,
    pub(super) schema: Option<Span>,
    /// What the row repeats, if it was laid out as the last decoded one.
    pub print: Option<Print>,
}

impl Envelope {
    /// `source` as it stands; `payload` must be the message that was looked at.
    pub fn source_bytes<'p>(&self, payload: &'p [u8]) -> Option<&'p [u8]> {
        payload.get(self.source.start as usize..self.source.end as usize)
    }

    /// The names in `source`; `payload` must be the message that was looked at.
    pub fn source(&self, payload: &[u8]) -> Option<Source> {
        serde_json::from_str(self.source.text(payload)?).ok()
    }
}

/// Where an event says it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Database name. Two of them under one org mean that two apps were mixed up.
    pub db: Option<String>,
    /// Schema name.
    pub schema: Option<String>,
    /// Table name.
    pub table: Option<String>,
    /// The connector's name, which is the topic prefix.
    pub name: Option<String>,
}

/// A range of bytes in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Option<Self> {
        Some(Self { start: u32::try_from(start).ok()?, end: u32::try_from(end).ok()? })
    }

    /// Where `part`, a slice of `whole`, lies.
    fn of(whole: &str, part: &str) -> Option<Self> {
        let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
        let end = start + part.len();
        if end > whole.len() {
            return None;
        }
        Self::new(start, end)
    }

    /// The text in this range; `None` if `payload` is not the message that was looked at.
    pub(super) fn text(self, payload: &[u8]) -> Option<&str> {
        std::str::from_utf8(payload.get(self.start as usize..self.end as usize)?).ok()
    }
}

/// Looks at a message. Never fails: junk is a finding too.
pub fn peek(key: Option<&[u8]>, payload: Option<&[u8]>) -> Peek {
    peek_as_before(None, &Layout::default(), key, payload)
}

/// The same, with what the message is likely to look like: the schema block that it begins with (two thirds of a
/// message are its block, and comparing it is far cheaper than reading it again), and how its row is laid out.
pub(super) fn peek_as_before(
    block: Option<(&str, u128)>,
    layout: &Layout,
    key: Option<&[u8]>,
    payload: Option<&[u8]>,
) -> Peek {
    let Some(payload) = payload else { return Peek::Tombstone };
    look(block, layout, key, payload).unwrap_or_else(Peek::Undecodable)
}

/// The quick way: exactly what is expected, or nothing. The payload may be anything.
fn quick_look(block: Option<(&str, u128)>, layout: &Layout, key: Option<&[u8]>, payload: &[u8]) -> Option<Envelope> {
    let before = BEFORE_BLOCK.len();
    let known = block.and_then(|(block, hash)| {
        let rest = payload.strip_prefix(BEFORE_BLOCK.as_bytes())?.strip_prefix(block.as_bytes())?;
        let rest = rest.strip_prefix(BEHIND_BLOCK.as_bytes())?.strip_suffix(b"}")?;
        Some((before + block.len(), rest.len(), hash))
    });
    let Some((end_of_block, length, hash)) = known else {
        let (end, envelope) = quick::look(layout, 0, key, payload, 0)?;
        return (end == payload.len()).then_some(envelope);
    };
    let start = end_of_block + BEHIND_BLOCK.len();
    let (end, envelope) = quick::look(layout, hash, key, payload, start)?;
    (end == start + length).then_some(Envelope { schema: Span::new(before, end_of_block), ..envelope })
}

const BEFORE_BLOCK: &str = "{\"schema\":";
const BEHIND_BLOCK: &str = ",\"payload\":";

/// `{"schema":<block>,"payload":<rest>}` → (block, rest).
fn split_block<'m>(text: &'m str, block: &str) -> Option<(&'m str, &'m str)> {
    let (found, rest) = text.strip_prefix(BEFORE_BLOCK)?.split_at_checked(block.len())?;
    if found != block {
        return None;
    }
    Some((found, rest.strip_prefix(BEHIND_BLOCK)?.strip_suffix('}')?))
}

fn look(block: Option<(&str, u128)>, layout: &Layout, key: Option<&[u8]>, payload: &[u8]) -> Result<Peek, DecodeError> {
    if payload.is_empty() {
        return Err(DecodeError::new(Reason::Empty, "the value has no bytes"));
    }
    if let Some(envelope) = quick_look(block, layout, key, payload) {
        return Ok(Peek::Row(envelope));
    }
    long_look(block.map(|(block, _)| block), key, whole_text(payload)?)
}

/// The payload as text. Nine in ten messages repeat what is known and never get so far; those are known to be text
/// without being read for it, see [`Print`].
pub(super) fn whole_text(payload: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(payload)
        .map_err(|error| DecodeError::new(Reason::NotUtf8, format!("at byte {}", error.valid_up_to())))
}

/// The long way, by a full parser: it accepts all that JSON allows, and says what is wrong with the rest.
fn long_look(block: Option<&str>, key: Option<&[u8]>, text: &str) -> Result<Peek, DecodeError> {
    let trimmed = text.trim_ascii();
    if trimmed == "null" {
        return Ok(Peek::Tombstone);
    }
    let split = block.and_then(|block| split_block(trimmed, block));
    let inner = split.and_then(|(block, rest)| Some((serde_json::from_str::<Wire<'_>>(rest).ok()?, Some(block))));
    let (wire, schema) = match inner {
        Some(known) => known,
        None => match serde_json::from_str(trimmed).map_err(|e| not_an_envelope(&e))? {
            Wire { op: None, payload: Found::Null, .. } => return Ok(Peek::Tombstone),
            Wire { op: None, payload: Found::Some(inner), schema, .. } => (*inner, schema.map(RawValue::get)),
            wire => (wire, None),
        },
    };
    let Some(op) = wire.op.map(RawValue::get) else { return side_record(key, &wire) };
    let op = match op {
        "\"m\"" => return Ok(Peek::Ignored(Ignored::Message)),
        "\"t\"" => {
            // Nothing depends on a truncate's source, so a broken one is not worth a dead letter.
            let moment = wire.source.and_then(|s| moment(s.get()).ok()).unwrap_or_default();
            return Ok(Peek::Truncate { ts: moment.ts, lsn: moment.lsn });
        }
        token => row_op(token.as_bytes())
            .ok_or_else(|| DecodeError::new(Reason::UnknownOp, "op is none of c, u, d, r, t, m"))?,
    };
    let source = wire.source.ok_or_else(|| DecodeError::new(Reason::BadSource, "no source"))?;
    let moment = moment(source.get()).map_err(|what| DecodeError::new(Reason::BadSource, what))?;
    let object = |part: Option<&RawValue>, name: &str| match part {
        Some(part) if part.get().starts_with('{') => Ok(Span::of(text, part.get())),
        Some(_) => Err(DecodeError::new(Reason::BadRow, format!("{name} is not an object"))),
        None => Ok(None),
    };
    let (after, before) =
        if op == Op::Delete { (None, object(wire.before, "before")?) } else { (object(wire.after, "after")?, None) };
    if op != Op::Delete && after.is_none() {
        return Err(DecodeError::new(Reason::BadRow, "no after"));
    }
    Ok(Peek::Row(Envelope {
        op,
        ts: moment.ts,
        lsn: if op == Op::Read { 0 } else { moment.lsn },
        tx_id: moment.tx_id,
        after,
        before,
        source: Span::of(text, source.get()).ok_or_else(|| DecodeError::new(Reason::BadSource, "no source"))?,
        schema: schema.and_then(|s| Span::of(text, s)),
        print: None,
    }))
}

fn not_an_envelope(error: &serde_json::Error) -> DecodeError {
    let place = format!("line {} column {}", error.line(), error.column());
    if error.is_data() {
        DecodeError::new(Reason::NotAnEnvelope, place)
    } else {
        DecodeError::new(Reason::NotJson, place) // serde's own words could quote the message
    }
}

/// A message without `op`: a heartbeat or transaction record only if it is clearly one.
fn side_record(key: Option<&[u8]>, wire: &Wire<'_>) -> Result<Peek, DecodeError> {
    if wire.after.is_none() && wire.before.is_none() && wire.source.is_none() {
        let heartbeat = wire.ts_ms.is_some_and(|t| integer(t.get()).is_some()) && key.is_some_and(has_server_name);
        if heartbeat {
            return Ok(Peek::Ignored(Ignored::Heartbeat));
        }
        let transaction = matches!(wire.status.map(RawValue::get), Some("\"BEGIN\"" | "\"END\""))
            && wire.id.is_some_and(|id| id.get().starts_with('"'));
        if transaction {
            return Ok(Peek::Ignored(Ignored::Transaction));
        }
    }
    Err(DecodeError::new(Reason::NotAnEnvelope, "no op"))
}

fn has_server_name(key: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Key<'a> {
        #[serde(rename = "serverName", borrow)]
        server_name: Option<&'a RawValue>,
        #[serde(borrow)]
        payload: Option<&'a RawValue>,
    }
    let read = |text: &str| -> Option<bool> {
        let key: Key<'_> = serde_json::from_str(text).ok()?;
        match (key.server_name, key.payload) {
            (Some(name), _) => Some(name.get().starts_with('"')),
            (None, Some(inner)) => serde_json::from_str(inner.get()).ok().map(|key: Key<'_>| key.server_name.is_some()),
            _ => None,
        }
    };
    std::str::from_utf8(key).ok().and_then(read).unwrap_or(false)
}

#[derive(Default)]
pub(super) struct Moment {
    pub(super) ts: Option<Micros>,
    pub(super) lsn: Lsn,
    pub(super) tx_id: Option<u64>,
}

impl Moment {
    /// Of the numbers in `source`; `None` if one is out of range.
    pub(super) fn of(
        us: Option<i64>,
        ns: Option<i64>,
        ms: Option<i64>,
        lsn: Option<i64>,
        tx_id: Option<i64>,
    ) -> Option<Self> {
        let unsigned = |number: Option<i64>| number.map_or(Some(None), |n| u64::try_from(n).ok().map(Some));
        let ts = source_time(us, ns, ms)?;
        Some(Self { ts, lsn: unsigned(lsn)?.unwrap_or(0), tx_id: unsigned(tx_id)? })
    }
}

/// The finest of the three times that a source may tell; `None` if that one is out of range.
fn source_time(us: Option<i64>, ns: Option<i64>, ms: Option<i64>) -> Option<Option<Micros>> {
    Some(match (us, ns, ms) {
        (Some(us), ..) => Some(us),
        (None, Some(ns), _) => Some(ns.div_euclid(1000)),
        (None, None, Some(ms)) => Some(ms.checked_mul(1000)?),
        (None, None, None) => None,
    })
}

/// The op of a row event; `None` for any other token.
pub(super) fn row_op(token: &[u8]) -> Option<Op> {
    match token {
        b"\"c\"" => Some(Op::Create),
        b"\"u\"" => Some(Op::Update),
        b"\"d\"" => Some(Op::Delete),
        b"\"r\"" => Some(Op::Read),
        _ => None,
    }
}

/// What `source` says of time and place. Absent and null are fine; a number that cannot be read is not: taking
/// it for absent would silently change the order of events.
fn moment(source: &str) -> Result<Moment, &'static str> {
    #[derive(Deserialize)]
    struct Wire<'a> {
        #[serde(borrow)]
        ts_ms: Option<&'a RawValue>,
        #[serde(borrow)]
        ts_us: Option<&'a RawValue>,
        #[serde(borrow)]
        ts_ns: Option<&'a RawValue>,
        #[serde(borrow)]
        lsn: Option<&'a RawValue>,
        #[serde(borrow, rename = "txId")]
        tx_id: Option<&'a RawValue>,
        #[serde(borrow)]
        table: Option<&'a RawValue>,
    }
    if !source.starts_with('{') {
        return Err("source is not an object");
    }
    let wire: Wire<'_> = serde_json::from_str(source).map_err(|_| "source cannot be read")?;
    if !wire.table.is_some_and(|t| t.get().starts_with('"') && t.get().len() > 2) {
        return Err("source.table is missing or empty");
    }
    let number = |raw: Option<&RawValue>, what| raw.map(|r| integer(r.get()).ok_or(what)).transpose();
    let unsigned = |raw, what| number(raw, what)?.map(|n| u64::try_from(n).map_err(|_| what)).transpose();
    let (us, ns) = (number(wire.ts_us, "source.ts_us is no number")?, number(wire.ts_ns, "source.ts_ns is no number")?);
    // Not looked at beside a finer one, so it may be anything there.
    let ms = if us.or(ns).is_none() { number(wire.ts_ms, "source.ts_ms is no number")? } else { None };
    let ts = source_time(us, ns, ms).ok_or("source.ts_ms is out of range")?;
    Ok(Moment {
        ts,
        lsn: unsigned(wire.lsn, "source.lsn is no number")?.unwrap_or(0),
        tx_id: unsigned(wire.tx_id, "source.txId is no number")?,
    })
}

/// A JSON integer, or the same as a string: documented samples have both.
pub(super) fn integer(token: &str) -> Option<i64> {
    let token = token.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(token);
    token.parse().ok()
}

/// A field that may be absent, null or there.
enum Found<T> {
    Absent,
    Null,
    Some(T),
}

/// Envelope and schema wrapper in one, as which of them a message is shows only while reading it.
struct Wire<'a> {
    schema: Option<&'a RawValue>,
    payload: Found<Box<Wire<'a>>>,
    before: Option<&'a RawValue>,
    after: Option<&'a RawValue>,
    source: Option<&'a RawValue>,
    op: Option<&'a RawValue>,
    ts_ms: Option<&'a RawValue>,
    status: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Schema,
    Payload,
    Before,
    After,
    Source,
    Op,
    TsMs,
    Status,
    Id,
    #[serde(other)]
    Other,
}

// By hand: a derived one would also read arrays, field by field.
impl<'de: 'a, 'a> Deserialize<'de> for Wire<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Wire<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Wire<'de>, A::Error> {
                let mut wire = Wire {
                    schema: None,
                    payload: Found::Absent,
                    before: None,
                    after: None,
                    source: None,
                    op: None,
                    ts_ms: None,
                    status: None,
                    id: None,
                };
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::Schema => wire.schema = map.next_value()?,
                        Field::Payload => {
                            wire.payload = map.next_value::<Option<Box<Wire<'de>>>>()?.map_or(Found::Null, Found::Some)
                        }
                        Field::Before => wire.before = map.next_value()?,
                        Field::After => wire.after = map.next_value()?,
                        Field::Source => wire.source = map.next_value()?,
                        Field::Op => wire.op = map.next_value()?,
                        Field::TsMs => wire.ts_ms = map.next_value()?,
                        Field::Status => wire.status = map.next_value()?,
                        Field::Id => wire.id = map.next_value()?,
                        Field::Other => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(wire)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Whatever the quick way accepts, the long way reads alike.
    pub fn both_ways_agree(block: Option<(&str, u128)>, layout: &Layout, key: Option<&[u8]>, text: &str) -> bool {
        let Some(quick) = quick_look(block, layout, key, text.as_bytes()) else { return false };
        let long = long_look(block.map(|(block, _)| block), key, text);
        assert_eq!(long, Ok(Peek::Row(Envelope { print: None, ..quick })), "{text}");
        true
    }
}
