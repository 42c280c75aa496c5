//! What follows from a commit's outcome: the image store and the positions move on, or the group goes back.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use metrics::{counter, gauge, histogram};

use super::applying::Applying;
use super::committer::pause_after;
use super::group::{Command, Group, Parts};
use super::lasting::Lasting;
use super::tally::{count_outcomes, count_versions};
use crate::core::batch::{OpenBatch, SealedBatch};
use crate::core::lineage::{Fingerprint, Pin};
use crate::core::position::PositionId;
use crate::core::record::key_hash;
use crate::kafka::TopicPartition;
use crate::postgres::client::{describe, is_full, kind};
use crate::postgres::commit::{CommitError, Committed};
use crate::telemetry::names;

/// How long a fenced partition rests before it is claimed again, if the group still says it is ours.
pub(super) const REST: Duration = Duration::from_secs(3);
/// Positions and lags are shown this often.
const SHOW: Duration = Duration::from_millis(500);

impl Group {
    /// The outcome of a commit is known, or known to be unknown (`None`).
    pub(super) fn settled(&mut self, batch: Arc<SealedBatch>, answer: Option<Result<Committed, CommitError>>) {
        match answer {
            Some(Ok(committed)) => {
                self.failures = 0;
                self.trouble_is_over();
                self.committed(batch, committed);
            }
            None => self.claim_again("the outcome of a commit is unknown"),
            Some(Err(error)) => self.failed(error),
        }
    }

    /// A commit was refused, or its outcome is unknown.
    pub(super) fn failed(&mut self, error: CommitError) {
        match error {
            error @ (CommitError::Unknown(_) | CommitError::Silent(_)) => {
                self.pause(&error.to_string());
                self.claim_again(&error.to_string());
            }
            CommitError::Fenced { positions, detail } => self.fenced(&positions, &detail),
            CommitError::Rewind { reason, known } => {
                self.take_known(known);
                self.pause(&reason);
                self.rewind(&reason);
            }
            CommitError::Again(error) | CommitError::Refused(error) => {
                self.tell_refusal("a batch", &error);
                self.pause(&kind(&error));
                self.rewind(&describe(&error));
            }
        }
    }

    /// The sink has refused something and is going to be asked again: for as long as it takes, so it is told now and then.
    pub(super) fn tell_refusal(&mut self, what: &str, error: &crate::postgres::Error) {
        let (topic, reason) = (Arc::clone(&self.parts.topic), describe(error));
        let tell = Lasting::tell(&mut self.trouble, &kind(error), Instant::now());
        if is_full(error) {
            self.parts.beat.health().sink_full(Some(format!("the sink's disk is full: {reason}")));
            if tell {
                tracing::error!(
                    %topic, error = %reason,
                    "the sink's disk is full: nothing of this topic is committed until there is room, and nothing is lost. \
                     Free or add space under PostgreSQL and it goes on by itself"
                );
            }
        } else if tell {
            tracing::error!(%topic, error = %reason, "the sink refuses {what}; trying again");
        }
    }

    /// The sink takes what this topic writes.
    fn trouble_is_over(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            self.parts.beat.health().sink_full(None);
            tracing::info!(topic = %self.parts.topic, after = ?trouble.since(), "the sink takes batches again");
        }
    }

    pub(super) fn pause(&mut self, reason: &str) {
        // Partitions may be let go meanwhile.
        self.await_applying();
        self.failures += 1;
        if self.failures > 1 {
            let pause = pause_after(self.failures - 1);
            if Lasting::tell(&mut self.trouble, reason, Instant::now()) {
                tracing::warn!(topic = %self.parts.topic, failures = self.failures, ?pause, reason, "no progress");
            }
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stopping {
                self.parts.beat.now();
                match self.parts.commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok(Command::Assigned(tasks)) => self.assigned(tasks),
                    Ok(Command::Revoked { partitions, done, .. }) => {
                        // What was in hand has failed: there is nothing left to commit for them.
                        self.tasks.retain(|partition, _| !partitions.contains(partition));
                        self.resting.forget(&partitions);
                        let _ = done.send(());
                    }
                    // It is fenced off: its next commit fails, and has it claimed again.
                    Ok(Command::Reclaim(_)) => {}
                    Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => self.stopping = true,
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                }
            }
        }
    }

    /// Waits for the sink to come back, obeying meanwhile; true = stop.
    pub(super) fn interrupted(&mut self, pause: Duration) -> bool {
        self.parts.beat.now();
        match self.parts.commands.recv_timeout(pause) {
            Ok(Command::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => self.stopping = true,
            // Not now: the answer can wait until the sink answers, within the asker's own bound.
            Ok(command) => self.postponed.push(command),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        self.stopping
    }

    pub(super) fn take_known(&mut self, known: Committed) {
        for task in self.tasks.values_mut() {
            if let Some(seq) = known.inval_seq.get(&task.position_id) {
                task.inval_seq = *seq;
            }
        }
        for gone in &known.invalidated {
            self.front.forget(key_hash(gone.object_id, &gone.identity));
        }
        if let Some(restore) = &mut self.restore {
            restore.changed(self.parts.source.object_id, known.invalidated.iter().map(|gone| &*gone.identity));
        }
        self.await_applying();
        if !known.invalidated.is_empty() {
            // A mark says that the store is level with the sink: not of one that still catches up.
            let level = self.tasks.values().filter(|task| task.caught_up());
            let marks: Vec<_> = level.map(|task| task.mark(self.parts.sink_id)).collect();
            let applied = self.parts.images.apply(self.parts.source.object_id, &[], &known.invalidated, marks);
            match applied {
                Ok(written) => self.outdated |= !written,
                Err(error) => self.check_store(Err(error.to_string())),
            }
        }
    }

    fn committed(&mut self, batch: Arc<SealedBatch>, committed: Committed) {
        let mut offsets = Vec::with_capacity(batch.advances.len());
        let mut moved: Vec<PositionId> = committed.inval_seq.keys().copied().collect();
        for advance in &batch.advances {
            moved.push(advance.position_id);
            let Some(task) = self.tasks.values_mut().find(|task| task.position_id == advance.position_id) else {
                continue;
            };
            task.next = advance.to;
            task.committed_passage.clone_from(&advance.passage);
            let of = TopicPartition::new(Arc::clone(&self.parts.topic), task.partition);
            if let Some((offset, timestamp_ms, hash)) = advance.last {
                let message = Fingerprint { offset, timestamp_ms, hash };
                let pin = Pin { message, passed: advance.passage.passed() };
                self.parts.logs.committed(&of, advance.epoch, pin);
            }
            offsets.push((of, advance.to));
            count_outcomes(&self.parts.topic, &advance.counters);
        }
        for task in self.tasks.values_mut() {
            if let Some(seq) = committed.inval_seq.get(&task.position_id) {
                task.inval_seq = *seq;
            }
        }
        for gone in &committed.invalidated {
            self.front.forget(key_hash(gone.object_id, &gone.identity));
        }
        if let Some(restore) = &mut self.restore {
            let gone = committed.invalidated.iter().map(|gone| &*gone.identity);
            restore.changed(batch.object_id, batch.records.iter().map(|one| &*one.identity).chain(gone));
        }
        self.await_applying();
        let sink_id = self.parts.sink_id;
        let marks: Vec<_> = self
            .tasks
            .values()
            .filter(|task| moved.contains(&task.position_id) && task.caught_up())
            .map(|task| task.mark(sink_id))
            .collect();
        if committed.invalidated.is_empty() {
            let Parts { runtime, images, .. } = &self.parts;
            self.applying = Some(Applying::start(runtime, images, Arc::clone(&batch), marks));
        } else {
            // What others took over is in no overlay: the store must have forgotten it before it is asked again.
            let object_id = self.parts.source.object_id;
            let applied = self.parts.images.apply(object_id, &batch.records, &committed.invalidated, marks);
            self.applied(batch.number, applied.map_err(|error| error.to_string()));
        }
        // The next batch was begun before this was known: what it judged by records taken away meanwhile is void,
        // and its own commit would not see it, since from here on these invalidations count as known.
        let gone = committed.invalidated.iter().map(|gone| key_hash(gone.object_id, &gone.identity));
        if self.open.touched().any_of(gone) {
            self.rewind("records of the open batch were taken over by another position");
        }
        count_versions(&self.parts.topic, &batch);
        if let Some(at) = batch.advances.iter().map(|advance| advance.passage.passed().ts).max().filter(|at| *at > 0) {
            let seconds = (Self::now() - at).max(0) as f64 / 1e6;
            histogram!(names::EVENT_TO_COMMIT).record(seconds);
        }
        self.parts.consumer.commit_offsets(&offsets);
        failpoint!("offsets.told");
    }

    /// Shows positions and lags: also while nothing is committed, for then they matter most. What was given up lags no
    /// more here.
    pub(super) fn show_lags(&mut self) {
        if self.shown.elapsed() < SHOW {
            return;
        }
        self.shown = Instant::now();
        let topic = &self.parts.topic;
        let labels = |partition: i32| [("topic", topic.to_string()), ("partition", partition.to_string())];
        self.shown_partitions.retain(|partition| {
            let ours = self.tasks.contains_key(partition);
            if !ours {
                gauge!(names::LAG, &labels(*partition)).set(0.0);
            }
            ours
        });
        for task in self.tasks.values() {
            gauge!(names::POSITION, &labels(task.partition)).set(task.next as f64);
            if let Some(end) = self.parts.consumer.high_watermark(topic, task.partition) {
                gauge!(names::LAG, &labels(task.partition)).set((end - task.next).max(0) as f64);
                self.shown_partitions.insert(task.partition);
            }
        }
    }

    /// This worker has no partitions of the topic any more: none lags here.
    pub(super) fn hide_lags(&mut self) {
        for partition in std::mem::take(&mut self.shown_partitions) {
            let labels = [("topic", self.parts.topic.to_string()), ("partition", partition.to_string())];
            gauge!(names::LAG, &labels).set(0.0);
        }
    }

    /// A batch is in the image store, or can't be written there.
    fn applied(&mut self, number: u64, result: Result<bool, String>) {
        match result {
            Ok(true) => self.overlay.committed(number),
            // Its records stay in the overlay until then: the store does not have them.
            Ok(false) => self.outdated = true,
            Err(error) => self.check_store(Err(error)),
        }
    }

    /// What this thread wanted to write was of a claim that is over, though it has not been told so yet.
    pub(super) fn settle_outdated(&mut self) {
        if std::mem::take(&mut self.outdated) {
            self.claim_again("a partition was claimed anew while a batch was on its way into the image store");
        }
    }

    pub(super) fn settle_applying(&mut self) {
        if let Some(result) = self.applying.as_mut().and_then(Applying::poll)
            && let Some(applying) = self.applying.take()
        {
            self.applied(applying.number(), result);
        }
    }

    /// Waits until the image store has all that is committed.
    pub(super) fn await_applying(&mut self) {
        if let Some(applying) = self.applying.take() {
            let number = applying.number();
            let result = applying.wait(&self.parts.runtime);
            self.applied(number, result);
        }
    }

    /// The image store is a cache: if it cannot be written nothing is lost, but nothing can be built on it any more. Why
    /// is told by the worker, once for all topics.
    pub(super) fn check_store(&mut self, result: Result<(), String>) {
        if let Err(error) = result {
            tracing::debug!(topic = %self.parts.topic, %error, "ending");
            self.stopping = true;
        }
    }

    /// Everything since the last commit is void; read again from there (D3).
    pub(super) fn rewind(&mut self, reason: &str) {
        counter!(names::REWINDS, "reason" => "error").increment(1);
        tracing::debug!(topic = %self.parts.topic, reason, "rewinding");
        self.drop_open();
        let mut offsets = Vec::with_capacity(self.tasks.len());
        for task in self.tasks.values_mut() {
            // A task that was still catching up has judged nothing, but what it passed is forgotten already.
            task.rewind();
            offsets.push((TopicPartition::new(Arc::clone(&self.parts.topic), task.partition), task.read));
        }
        if let Err(error) = self.parts.consumer.rewind(&offsets) {
            tracing::warn!(topic = %self.parts.topic, %error, "some partitions were revoked while rewinding");
        }
    }

    pub(super) fn drop_open(&mut self) {
        self.await_applying();
        self.overlay.clear();
        self.front.clear();
        self.open = OpenBatch::new(self.open.number() + 1);
        self.opened = None;
        self.in_flight = None;
        self.waits = false;
        self.messages.clear();
    }

    /// Gives all partitions up and has them claimed again (D4).
    pub(super) fn claim_again(&mut self, reason: &str) {
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

    /// Closes some tasks, each to be claimed again after that long if it is still ours; the others rewind.
    pub(super) fn close_and_rest(&mut self, rests: &[(i32, Duration)]) {
        self.await_applying();
        let (now, mut closed) = (Instant::now(), Vec::new());
        for (partition, rest) in rests {
            if self.tasks.remove(partition).is_some() {
                let of = TopicPartition::new(Arc::clone(&self.parts.topic), *partition);
                self.resting.begin(*partition, now, *rest);
                closed.push(of);
            }
        }
        self.parts.consumer.release(&closed);
        if self.in_flight.is_some() {
            // Its outcome would be dropped with it: only claiming again tells where the others stand.
            self.claim_again("a task was closed while a commit was in flight");
        } else {
            self.rewind("a task of this topic was closed");
        }
    }
}
