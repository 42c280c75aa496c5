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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

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
use crate::postgres::restore::{self, Block, Place, Wanted};
use crate::telemetry::names;

/// Records of the first block; the next ones are as large as [`BYTES`] allows.
const FIRST: i64 = 500;
/// Bytes of stored versions that a block should have: a few milliseconds of the topic's thread.
const BYTES: usize = 2 << 20;
/// Bounds of a block.
const FEWEST: i64 = 20;
const MOST: i64 = 5_000;
/// A block that is not read by then is asked for again.
const TIME: Duration = Duration::from_secs(75);
/// Numbers of records that the first block passes by at most, and any one.
const WINDOW: i32 = 100_000;
const WIDEST: i32 = 10_000_000;
const NARROWEST: i32 = 1_000;
/// With more changes than that a restore begins again from where it is: it would have to remember them all.
const MOST_CHANGED: usize = 1_000_000;
/// With less room on the disk the image store is not filled: it would take a worker down that can do without.
const LEAST_ROOM: u64 = 256 << 20;
/// Progress is told this often …
const TELL: Duration = Duration::from_secs(10);
/// … and shown this often, also while nothing comes: then it takes longer.
const SHOW: Duration = Duration::from_secs(1);

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
    /// It begins: the records have numbers up to this.
    End(i32),
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

/// How far it is, and when it will be done. What is passed by is numbers of records: whose they are is seen on the way.
struct Progress {
    from: i32,
    upto: i32,
    end: i32,
    records: u64,
    began: Instant,
    told: Instant,
    shown: Instant,
}

impl Progress {
    fn left(&self) -> i32 {
        self.end.saturating_sub(self.upto).max(0)
    }

    /// Records a second.
    fn rate(&self) -> f64 {
        self.records as f64 / self.began.elapsed().as_secs_f64().max(1e-6)
    }

    /// At the rate so far; not a number as long as nothing is known of it.
    fn seconds_left(&self) -> f64 {
        let (left, passed) = (f64::from(self.left()), f64::from(self.upto - self.from));
        match (left > 0.0, passed > 0.0) {
            (false, _) => 0.0,
            (true, true) => left * self.began.elapsed().as_secs_f64() / passed,
            (true, false) => f64::NAN,
        }
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
        // What was read back belongs to claims: it is to be known first which of them are gone.
        self.obey();
        if self.restore.as_ref().is_some_and(|restore| restore.changed.len() > MOST_CHANGED) {
            self.end_restoring();
        }
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
        let Ok(turn) = Arc::clone(&self.parts.turns).try_acquire_owned() else { return Ok(()) };
        let epochs: BTreeMap<PositionId, i64> = tasks.iter().map(|task| (task.position_id, task.epoch)).collect();
        let facts = Arc::clone(self.parts.dictionary.facts());
        let (news, receiver) = mpsc::channel(2);
        let reader = Reader {
            topic: Arc::clone(&self.parts.topic),
            sink: self.parts.sink.clone(),
            facts: Arc::clone(&facts),
            positions: epochs.keys().copied().collect(),
            _turn: turn,
            news,
            inbox: Arc::clone(&self.parts.inbox),
        };
        self.parts.runtime.spawn(reader.run(after));
        let now = Instant::now();
        let progress = Progress { from: after, upto: after, end: after, records: 0, began: now, told: now, shown: now };
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
                Ok(News::End(end)) => {
                    restore.progress.end = end;
                    restore.progress.began = Instant::now();
                    return self.begun_restoring();
                }
                Ok(News::Block(block)) => block,
                Err(mpsc::error::TryRecvError::Empty) => {
                    if restore.progress.end > restore.progress.from && restore.progress.shown.elapsed() >= SHOW {
                        restore.progress.shown = Instant::now();
                        self.show_restoring();
                    }
                    return;
                }
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    // A record can't be read, which was told. Read-through will meet it too.
                    return self.give_up_restoring();
                }
            },
        };
        self.put_in(block);
    }

    /// What is missing is read through from now on.
    fn give_up_restoring(&mut self) {
        let epochs = self.restore.as_mut().map(|restore| std::mem::take(&mut restore.epochs)).unwrap_or_default();
        let given_up = self.tasks.values_mut().filter(|task| epochs.contains_key(&task.position_id));
        given_up.for_each(|task| task.missing_after = None);
        self.end_restoring();
    }

    fn begun_restoring(&self) {
        let Some(restore) = &self.restore else { return };
        if restore.progress.left() > 0 {
            tracing::info!(
                topic = %self.parts.topic, partitions = restore.epochs.len(), records_at_most = restore.progress.left(),
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
        gauge!(names::RESTORE_LEFT, "topic" => topic.to_string()).set(f64::from(left));
        gauge!(names::RESTORE_SECONDS_LEFT, "topic" => topic.to_string()).set(seconds);
    }

    pub(super) fn end_restoring(&mut self) {
        if self.restore.take().is_none() {
            return;
        }
        self.show_restoring();
        self.parts.images.put_off_merging(false);
    }

    /// Puts a block into the store, as far as it is still true and ours.
    ///
    /// Invalidations that it knows of and this worker doesn't are no matter: what was taken away by then is not in the block,
    /// and is forgotten once more when the worker hears of it.
    fn put_in(&mut self, block: Filling) {
        let Some(restore) = &mut self.restore else { return };
        let mut ours: BTreeSet<PositionId> = BTreeSet::new();
        let mut fenced: Vec<PositionId> = Vec::new();
        for place in &block.places {
            let Some(epoch) = restore.epochs.get(&place.position_id) else { continue };
            let Some(task) = self.tasks.values().find(|task| task.position_id == place.position_id) else { continue };
            if place.epoch > *epoch {
                // Its next commit would be refused; at rest it has none, and what is read for it would be in vain for good.
                fenced.push(task.position_id);
                continue;
            }
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
        if !fenced.is_empty() {
            self.end_restoring();
            return self.fenced(&fenced, "its records were read back under a newer claim");
        }
        if self.parts.images.room().is_some_and(|room| room < LEAST_ROOM) {
            tracing::warn!(
                topic = %self.parts.topic,
                "the image store is not filled any further: less than {} MiB are left on its disk; what is missing is read through",
                LEAST_ROOM >> 20
            );
            return self.give_up_restoring();
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
        match filled {
            Ok(true) => {
                let records = block.records.len() as u64;
                restore.progress.records += records;
                restore.progress.upto = block.upto.unwrap_or(restore.progress.end);
                counter!(names::RESTORED, "topic" => self.parts.topic.to_string()).increment(records);
                self.tell_restoring(block.upto.is_none());
            }
            // One of them is claimed anew already, which is about to be told here.
            Ok(false) => self.end_restoring(),
            Err(error) => self.check_store(Err(error.to_string())),
        }
    }

    fn tell_restoring(&mut self, whole: bool) {
        let Some(restore) = &mut self.restore else { return };
        let progress = &mut restore.progress;
        let records = progress.records;
        if whole {
            let seconds = (progress.began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
            let rate = progress.rate().round();
            self.end_restoring();
            if records > 0 {
                tracing::info!(topic = %self.parts.topic, records, seconds, rate, "the image store is whole");
            }
            return;
        }
        if progress.told.elapsed() >= TELL {
            progress.told = Instant::now();
            let (at_most, seconds_left) = (progress.left(), progress.seconds_left().ceil());
            let topic = &self.parts.topic;
            tracing::info!(%topic, records, left_at_most = at_most, seconds_left, "filling the image store");
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
    /// Until the end of it.
    _turn: OwnedSemaphorePermit,
    news: mpsc::Sender<News>,
    inbox: Arc<Inbox>,
}

impl Reader {
    async fn run(self, after: i32) {
        let (blocks, folding) = self.start_folding();
        tokio::select! {
            () = self.read(after, blocks, &folding.most) => {}
            () = self.news.closed() => {}
        }
        let _ = folding.thread.await;
    }

    async fn read(&self, mut after: i32, blocks: mpsc::Sender<(Block, bool)>, most: &AtomicI64) {
        let (mut client, mut end, mut failures, mut window) = (None, None, 0u32, WINDOW);
        loop {
            let asked = async {
                let client = match &mut client {
                    Some(client) => client,
                    slot => slot.insert(self.sink.connect().await.map_err(|error| error.to_string())?),
                };
                let words = |error: LookupError| match error {
                    LookupError::Query(error) => describe(&error),
                    error => error.to_string(),
                };
                let end = match end {
                    Some(end) => end,
                    None => {
                        let last = restore::last(client).await.map_err(words)?;
                        let _ = self.news.send(News::End(last)).await;
                        self.inbox.wake();
                        *end.insert(last)
                    }
                };
                let to = after.saturating_add(window).min(end);
                let wanted = Wanted { after, to, most: most.load(Ordering::Relaxed) };
                let block =
                    restore::read(client, self.facts.object_id, &self.positions, wanted).await.map_err(words)?;
                let whole = block.upto >= end;
                Ok((block, whole))
            };
            let answer = tokio::time::timeout(TIME, asked).await;
            match answer.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok((block, whole)) => {
                    failures = 0;
                    after = block.upto;
                    if block.records() == 0 {
                        window = window.saturating_mul(2).min(WIDEST);
                    }
                    if blocks.send((block, whole)).await.is_err() || whole {
                        return;
                    }
                }
                Err(reason) => {
                    failures += 1;
                    client = None;
                    // It may have been too much at a time.
                    window = (window / 2).max(NARROWEST);
                    if failures.is_power_of_two() {
                        tracing::warn!(
                            topic = %self.topic, %reason, failures,
                            "the sink does not answer while the image store is filled; asking again"
                        );
                    }
                    tokio::time::sleep(pause_after(failures)).await;
                }
            }
        }
    }

    /// Folds and encodes on a thread of its own, while the next block is being read.
    fn start_folding(&self) -> (mpsc::Sender<(Block, bool)>, Folding) {
        let (blocks, mut receiver) = mpsc::channel::<(Block, bool)>(1);
        let (news, inbox) = (self.news.clone(), Arc::clone(&self.inbox));
        let (facts, topic) = (Arc::clone(&self.facts), Arc::clone(&self.topic));
        let most = Arc::new(AtomicI64::new(FIRST));
        let next = Arc::clone(&most);
        let thread = tokio::task::spawn_blocking(move || {
            while let Some((block, whole)) = receiver.blocking_recv() {
                failpoint!("restore.read");
                let (records, bytes) = match block.fold(&facts).and_then(|records| Ok((records, block.bytes()?))) {
                    Ok(folded) => folded,
                    Err(error) => {
                        tracing::error!(%topic, %error, "the image store is not filled any further");
                        return;
                    }
                };
                let restored = |(identity, record)| Restored::of(facts.object_id, identity, &record);
                let records: Vec<Restored> = records.into_iter().filter_map(restored).collect();
                if let Some(each) = bytes.checked_div(block.records()) {
                    // The records that follow may be of another size.
                    let most = MOST.min(next.load(Ordering::Relaxed) * 2);
                    next.store(((BYTES / each.max(1)) as i64).clamp(FEWEST, most), Ordering::Relaxed);
                }
                let Block { places, upto, .. } = block;
                let upto = (!whole).then_some(upto);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_it_will_be_whole_is_told_at_the_rate_so_far_and_not_before_there_is_one() {
        let began = Instant::now() - Duration::from_secs(10);
        let at = |upto| Progress { from: 100, upto, end: 1_100, records: 0, began, told: began, shown: began };
        assert!(at(100).seconds_left().is_nan(), "nothing has come");
        let left = at(350).seconds_left();
        assert!((30.0..31.0).contains(&left), "a quarter took 10 s: {left}");
        assert_eq!(at(1_100).seconds_left(), 0.0);
        assert_eq!(at(1_200).seconds_left(), 0.0, "records of others came after the last of ours");
    }
}
