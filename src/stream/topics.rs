//! Topics of a worker: those of its start, and those that appear later. Each gets its numbers from the sink, a thread,
//! and a place among those that the ownership callbacks know.

use std::collections::HashMap;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};

use tokio::runtime::Handle;
use uuid::Uuid;

use super::align::{Align, Board, Boards};
use super::committer::Committers;
use super::databases::Databases;
use super::dictionary::Dictionary;
use super::group::{BatchLimits, Command, Group, InboxCell, Parts};
use super::images::Images;
use super::ownership::{Claims, TopicSide};
use super::restore::Turns;
use super::views::Views;
use super::watch::Logs;
use super::{RunError, TopicMapping, TopicPlan};
use crate::core::decode::{Decoder, ResolvedIdentity};
use crate::core::judge::ObjectFacts;
use crate::kafka::{Consumer, Inbox, KafkaError, Topic};
use crate::postgres::Client;
use crate::postgres::client::SinkSettings;
use crate::postgres::registry::{self, Declared, Source};
use crate::telemetry::Health;

/// What all topics of a worker share.
pub(super) struct Topics {
    pub sink: SinkSettings,
    pub sink_id: Uuid,
    pub cluster: String,
    pub group: String,
    pub images: Images,
    pub committers: Committers,
    pub views: Views,
    pub limits: BatchLimits,
    /// Bytes for the hash front of each topic.
    pub front_memory: usize,
    pub databases: Databases,
    pub logs: Logs,
    pub boards: Boards,
    pub turns: Turns,
    pub health: Health,
    /// Tells which topic's thread has ended.
    pub ended: tokio::sync::mpsc::UnboundedSender<String>,
    pub running: Vec<Running>,
}

/// Tells that a topic's thread has ended, also when it panicked: a worker must not go on without one of its topics.
struct End {
    topic: String,
    tell: tokio::sync::mpsc::UnboundedSender<String>,
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.tell.send(std::mem::take(&mut self.topic));
    }
}

/// A topic that is known to the sink and has no thread yet.
pub(super) struct Prepared {
    pub topic: Arc<str>,
    source: Source,
    decoder: Decoder,
    dictionary: Dictionary,
    sender: mpsc::Sender<Command>,
    commands: mpsc::Receiver<Command>,
    inbox: InboxCell,
    board: Arc<Board>,
}

/// A topic's thread.
pub(super) struct Running {
    sender: mpsc::Sender<Command>,
    inbox: Arc<Inbox>,
    thread: std::thread::JoinHandle<()>,
}

impl Prepared {
    /// For the ownership callbacks.
    pub fn side(&self) -> TopicSide {
        TopicSide { source_id: self.source.source_id, commands: self.sender.clone(), inbox: Arc::clone(&self.inbox) }
    }
}

impl Topics {
    /// Registers topics in the sink; `partitions` of each by name.
    pub async fn prepare(
        &self,
        client: &mut Client,
        plans: Vec<TopicPlan>,
        partitions: &HashMap<Arc<str>, i32>,
    ) -> Result<Vec<Prepared>, RunError> {
        let declared: Vec<Declared> = plans.iter().map(|topic| topic.declared.clone()).collect();
        let sources = registry::sources(client, &declared, &self.cluster, &self.group).await?;
        let mut prepared = Vec::with_capacity(plans.len());
        for (plan, source) in plans.into_iter().zip(sources) {
            let fields = registry::fields(client, source.object_id).await?;
            let mut decoder = Decoder::new(plan.rules);
            if source.settled
                && let Some(identity) = ResolvedIdentity::from_sink(&source.identity)
            {
                decoder.preset_identity(identity);
            }
            decoder.print_rows(source.object_id, rand::random());
            decoder.restore_columns(fields.iter().map(|field| (field.name.as_str(), field.kind)));
            let facts = ObjectFacts {
                object_id: source.object_id,
                grace: plan.declared.grace,
                create_window: plan.create_window,
                ..ObjectFacts::default()
            };
            if source.settled {
                // Not with the first message only: lookups may wait to be built, and no message may ever come.
                self.views.refresh(source.object_id);
            }
            let topic: Arc<str> = source.topic.as_str().into();
            let (sender, commands) = mpsc::channel();
            let inbox: InboxCell = Arc::new(OnceLock::new());
            let count = partitions.get(&topic).copied().unwrap_or(0);
            let board = Board::new(Arc::clone(&topic), source.source_id, count, Arc::clone(&inbox));
            let dictionary = Dictionary::new(facts, fields);
            prepared.push(Prepared { topic, source, decoder, dictionary, sender, commands, inbox, board });
        }
        Ok(prepared)
    }

    /// Starts their threads.
    pub fn start(
        &mut self,
        prepared: Vec<Prepared>,
        inboxes: &[Arc<Inbox>],
        consumer: &Consumer,
    ) -> Result<(), RunError> {
        for one in prepared {
            let Some(inbox) = inboxes.iter().find(|inbox| *inbox.topic() == one.topic).cloned() else { continue };
            let _ = one.inbox.set(Arc::clone(&inbox));
            self.boards.add(Arc::clone(&one.board));
            let name = one.topic.to_string();
            let parts = Parts {
                source: one.source,
                topic: one.topic,
                sink: self.sink.clone(),
                sink_id: self.sink_id,
                images: self.images.clone(),
                committers: self.committers.clone(),
                views: self.views.clone(),
                commands: one.commands,
                inbox: Arc::clone(&inbox),
                consumer: consumer.clone(),
                decoder: one.decoder,
                dictionary: one.dictionary,
                limits: self.limits,
                front_memory: self.front_memory,
                databases: Arc::clone(&self.databases),
                align: Align::new(one.board, &self.boards),
                turns: Arc::clone(&self.turns),
                logs: self.logs.clone(),
                beat: self.health.beat(format!("topic {name}")),
                runtime: Handle::current(),
            };
            let end = End { topic: name.clone(), tell: self.ended.clone() };
            let thread = std::thread::Builder::new().name(format!("topic {name}")).spawn(move || {
                let _end = end;
                Group::new(parts).run();
            });
            let thread = thread.map_err(|error| KafkaError::Fatal(format!("no thread for a topic: {error}")))?;
            self.running.push(Running { sender: one.sender, inbox, thread });
        }
        Ok(())
    }

    /// Begins to read what the cluster has now and had not before: topics that the configuration maps to an org; and
    /// takes note of how many partitions each has. New partitions are the group's business.
    pub async fn grow(
        &mut self,
        found: &[Topic],
        mapping: &TopicMapping,
        claims: &Claims,
        consumer: &Consumer,
    ) -> Result<(), RunError> {
        let boards = self.boards.all();
        for topic in found {
            if let Some(board) = boards.iter().find(|board| board.topic == topic.name) {
                self.boards.set_partitions(board, topic.partitions);
            }
        }
        let names: Vec<String> = found.iter().map(|topic| topic.name.to_string()).collect();
        let mut plans = mapping(&names).map_err(RunError::Mapping)?;
        plans.retain(|plan| !boards.iter().any(|board| *board.topic == *plan.declared.topic));
        if plans.is_empty() {
            return Ok(());
        }
        let partitions = found.iter().map(|topic| (Arc::clone(&topic.name), topic.partitions)).collect();
        let mut client = self.sink.connect().await?;
        let prepared = self.prepare(&mut client, plans, &partitions).await?;
        let names: Vec<Arc<str>> = prepared.iter().map(|one| Arc::clone(&one.topic)).collect();
        // Known to the callbacks before the group can give them.
        claims.add(prepared.iter().map(|one| (Arc::clone(&one.topic), one.side())));
        let inboxes = tokio::task::block_in_place(|| consumer.add_topics(&names))?;
        self.start(prepared, &inboxes, consumer)?;
        for topic in names {
            tracing::info!(%topic, "reading a topic that has appeared");
        }
        Ok(())
    }

    /// Asks all threads to commit what is in hand and end.
    pub fn ask_to_stop(&self) {
        for one in &self.running {
            let _ = one.sender.send(Command::Stop);
            one.inbox.wake();
        }
    }

    /// Whether all threads have ended.
    pub fn have_ended(&self) -> bool {
        self.running.iter().all(|one| one.thread.is_finished())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_topic_is_told_also_when_its_thread_panics() {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        for (topic, panics) in [("a", false), ("b", true)] {
            let end = End { topic: topic.into(), tell: tell.clone() };
            let thread = std::thread::spawn(move || {
                let _end = end;
                assert!(!panics, "as it is meant to");
            });
            assert_eq!(thread.join().is_err(), panics);
            assert_eq!(told.try_recv(), Ok(topic.to_owned()));
        }
    }
}
