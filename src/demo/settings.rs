//! The configuration file that the demo writes for each worker: the same form as anybody's, nothing built in.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::simulator::SimTopic;
use super::simulator::tables::declared_types;

/// What a worker's file says.
#[derive(Debug, Clone)]
pub struct WorkerSettings<'a> {
    /// The worker's name.
    pub name: &'a str,
    /// Kafka's address.
    pub brokers: &'a str,
    /// What stands before the names of topics and groups; empty on a broker of the demo's own.
    pub prefix: &'a str,
    /// The sink.
    pub url: &'a str,
    /// Directory of the image store, the worker's own.
    pub state: &'a Path,
    /// Where `/metrics` answers.
    pub metrics: SocketAddr,
    /// The topics of the simulated connectors.
    pub topics: &'a [SimTopic],
}

#[derive(Serialize)]
struct File<'a> {
    kafka: Kafka<'a>,
    postgres: Postgres<'a>,
    state: State<'a>,
    metrics: Metrics,
    worker: Worker<'a>,
    org: Vec<Org<'a>>,
    object: Vec<Object<'a>>,
}

#[derive(Serialize)]
struct Kafka<'a> {
    brokers: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    prefix: &'a str,
}

#[derive(Serialize)]
struct Postgres<'a> {
    url: &'a str,
    sslmode: &'static str,
}

#[derive(Serialize)]
struct State<'a> {
    dir: &'a Path,
}

#[derive(Serialize)]
struct Metrics {
    listen: String,
}

#[derive(Serialize)]
struct Worker<'a> {
    name: &'a str,
}

#[derive(Serialize)]
struct Org<'a> {
    name: &'a str,
    topics: Vec<String>,
}

#[derive(Serialize)]
struct Object<'a> {
    org: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    types: toml::Table,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lookup: Vec<&'static str>,
}

impl WorkerSettings<'_> {
    /// The file's text.
    ///
    /// # Errors
    /// When a value has no place in TOML, such as a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        let mut orgs: Vec<Org<'_>> = Vec::new();
        let mut objects = Vec::new();
        for topic in self.topics {
            if orgs.last().is_none_or(|org| org.name != topic.org) {
                // The object is the topic's last segment; the others are the connector and the org's schema.
                let all =
                    topic.name.rsplit_once('.').map_or(&*topic.name, |(connector_and_schema, _)| connector_and_schema);
                orgs.push(Org { name: &topic.org, topics: vec![format!("{all}.*")] });
            }
            let types = if topic.with_schema { Vec::new() } else { declared_types(topic.object) };
            let object = Object {
                org: &topic.org,
                name: topic.object,
                types: types.into_iter().map(|(column, kind)| (column.to_string(), kind.into())).collect(),
                lookup: if topic.object == "account" { vec!["external_id__c"] } else { Vec::new() },
            };
            if !(object.types.is_empty() && object.lookup.is_empty()) {
                objects.push(object);
            }
        }
        let file = File {
            kafka: Kafka { brokers: self.brokers, prefix: self.prefix },
            postgres: Postgres { url: self.url, sslmode: "disable" },
            state: State { dir: self.state },
            metrics: Metrics { listen: self.metrics.to_string() },
            worker: Worker { name: self.name },
            org: orgs,
            object: objects,
        };
        toml::to_string(&file).context("cannot write the worker's configuration")
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulator::{SimOptions, Simulator};
    use super::*;

    #[test]
    fn orgs_are_declared_and_types_only_where_no_schema_block_tells_them() {
        let topics = Simulator::new(1, SimOptions::new(500)).topics();
        let settings = WorkerSettings {
            name: "demo-1",
            brokers: "127.0.0.1:9092",
            prefix: "",
            url: "postgres://postgres@127.0.0.1:5432/history",
            state: Path::new("/tmp/x/state-1"),
            metrics: "127.0.0.1:9464".parse().unwrap(),
            topics: &topics,
        };
        let file: toml::Table = settings.to_toml().unwrap().parse().unwrap();
        let orgs = file["org"].as_array().unwrap();
        assert_eq!(orgs.len(), 2);
        assert_eq!(orgs[0]["name"].as_str(), Some("emea"));
        assert_eq!(orgs[1]["topics"][0].as_str(), Some("calm_connector_27002.apac.*"));
        assert_eq!(file["postgres"]["sslmode"].as_str(), Some("disable"));
        let objects = file["object"].as_array().unwrap();
        let find = |org: &str, name: &str| {
            objects.iter().find(|object| object["org"].as_str() == Some(org) && object["name"].as_str() == Some(name))
        };
        assert_eq!(find("emea", "account").unwrap()["lookup"][0].as_str(), Some("external_id__c"));
        assert!(find("emea", "account").unwrap().get("types").is_none());
        assert!(find("emea", "contact").is_none());
        assert_eq!(find("apac", "contact").unwrap()["types"]["birthdate"].as_str(), Some("date"));
    }
}
