//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

use crate::demo::DemoOptions;
use clap_complete::Shell;

use super::failure::Failure;
use super::operator_args::{DeadLettersArgs, OffsetsArgs, StateArgs};
use crate::config::{ConfigError, Sources};

const EXIT_CODES: &str = "\
Exit codes:
  0  done, or stopped in order (SIGTERM included)
  1  something outside failed: broker, database, disk
  2  wrong usage or configuration
  3  the sink's schema is missing, too old or too new: afterimage migrate
  4  halted or refused on purpose: going on could lose or mix history
  130  a demo was ended by a signal before it was done

Configuration: flag > AFTERIMAGE_* variable > Heroku's variables > file > default.
`afterimage config show` prints every key with its value and where it came from.";

const COMPLETIONS: &str = "\
Where each shell looks for it (make the directory if it is not there; a new shell then has it):
  bash        afterimage completions bash > ~/.local/share/bash-completion/completions/afterimage
              needs the package bash-completion
  zsh         afterimage completions zsh > ~/.zfunc/_afterimage
              with `fpath=(~/.zfunc $fpath); autoload -U compinit; compinit` in ~/.zshrc
  fish        afterimage completions fish > ~/.config/fish/completions/afterimage.fish
  elvish      afterimage completions elvish > ~/.config/elvish/lib/afterimage.elv
              with `use afterimage` in ~/.config/elvish/rc.elv
  powershell  afterimage completions powershell >> $PROFILE";

/// Field-level history of every record behind Heroku Connect, exactly once, in Postgres.
#[derive(Debug, Parser)]
#[command(name = "afterimage", version, about, after_help = EXIT_CODES, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// Flags of every verb.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every verb; each sets a configuration key and wins over all other sources.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Configuration file [default: $AFTERIMAGE_CONFIG, else ./afterimage.toml if it exists]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// Sink database: postgres://… (a password typed here shows in `ps`; better DATABASE_URL or the file)
    #[arg(long, global = true, value_name = "URL", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub url: Option<String>,
    /// Kafka brokers: host:port,… or kafka+ssl://…
    #[arg(long, global = true, value_name = "LIST", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub brokers: Option<String>,
    /// Consumer group
    #[arg(long, global = true, value_name = "NAME", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub group: Option<String>,
    /// Directory of the image store
    #[arg(long, global = true, value_name = "DIR", help_heading = "Configuration", value_hint = ValueHint::DirPath)]
    pub state_dir: Option<String>,
    /// Where to serve /metrics: address:port, port 0 for a free one, or off
    #[arg(long, global = true, value_name = "ADDR", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub metrics_listen: Option<String>,
    /// This process's name in claims and logs
    #[arg(long, global = true, value_name = "NAME", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub worker: Option<String>,
    /// text or json
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub log_format: Option<String>,
    /// error, warn, info, debug, trace, or target=level pairs
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub log_level: Option<String>,
    /// Any other key, for example --set commit.linger=50ms
    #[arg(long, global = true, value_name = "KEY=VALUE", help_heading = "Configuration", value_hint = ValueHint::Other)]
    pub set: Vec<String>,
}

impl GlobalArgs {
    /// The first flag that sets anything but the log: what a verb that makes its own configuration can't heed.
    pub fn first_set(&self) -> Option<&'static str> {
        let flags = [
            ("--config", self.config.is_some()),
            ("--url", self.url.is_some()),
            ("--brokers", self.brokers.is_some()),
            ("--group", self.group.is_some()),
            ("--state-dir", self.state_dir.is_some()),
            ("--metrics-listen", self.metrics_listen.is_some()),
            ("--worker", self.worker.is_some()),
            ("--set", !self.set.is_empty()),
        ];
        flags.into_iter().find_map(|(flag, is_set)| is_set.then_some(flag))
    }

    /// Puts the flags into the sources of a configuration.
    pub fn apply(&self, sources: &mut Sources) -> Result<(), Failure> {
        if let Some(file) = &self.config {
            sources.file = Some(file.clone());
        }
        for pair in &self.set {
            // Not quoted where it is no key: what was pasted may hold a password.
            let key = |path: &str| path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
            let Some((path, value)) = pair.split_once('=').filter(|(path, _)| key(path)) else {
                let next = "write for example --set commit.linger=50ms";
                return Err(ConfigError::one("--set", "it is not KEY=VALUE", next).into());
            };
            sources.flag(&format!("--set {path}"), path, value);
        }
        // After --set: a flag of its own is the more deliberate of the two.
        for (flag, path, value) in [
            ("--url", "postgres.url", &self.url),
            ("--brokers", "kafka.brokers", &self.brokers),
            ("--group", "kafka.group", &self.group),
            ("--state-dir", "state.dir", &self.state_dir),
            ("--metrics-listen", "metrics.listen", &self.metrics_listen),
            ("--worker", "worker.name", &self.worker),
            ("--log-format", "log.format", &self.log_format),
            ("--log-level", "log.level", &self.log_level),
        ] {
            if let Some(value) = value {
                sources.flag(flag, path, value.as_str());
            }
        }
        Ok(())
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The processor: Kafka topics in, deltas and positions out to Postgres. Scale by starting more.
    #[command(after_help = "\
Examples:
  afterimage run                                     everything from Heroku's own variables
  afterimage run --config /etc/afterimage.toml
  afterimage run --brokers 127.0.0.1:9092 --url postgres://me@localhost/history

It stops on SIGTERM or Ctrl-C: finishes the batch in hand, commits, leaves the group, exits with 0.
The sink needs its schema first: afterimage migrate.
Several on one machine: each needs a --state-dir and a --metrics-listen of its own.")]
    Run(RunArgs),
    /// Create or upgrade the schema in the sink, the database of the history. Idempotent, and safe beside running
    /// workers.
    #[command(after_help = "\
Examples:
  afterimage migrate                                 the database of DATABASE_URL
  afterimage migrate --url postgres://me@localhost/history --json")]
    Migrate(MigrateArgs),
    /// Where every partition stands: owner, position, lag, and what became of its messages.
    #[command(after_help = "\
Examples:
  afterimage status                                  all partitions; a sum at the end
  afterimage status --org emea --object account
  afterimage status --watch                          again every 2 seconds, until Ctrl-C
  afterimage status --json | jq .sum.lag_messages
  afterimage status --no-broker                      when Kafka can't be reached: no ends, no lag

lag     messages between the position and the partition's end, as the broker tells it
behind  how old, by the source's clock, the last event read is while there is a lag; 0 at the end
kept    versions written: deltas and first sights; no-op changed nothing; stale stands in late_events;
        other is tombstones, rows without an id, and what is no event

It only reads, and changes nothing.")]
    Status(StatusArgs),
    /// Positions: where they stand, and what a person may do about one that is halted.
    Offsets(OffsetsArgs),
    /// What could not be decoded: look at it, try it again, settle it.
    DeadLetters(DeadLettersArgs),
    /// The image store of a worker that is not running.
    State(StateArgs),
    /// See it work: everything on this machine, nothing to configure, nothing left behind.
    #[command(after_help = "\
Examples:
  afterimage demo
  afterimage demo --events 20000 --seed 7
  afterimage demo --keep                             stays up until Ctrl-C, to look around with psql
  afterimage demo --broker kafka                     on a private Apache Kafka (Java, Maven)
  afterimage demo --broker 127.0.0.1:9092            on a running one, as a guest
  afterimage demo --capture debezium                 real Debezium, capturing a real Postgres

It makes its own configuration: of the flags above, only --log-format and --log-level are taken.")]
    Demo(DemoOptions),
    /// Show the effective configuration, begin a file, or write the types of tables.
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print a completion script for a shell.
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Flags of `run`: all its settings are configuration.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {}

/// Flags of `migrate`.
#[derive(Debug, Clone, Args)]
pub struct MigrateArgs {
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Only this org
    #[arg(long, value_name = "NAME")]
    pub org: Option<String>,
    /// Only this object
    #[arg(long, value_name = "NAME")]
    pub object: Option<String>,
    /// Don't ask Kafka for the ends of the partitions
    #[arg(long)]
    pub no_broker: bool,
    /// Again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u16).range(1..))]
    pub watch: Option<u16>,
    /// Print JSON; with --watch one object on each line
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its value and where it came from, secrets masked.
    #[command(after_help = "\
Examples:
  afterimage config show
  AFTERIMAGE_COMMIT__LINGER=50ms afterimage config show --json")]
    Show {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write a configuration file with every key in it, commented out, with what it means.
    #[command(after_help = "\
Examples:
  afterimage config init                             writes ./afterimage.toml
  afterimage config init --output -                  prints it")]
    Init {
        /// Where to; - is stdout
        #[arg(long, value_name = "FILE", default_value = "afterimage.toml")]
        output: PathBuf,
        /// Write over a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Print the `types` of captured tables: what JSON without a schema block can't tell, such as dates, times, numbers.
    #[command(after_help = "\
Examples:
  afterimage config types --from \"$DATABASE_URL\"      every table of schema salesforce
  afterimage config types --from postgres://me@localhost/app --schema emea --table job__c --org emea

Paste what it prints into the configuration file. It reads the catalogue only and changes nothing.")]
    Types(TypesArgs),
}

/// Flags of `config types`.
#[derive(Debug, Clone, Args)]
pub struct TypesArgs {
    /// The captured database: postgres://… (a password typed here shows in `ps`)
    #[arg(long, value_name = "URL")]
    pub from: String,
    /// Its schema
    #[arg(long, value_name = "NAME", default_value = "salesforce")]
    pub schema: String,
    /// Only this table
    #[arg(long, value_name = "NAME")]
    pub table: Option<String>,
    /// The org that the tables belong to [default: the schema]
    #[arg(long, value_name = "NAME")]
    pub org: Option<String>,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_may_stand_before_and_after_the_verb() {
        for line in [["afterimage", "--url", "u", "run"], ["afterimage", "run", "--url", "u"]] {
            assert_eq!(Cli::try_parse_from(line).expect("parses").global.url.as_deref(), Some("u"));
        }
    }
}
