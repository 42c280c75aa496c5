//! Salesforce ids: 15 characters that count, 3 that check.
//!
//! Written apart from the decoder's own rules on purpose: a simulator that shares the code it exercises can't find its errors.

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CHECK: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";

/// The three check characters of a 15-character id: per five characters one, whose bit *i* says that character *i* is a capital.
pub fn check_characters(short: &str) -> String {
    short
        .as_bytes()
        .chunks(5)
        .map(|chunk| {
            let capitals = chunk.iter().enumerate().filter(|(_, byte)| byte.is_ascii_uppercase());
            let index: usize = capitals.map(|(bit, _)| 1 << bit).sum();
            char::from(CHECK[index])
        })
        .collect()
}

/// The 18-character id number `serial` of the object with this key prefix, in an org whose ids begin like the article's (`f40…`).
pub fn sfid(key_prefix: &str, serial: u64) -> String {
    // The article's account is number 0001MDeYz; starting above it keeps its id free.
    const FIRST: u64 = 1_244_500_000;
    let mut number = FIRST + serial;
    let mut tail = [b'0'; 9];
    for digit in tail.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    let short = format!("{key_prefix}f40{}", String::from_utf8_lossy(&tail));
    let check = check_characters(&short);
    format!("{short}{check}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_characters_agree_with_published_ids() {
        for (short, check) in [
            ("001f400001MDeYz", "AAL"),
            ("0019000000B98de", "AAB"),
            ("a0D30000001n7Pi", "EAI"),
            ("0032X00002QU10J", "QAT"),
            ("0015f00002J9YYE", "AA3"),
        ] {
            assert_eq!(check_characters(short), check, "{short}");
        }
    }

    #[test]
    fn serials_give_distinct_well_formed_ids() {
        let ids: std::collections::BTreeSet<String> = (0..5_000).map(|serial| sfid("003", serial)).collect();
        assert_eq!(ids.len(), 5_000);
        for id in &ids {
            assert_eq!(id.len(), 18);
            assert!(id.starts_with("003f40"));
            assert_eq!(check_characters(&id[..15]), id[15..]);
        }
        assert!((0..5_000).all(|serial| sfid("001", serial) != "001f400001MDeYzAAL"));
    }
}
