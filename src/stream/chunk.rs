//! A chunk of messages in order: decode, look up what they need, judge one after the other.

// A message moves from inbox to lane to chunk; boxed, that is a pointer each time and not 400 bytes.
#![allow(clippy::vec_box, clippy::borrowed_box)]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use sha2::{Digest, Sha256};

use super::group::{Ended, Group};
use super::task::Task;
use crate::core::batch::{DEAD_LETTER_BYTES, DeadLetter};
use crate::core::decode::{DecodeError, Decoded, Decoder, Envelope, Peek};
use crate::core::event::{Event, Micros, Op};
use crate::core::judge::{Arrival, Judge, Need, believable};
use crate::core::lineage::message_hash;
use crate::core::position::{Counter, PositionId, row};
use crate::kafka::Message;
use crate::postgres::client::describe;
use crate::postgres::lookup::{self, LookupError, Newcomer};
use crate::postgres::{registry, search};
use crate::telemetry::names;

/// A message that was looked at, and waits for its turn.
#[derive(Debug)]
pub struct Arrived {
    /// The message.
    pub message: Message,
    /// What the first look found.
    pub peeked: Peek,
    /// What it means; not read before its turn comes close. `None` also while it seems to repeat what its record's last
    /// event said: such a message is not decoded.
    pub meaning: Option<Result<Decoded, DecodeError>>,
    /// It waited already when lanes were looked through last.
    pub waited: bool,
}

impl Arrived {
    pub(super) fn event(&self) -> Option<&Event> {
        match &self.meaning {
            Some(Ok(Decoded::Event(event))) => Some(event),
            _ => None,
        }
    }

    pub(super) fn envelope(&self) -> Option<&Envelope> {
        if let Peek::Row(envelope) = &self.peeked { Some(envelope) } else { None }
    }

    fn decode(&mut self, decoder: &mut Decoder) {
        self.meaning = Some(decoder.decode(&self.peeked, self.message.key(), self.message.payload()));
    }
}

/// A question that is not answered by then is asked again on a new connection: this one has gone silent without closing.
/// Looking up a whole chunk takes milliseconds, on a cold and busy server seconds.
const QUESTION_TIME: Duration = Duration::from_secs(30);

/// Why a question is asked again.
enum Unanswered {
    /// For a reason that may pass.
    Refused(crate::postgres::Error),
    /// No connection, or nothing heard on it.
    Silent(String),
}

/// Ops and their labels; the most frequent first.
const OPS: [(Op, &str); 4] =
    [(Op::Update, "update"), (Op::Create, "create"), (Op::Delete, "delete"), (Op::Read, "read")];

impl Group {
    /// Judges a chunk into the open batch.
    pub(super) fn process(&mut self, mut arrived: Vec<Box<Arrived>>) -> Result<(), Ended> {
        let mut new_columns: Vec<(usize, Option<Micros>)> = Vec::new();
        self.now = Group::now();
        // What only tells the image store what to forget has to be decoded.
        let catching_up = !self.tasks.values().all(Task::caught_up);
        for one in &mut arrived {
            if catching_up || !self.seems_to_repeat(one) {
                let before = self.parts.decoder.columns().len();
                one.decode(&mut self.parts.decoder);
                let new = before..self.parts.decoder.columns().len();
                new_columns.extend(new.map(|index| (index, one.peeked.ts())));
            }
        }
        self.count_events(&arrived);
        if self.dictionary_stale {
            self.read_dictionary()?;
        }
        let foreign = self.set_foreign_apart(&mut arrived);
        let mut arrived = if catching_up { self.forget_passed(arrived)? } else { arrived };
        let flooded = self.set_floods_apart(&mut arrived);
        self.note_fields(&arrived, &new_columns)?;
        self.prefetch(arrived.iter().map(AsRef::as_ref))?;
        for one in &mut arrived {
            self.take(one)?;
        }
        self.note_progress(&arrived);
        self.note_troubles()?;
        self.overlay.forget_clean();
        self.halt(foreign)?;
        self.halt_floods(flooded)
    }

    fn seems_to_repeat(&self, one: &Arrived) -> bool {
        let (Some((print, lsn)), Some(task)) = (one.peeked.may_repeat(), self.tasks.get(&one.message.partition)) else {
            return false;
        };
        self.front.would_repeat(task.position_id, print, lsn)
    }

    fn count_events(&self, arrived: &[Box<Arrived>]) {
        let mut counts = [0; OPS.len()];
        for one in arrived.iter().filter(|one| !matches!(one.meaning, Some(Err(_)))) {
            if let Some(envelope) = one.envelope()
                && let Some(at) = OPS.iter().position(|(op, _)| *op == envelope.op)
            {
                counts[at] += 1;
            }
        }
        for ((_, label), count) in OPS.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
            counter!(names::EVENTS_DECODED, "topic" => self.parts.topic.to_string(), "op" => label).increment(count);
        }
    }

    // ---- catching up ------------------------------------------------------------------------------------

    /// Messages that were committed before this claim are not judged again; the image store may not know what they
    /// changed, so it forgets their records (D13). Returns the others.
    fn forget_passed(&mut self, arrived: Vec<Box<Arrived>>) -> Result<Vec<Box<Arrived>>, Ended> {
        let mut gone: HashSet<(PositionId, Box<str>)> = HashSet::new();
        let mut keys: BTreeSet<(PositionId, Box<str>)> = BTreeSet::new();
        let mut rest = Vec::with_capacity(arrived.len());
        for one in arrived {
            let Some(task) = self.tasks.get_mut(&one.message.partition) else { continue };
            if one.message.offset >= task.catch_up_to {
                // The range may have ended in offsets without a message.
                task.read = task.read.max(task.catch_up_to);
                rest.push(one);
                continue;
            }
            task.read = one.message.offset + 1;
            if let Some(event) = one.event() {
                if let Some(identity) = &event.identity {
                    gone.insert((task.position_id, identity.clone()));
                }
                // And whoever held this key: it lost it, or was deleted under it.
                keys.insert((task.position_id, event.key.clone()));
            }
        }
        self.await_applying();
        let object_id = self.parts.source.object_id;
        let wanted: Vec<(PositionId, &str)> = keys.iter().map(|(position, key)| (*position, &**key)).collect();
        let holders = self.parts.images.holders(object_id, &wanted).map_err(|_| Ended)?;
        gone.extend(wanted.iter().zip(holders).filter_map(|((position, _), holder)| Some((*position, holder?))));
        counter!(names::STATE_INVALIDATED, "reason" => "catch_up").increment(gone.len() as u64);
        let gone: Vec<_> = gone
            .into_iter()
            .map(|(position_id, identity)| crate::postgres::commit::Invalidated { position_id, object_id, identity })
            .collect();
        // Without a mark: it stays behind until a batch of this claim is committed, and a crash catches up again.
        self.parts.images.apply(object_id, &[], &gone, []).map_err(|_| Ended)?;
        failpoint!("restore.forgotten");
        Ok(rest)
    }

    // ---- fields -----------------------------------------------------------------------------------------

    /// Others may have added fields.
    pub(super) fn read_dictionary(&mut self) -> Result<(), Ended> {
        let object_id = self.parts.source.object_id;
        let fields = self.ask(async |client| registry::fields(client, object_id).await)?;
        self.parts.dictionary.take(fields);
        self.dictionary_stale = false;
        Ok(())
    }

    fn note_fields(&mut self, arrived: &[Box<Arrived>], new: &[(usize, Option<Micros>)]) -> Result<(), Ended> {
        // Not the chunk's first time: history must not depend on where a chunk begins. A column that is not new here
        // (its class or type changed, or an earlier chunk was cut off) is of the chunk.
        let of_chunk = arrived.iter().filter_map(|one| one.event()?.ts).min();
        let at = |index: usize| new.iter().find(|(new, _)| *new == index).map_or(of_chunk, |(_, ts)| *ts);
        let unknown = self.parts.dictionary.unknown(&self.parts.decoder, at);
        if !unknown.is_empty() {
            let object_id = self.parts.source.object_id;
            let identity = self.parts.decoder.identity().map(|identity| identity.to_sink());
            let fields = self.ask(async |client| {
                if let Some(identity) = &identity {
                    registry::settle_identity(client, object_id, identity).await?;
                }
                registry::note_fields(client, object_id, &unknown).await
            })?;
            tracing::info!(topic = %self.parts.topic, fields = unknown.len(), "fields noted");
            self.parts.dictionary.take(fields);
            // Fills the map from columns to numbers.
            let left = self.parts.dictionary.unknown(&self.parts.decoder, at);
            if !left.is_empty() {
                tracing::error!(topic = %self.parts.topic, "the sink's field dictionary does not take new fields");
                return Err(Ended);
            }
            self.views_stale = true;
            self.warn_of_undeclared_types();
        }
        if self.views_stale && !arrived.is_empty() {
            self.views_stale = false;
            self.parts.views.refresh(self.parts.source.object_id);
        }
        Ok(())
    }

    /// What judging found wrong with fields: told once each, and left in the sink for admins.
    fn note_troubles(&mut self) -> Result<(), Ended> {
        let object_id = self.parts.source.object_id;
        let (misfits, overlong) = (self.open.take_misfits(), self.open.take_overlong());
        for (no, message) in misfits {
            if self.parts.dictionary.says_misfit(no) {
                let field = self.parts.dictionary.name(no);
                tracing::warn!(
                    topic = %self.parts.topic, field, position = message.0, offset = message.1,
                    "a value does not fit the type declared for its field: the typed view shows NULL; correct `types` \
                     (see afterimage.fields)"
                );
                self.ask(async |client| registry::note_misfit(client, object_id, no, message).await)?;
                self.parts.views.refresh(object_id);
            }
        }
        for no in overlong {
            let field = self.parts.dictionary.name(no);
            tracing::warn!(
                topic = %self.parts.topic, field,
                "a value is too long for a lookup field, which is given up: take it out of `lookup`"
            );
            self.ask(async |client| search::refuse(client, object_id, no).await)?;
            self.dictionary_stale = true;
            self.parts.views.refresh(object_id);
        }
        Ok(())
    }

    fn warn_of_undeclared_types(&mut self) {
        if self.warned_types {
            return;
        }
        let columns: Vec<&str> = self.parts.decoder.undeclared_numbers().collect();
        if !columns.is_empty() {
            self.warned_types = true;
            tracing::warn!(
                topic = %self.parts.topic, columns = columns.join(", "),
                "numbers without a declared type are kept as they come: declare `types` for dates and times among them"
            );
        }
    }

    // ---- looking up -------------------------------------------------------------------------------------

    /// Runs a question to the sink, reconnecting as long as it takes.
    pub(super) fn ask<T, E: Into<LookupError>>(
        &mut self,
        question: impl AsyncFn(&mut crate::postgres::Client) -> Result<T, E>,
    ) -> Result<T, Ended> {
        let mut tries = 0u32;
        loop {
            let runtime = self.parts.runtime.clone();
            let answer = runtime.block_on(async {
                let client = match &mut self.reader {
                    Some(client) if !client.is_closed() => client,
                    slot => match self.parts.sink.connect().await {
                        Ok(client) => slot.insert(client),
                        Err(error) => return Err(Unanswered::Silent(error.to_string())),
                    },
                };
                let answer = tokio::time::timeout(QUESTION_TIME, question(client)).await;
                let silent = || Unanswered::Silent(format!("no answer within {} s", QUESTION_TIME.as_secs()));
                match answer.map_err(|_| silent())? {
                    Ok(answer) => Ok(Ok(answer)),
                    Err(error) => match error.into() {
                        LookupError::Query(error) if is_lasting(&error) => Ok(Err(LookupError::Query(error))),
                        LookupError::Query(error) if error.code().is_some() => Err(Unanswered::Refused(error)),
                        LookupError::Query(error) => Err(Unanswered::Silent(describe(&error))),
                        stored => Ok(Err(stored)),
                    },
                }
            });
            match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    tracing::error!(topic = %self.parts.topic, %error, "the sink refuses a question; stopping");
                    return Err(Ended);
                }
                Err(unanswered) => {
                    tries += 1;
                    match unanswered {
                        Unanswered::Refused(error) => self.tell_refusal("a question", &error),
                        Unanswered::Silent(error) => {
                            tracing::warn!(topic = %self.parts.topic, %error, tries, "the sink does not answer; asking again");
                        }
                    }
                    self.reader = None;
                    if self.interrupted(super::committer::pause_after(tries).min(Duration::from_secs(3))) {
                        return Err(Ended);
                    }
                }
            }
        }
    }

    fn lookup_keys(&mut self, keys: &[&str]) -> Result<Vec<(Box<str>, crate::core::overlay::KeySlot)>, Ended> {
        let facts = Arc::clone(self.parts.dictionary.facts());
        let source_id = self.parts.source.source_id;
        counter!(names::IMAGE_LOOKUPS, "result" => "key").increment(keys.len() as u64);
        self.ask(async |client| lookup::keys(client, &facts, source_id, keys).await)
    }

    /// Loads what a chunk needs in a few batched questions. What it misses, judging asks for.
    fn prefetch<'a>(&mut self, arrived: impl IntoIterator<Item = &'a Arrived> + Clone) -> Result<(), Ended> {
        let mut wanted: BTreeMap<&str, (PositionId, &str, bool)> = BTreeMap::new();
        for one in arrived.clone() {
            let (Some(event), Some(task)) = (one.event(), self.tasks.get(&one.message.partition)) else { continue };
            if let Some(identity) = &event.identity
                && self.overlay.record(identity).is_none()
            {
                let register = event.op != Op::Delete;
                let entry = wanted.entry(identity).or_insert((task.position_id, &event.key, register));
                entry.2 |= register;
            }
        }
        let found = self.stored(&wanted)?;
        let missing: BTreeMap<&str, (PositionId, &str, bool)> =
            wanted.into_iter().filter(|(identity, _)| !found.contains(*identity)).collect();
        self.load_records(&missing)?;

        let mut keys: BTreeSet<&str> = BTreeSet::new();
        for one in arrived {
            let Some(event) = one.event() else { continue };
            let settled = event.identity.as_ref().is_some_and(|identity| {
                self.overlay.record(identity).is_some_and(|slot| {
                    slot.record.head.is_some() && slot.record.row_key.as_deref() == Some(&event.key)
                })
            });
            if !settled && self.overlay.key(&event.key).is_none() {
                keys.insert(&event.key);
            }
        }
        self.load_keys(&keys.into_iter().collect::<Vec<_>>())
    }

    /// Loads records from the image store; returns which were there.
    fn stored<'w>(
        &mut self,
        wanted: &BTreeMap<&'w str, (PositionId, &'w str, bool)>,
    ) -> Result<HashSet<&'w str>, Ended> {
        let mut found = HashSet::new();
        if wanted.is_empty() {
            return Ok(found);
        }
        let keys: Vec<(PositionId, &str)> =
            wanted.iter().map(|(identity, (position, ..))| (*position, *identity)).collect();
        let records = self.parts.images.get(self.parts.source.object_id, &keys).map_err(|_| Ended)?;
        for ((_, identity), record) in keys.into_iter().zip(records) {
            if let Some(record) = record {
                self.overlay.load_stored(identity.into(), record);
                found.insert(identity);
            }
        }
        counter!(names::IMAGE_LOOKUPS, "result" => "store").increment(found.len() as u64);
        Ok(found)
    }

    /// Loads records from Postgres, registering those that it does not know.
    fn load_records(&mut self, wanted: &BTreeMap<&str, (PositionId, &str, bool)>) -> Result<(), Ended> {
        if wanted.is_empty() {
            return Ok(());
        }
        let facts = Arc::clone(self.parts.dictionary.facts());
        let identities: Vec<&str> = wanted.keys().copied().collect();
        let started = Instant::now();
        let mut records = self.ask(async |client| lookup::records(client, &facts, &identities).await)?;
        histogram!(names::READ_THROUGH_SECONDS).record(started.elapsed().as_secs_f64());
        let known: HashSet<&str> = records.iter().map(|(identity, _)| &**identity).collect();
        let newcomers: Vec<Newcomer> = wanted
            .iter()
            .filter(|(identity, (.., register))| *register && !known.contains(**identity))
            .map(|(identity, (position, key, _))| ((*identity).into(), *position, (*key).into()))
            .collect();
        counter!(names::IMAGE_LOOKUPS, "result" => "postgres").increment(known.len() as u64);
        counter!(names::IMAGE_LOOKUPS, "result" => "new").increment(newcomers.len() as u64);
        if !newcomers.is_empty() {
            let identities: Vec<&str> = newcomers.iter().map(|(identity, ..)| &**identity).collect();
            let more = self.ask(async |client| {
                lookup::register(client, facts.object_id, &mut newcomers.clone()).await?;
                lookup::records(client, &facts, &identities).await
            })?;
            records.extend(more);
        }
        for (identity, found) in records {
            self.overlay.load_found(identity, found);
        }
        Ok(())
    }

    /// Loads keys from Postgres, with the records that they name. Two questions see two moments: a record that moved
    /// in between is asked for again.
    fn load_keys(&mut self, keys: &[&str]) -> Result<(), Ended> {
        let mut left = keys.to_vec();
        while !left.is_empty() {
            self.load_keys_once(&left)?;
            left.retain(|key| self.overlay.forget_if_moved(key));
        }
        Ok(())
    }

    fn load_keys_once(&mut self, keys: &[&str]) -> Result<(), Ended> {
        let slots = self.lookup_keys(keys)?;
        let mut named: BTreeSet<Box<str>> = BTreeSet::new();
        for (key, slot) in slots {
            named.extend(slot.owner.iter().cloned());
            named.extend(slot.old.iter().map(|old| old.identity.clone()));
            self.overlay.load_key(key, slot);
        }
        let missing: BTreeMap<&str, (PositionId, &str, bool)> = named
            .iter()
            .filter(|identity| self.overlay.record(identity).is_none())
            .map(|identity| (&**identity, (0, "", false)))
            .collect();
        self.load_records(&missing)?;
        Ok(())
    }

    // ---- judging ----------------------------------------------------------------------------------------

    fn take(&mut self, one: &mut Arrived) -> Result<(), Ended> {
        let Some(task) = self.tasks.get_mut(&one.message.partition) else { return Ok(()) };
        let offset = one.message.offset;
        if offset < task.read {
            return Ok(());
        }
        let position_id = task.position_id;
        if let Some((print, lsn)) = one.peeked.may_repeat()
            && let Some(outcome) = self.front.repeat(position_id, print, lsn)
        {
            self.open.advance(position_id, || task.start(), offset, Some(outcome));
            self.open.touch(print.record);
            // What repeats is an update.
            let row = row(one.message.key(), false);
            task.passage.pass(believable(one.peeked.ts(), self.now), lsn, row);
            task.read = offset + 1;
            self.repeated += 1;
            return Ok(());
        }
        if one.meaning.is_none() {
            // An event before it in this chunk changed its record.
            one.decode(&mut self.parts.decoder);
            self.prefetch([&*one])?;
        }
        let Some(task) = self.tasks.get_mut(&one.message.partition) else { return Ok(()) };
        let (start, advance) = (|| task.start(), &mut self.open);
        match &one.meaning {
            Some(Ok(Decoded::Event(event))) => {
                // The offset is taken into the range first: what judging counts belongs to it.
                advance.advance(position_id, start, offset, None);
                let row = row(one.message.key(), event.op == Op::Delete);
                let passed = task.passage.pass(believable(event.ts, self.now), event.lsn, row);
                let outcome = self.judge(one, event, position_id, passed)?;
                self.open.count(position_id, outcome, 1);
            }
            Some(Ok(Decoded::Tombstone)) => advance.advance(position_id, start, offset, Some(Counter::Tombstone)),
            Some(Ok(Decoded::Ignored(_))) | None => advance.advance(position_id, start, offset, Some(Counter::Ignored)),
            Some(Err(error)) => {
                advance.advance(position_id, start, offset, Some(Counter::Dead));
                if self.warned_reasons.insert(error.reason.as_str()) {
                    tracing::warn!(
                        topic = %self.parts.topic, partition = one.message.partition, offset,
                        reason = error.reason.as_str(), detail = %error.detail,
                        "dead letter, the first for this reason: see afterimage.dead_letters"
                    );
                }
                self.open.push_dead(dead_letter(position_id, &one.message, error));
            }
        }
        if let Some(task) = self.tasks.get_mut(&one.message.partition) {
            task.read = offset + 1;
        }
        Ok(())
    }

    /// Notes the last message of each partition, and what it has passed.
    fn note_progress(&mut self, arrived: &[Box<Arrived>]) {
        if self.repeated > 0 {
            counter!(names::IMAGE_LOOKUPS, "result" => "front").increment(self.repeated);
            self.repeated = 0;
        }
        for task in self.tasks.values() {
            let last =
                |one: &&Box<Arrived>| one.message.partition == task.partition && one.message.offset + 1 == task.read;
            if let Some(one) = arrived.iter().rev().find(last) {
                let hash = message_hash(one.message.key(), one.message.payload());
                let last = (one.message.offset, one.message.timestamp_ms, hash);
                self.open.progress(task.position_id, last, &task.passage);
            }
        }
    }

    fn judge(&mut self, one: &Arrived, event: &Event, position_id: PositionId, passed: bool) -> Result<Counter, Ended> {
        let now = self.now;
        let print = one.envelope().and_then(|envelope| envelope.print);
        loop {
            let arrival = Arrival {
                position_id,
                offset: one.message.offset,
                message_time: one.message.timestamp_ms.map_or(now, |ms| ms.saturating_mul(1000)),
                now,
                passed,
                event,
                fields: self.parts.dictionary.number(event),
                print,
            };
            let mut judge = Judge {
                object: self.parts.dictionary.facts(),
                overlay: &mut self.overlay,
                batch: &mut self.open,
                front: &mut self.front,
            };
            match judge.judge(arrival) {
                Ok(outcome) => return Ok(outcome),
                Err(Need::Key(key)) => self.load_keys(&[&key])?,
                Err(Need::Record(identity)) => {
                    let wanted = BTreeMap::from([(&*identity, (position_id, &*event.key, true))]);
                    self.load_records(&wanted)?;
                }
            }
        }
    }
}

/// Whether asking again can't help: neither the connection or its state, nor resources, locks or an operator's hand were
/// the reason.
pub(super) fn is_lasting(error: &crate::postgres::Error) -> bool {
    error.code().is_some_and(|code| !["08", "25", "40", "53", "55", "57", "58"].contains(&&code.code()[..2]))
}

fn dead_letter(position_id: PositionId, message: &Message, error: &DecodeError) -> DeadLetter {
    let whole = message.payload();
    let cut = whole.is_some_and(|value| value.len() > DEAD_LETTER_BYTES);
    DeadLetter {
        position_id,
        offset: message.offset,
        reason: error.reason.as_str().to_string(),
        detail: error.detail.clone(),
        sfid: error.sfid.clone(),
        key: message.key().map(<[u8]>::to_vec),
        value: whole.map(|value| value[..value.len().min(DEAD_LETTER_BYTES)].to_vec()),
        sha256: whole.filter(|_| cut).map(|value| Sha256::digest(value).into()),
    }
}
