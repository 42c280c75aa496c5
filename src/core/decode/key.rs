//! The canonical row key out of a Kafka key.

use std::borrow::Cow;

use super::token::{Fields, Token};
use crate::core::value::number;

/// The row key of a Kafka key: one key column's text, or a JSON array of the texts of several. A schema wrapper
/// around the key is ignored, so a topic may change its converter without changing its keys.
/// `None` if there is no key; `Err` says what is wrong with the one there is.
pub fn row_key(key: Option<&[u8]>) -> Result<Option<Box<str>>, &'static str> {
    let Some(key) = key else { return Ok(None) };
    let text = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8")?.trim_ascii();
    if text == "null" {
        return Ok(None);
    }
    let fields = Fields::read(text).ok_or("the key is not a JSON object")?;
    let fields = match unwrapped(&fields.0) {
        Some("null") => return Ok(None),
        Some(inner) => Fields::read(inner).ok_or("the key's payload is not an object")?.0,
        None => fields.0,
    };
    let read = |(name, raw)| column_text(raw).map(|text| (name, text));
    let columns = fields.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    joined(columns).map(Some)
}

/// The texts of key or identity columns as one text: a single column's own, several as a compact JSON array in
/// bytewise order of the column names.
pub fn joined(mut columns: Vec<(Cow<'_, str>, String)>) -> Result<Box<str>, &'static str> {
    columns.sort();
    if columns.windows(2).any(|pair| matches!(pair, [a, b] if a.0 == b.0)) {
        return Err("a key column comes twice");
    }
    match columns.len() {
        0 => Err("the key has no columns"),
        1 => Ok(columns.swap_remove(0).1.into()),
        _ => {
            let texts: Vec<&str> = columns.iter().map(|(_, text)| text.as_str()).collect();
            serde_json::to_string(&texts).map(Box::from).map_err(|_| "the key cannot be written")
        }
    }
}

/// The `payload` of `{"schema":…,"payload":{…}}`. A key with two columns of just these names and scalar values
/// is taken for what it is.
fn unwrapped<'a>(fields: &[(Cow<'a, str>, &'a str)]) -> Option<&'a str> {
    let [a, b] = fields else { return None };
    let (schema, payload) = match (a.0.as_ref(), b.0.as_ref()) {
        ("schema", "payload") => (a.1, b.1),
        ("payload", "schema") => (b.1, a.1),
        _ => return None,
    };
    let wrapper = (schema.starts_with('{') || schema == "null") && (payload.starts_with('{') || payload == "null");
    wrapper.then_some(payload)
}

fn column_text(raw: &str) -> Result<String, &'static str> {
    match Token::read(raw).ok_or("a key column cannot be stored as text")? {
        Token::Null => Err("a key column is null"),
        Token::Bool(b) => Ok(if b { "t" } else { "f" }.to_owned()),
        Token::Number(n) => number::numeric_normal(n).ok_or("a key column's number cannot be read"),
        Token::String(s) => Ok(s.into_owned()),
        Token::Nested(_) => Err("a key column is not a scalar"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<Option<String>, &'static str> {
        row_key(Some(text.as_bytes())).map(|k| k.map(String::from))
    }

    #[test]
    fn one_column_is_its_text() {
        for (text, wanted) in [
            (r#"{"id":9}"#, "9"),
            (r#"{"schema":{"type":"struct","fields":[]},"payload":{"id":9}}"#, "9"),
            (r#"{"payload":{"id":9},"schema":null}"#, "9"),
            (r#"{"id":9.0}"#, "9"),
            (r#"{"id":-9223372036854775808}"#, "-9223372036854775808"),
            (r#"{"code":"a\"b"}"#, "a\"b"),
            (r#"{"flag":true}"#, "t"),
        ] {
            assert_eq!(key(text), Ok(Some(wanted.to_owned())), "{text}");
        }
    }

    #[test]
    fn several_columns_are_a_json_array_in_order_of_their_names() {
        assert_eq!(key(r#"{"b":2,"a":"x\"y","B":true}"#), Ok(Some(r#"["t","x\"y","2"]"#.to_owned())));
        assert_eq!(key(r#"{"a":"x\"y","B":true,"b":2}"#), key(r#"{"b":2,"a":"x\"y","B":true}"#));
        assert_eq!(key(r#"{"schema":"s","payload":"p"}"#), Ok(Some(r#"["p","s"]"#.to_owned())));
    }

    #[test]
    fn no_key_is_not_a_bad_key() {
        assert_eq!(row_key(None), Ok(None));
        assert_eq!(key("null"), Ok(None));
        assert_eq!(key(r#"{"schema":{},"payload":null}"#), Ok(None));
        for junk in
            ["", "{", "9", "[9]", "{}", r#"{"id":null}"#, r#"{"id":[1]}"#, r#"{"id":1,"id":2}"#, r#"{"id":"\u0000"}"#]
        {
            assert!(key(junk).is_err(), "{junk}");
        }
        assert!(row_key(Some(b"\xff")).is_err());
    }
}
