//! The figures: medians with their spread, rates, ratios, and the tables for people.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::machine::Machine;
use super::partitions::Memory;
use super::recovery::Recovery;
use super::size::Sizes;
use super::stage::Used;
use super::{product, rival};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Stream by stream.
    pub results: Vec<Measured>,
    /// After kill -9, by number of records.
    pub recoveries: Vec<Recovery>,
    /// Many partitions.
    pub memory: Option<Memory>,
}

/// One stream at one number of records.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Which.
    pub stream: &'static str,
    /// Records.
    pub records: u32,
    /// Events after the baseline.
    pub events: u64,
    /// Changes among them.
    pub changes: u64,
    /// Partitions.
    pub partitions: i32,
    /// Bytes of key and value, on average, before compression.
    pub message_bytes: f64,
    /// How the topic's batches are compressed.
    pub compression: String,
    /// The pass in which each record is seen for the first time.
    pub baseline: product::Run,
    /// The history after it.
    pub baseline_sizes: Sizes,
    /// The product over the stream.
    pub product: Vec<ProductRun>,
    /// Everybody else over the stream or its beginning.
    pub rivals: Vec<RivalRuns>,
}

/// The product, once.
#[derive(Debug, Serialize)]
pub struct ProductRun {
    /// What it took.
    pub run: product::Run,
    /// The history after it.
    pub sizes: Sizes,
}

/// A rival's runs, in the order of the product's.
#[derive(Debug, Serialize)]
pub struct RivalRuns {
    /// Name.
    pub name: String,
    /// Runs.
    pub runs: Vec<rival::Run>,
}

/// Median, least and greatest of a few runs.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// Of no run there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
        Some(Spread { median, least, most })
    }
}

/// `median (least–most)`, whole numbers with separators, small ones with two digits that count.
impl Display for Spread {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let text = if self.least == self.most {
            short(self.median)
        } else {
            format!("{} ({}-{})", short(self.median), short(self.least), short(self.most))
        };
        f.pad(&text)
    }
}

/// A figure as people read it.
pub fn short(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 1_000.0 => grouped(value.round() as i64),
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A whole number with separators.
pub fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_string() } else { String::new() };
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A row of the table: one who consumed, over several runs.
struct Line<'a> {
    name: &'a str,
    runs: Vec<(u64, Used)>,
}

impl Line<'_> {
    fn spread(&self, figure: impl Fn(f64, &Used) -> f64) -> String {
        let values = self.runs.iter().map(|(events, used)| figure(*events as f64, used));
        Spread::of(values).map_or("-".into(), |spread| spread.to_string())
    }

    fn write(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "  {:<34} {:>27} {:>21} {:>21} {:>19} {:>27}",
            self.name,
            self.spread(|events, used| events / used.wall),
            self.spread(|events, used| used.own / events * 1e6),
            self.spread(|events, used| used.postgres / events * 1e6),
            self.spread(|events, used| used.kafka / events * 1e6),
            self.spread(|events, used| events / used.own),
        )
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Machine { hardware, system, load, commit, build, librdkafka, java, postgres } = &self.machine;
        writeln!(f, "machine   {hardware}; {system}; load before {load}")?;
        writeln!(f, "measured  commit {commit}; {build}")?;
        writeln!(f, "with      librdkafka {librdkafka}; Kafka 4.1.1 on {java}; PostgreSQL {postgres}")?;
        for result in &self.results {
            write!(f, "\n{result}")?;
        }
        for recovery in &self.recoveries {
            write!(f, "\n{recovery}")?;
        }
        if let Some(memory) = &self.memory {
            write!(f, "\n{memory}")?;
        }
        Ok(())
    }
}

impl Display for Measured {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {} records: {} events of {} bytes, compression {}, with {} changes, {} partitions; median (least-most) of {}",
            self.stream,
            grouped(i64::from(self.records)),
            grouped(self.events as i64),
            short(self.message_bytes),
            self.compression,
            grouped(self.changes as i64),
            self.partitions,
            self.product.len()
        )?;
        writeln!(
            f,
            "\n  {:<34} {:>27} {:>21} {:>21} {:>19} {:>27}",
            "", "events/s on the clock", "µs CPU/event: own", "Postgres", "Kafka", "events/s per core of own"
        )?;
        let product: Vec<(u64, Used)> = self.product.iter().map(|one| (one.run.events, one.run.used)).collect();
        Line { name: "afterimage run", runs: product.clone() }.write(f)?;
        for rival in &self.rivals {
            let runs = rival.runs.iter().map(|run| (run.events, run.used)).collect();
            Line { name: &rival.name, runs }.write(f)?;
        }
        let baseline = vec![(self.baseline.events, self.baseline.used)];
        Line { name: "afterimage run, first sights", runs: baseline }.write(f)?;

        if !self.rivals.is_empty() {
            writeln!(f, "\n  {:<34} {:>27} {:>21}", "afterimage against", "on the clock", "per core of own CPU")?;
        }
        for rival in &self.rivals {
            let ratio = |figure: fn(f64, &Used) -> f64| {
                let pairs = product.iter().zip(&rival.runs);
                let values = pairs.map(|((events, used), other)| {
                    figure(*events as f64, used) / figure(other.events as f64, &other.used)
                });
                Spread::of(values).map_or("-".into(), |spread| format!("{spread} x"))
            };
            writeln!(
                f,
                "  {:<34} {:>27} {:>21}",
                rival.name,
                ratio(|events, used| events / used.wall),
                ratio(|events, used| events / used.own)
            )?;
        }
        self.write_sizes(f)?;
        self.write_process(f)
    }
}

impl Measured {
    fn over_runs(&self, figure: impl Fn(&ProductRun) -> f64) -> String {
        Spread::of(self.product.iter().map(figure)).map_or("-".into(), |spread| spread.to_string())
    }

    fn write_sizes(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (first, changes) = (&self.baseline_sizes, self.changes as f64);
        let growth =
            |figure: fn(&Sizes) -> i64| self.over_runs(|one| (figure(&one.sizes) - figure(first)) as f64 / changes);
        writeln!(f, "\n  bytes in PostgreSQL after vacuum")?;
        writeln!(
            f,
            "    per change       {} with indexes ({} of it); later keyframes {}; registry and all else {}; write-ahead log {}",
            growth(|sizes| sizes.deltas + sizes.delta_indexes),
            growth(|sizes| sizes.delta_indexes),
            self.over_runs(|one| later_keyframes(&one.sizes) / changes),
            growth(|sizes| sizes.registry + sizes.rest),
            self.over_runs(|one| one.run.wal as f64 / changes),
        )?;
        let records = f64::from(self.records);
        writeln!(
            f,
            "    per record       first image {}, registry {}, write-ahead log {}",
            short(first.keyframes as f64 / records),
            short(first.registry as f64 / records),
            short(self.baseline.wal as f64 / records)
        )
    }

    fn write_process(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "  the process        peak {} MB resident; image store {} MB on disk; {} s to the claim ({} s CPU); {} s CPU after the last event",
            self.over_runs(|one| megabytes(one.run.peak_memory)),
            self.over_runs(|one| megabytes(one.run.state)),
            self.over_runs(|one| one.run.startup.wall),
            self.over_runs(|one| one.run.startup.own),
            self.over_runs(|one| one.run.afterwards),
        )?;
        // Of the last run: enough to see who works and who waits.
        let Some(last) = self.product.last() else { return Ok(()) };
        let mut threads: Vec<_> = last.run.threads.iter().filter(|(_, seconds)| **seconds >= 0.01).collect();
        threads.sort_by(|a, b| b.1.total_cmp(a.1));
        let share = |seconds: f64| 100.0 * seconds / last.run.used.wall;
        let shown: Vec<String> =
            threads.iter().take(8).map(|(name, seconds)| format!("{name} {:.0} %", share(**seconds))).collect();
        writeln!(f, "    its threads      {} of the clock", shown.join(", "))?;
        let others = self.product.iter().map(|one| one.run.used);
        let others = others.chain(self.rivals.iter().flat_map(|rival| rival.runs.iter().map(|run| run.used)));
        let Some(busy) = Spread::of(others.map(|used| used.others / used.wall)) else { return Ok(()) };
        writeln!(f, "  the machine        {busy} cores busy with other things while this was measured")?;
        if busy.most > 0.3 {
            writeln!(
                f,
                "                     so what is said by the clock is too low, for everybody: trust the CPU figures"
            )?;
        }
        Ok(())
    }
}

/// Bytes of keyframes that are not first images, indexes shared out by their own bytes.
fn later_keyframes(sizes: &Sizes) -> f64 {
    sizes.keyframes as f64 * (1.0 - sizes.first_images)
}
