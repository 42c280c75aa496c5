//! The broker's settings: addresses, TLS, group, and librdkafka properties passed through.

use std::collections::BTreeMap;

use super::secret::Secret;

/// PEM texts of a TLS connection to Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The CA that signed the brokers' certificates (always verified); `None` = the system's CAs.
    pub ca_pem: Option<Secret>,
    /// The client certificate, if the brokers ask for one; set exactly when the key is.
    pub cert_pem: Option<Secret>,
    /// Its private key.
    pub key_pem: Option<Secret>,
    /// Whether host names are compared with the certificates. False for Heroku's attachments: their
    /// certificates are verified by their CA and carry no host names.
    pub verify_hostname: bool,
}

/// How to reach Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaSettings {
    /// `host:port` list, comma-separated, without schemes.
    pub brokers: String,
    /// The consumer group, [`KafkaSettings::prefix`] included.
    pub group: String,
    /// What stands before every topic and group name (`KAFKA_PREFIX`); mostly empty.
    pub prefix: String,
    /// TLS, or `None` for plain text.
    pub tls: Option<Tls>,
    /// Whether the worker is a static member of the group, under the id of its state directory.
    pub static_member: bool,
    /// librdkafka properties of `[kafka.extra]`; none that the processor's promises stand on.
    pub extra: BTreeMap<String, Secret>,
}

/// Properties that the processor sets itself, because correctness or recovery stands on them.
const FORCED: &[&str] = &[
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "group.instance.id",
    "group.protocol",
    "partition.assignment.strategy",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.partition.eof",
    "isolation.level",
];

/// Whether a librdkafka property may be set by the user.
pub(super) fn is_forced(property: &str) -> bool {
    FORCED.contains(&property)
}

/// Whether the value of a librdkafka property may be printed: only where the name can't mean a credential.
pub(super) fn is_printable(property: &str) -> bool {
    let secretive = [
        "password",
        "passwd",
        "secret",
        "pem",
        "token",
        "oauthbearer",
        "passphrase",
        "username",
        "kinit",
        "credential",
        "jaas",
        "private",
        "apikey",
        "api.key",
    ];
    let property = property.to_ascii_lowercase();
    // A name may be misspelt: of what has to do with logging in, only the method is shown.
    let login = property.contains("sasl") && !property.contains("sasl.mechanism");
    !login && !secretive.iter().any(|word| property.contains(word))
}

/// What a broker list says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Brokers {
    /// `host:port` list without schemes.
    pub list: String,
    /// `Some(true)` for kafka+ssl://, `Some(false)` for kafka://, `None` without schemes.
    pub tls: Option<bool>,
}

impl Brokers {
    /// Reads `host:port` or `kafka://` / `kafka+ssl://` entries. The reason quotes none of them: a pasted
    /// URL may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut list = Vec::new();
        let mut kinds = Vec::new();
        for (i, entry) in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).enumerate() {
            let n = i + 1;
            let (kind, address) = match entry.split_once("://") {
                Some(("kafka+ssl", address)) => (Some(true), address),
                Some(("kafka", address)) => (Some(false), address),
                Some(_) => return Err(format!("entry {n} has a scheme that is neither kafka:// nor kafka+ssl://")),
                None => (None, entry),
            };
            let address = address.trim_end_matches('/');
            if address.contains('@') {
                return Err(format!(
                    "entry {n} holds user information; set sasl.* properties in [kafka.extra] instead"
                ));
            }
            let port = match address.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
                Some((_, rest)) => rest.strip_prefix(':'),
                None => address.split_once(':').map(|(_, port)| port),
            };
            if port.is_some_and(|port| port.parse::<u16>().map_or(true, |port| port == 0)) {
                return Err(format!("entry {n} has no usable port"));
            }
            if address.starts_with(':') || address.contains(char::is_whitespace) || address.contains('/') {
                return Err(format!("entry {n} is not host:port"));
            }
            list.push(address);
            kinds.push(kind);
        }
        match kinds.split_first() {
            None => Err("it names no broker".to_owned()),
            Some((first, rest)) if rest.iter().any(|kind| kind != first) => {
                Err("it mixes schemes: all entries must be kafka+ssl://, or all kafka://, or none".to_owned())
            }
            Some((first, _)) => Ok(Self { list: list.join(","), tls: *first }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_lists_are_read_in_all_their_forms() {
        let read = |text: &str| Brokers::parse(text).map(|brokers| (brokers.list, brokers.tls));
        assert_eq!(read("127.0.0.1:9092"), Ok(("127.0.0.1:9092".to_owned(), None)));
        assert_eq!(read("kafka://a:1, kafka://b:2,"), Ok(("a:1,b:2".to_owned(), Some(false))));
        assert_eq!(read("kafka+ssl://a:9096,kafka+ssl://b:9096/"), Ok(("a:9096,b:9096".to_owned(), Some(true))));
        assert_eq!(read("[::1]:9092"), Ok(("[::1]:9092".to_owned(), None)));
    }

    #[test]
    fn a_bad_broker_list_is_refused_without_being_quoted() {
        for text in [
            "",
            " , ",
            "http://hunter2:1",
            "kafka://u:hunter2@h:1",
            "a:hunter2",
            "a:0",
            "kafka://a:1,b:2",
            "kafka://a:1,kafka+ssl://hunter2:2",
        ] {
            let reason = Brokers::parse(text).expect_err(text);
            assert!(!reason.contains("hunter2"), "{reason}");
        }
    }
}
