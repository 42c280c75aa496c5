//! The demo's worker processes: `afterimage run` as anybody starts it, each with its own configuration and log.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::child::{self, LastSignal};
use super::options::WorkerCommand;

/// How long a worker may take to finish its batch and leave, before it is killed.
const PATIENCE: Duration = Duration::from_secs(12);

/// One worker process.
#[derive(Debug)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Where its `/metrics` answers.
    pub metrics: SocketAddr,
    log: PathBuf,
    child: Child,
}

/// All worker processes; dropping them stops them.
#[derive(Debug, Default)]
pub struct Workers {
    workers: Vec<Worker>,
}

impl Workers {
    /// Starts one more.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(&mut self, worker: &WorkerCommand, name: &str, metrics: SocketAddr, config: &Path) -> Result<()> {
        let log = config.with_extension("log");
        let output = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command =
            command(worker, [OsStr::new("run"), OsStr::new("--config"), config.as_os_str()], config.parent());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = child::spawn_bound(command, LastSignal::Kill)
            .with_context(|| format!("cannot start a worker from {}", worker.program.display()))?;
        self.workers.push(Worker { name: name.to_string(), metrics, log, child });
        Ok(())
    }

    /// The running workers.
    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.iter()
    }

    /// Fails if a worker has ended, with the end of its log.
    ///
    /// # Errors
    /// That one.
    pub fn check(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            if let Some(status) = worker.child.try_wait()? {
                bail!("worker {} ended with {status}:\n{}", worker.name, tail(&worker.log));
            }
        }
        Ok(())
    }

    /// The ends of all logs, for an error message.
    pub fn logs(&self) -> String {
        self.workers.iter().map(|worker| format!("--- {}\n{}", worker.name, tail(&worker.log))).collect()
    }

    /// Asks all workers to finish, waits for them, and says how each ended. One that does not end in time is killed.
    pub fn stop(&mut self) -> Vec<(String, Option<ExitStatus>)> {
        for worker in &self.workers {
            // A worker that is gone already has been waited for or will be below.
            let _ = child::signal(&worker.child, libc::SIGTERM);
        }
        let deadline = Instant::now() + PATIENCE;
        self.workers
            .drain(..)
            .map(|mut worker| {
                let status = wait_until(&mut worker.child, deadline);
                (worker.name, status)
            })
            .collect()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs `afterimage migrate` on a database, to its end. Dropping the future kills it.
///
/// # Errors
/// When it fails, with its output.
pub async fn migrate(worker: &WorkerCommand, url: &str, dir: &Path) -> Result<()> {
    let log = dir.join("migrate.log");
    let output = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut command = command(worker, ["migrate", "--url", url].map(OsStr::new), Some(dir));
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let child = child::spawn_bound(command, LastSignal::Kill)
        .with_context(|| format!("cannot start {}", worker.program.display()))?;
    let mut running = Running(child);
    let status = loop {
        if let Some(status) = running.0.try_wait()? {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    if !status.success() {
        bail!("afterimage migrate ended with {status}:\n{}", tail(&log));
    }
    Ok(())
}

/// A child that is killed when nobody waits for it any more.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A child that has been waited for is not signalled: the standard library knows.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command<'a>(worker: &WorkerCommand, arguments: impl IntoIterator<Item = &'a OsStr>, dir: Option<&Path>) -> Command {
    let mut command = Command::new(&worker.program);
    command.args(arguments);
    // Variables win over the file: what a user has set for the real thing must not lead the demo there.
    command.env_clear();
    for name in ["PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(dir) = dir {
        command.current_dir(dir);
    }
    // Ctrl-C is for the demo, which then asks its workers; their own group keeps the terminal's signal from them.
    command.process_group(0);
    command
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    while Instant::now() < deadline {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scratch::ScratchDir;
    use std::os::unix::fs::PermissionsExt;

    /// A program that stands in for the binary.
    fn stand_in(dir: &ScratchDir, script: &str) -> WorkerCommand {
        let program = dir.path().join("stand-in");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        WorkerCommand { program }
    }

    fn start(dir: &ScratchDir, script: &str) -> Workers {
        let mut workers = Workers::default();
        let config = dir.path().join("worker-1.toml");
        workers.start(&stand_in(dir, script), "demo-1", "127.0.0.1:1".parse().unwrap(), &config).unwrap();
        workers
    }

    fn log(dir: &ScratchDir) -> String {
        fs::read_to_string(dir.path().join("worker-1.log")).unwrap_or_default()
    }

    #[test]
    fn a_worker_is_asked_to_finish_and_waited_for() {
        let dir = ScratchDir::create("afterimage-demo-test").unwrap();
        let script = r#"trap 'echo finished; exit 0' TERM; echo "$@" "${CARGO_MANIFEST_DIR-clean}"; while :; do sleep 0.02; done"#;
        let mut workers = start(&dir, script);
        let deadline = Instant::now() + PATIENCE;
        while !log(&dir).contains("run --config") {
            assert!(Instant::now() < deadline, "it did not start");
            std::thread::yield_now();
        }
        workers.check().unwrap();
        assert!(log(&dir).contains("clean"), "variables of this process must not reach a worker: {}", log(&dir));
        let ends = workers.stop();
        assert!(ends[0].1.is_some_and(|status| status.success()), "{ends:?}");
        assert!(log(&dir).ends_with("finished\n"));
    }

    #[test]
    fn a_worker_that_ends_by_itself_is_told_with_its_last_words() {
        let dir = ScratchDir::create("afterimage-demo-test").unwrap();
        let mut workers = start(&dir, "echo no such topic; exit 3");
        let deadline = Instant::now() + PATIENCE;
        let error = loop {
            assert!(Instant::now() < deadline, "it did not end");
            if let Err(error) = workers.check() {
                break error.to_string();
            }
            std::thread::yield_now();
        };
        assert!(error.contains("demo-1") && error.contains("no such topic"), "{error}");
    }

    #[tokio::test]
    async fn a_failed_migration_is_told_with_its_output() {
        let dir = ScratchDir::create("afterimage-demo-test").unwrap();
        let url = "postgres://127.0.0.1/x";
        migrate(&stand_in(&dir, r#"[ "$*" = "migrate --url postgres://127.0.0.1/x" ]"#), url, dir.path())
            .await
            .unwrap();
        let error =
            migrate(&stand_in(&dir, "echo too old >&2; exit 3"), url, dir.path()).await.unwrap_err().to_string();
        assert!(error.contains("too old"), "{error}");
    }
}
