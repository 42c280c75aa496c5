//! The decoder on real messages, on the odd ones, and on junk.

mod properties;

use super::*;
use crate::core::event::Micros;

const SAMPLES: [(&str, &str); 6] = [
    ("27 schema", include_str!("../../../tests/golden/debezium/dbz27.schema.jsonl")),
    ("27 plain", include_str!("../../../tests/golden/debezium/dbz27.plain.jsonl")),
    ("37 schema", include_str!("../../../tests/golden/debezium/dbz37.schema.jsonl")),
    ("37 plain", include_str!("../../../tests/golden/debezium/dbz37.plain.jsonl")),
    ("27 edge", include_str!("../../../tests/golden/debezium/edge.dbz27.plain.jsonl")),
    ("37 edge", include_str!("../../../tests/golden/debezium/edge.dbz37.plain.jsonl")),
];

/// A recorded message: topic, key, value.
struct Recorded {
    topic: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

fn recorded(lines: &str) -> Vec<Recorded> {
    let bytes = |v: &serde_json::Value| match v {
        serde_json::Value::Null => None,
        serde_json::Value::String(s) => Some(s.clone().into_bytes()),
        other => panic!("base64 is not expected here: {other}"),
    };
    let read = |line: &str| {
        let v: serde_json::Value = serde_json::from_str(line).unwrap();
        Recorded { topic: v["t"].as_str().unwrap().to_owned(), key: bytes(&v["k"]), value: bytes(&v["v"]) }
    };
    lines.lines().map(read).collect()
}

/// The declarations of the sample tables, for the streams without schema blocks.
fn sample_types() -> BTreeMap<String, Kind> {
    [
        ("annualrevenue", Kind::Float8),
        ("numberofemployees", Kind::Int4),
        ("billinglatitude", Kind::Float8),
        ("billinglongitude", Kind::Float8),
        ("score__c", Kind::Float8),
        ("renewal__c", Kind::Date),
        ("last_call__c", Kind::Timestamp),
        ("visits__c", Kind::Int4),
        ("birthdate", Kind::Date),
        ("amount__c", Kind::Float8),
        ("due__c", Kind::Date),
        ("started__c", Kind::Timestamp),
        ("count__c", Kind::Int4),
    ]
    .map(|(name, kind)| (name.to_owned(), kind))
    .into()
}

/// The quick look takes every plain message of a real connector, and reads it as the long one does; so it does with a byte
/// changed, where it accepts that at all.
#[test]
fn both_looks_agree_on_real_messages() {
    for (name, lines) in SAMPLES {
        let mut decoder = Decoder::new(TopicRules { types: sample_types(), ..TopicRules::default() });
        decoder.print_rows(1, 7);
        let (mut taken, mut rows, mut printed) = (0, 0, 0);
        for Recorded { topic, key, value } in recorded(lines) {
            let (Some(value), true) = (value, topic.ends_with("account")) else { continue };
            let text = std::str::from_utf8(&value).unwrap();
            let (block, key) = (decoder.blocks.last().map(|(text, hash)| (text.to_owned(), hash)), key.as_deref());
            let block = block.as_ref().map(|(text, hash)| (text.as_str(), *hash));
            let quick = envelope::tests::both_ways_agree(block, &decoder.layout, key, text);
            for at in (0..text.len()).step_by(3) {
                for with in ['"', '\\', '}', '7', 'x', ' '] {
                    if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                        let changed = format!("{}{with}{}", &text[..at], &text[at + 1..]);
                        envelope::tests::both_ways_agree(block, &decoder.layout, key, &changed);
                    }
                }
            }
            let look = decoder.peek(key, Some(&value));
            if let Peek::Row(envelope) = &look {
                rows += 1;
                taken += usize::from(quick);
                printed += usize::from(envelope.print.is_some());
            }
            let _ = decoder.decode(&look, key, Some(&value));
        }
        assert!(taken + 4 >= rows && rows > 5, "{name}: {taken} of {rows} rows were looked at quickly");
        assert!(printed * 2 > rows, "{name}: {printed} of {rows} rows were printed");
    }
}

#[test]
fn a_print_covers_the_key_and_every_visible_column_and_nothing_else() {
    let message = |name: &str, stamp: u64, last: &str| {
        let after = format!(
            r#"{{"id":7,"sfid":"001f400001MDeYzAAL","name":"{name}","systemmodstamp":{stamp},"_hc_lastop":"SYNCED","score__c":{last}}}"#
        );
        format!(
            r#"{{"before":null,"after":{after},"source":{{"ts_ms":5,"lsn":9,"table":"account"}},"op":"u","ts_ms":6}}"#
        )
    };
    let mut decoder = Decoder::new(TopicRules::default());
    decoder.print_rows(1, 7);
    let first = message("A", 1, "2");
    let look = decoder.peek(Some(br#"{"id":7}"#), Some(first.as_bytes()));
    decoder.decode(&look, Some(br#"{"id":7}"#), Some(first.as_bytes())).unwrap();
    let print = |key: &[u8], text: &str| match decoder.peek(Some(key), Some(text.as_bytes())) {
        Peek::Row(envelope) => envelope.print.expect("laid out as the first"),
        other => panic!("{other:?}"),
    };
    let known = print(br#"{"id":7}"#, &first);
    let touched = print(br#"{"id":7}"#, &message("A", 2, "2"));
    assert_eq!((known.record, known.content), (touched.record, touched.content));
    assert!(known.system != touched.system && known.status == touched.status);
    for (what, other) in [
        ("key", print(br#"{"id":8}"#, &first)),
        ("name", print(br#"{"id":7}"#, &message("B", 1, "2"))),
        ("the last column", print(br#"{"id":7}"#, &message("A", 1, "3"))),
        ("the record", print(br#"{"id":7}"#, &first.replace("MDeYzAAL", "MDeYzAAM"))),
    ] {
        assert_ne!(known.content, other.content, "{what}");
    }
}

fn decode(decoder: &mut Decoder, key: Option<&str>, value: Option<&str>) -> Result<Decoded, DecodeError> {
    let (key, value) = (key.map(str::as_bytes), value.map(str::as_bytes));
    let look = peek(key, value);
    decoder.decode(&look, key, value)
}

fn event(decoder: &mut Decoder, key: &str, value: &str) -> Event {
    match decode(decoder, Some(key), Some(value)) {
        Ok(Decoded::Event(event)) => event,
        other => panic!("{value}: {other:?}"),
    }
}

fn reason(value: &str) -> Reason {
    decode(&mut Decoder::new(TopicRules::default()), Some(r#"{"id":1}"#), Some(value)).unwrap_err().reason
}

/// An envelope without schema around `after`.
fn create(after: &str) -> String {
    format!(
        r#"{{"before":null,"after":{after},"source":{{"table":"t","ts_us":1700000000000000,"lsn":7,"txId":3}},"op":"c"}}"#
    )
}

/// The same with a schema block.
fn create_with_schema(columns: &str, after: &str) -> String {
    let row = |field| format!(r#"{{"type":"struct","fields":[{columns}],"field":"{field}"}}"#);
    let (before, after_schema) = (row("before"), row("after"));
    format!(r#"{{"schema":{{"type":"struct","fields":[{before},{after_schema}]}},"payload":{}}}"#, create(after))
}

fn field<'e>(decoder: &Decoder, event: &'e Event, name: &str) -> Option<&'e Value> {
    let index = decoder.columns().iter().position(|c| &*c.name == name)?;
    event.row.values.iter().find(|(i, _)| usize::from(*i) == index).map(|(_, v)| v)
}

fn text(s: &str) -> Value {
    Value::Text(s.into())
}

fn declared_types<const N: usize>(types: [(&str, Kind); N]) -> TopicRules {
    TopicRules { types: types.map(|(name, kind)| (name.to_owned(), kind)).into(), ..TopicRules::default() }
}

#[test]
fn every_recorded_message_decodes() {
    for (name, lines) in SAMPLES {
        // The edge samples' driver invented ids such as `a0100000000000AAAA`, whose check characters are wrong and
        // whose case is mixed: refused as sfid, so there the rows are named by their keys, as any table's can be.
        let identity = if name.ends_with("edge") { IdentityRule::Key } else { IdentityRule::Auto };
        let mut decoders: BTreeMap<String, Decoder> = BTreeMap::new();
        let (mut events, mut others) = (0, 0);
        for message in recorded(lines) {
            let types = sample_types();
            let rules = TopicRules { types, identity: identity.clone(), ..TopicRules::default() };
            let decoder = decoders.entry(message.topic.clone()).or_insert_with(|| Decoder::new(rules));
            let (key, value) = (message.key.as_deref(), message.value.as_deref());
            let look = decoder.peek(key, value);
            assert_eq!(look, peek(key, value), "{name}");
            match decoder.decode(&look, key, value) {
                Ok(Decoded::Event(event)) => {
                    events += 1;
                    let serial = event.key.parse::<i64>().is_ok() || message.topic.contains("debezium_signal");
                    assert!(event.ts.is_some() && serial, "{name}: {event:?}");
                    assert_eq!(event.lsn == 0, event.op == Op::Read, "{name}: {event:?}");
                    for (_, value) in &event.row.values {
                        assert_ne!(value.text(), Some(PLACEHOLDER));
                    }
                }
                Ok(_) => others += 1,
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert!(events >= 50 && others > 0, "{name}: {events} events, {others} others");
    }
}

#[test]
fn the_edge_samples_differ_from_good_ones_only_in_their_ids() {
    for (name, lines) in SAMPLES.iter().filter(|(name, _)| name.ends_with("edge")) {
        let mut decoder = Decoder::new(TopicRules { types: sample_types(), ..TopicRules::default() });
        let refused: BTreeSet<String> = recorded(lines)
            .iter()
            .filter(|message| message.topic.ends_with("emea.job__c"))
            .filter_map(|message| {
                let (key, value) = (message.key.as_deref(), message.value.as_deref());
                let error = decoder.decode(&peek(key, value), key, value).err()?;
                assert_eq!(error.reason, Reason::BadSfid, "{name}: {error}");
                row_key(key).unwrap().map(String::from)
            })
            .collect();
        // Ids 10 to 26 are a0100000000000A to …Q; 9001 is 26 after its key changed.
        assert_eq!(refused.len(), 18, "{name}: {refused:?}");
    }
}

/// The odd values of the edge samples, by what the rows themselves are called.
#[test]
fn the_edge_samples_show_what_postgres_held() {
    let wanted = [
        ("negzero", "amount__c", "-0"),
        ("max", "amount__c", "1.7976931348623157e+308"),
        ("tiny", "amount__c", "5e-324"),
        ("big", "amount__c", "1.2345678901234568e+17"),
        ("1e21", "amount__c", "1e+21"),
        ("fifteen", "amount__c", "15"),
        ("nan", "amount__c", "NaN"),
        ("inf", "amount__c", "Infinity"),
        ("-inf", "amount__c", "-Infinity"),
        ("d-inf", "due__c", "infinity"),
        ("d--inf", "due__c", "-infinity"),
        ("d-0001", "due__c", "0001-01-01"),
        ("d-bc", "due__c", "0044-03-15 BC"),
        ("d-1582", "due__c", "1582-10-10"),
        ("d-big", "due__c", "294276-12-31"),
        ("t-inf", "started__c", "infinity"),
        ("t--inf", "started__c", "-infinity"),
        ("t-us", "started__c", "2026-02-28 23:59:59.123457"),
        ("t-9999", "started__c", "9999-12-31 23:59:59.999999"),
        ("t-1", "started__c", "1969-12-31 23:59:59.999999"),
        ("t-bc", "started__c", "0044-03-15 12:00:00 BC"),
    ];
    for (name, lines) in SAMPLES.iter().filter(|(name, _)| name.ends_with("edge")) {
        let rules = TopicRules { types: sample_types(), identity: IdentityRule::Key, ..TopicRules::default() };
        let mut decoder = Decoder::new(rules);
        let mut seen: BTreeMap<String, Event> = BTreeMap::new();
        for message in recorded(lines).iter().filter(|message| message.topic.ends_with("emea.job__c")) {
            let (key, value) = (message.key.as_deref(), message.value.as_deref());
            if let Ok(Decoded::Event(event)) = decoder.decode(&peek(key, value), key, value)
                && let Some(Value::Text(called)) = field(&decoder, &event, "name")
            {
                seen.insert(called.to_string(), event);
            }
        }
        for (row, column, value) in wanted {
            let event = seen.get(row).unwrap_or_else(|| panic!("{name}: no row {row}"));
            assert_eq!(field(&decoder, event, column), Some(&text(value)), "{name}: {row}");
        }
        let odd = seen.iter().find(|(called, _)| called.starts_with("quote \" back \\ nl \n tab \t ")).unwrap().1;
        let payload = field(&decoder, odd, "payload__c").and_then(Value::text).unwrap();
        assert!(payload.ends_with("\u{1}\u{1f}\u{7f}") && payload.starts_with("\u{2028}"), "{name}: {payload:?}");
    }
}

/// The streams with and without schema saw the same transactions: declared types must lead to the same values.
#[test]
fn schema_and_declarations_agree_on_the_recorded_values() {
    let values = |lines: &str| {
        let mut decoders: BTreeMap<String, Decoder> = BTreeMap::new();
        let mut seen: BTreeMap<(String, String, u64), BTreeMap<String, Value>> = BTreeMap::new();
        for message in recorded(lines) {
            let table = message.topic.split_once('.').map(|(_, table)| table.to_owned()).unwrap_or_default();
            let rules = TopicRules { types: sample_types(), ..TopicRules::default() };
            let decoder = decoders.entry(message.topic.clone()).or_insert_with(|| Decoder::new(rules));
            let (key, value) = (message.key.as_deref(), message.value.as_deref());
            if let Ok(Decoded::Event(event)) = decoder.decode(&peek(key, value), key, value) {
                let named = |(index, value): &(u16, Value)| {
                    (decoder.columns()[usize::from(*index)].name.to_string(), value.clone())
                };
                let fields = event.row.values.iter().map(named).collect();
                seen.insert((table, event.key.to_string(), event.lsn), fields);
            }
        }
        seen
    };
    let mut compared = 0;
    for (with, without) in [(0, 1), (2, 3)] {
        let without = values(SAMPLES[without].1);
        for (event, fields) in values(SAMPLES[with].1) {
            if event.2 != 0
                && let Some(other) = without.get(&event)
            {
                assert_eq!(&fields, other, "{event:?}");
                compared += fields.len();
            }
        }
    }
    assert!(compared > 1000, "only {compared} fields compared");
}

#[test]
fn envelope_forms() {
    let mut decoder = Decoder::new(TopicRules::default());
    // Arbitrary field order, unknown fields, snapshot as bool, numbers as strings, no ts_us.
    let odd = r#" {"op":"u","zzz":[1,{"a":null}],"after":{"id":1,"sfid":"001f400001MDeYz"},"ts_ms":"9",
        "source":{"snapshot":false,"lsn":"61800480","txId":"555","ts_ms":1772360109000,"sequence":null,"table":"account"},"transaction":null} "#;
    let found = event(&mut decoder, r#"{"id":1}"#, odd);
    assert_eq!((found.op, found.lsn, found.tx_id), (Op::Update, 61_800_480, Some(555)));
    assert_eq!(found.ts, Some(1_772_360_109_000_000));
    assert_eq!((found.key.as_ref(), found.identity.as_deref()), ("1", Some("001f400001MDeYzAAL")));
    // The same topic may turn to schema blocks; ts_ns comes before ts_ms.
    let wrapped = format!(
        r#"{{"payload":{{"op":"c","after":{{"id":2,"sfid":null}},"source":{{"ts_ns":-1,"ts_ms":5,"table":"t"}}}},"schema":{}}}"#,
        r#"{"fields":[{"field":"after","fields":[{"field":"id","type":"int32"}]}]}"#
    );
    let found = event(&mut decoder, r#"{"schema":{},"payload":{"id":2}}"#, &wrapped);
    assert_eq!((found.ts, found.lsn, found.identity), (Some(-1), 0, None));
    // An incremental snapshot has nulls; no read ever has an LSN.
    for source in [r#"{"table":"t","lsn":null,"txId":null,"sequence":"[\"1\",\"1\"]"}"#, r#"{"table":"t","lsn":99}"#] {
        let read = format!(r#"{{"op":"r","after":{{"id":2,"sfid":null}},"source":{source}}}"#);
        let found = event(&mut decoder, r#"{"id":2}"#, &read);
        assert_eq!((found.op, found.lsn, found.ts), (Op::Read, 0, None));
    }
}

#[test]
fn what_is_no_row_event() {
    let mut decoder = Decoder::new(TopicRules::default());
    let mut meaning = |key: Option<&str>, value: Option<&str>| decode(&mut decoder, key, value);
    for tombstone in [
        None,
        Some("null"),
        Some(" null\n"),
        Some(r#"{"schema":null,"payload":null}"#),
        Some(r#"{"schema":{"type":"struct"},"payload":null}"#),
    ] {
        assert_eq!(meaning(Some(r#"{"id":1}"#), tombstone), Ok(Decoded::Tombstone), "{tombstone:?}");
    }
    let ignored = |i| Ok(Decoded::Ignored(i));
    let truncate = r#"{"before":null,"after":null,"source":{"table":"t","ts_us":5,"lsn":6},"op":"t"}"#;
    assert_eq!(meaning(None, Some(truncate)), ignored(Ignored::Truncate));
    assert_eq!(peek(None, Some(truncate.as_bytes())), Peek::Truncate { ts: Some(5), lsn: 6 });
    let message = r#"{"op":"m","source":{"table":""},"message":{"prefix":"p","content":"aGVsbG8="}}"#;
    assert_eq!(meaning(Some(r#"{"prefix":"p"}"#), Some(message)), ignored(Ignored::Message));
    assert_eq!(meaning(Some(r#"{"serverName":"c"}"#), Some(r#"{"ts_ms":1772360110000}"#)), ignored(Ignored::Heartbeat));
    let wrapped = r#"{"schema":{},"payload":{"ts_ms":1772360110000}}"#;
    assert_eq!(
        meaning(Some(r#"{"schema":{},"payload":{"serverName":"c"}}"#), Some(wrapped)),
        ignored(Ignored::Heartbeat)
    );
    let transaction = r#"{"status":"BEGIN","id":"737:26742568","event_count":null,"data_collections":null,"ts_ms":5}"#;
    assert_eq!(meaning(Some(r#"{"id":"737:26742568"}"#), Some(transaction)), ignored(Ignored::Transaction));
    // Only what is clearly a side record is ignored.
    assert_eq!(meaning(Some(r#"{"id":1}"#), Some(r#"{"ts_ms":5}"#)).unwrap_err().reason, Reason::NotAnEnvelope);
}

#[test]
fn junk_is_told_apart() {
    let source = r#""source":{"table":"t"}"#;
    for (value, wanted) in [
        (String::new(), Reason::Empty),
        ("{".to_owned(), Reason::NotJson),
        ("\u{0}\u{0}\u{0}\u{0}\u{1}avro".to_owned(), Reason::NotJson),
        (format!("{}1", "{\"a\":".repeat(2000)), Reason::NotJson),
        (format!("{}1", "{\"payload\":".repeat(2000)), Reason::NotJson),
        ("[".repeat(100_000), Reason::NotAnEnvelope),
        ("7".to_owned(), Reason::NotAnEnvelope),
        ("[null,null]".to_owned(), Reason::NotAnEnvelope),
        ("{}".to_owned(), Reason::NotAnEnvelope),
        (r#"{"schema":{},"payload":7}"#.to_owned(), Reason::NotAnEnvelope),
        (r#"{"id":1,"sfid":"x"}"#.to_owned(), Reason::NotAnEnvelope),
        (format!(r#"{{"op":"x","after":{{}},{source}}}"#), Reason::UnknownOp),
        (format!(r#"{{"op":7,"after":{{}},{source}}}"#), Reason::UnknownOp),
        (r#"{"op":"c","after":{}}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":null}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":["t"]}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":{"table":""}}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":{"table":7}}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":{"table":"t","lsn":-1}}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":{"table":"t","lsn":1e30}}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"c","after":{},"source":{"table":"t","ts_ms":9223372036854775807}}"#.to_owned(), Reason::BadSource),
        (r#"{"op":"d","before":null}"#.to_owned(), Reason::BadSource),
        (format!(r#"{{"op":"d","before":[1],{source}}}"#), Reason::BadRow),
        (format!(r#"{{"op":"u","after":null,{source}}}"#), Reason::BadRow),
        (format!(r#"{{"op":"u","after":[1],{source}}}"#), Reason::BadRow),
        (format!(r#"{{"op":"u","after":"x",{source}}}"#), Reason::BadRow),
        (create(r#"{"id":1,"id":2}"#), Reason::BadRow),
        (create(r#"{"id":1,"name":"a\u0000b"}"#), Reason::BadValue),
        (create(r#"{"id":1,"name":"\ud800"}"#), Reason::BadValue),
        (create(r#"{"id":1,"sfid":7}"#), Reason::BadSfid),
        (create(r#"{"id":1,"sfid":"001"}"#), Reason::BadSfid),
        (create(r#"{"id":1,"sfid":"001f400001MDeYzAAA"}"#), Reason::BadSfid),
        (format!(r#"{{"schema":7,"payload":{}}}"#, create(r#"{"id":1}"#)), Reason::BadSchema),
        (create_with_schema(r#"{"type":"int32","field":"n"}"#, r#"{"n":2147483648}"#), Reason::BadValue),
        (create_with_schema(r#"{"type":"double","field":"n"}"#, r#"{"n":1e400}"#), Reason::BadValue),
    ] {
        assert_eq!(reason(&value), wanted, "{value:.200}");
    }
    let look = peek(None, Some(b"\xff\xfe"));
    assert!(matches!(look, Peek::Undecodable(DecodeError { reason: Reason::NotUtf8, .. })));
}

#[test]
fn what_is_no_text_has_no_print_or_another_and_is_refused() {
    let mut decoder = Decoder::new(TopicRules::default());
    decoder.print_rows(1, 7);
    let message = |name: &[u8], stamp: &[u8], db: &[u8]| {
        let parts: [&[u8]; 7] = [
            br#"{"op":"u","after":{"id":1,"sfid":"001f400001MDeYzAAL","name":""#,
            name,
            br#"","systemmodstamp":""#,
            stamp,
            br#""},"source":{"table":"t","lsn":9,"ts_us":5,"db":""#,
            db,
            br#""}}"#,
        ];
        parts.concat()
    };
    let key = Some(&br#"{"id":1}"#[..]);
    let look = |decoder: &Decoder, value: &[u8]| decoder.peek(key, Some(value));
    let good = message("Grün".as_bytes(), b"s", b"d");
    decoder.decode(&look(&decoder, &good), key, Some(&good)).unwrap();
    let known = look(&decoder, &good).may_repeat().map(|(print, _)| *print).expect("a print");
    let foreign = message("Grün".as_bytes(), "März".as_bytes(), "größe".as_bytes());
    let print = look(&decoder, &foreign).may_repeat().map(|(print, _)| *print).expect("text, though not ASCII");
    assert_eq!(print.content, known.content);
    for bad in [
        message(b"Gr\xfcn", b"s", b"d"),
        message("Grün".as_bytes(), b"M\xe4rz", b"d"),
        message("Grün".as_bytes(), b"s", b"gr\xf6\xdfe"),
    ] {
        let look = look(&decoder, &bad);
        let repeats = look.may_repeat().is_some_and(|(print, _)| print.content == known.content);
        assert!(!repeats, "it must be decoded to be refused");
        let refused = decoder.decode(&look, key, Some(&bad)).unwrap_err();
        assert_eq!(refused.reason, Reason::NotUtf8);
    }
}

#[test]
fn depth_inside_a_row_is_only_text() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut decoder = Decoder::new(TopicRules::default());
    let found = event(&mut decoder, r#"{"id":1}"#, &create(&format!(r#"{{"id":1,"sfid":null,"x":{deep}}}"#)));
    assert_eq!(field(&decoder, &found, "x"), Some(&text(&deep)));
}

#[test]
fn junk_leaves_the_decoder_as_it_was() {
    let mut decoder = Decoder::new(TopicRules::default());
    event(&mut decoder, r#"{"id":1}"#, &create(r#"{"id":1,"sfid":null,"n":5}"#));
    let (columns, revision) = (decoder.columns().to_vec(), decoder.revision());
    for junk in [r#"{"id":1,"sfid":"bad","n":"text","new":1}"#, r#"{"id":1,"sfid":null,"n":"text","new":"\u0000"}"#] {
        assert!(decode(&mut decoder, Some(r#"{"id":1}"#), Some(&create(junk))).is_err());
    }
    assert!(decode(&mut decoder, None, Some(&create(r#"{"id":1,"sfid":null,"new":1}"#))).is_err());
    assert_eq!((decoder.columns(), decoder.revision()), (columns.as_slice(), revision));
}

#[test]
fn a_dead_letter_shows_its_record_but_no_value() {
    let mut decoder = Decoder::new(TopicRules::default());
    let row = r#"{"id":1,"secret__c":"hunter2\u0000","sfid":"001f400001MDeYz"}"#;
    let error = decode(&mut decoder, Some(r#"{"id":1}"#), Some(&create(row))).unwrap_err();
    assert_eq!(error.sfid.as_deref(), Some("001f400001MDeYzAAL"));
    assert!(error.to_string().contains("secret__c") && !error.to_string().contains("hunter2"), "{error}");
    let error = decode(&mut decoder, None, Some(&create(r#"{"sfid":"001f400001MDeYz"}"#))).unwrap_err();
    assert_eq!((error.reason, error.sfid.as_deref()), (Reason::NoKey, Some("001f400001MDeYzAAL")));
    let error = decode(&mut decoder, Some("{"), Some(&create("{}"))).unwrap_err();
    assert_eq!(error.reason, Reason::BadKey);
}

#[test]
fn a_look_can_wait_but_not_for_another_message() {
    let mut decoder = Decoder::new(TopicRules::default());
    let value = create(r#"{"id":1,"sfid":null,"name":"a"}"#);
    let look = peek(Some(br#"{"id":1}"#), Some(value.as_bytes()));
    for wrong in [None, Some(b"".as_slice()), Some(b"short"), Some("é".repeat(200).as_bytes())] {
        assert!(decoder.decode(&look, Some(br#"{"id":1}"#), wrong).is_err());
    }
    assert!(decoder.decode(&look, Some(br#"{"id":1}"#), Some(value.as_bytes())).is_ok());
    let Peek::Row(envelope) = look else { panic!("{look:?}") };
    assert_eq!(envelope.source(value.as_bytes()).unwrap().table.as_deref(), Some("t"));
}

#[test]
fn identity_is_found_by_itself() {
    let with_sfid = create(r#"{"id":1,"sfid":"","name":"a"}"#);
    let mut decoder = Decoder::new(TopicRules::default());
    assert_eq!(event(&mut decoder, r#"{"id":1}"#, &with_sfid).identity, None);
    assert_eq!(decoder.identity(), Some(&ResolvedIdentity::Sfid));
    let classes: Vec<(&str, Class)> = decoder.columns().iter().map(|c| (c.name.as_ref(), c.class)).collect();
    assert_eq!(classes, [("id", Class::Status), ("sfid", Class::Status), ("name", Class::Visible)]);

    let mut decoder = Decoder::new(TopicRules::default());
    let delete = r#"{"op":"d","before":{"id":1},"source":{"table":"t"}}"#;
    assert_eq!(event(&mut decoder, r#"{"id":1}"#, delete).identity, None);
    assert_eq!(decoder.identity(), None, "a delete that carries its key alone decides nothing");
    let found = event(&mut decoder, r#"{"b":2,"a":1}"#, &create(r#"{"b":2,"a":1,"id":9}"#));
    assert_eq!(found.identity.as_deref(), Some(r#"["1","2"]"#));
    assert_eq!(decoder.identity(), Some(&ResolvedIdentity::Key));
    assert_eq!(field(&decoder, &found, "id"), Some(&text("9")), "id is an ordinary column without sfid");
    assert_eq!(event(&mut decoder, r#"{"a":1,"b":2}"#, delete).identity.as_deref(), Some(r#"["1","2"]"#));
}

#[test]
fn a_preset_identity_decides_auto() {
    let mut decoder = Decoder::new(TopicRules::default());
    decoder.restore_columns([("id", Kind::Int4), ("sfid", Kind::Text)]);
    assert_eq!(decoder.columns()[0].class, Class::Visible);
    decoder.preset_identity(ResolvedIdentity::from_sink("sfid").unwrap());
    assert_eq!(decoder.columns()[0].class, Class::Status);
    let delete = r#"{"op":"d","before":{"sfid":null,"id":1},"source":{"table":"t"}}"#;
    assert_eq!(event(&mut decoder, r#"{"id":1}"#, delete).identity, None);
    let full = r#"{"op":"d","before":{"sfid":"001f400001MDeYz","id":1},"source":{"table":"t"}}"#;
    assert_eq!(event(&mut decoder, r#"{"id":1}"#, full).identity.as_deref(), Some("001f400001MDeYzAAL"));
    let columns = ResolvedIdentity::from_sink(r#"["b","a"]"#).unwrap();
    assert_eq!(columns.to_sink(), r#"["a","b"]"#);
    assert_eq!(ResolvedIdentity::from_sink("{"), None);
}

#[test]
fn identity_columns_are_canonical_and_sorted() {
    let rules = TopicRules {
        identity: IdentityRule::Columns(vec!["day".into(), "code".into()]),
        ..declared_types([("day", Kind::Date)])
    };
    let mut decoder = Decoder::new(rules);
    let found = event(&mut decoder, r#"{"id":1}"#, &create(r#"{"id":1,"day":20543,"code":"a\"b"}"#));
    assert_eq!((found.key.as_ref(), found.identity.as_deref()), ("1", Some(r#"["a\"b","2026-03-31"]"#)));
    // Without a Kafka key the declared columns are the key.
    let source = r#""source":{"table":"t"}"#;
    let delete = format!(r#"{{"op":"d","before":{{"id":1,"day":20543,"code":"a\"b"}},{source}}}"#);
    match decode(&mut decoder, None, Some(&delete)) {
        Ok(Decoded::Event(e)) => assert_eq!(
            (e.key.as_ref(), e.identity.as_deref()),
            (found.identity.as_deref().unwrap(), found.identity.as_deref())
        ),
        other => panic!("{other:?}"),
    }
    // A null among them: not identified; and without a key, not decodable.
    let null = create(r#"{"id":1,"day":null,"code":"x"}"#);
    assert_eq!(event(&mut decoder, r#"{"id":1}"#, &null).identity, None);
    assert_eq!(decode(&mut decoder, None, Some(&null)).unwrap_err().reason, Reason::NoKey);
    let missing = create(r#"{"id":1,"code":"x"}"#);
    assert_eq!(decode(&mut decoder, Some(r#"{"id":1}"#), Some(&missing)).unwrap_err().reason, Reason::NoIdentity);
}

#[test]
fn classes_keep_noise_out_of_the_row() {
    let row = r#"{"id":1,"sfid":null,"name":"a","phone":"1","_hc_lastop":"PENDING","_hc_err":null,"systemmodstamp":1772360102000000,
        "lastmodifieddate":"2026-03-01T10:15:02Z","lastmodifiedbyid":"005Ab0000000005","lastvieweddate":9223372036854775807,"createddate":null}"#;
    let mut decoder = Decoder::new(TopicRules::default());
    let found = event(&mut decoder, r#"{"id":1}"#, &create(row));
    let visible: Vec<&str> =
        found.row.values.iter().map(|(i, _)| decoder.columns()[usize::from(*i)].name.as_ref()).collect();
    assert_eq!(visible, ["name", "phone", "createddate"]);
    assert_eq!(found.row.stamp, Some(Some(1_772_360_102_000_000)));
    assert_eq!(found.row.modified, found.row.stamp);
    assert_eq!(found.row.modified_by, Some(Some("005Ab0000000005".into())));
    assert_eq!(found.row.created, Some(None));
    assert!(found.row.local);

    let rules = TopicRules {
        mask_add: ["phone", "systemmodstamp", "_hc_err", "sfid"].map(str::to_owned).into(),
        mask_remove: ["lastmodifieddate", "id"].map(str::to_owned).into(),
        ..TopicRules::default()
    };
    let mut decoder = Decoder::new(rules);
    let found = event(&mut decoder, r#"{"id":1}"#, &create(row));
    assert_eq!(field(&decoder, &found, "phone"), None);
    assert_eq!(field(&decoder, &found, "lastmodifieddate"), Some(&text("2026-03-01 10:15:02")));
    assert_eq!(
        (found.row.stamp, found.row.modified),
        (None, Some(Some(1_772_360_102_000_000))),
        "an excluded stamp is not stored"
    );
    let class = |name: &str| decoder.columns().iter().find(|c| &*c.name == name).unwrap().class;
    assert_eq!(
        ["phone", "systemmodstamp", "_hc_err", "sfid", "id"].map(class),
        [Class::Excluded, Class::Excluded, Class::Status, Class::Status, Class::Status]
    );

    // Side hashes tell which noise changed, whatever the columns' order, and not the id that a reload changes.
    let hashes = |row: &str| {
        let row = event(&mut Decoder::new(TopicRules::default()), r#"{"id":1}"#, &create(row)).row;
        (row.status_hash, row.system_hash)
    };
    let base = hashes(r#"{"id":1,"sfid":null,"_hc_lastop":"SYNCED","_hc_err":null,"systemmodstamp":1}"#);
    assert_eq!(base, hashes(r#"{"systemmodstamp":1,"_hc_err":null,"_hc_lastop":"SYNCED","id":2,"sfid":null}"#));
    let status = hashes(r#"{"id":1,"sfid":null,"_hc_lastop":null,"_hc_err":"SYNCED","systemmodstamp":1}"#);
    assert!(status.0 != base.0 && status.1 == base.1);
    let system = hashes(r#"{"id":1,"sfid":null,"_hc_lastop":"SYNCED","_hc_err":null,"systemmodstamp":2}"#);
    assert!(system.0 == base.0 && system.1 != base.1);
}

#[test]
fn the_placeholder_is_unknown_and_absent_is_absent() {
    let mut decoder = Decoder::new(TopicRules::default());
    let row = format!(
        r#"{{"id":1,"sfid":null,"a":"{PLACEHOLDER}","b":"x {PLACEHOLDER}","c":["{PLACEHOLDER}"],"d":null,"e":"\u001f\u0002"}}"#
    );
    let found = event(&mut decoder, r#"{"id":1}"#, &create(&row));
    assert_eq!(field(&decoder, &found, "a"), Some(&Value::Unknown));
    assert_eq!(field(&decoder, &found, "b"), Some(&Value::Text(format!("x {PLACEHOLDER}").into())));
    assert_eq!(field(&decoder, &found, "c"), Some(&Value::Unknown));
    assert_eq!(field(&decoder, &found, "d"), Some(&Value::Null));
    assert_eq!(field(&decoder, &found, "e"), Some(&text("\u{1f}\u{2}")));
    let found = event(&mut decoder, r#"{"id":1}"#, &create(r#"{"id":1,"sfid":null,"b":"1"}"#));
    assert_eq!(found.row.values.len(), 1);
    // Under a schema, where the form does not fit the type.
    let value = create_with_schema(
        r#"{"type":"bytes","field":"raw"},{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2"},"field":"n"}"#,
        r#"{"raw":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==","n":"__debezium_unavailable_value"}"#,
    );
    let found = event(&mut Decoder::new(TopicRules::default()), r#"{"id":1}"#, &value);
    assert!(found.row.values.iter().all(|(_, v)| *v == Value::Unknown), "{found:?}");
}

#[test]
fn a_schema_block_wins_and_is_remembered() {
    let mut decoder = Decoder::new(declared_types([("when__c", Kind::Date), ("price__c", Kind::Numeric)]));
    let columns = r#"{"type":"int64","name":"io.debezium.time.Timestamp","field":"when__c"},{"type":"string","field":"price__c"}"#;
    let row = r#"{"when__c":-1,"price__c":"1E+2"}"#;
    let found = event(&mut decoder, r#"{"id":1}"#, &create_with_schema(columns, row));
    assert_eq!(field(&decoder, &found, "when__c"), Some(&text("1969-12-31 23:59:59.999")));
    assert_eq!(field(&decoder, &found, "price__c"), Some(&text("100")), "decimals as strings");
    let found = event(&mut decoder, r#"{"id":1}"#, &create(row));
    assert_eq!(field(&decoder, &found, "when__c"), Some(&text("1969-12-31 23:59:59.999")), "the connector is the same");
    // A new block (ALTER TYPE, another precision) is another content.
    let columns = r#"{"type":"int64","name":"io.debezium.time.MicroTimestamp","field":"when__c"}"#;
    let found = event(&mut decoder, r#"{"id":1}"#, &create_with_schema(columns, r#"{"when__c":-1}"#));
    assert_eq!(field(&decoder, &found, "when__c"), Some(&text("1969-12-31 23:59:59.999999")));
}

#[test]
fn types_without_a_block_are_declared_built_in_or_guessed() {
    let mut decoder = Decoder::new(declared_types([("due__c", Kind::Date), ("wrong__c", Kind::Int4)]));
    let row = r#"{"id":1,"sfid":null,"due__c":20543,"createddate":0,"wrong__c":"abc","n":1.0E21,"s":"x","b":true,"j":{"a": [1]},"z":null,"f":"NaN"}"#;
    let found = event(&mut decoder, r#"{"id":1}"#, &create(row));
    let shown = |decoder: &Decoder, found: &Event, name: &str| {
        let column = decoder.columns().iter().find(|c| &*c.name == name).unwrap();
        (column.kind, field(decoder, found, name).and_then(Value::text).map(str::to_owned))
    };
    let is = |kind, text: &str| (kind, Some(text.to_owned()));
    assert_eq!(shown(&decoder, &found, "due__c"), is(Kind::Date, "2026-03-31"));
    assert_eq!(shown(&decoder, &found, "createddate"), is(Kind::Timestamp, "1970-01-01 00:00:00"));
    assert_eq!(shown(&decoder, &found, "wrong__c"), is(Kind::Int4, "abc"), "a wrong declaration loses nothing");
    assert_eq!(shown(&decoder, &found, "n"), is(Kind::Numeric, "1.0E21"), "an undeclared number keeps its text");
    assert_eq!(shown(&decoder, &found, "b"), is(Kind::Bool, "t"));
    assert_eq!(shown(&decoder, &found, "j"), is(Kind::Json, r#"{"a":[1]}"#));
    assert_eq!(shown(&decoder, &found, "z"), (Kind::Text, None));
    assert_eq!(decoder.undeclared_numbers().collect::<Vec<_>>(), ["n"]);

    let before = decoder.revision();
    let row = r#"{"id":1,"sfid":null,"n":"Infinity","s":7,"b":"yes","z":5,"f":2.5}"#;
    let found = event(&mut decoder, r#"{"id":1}"#, &create(row));
    assert_eq!(shown(&decoder, &found, "n"), is(Kind::Numeric, "Infinity"));
    assert_eq!(shown(&decoder, &found, "s"), is(Kind::Text, "7"));
    assert_eq!(shown(&decoder, &found, "b"), is(Kind::Text, "yes"), "two kinds of token make it text");
    assert_eq!(shown(&decoder, &found, "z"), is(Kind::Numeric, "5"), "nulls are no guess");
    assert_eq!(shown(&decoder, &found, "f"), is(Kind::Numeric, "2.5"), "NaN is how a double begins, too");
    assert_eq!(decoder.revision(), before + 3);
    assert_eq!(decoder.undeclared_numbers().collect::<Vec<_>>(), ["n", "z", "f"]);
}

#[test]
fn restored_columns_keep_their_numbers_and_kinds() {
    let mut decoder = Decoder::new(declared_types([("late__c", Kind::Timestamp)]));
    decoder.restore_columns([
        ("a", Kind::Date),
        ("late__c", Kind::Numeric),
        ("t", Kind::Text),
        ("n", Kind::Numeric),
        ("a", Kind::Bool),
    ]);
    let names: Vec<(&str, Kind)> = decoder.columns().iter().map(|c| (c.name.as_ref(), c.kind)).collect();
    assert_eq!(names, [("a", Kind::Date), ("late__c", Kind::Timestamp), ("t", Kind::Text), ("n", Kind::Numeric)]);
    let found = event(&mut decoder, r#"{"id":1}"#, &create(r#"{"new":1,"n":15.0,"t":5,"late__c":0,"a":0}"#));
    let values: Vec<(u16, Option<&str>)> = found.row.values.iter().map(|(i, v)| (*i, v.text())).collect();
    assert_eq!(
        values,
        [(0, Some("1970-01-01")), (1, Some("1970-01-01 00:00:00")), (2, Some("5")), (3, Some("15.0")), (4, Some("1"))]
    );
    assert_eq!(decoder.columns()[2].kind, Kind::Numeric, "a text column never sends numbers");
}

#[test]
fn endless_new_columns_end() {
    let mut decoder = Decoder::new(TopicRules::default());
    let wide = |from: usize| {
        let fields: Vec<String> = (from..from + 2000).map(|n| format!("\"c{n}\":{n}")).collect();
        create(&format!("{{{}}}", fields.join(",")))
    };
    let outcomes: Vec<bool> =
        (0..7).map(|n| decode(&mut decoder, Some(r#"{"id":1}"#), Some(&wide(n * 2000))).is_ok()).collect();
    assert_eq!(outcomes, [true, true, true, true, true, false, false]);
    assert_eq!(decoder.columns().len(), 10_000);
}

#[test]
fn stamps_that_no_one_can_read_are_null() {
    let stamp = |value: &str| -> Option<Option<Micros>> {
        event(
            &mut Decoder::new(TopicRules::default()),
            r#"{"id":1}"#,
            &create(&format!(r#"{{"systemmodstamp":{value}}}"#)),
        )
        .row
        .stamp
    };
    assert_eq!(stamp("9223372036825200000"), Some(Some(i64::MAX)));
    assert_eq!(stamp("\"-infinity\""), Some(Some(i64::MIN)));
    for odd in ["null", "\"soon\"", "1.5", "{}", "true", "1e99"] {
        assert_eq!(stamp(odd), Some(None), "{odd}");
    }
}

#[test]
fn a_key_that_no_index_can_hold_is_told_apart() {
    let event = br#"{"op":"c","after":{"v":1},"source":{"table":"t"}}"#;
    let mut decoder = Decoder::new(TopicRules { identity: IdentityRule::Key, ..TopicRules::default() });
    let mut decoded = |length: usize| {
        let key = format!(r#"{{"id":"{}"}}"#, "k".repeat(length));
        let (key, value) = (Some(key.as_bytes()), Some(event.as_slice()));
        decoder.decode(&peek(key, value), key, value).map_err(|error| error.reason)
    };
    assert!(matches!(decoded(2_000), Ok(Decoded::Event(_))));
    assert!(matches!(decoded(2_001), Err(Reason::BadKey)));
}
