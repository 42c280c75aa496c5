//! Dead letters, once more: decoded with what this program knows now, judged and committed like any message, by a position of
//! their own (protocol D9). So it needs no Kafka, and does no harm beside workers: it takes records over as they do, and they
//! take them back.
//!
//! Each run is another life of that position, and reads in the source's order. A message whose record is further by now
//! becomes a late event. Were it the same position as in the run before, it would look as if it had been judged there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::TopicPlan;
use super::dictionary::Dictionary;
use crate::core::batch::{Advance, OpenBatch, Resolved, SealedBatch};
use crate::core::decode::{DecodeError, Decoded, Decoder, ResolvedIdentity};
use crate::core::event::{Event, Micros, Op};
use crate::core::front::Front;
use crate::core::judge::{Arrival, Judge, Need, ObjectFacts};
use crate::core::overlay::Overlay;
use crate::core::position::{Counter, PositionId};
use crate::postgres::claim::{Claim, ClaimError, Claimant, Wanted, claim};
use crate::postgres::client::{ConnectError, SinkSettings};
use crate::postgres::commit::{CommitError, Held, commit};
use crate::postgres::dead_letters::{self, Body, Letters, RetrySource};
use crate::postgres::lookup::{self, LookupError};
use crate::postgres::registry::{self, RegistryError};
use crate::postgres::{Client, Error, search};

/// Letters of one commit.
const CHUNK: usize = 50;
/// A chunk that has to be judged again, because its records moved meanwhile, is so at most this often.
const TRIES: u32 = 10;

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retried {
    /// Brought in, by outcome. In a dry run: `decoded`.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Still not decodable, by reason.
    pub still: BTreeMap<&'static str, u64>,
    /// Their values were cut when they were put aside.
    pub cut: u64,
}

/// Why it stopped. What was committed before stays, and is marked: it can be run again.
#[derive(Debug, thiserror::Error)]
pub enum RetryError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A question failed.
    #[error("the sink: {}", crate::postgres::client::describe(.0))]
    Query(#[from] Error),
    /// The topic is recorded for another object.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// No claim.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Another run has begun.
    #[error("another retry of this topic has begun meanwhile")]
    Another,
    /// A look-up failed.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// A commit failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Records moved again and again.
    #[error("the records of these messages moved {TRIES} times while they were judged")]
    Moving,
}

/// The place of a letter in the source's order, and in the sink.
type Place = ((Option<Micros>, u64, bool), (PositionId, i64));

/// Retries the open dead letters of one topic. `dry_run`: decodes only.
///
/// # Errors
/// See [`RetryError`].
pub async fn retry(
    sink: &SinkSettings,
    claimant: &Claimant,
    plan: &TopicPlan,
    which: &Letters,
    dry_run: bool,
) -> Result<Retried, RetryError> {
    let mut client = sink.connect().await?;
    let which = Letters { topic: Some(plan.declared.topic.clone()), resolved: false, ..which.clone() };
    let source = dead_letters::source(&client, &plan.declared.topic).await?;
    let now = format!("{}.{}", plan.declared.org, plan.declared.object);
    let Some(source) = source.filter(|source| source.name == now) else {
        let before = "another object".to_owned();
        return Err(RegistryError::Moved { topic: plan.declared.topic.clone(), before, now }.into());
    };
    let mut retried = Retried::default();
    let mut decoder = decoder(plan, &source);
    let places = places(&client, &which, &mut decoder, &mut retried).await?;
    if dry_run || places.is_empty() {
        if !places.is_empty() {
            retried.outcomes.insert("decoded", places.len() as u64);
        }
        return Ok(retried);
    }
    let retry_source = dead_letters::begin_retry(&mut client, &source, &plan.declared.topic).await?;
    let wanted = Wanted {
        source_id: retry_source,
        topic: plan.declared.topic.as_str().into(),
        partition: 0,
        earliest: 0,
        end: i64::MAX,
        found: None,
    };
    let (claims, _) = claim(sink, claimant, &[wanted]).await?;
    let claim = claims.into_iter().next().ok_or(RetryError::Another)?;
    failpoint!("retry.claimed");
    let fields = registry::fields(&client, source.object_id).await?;
    let facts = ObjectFacts {
        object_id: source.object_id,
        grace: plan.declared.grace,
        create_window: plan.create_window,
        ..ObjectFacts::default()
    };
    let mut run = Run {
        client,
        decoder,
        dictionary: Dictionary::new(facts, fields),
        held: Held { epoch: claim.epoch, next: claim.next, inval_seq: claim.inval_seq },
        claim,
        source,
        overlay: Overlay::default(),
        open: OpenBatch::new(1),
        resolved: Vec::new(),
        now: 0,
    };
    for chunk in places.chunks(CHUNK) {
        let at: Vec<(PositionId, i64)> = chunk.iter().map(|(_, at)| *at).collect();
        run.bring_in(&at, &mut retried).await?;
    }
    // Fields that nobody has seen before are shown at once; a worker would do it too, with its next message.
    search::refresh_view(&mut run.client, run.source.object_id).await?;
    Ok(retried)
}

fn decoder(plan: &TopicPlan, source: &RetrySource) -> Decoder {
    let mut decoder = Decoder::new(plan.rules.clone());
    if source.settled
        && let Some(identity) = ResolvedIdentity::from_sink(&source.identity)
    {
        decoder.preset_identity(identity);
    }
    decoder
}

fn decode(decoder: &mut Decoder, body: &Body) -> Result<Decoded, DecodeError> {
    let (key, value) = (body.key.as_deref(), body.value.as_deref());
    let peeked = decoder.peek(key, value);
    decoder.decode(&peeked, key, value)
}

/// The letters that can be decoded now, in the source's order.
async fn places(
    client: &Client,
    which: &Letters,
    decoder: &mut Decoder,
    retried: &mut Retried,
) -> Result<Vec<Place>, RetryError> {
    let (mut places, mut after) = (Vec::new(), None);
    loop {
        let letters = dead_letters::list(client, which, after, CHUNK as i64).await?;
        let Some(last) = letters.last() else { break };
        after = Some((last.position_id, last.offset));
        let whole: Vec<_> = letters.iter().filter(|one| !one.cut).map(|one| (one.position_id, one.offset)).collect();
        retried.cut += (letters.len() - whole.len()) as u64;
        for body in dead_letters::bodies(client, &whole).await? {
            match decode(decoder, &body) {
                Err(error) => *retried.still.entry(error.reason.as_str()).or_default() += 1,
                Ok(Decoded::Event(event)) => {
                    places.push(((event.ts, event.lsn, event.op != Op::Delete), (body.position_id, body.offset)));
                }
                Ok(_) => places.push(((None, 0, false), (body.position_id, body.offset))),
            }
        }
    }
    places.sort();
    Ok(places)
}

struct Run {
    client: Client,
    decoder: Decoder,
    dictionary: Dictionary,
    held: Held,
    claim: Claim,
    source: RetrySource,
    overlay: Overlay,
    open: OpenBatch,
    resolved: Vec<Resolved>,
    now: Micros,
}

impl Run {
    /// Judges and commits some letters, in this order.
    async fn bring_in(&mut self, at: &[(PositionId, i64)], retried: &mut Retried) -> Result<(), RetryError> {
        for _ in 0..TRIES {
            let bodies = dead_letters::bodies(&self.client, at).await?;
            let mut by_place: BTreeMap<(PositionId, i64), Body> =
                bodies.into_iter().map(|body| ((body.position_id, body.offset), body)).collect();
            // Somebody else may have settled one meanwhile, also since the last try.
            let bodies: Vec<Body> = at.iter().filter_map(|at| by_place.remove(at)).collect();
            self.overlay.clear();
            self.open = OpenBatch::new(self.open.number() + 1);
            self.resolved.clear();
            self.now = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
            for body in &bodies {
                self.take(body).await?;
            }
            let batch = self.seal();
            if batch.advances.is_empty() {
                return Ok(());
            }
            let months: Vec<Micros> = batch.deltas.iter().chain(&batch.deltas_after).map(|row| row.at).collect();
            registry::ensure_months(&self.client, &months).await?;
            let held = BTreeMap::from([(self.claim.position_id, self.held)]);
            failpoint!("retry.judged");
            match commit(&mut self.client, &[&batch], &held).await {
                Ok(committed) => {
                    self.held.next = batch.advances[0].to;
                    if let Some(seq) = committed.inval_seq.get(&self.claim.position_id) {
                        self.held.inval_seq = *seq;
                    }
                    failpoint!("retry.committed");
                    for one in &batch.resolved {
                        *retried.outcomes.entry(one.outcome).or_default() += 1;
                    }
                    return Ok(());
                }
                Err(CommitError::Rewind { known, .. }) => {
                    if let Some(seq) = known.inval_seq.get(&self.claim.position_id) {
                        self.held.inval_seq = *seq;
                    }
                }
                Err(CommitError::Again(_)) => {}
                Err(CommitError::Fenced { .. }) => return Err(RetryError::Another),
                Err(error) => return Err(error.into()),
            }
        }
        Err(RetryError::Moving)
    }

    fn seal(&mut self) -> SealedBatch {
        let next = OpenBatch::new(self.open.number() + 1);
        let open = std::mem::replace(&mut self.open, next);
        // Rows that wait for their id belong to the topic, whoever reads them.
        let mut batch = open.seal(&mut self.overlay, self.source.source_id, self.source.object_id);
        batch.resolved = std::mem::take(&mut self.resolved);
        batch
    }

    async fn take(&mut self, body: &Body) -> Result<(), RetryError> {
        let position_id = self.claim.position_id;
        let held = self.held;
        // What it passed says nothing: dead letters come in any order.
        let start = || Advance::standing(position_id, held.epoch, held.next);
        let offset = self.open.next(position_id).unwrap_or(held.next);
        let decoded = match decode(&mut self.decoder, body) {
            Ok(decoded) => decoded,
            // It could be decoded a moment ago, and cannot now that others have been: it stays where it is.
            Err(_) => return Ok(()),
        };
        let outcome = match decoded {
            Decoded::Event(event) => {
                self.note_fields(&event).await?;
                self.open.advance(position_id, start, offset, None);
                let outcome = self.judge(&event, offset, body.at).await?;
                self.open.count(position_id, outcome, 1);
                outcome
            }
            Decoded::Tombstone => {
                self.open.advance(position_id, start, offset, Some(Counter::Tombstone));
                Counter::Tombstone
            }
            Decoded::Ignored(_) => {
                self.open.advance(position_id, start, offset, Some(Counter::Ignored));
                Counter::Ignored
            }
        };
        self.resolved.push(Resolved { position_id: body.position_id, offset: body.offset, outcome: outcome.word() });
        Ok(())
    }

    async fn note_fields(&mut self, event: &Event) -> Result<(), RetryError> {
        let unknown = self.dictionary.unknown(&self.decoder, |_| event.ts);
        if unknown.is_empty() {
            return Ok(());
        }
        let object_id = self.source.object_id;
        if let Some(identity) = self.decoder.identity().map(|identity| identity.to_sink()) {
            registry::settle_identity(&self.client, object_id, &identity).await?;
        }
        let fields = registry::note_fields(&mut self.client, object_id, &unknown).await?;
        self.dictionary.take(fields);
        // Fills the map from columns to numbers.
        self.dictionary.unknown(&self.decoder, |_| event.ts);
        Ok(())
    }

    async fn judge(&mut self, event: &Event, offset: i64, message_time: Micros) -> Result<Counter, RetryError> {
        let position_id = self.claim.position_id;
        // Nothing repeats here.
        let mut front = Front::new(0);
        loop {
            let arrival = Arrival {
                position_id,
                offset,
                message_time,
                now: self.now,
                passed: false,
                event,
                fields: self.dictionary.number(event),
                print: None,
            };
            let facts = Arc::clone(self.dictionary.facts());
            let mut judge =
                Judge { object: &facts, overlay: &mut self.overlay, batch: &mut self.open, front: &mut front };
            match judge.judge(arrival) {
                Ok(outcome) => return Ok(outcome),
                Err(Need::Record(identity)) => self.load(&identity, Some(event)).await?,
                Err(Need::Key(key)) => self.load_key(&key).await?,
            }
        }
    }

    /// Loads a record, registering it for this event if it is not known.
    async fn load(&mut self, identity: &str, event: Option<&Event>) -> Result<(), RetryError> {
        let facts = Arc::clone(self.dictionary.facts());
        if let Some(event) = event.filter(|event| event.op != Op::Delete) {
            let newcomer = (identity.into(), self.claim.position_id, event.key.clone());
            lookup::register(&mut self.client, facts.object_id, &mut [newcomer]).await?;
        }
        for (identity, found) in lookup::records(&mut self.client, &facts, &[identity]).await? {
            self.overlay.load_found(identity, found);
        }
        Ok(())
    }

    /// Loads a key with the records that it names. Two questions see two moments: what moved in between is asked again.
    async fn load_key(&mut self, key: &str) -> Result<(), RetryError> {
        let facts = Arc::clone(self.dictionary.facts());
        loop {
            let slots = lookup::keys(&mut self.client, &facts, self.source.source_id, &[key]).await?;
            for (key, slot) in slots {
                let named: Vec<Box<str>> =
                    slot.owner.iter().cloned().chain(slot.old.iter().map(|old| old.identity.clone())).collect();
                self.overlay.load_key(key, slot);
                for identity in named {
                    if self.overlay.record(&identity).is_none() {
                        self.load(&identity, None).await?;
                    }
                }
            }
            if !self.overlay.forget_if_moved(key) {
                return Ok(());
            }
        }
    }
}
