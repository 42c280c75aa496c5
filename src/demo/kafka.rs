//! A private Apache Kafka (KRaft, broker and controller in one JVM) on 127.0.0.1, gone with the process that started it.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::child::{self, Ended};
use super::java::{self, Java, Jvm};
use super::patience::{Stop, wait};
use super::postgres::free_port;
use super::scratch::{self, ScratchDir};

/// Start of the names of the directories made here.
pub const PREFIX: &str = "afterimage-kafka";

/// 16 bytes in base64url, as Kafka wants them. Every broker here is alone, so they may share it.
const CLUSTER_ID: &str = "YWZ0ZXJpbWFnZS10ZXN0cw";

/// How long a broker may take to answer. Generous: it only bounds a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running broker. It ends, and its files go, when this is dropped or the process is killed.
#[derive(Debug)]
pub struct PrivateKafka {
    // Order matters on drop: the JVM is ended (in `Drop`) before its directory is removed.
    jvm: Option<Child>,
    dir: ScratchDir,
    port: u16,
    size: Size,
    settings: String,
    java: Java,
    class_path: String,
}

/// What a broker is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Demo and tests: quick to start, little memory.
    Small,
    /// Benches: memory, threads and compiler as a server has them, so that it does not hold up what is measured.
    Server,
}

impl PrivateKafka {
    /// Starts a broker and waits until it answers: three seconds on an idle machine, and Maven's download the first
    /// time. Blocks.
    ///
    /// # Errors
    /// When Java or Maven is missing, or the broker does not come up (then with the end of its log).
    pub fn start(java: &Java, size: Size, stop: &Stop) -> Result<PrivateKafka> {
        Self::start_with(java, size, "", stop)
    }

    /// The same with more lines of `server.properties`, which win over those that are there; `@PORT@` and
    /// `@CONTROLLER_PORT@` stand for the ports.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(java: &Java, size: Size, settings: &str, stop: &Stop) -> Result<PrivateKafka> {
        sweep_stale();
        let class_path = java.runtime(stop)?;
        let dir = ScratchDir::create(PREFIX).context("cannot make a directory for Kafka")?;
        let mut broker = PrivateKafka {
            jvm: None,
            dir,
            port: 0,
            size,
            settings: settings.to_owned(),
            java: java.clone(),
            class_path,
        };
        // Another process may take a port between its choice and the broker's bind; each try has its own log
        // directory, because the quorum's address is written into it.
        for attempt in 0.. {
            broker.port = free_port()?;
            broker.format(free_port()?, stop)?;
            match broker.launch(stop) {
                Ok(()) => break,
                Err(error) if attempt < 4 && format!("{error:#}").contains("Address already in use") => {
                    broker.kill()?
                }
                Err(error) => return Err(error),
            }
        }
        Ok(broker)
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.jvm.as_ref().map(Child::id)
    }

    /// kill -9, and waits for the end. Clients see their connections break.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut jvm) = self.jvm.take() {
            jvm.kill()?;
            jvm.wait()?;
        }
        Ok(())
    }

    /// Starts the killed broker again, on the same ports and log.
    ///
    /// # Errors
    /// When it is running, or does not come up.
    pub fn restart(&mut self, stop: &Stop) -> Result<()> {
        if self.jvm.is_some() {
            bail!("the private Kafka is running already");
        }
        self.launch(stop)
    }

    /// Whether it has ended by itself since this was asked last.
    pub fn ended(&mut self) -> Option<Ended> {
        let log = self.log();
        Ended::look(&mut self.jvm, "the private Kafka", &log)
    }

    fn format(&self, controller_port: u16, stop: &Stop) -> Result<()> {
        let dir = self.dir.path();
        let _ = fs::remove_dir_all(dir.join("log"));
        // The last word on a name counts.
        let properties = format!("{}{}\n", java::SERVER_PROPERTIES, self.settings)
            .replace("@PORT@", &self.port.to_string())
            .replace("@CONTROLLER_PORT@", &controller_port.to_string())
            .replace("@DIR@", &dir.display().to_string());
        let properties = match self.size {
            Size::Small => properties,
            // These are Kafka's own defaults.
            Size::Server => {
                properties + "num.network.threads=3\nnum.io.threads=8\nlog.retention.check.interval.ms=300000\n"
            }
        };
        fs::write(self.properties(), properties)?;
        let properties = self.properties();
        let args = ["format", "-t", CLUSTER_ID, "-c"].map(std::path::Path::new);
        let args: Vec<_> = args.into_iter().chain([properties.as_path()]).collect();
        self.java.run(&self.class_path, "kafka.tools.StorageTool", &args, &dir.join("format.log"), stop)
    }

    /// Ready: a metadata request answers, and a group's coordinator is found. The first request for a coordinator
    /// makes the offsets topic, which takes longest; here it is paid once and not by the first group.
    fn launch(&mut self, stop: &Stop) -> Result<()> {
        let _ = fs::remove_file(self.log());
        let log = self.log();
        let (jvm, heap) = match self.size {
            Size::Small => (Jvm::Quick, "256m"),
            Size::Server => (Jvm::Server, "1g"),
        };
        let jvm = self.java.spawn_as(jvm, heap, &self.class_path, "kafka.Kafka", &[&self.properties()], &log)?;
        let jvm = self.jvm.insert(jvm);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", format!("127.0.0.1:{}", self.port))
            .set("group.id", "readiness")
            .set("log_level", "0")
            .create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition("readiness", 0);
        wait("a broker that answers", PATIENCE, stop, || {
            if let Some(status) = jvm.try_wait()? {
                bail!("the private Kafka ended with {status}:\n{}", child::tail(&log, 60));
            }
            let second = Duration::from_secs(1);
            let answers = consumer.fetch_metadata(None, second).is_ok();
            Ok((answers && consumer.committed_offsets(list.clone(), second).is_ok()).then_some(()))
        })
        .with_context(|| child::tail(&log, 20))
    }

    fn properties(&self) -> PathBuf {
        self.dir.path().join("server.properties")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("broker.log")
    }
}

impl Drop for PrivateKafka {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "the private Kafka did not stop");
        }
    }
}

/// Removes what killed processes left behind; says how many brokers.
pub fn sweep_stale() -> usize {
    scratch::sweep_stale(PREFIX)
}
