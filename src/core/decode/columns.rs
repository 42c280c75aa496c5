//! The list of a topic's columns, and a row read against it.
//!
//! A row is drafted without touching the list; only when the whole message proved good is what it taught applied.
//! So junk leaves no columns behind.

use std::collections::HashMap;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::encoding::Encoding;
use super::placeholder::Placeholder;
use super::quick::{fold, side_hash};
use super::schema::Block;
use super::token::{Fields, Token};
use super::{DecodeError, Reason, ResolvedIdentity, TopicRules, class, declared, unstorable, value};
use crate::core::event::{Class, Column, Micros, Row};
use crate::core::value::{Kind, Value, number};

/// PostgreSQL allows 1600 columns in a table; this many over its life is no table but a broken stream.
const MOST_COLUMNS: usize = 10_000;

/// What is known of a column's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// Said by a schema block. Also used for a message without one: the connector is the same.
    Block(Encoding),
    /// Declared or built in, or a kind from the dictionary that JSON alone could not have shown.
    Declared(Encoding),
    /// Guessed from the tokens so far.
    Guess(Seen),
}

/// The tokens that a guess rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// Only nulls, or a restored text column of which this process has seen no value.
    Nothing,
    /// Only `NaN` and the infinities, which doubles send as strings.
    Special,
    /// Tokens of this kind.
    Kind(Kind),
}

impl Type {
    fn encoding(self) -> Encoding {
        match self {
            Self::Block(encoding) | Self::Declared(encoding) => encoding,
            Self::Guess(Seen::Nothing | Seen::Special) => Encoding::Guess(Kind::Text),
            Self::Guess(Seen::Kind(kind)) => Encoding::Guess(kind),
        }
    }

    /// A guess after one more token. Two kinds of token in one column make it text, except that numbers may be
    /// joined by `NaN` and the infinities.
    fn seeing(self, token: &Token<'_>) -> Self {
        let Self::Guess(seen) = self else { return self };
        let now = match token {
            Token::Null => return self,
            Token::Bool(_) => Seen::Kind(Kind::Bool),
            Token::Number(_) => Seen::Kind(Kind::Numeric),
            Token::Nested(_) => Seen::Kind(Kind::Json),
            Token::String(text) if number::numeric_special(text).is_some() => Seen::Special,
            Token::String(_) => Seen::Kind(Kind::Text),
        };
        Self::Guess(match (seen, now) {
            (Seen::Nothing, now) => now,
            (seen, now) if seen == now => seen,
            (Seen::Special, Seen::Kind(Kind::Numeric)) | (Seen::Kind(Kind::Numeric), Seen::Special) => {
                Seen::Kind(Kind::Numeric)
            }
            _ => Seen::Kind(Kind::Text),
        })
    }
}

/// What a column of this name is to every row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// `id` and `sfid`, whose class hangs on what names a record.
    Names,
    Stamp,
    Modified,
    Created,
    ModifiedBy,
    LastOp,
    /// Another one of Connect's own, `_hc_…`.
    Connect,
    Other,
}

impl Role {
    fn of(name: &str) -> Self {
        match name {
            "id" | "sfid" => Self::Names,
            "systemmodstamp" => Self::Stamp,
            "lastmodifieddate" => Self::Modified,
            "createddate" => Self::Created,
            "lastmodifiedbyid" => Self::ModifiedBy,
            "_hc_lastop" => Self::LastOp,
            _ if name.starts_with("_hc_") => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// The list.
#[derive(Debug, Default)]
pub(super) struct Columns {
    list: Vec<Column>,
    types: Vec<Type>,
    /// By index: role, and hash of the name.
    traits: Vec<(Role, u64)>,
    index: HashMap<Arc<str>, u16>,
    /// Columns of the last row in the order of its message: the next one has most likely the same.
    order: Vec<u16>,
    revision: u64,
    /// How often `order` changed.
    orders: u64,
}

impl Columns {
    pub(super) fn list(&self) -> &[Column] {
        &self.list
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The columns of the last row in the order of its message.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Column> {
        self.order.iter().filter_map(|index| self.list.get(usize::from(*index)))
    }

    /// Changes with every change of a column, and with the order of the columns in a message.
    pub(super) fn shape(&self) -> u64 {
        self.revision + self.orders
    }

    pub(super) fn undeclared_numbers(&self) -> impl Iterator<Item = &str> {
        let number = Type::Guess(Seen::Kind(Kind::Numeric));
        let stored = self
            .list
            .iter()
            .zip(&self.types)
            .filter(move |(column, kind)| **kind == number && column.class == Class::Visible);
        stored.map(|(column, _)| column.name.as_ref())
    }

    pub(super) fn restore(&mut self, name: &str, kind: Kind, rules: &TopicRules, identity: Option<&ResolvedIdentity>) {
        if self.index.contains_key(name) || self.list.len() >= MOST_COLUMNS {
            return;
        }
        let known = match (declared(name, rules), kind) {
            (Some(encoding), _) => Type::Declared(encoding),
            (None, Kind::Text) => Type::Guess(Seen::Nothing),
            (None, Kind::Bool | Kind::Numeric | Kind::Json) => Type::Guess(Seen::Kind(kind)),
            (None, kind) => Type::Declared(Encoding::Plain(kind)),
        };
        self.push(
            Column { name: name.into(), class: class(name, rules, identity), kind: known.encoding().kind() },
            known,
        );
    }

    pub(super) fn reclassify(&mut self, rules: &TopicRules, identity: &ResolvedIdentity) {
        for column in &mut self.list {
            let now = class(&column.name, rules, Some(identity));
            if column.class != now {
                column.class = now;
                self.revision += 1;
            }
        }
    }

    pub(super) fn apply(&mut self, changes: Changes) {
        for (index, kind) in changes.types {
            if let (Some(slot), Some(column)) =
                (self.types.get_mut(usize::from(index)), self.list.get_mut(usize::from(index)))
            {
                *slot = kind;
                let kind = kind.encoding().kind();
                if column.kind != kind {
                    column.kind = kind;
                    self.revision += 1;
                }
            }
        }
        for (column, kind) in changes.added {
            self.push(column, kind);
        }
        if !changes.order.is_empty() && self.order != changes.order {
            self.order = changes.order;
            self.orders += 1;
        }
    }

    fn push(&mut self, column: Column, kind: Type) {
        // MOST_COLUMNS fits u16.
        let Ok(index) = u16::try_from(self.list.len()) else { return };
        self.index.insert(Arc::clone(&column.name), index);
        self.traits.push((Role::of(&column.name), xxh3_64(column.name.as_bytes())));
        self.list.push(column);
        self.types.push(kind);
        self.revision += 1;
    }

    /// A column's index; `nth` is its place in the message.
    fn find(&self, name: &str, nth: usize) -> Option<u16> {
        let expected = self.order.get(nth).copied();
        let fits = |index: &u16| self.list.get(usize::from(*index)).is_some_and(|column| *column.name == *name);
        expected.filter(fits).or_else(|| self.index.get(name).copied())
    }
}

/// What a good row teaches.
#[derive(Debug, Default)]
pub(super) struct Changes {
    types: Vec<(u16, Type)>,
    added: Vec<(Column, Type)>,
    order: Vec<u16>,
}

/// A row while it is read.
pub(super) struct Draft<'a> {
    columns: &'a Columns,
    rules: &'a TopicRules,
    identity: Option<&'a ResolvedIdentity>,
    block: Option<&'a Block>,
    changes: Changes,
}

impl<'a> Draft<'a> {
    pub(super) fn new(
        columns: &'a Columns,
        rules: &'a TopicRules,
        identity: Option<&'a ResolvedIdentity>,
        block: Option<&'a Block>,
    ) -> Self {
        Self { columns, rules, identity, block, changes: Changes::default() }
    }

    pub(super) fn finish(self) -> Changes {
        self.changes
    }

    /// The canonical text of an identity column's token.
    pub(super) fn text(&self, name: &str, token: &Token<'_>) -> Result<String, DecodeError> {
        let known = self.columns.index.get(name).copied();
        let kind = self.known_type(name, known).seeing(token);
        let strict = matches!(kind, Type::Block(_)) && self.block.is_some();
        let misfit = |what| DecodeError::new(Reason::BadValue, format!("column {name}: {what}"));
        match kind.encoding().text(token) {
            Ok(text) => Ok(text.into_owned()),
            Err(what) if strict => Err(misfit(what)),
            Err(_) => Ok(super::encoding::verbatim(token).into_owned()),
        }
    }

    /// What is known of a column's type before this row's token: the message's own block, else what an earlier
    /// block, the configuration or earlier tokens said.
    fn known_type(&self, name: &str, index: Option<u16>) -> Type {
        let from_block = self.block.and_then(|block| match index {
            Some(index) => block.by_index(index.into()),
            None => block.by_name(name),
        });
        match (from_block, index) {
            // With decimals sent as strings the block calls a numeric column a mere string: not a contradiction.
            (Some(Encoding::Plain(Kind::Text)), _) if self.rules.types.get(name) == Some(&Kind::Numeric) => {
                Type::Declared(Encoding::Plain(Kind::Numeric))
            }
            (Some(encoding), _) => Type::Block(encoding),
            (None, Some(index)) => {
                self.columns.types.get(usize::from(index)).copied().unwrap_or(Type::Guess(Seen::Nothing))
            }
            (None, None) => declared(name, self.rules).map_or(Type::Guess(Seen::Nothing), Type::Declared),
        }
    }

    /// Reads the fields of `after`.
    pub(super) fn row(&mut self, fields: &Fields<'_>, placeholder: &Placeholder) -> Result<Row, DecodeError> {
        let mut row = Row { values: Vec::with_capacity(fields.0.len()), ..Row::default() };
        let mut order = Vec::with_capacity(fields.0.len());
        let (mut status, mut system) = (0u64, 0u64);
        for (nth, (name, raw)) in fields.0.iter().enumerate() {
            let token = Token::read(raw).ok_or_else(|| unstorable(name))?;
            let found = self.columns.find(name, nth);
            let before = self.known_type(name, found);
            let unseen = token == Token::Null || placeholder.is(&token);
            let kind = if unseen { before } else { before.seeing(&token) };
            let known = found.and_then(|index| {
                let at = usize::from(index);
                Some((index, self.columns.list.get(at)?, self.columns.types.get(at)?, *self.columns.traits.get(at)?))
            });
            let (index, class, role, name_hash) = match known {
                Some((index, column, known, (role, name_hash))) => {
                    if *known != kind {
                        self.changes.types.push((index, kind));
                    }
                    // Before the first row has decided what names a record, the list may hold an older answer.
                    let names = role == Role::Names;
                    let class = if names { class(name, self.rules, self.identity) } else { column.class };
                    (index, class, role, name_hash)
                }
                None => {
                    let (index, class) = self.add(name, kind)?;
                    (index, class, Role::of(name), xxh3_64(name.as_bytes()))
                }
            };
            order.push(index);
            match class {
                // `id` and `sfid` are left out: a reload gives every row a new id, which is no change of its status.
                Class::Status if role != Role::Names => {
                    status = status.wrapping_add(side_hash(name_hash, raw.as_bytes()));
                }
                Class::System => system = system.wrapping_add(side_hash(name_hash, raw.as_bytes())),
                Class::Status | Class::Visible | Class::Excluded => {}
            }
            if class != Class::Excluded {
                provenance(&mut row, role, kind.encoding(), &token, unseen);
            }
            if class == Class::Visible {
                let value = if token == Token::Null {
                    Value::Null
                } else if unseen {
                    Value::Unknown
                } else {
                    let strict = matches!(kind, Type::Block(_)) && self.block.is_some();
                    value(kind.encoding(), strict, &token)
                        .map_err(|what| DecodeError::new(Reason::BadValue, format!("column {name}: {what}")))?
                };
                row.values.push((index, value));
            }
        }
        if !row.values.is_sorted_by_key(|(index, _)| *index) {
            row.values.sort_by_key(|(index, _)| *index);
        }
        if row.values.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
            return Err(DecodeError::new(Reason::BadRow, "a column comes twice"));
        }
        row.status_hash = fold(status);
        row.system_hash = fold(system);
        self.changes.order = order;
        Ok(row)
    }

    fn add(&mut self, name: &str, kind: Type) -> Result<(u16, Class), DecodeError> {
        if name.contains('\0') {
            return Err(DecodeError::new(Reason::BadRow, "a column name that PostgreSQL cannot hold"));
        }
        if self.changes.added.iter().any(|(column, _)| *column.name == *name) {
            return Err(DecodeError::new(Reason::BadRow, "a column comes twice"));
        }
        let index = self.columns.list.len() + self.changes.added.len();
        let too_many = || DecodeError::new(Reason::TooManyColumns, format!("more than {MOST_COLUMNS}"));
        let index = u16::try_from(index).ok().filter(|&i| usize::from(i) < MOST_COLUMNS).ok_or_else(too_many)?;
        let class = class(name, self.rules, self.identity);
        self.changes.added.push((Column { name: name.into(), class, kind: kind.encoding().kind() }, kind));
        Ok((index, class))
    }
}

/// Fields of a row that say when, by whom and whether only locally it was written. `unseen`: null or the placeholder.
fn provenance(row: &mut Row, role: Role, encoding: Encoding, token: &Token<'_>, unseen: bool) {
    let micros = || -> Option<Option<Micros>> { Some(encoding.micros(token)) };
    match role {
        Role::Stamp => row.stamp = micros(),
        Role::Modified => row.modified = micros(),
        Role::Created => row.created = micros(),
        Role::ModifiedBy => {
            row.modified_by = Some(match token {
                Token::String(text) if !text.is_empty() && !unseen => Some(text.as_ref().into()),
                _ => None,
            });
        }
        Role::LastOp => row.local = matches!(token, Token::String(text) if text == "PENDING"),
        Role::Names | Role::Connect | Role::Other => {}
    }
}
