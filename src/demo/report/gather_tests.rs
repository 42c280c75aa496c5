//! The report's questions against a real Postgres with stand-ins for the public views, filled from the simulator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::demo::crash::Crash;
use crate::demo::options::DemoOptions;
use crate::demo::postgres::{PostgresOptions, PrivatePostgres};
use crate::demo::report::{Facts, LISTENER_DATABASE, gather};
use crate::demo::simulator::{SimOptions, Simulator, article};
use crate::demo::sink::Sink;

const VIEWS: &str = "
create schema afterimage; create schema emea_history;
set search_path = afterimage;
create table changes(org text, object text, sfid text, seq int, op text, at timestamptz, changes jsonb);
create table records(org text, object text, sfid text, status text, seq int, image jsonb);
create table outcomes(org text, object text, topic text, partition int, incarnation int, outcome text, reason text, events bigint);
create table positions(topic text, partition int, incarnation int, first_offset bigint, next_offset bigint);
create table dead_letters(); create table gaps(); create table late_events(org text, object text, sfid text, settled_at timestamptz);
create table record(rid int primary key); create table keyframe(rid int primary key);
create table delta(at timestamptz) partition by range(at);
create table delta_2020_09 partition of delta for values from ('2020-09-01') to ('2020-10-01');
create table emea_history.account(name text, sfid text, score__c float8, external_id__c text, id int);
";

struct World {
    server: PrivatePostgres,
    sink: Sink,
    simulator: Simulator,
    ends: BTreeMap<(Arc<str>, i32), i64>,
}

impl World {
    /// A sink that holds exactly what the simulator says.
    async fn new() -> World {
        let mut simulator = Simulator::new(3, SimOptions::new(1_500));
        let mut ends: BTreeMap<(Arc<str>, i32), i64> = BTreeMap::new();
        for message in simulator.by_ref() {
            *ends.entry((message.topic, message.partition)).or_default() += 1;
        }
        let server = PrivatePostgres::start(PostgresOptions::default()).unwrap();
        server.create_database("history").await.unwrap();
        let sink = Sink::connect(&server.url("history")).await.unwrap();
        let client = sink.client();
        client.batch_execute(VIEWS).await.unwrap();
        for (org, object, sfid, record) in simulator.finals() {
            let image = serde_json::Value::from(record.image).to_string();
            let insert = "insert into afterimage.records values ($1, $2, $3, $4, $5, $6::text::jsonb)";
            let seq = record.versions as i32 - 1;
            client.execute(insert, &[&org, &object, &sfid, &record.status, &seq, &image]).await.unwrap();
        }
        for ((topic, partition), end) in &ends {
            let topic: &str = topic;
            let insert = "insert into afterimage.positions values ($1, $2, 0, 0, $3)";
            client.execute(insert, &[&topic, partition, end]).await.unwrap();
            let insert = "insert into afterimage.outcomes values ('o', 'o', $1, $2, 0, 'noop', 'identical', $3::bigint - 1), \
                          ('o', 'o', $1, $2, 0, 'delta', null, 1)";
            client.execute(insert, &[&topic, partition, end]).await.unwrap();
        }
        let mut before: Option<(&str, f64)> = None;
        for (seq, event) in article::changing_events().into_iter().enumerate() {
            let (phone, score) = article::VERSIONS[event - 1];
            let mut changes = serde_json::Map::new();
            if before.is_none_or(|before| before.0 != phone) {
                changes.insert("phone".into(), serde_json::json!([before.map(|before| before.0), phone]));
            }
            if before.is_none_or(|before| before.1 != score) {
                changes.insert("score__c".into(), serde_json::json!([before.map(|before| before.1), score]));
            }
            before = Some((phone, score));
            let (changes, seq) = (serde_json::Value::from(changes).to_string(), seq as i32);
            let insert =
                "insert into afterimage.changes values ('emea', 'account', $1, $2, 'update', now(), $3::text::jsonb)";
            client.execute(insert, &[&article::SFID, &seq, &changes]).await.unwrap();
            let insert = "insert into emea_history.account values ($1, $2, $3, $4, $5)";
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&article::NAME, &article::SFID, &score, &article::EXTERNAL_ID, &seq];
            client.execute(insert, &values).await.unwrap();
        }
        World { server, sink, simulator, ends }
    }

    async fn report(&self, workers: u8) -> crate::demo::DemoReport {
        // The sample is stored anew each time.
        let again = format!("drop database if exists {LISTENER_DATABASE}");
        self.sink.client().batch_execute(&again).await.unwrap();
        self.server.create_database(LISTENER_DATABASE).await.unwrap();
        let options = DemoOptions { events: Some(1_500), seed: 3, workers, ..DemoOptions::default() };
        let facts = Facts {
            options: &options,
            simulator: &self.simulator,
            ends: &self.ends,
            crash: Some(Crash {
                worker: "demo-1".into(),
                committed: 700,
                partitions: 12,
                waiting: 50,
                resumed_after: Some(6.5),
                claimed_after: Some(6.2),
            }),
            connector_kills: 0,
            processed: Duration::from_secs(1),
            total: Duration::from_secs(2),
        };
        let (url, listener) = (self.server.url("history"), self.server.url(LISTENER_DATABASE));
        gather(&facts, &self.sink, &url, &listener).await.unwrap()
    }

    async fn spoil(&self, sql: &str) {
        self.sink.client().batch_execute(sql).await.unwrap();
    }
}

#[tokio::test]
async fn a_right_sink_passes_and_every_fault_is_found() {
    let world = World::new().await;
    let report = world.report(1).await;
    assert!(report.ok(), "{report}");
    assert_eq!(report.account.answer.rows.len(), 6);
    assert_eq!(report.account.answer.columns, ["name", "sfid", "score__c", "id"]);
    assert_eq!(report.conservation.messages, world.ends.values().sum::<i64>());
    assert_eq!(report.bytes.copies.len(), 3);
    for copies in &report.bytes.copies {
        // A full row of some 20 to 30 columns with its indexes; a sample this small pays for half-empty pages as well.
        assert!((150.0..2_500.0).contains(&copies.bytes_per_row), "{copies:?}");
    }

    // A version more than there ought to be.
    let more = "update afterimage.records set seq = seq + 1 where sfid = (select min(sfid) from afterimage.records)";
    world.spoil(more).await;
    assert!(!world.report(2).await.ok());
    world.spoil(&more.replace("+ 1", "- 1")).await;
    assert!(world.report(2).await.ok());

    let doubled =
        "update afterimage.outcomes set events = events + 1 where ctid = (select min(ctid) from afterimage.outcomes)";
    world.spoil(doubled).await;
    let report = world.report(2).await;
    assert!(!report.ok());
    assert_eq!(report.conservation.broken.len(), 1, "{report}");
    world.spoil(&doubled.replace("+ 1", "- 1")).await;
    assert!(world.report(2).await.ok());

    world.spoil("delete from afterimage.records where sfid = (select max(sfid) from afterimage.records)").await;
    let report = world.report(2).await;
    assert!(!report.truth.ok() && report.truth.differences.iter().any(|told| told.contains("not stored")), "{report}");
    world.spoil("update afterimage.changes set changes = '{}' where seq = 3").await;
    assert!(!world.report(2).await.account.right);
}
