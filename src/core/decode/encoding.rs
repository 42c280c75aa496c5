//! How a column's values travel in JSON, and their way into canonical text.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::token::Token;
use crate::core::event::Micros;
use crate::core::value::calendar::{self, Parsed};
use crate::core::value::{Kind, number};

/// A column's wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Debezium's default for the kind: dates in days, times and timestamps in µs, bytes in base64, the rest as
    /// PostgreSQL or Java print it. See [`Kind::canonical`].
    Plain(Kind),
    /// Nothing is known but the JSON token: numbers stay exactly as they came.
    Guess(Kind),
    /// Milliseconds since midnight.
    TimeMillis,
    /// Nanoseconds since midnight.
    TimeNanos,
    /// Milliseconds since 1970.
    TimestampMillis,
    /// Nanoseconds since 1970.
    TimestampNanos,
    /// Base64 of a two's-complement integer times 10^-scale.
    Decimal {
        /// Digits after the point; negative for rounded whole numbers.
        scale: i32,
    },
    /// `{"scale":…,"value":…}` with the same integer.
    VariableDecimal,
    /// Base64 of bits, least significant byte first.
    Bits {
        /// The column's length in bits; 0 or 2^31-1 if it has none.
        length: u32,
    },
}

/// Why a value does not fit its column. Never carries the value.
pub type Misfit = &'static str;

impl Encoding {
    /// The kind that its canonical texts have.
    pub fn kind(self) -> Kind {
        match self {
            Self::Plain(kind) | Self::Guess(kind) => kind,
            Self::TimeMillis | Self::TimeNanos => Kind::Time,
            Self::TimestampMillis | Self::TimestampNanos => Kind::Timestamp,
            Self::Decimal { .. } | Self::VariableDecimal => Kind::Numeric,
            Self::Bits { .. } => Kind::Text,
        }
    }

    /// The canonical text of a token that is neither null nor the placeholder.
    ///
    /// A date or time in a text form that nobody knows stays as it came, since the value is true, only its form
    /// is odd. Any other contradiction between token and wire form is a misfit.
    pub fn text<'t>(self, token: &'t Token<'_>) -> Result<Cow<'t, str>, Misfit> {
        let owned = |text: String| Cow::Owned(text);
        match self {
            Self::Guess(_) => Ok(verbatim(token)),
            Self::Plain(kind) => plain(kind, token),
            Self::TimeMillis => match token {
                Token::Number(_) => {
                    let millis = integer(token)?;
                    Ok(owned(millis.checked_mul(1000).map_or_else(|| format!("ms:{millis}"), calendar::time_text)))
                }
                _ => plain(Kind::Time, token),
            },
            Self::TimeNanos => match token {
                Token::Number(_) => Ok(owned(calendar::time_text(integer(token)?.div_euclid(1000)))),
                _ => plain(Kind::Time, token),
            },
            Self::TimestampMillis => match token {
                Token::Number(_) => {
                    let millis = integer(token)?;
                    let micros = calendar::micros_from_millis(millis);
                    Ok(owned(micros.map_or_else(|| format!("ms:{millis}"), |us| calendar::timestamp_text(us, false))))
                }
                _ => plain(Kind::Timestamp, token),
            },
            Self::TimestampNanos => match token {
                Token::Number(_) => Ok(owned(calendar::timestamp_text(micros_from_nanos(integer(token)?), false))),
                _ => plain(Kind::Timestamp, token),
            },
            Self::Decimal { scale } => match token {
                Token::String(text) => match number::numeric_special(text) {
                    Some(special) => Ok(special.into()),
                    None => unscaled(text, scale.into()).map(owned),
                },
                _ => plain(Kind::Numeric, token), // the converter's decimal.format=NUMERIC
            },
            Self::VariableDecimal => match token {
                Token::Nested(object) => {
                    #[derive(Deserialize)]
                    struct Wire {
                        scale: i32,
                        value: String,
                    }
                    let wire: Wire = serde_json::from_str(object).map_err(|_| "not a decimal with a scale")?;
                    unscaled(&wire.value, wire.scale.into()).map(owned)
                }
                _ => plain(Kind::Numeric, token),
            },
            Self::Bits { length } => match token {
                Token::Bool(bit) => Ok(if *bit { "1" } else { "0" }.into()),
                Token::String(text) => {
                    let bytes = STANDARD.decode(text.as_bytes()).map_err(|_| "not base64")?;
                    let all = bytes.len() * 8;
                    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
                    // A varying column's own length is not in the message: whole bytes are shown.
                    let shown = if wanted == 0 || wanted > all { all } else { wanted };
                    let bit = |i: usize| bytes.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1);
                    Ok(owned((0..shown).rev().map(|i| if bit(i) { '1' } else { '0' }).collect()))
                }
                _ => Err("not bits"),
            },
        }
    }

    /// A token of a timestamp column as a number; `None` for null and for what is no time.
    pub fn micros(self, token: &Token<'_>) -> Option<Micros> {
        match token {
            Token::Number(text) => {
                let n: i64 = text.parse().ok()?;
                match self {
                    Self::TimestampMillis => calendar::micros_from_millis(n),
                    Self::TimestampNanos => Some(micros_from_nanos(n)),
                    Self::Plain(Kind::Date) => n.checked_mul(86_400_000_000),
                    _ => Some(calendar::fold_infinity(n)),
                }
            }
            Token::String(text) => match calendar::parse(text)? {
                Parsed::Infinite(positive) => {
                    Some(if positive { calendar::INFINITY } else { calendar::MINUS_INFINITY })
                }
                Parsed::Date(days) => days.checked_mul(86_400_000_000),
                Parsed::Timestamp(micros) => i64::try_from(micros).ok().map(calendar::fold_infinity),
            },
            Token::Null | Token::Bool(_) | Token::Nested(_) => None,
        }
    }
}

/// A token as text without knowing what it means.
pub fn verbatim<'t>(token: &'t Token<'_>) -> Cow<'t, str> {
    Cow::Borrowed(match token {
        Token::Null => "",
        Token::Bool(b) => {
            if *b {
                "t"
            } else {
                "f"
            }
        }
        Token::Number(text) => text,
        Token::String(text) | Token::Nested(text) => text,
    })
}

fn plain<'t>(kind: Kind, token: &'t Token<'_>) -> Result<Cow<'t, str>, Misfit> {
    let odd_form_stays = matches!(
        kind,
        Kind::Date | Kind::Time | Kind::TimeTz | Kind::Timestamp | Kind::TimestampTz | Kind::Interval | Kind::Uuid
    );
    match (kind, token) {
        (Kind::Text | Kind::Json, Token::String(text)) => Ok(text.as_ref().into()),
        (Kind::Json, Token::Nested(text)) => Ok(text.as_ref().into()),
        (Kind::Json, Token::Number(text)) => Ok((*text).into()),
        (Kind::Json, Token::Bool(b)) => Ok(if *b { "true" } else { "false" }.into()),
        (Kind::Bool, Token::Bool(_)) => Ok(verbatim(token)),
        (Kind::Text | Kind::Bool | Kind::Bytea | Kind::Uuid, Token::Number(_)) => {
            Err("a number where its type has none")
        }
        (Kind::Float8 | Kind::Numeric, Token::Number(text)) if number::is_short_integer(text) => Ok((*text).into()),
        (Kind::Float8, Token::Number(text)) if text.strip_suffix(".0").is_some_and(number::is_short_integer) => {
            Ok(text.strip_suffix(".0").unwrap_or(text).into())
        }
        (_, Token::Number(text)) => kind.canonical(text).map(Cow::Owned).ok_or("a number out of the type's range"),
        (_, Token::String(text)) => match kind.canonical(text) {
            Some(text) => Ok(text.into()),
            None if odd_form_stays => Ok(text.as_ref().into()),
            None => Err("a text that is no value of its type"),
        },
        (_, Token::Bool(_)) => Err("a boolean where its type has none"),
        (_, Token::Nested(_)) => Err("an object or array where its type has none"),
        (_, Token::Null) => Err("null"),
    }
}

fn integer(token: &Token<'_>) -> Result<i64, Misfit> {
    match token {
        Token::Number(text) => text.parse().map_err(|_| "not an integer of 64 bits"),
        _ => Err("not a number"),
    }
}

fn micros_from_nanos(nanos: i64) -> Micros {
    match nanos {
        i64::MAX => calendar::INFINITY,
        i64::MIN => calendar::MINUS_INFINITY,
        _ => nanos.div_euclid(1000),
    }
}

fn unscaled(base64: &str, scale: i64) -> Result<String, Misfit> {
    let bytes = STANDARD.decode(base64).map_err(|_| "not base64")?;
    number::unscaled_text(&bytes, scale).ok_or("a decimal out of range")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(encoding: Encoding, json: &str) -> Result<String, Misfit> {
        encoding.text(&Token::read(json).unwrap()).map(Cow::into_owned)
    }

    fn ok(encoding: Encoding, json: &str, wanted: &str) {
        assert_eq!(text(encoding, json).as_deref(), Ok(wanted), "{encoding:?} {json}");
    }

    #[test]
    fn numbers() {
        use Encoding::{Decimal, Guess, Plain, VariableDecimal};
        ok(Plain(Kind::Float8), "15.0", "15");
        ok(Plain(Kind::Float8), "4.9E-324", "5e-324");
        ok(Plain(Kind::Float8), "-0.0", "-0");
        ok(Plain(Kind::Float8), "\"NaN\"", "NaN");
        ok(Plain(Kind::Float8), "\"-Infinity\"", "-Infinity");
        ok(Plain(Kind::Float4), "1.1", "1.1");
        ok(Plain(Kind::Int4), "7", "7");
        ok(Plain(Kind::Numeric), "\"1234.50\"", "1234.50");
        ok(Plain(Kind::Numeric), "\"NAN\"", "NaN");
        ok(Plain(Kind::Numeric), "1234.5", "1234.5");
        ok(Decimal { scale: 2 }, "\"AeI6\"", "1234.50");
        ok(Decimal { scale: 2 }, "\"+w==\"", "-0.05");
        ok(Decimal { scale: 2 }, "1234.50", "1234.50");
        ok(VariableDecimal, r#"{"scale":2,"value":"AeI6"}"#, "1234.50");
        ok(Guess(Kind::Numeric), "1.0E21", "1.0E21");
        for (encoding, json) in [
            (Plain(Kind::Float8), "1e400"),
            (Plain(Kind::Int2), "40000"),
            (Plain(Kind::Int4), "2147483648"),
            (Plain(Kind::Int8), "1.5"),
            (Plain(Kind::Int4), "\"x\""),
            (Plain(Kind::Text), "7"),
            (Plain(Kind::Bool), "\"yes\""),
            (Decimal { scale: 2 }, "\"?\""),
            (VariableDecimal, "{}"),
        ] {
            assert!(text(encoding, json).is_err(), "{encoding:?} {json}");
        }
    }

    #[test]
    fn dates_and_times() {
        use Encoding::{Plain, TimeMillis, TimeNanos, TimestampMillis, TimestampNanos};
        ok(Plain(Kind::Date), "20543", "2026-03-31");
        ok(Plain(Kind::Date), "-735160", "0044-03-15 BC");
        ok(Plain(Kind::Timestamp), "1772360102000000", "2026-03-01 10:15:02");
        ok(Plain(Kind::Timestamp), "9223372036825200000", "infinity");
        ok(Plain(Kind::Timestamp), "-9223372036854775808", "-infinity");
        ok(Plain(Kind::Timestamp), "\"2026-03-01T10:15:02Z\"", "2026-03-01 10:15:02");
        ok(Plain(Kind::TimestampTz), "\"2026-03-01T10:15:02.120Z\"", "2026-03-01 10:15:02.12+00");
        ok(Plain(Kind::TimestampTz), "\"+292278994-08-17T07:00:00Z\"", "infinity");
        ok(Plain(Kind::TimestampTz), "\"some day\"", "some day");
        ok(TimestampMillis, "-1", "1969-12-31 23:59:59.999");
        ok(TimestampMillis, "9223372036825200", "infinity");
        ok(TimestampMillis, "9223372036854775806", "ms:9223372036854775806");
        ok(TimestampNanos, "-1000", "1969-12-31 23:59:59.999999");
        ok(TimeMillis, "1", "00:00:00.001");
        ok(TimeNanos, "1000", "00:00:00.000001");
        ok(Plain(Kind::Time), "86399999999", "23:59:59.999999");
        ok(Plain(Kind::TimeTz), "\"13:37:03.5Z\"", "13:37:03.5+00");
        ok(Plain(Kind::Interval), "-1000000", "-00:00:01");
        ok(Plain(Kind::Interval), "\"P1Y2M3DT4H5M6.78S\"", "1 year 2 mons 3 days 04:05:06.78");
        assert!(text(TimestampMillis, "1.5").is_err());
        assert!(text(Plain(Kind::Date), "true").is_err());
    }

    #[test]
    fn the_rest() {
        use Encoding::{Bits, Plain};
        ok(Plain(Kind::Bool), "true", "t");
        ok(Plain(Kind::Bytea), "\"aGVsbG8=\"", "\\x68656c6c6f");
        ok(Plain(Kind::Bytea), "\"\"", "\\x");
        ok(Plain(Kind::Json), "\"{\\\"a\\\": 1}\"", "{\"a\": 1}");
        ok(Plain(Kind::Json), "[1, \"a\"]", "[1,\"a\"]");
        ok(Plain(Kind::Uuid), "\"0C7C9A52-0000-4000-8000-000000000001\"", "0c7c9a52-0000-4000-8000-000000000001");
        ok(Bits { length: 5 }, "\"Fg==\"", "10110");
        ok(Bits { length: 1 }, "true", "1");
        ok(Bits { length: 9 }, "\"AQE=\"", "100000001");
    }

    #[test]
    fn stamps_are_micros_in_every_form() {
        let micros = |encoding: Encoding, json: &str| encoding.micros(&Token::read(json).unwrap());
        let us = Encoding::Plain(Kind::Timestamp);
        assert_eq!(micros(us, "1772360102000000"), Some(1_772_360_102_000_000));
        assert_eq!(micros(Encoding::TimestampMillis, "1772360102000"), Some(1_772_360_102_000_000));
        assert_eq!(micros(us, "\"2026-03-01T10:15:02Z\""), Some(1_772_360_102_000_000));
        assert_eq!(micros(us, "9223372036825200000"), Some(i64::MAX));
        assert_eq!(micros(us, "\"-infinity\""), Some(i64::MIN));
        for none in ["null", "\"soon\"", "1.5", "[]", "99999999999999999999"] {
            assert_eq!(micros(us, none), None, "{none}");
        }
    }
}
