//! The quick look at a row event: envelope and row in one pass, by what the rows before looked like.
//!
//! Most events of a Connect table repeat what is known, apart from stamps and status columns. So the visible part of
//! a row is hashed on the way, around the columns that never cause a delta: the [hash front](crate::core::front)
//! tells a repeat by it, without the row being decoded at all. Only a row laid out exactly as the last decoded one
//! is hashed; any other one, and whatever [`scan`] does not accept, goes the long way.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

use super::ResolvedIdentity;
use super::columns::Columns;
use super::envelope::{Envelope, Moment, Span, integer, row_op};
use super::scan;
use crate::core::event::{Class, Op};
use crate::core::record::key_hash;

/// What a row repeats, if it repeats something.
///
/// It is made of bytes that nobody has checked to be UTF-8. Whoever has a print that equals one of a decoded row has the
/// same visible bytes, which were checked then; the others are checked before there is a print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print {
    /// [`key_hash`] of the record, if the row names it in canonical form.
    pub record: i64,
    /// Hash of the key and of everything visible, as it stands in the message.
    pub content: u128,
    /// Hash of the status columns.
    pub status: u32,
    /// Hash of the system columns.
    pub system: u32,
}

/// How a column takes part in the print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Content,
    Status,
    System,
    /// The `sfid` column.
    Identity,
    /// `id`, which the key has, and what configuration excludes.
    Nothing,
}

#[derive(Debug, Clone)]
struct Slot {
    /// `"name":`
    name: Expected,
    part: Part,
    /// For status and system columns, see [`side_hash`].
    name_hash: u64,
}

/// Bytes that are compared with those of every row: three words at once where they are short enough, since a call of
/// memcmp for some ten bytes costs more than comparing them.
#[derive(Debug, Clone)]
struct Expected {
    bytes: Box<[u8]>,
    words: [u64; WORDS],
    masks: [u64; WORDS],
}

const WORDS: usize = 3;

impl Expected {
    fn new(bytes: &[u8]) -> Self {
        let (mut words, mut masks) = ([0; WORDS], [0; WORDS]);
        for (nth, eight) in bytes.chunks(8).take(WORDS).enumerate() {
            let (mut word, mut mask) = ([0; 8], [0; 8]);
            word[..eight.len()].copy_from_slice(eight);
            mask[..eight.len()].fill(0xff);
            (words[nth], masks[nth]) = (u64::from_le_bytes(word), u64::from_le_bytes(mask));
        }
        Expected { bytes: bytes.into(), words, masks }
    }

    /// The offset behind them, if they stand at `at`.
    #[inline]
    fn behind(&self, text: &[u8], at: usize) -> Option<usize> {
        let end = at + self.bytes.len();
        let here = match text.get(at..at + WORDS * 8) {
            Some(found) if self.bytes.len() <= WORDS * 8 => {
                let mut different = 0;
                for ((eight, word), mask) in found.as_chunks::<8>().0.iter().zip(&self.words).zip(&self.masks) {
                    different |= (u64::from_le_bytes(*eight) ^ word) & mask;
                }
                different == 0
            }
            _ => text.get(at..)?.starts_with(&self.bytes),
        };
        here.then_some(end)
    }
}

/// What one status or system column adds to the hash of its kind. The order of columns must not matter, hence a sum.
pub(super) fn side_hash(name_hash: u64, raw: &[u8]) -> u64 {
    xxh3_64(raw).rotate_left(23) ^ name_hash
}

/// A sum of [`side_hash`]es as it is kept.
pub(super) fn fold(sum: u64) -> u32 {
    (sum ^ sum >> 32) as u32
}

/// The columns of a row in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    fields: Vec<Slot>,
    source: Template,
    object_id: i16,
    seed: u64,
    by_key: bool,
    ready: bool,
    /// Hash of the schema block of that row; 0 = none.
    block: u128,
}

/// What a number in `source` is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Micros,
    Nanos,
    Millis,
    Lsn,
    TxId,
    /// Another value that differs from event to event.
    Other,
}

/// The `source` of the row decoded last: what stays from event to event, each piece with the value that follows it.
#[derive(Debug, Clone, Default)]
struct Template {
    pieces: Vec<(Box<[u8]>, Number)>,
    end: Box<[u8]>,
}

impl Template {
    fn learn(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        moment(text, 0)?;
        let (mut pieces, mut from) = (Vec::new(), 0);
        let end = scan::fields(text, 0, |name, start, end| {
            let number = match name {
                b"ts_us" => Number::Micros,
                b"ts_ns" => Number::Nanos,
                b"ts_ms" => Number::Millis,
                b"lsn" => Number::Lsn,
                b"txId" => Number::TxId,
                b"sequence" | b"xmin" => Number::Other,
                _ => return Some(()),
            };
            pieces.push((text.get(from..start)?.into(), number));
            from = end;
            Some(())
        })?;
        let rest = text.get(from..end)?.into();
        (end == text.len()).then_some(Self { pieces, end: rest })
    }

    /// What [`moment`] reads, if only the numbers differ.
    fn read(&self, text: &[u8], at: usize) -> Option<(usize, Moment)> {
        let (mut us, mut ns, mut ms, mut lsn, mut tx_id) = (None, None, None, None, None);
        let mut at = at;
        for (piece, number) in &self.pieces {
            let start = text.get(at..)?.starts_with(piece).then_some(at + piece.len())?;
            let slot = match number {
                Number::Micros => &mut us,
                Number::Nanos => &mut ns,
                Number::Millis => &mut ms,
                Number::Lsn => &mut lsn,
                Number::TxId => &mut tx_id,
                Number::Other => {
                    at = scan::value(text, start)?;
                    continue;
                }
            };
            (at, *slot) = whole(text, start)?;
        }
        let end = text.get(at..)?.starts_with(&self.end).then_some(at + self.end.len())?;
        (!self.end.is_empty()).then_some((end, Moment::of(us, ns, ms, lsn, tx_id)?))
    }
}

/// A whole number that is not negative, or null.
fn whole(text: &[u8], at: usize) -> Option<(usize, Option<i64>)> {
    let mut end = at;
    let mut value = 0u64;
    while let Some(eight) = text.get(end..end + 8).and_then(|eight| eight.try_into().ok()).and_then(eight_digits) {
        value = value.wrapping_mul(100_000_000).wrapping_add(eight);
        end += 8;
    }
    while let Some(digit @ b'0'..=b'9') = text.get(end) {
        value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
        end += 1;
    }
    let leading_zero = text.get(at) == Some(&b'0');
    match end - at {
        0 => text.get(at..at + 4).filter(|word| *word == b"null").map(|_| (at + 4, None)),
        1 => Some((end, Some(i64::try_from(value).ok()?))),
        // 19 digits never leave 64 bits.
        2..=19 if !leading_zero => Some((end, Some(i64::try_from(value).ok()?))),
        _ => None,
    }
}

/// The number that eight digits are: pairs of digits, pairs of these, and pairs of these, each in one multiplication.
fn eight_digits(bytes: [u8; 8]) -> Option<u64> {
    let word = u64::from_le_bytes(bytes);
    let (high, low) = (0xf0f0_f0f0_f0f0_f0f0, 0x3030_3030_3030_3030);
    // 0x30 to 0x39 have the high half 3, and keep it when 6 is added.
    if word & high != low || word.wrapping_add(0x0606_0606_0606_0606) & high != low {
        return None;
    }
    let digits = word - low;
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) & 0xffff_ffff)
}

impl Layout {
    /// Prints are made for this object from now on. `seed` must not be known to whoever writes the rows, who could
    /// otherwise craft two values of one hash.
    pub(super) fn enable(&mut self, object_id: i16, seed: u64) {
        self.object_id = object_id;
        self.seed = seed;
        self.ready = true;
    }

    /// Follows the row that was decoded last. Prints made before are not comparable with those made after.
    pub(super) fn learn(
        &mut self,
        columns: &Columns,
        identity: Option<&ResolvedIdentity>,
        source: Option<&str>,
        block: u128,
    ) {
        self.block = block;
        self.source = source.and_then(Template::learn).unwrap_or_default();
        self.seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        self.fields.clear();
        self.by_key = match identity {
            Some(ResolvedIdentity::Sfid) => false,
            Some(ResolvedIdentity::Key) => true,
            // Identities made of columns are rare: those rows go the long way.
            Some(ResolvedIdentity::Columns(_)) | None => return,
        };
        for column in columns.in_order() {
            let part = match column.class {
                _ if !self.by_key && &*column.name == "sfid" => Part::Identity,
                Class::Visible => Part::Content,
                Class::System => Part::System,
                Class::Status if column.name.starts_with("_hc_") => Part::Status,
                Class::Status | Class::Excluded => Part::Nothing,
            };
            // A name that JSON writes with escapes does not match, which only costs speed.
            let name: Box<[u8]> = format!("\"{}\":", column.name).into_bytes().into();
            if self.fields.iter().any(|known| *known.name.bytes == *name) {
                // Two columns of one name: which of them counts is for the long way to say.
                self.fields.clear();
                return;
            }
            let name = Expected::new(&name);
            self.fields.push(Slot { name, part, name_hash: xxh3_64(column.name.as_bytes()) });
        }
    }

    /// The print of a row that starts at `at`.
    fn print(&self, key: &[u8], text: &[u8], at: usize) -> Option<(usize, Print)> {
        let mut at = scan::byte(text, at, b'{')?;
        let mut run = at;
        let mut content = u128::from(xxh3_64(key) ^ self.seed);
        let (mut status, mut system) = (0u64, 0u64);
        let mut identity = None;
        let last = self.fields.len().checked_sub(1)?;
        for (nth, Slot { name, part, name_hash }) in self.fields.iter().enumerate() {
            let start = name.behind(text, at)?;
            let end = scan::value(text, start)?;
            if *part != Part::Content {
                // What is not hashed is not known to be good from the row before: an escape may be one of those that
                // no text can hold, or it is no text at all.
                let value = text.get(start..end)?;
                let strange = value.iter().fold(false, |strange, byte| strange | (*byte == b'\\') | !byte.is_ascii());
                if strange && (value.contains(&b'\\') || std::str::from_utf8(value).is_err()) {
                    return None;
                }
                if run < at {
                    content = chain(content, text.get(run..at)?);
                }
                run = end;
                match part {
                    Part::Status => status = status.wrapping_add(side_hash(*name_hash, text.get(start..end)?)),
                    Part::System => system = system.wrapping_add(side_hash(*name_hash, text.get(start..end)?)),
                    Part::Identity => identity = Some(text.get(start..end)?),
                    Part::Content | Part::Nothing => {}
                }
            }
            at = scan::byte(text, end, if nth == last { b'}' } else { b',' })?;
        }
        if run < at {
            content = chain(content, text.get(run..at)?);
        }
        let record = if self.by_key { number_of(key)? } else { id_of(identity?)? };
        content = chain(content, record.as_bytes());
        let record = key_hash(self.object_id, record);
        Some((at, Print { record, content, status: fold(status), system: fold(system) }))
    }
}

/// Hashes one more run of bytes into a hash.
fn chain(before: u128, bytes: &[u8]) -> u128 {
    let seed = (before as u64) ^ ((before >> 64) as u64).rotate_left(32);
    xxh3_128_with_seed(bytes, seed)
}

/// The id in a JSON string, if it is in canonical form by its looks.
fn id_of(token: &[u8]) -> Option<&str> {
    let inner = token.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    let canonical = inner.len() == 18 && inner.iter().all(u8::is_ascii_alphanumeric);
    std::str::from_utf8(inner).ok().filter(|_| canonical)
}

/// The one number in a key without schema, `{"id":15}`.
fn number_of(key: &[u8]) -> Option<&str> {
    let (end, _) = scan::string(key, 1).filter(|_| key.first() == Some(&b'{'))?;
    let digits = key.get(end + 1..)?.strip_suffix(b"}")?;
    let plain = digits.len() < 19 && digits.iter().all(u8::is_ascii_digit) && *digits.first()? != b'0';
    std::str::from_utf8(digits).ok().filter(|_| plain && key.get(end) == Some(&b':'))
}

/// Reads a message's envelope, and its row's print if the row is laid out as expected. `at` is where the envelope
/// starts in `text`: behind a known schema block or at the start. `None`: not accepted here, which says nothing.
///
/// `block`: hash of the message's schema block, 0 if it has none. The same bytes under another block may be another
/// value, so they have no print.
pub(super) fn look(
    layout: &Layout,
    block: u128,
    key: Option<&[u8]>,
    text: &[u8],
    at: usize,
) -> Option<(usize, Envelope)> {
    let (mut before, mut after, mut source, mut op) = (None, None, None, None);
    let mut print = None;
    let mut open = scan::byte(text, at, b'{')?;
    let end = loop {
        let (end, escaped) = scan::string(text, open)?;
        let name = text.get(open + 1..end - 1).filter(|_| !escaped)?;
        let start = scan::byte(text, end, b':')?;
        let (slot, end) = match name {
            b"after" => {
                let quick = if layout.ready && layout.block == block {
                    key.and_then(|key| layout.print(key, text, start))
                } else {
                    None
                };
                match quick {
                    Some((end, found)) => {
                        print = Some(found);
                        (&mut after, end)
                    }
                    None => (&mut after, scan::value(text, start)?),
                }
            }
            b"before" => (&mut before, scan::value(text, start)?),
            b"source" => {
                let (end, moment) = layout.source.read(text, start).or_else(|| moment(text, start))?;
                if source.replace((start, end, moment)).is_some() {
                    return None;
                }
                (&mut None, end)
            }
            b"op" => (&mut op, scan::value(text, start)?),
            // A message with a block that is not the last one, or something else altogether.
            b"schema" | b"payload" => return None,
            _ => (&mut None, scan::value(text, start)?),
        };
        if slot.replace((start, end)).is_some() {
            return None;
        }
        match *text.get(end)? {
            b',' => open = end + 1,
            b'}' => break end + 1,
            _ => return None,
        }
    };
    let part = |range: (usize, usize)| text.get(range.0..range.1);
    let op = row_op(part(op?)?)?;
    let row = |range: Option<(usize, usize)>| match range.and_then(part)? {
        [b'{', ..] => Some(Some(range?)),
        b"null" => Some(None),
        _ => None,
    };
    let span = |(start, end)| Span::new(start, end);
    // As in the row: what is not hashed must be known to be text.
    let row_at = after.unwrap_or((at, at));
    let is_text = |part: &[u8]| part.is_ascii() || std::str::from_utf8(part).is_ok();
    let checked = is_text(text.get(at..row_at.0)?) && is_text(text.get(row_at.1..end)?);
    let (after, before) = match op {
        Op::Delete => (None, if before.is_some() { row(before)? } else { None }),
        _ => (Some(row(after)??), None),
    };
    let (start, source_end, moment) = source?;
    let envelope = Envelope {
        op,
        ts: moment.ts,
        lsn: if op == Op::Read { 0 } else { moment.lsn },
        tx_id: moment.tx_id,
        after: after.map(span).map_or(Some(None), |span| span.map(Some))?,
        before: before.map(span).map_or(Some(None), |span| span.map(Some))?,
        source: Span::new(start, source_end)?,
        schema: None,
        print: print.filter(|_| op != Op::Delete && checked),
    };
    Some((end, envelope))
}

/// `source`, read as the long way reads it; `None` where that would find fault.
fn moment(text: &[u8], at: usize) -> Option<(usize, Moment)> {
    let (mut us, mut ns, mut ms, mut lsn, mut tx_id, mut table) = (None, None, None, None, None, false);
    let mut seen = 0u8;
    let end = scan::fields(text, at, |name, start, end| {
        let raw = text.get(start..end)?;
        let (slot, bit) = match name {
            b"ts_us" => (&mut us, 1),
            b"ts_ns" => (&mut ns, 2),
            b"ts_ms" => (&mut ms, 4),
            b"lsn" => (&mut lsn, 8),
            b"txId" => (&mut tx_id, 16),
            b"table" => {
                let first = !table;
                table = raw.len() > 2 && raw.first() == Some(&b'"');
                return first.then_some(());
            }
            _ => return Some(()),
        };
        if seen & bit != 0 {
            return None;
        }
        seen |= bit;
        if raw != b"null" {
            *slot = Some(integer(std::str::from_utf8(raw).ok()?)?);
        }
        Some(())
    })?;
    let moment = Moment::of(us, ns, ms, lsn, tx_id)?;
    table.then_some((end, moment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn expected_bytes_are_found_where_they_stand_and_nowhere_else() {
        let text = br#"{"a":1,"external_id__c":"x","a_name_that_is_longer_than_three_words__c":2}"#;
        for name in ["\"a\":", "\"external_id__c\":", "\"a_name_that_is_longer_than_three_words__c\":", "2}"] {
            let expected = Expected::new(name.as_bytes());
            for at in 0..=text.len() + 1 {
                let found = text.get(at..).is_some_and(|rest| rest.starts_with(name.as_bytes()));
                assert_eq!(expected.behind(text, at), found.then_some(at + name.len()), "{name} at {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn whole_numbers_are_read_as_they_are(text in "[0-9]{1,22}[,}x ]?|null,?|-?[0-9a:/]{0,9}") {
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let number = &text[..digits];
            let wanted = match digits {
                0 => text.starts_with("null").then_some((4, None)),
                2.. if number.starts_with('0') => None,
                _ => number.parse::<i64>().ok().map(|number| (digits, Some(number))),
            };
            prop_assert_eq!(whole(text.as_bytes(), 0), wanted);
        }
    }
}
