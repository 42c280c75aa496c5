//! From topic names to orgs and objects.
//!
//! A table's topic is `<connector prefix>.<schema>.<table>`: the object is the last segment, the schema
//! the one before it. Which org it is comes from configuration, because two applications that both sync
//! into a schema called `salesforce` are two orgs: merging them would mix the histories of records whose
//! ids are equal (a sandbox keeps the ids of its production org).

use std::collections::BTreeMap;
use std::fmt;

use super::Config;
use super::orgs::{ObjectConfig, check_org_name};

/// A topic and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicMap {
    /// The topic's full name, `KAFKA_PREFIX` included.
    pub topic: String,
    /// The org, declared or by default the schema.
    pub org: String,
    /// The object: the last segment of the name.
    pub object: String,
    /// Its `[[object]]`, or defaults.
    pub object_config: ObjectConfig,
}

/// A topic pattern of an org that no topic fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilentPattern {
    /// The org.
    pub org: String,
    /// The pattern.
    pub pattern: String,
}

/// What the topics of a cluster are to this configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TopicPlan {
    /// What to subscribe to, by topic name.
    pub topics: Vec<TopicMap>,
    /// Patterns that no topic fits: at start an error ([`TopicPlan::complete`]), at a refresh normal.
    pub silent: Vec<SilentPattern>,
    /// Table topics of a connector that is read, which belong to no org: to be warned of and counted.
    pub unmapped: Vec<String>,
    /// (org, object) of `[[object]]` entries that no topic belongs to: likely misspelt.
    pub idle_objects: Vec<(String, String)>,
}

impl TopicPlan {
    /// The topics, if every pattern found one. For the start: a misspelt pattern would leave an org
    /// without history until someone looks.
    pub fn complete(self) -> Result<Vec<TopicMap>, TopicError> {
        match self.silent.into_iter().next() {
            Some(silent) => Err(TopicError::Silent(silent)),
            None if self.topics.is_empty() => Err(TopicError::Nothing),
            None => Ok(self.topics),
        }
    }
}

/// Why topics can't be mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicError {
    /// Without `[[org]]`: two connectors use a schema of one name.
    SharedSchema {
        /// The schema.
        schema: String,
        /// A topic of each of two connectors.
        topics: [String; 2],
    },
    /// Without `[[org]]`: a schema whose name can't be an org's.
    BadOrg {
        /// The topic.
        topic: String,
        /// What is wrong.
        reason: String,
    },
    /// A pattern that no topic fits.
    Silent(SilentPattern),
    /// The cluster has no topic of a table at all.
    Nothing,
}

impl TopicError {
    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            Self::SharedSchema { .. } => "declare an [[org]] with its own topics for each connector",
            Self::BadOrg { .. } => "declare an [[org]] with a name and its topics",
            Self::Silent(_) => {
                "correct the pattern, start the connector so that the topic exists, or remove the pattern from [[org]]"
            }
            Self::Nothing => "check kafka.brokers and kafka.prefix, and that the connector has made its topics",
        }
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedSchema { schema, topics: [first, second] } => write!(
                f,
                "topics {first} and {second} come from two connectors but the same schema {schema}, and no [[org]] says which org is which"
            ),
            Self::BadOrg { topic, reason } => write!(f, "topic {topic}: its schema can't name an org: {reason}"),
            Self::Silent(SilentPattern { org, pattern }) => {
                write!(f, "no topic fits the pattern {pattern} of org {org}")
            }
            Self::Nothing => f.write_str("no topic of a captured table was found"),
        }
    }
}

impl std::error::Error for TopicError {}

/// Whether a topic (without `KAFKA_PREFIX`) carries something else than a table's rows: heartbeats,
/// transaction metadata, logical messages, signals, Kafka's and Kafka Connect's own. No pattern fits these.
pub fn is_side_topic(name: &str) -> bool {
    let segments: Vec<&str> = name.split('.').collect();
    let (first, last) = (segments.first().copied().unwrap_or_default(), segments.last().copied().unwrap_or_default());
    first == "heartbeat"
        || first.starts_with("__")
        || last == "debezium_signal"
        // Two segments only: `c.public.transaction` is a table of that name.
        || (segments.len() == 2 && matches!(last, "transaction" | "message"))
        || (segments.len() == 1 && ["connect-configs", "connect-offsets", "connect-status"].iter().any(|own| first.starts_with(own)))
}

/// The parts of a table's topic.
struct Parts<'a> {
    connector: &'a str,
    schema: &'a str,
    object: &'a str,
}

impl<'a> Parts<'a> {
    /// From the right: a connector's prefix may itself hold dots. `None` = fewer than three segments.
    fn of(name: &'a str) -> Option<Self> {
        let (rest, object) = name.rsplit_once('.')?;
        let (connector, schema) = rest.rsplit_once('.')?;
        Some(Self { connector, schema, object })
    }
}

/// Maps the topics of a cluster. Order and repeats in `names` don't matter.
///
/// A topic belongs to the `[[org]]` with a pattern that fits it. With no `[[org]]` at all the org is the
/// schema, as long as one connector uses that schema. With a `KAFKA_PREFIX` only topics that start with
/// it are looked at, and patterns are compared with the rest of their names (a pattern may hold it too).
pub fn map_topics(config: &Config, names: &[String]) -> Result<TopicPlan, TopicError> {
    let prefix = config.topic_prefix();
    let mut topics: Vec<(&str, &String)> =
        names.iter().filter_map(|topic| Some((topic.strip_prefix(prefix)?, topic))).collect();
    topics.retain(|(name, _)| !is_side_topic(name));
    topics.sort_unstable();
    topics.dedup();

    let mut plan = TopicPlan::default();
    if config.orgs.is_empty() {
        by_schema(config, &topics, &mut plan)?;
    } else {
        by_pattern(config, prefix, &topics, &mut plan);
    }
    for object in &config.objects {
        if !plan.topics.iter().any(|map| map.org == object.org && map.object == object.name) {
            plan.idle_objects.push((object.org.clone(), object.name.clone()));
        }
    }
    Ok(plan)
}

fn by_pattern(config: &Config, prefix: &str, topics: &[(&str, &String)], plan: &mut TopicPlan) {
    for org in &config.orgs {
        for pattern in &org.topics {
            if !topics.iter().any(|(name, topic)| pattern.fits(name) || (!prefix.is_empty() && pattern.fits(topic))) {
                plan.silent.push(SilentPattern { org: org.name.clone(), pattern: pattern.as_str().to_owned() });
            }
        }
    }
    let mut rest = Vec::new();
    for (name, topic) in topics {
        let fits = |pattern: &super::TopicPattern| pattern.fits(name) || (!prefix.is_empty() && pattern.fits(topic));
        // One at most: patterns of two orgs that a topic can fit are refused with the configuration.
        match config.orgs.iter().find(|org| org.topics.iter().any(fits)) {
            Some(org) => {
                let object = name.rsplit('.').next().unwrap_or(name);
                plan.topics.push(map(config, topic, &org.name, object));
            }
            None => rest.push((*name, *topic)),
        }
    }
    let connectors: Vec<&str> =
        plan.topics.iter().filter_map(|map| Some(Parts::of(map.topic.strip_prefix(prefix)?)?.connector)).collect();
    let unmapped =
        rest.iter().filter(|(name, _)| Parts::of(name).is_some_and(|parts| connectors.contains(&parts.connector)));
    plan.unmapped = unmapped.map(|(_, topic)| (*topic).clone()).collect();
}

fn by_schema(config: &Config, topics: &[(&str, &String)], plan: &mut TopicPlan) -> Result<(), TopicError> {
    let mut users: BTreeMap<&str, (&str, &String)> = BTreeMap::new();
    for (name, topic) in topics {
        let Some(Parts { connector, schema, object }) = Parts::of(name) else { continue };
        let (first, its_topic) = *users.entry(schema).or_insert((connector, topic));
        if first != connector {
            return Err(TopicError::SharedSchema {
                schema: schema.to_owned(),
                topics: [its_topic.clone(), (*topic).clone()],
            });
        }
        check_org_name(schema).map_err(|reason| TopicError::BadOrg { topic: (*topic).clone(), reason })?;
        plan.topics.push(map(config, topic, schema, object));
    }
    Ok(())
}

fn map(config: &Config, topic: &str, org: &str, object: &str) -> TopicMap {
    TopicMap {
        topic: topic.to_owned(),
        org: org.to_owned(),
        object: object.to_owned(),
        object_config: config.object(org, object),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::from_toml;
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn mapped(plan: &TopicPlan) -> Vec<(&str, &str, &str)> {
        plan.topics.iter().map(|map| (map.topic.as_str(), map.org.as_str(), map.object.as_str())).collect()
    }

    const TWO: &str = r#"
        [[org]]
        name = "emea"
        topics = ["c1.emea.*"]
        [[org]]
        name = "apac"
        topics = ["c1.apac.*", "c2.salesforce.*"]
        [[object]]
        org = "emea"
        name = "job__c"
        identity = "key"
    "#;

    #[test]
    fn topics_go_to_the_org_whose_pattern_fits() {
        let plan = map_topics(
            &from_toml(TWO),
            &names(&[
                "c2.salesforce.account",
                "c1.emea.job__c",
                "c1.apac.lead",
                "c1.emea.account",
                "c1.public.t",
                "other.x.y",
                "c1.emea.account",
            ]),
        )
        .expect("maps");
        assert_eq!(
            mapped(&plan),
            [
                ("c1.apac.lead", "apac", "lead"),
                ("c1.emea.account", "emea", "account"),
                ("c1.emea.job__c", "emea", "job__c"),
                ("c2.salesforce.account", "apac", "account"),
            ]
        );
        assert_eq!(plan.topics[2].object_config.identity, Some(super::super::Identity::Key));
        assert_eq!(plan.topics[1].object_config, ObjectConfig::defaults("emea", "account"));
        assert_eq!(plan.unmapped, ["c1.public.t"]);
        assert_eq!((plan.silent.len(), plan.idle_objects.len()), (0, 0));
        assert_eq!(plan.complete().map(|topics| topics.len()), Ok(4));
    }

    #[test]
    fn a_pattern_without_topics_and_an_object_without_topic_are_named() {
        let plan = map_topics(&from_toml(TWO), &names(&["c1.emea.account", "c1.apac.lead"])).expect("maps");
        assert_eq!(plan.idle_objects, [("emea".to_owned(), "job__c".to_owned())]);
        let error = plan.complete().expect_err("one pattern is silent");
        assert_eq!(error.to_string(), "no topic fits the pattern c2.salesforce.* of org apac");
        assert_eq!(map_topics(&from_toml(""), &[]).expect("maps").complete(), Err(TopicError::Nothing));
    }

    #[test]
    fn side_topics_never_match() {
        let side = [
            "heartbeat.c1",
            "heartbeat.c1.x",
            "__debezium-heartbeat.c1",
            "c1.transaction",
            "c1.message",
            "c1.public.debezium_signal",
            "__consumer_offsets",
            "connect-offsets-1234",
        ];
        let config = from_toml("[[org]]\nname='a'\ntopics=['*.*.*', '*.*.*.*']");
        let plan = map_topics(&config, &names(&side)).expect("maps");
        assert_eq!(mapped(&plan), []);
        assert_eq!(plan.unmapped, Vec::<String>::new());
        let plan = map_topics(&from_toml(""), &names(&side)).expect("maps");
        assert_eq!(mapped(&plan), []);
        for table in ["c1.public.transaction", "c1.public.message", "c1.heartbeat.account"] {
            assert!(!is_side_topic(table), "{table}");
        }
    }

    #[test]
    fn without_orgs_the_schema_is_the_org_while_one_connector_uses_it() {
        let one = names(&[
            "c1.salesforce.account",
            "c1.salesforce.lead",
            "c1.sandbox.account",
            "my.conn.emea.account",
            "orders",
        ]);
        let plan = map_topics(&from_toml(""), &one).expect("maps");
        assert_eq!(
            mapped(&plan),
            [
                ("c1.salesforce.account", "salesforce", "account"),
                ("c1.salesforce.lead", "salesforce", "lead"),
                ("c1.sandbox.account", "sandbox", "account"),
                ("my.conn.emea.account", "emea", "account"),
            ]
        );
        let two = names(&["c2.salesforce.lead", "c1.salesforce.account"]);
        let error = map_topics(&from_toml(""), &two).expect_err("two apps");
        let text = error.to_string();
        assert!(text.contains("c1.salesforce.account") && text.contains("c2.salesforce.lead"), "{text}");
    }

    #[test]
    fn a_kafka_prefix_stands_before_every_topic() {
        let toml = "[kafka]\nbrokers='h:1'\nprefix='foobar.'\n[[org]]\nname='a'\ntopics=['c.s.*', 'foobar.d.s.*']";
        let plan = map_topics(
            &from_toml(toml),
            &names(&["foobar.c.s.account", "c.s.account", "foobar.d.s.lead", "foobar.heartbeat.c"]),
        )
        .expect("maps");
        assert_eq!(mapped(&plan), [("foobar.c.s.account", "a", "account"), ("foobar.d.s.lead", "a", "lead")]);
        assert_eq!(plan.silent, []);
    }
}
