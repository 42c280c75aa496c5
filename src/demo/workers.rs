//! The demo's worker processes: `afterimage run` as anybody starts it, each with its own configuration and log.

use std::ffi::OsStr;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::child::{self, Ended, LastSignal};
use super::options::WorkerCommand;

/// How long a worker may take to finish its batch and leave, before it is killed.
const PATIENCE: Duration = Duration::from_secs(12);

/// How much of a log is shown when something went wrong.
const LINES: usize = 25;

/// One worker process.
#[derive(Debug)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Where its `/metrics` answers.
    pub metrics: SocketAddr,
    config: PathBuf,
    /// None while it is dead.
    child: Option<Child>,
}

impl Worker {
    fn log(&self) -> PathBuf {
        self.config.with_extension("log")
    }

    /// Its configuration, which other verbs can be given, too.
    pub fn config(&self) -> &Path {
        &self.config
    }

    fn launch(worker: &WorkerCommand, config: &Path) -> Result<Child> {
        let log = config.with_extension("log");
        // A second life of a worker goes on in the same log.
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot make {}", log.display()))?;
        let mut command =
            command(worker, [OsStr::new("run"), OsStr::new("--config"), config.as_os_str()], config.parent());
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        child::spawn_bound(command, LastSignal::Kill)
            .with_context(|| format!("cannot start a worker from {}", worker.program.display()))
    }
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
        let child = Worker::launch(worker, config)?;
        self.workers.push(Worker { name: name.to_string(), metrics, config: config.to_path_buf(), child: Some(child) });
        Ok(())
    }

    /// Whether a worker of this name was started here.
    pub fn has(&self, name: &str) -> bool {
        self.workers.iter().any(|worker| worker.name == name)
    }

    /// kill -9 of one of them.
    ///
    /// # Errors
    /// When there is none of this name, or the system refuses.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        if let Some(mut child) = self.named(name)?.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Starts a killed one anew: the same name, configuration and state directory.
    ///
    /// # Errors
    /// When there is none of this name, or it can't be started again.
    pub fn restart(&mut self, worker: &WorkerCommand, name: &str) -> Result<()> {
        let victim = self.named(name)?;
        victim.child = Some(Worker::launch(worker, &victim.config)?);
        Ok(())
    }

    fn named(&mut self, name: &str) -> Result<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.name == name).context("no worker of this name")
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
        match self.ended().pop() {
            Some(Ended { what, status, log }) => bail!("{what} ended with {status}:\n{}", child::tail(&log, LINES)),
            None => Ok(()),
        }
    }

    /// Those that have ended by themselves since this was asked last.
    pub fn ended(&mut self) -> Vec<Ended> {
        let ended = |worker: &mut Worker| {
            let log = worker.log();
            Ended::look(&mut worker.child, &format!("worker {}", worker.name), &log)
        };
        self.workers.iter_mut().filter_map(ended).collect()
    }

    /// The ends of all logs, for an error message.
    pub fn logs(&self) -> String {
        self.workers
            .iter()
            .map(|worker| format!("--- {}\n{}", worker.name, child::tail(&worker.log(), LINES)))
            .collect()
    }

    /// Asks all that run to finish, waits for them, and says how each ended. One that does not end in time is killed.
    pub fn stop(&mut self) -> Vec<(String, Option<ExitStatus>)> {
        for child in self.workers.iter().filter_map(|worker| worker.child.as_ref()) {
            // A worker that is gone already will be waited for below.
            let _ = child::signal(child, libc::SIGTERM);
        }
        let deadline = Instant::now() + PATIENCE;
        let running = self.workers.drain(..).filter_map(|worker| Some((worker.name, worker.child?)));
        running.map(|(name, mut child)| (name, wait_until(&mut child, deadline))).collect()
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
    let mut running = child::Running(child);
    let status = loop {
        if let Some(status) = running.0.try_wait()? {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    if !status.success() {
        bail!("afterimage migrate ended with {status}:\n{}", child::tail(&log, LINES));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::scratch::ScratchDir;
    use std::fs;
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

    #[test]
    fn a_worker_that_is_crashed_lives_again() {
        let dir = ScratchDir::create("afterimage-demo-test").unwrap();
        let script = r#"trap 'echo asked; exit 0' TERM; echo "life $$"; while :; do sleep 0.02; done"#;
        let mut workers = start(&dir, script);
        let deadline = Instant::now() + PATIENCE;
        for lives in 1..=2 {
            while log(&dir).matches("life ").count() < lives {
                assert!(Instant::now() < deadline, "it did not start");
                std::thread::yield_now();
            }
            if lives == 1 {
                workers.kill("demo-1").unwrap();
                workers.check().unwrap();
                workers.restart(&stand_in(&dir, script), "demo-1").unwrap();
            }
        }
        workers.check().unwrap();
        assert!(!log(&dir).contains("asked"), "kill -9 asks nobody: {}", log(&dir));
        assert!(workers.kill("demo-2").is_err() && workers.restart(&stand_in(&dir, script), "demo-2").is_err());
        assert!(workers.stop()[0].1.is_some_and(|status| status.success()));
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
