//! A private Kafka Connect worker (standalone, one JVM) with Debezium connectors, gone with the process that started it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child::{self, Ended};
use super::java::{self, Java};
use super::patience::{Stop, wait};
use super::postgres::free_port;
use super::scratch::{self, ScratchDir};
use super::simulator::Debezium;

/// Start of the names of the directories made here.
pub const PREFIX: &str = "afterimage-connect";

/// How long a worker may take to run its connectors, and to end. Generous: it only bounds a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// A worker with its connectors. It ends, and its files go, when this is dropped or the process is killed; stored
/// offsets live in its directory and outlast a kill of the JVM.
#[derive(Debug)]
pub struct Connect {
    // Order matters on drop: the JVM is ended (in `Drop`) before its directory is removed.
    jvm: Option<Child>,
    dir: ScratchDir,
    port: u16,
    java: Java,
    class_path: String,
    connectors: Vec<String>,
}

impl Connect {
    /// Puts a worker together; [`Connect::launch`] starts it. `flush` is how often offsets are stored: a kill repeats
    /// what came after the last time. Connectors are (name, properties).
    ///
    /// # Errors
    /// When Java or Maven is missing, or files can't be written.
    pub fn new(
        java: &Java,
        release: Debezium,
        bootstrap: &str,
        flush: Duration,
        connectors: &[(String, String)],
        stop: &Stop,
    ) -> Result<Connect> {
        sweep_stale();
        let (class_path, plugins) = (java.runtime(stop)?, java.plugins(release, stop)?);
        let dir = ScratchDir::create(PREFIX).context("cannot make a directory for Kafka Connect")?;
        let port = free_port()?;
        let properties = java::WORKER_PROPERTIES
            .replace("@BOOTSTRAP@", bootstrap)
            .replace("@PORT@", &port.to_string())
            .replace("@PLUGINS@", &plugins.display().to_string())
            .replace("@DIR@", &dir.path().display().to_string())
            .replace("@FLUSH_MS@", &flush.as_millis().to_string());
        fs::write(dir.path().join("worker.properties"), properties)?;
        for (name, properties) in connectors {
            fs::write(dir.path().join(format!("{name}.properties")), properties)?;
        }
        let connectors = connectors.iter().map(|(name, _)| name.clone()).collect();
        Ok(Connect { jvm: None, dir, port, java: java.clone(), class_path, connectors })
    }

    /// Starts the JVM; [`Connect::await_running`] waits for its connectors.
    ///
    /// # Errors
    /// When it is running already, or can't be started.
    pub fn launch(&mut self) -> Result<()> {
        if self.jvm.is_some() {
            bail!("the Connect worker is running already");
        }
        let files = ["worker"].into_iter().chain(self.connectors.iter().map(String::as_str));
        let files: Vec<PathBuf> = files.map(|name| self.dir.path().join(format!("{name}.properties"))).collect();
        let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        let main = "org.apache.kafka.connect.cli.ConnectStandalone";
        self.jvm = Some(self.java.spawn("512m", &self.class_path, main, &files, &self.log())?);
        Ok(())
    }

    /// Waits until every connector's task runs. Its replication slot may take a moment longer.
    ///
    /// # Errors
    /// When the worker or a task ends, or none of it comes up in time; with the end of the log.
    pub fn await_running(&mut self, stop: &Stop) -> Result<()> {
        for name in self.connectors.clone() {
            let log = self.log();
            wait(&format!("a running task of {name}"), PATIENCE, stop, || {
                self.check()?;
                let Ok(status) = get(self.port, &format!("/connectors/{name}/status")) else { return Ok(None) };
                match status.pointer("/tasks/0/state").and_then(|state| state.as_str()) {
                    Some("RUNNING") => Ok(Some(())),
                    Some("FAILED") => bail!("the task of {name} failed: {status}"),
                    _ => Ok(None),
                }
            })
            .with_context(|| child::tail(&log, 20))?;
        }
        Ok(())
    }

    /// Fails if the worker has ended, with the end of its log.
    ///
    /// # Errors
    /// That one.
    pub fn check(&mut self) -> Result<()> {
        match self.jvm.as_mut().map(Child::try_wait).transpose()?.flatten() {
            Some(status) => bail!("the Connect worker ended with {status}:\n{}", child::tail(&self.log(), 60)),
            None => Ok(()),
        }
    }

    /// Whether it has ended by itself since this was asked last.
    pub fn ended(&mut self) -> Option<Ended> {
        let log = self.log();
        Ended::look(&mut self.jvm, "Debezium's Connect worker", &log)
    }

    /// kill -9, and waits for the end. Offsets since the last flush are forgotten.
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

    /// Ends the worker in order (SIGTERM): offsets are flushed, nothing is repeated later.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&mut self, stop: &Stop) -> Result<()> {
        let Some(jvm) = &mut self.jvm else { return Ok(()) };
        child::signal(jvm, libc::SIGTERM)?;
        wait("the Connect worker's end", PATIENCE, stop, || Ok(jvm.try_wait()?))?;
        self.jvm = None;
        Ok(())
    }

    /// The worker's log.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("connect.log")
    }
}

impl Drop for Connect {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "the Connect worker did not stop");
        }
    }
}

/// Removes what killed processes left behind; says how many workers.
pub fn sweep_stale() -> usize {
    scratch::sweep_stale(PREFIX)
}

/// One GET on the worker's REST port. HTTP 1.0, so that the answer is neither chunked nor kept open.
fn get(port: u16, path: &str) -> Result<serde_json::Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("REST: no answer")?;
    if head.split_whitespace().nth(1).is_none_or(|code| code != "200") {
        bail!("REST: {}", head.lines().next().unwrap_or_default());
    }
    Ok(serde_json::from_str(body)?)
}
