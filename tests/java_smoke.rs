//! The real parts by themselves: does the broker keep what it is given, does a connector capture a table? When these
//! fail, look at the machine before looking at afterimage.
#![cfg(feature = "java-tests")]

mod support;

use std::time::Duration;

use support::connect::{Connector, Debezium, Worker};
use support::kafka::{Broker, Message};
use support::names::unique;
use support::postgres::{Database, fresh_database};
use support::wait::{LONG, wait_for};

#[tokio::test]
async fn the_broker_gives_back_what_was_produced() {
    let broker = Broker::shared();
    let topic = unique("smoke");
    broker.create_topic(&topic, 3).await;
    let sent = vec![
        Message::new(0, "a", "1").at(1_000),
        Message::new(2, "b", "").at(2_000).header("h", "x").header("h", "y"),
        Message::tombstone(0, "a").at(3_000),
        Message { partition: 2, timestamp: Some(4_000), value: Some(b"no key".to_vec()), ..Default::default() },
    ];
    assert_eq!(broker.produce(&topic, sent.clone()).await, [0, 0, 1, 1]);
    assert_eq!(broker.end_offsets(&topic).await.into_iter().collect::<Vec<_>>(), [(0, 2), (1, 0), (2, 2)]);

    let at = |n: usize, offset| Message { offset, ..sent[n].clone() };
    assert_eq!(broker.read_all(&topic).await, [at(0, 0), at(2, 1), at(1, 0), at(3, 1)]);
    assert!(broker.committed("nobody", &topic).await.is_empty());
}

#[tokio::test]
async fn topics_grow_shrink_and_go() {
    let broker = Broker::shared();
    let topic = unique("smoke");
    broker.create_topic_with(&topic, 1, &[("retention.ms", "-1")]).await;
    broker.produce(&topic, (0..10).map(|n| Message::new(0, "k", n.to_string()))).await;
    broker.delete_before(&topic, 0, 7).await;
    assert_eq!(broker.read_all(&topic).await.iter().map(|m| m.offset).collect::<Vec<_>>(), [7, 8, 9]);
    broker.grow_topic(&topic, 4).await;
    wait_for("four partitions", LONG, async || match broker.end_offsets(&topic).await.len() {
        4 => Ok(()),
        n => Err(n),
    })
    .await;
    broker.delete_topic(&topic).await;
}

#[tokio::test]
async fn a_killed_broker_comes_back_with_its_messages() {
    let mut broker = Broker::start();
    broker.create_topic("kept", 1).await;
    broker.produce("kept", [Message::new(0, "k", "v")]).await;
    broker.kill();
    broker.restart();
    assert_eq!(broker.read_all("kept").await.len(), 1);
    assert_eq!(broker.produce("kept", [Message::new(0, "k", "w")]).await, [1]);
}

#[tokio::test]
async fn debezium_2_7_captures_a_table_and_repeats_after_a_kill() {
    captures(Debezium::V2_7).await;
}

#[tokio::test]
async fn debezium_3_7_captures_a_table_and_repeats_after_a_kill() {
    captures(Debezium::V3_7).await;
}

async fn captures(version: Debezium) {
    let broker = Broker::shared();
    let source: Database = fresh_database().await;
    let client = source.connect().await;
    client
        .batch_execute("CREATE SCHEMA emea; CREATE TABLE emea.account (id serial PRIMARY KEY, sfid text, name text)")
        .await
        .unwrap();
    let connector = Connector::new(&unique("smoke"), &source, &["emea.account"]);
    let topic = connector.topic("emea.account");
    connector.create_topics(broker, 2).await;
    // No offset is stored before the kill, so everything is sent again after it.
    let flush = Duration::from_secs(3_600);
    let mut worker = Worker::start(version, broker, flush, vec![connector]).await;

    client.execute("INSERT INTO emea.account (name) VALUES ('first')", &[]).await.unwrap();
    let names = names_in(broker, &topic, 1).await;
    assert_eq!(names, ["first"]);

    worker.kill9();
    client.execute("INSERT INTO emea.account (name) VALUES ('second')", &[]).await.unwrap();
    worker.restart().await;
    let mut names = names_in(broker, &topic, 3).await;
    names.sort_unstable();
    assert_eq!(names, ["first", "first", "second"], "re-delivered once, and nothing lost");
}

/// Waits for `count` row events and gives the `name` each shows.
async fn names_in(broker: &Broker, topic: &str, count: usize) -> Vec<String> {
    wait_for(&format!("{count} messages in {topic}"), LONG, async || {
        let messages = broker.read_all(topic).await;
        if messages.len() < count {
            return Err(format!("{} messages", messages.len()));
        }
        let name = |message: &Message| {
            let value: serde_json::Value = serde_json::from_slice(message.value.as_deref().unwrap()).unwrap();
            assert!(value.get("schema").is_some(), "schema blocks are on");
            value.pointer("/payload/after/name").unwrap().as_str().unwrap().to_string()
        };
        Ok(messages.iter().map(name).collect())
    })
    .await
}
