//! The command line of `make bench ARGS="…"`.

use clap::{Parser, ValueEnum};

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// 95 % of the events change nothing.
    Mostly,
    /// 15 of 21 events change nothing, as for the article's account.
    Article,
    /// Every event is a change.
    Changes,
}

impl Stream {
    /// Share of no-ops in hundredths of a percent.
    pub fn noops(self) -> u32 {
        match self {
            Stream::Mostly => 9_500,
            Stream::Article => 7_143,
            Stream::Changes => 0,
        }
    }

    /// Events of a run unless the command line says otherwise: ten seconds and more of steady work.
    fn events(self) -> u64 {
        match self {
            Stream::Mostly => 3_000_000,
            Stream::Article => 2_000_000,
            Stream::Changes => 1_000_000,
        }
    }

    /// As it is called in the report.
    pub fn name(self) -> &'static str {
        match self {
            Stream::Mostly => "95 % no-ops",
            Stream::Article => "71 % no-ops",
            Stream::Changes => "every event a change",
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The stream of which 95 % of the events change nothing.
    #[value(name = "95")]
    Mostly,
    /// The stream in which 15 of 21 events change nothing, as for the article's account.
    #[value(name = "71")]
    Article,
    /// The stream in which every event is a change.
    #[value(name = "all")]
    Changes,
    /// From kill -9 to the first new commit, and filling a lost image store again.
    Recovery,
    /// The memory of one worker with many partitions, for half an hour.
    Partitions,
}

impl Part {
    fn stream(self) -> Option<Stream> {
        match self {
            Part::Mostly => Some(Stream::Mostly),
            Part::Article => Some(Stream::Article),
            Part::Changes => Some(Stream::Changes),
            Part::Recovery | Part::Partitions => None,
        }
    }
}

/// Measures `afterimage run` on real Kafka and PostgreSQL, beside librdkafka alone and the article's listener.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench", disable_version_flag = true)]
pub struct Options {
    /// Only these [default: 95,71,all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Records; several for several runs [default: 50,000 and 500,000; recovery 1,000,000; partitions 100,000]
    #[arg(long, value_delimiter = ',')]
    pub records: Vec<u32>,
    /// Events of a stream, after each record was seen once [default: 3,000,000, 2,000,000 or 1,000,000 by stream;
    /// recovery: as many as there are records]
    #[arg(long)]
    pub events: Option<u64>,
    /// How often each is measured; the median is reported
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// Partitions of the topic [default: 6; partitions: 32 in each of 8 topics]
    #[arg(long)]
    pub partitions: Option<i32>,
    /// Messages a second beside recovery, and over many partitions [default: 500, 1,500]
    #[arg(long)]
    pub rate: Option<u32>,
    /// How long many partitions are watched
    #[arg(long, default_value_t = 30)]
    pub minutes: u32,
    /// Compression of the topic's batches
    #[arg(long, default_value = "none", value_parser = ["none", "gzip", "snappy", "lz4", "zstd"])]
    pub compression: String,
    /// Where all randomness comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A first impression: 50,000 records, a tenth of the events, once
    #[arg(long)]
    pub quick: bool,
    /// Only the product, without those it is compared with
    #[arg(long)]
    pub alone: bool,
    /// A line of the product's configuration, as `section.name=value` in TOML; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// A shell command to run beside the product's stream, `{pid}` in it is the worker: perf record -g -p {pid}
    #[arg(long, value_name = "COMMAND")]
    pub profiler: Option<String>,
    /// Leaves servers, databases and topics as they are until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// All figures as JSON on stdout, and the tables on stderr
    #[arg(long)]
    pub json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    pub bench: bool,
}

impl Options {
    /// The streams to measure.
    pub fn streams(&self) -> Vec<Stream> {
        let all = [Part::Mostly, Part::Article, Part::Changes];
        let parts = if self.only.is_empty() { all.as_slice() } else { &self.only };
        parts.iter().copied().filter_map(Part::stream).collect()
    }

    /// Whether a part that is no stream is asked for.
    pub fn wants(&self, part: Part) -> bool {
        self.only.contains(&part)
    }

    /// Numbers of records, `default` unless the command line has its own.
    pub fn records(&self, default: &[u32]) -> Vec<u32> {
        match (self.records.is_empty(), self.quick) {
            (false, _) => self.records.clone(),
            (true, true) => vec![50_000],
            (true, false) => default.to_vec(),
        }
    }

    /// Partitions of a topic, `default` unless the command line has its own.
    pub fn partitions(&self, default: i32) -> i32 {
        self.partitions.unwrap_or(default)
    }

    /// Events of a stream.
    pub fn events(&self, stream: Stream) -> u64 {
        self.events.unwrap_or(if self.quick { stream.events() / 10 } else { stream.events() })
    }

    /// With what `--quick` means applied.
    pub fn settled(mut self) -> Options {
        if self.quick {
            self.records.clear();
            self.repeat = 1;
        }
        self.repeat = self.repeat.max(1);
        self
    }

    /// `--set` as lines of a configuration file.
    pub fn settings(&self) -> String {
        self.set.iter().map(|line| format!("{line}\n")).collect()
    }
}
