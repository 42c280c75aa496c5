//! Eight bytes at a time: where in a short text something stands, for texts too short for a search that is made for long
//! ones.

/// A one in each byte.
pub const ONES: u64 = 0x0101_0101_0101_0101;

/// Marks the bytes of a word that equal this one, each by its highest bit. Only the lowest mark is exact: borrows can set
/// wrong ones above it. Lower bits are of no meaning, see [`first`].
#[inline]
pub const fn equal(word: u64, byte: u8) -> u64 {
    let rest = word ^ (ONES * byte as u64);
    rest.wrapping_sub(ONES) & !rest
}

/// The first marked byte of a word that was read as little-endian.
#[inline]
pub const fn first(marks: u64) -> Option<usize> {
    let marks = marks & (ONES << 7);
    if marks == 0 { None } else { Some((marks.trailing_zeros() / 8) as usize) }
}

/// Where the byte stands first.
#[inline]
pub fn find(bytes: &[u8], byte: u8) -> Option<usize> {
    let mut at = 0;
    while let Some(eight) = bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()) {
        if let Some(found) = first(equal(u64::from_le_bytes(eight), byte)) {
            return Some(at + found);
        }
        at += 8;
    }
    bytes[at..].iter().position(|other| *other == byte).map(|found| at + found)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_found_where_it_stands_first(bytes in prop::collection::vec(0x1d..0x22u8, 0..40)) {
            prop_assert_eq!(find(&bytes, 0x1f), bytes.iter().position(|byte| *byte == 0x1f));
        }
    }
}
