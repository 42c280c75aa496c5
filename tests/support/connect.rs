//! Kafka Connect with a real Debezium connector: a standalone worker in a JVM of its own, on the tests' broker.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use afterimage::demo::connect::Connect;
use afterimage::demo::java::CONNECTOR_PROPERTIES;
use afterimage::demo::patience::Stop;
pub use afterimage::demo::simulator::Debezium;

use super::java::java;
use super::kafka::Broker;
use super::postgres::{self, Database};
use super::wait::{LONG, wait_for};

/// One connector's settings. Its name is also its topic prefix, replication slot and publication.
#[derive(Debug, Clone)]
pub struct Connector {
    name: String,
    source: Database,
    tables: Vec<String>,
    settings: BTreeMap<String, String>,
}

impl Connector {
    /// A connector like Heroku's on these tables (`schema.table`): with schema blocks, without snapshot. The name must
    /// be good as a slot name (see [`super::names::unique`]).
    pub fn new(name: &str, source: &Database, tables: &[&str]) -> Connector {
        let settings = CONNECTOR_PROPERTIES
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        let connector = Connector {
            name: name.into(),
            source: source.clone(),
            tables: tables.iter().map(|table| table.to_string()).collect(),
            settings,
        };
        connector
            .set("name", name)
            .set("topic.prefix", name)
            .set("slot.name", name)
            .set("publication.name", name)
            .set("database.port", &postgres::shared().port().to_string())
            .set("database.dbname", &source.name)
            .set("table.include.list", &tables.join(","))
    }

    /// Changes one setting (`snapshot.mode`, `skipped.operations`, …).
    pub fn set(mut self, key: &str, value: &str) -> Connector {
        self.settings.insert(key.into(), value.into());
        self
    }

    /// Values (and keys) without the schema block.
    pub fn without_schemas(self) -> Connector {
        self.set("key.converter.schemas.enable", "false").set("value.converter.schemas.enable", "false")
    }

    /// The topic of a table (`schema.table`).
    pub fn topic(&self, table: &str) -> String {
        format!("{}.{table}", self.name)
    }

    /// Makes all topics the connector writes to. Side topics are among them: one that is missing stalls the connector
    /// for good, because the producer retries and nothing behind it arrives.
    pub async fn create_topics(&self, broker: &Broker, partitions: i32) {
        for table in &self.tables {
            broker.create_topic(&self.topic(table), partitions).await;
        }
        let heartbeat = self.settings.get("topic.heartbeat.prefix").map_or("__debezium-heartbeat", String::as_str);
        broker.create_topic(&format!("{heartbeat}.{}", self.name), 1).await;
        broker.create_topic(&self.topic("message"), 1).await;
        if self.settings.get("provide.transaction.metadata").is_some_and(|value| value == "true") {
            broker.create_topic(&self.topic("transaction"), 1).await;
        }
        if let Some(signals) = self.settings.get("signal.data.collection") {
            broker.create_topic(&self.topic(signals), partitions).await;
        }
    }

    fn properties(&self) -> String {
        self.settings.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
    }
}

/// A running worker with its connectors. It ends with its value, or with the process.
pub struct Worker {
    connect: Connect,
    connectors: Vec<Connector>,
}

impl Worker {
    /// Starts a worker and waits until every connector's task runs and its slot is in use: from then on each committed
    /// change is captured. `flush` is how often offsets are stored; a kill repeats what came after the last time.
    ///
    /// # Panics
    /// When a task fails or does not come up, with the worker's log.
    pub async fn start(version: Debezium, broker: &Broker, flush: Duration, connectors: Vec<Connector>) -> Worker {
        let files: Vec<_> = connectors.iter().map(|c| (c.name.clone(), c.properties())).collect();
        let never = Stop::default();
        let connect = Connect::new(&java(), version, &broker.bootstrap(), flush, &files, &never);
        let mut worker = Worker { connect: connect.unwrap_or_else(|error| panic!("{error:#}")), connectors };
        worker.restart().await;
        worker
    }

    /// kill -9, and waits for the end. Offsets since the last flush are forgotten.
    pub fn kill9(&mut self) {
        self.connect.kill().unwrap();
    }

    /// Ends the worker in order (SIGTERM): offsets are flushed, nothing is repeated later.
    pub fn stop(&mut self) {
        self.connect.stop(&Stop::default()).unwrap();
    }

    /// Starts the ended worker again with the same connectors and stored offsets, and waits as [`Self::start`] does.
    pub async fn restart(&mut self) {
        self.connect.launch().unwrap();
        self.connect.await_running(&Stop::default()).unwrap_or_else(|error| panic!("{error:#}"));
        for connector in &self.connectors {
            let client = connector.source.connect().await;
            let name = &connector.name;
            wait_for(&format!("an active slot {name}"), LONG, async || {
                let query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND active";
                match client.query_opt(query, &[name]).await {
                    Ok(Some(_)) => Ok(()),
                    Ok(None) => Err("no slot in use".to_string()),
                    Err(error) => Err(error.to_string()),
                }
            })
            .await;
        }
    }

    /// The worker's log.
    pub fn log(&self) -> PathBuf {
        self.connect.log()
    }
}
