//! What can be typed after `offsets`, `dead-letters` and `state`: the verbs for a person who has to look.

use clap::{Args, Subcommand};

/// Verbs of `offsets`.
#[derive(Debug, Clone, Args)]
pub struct OffsetsArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: OffsetsCommand,
}

/// Verbs of `offsets`.
#[derive(Debug, Clone, Subcommand)]
pub enum OffsetsCommand {
    /// Where every partition stands, what its log has, and why it is halted.
    #[command(after_help = "\
Examples:
  afterimage offsets show
  afterimage offsets show --topic calm_connector_27001.emea.account --json
  afterimage offsets show --former                   former lives of topics that were made anew, too

life      0, and 1 more each time the topic is adopted
log       same: the message that was read last is still there; unknown: it is gone, or none was read yet;
          other: another message stands there; short: the log ends before the position
state     the worker that holds it; free: no worker that lives does; halted: see below the table

It only reads, and changes nothing.")]
    Show(OffsetsShowArgs),
    /// Read a topic that was made anew, as another life of it; or let this group and cluster hold a topic.
    #[command(after_help = "\
Examples:
  afterimage offsets adopt calm_connector_27001.emea.account --dry-run
  afterimage offsets adopt calm_connector_27001.emea.account --partition 3

Partitions whose log is another than the one that was read begin another life: they are read from their log's start,
what was read before stays in the history, and so do the old positions. If no partition has the old log, all of the topic
does. What the new log repeats is recognised by time and LSN.
If the topic is recorded for another group or cluster than the configuration's, it is recorded for these.
Refused while a worker reads any of it. A topic whose log is the one that was read is left as it is.")]
    Adopt(AdoptArgs),
    /// Go on at a later offset; what lies between is recorded as a gap.
    #[command(after_help = "\
Examples:
  afterimage offsets skip calm_connector_27001.emea.account --partition 3 --to 5012 --dry-run
  afterimage offsets skip calm_connector_27001.emea.account --partition 3 --to 5012 --reason \"test data\" --yes

With --to at the position itself nothing is left out: a log that is not the one that was read is taken for it.
Refused while a worker reads the partition.")]
    Skip(SkipArgs),
    /// Lift the halt of partitions that could not be decoded: they are read on as before.
    #[command(after_help = "\
Examples:
  afterimage offsets resume calm_connector_27001.emea.account
  afterimage offsets resume calm_connector_27001.emea.account --partition 3

Workers that are running read on within seconds. What can't be decoded still becomes dead letters, and after 1,000 more
in a row the partition is halted again.")]
    Resume(ResumeArgs),
    /// Say what going back to an earlier offset would mean. It is not done: it would bring nothing.
    #[command(after_help = "\
Examples:
  afterimage offsets reset calm_connector_27001.emea.account --partition 3 --to earliest --dry-run

To read what could not be decoded again: afterimage dead-letters retry.
To read a topic that was made anew: afterimage offsets adopt.")]
    Reset(ResetArgs),
}

/// Flags of `offsets show`.
#[derive(Debug, Clone, Args)]
pub struct OffsetsShowArgs {
    /// Only this org
    #[arg(long, value_name = "NAME")]
    pub org: Option<String>,
    /// Only this object
    #[arg(long, value_name = "NAME")]
    pub object: Option<String>,
    /// Only this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<i32>,
    /// Former lives of topics, too
    #[arg(long)]
    pub former: bool,
    /// Don't look at the logs
    #[arg(long)]
    pub no_broker: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `offsets adopt`.
#[derive(Debug, Clone, Args)]
pub struct AdoptArgs {
    /// The topic
    pub topic: String,
    /// Only this partition [default: all whose log is another]
    #[arg(long, value_name = "N")]
    pub partition: Option<i32>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `offsets skip`.
#[derive(Debug, Clone, Args)]
pub struct SkipArgs {
    /// The topic
    pub topic: String,
    /// The partition
    #[arg(long, value_name = "N")]
    pub partition: i32,
    /// The offset to go on at
    #[arg(long, value_name = "OFFSET")]
    pub to: i64,
    /// Why, for whoever asks afterimage.gaps later
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `offsets resume`.
#[derive(Debug, Clone, Args)]
pub struct ResumeArgs {
    /// The topic
    pub topic: String,
    /// Only this partition [default: all that are halted]
    #[arg(long, value_name = "N")]
    pub partition: Option<i32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `offsets reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// The topic
    pub topic: String,
    /// The partition
    #[arg(long, value_name = "N")]
    pub partition: i32,
    /// The offset to go back to, or earliest
    #[arg(long, value_name = "OFFSET")]
    pub to: String,
    /// Say what it would mean
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `dead-letters`.
#[derive(Debug, Clone, Args)]
pub struct DeadLettersArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: DeadLettersCommand,
}

/// Verbs of `dead-letters`.
#[derive(Debug, Clone, Subcommand)]
pub enum DeadLettersCommand {
    /// What could not be decoded: where, when, why. No bytes of it.
    #[command(after_help = "\
Examples:
  afterimage dead-letters list
  afterimage dead-letters list --topic calm_connector_27001.emea.account --reason \"bad sfid\"
  afterimage dead-letters list --resolved --json")]
    List(ListArgs),
    /// One of them; with --key or --value its bytes, as they came.
    #[command(after_help = "\
Examples:
  afterimage dead-letters show calm_connector_27001.emea.account --partition 3 --offset 4711
  afterimage dead-letters show calm_connector_27001.emea.account --partition 3 --offset 4711 --value > message.json")]
    Show(ShowArgs),
    /// Decode them again, with what this program and its configuration know now, and bring them into the history.
    #[command(after_help = "\
Examples:
  afterimage dead-letters retry --topic calm_connector_27001.emea.account --dry-run
  afterimage dead-letters retry --all

A message that its record has outrun by now is kept among the late events, as any message that comes late is. What still
can't be decoded stays a dead letter. Safe beside running workers: it writes as a position of its own, named after the
topic, and takes records over as they do.")]
    Retry(RetryArgs),
    /// Mark them as settled. The rows stay, and so do the counts.
    #[command(after_help = "\
Examples:
  afterimage dead-letters drop --topic calm_connector_27001.emea.account --reason \"not json\" --dry-run
  afterimage dead-letters drop --topic calm_connector_27001.emea.account --partition 3 --offset 4711 --yes")]
    Drop(DropArgs),
}

/// Which dead letters.
#[derive(Debug, Clone, Default, Args)]
pub struct Choice {
    /// Only of this org
    #[arg(long, value_name = "NAME")]
    pub org: Option<String>,
    /// Only of this object
    #[arg(long, value_name = "NAME")]
    pub object: Option<String>,
    /// Only of this topic
    #[arg(long, value_name = "NAME")]
    pub topic: Option<String>,
    /// Only of this partition
    #[arg(long, value_name = "N")]
    pub partition: Option<i32>,
    /// Only the one at this offset
    #[arg(long, value_name = "OFFSET")]
    pub offset: Option<i64>,
    /// Only those put aside for this reason
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// Flags of `dead-letters list`.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Which.
    #[command(flatten)]
    pub choice: Choice,
    /// Those that were dropped or retried, too
    #[arg(long)]
    pub resolved: bool,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `dead-letters show`.
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// The topic
    pub topic: String,
    /// The partition
    #[arg(long, value_name = "N")]
    pub partition: i32,
    /// The offset
    #[arg(long, value_name = "OFFSET")]
    pub offset: i64,
    /// Write the key's bytes, and nothing else
    #[arg(long, conflicts_with_all = ["value", "json"])]
    pub key: bool,
    /// Write the value's bytes, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub value: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `dead-letters retry`.
#[derive(Debug, Clone, Args)]
pub struct RetryArgs {
    /// Which.
    #[command(flatten)]
    pub choice: Choice,
    /// All there are; needed where nothing else chooses
    #[arg(long)]
    pub all: bool,
    /// Decode only: say what could be brought in, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `dead-letters drop`.
#[derive(Debug, Clone, Args)]
pub struct DropArgs {
    /// Which.
    #[command(flatten)]
    pub choice: Choice,
    /// All there are; needed where nothing else chooses
    #[arg(long)]
    pub all: bool,
    /// Say how many it would be, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Don't ask
    #[arg(long)]
    pub yes: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Verbs of `state`.
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub command: StateCommand,
}

/// Verbs of `state`.
#[derive(Debug, Clone, Subcommand)]
pub enum StateCommand {
    /// What the image store in the state directory holds: positions, how far each is, records, bytes.
    #[command(after_help = "\
Examples:
  afterimage state inspect
  afterimage state inspect --state-dir /var/lib/afterimage --json

Refused while a worker has the directory open.")]
    Inspect(InspectArgs),
    /// Compare stored images with the history in the sink.
    #[command(after_help = "\
Examples:
  afterimage state verify                            a sample of 1,000 records of each position
  afterimage state verify --all

Positions that are not level with the sink are named and not compared: a worker would bring them up first, or drop them.
Exit code 1 if an image differs: then `afterimage state clear`. Refused while a worker has the directory open.")]
    Verify(VerifyArgs),
    /// Throw the images away. Nothing is lost: workers read from the sink again what they need.
    #[command(after_help = "\
Examples:
  afterimage state clear
  afterimage state clear --state-dir /var/lib/afterimage --dry-run

Refused while a worker has the directory open.")]
    Clear(ClearArgs),
}

/// Flags of `state inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `state verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// All records, not a sample
    #[arg(long)]
    pub all: bool,
    /// Records of each position in the sample
    #[arg(long, value_name = "N", default_value_t = 1000, conflicts_with = "all")]
    pub sample: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Flags of `state clear`.
#[derive(Debug, Clone, Args)]
pub struct ClearArgs {
    /// Say what would go, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
