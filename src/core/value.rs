//! Field values in canonical form, and the column types that give them meaning.
//!
//! A known value is kept as the text that PostgreSQL's output function prints for its type under
//! `DateStyle ISO`, `TimeZone UTC`, `IntervalStyle postgres`, `bytea_output hex`, `extra_float_digits 1`
//! (booleans `t`/`f`). So SQL can cast it as it stands, and the same value always has the same text,
//! except where [`Kind::equal`] says otherwise (`-0` equals `0`, an undeclared `15` equals `15.0`).

pub mod calendar;
pub mod number;

use base64::Engine as _;

use calendar::Parsed;
use smol_str::SmolStr;

/// One field of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// SQL null.
    Null,
    /// The stream never showed it: a TOAST placeholder without a known predecessor.
    Unknown,
    /// The canonical text. Most texts of a record are short, and stand in the value itself.
    Text(SmolStr),
}

/// A [`Value`] that stands somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueRef<'a> {
    /// SQL null.
    Null,
    /// The stream never showed it.
    Unknown,
    /// The canonical text.
    Text(&'a str),
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Unknown => Self::Unknown,
            ValueRef::Text(text) => Self::Text(text.into()),
        }
    }
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

impl Value {
    /// The same, borrowed.
    pub fn view(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Unknown => ValueRef::Unknown,
            Self::Text(text) => ValueRef::Text(text),
        }
    }

    /// The canonical text of a known value.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Unknown => None,
        }
    }
}

impl Kind {
    /// Every kind, in declaration order.
    pub const ALL: [Self; 17] = [
        Self::Bool,
        Self::Int2,
        Self::Int4,
        Self::Int8,
        Self::Float4,
        Self::Float8,
        Self::Numeric,
        Self::Text,
        Self::Date,
        Self::Time,
        Self::TimeTz,
        Self::Timestamp,
        Self::TimestampTz,
        Self::Interval,
        Self::Bytea,
        Self::Json,
        Self::Uuid,
    ];

    /// The PostgreSQL type that a canonical text of this kind is cast to, spelled as `format_type` spells it.
    pub fn sql(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int2 => "smallint",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Float4 => "real",
            Self::Float8 => "double precision",
            Self::Numeric => "numeric",
            Self::Text => "text",
            Self::Date => "date",
            Self::Time => "time without time zone",
            Self::TimeTz => "time with time zone",
            Self::Timestamp => "timestamp without time zone",
            Self::TimestampTz => "timestamp with time zone",
            Self::Interval => "interval",
            Self::Bytea => "bytea",
            Self::Json => "jsonb",
            Self::Uuid => "uuid",
        }
    }

    /// The kind of a PostgreSQL type in any usual spelling and with any modifier: `float8`, `varchar(40)`,
    /// `timestamp(3) without time zone`, `text[]`. `None` for a type that afterimage does not know by name
    /// (an enum, say), which is best declared as `text`.
    pub fn from_sql_name(name: &str) -> Option<Self> {
        let mut plain = String::with_capacity(name.len());
        let mut depth = 0;
        for c in name.chars() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ if depth > 0 => {}
                c if c.is_whitespace() => plain.push(' '),
                c => plain.push(c.to_ascii_lowercase()),
            }
        }
        if depth != 0 {
            return None;
        }
        let words: Vec<&str> = plain.split(' ').filter(|word| !word.is_empty()).collect();
        let plain = words.join(" ");
        if plain.ends_with("[]") {
            return Self::from_sql_name(plain.trim_end_matches("[]")).map(|_| Self::Json);
        }
        Some(match plain.as_str() {
            "bool" | "boolean" => Self::Bool,
            "int2" | "smallint" | "smallserial" => Self::Int2,
            "int4" | "int" | "integer" | "serial" => Self::Int4,
            "int8" | "bigint" | "bigserial" => Self::Int8,
            "float4" | "real" => Self::Float4,
            "float8" | "float" | "double" | "double precision" => Self::Float8,
            "numeric" | "decimal" | "number" => Self::Numeric,
            "text" | "string" | "varchar" | "character varying" | "char" | "character" | "bpchar" | "citext"
            | "name" | "xml" | "inet" | "cidr" | "macaddr" | "macaddr8" | "bit" | "bit varying" | "varbit"
            | "money" | "ltree" | "tsvector" | "oid" => Self::Text,
            "date" => Self::Date,
            "time" | "time without time zone" => Self::Time,
            "timetz" | "time with time zone" => Self::TimeTz,
            "timestamp" | "timestamp without time zone" | "datetime" => Self::Timestamp,
            "timestamptz" | "timestamp with time zone" => Self::TimestampTz,
            "interval" => Self::Interval,
            "bytea" => Self::Bytea,
            "json" | "jsonb" | "hstore" => Self::Json,
            "uuid" => Self::Uuid,
            _ => return None,
        })
    }

    /// Whether values of this kind are JSON numbers in the public views (the specials `NaN`, `Infinity`,
    /// `-Infinity` stay texts).
    pub fn is_json_number(self) -> bool {
        matches!(self, Self::Int2 | Self::Int4 | Self::Int8 | Self::Float4 | Self::Float8 | Self::Numeric)
    }

    /// Whether values of this kind are JSON booleans in the public views.
    pub fn is_json_bool(self) -> bool {
        self == Self::Bool
    }

    /// Whether two known values are the same value of this kind: floats and numerics by value (`-0` = `0`,
    /// `NaN` = `NaN`, `15` = `15.0`), everything else by canonical text.
    ///
    /// `old` may have been written before the type was declared: then it is the JSON token of an undeclared
    /// number, or a text form that is not canonical, and is brought into this kind's form first.
    pub fn equal(self, old: &str, new: &str) -> bool {
        if old == new {
            return true;
        }
        match self {
            Self::Text | Self::Json => false,
            Self::Float8 => {
                matches!((float8(old), float8(new)), (Some(a), Some(b)) if a == b || a.is_nan() && b.is_nan())
            }
            Self::Float4 => {
                matches!((float4(old), float4(new)), (Some(a), Some(b)) if a == b || a.is_nan() && b.is_nan())
            }
            Self::Numeric | Self::Int2 | Self::Int4 | Self::Int8 => number::numeric_equal(old, new),
            _ => match (self.canonical(old), self.canonical(new)) {
                (Some(old), Some(new)) => old == new,
                (Some(old), None) => old == new,
                (None, _) => false,
            },
        }
    }

    /// The canonical text of a value that came as a bare JSON number or as a text form, by what the kind alone
    /// says: an integer is days for a date, microseconds for a time, timestamp or interval (Debezium's default
    /// encodings); base64 is a bytea; `T` and `Z` of ISO times go. `None` if the text is no value of this kind.
    pub fn canonical(self, text: &str) -> Option<String> {
        let integer = || text.parse::<i64>().ok();
        Some(match self {
            Self::Text | Self::Json => text.to_owned(),
            Self::Bool => match text {
                "t" | "true" => "t".to_owned(),
                "f" | "false" => "f".to_owned(),
                _ => return None,
            },
            Self::Int2 | Self::Int4 | Self::Int8 => {
                let n: i64 = number::numeric_normal(text)?.parse().ok()?;
                let fits = match self {
                    Self::Int2 => i16::try_from(n).is_ok(),
                    Self::Int4 => i32::try_from(n).is_ok(),
                    _ => true,
                };
                fits.then(|| n.to_string())?
            }
            Self::Float4 => number::float4_text(float4(text)?),
            Self::Float8 => number::float8_text(float8(text)?),
            Self::Numeric => number::numeric_text(text)?,
            Self::Date => match integer() {
                Some(days) => calendar::date_text(days),
                None => match calendar::parse(text)? {
                    Parsed::Date(days) => calendar::date_text(days),
                    Parsed::Timestamp(micros) => {
                        calendar::date_text(i64::try_from(micros.div_euclid(86_400_000_000)).ok()?)
                    }
                    Parsed::Infinite(positive) => infinite(positive),
                },
            },
            Self::Time => match integer() {
                Some(micros) => calendar::time_text(micros),
                None => calendar::time_text(calendar::parse_time(text)?.0),
            },
            Self::TimeTz => match integer() {
                Some(micros) => calendar::time_text(micros) + "+00",
                None => {
                    let (micros, offset) = calendar::parse_time(text)?;
                    calendar::time_text(micros) + &calendar::offset_text(offset.unwrap_or(0))
                }
            },
            Self::Timestamp | Self::TimestampTz => {
                let zoned = self == Self::TimestampTz;
                match integer() {
                    Some(micros) => calendar::timestamp_text(calendar::fold_infinity(micros), zoned),
                    None => match calendar::parse(text)? {
                        Parsed::Date(days) => calendar::finite_text(i128::from(days) * 86_400_000_000, zoned)?,
                        Parsed::Timestamp(micros) => calendar::wide_text(micros, zoned),
                        Parsed::Infinite(positive) => infinite(positive),
                    },
                }
            }
            Self::Interval => match integer() {
                Some(micros) => calendar::interval_text(0, 0, micros),
                None => calendar::interval_from_iso(text)?,
            },
            Self::Bytea => match text.strip_prefix("\\x") {
                Some(digits) if digits.len() % 2 == 0 && digits.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    text.to_ascii_lowercase()
                }
                Some(_) => return None,
                None => bytea_text(&base64::engine::general_purpose::STANDARD.decode(text).ok()?),
            },
            Self::Uuid => text.parse::<uuid::Uuid>().ok()?.to_string(),
        })
    }
}

/// Bytes as `bytea_output hex` prints them.
pub fn bytea_text(bytes: &[u8]) -> String {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("\\x");
    for byte in bytes {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    text
}

fn infinite(positive: bool) -> String {
    if positive { "infinity" } else { "-infinity" }.to_owned()
}

/// A float's text; a finite number too large for a double is no float (Rust would read it as infinite).
fn float8(text: &str) -> Option<f64> {
    if let Some(special) = number::numeric_special(text) {
        return special.parse().ok();
    }
    let looks = matches!(text.as_bytes().first()?, b'-' | b'0'..=b'9');
    text.parse().ok().filter(|f: &f64| looks && f.is_finite())
}

fn float4(text: &str) -> Option<f32> {
    if let Some(special) = number::numeric_special(text) {
        return special.parse().ok();
    }
    let looks = matches!(text.as_bytes().first()?, b'-' | b'0'..=b'9');
    text.parse().ok().filter(|f: &f32| looks && f.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_known_by_its_own_name() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_sql_name(kind.sql()), Some(kind));
        }
        for (name, kind) in [
            ("FLOAT8", Kind::Float8),
            ("varchar(40)", Kind::Text),
            ("character varying(255)", Kind::Text),
            ("numeric(10, 2)", Kind::Numeric),
            ("timestamp(3) without time zone", Kind::Timestamp),
            ("timestamp", Kind::Timestamp),
            ("timestamptz", Kind::TimestampTz),
            (" int ", Kind::Int4),
            ("bool", Kind::Bool),
            ("integer[]", Kind::Json),
            ("json", Kind::Json),
        ] {
            assert_eq!(Kind::from_sql_name(name), Some(kind), "{name}");
        }
        for name in ["", "mood", "mood[]", "varchar(40", "42"] {
            assert_eq!(Kind::from_sql_name(name), None, "{name}");
        }
    }

    #[test]
    fn equality_is_by_value() {
        assert!(Kind::Float8.equal("-0", "0") && Kind::Float8.equal("NaN", "NaN") && Kind::Float8.equal("15.0", "15"));
        assert!(Kind::Float8.equal("1.2345678901234568E17", "1.2345678901234568e+17"));
        assert!(Kind::Float8.equal("NAN", "NaN") && Kind::Float4.equal("NAN", "NaN"));
        assert!(!Kind::Float8.equal("NaN", "0") && !Kind::Float8.equal("Infinity", "1e999"));
        assert!(Kind::Float4.equal("0.10", "0.1") && !Kind::Float4.equal("0.1", "0.2"));
        assert!(Kind::Numeric.equal("15", "1.5E1") && !Kind::Numeric.equal("9007199254740993", "9007199254740992"));
        assert!(Kind::Int4.equal("7.0", "7") && !Kind::Int4.equal("7", "8"));
        assert!(!Kind::Text.equal("15", "15.0") && Kind::Text.equal("a", "a"));
        assert!(!Kind::Json.equal("{\"a\":1}", "{\"a\": 1}"));
    }

    #[test]
    fn a_value_from_before_its_declaration_is_compared_by_the_declared_kind() {
        assert!(Kind::Date.equal("20543", "2026-03-31") && !Kind::Date.equal("20542", "2026-03-31"));
        assert!(Kind::Date.equal("-2147472692", "infinity"));
        assert!(Kind::Timestamp.equal("1772360102500000", "2026-03-01 10:15:02.5"));
        assert!(
            Kind::Timestamp.equal("9223372036825200000", "infinity")
                && Kind::Timestamp.equal("9223372036854775807", "infinity")
        );
        assert!(Kind::Time.equal("3723000000", "01:02:03"));
        assert!(Kind::TimestampTz.equal("2026-03-01T10:15:02Z", "2026-03-01 10:15:02+00"));
        assert!(Kind::Bytea.equal("aGVsbG8=", "\\x68656c6c6f"));
        assert!(Kind::Bool.equal("true", "t"));
        assert!(!Kind::Date.equal("soon", "2026-03-31"));
    }
}
