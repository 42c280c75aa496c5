//! `afterimage demo`: everything on one machine, nothing to configure.
//!
//! A private Postgres, an embedded broker and a seeded simulator of two orgs stand in for the outside world; the
//! product itself is what anybody runs: `afterimage migrate`, and `afterimage run` in one or more processes. The demo
//! feeds the simulated changes through, kills a worker on the way, waits until the sink's positions have reached the end
//! of every partition, and tells what came out, checked against the simulator's own account. The stand-ins can be
//! replaced one by one: the broker by a real Kafka, the simulated messages by real Debezium on a real source.
//!
//! All of it listens on 127.0.0.1 only, and is gone afterwards: after an ordinary end, after Ctrl-C, and after
//! `kill -9` ([`child`], [`scratch`]).

pub mod backlog;
pub mod broker;
pub mod capture;
pub mod child;
pub mod connect;
pub mod crash;
mod feed;
pub mod java;
pub mod kafka;
pub mod options;
pub mod patience;
pub mod postgres;
mod progress;
pub mod rate;
pub mod report;
pub mod scratch;
pub mod settings;
pub mod simulator;
mod sink;
pub mod source;
mod space;
pub mod workers;

use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Error, Result, anyhow, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use broker::Broker;
use broker::guest::Guest;
use capture::Capture;
use feed::Feed;
use java::Java;
use kafka::{PrivateKafka, Size};
pub use options::{BrokerChoice, CaptureChoice, DemoOptions, Usage, WorkerCommand};
use patience::off_the_runtime;
use postgres::{PostgresOptions, PrivatePostgres};
use progress::{Progress, say};
pub use report::DemoReport;
pub use scratch::BadPlace;
use scratch::ScratchDir;
use simulator::{SimOptions, Simulator};
use sink::Sink;
use workers::Workers;

/// Start of the names of the demo's directories.
const PREFIX: &str = "afterimage-demo";
/// The database that receives the history.
const DATABASE: &str = "history";
/// How often it is looked what has died while everything is kept.
const WATCH: Duration = Duration::from_millis(250);

/// The result could not be written to stdout.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unprinted(pub io::Error);

/// The demo was ended by a signal before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything the demo had started is stopped and removed")]
pub struct Interrupted;

/// Runs the demo from beginning to end, prints its story, laid out for so many columns (or JSON), to stdout, and gives it
/// back. The result may say that a check failed ([`DemoReport::ok`]): that is for the caller's exit code.
///
/// # Errors
/// [`Usage`] and [`BadPlace`] before anything is started; [`Interrupted`] after SIGINT, SIGTERM or SIGHUP; [`Unprinted`];
/// otherwise when a part does not start, ends, or gets stuck; also when what a demo is kept for has died.
pub async fn run(options: DemoOptions, worker: WorkerCommand, columns: usize) -> Result<DemoReport> {
    options.check()?;
    if let Some(note) = scratch::check_place()? {
        say(&format!("afterimage: {note}"));
    }
    let mut signals = Signals::listen()?;
    // Leftovers of demos that were killed together with what watched them.
    postgres::sweep_stale();
    kafka::sweep_stale();
    connect::sweep_stale();
    scratch::sweep_stale(PREFIX);
    space::check(&options)?;

    let told = tokio::select! {
        told = tell(&options, &worker, columns) => told?,
        () = signals.received() => bail!(Interrupted),
    };
    let (mut stage, report) = told;
    if options.keep {
        stage.invite(&options, &worker);
        tokio::select! {
            ended = stage.watch() => return Err(ended),
            () = signals.received() => {}
        }
    }
    stage.close();
    Ok(report)
}

/// Everything that runs. Fields are dropped in order: the workers first, the directory with their logs last.
struct Stage {
    workers: Workers,
    capture: Option<Capture>,
    broker: Broker,
    postgres: PrivatePostgres,
    dir: ScratchDir,
}

/// What is played on the stage.
struct Play<'a> {
    options: &'a DemoOptions,
    worker: &'a WorkerCommand,
    java: Java,
    simulator: Simulator,
    prefix: String,
    partitions: i32,
    progress: Progress,
    begun: Instant,
}

async fn tell(options: &DemoOptions, worker: &WorkerCommand, columns: usize) -> Result<(Stage, DemoReport)> {
    let begun = Instant::now();
    let progress = Progress::new();
    let choice = options.broker();
    let is_live = options.capture == CaptureChoice::Debezium;
    // First whatever can be missing.
    let java = Java::of_user();
    if is_live || choice == BrokerChoice::Kafka {
        java.check()?;
    }
    let guest = match &choice {
        BrokerChoice::Given(address) => Some(Guest::arrive(address).await?),
        BrokerChoice::Embedded | BrokerChoice::Kafka => None,
    };
    let prefix = guest.as_ref().map_or_else(String::new, |guest| guest.prefix().to_string());
    let sim_options = SimOptions {
        orgs: options.orgs.clone(),
        release: options.debezium,
        prefix: prefix.clone(),
        ..SimOptions::new(options.events())
    };
    let partitions = sim_options.partitions;
    let simulator = match options.capture {
        CaptureChoice::Simulated => Simulator::new(options.seed, sim_options),
        CaptureChoice::Debezium => Simulator::live(options.seed, sim_options, now),
    };
    let topics = simulator.topics();
    let names: Vec<&str> = topics.iter().map(|topic| &*topic.name).collect();
    let failed = |error| space::explained(error, String::new);

    let dir = ScratchDir::create(PREFIX).context("cannot make a directory for the demo")?;
    let broker = match (&choice, guest) {
        (_, Some(guest)) => Broker::given(guest, &names, partitions).await?,
        (BrokerChoice::Kafka, None) => {
            progress.phase("starting a private Kafka (the first time, Maven fetches it)");
            let java = java.clone();
            let kafka =
                off_the_runtime(move |stop| PrivateKafka::start(&java, Size::Small, stop)).await.map_err(failed)?;
            Broker::private(kafka, &names, partitions).await?
        }
        _ => Broker::embedded(names.iter().copied(), partitions)?,
    };
    progress.phase("starting a private Postgres");
    let postgres = PrivatePostgres::start(PostgresOptions::default()).map_err(failed)?;
    let mut stage = Stage { workers: Workers::default(), capture: None, broker, postgres, dir };
    let play = Play { options, worker, java, simulator, prefix, partitions, progress, begun };
    match stage.play(play).await {
        // What is wrong with stdout is not looked for elsewhere.
        Ok(report) => print(options, &report, columns).map(|()| (stage, report)),
        Err(error) => Err(space::explained(error, || stage.postgres.log() + &stage.workers.logs())),
    }
}

impl Stage {
    /// From an empty database to the report.
    async fn play(&mut self, play: Play<'_>) -> Result<DemoReport> {
        let Play { options, worker, java, mut simulator, prefix, partitions, mut progress, begun } = play;
        let Stage { workers, capture, broker, postgres, dir } = self;
        let topics = simulator.topics();
        postgres.create_database(DATABASE).await?;
        let url = postgres.url(DATABASE);
        workers::migrate(worker, &url, dir.path()).await?;
        if options.capture == CaptureChoice::Debezium {
            progress.phase("starting the source database and Debezium (the first time, Maven fetches it)");
            let brokers = broker.bootstrap();
            *capture = Some(Capture::start(&java, options.debezium, &simulator, brokers, partitions).await?);
        }

        progress.phase("starting workers");
        for number in 1..=options.workers {
            let name = format!("demo-{number}");
            let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, postgres::free_port()?));
            let state = dir.subdir(&format!("state-{number}"), None)?;
            let settings = settings::WorkerSettings {
                name: &name,
                brokers: broker.bootstrap(),
                prefix: &prefix,
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
        progress.begin(options.events());
        let processing = Instant::now();
        let mut feed = Feed::new(all, &sink, workers, worker, &mut progress);
        let ends = match capture {
            Some(capture) => {
                feed.captured(&mut simulator, capture).await?;
                capture.ends()
            }
            None => {
                feed.simulated(&mut simulator, broker).await?;
                broker.flush().await?
            }
        };
        feed.until_committed().await?;
        let crash = feed.crash();
        let processed = processing.elapsed();
        progress.phase("asking the time machine");

        let listener = postgres.url(report::LISTENER_DATABASE);
        postgres.create_database(report::LISTENER_DATABASE).await?;
        let facts = report::Facts {
            options,
            simulator: &simulator,
            ends: &ends,
            crash,
            connector_kills: capture.as_ref().map_or(0, Capture::kills),
            processed,
            total: begun.elapsed(),
        };
        let report = report::gather(&facts, &sink, &url, &listener).await?;
        progress.end();
        Ok(report)
    }
}

fn print(options: &DemoOptions, report: &DemoReport, columns: usize) -> Result<()> {
    let text = if options.json { serde_json::to_string_pretty(report)? + "\n" } else { format!("{report:columns$}") };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has seen enough (`| head`) is not a failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => bail!(Unprinted(error)),
        _ => Ok(()),
    }
}

/// Microseconds since 1970-01-01 UTC, now.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl Stage {
    /// How to look around while everything is still running. To stderr: stdout may be JSON.
    fn invite(&self, options: &DemoOptions, worker: &WorkerCommand) {
        let url = self.postgres.url(DATABASE);
        let org = options.orgs.first().map_or("", String::as_str);
        say("\nStill running, until Ctrl-C:");
        say(&format!("  psql '{url}'"));
        for (what, query) in report::questions(org) {
            say(&format!("  psql '{url}' -c \"{query}\"    # {what}"));
        }
        if let Some(first) = self.workers.iter().next() {
            // Variables win over the file, and whoever has some has them for the real thing.
            let (program, config) = (worker.program.display(), first.config().display());
            say(&format!("  env -i '{program}' status --config '{config}'    # where every partition stands"));
        }
        for worker in self.workers.iter() {
            say(&format!("  curl http://{}/metrics    # worker {}", worker.metrics, worker.name));
        }
        if let Some(capture) = &self.capture {
            let url = capture.source_url();
            say(&format!("  psql '{url}'    # the captured source; what you change there is history a moment later"));
        }
        say(&format!("  Kafka: {}", self.broker.bootstrap()));
    }

    /// Says what dies of what is kept. Ends when the history's server is dead: there is nothing left to look at.
    async fn watch(&mut self) -> Error {
        loop {
            if let Some(ended) = self.postgres.ended() {
                let log = child::tail(&ended.log, 25);
                let error =
                    anyhow!("{} has ended ({}), and with it what there was to see:\n{log}", ended.what, ended.status);
                return space::explained(error, || self.postgres.log());
            }
            let captured = self.capture.as_mut().map(Capture::ended).unwrap_or_default();
            for ended in self.workers.ended().into_iter().chain(self.broker.ended()).chain(captured) {
                say(&format!("afterimage: {ended}"));
            }
            tokio::time::sleep(WATCH).await;
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

struct Signals(Vec<Signal>);

impl Signals {
    fn listen() -> Result<Self> {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
        // Who starts it under nohup wants it to survive the terminal.
        if !is_ignored(&fs::read_to_string("/proc/self/status").unwrap_or_default(), libc::SIGHUP) {
            kinds.push(SignalKind::hangup());
        }
        kinds.into_iter().map(signal).collect::<io::Result<_>>().map(Signals).context("cannot listen for signals")
    }

    async fn received(&mut self) {
        let signals = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures::future::select_all(signals).await;
    }
}

/// Whether a process ignores a signal, by its `/proc/<pid>/status`.
fn is_ignored(status: &str, number: libc::c_int) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (number - 1) & 1 == 1
}

#[cfg(test)]
mod tests;
