//! Key bytes. Never change what a byte here means: raise [`FORMAT`].
//!
//! ```text
//! position_id (4, big-endian) ‖ 0x01                                          mark
//! position_id (4, big-endian) ‖ 0x02 ‖ object (2, big-endian) ‖ identity      image
//! position_id (4, big-endian) ‖ 0x03 ‖ object (2, big-endian) ‖ row key       row key → whatever names its record
//! ```
//! The position stands first, so that one range holds all that a position owns, its mark in front. The last
//! part has no length of its own: it ends with the key.

/// Format of a store directory: key bytes, kinds, file names.
pub const FORMAT: u32 = 1;

/// `afterimage.position.position_id`: one partition of one source in one incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PositionId(pub i32);

impl std::fmt::Display for PositionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The byte after the position. Retired kinds keep their number.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    Mark = 0x01,
    Image = 0x02,
    RowKey = 0x03,
}

/// Above every kind: the end of a position's range. Never a kind itself.
const END: u8 = 0xff;

pub(crate) const PREFIX_BYTES: usize = 4;
const HEAD_BYTES: usize = PREFIX_BYTES + 1 + 2;

/// What a value stands under.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(Box<[u8]>);

impl RecordKey {
    /// The image of a record at its home position. `identity` is the sfid, or what identifies a record of this
    /// object instead; `object_id` is `afterimage.object.object_id`.
    pub fn image(position: PositionId, object_id: i16, identity: &[u8]) -> RecordKey {
        RecordKey::new(position, Kind::Image, object_id, identity)
    }

    /// What is known of a row key (the Kafka key's canonical text): a cache of who stands under it.
    pub fn row_key(position: PositionId, object_id: i16, row_key: &[u8]) -> RecordKey {
        RecordKey::new(position, Kind::RowKey, object_id, row_key)
    }

    fn new(position: PositionId, kind: Kind, object_id: i16, last: &[u8]) -> RecordKey {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + last.len());
        bytes.extend(position.0.to_be_bytes());
        bytes.push(kind as u8);
        bytes.extend(object_id.to_be_bytes());
        bytes.extend(last);
        RecordKey(bytes.into())
    }

    /// Which object it is of.
    pub fn object_id(&self) -> i16 {
        i16::from_be_bytes([self.0[PREFIX_BYTES + 1], self.0[PREFIX_BYTES + 2]])
    }

    /// The identity of an image, or the row key.
    pub fn last(&self) -> &[u8] {
        &self.0[HEAD_BYTES..]
    }

    /// A stored key of an image, as it was stored; `None` if it is none.
    pub(crate) fn stored_image(bytes: &[u8]) -> Option<RecordKey> {
        let is_image = bytes.len() >= HEAD_BYTES && bytes[PREFIX_BYTES] == Kind::Image as u8;
        is_image.then(|| RecordKey(bytes.into()))
    }

    pub(crate) fn position(&self) -> PositionId {
        position_of(&self.0).expect("a record key starts with its position")
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// First key of a position's images, and the first after them.
pub(crate) fn images(position: PositionId) -> (/* from */ [u8; PREFIX_BYTES + 1], /* to */ [u8; PREFIX_BYTES + 1]) {
    (with_byte(position, Kind::Image as u8), with_byte(position, Kind::RowKey as u8))
}

pub(crate) fn mark_key(position: PositionId) -> [u8; PREFIX_BYTES + 1] {
    with_byte(position, Kind::Mark as u8)
}

/// First key of a position, and the first after it.
pub(crate) fn range(position: PositionId) -> (/* from */ [u8; PREFIX_BYTES + 1], /* to */ [u8; PREFIX_BYTES + 1]) {
    (with_byte(position, 0), with_byte(position, END))
}

/// The position that a stored key belongs to; `None` if it is too short to be one of ours.
pub(crate) fn position_of(key: &[u8]) -> Option<PositionId> {
    key.first_chunk().map(|prefix| PositionId(i32::from_be_bytes(*prefix)))
}

fn with_byte(position: PositionId, byte: u8) -> [u8; PREFIX_BYTES + 1] {
    let [a, b, c, d] = position.0.to_be_bytes();
    [a, b, c, d, byte]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of the first release. If this fails, old stores can't be read: raise [`FORMAT`] instead.
    #[test]
    fn format_1_keeps_its_keys() {
        assert_eq!(mark_key(PositionId(0x0102_0304)), [1, 2, 3, 4, 1]);
        assert_eq!(RecordKey::image(PositionId(7), 258, b"001").as_bytes(), b"\0\0\0\x07\x02\x01\x02001");
        assert_eq!(RecordKey::row_key(PositionId(7), 258, b"9001").as_bytes(), b"\0\0\0\x07\x03\x01\x029001");
    }

    #[test]
    fn the_range_of_a_position_holds_its_keys_and_nobody_elses() {
        for position in [1, 255, 256, i32::MAX] {
            let (from, to) = range(PositionId(position));
            let inside = |key: &[u8]| from[..] <= *key && *key < to[..];
            assert!(inside(&mark_key(PositionId(position))));
            for last in [&b""[..], b"a", &[0xff; 40]] {
                for object in [0, i16::MAX, -1] {
                    let image = RecordKey::image(PositionId(position), object, last);
                    assert!(inside(image.as_bytes()));
                    assert_eq!((image.object_id(), image.last()), (object, last));
                    assert_eq!(RecordKey::stored_image(image.as_bytes()), Some(image.clone()));
                    let (from, to) = images(PositionId(position));
                    assert!(from[..] <= *image.as_bytes() && *image.as_bytes() < to[..]);
                    assert!(*RecordKey::row_key(PositionId(position), object, last).as_bytes() >= to[..]);
                    assert!(inside(RecordKey::row_key(PositionId(position), object, last).as_bytes()));
                    for other in [position - 1, position.wrapping_add(1)] {
                        assert!(!inside(RecordKey::image(PositionId(other), object, last).as_bytes()));
                    }
                }
            }
        }
    }
}
