//! JSON tokens of a row: told apart, taken out of their quotes, never parsed further than needed.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::scan;

/// One JSON value as it stands in a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Token<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number's own text.
    Number(&'a str),
    /// A string, unescaped.
    String(Cow<'a, str>),
    /// An object or array, without white space outside strings.
    Nested(Cow<'a, str>),
}

impl<'a> Token<'a> {
    /// Reads one complete JSON value, which the caller knows to be one; `None` if its string has no text that PostgreSQL could hold (NUL, half a
    /// surrogate pair).
    pub fn read(text: &'a str) -> Option<Self> {
        Some(match text.as_bytes().first()? {
            b'n' => Self::Null,
            b't' => Self::Bool(true),
            b'f' => Self::Bool(false),
            b'"' => Self::String(unquote(text)?),
            b'{' | b'[' => Self::Nested(compact(text)),
            _ => Self::Number(text),
        })
    }
}

fn unquote(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.get(1..text.len().checked_sub(1)?)?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    let unescaped: String = serde_json::from_str(text).ok()?;
    (!unescaped.contains('\0')).then_some(Cow::Owned(unescaped))
}

/// Drops white space outside strings.
fn compact(text: &str) -> Cow<'_, str> {
    let mut in_string = false;
    let mut escaped = false;
    let mut drop = |c: u8| {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            return false;
        }
        in_string = c == b'"';
        c.is_ascii_whitespace()
    };
    if !text.bytes().any(&mut drop) {
        return Cow::Borrowed(text);
    }
    (in_string, escaped) = (false, false);
    let mut drop = |c: char| {
        if in_string {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => in_string = false,
                _ => {}
            }
            return false;
        }
        in_string = c == '"';
        c.is_ascii_whitespace()
    };
    Cow::Owned(text.chars().filter(|&c| !drop(c)).collect())
}

/// An object's fields in the order of the message: names, and values as they stand there.
pub struct Fields<'a>(pub Vec<(Cow<'a, str>, &'a str)>);

impl<'a> Fields<'a> {
    /// The fields of a JSON object; `None` if the text is none.
    pub fn read(text: &'a str) -> Option<Self> {
        let mut fields = Vec::with_capacity(32);
        let end = scan::fields(text.as_bytes(), 0, |name, start, end| {
            // Its quote and a colon stand between them.
            let behind = start.checked_sub(2)?;
            let name = text.get(behind.checked_sub(name.len())?..behind)?;
            fields.push((Cow::Borrowed(name), text.get(start..end)?));
            Some(())
        });
        if end == Some(text.len()) { Some(Self(fields)) } else { serde_json::from_str(text).ok() }
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::with_capacity(32);
                while let Some(Name(name)) = map.next_key()? {
                    fields.push((name, map.next_value::<&'de RawValue>()?.get()));
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<Token<'_>> {
        Token::read(serde_json::from_str::<&RawValue>(text).unwrap().get())
    }

    #[test]
    fn tokens_are_told_apart() {
        assert_eq!(read("null"), Some(Token::Null));
        assert_eq!(read("false"), Some(Token::Bool(false)));
        assert_eq!(read("-1.50E3"), Some(Token::Number("-1.50E3")));
        assert_eq!(read(r#""a\"b\u2028\u0001\u001f""#), Some(Token::String("a\"b\u{2028}\u{1}\u{1f}".into())));
        assert_eq!(
            read("[1,\n \"a \\\" b\", { \"c\" : [ ] }]"),
            Some(Token::Nested("[1,\"a \\\" b\",{\"c\":[]}]".into()))
        );
    }

    #[test]
    fn text_that_postgres_cannot_hold_is_refused() {
        assert_eq!(read(r#""a\u0000b""#), None);
        assert_eq!(read(r#""a\ud800b""#), None);
    }
}
