//! The packed image of a record (`Record.image`).

use crate::WireError;

/// What is known of one field; `T` is its text, or `()` where that stands elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValue<T> {
    /// SQL null.
    Null,
    /// Never shown by the stream.
    Unknown,
    /// The canonical text.
    Text(T),
}

const NULL: u64 = 0;
const UNKNOWN: u64 = 1;
const TEXT: u64 = 2;

/// Appends one field; the caller gives them ascending by number.
pub fn put_field(image: &mut Vec<u8>, no: i16, value: FieldValue<&str>) {
    prost::encoding::encode_varint(u64::from(no.unsigned_abs()), image);
    match value {
        FieldValue::Null => prost::encoding::encode_varint(NULL, image),
        FieldValue::Unknown => prost::encoding::encode_varint(UNKNOWN, image),
        FieldValue::Text(text) => {
            prost::encoding::encode_varint(TEXT + text.len() as u64, image);
            image.extend_from_slice(text.as_bytes());
        }
    }
}

/// A field of a packed image. Its text is what stands in the image's texts from the end of the field before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedField {
    /// Number.
    pub no: i16,
    /// What is known of it.
    pub value: FieldValue<()>,
    /// Where its text ends, in bytes.
    pub end: usize,
}

/// The fields of a packed image, in its order, and the texts of all of them in one piece.
///
/// # Errors
/// [`WireError::Damaged`] for anything that [`put_field`] can't have written: numbers that don't ascend within `int2`,
/// a text that ends too early or is no text.
pub fn unpack(mut image: &[u8]) -> Result<(String, Vec<PackedField>), WireError> {
    const DAMAGED: WireError = WireError::Damaged { message: "record", detail: "the packed image" };
    let mut fields = Vec::with_capacity(32);
    let mut texts: Vec<u8> = Vec::with_capacity(image.len());
    let mut last = 0;
    while !image.is_empty() {
        let no = prost::encoding::decode_varint(&mut image).map_err(|_| DAMAGED)?;
        let no = i16::try_from(no).ok().filter(|no| *no > last).ok_or(DAMAGED)?;
        last = no;
        let value = match prost::encoding::decode_varint(&mut image).map_err(|_| DAMAGED)? {
            NULL => FieldValue::Null,
            UNKNOWN => FieldValue::Unknown,
            length => {
                let length = usize::try_from(length - TEXT).map_err(|_| DAMAGED)?;
                let (text, rest) = image.split_at_checked(length).ok_or(DAMAGED)?;
                image = rest;
                // All texts together are read as UTF-8, once: each must begin with a character, then.
                if text.first().is_some_and(|byte| byte & 0xC0 == 0x80) {
                    return Err(DAMAGED);
                }
                texts.extend_from_slice(text);
                FieldValue::Text(())
            }
        };
        fields.push(PackedField { no, value, end: texts.len() });
    }
    Ok((String::from_utf8(texts).map_err(|_| DAMAGED)?, fields))
}
