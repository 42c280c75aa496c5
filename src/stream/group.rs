//! The tasks of one topic on this worker: one thread that reads their partitions in source time order, judges
//! event after event, and keeps one batch open while the one before it is being committed.
//!
//! ```text
//!            claimed                  revoked, fenced
//!  (none) ───────────▶ catching up ─▶ running ─────────▶ closed
//!                          ▲             │ commit failed or undone
//!                          └── rewind ◀──┘
//! ```
//! Whatever goes wrong ends in one of two moves (protocol D3, D4):
//! - **rewind**: drop the overlay and the open batch, read again from the committed positions;
//! - **claim again**: give the partitions up and claim them anew. That waits for a transaction whose outcome is
//!   unknown, and the image store catches up with whatever it did.
//!
//! The batch after the one in flight is built on its overlay, and is sent only once that one is *known* to be
//! committed: pipelining depth is one.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_postgres::Client;
use uuid::Uuid;

use super::committer::{Committers, Request, pause_after};
use super::dictionary::Dictionary;
use super::images::Images;
use super::merge::{Turn, next};
use super::task::{Task, Waiting};
use crate::core::batch::{OpenBatch, SealedBatch};
use crate::core::decode::Decoder;
use crate::core::event::Micros;
use crate::core::format::VersionOp;
use crate::core::judge::SideHashes;
use crate::core::overlay::Overlay;
use crate::core::position::{Counter, PositionId};
use crate::kafka::{Consumer, FaultKind, Inbox, Message, TopicPartition};
use crate::postgres::client::SinkSettings;
use crate::postgres::commit::{CommitError, Committed};
use crate::postgres::registry::Source;
use crate::telemetry::names;

/// Messages that wait for their turn, per partition.
const LANE: usize = 4_000;
/// Messages judged between two looks at commands and commits.
pub(super) const CHUNK: usize = 1_000;
/// How long a partition with nothing buffered is waited for.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same before its first message: the first fetch takes longer.
const FIRST_PATIENCE: Duration = Duration::from_secs(5);
/// A batch that changed nothing is committed after this long, for the position's sake.
const IDLE_LINGER: Duration = Duration::from_secs(1);
/// How long a fenced partition rests before it is claimed again, if the group still says it is ours.
const REST: Duration = Duration::from_secs(3);

/// Limits of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Rows.
    pub rows: usize,
    /// Bytes.
    pub bytes: usize,
    /// Time since its first event.
    pub linger: Duration,
}

/// What the ownership callbacks and the supervisor ask of a group.
pub enum Command {
    /// Partitions that were claimed.
    Assigned(Vec<Task>),
    /// Partitions to let go; answered when it is done.
    Revoked {
        /// Which.
        partitions: Vec<i32>,
        /// They are gone already: nothing can be committed for them any more.
        lost: bool,
        /// Answered when nothing of them is in hand.
        done: mpsc::SyncSender<()>,
    },
    /// Commit what is in hand, then end the thread.
    Stop,
}

/// What a group is made of.
pub struct Parts {
    /// The topic's numbers.
    pub source: Source,
    /// Topic.
    pub topic: Arc<str>,
    /// Sink.
    pub sink: SinkSettings,
    /// Which sink that is.
    pub sink_id: Uuid,
    /// Local records.
    pub images: Images,
    /// Where batches go.
    pub committers: Committers,
    /// Asks.
    pub commands: mpsc::Receiver<Command>,
    /// Messages.
    pub inbox: Arc<Inbox>,
    /// Group member.
    pub consumer: Consumer,
    /// Decoder, with the object's known columns.
    pub decoder: Decoder,
    /// Fields.
    pub dictionary: Dictionary,
    /// Limits.
    pub limits: BatchLimits,
    /// For database calls from this thread.
    pub runtime: Handle,
}

struct InFlight {
    batch: Arc<SealedBatch>,
    answer: oneshot::Receiver<Result<Committed, CommitError>>,
}

/// See the module.
pub struct Group {
    pub(super) parts: Parts,
    pub(super) reader: Option<Client>,
    pub(super) tasks: BTreeMap<i32, Task>,
    pub(super) overlay: Overlay,
    pub(super) open: OpenBatch,
    pub(super) side: SideHashes,
    opened: Option<Instant>,
    in_flight: Option<InFlight>,
    waiting_since: Option<Instant>,
    failures: u32,
    resting: Vec<(Instant, TopicPartition)>,
    stopping: bool,
    pub(super) views_stale: bool,
    pub(super) warned_types: bool,
    messages: Vec<Message>,
    postponed: Vec<Command>,
}

/// The thread must end; nothing can be done any more.
#[derive(Debug)]
pub(super) struct Ended;

impl Group {
    /// Over its parts; `run` does the work.
    pub fn new(parts: Parts) -> Self {
        Group {
            parts,
            reader: None,
            tasks: BTreeMap::new(),
            overlay: Overlay::default(),
            open: OpenBatch::new(1),
            side: SideHashes::default(),
            opened: None,
            in_flight: None,
            waiting_since: None,
            failures: 0,
            resting: Vec::new(),
            stopping: false,
            views_stale: true,
            warned_types: false,
            messages: Vec::new(),
            postponed: Vec::new(),
        }
    }

    /// Works until told to stop, or until the supervisor is gone.
    pub fn run(mut self) {
        while !self.stopping {
            self.obey();
            self.settle_in_flight();
            self.read();
            self.obey();
            self.reclaim_rested();
            let taken = self.work();
            self.seal_if_due();
            if taken == 0 {
                self.wait();
            }
        }
        self.finish(Instant::now() + Duration::from_secs(6));
    }

    // ---- asks -------------------------------------------------------------------------------------------

    fn obey(&mut self) {
        loop {
            let command = if self.postponed.is_empty() {
                self.parts.commands.try_recv()
            } else {
                Ok(self.postponed.remove(0))
            };
            match command {
                Ok(Command::Assigned(tasks)) => self.assigned(tasks),
                Ok(Command::Revoked { partitions, lost, done }) => {
                    self.revoked(&partitions, lost);
                    let _ = done.send(());
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    self.stopping = true;
                    return;
                }
                Err(mpsc::TryRecvError::Empty) => return,
            }
        }
    }

    fn assigned(&mut self, tasks: Vec<Task>) {
        self.messages.retain(|message| tasks.iter().all(|task| task.partition != message.partition));
        if tasks.iter().any(|task| self.tasks.contains_key(&task.partition)) {
            // Claimed twice: what is open was built under the older claim.
            for task in &tasks {
                self.tasks.remove(&task.partition);
            }
            self.in_flight = None;
            self.rewind("a partition was claimed again");
        }
        for task in tasks {
            tracing::info!(
                topic = %self.parts.topic, partition = task.partition, epoch = task.epoch, next = task.next, "claimed"
            );
            self.tasks.insert(task.partition, task);
        }
    }

    fn revoked(&mut self, partitions: &[i32], lost: bool) {
        let ours = partitions.iter().any(|partition| self.tasks.contains_key(partition));
        if ours && !lost {
            self.finish(Instant::now() + Duration::from_millis(1500));
        }
        let unsettled = ours && (self.in_flight.is_some() || !self.open.is_empty());
        self.messages.retain(|message| !partitions.contains(&message.partition));
        for partition in partitions {
            if self.tasks.remove(partition).is_some() {
                tracing::info!(topic = %self.parts.topic, partition, lost, "given up");
            }
        }
        if unsettled {
            // The batch in hand speaks for partitions that are no longer ours.
            self.claim_again("a batch was in hand when partitions were revoked");
        }
    }

    /// Commits what is in hand, if that can be done in time.
    fn finish(&mut self, deadline: Instant) {
        loop {
            self.settle_in_flight();
            if self.in_flight.is_none() {
                if self.open.is_empty() {
                    return;
                }
                self.seal();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.await_in_flight(left);
        }
    }

    fn reclaim_rested(&mut self) {
        let now = Instant::now();
        let (rested, resting): (Vec<_>, Vec<_>) = self.resting.drain(..).partition(|(until, _)| *until <= now);
        self.resting = resting;
        if !rested.is_empty() {
            let partitions: Vec<TopicPartition> = rested.into_iter().map(|(_, partition)| partition).collect();
            self.parts.consumer.reclaim(&partitions);
        }
    }

    // ---- reading ----------------------------------------------------------------------------------------

    fn read(&mut self) {
        let Group { parts, tasks, messages, .. } = self;
        parts.inbox.drain_with(messages, CHUNK * 2, Duration::ZERO, |partition| {
            tasks.get(&partition).map_or(0, |task| LANE.saturating_sub(task.lane.len()))
        });
        count_messages(&parts.topic, messages);
        for message in messages.drain(..) {
            let Some(task) = tasks.get_mut(&message.partition) else { continue };
            task.delivered = true;
            task.left_behind = false;
            let peeked = parts.decoder.peek(message.key.as_deref(), message.payload.as_deref());
            let turn = match peeked.ts() {
                Some(ts) => Turn::new(Some(ts), peeked.lsn(), peeked.is_delete()),
                None => Turn::AT_ONCE,
            };
            task.lane.push(turn, Waiting { message, peeked });
        }
        for fault in self.parts.inbox.take_faults() {
            tracing::error!(
                topic = %self.parts.topic, partition = fault.partition, offset = fault.offset, reason = %fault.reason,
                "the broker does not deliver"
            );
            if fault.kind == FaultKind::OutOfRange {
                // Claiming again looks at what the broker still has and records the gap.
                self.close_and_rest(&[fault.partition]);
            }
        }
    }

    /// Whether some partition that has more on its way has to be heard before the next event is chosen.
    fn must_wait(&mut self) -> bool {
        let parts = &self.parts;
        let missing = |task: &&mut Task| {
            if !task.lane.is_empty() || task.left_behind {
                return false;
            }
            let at_end = match parts.inbox.progress(task.partition) {
                Some(progress) => {
                    progress.end.is_some()
                        || (task.delivered
                            && parts.consumer.high_watermark(&parts.topic, task.partition) == Some(progress.next))
                }
                None => true,
            };
            !at_end
        };
        let mut silent: Vec<&mut Task> = self.tasks.values_mut().filter(missing).collect();
        if silent.is_empty() {
            self.waiting_since = None;
            return false;
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let patience = if silent.iter().any(|task| !task.delivered) { FIRST_PATIENCE } else { PATIENCE };
        if since.elapsed() < patience {
            return true;
        }
        for task in &mut silent {
            task.left_behind = true;
        }
        counter!(names::LEFT_BEHIND, "topic" => self.parts.topic.to_string()).increment(silent.len() as u64);
        self.waiting_since = None;
        false
    }

    /// Judges up to a chunk of events in order; returns how many messages it took.
    fn work(&mut self) -> usize {
        if self.full() && self.in_flight.is_some() {
            self.await_in_flight(Duration::from_millis(50));
            return 1;
        }
        let mut chunk = Vec::new();
        let wait = self.must_wait();
        while chunk.len() < CHUNK && !wait {
            let Some(partition) = next(self.tasks.iter().map(|(partition, task)| (*partition, &task.lane))) else {
                break;
            };
            let Some(task) = self.tasks.get_mut(&partition) else { break };
            if let Some(waiting) = task.lane.pop() {
                chunk.push((partition, waiting));
            }
            if task.lane.is_empty() {
                // More of it may be on its way: look before choosing on.
                break;
            }
        }
        if chunk.is_empty() {
            self.pass_tails();
        }
        let taken = chunk.len();
        if taken > 0 {
            if self.opened.is_none() {
                self.opened = Some(Instant::now());
            }
            if self.process(chunk).is_err() {
                self.stopping = true;
            }
        }
        taken
    }

    /// Moves positions over control records at their partition's tail, or the lag would never reach zero.
    fn pass_tails(&mut self) {
        for task in self.tasks.values_mut().filter(|task| task.lane.is_empty()) {
            let Some(end) = self.parts.inbox.progress(task.partition).and_then(|progress| progress.end) else {
                continue;
            };
            if task.read < task.catch_up_to {
                task.read = end.min(task.catch_up_to);
            }
            if end > task.read {
                self.open.advance_over_hole(&task.start(), end);
                task.read = end;
                self.opened.get_or_insert_with(Instant::now);
            }
        }
    }

    fn wait(&mut self) {
        if self.in_flight.is_some() {
            self.await_in_flight(Duration::from_millis(20));
            return;
        }
        let wait = match self.opened {
            Some(opened) => self.linger().saturating_sub(opened.elapsed()).min(PATIENCE),
            None if self.waiting_since.is_some() => Duration::from_millis(20),
            None => PATIENCE,
        };
        if wait.is_zero() {
            return;
        }
        // Only to sleep until something comes: `read` takes it, into the right lane.
        let Group { parts, tasks, messages, .. } = self;
        parts.inbox.drain_with(messages, 1, wait, |partition| {
            usize::from(tasks.get(&partition).is_some_and(|task| task.lane.len() < LANE))
        });
    }

    // ---- batches ----------------------------------------------------------------------------------------

    fn full(&self) -> bool {
        self.open.rows() >= self.parts.limits.rows || self.open.bytes() >= self.parts.limits.bytes
    }

    fn linger(&self) -> Duration {
        if self.open.rows() == 0 { IDLE_LINGER } else { self.parts.limits.linger }
    }

    fn seal_if_due(&mut self) {
        let due = self.full() || self.opened.is_some_and(|opened| opened.elapsed() >= self.linger());
        if due && self.in_flight.is_none() && !self.open.is_empty() {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let after = OpenBatch::new(self.open.number() + 1);
        let open = std::mem::replace(&mut self.open, after);
        self.opened = None;
        histogram!(names::BATCH_EVENTS).record(open.events() as f64);
        histogram!(names::BATCH_ROWS).record(open.rows() as f64);
        let source = &self.parts.source;
        let batch = Arc::new(open.seal(&mut self.overlay, source.source_id, source.object_id));
        let (answer, receiver) = oneshot::channel();
        let inbox = Arc::clone(&self.parts.inbox);
        self.parts.committers.send(Request {
            batch: Arc::clone(&batch),
            held: self.tasks.values().map(|task| (task.position_id, task.held())).collect(),
            answer,
            done: Arc::new(move || inbox.wake()),
        });
        self.in_flight = Some(InFlight { batch, answer: receiver });
    }

    fn await_in_flight(&mut self, most: Duration) {
        let Some(mut in_flight) = self.in_flight.take() else { return };
        let result = self.parts.runtime.block_on(async { tokio::time::timeout(most, &mut in_flight.answer).await });
        match result {
            Err(_) => self.in_flight = Some(in_flight),
            Ok(answer) => self.settled(in_flight.batch, answer.ok()),
        }
    }

    fn settle_in_flight(&mut self) {
        let Some(mut in_flight) = self.in_flight.take() else { return };
        match in_flight.answer.try_recv() {
            Ok(answer) => self.settled(in_flight.batch, Some(answer)),
            Err(oneshot::error::TryRecvError::Closed) => self.settled(in_flight.batch, None),
            Err(oneshot::error::TryRecvError::Empty) => self.in_flight = Some(in_flight),
        }
    }

    /// The outcome of a commit is known, or known to be unknown (`None`).
    fn settled(&mut self, batch: Arc<SealedBatch>, answer: Option<Result<Committed, CommitError>>) {
        match answer {
            Some(Ok(committed)) => {
                self.failures = 0;
                self.committed(&batch, committed);
            }
            None => self.claim_again("the outcome of a commit is unknown"),
            Some(Err(error @ CommitError::Unknown(_))) => {
                self.pause(&error.to_string());
                self.claim_again(&error.to_string());
            }
            Some(Err(CommitError::Fenced { positions, detail })) => {
                tracing::warn!(topic = %self.parts.topic, %detail, "fenced: another worker holds a partition");
                let fenced: Vec<i32> = self
                    .tasks
                    .values()
                    .filter(|task| positions.is_empty() || positions.contains(&task.position_id))
                    .map(|task| task.partition)
                    .collect();
                self.close_and_rest(&fenced);
            }
            Some(Err(CommitError::Rewind { reason, known })) => {
                self.take_known(known);
                self.pause(&reason);
                self.rewind(&reason);
            }
            Some(Err(error @ (CommitError::Again(_) | CommitError::Refused(_)))) => {
                tracing::error!(topic = %self.parts.topic, %error, "the sink refuses a batch; trying again");
                self.pause(&error.to_string());
                self.rewind(&error.to_string());
            }
        }
    }

    fn pause(&mut self, reason: &str) {
        self.failures += 1;
        if self.failures > 1 {
            let pause = pause_after(self.failures - 1);
            tracing::warn!(topic = %self.parts.topic, failures = self.failures, ?pause, reason, "no progress");
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stopping {
                match self.parts.commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Command::Assigned(tasks)) => self.assigned(tasks),
                    Ok(Command::Revoked { partitions, done, .. }) => {
                        // What was in hand has failed: there is nothing left to commit for them.
                        self.tasks.retain(|partition, _| !partitions.contains(partition));
                        let _ = done.send(());
                    }
                    Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => self.stopping = true,
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                }
            }
        }
    }

    /// Waits for the sink to come back, obeying meanwhile; true = stop.
    pub(super) fn interrupted(&mut self, pause: Duration) -> bool {
        match self.parts.commands.recv_timeout(pause) {
            Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => self.stopping = true,
            // Not now: the answer can wait until the sink answers, within the asker's own bound.
            Ok(command) => self.postponed.push(command),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        self.stopping
    }

    fn take_known(&mut self, known: Committed) {
        for task in self.tasks.values_mut() {
            if let Some(seq) = known.inval_seq.get(&task.position_id) {
                task.inval_seq = *seq;
            }
        }
        if !known.invalidated.is_empty() {
            let marks: Vec<_> = self.tasks.values().map(|task| task.mark(self.parts.sink_id)).collect();
            let applied = self.parts.images.apply(self.parts.source.object_id, &[], &known.invalidated, marks);
            self.check_store(applied.map_err(|error| error.to_string()));
        }
    }

    fn committed(&mut self, batch: &SealedBatch, committed: Committed) {
        let mut offsets = Vec::with_capacity(batch.advances.len());
        let mut moved: Vec<PositionId> = committed.inval_seq.keys().copied().collect();
        for advance in &batch.advances {
            moved.push(advance.position_id);
            let Some(task) = self.tasks.values_mut().find(|task| task.position_id == advance.position_id) else {
                continue;
            };
            task.next = advance.to;
            task.committed_passed = advance.passed;
            offsets.push((TopicPartition::new(Arc::clone(&self.parts.topic), task.partition), advance.to));
            let labels = [("topic", self.parts.topic.to_string()), ("partition", task.partition.to_string())];
            gauge!(names::POSITION, &labels).set(advance.to as f64);
            if let Some(end) = self.parts.consumer.high_watermark(&self.parts.topic, task.partition) {
                gauge!(names::LAG, &labels).set((end - advance.to).max(0) as f64);
            }
            count_outcomes(&self.parts.topic, &advance.counters);
        }
        for task in self.tasks.values_mut() {
            if let Some(seq) = committed.inval_seq.get(&task.position_id) {
                task.inval_seq = *seq;
            }
        }
        let sink_id = self.parts.sink_id;
        let marks: Vec<_> = self
            .tasks
            .values()
            .filter(|task| moved.contains(&task.position_id))
            .map(|task| task.mark(sink_id))
            .collect();
        let applied =
            self.parts.images.apply(self.parts.source.object_id, &batch.records, &committed.invalidated, marks);
        self.check_store(applied.map_err(|error| error.to_string()));
        self.overlay.committed(batch.number);
        count_versions(&self.parts.topic, batch);
        if let Some(at) = batch.advances.iter().map(|advance| advance.passed.ts).max().filter(|at| *at > 0) {
            let seconds = (Self::now() - at).max(0) as f64 / 1e6;
            histogram!(names::EVENT_TO_COMMIT).record(seconds);
        }
        self.parts.consumer.commit_offsets(&offsets);
    }

    /// The image store is a cache: if it cannot be written it is of no use, but nothing is lost.
    fn check_store(&mut self, result: Result<(), String>) {
        if let Err(error) = result {
            tracing::error!(
                %error,
                "the image store cannot be written: free space under its directory, or start again with an empty one"
            );
            self.stopping = true;
        }
    }

    /// Everything since the last commit is void; read again from there (D3).
    fn rewind(&mut self, reason: &str) {
        counter!(names::REWINDS, "reason" => "error").increment(1);
        tracing::debug!(topic = %self.parts.topic, reason, "rewinding");
        self.drop_open();
        let mut offsets = Vec::with_capacity(self.tasks.len());
        for task in self.tasks.values_mut() {
            // A task that was still catching up has judged nothing, but what it passed is forgotten already.
            task.rewind();
            offsets.push((TopicPartition::new(Arc::clone(&self.parts.topic), task.partition), task.next));
        }
        if let Err(error) = self.parts.consumer.rewind(&offsets) {
            tracing::warn!(topic = %self.parts.topic, %error, "some partitions were revoked while rewinding");
        }
    }

    fn drop_open(&mut self) {
        self.overlay.clear();
        self.open = OpenBatch::new(self.open.number() + 1);
        self.opened = None;
        self.in_flight = None;
        self.waiting_since = None;
        self.messages.clear();
    }

    /// Gives all partitions up and has them claimed again (D4).
    fn claim_again(&mut self, reason: &str) {
        tracing::warn!(topic = %self.parts.topic, reason, "claiming again");
        counter!(names::REWINDS, "reason" => "claimed").increment(1);
        self.drop_open();
        let partitions: Vec<TopicPartition> = std::mem::take(&mut self.tasks)
            .into_keys()
            .map(|partition| TopicPartition::new(Arc::clone(&self.parts.topic), partition))
            .collect();
        self.parts.consumer.release(&partitions);
        self.parts.consumer.reclaim(&partitions);
    }

    /// Closes some tasks, to be claimed again later if they are still ours; the others rewind.
    fn close_and_rest(&mut self, partitions: &[i32]) {
        let mut closed = Vec::new();
        for partition in partitions {
            if self.tasks.remove(partition).is_some() {
                closed.push(TopicPartition::new(Arc::clone(&self.parts.topic), *partition));
            }
        }
        self.parts.consumer.release(&closed);
        let until = Instant::now() + REST;
        self.resting.extend(closed.into_iter().map(|partition| (until, partition)));
        self.rewind("a task of this topic was closed");
    }

    /// Our clock.
    pub(super) fn now() -> Micros {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

fn count_versions(topic: &str, batch: &SealedBatch) {
    let mut by_op: BTreeMap<&'static str, u64> = BTreeMap::new();
    let first = batch.keyframes.iter().chain(&batch.keyframes_after).filter(|row| row.kf == 0);
    for row in batch.deltas.iter().chain(&batch.deltas_after).chain(first) {
        if let Some(op) = row.d.first().and_then(|byte| VersionOp::from_number(byte & 7)) {
            *by_op.entry(op.as_str()).or_default() += 1;
        }
    }
    for (op, count) in by_op {
        counter!(names::DELTAS_WRITTEN, "op" => op).increment(count);
    }
    let taken = batch.registry.iter().filter(|change| change.taken_from.is_some()).count();
    if taken > 0 {
        counter!(names::TAKE_OVERS, "topic" => topic.to_string()).increment(taken as u64);
    }
}

fn count_messages(topic: &str, messages: &[Message]) {
    if messages.is_empty() {
        return;
    }
    let mut by_partition: BTreeMap<i32, u64> = BTreeMap::new();
    let mut bytes = 0;
    for message in messages {
        *by_partition.entry(message.partition).or_default() += 1;
        bytes += message.key.as_ref().map_or(0, Vec::len) + message.payload.as_ref().map_or(0, Vec::len);
    }
    for (partition, count) in by_partition {
        counter!(names::MESSAGES_CONSUMED, "topic" => topic.to_string(), "partition" => partition.to_string())
            .increment(count);
    }
    counter!(names::BYTES_CONSUMED, "topic" => topic.to_string()).increment(bytes as u64);
}

fn count_outcomes(topic: &str, counters: &crate::core::position::Counters) {
    let noops = counters.get(Counter::Noop) + counters.get(Counter::NoopStatus) + counters.get(Counter::NoopSystem);
    if noops > 0 {
        counter!(names::OUTCOMES, "topic" => topic.to_string(), "outcome" => "noop").increment(noops as u64);
    }
    let stale = counters.get(Counter::Stale);
    if stale > 0 {
        counter!(names::STALE_EVENTS, "topic" => topic.to_string()).increment(stale as u64);
    }
    for (outcome, which) in [
        ("delta", Counter::Delta),
        ("baseline", Counter::Baseline),
        ("duplicate", Counter::Duplicate),
        ("stale", Counter::Stale),
        ("tombstone", Counter::Tombstone),
        ("ignored", Counter::Ignored),
        ("pending", Counter::Pending),
        ("dead_letter", Counter::Dead),
        ("delete_unknown", Counter::DeleteUnknown),
        ("hole", Counter::Hole),
    ] {
        let n = counters.get(which);
        if n > 0 {
            counter!(names::OUTCOMES, "topic" => topic.to_string(), "outcome" => outcome).increment(n as u64);
        }
    }
    for (reason, which) in
        [("identical", Counter::Noop), ("status", Counter::NoopStatus), ("system", Counter::NoopSystem)]
    {
        let n = counters.get(which);
        if n > 0 {
            counter!(names::NOOPS_DROPPED, "reason" => reason).increment(n as u64);
        }
    }
}

/// Shared between the supervisor and the ownership callbacks: a topic's inbox, once the consumer has made it.
pub type InboxCell = Arc<OnceLock<Arc<Inbox>>>;
