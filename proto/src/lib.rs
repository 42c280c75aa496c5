//! The binary forms that outlive a process: what the image store keeps of a record, and the mark that says
//! where the store stands.
//!
//! The messages stand in `proto/afterimage/v1/*.proto` and are compiled by `build.rs`. Bytes come back through
//! [`decode_record`] and [`Mark::decode`] only: they refuse forms of a later release and shapes that the
//! protocol allows but no release writes, so that damage is a typed error, never a wrong image.

mod image;
mod mark;

pub use image::{FieldValue, PackedField, put_field, unpack};
pub use mark::Mark;

/// The generated messages, as they stand on the wire.
pub mod v1 {
    #![allow(clippy::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/afterimage.v1.rs"));
}

use prost::Message;

/// The form of [`v1::Record`] that this release writes, and the greatest that it reads.
pub const RECORD_FORMAT: u32 = 2;
/// The form of [`v1::Mark`] that this release writes, and the greatest that it reads.
pub const MARK_FORMAT: u32 = 1;

/// Why bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not a protocol buffer of this message at all.
    #[error("not a {message}: {source}")]
    Malformed {
        /// The message expected.
        message: &'static str,
        /// What the decoder says.
        source: prost::DecodeError,
    },
    /// Written by a later release.
    #[error("{message} has form {found}, this release knows {known}")]
    Future {
        /// The message expected.
        message: &'static str,
        /// The form found.
        found: u32,
        /// The greatest form known here.
        known: u32,
    },
    /// A protocol buffer, but not one that any release writes.
    #[error("{message} is damaged: {detail}")]
    Damaged {
        /// The message expected.
        message: &'static str,
        /// What is wrong with it.
        detail: &'static str,
    },
}

/// Bytes of a record for the store; stamps [`RECORD_FORMAT`] on it, whatever the caller left there.
pub fn encode_record(record: &mut v1::Record) -> Vec<u8> {
    record.format = RECORD_FORMAT;
    record.encode_to_vec()
}

/// The record in these bytes. One of form 1 comes in the form of this release; the packed image is read by [`fields`].
///
/// # Errors
/// [`WireError::Future`] for a later form; otherwise anything that [`encode_record`] can't have written from a
/// sound record: a field without a value, numbers that don't ascend or leave `int2`, an op without a name, a
/// `prev` without a delete before it.
pub fn decode_record(bytes: &[u8]) -> Result<v1::Record, WireError> {
    const MESSAGE: &str = "record";
    let mut record = v1::Record::decode(bytes).map_err(|source| WireError::Malformed { message: MESSAGE, source })?;
    check_format(MESSAGE, record.format, RECORD_FORMAT)?;
    let damaged = |detail| Err(WireError::Damaged { message: MESSAGE, detail });
    if record.format > 1 && !record.fields.is_empty() {
        return damaged("fields beside a packed image");
    }
    let mut last = 0;
    for field in &record.fields {
        if field.no <= last || field.no > i32::from(i16::MAX) {
            return damaged("field numbers must ascend within int2");
        }
        last = field.no;
        match field.value {
            Some(v1::field::Value::Text(_) | v1::field::Value::Null(true) | v1::field::Value::Unknown(true)) => {}
            _ => return damaged("a field without a value"),
        }
    }
    for version in record.head.iter().chain(&record.prev) {
        if v1::VersionOp::try_from(version.op).is_err() {
            return damaged("an op without a name");
        }
    }
    if record.prev.is_some() && record.head.as_ref().is_none_or(|head| head.op() != v1::VersionOp::Delete) {
        return damaged("a previous version beside a head that is no delete");
    }
    if record.format == 1 {
        record.image.clear();
        for field in std::mem::take(&mut record.fields) {
            let value = match &field.value {
                Some(v1::field::Value::Text(text)) => FieldValue::Text(text.as_str()),
                Some(v1::field::Value::Null(_)) => FieldValue::Null,
                Some(v1::field::Value::Unknown(_)) | None => FieldValue::Unknown,
            };
            put_field(&mut record.image, field.no as i16, value);
        }
        record.format = RECORD_FORMAT;
    }
    Ok(record)
}

/// Form 0 is what an empty message reads as: no release writes it.
pub(crate) fn check_format(message: &'static str, found: u32, known: u32) -> Result<(), WireError> {
    match found {
        0 => Err(WireError::Damaged { message, detail: "no form number" }),
        found if found > known => Err(WireError::Future { message, found, known }),
        _ => Ok(()),
    }
}
