//! The whole program behind PgBouncer in transaction mode (protocol D6): no session is anybody's for longer than a
//! transaction, and everything must come out as without it.

mod support;

use std::collections::BTreeSet;

use afterimage::demo::postgres::{PostgresOptions, PrivatePostgres};
use afterimage::kafka::EmbeddedBroker;
use afterimage::postgres::claim::{Claimant, Wanted, claim};
use afterimage::postgres::client::{SinkSettings, Tls};
use afterimage::postgres::registry::{self, Declared};
use serde_json::Value;
use support::app::Deployment;
use support::audit::{assert_conserved, assert_same, caught_up, history};
use support::names;
use support::pgbouncer::PgBouncer;
use support::postgres::{Database, fresh_database, shared};
use support::stream::Stream;
use support::wait::{LONG, wait_for};

const TABLES: &str = "[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n\
    [[object]]\norg = \"emea\"\nname = \"account\"\nlookup = [\"name\"]\n";

/// A server that logs every statement, and a database of it.
async fn talkative() -> (PrivatePostgres, Database) {
    let options = PostgresOptions::default().set("log_statement", "all").set("log_line_prefix", "%a: ");
    let server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options)).await.unwrap().unwrap();
    let name = names::unique("pooled");
    server.create_database(&name).await.unwrap();
    let database = Database { url: server.url(&name), name };
    (server, database)
}

/// Statements of the program that were run under a name, COPY left out. A name is known to one session only.
fn named_statements(log: &str) -> BTreeSet<&str> {
    let ours = log.lines().filter(|line| line.starts_with("afterimage"));
    let run = ours.filter_map(|line| line.split_once("LOG:  execute ")).map(|(_, statement)| statement);
    run.filter(|statement| !statement.starts_with("<unnamed>") && !statement.contains(": COPY ")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_behind_a_pooler_tell_the_whole_history() {
    let (server, sink) = talkative().await;
    // Far fewer sessions than the two workers have connections.
    let bouncer = PgBouncer::start(&server, 5);
    let broker = EmbeddedBroker::start(1).unwrap();
    let deployment = Deployment::new(&broker.servers(), &bouncer.database(&sink), TABLES).pooled();
    deployment.migrate();
    let mut stream = Stream::new(&broker, "calm.emea.account", 4);
    let client = sink.connect().await;
    stream.rounds(40, 0..5);
    let mut one = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    let mut two = deployment.worker("two");

    // Killed in the middle, and back with what it had on disk.
    stream.rounds(40, 5..9);
    two.wait_for_log("reading").await;
    one.kill9();
    stream.reload();
    stream.rounds(40, 9..12);
    let mut one = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut one, &mut two]).await;
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;

    wait_for("the lookup", LONG, async || {
        let query = "SELECT count(*) FROM afterimage.lookup WHERE state = 'ready'";
        let ready: i64 = client.query_one(query, &[]).await.unwrap().get(0);
        if ready == 1 { Ok(()) } else { Err("not built yet") }
    })
    .await;
    let versions = "SELECT (SELECT count(*) FROM emea_history.account), (SELECT count(*) FROM afterimage.changes)";
    let row = client.query_one(versions, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), row.get::<_, i64>(1), "the typed view shows every version");
    assert!(row.get::<_, i64>(0) > 100);

    let status = deployment.verb("status", &["--json"]);
    assert!(status.status.success(), "{status:?}");
    let text = String::from_utf8(status.stdout).unwrap();
    let seen = serde_json::from_str::<Value>(&text).unwrap();
    let partitions = seen["partitions"].as_array().expect("partitions");
    assert_eq!(partitions.len(), 4);
    assert!(partitions.iter().all(|at| at["worker_seen"] == true), "{text}");
    let url = &bouncer.database(&sink).url;
    let types = deployment.verb("config", &["types", "--from", url, "--schema", "afterimage", "--org", "emea"]);
    assert!(types.status.success(), "{types:?}");

    for worker in [&mut one, &mut two] {
        assert!(!worker.log().contains("ERROR"), "{}", worker.log());
        worker.stop();
    }
    let left: i64 = client.query_one("SELECT count(*) FROM afterimage.worker", &[]).await.unwrap().get(0);
    assert_eq!(left, 1, "those that stopped are gone; the one that was killed is forgotten later");
    let log = server.log();
    assert!(log.contains("afterimage:two: LOG:  execute <unnamed>"), "statements are logged");
    let named = named_statements(&log);
    assert!(named.is_empty(), "{} named statements, one of them: {:?}", named.len(), named.first());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lives_is_known_behind_a_pooler_also_while_nothing_happens() {
    let sink = fresh_database().await;
    let bouncer = PgBouncer::start(shared(), 4);
    let broker = EmbeddedBroker::start(1).unwrap();
    let deployment = Deployment::new(&broker.servers(), &bouncer.database(&sink), TABLES).pooled();
    deployment.migrate();
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(3, 0..2);
    let client = sink.connect().await;
    let mut first = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut first]).await;
    let shown = async |lives: bool| {
        wait_for("what status says", LONG, async || {
            let status = deployment.verb("status", &["--json"]);
            let text = String::from_utf8(status.stdout).unwrap();
            let seen: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let all = seen["partitions"].as_array().unwrap().iter().all(|at| at["worker_seen"] == lives);
            if all { Ok(()) } else { Err(text) }
        })
        .await;
    };
    shown(true).await;
    // Its namesake finds no session of it, and is told all the same.
    let elsewhere = Deployment::new(&broker.servers(), &bouncer.database(&sink), TABLES).pooled();
    let mut second = elsewhere.worker("one");
    second.wait_for_log("another worker of this name").await;
    second.wait_for_log("reading").await;
    second.stop();
    shown(true).await;
    let skip = |to: i64| {
        let to = to.to_string();
        let arguments = ["skip", "calm.emea.account", "--partition", "0", "--to", &to, "--yes", "--reason", "a test"];
        let skipped = deployment.verb("offsets", &arguments);
        (skipped.status.code(), String::from_utf8(skipped.stderr).unwrap())
    };
    let read = stream.ends()[&("calm.emea.account".to_owned(), 0)];
    let (code, said) = skip(read);
    assert!(code == Some(4) && said.contains("worker one holds it"), "{code:?} {said}");
    first.kill9();
    shown(false).await;
    stream.send(0, None, Some(b"nothing that anybody needs"));
    stream.flush();
    let (code, said) = skip(read + 1);
    assert_eq!(code, Some(0), "{said}");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'afterimage/%'";
    assert_eq!(client.query_one(sessions, &[]).await.unwrap().get::<_, i64>(0), 0, "no session passes for a worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_behind_a_pooler_ends_the_session_that_holds_its_position() {
    let sink = fresh_database().await;
    let bouncer = PgBouncer::start(shared(), 6);
    let mut client = sink.connect().await;
    afterimage::postgres::migrate::migrate(&mut client).await.unwrap();
    let declared = Declared {
        topic: "t".into(),
        org: "emea".into(),
        object: "account".into(),
        identity: None,
        grace: 0,
        masked: Vec::new(),
        types: Default::default(),
        lookup: Vec::new(),
        config_hash: Vec::new(),
    };
    let source_id = registry::sources(&mut client, &[declared], "cluster", "group").await.unwrap()[0].source_id;
    let settings = SinkSettings {
        url: bouncer.database(&sink).url,
        tls: Tls::Disable,
        ca: None,
        worker: "test".into(),
        application: "afterimage:test".into(),
        pooled: true,
    };
    let claimant = Claimant { worker: "test".into(), config_hash: Vec::new() };
    let wanted = [Wanted {
        source_id,
        topic: "calm.emea.account".into(),
        partition: 0,
        earliest: 0,
        end: i64::MAX,
        found: None,
    }];
    claim(&settings, &claimant, &wanted).await.unwrap();
    // Sessions of the pool that have served others, so that the next transaction is given another one than the last.
    let mut busy = Vec::new();
    for _ in 0..3 {
        let one = settings.connect().await.unwrap();
        one.batch_execute("BEGIN").await.unwrap();
        busy.push(one);
    }
    for one in &busy {
        one.batch_execute("COMMIT").await.unwrap();
    }
    let frozen = settings.connect().await.unwrap();
    frozen.batch_execute("BEGIN; SELECT FROM afterimage.position FOR UPDATE").await.unwrap();
    let (claims, _) = claim(&settings, &claimant, &wanted).await.unwrap();
    assert_eq!(claims[0].epoch, 2);
    assert!(frozen.batch_execute("COMMIT").await.is_err(), "its session was ended");
}

/// What the tests above would stumble over: a statement prepared in one transaction is not there in the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_named_statement_does_not_outlive_its_transaction() {
    let sink = fresh_database().await;
    let bouncer = PgBouncer::start(shared(), 2);
    let database = bouncer.database(&sink);
    let (one, two) = (database.connect().await, database.connect().await);
    let prepared = one.prepare("SELECT 1").await.unwrap();
    // It was prepared in the session that now is the other's.
    two.batch_execute("BEGIN").await.unwrap();
    let error = one.query(&prepared, &[]).await.expect_err("no such statement there");
    assert_eq!(error.code().map(|code| code.code()), Some("26000"), "{error}");
    two.batch_execute("ROLLBACK").await.unwrap();
}
