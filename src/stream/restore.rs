//! The image store of a position that was claimed without one fills up beside the stream.
//!
//! Nothing waits for it: what is missing is read through. It is filled because asking the sink for every record, one
//! chunk at a time, costs more than reading all of them once, in order.
//!
//! ```text
//! sink ── blocks of records, each with where its positions stood ──▶ fold, encode ──▶ topic's thread ──▶ image store
//!         one snapshot each (task)                                   (its own thread)   between two chunks
//! ```
//!
//! Never two truths about a record: a block is put in by the topic's thread, which alone writes these positions. It waits
//! until it knows of every commit that the block contains, and leaves out every record that was committed, or taken away,
//! since the restore began: of that one, the store has the newer image, or rightly none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use metrics::{counter, gauge};
use tokio::sync::{Semaphore, mpsc};

use super::committer::pause_after;
use super::group::{Ended, Group};
use super::images::Restored;
use super::task::Task;
use crate::core::judge::ObjectFacts;
use crate::core::position::PositionId;
use crate::core::record::{KeyHashes, key_hash};
use crate::kafka::Inbox;
use crate::postgres::client::{SinkSettings, describe};
use crate::postgres::lookup::LookupError;
use crate::postgres::restore::{self, Block, Place};
use crate::telemetry::names;

/// Records of the first block; the next ones are as large as [`BYTES`] allows.
const FIRST: i64 = 500;
/// Bytes of encoded records that a block should have: a few milliseconds of the topic's thread.
const BYTES: usize = 2 << 20;
/// Bounds of a block.
const FEWEST: i64 = 20;
const MOST: i64 = 5_000;
/// A block that is not read by then is asked for again.
const TIME: Duration = Duration::from_secs(75);
/// Progress is told this often.
const TELL: Duration = Duration::from_secs(10);

/// One topic of a worker at a time: it bounds memory, and what the sink is asked for.
pub type Turns = Arc<Semaphore>;

/// Only one.
pub fn turns() -> Turns {
    Arc::new(Semaphore::new(1))
}

/// A block, ready for the store.
struct Filling {
    places: Vec<Place>,
    upto: Option<i32>,
    records: Vec<Restored>,
    /// It came before a commit that it contains was known here.
    early: bool,
}

enum News {
    /// So many records are to be read.
    Total(u64),
    Block(Filling),
}

/// A restore under way: some positions of one topic, as they were claimed.
pub struct Restore {
    /// Their claims.
    epochs: BTreeMap<PositionId, i64>,
    news: mpsc::Receiver<News>,
    /// A block that came too early.
    early: Option<Filling>,
    /// What was committed or taken away since it began.
    changed: KeyHashes,
    facts: Arc<ObjectFacts>,
    progress: Progress,
}

/// How far it is, and when it will be done.
struct Progress {
    total: u64,
    done: u64,
    began: Instant,
    told: Instant,
}

impl Progress {
    fn left(&self) -> u64 {
        self.total.saturating_sub(self.done)
    }

    fn rate(&self) -> f64 {
        self.done as f64 / self.began.elapsed().as_secs_f64().max(1e-6)
    }

    /// Seconds, at the rate so far.
    fn seconds_left(&self) -> f64 {
        if self.done == 0 { 0.0 } else { self.left() as f64 / self.rate() }
    }
}

/// Whether stored versions become the same record under both: see [`crate::core::fold`].
fn folds_alike(one: &ObjectFacts, other: &ObjectFacts) -> bool {
    let of = |facts: &ObjectFacts| (facts.stamp_no, facts.modified_no, facts.modified_by_no);
    of(one) == of(other)
}

impl Restore {
    /// Takes note of what a commit changed in the store.
    pub fn changed<'a>(&mut self, object_id: i16, identities: impl IntoIterator<Item = &'a str>) {
        self.changed.extend(identities.into_iter().map(|identity| key_hash(object_id, identity)));
    }
}

impl Group {
    /// One step, between two chunks.
    pub(super) fn restore(&mut self) {
        if self.restore.is_some() {
            self.go_on_restoring();
        } else if self.begin_restoring().is_err() {
            self.stopping = true;
        }
    }

    fn begin_restoring(&mut self) -> Result<(), Ended> {
        let tasks: Vec<&Task> = self.tasks.values().filter(|task| task.missing_after.is_some()).collect();
        let Some(after) = tasks.iter().filter_map(|task| task.missing_after).min() else { return Ok(()) };
        // All of them at once: each time, all records of the object are passed by.
        if !tasks.iter().all(|task| task.caught_up()) {
            return Ok(());
        }
        if self.dictionary_stale {
            return self.read_dictionary();
        }
        let epochs: BTreeMap<PositionId, i64> = tasks.iter().map(|task| (task.position_id, task.epoch)).collect();
        let facts = Arc::clone(self.parts.dictionary.facts());
        let (news, receiver) = mpsc::channel(2);
        let reader = Reader {
            topic: Arc::clone(&self.parts.topic),
            sink: self.parts.sink.clone(),
            facts: Arc::clone(&facts),
            positions: epochs.keys().copied().collect(),
            turns: Arc::clone(&self.parts.turns),
            news,
            inbox: Arc::clone(&self.parts.inbox),
        };
        self.parts.runtime.spawn(reader.run(after));
        let now = Instant::now();
        let progress = Progress { total: 0, done: 0, began: now, told: now };
        let changed = KeyHashes::default();
        self.restore = Some(Restore { epochs, news: receiver, early: None, changed, facts, progress });
        Ok(())
    }

    fn go_on_restoring(&mut self) {
        let Some(restore) = &mut self.restore else { return };
        let lost = |epoch: &i64, id: &PositionId| {
            !self.tasks.values().any(|task| (task.position_id, task.epoch) == (*id, *epoch))
        };
        restore.epochs.retain(|id, epoch| !lost(epoch, id));
        // Under another dictionary the records look otherwise: what is left of them is read anew.
        if restore.epochs.is_empty() || !folds_alike(&restore.facts, self.parts.dictionary.facts()) {
            return self.end_restoring();
        }
        let block = match restore.early.take() {
            Some(block) => block,
            None => match restore.news.try_recv() {
                Ok(News::Total(total)) => {
                    restore.progress.total = total;
                    restore.progress.began = Instant::now();
                    return self.begun_restoring();
                }
                Ok(News::Block(block)) => block,
                Err(mpsc::error::TryRecvError::Empty) => return,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    // A record can't be read, which was told. Read-through will meet it too.
                    let epochs = std::mem::take(&mut restore.epochs);
                    let given_up = self.tasks.values_mut().filter(|task| epochs.contains_key(&task.position_id));
                    given_up.for_each(|task| task.missing_after = None);
                    return self.end_restoring();
                }
            },
        };
        self.put_in(block);
    }

    fn begun_restoring(&self) {
        let Some(restore) = &self.restore else { return };
        if restore.progress.total > 0 {
            tracing::info!(
                topic = %self.parts.topic, partitions = restore.epochs.len(), records = restore.progress.total,
                "the image store is filled from the sink; meanwhile what is missing is read through"
            );
            self.parts.images.put_off_merging(true);
        }
        self.show_restoring();
    }

    fn show_restoring(&self) {
        let topic = &self.parts.topic;
        let (left, seconds) = self
            .restore
            .as_ref()
            .map_or((0, 0.0), |restore| (restore.progress.left(), restore.progress.seconds_left()));
        gauge!(names::RESTORE_LEFT, "topic" => topic.to_string()).set(left as f64);
        gauge!(names::RESTORE_SECONDS_LEFT, "topic" => topic.to_string()).set(seconds);
    }

    fn end_restoring(&mut self) {
        self.restore = None;
        self.parts.images.put_off_merging(false);
        self.show_restoring();
    }

    /// Puts a block into the store, as far as it is still true and ours.
    ///
    /// Invalidations that it knows of and this worker doesn't are no matter: what was taken away by then is not in the block,
    /// and is forgotten once more when the worker hears of it.
    fn put_in(&mut self, block: Filling) {
        let Some(restore) = &mut self.restore else { return };
        let mut ours: BTreeSet<PositionId> = BTreeSet::new();
        for place in &block.places {
            if restore.epochs.get(&place.position_id) != Some(&place.epoch) {
                continue;
            }
            let Some(task) = self.tasks.values().find(|task| task.position_id == place.position_id) else { continue };
            if place.next > task.next {
                // It contains a commit whose outcome is still on its way here. Were it put in now, the mark would tell of
                // less than the images contain: a sink restored to that moment would believe them (D14).
                if !block.early {
                    tracing::debug!(topic = %self.parts.topic, "records were read back before their commit is known here");
                }
                restore.early = Some(Filling { early: true, ..block });
                return;
            }
            ours.insert(place.position_id);
        }
        // A mark must not tell of what is not in the store yet.
        self.await_applying();
        let Some(restore) = &mut self.restore else { return };
        let object_id = self.parts.source.object_id;
        let fresh = |one: &&Restored| ours.contains(&one.home) && !restore.changed.contains(&one.hash);
        let records = block.records.iter().filter(fresh);
        let mut marks = Vec::with_capacity(ours.len());
        for task in self.tasks.values_mut().filter(|task| ours.contains(&task.position_id)) {
            task.missing_after = task.missing_after.zip(block.upto).map(|(had, upto)| had.max(upto));
            marks.push(task.mark(self.parts.sink_id));
        }
        let filled = self.parts.images.fill(object_id, records, marks);
        failpoint!("restore.filled");
        restore.progress.done += block.records.len() as u64;
        counter!(names::RESTORED, "topic" => self.parts.topic.to_string()).increment(block.records.len() as u64);
        self.check_store(filled.map_err(|error| error.to_string()));
        self.tell_restoring(block.upto.is_none());
    }

    fn tell_restoring(&mut self, whole: bool) {
        let Some(restore) = &mut self.restore else { return };
        let progress = &mut restore.progress;
        let (topic, records) = (&self.parts.topic, progress.done);
        if whole {
            if records > 0 {
                let seconds = (progress.began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
                tracing::info!(%topic, records, seconds, rate = progress.rate().round(), "the image store is whole");
            }
            self.end_restoring();
            return;
        }
        if progress.told.elapsed() >= TELL {
            progress.told = Instant::now();
            let (of, seconds_left) = (progress.total, progress.seconds_left().ceil());
            tracing::info!(%topic, records, of, seconds_left, "filling the image store");
        }
        self.show_restoring();
    }
}

/// Reads blocks, until all is read or nobody wants them any more.
struct Reader {
    topic: Arc<str>,
    sink: SinkSettings,
    facts: Arc<ObjectFacts>,
    positions: Vec<PositionId>,
    turns: Turns,
    news: mpsc::Sender<News>,
    inbox: Arc<Inbox>,
}

impl Reader {
    async fn run(self, mut after: i32) {
        let Ok(_turn) = Arc::clone(&self.turns).acquire_owned().await else { return };
        let (blocks, folding) = self.start_folding();
        let (mut client, mut told, mut failures) = (None, false, 0);
        let mut most = FIRST;
        while !self.news.is_closed() {
            let asked = async {
                let client = match &mut client {
                    Some(client) => client,
                    slot => slot.insert(self.sink.connect().await.map_err(|error| error.to_string())?),
                };
                let words = |error: LookupError| match error {
                    LookupError::Query(error) => describe(&error),
                    error => error.to_string(),
                };
                let object_id = self.facts.object_id;
                if !told {
                    let total = restore::count(client, object_id, &self.positions, after).await.map_err(words)?;
                    told = true;
                    let _ = self.news.send(News::Total(total)).await;
                    self.inbox.wake();
                }
                restore::read(client, object_id, &self.positions, after, most).await.map_err(words)
            };
            let answer = tokio::time::timeout(TIME, asked).await;
            match answer.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(block) => {
                    failures = 0;
                    let upto = block.upto;
                    if blocks.send(block).await.is_err() {
                        break;
                    }
                    match upto {
                        Some(upto) => after = upto,
                        None => break,
                    }
                    most = folding.most.load(Ordering::Relaxed);
                }
                Err(reason) => {
                    failures += 1;
                    client = None;
                    tracing::warn!(topic = %self.topic, %reason, "the sink does not answer while the image store is filled; asking again");
                    tokio::select! {
                        () = tokio::time::sleep(pause_after(failures)) => {}
                        () = self.news.closed() => break,
                    }
                }
            }
        }
        drop(blocks);
        let _ = folding.thread.await;
    }

    /// Folds and encodes on a thread of its own, while the next block is being read.
    fn start_folding(&self) -> (mpsc::Sender<Block>, Folding) {
        let (blocks, mut receiver) = mpsc::channel::<Block>(1);
        let (news, inbox) = (self.news.clone(), Arc::clone(&self.inbox));
        let (facts, topic) = (Arc::clone(&self.facts), Arc::clone(&self.topic));
        let most = Arc::new(AtomicI64::new(FIRST));
        let next = Arc::clone(&most);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some(block) = receiver.blocking_recv() {
                failpoint!("restore.read");
                let records = match block.fold(&facts) {
                    Ok(records) => records,
                    Err(error) => {
                        tracing::error!(%topic, %error, "the image store is not filled any further");
                        return;
                    }
                };
                let restored = |(identity, record)| Restored::of(facts.object_id, identity, &record);
                let records: Vec<Restored> = records.into_iter().filter_map(restored).collect();
                let bytes: usize = records.iter().map(|one| one.bytes.len()).sum();
                if let Some(each) = bytes.checked_div(records.len()) {
                    next.store(((BYTES / each.max(1)) as i64).clamp(FEWEST, MOST), Ordering::Relaxed);
                }
                let Block { places, upto, .. } = block;
                if news.blocking_send(News::Block(Filling { places, upto, records, early: false })).is_err() {
                    return;
                }
                inbox.wake();
            }
        });
        (blocks, Folding { most, thread })
    }
}

struct Folding {
    /// Records that the next block should have.
    most: Arc<AtomicI64>,
    thread: tokio::task::JoinHandle<()>,
}
