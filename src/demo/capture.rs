//! Real capture: Debezium in a private Kafka Connect reads the source database, and the demo watches its topics.
//!
//! One connector for each org, as the simulator has them. A kill -9 of the worker makes the connectors repeat what came
//! after their last stored offset, so messages are told apart by what a re-delivery keeps: the LSN.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

use super::backlog::TopicPartition;
use super::child::Ended;
use super::connect::Connect;
use super::java::{CONNECTOR_PROPERTIES, Java};
use super::patience::off_the_runtime;
use super::simulator::live::Operation;
use super::simulator::{Debezium, SOURCE_DATABASE, SimMessage, SimTopic, Simulator};
use super::source::Source;

/// How often connectors store their offsets: what a kill repeats at most.
const FLUSH: Duration = Duration::from_secs(2);
/// How long a replication slot may take to be in use after its connector runs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most messages that are looked at before others get their turn.
const AT_ONCE: usize = 2_000;

/// The source, its connectors, and what they have sent.
pub struct Capture {
    // Dropped in this order: nobody reads a server that is gone.
    connect: Connect,
    source: Source,
    reader: BaseConsumer,
    topics: HashMap<Arc<str>, Topic>,
    ends: BTreeMap<TopicPartition, End>,
    kills: u32,
}

#[derive(Default)]
struct Topic {
    /// Messages with a value that the simulator expects of the connector.
    expected: usize,
    /// LSNs of those that came.
    seen: HashSet<i64>,
}

#[derive(Default)]
struct End {
    next: i64,
    /// The last message is a delete: its tombstone is still to come.
    owes_tombstone: bool,
}

impl Capture {
    /// Starts the source with its first rows, and connectors that write to the broker, where their topics are.
    ///
    /// # Errors
    /// When a part does not start.
    pub async fn start(
        java: &Java,
        release: Debezium,
        simulator: &Simulator,
        brokers: &str,
        partitions: i32,
    ) -> Result<Capture> {
        let source = Source::start(simulator).await?;
        let topics = simulator.topics();
        let connectors = connectors(&topics, source.port());
        let slots: Vec<String> = topics.iter().map(|topic| slot(&connector(topic))).collect();
        let (java, brokers_of_connect) = (java.clone(), brokers.to_string());
        let connect = off_the_runtime(move |stop| {
            let mut connect = Connect::new(&java, release, &brokers_of_connect, FLUSH, &connectors, stop)?;
            connect.launch()?;
            connect.await_running(stop)?;
            Ok(connect)
        })
        .await?;
        for slot in &slots {
            let captured = async {
                while !source.is_captured(slot).await? {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Ok::<_, anyhow::Error>(())
            };
            tokio::time::timeout(PATIENCE, captured)
                .await
                .with_context(|| format!("nobody reads the slot {slot}"))??;
        }
        let reader: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "afterimage-demo-watch")
            .set("enable.auto.commit", "false")
            .set("log_level", "0")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        let mut ends = BTreeMap::new();
        for topic in &topics {
            for partition in 0..partitions {
                assignment.add_partition_offset(&topic.name, partition, Offset::Beginning)?;
                ends.insert((topic.name.clone(), partition), End::default());
            }
        }
        reader.assign(&assignment)?;
        let topics = topics.into_iter().map(|topic| (topic.name, Topic::default())).collect();
        Ok(Capture { connect, source, reader, topics, ends, kills: 0 })
    }

    /// These messages will have to come, for what is about to be done to the source.
    ///
    /// # Errors
    /// When one is of a topic that the capture doesn't know.
    pub fn expect(&mut self, messages: &[SimMessage]) -> Result<()> {
        for message in messages.iter().filter(|message| message.value.is_some()) {
            self.topics.get_mut(&message.topic).context("a topic that nobody made")?.expected += 1;
        }
        Ok(())
    }

    /// Whether what came before has to be in the topics first. A connector that is started again sends changes from
    /// before a DROP COLUMN without that column: values that it had not sent by then would never be seen.
    pub fn must_wait(&self, operation: &Operation) -> bool {
        matches!(operation, Operation::DropColumns { .. }) && self.missing() > 0
    }

    /// Does one thing to the source, or to its connectors.
    ///
    /// # Errors
    /// When the source refuses it, or the connectors can't be started again.
    pub async fn apply(&mut self, operation: &Operation) -> Result<()> {
        if *operation != Operation::KillConnector {
            return self.source.apply(operation).await;
        }
        self.connect.kill()?;
        // It comes up while the source goes on being written to.
        self.connect.launch()?;
        self.kills += 1;
        Ok(())
    }

    /// Takes what has come into the topics since; tells each message's partition and size. Does not wait.
    ///
    /// # Errors
    /// When the broker fails, the Connect worker has ended, or a message is not Debezium's.
    pub fn watch(&mut self, mut came: impl FnMut(&TopicPartition, usize)) -> Result<()> {
        self.connect.check()?;
        for _ in 0..AT_ONCE {
            let Some(message) = self.reader.poll(Duration::ZERO) else { break };
            let message = message.context("cannot read what the connectors sent")?;
            let partition: TopicPartition = (message.topic().into(), message.partition());
            let value = message.payload();
            let end = self.ends.get_mut(&partition).context("a partition that nobody made")?;
            end.next = message.offset() + 1;
            end.owes_tombstone = false;
            if let Some(value) = value {
                let (lsn, is_delete) = place(value).context("a message that is not Debezium's")?;
                end.owes_tombstone = is_delete;
                self.topics.get_mut(&partition.0).context("a topic that nobody made")?.seen.insert(lsn);
            }
            came(&partition, message.key_len() + message.payload_len());
        }
        Ok(())
    }

    /// Row events that the connectors have yet to send.
    pub fn missing(&self) -> usize {
        self.topics.values().map(|topic| topic.expected.saturating_sub(topic.seen.len())).sum()
    }

    /// Whether everything that was done to the source is in the topics.
    ///
    /// # Errors
    /// When more came than was done.
    pub fn is_complete(&self) -> Result<bool> {
        for (name, topic) in &self.topics {
            let (expected, seen) = (topic.expected, topic.seen.len());
            if seen > expected {
                bail!("{name}: {seen} row events came for {expected} changes");
            }
        }
        Ok(self.missing() == 0 && self.ends.values().all(|end| !end.owes_tombstone))
    }

    /// Where each partition that has messages ends.
    pub fn ends(&self) -> BTreeMap<TopicPartition, i64> {
        let ends = self.ends.iter().filter(|(_, end)| end.next > 0);
        ends.map(|(partition, end)| (partition.clone(), end.next)).collect()
    }

    /// How often the connectors were killed.
    pub fn kills(&self) -> u32 {
        self.kills
    }

    /// What of it has ended by itself since this was asked last.
    pub fn ended(&mut self) -> Vec<Ended> {
        self.connect.ended().into_iter().chain(self.source.ended()).collect()
    }

    /// The captured database.
    pub fn source_url(&self) -> String {
        self.source.url()
    }

    /// The end of the Connect worker's log, for an error message.
    pub fn log(&self) -> String {
        super::child::tail(&self.connect.log(), 25)
    }
}

/// Name of the connector that fills a topic: what stands before `.<schema>.<table>`.
fn connector(topic: &SimTopic) -> String {
    topic.name.rsplitn(3, '.').last().unwrap_or_default().to_string()
}

/// Slots and publications know fewer letters than topics.
fn slot(connector: &str) -> String {
    connector.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect()
}

/// (name, properties) of the connectors: like Heroku's, without snapshot. No heartbeats, so that there are no side topics.
fn connectors(topics: &[SimTopic], port: u16) -> Vec<(String, String)> {
    let mut tables: BTreeMap<String, Vec<&SimTopic>> = BTreeMap::new();
    for topic in topics {
        tables.entry(connector(topic)).or_default().push(topic);
    }
    let properties = |(name, topics): (String, Vec<&SimTopic>)| {
        let shared = CONNECTOR_PROPERTIES.lines().filter(|line| !line.starts_with('#'));
        let mut all: BTreeMap<String, String> = shared
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let included: Vec<String> = topics.iter().map(|topic| format!("{}.{}", topic.org, topic.object)).collect();
        let mut set = |key: &str, value: &str| all.insert(key.to_string(), value.to_string());
        for key in ["slot.name", "publication.name"] {
            set(key, &slot(&name));
        }
        set("name", &name);
        set("topic.prefix", &name);
        set("database.port", &port.to_string());
        set("database.dbname", SOURCE_DATABASE);
        set("table.include.list", &included.join(","));
        set("heartbeat.interval.ms", "0");
        if !topics.iter().any(|topic| topic.with_schema) {
            set("key.converter.schemas.enable", "false");
            set("value.converter.schemas.enable", "false");
            // This one shows TRUNCATE.
            set("skipped.operations", "none");
        }
        let text = all.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        (name, text)
    };
    tables.into_iter().map(properties).collect()
}

/// (LSN, is a delete) of a message's value. Only a look at the place where both stand: whatever a text of the row
/// holds is escaped, and comes before.
fn place(value: &[u8]) -> Option<(i64, bool)> {
    let after = |name: &[u8]| {
        let at = value.windows(name.len()).rposition(|window| window == name)?;
        value.get(at + name.len()..)
    };
    let digits: String =
        after(b"\"lsn\":")?.iter().take_while(|c| c.is_ascii_digit()).map(|c| char::from(*c)).collect();
    Some((digits.parse().ok()?, after(b"\"op\":\"")?.starts_with(b"d")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::simulator::SimOptions;

    #[test]
    fn a_messages_place_is_read_whatever_its_row_holds() {
        let value = br#"{"before":null,"after":{"name":"\"lsn\":1,\"op\":\"d\""},"source":{"lsn":26823400,"xmin":null},"op":"u","ts_ms":1}"#;
        assert_eq!(place(value), Some((26_823_400, false)));
        assert_eq!(place(br#"{"source":{"lsn":7,"origin_lsn":null},"op":"d"}"#), Some((7, true)));
        assert_eq!(place(br#"{"source":{"lsn":null},"op":"r"}"#), None);
        assert_eq!(place(b"junk"), None);
    }

    #[test]
    fn every_org_has_its_connector() {
        let options = SimOptions { prefix: "Some-Place.".into(), ..SimOptions::new(500) };
        let connectors = connectors(&Simulator::new(1, options).topics(), 5432);
        let names: Vec<&str> = connectors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["Some-Place.calm_connector_27001", "Some-Place.calm_connector_27002"]);
        let has = |number: usize, line: &str| connectors[number].1.lines().any(|found| found == line);
        assert!(has(0, "slot.name=some_place_calm_connector_27001"));
        assert!(has(0, "table.include.list=emea.account,emea.contact,emea.opportunity"));
        assert!(has(0, "value.converter.schemas.enable=true") && has(1, "value.converter.schemas.enable=false"));
        assert!(!has(0, "skipped.operations=none") && has(1, "skipped.operations=none"));
        assert!(has(1, "snapshot.mode=no_data") && has(1, "heartbeat.interval.ms=0"));
    }
}
