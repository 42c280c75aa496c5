//! Plain questions, and what is wrong at the start.

use std::sync::Arc;
use std::time::Duration;

use afterimage::kafka::{Consumer, EmbeddedBroker, KafkaError, KafkaSettings, Metadata, TopicPartition};

use crate::support::*;

#[test]
fn what_is_wrong_at_the_start_is_named() {
    let broker = EmbeddedBroker::start(1).unwrap();
    topics(&broker, &["t"], 1);
    let names = [Arc::from("t"), Arc::from("nope"), Arc::from("neither")];
    let start = |settings: &KafkaSettings| Consumer::start(settings, &names, Arc::new(Recorder::default())).err();
    match start(&settings(&broker, "g")) {
        Some(KafkaError::UnknownTopics(unknown)) => assert_eq!(unknown, ["nope", "neither"]),
        other => panic!("{other:?}"),
    }
    let mut wrong = settings(&broker, "g");
    wrong.extra.insert("no.such.setting".into(), "1".into());
    match start(&wrong) {
        Some(KafkaError::Setting { name, .. }) => assert_eq!(name, "no.such.setting"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn metadata_answers_plain_questions() {
    let broker = EmbeddedBroker::start(2).unwrap();
    topics(&broker, &["org.b", "org.a", "side"], 3);
    fill(&broker.producer().unwrap(), "org.a", 2, 0, 7);
    let metadata = Metadata::connect(&settings(&broker, "unused")).unwrap();
    let found = metadata.topics(PATIENCE, |name| name.starts_with("org.")).unwrap();
    assert_eq!(
        found.iter().map(|topic| (&*topic.name, topic.partitions)).collect::<Vec<_>>(),
        [("org.a", 3), ("org.b", 3)]
    );
    let ends = metadata.watermarks(&[TopicPartition::new("org.a", 1), TopicPartition::new("org.a", 2)], PATIENCE);
    let ends: Vec<_> = ends.unwrap().into_iter().map(|(_, ends)| (ends.low, ends.high)).collect();
    assert_eq!(ends, [(0, 7), (0, 0)]);
    assert!(!metadata.cluster_id(PATIENCE).unwrap().is_empty());
    let all: Vec<_> = (0..3).map(|partition| TopicPartition::new("org.a", partition)).collect();
    let mut at_once = metadata.ends(&all, PATIENCE).unwrap();
    at_once.sort();
    assert_eq!(at_once.into_iter().map(|(_, end)| end).collect::<Vec<_>>(), [7, 7, 0]);
    let gone = metadata.watermarks(&[TopicPartition::new("org.a", 9)], PATIENCE).unwrap_err();
    assert!(gone.to_string().contains("org.a/9"), "{gone}");
}

#[test]
fn an_unreachable_broker_is_named_with_the_reason() {
    // A port that was free a moment ago; nothing listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let settings = KafkaSettings::new(format!("127.0.0.1:{port}"), "g");
    let error = Metadata::connect(&settings).unwrap().topics(Duration::from_secs(2), |_| true).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, KafkaError::Unreachable { .. }), "{text}");
    assert!(text.contains(&port.to_string()) && text.contains("refused"), "{text}");
}
