//! A topic may be made anew while it is read: the client goes on at the same offsets of the new log and says nothing. So of
//! each topic one message that was read is looked at from time to time. If another one stands there, the positions are fenced
//! off, with that message as the last that was read, and claiming them again finds the wrong log (protocol D8). That message is
//! kept in the sink, too: a worker that dies before it has noticed leaves to the next one what it would have looked at.
//!
//! The sink may go back, too: to an older dump, under the worker. Where messages come, the next commit is refused and the
//! position is claimed anew. Where none come, nothing would read again what the sink has lost: so whoever asks it how it is
//! asks that, too ([`reclaim_lost`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::group::Command;
use super::ownership::Claims;
use crate::core::lineage::{Fingerprint, Lineage, Pin, lineage};
use crate::core::position::PositionId;
use crate::kafka::{KafkaSettings, TopicPartition, peek};
use crate::postgres::claim::lost;
use crate::postgres::operator::distrust;
use crate::postgres::{Client, Error};

/// So often is looked.
const EVERY: Duration = Duration::from_secs(10);
/// An answer that takes longer is none.
const PEEK_TIME: Duration = Duration::from_secs(5);
/// So long the sink may take.
const SINK_TIME: Duration = Duration::from_secs(10);

/// A partition that is being read.
#[derive(Debug, Clone, Copy)]
struct Watched {
    position_id: PositionId,
    epoch: i64,
    /// By which its log was known when that was last looked at.
    pin: Option<Pin>,
    /// The same of the last message that was committed.
    newest: Option<Pin>,
    /// The pin was looked at since the claim.
    looked_at: bool,
}

/// The partitions that this worker reads, and what their logs are known by.
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Mutex<HashMap<TopicPartition, Watched>>>);

impl Logs {
    fn lock(&self) -> MutexGuard<'_, HashMap<TopicPartition, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A partition is ours; `pin` is by which its log was known when a worker last looked.
    pub(super) fn claimed(&self, of: TopicPartition, position_id: PositionId, epoch: i64, pin: Option<Pin>) {
        self.lock().insert(of, Watched { position_id, epoch, pin, newest: None, looked_at: false });
    }

    /// Messages up to this one are committed.
    pub(super) fn committed(&self, of: &TopicPartition, epoch: i64, last: Pin) {
        if let Some(watched) = self.lock().get_mut(of).filter(|watched| watched.epoch == epoch) {
            watched.newest = Some(last);
            watched.pin.get_or_insert(last);
        }
    }

    /// Under which epoch this process has claimed it last.
    pub(super) fn epoch(&self, of: &TopicPartition) -> Option<i64> {
        self.lock().get(of).map(|watched| watched.epoch)
    }

    /// Partitions that are not ours any more.
    pub(super) fn gone(&self, partitions: &[TopicPartition]) {
        self.lock().retain(|of, _| !partitions.contains(of));
    }

    /// By topic.
    fn all(&self) -> BTreeMap<Arc<str>, Vec<(TopicPartition, Watched)>> {
        let mut all: BTreeMap<Arc<str>, Vec<_>> = BTreeMap::new();
        for (of, watched) in self.lock().iter().filter(|(_, watched)| watched.pin.is_some()) {
            all.entry(Arc::clone(&of.topic)).or_default().push((of.clone(), *watched));
        }
        all
    }

    /// The logs of these are as they were: what had been committed before that was looked at stands in them, too.
    fn confirmed(&self, looked: &[(TopicPartition, Watched)]) {
        let mut known = self.lock();
        for (of, was) in looked {
            if let Some(now) = known.get_mut(of).filter(|now| now.epoch == was.epoch) {
                now.pin = was.newest.or(now.pin);
                now.looked_at = true;
            }
        }
    }

    /// By which the logs were known when they were last looked at: position, epoch, message.
    pub(super) fn pins(&self) -> Vec<(PositionId, i64, Pin)> {
        let looked_at = |watched: &Watched| Some((watched.position_id, watched.epoch, watched.pin?));
        self.lock().values().filter(|watched| watched.looked_at).filter_map(looked_at).collect()
    }
}

/// Looks from time to time, for as long as the worker runs.
pub(super) async fn watch(logs: Logs, claims: Arc<Claims>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let all = logs.all();
        // One message tells of its topic; but what another worker has left is looked at once.
        let is_looked_at = |n: usize, watched: &Watched| n == 0 || !watched.looked_at;
        let of_topic = |watched: &Vec<(TopicPartition, Watched)>| -> Vec<_> {
            watched
                .iter()
                .enumerate()
                .filter(|(n, (_, one))| is_looked_at(*n, one))
                .map(|(_, one)| one.clone())
                .collect()
        };
        let first: Vec<_> = all.values().flat_map(of_topic).collect();
        let Some((wrong, answered)) = look(&claims.kafka, first).await else { continue };
        let (mut all_of_wrong, mut right) = (Vec::new(), Vec::new());
        for (topic, watched) in all {
            if wrong.iter().any(|of| of.topic == topic) {
                all_of_wrong.extend(watched);
            } else if answered.iter().any(|of| of.topic == topic) {
                // What nobody has looked at yet is known by its own message only.
                right.extend(watched.into_iter().filter(|(of, one)| one.looked_at || answered.contains(of)));
            }
        }
        logs.confirmed(&right);
        if all_of_wrong.is_empty() {
            continue;
        }
        let Some((wrong, _)) = look(&claims.kafka, all_of_wrong.clone()).await else { continue };
        for (of, watched) in all_of_wrong {
            if wrong.contains(&of) {
                give_up(&claims, &of, watched).await;
            }
        }
    }
}

/// Has positions claimed again that stand before what was committed to them: the sink has lost that.
///
/// # Errors
/// When the sink can't be asked.
pub(super) async fn reclaim_lost(client: &Client, logs: &Logs, claims: &Claims) -> Result<(), Error> {
    let committed: Vec<_> = logs
        .lock()
        .iter()
        .filter_map(|(of, watched)| {
            Some((of.clone(), (watched.position_id, watched.epoch, watched.newest?.message.offset)))
        })
        .collect();
    if committed.is_empty() {
        return Ok(());
    }
    let positions: Vec<_> = committed.iter().map(|(_, position)| *position).collect();
    let lost = lost(client, &positions).await?;
    for (of, (_, _, offset)) in committed.iter().filter(|(_, (position_id, ..))| lost.contains(position_id)) {
        tracing::warn!(
            topic = %of.topic, partition = of.partition, offset,
            "the sink has lost what was committed up to here: it was restored from an older state; claiming again"
        );
        claims.command(&of.topic, Command::Reclaim(of.partition));
    }
    Ok(())
}

/// Which of these have another message than they should, and of which anything was heard. `None` = the brokers can't be asked.
async fn look(
    kafka: &KafkaSettings,
    watched: Vec<(TopicPartition, Watched)>,
) -> Option<(BTreeSet<TopicPartition>, BTreeSet<TopicPartition>)> {
    let kafka = kafka.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let at: Vec<_> =
            watched.iter().filter_map(|(of, watched)| Some((of.clone(), watched.pin?.message.offset))).collect();
        let seen = peek(&kafka, &at, PEEK_TIME, Fingerprint::of)?;
        // Whether the log is long enough is asked by the claim.
        let is_other = |(of, watched): &&(TopicPartition, Watched)| {
            seen.get(of)
                .is_some_and(|found| lineage(0, i64::MAX, watched.pin.map(|pin| pin.message), *found) == Lineage::Other)
        };
        let wrong = watched.iter().filter(is_other).map(|(of, _)| of.clone()).collect();
        Ok::<_, crate::kafka::KafkaError>((wrong, seen.into_keys().collect()))
    });
    match looked.await {
        Ok(Ok(looked)) => Some(looked),
        Ok(Err(error)) => {
            tracing::debug!(%error, "logs can't be looked at");
            None
        }
        Err(_) => None,
    }
}

/// Fences a partition off whose log is another, and has it claimed again, which halts it.
async fn give_up(claims: &Claims, of: &TopicPartition, watched: Watched) {
    let Some(pin) = watched.pin else { return };
    failpoint!("logs.doubted");
    let fenced = async {
        let mut client = claims.sink.connect().await.map_err(|error| error.to_string())?;
        let fenced = distrust(&mut client, watched.position_id, watched.epoch, pin).await;
        fenced.map_err(|error| error.to_string())
    };
    match tokio::time::timeout(SINK_TIME, fenced).await {
        Ok(Ok(true)) => {
            tracing::error!(topic = %of.topic, partition = of.partition, offset = pin.message.offset, "another message stands where one was read: the topic was made anew, or its log was cut");
            claims.command(&of.topic, Command::Reclaim(of.partition));
        }
        // Somebody else has claimed it, and has looked.
        Ok(Ok(false)) => {}
        Ok(Err(error)) => {
            tracing::warn!(partition = %of, error, "its log is another, and the sink can't be told; trying again")
        }
        Err(_) => tracing::warn!(partition = %of, "its log is another, and the sink does not answer; trying again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::position::Passed;

    fn message(offset: i64) -> Pin {
        Pin { message: Fingerprint { offset, timestamp_ms: None, hash: offset }, passed: Passed::default() }
    }

    #[test]
    fn a_message_is_trusted_once_the_log_was_seen_to_be_the_same_after_it_was_committed() {
        let (logs, of) = (Logs::default(), TopicPartition::new("t", 0));
        let pin = |logs: &Logs| logs.all()["t"][0].1.pin.unwrap().message.offset;
        logs.claimed(of.clone(), 7, 3, None);
        assert!(logs.all().is_empty(), "nothing was read yet");
        logs.committed(&of, 3, message(10));
        logs.committed(&of, 3, message(20));
        assert_eq!(pin(&logs), 10);
        let looked = logs.all().remove("t").unwrap();
        // Committed while the log was looked at: it may come from another one.
        logs.committed(&of, 3, message(30));
        logs.confirmed(&looked);
        assert_eq!(pin(&logs), 20);
        logs.committed(&of, 2, message(40));
        logs.confirmed(&logs.all().remove("t").unwrap());
        assert_eq!(pin(&logs), 30, "what an older claim committed is not heeded");
        assert_eq!(logs.pins(), [(7, 3, message(30))]);
        logs.claimed(of.clone(), 7, 4, Some(message(50)));
        logs.confirmed(&looked);
        assert_eq!(pin(&logs), 50, "nor what was looked at before it was claimed again");
        assert!(logs.pins().is_empty(), "nor is what was not looked at since the claim worth keeping");
        logs.gone(&[of]);
        assert!(logs.all().is_empty());
    }
}
