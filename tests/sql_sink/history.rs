//! Views and as-of, case by case; the random records are in `fold`.

use afterimage::core::format::{Header, VersionOp, encode};
use afterimage::core::value::Value;
use serde_json::{Value as Json, json};
use tokio_postgres::Client;

use super::cluster::Database;
use super::story::{self, NAME, NEW_YEAR, SCORE, USER, Version, text};

const SECOND: i64 = 1_000_000;

async fn one<T: for<'a> tokio_postgres::types::FromSql<'a>>(client: &Client, sql: &str) -> T {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_local_write_has_no_user_and_no_stamp_and_waits_for_salesforce() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let stamped = |s: i64, version: Version| Version { stamp: Some(NEW_YEAR + s * SECOND), ..version };
    let at = |s: i64| NEW_YEAR + s * SECOND;
    let update = |s: i64, v: &str| Version::new(VersionOp::Update, at(s), &[(NAME, text(v))]);
    let mut confirmed = update(30, "d");
    confirmed.fields.push((USER, text("005B")));
    let versions = [
        stamped(0, Version::new(VersionOp::Create, at(5), &[(NAME, text("a")), (USER, text("005A"))])),
        Version { local: true, ..update(10, "b") },
        Version { local: true, ..update(15, "c") },
        stamped(20, confirmed),
        // A read-back that was overtaken: its stamp is older.
        stamped(18, update(40, "c")),
        Version { local: true, ..update(50, "e") },
    ];
    story::record(&client, 1, "r", &versions).await;
    let users: Vec<Option<String>> =
        one(&client, "select array_agg(changed_by order by seq) from afterimage.changes").await;
    let some = |u: &str| Some(u.to_owned());
    assert_eq!(users, [some("005A"), None, None, some("005B"), some("005B"), None]);
    let stamps: Vec<Option<i32>> = one(
        &client,
        "select array_agg(extract(epoch from salesforce_at - '2026-01-01 00:00Z')::int order by seq) from afterimage.changes",
    )
    .await;
    assert_eq!(stamps, [Some(0), None, None, Some(20), Some(18), None]);
    for (moment, expected) in
        [(-1, None), (0, some("a")), (17, some("a")), (18, some("c")), (20, some("c")), (999, some("c"))]
    {
        let sql = format!(
            "select afterimage.as_of('emea', 'account', 'r', '2026-01-01 00:00Z'::timestamptz + interval '{moment} s', 'salesforce') ->> 'name'"
        );
        assert_eq!(one::<Option<String>>(&client, &sql).await, expected, "{moment}");
    }
    let sql = "select afterimage.as_of('emea', 'account', 'r', 'infinity', 'salesforce') ->> 'name'";
    assert_eq!(one::<Option<String>>(&client, sql).await, some("e"));
}

#[tokio::test]
async fn a_delete_keeps_its_image_and_leaves_as_of() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let at = |s: i64| NEW_YEAR + s * SECOND;
    let versions = [
        Version::new(VersionOp::Baseline, at(0), &[(NAME, text("a")), (USER, text("005A"))]),
        Version::new(VersionOp::Delete, at(10), &[]),
        Version::new(VersionOp::Undelete, at(20), &[(NAME, text("b"))]),
    ];
    story::record(&client, 1, "r", &versions[..2]).await;
    story::record(&client, 1, "back", &versions).await;
    let rows = client
        .query("select sfid, status, seq, image from afterimage.records where org = 'emea' order by sfid", &[])
        .await
        .unwrap();
    let rows: Vec<(String, String, i32, Json)> =
        rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3))).collect();
    assert_eq!(
        rows,
        [
            ("back".into(), "live".into(), 2, json!({"name": "b"})),
            ("r".into(), "deleted".into(), 1, json!({"name": "a"}))
        ]
    );
    let image = |sfid: &str, s: i64| {
        let sql = format!(
            "select afterimage.as_of('emea', 'account', '{sfid}', '2026-01-01 00:00Z'::timestamptz + interval '{s} s') ->> 'name'"
        );
        let client = &client;
        async move { one::<Option<String>>(client, &sql).await }
    };
    assert_eq!(image("r", -1).await, None);
    assert_eq!(image("r", 9).await.as_deref(), Some("a"));
    assert_eq!(image("r", 10).await, None, "a moment includes itself");
    assert_eq!(image("back", 15).await, None);
    assert_eq!(image("back", 20).await.as_deref(), Some("b"));
    let changes: Json =
        one(&client, "select changes from afterimage.changes where sfid = 'back' and op = 'delete'").await;
    assert_eq!(changes, json!({}));
    let by: Option<String> =
        one(&client, "select changed_by from afterimage.changes where sfid = 'back' and op = 'delete'").await;
    assert_eq!(by, None);
    let changes: Json = one(&client, "select changes from afterimage.changes where op = 'undelete'").await;
    assert_eq!(changes, json!({"name": ["a", "b"]}));
    let sfids: Vec<String> =
        one(&client, "select array_agg(sfid) from afterimage.object_as_of('emea', 'account', '2026-01-01 00:00:30Z')")
            .await;
    assert_eq!(sfids, ["back"]);
}

#[tokio::test]
async fn values_have_their_types_form_and_fall_back_to_text() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let fields = [
        (1, text("t")),
        (2, text("-1.5e-07")),
        (3, text("t")),
        (4, text("2026-02-30")),
        (7, Value::Unknown),
        (8, text("12.5")),
        (9, text("secret")),
        (10, text("12345678901234567890.10")),
        (11, Value::Null),
    ];
    story::record(&client, 1, "r", &[Version::new(VersionOp::Baseline, NEW_YEAR, &fields)]).await;
    let image: String = one(&client, "select image::text from afterimage.records").await;
    assert_eq!(
        image,
        r#"{"name": "t", "due__c": "2026-02-30", "count__c": 12.5, "notes__c": {"$unknown": true}, "score__c": -0.00000015, "active__c": true, "amount__c": 12345678901234567890.10, "external_id__c": null}"#
    );
    let update = [(2, text("NaN")), (3, text("yes")), (8, text("")), (10, text("1e99999"))];
    story::record(&client, 1, "s", &[Version::new(VersionOp::Baseline, NEW_YEAR, &update)]).await;
    let image: Json = one(&client, "select image from afterimage.records where sfid = 's'").await;
    assert_eq!(image, json!({"score__c": "NaN", "active__c": "yes", "count__c": "", "amount__c": "1e99999"}));
    let old_new: (Option<Json>, Option<Json>) = {
        let row = client
            .query_one("select old, new from afterimage.field_changes where sfid = 'r' and field = 'notes__c'", &[])
            .await
            .unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!(old_new, (None, Some(json!({"$unknown": true}))));
}

/// A chain in text form, then a JSON payload, then text again; marks and what only looks like marks.
#[tokio::test]
async fn both_payload_forms_in_one_chain_fold_to_the_last_values() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let versions: Vec<Version> = [
        vec![(1, text("a")), (7, Value::Unknown), (11, text("\"\\u0003"))],
        vec![(1, text("b\u{1f}\u{3}")), (7, Value::Unknown)],
        vec![(1, text("c")), (11, Value::Unknown)],
        vec![(7, text("\u{3}"))],
        vec![(7, Value::Null), (11, text("\"\\u0003\""))],
    ]
    .iter()
    .enumerate()
    .map(|(i, fields)| {
        let op = if i == 0 { VersionOp::Baseline } else { VersionOp::Update };
        Version::new(op, NEW_YEAR + i as i64, fields)
    })
    .collect();
    let unknown = json!({"$unknown": true});
    for (n, image) in [
        (1, json!({"name": "a", "notes__c": unknown, "external_id__c": "\"\\u0003"})),
        (2, json!({"name": "b\u{1f}\u{3}", "notes__c": unknown, "external_id__c": "\"\\u0003"})),
        (3, json!({"name": "c", "notes__c": unknown, "external_id__c": unknown})),
        (4, json!({"name": "c", "notes__c": "\u{3}", "external_id__c": unknown})),
        (5, json!({"name": "c", "notes__c": null, "external_id__c": "\"\\u0003\""})),
    ] {
        let sfid = format!("r{n}");
        story::record(&client, 1, &sfid, &versions[..n]).await;
        let shown: Json = one(&client, &format!("select image from afterimage.records where sfid = '{sfid}'")).await;
        assert_eq!(shown, image, "after {n} versions");
    }
    let changes: Json = one(&client, "select changes from afterimage.changes where sfid = 'r5' and seq = 3").await;
    assert_eq!(changes, json!({"notes__c": [unknown, "\u{3}"]}));
}

#[tokio::test]
async fn a_record_without_history_is_not_shown() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    client.batch_execute("insert into afterimage.record(object_id, sfid) values (1, 'rolled back')").await.unwrap();
    assert_eq!(one::<i64>(&client, "select count(*) from afterimage.records").await, 0);
    assert_eq!(one::<i64>(&client, "select count(*) from afterimage.changes").await, 0);
    let image: Option<Json> = one(&client, "select afterimage.as_of('emea', 'account', 'rolled back', now())").await;
    assert_eq!(image, None);
}

#[tokio::test]
async fn an_unknown_clock_is_an_error() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    story::record(&client, 1, "r", &[Version::new(VersionOp::Baseline, NEW_YEAR, &[(SCORE, text("1"))])]).await;
    let error = client.query("select afterimage.as_of('emea', 'account', 'r', now(), 'wall')", &[]).await.unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("commit, salesforce or recorded"), "{error:?}");
}

/// Varints up to their ends, and room for additions before the payload.
#[tokio::test]
async fn sql_reads_every_header_that_rust_writes() {
    let (_db, client) = Database::sink().await;
    let at = NEW_YEAR + 999_999;
    for (position_id, offset, lsn, recorded, raw) in [
        (1, 0, 0, at, None),
        (i32::MAX, i64::MAX, i64::MAX as u64, at + 86_400_000_000_000, Some(at - 1)),
        (127, 128, 16384, at - 5_000_000_000, Some(at + 12345)),
        (128, 16383, 1 << 62, at, Some(0)),
    ] {
        let header = Header {
            op: VersionOp::Undelete,
            n: 63,
            local: true,
            no_source_time: false,
            raw_at: raw,
            stamp: None,
            modified_is_stamp: false,
            position_id,
            offset,
            lsn,
            recorded,
        };
        let mut d = encode(at, &header, None, &[(1, text("x"))]);
        for longer in [false, true] {
            if longer {
                let start = usize::from(d[2]);
                d.splice(start..start, [0xff, 0x01]);
                d[2] += 2;
            }
            let row = client
                .query_one(
                    "select h.position_id, h.\"offset\", h.lsn, h.recorded_ms, h.raw_us,
                       afterimage.op($1), afterimage.seq(3, $1), afterimage.is_local($1), afterimage.payload($1)
                     from afterimage.header($1) h",
                    &[&d],
                )
                .await
                .unwrap();
            assert_eq!(
                (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)),
                (position_id, offset, lsn as i64, recorded.div_euclid(1000) - at.div_euclid(1000), raw.map(|r| r - at))
            );
            assert_eq!((row.get(5), row.get(6), row.get(7), row.get(8)), ("undelete", 3 * 64 + 63, true, "1\u{1f}x"));
        }
    }
}

/// In two bytes, in four, and in four as it was stored before there was a short form.
#[tokio::test]
async fn sql_reads_every_stamp_that_rust_writes() {
    let (_db, client) = Database::sink().await;
    let (at, second) = (NEW_YEAR + 999_999, 1_000_000);
    let base = NEW_YEAR;
    for (distance, unit, short) in [
        (None, second, true),
        (Some(0), second, true),
        (Some(-5), second, true),
        (Some(32_767), second, true),
        (Some(-32_767), second, true),
        (Some(32_768), second, false),
        (Some(-32_768), second, false),
        (Some(i64::from(i32::MAX)), second, false),
        (Some(-1), 1_000, true),
        (Some(32_767), 1_000, true),
        (Some(-86_400_001), 1_000, false),
    ] {
        let stamp = distance.map(|distance| base + distance * unit);
        let header = Header {
            op: VersionOp::Update,
            n: 1,
            local: false,
            no_source_time: false,
            raw_at: None,
            stamp,
            modified_is_stamp: true,
            position_id: 300,
            offset: 7,
            lsn: 9,
            recorded: at + 1_000,
        };
        let d = encode(at, &header, None, &[(1, text("x"))]);
        assert_eq!(d[0] & 128 != 0, short, "{distance:?}");
        let mut forms = vec![d.clone()];
        if short {
            let long = distance.map_or(i32::MIN, |distance| distance as i32);
            forms.push([&[d[0] & 127, d[1], d[2] + 2][..], &long.to_be_bytes(), &d[5..]].concat());
        }
        for d in forms {
            let sql = format!(
                "select {}, h.position_id, h.\"offset\", h.lsn, h.recorded_ms, afterimage.payload($1) from afterimage.header($1) h",
                story::micros(&format!("afterimage.stamp({}, $1)", story::moment("$2")))
            );
            let row = client.query_one(&sql, &[&d, &at]).await.unwrap();
            assert_eq!(row.get::<_, Option<i64>>(0), stamp, "{distance:?} {unit}");
            assert_eq!(
                (row.get(1), row.get(2), row.get(3), row.get(4)),
                (300, 7i64, 9i64, 1i64),
                "{distance:?} {unit}"
            );
            assert_eq!(row.get::<_, &str>(5), "1\u{1f}x");
        }
    }
}

#[tokio::test]
async fn operational_views_show_positions_and_what_became_of_every_event() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    client
        .batch_execute(
            "update afterimage.position set next = 22, first_next = 1, c_delta = 5, c_noop = 4, c_noop_system = 3, c_noop_status = 2, c_dead = 1, c_gap = 6
             where position_id = 2;
             insert into afterimage.claim(position_id, epoch, token, from_next, worker)
               values (2, 1, gen_random_uuid(), 0, 'old'), (2, 2, gen_random_uuid(), 0, 'new');
             insert into afterimage.gap(position_id, from_offset, to_offset, reason) values (2, 3, 9, 'retention');
             insert into afterimage.record(object_id, sfid) values (1, 'r');
             insert into afterimage.late_event(position_id, \"offset\", rid, op, at, reason) values (2, 9, 1, 'u', now(), 'stale');
             insert into afterimage.dead_letter(position_id, \"offset\", reason, value) values (2, 10, 'not JSON', '\\x00ff');
             insert into afterimage.declaration(object_id, masked, types) values (1, '{a}', '{}')",
        )
        .await
        .unwrap();
    let sql = "select bool_and(total = next_offset - first_offset), max(worker) from afterimage.positions p
        join (select org, object, topic, partition, incarnation, sum(events) as total from afterimage.outcomes group by 1, 2, 3, 4, 5) o
        using (org, object, topic, partition, incarnation)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, &str>(1)), (true, "new"));
    let noops: Vec<String> = one(
        &client,
        "select array_agg(reason || events order by reason) from afterimage.outcomes where partition = 4 and outcome = 'noop'",
    )
    .await;
    assert_eq!(noops, ["identical4", "status2", "system3"]);
    assert_eq!(one::<i64>(&client, "select count(distinct outcome) from afterimage.outcomes").await, 13);
    for view in ["gaps", "dead_letters", "late_events"] {
        let sql = format!("select array[org, object, topic, partition::text] from afterimage.{view}");
        assert_eq!(one::<Vec<String>>(&client, &sql).await, ["emea", "account", "c.emea.account", "4"], "{view}");
    }
    assert_eq!(one::<String>(&client, "select sfid from afterimage.late_events").await, "r");
    assert_eq!(one::<i64>(&client, "select count(*) from afterimage.declarations").await, 1);
}
