//! The demo on somebody's running Kafka: topics and groups under a prefix of its own, removed at the end.
//!
//! A demo that is killed can remove nothing, so the next one does, and must not take what belongs to a living one. What
//! tells them apart is a group in which the demo's own process is the only member for as long as it lives: the broker
//! itself notices its end.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;

use crate::demo::patience::{Stop, off_the_runtime, wait};

/// Start of all names on a broker that is not the demo's own.
const PREFIX: &str = "afterimage-demo-";
/// Suffix of the group that says that the owner lives.
const OWNER: &str = "owner";
/// Suffix of the workers' group, which they make of the prefix and the sink's name.
pub(super) const WORKERS: &str = "afterimage.history";
/// A demo that is younger may not have joined its group yet.
const YOUNG: Duration = Duration::from_secs(120);
/// A group that is there without a member is looked at again after this long: one that is just being joined for the first
/// time looks the same for the time of a request.
const AGAIN: Duration = Duration::from_secs(1);
/// How long one question may take.
const REQUEST: Duration = Duration::from_secs(10);

/// A place on a running broker. Dropping it removes its topics and groups.
pub struct Guest {
    bootstrap: String,
    prefix: String,
    topics: Vec<String>,
    owner: Option<BaseConsumer>,
}

impl Guest {
    /// Asks the broker whether it is there, removes what dead demos left, and chooses a prefix. Nothing is made yet.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn arrive(bootstrap: &str) -> Result<Guest> {
        let (address, known) = (bootstrap.to_string(), client(bootstrap));
        let dead = off_the_runtime(move |_| {
            let consumer: BaseConsumer = known.create().context("cannot make a Kafka client")?;
            let topics = topics_of_demos(&consumer)
                .with_context(|| format!("cannot reach Kafka at {address}; check the address, and that it is up"))?;
            Ok(dead_demos(&consumer, &topics))
        })
        .await?;
        for (prefix, topics) in dead {
            tracing::warn!(%prefix, "removing the topics of a demo that was killed");
            remove(bootstrap, &prefix, &topics).await;
        }
        let prefix = format!("{PREFIX}{:x}-{:06x}.", now().as_secs(), rand::random_range(0..0x100_0000_u32));
        Ok(Guest { bootstrap: bootstrap.to_string(), prefix, topics: Vec::new(), owner: None })
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// What the names of topics and groups have to begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Makes the topics, whose names begin with the prefix.
    pub(super) async fn bring(mut self, topics: &[&str], partitions: i32) -> Result<Guest> {
        self.topics = topics.iter().map(|topic| topic.to_string()).collect();
        create_topics(&self.bootstrap, topics, partitions).await?;
        let mut config = client(&self.bootstrap);
        config.set("group.id", format!("{}{OWNER}", self.prefix)).set("session.timeout.ms", "6000");
        // It joins and beats its heart in the client's own threads, and is never asked for messages.
        config.set("max.poll.interval.ms", "86400000");
        let owner: BaseConsumer = config.create().context("cannot make a Kafka client")?;
        owner.subscribe(&topics[..topics.len().min(1)]).context("cannot join a group")?;
        self.owner = Some(owner);
        Ok(self)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Leaves the group, which can then be removed.
        drop(self.owner.take());
        futures::executor::block_on(remove(&self.bootstrap, &self.prefix, &self.topics));
    }
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("client.id", "afterimage-demo").set("log_level", "0");
    config
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Makes topics, and waits until all their partitions have a leader. The broker decides how often they are replicated.
///
/// # Errors
/// When the broker refuses one, or does not answer.
pub async fn create_topics(bootstrap: &str, names: &[&str], partitions: i32) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = client(bootstrap).create().context("cannot make a Kafka client")?;
    // Simulated messages are years old; retention by age would take them at once.
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(-1)).set("retention.ms", "-1"))
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(REQUEST)).request_timeout(Some(REQUEST));
    for result in admin.create_topics(&topics, &options).await.context("the broker did not make the topics")? {
        if let Err((name, code)) = result {
            bail!("the broker refused to make the topic {name}: {code}");
        }
    }
    let (config, names) = (client(bootstrap), names.iter().map(|name| name.to_string()).collect::<Vec<_>>());
    off_the_runtime(move |stop: &Stop| {
        let consumer: BaseConsumer = config.create()?;
        for name in names {
            wait(&format!("leaders of {name}"), Duration::from_secs(60), stop, || {
                let metadata = consumer.fetch_metadata(Some(&name), Duration::from_secs(1))?;
                let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
                let led = !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0);
                Ok(led.then_some(()))
            })?;
        }
        Ok(())
    })
    .await
}

fn topics_of_demos(consumer: &BaseConsumer) -> Result<Vec<String>> {
    let metadata = consumer.fetch_metadata(None, REQUEST)?;
    let names = metadata.topics().iter().map(|topic| topic.name());
    Ok(names.filter(|name| name.starts_with(PREFIX)).map(str::to_string).collect())
}

/// (prefix, topics) of the demos whose owner is gone.
fn dead_demos(consumer: &BaseConsumer, topics: &[String]) -> Vec<(String, Vec<String>)> {
    let mut dead: BTreeSet<&str> = topics.iter().filter_map(|topic| Some(&topic[..=topic.find('.')?])).collect();
    let is_dead = |prefix: &&str| {
        let Some(begun) = begun(prefix) else { return false };
        // A broker that gives no answer about the owner has not said that it is gone.
        let Ok(groups) = consumer.fetch_group_list(Some(&format!("{prefix}{OWNER}")), REQUEST) else { return false };
        let state = groups.groups().first().map(|group| group.state());
        let is_left = groups.groups().iter().all(|group| group.members().is_empty());
        is_left && is_over(state, now().saturating_sub(begun))
    };
    dead.retain(is_dead);
    if dead.iter().filter_map(|prefix| begun(prefix)).any(|begun| now().saturating_sub(begun) < YOUNG) {
        std::thread::sleep(AGAIN);
        dead.retain(is_dead);
    }
    let own = |prefix: &str| topics.iter().filter(|topic| topic.starts_with(prefix)).cloned().collect();
    dead.into_iter().map(|prefix| (prefix.to_string(), own(prefix))).collect()
}

/// Whether an owner's group without members says that its demo is over. A group that is there was joined, and left or
/// lost: Kafka remembers it for some minutes. One that is not there may not have been joined yet.
fn is_over(state: Option<&str>, age: Duration) -> bool {
    state == Some("Empty") || age >= YOUNG
}

/// When the demo with this prefix began, since 1970. Names of other forms are not a demo's.
fn begun(prefix: &str) -> Option<Duration> {
    let (seconds, rest) = prefix.strip_prefix(PREFIX)?.split_once('-')?;
    let is_own = rest.len() == 7 && rest.ends_with('.');
    is_own.then(|| u64::from_str_radix(seconds, 16).ok().map(Duration::from_secs))?
}

/// As much of it as the broker allows: what stays is swept by a later demo.
async fn remove(bootstrap: &str, prefix: &str, topics: &[String]) {
    let admin: Result<AdminClient<DefaultClientContext>, _> = client(bootstrap).create();
    let Ok(admin) = admin else { return };
    let options = AdminOptions::new().operation_timeout(Some(REQUEST)).request_timeout(Some(REQUEST));
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    if !names.is_empty() {
        match admin.delete_topics(&names, &options).await {
            Ok(results) => {
                for (name, code) in results.into_iter().filter_map(Result::err) {
                    if code != RDKafkaErrorCode::UnknownTopicOrPartition {
                        tracing::warn!(topic = name, %code, "a topic of the demo was not removed");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, prefix, "the demo's topics were not removed"),
        }
    }
    // A group may still hold its last member; brokers forget empty groups by themselves after a while.
    let groups = [OWNER, WORKERS].map(|suffix| format!("{prefix}{suffix}"));
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    if let Err(error) = admin.delete_groups(&groups, &options).await {
        tracing::debug!(%error, prefix, "the demo's groups were not removed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demos_own_names_are_read_as_such() {
        assert_eq!(begun("afterimage-demo-5f55c8a0-00ab12."), Some(Duration::from_secs(0x5f55_c8a0)));
        for other in ["afterimage-demo-.", "afterimage-demo-x-00ab12.", "afterimage-demo-5f-1.", "orders.", ""] {
            assert_eq!(begun(other), None, "{other}");
        }
    }

    #[test]
    fn a_demo_that_has_not_joined_its_group_yet_is_not_over() {
        let (young, old) = (Duration::from_secs(7), YOUNG);
        assert!(is_over(Some("Empty"), young) && is_over(Some("Empty"), old) && is_over(None, old));
        assert!(!is_over(Some("Dead"), young) && !is_over(None, young));
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_is_told_with_its_address() {
        let port = crate::demo::postgres::free_port().unwrap();
        let error = Guest::arrive(&format!("127.0.0.1:{port}")).await.err().unwrap();
        assert!(format!("{error:#}").contains(&format!("127.0.0.1:{port}")), "{error:#}");
    }
}
