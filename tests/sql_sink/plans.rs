//! Filters on the views reach the indexes, and what is not selected is not computed.

use afterimage::core::format::VersionOp;
use serde_json::Value as Json;
use tokio_postgres::Client;

use super::cluster::Database;
use super::story::{self, DAY, EXTERNAL_ID, NAME, NEW_YEAR, SCORE, Version, text};

/// 4,000 records, five versions each, over three months, vacuumed.
async fn filled() -> (Database, Client) {
    let (db, client) = Database::sink().await;
    story::setup(&client).await;
    let rids: Vec<i32> = client
        .query(
            "insert into afterimage.record(object_id, sfid, home) select 1 + i % 3, to_char(i, '\"001\"FM000000000000000'), 1
             from generate_series(1, 4000) i returning rid",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|r| r.get(0))
        .collect();
    let stories: Vec<Vec<Version>> = (0..rids.len() as i64)
        .map(|i| {
            let start = NEW_YEAR + i * DAY * 60 / 4000;
            let first =
                [(NAME, text(&format!("Borer {i}"))), (SCORE, text("1")), (EXTERNAL_ID, text(&format!("x{i}")))];
            let mut versions = vec![Version::new(VersionOp::Baseline, start, &first)];
            versions.extend((1..5).map(|v| {
                let score = text(&v.to_string());
                Version::new(VersionOp::Update, start + v * DAY, &[(SCORE, score)])
            }));
            versions
        })
        .collect();
    let records: Vec<(i32, &[Version])> = rids.iter().copied().zip(stories.iter().map(Vec::as_slice)).collect();
    story::write(&client, &records).await;
    client.batch_execute("vacuum analyze").await.unwrap();
    client.batch_execute("select afterimage.refresh_object_views(1::smallint)").await.unwrap();
    (db, client)
}

async fn plan(client: &Client, sql: &str) -> String {
    let rows = client.query(&format!("explain (verbose, costs off) {sql}"), &[]).await.unwrap();
    rows.iter().map(|r| r.get::<_, String>(0)).collect::<Vec<_>>().join("\n")
}

fn assert_no_scan_of(plan: &str, tables: &[&str]) {
    for table in tables {
        assert!(!plan.contains(&format!("Seq Scan on afterimage.{table}")), "{table} is scanned whole:\n{plan}");
    }
}

#[tokio::test]
async fn filters_reach_the_indexes() {
    let (_db, client) = filled().await;
    let record = "where org = 'emea' and object = 'account' and sfid = '001000000000000042'";
    for sql in [
        format!("select * from afterimage.changes {record}"),
        format!("select * from afterimage.changes {record} and at >= '2026-01-10Z' and at < '2026-02-01Z'"),
        format!("select * from afterimage.field_changes {record} and field = 'score__c'"),
        format!("select * from afterimage.records {record}"),
        "select * from emea_history.account where sfid = '001000000000000042'".to_owned(),
        "select * from emea_history.account_as_of('2026-02-01Z') where sfid = '001000000000000042'".to_owned(),
    ] {
        let plan = plan(&client, &sql).await;
        assert_no_scan_of(&plan, &["record", "keyframe", "delta"]);
        assert!(plan.contains("record_object_id_sfid_key"), "{sql}\n{plan}");
    }

    // By time: months that can't match are not touched, and within a month BRIN.
    let by_time =
        plan(&client, "select sfid, at from afterimage.changes where at >= '2026-01-20Z' and at < '2026-01-20 00:30Z'")
            .await;
    assert!(!by_time.contains("delta_202602"), "{by_time}");
    assert!(by_time.contains("delta_202601"), "{by_time}");
    assert!(by_time.contains("keyframe_at"), "{by_time}");

    // Joined from the registry, each record brings its own versions by (rid, kf).
    let one = plan(&client, &format!("select seq, changes from afterimage.changes {record}")).await;
    assert!(one.contains("delta_202601_rid_kf_idx") && one.contains("keyframe_pkey"), "{one}");
}

#[tokio::test]
async fn what_is_not_selected_is_not_folded() {
    let (_db, client) = filled().await;
    for sql in [
        "select count(*) from afterimage.records where org = 'emea'",
        "select seq, op, at from afterimage.changes where org = 'emea'",
        "select count(*) from emea_history.account",
    ] {
        let plan = plan(&client, sql).await;
        for costly in ["fold", "string_agg", "change_set", "header", "jsonb_object"] {
            assert!(!plan.contains(costly), "{sql} computes {costly}:\n{plan}");
        }
    }
}

/// What is guaranteed of a lookup field: a filter on it *can* start at the index at any size, and once it has 100,000
/// values that is what the planner takes. Below some thousands it may read `record_lookup` whole, a few pages, because that
/// is cheaper; the records behind it are found by index either way, and the rows are the same.
#[tokio::test]
async fn a_lookup_starts_at_its_index_where_that_pays() {
    let (_db, client) = filled().await;
    client
        .batch_execute(
            "insert into afterimage.lookup(object_id, name, state, upto_rid, fenced) values (1, 'external_id__c', 'ready', 4000, '{}');
             insert into afterimage.record_lookup(object_id, field_no, value, rid)
               select 1, 11, 'x' || (rid - 1), rid from afterimage.record where object_id = 1 and rid <= 300;
             analyze afterimage.record_lookup; select afterimage.refresh_object_views(1::smallint)",
        )
        .await
        .unwrap();
    let article = "select name, sfid, score__c, id from emea_history.account where external_id__c = 'x41' order by id";
    let found = async || client.query(article, &[]).await.unwrap().len();
    let small = plan(&client, article).await;
    // `record_lookup` begins with the same letters: a blank ends the name.
    assert_no_scan_of(&small, &["record ", "keyframe", "delta"]);
    assert_eq!(found().await, 5);
    client.batch_execute("set enable_seqscan = off").await.unwrap();
    let possible = plan(&client, article).await;
    assert!(possible.contains("record_lookup_pkey"), "{possible}");
    client.batch_execute("reset enable_seqscan").await.unwrap();

    client
        .batch_execute(
            "insert into afterimage.record(object_id, sfid, home)
               select 1, to_char(i, '\"002\"FM000000000000000'), 1 from generate_series(1, 100000) i;
             insert into afterimage.record_lookup(object_id, field_no, value, rid)
               select 1, 11, 'x' || (rid - 1), rid from afterimage.record where object_id = 1 on conflict do nothing;
             analyze afterimage.record; analyze afterimage.record_lookup",
        )
        .await
        .unwrap();
    let large = plan(&client, article).await;
    assert_no_scan_of(&large, &["record", "keyframe", "delta", "record_lookup"]);
    assert!(large.contains("record_lookup_pkey"), "{large}");
    assert_eq!(found().await, 5);
}

/// A record of 10,000 versions costs one chain.
#[tokio::test]
async fn as_of_reads_one_chain_of_a_long_record() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let versions: Vec<Version> = (0..10_000i64)
        .map(|i| {
            let op = if i == 0 { VersionOp::Baseline } else { VersionOp::Update };
            Version::new(op, NEW_YEAR + i * 60_000_000, &[(SCORE, text(&i.to_string()))])
        })
        .collect();
    let rid = story::record(&client, 1, "long", &versions).await;
    client.batch_execute("analyze").await.unwrap();
    for (clock, i) in [("commit", 4_321), ("commit", 9_999), ("recorded", 777)] {
        let sql = "select coalesce(sum(idx_tup_fetch + seq_tup_read), 0)::bigint from pg_stat_xact_user_tables
            where relname like 'delta\\_%'";
        // Counters are flushed now and then only: what this one call adds.
        let read = async || client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        client.batch_execute("begin").await.unwrap();
        let before = read().await;
        let at = story::moment("$1");
        let image: Json = client
            .query_one(
                &format!("select afterimage.as_of('emea', 'account', 'long', {at} + interval '1 s', $2)"),
                &[&versions[i].at, &clock],
            )
            .await
            .unwrap()
            .get(0);
        let read = read().await - before;
        client.batch_execute("commit").await.unwrap();
        assert_eq!(image["score__c"], i);
        assert!(read > 0 && read <= 3 * 64, "{clock}: {read} deltas of record {rid} were read");
    }
}
