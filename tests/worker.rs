//! The program as a whole, without a JVM: `afterimage` as child processes on the embedded broker and a private
//! PostgreSQL. What it writes is compared with what the test, which made the messages, knows must come out.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use afterimage::core::batch::DEAD_LETTER_BYTES;
use afterimage::kafka::EmbeddedBroker;
use afterimage::telemetry::names;
use serde_json::{Value, json};
use support::app::{App, Deployment};
use support::audit::{self, Ends, assert_conserved, assert_same, caught_up, held_up, history};
use support::postgres::{Database, fresh_database};
use support::stream::{Stream, VALUE};
use support::terminal::Terminal;
use support::wait::{LONG, wait_for, wait_until};
use tokio_postgres::Client;

/// A broker, a sink with its schema, and a deployment on both that reads one org.
async fn deployment(tables: &str) -> (EmbeddedBroker, Database, Deployment) {
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let org = format!("[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n{tables}");
    let deployment = Deployment::new(&broker.servers(), &sink, org).with("[log]\nlevel = \"debug\"");
    deployment.migrate();
    (broker, sink, deployment)
}

async fn assert_history(sink: &Client, stream: &Stream, object: &str) {
    assert_same(&history(sink, "emea", object).await, &stream.wanted());
    assert_conserved(sink, &stream.ends()).await;
}

fn assert_silent(log: &Path) {
    let text = fs::read_to_string(log).unwrap();
    assert!(text.len() > 100, "the log is there");
    let said: Vec<&str> = text.lines().filter(|line| line.contains(VALUE)).collect();
    assert!(said.is_empty(), "the log holds values: {said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_decoded_is_kept_and_the_partition_moves_on() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    let junk: [(&[u8], &[u8], &str); 6] = [
        (b"{\"id\":1}", b"\xff\xfe\x00 Qz7-Confidential", "not utf-8"),
        (b"{\"id\":1}", b"Qz7-Confidential {", "not json"),
        (b"{\"id\":1}", b"", "empty value"),
        (b"{\"id\":1}", b"{\"Qz7-Confidential\":1}", "not an envelope"),
        (b"{\"id\":", br#"{"before":null,"after":{"id":1,"sfid":"Qz7-Confidential"},"op":"c","source":{"ts_ms":1,"lsn":1,"table":"t","schema":"emea"}}"#, "bad key"),
        (b"{\"id\":1}", br#"{"before":null,"after":{"id":1,"sfid":"Qz7-Confidential"},"op":"c","source":{"ts_ms":1,"lsn":1,"table":"t","schema":"emea"}}"#, "bad sfid"),
    ];
    stream.rounds(4, 0..3);
    let mut wanted = Vec::new();
    for (n, (key, value, reason)) in junk.iter().enumerate() {
        let partition = n as i32 % 2;
        let offset = stream.send(partition, Some(key), Some(value));
        wanted.push((partition, offset, reason.to_string(), Some(key.to_vec()), Some(value.to_vec())));
    }
    stream.rounds(4, 3..6);
    wanted.sort();

    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    let query = "SELECT partition, \"offset\", reason, key, value FROM afterimage.dead_letters ORDER BY 1, 2";
    let rows = client.query(query, &[]).await.unwrap();
    type Letter = (i32, i64, String, Option<Vec<u8>>, Option<Vec<u8>>);
    let found: Vec<Letter> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3), r.get(4))).collect();
    assert!(found == wanted, "{:?}", found.iter().map(|f| (f.0, f.1, &f.2)).collect::<Vec<_>>());
    assert_eq!(audit::outcome(&client, "dead_letter").await, 6);
    assert_history(&client, &stream, "account").await;
    let metrics = worker.metrics().await;
    assert!(metrics.contains("afterimage_dead_letters_total{"), "{metrics}");
    worker.stop();
    assert_silent(worker.log_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_to_be_kept_is_cut_and_cannot_be_retried() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 1);
    stream.rounds(4, 0..2);
    let whole: Vec<u8> = VALUE.bytes().cycle().take(DEAD_LETTER_BYTES * 3 / 2).collect();
    let kept = &whole[..DEAD_LETTER_BYTES];
    // The longest that is kept whole, one byte more, and half as much again.
    let lengths = [DEAD_LETTER_BYTES, DEAD_LETTER_BYTES + 1, whole.len()];
    let offsets = lengths.map(|length| stream.send(0, Some(br#"{"id":1}"#), Some(&whole[..length])));
    stream.rounds(4, 2..4);

    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    let letters = async || -> Vec<(i64, bool, bool, bool, bool)> {
        let query = "SELECT \"offset\", value = $1, sha256 IS NULL, coalesce(sha256 = sha256($2), false), resolved_at IS NULL \
                     FROM afterimage.dead_letters ORDER BY 1";
        let mut found = Vec::new();
        for (offset, length) in offsets.iter().zip(lengths) {
            let rows = client.query(query, &[&kept, &&whole[..length]]).await.unwrap();
            let row = rows.iter().find(|row| row.get::<_, i64>(0) == *offset).unwrap();
            found.push((row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)));
        }
        found
    };
    let [short, longer, longest] = offsets;
    let wanted =
        [(short, true, true, false, true), (longer, true, false, true, true), (longest, true, false, true, true)];
    assert_eq!(letters().await, wanted);
    assert_history(&client, &stream, "account").await;

    for arguments in [["retry", "--json", "--all"].as_slice(), &["retry", "--json", "--all", "--dry-run"]] {
        let output = deployment.verb("dead-letters", arguments);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&told["cut"], &told["still_undecodable"]), (&json!(2), &json!({"not json": 1})), "{told}");
        assert_eq!(told["brought_in"], json!({}), "{told}");
    }
    assert_eq!(letters().await, wanted);
    worker.stop();
    assert_silent(worker.log_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_with_messages_of_another_database_is_halted_and_the_others_go_on() {
    let (broker, sink, deployment) = deployment("").await;
    let mut account = Stream::new(&broker, "calm.emea.account", 2);
    let mut contact = Stream::new(&broker, "calm.emea.contact", 1);
    account.rounds(8, 0..3);
    let foreign = json!({
        "before": null, "after": {"id": 900, "sfid": support::stream::sfid(900), "name": VALUE}, "op": "c",
        "source": {"ts_us": 1_790_000_000_000_000_i64, "lsn": 1, "db": "other", "schema": "emea", "table": "account"},
    });
    let offset = account.send(0, Some(br#"{"id":900}"#), Some(foreign.to_string().as_bytes()));
    account.rounds(8, 3..6);
    contact.rounds(4, 0..3);

    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    let mut ends = account.ends();
    ends.extend(contact.ends());
    assert!(ends.insert(("calm.emea.account".into(), 0), offset).is_some_and(|end| end > offset));
    caught_up(&client, &ends, &mut [&mut worker]).await;
    wait_for("the log tells of it", LONG, async || {
        let log = fs::read_to_string(worker.log_file()).unwrap();
        let told = log.lines().find(|line| line.contains("two databases under one org"));
        if told.is_some_and(|line| line.contains("database=other")) { Ok(()) } else { Err(log) }
    })
    .await;
    // It is halted wherever a person looks.
    let state = |state: &str| format!("{}{{state=\"{state}\"}}", names::TASKS);
    wait_for("the metrics tell of it", LONG, async || {
        let metrics = worker.metrics().await;
        let told = |line: &str, count| metrics.lines().any(|one| one == format!("{line} {count}"));
        let right = told(&state("halted"), 1) && told(&state("closed"), 0) && told(&state("running"), 2);
        if right { Ok(()) } else { Err(metrics) }
    })
    .await;
    wait_for("the sink tells of it", LONG, async || {
        for verb in [&["show"][..], &["show", "--json"]] {
            let shown = deployment.verb("offsets", verb);
            let text = String::from_utf8(shown.stdout).unwrap();
            if !text.contains("halted") || !text.contains("two databases under one org") {
                return Err(text);
            }
        }
        let status = deployment.verb("status", &["--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        let halts = status["partitions"].as_array().unwrap().iter().filter(|one| !one["halt"].is_null()).count();
        if halts == 1 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    assert_conserved(&client, &ends).await;
    assert_eq!(history(&client, "emea", "contact").await, contact.wanted());
    let query = "SELECT count(*) FROM afterimage.records WHERE sfid = $1";
    let kept: i64 = client.query_one(query, &[&support::stream::sfid(900)]).await.unwrap().get(0);
    assert_eq!(kept, 0, "nothing of the other database");
    // The others still go on.
    contact.rounds(4, 3..5);
    ends.extend(contact.ends());
    caught_up(&client, &ends, &mut [&mut worker]).await;
    worker.stop();
    assert_silent(worker.log_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_told_of_once_and_so_is_its_return() {
    let (broker, sink, deployment) = deployment("").await;
    let deployment = deployment.with("[kafka.extra]\n\"topic.metadata.refresh.interval.ms\" = \"500\"");
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(4, 0..2);
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    let began = Instant::now();
    broker.set_reachable(false);
    worker.wait_for_log("no broker can be reached").await;
    // Who asks gives up after ten seconds.
    worker.wait_for_log("topics not looked for").await;
    broker.set_reachable(true);
    worker.wait_for_log("a broker answers again").await;
    // Half a minute is told of once more.
    let most = 1 + began.elapsed().as_secs() as usize / 30;
    let log = worker.log();
    let told = log.matches("AllBrokersDown").count();
    assert!((1..=most).contains(&told), "{told} times: {log}");
    // With a new client: the old one does not get over it.
    stream.grow(&broker.servers(), 2);
    stream.rounds(4, 2..4);
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    assert_eq!(worker.log().matches("a broker answers again").count(), 1);
    worker.stop();
    assert_history(&client, &stream, "account").await;
}

/// The sum of a metric over its labels.
fn total(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stage_counts_on_metrics_and_no_log_holds_a_value() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(10, 0..8);
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    assert_history(&client, &stream, "account").await;
    // States are told every second.
    let metrics = wait_for("tasks that run", LONG, async || {
        let metrics = worker.metrics().await;
        if metrics.contains("afterimage_task_state{state=\"running\"} 2") { Ok(metrics) } else { Err(metrics) }
    })
    .await;
    let value = |name: &str| total(&metrics, name);
    let events = stream.next.iter().sum::<i64>() as f64;
    assert_eq!(value("afterimage_messages_consumed_total"), events, "{metrics}");
    assert_eq!(value("afterimage_events_decoded_total"), events, "{metrics}");
    assert_eq!(value("afterimage_outcomes_total"), events, "{metrics}");
    assert_eq!(value("afterimage_deltas_written_total"), stream.wanted().len() as f64, "{metrics}");
    assert_eq!(value("afterimage_noops_dropped_total"), events - stream.wanted().len() as f64, "{metrics}");
    assert_eq!(value("afterimage_position"), events, "{metrics}");
    for stage in [
        "afterimage_consumed_bytes_total",
        "afterimage_image_lookups_total",
        "afterimage_batch_events_count",
        "afterimage_commits_total",
        "afterimage_commit_duration_seconds_count",
        "afterimage_claims_total",
        "afterimage_read_through_duration_seconds_count",
        "afterimage_state_operation_duration_seconds_count",
        "afterimage_task_state",
        "afterimage_rebalances_total",
        "afterimage_event_to_commit_seconds_count",
    ] {
        assert!(value(stage) > 0.0, "{stage} counts nothing:\n{metrics}");
    }
    assert!(!metrics.contains(VALUE));
    // What should not happen, or seldom, stands at zero from the start, under every label it can have.
    let at_zero = |series: &str| metrics.lines().any(|line| line == format!("{series} 0"));
    for series in [
        "afterimage_gaps_total{topic=\"calm.emea.account\"}",
        "afterimage_dead_letters_total{topic=\"calm.emea.account\",reason=\"not json\"}",
        "afterimage_take_overs_total{topic=\"calm.emea.account\"}",
        "afterimage_stale_events_total{topic=\"calm.emea.account\"}",
        "afterimage_state_cleared_total{reason=\"unknown_claim\"}",
        "afterimage_state_invalidated_records_total{reason=\"catch_up\"}",
        "afterimage_fenced_commits_total",
    ] {
        assert!(at_zero(series), "{series} is not there from the start:\n{metrics}");
    }
    for (name, label, values) in names::CLOSED {
        for line in metrics.lines().filter(|line| line.starts_with(&format!("{name}{{"))) {
            let value = line.split('"').nth(1).unwrap();
            assert!(line.contains(&format!("{{{label}=")) && values.contains(&value), "{line} is not declared");
        }
    }
    worker.stop();
    assert_silent(worker.log_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_was_replaced_goes_on_and_is_counted() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(10, 0..6);
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    let name = "afterimage_lsn_regressed_total";
    assert_eq!(total(&worker.metrics().await, name), 0.0);
    // The first event of each record after it has a lower LSN than the last before it; the next one is in turn again.
    stream.replace_source();
    stream.rounds(10, 6..8);
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    wait_for("the count of events whose LSN fell", LONG, async || {
        let metrics = worker.metrics().await;
        if total(&metrics, name) == 10.0 { Ok(()) } else { Err(metrics) }
    })
    .await;
    assert_history(&client, &stream, "account").await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lag_is_shown_while_nothing_can_be_committed() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 1);
    stream.rounds(10, 0..1);
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    let mut second = sink.connect().await;
    let gate = second.transaction().await.unwrap();
    gate.batch_execute("LOCK TABLE afterimage.delta, afterimage.keyframe IN SHARE MODE").await.unwrap();
    stream.rounds(10, 1..3);
    let lag = async |worker: &mut App, wanted: f64| {
        wait_for("the lag", LONG, async || {
            let metrics = worker.metrics().await;
            if total(&metrics, "afterimage_lag_messages") == wanted { Ok(()) } else { Err(metrics) }
        })
        .await;
    };
    lag(&mut worker, 20.0).await;
    gate.rollback().await.unwrap();
    lag(&mut worker, 0.0).await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_asked_to_stop_while_the_sink_keeps_it_from_starting_stops() {
    let (broker, sink, deployment) = deployment("").await;
    let _stream = Stream::new(&broker, "calm.emea.account", 1);
    let client = sink.connect().await;
    for table in ["meta", "source"] {
        let mut second = sink.connect().await;
        let gate = second.transaction().await.unwrap();
        gate.batch_execute(&format!("LOCK TABLE afterimage.{table}")).await.unwrap();
        let mut worker = deployment.worker("one");
        held_up(&client).await;
        // Without the gate ever opening.
        worker.stop();
        gate.rollback().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_the_middle_of_a_commit_finishes_it_and_nothing_is_lost_or_doubled() {
    let (broker, sink, deployment) = deployment("").await;
    let deployment = deployment.with("[commit]\nmax_rows = 100");
    let mut stream = Stream::new(&broker, "calm.emea.account", 4);
    stream.rounds(60, 0..80);
    let client = sink.connect().await;
    let mut second = sink.connect().await;

    let gate = second.transaction().await.unwrap();
    gate.batch_execute("LOCK TABLE afterimage.keyframe IN SHARE MODE").await.unwrap();
    let mut worker = deployment.worker("one");
    held_up(&client).await;
    // And behind the commit that waits, more is judged.
    let judged = wait_for("an open batch", LONG, async || {
        let metrics = worker.metrics().await;
        let judged = total(&metrics, "afterimage_events_decoded_total");
        if judged > total(&metrics, "afterimage_batch_events_sum") { Ok(judged) } else { Err(judged) }
    })
    .await;
    let since = Instant::now();
    worker.ask_to_stop();
    worker.wait_for_log("stopping").await;
    gate.rollback().await.unwrap();
    let (status, took) = (worker.ended(), since.elapsed());
    assert!(status.success(), "{status}: {}", worker.log());
    assert!(took < Duration::from_secs(10), "{took:?}");
    let done: i64 = audit::positions(&client).await.values().sum();
    assert!(done as f64 >= judged, "what was in hand is committed: {done} of {judged}");
    assert!(done < stream.next.iter().sum(), "the worker was under load");

    let mut worker = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    assert_history(&client, &stream, "account").await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_is_lost_old_or_anothers_changes_no_history() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 3);
    let client = sink.connect().await;
    let dir = deployment.state_dir("one");
    let aside = |name: &str| dir.with_file_name(name);
    let mut round = 0;
    let mut run = async |stream: &mut Stream| {
        stream.rounds(20, round..round + 4);
        round += 4;
        let mut worker = deployment.worker("one");
        caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
        worker.stop();
        assert_history(&client, stream, "account").await;
    };
    run(&mut stream).await;
    copy(&dir, &aside("old"));
    run(&mut stream).await;

    // Of the same sink, but from before the last run: its records are as they were then.
    swap(&aside("old"), &dir);
    run(&mut stream).await;

    fs::remove_dir_all(&dir).unwrap();
    run(&mut stream).await;

    // Of another sink that read other rows of the same names, with the same numbers for everything.
    let other = fresh_database().await;
    let elsewhere = EmbeddedBroker::start(1).unwrap();
    let mut strange = Stream::new(&elsewhere, "calm.emea.account", 3);
    strange.rounds(20, 100..117);
    let org = "[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n";
    let others = Deployment::new(&elsewhere.servers(), &other, org);
    others.migrate();
    let mut worker = others.worker("one");
    caught_up(&other.connect().await, &strange.ends(), &mut [&mut worker]).await;
    worker.stop();
    fs::remove_dir_all(&dir).unwrap();
    copy(&others.state_dir("one"), &dir);
    run(&mut stream).await;
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}

fn swap(from: &Path, to: &Path) {
    fs::remove_dir_all(to).unwrap();
    fs::rename(from, to).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_not_connects_are_named_by_key_or_by_columns() {
    let tables = "[[object]]\norg = \"emea\"\nname = \"orders\"\nidentity = [\"shop\", \"number\"]\n";
    let (broker, sink, deployment) = deployment(tables).await;
    let client = sink.connect().await;
    // One key column, nothing declared.
    let mut simple = Stream::new(&broker, "calm.emea.things", 2);
    // Several key columns: the record is named by their texts, ordered by column name.
    let mut composite = Stream::new(&broker, "calm.emea.pairs", 2);
    // Declared columns that are not the key.
    let mut declared = Stream::new(&broker, "calm.emea.orders", 2);
    for round in 0..6 {
        for n in 1..=5 {
            let text = format!("{VALUE} {}", round / 2 + n);
            simple.upsert(&json!({"id": n}), &n.to_string(), &json!({}), json!({"id": n, "text": text}));
            let identity = format!("[\"{n}\",\"b\\\"c\"]");
            let row = json!({"z": "b\"c", "a": n, "text": text});
            composite.upsert(&json!({"z": "b\"c", "a": n}), &identity, &json!({}), row);
            let row = json!({"id": n + 70, "number": n, "shop": "x", "text": text});
            declared.upsert(&json!({"id": n + 70}), &format!("[\"{n}\",\"x\"]"), &json!({}), row);
        }
    }
    simple.delete(&json!({"id": 2}), "2");
    composite.delete(&json!({"z": "b\"c", "a": 3}), "[\"3\",\"b\\\"c\"]");
    declared.delete(&json!({"id": 74}), "[\"4\",\"x\"]");
    let mut ends = Ends::new();
    for stream in [&simple, &composite, &declared] {
        stream.flush();
        ends.extend(stream.ends());
    }
    let mut worker = deployment.worker("one");
    caught_up(&client, &ends, &mut [&mut worker]).await;
    assert_same(&history(&client, "emea", "things").await, &simple.wanted());
    assert_same(&history(&client, "emea", "pairs").await, &composite.wanted());
    assert_same(&history(&client, "emea", "orders").await, &declared.wanted());
    assert_conserved(&client, &ends).await;
    let query = "SELECT name, identity FROM afterimage.object ORDER BY name";
    let identities: Vec<(String, String)> =
        client.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    let wanted = [("orders", "[\"number\",\"shop\"]"), ("pairs", "key"), ("things", "key")];
    assert_eq!(identities, wanted.map(|(name, identity)| (name.to_string(), identity.to_string())));
    worker.stop();
    assert_silent(worker.log_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_migrations_at_once_make_one_schema() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let deployment = Deployment::new(&broker.servers(), &sink, "");
    let client = sink.connect().await;
    // Both stand before the same lock, and go at the same moment.
    client.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(x'61667465726d6967'::bigint)").await.unwrap();
    let both: Vec<Child> = (0..2).map(|_| deployment.spawn_migrate()).collect();
    let watcher = sink.connect().await;
    wait_until("two migrations that wait", LONG, async || {
        let query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        watcher.query_one(query, &[]).await.unwrap().get::<_, i64>(0) == 2
    })
    .await;
    client.batch_execute("COMMIT").await.unwrap();
    let outputs: Vec<Output> = both.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    let applied: usize = outputs.iter().map(|output| text(&output.stdout).matches("applied ").count()).sum();
    for output in &outputs {
        assert!(output.status.success(), "{output:?}");
    }
    let row = client.query_one("SELECT count(*), max(number) FROM afterimage.migration", &[]).await.unwrap();
    let (rows, last): (i64, i32) = (row.get(0), row.get(1));
    assert_eq!((rows, applied as i64), (i64::from(last), rows), "each applied once, by one of them: {outputs:?}");
    assert!(deployment.migrate().contains("nothing to do"));
}

/// (exit code, stderr): what a person sees when a worker refuses to start.
fn refusal(deployment: &Deployment) -> (Option<i32>, String) {
    let output = deployment.run_to_end("refused");
    (output.status.code(), text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_refused(deployment: &Deployment, code: i32, words: &[&str]) {
    let (found, message) = refusal(deployment);
    assert_eq!(found, Some(code), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not said:\n{message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_started_says_why_and_what_to_do() {
    let broker = EmbeddedBroker::start(1).unwrap();
    broker.create_topic("calm_one.salesforce.account", 1).unwrap();
    broker.create_topic("calm_two.salesforce.account", 1).unwrap();
    let sink = fresh_database().await;
    let client = sink.connect().await;
    let org = "[[org]]\nname = \"one\"\ntopics = [\"calm_one.salesforce.*\"]\n";
    let good = Deployment::new(&broker.servers(), &sink, org);

    assert_refused(&good, 3, &["no afterimage schema", "afterimage migrate"]);
    good.migrate();
    let migrations = async |sql: &str| client.batch_execute(sql).await.unwrap();
    migrations(
        "CREATE TEMP TABLE last AS SELECT * FROM afterimage.migration ORDER BY number DESC LIMIT 1;
         DELETE FROM afterimage.migration WHERE number = (SELECT number FROM last)",
    )
    .await;
    assert_refused(&good, 3, &["afterimage migrate"]);
    migrations("INSERT INTO afterimage.migration SELECT * FROM last; INSERT INTO afterimage.migration VALUES (999, 'later', 'x')").await;
    assert_refused(&good, 3, &["999", "upgrade afterimage"]);
    migrations("DELETE FROM afterimage.migration WHERE number = 999").await;

    let other = |tables: &str| Deployment::new(&broker.servers(), &sink, tables);
    assert_refused(
        &other("[[org]]\nname = \"one\"\ntopics = [\"calm_one.sales.*\"]\n"),
        2,
        &["calm_one.sales.*", "next:"],
    );
    assert_refused(&other(""), 2, &["calm_one.salesforce.account", "calm_two.salesforce.account", "[[org]]"]);
    assert_refused(&other(&format!("{org}grase = 1\n")), 2, &["grase", "next:"]);

    let nowhere = Database { url: "postgres://u:hunter2@127.0.0.1:1/nowhere".into(), name: sink.name.clone() };
    let unreachable = Deployment::new(&broker.servers(), &nowhere, org);
    assert_refused(&unreachable, 1, &["127.0.0.1:1"]);
    assert!(!refusal(&unreachable).1.contains("hunter2"));
    assert_refused(&Deployment::new("127.0.0.1:1", &sink, org), 1, &["kafka"]);

    // A second deployment must not feed the same sink from the same topic.
    let mut worker = good.worker("one");
    worker.wait_for_log("claimed").await;
    worker.stop();
    let stranger = Deployment::new(&broker.servers(), &sink, org).group("afterimage.other");
    assert_refused(&stranger, 4, &["calm_one.salesforce.account", good.group_name()]);
    // Nor may a topic become another org's.
    let renamed = other("[[org]]\nname = \"uno\"\ntopics = [\"calm_one.salesforce.*\"]\n");
    assert_refused(&renamed, 4, &["one.account", "uno.account"]);
}

fn body(answer: &str) -> Value {
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_readiness_tell_a_worker_that_works_from_one_whose_sink_is_of_no_use() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(3, 0..2);
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    // It is told every second.
    wait_for("readiness", LONG, async || {
        let answer = worker.get("/readyz").await;
        let ready = answer.starts_with("HTTP/1.1 200") && body(&answer)["partitions"]["claimed"] == 2;
        if ready { Ok(()) } else { Err(answer) }
    })
    .await;
    let answer = worker.get("/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/json"), "{answer}");
    assert!(body(&answer)["threads"].as_u64() >= Some(2), "{answer}");
    // Someone upgrades the schema beyond this program.
    client.batch_execute("INSERT INTO afterimage.migration VALUES (999, 'later', 'x')").await.unwrap();
    wait_for("the schema to be found wrong", LONG, async || {
        let answer = worker.get("/readyz").await;
        if answer.starts_with("HTTP/1.1 503") && answer.contains("999") { Ok(()) } else { Err(answer) }
    })
    .await;
    assert!(worker.get("/healthz").await.starts_with("HTTP/1.1 200"), "no reason to restart it");
    client.batch_execute("DELETE FROM afterimage.migration WHERE number = 999").await.unwrap();
    let ready = async |worker: &mut App| {
        wait_for("readiness", LONG, async || {
            let answer = worker.get("/readyz").await;
            if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
        })
        .await;
    };
    ready(&mut worker).await;
    // A sink that falls silent is told of within 5 seconds; the rest is for a slow machine.
    let frozen = Frozen::sessions(&client, "afterimage/one").await;
    wait_for("the silence to be told of", Duration::from_secs(8), async || {
        let answer = worker.get("/readyz").await;
        if answer.starts_with("HTTP/1.1 503") && answer.contains("does not answer") { Ok(()) } else { Err(answer) }
    })
    .await;
    drop(frozen);
    ready(&mut worker).await;
    worker.stop();
}

/// Server processes that are stopped, as by a machine that hangs; they go on when this is dropped.
struct Frozen(Vec<i32>);

impl Frozen {
    /// The session that migrates, not the one that looks after it.
    async fn migration(client: &Client) -> Frozen {
        let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'";
        let rows = client.query(query, &[]).await.unwrap();
        let frozen = Frozen(rows.iter().map(|row| row.get(0)).collect());
        assert_eq!(frozen.0.len(), 1, "one session that waits");
        frozen.signal("-STOP");
        frozen
    }

    async fn sessions(client: &Client, application: &str) -> Frozen {
        let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1";
        let rows = client.query(query, &[&application]).await.unwrap();
        let frozen = Frozen(rows.iter().map(|row| row.get(0)).collect());
        assert!(!frozen.0.is_empty(), "no session of {application}");
        frozen.signal("-STOP");
        frozen
    }

    fn signal(&self, signal: &str) {
        let pids = self.0.iter().map(ToString::to_string);
        assert!(std::process::Command::new("kill").arg(signal).args(pids).status().unwrap().success());
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_says_whom_it_waits_for_and_gives_a_silent_server_up() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let client = sink.connect().await;
    let lock =
        "SET application_name = 'somebody else'; BEGIN; SELECT pg_advisory_xact_lock(x'61667465726d6967'::bigint)";
    client.batch_execute(lock).await.unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let deployment = Deployment::new(&broker.servers(), &sink, "");
    let mut waiting = deployment.start("migrate", &[], Stdio::null());
    waiting.wait_for_log("waiting for another migration of this database").await;
    let log = waiting.log();
    assert!(log.contains(&format!("server process {pid} of role ")) && log.contains("(somebody else), for "), "{log}");
    let watcher = sink.connect().await;
    let frozen = Frozen::sessions(&watcher, "afterimage migrate").await;
    client.batch_execute("COMMIT").await.unwrap();
    let status = waiting.ended();
    let log = waiting.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("the server has not answered within ") && log.contains("\n  next: check the address"),
        "{log}"
    );
    drop(frozen);
    deployment.migrate();
}

/// Has the first view that is made in this database wait for something.
async fn hold_up_the_first_view(client: &Client, wait: &str) {
    let hold = format!(
        "CREATE FUNCTION public.hold() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN
           IF coalesce(current_setting('test.held', true), '') = '' THEN
             PERFORM set_config('test.held', 'yes', false), {wait};
           END IF;
         END $$;
         CREATE EVENT TRIGGER hold ON ddl_command_end WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION public.hold()"
    );
    client.batch_execute(&hold).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_whose_server_process_is_frozen_is_given_up_and_commits_nothing() {
    let sink = fresh_database().await;
    let (client, watcher) = (sink.connect().await, sink.connect().await);
    hold_up_the_first_view(&client, "pg_advisory_xact_lock(7)").await;
    client
        .batch_execute("SET application_name = 'somebody else'; BEGIN; SELECT pg_advisory_xact_lock(7)")
        .await
        .unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let deployment = Deployment::new("127.0.0.1:1", &sink, "");
    let mut migration = deployment.start("migrate", &[], Stdio::null());
    migration.wait_for_log(&format!("waits for server process {pid} of role ")).await;
    let log = migration.log();
    assert!(log.contains("migration 0") && log.contains("(somebody else), in a transaction for "), "{log}");
    let frozen = Frozen::migration(&watcher).await;
    client.batch_execute("COMMIT").await.unwrap();
    let status = migration.ended();
    let log = migration.log();
    assert_eq!(status.code(), Some(1), "{log}");
    let told = format!("is given up: server process {} is stopped, and has been for 20 s", frozen.0[0]);
    assert!(log.contains(&told) && log.contains("\n  next: look on the server"), "{log}");
    let before: i64 = watcher.query_one("SELECT count(*) FROM afterimage.migration", &[]).await.unwrap().get(0);
    let pid = frozen.0[0];
    drop(frozen);
    wait_for("the end of the server process", LONG, async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
        let left: i64 = watcher.query_one(query, &[&pid]).await.unwrap().get(0);
        if left == 0 { Ok(()) } else { Err("it is there") }
    })
    .await;
    let query = "SELECT count(*) FROM afterimage.migration";
    assert_eq!(watcher.query_one(query, &[]).await.unwrap().get::<_, i64>(0), before, "it went on after all");
    deployment.migrate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_slow_and_lives_is_told_of_and_waited_for() {
    let sink = fresh_database().await;
    // Longer than a stopped one is borne.
    hold_up_the_first_view(&sink.connect().await, "pg_sleep(35)").await;
    let deployment = Deployment::new("127.0.0.1:1", &sink, "");
    let mut migration = deployment.start("migrate", &[], Stdio::null());
    let status = migration.ended();
    let log = migration.log();
    assert!(status.success() && log.contains(" s; server process ") && log.contains(" is at work"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_worker_of_one_name_is_warned_of() {
    let (broker, sink, deployment) = deployment("").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(3, 0..2);
    let mut first = deployment.worker("one");
    caught_up(&sink.connect().await, &stream.ends(), &mut [&mut first]).await;
    // On another machine, as it were: with a state directory of its own.
    let elsewhere = Deployment::new(&broker.servers(), &sink, "[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n");
    let mut second = elsewhere.worker("one");
    second.wait_for_log("another worker of this name has sessions in the sink").await;
    assert!(second.log().contains("one.toml: worker.name"), "{}", second.log());
    second.wait_for_log("reading").await;
    let mut other = elsewhere.worker("two");
    other.wait_for_log("reading").await;
    for quiet in [&first, &other] {
        assert!(!quiet.log().contains("another worker of this name"), "{}", quiet.log());
    }
    for worker in [&mut first, &mut second, &mut other] {
        worker.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_are_json_to_the_last_line_also_when_the_start_fails() {
    let (broker, sink, deployment) = deployment("").await;
    let deployment = deployment.json_logs();
    let mut stream = Stream::new(&broker, "calm.emea.account", 1);
    stream.rounds(3, 0..2);
    let mut worker = deployment.worker("one");
    caught_up(&sink.connect().await, &stream.ends(), &mut [&mut worker]).await;
    let log = worker.log_file().to_owned();
    worker.stop();
    let failed = Deployment::new("127.0.0.1:1", &sink, "").json_logs().run_to_end("two");
    assert_eq!(failed.status.code(), Some(1));
    let wrong = Deployment::new("127.0.0.1:1", &sink, "nonsense = 1\n").json_logs().run_to_end("three");
    assert_eq!(wrong.status.code(), Some(2));
    for text in [fs::read_to_string(log).unwrap(), text(&failed.stderr), text(&wrong.stderr)] {
        assert!(!text.is_empty());
        for line in text.lines() {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for key in ["ts", "level", "target", "message"] {
                assert!(value[key].is_string(), "{key}: {line}");
            }
            assert!(value["fields"].is_object(), "{line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_owners_positions_lag_and_outcomes() {
    let (broker, sink, deployment) = deployment("").await;
    let client = sink.connect().await;
    let (mut account, mut contact) =
        (Stream::new(&broker, "calm.emea.account", 2), Stream::new(&broker, "calm.emea.contact", 1));
    let run = |arguments: &[&str]| {
        let output = deployment.verb("status", arguments);
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = run(&[]);
    assert_eq!((code, out.contains("no partition has been claimed yet")), (Some(0), true), "{out}");
    account.rounds(10, 0..6);
    contact.rounds(4, 0..3);
    let mut ends = account.ends();
    ends.extend(contact.ends());
    let mut worker = deployment.worker("one");
    caught_up(&client, &ends, &mut [&mut worker]).await;
    worker.stop();
    account.rounds(10, 6..8);

    // Asking with the configuration of a worker that is gone does not bring it back.
    let (code, out, _) = run(&["--json", "--worker", "one"]);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0));
    let rows = status["partitions"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        let of = (row["topic"].as_str().unwrap().to_owned(), row["partition"].as_i64().unwrap() as i32);
        let now = if of.0 == contact.topic { contact.ends()[&of] } else { account.ends()[&of] };
        assert_eq!((row["next_offset"].as_i64(), row["end_offset"].as_i64()), (Some(ends[&of]), Some(now)), "{row}");
        let lag = now - ends[&of];
        assert_eq!(row["lag_messages"], lag, "{row}");
        // The stream's first event was an hour ago.
        assert!(if lag == 0 { row["lag_seconds"] == 0 } else { row["lag_seconds"].as_i64() > Some(3_000) }, "{row}");
        let outcomes: i64 = row["outcomes"].as_object().unwrap().values().map(|n| n.as_i64().unwrap()).sum();
        assert_eq!(outcomes, ends[&of], "{row}");
        assert_eq!((&row["worker"], &row["worker_seen"], &row["epoch"]), (&json!("one"), &json!(false), &json!(1)));
    }
    assert_eq!(status["sum"]["lag_messages"], 20);

    let (_, out, _) = run(&[]);
    assert!(out.contains("emea.account  calm.emea.account") && out.contains("one (gone)"), "{out}");
    assert!(out.lines().all(|line| line.chars().count() <= 100), "{out}");
    let (code, out, _) = run(&["--object", "contact", "--no-broker"]);
    assert!(code == Some(0) && !out.contains("account") && out.contains("lag is not known: --no-broker"), "{out}");
    let (code, _, err) = run(&["--org", "nowhere"]);
    assert!(code == Some(2) && err.contains("emea.account, emea.contact"), "{err}");
    // The broker is gone; the rest is still told.
    let away = Deployment::new("127.0.0.1:1", &sink, "").verb("status", &["--json"]);
    let status: Value = serde_json::from_str(&text(&away.stdout)).unwrap();
    assert_eq!(away.status.code(), Some(0));
    assert!(status["broker_error"].as_str().unwrap().contains("127.0.0.1:1"), "{status}");
    assert!(status["partitions"][0]["lag_messages"].is_null() && status["sum"]["lag_messages"].is_null());
    let nowhere = Database { url: "postgres://u:hunter2@127.0.0.1:1/nowhere".into(), name: sink.name.clone() };
    let unreachable = Deployment::new(&broker.servers(), &nowhere, "").verb("status", &[]);
    assert_eq!(unreachable.status.code(), Some(1));
    assert!(!text(&unreachable.stderr).contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_watched_on_any_terminal_and_ends_when_it_may() {
    let (broker, sink, deployment) = deployment("").await;
    let client = sink.connect().await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 12);
    stream.rounds(20, 0..3);
    let mut worker = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    worker.stop();

    // A reader that has seen enough.
    let mut piped = deployment.start("status", &["--watch", "1"], Stdio::piped());
    let mut line = String::new();
    BufReader::new(piped.stdout()).read_line(&mut line).unwrap();
    assert!(line.starts_with("partition  owner"), "{line}");
    assert_eq!(piped.ended().code(), Some(0));

    // The table has 16 lines and 100 columns; the next look is an hour away, so what
    // is drawn anew is drawn because of the size.
    let (terminal, theirs) = Terminal::open(60, 10);
    let mut watched = deployment.start("status", &["--watch", "3600"], theirs);
    let drawn = async |what: &str, has: &dyn Fn(&[String]) -> bool| {
        wait_for(what, LONG, async || {
            let picture = terminal.picture();
            if has(&picture) { Ok(picture) } else { Err(terminal.written()) }
        })
        .await
    };
    let small = drawn("a picture", &|picture| !picture.is_empty()).await;
    assert!(small.len() == 9 && small.iter().all(|line| line.chars().count() <= 60), "{small:#?}");
    let said = small.join("\n");
    assert!(said.contains(" more lines") && said.contains("      sum ") && said.contains("s until Ctrl-C"), "{said}");
    terminal.resize(140, 50);
    watched.signal(libc::SIGWINCH);
    let large = drawn("a picture of another size", &|picture| picture.len() > 9).await;
    assert_eq!(large.iter().filter(|line| line.contains("one (gone)")).count(), 12, "{large:#?}");
    assert!(!large.join("\n").contains(" more lines"), "{large:#?}");
    watched.signal(libc::SIGINT);
    assert_eq!((watched.ended().code(), watched.log()), (Some(0), String::new()));

    // A sink that takes a connection and says nothing: the one who asks need not wait for it.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u@{}/nothing", silent.local_addr().unwrap());
    let silence = Deployment::new(&broker.servers(), &Database { url, name: sink.name.clone() }, "");
    let mut waiting = silence.start("status", &["--watch"], Stdio::piped());
    let _connection = silent.accept().unwrap();
    waiting.signal(libc::SIGINT);
    assert_eq!((waiting.ended().code(), waiting.log()), (Some(0), String::new()));
}
