//! No bytes make the decoder panic, and the form of an envelope does not matter.

use proptest::prelude::*;

use super::*;

fn real_messages() -> Vec<(Vec<u8>, Vec<u8>)> {
    let all = SAMPLES.iter().flat_map(|(_, lines)| recorded(lines));
    all.filter_map(|m| Some((m.key?, m.value?))).filter(|(_, value)| value.len() < 20_000).collect()
}

/// No message may panic, nor leave columns behind when it is junk.
/// And a decoder's own look, which skips a known schema block, finds what the plain one finds; but that a message is no
/// text, one of them may leave to decoding.
fn survives(decoder: &mut Decoder, key: Option<&[u8]>, value: Option<&[u8]>) {
    let before = decoder.columns().len();
    let (look, own) = (peek(key, value), decoder.peek(key, value));
    if value.is_some_and(|value| std::str::from_utf8(value).is_err()) {
        for look in [&look, &own] {
            assert_eq!(decoder.decode(look, key, value).map_err(|error| error.reason), Err(Reason::NotUtf8));
        }
    } else {
        assert_eq!(own, look);
    }
    if decoder.decode(&look, key, value).is_err() {
        assert_eq!(decoder.columns().len(), before);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(key in proptest::option::of(any::<Vec<u8>>()), value in proptest::option::of(any::<Vec<u8>>())) {
        survives(&mut Decoder::new(TopicRules::default()), key.as_deref(), value.as_deref());
    }

    #[test]
    fn arbitrary_json_in_an_envelope_never_panics(
        after in r#"\{("[a-z_]{0,6}":(null|true|-?[0-9]{1,22}(\.[0-9]{1,4})?([eE]-?[0-9]{1,9})?|"[ -~&&[^"]]{0,12}"|\[\]),){0,5}"z":1\}"#,
        kind in proptest::sample::select(Kind::ALL.to_vec()),
        name in "[a-z_]{0,2}",
    ) {
        let mut decoder = Decoder::new(declared_types([(name.as_str(), kind)]));
        let value = create(&after);
        survives(&mut decoder, Some(br#"{"id":1}"#), Some(value.as_bytes()));
    }

    #[test]
    fn damaged_real_messages_never_panic(pick in any::<prop::sample::Index>(), cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)) {
        use std::sync::LazyLock;
        static MESSAGES: LazyLock<Vec<(Vec<u8>, Vec<u8>)>> = LazyLock::new(real_messages);
        let (key, mut value) = pick.get(&MESSAGES).clone();
        let mut decoder = Decoder::new(TopicRules { types: sample_types(), ..TopicRules::default() });
        survives(&mut decoder, Some(&key), Some(&value));
        for (at, byte, how) in cuts {
            if value.is_empty() { break }
            let at = at.index(value.len());
            match how {
                0 => value[at] = byte,
                1 => { value.remove(at); }
                2 => value.insert(at, byte),
                _ => value.truncate(at),
            }
        }
        survives(&mut decoder, Some(&key), Some(&value));
        survives(&mut decoder, Some(&value), Some(&value));
    }

    /// Decoding says the same however the message is wrapped, spaced and ordered.
    #[test]
    fn the_form_of_the_envelope_does_not_matter(name in "[ -~&&[^\"\\\\]]{0,20}", n in any::<i32>()) {
        let after = format!(r#"{{"sfid":"001f400001MDeYz","name":"{name}","n":{n},"id":1}}"#);
        let columns = r#"{"type":"string","field":"sfid"},{"type":"string","field":"name"},{"type":"int32","field":"n"},{"type":"int32","field":"id"}"#;
        let rules = || declared_types([("n", Kind::Int4)]);
        let plain = event(&mut Decoder::new(rules()), r#"{"id":1}"#, &create(&after));
        let wrapped = event(&mut Decoder::new(rules()), r#"{"schema":{},"payload":{"id":1}}"#, &create_with_schema(columns, &after));
        let turned = format!(r#"{{ "op" : "c" , "source":{{"txId":3,"lsn":7,"ts_ns":1700000000000000000,"table":"t"}}, "after":{after}, "extra":1 }}"#);
        let turned = event(&mut Decoder::new(rules()), r#"{ "id" : 1 }"#, &turned);
        prop_assert_eq!(&plain, &wrapped);
        prop_assert_eq!(&plain, &turned);
    }
}
