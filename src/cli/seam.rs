//! From configuration to the modules that do the work: the only calls from the command line into the processor,
//! the schema and the demo.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use afterimage_state::StateError;

use super::args::MigrateArgs;
use super::failure::{Exit, Failure};
use super::{print, terminal};
use crate::config::{Config, EXTRA, Identity, KafkaSettings, PostgresSettings, SslMode, TopicMap, map_topics, nearest};
use crate::core::decode::{IdentityRule, TopicRules};
use crate::core::event::Micros;
use crate::demo::{self, DemoOptions, WorkerCommand};
use crate::kafka;
use crate::postgres::client::{ANSWER_TIME, ConnectError, SinkSettings, Tls, describe, unreadable};
use crate::postgres::migrate::{self, MigrateError};
use crate::postgres::registry::Declared;
use crate::postgres::status;
use crate::stream::{self, BatchLimits, RunError, RunSettings, TopicMapping, TopicPlan};
use crate::telemetry::Health;

pub(super) const SINK_HINT: &str =
    "check the address, that the server is up, and sslmode: `afterimage config show` prints what is used";
const NOT_READ: &str = "belongs to no org and is not read: name it under [[org]] if it should be";
pub(super) const RIGHTS_HINT: &str = "as the owner of the schema, grant this role what the README lists under Roles; again after each `afterimage migrate`";
const OWNER_HINT: &str = "run it as the owner of the database, or `grant create on database … to` this role; an existing \
                          schema is upgraded by its owner only";
const LOCKED_HINT: &str = "something holds what it has to change (a long transaction, an open view, pg_dump): end that, \
                           or run it again later; nothing of it was written";
const FAILED_HINT: &str = "nothing of it was written, what was applied before stands: mend what the server says, then run \
                           `afterimage migrate` again";
const FULL_HINT: &str =
    "the sink's disk is full: free or add space under PostgreSQL, then start again; nothing is lost";
pub(super) const BROKER_HINT: &str =
    "check the brokers' addresses and TLS settings: `afterimage config show` prints what is used";

/// Runs a worker until SIGTERM or SIGINT.
pub(super) async fn run(config: Config, health: Health) -> Result<(), Failure> {
    // Before anything that can take long: who is asked to stop while it starts has nothing in hand, and ends.
    let mut signals = Box::pin(signals()?);
    let settings = tokio::select! {
        () = &mut signals => return Ok(()),
        settings = run_settings(config, health) => settings?,
    };
    let (stop, stopped) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        signals.await;
        let _ = stop.send(());
    });
    stream::run(settings, stopped).await.map_err(run_failure)
}

async fn run_settings(config: Config, health: Health) -> Result<RunSettings, Failure> {
    let static_member = config.kafka()?.static_member;
    let kafka = kafka_settings(config.kafka()?, &config);
    let sink = sink_settings(config.postgres()?, &config, None);
    let topics = topics(&config, &kafka).await?;
    warn_of_namesakes(&sink, &config).await?;
    Ok(RunSettings {
        kafka,
        sink,
        static_member,
        state_dir: config.state.dir.clone(),
        state_memory: usize::try_from(config.state.memory).unwrap_or(usize::MAX),
        front_memory: usize::try_from(config.state.front).unwrap_or(usize::MAX),
        topics,
        mapping: mapping(config.clone()),
        limits: BatchLimits {
            rows: config.commit.max_rows,
            bytes: config.commit.max_bytes,
            linger: config.commit.linger,
        },
        config_hash: config.history_hash().to_vec(),
        health,
    })
}

/// Two workers of one name can't be told apart in claims, logs and `afterimage status`.
async fn warn_of_namesakes(sink: &SinkSettings, config: &Config) -> Result<(), Failure> {
    let client = sink.connect().await.map_err(|error| run_failure(error.into()))?;
    let seen = tokio::time::timeout(ANSWER_TIME, status::namesakes(&client, &sink.worker)).await;
    // What is wrong with the sink is told where it is needed.
    if let Ok(Ok(sessions)) = seen
        && sessions > 0
    {
        tracing::warn!(
            worker = %sink.worker, sessions,
            "another worker of this name has sessions in the sink (or one that was killed still has them): give each worker \
             a worker.name of its own, here set by {}",
            config.shown().place("worker.name")
        );
    }
    Ok(())
}

fn run_failure(error: RunError) -> Failure {
    match &error {
        RunError::Schema(error) => schema_failure(error, RIGHTS_HINT),
        RunError::Query(source) | RunError::Registry(crate::postgres::registry::RegistryError::Query(source)) => {
            let failure = Failure::new(Exit::Failed, "run", &error);
            match source.code().map(|code| code.code()) {
                Some("42501") => failure.next(RIGHTS_HINT),
                Some("53100") => failure.next(FULL_HINT),
                _ => failure,
            }
        }
        RunError::Registry(_) => Failure::new(Exit::Halted, "run", &error),
        RunError::State { source: StateError::Locked(_), .. } => Failure::new(Exit::Failed, "run", &error)
            .next("give every worker on a machine its own --state-dir; what is in it may be lost"),
        RunError::State { source: StateError::Corrupted { .. } | StateError::Format { .. }, .. } => {
            Failure::new(Exit::Failed, "run", &error)
                .next("`afterimage state clear` throws it away: all of it can be had from the sink")
        }
        RunError::State { .. } => Failure::new(Exit::Failed, "run", &error)
            .next("point --state-dir at a directory that can be written; what is in it may be lost"),
        RunError::Connect(source) => connect_failure("run", source),
        RunError::Topic(_) => Failure::new(Exit::Failed, "run", &error).next(
            "its last error stands in the log above; when the sink said `permission denied`, grant what the README lists \
             under Roles",
        ),
        RunError::Kafka(_) => Failure::new(Exit::Failed, "run", &error).next(BROKER_HINT),
        _ => Failure::new(Exit::Failed, "run", &error),
    }
}

/// No connection to the sink.
pub(super) fn connect_failure(what: &str, error: &ConnectError) -> Failure {
    Failure::new(Exit::Failed, what, error).next(connect_hint(error).unwrap_or(SINK_HINT))
}

/// What to do where a server has answered, and refused.
pub(super) fn connect_hint(error: &ConnectError) -> Option<&'static str> {
    let ConnectError::Refused { source, .. } = error else { return None };
    if source.to_string().contains("TLS handshake") {
        return Some(
            "check that postgres.ca (or sslrootcert in the URL) holds the CA of this server, and that the URL names the host as \
             its certificate does; sslmode=require encrypts without checking either",
        );
    }
    Some(match source.code()?.code() {
        "3D000" => "create it (`createdb`, or `create database …`), or correct the database's name in the URL",
        // What a server says of a role that is not there depends on how it authenticates.
        "28000" | "28P01" => {
            "check the role and its password in the URL; `create role … login` makes a role, pg_hba.conf says who may come \
             from where"
        }
        "42501" => "grant this role the right to connect: `grant connect on database … to …`",
        "53300" => "the server takes no more connections: close some, or raise max_connections",
        "57P03" => "the server is starting or stopping: try again in a moment",
        _ => return None,
    })
}

/// Whether the role lacks a right.
pub(super) fn is_denied(error: &crate::postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == "42501")
}

/// `rights` says what to do where the role lacks one.
pub(super) fn schema_failure(error: &MigrateError, rights: &str) -> Failure {
    let what = "the sink's schema";
    match error {
        MigrateError::Postgres(source) | MigrateError::Failed { source, .. } => {
            let failure = Failure::new(Exit::Failed, what, format!("{error}: {}", describe(source)));
            failure.next(match source.code().map(|code| code.code()) {
                Some("42501") => rights,
                Some("55P03") => LOCKED_HINT,
                None => SINK_HINT,
                Some(_) if matches!(error, MigrateError::Failed { .. }) => FAILED_HINT,
                Some(_) => "mend what the server says, and run it again; its log has more",
            })
        }
        MigrateError::Silent(_) => Failure::new(Exit::Failed, what, error).next(SINK_HINT),
        MigrateError::Dead { pid, .. } => Failure::new(Exit::Failed, what, error).next(format!(
            "look on the server what keeps process {pid}, let it go on or end it, then run `afterimage migrate` again: it goes \
             on where this one was"
        )),
        MigrateError::Changed { .. } => Failure::new(Exit::Schema, what, error).next(
            "use the afterimage that made this sink (`select * from afterimage.migration` tells what was applied when), or \
             point the sink's URL at a database of its own",
        ),
        MigrateError::Encoding(_) | MigrateError::Server(_) => {
            Failure::new(Exit::Schema, what, error).next("point the sink's URL at another database or server")
        }
        MigrateError::Foreign { .. } => Failure::new(Exit::Schema, what, error).next(
            "point the sink's URL at another database, or rename that schema: `alter schema afterimage rename to …`",
        ),
        _ => Failure::new(Exit::Schema, what, error),
    }
}

/// Completes on the first SIGTERM or SIGINT; later ones change nothing, as dynos may send several.
pub(super) fn signals() -> Result<impl Future<Output = ()>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |error| Failure::new(Exit::Failed, "signals can't be handled", error);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => tracing::info!("SIGTERM: finishing what is in hand"),
            _ = int.recv() => tracing::info!("SIGINT: finishing what is in hand"),
        }
    })
}

/// Brings the sink's schema up.
pub(super) async fn migrate(config: Config, args: MigrateArgs) -> Result<(), Failure> {
    let sink = sink_settings(config.postgres()?, &config, Some("migrate"));
    let mut client = sink.connect().await.map_err(|error| connect_failure("migrate", &error))?;
    let report =
        migrate::migrate_watched(&mut client, &sink).await.map_err(|error| schema_failure(&error, OWNER_HINT))?;
    if args.json {
        let applied: Vec<_> =
            report.applied.iter().map(|(number, name)| serde_json::json!({ "number": number, "name": name })).collect();
        return print::stdout(&format!("{}\n", serde_json::json!({ "version": report.version, "applied": applied })));
    }
    let mut text: String = report.applied.iter().map(|(_, name)| format!("applied {name}\n")).collect();
    let rest = if report.applied.is_empty() { ": nothing to do" } else { "" };
    text.push_str(&format!("schema version {}{rest}\n", report.version));
    print::stdout(&text)
}

/// Everything on one machine.
pub(super) async fn demo(options: DemoOptions) -> Result<(), Failure> {
    let failed = |error: anyhow::Error| {
        if let Some(usage) = error.downcast_ref::<demo::Usage>() {
            return Failure::new(Exit::Usage, "demo", usage).next("afterimage demo --help");
        }
        if let Some(place) = error.downcast_ref::<demo::BadPlace>() {
            let next =
                "name a directory in TMPDIR that can be written and that every user can pass through, or unset it";
            return Failure::new(Exit::Usage, "TMPDIR", place).next(next);
        }
        if let Some(demo::Unprinted(error)) = error.downcast_ref() {
            return print::failed(error);
        }
        match error.downcast_ref::<demo::Interrupted>() {
            Some(interrupted) => Failure::new(Exit::Interrupted, "demo", interrupted),
            None => Failure::of("demo", &error),
        }
    };
    let worker = WorkerCommand::current().map_err(failed)?;
    let report = demo::run(options, worker, terminal::width().clamp(40, 100)).await.map_err(failed)?;
    if report.ok() { Ok(()) } else { Err(Failure::new(Exit::Failed, "demo", "a check failed; the report says which")) }
}

fn micros(duration: Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

/// `verb`: the one that connects, and is no worker, whatever name the configuration gives to one.
pub(super) fn sink_settings(postgres: &PostgresSettings, config: &Config, verb: Option<&str>) -> SinkSettings {
    let worker = &config.worker.name;
    SinkSettings {
        url: postgres.url.expose().clone(),
        tls: match postgres.sslmode {
            SslMode::Disable => Tls::Disable,
            SslMode::Prefer => Tls::Prefer,
            SslMode::Require => Tls::Require,
            SslMode::VerifyFull => Tls::VerifyFull,
        },
        ca: postgres.ca.clone(),
        application: match (verb, postgres.pooled) {
            (Some(verb), _) => format!("afterimage {verb}"),
            (None, false) => format!("afterimage/{worker}"),
            // A pooler leaves the name on a session that others use next: it must not pass for a sign of life.
            (None, true) => format!("afterimage:{worker}"),
        },
        pooled: postgres.pooled,
        worker: worker.clone(),
    }
}

/// Asks the driver whether it can read the connection string.
pub(super) fn check_url(config: &Config) -> Result<(), Failure> {
    let Ok(settings) = config.postgres() else { return Ok(()) };
    let Some(reason) = unreadable(settings.url.expose()) else { return Ok(()) };
    let place = config.shown().place("postgres.url");
    Err(Failure::new(Exit::Usage, place, format!("the connection string can't be used: {reason}"))
        .next("correct it: postgres://user:password@host:5432/database?connect_timeout=10"))
}

pub(super) fn kafka_settings(kafka: &KafkaSettings, config: &Config) -> kafka::KafkaSettings {
    let mut settings = kafka::KafkaSettings::new(kafka.brokers.clone(), kafka.group.clone());
    settings.client_id = format!("afterimage/{}", config.worker.name);
    settings.extra =
        kafka.extra.iter().map(|(key, value)| (key.clone(), value.expose().clone())).collect::<BTreeMap<_, _>>();
    settings.tls = kafka.tls.as_ref().map(|tls| kafka::Tls {
        ca_pem: tls.ca_pem.as_ref().map(|pem| pem.expose().clone()),
        identity_pem: tls
            .cert_pem
            .as_ref()
            .zip(tls.key_pem.as_ref())
            .map(|(cert, key)| (cert.expose().clone(), key.expose().clone())),
        key_password: None,
        verify_hostname: tls.verify_hostname,
    });
    settings
}

/// Asks librdkafka whether it knows the properties that are passed through to it, and takes their values.
pub(super) fn check_properties(config: &Config) -> Result<(), Failure> {
    let Ok(settings) = config.kafka() else { return Ok(()) };
    let mut problems = Vec::new();
    for (name, value) in &settings.extra {
        let place = config.shown().place(&format!("{EXTRA}.{name}"));
        // Never the value: it may be a password.
        let (reason, next) = match kafka::check_property(name, value.expose()) {
            Ok(()) => continue,
            Err(kafka::PropertyFault::Unknown) => (
                "librdkafka has no such property".to_owned(),
                match nearest(name, kafka::PROPERTIES.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "remove it, or see librdkafka's CONFIGURATION.md for its properties".to_owned(),
                },
            ),
            Err(kafka::PropertyFault::Value) => (
                format!("librdkafka, as it is built into this program, does not take this value for {name}"),
                "see librdkafka's CONFIGURATION.md for what it takes".to_owned(),
            ),
        };
        problems.push((place, reason, next));
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure { exit: Exit::Usage, messages: problems }) }
}

/// Asks the cluster for its topics and maps them to orgs and objects.
async fn topics(config: &Config, kafka: &kafka::KafkaSettings) -> Result<Vec<TopicPlan>, Failure> {
    let failed = |error: kafka::KafkaError| Failure::new(Exit::Failed, "kafka", error).next(BROKER_HINT);
    let settings = kafka.clone();
    let names = tokio::task::spawn_blocking(move || {
        let metadata = kafka::Metadata::connect(&settings)?;
        metadata.topics(Duration::from_secs(10), |_| true)
    })
    .await
    .map_err(|error| Failure::new(Exit::Failed, "kafka", error))?
    .map_err(failed)?;
    let names: Vec<String> = names.into_iter().map(|topic| topic.name.to_string()).collect();
    let plan =
        map_topics(config, &names).map_err(|error| Failure::new(Exit::Usage, "topics", &error).next(error.next()))?;
    for topic in &plan.unmapped {
        tracing::warn!(%topic, "{NOT_READ}");
    }
    metrics::gauge!(crate::telemetry::names::UNMAPPED_TOPICS).set(plan.unmapped.len() as f64);
    for (org, object) in &plan.idle_objects {
        tracing::warn!(%org, %object, "[[object]] is configured, but no topic belongs to it");
    }
    let topics = plan.complete().map_err(|error| Failure::new(Exit::Usage, "topics", &error).next(error.next()))?;
    Ok(topics.into_iter().map(|topic| plan_of(topic, config)).collect())
}

/// What the configuration says of these topics, without asking the cluster for them.
pub(super) fn plans(config: &Config, topics: &[String]) -> Result<Vec<TopicPlan>, Failure> {
    let plan =
        map_topics(config, topics).map_err(|error| Failure::new(Exit::Usage, "topics", &error).next(error.next()))?;
    if let Some(topic) = plan.unmapped.first() {
        return Err(Failure::new(Exit::Usage, "topics", format!("{topic} {NOT_READ}"))
            .next("name it under [[org]], or choose other topics with --topic"));
    }
    Ok(plan.topics.into_iter().map(|topic| plan_of(topic, config)).collect())
}

/// Maps topics that are found later. What fits no pattern any more, or not yet, is no error then.
fn mapping(config: Config) -> TopicMapping {
    let warned = Mutex::new(BTreeSet::new());
    Arc::new(move |names| {
        let plan = map_topics(&config, names).map_err(|error| format!("{error}; {}", error.next()))?;
        let mut warned = warned.lock().unwrap_or_else(PoisonError::into_inner);
        for topic in &plan.unmapped {
            if warned.insert(topic.clone()) {
                tracing::warn!(%topic, "{NOT_READ}");
            }
        }
        metrics::gauge!(crate::telemetry::names::UNMAPPED_TOPICS).set(plan.unmapped.len() as f64);
        Ok(plan.topics.into_iter().map(|topic| plan_of(topic, &config)).collect())
    })
}

fn plan_of(topic: TopicMap, config: &Config) -> TopicPlan {
    let object = topic.object_config;
    TopicPlan {
        declared: Declared {
            topic: topic.topic,
            org: topic.org,
            object: topic.object,
            identity: object.identity.as_ref().map(Identity::stored),
            grace: micros(object.grace),
            masked: object.mask_add.iter().cloned().collect(),
            types: object.types.clone(),
            lookup: object.lookup.clone(),
            config_hash: config.history_hash().to_vec(),
        },
        rules: TopicRules {
            identity: match object.identity {
                None => IdentityRule::Auto,
                Some(Identity::Sfid) => IdentityRule::Sfid,
                Some(Identity::Key) => IdentityRule::Key,
                Some(Identity::Columns(columns)) => IdentityRule::Columns(columns),
            },
            types: object.types,
            mask_add: object.mask_add,
            mask_remove: object.mask_remove,
            placeholder: config.debezium.placeholder.clone(),
        },
        create_window: micros(config.history.create_window),
    }
}
