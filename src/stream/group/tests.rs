//! What of a group's work outlives a revocation.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::thread;

use afterimage_state::{StateOptions, Store};
use tokio::sync::mpsc as queue;

use super::*;
use crate::core::decode::TopicRules;
use crate::core::judge::ObjectFacts;
use crate::core::position::Counter;
use crate::kafka::{EmbeddedBroker, KafkaError, KafkaSettings, Ownership};
use crate::postgres::claim::Claim;
use crate::postgres::client::Tls;
use crate::stream::align::{Board, Boards};
use crate::stream::restore::turns;
use crate::telemetry::Health;

/// Claims nothing: the test says what the group has.
struct Nobody;

impl Ownership for Nobody {
    fn claim(&self, _: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        Vec::new()
    }

    fn revoked(&self, _: &[TopicPartition], _: bool) {}

    fn failed(&self, _: &KafkaError) {}
}

/// A group that has claimed partition 0 and has one message of it in hand, and what it sends to be committed.
fn in_hand(broker: &EmbeddedBroker, dir: &Path, runtime: Handle) -> (Group, queue::UnboundedReceiver<Request>) {
    let (consumer, inboxes) =
        Consumer::start(&KafkaSettings::new(broker.servers(), "g"), &["t".into()], Arc::new(Nobody)).unwrap();
    let sink = SinkSettings {
        url: String::new(),
        tls: Tls::Disable,
        ca: None,
        worker: "test".into(),
        application: "afterimage/test".into(),
        pooled: false,
    };
    let (committers, requests) = Committers::queued();
    let _entered = runtime.enter();
    let board = Board::new("t".into(), 1, 1, Arc::new(OnceLock::new()));
    let parts = Parts {
        source: Source {
            source_id: 1,
            object_id: 1,
            topic: "t".into(),
            identity: "sfid".into(),
            settled: false,
            org: "emea".into(),
        },
        topic: "t".into(),
        views: Views::start(&sink),
        sink,
        sink_id: Uuid::nil(),
        images: Images::new(
            Arc::new(Store::open(dir, &StateOptions::default()).unwrap()),
            queue::unbounded_channel().0,
        ),
        committers,
        commands: mpsc::channel().1,
        inbox: Arc::clone(&inboxes[0]),
        consumer,
        decoder: Decoder::new(TopicRules::default()),
        dictionary: Dictionary::new(ObjectFacts::default(), Vec::new()),
        limits: BatchLimits { rows: 100, bytes: 1_000_000, linger: Duration::from_secs(600) },
        front_memory: 0,
        databases: Arc::new(Mutex::new(HashMap::new())),
        align: Align::new(board, &Boards::default()),
        turns: turns(),
        logs: Logs::default(),
        beat: Health::default().beat("t"),
        runtime: runtime.clone(),
    };
    let claim = Claim::first(7, 0);
    let mut group = Group::new(parts);
    let mut task = Task::new(&claim, 0, None);
    group.open.advance(7, || task.start(), 0, Some(Counter::Tombstone));
    task.read = 1;
    group.tasks.insert(0, task);
    (group, requests)
}

#[test]
fn what_the_group_takes_is_committed_first_and_what_is_lost_is_not() {
    let broker = EmbeddedBroker::start(1).unwrap();
    broker.create_topic("t", 1).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for lost in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut group, mut requests) = in_hand(&broker, dir.path(), runtime.handle().clone());
        // A sink that commits whatever it gets; it ends with the group.
        let sink = thread::spawn(move || {
            let mut ends = Vec::new();
            while let Some(request) = requests.blocking_recv() {
                ends.extend(request.batch.advances.iter().map(|advance| advance.to));
                let _ = request.answer.send(Ok(Committed::default()));
            }
            ends
        });
        group.revoked(&[0], lost);
        assert!(group.tasks.is_empty() && group.open.is_empty() && group.in_flight.is_none(), "lost: {lost}");
        drop(group);
        assert_eq!(sink.join().unwrap(), if lost { Vec::new() } else { vec![1] }, "lost: {lost}");
    }
}
