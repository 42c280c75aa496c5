//! Salesforce ids.
//!
//! An id has 15 case-sensitive characters; its 18-character form adds three that say which of the 15 are
//! capitals, so that the id survives systems that fold case. Records are named by the 18-character form only.

/// Why a text is not a Salesforce id. Never carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Neither 15 nor 18 characters.
    #[error("an id has 15 or 18 characters, this has {0}")]
    Length(usize),
    /// A character outside `0-9A-Za-z`.
    #[error("an id has only letters and digits")]
    Character,
    /// The check characters contradict the first 15, and more than one id could have been meant.
    #[error("the check characters do not belong to this id")]
    Check,
}

const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";

/// The 18-character form of `text`.
///
/// 15 characters are completed. 18 with right check characters (in either case) are taken. 18 with wrong ones
/// are repaired only when the first 15 lost their case as a whole (all capitals or all small) and the check
/// characters can be obeyed: then the case is what they say. Anything else could be two ids, so it is refused.
pub fn canonical(text: &str) -> Result<[u8; 18], IdError> {
    let bytes = text.as_bytes();
    if bytes.len() != 15 && bytes.len() != 18 {
        return Err(IdError::Length(text.chars().count()));
    }
    if !bytes.iter().all(u8::is_ascii_alphanumeric) {
        return Err(IdError::Character);
    }
    let mut id = [0u8; 18];
    let (body, check) = bytes.split_at(15);
    id[..15].copy_from_slice(body);
    id[15..].copy_from_slice(&check_characters(body));
    if check.is_empty() || check.eq_ignore_ascii_case(&id[15..]) {
        return Ok(id);
    }
    let folded = !body.iter().any(u8::is_ascii_lowercase) || !body.iter().any(u8::is_ascii_uppercase);
    if !folded {
        return Err(IdError::Check);
    }
    for (chunk, mark) in check.iter().enumerate() {
        let mark = mark.to_ascii_uppercase();
        let bits = ALPHABET.iter().position(|&c| c == mark).ok_or(IdError::Check)?;
        for (bit, c) in id[chunk * 5..chunk * 5 + 5].iter_mut().enumerate() {
            if bits >> bit & 1 == 0 {
                c.make_ascii_lowercase();
            } else if c.is_ascii_digit() {
                return Err(IdError::Check);
            } else {
                c.make_ascii_uppercase();
            }
        }
        id[15 + chunk] = mark;
    }
    Ok(id)
}

/// [`canonical`] as text.
pub fn canonical_text(text: &str) -> Result<Box<str>, IdError> {
    let id = canonical(text)?;
    // ASCII by construction; the error arm only spares an unwrap.
    std::str::from_utf8(&id).map(Box::from).map_err(|_| IdError::Character)
}

/// The three check characters: per five characters, bit i is set where character i is a capital.
fn check_characters(body: &[u8]) -> [u8; 3] {
    let mut check = [b'A'; 3];
    for (mark, chunk) in check.iter_mut().zip(body.chunks(5)) {
        let bits =
            (chunk.iter().enumerate()).fold(0usize, |bits, (i, c)| bits | usize::from(c.is_ascii_uppercase()) << i);
        *mark = ALPHABET[bits];
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> Result<String, IdError> {
        canonical_text(text).map(String::from)
    }

    #[test]
    fn fifteen_characters_are_completed() {
        for (short, long) in [
            ("001f400001MDeYz", "001f400001MDeYzAAL"),
            ("0019000000B98de", "0019000000B98deAAB"),
            ("a0D30000001n7Pi", "a0D30000001n7PiEAI"),
            ("0032X00002QU10J", "0032X00002QU10JQAT"),
            ("0015f00002J9YYE", "0015f00002J9YYEAA3"),
        ] {
            assert_eq!(full(short), Ok(long.to_owned()));
            assert_eq!(full(long), Ok(long.to_owned()));
        }
    }

    #[test]
    fn an_id_that_lost_its_case_is_repaired() {
        for mangled in ["001F400001MDEYZAAL", "001f400001mdeyzaal", "001f400001mdeyzAAL", "001F400001MDEYZaal"] {
            assert_eq!(full(mangled), Ok("001f400001MDeYzAAL".to_owned()), "{mangled}");
        }
        assert_eq!(full("001f400001MDeYzaal"), Ok("001f400001MDeYzAAL".to_owned()));
        // No letters but the checks': nothing to repair, the checks are simply right.
        assert_eq!(full("001000000000001AAA"), Ok("001000000000001AAA".to_owned()));
    }

    #[test]
    fn an_id_that_could_be_two_is_refused() {
        assert_eq!(full("001f400001MDeYzAAA"), Err(IdError::Check)); // mixed case: body or check may be wrong
        assert_eq!(full("001F400001MDeYzAAL"), Err(IdError::Check));
        assert_eq!(full("001f400001mdeyzB9L"), Err(IdError::Check)); // 9 is not a check character
        assert_eq!(full("001f400001mdeyzBAL"), Err(IdError::Check)); // a digit cannot be a capital
    }

    #[test]
    fn other_texts_are_refused() {
        assert_eq!(full(""), Err(IdError::Length(0)));
        assert_eq!(full("001f400001MDeY"), Err(IdError::Length(14)));
        assert_eq!(full("001f400001MDeYzAA"), Err(IdError::Length(17)));
        assert_eq!(full("001f400001MDe z"), Err(IdError::Character));
        assert_eq!(full("001f400001MDéz"), Err(IdError::Character));
    }
}
