//! LEB128, signed numbers in zigzag.

use super::FormatError;

pub(super) fn put(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub(super) fn put_signed(out: &mut Vec<u8>, v: i64) {
    put(out, ((v << 1) ^ (v >> 63)) as u64);
}

pub(super) fn take(bytes: &mut &[u8]) -> Result<u64, FormatError> {
    let mut v = 0u64;
    for shift in (0..64).step_by(7) {
        let (&b, rest) = bytes.split_first().ok_or(FormatError::Short)?;
        *bytes = rest;
        // The tenth byte has room for one bit only.
        if shift == 63 && b > 1 {
            return Err(FormatError::Varint);
        }
        v |= u64::from(b & 0x7f) << shift;
        if b < 0x80 {
            return Ok(v);
        }
    }
    Err(FormatError::Varint)
}

pub(super) fn take_signed(bytes: &mut &[u8]) -> Result<i64, FormatError> {
    let v = take(bytes)?;
    Ok((v >> 1) as i64 ^ -((v & 1) as i64))
}
