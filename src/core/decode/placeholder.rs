//! The TOAST placeholder: what Debezium sends for a long value that an update did not touch.
//!
//! Its form follows the column's type (Debezium's `UnchangedToastedPlaceholder`): the text itself, the text as
//! bytes, in an array, as the numbers of an integer array, as both sides of an hstore, as a name-based UUID, as
//! a fixed geometry. None of them may ever be taken for a value.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use md5::{Digest as _, Md5};

use super::token::Token;

/// The point `(-99999999 -99999999)` that stands for an unchanged geometry.
const GEOMETRY: &str = "0101000020E6100000000000FC83D797C1000000FC83D797C1";
/// The point `(179.999999 89.999999)` that stands for an unchanged geography.
const GEOGRAPHY: &str = "0101000020E61000000C21E7FDFF7F66401842CEFBFF7F5640";

/// Recognises the placeholder of one connector in all its forms.
#[derive(Debug, Clone)]
pub struct Placeholder {
    strings: Vec<String>,
    nested: Vec<String>,
    bytes: Vec<String>,
}

impl Placeholder {
    /// `configured` is the connector's `unavailable.value.placeholder`; `hex:…` gives its bytes in hex.
    pub fn new(configured: &str) -> Self {
        let bytes = match configured.strip_prefix("hex:").and_then(unhex) {
            Some(bytes) => bytes,
            None => configured.as_bytes().to_vec(),
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let quoted = serde_json::Value::from(text.as_str()).to_string();
        let hstore = format!("{{{quoted}:{quoted}}}");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let base64 = [STANDARD.encode(&bytes), URL_SAFE.encode(&bytes)];
        let signed: Vec<String> = bytes.iter().map(|&b| b.cast_signed().to_string()).collect();
        let unsigned: Vec<String> = bytes.iter().map(u8::to_string).collect();
        let digest: [u8; 16] = Md5::digest(&bytes).into();
        let uuid = uuid::Builder::from_md5_bytes(digest).into_uuid();

        let mut nested = vec![format!("[{quoted}]"), hstore.clone(), format!("[\"{uuid}\"]")];
        nested.push(format!("[{}]", signed.join(",")));
        nested.push(format!("[{}]", unsigned.join(",")));
        nested.extend(base64.iter().map(|b| format!("[\"{b}\"]")));
        let mut wkb: Vec<String> =
            [GEOMETRY, GEOGRAPHY].iter().filter_map(|hex| unhex(hex)).map(|b| STANDARD.encode(b)).collect();
        wkb.extend(base64.iter().cloned());
        let mut strings = vec![text, quoted, hstore, hex];
        strings.extend(base64);
        Self { strings, nested, bytes: wkb }
    }

    /// Whether a token is the placeholder and nothing else: a longer text that contains it is a value.
    pub fn is(&self, token: &Token<'_>) -> bool {
        match token {
            Token::String(s) => self.strings.iter().any(|p| p.len() == s.len() && p == s),
            Token::Nested(s) => self.nested.iter().any(|p| p == s) || self.in_struct(s),
            Token::Null | Token::Bool(_) | Token::Number(_) => false,
        }
    }

    /// Inside the structs that carry bytes: `{"scale":…,"value":…}` and `{"wkb":…,"srid":…}`.
    fn in_struct(&self, object: &str) -> bool {
        if object.len() > 400 {
            return false; // no search through long documents
        }
        let after = |name: &str| object.find(name).and_then(|at| object.get(at + name.len()..));
        let Some(rest) = after("\"wkb\":\"").or_else(|| after("\"value\":\"")) else { return false };
        self.bytes.iter().any(|b| rest.strip_prefix(b.as_str()).is_some_and(|r| r.starts_with('"')))
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    text.len().is_multiple_of(2).then(|| {
        text.as_bytes()
            .chunks(2)
            .map(|pair| Some((digit(*pair.first()?)? * 16 + digit(*pair.get(1)?)?) as u8))
            .collect()
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "__debezium_unavailable_value";

    fn is(json: &str) -> bool {
        Placeholder::new(TEXT).is(&Token::read(json).unwrap())
    }

    #[test]
    fn every_form_is_recognised() {
        let numbers: Vec<String> = TEXT.bytes().map(|b| b.to_string()).collect();
        for form in [
            format!("\"{TEXT}\""),
            format!("[\"{TEXT}\"]"),
            format!("[ \"{TEXT}\" ]"),
            format!("[{}]", numbers.join(",")),
            format!("{{\"{TEXT}\":\"{TEXT}\"}}"),
            format!("\"{{\\\"{TEXT}\\\":\\\"{TEXT}\\\"}}\""),
            format!("\"\\\"{TEXT}\\\"\""),
            "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"".to_owned(),
            "{\"scale\":0,\"value\":\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"}".to_owned(),
            "{\"wkb\":\"AQEAACDmEAAAAAAA/IPXl8EAAAD8g9eXwQ==\",\"srid\":4326}".to_owned(),
        ] {
            assert!(is(&form), "{form}");
        }
        // MD5 of the text with version and variant set, as Java's UUID.nameUUIDFromBytes.
        let uuid = uuid::Builder::from_md5_bytes(Md5::digest(TEXT).into()).into_uuid();
        assert_eq!(uuid.get_version_num(), 3);
        assert!(is(&format!("[\"{uuid}\"]")));
    }

    #[test]
    fn a_value_that_only_contains_it_is_a_value() {
        for value in [
            format!("\"x {TEXT}\""),
            format!("\"{TEXT} \""),
            format!("[\"{TEXT}\",\"{TEXT}\"]"),
            "\"\"".to_owned(),
            "[]".to_owned(),
            "[95]".to_owned(),
            "{\"scale\":0,\"value\":\"AeI6\"}".to_owned(),
            "12".to_owned(),
        ] {
            assert!(!is(&value), "{value}");
        }
    }

    #[test]
    fn a_configured_placeholder_replaces_it() {
        let own = Placeholder::new("hex:6e6f7065");
        assert!(own.is(&Token::String("nope".into())) && !own.is(&Token::String(TEXT.into())));
    }
}
