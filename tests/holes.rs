//! Offsets without a message, on a real Kafka: marks of transactions, what aborted transactions wrote, what compaction took.
//! Every one of them is a hole, and no partition may be left standing in front of it.
#![cfg(feature = "java-tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;

use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::{Value, json};
use support::app::{App, Deployment};
use support::audit::{self, Ends, assert_conserved, assert_same, caught_up, history};
use support::kafka::Broker;
use support::names::unique;
use support::postgres::{Database, fresh_database};
use support::stream::{Stream, Waiting};
use support::wait::{LONG, wait_for};
use tokio_postgres::Client;

/// Records of each round.
const RECORDS: u32 = 12;
/// Partitions with records.
const FILLED: i32 = 3;
/// The one that only aborted transactions write to.
const BARE: i32 = FILLED;

/// A topic with one partition more than the stream fills, a producer with transactions, and a deployment that reads it.
struct World {
    broker: &'static Broker,
    deployment: Deployment,
    client: Client,
    stream: Stream,
    producer: ThreadedProducer<DefaultProducerContext>,
    /// End of the bare partition.
    bare: i64,
    _sink: Database,
}

async fn deployment(broker: &Broker, topic: &str) -> (Database, Deployment, Client) {
    let sink = fresh_database().await;
    let org = format!("[[org]]\nname = \"emea\"\ntopics = [\"{topic}\"]\n");
    let deployment = Deployment::new(&broker.bootstrap(), &sink, org);
    deployment.migrate();
    let client = sink.connect().await;
    (sink, deployment, client)
}

impl World {
    async fn new() -> World {
        let broker = Broker::shared();
        let topic = format!("{}.emea.account", unique("calm"));
        broker.create_topic(&topic, FILLED + 1).await;
        let (sink, deployment, client) = deployment(broker, &topic).await;
        let mut config = broker.client();
        config.set("transactional.id", unique("writer")).set("transaction.timeout.ms", "600000");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create().unwrap();
        producer.init_transactions(LONG).unwrap();
        let stream = Stream::on(&broker.bootstrap(), &topic, FILLED);
        World { broker, deployment, client, stream, producer, bare: 0, _sink: sink }
    }

    fn ends(&self) -> Ends {
        let mut ends = self.stream.ends();
        ends.insert((self.stream.topic.clone(), BARE), self.bare);
        ends
    }

    /// Sends all of it in an open transaction; the broker has it when this returns.
    fn send(&self, messages: &BTreeMap<i32, Vec<Waiting>>) {
        self.producer.begin_transaction().unwrap();
        for (partition, waiting) in messages {
            for (key, value) in waiting {
                let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.stream.topic).partition(*partition);
                record.key = key.as_deref();
                record.payload = value.as_deref();
                self.producer.send(record).map_err(|(error, _)| error).unwrap();
            }
        }
        self.producer.flush(LONG).unwrap();
    }

    /// The transaction ends: behind what it wrote to a partition stands its mark.
    async fn marked(&mut self, messages: &BTreeMap<i32, Vec<Waiting>>) {
        for partition in messages.iter().filter(|(_, waiting)| !waiting.is_empty()).map(|(partition, _)| *partition) {
            *self.next(partition) += 1;
        }
        let ends = self.ends();
        wait_for("the marks of the transaction", LONG, async || {
            let found = self.broker.end_offsets(&self.stream.topic).await;
            if found.iter().eq(ends.iter().map(|((_, partition), end)| (partition, end))) {
                Ok(())
            } else {
                Err(format!("{found:?}, not {ends:?}"))
            }
        })
        .await;
    }

    fn next(&mut self, partition: i32) -> &mut i64 {
        if partition == BARE { &mut self.bare } else { &mut self.stream.next[partition as usize] }
    }

    /// What `write` adds to the stream, in a transaction of its own.
    async fn commit(&mut self, write: impl FnOnce(&mut Stream)) {
        (0..FILLED).for_each(|partition| self.stream.hold(partition));
        write(&mut self.stream);
        let messages = self.stream.take_held();
        self.send(&messages);
        self.producer.commit_transaction(LONG).unwrap();
        self.marked(&messages).await;
    }

    /// Changes that would be versions if anybody read them: so many in each of these partitions.
    async fn changes(&mut self, wanted: &[(i32, usize)]) -> BTreeMap<i32, Vec<Waiting>> {
        let there = self.broker.read_all(&self.stream.topic).await;
        let mut changes = BTreeMap::new();
        for (partition, count) in wanted {
            let newest =
                there.iter().rev().find(|message| message.partition == *partition || *partition == BARE).unwrap();
            let mut value: Value = serde_json::from_slice(newest.value.as_ref().unwrap()).unwrap();
            let waiting = (1..=*count as i64).map(|n| {
                value["op"] = json!("u");
                value["after"]["notes__c"] = json!(format!("nobody saw {n}"));
                for place in ["lsn", "ts_us"] {
                    value["source"][place] = json!(value["source"][place].as_i64().unwrap() + n);
                }
                (newest.key.clone(), Some(value.to_string().into_bytes()))
            });
            changes.insert(*partition, waiting.collect());
            *self.next(*partition) += *count as i64;
        }
        changes
    }

    /// So many changes in each of these partitions, in a transaction that is aborted.
    async fn abort(&mut self, wanted: &[(i32, usize)]) {
        let changes = self.changes(wanted).await;
        self.send(&changes);
        self.producer.abort_transaction(LONG).unwrap();
        self.marked(&changes).await;
    }

    /// A message again that stands there; it changes nothing.
    async fn repeat(&mut self, partition: i32) {
        let there = self.broker.read_all(&self.stream.topic).await;
        let newest = there.iter().rev().find(|message| message.partition == partition).unwrap();
        self.stream.send(partition, newest.key.as_deref(), newest.value.as_deref());
        self.stream.flush();
    }

    async fn read_to_the_end(&self, worker: &mut App) {
        caught_up(&self.client, &self.ends(), &mut [worker]).await;
    }

    /// Holes are what the broker has no message for, the history is the stream's, and nothing lags for anybody who looks.
    async fn assert_whole(&self, worker: &mut App) {
        let (topic, ends) = (&self.stream.topic, self.ends());
        assert_conserved(&self.client, &ends).await;
        assert_eq!(holes(&self.client).await, missing(self.broker, topic).await);
        assert_eq!(audit::outcome(&self.client, "gap").await, 0);
        assert_same(&history(&self.client, "emea", "account").await, &self.stream.wanted());
        let output = self.deployment.verb("status", &["--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["sum"]["lag_messages"], 0, "{status}");
        wait_for("the lag on /metrics", LONG, async || {
            let metrics = worker.metrics().await;
            let lags: Vec<&str> = metrics.lines().filter(|line| line.starts_with("afterimage_lag_messages{")).collect();
            let gone = lags.len() == ends.len() && lags.iter().all(|line| line.ends_with("} 0"));
            if gone { Ok(()) } else { Err(lags.join("\n")) }
        })
        .await;
        wait_for("the group's offsets", LONG, async || {
            let told = self.broker.committed(self.deployment.group_name(), topic).await;
            let all = ends.iter().all(|((_, partition), end)| told.get(partition) == Some(end));
            if all { Ok(()) } else { Err(format!("{told:?}, not {ends:?}")) }
        })
        .await;
    }

    /// A worker that starts, once it has all partitions.
    async fn claimed_anew(&self) -> App {
        let before = self.committed().await;
        let mut worker = self.deployment.worker("one");
        wait_for("claims", LONG, async || {
            worker.assert_running();
            let now = self.committed().await;
            if now.iter().all(|(of, (_, epoch))| *epoch > before[of].1) { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        worker
    }

    /// When each partition was committed last, and its epoch.
    async fn committed(&self) -> BTreeMap<i32, (String, i64)> {
        let query = "SELECT partition, committed_at::text, epoch FROM afterimage.positions";
        let rows = self.client.query(query, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
    }

    /// While one partition moves and is committed three times, the others, at their ends, are not.
    async fn assert_at_rest(&mut self, worker: &mut App) {
        let before = self.committed().await;
        for _ in 0..3 {
            self.repeat(0).await;
            self.read_to_the_end(worker).await;
        }
        let mut after = self.committed().await;
        let (moved, stood) = (after.remove(&0).unwrap(), before[&0].clone());
        assert!(moved.0 != stood.0 && moved.1 == stood.1, "{moved:?} {stood:?}");
        let others = before.into_iter().filter(|(partition, _)| *partition != 0);
        assert_eq!(after, others.collect::<BTreeMap<_, _>>());
    }
}

/// Holes by partition, as the sink has counted them.
async fn holes(sink: &Client) -> BTreeMap<i32, i64> {
    let query = "SELECT partition, coalesce(sum(events) FILTER (WHERE outcome = 'hole'), 0)::bigint \
                 FROM afterimage.outcomes GROUP BY 1";
    sink.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Offsets below each partition's end at which a reader finds no message.
async fn missing(broker: &Broker, topic: &str) -> BTreeMap<i32, i64> {
    let mut missing = broker.end_offsets(topic).await;
    for message in broker.read_all(topic).await {
        *missing.get_mut(&message.partition).unwrap() -= 1;
    }
    missing
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_of_transactions_without_a_message_are_holes_and_leave_no_lag() {
    let mut world = World::new().await;
    // Beside transactions, and in one.
    world.stream.rounds(RECORDS, 0..2);
    world.commit(|stream| stream.rounds(RECORDS, 2..4)).await;
    assert!(world.stream.next.iter().all(|next| *next > 3), "{:?}", world.stream.next);
    world.abort(&[(0, 2), (1, 1), (2, 3), (BARE, 3)]).await;
    world.commit(|stream| stream.rounds(RECORDS, 4..6)).await;
    // The last thing is a committed transaction in one partition, an aborted one in two, a message in another.
    world.abort(&[(1, 2), (BARE, 1)]).await;
    world.repeat(2).await;

    let mut worker = world.deployment.worker("one");
    world.read_to_the_end(&mut worker).await;
    world.assert_whole(&mut worker).await;
    let wanted = BTreeMap::from([(0, 5), (1, 7), (2, 6), (BARE, 6)]);
    assert_eq!(holes(&world.client).await, wanted);
    world.assert_at_rest(&mut worker).await;

    // While it reads on: nothing but holes comes, then messages between them.
    world.abort(&[(0, 1), (BARE, 2)]).await;
    world.read_to_the_end(&mut worker).await;
    world.commit(|stream| stream.rounds(RECORDS, 6..8)).await;
    world.read_to_the_end(&mut worker).await;
    world.assert_whole(&mut worker).await;
    worker.stop();

    // With its disk and without: first nothing is new, then something came meanwhile.
    for (round, lost) in [(8, false), (9, true)] {
        let lose = || {
            if lost {
                fs::remove_dir_all(world.deployment.state_dir("one")).unwrap();
            }
        };
        lose();
        let mut worker = world.claimed_anew().await;
        worker.kill9();
        lose();
        assert_conserved(&world.client, &world.ends()).await;
        world.abort(&[(0, 2), (2, 1), (BARE, 1)]).await;
        world.commit(|stream| stream.rounds(RECORDS, round..round + 1)).await;
        let mut worker = world.claimed_anew().await;
        world.read_to_the_end(&mut worker).await;
        world.assert_whole(&mut worker).await;
        world.assert_at_rest(&mut worker).await;
        worker.stop();
    }
}

/// What stands behind an open transaction can't be read before it ends.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_is_waited_for_also_by_a_worker_that_starts() {
    let mut world = World::new().await;
    world.stream.rounds(RECORDS, 0..2);
    world.abort(&[(BARE, 1)]).await;
    let before = world.ends();
    let changes = world.changes(&[(0, 2), (1, 1), (2, 1), (BARE, 1)]).await;
    world.send(&changes);
    world.stream.rounds(RECORDS, 2..4);
    let mut worker = world.deployment.worker("one");
    caught_up(&world.client, &before, &mut [&mut worker]).await;
    worker.stop();
    let mut worker = world.claimed_anew().await;
    assert_eq!(audit::positions(&world.client).await, before);
    world.producer.abort_transaction(LONG).unwrap();
    world.marked(&changes).await;
    world.read_to_the_end(&mut worker).await;
    world.assert_whole(&mut worker).await;
    worker.stop();
}

/// Writes on until the broker has dropped the last message below each of these offsets, then waits until it has nothing more
/// to compact: of each key it has one message, and one more in the segment that is written to.
async fn compacted(broker: &Broker, stream: &mut Stream, read: &Ends) {
    let mut round = 3;
    wait_for("compaction of what was read", LONG, async || {
        // Longer than a segment is written to, so each round is in one of its own.
        let there = broker.read_all(&stream.topic).await;
        let left = read.iter().find(|((_, partition), next)| {
            there.iter().any(|message| message.partition == *partition && message.offset == **next - 1)
        });
        let Some(((_, partition), _)) = left else { return Ok(()) };
        stream.rounds(RECORDS, round..round + 1);
        round += 1;
        Err(format!("partition {partition} has its last message"))
    })
    .await;
    wait_for("the end of compaction", LONG, async || {
        let there = broker.read_all(&stream.topic).await.len();
        if there <= 2 * RECORDS as usize { Ok(()) } else { Err(format!("{there} messages")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_compaction_took_are_holes_and_the_log_is_still_the_same() {
    let broker = Broker::shared();
    let topic = format!("{}.emea.account", unique("calm"));
    let settings = [("cleanup.policy", "compact"), ("segment.ms", "100"), ("min.cleanable.dirty.ratio", "0.01")];
    broker.create_topic_with(&topic, 2, &settings).await;
    let mut stream = Stream::on(&broker.bootstrap(), &topic, 2);
    let (_one, before, sink) = deployment(broker, &topic).await;
    stream.rounds(RECORDS, 0..3);
    let read = stream.ends();
    let mut worker = before.worker("one");
    caught_up(&sink, &read, &mut [&mut worker]).await;
    worker.stop();
    compacted(broker, &mut stream, &read).await;
    let there = broker.read_all(&topic).await;

    // Who read the beginning as it was, goes on; who comes later, finds less.
    let (_two, after, late) = deployment(broker, &topic).await;
    for (deployment, sink, from) in [(&before, &sink, read), (&after, &late, Ends::new())] {
        let mut worker = deployment.worker("one");
        caught_up(sink, &stream.ends(), &mut [&mut worker]).await;
        worker.stop();
        assert_conserved(sink, &stream.ends()).await;
        let wanted: BTreeMap<i32, i64> = stream
            .ends()
            .iter()
            .map(|(of, end)| {
                let from = from.get(of).copied().unwrap_or(0);
                let found = there.iter().filter(|message| message.partition == of.1 && message.offset >= from);
                (of.1, end - from - found.count() as i64)
            })
            .collect();
        assert!(!from.is_empty() || wanted.values().all(|holes| *holes > 0), "{wanted:?}");
        assert_eq!(holes(sink).await, wanted);
        let query = "SELECT sfid, image FROM afterimage.records WHERE status = 'live'";
        let found: BTreeMap<String, Value> =
            sink.query(query, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(found, stream.images());
    }
    assert_eq!(broker.read_all(&topic).await, there, "nothing was compacted meanwhile");
}
