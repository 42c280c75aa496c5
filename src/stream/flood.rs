//! A flood of dead letters: the partition's task halts in front of it, until a person has looked, while the others go on.

// As the chunk holds them, see there.
#![allow(clippy::vec_box)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::chunk::Arrived;
use super::group::{Ended, Group};
use super::settle::REST;
use crate::core::breaker::flood_text;
use crate::postgres::claim;

/// What stands before the message is committed within this time, or read again.
const FINISH: Duration = Duration::from_millis(1500);
/// The next claim finds the halt that stands in the sink: so it is asked for at once.
const AT_ONCE: Duration = Duration::ZERO;

/// Where a partition was found to be flooded, and what is to be said of it.
#[derive(Debug)]
pub(super) struct Flooded {
    offset: i64,
    reason: String,
}

impl Group {
    /// Takes the dead letter that is one too many out of a chunk, with all that follows it in its partition.
    pub(super) fn set_floods_apart(&mut self, arrived: &mut Vec<Box<Arrived>>) -> BTreeMap<i32, Flooded> {
        let mut flooded: BTreeMap<i32, Flooded> = BTreeMap::new();
        for one in arrived.iter() {
            let (partition, offset) = (one.message.partition, one.message.offset);
            let Some(task) = self.tasks.get_mut(&partition).filter(|_| !flooded.contains_key(&partition)) else {
                continue;
            };
            let dead = match &one.meaning {
                Some(Err(error)) => Some(error.reason.as_str()),
                _ => None,
            };
            if let Some(flood) = task.breaker.take(offset, dead.is_some()) {
                let reason = flood_text(flood, &self.parts.topic, partition, offset, dead.unwrap_or_default());
                flooded.insert(partition, Flooded { offset, reason });
            }
        }
        if !flooded.is_empty() {
            arrived.retain(|one| flooded.get(&one.message.partition).is_none_or(|met| one.message.offset < met.offset));
        }
        flooded
    }

    /// Commits what stands before, leaves the halt in the sink, and lets go: claiming finds it there. If the sink does not
    /// take it, the partition rests, and its flood is met again.
    pub(super) fn halt_floods(&mut self, flooded: BTreeMap<i32, Flooded>) -> Result<(), Ended> {
        if flooded.is_empty() {
            return Ok(());
        }
        let read: BTreeMap<i32, i64> = self.tasks.values().map(|task| (task.partition, task.read)).collect();
        self.finish(Instant::now() + FINISH);
        for (partition, Flooded { offset, reason }) in flooded {
            let Some(task) = self.tasks.get(&partition) else { continue };
            let (position_id, at) = (task.position_id, (task.epoch, task.next));
            let committed = read.get(&partition) == Some(&task.next);
            let noted =
                committed && self.ask(async |client| claim::halt(client, position_id, at, &reason, true).await)?;
            if noted {
                tracing::error!(topic = %self.parts.topic, partition, offset, %reason, "halted");
            }
            self.close_and_rest(&[(partition, if noted { AT_ONCE } else { REST })]);
        }
        Ok(())
    }
}
