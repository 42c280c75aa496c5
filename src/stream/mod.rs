//! The processor: messages in, deltas and positions out, exactly once.
//!
//! | file | holds |
//! | --- | --- |
//! | `ownership.rs` | claims partitions in Postgres before they are read, lets them go when they are revoked |
//! | `group.rs` | the tasks of one topic on this worker: read, judge, batch, rewind |
//! | `task.rs` | one partition's progress |
//! | `merge.rs` | which partition's message is next, by source time |
//! | `chunk.rs` | a chunk of messages: decode, look up, judge |
//! | `dictionary.rs` | columns and field numbers |
//! | `images.rs` | records in the local store |
//! | `committer.rs` | sealed batches to Postgres |
//! | `settle.rs` | what follows from a commit's outcome |
//! | `tally.rs` | metrics of a batch |
//! | `views.rs` | typed views and lookups, beside the stream |
//!
//! What is true after a crash between any two steps:
//!
//! | crash | Postgres | image store | what follows |
//! | --- | --- | --- | --- |
//! | before COMMIT | nothing | nothing | the same messages are read and judged again |
//! | after COMMIT, before the answer | batch | behind | the claim finds the position moved; the store forgets what the missing range touched |
//! | after the answer, before the store's batch | batch | behind | likewise |
//! | after the store's batch | batch | batch | nothing |

mod chunk;
mod committer;
mod dictionary;
mod group;
mod images;
mod merge;
mod ownership;
mod settle;
mod tally;
mod task;
mod views;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use afterimage_state::{StateError, StateOptions, Store};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::core::decode::{Decoder, ResolvedIdentity, TopicRules};
use crate::core::event::Micros;
use crate::core::judge::ObjectFacts;
use crate::kafka::{Consumer, KafkaError, KafkaSettings, Metadata};
use crate::postgres::claim::Claimant;
use crate::postgres::client::{ConnectError, SinkSettings, describe};
use crate::postgres::migrate::{self, MigrateError};
use crate::postgres::registry::{self, Declared, RegistryError};

use committer::Committers;
use dictionary::Dictionary;
use group::{Command, Databases, Group, Parts};
use images::Images;
use ownership::{Claims, TopicSide};
use views::Views;

pub use group::BatchLimits;

/// One topic to read.
#[derive(Debug, Clone)]
pub struct TopicPlan {
    /// Topic, org, object.
    pub declared: Declared,
    /// How to decode it.
    pub rules: TopicRules,
    /// An insert is a create if its `createddate` lies at most this far before its commit.
    pub create_window: Micros,
}

/// Everything a worker needs.
pub struct RunSettings {
    /// Kafka.
    pub kafka: KafkaSettings,
    /// Sink.
    pub sink: SinkSettings,
    /// Directory of the image store.
    pub state_dir: PathBuf,
    /// Its memory, bytes.
    pub state_memory: usize,
    /// Topics.
    pub topics: Vec<TopicPlan>,
    /// Batch limits.
    pub limits: BatchLimits,
    /// Hash of the effective configuration, kept with each claim.
    pub config_hash: Vec<u8>,
}

/// Why a worker ended or did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Sink not reachable.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Schema too old, too new, or not there.
    #[error(transparent)]
    Schema(#[from] MigrateError),
    /// A query failed at start.
    #[error("the sink: {}", describe(.0))]
    Query(#[from] crate::postgres::Error),
    /// Topic held by another deployment, or recorded for another object.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Kafka.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// Image store.
    #[error("image store in {dir}: {source}")]
    State {
        /// Directory.
        dir: PathBuf,
        /// Reason.
        source: StateError,
    },
    /// A topic's thread ended by itself.
    #[error("topic {0} cannot go on; its last error says why")]
    Topic(String),
    /// Not everything was committed in time; what was not will be read again.
    #[error("not everything in hand could be committed within {0:?}; it will be read again")]
    Unfinished(Duration),
}

/// Runs a worker until `stop` says so.
///
/// # Errors
/// See [`RunError`]; a broken connection alone never ends it.
pub async fn run(settings: RunSettings, stop: oneshot::Receiver<()>) -> Result<(), RunError> {
    let mut client = settings.sink.connect().await?;
    migrate::check(&client).await?;
    let sink_id = registry::sink_id(&client).await?;
    let metadata = tokio::task::block_in_place(|| Metadata::connect(&settings.kafka))?;
    let cluster = tokio::task::block_in_place(|| metadata.cluster_id(Duration::from_secs(10)))?;
    let declared: Vec<Declared> = settings.topics.iter().map(|topic| topic.declared.clone()).collect();
    let sources = registry::sources(&mut client, &declared, &cluster, &settings.kafka.group).await?;
    let options = StateOptions { memory: settings.state_memory, ..StateOptions::default() };
    let dir = settings.state_dir.clone();
    let store = Store::open(&dir, &options).map_err(|source| RunError::State { dir: dir.clone(), source })?;
    let store = Arc::new(store);
    let images = Images::new(Arc::clone(&store));
    let committers = Committers::start(&settings.sink, 2);
    let views = Views::start(&settings.sink);

    let databases = Databases::default();
    let mut sides = HashMap::new();
    let mut waiting = Vec::new();
    for (plan, source) in settings.topics.into_iter().zip(sources) {
        let fields = registry::fields(&client, source.object_id).await?;
        let mut decoder = Decoder::new(plan.rules);
        if source.settled
            && let Some(identity) = ResolvedIdentity::from_sink(&source.identity)
        {
            decoder.preset_identity(identity);
        }
        decoder.restore_columns(fields.iter().map(|field| (field.name.as_str(), field.kind)));
        let facts = ObjectFacts {
            object_id: source.object_id,
            grace: plan.declared.grace,
            create_window: plan.create_window,
            ..ObjectFacts::default()
        };
        if source.settled {
            // Not with the first message only: lookups may wait to be built, and no message may ever come.
            views.refresh(source.object_id);
        }
        let topic: Arc<str> = source.topic.as_str().into();
        let (sender, commands) = mpsc::channel();
        let inbox = Arc::new(OnceLock::new());
        sides.insert(
            Arc::clone(&topic),
            TopicSide { source_id: source.source_id, commands: sender.clone(), inbox: Arc::clone(&inbox) },
        );
        waiting.push((topic, source, decoder, Dictionary::new(facts, fields), sender, commands, inbox));
    }
    let topics: Vec<Arc<str>> = waiting.iter().map(|one| Arc::clone(&one.0)).collect();
    let (failed, failure) = oneshot::channel();
    let claims = Arc::new(Claims {
        topics: sides,
        sink: settings.sink.clone(),
        sink_id,
        claimant: Claimant { worker: settings.sink.worker.clone(), config_hash: settings.config_hash },
        images: images.clone(),
        metadata,
        runtime: Handle::current(),
        failed: Mutex::new(Some(failed)),
    });
    let (consumer, inboxes) = tokio::task::block_in_place(|| Consumer::start(&settings.kafka, &topics, claims))?;

    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let mut threads = Vec::new();
    let mut senders = Vec::new();
    for (topic, source, decoder, dictionary, sender, commands, cell) in waiting {
        let Some(inbox) = inboxes.iter().find(|inbox| *inbox.topic() == topic).cloned() else { continue };
        let _ = cell.set(Arc::clone(&inbox));
        let parts = Parts {
            source,
            topic: Arc::clone(&topic),
            sink: settings.sink.clone(),
            sink_id,
            images: images.clone(),
            committers: committers.clone(),
            views: views.clone(),
            commands,
            inbox,
            consumer: consumer.clone(),
            decoder,
            dictionary,
            limits: settings.limits,
            databases: Arc::clone(&databases),
            runtime: Handle::current(),
        };
        senders.push((sender, Arc::clone(&parts.inbox)));
        let ended = ended.clone();
        let name = topic.to_string();
        let thread = std::thread::Builder::new().name(format!("topic {name}")).spawn(move || {
            Group::new(parts).run();
            let _ = ended.send(name);
        });
        threads.push(thread.map_err(|error| KafkaError::Fatal(format!("no thread for {topic}: {error}")))?);
    }
    drop(ended);
    tracing::info!(topics = topics.len(), group = %settings.kafka.group, "reading");

    let mut outcome = Ok(());
    tokio::select! {
        _ = stop => {}
        Ok(error) = failure => outcome = Err(RunError::Kafka(error)),
        Some(topic) = ends.recv() => outcome = Err(RunError::Topic(topic)),
    }
    tracing::info!("stopping");
    let deadline = Instant::now() + Duration::from_secs(8);
    for (sender, inbox) in &senders {
        let _ = sender.send(Command::Stop);
        inbox.wake();
    }
    tokio::task::block_in_place(|| {
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    if threads.iter().any(|thread| !thread.is_finished()) && outcome.is_ok() {
        outcome = Err(RunError::Unfinished(Duration::from_secs(8)));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
    if let Err(error) = tokio::task::block_in_place(|| consumer.stop(left)) {
        tracing::warn!(%error, "the group was not left in time");
    }
    drop((consumer, senders, inboxes, images));
    tokio::task::block_in_place(|| close(store, deadline));
    outcome
}

/// Closes the image store here, not in whichever thread lets go of it last: one that is still at it while the process
/// exits meets RocksDB's globals half destroyed, and aborts.
fn close(mut store: Arc<Store>, deadline: Instant) {
    let until = deadline.max(Instant::now() + Duration::from_secs(1));
    loop {
        match Arc::try_unwrap(store) {
            Ok(last) => return drop(last),
            Err(_) if Instant::now() > until => return tracing::warn!("the image store is still in use"),
            Err(shared) => store = shared,
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
