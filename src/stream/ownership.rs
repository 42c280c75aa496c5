//! Who may read a partition: asked by the group member, decided by Postgres.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use afterimage_state::Mark;
use metrics::counter;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::group::{Command, InboxCell};
use super::images::Images;
use super::lasting::Lasting;
use super::task::Task;
use super::watch::Logs;
use crate::core::lineage::{Fingerprint, Pin};
use crate::core::recovery::{self, Recovery, SinkFacts, recover};
use crate::kafka::{KafkaError, KafkaSettings, Metadata, Ownership, TopicPartition, Watermarks, peek};
use crate::postgres::claim::{Claim, Claimant, Wanted, claim, remembered};
use crate::postgres::client::{SinkSettings, describe};
use crate::postgres::commit::{Invalidated, invalidated_since};
use crate::telemetry::names;

/// A claim as a whole takes at most this long; what did not come in time is asked for again.
const CLAIM_TIME: Duration = Duration::from_secs(8);
/// A revocation waits this long for its group.
const REVOKE_TIME: Duration = Duration::from_secs(2);
/// Broker questions within a claim.
const BROKER_TIME: Duration = Duration::from_secs(4);
/// So long it may take to see the messages that were read last. Whoever does not show theirs is not claimed yet.
const PEEK_TIME: Duration = Duration::from_secs(3);

/// One topic as the callbacks know it.
#[derive(Clone)]
pub struct TopicSide {
    /// Its source row.
    pub source_id: i16,
    /// Asks to its group.
    pub commands: mpsc::Sender<Command>,
    /// Its inbox, to wake the group.
    pub inbox: InboxCell,
}

/// See the module.
pub struct Claims {
    /// Topics by name.
    pub topics: RwLock<HashMap<Arc<str>, TopicSide>>,
    /// Sink.
    pub sink: SinkSettings,
    /// Which one.
    pub sink_id: Uuid,
    /// We.
    pub claimant: Claimant,
    /// Local records.
    pub images: Images,
    /// Broker questions.
    pub metadata: Metadata,
    /// How to reach the brokers.
    pub kafka: KafkaSettings,
    /// What is read, and what the logs are known by.
    pub logs: Logs,
    /// For database calls from the consumer's thread.
    pub runtime: Handle,
    /// Where a fatal client error goes.
    pub failed: Mutex<Option<tokio::sync::oneshot::Sender<KafkaError>>>,
    /// Partitions that were given to us and can't be claimed as things are.
    pub halted: Mutex<HashMap<TopicPartition, Lasting>>,
    /// Why claims fail.
    pub refused: Mutex<Option<Lasting>>,
}

impl Claims {
    fn claim_all(&self, partitions: &[TopicPartition]) -> Result<Vec<(TopicPartition, i64)>, String> {
        let watermarks = self.metadata.watermarks(partitions, BROKER_TIME).map_err(|error| error.to_string())?;
        let wanted = self.look_at_logs(&watermarks)?;
        let claimed = self
            .runtime
            .block_on(async { tokio::time::timeout(CLAIM_TIME, claim(&self.sink, &self.claimant, &wanted)).await });
        let (claims, halted) =
            claimed.map_err(|_| "the sink does not answer".to_string())?.map_err(|error| error.to_string())?;
        let now_halted = halted
            .into_iter()
            .filter_map(|one| Some((TopicPartition::new(self.topic_of(one.source_id)?, one.partition), one.reason)));
        self.tell_halted(partitions, now_halted.collect());
        let mut tasks: BTreeMap<Arc<str>, Vec<Task>> = BTreeMap::new();
        let mut starts = Vec::with_capacity(claims.len());
        for claim in &claims {
            let Some(topic) = self.topic_of(claim.source_id) else { continue };
            let of = TopicPartition::new(Arc::clone(&topic), claim.partition);
            let earliest = watermarks.iter().find(|(one, _)| *one == of).map_or(0, |(_, marks)| marks.low);
            if let Some((from, to)) = claim.gap {
                counter!(names::GAPS, "topic" => topic.to_string()).increment(1);
                tracing::error!(
                    topic = %topic, partition = claim.partition, from, to,
                    "gap: offsets were gone before they were read; what they changed is missing in the history, which goes on \
                     behind them (view `gaps`). Give the topic a longer retention than workers may stand still; a reload of \
                     the table in Connect brings every record up to date"
                );
            }
            let Prepared { start, missing_after, left } = self.prepare_store(claim, earliest)?;
            let task = Task::new(claim, start, missing_after);
            self.mark_claim(&task, start, &left)?;
            let found = wanted.iter().find(|one| (one.source_id, one.partition) == (claim.source_id, claim.partition));
            // What a worker has looked at twice tells more than what was only read once: that may be of another log already.
            let passed = claim.passage.passed();
            let pin = claim.pin.or(found.and_then(|one| one.found).map(|message| Pin { message, passed }));
            self.logs.claimed(of.clone(), claim.position_id, claim.epoch, pin);
            tasks.entry(topic).or_default().push(task);
            starts.push((of, start));
        }
        for (topic, tasks) in tasks {
            if let Some(side) = self.side(&topic) {
                let _ = side.commands.send(Command::Assigned(tasks));
                side.wake();
            }
        }
        Ok(starts)
    }

    /// What the broker has of each partition: its range, and the message where the last one was read. Partitions that do
    /// not show theirs in time are left out.
    fn look_at_logs(&self, watermarks: &[(TopicPartition, Watermarks)]) -> Result<Vec<Wanted>, String> {
        let sides: Vec<_> =
            watermarks.iter().filter_map(|(of, marks)| Some((of, marks, self.side(&of.topic)?.source_id))).collect();
        let places: Vec<(i16, i32)> = sides.iter().map(|(of, _, source_id)| (*source_id, of.partition)).collect();
        let asked = async {
            let client = self.sink.connect().await.map_err(|error| error.to_string())?;
            remembered(&client, &places).await.map_err(|error| describe(&error))
        };
        let known = self.runtime.block_on(async { tokio::time::timeout(CLAIM_TIME, asked).await });
        let known = known.map_err(|_| "the sink does not answer".to_string())??;
        let mut look_at = Vec::with_capacity(known.len());
        for (of, marks, source_id) in &sides {
            if let Some(offset) = known.get(&(*source_id, of.partition))
                && (marks.low..marks.high).contains(offset)
            {
                look_at.push(((*of).clone(), *offset));
            }
        }
        let seen = peek(&self.kafka, &look_at, PEEK_TIME, Fingerprint::of);
        let seen = seen.map_err(|error| error.to_string())?;
        let mut wanted = Vec::with_capacity(sides.len());
        for (of, marks, source_id) in sides {
            let found = seen.get(of).copied();
            if found.is_none() && look_at.iter().any(|(asked, _)| asked == of) {
                tracing::warn!(topic = %of.topic, partition = of.partition, "the broker does not show the message that was read last; asking again");
                continue;
            }
            wanted.push(Wanted {
                source_id,
                topic: Arc::clone(&of.topic),
                partition: of.partition,
                earliest: marks.low,
                end: marks.high,
                found: found.flatten(),
            });
        }
        Ok(wanted)
    }

    fn topic_of(&self, source_id: i16) -> Option<Arc<str>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.iter().find(|(_, side)| side.source_id == source_id).map(|(topic, _)| Arc::clone(topic))
    }

    fn side(&self, topic: &str) -> Option<TopicSide> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    /// Asks something of a topic's group.
    pub fn command(&self, topic: &str, command: Command) {
        if let Some(side) = self.side(topic) {
            let _ = side.commands.send(command);
            side.wake();
        }
    }

    /// More topics.
    pub fn add(&self, sides: impl IntoIterator<Item = (Arc<str>, TopicSide)>) {
        self.topics.write().unwrap_or_else(PoisonError::into_inner).extend(sides);
    }

    /// How many of the partitions that the group gave to us are halted.
    pub fn halted(&self) -> usize {
        self.halted.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Claims are tried again every second: what stays halted is told at growing intervals.
    fn tell_halted(&self, asked: &[TopicPartition], now_halted: BTreeMap<TopicPartition, String>) {
        let mut known = self.halted.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|of, _| !asked.contains(of) || now_halted.contains_key(of));
        let now = Instant::now();
        for (of, reason) in now_halted {
            let mut halt = known.remove(&of);
            if Lasting::tell(&mut halt, &reason, now) {
                tracing::error!(topic = %of.topic, partition = of.partition, %reason, "halted");
            }
            known.extend(halt.map(|halt| (of, halt)));
        }
    }

    /// Decides what the local records of a position are still worth (D13, D14).
    fn prepare_store(&self, claim: &Claim, earliest: i64) -> Result<Prepared, String> {
        let mark = self.images.mark(claim.position_id).map_err(|error| error.to_string())?;
        let mut facts = SinkFacts {
            sink_id: self.sink_id.into_bytes(),
            next: claim.next,
            inval_seq: claim.inval_seq,
            oldest_inval: claim.oldest_inval_seq,
            claims: claim
                .claims
                .iter()
                .map(|row| recovery::Claim {
                    epoch: row.epoch,
                    token: row.token.into_bytes(),
                    from_next: row.from_next,
                })
                .collect(),
        };
        if left_out!("lineage")
            && let Some(Mark { epoch, token, next, .. }) = mark
        {
            // As if the sink knew the mark's claim, and no later one: only how far the two have read is compared.
            facts.claims = vec![recovery::Claim { epoch, token, from_next: next }];
        }
        let plan = recover(mark.as_ref(), &facts, Some(earliest));
        tracing::debug!(position = claim.position_id, ?plan, "image store");
        failpoint!("restore.decided", "a failpoint".to_owned());
        let missing_after = mark.and_then(|mark| mark.missing_after);
        let (start, known) = match plan {
            Recovery::Use => return Ok(Prepared { start: claim.next, missing_after, left: Left::AllBut(Vec::new()) }),
            Recovery::CatchUp { from, invalidations_after, .. } => (from, invalidations_after),
            Recovery::Clear(reason) => {
                if mark.is_some() {
                    counter!(names::STATE_CLEARED, "reason" => reason.label()).increment(1);
                    tracing::info!(position = claim.position_id, %reason, "the local records of a position are dropped");
                }
                return Ok(Prepared { start: claim.next, missing_after: Some(0), left: Left::Nothing });
            }
        };
        let mut gone = Vec::new();
        if known < claim.inval_seq {
            let asked = async {
                let client = self.sink.connect().await.map_err(|error| error.to_string())?;
                invalidated_since(&client, &[(claim.position_id, known)])
                    .await
                    .map_err(|error| crate::postgres::client::describe(&error))
            };
            let answer = self.runtime.block_on(async { tokio::time::timeout(CLAIM_TIME, asked).await });
            gone = answer.map_err(|_| "the sink does not answer".to_string())??;
        }
        Ok(Prepared { start, missing_after, left: Left::AllBut(gone) })
    }

    /// The store forgets what is not to be left and is as far as `next` under this claim, in one: what the topic's thread
    /// may still have in hand of an older one is refused from here on.
    fn mark_claim(&self, task: &Task, next: i64, left: &Left) -> Result<(), String> {
        let mark = Mark { next, ..task.mark(self.sink_id) };
        match left {
            Left::Nothing => {
                self.images.begin(mark).map_err(|error| error.to_string())?;
                failpoint!("restore.cleared", "a failpoint".to_owned());
            }
            Left::AllBut(gone) => {
                if !self.images.apply(0, &[], gone, [mark]).map_err(|error| error.to_string())? {
                    return Err("the image store has seen a newer claim".to_owned());
                }
                if !gone.is_empty() {
                    failpoint!("restore.invalidated", "a failpoint".to_owned());
                }
            }
        }
        Ok(())
    }
}

/// What the image store has of a position that is being claimed.
struct Prepared {
    /// Where reading starts.
    start: i64,
    /// After which record's number some are missing.
    missing_after: Option<i32>,
    left: Left,
}

/// What is left of its local records.
enum Left {
    /// They can't be trusted.
    Nothing,
    /// All but what others took away and the store has not forgotten yet.
    AllBut(Vec<Invalidated>),
}

impl TopicSide {
    fn wake(&self) {
        if let Some(inbox) = self.inbox.get() {
            inbox.wake();
        }
    }
}

impl Ownership for Claims {
    fn claim(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        counter!(names::REBALANCES, "kind" => "assigned").increment(1);
        match self.claim_all(partitions) {
            Ok(starts) => {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = None;
                counter!(names::CLAIMS, "result" => "claimed").increment(starts.len() as u64);
                let refused = partitions.len().saturating_sub(starts.len());
                counter!(names::CLAIMS, "result" => "refused").increment(refused as u64);
                starts
            }
            Err(reason) => {
                counter!(names::CLAIMS, "result" => "timed_out").increment(partitions.len() as u64);
                let mut known = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                if Lasting::tell(&mut known, &reason, Instant::now()) {
                    tracing::warn!(%reason, partitions = partitions.len(), "partitions not claimed; trying again");
                }
                Vec::new()
            }
        }
    }

    fn revoked(&self, partitions: &[TopicPartition], lost: bool) {
        counter!(names::REBALANCES, "kind" => if lost { "lost" } else { "revoked" }).increment(1);
        let mut by_topic: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
        for of in partitions {
            by_topic.entry(Arc::clone(&of.topic)).or_default().push(of.partition);
        }
        self.halted.lock().unwrap_or_else(PoisonError::into_inner).retain(|of, _| !partitions.contains(of));
        self.logs.gone(partitions);
        let mut answers = Vec::new();
        for (topic, partitions) in by_topic {
            let Some(side) = self.side(&topic) else { continue };
            let (done, answer) = mpsc::sync_channel(1);
            if side.commands.send(Command::Revoked { partitions, lost, done }).is_ok() {
                side.wake();
                answers.push(answer);
            }
        }
        if lost {
            return;
        }
        let until = Instant::now() + REVOKE_TIME;
        for answer in answers {
            if answer.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
                // What it still has in flight meets a higher epoch.
                tracing::warn!("a topic did not let its partitions go in time");
            }
        }
    }

    fn failed(&self, error: &KafkaError) {
        if let Some(failed) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = failed.send(error.clone());
        }
    }
}
