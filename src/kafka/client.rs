//! Client settings: which ones are part of a promise and therefore forced, which are defaults, each with its reason.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError as NativeError, RDKafkaErrorCode};

use super::KafkaError;
use super::inbox::lock;

/// How to reach Kafka, and as whom.
#[derive(Clone)]
pub struct KafkaSettings {
    /// Bootstrap servers, `host:port,host:port`. See [`parse_brokers`] for Heroku's URL form.
    pub brokers: String,
    /// Consumer group.
    pub group: String,
    /// Encryption; `None` = plain text.
    pub tls: Option<Tls>,
    /// More librdkafka settings (SASL, rack, tuning). The settings that carry a promise can't be changed here.
    pub extra: BTreeMap<String, String>,
    /// Static membership: the same id after a kill -9 takes its partitions back without a rebalance. Must come from
    /// a disk that survives the process, and be used by one process at a time.
    pub group_instance_id: Option<String>,
    /// After this long without a heartbeat the group gives our partitions to others. Part of the recovery promise
    /// (10 s with an empty disk, 6 s of it the session); brokers usually refuse less than 6 s.
    pub session_timeout: Duration,
    /// Name of this client in broker logs and quotas.
    pub client_id: String,
    /// Bytes of fetched, not yet drained messages, for all partitions together; each partition gets an equal share
    /// (at least 256 KiB, and it may overshoot by one fetch). This is the back-pressure bound.
    pub queue_bytes: usize,
}

impl KafkaSettings {
    /// Settings with defaults: no TLS, session time-out 6 s, 16 MiB of queued messages.
    pub fn new(brokers: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            group: group.into(),
            tls: None,
            extra: BTreeMap::new(),
            group_instance_id: None,
            session_timeout: Duration::from_secs(6),
            client_id: "afterimage".into(),
            queue_bytes: 16 << 20,
        }
    }
}

impl KafkaSettings {
    /// How often new topics and partitions are looked for: the client's own interval, a minute unless `extra` says
    /// otherwise.
    pub fn metadata_refresh(&self) -> Duration {
        let given = self.extra.get(METADATA_REFRESH).and_then(|ms| ms.parse().ok()).filter(|ms| *ms > 0);
        Duration::from_millis(given.unwrap_or(60_000)).max(Duration::from_millis(100))
    }
}

/// librdkafka's name for it.
const METADATA_REFRESH: &str = "topic.metadata.refresh.interval.ms";

/// Names the extra settings but not their values: SASL passwords are among them.
impl std::fmt::Debug for KafkaSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSettings")
            .field("brokers", &self.brokers)
            .field("group", &self.group)
            .field("tls", &self.tls)
            .field("extra", &self.extra.keys())
            .field("group_instance_id", &self.group_instance_id)
            .field("session_timeout", &self.session_timeout)
            .field("client_id", &self.client_id)
            .field("queue_bytes", &self.queue_bytes)
            .finish()
    }
}

/// TLS to the brokers. The broker's certificate is always checked against the CA; only the check of the host *name*
/// can be switched off.
#[derive(Clone)]
pub struct Tls {
    /// PEM of the CA that signed the brokers' certificates; `None` = the system's CAs.
    pub ca_pem: Option<String>,
    /// PEM of our certificate and of its private key, when the cluster identifies clients by certificate.
    pub identity_pem: Option<(String, String)>,
    /// Password of the private key.
    pub key_password: Option<String>,
    /// Check that the certificate names the host we connected to. Heroku Kafka's certificates don't name hosts, so
    /// it must be off there; the CA is then private to the cluster, which is what makes that acceptable.
    pub verify_hostname: bool,
}

impl Default for Tls {
    fn default() -> Self {
        Self { ca_pem: None, identity_pem: None, key_password: None, verify_hostname: true }
    }
}

/// Never prints key material: settings end up in logs.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("ca_pem", &self.ca_pem.is_some())
            .field("identity_pem", &self.identity_pem.is_some())
            .field("verify_hostname", &self.verify_hostname)
            .finish_non_exhaustive()
    }
}

/// Reads `KAFKA_URL`: Heroku's `kafka+ssl://host:port,kafka+ssl://host:port`, `kafka://…`, or plain `host:port,…`.
/// Returns the bootstrap servers and whether TLS is asked for.
///
/// # Errors
/// [`KafkaError::Setting`] for an empty list, an unknown scheme, a mix of schemes, or a server without a port.
pub fn parse_brokers(url: &str) -> Result<(String, bool), KafkaError> {
    let refuse = |reason: String| KafkaError::Setting { name: "brokers".into(), reason };
    let mut servers = Vec::new();
    let mut secure = None;
    for part in url.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (ssl, server) = match part.split_once("://") {
            None => (false, part),
            Some(("kafka+ssl", rest)) => (true, rest),
            Some(("kafka", rest)) => (false, rest),
            Some((scheme, _)) => return Err(refuse(format!("unknown scheme {scheme}://"))),
        };
        if *secure.get_or_insert(ssl) != ssl {
            return Err(refuse("some servers use TLS and some do not".into()));
        }
        let server = server.trim_end_matches('/');
        match server.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {}
            // The server is not repeated when it carries something like user:password@.
            _ if server.contains('@') => return Err(refuse("expected host:port, without a user".into())),
            _ => return Err(refuse(format!("expected host:port, got {server:?}"))),
        }
        servers.push(server);
    }
    match secure {
        Some(secure) => Ok((servers.join(","), secure)),
        None => Err(refuse("no server given".into())),
    }
}

/// Settings that carry a promise: (name, value, reason). `extra` can't change them.
const FORCED: &[(&str, &str, &str)] = &[
    ("enable.auto.commit", "false", "Postgres holds the position; Kafka gets offsets for lag tools, after the commit"),
    ("enable.auto.offset.store", "false", "no offset is committed that we did not name"),
    ("auto.offset.reset", "error", "a position outside the log is a gap or a recreated topic, never a silent jump"),
    ("enable.partition.eof", "true", "the end of a partition is awaited as a fact when partitions are merged by time"),
    ("group.protocol", "classic", "the rebalance protocol that was tested"),
    ("partition.assignment.strategy", "cooperative-sticky", "a rebalance leaves unmoved partitions alone"),
    ("isolation.level", "read_committed", "an aborted transaction is no change"),
    ("allow.auto.create.topics", "false", "a misspelt topic must be an error, not an empty topic"),
];

/// Settings that have a field of their own in [`KafkaSettings`]; in `extra` they would contradict it.
const FIELDS: &[(&str, &str)] = &[
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("group.id", "group"),
    ("group.instance.id", "group_instance_id"),
    ("session.timeout.ms", "session_timeout"),
    ("client.id", "client_id"),
    ("queued.max.messages.kbytes", "queue_bytes"),
    ("ssl.ca.pem", "tls.ca_pem"),
    ("ssl.certificate.pem", "tls.identity_pem"),
    ("ssl.key.pem", "tls.identity_pem"),
    ("ssl.key.password", "tls.key_password"),
    ("ssl.endpoint.identification.algorithm", "tls.verify_hostname"),
    ("enable.ssl.certificate.verification", "tls.ca_pem"),
];

/// Defaults of the consumer that `extra` may change: (name, value, reason).
const CONSUMER_DEFAULTS: &[(&str, &str, &str)] = &[
    ("heartbeat.interval.ms", "2000", "a third of the session time-out"),
    (
        "max.poll.interval.ms",
        "60000",
        "also the group's patience with a member that does not rejoin; callbacks take seconds, not minutes",
    ),
    (
        "fetch.wait.max.ms",
        "100",
        "an end-of-partition mark comes with an empty fetch, and a claimed or rewound partition waits for the fetch \
         under way; the default of 500 delays both",
    ),
    (
        "fetch.queue.backoff.ms",
        "5",
        "how soon a full queue that was drained is fetched again; the default of 1000 halves the throughput",
    ),
    ("queued.min.messages", "100000", "bytes bound the queue, not the number of messages"),
    ("socket.timeout.ms", "10000", "an unanswered offset commit holds back assignments for this long"),
    ("reconnect.backoff.max.ms", "2000", "a restarted broker is found again within seconds (default 10 s)"),
    (METADATA_REFRESH, "60000", "a topic's new partitions are read within a minute (default 5)"),
    ("statistics.interval.ms", "0", "positions, ends and watermarks are read directly"),
];

/// How the bytes of [`KafkaSettings::queue_bytes`] are dealt out.
#[derive(Debug, PartialEq, Eq)]
struct FetchLimits {
    /// Queued bytes at which fetching of one partition stops, in KiB.
    queued_kbytes: usize,
    /// Bytes asked for per partition and fetch; by this much a queue may overshoot.
    partition_bytes: usize,
    /// Bytes asked for per fetch from one broker.
    fetch_bytes: usize,
}

impl FetchLimits {
    fn new(queue_bytes: usize, partitions: usize) -> Self {
        // Half of the share is the stop mark, the other half is room for the fetch in flight.
        let share = (queue_bytes / partitions.max(1)).max(256 << 10);
        Self {
            // Upper bound: librdkafka's own, 2,097,151 KiB.
            queued_kbytes: (share / 2 / 1024).min(2_097_151),
            partition_bytes: (share / 2).min(4 << 20),
            fetch_bytes: (queue_bytes / 4).clamp(1 << 20, 50 << 20),
        }
    }
}

/// Settings that every client of ours has.
fn base(settings: &KafkaSettings) -> Result<ClientConfig, KafkaError> {
    for name in settings.extra.keys() {
        if let Some((_, value, reason)) = FORCED.iter().find(|(forced, _, _)| forced == name) {
            return Err(KafkaError::Setting { name: name.clone(), reason: format!("is always {value}: {reason}") });
        }
        if let Some((_, field)) = FIELDS.iter().find(|(named, _)| named == name) {
            return Err(KafkaError::Setting { name: name.clone(), reason: format!("use the setting {field} instead") });
        }
    }
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &settings.brokers).set("client.id", &settings.client_id);
    config.set_log_level(RDKafkaLogLevel::Info);
    if let Some(tls) = &settings.tls {
        // With SASL the protocol is SASL_SSL; it is asked for by naming a mechanism.
        let sasl = settings.extra.contains_key("sasl.mechanism") || settings.extra.contains_key("sasl.mechanisms");
        config
            .set("security.protocol", if sasl { "sasl_ssl" } else { "ssl" })
            .set("enable.ssl.certificate.verification", "true")
            .set("ssl.endpoint.identification.algorithm", if tls.verify_hostname { "https" } else { "none" });
        if let Some(ca) = &tls.ca_pem {
            config.set("ssl.ca.pem", ca);
        }
        if let Some((certificate, key)) = &tls.identity_pem {
            config.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key);
        }
        if let Some(password) = &tls.key_password {
            config.set("ssl.key.password", password);
        }
    }
    Ok(config)
}

fn add_extra(config: &mut ClientConfig, settings: &KafkaSettings) {
    for (name, value) in &settings.extra {
        config.set(name, value);
    }
}

/// The group member. `partitions` = how many partitions the subscribed topics have, to deal out the queue bytes.
pub(super) fn consumer_config(settings: &KafkaSettings, partitions: usize) -> Result<ClientConfig, KafkaError> {
    let mut config = base(settings)?;
    let limits = FetchLimits::new(settings.queue_bytes, partitions);
    config
        .set("group.id", &settings.group)
        .set("session.timeout.ms", settings.session_timeout.as_millis().to_string())
        .set("queued.max.messages.kbytes", limits.queued_kbytes.to_string())
        .set("fetch.message.max.bytes", limits.partition_bytes.to_string())
        .set("fetch.max.bytes", limits.fetch_bytes.to_string());
    if let Some(id) = &settings.group_instance_id {
        config.set("group.instance.id", id);
    }
    for (name, value, _) in CONSUMER_DEFAULTS {
        config.set(*name, *value);
    }
    add_extra(&mut config, settings);
    for (name, value, _) in FORCED {
        config.set(*name, *value);
    }
    Ok(config)
}

/// A client without a group, for questions.
pub(super) fn metadata_config(settings: &KafkaSettings) -> Result<ClientConfig, KafkaError> {
    let mut config = base(settings)?;
    config.set("socket.timeout.ms", "10000");
    add_extra(&mut config, settings);
    // Group settings in `extra` mean nothing here, but are valid for a consumer, which this client is.
    config.set("allow.auto.create.topics", "false").set("enable.auto.commit", "false");
    Ok(config)
}

/// A client that looks at single messages, in no group. It names the group all the same, since brokers may let us use no
/// other, and never joins it or commits to it.
pub(super) fn peek_config(settings: &KafkaSettings) -> Result<ClientConfig, KafkaError> {
    let mut config = consumer_config(settings, 1)?;
    // What stands there now, whoever wrote it: an aborted message is not the one that was read.
    config.set("isolation.level", "read_uncommitted");
    // One message each; the client asks for more where one is longer.
    config.set("queued.min.messages", "1").set("fetch.message.max.bytes", "65536").set("fetch.wait.max.ms", "20");
    config.remove("group.instance.id");
    Ok(config)
}

/// A producer (demo and tests only: the product never writes to Kafka).
pub(super) fn producer_config(settings: &KafkaSettings) -> Result<ClientConfig, KafkaError> {
    let mut config = base(settings)?;
    // Big batches: the embedded broker serves one message set per partition and fetch.
    config.set("enable.idempotence", "true").set("linger.ms", "20").set("batch.size", "1000000");
    add_extra(&mut config, settings);
    Ok(config)
}

/// Turns librdkafka's refusal of a setting into ours.
pub(super) fn creation_error(error: NativeError) -> KafkaError {
    match error {
        NativeError::ClientConfig(_, reason, name, _) => KafkaError::Setting { name, reason },
        other => KafkaError::request("creating the Kafka client", other),
    }
}

/// Passes librdkafka's log lines on and remembers the last connection trouble, which is what a person needs when
/// a request times out ("timed out" alone says nothing).
#[derive(Default)]
pub(super) struct ClientLog {
    last_trouble: Mutex<Option<String>>,
}

impl ClientLog {
    pub(super) fn last_trouble(&self) -> Option<String> {
        lock(&self.last_trouble).clone()
    }

    pub(super) fn note(&self, trouble: String) {
        *lock(&self.last_trouble) = Some(trouble);
    }

    pub(super) fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        use RDKafkaLogLevel as L;
        match level {
            L::Emerg | L::Alert | L::Critical | L::Error => {
                self.note(text.to_owned());
                tracing::warn!(target: "librdkafka", facility, "{text}");
            }
            L::Warning => tracing::warn!(target: "librdkafka", facility, "{text}"),
            L::Notice | L::Info => tracing::info!(target: "librdkafka", facility, "{text}"),
            L::Debug => tracing::debug!(target: "librdkafka", facility, "{text}"),
        }
    }
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.line(level, facility, text);
    }

    fn error(&self, error: NativeError, reason: &str) {
        self.note(format!("{error}: {reason}"));
        // Said with every attempt to connect; `outage.rs` tells of it.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            tracing::trace!(target: "librdkafka", %error, "{reason}");
        } else {
            tracing::debug!(target: "librdkafka", %error, "{reason}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> KafkaSettings {
        KafkaSettings::new("a:1,b:2", "afterimage.main")
    }

    fn reason(error: KafkaError) -> (String, String) {
        match error {
            KafkaError::Setting { name, reason } => (name, reason),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_settings_that_carry_a_promise_are_set_and_cannot_be_changed() {
        let config = consumer_config(&settings(), 6).unwrap();
        for (name, value) in [
            ("bootstrap.servers", "a:1,b:2"),
            ("group.id", "afterimage.main"),
            ("session.timeout.ms", "6000"),
            ("heartbeat.interval.ms", "2000"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("group.protocol", "classic"),
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("isolation.level", "read_committed"),
            ("allow.auto.create.topics", "false"),
            ("fetch.queue.backoff.ms", "5"),
        ] {
            assert_eq!(config.get(name), Some(value), "{name}");
        }
        assert_eq!(config.get("group.instance.id"), None);
        for name in FORCED.iter().map(|(name, ..)| *name).chain(FIELDS.iter().map(|(name, _)| *name)) {
            let mut wrong = settings();
            wrong.extra.insert(name.into(), "x".into());
            assert_eq!(reason(consumer_config(&wrong, 1).unwrap_err()).0, name);
            assert_eq!(reason(metadata_config(&wrong).unwrap_err()).0, name);
        }
    }

    #[test]
    fn other_settings_can_be_changed_and_librdkafka_takes_all_of_them() {
        let mut own = settings();
        own.group_instance_id = Some("w1".into());
        own.session_timeout = Duration::from_secs(10);
        own.extra.insert("fetch.wait.max.ms".into(), "7".into());
        own.extra.insert("client.rack".into(), "r".into());
        let config = consumer_config(&own, 1).unwrap();
        assert_eq!(config.get("fetch.wait.max.ms"), Some("7"));
        assert_eq!(config.get("client.rack"), Some("r"));
        assert_eq!(config.get("group.instance.id"), Some("w1"));
        assert_eq!(config.get("session.timeout.ms"), Some("10000"));
        assert_eq!(config.get(METADATA_REFRESH), Some("60000"));
        assert_eq!(own.metadata_refresh(), Duration::from_secs(60));
        own.extra.insert(METADATA_REFRESH.into(), "500".into());
        assert_eq!(own.metadata_refresh(), Duration::from_millis(500));
        for config in [config, metadata_config(&settings()).unwrap(), producer_config(&settings()).unwrap()] {
            config.create_native_config().unwrap();
        }
    }

    #[test]
    fn tls_always_checks_the_ca_and_the_host_name_unless_told_otherwise() {
        let mut tls = settings();
        assert_eq!(consumer_config(&tls, 1).unwrap().get("security.protocol"), None);
        tls.tls = Some(Tls {
            ca_pem: Some("CA".into()),
            identity_pem: Some(("CERT".into(), "KEY".into())),
            key_password: Some("PASSWORD".into()),
            verify_hostname: true,
        });
        let producer = producer_config(&tls).unwrap();
        for config in [consumer_config(&tls, 1).unwrap(), metadata_config(&tls).unwrap(), producer] {
            for (name, value) in [
                ("security.protocol", "ssl"),
                ("enable.ssl.certificate.verification", "true"),
                ("ssl.endpoint.identification.algorithm", "https"),
                ("ssl.ca.pem", "CA"),
                ("ssl.certificate.pem", "CERT"),
                ("ssl.key.pem", "KEY"),
                ("ssl.key.password", "PASSWORD"),
            ] {
                assert_eq!(config.get(name), Some(value), "{name}");
            }
        }
        let printed = format!("{tls:?}");
        assert!(!printed.contains("KEY") && !printed.contains("PASSWORD"), "{printed}");
        if let Some(tls) = &mut tls.tls {
            tls.verify_hostname = false;
        }
        let config = consumer_config(&tls, 1).unwrap();
        assert_eq!(config.get("ssl.endpoint.identification.algorithm"), Some("none"));
        assert_eq!(config.get("enable.ssl.certificate.verification"), Some("true"));
        tls.extra.insert("sasl.mechanism".into(), "SCRAM-SHA-512".into());
        assert_eq!(consumer_config(&tls, 1).unwrap().get("security.protocol"), Some("sasl_ssl"));
        assert!(Tls::default().verify_hostname);
    }

    #[test]
    fn printed_settings_hold_no_secret() {
        let mut own = settings();
        own.extra.insert("sasl.password".into(), "hunter2".into());
        let printed = format!("{own:?}");
        assert!(!printed.contains("hunter2") && printed.contains("sasl.password"), "{printed}");
    }

    #[test]
    fn brokers_are_read_in_every_form() {
        let read = |url| parse_brokers(url).map_err(|error| reason(error).1);
        assert_eq!(read("a:1"), Ok(("a:1".into(), false)));
        assert_eq!(read(" a:1 , [::1]:2,"), Ok(("a:1,[::1]:2".into(), false)));
        assert_eq!(read("kafka://a:1/"), Ok(("a:1".into(), false)));
        assert_eq!(read("kafka+ssl://a:9096,kafka+ssl://b:9096"), Ok(("a:9096,b:9096".into(), true)));
        for (url, word) in [
            ("", "no server"),
            ("a", "host:port"),
            (":1", "host:port"),
            ("a:99999", "host:port"),
            ("kafka+ssl://a:1,kafka://b:2", "some"),
            ("http://a:1", "http"),
        ] {
            assert!(read(url).unwrap_err().contains(word), "{url}");
        }
        assert!(!read("user:secret@a").unwrap_err().contains("secret"));
    }

    #[test]
    fn the_queue_bytes_are_shared_and_never_starve_a_partition() {
        let limits = |queue_bytes, partitions| FetchLimits::new(queue_bytes, partitions);
        let one = FetchLimits { queued_kbytes: 32 << 10, partition_bytes: 4 << 20, fetch_bytes: 16 << 20 };
        assert_eq!(limits(64 << 20, 1), one);
        assert_eq!(limits(64 << 20, 0), one);
        let many = FetchLimits { queued_kbytes: 128, partition_bytes: 128 << 10, fetch_bytes: 16 << 20 };
        assert_eq!(limits(64 << 20, 256), many);
        assert_eq!(limits(0, 256), FetchLimits { fetch_bytes: 1 << 20, ..many });
        assert_eq!(limits(usize::MAX, 1).queued_kbytes, 2_097_151);
    }
}
