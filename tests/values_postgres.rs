//! Canonical texts against a real PostgreSQL: whatever a column holds, what the decoder makes of its Debezium
//! encoding must be letter by letter what `value::text` prints.
//!
//! Values are drawn in SQL by a fixed seed, shown both as text (the wanted answer) and as raw numbers, from which
//! the test builds the message as Debezium would.

mod support;

use afterimage::core::decode::{Decoded, Decoder, IdentityRule, TopicRules, peek};
use afterimage::core::value::{Kind, Value};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use num_bigint::BigInt;

/// Decodes a row with one column `v` and gives its canonical text.
fn decoded(schema: Option<&str>, kind: Option<Kind>, json: &str) -> String {
    let types = kind.map(|kind| ("v".to_owned(), kind)).into_iter().collect();
    let mut decoder = Decoder::new(TopicRules { types, identity: IdentityRule::Key, ..TopicRules::default() });
    let event = format!(r#"{{"op":"c","after":{{"v":{json}}},"source":{{"table":"t"}}}}"#);
    let message = match schema {
        Some(field) => {
            let block =
                format!(r#"{{"type":"struct","fields":[{{"type":"struct","field":"after","fields":[{field}]}}]}}"#);
            format!(r#"{{"schema":{block},"payload":{event}}}"#)
        }
        None => event,
    };
    let (key, value) = (Some(br#"{"id":1}"#.as_slice()), Some(message.as_bytes()));
    match decoder.decode(&peek(key, value), key, value) {
        Ok(Decoded::Event(event)) => match event.row.values.first() {
            Some((_, Value::Text(text))) => text.to_string(),
            other => panic!("{json}: {other:?}"),
        },
        other => panic!("{message}: {other:?}"),
    }
}

/// A connect type with an optional semantic name, as a schema block has it.
fn column(base: &str, name: &str) -> String {
    match name {
        "" => format!(r#"{{"type":"{base}","field":"v"}}"#),
        _ => format!(r#"{{"type":"{base}","name":"{name}","version":1,"field":"v"}}"#),
    }
}

/// `NaN` and the infinities travel as strings, finite doubles as Java writes them: any number of digits that reads
/// back as the same double will do.
fn java_double(value: f64) -> String {
    if value.is_finite() { format!("{value:?}").replace('e', "E") } else { java_special(value) }
}

fn java_special(value: f64) -> String {
    let name = if value.is_nan() {
        "NaN"
    } else if value > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    };
    format!("\"{name}\"")
}

/// An unscaled decimal as Kafka Connect encodes it.
fn base64_decimal(digits: &str) -> String {
    STANDARD.encode(digits.parse::<BigInt>().unwrap().to_signed_bytes_be())
}

#[tokio::test]
async fn every_type_is_printed_as_postgres_prints_it() {
    let db = support::postgres::fresh_database().await.connect().await;
    db.batch_execute(
        "SET DateStyle=ISO; SET TimeZone='UTC'; SET IntervalStyle=postgres; SET bytea_output=hex;
         SET extra_float_digits=1; SELECT setseed(0.5)",
    )
    .await
    .unwrap();

    // Doubles by their bits: every exponent, subnormals, the integers around 2^53, powers of ten and of two.
    let doubles = "SELECT v, v::text FROM (
        SELECT (random()-0.5) * 10::float8 ^ (random()*600-300)::int v FROM generate_series(1,4000)
        UNION ALL SELECT ((random()-0.5) * 1e9)::int::float8 / 100 FROM generate_series(1,2000)
        UNION ALL SELECT 2::float8 ^ n FROM generate_series(-1074,1023) n
        UNION ALL SELECT 10::float8 ^ n FROM generate_series(-307,308) n
        UNION ALL SELECT ('1e'||n)::float8 FROM generate_series(-323,308) n
        UNION ALL SELECT (m||'e'||n)::float8 FROM generate_series(1,99) m, generate_series(14,30) n
        UNION ALL SELECT 9007199254740992 + n FROM generate_series(-100,100) n
        UNION ALL SELECT ((random()-0.5) * 2^65)::float8 * 2::float8 ^ n FROM generate_series(0,60) n, generate_series(1,20)
        UNION ALL SELECT unnest('{NaN,Infinity,-Infinity,-0,0,5e-324,1.7976931348623157e308,1e15,1e-5,123456789012345678}'::float8[])
      ) x(v)";
    let rows = db.query(doubles, &[]).await.unwrap();
    for row in &rows {
        let (value, text): (f64, String) = (row.get(0), row.get(1));
        assert_eq!(decoded(Some(&column("double", "")), None, &java_double(value)), text);
        assert_eq!(decoded(None, Some(Kind::Float8), &java_double(value)), text);
    }
    assert!(rows.len() > 10_000);

    let singles = "SELECT v, v::text FROM (
        SELECT ((random()-0.5) * 10::float8 ^ (random()*70-35)::int)::float4 v FROM generate_series(1,4000)
        UNION ALL SELECT (2::float8 ^ n)::float4 FROM generate_series(-126,127) n
        UNION ALL SELECT ('1e'||n)::float4 FROM generate_series(-37,38) n
        UNION ALL SELECT (m||'e'||n)::float4 FROM generate_series(1,99) m, generate_series(5,20) n
        UNION ALL SELECT (16777216 + n)::float4 FROM generate_series(-100,100) n
        UNION ALL SELECT ((random()-0.5) * 2^(20+n))::float4 FROM generate_series(0,60) n, generate_series(1,20)
        UNION ALL SELECT unnest('{NaN,Infinity,-Infinity,-0,1e6,999999,1e-5,3.4028235e38,1e-45}'::float4[])
      ) x(v)";
    for row in db.query(singles, &[]).await.unwrap() {
        let (value, text): (f32, String) = (row.get(0), row.get(1));
        let json = if value.is_finite() { format!("{value:?}") } else { java_special(value.into()) };
        assert_eq!(decoded(Some(&column("float", "")), None, &json), text);
    }

    let dates = "SELECT v - '1970-01-01'::date, v::text FROM (
        SELECT '4714-11-24 BC'::date + (random()*2147483493)::int v FROM generate_series(1,2000)
        UNION ALL SELECT '1900-01-01'::date + n FROM generate_series(-600000,100000,97) n
        UNION ALL SELECT unnest('{4714-11-24 BC,5874897-12-31,0001-01-01,0001-12-31 BC,0044-03-15 BC,1582-10-10,2000-02-29,294276-12-31}'::date[])
      ) x(v)";
    for row in db.query(dates, &[]).await.unwrap() {
        let (days, text): (i32, String) = (row.get(0), row.get(1));
        assert_eq!(decoded(Some(&column("int32", "io.debezium.time.Date")), None, &days.to_string()), text);
        assert_eq!(
            decoded(Some(&column("int32", "org.apache.kafka.connect.data.Date")), None, &days.to_string()),
            text
        );
        assert_eq!(decoded(None, Some(Kind::Date), &days.to_string()), text);
    }

    // Microseconds by exact arithmetic: extract() gives a numeric.
    let timestamps = "SELECT (extract(epoch FROM v)*1000000)::int8, v::text, v AT TIME ZONE 'UTC' < '10000-01-01' AND v > '0001-01-01',
            to_char(v,'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), (v AT TIME ZONE 'UTC')::text FROM (
        SELECT '4714-11-24 BC'::timestamp + make_interval(secs => random()*211813488000 + random()) v FROM generate_series(1,2000)
        UNION ALL SELECT '1970-01-01'::timestamp + make_interval(secs => (random()-0.5)*4e9) FROM generate_series(1,2000)
        UNION ALL SELECT '2026-03-01 10:15:02'::timestamp + n * '1 ms'::interval FROM generate_series(0,200) n
        UNION ALL SELECT unnest('{4714-11-24 BC,294246-12-31 23:59:59.999999,1969-12-31 23:59:59.999999,0044-03-15 12:00 BC,0001-01-01}'::timestamp[])
      ) x(v)";
    for row in db.query(timestamps, &[]).await.unwrap() {
        let (micros, text): (i64, String) = (row.get(0), row.get(1));
        let (plain_year, iso, zoned): (bool, String, String) = (row.get(2), row.get(3), row.get(4));
        let named = |name: &str, n: i64| decoded(Some(&column("int64", name)), None, &n.to_string());
        assert_eq!(named("io.debezium.time.MicroTimestamp", micros), text);
        assert_eq!(decoded(None, Some(Kind::Timestamp), &micros.to_string()), text);
        if micros % 1000 == 0 {
            assert_eq!(named("io.debezium.time.Timestamp", micros / 1000), text);
            assert_eq!(named("org.apache.kafka.connect.data.Timestamp", micros / 1000), text);
        }
        if let Some(nanos) = micros.checked_mul(1000) {
            assert_eq!(named("io.debezium.time.NanoTimestamp", nanos), text);
        }
        if plain_year {
            let json = format!("\"{iso}\"");
            assert_eq!(decoded(Some(&column("string", "io.debezium.time.ZonedTimestamp")), None, &json), zoned);
            assert_eq!(decoded(Some(&column("string", "io.debezium.time.IsoTimestamp")), None, &json), text);
        }
        // What PostgreSQL prints is canonical already.
        assert_eq!(decoded(None, Some(Kind::TimestampTz), &format!("\"{zoned}\"")), zoned);
        assert!(Kind::Timestamp.equal(&micros.to_string(), &text));
    }
    for (name, number, text) in [
        ("io.debezium.time.MicroTimestamp", i64::MAX, "infinity"),
        ("io.debezium.time.MicroTimestamp", 9_223_372_036_825_200_000, "infinity"),
        ("io.debezium.time.MicroTimestamp", -9_223_372_036_832_400_000, "-infinity"),
    ] {
        let row = db.query_one("SELECT $1::text::timestamp::text", &[&text]).await.unwrap();
        assert_eq!(decoded(Some(&column("int64", name)), None, &number.to_string()), row.get::<_, String>(0));
    }

    let times = "SELECT (extract(epoch FROM v)*1000000)::int8, v::text, to_char('2000-01-01'::date + v,'HH24:MI:SS.US\"Z\"'), (v::text || '+00')::timetz::text
        FROM (SELECT '00:00'::time + make_interval(secs => random()*86399) v FROM generate_series(1,500)
              UNION ALL SELECT unnest('{00:00,23:59:59.999999,12:00:00.5}'::time[])) x(v)";
    for row in db.query(times, &[]).await.unwrap() {
        let (micros, text): (i64, String) = (row.get(0), row.get(1));
        let (iso, zoned): (String, String) = (row.get(2), row.get(3));
        assert_eq!(decoded(Some(&column("int64", "io.debezium.time.MicroTime")), None, &micros.to_string()), text);
        assert_eq!(
            decoded(Some(&column("int64", "io.debezium.time.NanoTime")), None, &(micros * 1000).to_string()),
            text
        );
        if micros % 1000 == 0 {
            assert_eq!(
                decoded(Some(&column("int32", "io.debezium.time.Time")), None, &(micros / 1000).to_string()),
                text
            );
        }
        assert_eq!(decoded(Some(&column("string", "io.debezium.time.ZonedTime")), None, &format!("\"{iso}\"")), zoned);
    }

    let numerics = "SELECT v::text, scale(v), (v * power(10::numeric, scale(v)))::numeric(300,0)::text FROM (
        SELECT round(((random()-0.5) * power(10::numeric, (random()*40)::int))::numeric, (random()*12)::int) v FROM generate_series(1,2000)
        UNION ALL SELECT unnest('{0,0.00,-0.05,1234.50,1e-3,123456789012345678901234567890.123456789,-1,255,256,-128,-129}'::numeric[])
      ) x(v)";
    for row in db.query(numerics, &[]).await.unwrap() {
        let (text, scale, unscaled): (String, i32, String) = (row.get(0), row.get(1), row.get(2));
        let base64 = base64_decimal(&unscaled);
        let fixed = format!(
            r#"{{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","version":1,"parameters":{{"scale":"{scale}"}},"field":"v"}}"#
        );
        assert_eq!(decoded(Some(&fixed), None, &format!("\"{base64}\"")), text);
        let variable = format!(r#"{{"scale":{scale},"value":"{base64}"}}"#);
        assert_eq!(decoded(Some(&column("struct", "io.debezium.data.VariableScaleDecimal")), None, &variable), text);
        assert_eq!(decoded(None, Some(Kind::Numeric), &format!("\"{text}\"")), text);
        assert_eq!(decoded(None, Some(Kind::Numeric), &text), text);
    }
    // A number in scientific form is written out as the server would.
    for token in ["1.5E1", "1e-3", "1.50e1", "12E+5", "-0.0", "1E-20", "123.456e2"] {
        let row = db.query_one("SELECT $1::text::numeric::text", &[&token]).await.unwrap();
        assert_eq!(decoded(None, Some(Kind::Numeric), token), row.get::<_, String>(0), "{token}");
    }

    let integers = "SELECT v::text FROM (SELECT ((random()-0.5)*1.8e19)::numeric(19,0)::text::numeric v FROM generate_series(1,200)) x WHERE v BETWEEN -9223372036854775808 AND 9223372036854775807
        UNION ALL SELECT unnest('{-9223372036854775808,9223372036854775807,0}'::text[])";
    for row in db.query(integers, &[]).await.unwrap() {
        let text: String = row.get(0);
        assert_eq!(decoded(Some(&column("int64", "")), None, &text), text);
    }

    let intervals = "SELECT extract(year FROM v)::int, extract(month FROM v)::int, extract(day FROM v)::int, extract(hour FROM v)::int, extract(minute FROM v)::int,
            trim_scale(extract(second FROM v))::text, v::text FROM (
        SELECT make_interval(years => (random()*4-2)::int, months => (random()*30-15)::int, days => (random()*60-30)::int, secs => (random()-0.5)*1e6) v FROM generate_series(1,2000)
        UNION ALL SELECT make_interval(months => (random()*4-2)::int, days => (random()*4-2)::int, secs => (random()*4-2)::int) FROM generate_series(1,500)
        UNION ALL SELECT '0'::interval) x";
    for row in db.query(intervals, &[]).await.unwrap() {
        let part = |i: usize| -> i32 { row.get(i) };
        let (seconds, text): (String, String) = (row.get(5), row.get(6));
        let iso = format!("\"P{}Y{}M{}DT{}H{}M{seconds}S\"", part(0), part(1), part(2), part(3), part(4));
        assert_eq!(decoded(Some(&column("string", "io.debezium.time.Interval")), None, &iso), text, "{iso}");
    }
    let durations = "SELECT n, make_interval(secs => n/1000000.0::float8)::text FROM (SELECT ((random()-0.5)*1e13)::int8 n FROM generate_series(1,500)) x";
    for row in db.query(durations, &[]).await.unwrap() {
        let (micros, text): (i64, String) = (row.get(0), row.get(1));
        assert_eq!(decoded(Some(&column("int64", "io.debezium.time.MicroDuration")), None, &micros.to_string()), text);
    }

    let bytes = "SELECT v, v::text FROM (SELECT decode(substr(repeat(md5(random()::text),2),1,((random()*30)::int)*2),'hex') v FROM generate_series(1,300)) x";
    for row in db.query(bytes, &[]).await.unwrap() {
        let (value, text): (Vec<u8>, String) = (row.get(0), row.get(1));
        let json = format!("\"{}\"", STANDARD.encode(value));
        assert_eq!(decoded(Some(&column("bytes", "")), None, &json), text);
        assert_eq!(decoded(None, Some(Kind::Bytea), &json), text);
        assert_eq!(decoded(None, Some(Kind::Bytea), &serde_json::Value::from(text.clone()).to_string()), text);
    }

    for n in 1..=40usize {
        let bits = format!("SELECT string_agg((random()>0.5)::int::text,'') FROM generate_series(1,{n})");
        let text: String = db.query_one(&bits, &[]).await.unwrap().get(0);
        let mut value = vec![0u8; n.div_ceil(8)];
        for (i, bit) in text.bytes().rev().enumerate() {
            value[i / 8] |= (bit - b'0') << (i % 8);
        }
        let block = format!(
            r#"{{"type":"bytes","name":"io.debezium.data.Bits","version":1,"parameters":{{"length":"{n}"}},"field":"v"}}"#
        );
        assert_eq!(decoded(Some(&block), None, &format!("\"{}\"", STANDARD.encode(value))), text);
    }

    let texts = "SELECT v::text, (v::text::jsonb)::text, gen_random_uuid()::text, (random()>0.5)::text::bool, to_json(chr(1+(random()*50000)::int)||'\"\\ x')::text
        FROM (SELECT jsonb_build_object('a', random(), 'b', jsonb_build_array(1, null, 'x y')) v FROM generate_series(1,100)) x";
    for row in db.query(texts, &[]).await.unwrap() {
        let (json, uuid): (String, String) = (row.get(1), row.get(2));
        let quoted = serde_json::Value::from(json.clone()).to_string();
        assert_eq!(decoded(Some(&column("string", "io.debezium.data.Json")), None, &quoted), json);
        assert_eq!(decoded(Some(&column("string", "io.debezium.data.Uuid")), None, &format!("\"{uuid}\"")), uuid);
        let (flag, token): (bool, String) = (row.get(3), row.get(4));
        let row = db.query_one("SELECT $1::bool, ($2::text::json)#>>'{}'", &[&flag, &token]).await.unwrap();
        assert_eq!(decoded(Some(&column("boolean", "")), None, &flag.to_string()), if flag { "t" } else { "f" });
        assert_eq!(decoded(Some(&column("string", "")), None, &token), row.get::<_, String>(1));
    }

    // And every canonical text is a value of the type that its kind names.
    for kind in Kind::ALL {
        db.query_one(&format!("SELECT NULL::{}::text", kind.sql()), &[]).await.unwrap();
        let known = format!("SELECT format_type(to_regtype('{}'), NULL)", kind.sql());
        assert_eq!(db.query_one(&known, &[]).await.unwrap().get::<_, String>(0), kind.sql());
    }
}
