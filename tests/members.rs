//! Workers come and go: they join, leave in order and are killed while messages flow, wait for one another, and find what
//! appears later. As processes, on the embedded broker and, with `java-tests`, on Apache Kafka.

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use afterimage::core::align::{DENSE, LEEWAY};
use afterimage::core::lineage::Fingerprint;
use afterimage::kafka::EmbeddedBroker;
use afterimage::postgres::claim::{Claimant, Wanted, claim};
use afterimage::postgres::client::{SinkSettings, Tls};
use serde_json::Value;
use support::app::{App, Deployment};
use support::audit::{self, Ends, assert_conserved, assert_same, caught_up, history};
#[cfg(feature = "java-tests")]
use support::names::unique;
use support::postgres::{Database, fresh_database};
use support::stream::Stream;
use support::wait::{LONG, wait_for};
use tokio_postgres::Client;

/// New topics are found within half a second, and members learn of a rebalance as soon.
const QUICK: &str =
    "[kafka.extra]\n\"topic.metadata.refresh.interval.ms\" = \"500\"\n\"heartbeat.interval.ms\" = \"500\"\n";

async fn deployment(servers: &str, connector: &str) -> (Database, Deployment, Client) {
    let sink = fresh_database().await;
    let org = format!("[[org]]\nname = \"emea\"\ntopics = [\"{connector}.emea.*\"]\n");
    let deployment = Deployment::new(servers, &sink, org).with(QUICK);
    deployment.migrate();
    let client = sink.connect().await;
    (sink, deployment, client)
}

/// Which worker holds how many partitions.
async fn owners(sink: &Client) -> BTreeMap<String, i64> {
    let query = "SELECT worker, count(*) FROM afterimage.positions GROUP BY 1";
    sink.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Waits until exactly these workers hold partitions, and all of them some.
async fn held_by(sink: &Client, wanted: &[&str]) {
    wait_for(&format!("partitions held by {wanted:?}"), LONG, async || {
        let found = owners(sink).await;
        if found.keys().map(String::as_str).eq(wanted.iter().copied()) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
}

/// Waits until so many more messages are committed.
async fn moves_on(sink: &Client, by: i64, workers: &mut [&mut App]) {
    let from: i64 = audit::positions(sink).await.values().sum();
    wait_for("progress", LONG, async || {
        for worker in workers.iter_mut() {
            worker.assert_running();
        }
        let now: i64 = audit::positions(sink).await.values().sum();
        if now >= from + by { Ok(()) } else { Err(now - from) }
    })
    .await;
}

/// Writes rounds into the stream until told to end, reloading the table now and then if asked to.
struct Writer {
    stream: Arc<Mutex<Stream>>,
    done: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    fn start(stream: Stream, records: u32, reloads: bool) -> Writer {
        let stream = Arc::new(Mutex::new(stream));
        let done = Arc::new(AtomicBool::new(false));
        let (ours, ended) = (Arc::clone(&stream), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let mut round = 0;
            while !ended.load(Ordering::Acquire) {
                let mut stream = ours.lock().unwrap();
                stream.rounds(records, round..round + 1);
                round += 1;
                if reloads && round % 10 == 0 {
                    stream.reload();
                }
                drop(stream);
                // Far from what the embedded broker keeps: about 1 MB in a minute.
                support::wait::happens_within(Duration::from_millis(150), || ended.load(Ordering::Acquire));
            }
        });
        Writer { stream, done, thread }
    }

    fn end(self) -> Stream {
        self.done.store(true, Ordering::Release);
        self.thread.join().unwrap();
        Arc::try_unwrap(self.stream).ok().expect("the writer is gone").into_inner().unwrap()
    }
}

/// Three members, of which one leaves and one dies, and two that take their place, while messages flow.
async fn come_and_go(deployment: &Deployment, sink: &Client, stream: Stream, reloads: bool) -> Stream {
    let writer = Writer::start(stream, 25, reloads);
    let mut one = deployment.worker("one");
    held_by(sink, &["one"]).await;
    let mut two = deployment.worker("two");
    held_by(sink, &["one", "two"]).await;
    let mut three = deployment.worker("three");
    held_by(sink, &["one", "three", "two"]).await;
    moves_on(sink, 100, &mut [&mut one, &mut two, &mut three]).await;
    two.stop();
    held_by(sink, &["one", "three"]).await;
    moves_on(sink, 100, &mut [&mut one, &mut three]).await;
    three.kill9();
    held_by(sink, &["one"]).await;
    moves_on(sink, 100, &mut [&mut one]).await;
    // The dead one comes back with its state, the other as someone new; and the eldest dies.
    let mut three = deployment.worker("three");
    let mut four = deployment.worker("four");
    held_by(sink, &["four", "one", "three"]).await;
    one.kill9();
    held_by(sink, &["four", "three"]).await;
    moves_on(sink, 100, &mut [&mut four, &mut three]).await;
    let stream = writer.end();
    caught_up(sink, &stream.ends(), &mut [&mut four, &mut three]).await;
    four.stop();
    three.stop();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn members_join_leave_and_die_and_the_history_is_the_sources() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_, deployment, sink) = deployment(&broker.servers(), "calm").await;
    let stream = Stream::new(&broker, "calm.emea.account", 6);
    let stream = come_and_go(&deployment, &sink, stream, false).await;
    assert_same(&history(&sink, "emea", "account").await, &stream.wanted());
    assert_conserved(&sink, &stream.ends()).await;
    let claims: i64 = sink.query_one("SELECT sum(epoch)::bigint FROM afterimage.position", &[]).await.unwrap().get(0);
    assert!(claims > 12, "partitions went from hand to hand: {claims} claims");
}

/// The whole history is the source's, what came late included.
async fn assert_nothing_is_lost(sink: &Client, stream: &Stream, ends: &Ends) {
    assert_conserved(sink, ends).await;
    let query = "SELECT sfid, image FROM afterimage.records WHERE status = 'live' AND object = 'account'";
    let found: BTreeMap<String, Value> =
        sink.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(found, stream.images());
    assert_same(&history(sink, "emea", "account").await, &stream.wanted());
}

/// Reloads of a table.
const RELOADS: u32 = 4;

/// Edits and reloads of a table that is much larger than a step.
fn backlog(stream: &mut Stream) {
    for n in 0..RELOADS {
        stream.rounds(600, n * 3..n * 3 + 3);
        stream.reload();
    }
}

/// Without keeping in step more than 5,000 come late. What is left is a dense step of each worker around each reload.
async fn few_are_late(sink: &Client, stream: &Stream) {
    let late = audit::outcome(sink, "stale").await;
    let all: i64 = stream.next.iter().sum();
    println!("{late} late events of {all} messages");
    assert!(late <= i64::from(RELOADS) * 6 * DENSE as i64, "{late} late events of {all}");
}

/// Three workers read a backlog that was complete before they began: they stand still while it is written.
async fn read_a_backlog(apart: u64) {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_, deployment, sink) = deployment(&broker.servers(), "calm").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 6);
    stream.apart = apart;
    let mut one = deployment.worker("one");
    held_by(&sink, &["one"]).await;
    let mut two = deployment.worker("two");
    held_by(&sink, &["one", "two"]).await;
    let mut three = deployment.worker("three");
    held_by(&sink, &["one", "three", "two"]).await;
    let all: &mut [&mut App] = &mut [&mut one, &mut two, &mut three];
    all.iter().for_each(|worker| worker.signal(libc::SIGSTOP));
    backlog(&mut stream);
    let since = Instant::now();
    all.iter().for_each(|worker| worker.signal(libc::SIGCONT));
    caught_up(&sink, &stream.ends(), all).await;
    let messages: i64 = stream.next.iter().sum();
    println!("events {apart} ms apart: {:.0} messages a second", messages as f64 / since.elapsed().as_secs_f64());
    all.iter_mut().for_each(|worker| worker.stop());
    few_are_late(&sink, &stream).await;
    assert_nothing_is_lost(&sink, &stream, &stream.ends()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_on_a_dense_backlog_keep_in_step() {
    read_a_backlog(10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_workers_on_a_backlog_with_an_event_a_minute_keep_in_step_and_get_on() {
    read_a_backlog(60_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_ahead_waits_for_who_is_behind() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (other, deployment, sink) = deployment(&broker.servers(), "calm").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 4);
    backlog(&mut stream);
    // Nobody commits before both have their partitions.
    let mut gate = other.connect().await;
    let gate = gate.transaction().await.unwrap();
    gate.batch_execute("LOCK TABLE afterimage.delta, afterimage.keyframe IN SHARE MODE").await.unwrap();
    let mut one = deployment.worker("one");
    held_by(&sink, &["one"]).await;
    let mut two = deployment.worker("two");
    held_by(&sink, &["one", "two"]).await;
    one.signal(libc::SIGSTOP);
    gate.rollback().await.unwrap();
    let query =
        "SELECT worker, sum(next_offset - first_offset)::bigint FROM afterimage.positions GROUP BY 1 ORDER BY 1";
    let read = async || -> Vec<(String, i64)> {
        let rows = sink.query(query, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    wait_for("the second worker to wait", LONG, async || {
        let metrics = two.metrics().await;
        let waiting = metrics.lines().find(|line| line.starts_with("afterimage_task_state{state=\"waiting\"}"));
        let tasks = waiting.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0);
        let read = read().await;
        if tasks > 0.0 && read[1].1 > 0 { Ok(()) } else { Err(format!("{tasks} tasks, {read:?}")) }
    })
    .await;
    // What it has read is within a step of where the other stands: at the beginning.
    let read = read().await;
    // Events are 10 ms of source time apart; tombstones have no time of their own.
    let most = 4 * DENSE as i64 + LEEWAY / 10_000;
    assert!(read[0].1 == 0 && read[1].1 > 0 && read[1].1 <= most, "{read:?}, at most {most}");
    one.signal(libc::SIGCONT);
    caught_up(&sink, &stream.ends(), &mut [&mut one, &mut two]).await;
    one.stop();
    two.stop();
    few_are_late(&sink, &stream).await;
    assert_nothing_is_lost(&sink, &stream, &stream.ends()).await;
}

/// One worker: with a patience of 100 ms events came late.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_whose_broker_is_slow_is_waited_for() {
    let broker = EmbeddedBroker::start(2).unwrap();
    let (_, deployment, sink) = deployment(&broker.servers(), "calm").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 4);
    for n in 0..2 {
        stream.rounds(100, n * 3..n * 3 + 3);
        stream.reload();
    }
    broker.slow_down(&stream.topic, 2, Duration::from_millis(300), deployment.group_name()).unwrap();
    let mut one = deployment.worker("one");
    caught_up(&sink, &stream.ends(), &mut [&mut one]).await;
    one.stop();
    assert_eq!(audit::outcome(&sink, "stale").await, 0);
    assert_same(&history(&sink, "emea", "account").await, &stream.wanted());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_appears_later_is_read_and_a_foreign_one_is_named() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_, deployment, sink) = deployment(&broker.servers(), "calm").await;
    let mut first = Stream::new(&broker, "calm.emea.account", 2);
    first.rounds(5, 0..2);
    let mut one = deployment.worker("one");
    caught_up(&sink, &first.ends(), &mut [&mut one]).await;
    let mut second = Stream::new(&broker, "calm.emea.contact", 3);
    second.rounds(5, 0..3);
    broker.create_topic("calm.apac.account", 1).unwrap();
    let mut ends: Ends = first.ends();
    ends.extend(second.ends());
    caught_up(&sink, &ends, &mut [&mut one]).await;
    assert_same(&history(&sink, "emea", "contact").await, &second.wanted());
    one.wait_for_log("belongs to no org").await;
    assert!(one.log().contains("calm.apac.account"));
    one.stop();
    assert_conserved(&sink, &ends).await;
}

#[cfg(feature = "java-tests")]
mod real {
    use support::kafka::Broker;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn members_join_leave_and_die_on_kafka_while_records_move() {
        let broker = Broker::shared();
        let (connector, bootstrap) = (unique("calm"), broker.bootstrap());
        let (_, deployment, sink) = deployment(&bootstrap, &connector).await;
        let topic = format!("{connector}.emea.account");
        broker.create_topic(&topic, 6).await;
        let stream = come_and_go(&deployment, &sink, Stream::on(&bootstrap, &topic, 6), true).await;
        assert_nothing_is_lost(&sink, &stream, &stream.ends()).await;
        let moved =
            sink.query_one("SELECT count(*) FROM afterimage.invalidation WHERE reason = 'm'", &[]).await.unwrap();
        assert!(moved.get::<_, i64>(0) > 25, "records moved between partitions");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_static_member_that_is_killed_has_its_partitions_back_without_a_rebalance() {
        let broker = Broker::shared();
        let (connector, bootstrap) = (unique("calm"), broker.bootstrap());
        let (_, deployment, sink) = deployment(&bootstrap, &connector).await;
        let topic = format!("{connector}.emea.account");
        broker.create_topic(&topic, 4).await;
        let mut stream = Stream::on(&bootstrap, &topic, 4);
        stream.rounds(20, 0..3);
        let fixed = [("AFTERIMAGE_KAFKA__STATIC_MEMBER", "true")];
        let mut one = deployment.worker_with("one", &fixed);
        let mut two = deployment.worker_with("two", &fixed);
        held_by(&sink, &["one", "two"]).await;
        caught_up(&sink, &stream.ends(), &mut [&mut one, &mut two]).await;
        let rebalances = |worker: &App| worker.log().matches(" by the group partitions=").count();
        let before = rebalances(&two);
        for round in 3..6 {
            one.kill9();
            one = deployment.worker_with("one", &fixed);
            stream.rounds(20, round..round + 1);
            caught_up(&sink, &stream.ends(), &mut [&mut one, &mut two]).await;
        }
        assert_eq!(rebalances(&two), before, "{}", two.log());
        // Stopped for good, it is missed when its session ends.
        one.stop();
        stream.rounds(20, 6..8);
        caught_up(&sink, &stream.ends(), &mut [&mut two]).await;
        held_by(&sink, &["two"]).await;
        two.stop();
        assert_nothing_is_lost(&sink, &stream, &stream.ends()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn topics_and_partitions_that_appear_on_kafka_are_read_from_their_beginning() {
        let broker = Broker::shared();
        let (connector, bootstrap) = (unique("calm"), broker.bootstrap());
        let (_, deployment, sink) = deployment(&bootstrap, &connector).await;
        let topic = format!("{connector}.emea.account");
        broker.create_topic(&topic, 2).await;
        let mut stream = Stream::on(&bootstrap, &topic, 2);
        stream.rounds(20, 0..3);
        let mut one = deployment.worker("one");
        let mut two = deployment.worker("two");
        caught_up(&sink, &stream.ends(), &mut [&mut one, &mut two]).await;
        held_by(&sink, &["one", "two"]).await;
        // More partitions, and messages in them before anybody knows.
        broker.grow_topic(&topic, 5).await;
        stream.grow(&bootstrap, 5);
        stream.rounds(20, 3..6);
        let other = format!("{connector}.emea.contact");
        broker.create_topic(&other, 3).await;
        let mut appeared = Stream::on(&bootstrap, &other, 3);
        appeared.rounds(20, 0..3);
        let mut ends: Ends = stream.ends();
        ends.extend(appeared.ends());
        caught_up(&sink, &ends, &mut [&mut one, &mut two]).await;
        let query = "SELECT first_offset FROM afterimage.positions WHERE partition >= 2 OR topic = $1";
        let starts: Vec<i64> = sink.query(query, &[&other]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(starts, vec![0; 6]);
        assert_same(&history(&sink, "emea", "contact").await, &appeared.wanted());
        one.stop();
        two.stop();
        assert_nothing_is_lost(&sink, &stream, &ends).await;
    }
}

/// A person who skips messages fences a position off under nobody's name: however often, no other worker is in the way.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_nobody_holds_is_claimed_again_each_time() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_sink, deployment, client) = deployment(&broker.servers(), "calm").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 1);
    let mut one = deployment.worker("one");
    for time in 0..5 {
        stream.rounds(6, 2 * time..2 * time + 2);
        caught_up(&client, &stream.ends(), &mut [&mut one]).await;
        let fence = "WITH moved AS (UPDATE afterimage.position SET epoch = epoch + 1 RETURNING position_id, epoch, next) \
                     INSERT INTO afterimage.claim (position_id, epoch, token, from_next, worker, reason) \
                     SELECT position_id, epoch, gen_random_uuid(), next, NULL, 'offsets skip' FROM moved";
        client.batch_execute(fence).await.unwrap();
    }
    stream.rounds(6, 10..12);
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    let log = one.log();
    assert!(!log.contains("contested") && !log.contains("another worker"), "{log}");
    assert_eq!(log.lines().filter(|line| line.contains("nobody holds it")).count(), 5, "{log}");
    one.stop();
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;
}

/// Somebody outside the group claims one partition again and again, as a second deployment or a namesake would.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_somebody_keeps_taking_is_left_alone_and_the_other_goes_on() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (sink, deployment, client) = deployment(&broker.servers(), "calm").await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(6, 0..2);
    let mut one = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    let source = client.query_one("SELECT source_id FROM afterimage.source", &[]).await.unwrap().get(0);
    let settings = SinkSettings {
        url: sink.url.clone(),
        tls: Tls::Disable,
        ca: None,
        worker: "thief".into(),
        application: "afterimage test".into(),
        pooled: false,
    };
    let claimant = Claimant { worker: "thief".into(), config_hash: Vec::new() };
    let contested = "contested: the group gives this partition to this worker";
    for time in 1..=4 {
        wait_for("the worker to hold both partitions", LONG, async || {
            let found = owners(&client).await;
            if found == BTreeMap::from([("one".to_owned(), 2)]) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        assert!(!one.log().contains(contested), "before the fourth time: {}", one.log());
        let last = stream.ends()[&("calm.emea.account".to_owned(), 0)] - 1;
        let found = client
            .query_one("SELECT last_ts, last_hash FROM afterimage.position WHERE partition = 0", &[])
            .await
            .map(|row| (row.get::<_, SystemTime>(0), row.get::<_, i64>(1)))
            .unwrap();
        let timestamp_ms = found.0.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
        let wanted = Wanted {
            source_id: source,
            topic: "calm.emea.account".into(),
            partition: 0,
            earliest: 0,
            end: last + 1,
            found: Some(Fingerprint { offset: last, timestamp_ms: Some(timestamp_ms), hash: found.1 }),
        };
        let (claims, halted) = claim(&settings, &claimant, &[wanted]).await.unwrap();
        assert!(claims.len() == 1 && halted.is_empty(), "{time}: {halted:?}");
        stream.rounds(6, 2 * time..2 * time + 2);
    }
    one.wait_for_log(contested).await;
    let log = one.log();
    let told = log.lines().find(|line| line.contains(contested)).unwrap();
    assert!(
        told.contains("partition=0") && told.contains("by=\"thief\"") && told.contains("afterimage status"),
        "{told}"
    );
    // The other one is read meanwhile.
    stream.rounds(6, 10..12);
    let topic = "calm.emea.account".to_owned();
    let end = stream.ends()[&(topic.clone(), 1)];
    wait_for("the other partition's end", LONG, async || {
        let at = audit::positions(&client).await;
        if at[&(topic.clone(), 1)] == end { Ok(()) } else { Err(format!("{at:?}")) }
    })
    .await;
    assert_eq!(owners(&client).await, BTreeMap::from([("one".to_owned(), 1), ("thief".to_owned(), 1)]));
    // After a minute it is tried again, and nobody minds any more.
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    one.stop();
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;
}
