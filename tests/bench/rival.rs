//! Who the product is measured against, each in a process of its own: this program, started again with `--rival`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use afterimage::demo::child::{self, LastSignal};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::stage::{Moment, Stage, Used, Watched};
use super::{listener, poller};

/// The argument that makes this program a rival.
pub const ARGUMENT: &str = "--rival";

/// Which rival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// librdkafka alone, message by message.
    Poll,
    /// librdkafka alone, a thousand messages at a time.
    Batch,
    /// The article's listener: the full row of every event into a table with four b-trees.
    Listener {
        /// Rows in one transaction.
        rows: u32,
    },
    /// A member of a group that says when its first message has come, and reads on until it is killed.
    Member,
}

/// What a rival has to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Which one it is.
    pub kind: Kind,
    /// Bootstrap servers.
    pub brokers: String,
    /// Topic.
    pub topic: String,
    /// Where to begin.
    pub from: BTreeMap<i32, i64>,
    /// After how many messages to end.
    pub messages: u64,
    /// Where to write.
    pub url: String,
}

/// What a rival says at the end.
#[derive(Debug, Serialize, Deserialize)]
pub struct Done {
    /// Messages.
    pub messages: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

/// What a rival's run took.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Messages.
    pub events: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// From its first message to its last, or to its last commit.
    pub used: Used,
}

/// Runs a rival in its own process. It waits for a word before it begins and before it ends, so that both moments are
/// looked at from outside.
pub fn run(stage: &Stage, database: &Watched, order: &Order) -> Run {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(ARGUMENT).arg(serde_json::to_string(order).unwrap());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut rival = child::spawn_bound(command, LastSignal::Kill).unwrap();
    let pid = rival.id();
    let mut go = rival.stdin.take().unwrap();
    let mut says = BufReader::new(rival.stdout.take().unwrap());
    let mut line = String::new();
    let moment = || Moment::of(pid, stage, database);

    assert!(says.read_line(&mut line).unwrap() > 0, "{:?} ended before it began", order.kind);
    let begun = moment();
    go.write_all(b"go\n").unwrap();
    line.clear();
    assert!(says.read_line(&mut line).unwrap() > 0, "{:?} ended before its time", order.kind);
    let ended = moment();
    drop(go);
    let done: Done = serde_json::from_str(&line).unwrap();
    assert!(rival.wait().unwrap().success());
    assert_eq!(done.messages, order.messages, "{:?} lost messages", order.kind);
    Run { events: done.messages, bytes: done.bytes, used: begun.until(&ended) }
}

/// kill -9 of a bare group member, and at once the next one of the same group with the product's settings: seconds to the
/// next one's first message. It is what the group itself takes, whatever its members do.
pub fn killed_member(stage: &Stage, topic: &str) -> f64 {
    let order = Order {
        kind: Kind::Member,
        brokers: stage.broker.bootstrap(),
        topic: topic.into(),
        from: BTreeMap::new(),
        messages: u64::MAX,
        url: String::new(),
    };
    let member = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(ARGUMENT).arg(serde_json::to_string(&order).unwrap());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        child::spawn_bound(command, LastSignal::Kill).unwrap()
    };
    let reads = |member: &mut Child| {
        let mut line = String::new();
        BufReader::new(member.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the member ended before its first message");
    };
    let mut first = member();
    reads(&mut first);
    let killed = Instant::now();
    first.kill().unwrap();
    first.wait().unwrap();
    let mut next = member();
    reads(&mut next);
    let took = killed.elapsed().as_secs_f64();
    next.kill().unwrap();
    next.wait().unwrap();
    took
}

/// The rival's side. Returns when its work is done and looked at.
pub fn main(order: &str) {
    let order: Order = serde_json::from_str(order).unwrap();
    if order.kind == Kind::Member {
        return poller::member(&order);
    }
    let consumer = consumer(&order);
    let done = match order.kind {
        Kind::Poll => poller::one_by_one(&consumer, &order),
        Kind::Batch => poller::in_batches(&consumer, &order),
        Kind::Listener { rows } => listener::run(&consumer, &order, rows),
        Kind::Member => Done { messages: 0, bytes: 0 },
    };
    println!("{}", serde_json::to_string(&done).unwrap());
    // Until the other side has taken its time.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Ready to read: says so, and waits for the word.
pub fn ready() {
    println!("ready");
    std::io::stdin().read_exact(&mut [0; 3]).unwrap();
}

/// A consumer with nothing assigned, set up for speed: what librdkafka can do on this machine, not what its defaults do
/// (they wait up to a second when the local queue was full).
fn consumer(order: &Order) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &order.brokers).set("group.id", "rival");
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("fetch.queue.backoff.ms", "1").set("queued.min.messages", "100000");
    config.set("queued.max.messages.kbytes", "65536").set("fetch.message.max.bytes", "4194304");
    config.create().unwrap()
}

/// Begins to fetch.
pub fn assign(consumer: &BaseConsumer, order: &Order) {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in &order.from {
        list.add_partition_offset(&order.topic, *partition, Offset::Offset(*offset)).unwrap();
    }
    consumer.assign(&list).unwrap();
}

/// Longest wait for one message of a topic that is there already.
pub const SILENCE: Duration = Duration::from_secs(60);
