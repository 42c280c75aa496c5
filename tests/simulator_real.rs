//! The simulator's envelopes against real Debezium's: the same changes, done to a real database that a real connector
//! reads, must give byte for byte the same keys and values on the same partitions in the same order, but for what no
//! two runs share ([`VOLATILE`]).
#![cfg(feature = "java-tests")]

mod support;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use afterimage::demo::capture::Capture;
use afterimage::demo::simulator::live::Operation;
use afterimage::demo::simulator::{Debezium, SimOptions, Simulator};
use support::java::java;
use support::kafka::{Broker, Message};
use support::wait::{LONG, wait_for};

const PARTITIONS: i32 = 4;

/// Numbers that differ from run to run, in `source` and behind it: when, and where in which log. All else is compared.
const VOLATILE: [&str; 5] = ["ts_ms", "ts_us", "ts_ns", "txId", "lsn"];

/// All that can happen to rows and tables; each is in the comparison. A killed connector repeats what no simulator
/// could foresee, so nothing is killed here.
const TRACES: [&str; 17] = [
    "A",
    "B",
    "C",
    "C2",
    "D",
    "E",
    "F",
    "G",
    "H",
    "I",
    "J",
    "K by DELETE",
    "K by TRUNCATE",
    "L",
    "M",
    "N",
    "late commit",
];

#[tokio::test]
async fn simulated_envelopes_are_those_of_debezium_2_7() {
    compare(Debezium::V2_7).await;
}

#[tokio::test]
async fn simulated_envelopes_are_those_of_debezium_3_7() {
    compare(Debezium::V3_7).await;
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// What is compared of a message.
#[derive(Debug, PartialEq)]
struct Seen {
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, String)>,
}

async fn compare(release: Debezium) {
    let broker = Broker::shared();
    let mut simulator = Simulator::live(4, SimOptions { release, ..SimOptions::new(5_000) }, now);
    let topics: Vec<String> = simulator.topics().into_iter().map(|topic| topic.name.to_string()).collect();
    for topic in &topics {
        broker.create_topic(topic, PARTITIONS).await;
    }
    let mut capture = Capture::start(&java(), release, &simulator, &broker.bootstrap(), PARTITIONS).await.unwrap();

    let mut wanted: BTreeMap<(String, i32), Vec<Seen>> = BTreeMap::new();
    while let Some(mut step) = simulator.step_live() {
        step.operations.retain(|operation| *operation != Operation::KillConnector);
        capture.expect(&step.messages).unwrap();
        for operation in &step.operations {
            capture.apply(operation).await.unwrap();
        }
        for message in step.messages {
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let seen = Seen {
                key: message.key.map(text),
                value: message.value.map(|value| steady(&text(value))),
                headers: message.headers.into_iter().map(|(name, value)| (name.to_string(), value)).collect(),
            };
            wanted.entry((message.topic.to_string(), message.partition)).or_default().push(seen);
        }
    }
    let traces: Vec<&str> = simulator.traces().keys().copied().filter(|trace| *trace != "redelivery").collect();
    assert_eq!(traces, TRACES, "all of it is in the comparison");
    wait_for("all row events in the topics", LONG, async || {
        capture.watch(|_, _| ()).map_err(|error| format!("{error:#}"))?;
        match capture.is_complete() {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!("{} are missing\n{}", capture.missing(), capture.log())),
            Err(error) => panic!("{error:#}"),
        }
    })
    .await;

    let mut compared = 0;
    for topic in &topics {
        let mut found: BTreeMap<i32, Vec<Seen>> = BTreeMap::new();
        for message in broker.read_all(topic).await {
            assert_volatile_hang_together(&message);
            found.entry(message.partition).or_default().push(seen(message));
        }
        // A truncate has no key; on which partition it lands is chance, in earnest too.
        let mut truncates = [Vec::new(), Vec::new()];
        for partition in 0..PARTITIONS {
            let mut sides =
                [wanted.remove(&(topic.clone(), partition)), found.remove(&partition)].map(Option::unwrap_or_default);
            for (side, truncates) in sides.iter_mut().zip(&mut truncates) {
                truncates.extend(side.extract_if(.., |seen| seen.key.is_none()));
            }
            let [wanted, found] = sides;
            for (offset, (wanted, found)) in wanted.iter().zip(&found).enumerate() {
                assert_same(&format!("{topic}/{partition}@{offset}"), wanted, found);
            }
            assert_eq!(wanted.len(), found.len(), "{topic}/{partition}");
            compared += wanted.len();
        }
        let [wanted, found] = truncates;
        assert_eq!(wanted.len(), found.len(), "{topic}: truncates");
        for (wanted, found) in wanted.iter().zip(&found) {
            assert_same(&format!("{topic}: truncate"), wanted, found);
        }
    }
    assert!(compared > 5_000, "{compared}");
    // Neither heartbeats nor transactions nor anything else has a topic.
    let family = topics[0].split("01.").next().unwrap();
    let mut present = broker.topics().await;
    present.retain(|topic| topic.contains(family.trim_end_matches("01")));
    present.sort();
    let mut expected = topics.clone();
    expected.sort();
    assert_eq!(present, expected);
}

fn seen(message: Message) -> Seen {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let header = |(name, value): (String, Option<Vec<u8>>)| (name, text(value.unwrap()));
    Seen {
        key: message.key.map(text),
        value: message.value.map(|value| steady(&text(value))),
        headers: message.headers.into_iter().map(header).collect(),
    }
}

/// A value without what is volatile: each such number is 0, and the two log positions in `sequence` too.
fn steady(value: &str) -> String {
    // Whatever a row holds stands before; in texts, quotes are escaped.
    let at = value.rfind("\"source\":{\"version\":").unwrap();
    let (row, mut rest) = (&value[..at], value[at..].to_string());
    for name in VOLATILE {
        rest = blanked(&rest, &format!("\"{name}\":"));
    }
    let (before, sequence) = rest.split_once("\"sequence\":\"[").unwrap();
    let (sequence, after) = sequence.split_once("]\"").unwrap();
    let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
    let mut positions = sequence.chars().map(digits).collect::<String>();
    while positions.contains("00") {
        positions = positions.replace("00", "0");
    }
    // The first event after a connector's start knows no last commit.
    let positions = positions.replace("null", "\\\"0\\\"");
    format!("{row}{before}\"sequence\":\"[{positions}]\"{after}")
}

/// Each number behind `name` becomes 0; if there is none, nothing changes and the comparison fails.
fn blanked(text: &str, name: &str) -> String {
    let mut parts = text.split(name);
    let mut out = parts.next().unwrap().to_string();
    for part in parts {
        let kept = part.trim_start_matches(|c: char| c.is_ascii_digit());
        out.push_str(name);
        out.push_str(if kept.len() < part.len() { "0" } else { "" });
        out.push_str(kept);
    }
    out
}

/// What differs from run to run must still say the same thing in all its places.
fn assert_volatile_hang_together(message: &Message) {
    let Some(value) = &message.value else { return };
    let value: serde_json::Value = serde_json::from_slice(value).unwrap();
    let payload = value.get("payload").unwrap_or(&value);
    let source = &payload["source"];
    for times in [source, payload] {
        let [ms, us, ns] = ["ts_ms", "ts_us", "ts_ns"].map(|name| times[name].as_i64().unwrap());
        assert_eq!((us / 1_000, ns / 1_000), (ms, us));
    }
    let sequence: Vec<Option<String>> = serde_json::from_str(source["sequence"].as_str().unwrap()).unwrap();
    assert_eq!(sequence.len(), 2);
    assert_eq!(sequence[1].as_deref(), Some(source["lsn"].to_string().as_str()));
    assert!(payload["ts_us"].as_i64() >= source["ts_us"].as_i64(), "processed after the commit");
}

fn assert_same(place: &str, wanted: &Seen, found: &Seen) {
    assert_eq!(wanted.key, found.key, "{place}: key");
    let (Some(simulated), Some(real)) = (&wanted.value, &found.value) else {
        assert_eq!(wanted.value.is_none(), found.value.is_none(), "{place}: a tombstone on one side only");
        return assert_headers(place, wanted, found);
    };
    if simulated != real {
        let same = simulated.bytes().zip(real.bytes()).take_while(|(a, b)| a == b).count();
        let about = |text: &str| -> String {
            text.chars()
                .skip(text[..].char_indices().take_while(|(at, _)| *at + 120 < same).count())
                .take(300)
                .collect()
        };
        panic!("{place}, byte {same}:\nsimulated …{}\nreal      …{}", about(simulated), about(real));
    }
    assert_headers(place, wanted, found);
}

/// The same names in the same order; the run's own id is each run's own.
fn assert_headers(place: &str, wanted: &Seen, found: &Seen) {
    let steady = |seen: &Seen| -> Vec<(String, String)> {
        let value = |(name, value): &(String, String)| match name.ends_with(".runId") {
            true => (name.clone(), value.split('-').map(|part| part.len().to_string()).collect::<Vec<_>>().join("-")),
            false => (name.clone(), value.clone()),
        };
        seen.headers.iter().map(value).collect()
    };
    assert_eq!(steady(wanted), steady(found), "{place}: headers");
}

#[test]
fn only_what_is_volatile_is_left_out() {
    let value = r#"{"after":{"a":"\"lsn\":5","ts_ms":3},"source":{"version":"x","ts_ms":7,"sequence":"[null,\"150\"]","ts_us":1,"lsn":5,"xmin":null},"op":"u","ts_ns":9}"#;
    let steadied = r#"{"after":{"a":"\"lsn\":5","ts_ms":3},"source":{"version":"x","ts_ms":0,"sequence":"[\"0\",\"0\"]","ts_us":0,"lsn":0,"xmin":null},"op":"u","ts_ns":0}"#;
    assert_eq!(steady(value), steadied);
    let missing = value.replace("\"lsn\":5,\"xmin\"", "\"lsn\":null,\"xmin\"");
    assert!(steady(&missing).contains("\"lsn\":null"), "a number that is missing shows");
}
