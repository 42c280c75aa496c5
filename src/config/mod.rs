//! Configuration: one file, `AFTERIMAGE_*` variables, Heroku's own variables, flags.
//!
//! Flag > `AFTERIMAGE_*` > Heroku's variables > file > default, key by key. Unknown keys are refused.
//! [`Config::load`] takes everything it depends on from [`Sources`], so it can be tested without a process
//! environment; the only outside it touches are the files that it is pointed to (configuration, PEM).

mod error;
mod init;
mod kafka;
mod keys;
mod layers;
mod level;
mod orgs;
mod postgres;
mod read;
mod secret;
mod show;
mod topics;
mod units;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use error::{ConfigError, Problem};
pub use init::commented_file;
pub use kafka::{KafkaSettings, Tls};
pub use keys::{ENV_FILE, ENV_PREFIX, EXTRA, KEYS, Key, nearest};
pub use layers::{Origin, Sources};
pub use level::{VALUE_PRINTING, check_level};
pub use orgs::{
    DEFAULT_GRACE, GRACE_MAX, IDENTIFIER_MAX, Identity, ORG_MAX, ObjectConfig, OrgConfig, TopicPattern, check_org_name,
};
pub use postgres::{
    PARAMETERS as POSTGRES_PARAMETERS, PostgresSettings, SslMode, masked_argument, masked_url, without_passwords,
};
pub use secret::{MASK, Secret};
pub use show::Shown;
pub use topics::{SilentPattern, TopicError, TopicMap, TopicPlan, is_side_topic, map_topics};

use kafka::Brokers;
use layers::Layers;
use postgres::{Dsn, Fault};
use read::Reader;

/// `[state]`: the image store on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSettings {
    /// Absolute directory; a cache, it may be lost.
    pub dir: PathBuf,
    /// Bytes for block cache and write buffers together, whatever the partition count.
    pub memory: u64,
    /// Bytes for knowing repeated events, all topics together; 0 switches it off.
    pub front: u64,
}

/// `[commit]`: when a commit is full (protocol D2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitSettings {
    /// Most rows.
    pub max_rows: usize,
    /// Most bytes of rows.
    pub max_bytes: usize,
    /// Longest wait for more.
    pub linger: Duration,
}

/// `[history]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistorySettings {
    /// A `c` event is a create iff `createddate` is absent, null or at most this much before its commit.
    pub create_window: Duration,
}

/// `[debezium]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebeziumSettings {
    /// The text that stands for an unchanged TOASTed value.
    pub placeholder: String,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Where `/metrics` is served; port 0 = any free one; `None` = not at all.
    pub listen: Option<SocketAddr>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line per entry.
    Text,
    /// One JSON object per entry.
    Json,
}

impl LogFormat {
    /// Both by their spelling.
    pub const CHOICES: [(&'static str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Text or JSON.
    pub format: LogFormat,
    /// A level, or comma-separated `target=level` pairs.
    pub level: String,
}

/// `[worker]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerSettings {
    /// This process in claims, logs and Postgres' `application_name` (`afterimage/<name>`). A label only:
    /// nothing's correctness rests on it.
    pub name: String,
}

/// The effective configuration: complete, checked, and printable with its secrets masked.
#[derive(Debug, Clone)]
pub struct Config {
    kafka: Option<KafkaSettings>,
    postgres: Option<PostgresSettings>,
    topic_prefix: String,
    /// The image store.
    pub state: StateSettings,
    /// Limits of a commit.
    pub commit: CommitSettings,
    /// Rules of history.
    pub history: HistorySettings,
    /// The connector.
    pub debezium: DebeziumSettings,
    /// The metrics endpoint.
    pub metrics: MetricsSettings,
    /// Logs.
    pub log: LogSettings,
    /// This process.
    pub worker: WorkerSettings,
    /// The declared orgs; empty = the schema of a topic is its org.
    pub orgs: Vec<OrgConfig>,
    /// The declared objects.
    pub objects: Vec<ObjectConfig>,
    /// What is allowed but likely not meant; to be logged once at start.
    pub warnings: Vec<String>,
    shown: Shown,
}

/// Most bytes of a worker's name: with `afterimage/` it must fit `application_name`.
const WORKER_MAX: usize = IDENTIFIER_MAX - "afterimage/".len();
/// A name that is never a real host's, so that what it stands for is easy to find.
const NO_SINK: &str = "default";

impl Config {
    /// Reads, merges and checks everything. All problems are reported at once.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let layers = Layers::read(sources, &mut problems);
        let mut read = Reader::new(&layers, problems);
        let mut shown = Shown::of(&layers);
        let mut warnings = Vec::new();

        let postgres = read_postgres(&mut read, sources, &mut shown, &mut warnings);
        let sink = postgres.as_ref().map_or(NO_SINK, |postgres| postgres.name.as_str());
        let topic_prefix = read.text("kafka.prefix").unwrap_or_default();
        let kafka = read_kafka(&mut read, &topic_prefix, sink, &mut shown, &mut warnings);
        let orgs = read.orgs(&topic_prefix);
        let objects = read.objects(&orgs);
        let state = read_state(&mut read, sources, &mut shown);
        // Every key below has a default: nothing is read from it only if it is refused, and then the
        // whole configuration is.
        let commit = CommitSettings {
            max_rows: read.number("commit.max_rows", 1, 1_000_000).unwrap_or_default(),
            max_bytes: read
                .size("commit.max_bytes", 64_000, 256_000_000)
                .and_then(|size| usize::try_from(size).ok())
                .unwrap_or_default(),
            linger: read.duration("commit.linger", Duration::from_secs(10)).unwrap_or_default(),
        };
        let year = Duration::from_secs(366 * 24 * 3600);
        let history =
            HistorySettings { create_window: read.duration("history.create_window", year).unwrap_or_default() };
        let debezium = DebeziumSettings { placeholder: read.text("debezium.placeholder").unwrap_or_default() };
        let metrics = MetricsSettings { listen: read.parsed("metrics.listen", parse_listen).flatten() };
        let log = LogSettings {
            format: read.chosen("log.format", &LogFormat::CHOICES).unwrap_or(LogFormat::Text),
            level: read.log_level().unwrap_or_default(),
        };
        let name = read.parsed("worker.name", check_worker_name).unwrap_or_else(|| default_worker_name(sources));
        shown.set("worker.name", name.as_str());
        shown.set("commit.max_rows", i64::try_from(commit.max_rows).unwrap_or(i64::MAX));

        layers::finish((), read.problems)?;
        Ok(Self {
            kafka,
            postgres,
            topic_prefix,
            state,
            commit,
            history,
            debezium,
            metrics,
            log,
            worker: WorkerSettings { name },
            orgs,
            objects,
            warnings,
            shown,
        })
    }

    /// Kafka's settings; an error if no broker is configured.
    pub fn kafka(&self) -> Result<&KafkaSettings, ConfigError> {
        self.kafka.as_ref().ok_or_else(|| {
            ConfigError::one(
                "kafka.brokers",
                "no Kafka broker is configured",
                "set --brokers host:port, KAFKA_URL, or brokers in [kafka] of the configuration file",
            )
        })
    }

    /// The sink's settings; an error if no database is configured.
    pub fn postgres(&self) -> Result<&PostgresSettings, ConfigError> {
        self.postgres.as_ref().ok_or_else(|| {
            ConfigError::one(
                "postgres.url",
                "no Postgres database is configured",
                "set --url postgres://…, DATABASE_URL, or url in [postgres] of the configuration file",
            )
        })
    }

    /// What stands before every topic name (`KAFKA_PREFIX`); mostly empty.
    pub fn topic_prefix(&self) -> &str {
        &self.topic_prefix
    }

    /// The settings of an object: its `[[object]]`, or the defaults.
    pub fn object(&self, org: &str, name: &str) -> ObjectConfig {
        let declared = self.objects.iter().find(|object| object.org == org && object.name == name);
        declared.cloned().unwrap_or_else(|| ObjectConfig::defaults(org, name))
    }

    /// The effective configuration for people and scripts, secrets masked.
    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    /// SHA-256 of all that decides what history is written: orgs, objects, the create window, the
    /// placeholder. No secrets, no addresses, nothing of this process: workers of one deployment have the
    /// same, and a claim row with another shows two deployments at work (`claim.config_hash`).
    pub fn history_hash(&self) -> [u8; 32] {
        use sha2::Digest;
        let objects: Vec<_> = self.objects.iter().map(|object| {
            serde_json::json!({
                "org": object.org,
                "name": object.name,
                "identity": object.identity.as_ref().map(Identity::stored),
                "types": object.types.iter().map(|(column, kind)| (column.clone(), format!("{kind:?}"))).collect::<BTreeMap<_, _>>(),
                "mask_add": object.mask_add,
                "mask_remove": object.mask_remove,
                "lookup": object.lookup,
                "grace_ms": object.grace.as_millis() as u64,
            })
            .to_string()
        }).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
        let orgs: BTreeMap<&str, std::collections::BTreeSet<&str>> = self
            .orgs
            .iter()
            .map(|org| (org.name.as_str(), org.topics.iter().map(TopicPattern::as_str).collect()))
            .collect();
        let whole = serde_json::json!([
            orgs,
            objects,
            self.history.create_window.as_millis() as u64,
            self.debezium.placeholder
        ]);
        sha2::Sha256::digest(whole.to_string()).into()
    }
}

fn read_postgres(
    read: &mut Reader<'_>,
    sources: &Sources,
    shown: &mut Shown,
    warnings: &mut Vec<String>,
) -> Option<PostgresSettings> {
    let name = read.text("postgres.name");
    let mut sslmode = read.chosen("postgres.sslmode", &SslMode::CHOICES);
    let mut ca = read.text("postgres.ca").map(PathBuf::from);
    let pooled = read.chosen("postgres.pool_mode", &[("session", false), ("transaction", true)]).unwrap_or(false);
    let url = read.text("postgres.url")?;
    let dsn = match Dsn::parse(&url) {
        Ok(dsn) => dsn,
        Err(Fault { reason, next }) => {
            read.problem("postgres.url", format!("the connection string can't be used: {reason}"), next);
            return None;
        }
    };
    let origin = read.layers.get("postgres.url").map(|entry| entry.origin.clone()).unwrap_or(Origin::Default);
    // A parameter of the URL against a key of its own: the higher layer wins, and of one layer the key.
    let from = |key: &str| read.layers.get(key).map_or(Origin::Default, |entry| entry.origin.clone());
    let (mut sslmode_from, mut ca_from) = (from("postgres.sslmode"), from("postgres.ca"));
    let weaker = |key: &str| read.layers.get(key).is_none_or(|entry| entry.origin.rank() < origin.rank());
    if let Some(text) = &dsn.sslmode
        && (sslmode.is_none() || weaker("postgres.sslmode"))
    {
        match read::choose(text, &SslMode::CHOICES) {
            Ok(mode) => (sslmode, sslmode_from) = (Some(mode), origin.clone()),
            Err((reason, near)) => {
                let next = near.map_or_else(|| "correct sslmode in the URL".to_owned(), read::did_you_mean);
                read.problem("postgres.url", format!("sslmode: {reason}"), next);
            }
        }
    }
    if let Some(file) = &dsn.ca
        && (ca.is_none() || weaker("postgres.ca"))
    {
        // libpq's word for the system's CAs.
        (ca, ca_from) = ((file != "system").then(|| PathBuf::from(file)), origin.clone());
    }
    let heroku = sources.env.contains_key("DYNO") && matches!(origin, Origin::Heroku(_));
    let sslmode = sslmode.unwrap_or(match () {
        () if ca.is_some() => SslMode::VerifyFull,
        () if dsn.local => SslMode::Prefer,
        () if heroku => SslMode::Require,
        () => SslMode::VerifyFull,
    });
    if ca.is_some() && sslmode != SslMode::VerifyFull {
        read.problem(
            "postgres.ca",
            format!("a CA is given, but sslmode {} verifies nothing", sslmode.as_str()),
            "set postgres.sslmode = \"verify-full\", or remove the CA",
        );
    }
    if !dsn.local && matches!(sslmode, SslMode::Disable | SslMode::Prefer) {
        warnings.push(format!(
            "postgres.sslmode {} lets the password and the history cross the network unprotected",
            sslmode.as_str()
        ));
    }
    let name = name.or(dsn.database).unwrap_or_else(|| NO_SINK.to_owned());
    shown.set("postgres.url", masked_url(&url));
    shown.set("postgres.name", name.as_str());
    shown.set_from("postgres.sslmode", sslmode.as_str(), &sslmode_from);
    if let Some(ca) = &ca {
        shown.set_from("postgres.ca", ca.display().to_string(), &ca_from);
    }
    Some(PostgresSettings { shown: masked_url(&dsn.text), url: Secret::new(dsn.text), name, sslmode, ca, pooled })
}

fn read_kafka(
    read: &mut Reader<'_>,
    prefix: &str,
    sink: &str,
    shown: &mut Shown,
    warnings: &mut Vec<String>,
) -> Option<KafkaSettings> {
    let mut extra = BTreeMap::new();
    for (property, value) in read.extra() {
        if kafka::is_forced(&property) {
            read.problem(
                &format!("{}.{property}", keys::EXTRA),
                format!("{property} is set by afterimage itself: correctness rests on it"),
                "remove it from [kafka.extra]",
            );
        }
        extra.insert(property, Secret::new(value));
    }
    let verify = read.truth("kafka.verify_hostname");
    let static_member = read.truth("kafka.static_member").unwrap_or_default();
    shown.set("kafka.static_member", static_member);
    let mut pems = ["kafka.ca", "kafka.cert", "kafka.key"].map(|path| read_pem(read, path, shown));
    let group = read.text("kafka.group").unwrap_or_else(|| format!("afterimage.{sink}"));
    let group = if group.starts_with(prefix) { group } else { format!("{prefix}{group}") };
    shown.set("kafka.group", group.as_str());

    let list = read.joined("kafka.brokers")?;
    let brokers = match Brokers::parse(&list) {
        Ok(brokers) => brokers,
        Err(reason) => {
            read.problem(
                "kafka.brokers",
                format!("the broker list can't be used: {reason}"),
                "write host:9092,host:9092 or kafka+ssl://host:9096,…",
            );
            return None;
        }
    };
    shown.set("kafka.brokers", list.as_str());
    // A Heroku attachment's certificates go with its own kafka+ssl:// brokers. They don't turn TLS on for
    // brokers without it: that list is then another cluster's, say a local one named by a flag.
    let own = |path: &str| read.layers.get(path).is_some_and(|entry| !matches!(entry.origin, Origin::Heroku(_)));
    let own_pem = ["kafka.ca", "kafka.cert", "kafka.key"].into_iter().find(|path| own(path));
    let heroku_ca = !own("kafka.ca") && read.layers.get("kafka.ca").is_some();
    let tls = match (brokers.tls, own_pem) {
        (Some(false), Some(path)) => {
            read.problem(
                path,
                "the brokers are kafka:// (plain text), but a certificate is set",
                "write kafka+ssl://, or remove it",
            );
            None
        }
        (Some(true), _) | (None, Some(_)) => {
            let [ca_pem, cert_pem, key_pem] = pems.each_mut().map(Option::take);
            if cert_pem.is_some() != key_pem.is_some() {
                let (set, missing) =
                    if cert_pem.is_some() { ("kafka.cert", "kafka.key") } else { ("kafka.key", "kafka.cert") };
                read.problem(set, format!("it needs {missing} beside it"), format!("set {missing} too"));
            }
            let verify_hostname = verify.unwrap_or(!heroku_ca);
            shown.set("kafka.verify_hostname", verify_hostname);
            if !verify_hostname && ca_pem.is_none() {
                warnings.push(
                    "kafka.verify_hostname is off with the system's CAs: any host with any certificate is trusted"
                        .to_owned(),
                );
            }
            Some(Tls { ca_pem, cert_pem, key_pem, verify_hostname })
        }
        (_, None) => None,
    };
    Some(KafkaSettings { brokers: brokers.list, group, prefix: prefix.to_owned(), tls, static_member, extra })
}

/// A PEM text, given as such or as the path of a file. Never quotes the value: a key pasted in a form
/// that is not recognised would be printed as a path.
fn read_pem(read: &mut Reader<'_>, path: &str, shown: &mut Shown) -> Option<Secret> {
    let text = read.text(path)?;
    let is_pem = |text: &str| text.trim_start().starts_with("-----BEGIN ");
    if is_pem(&text) {
        // Some launchers keep `\n` in the text of a variable as two characters.
        let text = if text.contains('\n') { text } else { text.replace("\\n", "\n") };
        return Some(Secret::new(text));
    }
    match std::fs::read_to_string(&text) {
        Ok(pem) if is_pem(&pem) => {
            shown.set(path, text.as_str());
            Some(Secret::new(pem))
        }
        Ok(_) => {
            read.problem(path, "the file that it names holds no PEM text", "name a file that starts with -----BEGIN");
            None
        }
        Err(error) => {
            let reason = format!("it is neither PEM text nor a readable file ({})", error.kind());
            read.problem(path, reason, "set the PEM text itself, or the path of a file");
            None
        }
    }
}

fn read_state(read: &mut Reader<'_>, sources: &Sources, shown: &mut Shown) -> StateSettings {
    let absolute = |text: &str| {
        let dir = PathBuf::from(text);
        if dir.is_absolute() { Ok(dir) } else { Err(format!("`{text}` is not an absolute path")) }
    };
    let set = |name: &str| sources.env.get(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let dir = read.parsed("state.dir", absolute).unwrap_or_else(|| {
        let base = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")));
        base.unwrap_or_else(|| PathBuf::from("/var/lib")).join("afterimage")
    });
    shown.set("state.dir", dir.display().to_string());
    StateSettings {
        dir,
        memory: read.size("state.memory", 16_000_000, 1 << 40).unwrap_or_default(),
        front: read.size("state.front", 0, 1 << 40).unwrap_or_default(),
    }
}

fn parse_listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == "off" {
        return Ok(None);
    }
    let digits = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    text.parse().map(Some).map_err(|_| match text.rsplit_once(':') {
        Some((_, port)) if digits(port) && port.parse::<u16>().is_err() => {
            format!("`{text}`: there is no port {port}, 65535 is the last")
        }
        _ => format!("`{text}` is neither an address like 127.0.0.1:9464 nor \"off\""),
    })
}

fn check_worker_name(text: &str) -> Result<String, String> {
    if text.len() > WORKER_MAX || !text.chars().all(|c| c.is_ascii_graphic()) {
        return Err(format!("a worker's name has at most {WORKER_MAX} bytes, printable ASCII without spaces"));
    }
    // It stands in claims, logs and pg_stat_activity: no place for what may hold a password.
    if text.contains("://") || text.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
        return Err("it looks like a URL, which may hold a password; give the worker a name".to_owned());
    }
    Ok(text.to_owned())
}

fn default_worker_name(sources: &Sources) -> String {
    let pid = format!("-{}", sources.pid);
    let host: String = sources.host.chars().filter(char::is_ascii_graphic).take(WORKER_MAX - pid.len()).collect();
    host + &pid
}
