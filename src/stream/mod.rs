//! The processor: messages in, deltas and positions out, exactly once.
//!
//! | file | holds |
//! | --- | --- |
//! | `topics.rs` | the topics of a worker: those of its start, those that appear later |
//! | `ownership.rs` | claims partitions in Postgres before they are read, lets them go when they are revoked |
//! | `group.rs` | the tasks of one topic on this worker: read, judge, batch, rewind |
//! | `task.rs` | one partition's progress |
//! | `merge.rs` | which partition's message is next, by source time |
//! | `align.rs` | how far ahead of the partitions that other workers own |
//! | `applying.rs` | a committed batch on its way into the local store |
//! | `upkeep.rs` | what a worker looks after beside the stream: new topics, health, the sink's snapshots |
//! | `chunk.rs` | a chunk of messages: decode, look up, judge |
//! | `dictionary.rs` | columns and field numbers |
//! | `images.rs` | records in the local store |
//! | `damage.rs` | drops a local store that is damaged |
//! | `room.rs` | waits while the disk under the local store is full |
//! | `away.rs` | waits for sink and broker where a worker begins anew |
//! | `databases.rs` | that one org is fed by one database |
//! | `flood.rs` | halts a partition that can't be decoded |
//! | `committer.rs` | sealed batches to Postgres |
//! | `settle.rs` | what follows from a commit's outcome |
//! | `lasting.rs` | what lasts is told at growing intervals |
//! | `late.rs` | late events into their place |
//! | `fences.rs` | partitions that another worker has claimed |
//! | `resting.rs` | partitions that are let alone for a while |
//! | `restore.rs` | an image store that was lost, filled again beside the stream |
//! | `tally.rs` | metrics of a batch |
//! | `views.rs` | typed views and lookups, beside the stream |
//! | `watch.rs` | whether a log is still the one that is being read |
//! | `checkup.rs` | an image store at rest, compared with the sink |
//! | `retry.rs` | dead letters, once more |
//!
//! What is true after a crash between any two steps:
//!
//! | crash | Postgres | image store | what follows |
//! | --- | --- | --- | --- |
//! | before COMMIT | nothing | nothing | the same messages are read and judged again |
//! | after COMMIT, before the answer | batch | behind | the claim finds the position moved; the store forgets what the missing range touched |
//! | after the answer, before the store's batch | batch | behind | likewise |
//! | after the store's batch | batch | batch | nothing |

mod align;
mod applying;
mod away;
pub mod checkup;
mod chunk;
mod committer;
mod damage;
mod databases;
mod dictionary;
mod fences;
mod flood;
mod group;
mod images;
mod lasting;
mod late;
mod merge;
mod ownership;
mod resting;
mod restore;
pub mod retry;
mod room;
mod settle;
mod tally;
mod task;
mod topics;
mod upkeep;
mod views;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use afterimage_state::{StateError, StateOptions, Store};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::core::decode::TopicRules;
use crate::core::event::Micros;
use crate::kafka::{Consumer, KafkaError, KafkaSettings, Metadata};
use crate::postgres::claim::Claimant;
use crate::postgres::client::{ConnectError, SinkSettings, describe};
use crate::postgres::migrate::{self, MigrateError};
use crate::postgres::registry::{self, Declared, RegistryError};
use crate::telemetry::Health;

use align::Boards;
use away::Away;
use committer::Committers;
use damage::Damage;
use databases::Databases;
use images::Images;
use ownership::Claims;
use room::Room;
use topics::Topics;
use views::Views;
use watch::Logs;

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

/// Which of a cluster's topics are to be read, and as what: the configuration's answer to a list of names. It is asked at
/// the start and whenever topics are looked for.
pub type TopicMapping = Arc<dyn Fn(&[String]) -> Result<Vec<TopicPlan>, String> + Send + Sync>;

/// Everything a worker needs.
pub struct RunSettings {
    /// Kafka.
    pub kafka: KafkaSettings,
    /// Sink.
    pub sink: SinkSettings,
    /// A static member of the group, under the id of the image store's directory: for disks that survive the process.
    pub static_member: bool,
    /// Directory of the image store.
    pub state_dir: PathBuf,
    /// Its memory, bytes.
    pub state_memory: usize,
    /// Memory for knowing repeated events, bytes, all topics together.
    pub front_memory: usize,
    /// Topics.
    pub topics: Vec<TopicPlan>,
    /// For topics that appear later.
    pub mapping: TopicMapping,
    /// Batch limits.
    pub limits: BatchLimits,
    /// Hash of the effective configuration, kept with each claim.
    pub config_hash: Vec<u8>,
    /// Where to tell how the worker is.
    pub health: Health,
}

impl RunSettings {
    fn state_options(&self) -> StateOptions {
        StateOptions { memory: self.state_memory, ..StateOptions::default() }
    }

    fn state_error(&self, source: StateError) -> RunError {
        RunError::State { dir: self.state_dir.clone(), source }
    }
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
    /// What the cluster has now can't be mapped to orgs.
    #[error("{0}")]
    Mapping(String),
    /// A topic's thread ended by itself.
    #[error("topic {0} cannot go on; its last error says why")]
    Topic(String),
    /// Not everything was committed in time; what was not will be read again.
    #[error("not everything in hand could be committed within {0:?}; it will be read again")]
    Unfinished(Duration),
}

/// Runs a worker until `stop` says so. When the disk under its image store is full, also at its start, it lets its
/// partitions go, waits until there is room, and begins anew: what the store lacks is in the sink. So it does, at once and
/// with an empty store, when the store is damaged. If the sink or the broker is away just then, it waits for it.
///
/// # Errors
/// See [`RunError`]. Neither a full disk nor, once it reads, a broken connection alone ever ends it; nor does damage, unless it
/// comes again soon.
pub async fn run(settings: RunSettings, mut stop: oneshot::Receiver<()>) -> Result<(), RunError> {
    let (mut damage, mut room, mut away) = (Damage::default(), Room::default(), Away::default());
    loop {
        match read(&settings, &mut stop).await {
            Err(RunError::State { source, .. }) if source.is_full() => {
                match room.wait(&settings, &source, &mut stop).await? {
                    room::Waited::RoomAgain => away = Away::from_anew(),
                    room::Waited::AskedToStop => return Ok(()),
                }
            }
            Err(RunError::State { source, .. }) if damage.is_mended_by_dropping(&source) => {
                if !damage.drop_store(&settings, &source, &mut stop).await? {
                    return Ok(());
                }
                away = Away::from_anew();
            }
            Err(error) if away.is_waited_for(&error) => {
                if !away.wait(&settings, &error, &mut stop).await {
                    return Ok(());
                }
            }
            outcome => return outcome,
        }
    }
}

/// From opening the image store to closing it.
async fn read(settings: &RunSettings, stop: &mut oneshot::Receiver<()>) -> Result<(), RunError> {
    let asked = async {
        let client = settings.sink.connect().await?;
        migrate::check(&client).await?;
        let sink_id = registry::sink_id(&client).await?;
        Ok::<_, RunError>((client, sink_id))
    };
    // Whoever is asked to stop while the sink keeps it waiting has nothing in hand.
    let (mut client, sink_id) = tokio::select! {
        _ = &mut *stop => return Ok(()),
        answer = asked => answer?,
    };
    let metadata = tokio::task::block_in_place(|| Metadata::connect(&settings.kafka))?;
    let cluster = tokio::task::block_in_place(|| metadata.cluster_id(Duration::from_secs(10)))?;
    let names: Vec<Arc<str>> = settings.topics.iter().map(|topic| topic.declared.topic.as_str().into()).collect();
    let described = tokio::task::block_in_place(|| metadata.describe(&names, Duration::from_secs(10)))?;
    let partitions = described.into_iter().map(|topic| (topic.name, topic.partitions)).collect();
    let store = Store::open(&settings.state_dir, &settings.state_options());
    let store = Arc::new(store.map_err(|source| settings.state_error(source))?);
    let (failures, mut store_failed) = tokio::sync::mpsc::unbounded_channel();
    let images = Images::new(Arc::clone(&store), failures);
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let mut topics = Topics {
        sink: settings.sink.clone(),
        sink_id,
        cluster,
        group: settings.kafka.group.clone(),
        images: images.clone(),
        committers: Committers::start(&settings.sink, 2),
        views: Views::start(&settings.sink),
        limits: settings.limits,
        front_memory: settings.front_memory / settings.topics.len().max(1),
        databases: Databases::default(),
        logs: Logs::default(),
        boards: Boards::default(),
        turns: restore::turns(),
        health: settings.health.clone(),
        ended,
        running: Vec::new(),
    };
    let prepared = tokio::select! {
        _ = &mut *stop => return Ok(()),
        prepared = topics.prepare(&mut client, settings.topics.clone(), &partitions) => prepared?,
    };
    drop(client);
    let (failed, failure) = oneshot::channel();
    let claims = Arc::new(Claims {
        topics: RwLock::new(prepared.iter().map(|one| (Arc::clone(&one.topic), one.side())).collect()),
        sink: settings.sink.clone(),
        sink_id,
        claimant: Claimant { worker: settings.sink.worker.clone(), config_hash: settings.config_hash.clone() },
        images: images.clone(),
        metadata,
        kafka: settings.kafka.clone(),
        logs: topics.logs.clone(),
        runtime: Handle::current(),
        failed: Mutex::new(Some(failed)),
        halted: Mutex::default(),
        refused: Mutex::default(),
    });
    let ownership = Arc::clone(&claims);
    let member = KafkaSettings {
        group_instance_id: settings.static_member.then(|| store.instance_id().to_owned()),
        ..settings.kafka.clone()
    };
    let (consumer, inboxes) = tokio::task::block_in_place(|| Consumer::start(&member, &names, ownership))?;
    topics.start(prepared, &inboxes, &consumer)?;
    settings.health.starting();
    tracing::info!(topics = names.len(), group = %settings.kafka.group, "reading");

    let process = Uuid::new_v4();
    let mut beside = vec![
        tokio::spawn(align::watch(topics.boards.clone(), settings.kafka.clone(), settings.sink.clone())),
        tokio::spawn(watch::watch(topics.logs.clone(), Arc::clone(&claims))),
        tokio::spawn(upkeep::look_at_sink(
            settings.sink.clone(),
            settings.health.clone(),
            topics.boards.clone(),
            topics.logs.clone(),
            Arc::clone(&claims),
        )),
        tokio::spawn(upkeep::tell(
            settings.health.clone(),
            consumer.clone(),
            Arc::clone(&claims),
            topics.boards.clone(),
        )),
    ];
    if settings.sink.pooled {
        beside.push(tokio::spawn(upkeep::show_alive(settings.sink.clone(), process)));
    }
    let mut finds = upkeep::find_topics(&settings.kafka);
    let mut outcome = Ok(());
    tokio::pin!(failure);
    loop {
        tokio::select! {
            biased;
            _ = &mut *stop => break,
            // Before the ends that it brings about.
            Some(source) = store_failed.recv() => {
                outcome = Err(settings.state_error(source));
                break;
            }
            Ok(error) = &mut failure => {
                outcome = Err(RunError::Kafka(error));
                break;
            }
            Some(topic) = ends.recv() => {
                outcome = Err(RunError::Topic(topic));
                break;
            }
            Some(found) = finds.recv() => {
                if let Err(error) = topics.grow(&found, &settings.mapping, &claims, &consumer).await {
                    tracing::error!(%error, "a topic that has appeared can't be read; trying again");
                }
            }
        }
    }
    match &outcome {
        Err(RunError::State { source, .. }) if source.is_full() => room::show(settings, source),
        Err(RunError::State { source, .. }) if source.is_damage() => damage::show(settings, source),
        _ => {
            tracing::info!("stopping");
            settings.health.stopping();
        }
    }
    let deadline = Instant::now() + Duration::from_secs(8);
    beside.iter().for_each(tokio::task::JoinHandle::abort);
    topics.ask_to_stop();
    tokio::task::block_in_place(|| {
        while !topics.have_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    if !topics.have_ended() && outcome.is_ok() {
        outcome = Err(RunError::Unfinished(Duration::from_secs(8)));
    }
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(500));
    if let Err(error) = tokio::task::block_in_place(|| consumer.stop(left)) {
        tracing::warn!(%error, "the group was not left in time");
    }
    drop((consumer, topics, claims, inboxes, images));
    if settings.sink.pooled {
        upkeep::show_gone(&settings.sink, process).await;
    }
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
