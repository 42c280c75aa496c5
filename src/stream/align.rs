//! Workers that share a topic keep in step: the edges of [`crate::core::align`].
//!
//! A background task of the worker ([`watch`]) asks Postgres for the others' committed places and the broker for their
//! ends, and writes them on the topic's [`Board`]; the topic's thread only looks there. While a worker owns all
//! partitions of a topic nothing is asked.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use metrics::counter;
use tokio::sync::Notify;

use super::group::{Group, InboxCell};
use super::task::Task;
use crate::core::align::{Other, STEP, Slowest, Stride, slowest};
use crate::core::event::Micros;
use crate::kafka::{KafkaSettings, Metadata, TopicPartition};
use crate::postgres::Client;
use crate::postgres::client::{SinkSettings, describe};
use crate::postgres::status::{Place, places, workers};
use crate::telemetry::names;

/// What is known of the others is asked for anew after this long while a topic waits for them …
const WAITING: Duration = Duration::from_millis(5);
/// … while it has much to read …
const BUSY: Duration = Duration::from_millis(25);
/// … and otherwise. Sessions are asked for as seldom as this in any case.
const SELDOM: Duration = Duration::from_secs(1);
/// While a topic has much to read, a partition of others is not believed to be at its end on an older answer.
const END_AGE: Duration = Duration::from_millis(20);
/// Messages that wait in a topic's thread from which on it has much to read: less is what comes in live.
const MUCH: usize = 100;
/// Older knowledge holds nobody up: neither the sink nor the broker may be answering.
const STALE: Duration = Duration::from_secs(5);
/// Linger of a batch while others may be waiting for it.
const AWAITED_LINGER: Duration = Duration::from_millis(10);
/// Broker questions.
const BROKER_TIME: Duration = Duration::from_secs(4);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread of a topic and the background task tell each other.
pub struct Board {
    /// Topic.
    pub topic: Arc<str>,
    /// Its source row.
    pub source_id: i16,
    /// To wake the topic's thread.
    pub inbox: InboxCell,
    /// How many partitions the topic has.
    partitions: AtomicI32,
    /// Ours.
    owned: Mutex<BTreeSet<i32>>,
    /// The topic's thread waits for others.
    waits: AtomicBool,
    /// The topic's thread has much to read.
    busy: AtomicBool,
    /// Records at home here have late events that wait for their place.
    late: AtomicBool,
    /// Rises with each new [`Facts`], and when they are forgotten.
    version: AtomicU64,
    facts: Mutex<Option<Facts>>,
    /// Tasks by state: restoring, running, waiting; and partitions that rest because they are halted.
    tasks: [AtomicUsize; 4],
}

#[derive(Clone, Copy)]
struct Facts {
    slowest: Option<Micros>,
    asked: Instant,
}

/// Partitions that others own, as of a version of the board.
struct Foreign {
    partitions: Vec<i32>,
    version: u64,
}

impl Board {
    /// Of a topic with so many partitions.
    pub fn new(topic: Arc<str>, source_id: i16, partitions: i32, inbox: InboxCell) -> Arc<Self> {
        Arc::new(Board {
            topic,
            source_id,
            inbox,
            partitions: AtomicI32::new(partitions),
            owned: Mutex::default(),
            waits: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            late: AtomicBool::new(false),
            version: AtomicU64::new(0),
            facts: Mutex::new(None),
            tasks: Default::default(),
        })
    }

    /// The topic has so many partitions now.
    fn set_partitions(&self, count: i32) -> bool {
        let grown = self.partitions.swap(count, Ordering::AcqRel) != count;
        if grown {
            self.forget();
        }
        grown
    }

    /// What is known of the others was asked for others.
    fn forget(&self) {
        let mut facts = lock(&self.facts);
        *facts = None;
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Tells the topic's thread that late events of records at home in this partition wait for their place.
    pub fn late_in(&self, partition: i32) {
        if lock(&self.owned).contains(&partition) {
            self.late.store(true, Ordering::Release);
            if let Some(inbox) = self.inbox.get() {
                inbox.wake();
            }
        }
    }

    /// Tasks by state: restoring, running, waiting for other workers; and partitions that rest because they are halted.
    pub fn tasks(&self) -> [usize; 4] {
        [0, 1, 2, 3].map(|state| self.tasks[state].load(Ordering::Relaxed))
    }

    /// Partitions of the topic that others own, if some are ours and some are not.
    fn foreign(&self) -> Foreign {
        let owned = lock(&self.owned);
        let version = self.version.load(Ordering::Acquire);
        let all = if owned.is_empty() { 0 } else { self.partitions.load(Ordering::Relaxed) };
        let partitions = (0..all).filter(|partition| !owned.contains(partition)).collect();
        Foreign { partitions, version }
    }

    /// Unless others have become the others meanwhile: the bell has rung then, they are asked for next.
    fn publish(&self, slowest: Option<Micros>, of: &Foreign) {
        {
            let mut facts = lock(&self.facts);
            if self.version.load(Ordering::Acquire) != of.version {
                return;
            }
            *facts = Some(Facts { slowest, asked: Instant::now() });
            self.version.fetch_add(1, Ordering::Release);
        }
        if self.waits.load(Ordering::Acquire)
            && let Some(inbox) = self.inbox.get()
        {
            inbox.wake();
        }
    }
}

/// All boards of a worker, and a bell for the task that fills them.
#[derive(Clone, Default)]
pub struct Boards {
    boards: Arc<RwLock<Vec<Arc<Board>>>>,
    bell: Arc<Notify>,
}

impl Boards {
    /// One more topic.
    pub fn add(&self, board: Arc<Board>) {
        self.boards.write().unwrap_or_else(PoisonError::into_inner).push(board);
    }

    /// A topic has so many partitions now: whoever had all of it may share it from here on.
    pub fn set_partitions(&self, board: &Board, count: i32) {
        if board.set_partitions(count) {
            self.bell.notify_one();
        }
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Board>> {
        self.boards.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// ---- the topic's thread --------------------------------------------------------------------------------------

/// The side of the topic's thread.
pub struct Align {
    board: Arc<Board>,
    bell: Arc<Notify>,
    stride: Stride,
    seen: u64,
    asked: Instant,
    /// The next event has to wait for others.
    held: bool,
    /// Others may be waiting for us.
    awaited: bool,
    /// Source time of the newest event that was seen.
    newest: Micros,
    counted: Instant,
}

impl Align {
    /// For the topic of this board.
    pub fn new(board: Arc<Board>, boards: &Boards) -> Self {
        let now = Instant::now();
        let bell = Arc::clone(&boards.bell);
        Align {
            board,
            bell,
            stride: Stride::new(STEP),
            seen: 0,
            asked: now,
            held: false,
            awaited: false,
            newest: Micros::MIN,
            counted: now,
        }
    }

    /// Whether late events were found to wait for their place here; asked once.
    pub fn take_late(&self) -> bool {
        self.board.late.load(Ordering::Relaxed) && self.board.late.swap(false, Ordering::AcqRel)
    }

    /// Whether the task's next event may be taken now; it then counts as taken.
    pub fn takes(&mut self, task: &Task) -> bool {
        // What only tells the image store what to forget is no reading ahead.
        if self.stride.is_free() || !task.caught_up() {
            return true;
        }
        let at = task.lane.turn().at();
        self.newest = self.newest.max(at);
        self.held = !self.stride.take(at);
        if self.held {
            self.set_waiting(true);
        }
        !self.held
    }

    /// Whether the last chunk ended because others are to come first: what is in hand is committed at once, since
    /// nothing is added to it and others may be waiting for it.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// The linger of a batch, if others may be waiting for it.
    pub fn linger(&self, usual: Duration) -> Duration {
        if self.awaited { usual.min(AWAITED_LINGER) } else { usual }
    }

    /// Tells who is ours, and takes what is new of the others; true = something was new.
    fn look(&mut self, tasks: &BTreeMap<i32, Task>) -> bool {
        let (owned, all) = (tasks.len(), self.board.partitions.load(Ordering::Relaxed));
        {
            let mut known = lock(&self.board.owned);
            if known.len() != owned || !tasks.keys().all(|partition| known.contains(partition)) {
                *known = tasks.keys().copied().collect();
                self.board.forget();
                self.bell.notify_one();
            }
        }
        if owned == 0 || i32::try_from(owned).is_ok_and(|owned| owned >= all) {
            self.free();
            return false;
        }
        let version = self.board.version.load(Ordering::Acquire);
        if version == self.seen {
            if !self.stride.is_free() && self.asked.elapsed() > STALE {
                self.free();
            }
            return false;
        }
        self.seen = version;
        let facts = *lock(&self.board.facts);
        self.asked = facts.map_or_else(Instant::now, |facts| facts.asked);
        let Some(facts) = facts else {
            self.stride.ask();
            return true;
        };
        let at_hand = tasks.values().filter_map(|task| task.lane.newest()).max();
        self.newest = self.newest.max(at_hand.unwrap_or(Micros::MIN));
        self.stride.see(facts.slowest, self.newest);
        true
    }

    fn free(&mut self) {
        self.stride.free();
        self.awaited = false;
    }

    fn set_waiting(&self, waits: bool) {
        self.set(&self.board.waits, waits);
    }

    fn set(&self, mark: &AtomicBool, now: bool) {
        if mark.swap(now, Ordering::AcqRel) != now && now {
            self.bell.notify_one();
        }
    }

    fn count(&mut self, tasks: &mut dyn Iterator<Item = &Task>, halted: usize) {
        if self.counted.elapsed() < SELDOM {
            return;
        }
        self.counted = Instant::now();
        let (mut restoring, mut ready) = (0, 0);
        tasks.for_each(|task| *if task.caught_up() { &mut ready } else { &mut restoring } += 1);
        let (running, waiting) = if self.held { (0, ready) } else { (ready, 0) };
        for (state, count) in self.board.tasks.iter().zip([restoring, running, waiting, halted]) {
            state.store(count, Ordering::Relaxed);
        }
    }
}

impl Group {
    /// Once before each chunk.
    pub(super) fn look_at_others(&mut self) {
        self.parts.align.count(&mut self.tasks.values(), self.resting.halted());
        let news = self.parts.align.look(&self.tasks);
        let much = self.tasks.values().map(|task| task.lane.len()).sum::<usize>() > MUCH;
        self.parts.align.set(&self.parts.align.board.busy, much);
        // The next event decides again.
        let was_held = std::mem::take(&mut self.parts.align.held);
        self.parts.align.set_waiting(was_held);
        if news || was_held {
            let floor = self.floor();
            let align = &mut self.parts.align;
            align.awaited = align.stride.is_behind(floor);
            if was_held && self.in_flight.is_none() && self.open.is_empty() {
                align.stride.step_again(floor);
            }
        }
    }

    /// Committed source time of the slowest of our partitions that have a backlog, as others see it.
    fn floor(&self) -> Micros {
        let topic = &self.parts.topic;
        let behind = self.tasks.values().filter(|task| {
            !task.lane.is_empty()
                || self.parts.consumer.high_watermark(topic, task.partition).is_none_or(|end| end > task.next)
        });
        let reached =
            behind.map(|task| task.committed_passage.passed().ts).map(|ts| if ts == 0 { Micros::MIN } else { ts });
        reached.min().unwrap_or(Micros::MAX)
    }
}

// ---- the background task -------------------------------------------------------------------------------------

/// What was seen of one partition of others, and since when it is so.
struct Watched {
    next: i64,
    since: Instant,
    counted: bool,
}

/// Asks on behalf of all topics, until it is dropped.
pub async fn watch(boards: Boards, kafka: KafkaSettings, sink: SinkSettings) {
    let mut watch = Watch {
        boards,
        kafka,
        sink,
        metadata: None,
        client: None,
        watched: HashMap::new(),
        ends: HashMap::new(),
        ends_asked: None,
        sessions: HashSet::new(),
        sessions_asked: None,
    };
    loop {
        let pause = watch.round().await;
        let _ = tokio::time::timeout(pause, watch.boards.bell.notified()).await;
    }
}

struct Watch {
    boards: Boards,
    kafka: KafkaSettings,
    sink: SinkSettings,
    metadata: Option<Arc<Metadata>>,
    client: Option<Client>,
    watched: HashMap<(i16, i32), Watched>,
    ends: HashMap<(i16, i32), i64>,
    /// When, and for which partitions.
    ends_asked: Option<(Instant, HashSet<(i16, i32)>)>,
    sessions: HashSet<String>,
    sessions_asked: Option<Instant>,
}

impl Watch {
    /// One round of questions; gives the pause until the next.
    async fn round(&mut self) -> Duration {
        let shared: Vec<(Arc<Board>, Foreign)> = self
            .boards
            .all()
            .into_iter()
            .map(|board| {
                let foreign = board.foreign();
                (board, foreign)
            })
            .filter(|(_, foreign)| !foreign.partitions.is_empty())
            .collect();
        if shared.is_empty() {
            self.watched.clear();
            self.client = None;
            self.ends_asked = None;
            // Until a board's owner rings.
            return Duration::from_secs(3600);
        }
        // Ends first: a place that was asked for later can only be nearer to them.
        self.ask_ends(&shared).await;
        let places = match self.ask_places(&shared).await {
            Ok(places) => places,
            Err(error) => {
                tracing::debug!(%error, "other workers' positions not known");
                self.client = None;
                return SELDOM;
            }
        };
        let (mut waits, mut busy) = (false, false);
        for (board, foreign) in &shared {
            let found = self.judge(board, &foreign.partitions, &places);
            waits |= board.waits.load(Ordering::Acquire);
            busy |= board.busy.load(Ordering::Acquire);
            board.publish(found.at, foreign);
        }
        if waits {
            WAITING
        } else if busy {
            BUSY
        } else {
            SELDOM
        }
    }

    async fn ask_ends(&mut self, shared: &[(Arc<Board>, Foreign)]) {
        let wanted: HashSet<(i16, i32)> = shared
            .iter()
            .flat_map(|(board, foreign)| foreign.partitions.iter().map(|p| (board.source_id, *p)))
            .collect();
        // What a busy topic has to wait for must not be taken for done because its end was asked for a while ago.
        let at_end = |of: &(i16, i32)| {
            let next = self.watched.get(of).map_or(0, |watched| watched.next);
            self.ends.get(of).is_none_or(|end| *end <= next)
        };
        let doubtful = shared
            .iter()
            .filter(|(board, _)| board.busy.load(Ordering::Acquire))
            .any(|(board, foreign)| foreign.partitions.iter().any(|partition| at_end(&(board.source_id, *partition))));
        let age = if doubtful { END_AGE } else { SELDOM };
        if self.ends_asked.as_ref().is_some_and(|(at, asked)| at.elapsed() < age && wanted.is_subset(asked)) {
            return;
        }
        let sources: HashMap<Arc<str>, i16> =
            shared.iter().map(|(board, _)| (Arc::clone(&board.topic), board.source_id)).collect();
        let partitions: Vec<TopicPartition> = shared
            .iter()
            .flat_map(|(board, foreign)| {
                foreign.partitions.iter().map(|p| TopicPartition::new(Arc::clone(&board.topic), *p))
            })
            .collect();
        let (kafka, metadata) = (self.kafka.clone(), self.metadata.take());
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = match metadata {
                Some(metadata) => metadata,
                None => Arc::new(Metadata::connect(&kafka)?),
            };
            Ok::<_, crate::kafka::KafkaError>((metadata.ends(&partitions, BROKER_TIME), metadata))
        })
        .await;
        self.ends_asked = Some((Instant::now(), wanted));
        match asked {
            Ok(Ok((ends, metadata))) => {
                self.metadata = Some(metadata);
                match ends {
                    Ok(ends) => {
                        self.ends = ends
                            .into_iter()
                            .filter_map(|(of, end)| Some(((*sources.get(&of.topic)?, of.partition), end)))
                            .collect();
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the ends of other workers' partitions are not known");
                        self.ends.clear();
                    }
                }
            }
            Ok(Err(error)) => tracing::debug!(%error, "no client to ask for ends"),
            Err(error) => tracing::debug!(%error, "ends not asked for"),
        }
    }

    async fn ask_places(&mut self, shared: &[(Arc<Board>, Foreign)]) -> Result<Vec<Place>, String> {
        let client = match &mut self.client {
            Some(client) if !client.is_closed() => client,
            slot => slot.insert(self.sink.connect().await.map_err(|error| error.to_string())?),
        };
        let sources: Vec<i16> = shared.iter().map(|(board, _)| board.source_id).collect();
        let bounded = tokio::time::timeout(STALE, async {
            if self.sessions_asked.is_none_or(|asked| asked.elapsed() > SELDOM) {
                self.sessions = workers(client).await?.into_iter().collect();
                self.sessions_asked = Some(Instant::now());
            }
            places(client, &sources).await
        });
        let answer = bounded.await.map_err(|_| "the sink does not answer".to_owned())?;
        answer.map_err(|error| describe(&error))
    }

    fn judge(&mut self, board: &Board, foreign: &[i32], places: &[Place]) -> Slowest {
        let now = Instant::now();
        let mut others = Vec::with_capacity(foreign.len());
        for partition in foreign {
            let place = places.iter().find(|place| (place.source_id, place.partition) == (board.source_id, *partition));
            let next = place.map_or(0, |place| place.next);
            let of = (board.source_id, *partition);
            let watched = self.watched.entry(of).or_insert(Watched { next, since: now, counted: false });
            // Only commits count. A partition that is claimed again and again without one would hold everybody up.
            if watched.next != next {
                *watched = Watched { next, since: now, counted: false };
            }
            let worker = place.and_then(|place| place.worker.as_deref());
            others.push(Other {
                partition: *partition,
                source_at: place.and_then(|place| place.source_at),
                // A broker that does not tell must not let anybody run ahead.
                backlog: self.ends.get(&of).is_none_or(|end| *end > next),
                owned: worker.is_some_and(|worker| worker == self.sink.worker || self.sessions.contains(worker)),
                unchanged: Micros::try_from(now.duration_since(watched.since).as_micros()).unwrap_or(Micros::MAX),
            });
        }
        let found = slowest(&others);
        let waits = board.waits.load(Ordering::Acquire);
        for partition in &found.left_behind {
            if let Some(watched) = self.watched.get_mut(&(board.source_id, *partition))
                && waits
                && !watched.counted
            {
                watched.counted = true;
                counter!(names::LEFT_BEHIND, "topic" => board.topic.to_string()).increment(1);
                tracing::warn!(topic = %board.topic, partition, "not waited for any longer: its owner commits nothing");
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::postgres::claim::Claim;

    fn task(partition: i32) -> (i32, Task) {
        let claim = Claim::first(partition + 1, partition);
        (partition, Task::new(&claim, 0, None))
    }

    fn board() -> Arc<Board> {
        Board::new("calm.emea.account".into(), 1, 4, Arc::new(OnceLock::new()))
    }

    #[test]
    fn nothing_is_taken_until_the_places_of_those_who_are_others_now_are_known() {
        let board = board();
        let mut align = Align::new(Arc::clone(&board), &Boards::default());
        let mut tasks = BTreeMap::from([task(0)]);
        align.look(&tasks);
        assert!(!align.takes(&tasks[&0]), "nothing is known");
        let foreign = board.foreign();
        assert_eq!(foreign.partitions, [1, 2, 3]);
        board.publish(Some(5), &foreign);
        align.look(&tasks);
        assert!(align.takes(&tasks[&0]));

        let before = board.foreign();
        tasks.extend([task(1)]);
        align.look(&tasks);
        board.publish(Some(5), &before);
        align.look(&tasks);
        assert!(!align.takes(&tasks[&0]), "asked for when the others were others");
        board.publish(Some(5), &board.foreign());
        align.look(&tasks);
        assert!(align.takes(&tasks[&0]));

        board.set_partitions(6);
        align.look(&tasks);
        assert!(!align.takes(&tasks[&0]), "two more");
        tasks.extend([task(2), task(3), task(4), task(5)]);
        align.look(&tasks);
        assert!(align.takes(&tasks[&0]), "all are ours");
    }
}
