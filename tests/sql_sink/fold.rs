//! Folding in SQL what Rust encoded gives what Rust folds: random records, both payload forms, several chains.

use std::collections::BTreeMap;

use afterimage::core::event::{FieldNo, Micros};
use afterimage::core::format::VersionOp;
use afterimage::core::value::Value;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use super::cluster::Database;
use super::story::{self, DAY, FIELDS, NAME, NEW_YEAR, SCORE, STAMP, USER, Version};

/// Records per run, and versions per record: a few long ones cross chains and months.
const RECORDS: usize = 30;

fn value(no: FieldNo) -> BoxedStrategy<Value> {
    let known = match no {
        2 | 10 => prop_oneof![
            any::<i32>().prop_map(|i| i.to_string()),
            "-?[1-9][0-9]{0,5}\\.[0-9]{1,4}",
            Just("1e+21".to_owned()),
            Just("5e-324".to_owned()),
            Just("NaN".to_owned()),
            Just("-Infinity".to_owned()),
            Just("1e999999999".to_owned()),
            Just("not a number".to_owned()),
        ]
        .boxed(),
        3 => prop_oneof![Just("t".to_owned()), Just("f".to_owned()), Just("?".to_owned())].boxed(),
        4 => {
            prop_oneof!["202[0-9]-0[1-9]-1[0-9]", Just("infinity".to_owned()), Just("day:99999999".to_owned())].boxed()
        }
        8 => any::<i32>().prop_map(|i| i.to_string()).boxed(),
        _ => prop_oneof![
            6 => "[a-zA-Z0-9 ,'\"\\\\{}\\[\\]$%äß\u{1F600}\u{2028}\n\t]{0,12}",
            1 => "[a\u{1}-\u{3}\u{1f}\"\\\\]{1,4}",
            1 => Just("\u{3}".to_owned()),
            1 => Just("{\"$unknown\": true}".to_owned()),
        ]
        .boxed(),
    };
    prop_oneof![8 => known.prop_map(|t| Value::Text(t.into())), 1 => Just(Value::Null), 1 => Just(Value::Unknown)]
        .boxed()
}

fn fields(visible: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<(FieldNo, Value)>> {
    let nos: Vec<FieldNo> = vec![1, 2, 3, 4, 7, 8, 9, 10, 11];
    (prop::sample::subsequence(nos, visible), prop::option::of("005[A-Z]{15}")).prop_flat_map(|(nos, user)| {
        let values: Vec<_> = nos.iter().map(|no| value(*no)).collect();
        (Just(nos), values, Just(user)).prop_map(|(nos, values, user)| {
            let mut fields: BTreeMap<_, _> = nos.into_iter().zip(values).collect();
            fields.extend(user.map(|u| (USER, Value::Text(u.into()))));
            fields.into_iter().collect()
        })
    })
}

/// (dice for the op, time since the step before, fields, stamp, local)
type Step = (u8, Micros, Vec<(FieldNo, Value)>, Option<Micros>, bool);

/// Steps of time and content; turned into versions by [`versions`], which knows what may follow what.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let stamp = prop_oneof![
        6 => (-5_000i64..5_000).prop_map(|s| NEW_YEAR + s * 1_000_000),
        2 => (-5_000i64..5_000).prop_map(|ms| NEW_YEAR + ms * 1000),
        1 => (-5_000i64..5_000).prop_map(|us| NEW_YEAR + us),
        1 => Just(i64::MAX),
        1 => (0i64..20_000).prop_map(|d| NEW_YEAR - d * DAY - 1000),
    ];
    let time = prop_oneof![2 => Just(0i64), 6 => 0..5_000_000i64, 2 => 0..DAY / 4, 1 => 0..5 * DAY];
    let step = (any::<u8>(), time, fields(1..=4), prop::option::of(stamp), prop::bool::weighted(0.15)).boxed();
    prop_oneof![
        4 => prop::collection::vec(step.clone(), 0..12),
        1 => prop::collection::vec(step, 60..200),
    ]
}

fn versions(first: Vec<(FieldNo, Value)>, steps: Vec<Step>) -> Vec<Version> {
    let mut at = NEW_YEAR + 123_456;
    let mut recorded = at;
    let op = if steps.len().is_multiple_of(2) { VersionOp::Baseline } else { VersionOp::Create };
    let mut all = vec![Version { stamp: Some(NEW_YEAR), ..Version::new(op, at, &first) }];
    for (i, (dice, time, fields, stamp, local)) in steps.into_iter().enumerate() {
        at += time;
        recorded = recorded.max(at + i64::from(dice) * 1000);
        let dead = all.last().is_some_and(|v| v.op == VersionOp::Delete);
        let op = match dice % 10 {
            _ if dead => VersionOp::Undelete,
            0 => VersionOp::Delete,
            1 => VersionOp::Backfill,
            _ => VersionOp::Update,
        };
        let (fields, stamp, local) = match op {
            VersionOp::Delete => (Vec::new(), None, false),
            // A local write brings neither user nor stamp.
            _ if local => (fields.into_iter().filter(|f| f.0 != USER).collect(), None, true),
            _ => (fields, stamp, false),
        };
        let raw_at = (dice % 3 == 0).then_some(at - i64::from(dice) * 77);
        let offset = i as i64 * 1_000_003;
        all.push(Version { op, at, recorded, raw_at, stamp, local, offset, lsn: u64::from(dice) << 33, fields });
    }
    all
}

fn kind(no: FieldNo) -> &'static str {
    FIELDS[no as usize - 1].2
}

fn shown(no: FieldNo, value: &Value) -> Json {
    let text = match value {
        Value::Null => return Json::Null,
        Value::Unknown => return json!({"$unknown": true}),
        Value::Text(text) => text,
    };
    match kind(no) {
        "boolean" if &**text == "t" => json!(true),
        "boolean" if &**text == "f" => json!(false),
        "double precision" | "integer" | "numeric" => match serde_json::from_str::<f64>(text) {
            Ok(number) => json!(number),
            Err(_) => json!(text.as_str()),
        },
        _ => json!(text.as_str()),
    }
}

fn visible(no: FieldNo) -> bool {
    FIELDS[no as usize - 1].1 == 'v'
}

fn name(no: FieldNo) -> String {
    FIELDS[no as usize - 1].0.to_owned()
}

/// Numbers by value: `15` is `15.0`.
fn plain(json: Json) -> Json {
    match json {
        Json::Number(n) => json!(n.as_f64()),
        Json::Array(a) => a.into_iter().map(plain).collect(),
        Json::Object(o) => o.into_iter().map(|(k, v)| (k, plain(v))).collect(),
        other => other,
    }
}

/// What a version should look like from outside.
struct Expected {
    image: BTreeMap<FieldNo, Value>,
    shown: Json,
    changes: Json,
    user: Option<String>,
}

fn expect(versions: &[Version]) -> Vec<Expected> {
    let mut image: BTreeMap<FieldNo, Value> = BTreeMap::new();
    versions
        .iter()
        .map(|v| {
            let first = matches!(v.op, VersionOp::Baseline | VersionOp::Create);
            let changes: serde_json::Map<_, _> = v
                .fields
                .iter()
                .filter(|(no, value)| visible(*no) && !(first && *value == Value::Null))
                .map(|(no, value)| {
                    (name(*no), json!([image.get(no).map_or(Json::Null, |v| shown(*no, v)), shown(*no, value)]))
                })
                .collect();
            image.extend(v.fields.iter().cloned());
            let of_image = |(no, value): (&FieldNo, &Value)| visible(*no).then(|| (name(*no), shown(*no, value)));
            let user = match image.get(&USER) {
                Some(Value::Text(user)) if !v.local && v.op != VersionOp::Delete => Some(user.to_string()),
                _ => None,
            };
            Expected {
                shown: image.iter().filter_map(of_image).collect::<serde_json::Map<_, _>>().into(),
                image: image.clone(),
                changes: changes.into(),
                user,
            }
        })
        .collect()
}

/// The newest version at a moment; deleted = none.
fn at<'a>(versions: &[Version], expected: &'a [Expected], shows: impl Fn(usize) -> bool) -> Option<&'a Json> {
    let i = (0..versions.len()).rev().find(|i| shows(*i))?;
    (versions[i].op != VersionOp::Delete).then(|| &expected[i].shown)
}

/// The time of version i on Salesforce's clock.
fn salesforce(versions: &[Version], i: usize) -> Micros {
    let v = &versions[i];
    match v.stamp {
        Some(stamp) => stamp,
        None if v.local => versions[i..].iter().find_map(|v| v.stamp).unwrap_or(i64::MAX),
        None => v.at,
    }
}

async fn check(client: &Client, rid: i32, sfid: &str, versions: &[Version]) {
    let expected = expect(versions);
    let ms = |t: Micros| t.div_euclid(1000) * 1000;

    // changes
    let sql = format!(
        "select seq, op, {}, {}, {}, changed_by, changes, local, topic, partition, \"offset\"
         from afterimage.changes where org = 'emea' and object = 'account' and sfid = $1 order by seq",
        story::micros("at"),
        story::micros("salesforce_at"),
        story::micros("recorded_at")
    );
    let rows = client.query(&sql, &[&sfid]).await.unwrap();
    assert_eq!(rows.len(), versions.len());
    for (i, row) in rows.iter().enumerate() {
        let (v, e) = (&versions[i], &expected[i]);
        assert_eq!(row.get::<_, i32>(0), i as i32);
        assert_eq!(row.get::<_, &str>(1), v.op.as_str());
        assert_eq!(row.get::<_, i64>(2), v.at);
        assert_eq!(row.get::<_, Option<i64>>(3), v.stamp, "stamp of {i}");
        assert_eq!(row.get::<_, i64>(4), ms(v.recorded), "recorded time of {i}");
        assert_eq!(row.get::<_, Option<String>>(5), e.user, "user of {i}");
        assert_eq!(plain(row.get(6)), plain(e.changes.clone()), "changes of {i}");
        assert_eq!(row.get::<_, bool>(7), v.local);
        assert_eq!(
            (row.get::<_, &str>(8), row.get::<_, i32>(9), row.get::<_, i64>(10)),
            ("c.emea.account", 4, v.offset)
        );
    }

    // field_changes is the same, unnested.
    let sql = "select coalesce(sum(n), 0)::bigint, bool_and(same) from (
        select count(f.field) as n,
          c.changes = coalesce(jsonb_object_agg(f.field, jsonb_build_array(f.old, f.new)) filter (where f.field is not null), '{}') as same
        from afterimage.changes c left join afterimage.field_changes f using (org, object, sfid, seq)
        where sfid = $1 group by c.seq, c.changes) x";
    let row = client.query_one(sql, &[&sfid]).await.unwrap();
    let fields: usize = expected.iter().map(|e| e.changes.as_object().unwrap().len()).sum();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, bool>(1)), (fields as i64, true));

    // The raw fold, with what no view shows.
    let last = expected.last().unwrap();
    let kf = (versions.len() as i32 - 1) / 64;
    let raw: Json = client.query_one("select afterimage.fold($1, $2)", &[&rid, &kf]).await.unwrap().get(0);
    let mut raw = raw.as_object().unwrap().clone();
    raw.remove(&STAMP.to_string());
    let as_json = |value: &Value| match value {
        Value::Null => Json::Null,
        Value::Unknown => json!({"$unknown": true}),
        Value::Text(t) => json!(t.as_str()),
    };
    let image: serde_json::Map<_, _> = last.image.iter().map(|(no, v)| (no.to_string(), as_json(v))).collect();
    assert_eq!(raw, image);

    // records
    let sql = format!(
        "select status, seq, {}, {}, image from afterimage.records where org = 'emea' and object = 'account' and sfid = $1",
        story::micros("first_at"),
        story::micros("last_at")
    );
    let row = client.query_one(&sql, &[&sfid]).await.unwrap();
    let v = versions.last().unwrap();
    let status = if v.op == VersionOp::Delete { "deleted" } else { "live" };
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), (status, versions.len() as i32 - 1));
    assert_eq!((row.get::<_, i64>(2), row.get::<_, i64>(3)), (versions[0].at, v.at));
    assert_eq!(plain(row.get(4)), plain(last.shown.clone()));

    // as_of by each clock at each of its moments and just before; image() also of the deleted.
    for clock in ["commit", "recorded", "salesforce"] {
        let time = |i: usize| match clock {
            "commit" => versions[i].at,
            "recorded" => ms(versions[i].recorded),
            _ => salesforce(versions, i),
        };
        // Every moment of a short record; of a long one all by one clock, some by the others.
        let step = if clock == "commit" { 1 } else { 1 + versions.len() / 20 };
        let moments: Vec<Micros> =
            (0..versions.len()).step_by(step).map(time).filter(|t| *t != i64::MAX).flat_map(|t| [t - 1, t]).collect();
        let sql = format!(
            "select afterimage.as_of('emea', 'account', $1, {m}, $2), case $2 when 'commit' then afterimage.image($3, {m}) end
             from unnest($4::bigint[]) with ordinality t(at, i) order by i",
            m = story::moment("t.at")
        );
        let rows = client.query(&sql, &[&sfid, &clock, &rid, &moments]).await.unwrap();
        for (row, moment) in rows.iter().zip(&moments) {
            let image = at(versions, &expected, |i| time(i) <= *moment);
            assert_eq!(row.get::<_, Option<Json>>(0).map(plain), image.cloned().map(plain), "{clock} {moment}");
            if clock == "commit" {
                let i = (0..versions.len()).rev().find(|i| versions[*i].at <= *moment);
                let image = i.map(|i| plain(expected[i].shown.clone()));
                assert_eq!(row.get::<_, Option<Json>>(1).map(plain), image, "image() at {moment}");
            }
        }
        let Some(moment) = moments.get(moments.len() / 2) else { continue };
        let sql = format!(
            "select image from afterimage.object_as_of('emea', 'account', {}, $2) where sfid = $3",
            story::moment("$1")
        );
        let row = client.query_opt(&sql, &[moment, &clock, &sfid]).await.unwrap();
        let image = at(versions, &expected, |i| time(i) <= *moment);
        assert_eq!(row.map(|r| plain(r.get(0))), image.cloned().map(plain), "object_as_of {clock} {moment}");
    }
    let forever: Option<Json> =
        client.query_one("select afterimage.as_of('emea', 'account', $1, 'infinity')", &[&sfid]).await.unwrap().get(0);
    assert_eq!(forever.map(plain), at(versions, &expected, |_| true).cloned().map(plain));

    // The typed view: every version, whole.
    let rows = client
        .query("select id, _op, name, score__c, _changed_by, to_jsonb(v) ->> 'secret__c' from emea_history.account v where sfid = $1 order by id", &[&sfid])
        .await
        .unwrap();
    assert_eq!(rows.len(), versions.len());
    for (i, row) in rows.iter().enumerate() {
        let e = &expected[i];
        let text = |no: FieldNo| match e.image.get(&no) {
            Some(Value::Text(t)) => Some(t.to_string()),
            _ => None,
        };
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (i as i32, versions[i].op.as_str()));
        assert_eq!(row.get::<_, Option<String>>(2), text(NAME), "name of {i}");
        let score = row.get::<_, Option<f64>>(3).map(|f| f.to_bits());
        let expected = text(SCORE).and_then(|t| t.parse::<f64>().ok().filter(|f| f.is_finite() || !t.contains('e')));
        assert_eq!(score, expected.map(f64::to_bits), "score of {i}");
        assert_eq!(row.get::<_, Option<String>>(4), e.user);
        assert_eq!(row.get::<_, Option<String>>(5), None);
    }
    let moment = versions[versions.len() / 2].at;
    let sql = format!("select _seq, name from emea_history.account_as_of({}) where sfid = $2", story::moment("$1"));
    let row = client.query_opt(&sql, &[&moment, &sfid]).await.unwrap();
    let i = (0..versions.len()).rev().find(|i| versions[*i].at <= moment).unwrap();
    if versions[i].op == VersionOp::Delete {
        assert!(row.is_none());
    } else {
        let row = row.unwrap();
        let name = match expected[i].image.get(&NAME) {
            Some(Value::Text(t)) => Some(t.to_string()),
            _ => None,
        };
        assert_eq!((row.get::<_, i32>(0), row.get::<_, Option<String>>(1)), (i as i32, name));
    }
}

#[tokio::test]
async fn folding_in_sql_what_rust_encoded_gives_the_image() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    client.batch_execute("select afterimage.refresh_object_views(1::smallint)").await.unwrap();
    let mut runner = TestRunner::deterministic();
    let story = (fields(0..=9usize), steps()).prop_map(|(first, steps)| versions(first, steps));
    let mut long = 0;
    for i in 0..RECORDS {
        let versions = story.new_tree(&mut runner).unwrap().current();
        long += usize::from(versions.len() > 64);
        let sfid = format!("001{i:015}");
        let rid = story::record(&client, 1, &sfid, &versions).await;
        check(&client, rid, &sfid, &versions).await;
    }
    assert!(long > 3, "chains were crossed");
}
