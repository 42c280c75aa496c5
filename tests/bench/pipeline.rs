//! `make bench`: the product over prepared topics, on real Kafka and real PostgreSQL, beside librdkafka alone and the
//! article's listener in the same run. See README.md in this folder for what is measured and how.

mod account;
mod check;
mod cpu;
mod feed;
mod listener;
mod machine;
mod options;
mod partitions;
mod poller;
mod product;
mod recovery;
mod report;
mod restore;
mod rival;
mod size;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use afterimage::demo::scratch::{self, ScratchDir};
use clap::Parser;

use account::{Load, Source};
use check::Expected;
use machine::Machine;
use options::{Options, Part, Stream};
use product::{Deployment, Product};
use report::{Measured, ProductRun, Report, RivalRuns};
use rival::{Kind, Order};
use stage::Stage;

/// Start of the names of this program's own directories.
const PREFIX: &str = "afterimage-bench";

/// The rivals: name, kind, and the most messages that one run reads. The listeners' rates settle within seconds.
const RIVALS: [(&str, Kind, u64); 4] = [
    ("librdkafka alone, poll", Kind::Poll, u64::MAX),
    ("librdkafka alone, batches", Kind::Batch, u64::MAX),
    ("listener, a commit for each row", Kind::Listener { rows: 1 }, 30_000),
    ("listener, 1,000 rows a commit", Kind::Listener { rows: 1_000 }, 200_000),
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(rival::ARGUMENT) {
        rival::main(&args.next().expect("an order"));
        return ExitCode::SUCCESS;
    }
    let options = Options::parse().settled();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match runtime.block_on(bench(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        // A wrong result has no figures, those of the other streams included.
        Err(wrong) => {
            eprintln!("\nafterimage: the history is not what was produced, so there are no figures\n{wrong}");
            ExitCode::FAILURE
        }
    }
}

/// The error is what is wrong with the product's result.
async fn bench(options: &Options) -> Result<(), String> {
    if !machine::is_optimised() {
        eprintln!("afterimage: this is not an optimised build; `make bench` makes one");
    }
    scratch::sweep_stale(PREFIX);
    let dir = ScratchDir::create(PREFIX).unwrap();
    eprintln!("starting Kafka and PostgreSQL");
    let stage = Stage::start().await;
    let machine = Machine::here(stage.postgres_says().await, dir.path());
    let mut bench = Bench { options, product: Product::copy_to(dir.path()), stage, dir, kept: Vec::new() };
    let mut report = Report { machine, results: Vec::new(), recoveries: Vec::new(), memory: None };
    for records in options.records(&[50_000, 500_000]) {
        for stream in options.streams() {
            report.results.push(bench.measure(stream, records).await?);
        }
    }
    if options.wants(Part::Recovery) {
        for records in options.records(&[1_000_000]) {
            let (stage, product, dir) = (&bench.stage, &bench.product, bench.dir.path());
            report.recoveries.push(recovery::measure(options, stage, product, dir, records).await?);
        }
    }
    if options.wants(Part::Partitions) {
        let (stage, product, dir) = (&bench.stage, &bench.product, bench.dir.path());
        report.memory = Some(partitions::measure(options, stage, product, dir).await?);
    }
    if options.json {
        eprintln!("\n{report}");
        println!("{}", serde_json::to_string_pretty(&report).unwrap());
    } else {
        println!("\n{report}");
    }
    if options.keep {
        bench.keep().await;
    }
    Ok(())
}

struct Bench<'a> {
    options: &'a Options,
    product: Product,
    stage: Stage,
    dir: ScratchDir,
    kept: Vec<Kept>,
}

/// What `--keep` leaves.
struct Kept {
    /// Who made it.
    what: String,
    /// Where it is.
    database: String,
    /// What it was made of.
    topic: String,
}

impl Bench<'_> {
    /// One stream at one number of records.
    async fn measure(&mut self, stream: Stream, records: u32) -> Result<Measured, String> {
        let Options { repeat, seed, compression, .. } = self.options;
        let partitions = self.options.partitions(6);
        let events = self.options.events(stream);
        let mut load = Load { records, events, noops: stream.noops(), seed: *seed, from: 0 };
        // The stream ends about now: what stands in the history is as long as it is in real life.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
        load.from = now - now % 1_000_000 - load.span();
        let mut source = Source::new(load);
        let mut expected = Expected::new(records, events, events * u64::from(10_000 - load.noops) / 10_000);
        let topic = format!("{}.salesforce.account", support::names::unique("bench"));
        let group = format!("afterimage.{topic}");
        let settings = self.options.settings();
        let stage = &self.stage;
        let mut kept = Vec::new();

        eprintln!("\n{}, {records} records, {events} events", stream.name());
        eprintln!("   filling the topic: each record once");
        stage.create_topic(&topic, partitions).await;
        let (middle, _) = stage.fill(&topic, &mut source, &mut expected, u64::from(records), compression).await;
        assert_eq!(middle.values().sum::<i64>(), i64::from(records), "the broker has another number of messages");

        let state = self.dir.path().join(format!("state-{topic}"));
        let topics = [topic.clone()];
        let deployment = Deployment { topics: &topics, group: &group, state: &state, settings: &settings };
        let first = stage.create_database().await;
        let watched = stage.watch(&first).await;
        self.product.migrate(stage, &watched, &deployment);
        eprintln!("   afterimage run: first sights");
        let baseline = self.product.run(stage, &watched, &deployment, &middle, None).await;
        let baseline_sizes = size::measure(&watched.client).await;
        expected.compare(&source, false, &watched.client).await?;
        watched.close(stage).await;

        eprintln!("   filling the topic: the stream");
        let (ends, bytes) = stage.fill(&topic, &mut source, &mut expected, events, compression).await;
        let all = u64::from(records) + events;
        assert_eq!(ends.values().sum::<i64>() as u64, all, "the broker has another number of messages");

        let mut runs = Vec::new();
        let mut rivals: Vec<RivalRuns> = Vec::new();
        for round in 1..=*repeat {
            eprintln!("   afterimage run, {round} of {repeat}");
            let copy = stage.copy_database(&first).await;
            let watched = stage.watch(&copy).await;
            let own_state = self.dir.path().join(format!("state-{copy}"));
            product::copy_state(&state, &own_state);
            let deployment = Deployment { state: &own_state, ..deployment };
            let profiler = self.options.profiler.as_deref();
            let run = self.product.run(stage, &watched, &deployment, &ends, profiler).await;
            let sizes = size::measure(&watched.client).await;
            expected.compare(&source, true, &watched.client).await?;
            watched.close(stage).await;
            if self.options.keep {
                let what = format!("{}, afterimage run, {round} of {repeat}", stream.name());
                kept.push(Kept { what, database: copy, topic: topic.clone() });
            } else {
                stage.drop_database(&copy).await;
                std::fs::remove_dir_all(&own_state).unwrap();
            }
            runs.push(ProductRun { run, sizes });
            if !self.options.alone {
                kept.extend(self.rivals(&topic, &middle, events, &mut rivals).await);
            }
        }
        if self.options.keep {
            let what = format!("{}, first sights", stream.name());
            kept.insert(0, Kept { what, database: first, topic: topic.clone() });
        } else {
            stage.drop_database(&first).await;
            stage.broker.delete_topic(&topic).await;
            std::fs::remove_dir_all(&state).unwrap();
        }
        self.kept.append(&mut kept);
        Ok(Measured {
            stream: stream.name(),
            records,
            events,
            changes: expected.changes(),
            partitions,
            message_bytes: bytes as f64 / events as f64,
            compression: compression.clone(),
            baseline,
            baseline_sizes,
            product: runs,
            rivals,
        })
    }

    /// Each rival once over the stream; with `--keep`, the databases they wrote to.
    async fn rivals(&self, topic: &str, from: &BTreeMap<i32, i64>, events: u64, all: &mut Vec<RivalRuns>) -> Vec<Kept> {
        let mut kept = Vec::new();
        for (at, (name, kind, most)) in RIVALS.into_iter().enumerate() {
            eprintln!("   {name}");
            let database = self.stage.create_database().await;
            let watched = self.stage.watch(&database).await;
            let order = Order {
                kind,
                brokers: self.stage.broker.bootstrap(),
                topic: topic.into(),
                from: from.clone(),
                messages: events.min(most),
                url: watched.url.clone(),
            };
            let run = rival::run(&self.stage, &watched, &order);
            watched.close(&self.stage).await;
            if self.options.keep && matches!(kind, Kind::Listener { .. }) {
                kept.push(Kept { what: name.into(), database, topic: topic.into() });
            } else {
                self.stage.drop_database(&database).await;
            }
            if all.len() == at {
                all.push(RivalRuns { name: name.into(), runs: Vec::new() });
            }
            all[at].runs.push(run);
        }
        kept
    }

    /// Until Ctrl-C.
    async fn keep(&self) {
        eprintln!("\nStill running, until Ctrl-C:");
        for Kept { what, database, topic } in &self.kept {
            eprintln!("  psql '{}'    # {what}; topic {topic}", self.stage.postgres.url(database));
        }
        eprintln!("  Kafka at {}", self.stage.broker.bootstrap());
        eprintln!("  configurations, logs and image stores in {}", self.dir.path().display());
        tokio::signal::ctrl_c().await.unwrap();
    }
}
