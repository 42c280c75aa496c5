//! The stored forms: what was written is read, what was not written is refused, and no bytes panic.

use afterimage_proto::{
    FieldValue, MARK_FORMAT, Mark, RECORD_FORMAT, WireError, decode_record, encode_record, put_field, unpack,
    v1::{self, field::Value},
};
use proptest::{option, prelude::*};
use prost::Message;

fn version(op: v1::VersionOp) -> impl Strategy<Value = v1::Version> {
    (any::<(u32, i64, u64, bool)>(), option::of(any::<i64>()), any::<(i32, i64, i64)>()).prop_map(
        move |((seq, at, lsn, no_source_time), raw_at, (position_id, offset, recorded))| v1::Version {
            seq,
            op: op.into(),
            at,
            raw_at,
            lsn,
            no_source_time,
            position_id,
            offset,
            recorded,
        },
    )
}

fn versions() -> impl Strategy<Value = (Option<v1::Version>, Option<v1::Version>)> {
    use v1::VersionOp::{Baseline, Create, Delete, Undelete, Update};
    prop_oneof![
        Just((None, None)),
        prop_oneof![version(Baseline), version(Update), version(Undelete)].prop_map(|head| (Some(head), None)),
        (version(Delete), option::of(version(Create))).prop_map(|(head, prev)| (Some(head), prev)),
    ]
}

fn packed<T: AsRef<str>>(fields: &[(i16, FieldValue<T>)]) -> Vec<u8> {
    let mut image = Vec::new();
    for (no, value) in fields {
        let value = match value {
            FieldValue::Null => FieldValue::Null,
            FieldValue::Unknown => FieldValue::Unknown,
            FieldValue::Text(text) => FieldValue::Text(text.as_ref()),
        };
        put_field(&mut image, *no, value);
    }
    image
}

/// The fields of an image, each with its text.
fn fields(image: &[u8]) -> Result<Vec<(i16, FieldValue<String>)>, WireError> {
    let (texts, fields) = unpack(image)?;
    let mut start = 0;
    let read = fields.into_iter().map(|field| {
        let text = &texts[std::mem::replace(&mut start, field.end)..field.end];
        let value = match field.value {
            FieldValue::Null => FieldValue::Null,
            FieldValue::Unknown => FieldValue::Unknown,
            FieldValue::Text(()) => FieldValue::Text(text.to_string()),
        };
        (field.no, value)
    });
    Ok(read.collect())
}

fn image() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![".*".prop_map(Some), Just(Some(String::new())), Just(None)];
    proptest::collection::btree_map(1..=i16::MAX, (value, any::<bool>()), 0..40).prop_map(|fields| {
        let value = |(text, unknown): &(Option<String>, bool)| match text {
            Some(text) => FieldValue::Text(text.clone().leak()),
            None if *unknown => FieldValue::Unknown,
            None => FieldValue::Null,
        };
        packed(&fields.iter().map(|(no, field)| (*no, value(field))).collect::<Vec<_>>())
    })
}

prop_compose! {
    fn record()(
        rid in any::<i32>(),
        row_key in option::of(".*"),
        floor in option::of((any::<u64>(), option::of(any::<i64>()))),
        (head, prev) in versions(),
        stamp in option::of(any::<i64>()),
        modified_by in option::of(".*"),
        image in image(),
        (status_hash, system_hash) in any::<(u32, u32)>(),
        deleted_key in option::of(".*"),
        unshown in prop::collection::vec(any::<u8>(), 0..8),
    ) -> v1::Record {
        let floor = floor.map(|(lsn, ts)| v1::Floor { lsn, ts });
        v1::Record {
            format: RECORD_FORMAT, rid, row_key, floor, head, prev, stamp, modified_by, fields: Vec::new(), status_hash, system_hash,
            deleted_key, image, unshown,
        }
    }
}

prop_compose! {
    fn mark()(
        (sink_id, token) in any::<([u8; 16], [u8; 16])>(),
        (position_id, epoch, next, inval_seq, missing_after) in any::<(i32, i64, i64, i64, Option<i32>)>(),
    ) -> Mark {
        Mark { sink_id, position_id, epoch, token, next, inval_seq, missing_after }
    }
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was_written(record in record()) {
        let bytes = encode_record(&mut record.clone());
        prop_assert_eq!(decode_record(&bytes), Ok(record.clone()));
        let read = fields(&record.image).unwrap();
        prop_assert_eq!(packed(&read), record.image);
    }

    #[test]
    fn a_mark_comes_back_as_it_was_written(mark in mark()) {
        prop_assert_eq!(Mark::decode(&mark.encode()), Ok(mark));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_record(&bytes);
        if let Ok(read) = fields(&bytes) {
            prop_assert!(read.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
        let _ = Mark::decode(&bytes);
    }

    /// Closer to home than random bytes: most damage is a real value with a byte changed or the end cut off.
    #[test]
    fn damaged_bytes_never_panic_and_what_is_read_is_written_back(
        record in record(), mark in mark(), at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>(),
    ) {
        for mut bytes in [encode_record(&mut record.clone()), mark.encode()] {
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = to }
            if let Ok(read) = decode_record(&bytes) {
                prop_assert_eq!(decode_record(&encode_record(&mut read.clone())), Ok(read));
            }
            if let Ok(read) = Mark::decode(&bytes) {
                prop_assert_eq!(Mark::decode(&read.encode()), Ok(read));
            }
        }
    }

    /// A later release may add fields without raising the form: they are skipped.
    #[test]
    fn unknown_fields_are_skipped(record in record(), mark in mark()) {
        const FIELD_2047_TEXT_NEW: [u8; 6] = [0xfa, 0x7f, 3, b'n', b'e', b'w'];
        let mut bytes = encode_record(&mut record.clone());
        bytes.extend(FIELD_2047_TEXT_NEW);
        prop_assert_eq!(decode_record(&bytes), Ok(record));
        let mut bytes = mark.encode();
        bytes.extend(FIELD_2047_TEXT_NEW);
        prop_assert_eq!(Mark::decode(&bytes), Ok(mark));
    }
}

#[test]
fn a_later_form_is_refused_as_such() {
    let record = v1::Record { format: RECORD_FORMAT + 1, ..Default::default() }.encode_to_vec();
    assert_eq!(
        decode_record(&record),
        Err(WireError::Future { message: "record", found: RECORD_FORMAT + 1, known: RECORD_FORMAT })
    );
    let mark = v1::Mark { format: MARK_FORMAT + 1, ..Default::default() }.encode_to_vec();
    assert_eq!(
        Mark::decode(&mark),
        Err(WireError::Future { message: "mark", found: MARK_FORMAT + 1, known: MARK_FORMAT })
    );
}

/// An empty value is a valid protocol buffer with every field at its default: it must not pass for a record.
#[test]
fn empty_bytes_are_no_record_and_no_mark() {
    assert!(matches!(decode_record(b""), Err(WireError::Damaged { .. })));
    assert!(matches!(Mark::decode(b""), Err(WireError::Damaged { .. })));
}

#[test]
fn shapes_that_no_release_writes_are_damage() {
    let text = |no| v1::Field { no, value: Some(Value::Text("a".into())) };
    let head = |op: i32| Some(v1::Version { op, ..Default::default() });
    let record = |fields, head, prev| v1::Record { format: 1, fields, head, prev, ..Default::default() };
    for (name, record) in [
        ("no value", record(vec![v1::Field { no: 1, value: None }], None, None)),
        ("null false", record(vec![v1::Field { no: 1, value: Some(Value::Null(false)) }], None, None)),
        ("unknown false", record(vec![v1::Field { no: 1, value: Some(Value::Unknown(false)) }], None, None)),
        ("twice", record(vec![text(2), text(2)], None, None)),
        ("falling", record(vec![text(2), text(1)], None, None)),
        ("zero", record(vec![text(0)], None, None)),
        ("beyond int2", record(vec![text(32768)], None, None)),
        ("op 6", record(vec![], head(6), None)),
        ("prev of an update", record(vec![], head(2), head(1))),
        ("prev alone", record(vec![], None, head(1))),
    ] {
        assert!(matches!(decode_record(&record.encode_to_vec()), Err(WireError::Damaged { .. })), "{name}");
    }
    let mark = v1::Mark { format: 1, sink_id: vec![0; 15], token: vec![0; 16], ..Default::default() };
    assert!(matches!(Mark::decode(&mark.encode_to_vec()), Err(WireError::Damaged { .. })));
}

#[test]
fn a_packed_image_that_no_release_writes_is_damage() {
    let text = |no| (no, FieldValue::Text("a".to_string()));
    assert_eq!(fields(&packed(&[text(1), text(300)])), Ok(vec![text(1), text(300)]));
    for (name, image) in [
        ("twice", packed(&[text(2), text(2)])),
        ("falling", packed(&[text(2), text(1)])),
        ("zero", packed(&[text(0)])),
        ("cut off", vec![1, 9, b'a']),
        ("no value", vec![1]),
        ("beyond int2", vec![0x80, 0x80, 2, 0]),
        ("not a text", vec![1, 3, 0xff]),
        ("one character in two fields", vec![1, 3, 0xc3, 2, 3, 0xa9]),
    ] {
        assert!(matches!(fields(&image), Err(WireError::Damaged { .. })), "{name}");
    }
    let both = v1::Record {
        format: 2,
        fields: vec![v1::Field { no: 1, value: Some(Value::Null(true)) }],
        ..Default::default()
    };
    assert!(matches!(decode_record(&both.encode_to_vec()), Err(WireError::Damaged { .. })));
}

/// The bytes of the first release. If this fails, old stores can't be read: raise the form, don't edit the bytes.
#[test]
fn form_1_keeps_its_bytes() {
    let mark = Mark {
        sink_id: [1; 16],
        position_id: 7,
        epoch: 3,
        token: [2; 16],
        next: 300,
        inval_seq: 5,
        missing_after: None,
    };
    let mark_bytes =
        [&[0x08, 1, 0x12, 16][..], &[1; 16], &[0x18, 7, 0x20, 3, 0x2a, 16], &[2; 16], &[0x30, 0xac, 0x02, 0x38, 5]]
            .concat();
    assert_eq!(mark.encode(), mark_bytes);
    assert_eq!(Mark::decode(&mark_bytes), Ok(mark));

    let version = |seq, op: v1::VersionOp| v1::Version {
        seq,
        op: op.into(),
        at: -2,
        raw_at: Some(0),
        lsn: 1,
        no_source_time: true,
        position_id: 7,
        offset: 8,
        recorded: 9,
    };
    let record = v1::Record {
        format: 1,
        rid: 4,
        row_key: Some("9001".into()),
        floor: Some(v1::Floor { lsn: 6, ts: Some(0) }),
        head: Some(version(65, v1::VersionOp::Delete)),
        prev: Some(version(64, v1::VersionOp::Update)),
        stamp: Some(-1),
        modified_by: Some(String::new()),
        fields: vec![
            v1::Field { no: 1, value: Some(Value::Text("é".into())) },
            v1::Field { no: 2, value: Some(Value::Text(String::new())) },
            v1::Field { no: 3, value: Some(Value::Null(true)) },
            v1::Field { no: 300, value: Some(Value::Unknown(true)) },
        ],
        status_hash: 0x0403_0201,
        system_hash: 0,
        deleted_key: Some("9".into()),
        image: Vec::new(),
        unshown: Vec::new(),
    };
    let version_tail = [0x18, 3, 0x20, 0, 0x28, 1, 0x30, 1, 0x38, 7, 0x40, 8, 0x48, 18];
    let record_bytes = [
        &[0x08, 1, 0x10, 4, 0x1a, 4, b'9', b'0', b'0', b'1', 0x22, 4, 0x08, 6, 0x10, 0][..],
        &[0x2a, 18, 0x08, 65, 0x10, 4],
        &version_tail,
        &[0x32, 18, 0x08, 64, 0x10, 2],
        &version_tail,
        &[0x38, 1, 0x42, 0],
        &[0x4a, 6, 0x08, 1, 0x12, 2, 0xc3, 0xa9, 0x4a, 4, 0x08, 2, 0x12, 0],
        &[0x4a, 4, 0x08, 3, 0x18, 1, 0x4a, 5, 0x08, 0xac, 0x02, 0x20, 1],
        &[0x55, 1, 2, 3, 4, 0x62, 1, b'9'],
    ]
    .concat();
    assert_eq!(record.encode_to_vec(), record_bytes);
    let read = decode_record(&record_bytes).unwrap();
    let image =
        [(1, FieldValue::Text("é")), (2, FieldValue::Text("")), (3, FieldValue::Null), (300, FieldValue::Unknown)];
    assert_eq!(packed(&fields(&read.image).unwrap()), packed(&image));
    assert_eq!(read, v1::Record { format: 2, fields: Vec::new(), image: packed(&image), ..record });
}

/// What form 2 changed: the image is packed.
#[test]
fn form_2_keeps_its_bytes() {
    let image =
        [(1, FieldValue::Text("é")), (2, FieldValue::Text("")), (3, FieldValue::Null), (300, FieldValue::Unknown)];
    let mut record = v1::Record { rid: 4, image: packed(&image), ..Default::default() };
    let bytes = [8, 2, 16, 4, 0x6a, 11, 1, 4, 0xc3, 0xa9, 2, 2, 3, 0, 0xac, 2, 1];
    assert_eq!(encode_record(&mut record), bytes);
    assert_eq!(decode_record(&bytes), Ok(record));
}
