//! librdkafka's own properties, as users pass them through.

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError as NativeError;
use rdkafka::types::RDKafkaConfRes;

/// Why librdkafka refuses a property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyFault {
    /// It has no such property.
    Unknown,
    /// It does not take the value.
    Value,
}

/// Asks librdkafka itself whether it knows a property and takes its value.
///
/// # Errors
/// When it does not.
pub fn check_property(name: &str, value: &str) -> Result<(), PropertyFault> {
    match ClientConfig::new().set(name, value).create_native_config() {
        Err(NativeError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => Err(PropertyFault::Unknown),
        Err(NativeError::ClientConfig(..)) => Err(PropertyFault::Value),
        // Anything else is for the client to find out when it is made.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Names of properties that users set, to find the one that a misspelt name means.
pub const PROPERTIES: &[&str] = &[
    "allow.auto.create.topics",
    "api.version.request",
    "api.version.request.timeout.ms",
    "broker.address.family",
    "broker.address.ttl",
    "broker.version.fallback",
    "check.crcs",
    "client.dns.lookup",
    "client.id",
    "client.rack",
    "connections.max.idle.ms",
    "debug",
    "fetch.error.backoff.ms",
    "fetch.max.bytes",
    "fetch.message.max.bytes",
    "fetch.min.bytes",
    "fetch.queue.backoff.ms",
    "fetch.wait.max.ms",
    "heartbeat.interval.ms",
    "log.connection.close",
    "log_level",
    "max.in.flight.requests.per.connection",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.max.bytes",
    "metadata.max.age.ms",
    "metadata.recovery.strategy",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "receive.message.max.bytes",
    "reconnect.backoff.max.ms",
    "reconnect.backoff.ms",
    "retry.backoff.max.ms",
    "retry.backoff.ms",
    "sasl.kerberos.keytab",
    "sasl.kerberos.kinit.cmd",
    "sasl.kerberos.min.time.before.relogin",
    "sasl.kerberos.principal",
    "sasl.kerberos.service.name",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.extensions",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.connection.setup.timeout.ms",
    "socket.keepalive.enable",
    "socket.max.fails",
    "socket.nagle.disable",
    "socket.receive.buffer.bytes",
    "socket.send.buffer.bytes",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.cipher.suites",
    "ssl.crl.location",
    "ssl.curves.list",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.providers",
    "ssl.sigalgs.list",
    "statistics.interval.ms",
    "topic.metadata.refresh.interval.ms",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn librdkafka_knows_every_property_that_is_proposed_and_none_that_is_misspelt() {
        let unknown: Vec<&&str> =
            PROPERTIES.iter().filter(|name| check_property(name, "") == Err(PropertyFault::Unknown)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        assert_eq!(check_property("fetch.min.byts", "1"), Err(PropertyFault::Unknown));
        assert_eq!(check_property("fetch.min.bytes", "many"), Err(PropertyFault::Value));
        assert_eq!(check_property("fetch.min.bytes", "1"), Ok(()));
    }
}
