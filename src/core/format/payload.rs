//! The fields of a version: `no ␟ value ␟ no ␟ value` (␟ = 0x1F, null = 0x02, unknown = 0x03), numbers
//! ascending and decimal, so that SQL folds a chain by joining the texts and parsing once. A value that holds
//! one of the marks (0x01 is kept in reserve) turns the whole payload into a JSON object.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::FormatError;
use crate::core::eight::find;
use crate::core::event::FieldNo;
use crate::core::value::{Value, ValueRef};

const SEPARATOR: u8 = 0x1f;
const NULL: &str = "\u{2}";
const UNKNOWN: &str = "\u{3}";
/// An unknown value in JSON, in the payload as in the public views.
const UNKNOWN_JSON: &str = r#"{"$unknown":true}"#;

/// Bytes to reserve.
pub(super) fn size_hint(fields: &[(FieldNo, Value)]) -> usize {
    fields.iter().map(|(_, v)| 4 + if let Value::Text(t) = v { t.len() } else { 1 }).sum()
}

/// Appends the payload; `extra` is put in its place by number. True = it had to be JSON.
pub(super) fn write<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (FieldNo, &'a Value)> + Clone,
    extra: Option<(FieldNo, &'a Value)>,
) -> bool {
    let all = {
        let (before, after) = (fields.clone(), fields);
        let no = extra.map_or(FieldNo::MAX, |(no, _)| no);
        before
            .filter(move |(n, _)| extra.is_none() || *n < no)
            .chain(extra)
            .chain(after.filter(move |(n, _)| extra.is_some() && *n > no))
    };
    let json = all.clone().any(|(_, v)| matches!(v, Value::Text(t) if holds_mark(t)));
    let mut first = true;
    if json {
        out.push(b'{');
        for (no, value) in all {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            out.push(b'"');
            put_number(out, no);
            out.extend_from_slice(b"\":");
            match value {
                Value::Null => out.extend_from_slice(b"null"),
                Value::Unknown => out.extend_from_slice(UNKNOWN_JSON.as_bytes()),
                Value::Text(t) => put_json_string(out, &storable(t)),
            }
        }
        out.push(b'}');
    } else {
        for (no, value) in all {
            if !std::mem::take(&mut first) {
                out.push(SEPARATOR);
            }
            put_number(out, no);
            out.push(SEPARATOR);
            let text = match value {
                Value::Null => Cow::Borrowed(NULL),
                Value::Unknown => Cow::Borrowed(UNKNOWN),
                Value::Text(t) => storable(t),
            };
            out.extend_from_slice(text.as_bytes());
        }
    }
    json
}

/// The fields, ascending by number.
pub(super) fn read(payload: &[u8], json: bool) -> Result<Vec<(FieldNo, Value)>, FormatError> {
    let text = std::str::from_utf8(payload).map_err(|_| FormatError::Payload)?;
    if json {
        read_json(text)
    } else {
        Ok(read_text(text)?.into_iter().map(|(no, value)| (no, value.into())).collect())
    }
}

/// The same, lent by a payload that is no JSON; `None` if it is.
pub(super) fn lend(payload: &[u8], json: bool) -> Result<Option<Vec<(FieldNo, ValueRef<'_>)>>, FormatError> {
    let text = std::str::from_utf8(payload).map_err(|_| FormatError::Payload)?;
    if json { Ok(None) } else { read_text(text).map(Some) }
}

fn read_text(text: &str) -> Result<Vec<(FieldNo, ValueRef<'_>)>, FormatError> {
    // A guess: most values are shorter.
    let mut fields: Vec<(FieldNo, ValueRef<'_>)> = Vec::with_capacity(text.len() / 16 + 1);
    if text.is_empty() {
        return Ok(fields);
    }
    let mut rest = Some(text);
    let mut part = || {
        let text = rest?;
        let end = find(text.as_bytes(), SEPARATOR);
        let (part, left) = match end {
            Some(end) => (&text[..end], Some(&text[end + 1..])),
            None => (text, None),
        };
        rest = left;
        Some(part)
    };
    while let Some(no) = part() {
        let no = field_no(no)?;
        if fields.last().is_some_and(|(last, _)| *last >= no) {
            return Err(FormatError::Payload);
        }
        let value = match part().ok_or(FormatError::Payload)? {
            NULL => ValueRef::Null,
            UNKNOWN => ValueRef::Unknown,
            text => ValueRef::Text(text),
        };
        fields.push((no, value));
    }
    Ok(fields)
}

fn read_json(text: &str) -> Result<Vec<(FieldNo, Value)>, FormatError> {
    let object: BTreeMap<String, Json> = serde_json::from_str(text).map_err(|_| FormatError::Payload)?;
    let mut fields = Vec::with_capacity(object.len());
    for (no, value) in object {
        let value = match value {
            Json::Null => Value::Null,
            Json::String(text) => Value::Text(text.into()),
            Json::Object(o) if o.len() == 1 && o.get("$unknown") == Some(&Json::Bool(true)) => Value::Unknown,
            _ => return Err(FormatError::Payload),
        };
        fields.push((field_no(&no)?, value));
    }
    fields.sort_by_key(|(no, _)| *no); // the map sorts by text: "10" before "9"
    Ok(fields)
}

fn holds_mark(text: &str) -> bool {
    text.bytes().any(|b| matches!(b, 1..=3 | SEPARATOR))
}

fn storable(text: &str) -> Cow<'_, str> {
    if text.as_bytes().contains(&0) { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}

/// Only what [`put_number`] writes: decimal, no sign but `-`, no leading zero.
fn field_no(text: &str) -> Result<FieldNo, FormatError> {
    let no: FieldNo = text.parse().map_err(|_| FormatError::Payload)?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !text.starts_with('+') && (digits == "0" || !digits.starts_with('0')) && text != "-0";
    if plain { Ok(no) } else { Err(FormatError::Payload) }
}

fn put_number(out: &mut Vec<u8>, no: FieldNo) {
    if (0..10).contains(&no) {
        out.push(b'0' + no as u8);
    } else {
        out.extend_from_slice(no.to_string().as_bytes());
    }
}

fn put_json_string(out: &mut Vec<u8>, text: &str) {
    // Writing into memory, and a string as a value: serde_json has no way to fail here.
    if serde_json::to_writer(&mut *out, text).is_err() {
        debug_assert!(false, "a string is JSON");
    }
}
