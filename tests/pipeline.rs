//! The whole path on real parts: PostgreSQL 15 with tables like Heroku Connect's → Debezium 2.7 → Kafka 4.1 →
//! `afterimage` → PostgreSQL, against a fold in SQL over an audit table that triggers of the source filled. The fold
//! knows nothing of Kafka's order, of positions or of images; the two must tell the same history.
//!
//! One source, one workload and one Connect worker serve all tests; each reads the topics into a sink of its own.
#![cfg(feature = "java-tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use support::app::{App, Deployment};
use support::audit::{self, Ends, assert_conserved, caught_up, held_up};
use support::connect::{Connector, Debezium, Worker};
use support::kafka::Broker;
use support::names::unique;
use support::postgres::{Database, fresh_database};
use support::wait::{LONG, wait_for};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

const TABLES: [&str; 4] = ["emea.account", "emea.contact", "apac.account", "apac.contact"];
const PARTITIONS: i32 = 4;

/// What all tests look at: the audit, the tables as they were in the end, and the topics, complete.
struct World {
    /// As text: a JSON library may read a number's last digit wrongly.
    audit: String,
    tables: String,
    /// Moments at which nothing was being written.
    marks: Vec<String>,
    blocks: Feed,
    plain: Feed,
}

/// One connector's topics.
struct Feed {
    connector: Connector,
    messages: String,
    ends: Ends,
}

impl Feed {
    /// `[[org]]` tables for its topics.
    fn orgs(&self) -> String {
        let org = |org: &str| {
            format!("[[org]]\nname = \"{org}\"\ntopics = [\"{}\"]\n", self.connector.topic(&format!("{org}.*")))
        };
        format!("{}{}", org("emea"), org("apac"))
    }
}

async fn world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    WORLD.get_or_init(make_world).await
}

async fn make_world() -> World {
    let broker = Broker::shared();
    let source = fresh_database().await;
    let client = source.connect().await;
    client.batch_execute(include_str!("support/workload.sql")).await.unwrap();
    let blocks = Connector::new(&unique("calm"), &source, &TABLES);
    let plain = Connector::new(&unique("calm"), &source, &TABLES).without_schemas().set("skipped.operations", "none");
    for connector in [&blocks, &plain] {
        connector.create_topics(broker, PARTITIONS).await;
    }
    let connectors = vec![blocks.clone(), plain.clone()];
    let mut connect = Worker::start(Debezium::V2_7, broker, Duration::from_secs(1), connectors).await;

    let mut marks = Vec::new();
    for phase in 0..4 {
        work(&source, phase).await;
        marks.push(client.query_one("SELECT clock_timestamp()::text", &[]).await.unwrap().get(0));
        for table in TABLES.iter().filter(|_| phase < 3) {
            let (org, object) = table.split_once('.').unwrap();
            client.batch_execute(&format!("CALL public.reload('{org}', '{object}', {})", phase > 0)).await.unwrap();
        }
    }
    let text = async |query: &str| client.query_one(query, &[]).await.unwrap().get::<_, String>(0);
    let audit = text("SELECT jsonb_agg(to_jsonb(a) ORDER BY n)::text FROM public.audit a").await;
    let rows = TABLES.map(|table| {
        let (org, object) = table.split_once('.').unwrap();
        format!("SELECT '{org}' AS org, '{object}' AS object, sfid, to_jsonb(t) AS row FROM {table} t WHERE sfid IS NOT NULL")
    });
    let tables = text(&format!("SELECT jsonb_agg(to_jsonb(r))::text FROM ({}) r", rows.join(" UNION ALL "))).await;
    let blocks = feed(broker, blocks, &audit, false).await;
    let plain = feed(broker, plain, &audit, true).await;
    connect.stop();
    World { audit, tables, marks, blocks, plain }
}

/// Two sessions per table at once, so that transactions overlap; and one pair that surely does.
async fn work(source: &Database, phase: u32) {
    let mut sessions = Vec::new();
    for (n, table) in TABLES.iter().enumerate() {
        let (org, object) = table.split_once('.').unwrap();
        for half in 0..2 {
            let source = source.clone();
            let seed = f64::from(phase * 100 + n as u32 * 10 + half) / 1000.0;
            let (lo, hi) = (1 + half * 12, 12 + half * 12);
            let call = format!("CALL public.work('{org}', '{object}', {seed}, {lo}, {hi}, 40)");
            sessions.push(tokio::spawn(async move { source.connect().await.batch_execute(&call).await.unwrap() }));
        }
    }
    for session in sessions {
        session.await.unwrap();
    }
    // Started first, committed last: its message has the lower LSN and the later time.
    let (first, second) = (source.connect().await, source.connect().await);
    let edit = |n: u32, at: u32| {
        format!(
            "UPDATE emea.account SET visits__c = {at}, systemmodstamp = public.stamp() WHERE sfid = public.sfid({n})"
        )
    };
    first.batch_execute(&format!("BEGIN; {}", edit(1, 9_001 + phase))).await.unwrap();
    second.batch_execute(&edit(2, 9_001 + phase)).await.unwrap();
    first.batch_execute("COMMIT").await.unwrap();
}

/// Waits until a connector's topics hold a message for every audit row, and reads them as any consumer would.
async fn feed(broker: &Broker, connector: Connector, audit: &str, truncates: bool) -> Feed {
    let audit: Value = serde_json::from_str(audit).unwrap();
    let (mut messages, mut ends) = (Vec::new(), Ends::new());
    for table in TABLES {
        let (org, object) = table.split_once('.').unwrap();
        let topic = connector.topic(table);
        let of_table = audit.as_array().unwrap().iter().filter(|row| row["org"] == org && row["object"] == object);
        // A delete is followed by its tombstone.
        let wanted: usize = of_table
            .map(|row| match row["op"].as_str().unwrap() {
                "D" => 2,
                "T" => usize::from(truncates),
                _ => 1,
            })
            .sum();
        let found = wait_for(&format!("{wanted} messages in {topic}"), LONG, async || {
            let found = broker.read_all(&topic).await;
            if found.len() >= wanted { Ok(found) } else { Err(found.len()) }
        })
        .await;
        assert_eq!(found.len(), wanted, "{topic}");
        for (partition, end) in broker.end_offsets(&topic).await {
            ends.insert((topic.clone(), partition), end);
        }
        for message in &found {
            let (Some(key), Some(value)) = (&message.key, &message.value) else { continue };
            let (key, value): (Value, Value) =
                (serde_json::from_slice(key).unwrap(), serde_json::from_slice(value).unwrap());
            let (key, value) = (key.get("payload").unwrap_or(&key), value.get("payload").unwrap_or(&value));
            messages.push(json!({
                "org": org, "object": object, "topic": topic, "partition": message.partition, "offset": message.offset,
                "op": value["op"], "xid": value["source"]["txId"], "lsn": value["source"]["lsn"], "id": key["id"],
                "us": value["source"]["ts_us"],
                "placeholder": value["after"].to_string().contains("__debezium_unavailable_value"),
            }));
        }
    }
    Feed { connector, messages: Value::from(messages).to_string(), ends }
}

/// A sink that is ready, its deployment, and a session in it.
async fn deployment(feed: &Feed, objects: &str) -> (Deployment, Client, Database) {
    let sink = fresh_database().await;
    let deployment = Deployment::new(&Broker::shared().bootstrap(), &sink, format!("{}{objects}", feed.orgs()));
    deployment.migrate();
    let client = sink.connect().await;
    (deployment, client, sink)
}

/// Small fetches and commits, so that there is a middle.
const IN_SMALL_STEPS: &str =
    "[commit]\nmax_rows = 20\nlinger = \"1ms\"\n[kafka.extra]\n\"fetch.message.max.bytes\" = \"20000\"";

/// What a stream without schema blocks has to be told.
fn types() -> String {
    let of = |org: &str, object: &str, types: &str| {
        format!("[[object]]\norg = \"{org}\"\nname = \"{object}\"\ntypes = {{ {types} }}\n")
    };
    let account = "renewal__c = \"date\", last_call__c = \"timestamp\", annualrevenue = \"float8\"";
    let contact = "birthdate = \"date\", seen__c = \"timestamp\"";
    ["emea", "apac"].map(|org| of(org, "account", account) + &of(org, "contact", contact)).concat()
}

/// Brings the audit, the tables and the topics' index into the sink's session, and folds.
async fn tell(sink: &Client, world: &World, feed: &Feed, tables: &[&str]) {
    sink.batch_execute(
        "SET TIME ZONE 'UTC';
         CREATE TEMP TABLE audit (n bigint, xid bigint, at timestamptz, org text, object text, op text, id int, sfid text, stamp timestamp, row jsonb);
         CREATE TEMP TABLE final (org text, object text, sfid text, row jsonb);
         CREATE TEMP TABLE message (org text, object text, topic text, partition int, \"offset\" bigint, op text, xid bigint, lsn bigint, id int, us bigint, placeholder bool, ts timestamptz);
         CREATE INDEX ON message (org, object, xid, id)",
    )
    .await
    .unwrap();
    for (table, rows) in [("audit", &world.audit), ("final", &world.tables), ("message", &feed.messages)] {
        let insert =
            format!("INSERT INTO {table} SELECT * FROM jsonb_populate_recordset(NULL::{table}, $1::text::jsonb)");
        sink.execute(&insert, &[rows]).await.unwrap();
    }
    for table in ["audit", "final", "message"] {
        let others = format!("DELETE FROM {table} WHERE org || '.' || object <> ALL ($1)");
        sink.execute(&others, &[&tables]).await.unwrap();
    }
    sink.batch_execute("UPDATE message SET ts = timestamptz 'epoch' + us * interval '1 microsecond'; CREATE INDEX ON audit (org, object, id); ANALYZE audit; ANALYZE message").await.unwrap();
    sink.batch_execute(include_str!("support/fold.sql")).await.unwrap();
    // Every row of the audit has its own message, and the other way round.
    let query = "SELECT (SELECT count(*) FROM message WHERE op <> 't'), (SELECT count(*) FROM audit WHERE op <> 'T'),
                   (SELECT count(\"offset\") FROM told), (SELECT count(DISTINCT (topic, partition, \"offset\")) FROM told)";
    let row = sink.query_one(query, &[]).await.unwrap();
    let counts: [i64; 4] = [0, 1, 2, 3].map(|n| row.get(n));
    assert!(counts.iter().all(|count| *count == counts[0]), "messages, audit rows, matched, apart: {counts:?}");
    // What the comparison is worth: each of these cases is in it.
    let query = "SELECT kind, count(*) FROM wanted GROUP BY kind
                 UNION ALL SELECT 'placeholder', count(*) FROM message WHERE placeholder
                 UNION ALL SELECT 'pending', count(*) FROM state WHERE pending
                 UNION ALL SELECT 'lower lsn', count(*) FROM (
                   SELECT lsn < lag(lsn) OVER (PARTITION BY topic, partition ORDER BY \"offset\") AS fell FROM message) m WHERE fell
                 UNION ALL SELECT 'no change', (SELECT count(*) FROM state) - (SELECT count(*) FROM source_change)";
    let seen: BTreeMap<String, i64> =
        sink.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    for case in
        ["create", "baseline", "update", "delete", "undelete", "placeholder", "pending", "lower lsn", "no change"]
    {
        assert!(seen.get(case).is_some_and(|n| *n > 0), "no {case} in the workload: {seen:?}");
    }
}

async fn assert_none(sink: &Client, what: &str, query: &str) {
    let rows = sink.query(query, &[]).await.unwrap();
    let shown: Vec<String> = rows.iter().take(5).map(|row| row.get::<_, Value>(0).to_string()).collect();
    assert!(rows.is_empty(), "{} of: {what}\n{}", rows.len(), shown.join("\n"));
}

/// Every version of the fold is in the history, once, with old and new values, its time and its message; and nothing
/// else is.
async fn assert_history(sink: &Client, world: &World, feed: &Feed) {
    assert_conserved(sink, &feed.ends).await;
    assert_none(
        sink,
        "versions that differ from the fold of the audit",
        "SELECT jsonb_build_object('wanted', to_jsonb(w), 'found', to_jsonb(f))
         FROM wanted w FULL JOIN (SELECT * FROM afterimage.changes) f USING (org, object, sfid, seq)
         WHERE (w.kind, w.changes, w.valid_from, w.topic, w.partition, w.\"offset\")
           IS DISTINCT FROM (f.op, f.changes, f.at, f.topic, f.partition, f.\"offset\")
         ORDER BY org, object, sfid, seq",
    )
    .await;
    assert_eq!(audit::outcome(sink, "stale").await, 0, "read in commit order, nothing is late");
    assert_images(sink).await;
    // Between the phases nothing was written: as of then, every record is as the audit last told.
    for mark in &world.marks {
        assert_none(
            sink,
            &format!("records that are not as of {mark} what the audit tells"),
            &format!(
                "SELECT jsonb_build_object('wanted', to_jsonb(w), 'found', to_jsonb(f))
                 FROM (SELECT DISTINCT ON (org, object, sfid) * FROM state WHERE at <= '{mark}' ORDER BY org, object, sfid, n DESC) w
                 FULL JOIN (
                   SELECT o.org, o.object, f.* FROM (SELECT DISTINCT org, object FROM state) o
                   CROSS JOIN LATERAL afterimage.object_as_of(o.org, o.object, '{mark}') f) f USING (org, object, sfid)
                 WHERE CASE WHEN w.op = 'D' THEN f.image IS NOT NULL ELSE f.image IS DISTINCT FROM w.row END"
            ),
        )
        .await;
    }
    let row = sink.query_one("SELECT sum(rows_cancelled)::bigint FROM afterimage.position", &[]).await.unwrap();
    assert!(row.get::<_, i64>(0) > 50, "the reload by DELETE took its deletes back");
}

/// Live records are the rows of the source's tables, and those that nobody was told are gone: TRUNCATE took them.
async fn assert_images(sink: &Client) {
    let told = "SELECT DISTINCT ON (org, object, sfid) * FROM state ORDER BY org, object, sfid, n DESC";
    let lost = format!(
        "SELECT to_jsonb(final) FROM final LEFT JOIN ({told}) w USING (org, object, sfid) WHERE w.op IS NULL OR w.op = 'D'"
    );
    assert_none(sink, "rows of the source that the audit has lost", &lost).await;
    assert_none(
        sink,
        "live records that are not as the source has them",
        &format!(
            "SELECT jsonb_build_object('wanted', to_jsonb(w), 'found', to_jsonb(f))
             FROM (SELECT * FROM ({told}) w WHERE op <> 'D') w
             FULL JOIN (SELECT * FROM afterimage.records WHERE status = 'live') f USING (org, object, sfid)
             WHERE f.image IS DISTINCT FROM w.row"
        ),
    )
    .await;
}

/// Waits until something is committed, then holds up all further commits until the transaction ends. Something must be
/// left to do.
async fn stop_in_the_middle<'t>(gate: &'t mut Client, sink: &Client, feed: &Feed) -> tokio_postgres::Transaction<'t> {
    wait_for("a first commit", LONG, async || match audit::positions(sink).await.values().sum::<i64>() {
        0 => Err("nothing committed"),
        _ => Ok(()),
    })
    .await;
    let gate = gate.transaction().await.unwrap();
    gate.batch_execute("LOCK TABLE afterimage.delta IN SHARE MODE").await.unwrap();
    held_up(sink).await;
    let (done, all): (i64, i64) = (audit::positions(sink).await.values().sum(), feed.ends.values().sum());
    assert!(done < all, "{done} of {all}: nothing was left to do");
    gate
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_tells_what_the_sources_audit_tells_from_streams_with_schema_blocks() {
    let world = world().await;
    let (deployment, client, _) = deployment(&world.blocks, "").await;
    let mut worker = deployment.worker("one");
    caught_up(&client, &world.blocks.ends, &mut [&mut worker]).await;
    worker.stop();
    tell(&client, world, &world.blocks, &TABLES).await;
    assert_history(&client, world, &world.blocks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_tells_what_the_sources_audit_tells_from_plain_streams() {
    let world = world().await;
    let (deployment, client, _) = deployment(&world.plain, &types()).await;
    let mut worker = deployment.worker("one");
    caught_up(&client, &world.plain.ends, &mut [&mut worker]).await;
    worker.stop();
    tell(&client, world, &world.plain, &TABLES).await;
    assert_history(&client, world, &world.plain).await;
    assert!(audit::outcome(&client, "ignored").await >= 8, "truncates are counted and change nothing");
}

/// Kills a worker in the middle of a commit, three times.
async fn killed(feed: &Feed, objects: &str, keep_state: bool) -> Client {
    let (deployment, client, sink) = deployment(feed, objects).await;
    let deployment = deployment.with(IN_SMALL_STEPS);
    let mut gate = sink.connect().await;
    let mut done = 0;
    for _ in 0..3 {
        let mut worker = deployment.worker("one");
        wait_for("progress", LONG, async || {
            worker.assert_running();
            let now: i64 = audit::positions(&client).await.values().sum();
            if now > done { Ok(()) } else { Err(now) }
        })
        .await;
        let held = stop_in_the_middle(&mut gate, &client, feed).await;
        worker.kill9();
        held.rollback().await.unwrap();
        done = audit::positions(&client).await.values().sum();
        if !keep_state {
            fs::remove_dir_all(deployment.state_dir("one")).unwrap();
        }
    }
    let mut worker = deployment.worker("one");
    caught_up(&client, &feed.ends, &mut [&mut worker]).await;
    worker.stop();
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_comes_back_with_its_state_and_nothing_is_lost_or_doubled() {
    let world = world().await;
    let client = killed(&world.blocks, "", true).await;
    tell(&client, world, &world.blocks, &TABLES).await;
    assert_history(&client, world, &world.blocks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_comes_back_without_its_state_and_nothing_is_lost_or_doubled() {
    let world = world().await;
    let client = killed(&world.plain, &types(), false).await;
    tell(&client, world, &world.plain, &TABLES).await;
    assert_history(&client, world, &world.plain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_lose_no_change_and_end_with_the_sources_images() {
    let world = world().await;
    let feed = &world.blocks;
    // One topic: of several, the group would give each worker whole ones.
    let topic = feed.connector.topic(TABLES[0]);
    let ends: Ends = feed.ends.iter().filter(|((of, _), _)| *of == topic).map(|(of, end)| (of.clone(), *end)).collect();
    let sink = fresh_database().await;
    let org = format!("[[org]]\nname = \"emea\"\ntopics = [\"{topic}\"]\n");
    let deployment = Deployment::new(&Broker::shared().bootstrap(), &sink, org);
    deployment.migrate();
    let client = sink.connect().await;
    let deployment = deployment.with(IN_SMALL_STEPS);
    let mut gate = sink.connect().await;
    let held = gate.transaction().await.unwrap();
    held.batch_execute("LOCK TABLE afterimage.delta, afterimage.keyframe IN SHARE MODE").await.unwrap();
    let mut one = deployment.worker("one");
    one.wait_for_log("claimed").await;
    let mut two = deployment.worker("two");
    two.wait_for_log("claimed").await;
    // The first stands still while the second reads its share to the end, which waits for it until the group takes its
    // partitions away: whether anything comes late depends on who is faster, and neither may cost a change.
    one.signal(libc::SIGSTOP);
    held.rollback().await.unwrap();
    wait_for("the second worker's share", LONG, async || {
        two.assert_running();
        let query = "SELECT topic, partition, next_offset FROM afterimage.positions WHERE worker = 'two'";
        let rows = client.query(query, &[]).await.unwrap();
        let behind = rows.iter().filter(|row| ends[&(row.get(0), row.get(1))] > row.get::<_, i64>(2)).count();
        if rows.is_empty() || behind > 0 { Err(behind) } else { Ok(()) }
    })
    .await;
    one.signal(libc::SIGCONT);
    let both: &mut [&mut App] = &mut [&mut one, &mut two];
    caught_up(&client, &ends, both).await;
    one.stop();
    two.stop();

    assert_conserved(&client, &ends).await;
    tell(&client, world, feed, &[TABLES[0]]).await;
    assert_images(&client).await;
    assert_none(
        &client,
        "changes of the source that are neither in the history nor among the late events",
        "SELECT to_jsonb(c) FROM source_change c
         JOIN wanted w USING (org, object, sfid, seq)
         WHERE NOT EXISTS (
             SELECT FROM afterimage.changes f
             WHERE (f.topic, f.partition, f.\"offset\", f.sfid) = (w.topic, w.partition, w.\"offset\", w.sfid))
           AND NOT EXISTS (
             SELECT FROM afterimage.late_events l
             WHERE (l.topic, l.partition, l.\"offset\", l.sfid) = (w.topic, w.partition, w.\"offset\", w.sfid))",
    )
    .await;
}
