//! The workers: `afterimage run` as processes, each with its own way to PostgreSQL, state directory and log.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use afterimage::demo::child::{self, LastSignal};

use super::support::wait::let_pass;

/// How long a worker may take to end in order.
const STOP_TIME: Duration = Duration::from_secs(10);
/// How long it is given before it is killed: only then it counts as stuck.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// What all workers have in common.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Kafka.
    pub brokers: String,
    /// Name of the database.
    pub database: String,
    /// Where everything of this run lies.
    pub dir: PathBuf,
}

impl Deployment {
    fn command(&self, verb: &str, name: &str, port: u16) -> Command {
        let Deployment { brokers, database, dir } = self;
        let text = format!(
            "[kafka]\nbrokers = \"{brokers}\"\n[postgres]\nurl = \"postgresql://postgres@127.0.0.1:{port}/{database}\"\n\
             sslmode = \"disable\"\n[state]\ndir = \"{}\"\nmemory = \"32MB\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
             [worker]\nname = \"{name}\"\n[[org]]\nname = \"emea\"\ntopics = [\"chaos.emea.*\"]\n",
            dir.join(format!("state-{name}")).display(),
        );
        let config = dir.join(format!("{name}.toml"));
        fs::write(&config, text).expect("a configuration");
        let log = File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).expect("a log");
        let mut command = Command::new(dir.join("afterimage"));
        command.arg(verb).arg("--config").arg(config);
        // Nothing of the user's environment may reach it.
        command.env_clear().env("HOME", dir).current_dir(dir);
        for name in ["AFTERIMAGE_LOG__LEVEL", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        command
    }

    /// Copies the program away from where the next build would replace it, and makes the schema.
    ///
    /// # Panics
    /// When that fails.
    pub fn prepare(&self, port: u16) {
        fs::copy(env!("CARGO_BIN_EXE_afterimage"), self.dir.join("afterimage")).expect("a copy of the program");
        let status = self.command("migrate", "migrate", port).status().expect("afterimage migrate");
        assert!(status.success(), "migrate ended with {status}: {}", self.dir.join("migrate.log").display());
    }
}

/// One worker, running or not.
pub struct Worker {
    /// Its name.
    pub name: String,
    deployment: Deployment,
    port: u16,
    child: Option<Child>,
    /// Where this life begins in its log.
    from: u64,
}

/// How a worker ended that nobody had asked to.
#[derive(Debug)]
pub struct Ended {
    /// With what.
    pub status: ExitStatus,
    /// It had held partitions in this life. One that finds no database or broker when it starts says so and ends, for
    /// whoever started it to try again.
    pub in_work: bool,
}

impl Worker {
    /// A worker that reaches PostgreSQL at this port; not started yet.
    pub fn new(deployment: &Deployment, name: String, port: u16) -> Worker {
        Worker { name, deployment: deployment.clone(), port, child: None, from: 0 }
    }

    /// Where its records are.
    pub fn state(&self) -> PathBuf {
        self.deployment.dir.join(format!("state-{}", self.name))
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        self.deployment.dir.join(format!("{}.log", self.name))
    }

    /// Starts it, if it does not run.
    pub fn start(&mut self) {
        if self.child.is_none() {
            self.note("starts");
            self.from = fs::metadata(self.log()).map_or(0, |log| log.len());
            let command = self.deployment.command("run", &self.name, self.port);
            self.child = Some(child::spawn_bound(command, LastSignal::Kill).expect("afterimage run"));
        }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
            self.note("was killed");
        }
    }

    /// SIGTERM, and waits for the end; what was wrong about it.
    pub async fn stop(&mut self) -> Option<String> {
        let mut child = self.child.take()?;
        self.note("is to stop");
        child::signal(&child, libc::SIGTERM).expect("SIGTERM");
        let since = Instant::now();
        let status = loop {
            match child.try_wait().expect("wait") {
                Some(status) => break Some(status),
                None if since.elapsed() > STOP_LIMIT => break None,
                None => let_pass(Duration::from_millis(20)).await,
            }
        };
        let took = since.elapsed();
        let life = self.life();
        let name = &self.name;
        self.note(&format!("has stopped after {took:.1?} with {status:?}"));
        match status {
            None => {
                child.kill().expect("kill");
                child.wait().expect("wait");
                Some(format!("{name} did not stop within {STOP_LIMIT:?} and was killed"))
            }
            // Before it listens to signals it simply dies of one; and it may have found no database when it started.
            Some(status) if !status.success() && !in_work(&life) && took < STOP_TIME => None,
            // What it had in hand it can't commit where nothing comes back from PostgreSQL just then.
            Some(status) if !status.success() && sink_was_away(&life) => None,
            Some(status) if !status.success() => Some(format!("{name}, asked to stop, ended with {status}")),
            Some(_) if took > STOP_TIME => Some(format!("{name} took {took:.1?} to stop")),
            Some(_) => None,
        }
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, signal: libc::c_int) {
        if let Some(child) = &self.child {
            child::signal(child, signal).expect("a signal");
        }
    }

    /// How it has ended, if nobody had asked it to.
    pub fn ended(&mut self) -> Option<Ended> {
        let status = self.child.as_mut()?.try_wait().expect("wait")?;
        self.child = None;
        let in_work = in_work(&self.life());
        self.note(&format!("has ended by itself with {status}"));
        Some(Ended { status, in_work })
    }

    /// What it has logged since it was started.
    fn life(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(log.get(self.from as usize..).unwrap_or_default()).into_owned();
        // Without our own lines.
        log.lines().filter(|line| !line.contains("---- chaos")).collect::<Vec<_>>().join("\n")
    }

    /// A line of ours in its log.
    fn note(&self, what: &str) {
        if let Ok(mut log) = File::options().append(true).create(true).open(self.log()) {
            let now = humantime::format_rfc3339_millis(std::time::SystemTime::now());
            let _ = writeln!(log, "{now} ---- chaos: {} {what}", self.name);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether a worker that was asked to stop says that the sink did not answer meanwhile, and that it ends for that.
fn sink_was_away(life: &str) -> bool {
    let since = life.rsplit_once("SIGTERM: finishing what is in hand").map_or("", |(_, since)| since);
    since.contains("the sink does not answer") && since.contains("not everything in hand could be committed within")
}

/// Whether a worker has held partitions, by its log.
fn in_work(life: &str) -> bool {
    life.contains("INFO claimed")
}

/// Copies a directory that no process has open; nothing of what was there stays.
pub fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    remove_dir(to)?;
    fs::create_dir_all(to)?;
    if !from.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Removes a directory, if it is there.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
