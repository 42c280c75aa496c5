//! What one Kafka message means, after decoding and before anything is known about its record.

use std::sync::Arc;

use super::value::{Kind, Value};

/// A PostgreSQL log sequence number; 0 = none or unknown.
pub type Lsn = u64;
/// Microseconds since 1970-01-01 UTC.
pub type Micros = i64;
/// Number of a field in its object's dictionary (`afterimage.field.field_no`), from 1.
pub type FieldNo = i16;

/// Debezium's `op` of a row event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `c`
    Create,
    /// `u`
    Update,
    /// `d`
    Delete,
    /// `r`: a snapshot read. It never sets an LSN (its `source.lsn` is one number for all rows).
    Read,
}

impl Op {
    /// Debezium's letter, also the stored one.
    pub fn letter(self) -> char {
        match self {
            Op::Create => 'c',
            Op::Update => 'u',
            Op::Delete => 'd',
            Op::Read => 'r',
        }
    }

    /// By its letter.
    pub fn from_letter(letter: char) -> Option<Self> {
        [Op::Create, Op::Update, Op::Delete, Op::Read].into_iter().find(|op| op.letter() == letter)
    }
}

/// How a column takes part in history (`afterimage.field.class`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// `v`: a change of it is a delta.
    Visible,
    /// `s`: travels with a delta, never causes one (`systemmodstamp`, `lastmodifieddate`, …).
    System,
    /// `h`: never stored (`_hc_lastop`, `_hc_err`, and in Connect tables `id` and `sfid`).
    Status,
    /// `x`: excluded by configuration (`mask_add`), never stored.
    Excluded,
}

/// A column as first met in a topic; `index` in [`Row::values`] refers to the decoder's list of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// The column's name as in the message.
    pub name: Arc<str>,
    /// Its class by configuration.
    pub class: Class,
    /// Its type now: from the schema block, from configuration, or guessed from the JSON token.
    pub kind: Kind,
}

/// The row of an event: only columns that were present, in the decoder's column order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Row {
    /// (index into the decoder's columns, value); ascending by index, visible columns only.
    /// A TOAST placeholder is [`Value::Unknown`]; an absent column has no entry.
    pub values: Vec<(u16, Value)>,
    /// `systemmodstamp`: `None` = the table has no such column in this event.
    pub stamp: Option<Option<Micros>>,
    /// `lastmodifieddate`, likewise.
    pub modified: Option<Option<Micros>>,
    /// `lastmodifiedbyid`, likewise.
    pub modified_by: Option<Option<Box<str>>>,
    /// `createddate`, likewise (it is also an ordinary visible column in `values`).
    pub created: Option<Option<Micros>>,
    /// `_hc_lastop` = `PENDING`: an application wrote this row, Salesforce has not seen it yet.
    pub local: bool,
    /// 32-bit hash of the status columns as they came, to tell no-op reasons apart (best effort).
    pub status_hash: u32,
    /// The same over the system columns.
    pub system_hash: u32,
}

/// A row event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub op: Op,
    /// Canonical row key: the one key column's text, or a compact JSON array of the texts of several,
    /// ordered bytewise by column name.
    pub key: Box<str>,
    /// Record identity: the 18-character sfid, or the row key, or the identity columns' JSON array.
    /// `None` on a delete that carries only its key, and while Salesforce has not given an id yet.
    pub identity: Option<Box<str>>,
    /// `source.lsn`, 0 when absent; always 0 for [`Op::Read`].
    pub lsn: Lsn,
    /// Source commit time (`ts_us`, else `ts_ns`, else `ts_ms`); `None` if absent.
    pub ts: Option<Micros>,
    /// `source.txId` if present.
    pub tx_id: Option<u64>,
    /// The row after the event; empty for a delete.
    pub row: Row,
}
