//! A strict scanner for JSON that comes without white space, as every JSON converter of Kafka Connect writes it.
//!
//! It finds where values end and accepts nothing that a full parser would refuse; what it does not accept (white space,
//! deep nesting, junk) is left to the full parser. Input is known to be UTF-8.

use crate::core::eight::{ONES, equal, first};

/// Deepest nesting that is scanned here.
const DEEPEST: u32 = 32;

/// Where among eight bytes the first quote, backslash or control character stands.
#[inline]
fn mark(eight: [u8; 8]) -> Option<usize> {
    let word = u64::from_le_bytes(eight);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    first(equal(word, b'"') | equal(word, b'\\') | control)
}

/// A string that opens at `at`: the offset behind its closing quote, and whether it holds escapes.
#[inline]
pub(super) fn string(text: &[u8], at: usize) -> Option<(usize, bool)> {
    if *text.get(at)? != b'"' {
        return None;
    }
    let mut at = at + 1;
    let mut escaped = false;
    loop {
        while let Some(eight) = text.get(at..at + 8).and_then(|eight| eight.try_into().ok()) {
            match mark(eight) {
                Some(found) => {
                    at += found;
                    break;
                }
                None => at += 8,
            }
        }
        match *text.get(at)? {
            b'"' => return Some((at + 1, escaped)),
            b'\\' => {
                escaped = true;
                at = escape(text, at + 1)?;
            }
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

/// The offset behind an escape whose letter is at `at`.
fn escape(text: &[u8], at: usize) -> Option<usize> {
    match *text.get(at)? {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(at + 1),
        b'u' => {
            let digits = text.get(at + 1..at + 5)?;
            digits.iter().all(u8::is_ascii_hexdigit).then_some(at + 5)
        }
        _ => None,
    }
}

/// A value that starts at `at`: the offset behind it.
#[inline]
pub(super) fn value(text: &[u8], at: usize) -> Option<usize> {
    match text.get(at) {
        // Most of them.
        Some(b'"') => string(text, at).map(|(end, _)| end),
        _ => nested(text, at, DEEPEST),
    }
}

fn nested(text: &[u8], at: usize, deeper: u32) -> Option<usize> {
    match *text.get(at)? {
        b'"' => string(text, at).map(|(end, _)| end),
        b'n' => word(text, at, b"null"),
        b't' => word(text, at, b"true"),
        b'f' => word(text, at, b"false"),
        b'{' => list(text, at, b'}', deeper, |text, at, deeper| {
            let (end, _) = string(text, at)?;
            nested(text, byte(text, end, b':')?, deeper)
        }),
        b'[' => list(text, at, b']', deeper, nested),
        _ => number(text, at),
    }
}

fn list(
    text: &[u8],
    at: usize,
    close: u8,
    deeper: u32,
    item: impl Fn(&[u8], usize, u32) -> Option<usize>,
) -> Option<usize> {
    let deeper = deeper.checked_sub(1)?;
    let mut at = at + 1;
    if *text.get(at)? == close {
        return Some(at + 1);
    }
    loop {
        at = item(text, at, deeper)?;
        match *text.get(at)? {
            b',' => at += 1,
            found if found == close => return Some(at + 1),
            _ => return None,
        }
    }
}

fn word(text: &[u8], at: usize, word: &[u8]) -> Option<usize> {
    text.get(at..)?.starts_with(word).then_some(at + word.len())
}

/// The offset behind one expected byte.
#[inline]
pub(super) fn byte(text: &[u8], at: usize, expected: u8) -> Option<usize> {
    (*text.get(at)? == expected).then_some(at + 1)
}

fn number(text: &[u8], at: usize) -> Option<usize> {
    let digits = |from: usize| {
        let mut at = from;
        while text.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        (at > from).then_some(at)
    };
    let start = if *text.get(at)? == b'-' { at + 1 } else { at };
    let mut at = digits(start)?;
    if text.get(start) == Some(&b'0') && at > start + 1 {
        return None;
    }
    if text.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let signed = matches!(text.get(at + 1), Some(b'+' | b'-'));
        at = digits(at + 1 + usize::from(signed))?;
    }
    Some(at)
}

/// Walks the fields of an object that starts at `at`, and gives each name (between its quotes) and value as ranges to
/// `take`, which may stop the walk with `None`. Names with escapes are not accepted. Returns the offset behind it.
pub(super) fn fields<'t>(
    text: &'t [u8],
    at: usize,
    mut take: impl FnMut(&'t [u8], usize, usize) -> Option<()>,
) -> Option<usize> {
    let mut at = byte(text, at, b'{')?;
    if text.get(at) == Some(&b'}') {
        return Some(at + 1);
    }
    loop {
        let (end, escaped) = string(text, at)?;
        if escaped {
            return None;
        }
        let name = text.get(at + 1..end - 1)?;
        let start = byte(text, end, b':')?;
        at = value(text, start)?;
        take(name, start, at)?;
        match *text.get(at)? {
            b',' => at += 1,
            b'}' => return Some(at + 1),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    fn whole(text: &str) -> bool {
        value(text.as_bytes(), 0) == Some(text.len())
    }

    #[test]
    fn values_end_where_they_end() {
        for text in [
            "null",
            "true",
            "false",
            "0",
            "-0",
            "15",
            "-1.50E+3",
            "1e9",
            "\"\"",
            "\"a\"",
            "\"ünï\"",
            "{}",
            "[]",
            "[1,[2]]",
            "\"a long text that fills several words, with an escape \\\" and one more \\u00e9 in it\"",
            r#"{"a":{"b":[null,{"c":"\\"}]},"d":-1}"#,
        ] {
            assert!(whole(text), "{text}");
            assert_eq!(value(format!("{text},\"x\"").as_bytes(), 0), Some(text.len()), "{text}");
        }
    }

    #[test]
    fn what_a_parser_refuses_is_refused() {
        for text in [
            "",
            "nul",
            "tru",
            "01",
            "-",
            "1.",
            "1e",
            ".5",
            "+1",
            "\"",
            "\"\\q\"",
            "\"\\u12g4\"",
            "\"a\nb\"",
            "\"\u{1}\"",
            "{\"a\"}",
            "{a:1}",
            "[1,]",
            "{\"a\":1,}",
            "[1",
            "{\"a\":",
            "'a'",
            "\"12345678\u{1f}\"",
            "\"\\",
        ] {
            assert!(!whole(text), "{text:?}");
            assert!(serde_json::from_str::<&RawValue>(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep = "[".repeat(100_000);
        assert_eq!(value(deep.as_bytes(), 0), None);
    }

    #[test]
    fn eight_bytes_are_looked_through_together() {
        for byte in 0..=u8::MAX {
            let wanted = matches!(byte, b'"' | b'\\' | 0..0x20);
            for at in 0..8 {
                let mut block = [b'a'; 8];
                block[at] = byte;
                assert_eq!(mark(block), wanted.then_some(at), "{byte} at {at}");
            }
        }
        assert_eq!(mark(*b"abc\"def\""), Some(3), "the first");
    }

    proptest! {
        /// Whatever is accepted, a full parser accepts too, with the same end.
        #[test]
        fn nothing_is_accepted_that_a_parser_refuses(text in r#"[\[\]{}:,"\\ntrufalse0-9.eE+ é\u{1}-]{0,24}"#) {
            if whole(&text) {
                prop_assert!(serde_json::from_str::<&RawValue>(&text).is_ok(), "{}", text);
            }
        }

        /// Whatever a writer of compact JSON writes is accepted.
        #[test]
        fn compact_json_is_accepted(strings in proptest::collection::vec(any::<String>(), 0..6), number in -1e300..1e300f64) {
            let text = serde_json::json!({"s": strings, "n": number, "nested": {"b": [true, null]}}).to_string();
            prop_assert!(whole(&text), "{}", text);
        }
    }
}
