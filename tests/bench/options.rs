//! The command line of `make bench ARGS="…"`.

use clap::{Parser, ValueEnum};

/// Which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stream {
    /// 95 % of the events change nothing.
    #[value(name = "95")]
    Mostly,
    /// 15 of 21 events change nothing, as for the article's account.
    #[value(name = "71")]
    Article,
    /// Every event is a change.
    #[value(name = "all")]
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

/// Measures `afterimage run` on real Kafka and PostgreSQL, beside librdkafka alone and the article's listener.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench", disable_version_flag = true)]
pub struct Options {
    /// Only these streams
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Stream>,
    /// Records in the table; several for several runs
    #[arg(long, value_delimiter = ',', default_values_t = [50_000, 500_000])]
    pub records: Vec<u32>,
    /// Events of a stream, after each record was seen once [default: 3,000,000, 2,000,000 or 1,000,000 by stream]
    #[arg(long)]
    pub events: Option<u64>,
    /// How often each is measured; the median is reported
    #[arg(long, default_value_t = 3)]
    pub repeat: usize,
    /// Partitions of the topic
    #[arg(long, default_value_t = 6)]
    pub partitions: i32,
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
        if self.only.is_empty() { Stream::value_variants().to_vec() } else { self.only.clone() }
    }

    /// Events of a stream.
    pub fn events(&self, stream: Stream) -> u64 {
        self.events.unwrap_or(if self.quick { stream.events() / 10 } else { stream.events() })
    }

    /// With what `--quick` means applied.
    pub fn settled(mut self) -> Options {
        if self.quick {
            self.records = vec![50_000];
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
