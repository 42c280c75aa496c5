//! Kafka message → event.
//!
//! Two steps, so that partitions can be merged by source time before the expensive one: [`peek`] finds out what
//! a message is and where its parts lie, [`Decoder::decode`] reads the row. Both are total: junk of any kind
//! becomes a [`DecodeError`] (a dead letter), never a panic, and changes nothing in the decoder.
//!
//! ```text
//! bytes ─ peek ─► Peek ─ decode ─► Event { op, key, identity, row }     envelope.rs → token.rs → columns.rs
//!                                  key.rs · schema.rs → encoding.rs → core::value · placeholder.rs
//! ```

mod columns;
mod encoding;
mod envelope;
mod key;
mod placeholder;
mod quick;
mod scan;
mod schema;
#[cfg(test)]
mod tests;
mod token;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

pub use envelope::{Envelope, Ignored, Peek, Source, Span, peek};
pub use key::row_key;
pub use quick::Print;

use super::event::{Class, Column, Event, Op, Row};
use super::ids;
use super::value::{Kind, Value};
use columns::{Columns, Draft};
use encoding::Encoding;
use placeholder::Placeholder;
use quick::Layout;
use schema::Blocks;
use token::{Fields, Token};

/// Debezium's default for a value that an update did not touch.
pub const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// Keys and identities stand in b-trees of the sink, whose entries end at 2,704 bytes: a longer one could never be
/// written, and would hold up its partition for good.
const MOST_KEY: usize = 2_000;

/// How a topic's messages are to be read (from configuration).
#[derive(Debug, Clone)]
pub struct TopicRules {
    /// What names a record.
    pub identity: IdentityRule,
    /// Declared column types, for streams without schema blocks (a block wins).
    pub types: BTreeMap<String, Kind>,
    /// Columns never to be stored.
    pub mask_add: BTreeSet<String>,
    /// System columns that count as ordinary ones here.
    pub mask_remove: BTreeSet<String>,
    /// The connector's `unavailable.value.placeholder`.
    pub placeholder: String,
}

impl Default for TopicRules {
    fn default() -> Self {
        Self {
            identity: IdentityRule::Auto,
            types: BTreeMap::new(),
            mask_add: BTreeSet::new(),
            mask_remove: BTreeSet::new(),
            placeholder: PLACEHOLDER.to_owned(),
        }
    }
}

/// What names a record, as configured.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum IdentityRule {
    /// `sfid` if the first row has such a column, else the row key.
    #[default]
    Auto,
    /// The `sfid` column.
    Sfid,
    /// The Kafka key.
    Key,
    /// These columns.
    Columns(Vec<String>),
}

/// What names a record, once known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvedIdentity {
    /// The `sfid` column in its 18-character form.
    Sfid,
    /// The row key.
    Key,
    /// These columns, sorted bytewise.
    Columns(Vec<String>),
}

impl ResolvedIdentity {
    /// As the sink's `object.identity` has it: `sfid`, `key`, or the sorted columns as a JSON array.
    pub fn to_sink(&self) -> String {
        match self {
            Self::Sfid => "sfid".to_owned(),
            Self::Key => "key".to_owned(),
            Self::Columns(columns) => serde_json::Value::from(columns.clone()).to_string(),
        }
    }

    /// The reverse of [`Self::to_sink`]; `None` if the text is none of the three.
    pub fn from_sink(text: &str) -> Option<Self> {
        match text {
            "sfid" => Some(Self::Sfid),
            "key" => Some(Self::Key),
            _ => serde_json::from_str(text).ok().and_then(Self::columns),
        }
    }

    fn columns(mut columns: Vec<String>) -> Option<Self> {
        columns.sort();
        columns.dedup();
        (!columns.is_empty()).then_some(Self::Columns(columns))
    }
}

/// What a message means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A row event.
    Event(Event),
    /// The row of this key is gone; follows a delete.
    Tombstone,
    /// Not a row event.
    Ignored(Ignored),
}

/// Why a message cannot be decoded (`dead_letter.reason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A value of zero bytes.
    Empty,
    /// Not UTF-8 (Avro, for example).
    NotUtf8,
    /// Not JSON, or nested too deep.
    NotJson,
    /// JSON, but no Debezium envelope.
    NotAnEnvelope,
    /// An `op` outside c, u, d, r, t, m.
    UnknownOp,
    /// `source` missing, without table, or with unreadable numbers.
    BadSource,
    /// `after` or `before` is not what the op needs.
    BadRow,
    /// A schema block that cannot be read.
    BadSchema,
    /// A value that contradicts its column's schema, or that PostgreSQL cannot hold.
    BadValue,
    /// No Kafka key where one is needed.
    NoKey,
    /// A Kafka key that cannot be read.
    BadKey,
    /// An `sfid` that is no Salesforce id, or that could be two.
    BadSfid,
    /// A declared identity column is not in the row.
    NoIdentity,
    /// More columns than a table can have over its life.
    TooManyColumns,
    /// The bytes are not the message that was looked at first.
    WrongMessage,
}

impl Reason {
    /// The text stored with a dead letter and used as metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty value",
            Self::NotUtf8 => "not utf-8",
            Self::NotJson => "not json",
            Self::NotAnEnvelope => "not an envelope",
            Self::UnknownOp => "unknown op",
            Self::BadSource => "bad source",
            Self::BadRow => "bad row",
            Self::BadSchema => "bad schema",
            Self::BadValue => "bad value",
            Self::NoKey => "no key",
            Self::BadKey => "bad key",
            Self::BadSfid => "bad sfid",
            Self::NoIdentity => "no identity",
            Self::TooManyColumns => "too many columns",
            Self::WrongMessage => "wrong message",
        }
    }
}

/// A message that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct DecodeError {
    /// The class of the failure.
    pub reason: Reason,
    /// What and where; names of columns, never a field's value.
    pub detail: String,
    /// The record it belongs to, if the message still shows it (so that forgetting a record finds it).
    pub sfid: Option<String>,
}

impl DecodeError {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), sfid: None }
    }
}

/// Reads the messages of one topic. Owns the list of its columns; pure, so a rewind needs nothing undone: columns
/// that a dropped batch brought are met again.
#[derive(Debug)]
pub struct Decoder {
    rules: TopicRules,
    columns: Columns,
    blocks: Blocks,
    placeholder: Placeholder,
    identity: Option<ResolvedIdentity>,
    layout: Layout,
    /// What the layout was learned from: the columns' order and classes, and the schema block.
    learned: (u64, u128),
}

impl Decoder {
    /// A decoder that knows no columns yet.
    pub fn new(rules: TopicRules) -> Self {
        let identity = match &rules.identity {
            IdentityRule::Auto => None,
            IdentityRule::Sfid => Some(ResolvedIdentity::Sfid),
            IdentityRule::Key => Some(ResolvedIdentity::Key),
            // An empty list says nothing: decided by the first row.
            IdentityRule::Columns(columns) => ResolvedIdentity::columns(columns.clone()),
        };
        Self {
            columns: Columns::default(),
            blocks: Blocks::default(),
            placeholder: Placeholder::new(&rules.placeholder),
            identity,
            layout: Layout::default(),
            learned: (0, 0),
            rules,
        }
    }

    /// Has looks at rows print what they may repeat ([`Print`]). `seed` is chance, new with every process.
    pub fn print_rows(&mut self, object_id: i16, seed: u64) {
        self.layout.enable(object_id, seed);
    }

    /// The columns met so far. Append-only; a kind may be refined (see [`Self::revision`]).
    pub fn columns(&self) -> &[Column] {
        self.columns.list()
    }

    /// Rises when a column is added, or its kind or class changes: the dictionary in the sink must follow.
    pub fn revision(&self) -> u64 {
        self.columns.revision()
    }

    /// What names a record; `None` until the first row of an [`IdentityRule::Auto`] topic.
    pub fn identity(&self) -> Option<&ResolvedIdentity> {
        self.identity.as_ref()
    }

    /// Takes the identity over from the sink. It decides [`IdentityRule::Auto`]; a configured rule stays (whether
    /// the two agree is the caller's to check, see [`Self::identity`]).
    pub fn preset_identity(&mut self, identity: ResolvedIdentity) {
        if self.identity.is_none() {
            self.columns.reclassify(&self.rules, &identity);
            self.identity = Some(identity);
        }
    }

    /// Takes the columns over from the sink's dictionary, in its order, at start. Declared types win over the
    /// dictionary's; a kind that JSON shows by itself (text, number, boolean, nested) stays open to refinement.
    pub fn restore_columns<'a>(&mut self, known: impl IntoIterator<Item = (&'a str, Kind)>) {
        for (name, kind) in known {
            self.columns.restore(name, kind, &self.rules, self.identity.as_ref());
        }
    }

    /// Columns whose numbers have no declared type and are kept as exact text: worth one warning per object.
    pub fn undeclared_numbers(&self) -> impl Iterator<Item = &str> {
        self.columns.undeclared_numbers()
    }

    /// [`peek`], with the same result but much faster for a message that carries the schema block of the last one, and
    /// with a print of rows that are laid out as the last one.
    pub fn peek(&self, key: Option<&[u8]>, payload: Option<&[u8]>) -> Peek {
        envelope::peek_as_before(self.blocks.last(), &self.layout, key, payload)
    }

    /// Decodes a message that was looked at; `key` and `payload` must be the same bytes.
    pub fn decode(&mut self, peek: &Peek, key: Option<&[u8]>, payload: Option<&[u8]>) -> Result<Decoded, DecodeError> {
        match peek {
            Peek::Tombstone => Ok(Decoded::Tombstone),
            Peek::Truncate { .. } => Ok(Decoded::Ignored(Ignored::Truncate)),
            Peek::Ignored(ignored) => Ok(Decoded::Ignored(*ignored)),
            Peek::Undecodable(error) => Err(error.clone()),
            Peek::Row(envelope) => {
                let payload = payload.unwrap_or_default();
                envelope::whole_text(payload)?;
                let event = self.event(envelope, key, payload).map_err(|error| with_sfid(error, envelope, payload))?;
                if event.identity.as_deref().is_some_and(|identity| identity.len() > MOST_KEY) {
                    return Err(DecodeError::new(Reason::BadKey, "the identity is longer than 2,000 bytes"));
                }
                Ok(Decoded::Event(event))
            }
        }
    }

    fn event(&mut self, envelope: &Envelope, key: Option<&[u8]>, payload: &[u8]) -> Result<Event, DecodeError> {
        let key = row_key(key).map_err(|what| DecodeError::new(Reason::BadKey, what))?;
        if key.as_deref().is_some_and(|key| key.len() > MOST_KEY) {
            return Err(DecodeError::new(Reason::BadKey, "the key is longer than 2,000 bytes"));
        }
        let part = if envelope.op == Op::Delete { envelope.before } else { envelope.after };
        let fields = match part {
            Some(span) => {
                let text =
                    span.text(payload).ok_or_else(|| DecodeError::new(Reason::WrongMessage, "the row is elsewhere"))?;
                Fields::read(text).ok_or_else(|| DecodeError::new(Reason::BadRow, "the row cannot be read"))?
            }
            None => Fields(Vec::new()),
        };
        let block = match envelope.schema {
            Some(span) => {
                let text = span
                    .text(payload)
                    .ok_or_else(|| DecodeError::new(Reason::WrongMessage, "the schema is elsewhere"))?;
                let names = self.columns.list().iter().map(|column| column.name.as_ref());
                Some(self.blocks.find(text, names).map_err(|what| DecodeError::new(Reason::BadSchema, what))?)
            }
            None => None,
        };
        let resolved = self.identity.clone().or_else(|| resolve(envelope.op, &fields));
        let mut draft = Draft::new(&self.columns, &self.rules, resolved.as_ref(), block);
        let (identity, row) = if envelope.op == Op::Delete {
            let identity = match &resolved {
                Some(resolved) => deleted_identity(resolved, &fields, key.as_deref(), &draft, &self.placeholder)?,
                None => None,
            };
            (identity, Row::default())
        } else {
            let resolved = resolved.as_ref().unwrap_or(&ResolvedIdentity::Key);
            let row = draft.row(&fields, &self.placeholder)?;
            (identity_of(resolved, &fields, key.as_deref(), &draft, &self.placeholder)?, row)
        };
        let key = match (key, &resolved, &identity) {
            (Some(key), ..) => key,
            // A table without a key whose identity is declared: its columns are the only key it has.
            (None, Some(ResolvedIdentity::Columns(_)), Some(identity)) => identity.clone(),
            (None, ..) => return Err(DecodeError::new(Reason::NoKey, "a row event without a Kafka key")),
        };
        // Nothing can fail from here on: now the columns that this row brought are kept.
        let changes = draft.finish();
        if self.identity.is_none()
            && let Some(resolved) = resolved
        {
            self.columns.reclassify(&self.rules, &resolved);
            self.identity = Some(resolved);
        }
        self.columns.apply(changes);
        // The block of this row is the one met last.
        let block = if envelope.schema.is_some() { self.blocks.last().map_or(0, |(_, hash)| hash) } else { 0 };
        let now = (self.columns.shape(), block);
        if self.learned != now {
            self.learned = now;
            self.layout.learn(&self.columns, self.identity.as_ref(), envelope.source.text(payload), block);
        }
        let Envelope { op, ts, lsn, tx_id, .. } = *envelope;
        Ok(Event { op, key, identity, lsn, ts, tx_id, row })
    }
}

/// `Auto` at the first row. A delete decides only for `sfid`: one that carries its key alone says nothing of the
/// table's columns.
fn resolve(op: Op, fields: &Fields<'_>) -> Option<ResolvedIdentity> {
    let sfid = fields.0.iter().any(|(name, _)| name == "sfid");
    match op {
        _ if sfid => Some(ResolvedIdentity::Sfid),
        Op::Delete => None,
        Op::Create | Op::Update | Op::Read => Some(ResolvedIdentity::Key),
    }
}

fn identity_of(
    resolved: &ResolvedIdentity,
    fields: &Fields<'_>,
    key: Option<&str>,
    draft: &Draft<'_>,
    placeholder: &Placeholder,
) -> Result<Option<Box<str>>, DecodeError> {
    match resolved {
        ResolvedIdentity::Key => Ok(key.map(Box::from)),
        ResolvedIdentity::Sfid => match fields.0.iter().find(|(name, _)| name == "sfid") {
            Some((_, raw)) => sfid(raw),
            None => Err(DecodeError::new(Reason::NoIdentity, "the row has no column sfid")),
        },
        ResolvedIdentity::Columns(names) => {
            let mut texts = Vec::with_capacity(names.len());
            for name in names {
                let Some((_, raw)) = fields.0.iter().find(|(field, _)| field == name) else {
                    return Err(DecodeError::new(Reason::NoIdentity, format!("the row has no column {name}")));
                };
                let token = Token::read(raw).ok_or_else(|| unstorable(name))?;
                if token == Token::Null || placeholder.is(&token) {
                    return Ok(None);
                }
                texts.push((Cow::Borrowed(name.as_str()), draft.text(name, &token)?));
            }
            key::joined(texts).map(Some).map_err(|what| DecodeError::new(Reason::NoIdentity, what))
        }
    }
}

/// The identity that a delete shows in `before`: complete under REPLICA IDENTITY FULL, else nothing but nulls
/// (or nothing at all), which mean "not shown".
fn deleted_identity(
    resolved: &ResolvedIdentity,
    fields: &Fields<'_>,
    key: Option<&str>,
    draft: &Draft<'_>,
    placeholder: &Placeholder,
) -> Result<Option<Box<str>>, DecodeError> {
    let shown = |name: &str| fields.0.iter().any(|(field, raw)| field == name && *raw != "null");
    match resolved {
        ResolvedIdentity::Sfid if !shown("sfid") => Ok(None),
        ResolvedIdentity::Columns(names) if !names.iter().all(|name| shown(name)) => Ok(None),
        _ => identity_of(resolved, fields, key, draft, placeholder),
    }
}

/// The 18-character id in a `sfid` field; null and empty mean that Salesforce has not given one yet.
fn sfid(raw: &str) -> Result<Option<Box<str>>, DecodeError> {
    match Token::read(raw) {
        Some(Token::Null) => Ok(None),
        Some(Token::String(text)) if text.is_empty() => Ok(None),
        Some(Token::String(text)) => {
            ids::canonical_text(&text).map(Some).map_err(|e| DecodeError::new(Reason::BadSfid, e.to_string()))
        }
        _ => Err(DecodeError::new(Reason::BadSfid, "sfid is not a string")),
    }
}

fn unstorable(column: &str) -> DecodeError {
    DecodeError::new(Reason::BadValue, format!("column {column}: a text that PostgreSQL cannot hold"))
}

/// Finds the record of a message that could not be decoded as a whole.
fn with_sfid(mut error: DecodeError, envelope: &Envelope, payload: &[u8]) -> DecodeError {
    let row = envelope.after.or(envelope.before).and_then(|span| span.text(payload));
    let fields = row.and_then(Fields::read);
    let found = fields
        .and_then(|fields| fields.0.iter().find(|(name, _)| name == "sfid").and_then(|(_, raw)| sfid(raw).ok()?));
    error.sfid = found.map(String::from);
    error
}

/// How a column takes part in history.
fn class(name: &str, rules: &TopicRules, identity: Option<&ResolvedIdentity>) -> Class {
    const SYSTEM: [&str; 5] =
        ["systemmodstamp", "lastmodifieddate", "lastmodifiedbyid", "lastvieweddate", "lastreferenceddate"];
    let id = identity == Some(&ResolvedIdentity::Sfid) && (name == "id" || name == "sfid");
    if name.starts_with("_hc_") || id {
        Class::Status
    } else if rules.mask_add.contains(name) {
        Class::Excluded
    } else if SYSTEM.contains(&name) && !rules.mask_remove.contains(name) {
        Class::System
    } else {
        Class::Visible
    }
}

/// Salesforce's own columns that are timestamps without being declared.
pub const TIMESTAMPS: [&str; 5] =
    ["createddate", "lastmodifieddate", "systemmodstamp", "lastvieweddate", "lastreferenceddate"];

/// What a column's type is without a schema block: declared, else built in, else unknown.
fn declared(name: &str, rules: &TopicRules) -> Option<Encoding> {
    let kind = rules.types.get(name).copied().or_else(|| TIMESTAMPS.contains(&name).then_some(Kind::Timestamp));
    kind.map(Encoding::Plain)
}

/// Value of a token that is neither null nor the placeholder, given its wire form. `strict`: a contradiction is an error
/// (the schema said so); otherwise the token is kept as it came (a declaration may be wrong, the value is still true).
fn value(encoding: Encoding, strict: bool, token: &Token<'_>) -> Result<Value, encoding::Misfit> {
    match encoding.text(token) {
        Ok(text) => Ok(Value::Text(text.into())),
        Err(what) if strict => Err(what),
        Err(_) => Ok(Value::Text(encoding::verbatim(token).into())),
    }
}
