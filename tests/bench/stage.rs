//! The real parts that everybody measured here shares: one Kafka, one PostgreSQL, and the filled topics.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use afterimage::demo::postgres::{PostgresOptions, PrivatePostgres};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::account::Source;
use super::check::Expected;
use super::cpu;
use super::support::kafka::Broker;
use super::support::{names, postgres};

/// Bytes of one batch of messages, as a Connect worker's producer makes them when nobody tunes it.
const PRODUCER_BATCH: &str = "16384";

/// Server settings that are not PostgreSQL's own: enough memory that the table under test fits, and room for a run
/// without a forced checkpoint. Durability is untouched.
pub const POSTGRES_SETTINGS: [(&str, &str); 3] =
    [("shared_buffers", "512MB"), ("max_wal_size", "4GB"), ("synchronous_commit", "on")];

/// Both servers.
pub struct Stage {
    /// Kafka.
    pub broker: Broker,
    /// PostgreSQL.
    pub postgres: PrivatePostgres,
    /// A session that makes and drops databases.
    admin: Client,
    postmaster: u32,
}

/// CPU of the servers at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ServerCpu {
    /// Postmaster and all its processes, ended ones too, without the session that watches.
    pub postgres: Duration,
    /// The broker.
    pub kafka: Duration,
}

/// A database, and the session that watches it.
pub struct Watched {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// The session.
    pub client: Client,
    backend: u32,
}

impl Stage {
    /// Starts both.
    pub async fn start() -> Stage {
        let broker = Broker::start_for_bench();
        let mut options = PostgresOptions { fsync: true, ..PostgresOptions::default() };
        for (name, value) in POSTGRES_SETTINGS {
            options = options.set(name, value);
        }
        let postgres = PrivatePostgres::start(options).unwrap_or_else(|error| panic!("no PostgreSQL: {error:#}"));
        let admin = postgres::connect(&postgres.url("postgres")).await;
        let postmaster = cpu::parent(backend(&admin).await).expect("a backend has a parent");
        Stage { broker, postgres, admin, postmaster }
    }

    /// Makes a topic that keeps everything.
    pub async fn create_topic(&self, topic: &str, partitions: i32) {
        self.broker.create_topic_with(topic, partitions, &[("retention.ms", "-1"), ("retention.bytes", "-1")]).await;
    }

    /// Puts the next `count` messages of the source into a topic, keyed and so partitioned as a connector does, and
    /// returns the ends of its partitions.
    pub async fn fill(
        &self,
        topic: &str,
        source: &mut Source,
        expected: &mut Expected,
        count: u64,
        compression: &str,
    ) -> (BTreeMap<i32, i64>, u64) {
        let producer = self.producer(50, compression);
        let mut bytes = 0;
        for made in 0..count {
            let Some((key, value)) = source.next(|change| expected.take(&change)) else { panic!("the source is dry") };
            bytes += (key.len() + value.len()) as u64;
            send(&producer, BaseRecord::to(topic).key(key).payload(value));
            if made % 1_000 == 0 {
                producer.poll(Duration::ZERO);
            }
        }
        producer.flush(Duration::from_secs(600)).unwrap();
        let ends = self.broker.end_offsets(topic).await;
        // What was produced must not be written to disk while something else is measured.
        let synced = Command::new("sync").status().expect("sync");
        assert!(synced.success(), "sync failed");
        (ends, bytes)
    }

    /// A producer that is set up as a connector's; it collects messages for at most this many milliseconds.
    pub fn producer(&self, linger: u32, compression: &str) -> BaseProducer {
        let mut config = self.broker.client();
        config.set("enable.idempotence", "true").set("partitioner", "murmur2_random");
        config.set("linger.ms", linger.to_string());
        config.set("batch.size", PRODUCER_BATCH).set("compression.type", compression);
        config.set("queue.buffering.max.messages", "300000").set("queue.buffering.max.kbytes", "524288");
        config.create().unwrap()
    }

    /// CPU of both servers until now.
    pub fn cpu(&self, watched: &Watched) -> ServerCpu {
        let watching = cpu::of_process(watched.backend);
        ServerCpu {
            postgres: cpu::of_family(self.postmaster).saturating_sub(watching),
            kafka: cpu::of_process(self.broker.pid()),
        }
    }

    /// Makes an empty database.
    pub async fn create_database(&self) -> String {
        let name = names::unique("bench");
        self.admin.batch_execute(&format!("create database {name}")).await.unwrap();
        name
    }

    /// Makes a copy of a database that nobody is connected to, ready for a run: nothing is left to be written.
    pub async fn copy_database(&self, from: &str) -> String {
        let name = names::unique("bench");
        self.admin.batch_execute(&format!("create database {name} template {from} strategy file_copy")).await.unwrap();
        self.admin.batch_execute("checkpoint").await.unwrap();
        name
    }

    /// Drops a database, sessions or not.
    pub async fn drop_database(&self, name: &str) {
        self.admin.batch_execute(&format!("drop database {name} with (force)")).await.unwrap();
    }

    /// Connects to a database to look at it while others work in it.
    pub async fn watch(&self, name: &str) -> Watched {
        let url = self.postgres.url(name);
        let client = postgres::connect(&url).await;
        let backend = backend(&client).await;
        Watched { name: name.into(), url, client, backend }
    }

    /// `server_version` and the settings that matter, as the server says them.
    pub async fn postgres_says(&self) -> String {
        let mut said = Vec::new();
        for name in
            ["server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size"]
        {
            let rows = self.admin.simple_query(&format!("show {name}")).await.unwrap();
            let value = rows.iter().find_map(|row| match row {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            said.push(format!("{name} {}", value.unwrap_or("?")));
        }
        said.join(", ")
    }
}

impl Watched {
    /// Bytes of write-ahead log that the server has written in its life.
    pub async fn wal_bytes(&self) -> i64 {
        let row = self.client.query_one("select (pg_current_wal_lsn() - '0/0')::bigint", &[]).await.unwrap();
        row.get(0)
    }

    /// Ends the session and waits until the server has let it go: a database in use cannot be copied.
    pub async fn close(self, stage: &Stage) {
        let Watched { name, client, .. } = self;
        drop(client);
        super::support::wait::wait_until("the end of the watching session", Duration::from_secs(60), async || {
            let sessions = "select count(*) from pg_stat_activity where datname = $1";
            stage.admin.query_one(sessions, &[&name]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
}

/// Hands a message to a producer, as soon as it has room for it.
pub fn send(producer: &BaseProducer, mut record: BaseRecord<'_, [u8], [u8]>) {
    loop {
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                record = back;
                producer.poll(Duration::from_millis(10));
            }
            Err((error, back)) => panic!("{}: {error}", back.topic),
        }
    }
}

async fn backend(client: &Client) -> u32 {
    let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    pid.unsigned_abs()
}

/// A moment, with what the servers had used by then.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// When.
    pub at: Instant,
    /// CPU of the servers.
    pub servers: ServerCpu,
    /// CPU of the process under test.
    pub own: Duration,
    /// CPU of the whole machine.
    pub machine: Duration,
}

/// What was used between two moments, in seconds.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Used {
    /// Time on the clock.
    pub wall: f64,
    /// CPU of the process under test.
    pub own: f64,
    /// CPU of PostgreSQL.
    pub postgres: f64,
    /// CPU of Kafka.
    pub kafka: f64,
    /// CPU of everything else on the machine: who is not alone here has no good figures on the clock.
    pub others: f64,
}

impl Moment {
    /// Now, for the process with this id.
    pub fn of(pid: u32, stage: &Stage, database: &Watched) -> Moment {
        Moment {
            at: Instant::now(),
            servers: stage.cpu(database),
            own: cpu::of_process(pid),
            machine: cpu::of_machine(),
        }
    }

    /// From here to a later moment.
    pub fn until(&self, later: &Moment) -> Used {
        let seconds = |before: Duration, after: Duration| after.saturating_sub(before).as_secs_f64();
        let own = seconds(self.own, later.own);
        let postgres = seconds(self.servers.postgres, later.servers.postgres);
        let kafka = seconds(self.servers.kafka, later.servers.kafka);
        let others = (seconds(self.machine, later.machine) - own - postgres - kafka).max(0.0);
        Used { wall: later.at.duration_since(self.at).as_secs_f64(), own, postgres, kafka, others }
    }
}
