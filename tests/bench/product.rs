//! The product as its own process: `afterimage migrate`, then `afterimage run` over a prepared topic, with default
//! settings except for addresses and directories.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use afterimage::demo::child::{self, LastSignal};
use serde::Serialize;

use super::account::DECLARED;
use super::cpu;
use super::stage::{Moment, Stage, Used, Watched};
use super::support::wait::wait_for;

/// Bounds a hang; no run takes this long.
const LIMIT: Duration = Duration::from_secs(3_600);

/// The built program, copied away from where the next build would replace it.
pub struct Product {
    binary: PathBuf,
    dir: PathBuf,
}

/// One sink and its topics.
pub struct Deployment<'a> {
    /// Topics, each of an org of its own.
    pub topics: &'a [String],
    /// Consumer group: part of a sink's identity, so a copy of a database keeps it.
    pub group: &'a str,
    /// Image store.
    pub state: &'a Path,
    /// `[section]` lines in addition, from the command line.
    pub settings: &'a str,
}

/// What a run took.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Offsets consumed and committed.
    pub events: u64,
    /// From the claim of the partitions to the moment when the committed positions reached the ends.
    pub used: Used,
    /// Before that: from the start of the process.
    pub startup: Used,
    /// CPU of the process from then until its end: compactions, closing the store.
    pub afterwards: f64,
    /// Peak of resident memory, in bytes.
    pub peak_memory: u64,
    /// Bytes of write-ahead log.
    pub wal: i64,
    /// Disk of the image store at the end, in bytes.
    pub state: u64,
    /// CPU seconds of the process by thread name, without ended threads.
    pub threads: BTreeMap<String, f64>,
}

/// The org of the topic with this number.
pub fn org(number: usize) -> String {
    format!("bench{number}")
}

/// A running `afterimage run`.
pub struct Worker {
    child: Child,
    log: PathBuf,
    /// Where this life begins in its log.
    from: usize,
}

impl Worker {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Panics
    /// When it has ended, with the end of its log.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the worker ended with {status}:\n{}", tail(&self.log));
        }
    }

    /// kill -9, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it in order; the CPU that it had used in all.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub async fn stop(&mut self) -> Duration {
        let pid = self.pid();
        child::signal(&self.child, libc::SIGTERM).unwrap();
        wait_for("the worker's end", LIMIT, async || if cpu::has_ended(pid) { Ok(()) } else { Err("running") }).await;
        let own = cpu::of_process(pid);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the worker ended with {status}:\n{}", tail(&self.log));
        own
    }

    /// What `/metrics` answers now; `None` while it does not answer yet.
    pub fn metrics(&self) -> Option<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let address = log.get(self.from..)?.split("metrics are served at http://").nth(1)?.split("/metrics").next()?;
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

/// The sum of a metric's samples on a page; `None` when it has none.
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let samples = page
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' ')));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).reduce(|sum, sample| sum + sample)
}

impl Product {
    /// Copies the program into `dir`.
    pub fn copy_to(dir: &Path) -> Product {
        let binary = dir.join("afterimage");
        fs::copy(env!("CARGO_BIN_EXE_afterimage"), &binary).unwrap();
        Product { binary, dir: dir.to_path_buf() }
    }

    fn config(&self, stage: &Stage, database: &Watched, deployment: &Deployment<'_>) -> PathBuf {
        let Deployment { topics, group, state, settings } = deployment;
        let mut text = format!(
            // Dotted, so that the settings may add to each of these tables.
            "{settings}\nkafka.brokers = \"{}\"\nkafka.group = \"{group}\"\npostgres.url = \"{}\"\nstate.dir = \"{}\"\n\
             metrics.listen = \"127.0.0.1:0\"\n",
            stage.broker.bootstrap(),
            database.url,
            state.display()
        );
        for (number, topic) in topics.iter().enumerate() {
            text.push_str(&format!(
                "\n[[org]]\nname = \"{org}\"\ntopics = [\"{topic}\"]\n\n\
                 [[object]]\norg = \"{org}\"\nname = \"account\"\ntypes = {DECLARED}\n",
                org = org(number)
            ));
        }
        let path = self.dir.join(format!("{}.toml", database.name));
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, verb: &str, config: &Path, log: &Path) -> Command {
        let out = File::options().create(true).append(true).open(log).unwrap();
        let mut command = Command::new(&self.binary);
        command.arg(verb).arg("--config").arg(config);
        // Nothing of the user's environment may reach it.
        command.env_clear().env("HOME", &self.dir).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        command
    }

    /// Makes the schema.
    pub fn migrate(&self, stage: &Stage, database: &Watched, deployment: &Deployment<'_>) {
        let config = self.config(stage, database, deployment);
        let log = self.dir.join(format!("{}.migrate.log", database.name));
        let status = self.command("migrate", &config, &log).status().unwrap();
        assert!(status.success(), "migrate ended with {status}:\n{}", tail(&log));
    }

    /// Starts it.
    pub fn start(&self, stage: &Stage, database: &Watched, deployment: &Deployment<'_>) -> Worker {
        let config = self.config(stage, database, deployment);
        let log = self.dir.join(format!("{}.log", database.name));
        let from = fs::metadata(&log).map_or(0, |file| file.len() as usize);
        let child = child::spawn_bound(self.command("run", &config, &log), LastSignal::Kill).unwrap();
        Worker { child, log, from }
    }

    /// Runs until everything up to `ends` is committed, then stops it in order. `profiler` is a shell command that
    /// starts with the consumption; `{pid}` in it becomes the process id.
    pub async fn run(
        &self,
        stage: &Stage,
        database: &Watched,
        deployment: &Deployment<'_>,
        ends: &BTreeMap<i32, i64>,
        profiler: Option<&str>,
    ) -> Run {
        let before = place(database).await;
        let wanted: i64 = ends.values().sum();
        let wal = database.wal_bytes().await;
        let started = Moment::of(std::process::id(), stage, database);
        let mut worker = self.start(stage, database, deployment);
        let pid = worker.pid();
        let moment = || Moment::of(pid, stage, database);

        // Claimed: from now on it reads. Nothing was read before, since a claim says where to begin.
        let claims = before.epochs + ends.len() as i64;
        wait_for("the claim of all partitions", LIMIT, async || {
            worker.assert_running();
            if place(database).await.epochs >= claims { Ok(()) } else { Err("not claimed") }
        })
        .await;
        let begun = moment();
        let threads = cpu::of_threads(pid);
        let profiler = profiler.map(|command| profile(command, pid));

        let mut shown = Instant::now();
        wait_for("the end of the topic", LIMIT, async || {
            worker.assert_running();
            let now = place(database).await.next;
            if shown.elapsed() > Duration::from_secs(5) {
                shown = Instant::now();
                let rate = (now - before.next) as f64 / begun.at.elapsed().as_secs_f64();
                eprintln!("      {now} of {wanted}, {rate:.0} a second");
            }
            if now >= wanted { Ok(()) } else { Err(format!("at {now} of {wanted}")) }
        })
        .await;
        let ended = moment();
        let grown = cpu::of_threads(pid).into_iter().map(|(name, after)| {
            let before = threads.get(&name).copied().unwrap_or_default();
            (name, after.saturating_sub(before).as_secs_f64())
        });
        let threads = grown.collect();
        let peak_memory = cpu::peak_memory(pid);
        let wal = database.wal_bytes().await - wal;

        let afterwards = worker.stop().await.saturating_sub(ended.own).as_secs_f64();
        if let Some(mut profiler) = profiler {
            profiler.wait().unwrap();
        }
        let started = Moment { own: Duration::ZERO, ..started };
        Run {
            events: (wanted - before.next) as u64,
            used: begun.until(&ended),
            startup: started.until(&begun),
            afterwards,
            peak_memory,
            wal,
            state: disk(deployment.state),
            threads,
        }
    }
}

/// Where a sink's partitions stand, all added up.
struct Place {
    epochs: i64,
    next: i64,
}

async fn place(database: &Watched) -> Place {
    let query =
        "select coalesce(sum(epoch), 0)::bigint, coalesce(sum(next), 0)::bigint from afterimage.position where live";
    let row = database.client.query_one(query, &[]).await.unwrap();
    Place { epochs: row.get(0), next: row.get(1) }
}

fn profile(command: &str, pid: u32) -> Child {
    let command = command.replace("{pid}", &pid.to_string());
    eprintln!("      {command}");
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::null());
    child::spawn_bound(shell, LastSignal::Terminate).unwrap()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// Bytes of all files below a directory.
pub fn disk(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => disk(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Copies an image store that no process has open.
pub fn copy_state(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_state(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
