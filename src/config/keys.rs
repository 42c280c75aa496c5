//! Every configuration key: one table drives the refusal of unknown keys, the environment names,
//! the defaults, the masking and the printed form.

/// A key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted path as in the file: `section.name`. The environment variable is [`Key::env`].
    pub path: &'static str,
    /// The value when nothing sets it; `None` = unset, or derived (see the help).
    pub default: Option<&'static str>,
    /// Whether the value is masked wherever it is printed.
    pub secret: bool,
    /// What it means, with unit, default and when to change it.
    pub help: &'static str,
}

impl Key {
    /// The environment variable of this key: `AFTERIMAGE_` + upper case, `__` between section and name.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.path.replace('.', "__").to_ascii_uppercase())
    }
}

/// What the project's own environment variables start with. A variable with this prefix that names no
/// key is refused, so that a misspelt one is not silently without effect.
pub const ENV_PREFIX: &str = "AFTERIMAGE_";

/// Names the configuration file; the one variable with the prefix that is not a key.
pub const ENV_FILE: &str = "AFTERIMAGE_CONFIG";

/// The open table of librdkafka's own properties.
pub const EXTRA: &str = "kafka.extra";

const fn key(path: &'static str, default: Option<&'static str>, help: &'static str) -> Key {
    Key { path, default, secret: false, help }
}

const fn secret(path: &'static str, help: &'static str) -> Key {
    Key { path, default: None, secret: true, help }
}

/// All keys, in the order in which the effective configuration is printed.
pub const KEYS: &[Key] = &[
    key(
        "kafka.brokers",
        None,
        "host:port list, or kafka:// / kafka+ssl:// URLs; KAFKA_URL works too. TLS is on with kafka+ssl://, or when ca, cert or key is set here",
    ),
    key(
        "kafka.group",
        None,
        "consumer group; default afterimage.<postgres.name>. Part of a sink's identity: another group on the same sink is refused",
    ),
    key("kafka.prefix", Some(""), "KAFKA_PREFIX of multi-tenant Heroku plans: stands before topic and group names"),
    key("kafka.attachment", Some("KAFKA"), "name of the Heroku attachment: reads <NAME>_URL, <NAME>_TRUSTED_CERT, …"),
    key(
        "kafka.static_member",
        Some("false"),
        "true: a worker that is killed and started again with the same state.dir has its partitions back within a second or two; but one that is stopped for good keeps them from others for the session's 6 s. Only where state.dir survives",
    ),
    secret("kafka.ca", "CA that signed the brokers' certificates: PEM text or a file; default the system's CAs"),
    secret("kafka.cert", "client certificate: PEM text or a file"),
    secret("kafka.key", "private key of the client certificate: PEM text or a file"),
    key(
        "kafka.verify_hostname",
        None,
        "compare the brokers' host names with their certificates; default true, but false with the CA of a Heroku attachment, whose certificates do not carry host names",
    ),
    secret(
        "postgres.url",
        "the sink: postgres://user:password@host/database; DATABASE_URL and TIME_MACHINE_URL (wins) work too",
    ),
    key("postgres.name", None, "name of the sink in the default group name; default the database's name"),
    key(
        "postgres.sslmode",
        None,
        "disable | prefer | require (encrypts, does not verify) | verify-full; default prefer on this machine, require with Heroku's DATABASE_URL on a dyno, verify-full anywhere else",
    ),
    key("postgres.ca", None, "CA file for verify-full; default the system's CAs"),
    key(
        "postgres.pool_mode",
        Some("session"),
        "session: the server itself, or a pooler in session mode; transaction: a pooler (PgBouncer) in transaction mode",
    ),
    key(
        "state.dir",
        None,
        "absolute directory of the image store, a cache that may be lost; default below the user's state directory",
    ),
    key(
        "state.memory",
        Some("64MB"),
        "budget of the image store: block cache and write buffers together, whatever the partition count",
    ),
    key(
        "state.front",
        Some("64MB"),
        "most memory for knowing repeated events without decoding them (40 bytes a record), all topics together",
    ),
    key("commit.max_rows", Some("10000"), "most rows of one commit"),
    key("commit.max_bytes", Some("8MB"), "most bytes of rows of one commit"),
    key("commit.linger", Some("100ms"), "longest wait to fill a commit: latency against commits per second"),
    key(
        "history.create_window",
        Some("24h"),
        "a `c` event is a create if createddate is at most this old (or absent), else a baseline",
    ),
    key("debezium.placeholder", Some("__debezium_unavailable_value"), "the connector's unavailable.value.placeholder"),
    key(
        "metrics.listen",
        Some("127.0.0.1:9464"),
        "address of /metrics; port 0 takes a free one and logs it; \"off\" for none",
    ),
    key("log.format", Some("text"), "text | json, on stderr"),
    key("log.level", Some("info"), "error | warn | info | debug | trace, or target=level pairs: info,afterimage=debug"),
    key("worker.name", None, "this process in claims, logs and application_name; default host name and process id"),
    key("org", None, "[[org]] name, topics: which topics belong to which org"),
    key("object", None, "[[object]] org, name, identity, types, mask_add, mask_remove, lookup, grace"),
];

/// The key of a path.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether keys stand below this path.
pub fn is_section(path: &str) -> bool {
    path == EXTRA || KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// The nearest of `known` to a misspelt name, when it is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 6)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes, two neighbours in wrong order counted as one mistake.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_finds_its_neighbour_and_a_strange_one_none() {
        let paths = || KEYS.iter().map(|key| key.path);
        assert_eq!(nearest("kafka.brokes", paths()), Some("kafka.brokers"));
        assert_eq!(nearest("postgres.pool_mod", paths()), Some("postgres.pool_mode"));
        assert_eq!(nearest("kafak", ["kafka", "log"]), Some("kafka"));
        assert_eq!((distance("ca", "abc"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
        assert_eq!(nearest("something.else_entirely", paths()), None);
        assert_eq!(nearest("", paths()), None);
    }

    #[test]
    fn environment_names_follow_from_paths() {
        assert_eq!(find("postgres.pool_mode").map(Key::env).as_deref(), Some("AFTERIMAGE_POSTGRES__POOL_MODE"));
        assert!(is_section("kafka") && is_section("kafka.extra") && !is_section("kafka.brokers") && !is_section("kaf"));
    }
}
