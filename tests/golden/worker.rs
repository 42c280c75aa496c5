//! One worker without Kafka: recorded messages in, sealed batches out; in [`World`], into the memory twin of the sink.
//!
//! It goes the way of `src/stream`: peek, merge by source time, decode, note fields, look up, judge, seal, commit,
//! keep records in a store, forget. It can be stopped and started anywhere, with its store or without. What it asks of
//! its sink is a trait, so that several workers can share one, and so that it can be a real one.
#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use afterimage::core::batch::{Advance, DeadLetter, OpenBatch, SealedBatch, StoredRecord};
use afterimage::core::decode::{DecodeError, Decoded, Decoder, Peek, ResolvedIdentity, TopicRules};
use afterimage::core::event::{Class, Event, FieldNo, Micros, Op};
use afterimage::core::front::Front;
use afterimage::core::judge::{Arrival, Judge, Need, ObjectFacts};
use afterimage::core::overlay::{KeySlot, Overlay};
use afterimage::core::position::{Counter, Passage, PositionId, row};
use afterimage::core::record::{Record, key_hash};
use afterimage::core::value::{Kind, Value};

use crate::memory::{MemorySink, ObjectRow};

/// What a worker asks of its sink. The commit is not part of it.
pub trait Sink {
    /// (source, object) of a topic, made if new.
    fn source(&mut self, topic: &Topic) -> (i16, i16);
    /// An object's dictionary.
    fn object(&mut self, object_id: i16) -> ObjectRow;
    /// Notes columns as an event shows them, and how records are named.
    fn note(&mut self, object_id: i16, identity: Option<String>, columns: &[(String, Class, Kind)], at: Option<Micros>);
    /// A partition as its owner holds it; `first` is the first offset seen of it.
    fn standing(&mut self, source_id: i16, partition: i32, first: i64) -> Standing;
    /// Registers a record, whatever becomes of the batch.
    fn register(&mut self, object_id: i16, identity: &str, home: PositionId, row_key: &str);
    /// A record, if it is registered.
    fn record(&mut self, object_id: i16, identity: &str) -> Option<Record>;
    /// What is known of a key.
    fn key(&mut self, source_id: i16, object_id: i16, key: &str) -> KeySlot;
}

/// Where a partition stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub position_id: PositionId,
    pub epoch: i64,
    pub next: i64,
    pub passage: Passage,
}

impl Sink for MemorySink {
    fn source(&mut self, topic: &Topic) -> (i16, i16) {
        MemorySink::source(self, &topic.name, &topic.org, &topic.object)
    }

    fn object(&mut self, object_id: i16) -> ObjectRow {
        MemorySink::object(self, object_id).clone()
    }

    fn note(
        &mut self,
        object_id: i16,
        identity: Option<String>,
        columns: &[(String, Class, Kind)],
        at: Option<Micros>,
    ) {
        self.object_mut(object_id).identity = identity;
        for (name, class, kind) in columns {
            self.note_field(object_id, name, *class, *kind, at);
        }
    }

    fn standing(&mut self, source_id: i16, partition: i32, first: i64) -> Standing {
        let position_id = self.position(source_id, partition, first);
        let row = &self.positions[&position_id];
        Standing { position_id, epoch: 1, next: row.next, passage: row.passage.clone() }
    }

    fn register(&mut self, object_id: i16, identity: &str, home: PositionId, row_key: &str) {
        MemorySink::register(self, object_id, identity, home, row_key);
    }

    fn record(&mut self, object_id: i16, identity: &str) -> Option<Record> {
        MemorySink::record(self, object_id, identity)
    }

    fn key(&mut self, source_id: i16, object_id: i16, key: &str) -> KeySlot {
        MemorySink::key(self, source_id, object_id, key)
    }
}

/// A Kafka message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    /// Kafka's time, ms.
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// Messages by topic and partition, in the order of their offsets.
pub type Log = BTreeMap<(String, i32), Vec<Message>>;

/// What is configured for a topic.
#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    pub org: String,
    pub object: String,
    pub rules: TopicRules,
    pub grace: Micros,
    pub create_window: Micros,
}

impl Topic {
    /// With the settings that a user gets who sets nothing.
    pub fn new(name: &str, org: &str, object: &str) -> Self {
        Topic {
            name: name.into(),
            org: org.into(),
            object: object.into(),
            rules: TopicRules::default(),
            grace: 15 * 60 * 1_000_000,
            create_window: 24 * 3_600 * 1_000_000,
        }
    }
}

/// What happens to the worker after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// It goes on.
    Never,
    /// It is started again with its store.
    Warm,
    /// It is started again with nothing.
    Cold,
}

/// How messages are cut into chunks and batches.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Messages looked up together.
    pub chunk: usize,
    /// Messages per commit.
    pub batch: usize,
    /// The next batch is built while this one is being committed.
    pub pipelined: bool,
    /// After each commit. What was open then is lost, as in a crash.
    pub restart: Restart,
    /// Bytes of the hash front; 0 = none.
    pub front: usize,
}

/// A front that takes everything.
pub const FRONT: usize = 1 << 20;
/// A front for eight records, which makes room all the time.
pub const SMALL_FRONT: usize = 400;

impl Plan {
    /// All in one batch.
    pub const WHOLE: Plan =
        Plan { chunk: 1_000, batch: usize::MAX, pipelined: false, restart: Restart::Never, front: FRONT };

    pub fn slices(batch: usize, restart: Restart) -> Self {
        Plan { batch, restart, ..Plan::WHOLE }
    }
}

/// Records that a worker keeps, by home and identity.
pub type Store = HashMap<(PositionId, Box<str>), Record>;

/// Outcome of every message judged, in order; re-judged ones (after a crash) again.
pub type Outcomes = Vec<(String, i32, i64, Counter)>;

/// Sink, topics and stores.
#[derive(Debug, Default)]
pub struct World {
    pub sink: MemorySink,
    pub topics: BTreeMap<String, Topic>,
    stores: BTreeMap<String, Store>,
    pub outcomes: Outcomes,
}

impl World {
    pub fn new(topics: impl IntoIterator<Item = Topic>) -> Self {
        let topics = topics.into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        World { topics, ..World::default() }
    }

    /// Reads everything that is new in the log, merged by source time, and checks the sink.
    pub fn read(&mut self, log: &Log, plan: Plan) {
        for name in self.topics.keys().cloned().collect::<Vec<_>>() {
            let messages = merged(log.iter().filter(|((topic, _), _)| *topic == name).map(|(_, lane)| lane));
            self.read_in_order(&name, &messages, plan);
        }
    }

    /// Reads these messages of one topic in exactly this order.
    pub fn read_in_order(&mut self, topic: &str, messages: &[Message], plan: Plan) {
        let mut committed = 0;
        while committed < messages.len() {
            let store = self.stores.entry(topic.to_string()).or_default();
            if plan.restart == Restart::Cold {
                store.clear();
            }
            let mut worker = Worker::start(&self.topics[topic], &mut self.sink, store, &mut self.outcomes, plan.front);
            committed += worker.run(&messages[committed..], plan);
            self.sink.check();
        }
    }

    /// Places what was read too late, and lets the stores forget it; says what could not be placed.
    pub fn place_late(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for topic in self.topics.values() {
            let (_, object_id) = self.sink.source(&topic.name, &topic.org, &topic.object);
            let facts = self.sink.object(object_id).facts(object_id, topic.grace, topic.create_window);
            let (rewritten, kept) = self.sink.place_late(&facts, Micros::MAX);
            left.extend(kept.into_iter().map(|(sfid, why)| format!("{sfid}: {why}")));
            if let Some(store) = self.stores.get_mut(&topic.name) {
                store.retain(|(_, identity), _| !rewritten.iter().any(|sfid| **sfid == **identity));
            }
        }
        self.sink.check();
        left
    }

    /// Forgets what the stores hold.
    pub fn drop_stores(&mut self) {
        self.stores.clear();
    }

    /// How often an outcome came.
    pub fn count(&self, counter: Counter) -> i64 {
        self.sink.count(counter)
    }
}

/// Messages of several partitions as a worker takes them: by source commit time, LSN, deletes first; what has no time
/// of its own follows its predecessor at once; within a partition Kafka's order stands.
pub fn merged<'l>(lanes: impl Iterator<Item = &'l Vec<Message>>) -> Vec<Message> {
    let mut lanes: Vec<_> = lanes
        .map(|lane| {
            let turns = lane.iter().map(|message| {
                let peek = afterimage::core::decode::peek(message.key.as_deref(), message.value.as_deref());
                peek.ts().map_or((i64::MIN, 0, false), |ts| (ts, peek.lsn(), !peek.is_delete()))
            });
            (turns.collect::<Vec<_>>(), lane, 0)
        })
        .collect();
    let mut out = Vec::new();
    loop {
        let next = lanes.iter_mut().filter(|(turns, _, at)| *at < turns.len()).min_by_key(|(turns, _, at)| turns[*at]);
        let Some((_, lane, at)) = next else { return out };
        out.push(lane[*at].clone());
        *at += 1;
    }
}

struct Task {
    position_id: PositionId,
    epoch: i64,
    read: i64,
    passage: Passage,
}

/// Reads one topic's messages into batches.
pub struct Worker<'w, S> {
    topic: &'w Topic,
    pub sink: &'w mut S,
    store: &'w mut Store,
    outcomes: &'w mut Outcomes,
    source_id: i16,
    object_id: i16,
    decoder: Decoder,
    revision: u64,
    facts: ObjectFacts,
    numbers: Vec<Option<FieldNo>>,
    overlay: Overlay,
    open: OpenBatch,
    front: Front,
    tasks: BTreeMap<i32, Task>,
    in_flight: Option<(SealedBatch, usize)>,
}

struct Arrived<'m> {
    message: &'m Message,
    peek: Peek,
    /// `None` where the front seemed to know it.
    meaning: Option<Result<Decoded, DecodeError>>,
}

impl Arrived<'_> {
    fn event(&self) -> Option<&Event> {
        match &self.meaning {
            Some(Ok(Decoded::Event(event))) => Some(event),
            _ => None,
        }
    }
}

impl<'w, S: Sink> Worker<'w, S> {
    pub fn start(
        topic: &'w Topic,
        sink: &'w mut S,
        store: &'w mut Store,
        outcomes: &'w mut Outcomes,
        front: usize,
    ) -> Self {
        let (source_id, object_id) = sink.source(topic);
        let mut decoder = Decoder::new(topic.rules.clone());
        let object = sink.object(object_id);
        if let Some(identity) = object.identity.as_deref().and_then(ResolvedIdentity::from_sink) {
            decoder.preset_identity(identity);
        }
        decoder.print_rows(object_id, 0x5eed);
        decoder.restore_columns(object.fields.iter().map(|field| (field.name.as_str(), field.kind)));
        let mut worker = Worker {
            topic,
            sink,
            store,
            outcomes,
            source_id,
            object_id,
            revision: decoder.revision(),
            decoder,
            facts: ObjectFacts::default(),
            numbers: Vec::new(),
            overlay: Overlay::default(),
            open: OpenBatch::new(1),
            front: Front::new(front),
            tasks: BTreeMap::new(),
            in_flight: None,
        };
        worker.take_dictionary();
        worker
    }

    /// What was read since the last one, as a batch.
    pub fn seal(&mut self) -> SealedBatch {
        let after = OpenBatch::new(self.open.number() + 1);
        let open = std::mem::replace(&mut self.open, after);
        open.seal(&mut self.overlay, self.source_id, self.object_id)
    }

    /// What was read since the last batch was sealed.
    pub fn open(&self) -> &OpenBatch {
        &self.open
    }

    /// A batch is in the sink: the store takes what it leaves.
    pub fn committed(&mut self, batch: &SealedBatch) {
        for StoredRecord { identity, record, left, .. } in &batch.records {
            if let Some(left) = left {
                self.store.remove(&(*left, identity.clone()));
            }
            if let Some(home) = record.home {
                self.store.insert((home, identity.clone()), Record::clone(record));
            }
        }
        self.overlay.committed(batch.number);
    }

    /// A record was taken from a position of this worker.
    pub fn forget(&mut self, position_id: PositionId, identity: &str) {
        self.front.forget(key_hash(self.object_id, identity));
        self.store.remove(&(position_id, identity.into()));
    }

    /// Drops what the store has of a position.
    pub fn forget_position(&mut self, position_id: PositionId) {
        self.store.retain(|(home, _), _| *home != position_id);
    }

    /// Everything that is not committed is void; partitions stand where the sink says.
    pub fn rewind(&mut self) {
        self.overlay.clear();
        self.front.clear();
        self.open = OpenBatch::new(self.open.number() + 1);
        self.tasks.clear();
    }

    fn task(&mut self, message: &Message) {
        if !self.tasks.contains_key(&message.partition) {
            let Standing { position_id, epoch, next, passage } =
                self.sink.standing(self.source_id, message.partition, message.offset);
            self.tasks.insert(message.partition, Task { position_id, epoch, read: next, passage });
        }
    }

    // ---- one chunk ------------------------------------------------------------------------------------

    /// Takes messages into the open batch.
    pub fn process(&mut self, messages: &[Message]) {
        let mut arrived = Vec::with_capacity(messages.len());
        for message in messages {
            self.task(message);
            let (key, value) = (message.key.as_deref(), message.value.as_deref());
            let peek = self.decoder.peek(key, value);
            let mut one = Arrived { message, peek, meaning: None };
            let position_id = self.tasks[&message.partition].position_id;
            if !one.peek.may_repeat().is_some_and(|(print, lsn)| self.front.would_repeat(position_id, print, lsn)) {
                one.meaning = Some(self.decoder.decode(&one.peek, key, value));
            }
            arrived.push(one);
            self.note_fields(&arrived[arrived.len() - 1]);
        }
        self.prefetch(&arrived);
        for one in &mut arrived {
            self.take(one);
        }
        self.overlay.forget_clean();
    }

    fn note_fields(&mut self, one: &Arrived<'_>) {
        if self.decoder.revision() == self.revision && self.numbers.len() == self.decoder.columns().len() {
            return;
        }
        self.revision = self.decoder.revision();
        let at = one.event().and_then(|event| event.ts);
        let identity = self.decoder.identity().map(ResolvedIdentity::to_sink);
        let columns: Vec<_> =
            self.decoder.columns().iter().map(|column| (column.name.to_string(), column.class, column.kind)).collect();
        self.sink.note(self.object_id, identity, &columns, at);
        self.take_dictionary();
    }

    fn take_dictionary(&mut self) {
        let object = self.sink.object(self.object_id);
        self.facts = object.facts(self.object_id, self.topic.grace, self.topic.create_window);
        let no = |name: &str| object.fields.iter().find(|field| field.name == name).map(|field| field.no);
        self.numbers = self.decoder.columns().iter().map(|column| no(&column.name)).collect();
    }

    fn numbered(&self, event: &Event) -> Vec<(FieldNo, Value)> {
        let mut fields: Vec<(FieldNo, Value)> = (event.row.values.iter())
            .map(|(index, value)| (self.numbers[usize::from(*index)].expect("a noted column"), value.clone()))
            .collect();
        fields.sort_by_key(|(no, _)| *no);
        fields
    }

    fn prefetch(&mut self, arrived: &[Arrived<'_>]) {
        for one in arrived {
            let Some(event) = one.event() else { continue };
            if let Some(identity) = &event.identity {
                let register = event.op != Op::Delete;
                self.load_record(identity, self.tasks[&one.message.partition].position_id, &event.key, register);
            }
        }
        let settled =
            |event: &Event| {
                event.identity.as_ref().and_then(|identity| self.overlay.record(identity)).is_some_and(|slot| {
                    slot.record.head.is_some() && slot.record.row_key.as_deref() == Some(&event.key)
                })
            };
        let keys: BTreeSet<Box<str>> =
            arrived.iter().filter_map(Arrived::event).filter(|e| !settled(e)).map(|e| e.key.clone()).collect();
        for key in keys {
            self.load_key(&key);
        }
    }

    fn load_record(&mut self, identity: &str, position_id: PositionId, key: &str, register: bool) {
        if self.overlay.record(identity).is_some() {
            return;
        }
        if let Some(record) = self.store.get(&(position_id, identity.into())) {
            self.overlay.load_record(identity.into(), record.clone());
            return;
        }
        if register {
            self.sink.register(self.object_id, identity, position_id, key);
        }
        if let Some(record) = self.sink.record(self.object_id, identity) {
            self.overlay.load_record(identity.into(), record);
        }
    }

    fn load_key(&mut self, key: &str) {
        while self.overlay.key(key).is_none() {
            let slot = self.sink.key(self.source_id, self.object_id, key);
            let named: Vec<Box<str>> =
                slot.owner.iter().cloned().chain(slot.old.as_ref().map(|old| old.identity.clone())).collect();
            self.overlay.load_key(key.into(), slot);
            for identity in named {
                self.load_record(&identity, 0, "", false);
            }
            // Two questions see two moments: a record that another worker moved in between is asked for again.
            self.overlay.forget_if_moved(key);
        }
    }

    fn take(&mut self, one: &mut Arrived<'_>) {
        let Message { partition, offset, .. } = *one.message;
        let task = &self.tasks[&partition];
        if offset < task.read {
            return;
        }
        let Task { position_id, epoch, read, .. } = *task;
        let start = Advance { passage: task.passage.clone(), ..Advance::standing(position_id, epoch, read) };
        if let Some((print, lsn)) = one.peek.may_repeat()
            && let Some(outcome) = self.front.repeat(position_id, print, lsn)
        {
            self.open.advance(position_id, || start, offset, Some(outcome));
            self.open.touch(print.record);
            self.passage(partition).pass(one.peek.ts(), lsn, row(one.message.key.as_deref(), false));
            self.noted(one, outcome, position_id);
            return;
        }
        if one.meaning.is_none() {
            let (key, value) = (one.message.key.as_deref(), one.message.value.as_deref());
            one.meaning = Some(self.decoder.decode(&one.peek, key, value));
            self.prefetch(std::slice::from_ref(one));
        }
        let outcome = match one.meaning.as_ref().expect("decoded above") {
            Ok(Decoded::Event(event)) => {
                self.open.advance(position_id, || start, offset, None);
                let row = row(one.message.key.as_deref(), event.op == Op::Delete);
                let passed = self.passage(partition).pass(event.ts, event.lsn, row);
                let outcome = self.judge(one, event, position_id, passed);
                self.open.count(position_id, outcome, 1);
                outcome
            }
            Ok(Decoded::Tombstone) => self.passive(start, offset, Counter::Tombstone),
            Ok(Decoded::Ignored(_)) => self.passive(start, offset, Counter::Ignored),
            Err(error) => {
                self.open.push_dead(DeadLetter {
                    position_id,
                    offset,
                    reason: error.reason.as_str().into(),
                    detail: error.detail.clone(),
                    sfid: error.sfid.clone(),
                    key: one.message.key.clone(),
                    value: one.message.value.clone(),
                    sha256: None,
                });
                self.passive(start, offset, Counter::Dead)
            }
        };
        self.noted(one, outcome, position_id);
    }

    fn passage(&mut self, partition: i32) -> &mut Passage {
        &mut self.tasks.get_mut(&partition).expect("made with the message").passage
    }

    fn noted(&mut self, one: &Arrived<'_>, outcome: Counter, position_id: PositionId) {
        let Message { partition, offset, timestamp_ms, .. } = *one.message;
        self.outcomes.push((self.topic.name.clone(), partition, offset, outcome));
        let task = self.tasks.get_mut(&partition).expect("made with the message");
        task.read = offset + 1;
        self.open.progress(position_id, (offset, Some(timestamp_ms), 0), &task.passage);
    }

    fn passive(&mut self, start: Advance, offset: i64, outcome: Counter) -> Counter {
        self.open.advance(start.position_id, || start, offset, Some(outcome));
        outcome
    }

    fn judge(&mut self, one: &Arrived<'_>, event: &Event, position_id: PositionId, passed: bool) -> Counter {
        let message = one.message;
        let print = if let Peek::Row(envelope) = &one.peek { envelope.print } else { None };
        loop {
            let arrival = Arrival {
                position_id,
                offset: message.offset,
                message_time: message.timestamp_ms * 1000,
                // A clock that stands still a little after the message: nothing may depend on it.
                now: (message.timestamp_ms + 500) * 1000,
                passed,
                event,
                fields: self.numbered(event),
                print,
            };
            let (overlay, batch, front) = (&mut self.overlay, &mut self.open, &mut self.front);
            match (Judge { object: &self.facts, overlay, batch, front }).judge(arrival) {
                Ok(outcome) => return outcome,
                Err(Need::Key(key)) => self.load_key(&key),
                Err(Need::Record(identity)) => self.load_record(&identity, position_id, &event.key, true),
            }
        }
    }
}

impl Worker<'_, MemorySink> {
    /// Reads until all is committed, or until a restart is due; returns how many messages are committed.
    fn run(&mut self, messages: &[Message], plan: Plan) -> usize {
        let (mut taken, mut sealed, mut committed) = (0, 0, 0);
        while taken < messages.len() {
            let room = plan.batch - (taken - sealed);
            let until = messages.len().min(taken.saturating_add(plan.chunk.min(room)));
            self.process(&messages[taken..until]);
            taken = until;
            if taken - sealed < plan.batch && taken < messages.len() {
                continue;
            }
            // Depth one: a batch is sent once the one before it is known to be committed.
            committed += self.settle();
            self.in_flight = Some((self.seal(), taken - sealed));
            sealed = taken;
            if !plan.pipelined {
                committed += self.settle();
            }
            if plan.restart != Restart::Never && committed > 0 {
                return committed;
            }
        }
        committed + self.settle()
    }

    /// Commits what is in flight.
    fn settle(&mut self) -> usize {
        let Some((batch, events)) = self.in_flight.take() else { return 0 };
        self.sink.apply(&batch);
        self.committed(&batch);
        for StoredRecord { identity, record, .. } in &batch.records {
            self.compare(identity, record);
        }
        events
    }

    /// What a batch leaves in the store is what a reader folds from the rows.
    fn compare(&self, identity: &str, kept: &Record) {
        let mut read =
            MemorySink::record(self.sink, self.object_id, identity).expect("a committed record is in the sink");
        let mut kept = kept.clone();
        // Nothing is decided by a deleted record's last key; hashes are best effort and not in the sink.
        kept.deleted_key = read.deleted_key.clone();
        (read.status_hash, read.system_hash) = (kept.status_hash, kept.system_hash);
        assert_eq!(kept, read, "{identity}: kept and folded differ");
    }
}
