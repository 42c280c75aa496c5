//! What the verbs of an operator reach for: the sink with its schema checked, the brokers' logs, and a yes from whoever asked.

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use super::failure::{Exit, Failure};
use super::seam::{BROKER_HINT, RIGHTS_HINT, SINK_HINT, is_denied, kafka_settings, schema_failure, sink_settings};
use crate::config::Config;
use crate::core::lineage::Fingerprint;
use crate::kafka::{self, KafkaError, KafkaSettings, Metadata, TopicPartition};
use crate::postgres::client::{ANSWER_TIME, SinkSettings, describe};
use crate::postgres::operator::OperatorError;
use crate::postgres::{Client, Error, migrate};

/// Broker questions of one verb, each.
const BROKER_TIME: Duration = Duration::from_secs(10);

/// The sink.
pub(super) struct Sink {
    /// The connection.
    pub client: Client,
    settings: SinkSettings,
}

impl Sink {
    /// Connects, and makes sure that the schema is this program's.
    pub async fn connect(config: &Config, verb: &'static str) -> Result<Sink, Failure> {
        let settings = sink_settings(config.postgres()?, config, Some(verb));
        let client = settings.connect().await;
        let client = client.map_err(|error| Failure::new(Exit::Failed, verb, error).next(SINK_HINT))?;
        migrate::check(&client).await.map_err(|error| schema_failure(&error, RIGHTS_HINT))?;
        Ok(Sink { client, settings })
    }

    /// How to reach it.
    pub fn settings(&self) -> &SinkSettings {
        &self.settings
    }
}

/// A question's or a change's failure in words.
fn failed(verb: &str, error: impl Into<OperatorError>) -> Failure {
    match error.into() {
        OperatorError::Query(error) => {
            let failure = Failure::new(Exit::Failed, verb, describe(&error));
            if is_denied(&error) { failure.next(RIGHTS_HINT) } else { failure }
        }
        moved @ OperatorError::Moved(_) => Failure::new(Exit::Halted, verb, moved)
            .next("nothing was changed: look again with `afterimage offsets show`"),
    }
}

/// A future that a sink which has fallen silent does not hold up for ever.
pub(super) async fn answered<T, E>(
    verb: &'static str,
    within: Duration,
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, Failure>
where
    E: Into<OperatorError>,
{
    match tokio::time::timeout(within, question).await {
        Ok(answer) => answer.map_err(|error| failed(verb, error)),
        Err(_) => {
            let reason = format!("no answer from the sink within {} s", within.as_secs());
            Err(Failure::new(Exit::Failed, verb, reason).next(SINK_HINT))
        }
    }
}

/// A question that is answered at once by a server that is alive.
pub(super) async fn asked<T>(
    verb: &'static str,
    question: impl Future<Output = Result<T, Error>>,
) -> Result<T, Failure> {
    answered(verb, ANSWER_TIME, question).await
}

/// A partition's log as the broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Log {
    /// Its first offset.
    pub earliest: i64,
    /// The next offset that will be written.
    pub end: i64,
    /// What stands at the offset that was asked for.
    pub found: Option<Fingerprint>,
}

/// The cluster's id, and the logs of those partitions that it has.
pub(super) type Logs = (String, BTreeMap<TopicPartition, Log>);

/// Looks at partitions' logs, each with an offset at which to look, if any.
pub(super) async fn logs(
    config: &Config,
    verb: &'static str,
    wanted: Vec<(TopicPartition, Option<i64>)>,
) -> Result<Logs, Failure> {
    let settings = kafka_settings(config.kafka()?, config);
    let looked = tokio::task::spawn_blocking(move || look(&settings, &wanted)).await;
    looked
        .map_err(|error| Failure::new(Exit::Failed, verb, error))?
        .map_err(|error| Failure::new(Exit::Failed, verb, error).next(BROKER_HINT))
}

fn look(settings: &KafkaSettings, wanted: &[(TopicPartition, Option<i64>)]) -> Result<Logs, KafkaError> {
    let metadata = Metadata::connect(settings)?;
    let cluster = metadata.cluster_id(BROKER_TIME)?;
    let topics = metadata.topics(BROKER_TIME, |name| wanted.iter().any(|(of, _)| &*of.topic == name))?;
    let is_there =
        |of: &TopicPartition| topics.iter().any(|topic| topic.name == of.topic && of.partition < topic.partitions);
    let there: Vec<TopicPartition> = wanted.iter().map(|(of, _)| of).filter(|of| is_there(of)).cloned().collect();
    let marks = metadata.watermarks(&there, BROKER_TIME)?;
    let mut at = Vec::new();
    for (of, marks) in &marks {
        let offset = wanted.iter().find(|(wanted, _)| wanted == of).and_then(|(_, offset)| *offset);
        at.extend(offset.filter(|offset| (marks.low..marks.high).contains(offset)).map(|offset| (of.clone(), offset)));
    }
    let seen = kafka::peek(settings, &at, BROKER_TIME, Fingerprint::of)?;
    if let Some((silent, _)) = at.iter().find(|(of, _)| !seen.contains_key(of)) {
        let reason = format!("nothing was delivered within {} s", BROKER_TIME.as_secs());
        return Err(KafkaError::Request {
            action: format!("looking at the message of {silent} that was read last"),
            reason,
        });
    }
    let log = |(of, marks): (TopicPartition, kafka::Watermarks)| {
        let found = seen.get(&of).copied().flatten();
        (of, Log { earliest: marks.low, end: marks.high, found })
    };
    Ok((cluster, marks.into_iter().map(log).collect()))
}

/// Whether it is to be done: said beforehand, or typed now by a person at a terminal.
pub(super) fn confirmed(verb: &str, yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let refused =
        |reason: &str| Failure::new(Exit::Usage, verb, reason.to_owned()).next("add --yes, or --dry-run to look only");
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refused(&format!("it would {what}, and nobody is at a terminal to confirm that")));
    }
    let mut typed = String::new();
    let mut err = std::io::stderr();
    let asked = write!(err, "This will {what}. Type yes to go on: ").and_then(|()| err.flush());
    asked
        .and_then(|()| std::io::stdin().lock().read_line(&mut typed))
        .map_err(|error| Failure::new(Exit::Failed, verb, error))?;
    if typed.trim() == "yes" { Ok(()) } else { Err(refused("not confirmed; nothing was changed")) }
}
