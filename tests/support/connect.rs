//! Kafka Connect with a real Debezium connector: a standalone worker in a JVM of its own, on the tests' broker.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use afterimage::demo::child;
use afterimage::demo::postgres::free_port;
use afterimage::demo::scratch::{self, ScratchDir};

use super::java;
use super::kafka::Broker;
use super::postgres::{self, Database};
use super::wait::{LONG, wait_blocking, wait_for};

const PREFIX: &str = "afterimage-connect";

/// The connector versions that are tried: the one Heroku runs, and a current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debezium {
    /// 2.7.4.Final
    V2_7,
    /// 3.7.0.Final
    V3_7,
}

impl Debezium {
    fn version(self) -> &'static str {
        match self {
            Debezium::V2_7 => "2.7.4.Final",
            Debezium::V3_7 => "3.7.0.Final",
        }
    }
}

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
        let shared = fs::read_to_string(java::file("connector.properties")).unwrap();
        let settings = shared
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
    jvm: Option<Child>,
    dir: ScratchDir,
    port: u16,
    connectors: Vec<Connector>,
}

impl Worker {
    /// Starts a worker and waits until every connector's task runs and its slot is in use: from then on each committed
    /// change is captured. `flush` is how often offsets are stored; a kill repeats what came after the last time.
    ///
    /// # Panics
    /// When a task fails or does not come up, with the worker's log.
    pub async fn start(version: Debezium, broker: &Broker, flush: Duration, connectors: Vec<Connector>) -> Worker {
        scratch::sweep_stale(PREFIX);
        let port = free_port().unwrap();
        let dir = ScratchDir::create(PREFIX).unwrap();
        let plugins = java::debezium_plugins(version.version());
        let properties = fs::read_to_string(java::file("worker.properties"))
            .unwrap()
            .replace("@BOOTSTRAP@", &broker.bootstrap())
            .replace("@PORT@", &port.to_string())
            .replace("@PLUGINS@", plugins.to_str().unwrap())
            .replace("@DIR@", dir.path().to_str().unwrap())
            .replace("@FLUSH_MS@", &flush.as_millis().to_string());
        fs::write(dir.path().join("worker.properties"), properties).unwrap();
        for connector in &connectors {
            fs::write(dir.path().join(format!("{}.properties", connector.name)), connector.properties()).unwrap();
        }
        let mut worker = Worker { jvm: None, dir, port, connectors };
        worker.restart().await;
        worker
    }

    /// kill -9, and waits for the end. Offsets since the last flush are forgotten.
    pub fn kill9(&mut self) {
        let mut jvm = self.jvm.take().expect("the worker is running");
        jvm.kill().unwrap();
        jvm.wait().unwrap();
    }

    /// Ends the worker in order (SIGTERM): offsets are flushed, nothing is repeated later.
    pub fn stop(&mut self) {
        let mut jvm = self.jvm.take().expect("the worker is running");
        child::signal(&jvm, libc::SIGTERM).unwrap();
        wait_blocking("the worker's end", LONG, || match jvm.try_wait() {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("running".to_string()),
            Err(error) => Err(error.to_string()),
        });
    }

    /// Starts the ended worker again with the same connectors and stored offsets, and waits as [`Self::start`] does.
    pub async fn restart(&mut self) {
        assert!(self.jvm.is_none(), "the worker is running");
        let mut files = vec![self.dir.path().join("worker.properties")];
        files.extend(self.connectors.iter().map(|c| self.dir.path().join(format!("{}.properties", c.name))));
        let files: Vec<&std::path::Path> = files.iter().map(PathBuf::as_path).collect();
        let main = "org.apache.kafka.connect.cli.ConnectStandalone";
        self.jvm = Some(java::spawn("512m", &java::runtime_class_path(), main, &files, &self.log()));
        for connector in self.connectors.clone() {
            self.await_running(&connector).await;
        }
    }

    /// The worker's log.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("connect.log")
    }

    async fn await_running(&mut self, connector: &Connector) {
        let name = &connector.name;
        wait_for(&format!("a running task of {name}"), LONG, async || {
            if self.jvm.as_mut().is_none_or(|jvm| !matches!(jvm.try_wait(), Ok(None))) {
                panic!("the Connect worker ended:\n{}", java::tail(&self.log()));
            }
            let status = get(self.port, &format!("/connectors/{name}/status"))?;
            match status.pointer("/tasks/0/state").and_then(|state| state.as_str()) {
                Some("RUNNING") => Ok(()),
                Some("FAILED") => panic!("the task of {name} failed: {status}"),
                _ => Err(format!("{status}\n{}", java::tail(&self.log()))),
            }
        })
        .await;
        let client = connector.source.connect().await;
        wait_for(&format!("an active slot {name}"), LONG, async || {
            let query = "SELECT 1 FROM pg_replication_slots WHERE slot_name = $1 AND active";
            match client.query_opt(query, &[name]).await {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(java::tail(&self.log())),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.jvm.is_some() {
            self.kill9();
        }
    }
}

/// One GET on the worker's REST port. HTTP 1.0, so that the answer is neither chunked nor kept open.
fn get(port: u16, path: &str) -> Result<serde_json::Value, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("REST: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("REST: no answer")?;
    if head.split_whitespace().nth(1).is_none_or(|code| code != "200") {
        return Err(format!("REST: {}", head.lines().next().unwrap_or_default()));
    }
    serde_json::from_str(body).map_err(|error| format!("REST: {error}"))
}
