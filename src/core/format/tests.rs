use proptest::prelude::*;

use super::*;

const AT: Micros = 1_700_000_000_123_456;
const STAMP: FieldNo = 7;

fn header() -> Header {
    Header {
        op: VersionOp::Update,
        n: 5,
        local: false,
        no_source_time: false,
        raw_at: None,
        stamp: None,
        modified_is_stamp: false,
        position_id: 3,
        offset: 300,
        lsn: 0,
        recorded: AT.div_euclid(1000) * 1000,
    }
}

fn text(t: &str) -> Value {
    Value::Text(t.into())
}

#[test]
fn the_bytes_are_these() {
    let h = Header { stamp: Some(1_700_000_001_000_000), modified_is_stamp: true, ..header() };
    let d = encode(AT, &h, Some(STAMP), &[(1, text("a")), (12, Value::Null), (13, Value::Unknown)]);
    let mut expected = vec![0x82, 5 | 0x40, 10, 0, 1, 3, 0xac, 2, 0, 0];
    expected.extend_from_slice(b"1\x1fa\x1f12\x1f\x02\x1f13\x1f\x03");
    assert_eq!(d, expected);
    // Nine hours and more.
    let h = Header { stamp: Some(1_699_900_000_000_000), ..h };
    let d = encode(AT, &h, Some(STAMP), &[(1, text("a"))]);
    let mut expected = vec![0x02, 5 | 0x40, 12, 0xff, 0xfe, 0x79, 0x60, 3, 0xac, 2, 0, 0];
    expected.extend_from_slice(b"1\x1fa");
    assert_eq!(d, expected);
    assert_eq!(decode(AT, &d, Some(STAMP)), Ok((h, vec![(1, text("a"))])));
}

#[test]
fn what_was_stored_before_the_short_stamp_is_read() {
    let h = Header { stamp: Some(1_700_000_001_000_000), modified_is_stamp: true, ..header() };
    let mut d = vec![0x02, 5 | 0x40, 12, 0, 0, 0, 1, 3, 0xac, 2, 0, 0];
    d.extend_from_slice(b"1\x1fa");
    assert_eq!(decode(AT, &d, Some(STAMP)), Ok((h.clone(), vec![(1, text("a"))])));
    d[3..7].copy_from_slice(&[0x80, 0, 0, 0]);
    assert_eq!(decode_header(AT, &d), Ok(Header { stamp: None, ..h }));
}

#[test]
fn marks_in_a_value_make_the_payload_json() {
    for mark in ["\u{1}", "a\u{2}", "\u{3}", "x\u{1f}y"] {
        let fields = [(1, text(mark)), (2, Value::Unknown), (10, Value::Null)];
        let d = encode(AT, &header(), None, &fields);
        assert_ne!(d[0] & JSON, 0, "{mark:?}");
        assert_eq!(decode(AT, &d, None), Ok((header(), fields.to_vec())));
    }
    let d = encode(AT, &header(), None, &[(1, text("{\"\\u0003\"}"))]);
    assert_eq!(d[0] & JSON, 0);
}

#[test]
fn a_stamp_that_does_not_fit_stands_in_the_payload_in_its_place() {
    for stamp in [i64::MAX, i64::MIN, AT + 1, AT - 400 * 86_400_000_000] {
        let h = Header { stamp: Some(stamp), ..header() };
        let fields = [(1, text("a")), (9, text("b"))];
        let d = encode(AT, &h, Some(STAMP), &fields);
        assert_eq!((d[0] & SHORT_STAMP, &d[3..5]), (SHORT_STAMP, &[0x80, 0][..]));
        assert_eq!(decode(AT, &d, Some(STAMP)), Ok((h.clone(), fields.to_vec())));
        let (_, raw) = decode(AT, &d, None).unwrap();
        assert_eq!(raw.iter().map(|f| f.0).collect::<Vec<_>>(), [1, STAMP, 9]);
        assert_eq!(decode_header(AT, &d).unwrap(), Header { stamp: None, ..h });
    }
}

#[test]
fn additions_between_the_varints_and_the_payload_are_skipped() {
    let fields = [(1, text("a"))];
    let mut d = encode(AT, &header(), None, &fields);
    let start = usize::from(d[2]);
    d.splice(start..start, [0xff, 0xff, 0x01]);
    d[2] += 3;
    assert_eq!(decode(AT, &d, None), Ok((header(), fields.to_vec())));
}

#[test]
fn damage_is_an_error() {
    let good = encode(AT, &header(), None, &[(1, text("a"))]);
    for end in [2, 4, 7] {
        assert_eq!(decode(AT, &good[..end], None), Err(FormatError::Short), "{end}");
    }
    let with = |i: usize, b: u8| {
        let mut d = good.clone();
        d[i] = b;
        decode(AT, &d, None)
    };
    for op in [6, 7] {
        assert_eq!(with(0, SHORT_STAMP | op), Err(FormatError::Newer));
    }
    assert_eq!(with(2, 200), Err(FormatError::Short));
    assert_eq!(with(2, 6), Err(FormatError::Short));
    assert_eq!(with(good.len() - 1, 0xff), Err(FormatError::Payload));
    for payload in ["1", "x\u{1f}a", "2\u{1f}a\u{1f}1\u{1f}b", "1\u{1f}a\u{1f}1\u{1f}b", "01\u{1f}a", "+1\u{1f}a"] {
        assert_eq!(payload::read(payload.as_bytes(), false), Err(FormatError::Payload), "{payload:?}");
    }
    for payload in ["", "[]", "{\"x\":null}", "{\"1\":1}", "{\"1\":{\"$unknown\":1}}"] {
        assert_eq!(payload::read(payload.as_bytes(), true), Err(FormatError::Payload), "{payload:?}");
    }
}

#[test]
fn a_nul_becomes_a_replacement_character_in_both_forms() {
    for (value, stored) in [("a\0b", "a\u{fffd}b"), ("\0\u{2}", "\u{fffd}\u{2}")] {
        let d = encode(AT, &header(), None, &[(1, text(value))]);
        assert!(!d[usize::from(d[2])..].contains(&0));
        assert_eq!(decode(AT, &d, None).unwrap().1, [(1, text(stored))]);
    }
}

#[test]
fn recorded_times_never_fall_for_want_of_microseconds() {
    let recorded = AT + 7_654_321;
    let of = |at: Micros| {
        let d = encode(at, &Header { recorded, ..header() }, None, &[]);
        decode(at, &d, None).unwrap().0.recorded
    };
    for at in [AT, AT + 1, AT + 543, AT + 544, AT + 999] {
        assert_eq!(of(at), recorded.div_euclid(1000) * 1000);
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(Value::Null),
        1 => Just(Value::Unknown),
        4 => "[a-z0-9 ]{0,8}".prop_map(|t| Value::Text(t.into())),
        2 => "[\u{1}-\u{4}\u{1e}-\u{20}\"\\\\{}é\u{2028}]{0,6}".prop_map(|t| Value::Text(t.into())),
    ]
}

fn any_fields() -> impl Strategy<Value = Vec<(FieldNo, Value)>> {
    prop::collection::btree_map(1..400i16, any_value(), 0..8)
        .prop_map(|m| m.into_iter().filter(|(no, _)| *no != STAMP).collect())
}

fn any_header() -> impl Strategy<Value = Header> {
    let near = |spread: i64| (-spread..spread).prop_map(|d| AT + d);
    let stamp = prop_oneof![
        near(100_000_000_000).prop_map(|t| t.div_euclid(1_000_000) * 1_000_000),
        near(100_000_000).prop_map(|t| t.div_euclid(1000) * 1000),
        any::<i64>(),
        Just(i64::MAX),
        Just(i64::MIN),
    ];
    (
        (0..6u8, 0..64u8, any::<bool>(), any::<bool>(), any::<bool>()),
        (prop::option::of(any::<i64>()), prop::option::of(stamp)),
        (0..i32::MAX, any::<i64>(), any::<u64>(), near(i64::MAX / 4)),
    )
        .prop_map(|((op, n, local, no_source_time, modified_is_stamp), (raw_at, stamp), (p, offset, lsn, rec))| {
            Header {
                op: VersionOp::from_bits(op).unwrap(),
                n,
                local,
                no_source_time,
                raw_at,
                stamp,
                modified_is_stamp,
                position_id: p,
                offset,
                lsn,
                recorded: rec.div_euclid(1000) * 1000,
            }
        })
}

proptest! {
    #[test]
    fn decode_is_the_inverse_of_encode(h in any_header(), fields in any_fields()) {
        let d = encode(AT, &h, Some(STAMP), &fields);
        prop_assert_eq!(decode(AT, &d, Some(STAMP)), Ok((h, fields)));
    }

    #[test]
    fn no_bytes_make_decode_panic(at in any::<i64>(), d in prop::collection::vec(any::<u8>(), 0..80)) {
        let _ = decode(at, &d, Some(STAMP));
    }

    #[test]
    fn no_damage_makes_decode_panic(
        at in any::<i64>(), h in any_header(), fields in any_fields(), i in any::<prop::sample::Index>(), b in any::<u8>()
    ) {
        let mut d = encode(AT, &h, Some(STAMP), &fields);
        let i = i.index(d.len());
        d[i] = b;
        let _ = decode(at, &d, Some(STAMP));
        let _ = decode(at, &d[..i], None);
    }

    #[test]
    fn folding_keeps_the_last_value_of_each_field(versions in prop::collection::vec(any_fields(), 0..6)) {
        let mut image = Vec::new();
        let mut expected = std::collections::BTreeMap::new();
        for fields in &versions {
            fold(&mut image, fields);
            expected.extend(fields.iter().cloned());
        }
        prop_assert_eq!(image, expected.into_iter().collect::<Vec<_>>());
    }
}
