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
pub mod workers;

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
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

/// The demo was ended by a signal before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything the demo had started is stopped and removed")]
pub struct Interrupted;

/// Runs the demo from beginning to end, prints its story (or JSON) to stdout, and gives it back. The result may say
/// that a check failed ([`DemoReport::ok`]): that is for the caller's exit code.
///
/// # Errors
/// [`Usage`] before anything is started; [`Interrupted`] after SIGINT or SIGTERM; otherwise when a part does not start,
/// ends, or gets stuck.
pub async fn run(options: DemoOptions, worker: WorkerCommand) -> Result<DemoReport> {
    options.check()?;
    let mut signals = Signals::listen()?;
    // Leftovers of demos that were killed together with what watched them.
    postgres::sweep_stale();
    kafka::sweep_stale();
    connect::sweep_stale();
    scratch::sweep_stale(PREFIX);

    let told = tokio::select! {
        told = tell(&options, &worker) => told?,
        () = signals.received() => bail!(Interrupted),
    };
    let (stage, report) = told;
    if options.keep {
        stage.invite(&options);
        signals.received().await;
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
    _dir: ScratchDir,
}

async fn tell(options: &DemoOptions, worker: &WorkerCommand) -> Result<(Stage, DemoReport)> {
    let begun = Instant::now();
    let mut progress = Progress::new();
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
    let mut simulator = match options.capture {
        CaptureChoice::Simulated => Simulator::new(options.seed, sim_options),
        CaptureChoice::Debezium => Simulator::live(options.seed, sim_options, now),
    };
    let topics = simulator.topics();
    let names: Vec<&str> = topics.iter().map(|topic| &*topic.name).collect();

    let dir = ScratchDir::create(PREFIX).context("cannot make a directory for the demo")?;
    let broker = match (&choice, guest) {
        (_, Some(guest)) => Broker::given(guest, &names, partitions).await?,
        (BrokerChoice::Kafka, None) => {
            progress.phase("starting a private Kafka (the first time, Maven fetches it)");
            let java = java.clone();
            let kafka = off_the_runtime(move |stop| PrivateKafka::start(&java, Size::Small, stop)).await?;
            Broker::private(kafka, &names, partitions).await?
        }
        _ => Broker::embedded(names.iter().copied(), partitions)?,
    };
    progress.phase("starting a private Postgres");
    let postgres = PrivatePostgres::start(PostgresOptions::default())?;
    postgres.create_database(DATABASE).await?;
    let url = postgres.url(DATABASE);
    workers::migrate(worker, &url, dir.path()).await?;
    let mut capture = None;
    if is_live {
        progress.phase("starting the source database and Debezium (the first time, Maven fetches it)");
        let brokers = broker.bootstrap();
        capture = Some(Capture::start(&java, options.debezium, &simulator, brokers, partitions).await?);
    }

    progress.phase("starting workers");
    let mut workers = Workers::default();
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
    let mut feed = Feed::new(all, &sink, &mut workers, worker, &mut progress);
    let ends = match &mut capture {
        Some(capture) => {
            feed.captured(&mut simulator, capture).await?;
            capture.ends()
        }
        None => {
            feed.simulated(&mut simulator, &broker).await?;
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
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    out.flush()?;
    drop(out);
    Ok((Stage { workers, capture, broker, postgres, _dir: dir }, report))
}

/// Microseconds since 1970-01-01 UTC, now.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl Stage {
    /// How to look around while everything is still running. To stderr: stdout may be JSON.
    fn invite(&self, options: &DemoOptions) {
        let url = self.postgres.url(DATABASE);
        let org = options.orgs.first().map_or("", String::as_str);
        eprintln!("\nStill running, until Ctrl-C:");
        eprintln!("  psql '{url}'");
        for (what, query) in report::questions(org) {
            eprintln!("  psql '{url}' -c \"{query}\"    # {what}");
        }
        for worker in self.workers.iter() {
            eprintln!("  curl http://{}/metrics    # worker {}", worker.metrics, worker.name);
        }
        if let Some(capture) = &self.capture {
            eprintln!(
                "  psql '{}'    # the captured source; what you change there is history a moment later",
                capture.source_url()
            );
        }
        eprintln!("  Kafka: {}", self.broker.bootstrap());
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
