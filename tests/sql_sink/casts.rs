//! Text to a type: every value that PostgreSQL prints comes back, and no text whatever is an error.

use afterimage::core::value::Kind;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::cluster::Database;

const TYPES: [(&str, &str); 14] = [
    ("as_boolean", "boolean"),
    ("as_smallint", "smallint"),
    ("as_integer", "integer"),
    ("as_bigint", "bigint"),
    ("as_real", "real"),
    ("as_double", "double precision"),
    ("as_numeric", "numeric"),
    ("as_date", "date"),
    ("as_time", "time"),
    ("as_timetz", "timetz"),
    ("as_timestamp", "timestamp"),
    ("as_timestamptz", "timestamptz"),
    ("as_interval", "interval"),
    ("as_bytea", "bytea"),
];

/// Texts in the form in which values are stored.
const STORED: &str = "set datestyle = 'ISO'; set timezone = 'UTC'; set intervalstyle = 'postgres'; set bytea_output = 'hex'; set extra_float_digits = 1";

#[tokio::test]
async fn what_postgres_prints_comes_back() {
    let (_db, client) = Database::sink().await;
    client.batch_execute(STORED).await.unwrap();
    let values = [
        ("boolean", "as_boolean", "values (true), (false)"),
        ("smallint", "as_smallint", "values (-32768), (32767), (0)"),
        ("integer", "as_integer", "values (-2147483648), (2147483647), (-7)"),
        ("bigint", "as_bigint", "values (-9223372036854775808), (9223372036854775807), (1000000000000000000)"),
        (
            "real",
            "as_real",
            "select v from (values ('3.4028235e38'), ('-3.4028235e38'), ('1e-45'), ('NaN'), ('Infinity'), ('-Infinity'), ('0.1'), ('-0')) x(v)
             union all select ((random() - 0.5) * 10 ^ (random() * 70 - 35))::real::text from generate_series(1, 500)",
        ),
        (
            "double precision",
            "as_double",
            "select v from (values ('1.7976931348623157e308'), ('-1.7976931348623157e+308'), ('5e-324'), ('NaN'), ('Infinity'), ('-Infinity'), ('0.1'), ('-0'), ('15')) x(v)
             union all select ((random() - 0.5) * 10 ^ (random() * 600 - 300))::text from generate_series(1, 500)",
        ),
        (
            "numeric",
            "as_numeric",
            "select v from (values ('1e+21'), ('0.10'), ('-12345678901234567890.123456789'), ('NaN'), ('Infinity'), ('-Infinity')) x(v)
             union all select repeat('9', 14000)",
        ),
        (
            "date",
            "as_date",
            "select v from (values ('infinity'), ('-infinity'), ('4714-11-24 BC'), ('5874897-12-31'), ('0001-01-01'), ('0001-12-31 BC'), ('0001-02-29 BC'), ('0005-02-29 BC'), ('2000-02-29')) x(v)
             union all select (date '4713-01-01 BC' + (random() * 3000000)::int)::text from generate_series(1, 2000)",
        ),
        ("time without time zone", "as_time", "values ('00:00:00'), ('23:59:59.999999'), ('24:00:00'), ('12:00:00.5')"),
        ("time with time zone", "as_timetz", "values ('00:00:00+00'), ('23:59:59.9-08'), ('12:00:00+05:45'), ('12:00:00-15:59:59')"),
        (
            "timestamp without time zone",
            "as_timestamp",
            "select v from (values ('infinity'), ('-infinity'), ('4714-11-24 00:00:00 BC'), ('294276-12-31 23:59:59.999999')) x(v)
             union all select (timestamp '4713-01-01 BC' + random() * 8000 * interval '365 days')::text from generate_series(1, 1000)",
        ),
        (
            "timestamp with time zone",
            "as_timestamptz",
            "select v from (values ('infinity'), ('-infinity'), ('4714-11-25 00:00:00+00 BC'), ('294276-12-30 23:59:59.999999+00'), ('2026-01-01 00:00:00+05:30')) x(v)
             union all select (timestamptz '4713-01-01 BC' + random() * 8000 * interval '365 days')::text from generate_series(1, 1000)",
        ),
        (
            "interval",
            "as_interval",
            "select v::interval::text from (values ('0'), ('1 year -2 mons 3 days -04:05:06.789'), ('-1 days +02:03:00'), ('1 mon'), ('999999 hours')) x(v)
             union all select (make_interval(months => (random() * 200 - 100)::int, days => (random() * 200 - 100)::int, secs => random() * 200000 - 100000))::text from generate_series(1, 1000)",
        ),
        ("bytea", "as_bytea", "values ('\\x'), ('\\x00ff1e')"),
        ("uuid", "as_uuid", "select gen_random_uuid()::text"),
    ];
    for (kind, cast, values) in values {
        let sql = format!(
            "select count(*), count(*) filter (where c is null or c::text is distinct from v::{kind}::text)
             from (select v, afterimage.{cast}(v) as c from (select v::text from ({values}) x(v)) y) z"
        );
        let row = client.query_one(&sql, &[]).await.unwrap_or_else(|e| panic!("{kind}: {e:?}"));
        let (all, wrong): (i64, i64) = (row.get(0), row.get(1));
        assert!(all > 0 && wrong == 0, "{kind}: {wrong} of {all}");
    }
}

#[tokio::test]
async fn no_text_is_an_error() {
    let (_db, client) = Database::sink().await;
    client.batch_execute("set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'").await.unwrap();
    let mut texts: Vec<String> = [
        "",
        " ",
        "null",
        "NULL",
        "now",
        "today",
        "epoch",
        "allballs",
        "inf",
        "+1",
        "1e",
        "1e400",
        "-1e400",
        "1e-400",
        "1e999",
        "9e999999999",
        "1e-999999999",
        "0x10",
        "1_000",
        "00",
        "-",
        ".",
        ".5",
        "5.",
        "32768",
        "-32769",
        "2147483648",
        "99999999999999999999",
        "3.5e38",
        "1e-46",
        "1.7976931348623159e308",
        "2e308",
        "2.4e-324",
        "2026-02-29",
        "2024-02-30",
        "1900-02-29",
        "2026-13-01",
        "2026-00-10",
        "0000-01-01",
        "4714-11-23 BC",
        "5874898-01-01",
        "9999999-12-31",
        "99999999-01-01",
        "day:1",
        "0004-02-29 BC",
        "294277-01-01 00:00:00",
        "294276-12-31 23:59:59+00",
        "294276-12-31 23:59:59-15:59",
        "4714-11-24 00:00:00+15:59 BC",
        "2026-01-01 24:00:00",
        "2026-01-01 23:59:60",
        "2026-02-30 00:00:00",
        "24:00:01",
        "12:60:00",
        "12:00:00+16",
        "999999999 years",
        "99999999 years 99 mons",
        "-99999999 years -99 mons 999999999 days -999999999:59:59.999999",
        "1 mons 1 years",
        "days",
        "+",
        "-1 day",
        "1 year2 mons",
        " 1 mons",
        "\\x",
        "\\x0",
        "\\xzz",
        "\\xABCD",
        "t",
        "T",
        "true",
        "1",
        "\u{1F600}",
        "15.0",
        "4714-01-01 BC",
        "infinity",
        "-infinity",
        "Infinity",
        "-NaN",
        "2026-01-01 00:00:00 BC",
        "2026-01-01T00:00:00",
        "2026-01-01\n",
        "1\n",
        "2026-01-01 00:00:00.1234567",
        "00000000-0000-0000-0000-00000000000g",
        "{\"$unknown\": true}",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("9".repeat(15_000));
    texts.push("9".repeat(200_000));
    texts.push(format!("0.{}e-999", "1".repeat(14_990)));
    let mut runner = TestRunner::deterministic();
    for shape in [
        "[-+]?[0-9]{0,12}(\\.[0-9]{0,8})?([eE][-+]?[0-9]{1,4})?",
        "[0-9]{3,7}-[0-9]{2}-[0-9]{2}( BC)?",
        "[0-9]{4,6}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,7})?([-+][0-9]{2}(:[0-9]{2}){0,2})?( BC)?",
        "(-?[0-9]{1,9} years? ?)?(-?[0-9]{1,3} mons? ?)?(-?[0-9]{1,10} days? ?)?([-+]?[0-9]{2,10}:[0-6][0-9]:[0-6][0-9](\\.[0-9]{1,7})?)?",
        "[-+:. a-zA-Z0-9]{0,12}",
    ] {
        let shape = proptest::string::string_regex(shape).unwrap();
        texts.extend((0..400).map(|_| shape.new_tree(&mut runner).unwrap().current()));
    }
    for (cast, kind) in TYPES {
        let sql = format!("select count(afterimage.{cast}(t)) from unnest($1::text[]) t");
        client.query_one(&sql, &[&texts]).await.unwrap_or_else(|e| panic!("{cast}: {e:?}"));
        let sql = format!("select count(afterimage.typed(to_jsonb(t), '{kind}')) from unnest($1::text[]) t");
        client.query_one(&sql, &[&texts]).await.unwrap_or_else(|e| panic!("typed as {kind}: {e:?}"));
    }
    client.query_one("select count(afterimage.as_uuid(t)) from unnest($1::text[]) t", &[&texts]).await.unwrap();
}

/// A value stored before its type was declared is shown as Rust would have stored it under that type.
#[tokio::test]
async fn what_rust_converts_sql_converts_alike() {
    let (_db, client) = Database::sink().await;
    client.batch_execute(STORED).await.unwrap();
    let casts = [
        (Kind::Int2, "as_smallint"),
        (Kind::Int4, "as_integer"),
        (Kind::Int8, "as_bigint"),
        (Kind::Float8, "as_double"),
        (Kind::Numeric, "as_numeric"),
        (Kind::Date, "as_date"),
        (Kind::Time, "as_time"),
        (Kind::TimeTz, "as_timetz"),
        (Kind::Timestamp, "as_timestamp"),
        (Kind::TimestampTz, "as_timestamptz"),
        (Kind::Interval, "as_interval"),
        (Kind::Bytea, "as_bytea"),
        (Kind::Uuid, "as_uuid"),
        (Kind::Bool, "as_boolean"),
    ];
    let mut texts: Vec<String> = [
        "0",
        "7",
        "-7",
        "7.0",
        "1e3",
        "1.5",
        "20543",
        "-2440588",
        "2145042905",
        "2145042906",
        "-2147472692",
        "2146033979",
        "-622191234",
        "-2147472691",
        "-625821272",
        "86399999999",
        "86400000000",
        "86400000001",
        "1772360102500000",
        "-1",
        "-86400000001",
        "9223372036854775807",
        "9223372036825200000",
        "-9223372036832400000",
        "-9223372036854775808",
        "9223372036854775806",
        "-210866716800000000",
        "2026-03-01T10:15:02Z",
        "2026-03-01T10:15:02.123456Z",
        "2026-03-01T10:15:02+02:00",
        "2026-03-01T10:15:02",
        "2026-02-29T10:15:02Z",
        "10:15:02Z",
        "10:15:02.5Z",
        "P1Y2M3DT4H5M6.78S",
        "P0DT-5S",
        "aGVsbG8=",
        "",
        "\\x00FF",
        "0E37DF36-F698-11E6-8DD4-CB9CED3DF976",
        "true",
        "f",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut runner = TestRunner::deterministic();
    for shape in ["-?[1-9][0-9]{0,5}", "-?[1-9][0-9]{5,18}", "[1-9][0-9]{9,10}"] {
        let shape = proptest::string::string_regex(shape).unwrap();
        texts.extend((0..300).map(|_| shape.new_tree(&mut runner).unwrap().current()));
    }
    for (kind, cast) in casts {
        // Only what a connector sends for the kind: Rust reads floats and dates more widely than SQL has to.
        let pairs: Vec<(&String, String)> = texts.iter().filter_map(|raw| Some((raw, kind.canonical(raw)?))).collect();
        let raw: Vec<&str> = pairs.iter().map(|(raw, _)| raw.as_str()).collect();
        let wanted: Vec<&str> = pairs.iter().map(|(_, wanted)| wanted.as_str()).collect();
        let sql = format!(
            "select r, w, afterimage.{cast}(r)::text, afterimage.{cast}(w)::text from unnest($1::text[], $2::text[]) x(r, w)
             where afterimage.{cast}(r)::text is distinct from afterimage.{cast}(w)::text"
        );
        let rows = client.query(&sql, &[&raw, &wanted]).await.unwrap_or_else(|e| panic!("{cast}: {e:?}"));
        let wrong: Vec<(String, String, Option<String>, Option<String>)> =
            rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3))).collect();
        assert!(wrong.is_empty(), "{cast}: {wrong:#?}");
        assert!(raw.len() > 3 || kind == Kind::Bool || kind == Kind::Uuid, "{cast}: {raw:?}");
    }
}
