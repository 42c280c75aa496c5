//! The command line of `make chaos ARGS="…"`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;

use super::plan::Kind;

/// Workers on one topic's partitions, and everything that can go wrong around them: real Kafka, real PostgreSQL, the
/// processes killed, frozen, cut off and robbed of their files while messages flow. In the end a checker of its own
/// compares the history with what was done to the simulated tables. Without options: the short form that is a part of
/// `make test`.
#[derive(Debug, Clone, Parser)]
#[command(name = "chaos", disable_version_flag = true)]
pub struct Options {
    /// What everything random comes from: the load, the faults, their order, targets and pauses [default: drawn]
    #[arg(long)]
    pub seed: Option<u64>,
    /// How many faults
    #[arg(long, default_value_t = SHORT)]
    pub faults: usize,
    /// Only these kinds of fault
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Kind>,
    /// Mean time between two faults, in milliseconds; they last longer than that, so they overlap
    #[arg(long, default_value_t = 6_000)]
    pub gap: u64,
    /// Messages a second
    #[arg(long, default_value_t = 300)]
    pub rate: u32,
    /// Records of each of the two tables at the beginning
    #[arg(long, default_value_t = 400)]
    pub records: u32,
    /// Partitions of each of the two topics
    #[arg(long, default_value_t = 4)]
    pub partitions: i32,
    /// How long the lag may take to reach zero once the faults have stopped, in seconds
    #[arg(long, default_value_t = 120)]
    pub settle: u64,
    /// Keeps logs and dumps also when all is well
    #[arg(long)]
    pub keep: bool,
    /// The plan only: which faults this seed draws
    #[arg(long)]
    pub dry_run: bool,
    /// Names of tests to run, as the test runner passes them on
    #[arg(hide = true)]
    pub filters: Vec<String>,
    /// For the test runner
    #[arg(long, hide = true)]
    pub list: bool,
    /// For the test runner
    #[arg(long, hide = true)]
    pub exact: bool,
    /// For the test runner
    #[arg(long, hide = true)]
    pub nocapture: bool,
    /// For the test runner
    #[arg(long, short, hide = true)]
    pub quiet: bool,
}

/// Faults of the short form: each kind once.
pub const SHORT: usize = Kind::ALL.len();
/// Mean gap of the short form, in milliseconds.
const SHORT_GAP: u64 = 3_000;
/// Its seed: a failure of `make test` should come back.
const SHORT_SEED: u64 = 1;

impl Options {
    /// Reads the command line. Without any option of our own it is the short form.
    pub fn read() -> Options {
        let mut options = Options::parse();
        let own = std::env::args().skip(1).any(|arg| {
            let name = arg.split('=').next().unwrap_or_default().to_string();
            name.starts_with('-') && !["--list", "--exact", "--nocapture", "--quiet", "-q"].contains(&name.as_str())
        });
        if !own {
            options.seed = Some(SHORT_SEED);
            options.gap = SHORT_GAP;
        }
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        options.seed = Some(options.seed.unwrap_or_else(|| clock() % 1_000_000));
        options
    }

    /// Whether the test runner's filters mean this program.
    pub fn is_meant(&self) -> bool {
        let name = "chaos";
        let meant = |filter: &String| if self.exact { filter == name } else { name.contains(filter.as_str()) };
        self.filters.is_empty() || self.filters.iter().any(meant)
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or(SHORT_SEED)
    }

    /// Mean time between two faults.
    pub fn gap(&self) -> Duration {
        Duration::from_millis(self.gap)
    }
}
