//! `afterimage demo`: everything on one machine, nothing to configure.
//!
//! A private Postgres, an embedded broker and a seeded simulator of two orgs stand in for the outside world; the
//! product itself is what anybody runs: `afterimage migrate`, and `afterimage run` in one or two processes. The demo
//! feeds the simulated changes through, waits until the sink's positions have reached the end of every partition, and
//! tells what came out, checked against the simulator's own account.
//!
//! All of it listens on 127.0.0.1 only, and is gone afterwards: after an ordinary end, after Ctrl-C, and after
//! `kill -9` ([`child`], [`scratch`]).

pub mod backlog;
pub mod broker;
pub mod child;
pub mod options;
pub mod postgres;
mod progress;
pub mod report;
pub mod scratch;
pub mod settings;
pub mod simulator;
mod sink;
pub mod workers;

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use backlog::{Backlog, TopicPartition};
use broker::EmbeddedBroker;
pub use options::{DemoOptions, WorkerCommand};
use postgres::{PostgresOptions, PrivatePostgres};
use progress::Progress;
pub use report::DemoReport;
use scratch::ScratchDir;
use simulator::{SimOptions, Simulator};
use sink::Sink;
use workers::Workers;

/// Start of the names of the demo's directories.
const PREFIX: &str = "afterimage-demo";
/// The database that receives the history.
const DATABASE: &str = "history";
/// If nothing is committed for this long although something waits, the demo gives up and shows the workers' logs.
const STUCK: Duration = Duration::from_secs(90);
/// How often the sink is asked for its positions while the demo waits for them.
const ASK: Duration = Duration::from_millis(25);

/// The demo was ended by a signal before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything the demo had started is stopped and removed")]
pub struct Interrupted;

/// Runs the demo from beginning to end, prints its story (or JSON) to stdout, and gives it back. The result may say
/// that a check failed ([`DemoReport::ok`]): that is for the caller's exit code.
///
/// # Errors
/// [`Interrupted`] after SIGINT or SIGTERM; otherwise when a part does not start, ends, or gets stuck.
pub async fn run(options: DemoOptions, worker: WorkerCommand) -> Result<DemoReport> {
    options.check()?;
    let mut signals = Signals::listen()?;
    // Leftovers of demos that were killed together with what watched them.
    postgres::sweep_stale();
    scratch::sweep_stale(PREFIX);

    let told = tokio::select! {
        told = tell(&options, &worker) => told?,
        () = signals.received() => bail!(Interrupted),
    };
    let (stage, report) = told;
    if options.keep {
        stage.invite();
        signals.received().await;
    }
    stage.close();
    Ok(report)
}

/// Everything that runs. Fields are dropped in order: the workers first, the directory with their logs last.
struct Stage {
    workers: Workers,
    _broker: EmbeddedBroker,
    postgres: PrivatePostgres,
    _dir: ScratchDir,
}

async fn tell(options: &DemoOptions, worker: &WorkerCommand) -> Result<(Stage, DemoReport)> {
    let begun = Instant::now();
    let progress = Progress::new();
    let mut simulator =
        Simulator::new(options.seed, SimOptions { orgs: options.orgs.clone(), ..SimOptions::new(options.events) });
    let topics = simulator.topics();
    let partitions = SimOptions::new(options.events).partitions;

    progress.phase("starting a private Postgres and an embedded broker");
    let dir = ScratchDir::create(PREFIX).context("cannot make a directory for the demo")?;
    let postgres = PrivatePostgres::start(PostgresOptions::default())?;
    postgres.create_database(DATABASE).await?;
    let url = postgres.url(DATABASE);
    let broker = EmbeddedBroker::start(topics.iter().map(|topic| &*topic.name), partitions)?;
    workers::migrate(worker, &url, dir.path()).await?;

    progress.phase("starting workers");
    let mut workers = Workers::default();
    for number in 1..=options.workers {
        let name = format!("demo-{number}");
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, postgres::free_port()?));
        let state = dir.subdir(&format!("state-{number}"), None)?;
        let settings = settings::WorkerSettings {
            name: &name,
            brokers: broker.bootstrap(),
            url: &url,
            state: &state,
            metrics,
            topics: &topics,
        };
        let config = dir.path().join(format!("worker-{number}.toml"));
        fs::write(&config, settings.to_toml()?)?;
        workers.start(worker, &name, metrics, &config)?;
    }

    let sink = Sink::connect(&url).await?;
    let all = topics.iter().flat_map(|topic| (0..partitions).map(|partition| (topic.name.clone(), partition)));
    let mut feed = Feed { backlog: Backlog::new(all), sink: &sink, workers: &mut workers, moved: Instant::now() };
    progress.begin(options.events);
    let processing = Instant::now();
    feed.all(&mut simulator, &broker, &progress).await?;
    let ends = broker.flush().await?;
    feed.until_committed(&progress).await?;
    let processed = processing.elapsed();
    progress.phase("asking the time machine");

    let listener = postgres.url(report::LISTENER_DATABASE);
    postgres.create_database(report::LISTENER_DATABASE).await?;
    let facts = report::Facts { options, simulator: &simulator, ends: &ends, processed, total: begun.elapsed() };
    let report = report::gather(&facts, &sink, &url, &listener).await?;
    progress.end();
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    out.flush()?;
    drop(out);
    Ok((Stage { workers, _broker: broker, postgres, _dir: dir }, report))
}

impl Stage {
    /// How to look around while everything is still running. To stderr: stdout may be JSON.
    fn invite(&self) {
        eprintln!("\nStill running, until Ctrl-C:");
        eprintln!("  psql '{}'", self.postgres.url(DATABASE));
        for worker in self.workers.iter() {
            eprintln!("  curl http://{}/metrics    # worker {}", worker.metrics, worker.name);
        }
    }

    fn close(mut self) {
        for (name, status) in self.workers.stop() {
            if status.is_none_or(|status| !status.success()) {
                let how = status.map_or("was killed".to_string(), |status| format!("ended with {status}"));
                tracing::warn!(worker = name, "a worker {how}");
            }
        }
    }
}

/// Carries messages from the simulator to the broker, no faster than the workers commit.
struct Feed<'a> {
    backlog: Backlog,
    sink: &'a Sink,
    workers: &'a mut Workers,
    /// When a position last moved.
    moved: Instant,
}

impl Feed<'_> {
    async fn all(&mut self, simulator: &mut Simulator, broker: &EmbeddedBroker, progress: &Progress) -> Result<()> {
        let mut number = 0_u64;
        while let Some(message) = simulator.next() {
            let to: TopicPartition = (message.topic, message.partition);
            let size = message.key.as_ref().map_or(0, Vec::len) + message.value.as_ref().map_or(0, Vec::len);
            while !self.backlog.admits(&to, size) {
                self.ask(progress, simulator).await?;
            }
            broker.produce(&to, message.key.as_deref(), message.value.as_deref(), message.timestamp).await?;
            self.backlog.produced(&to, size);
            number += 1;
            if number.is_multiple_of(500) {
                // A signal gets its turn, and a worker that could not start is noticed early.
                tokio::task::yield_now().await;
                self.workers.check()?;
            }
        }
        Ok(())
    }

    async fn until_committed(&mut self, progress: &Progress) -> Result<()> {
        while self.backlog.total_committed() < self.backlog.total_produced() {
            self.update(progress).await?;
            tokio::time::sleep(ASK).await;
        }
        Ok(())
    }

    async fn ask(&mut self, progress: &Progress, simulator: &Simulator) -> Result<()> {
        let before = self.backlog.total_committed();
        self.update(progress).await?;
        progress.show(simulator.totals().events, &self.backlog);
        if self.backlog.total_committed() == before {
            tokio::time::sleep(ASK).await;
        }
        Ok(())
    }

    async fn update(&mut self, progress: &Progress) -> Result<()> {
        let before = self.backlog.total_committed();
        for (partition, next) in self.sink.committed().await? {
            self.backlog.committed(&partition, next);
        }
        if self.backlog.total_committed() > before {
            self.moved = Instant::now();
        }
        progress.waiting(&self.backlog);
        self.workers.check()?;
        if self.moved.elapsed() > STUCK {
            let (committed, produced) = (self.backlog.total_committed(), self.backlog.total_produced());
            let logs = self.workers.logs();
            bail!("nothing was committed for {STUCK:?}, at {committed} of {produced} messages\n{logs}");
        }
        Ok(())
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests;
