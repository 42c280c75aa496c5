//! One database under one org. Two of them mean that two applications' schemas of one name were declared as one org: their
//! records would be mixed. What comes from the second is not read: its partition is halted in front of it.

// As the chunk holds them, see there.
#![allow(clippy::vec_box)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::chunk::Arrived;
use super::group::{Ended, Group};
use crate::postgres::claim;

/// The database that feeds each org, and the topic that showed it. Known for the life of the process only, since a
/// database may be replaced by one of another name.
pub type Databases = Arc<Mutex<HashMap<String, (String, Arc<str>)>>>;

/// What is wrong, and what to do.
const MIXED: &str = "two databases under one org, their records would be mixed; declare an [[org]] for each, or, if the source \
                     was moved to a database of another name, restart the workers";
/// A halted partition is looked at again after this long, then after twice as long …
const FIRST_REST: Duration = Duration::from_secs(10);
/// … up to this.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// What stands before the message is committed within this time, or read again.
const FINISH: Duration = Duration::from_millis(1500);

/// What a group knows of the database that it reads.
#[derive(Debug, Default)]
pub(super) struct Database {
    /// `"db":"<name>"`, as it stands in messages of the org's database.
    expected: Option<memchr::memmem::Finder<'static>>,
    /// How long each halted partition rested last.
    rested: BTreeMap<i32, Duration>,
}

/// Where a partition met a message of another database.
#[derive(Debug)]
pub(super) struct Foreign {
    offset: i64,
    database: String,
}

impl Group {
    /// Takes out of a chunk what comes from another database than the org's, with all that follows it in its partition.
    pub(super) fn set_foreign_apart(&mut self, arrived: &mut Vec<Box<Arrived>>) -> BTreeMap<i32, Foreign> {
        let mut foreign = BTreeMap::new();
        for one in arrived.iter() {
            let partition = one.message.partition;
            if !foreign.contains_key(&partition)
                && let Some(database) = self.other_database(one)
            {
                foreign.insert(partition, Foreign { offset: one.message.offset, database });
            }
        }
        if !foreign.is_empty() {
            arrived.retain(|one| foreign.get(&one.message.partition).is_none_or(|met| one.message.offset < met.offset));
        }
        foreign
    }

    /// The message's database, if it is not the org's. Only what was decoded is asked: a repeat changes nothing.
    fn other_database(&mut self, one: &Arrived) -> Option<String> {
        one.event()?;
        let source = one.envelope()?.source_bytes(one.message.payload()?)?;
        if self.database.expected.as_ref().is_some_and(|expected| expected.find(source).is_some()) {
            return None;
        }
        let database = one.envelope()?.source(one.message.payload()?)?.db?;
        let mut known = self.parts.databases.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, _) = known
            .entry(self.parts.source.org.clone())
            .or_insert_with(|| (database.clone(), Arc::clone(&self.parts.topic)));
        if *name != database {
            return Some(database);
        }
        drop(known);
        let text = serde_json::to_string(&database).ok()?;
        self.database.expected = Some(memchr::memmem::Finder::new(&format!("\"db\":{text}")).into_owned());
        None
    }

    /// Commits what stands before these messages, leaves the halt in the sink, and lets their partitions rest. A person has to
    /// look. Claiming one again lifts its halt, and meets the message again.
    pub(super) fn halt(&mut self, foreign: BTreeMap<i32, Foreign>) -> Result<(), Ended> {
        if foreign.is_empty() {
            return Ok(());
        }
        let (known, topic) = {
            let databases = self.parts.databases.lock().unwrap_or_else(PoisonError::into_inner);
            databases.get(&self.parts.source.org).cloned().unwrap_or_default()
        };
        for (partition, Foreign { offset, database }) in &foreign {
            tracing::error!(
                org = %self.parts.source.org, topic = %self.parts.topic, partition, offset, %database,
                other_topic = %topic, other_database = %known,
                "halted: {MIXED}"
            );
        }
        self.finish(Instant::now() + FINISH);
        for (partition, Foreign { offset, database }) in &foreign {
            if let Some(task) = self.tasks.get(partition) {
                let (position_id, at) = (task.position_id, (task.epoch, task.next));
                let reason = format!(
                    "the message at offset {offset} comes from database {database:?}, those of {topic} from {known:?}: {MIXED}"
                );
                self.ask(async |client| claim::halt(client, position_id, at, &reason, false).await)?;
            }
            let rest = self.database.rested.get(partition).map_or(FIRST_REST, |rested| (*rested * 2).min(LONGEST_REST));
            self.database.rested.insert(*partition, rest);
            self.close_and_rest(&[(*partition, rest)]);
            self.resting.mark_halted(*partition);
        }
        Ok(())
    }
}
