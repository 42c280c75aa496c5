//! Field values in canonical form, and the column types that give them meaning.
//!
//! A known value is kept as the text that PostgreSQL's output function prints for its type under
//! `DateStyle ISO`, `TimeZone UTC`, `IntervalStyle postgres`, `bytea_output hex`, `extra_float_digits 1`
//! (booleans `t`/`f`). So SQL can cast it as it stands, and the same value always has the same text,
//! except where [`Kind::equal`] says otherwise (`-0` equals `0`, an undeclared `15` equals `15.0`).

/// One field of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// SQL null.
    Null,
    /// The stream never showed it: a TOAST placeholder without a known predecessor.
    Unknown,
    /// The canonical text.
    Text(Box<str>),
}

/// A column's type, as far as afterimage tells types apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`; also every undeclared JSON number, whose text is then the JSON token as it came
    Numeric,
    /// `text`, `varchar`, `char`, `citext`, enums, `xml`, `inet`, …
    Text,
    /// `date`
    Date,
    /// `time without time zone`
    Time,
    /// `time with time zone`
    TimeTz,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// `interval`
    Interval,
    /// `bytea`
    Bytea,
    /// `json`/`jsonb` (also hstore, arrays and structs: kept as JSON text)
    Json,
    /// `uuid`
    Uuid,
}
