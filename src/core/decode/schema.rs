//! Column types out of the schema block that a message may carry.
//!
//! The block repeats in every message (6 kB for a wide table) and changes only with the table or the connector,
//! so it is parsed once per content and found again by its hash.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_128;

use super::encoding::Encoding;
use crate::core::value::Kind;

/// More contents than this at once mean a stream of ever new blocks; all are forgotten then, to bound memory.
const CACHED: usize = 64;

/// What a block says of the row's columns.
#[derive(Debug, Default)]
pub struct Block {
    names: HashMap<Box<str>, Encoding>,
    /// The same by the decoder's column index, for the columns known when it was last extended.
    by_column: Vec<Option<Encoding>>,
}

impl Block {
    /// The wire form of a column by name.
    pub fn by_name(&self, name: &str) -> Option<Encoding> {
        self.names.get(name).copied()
    }

    /// The wire form of a column by index; valid below the number of columns given to [`Blocks::find`].
    pub fn by_index(&self, index: usize) -> Option<Encoding> {
        self.by_column.get(index).copied().flatten()
    }
}

/// The blocks met so far.
#[derive(Debug, Default)]
pub struct Blocks {
    known: HashMap<u128, Block>,
    /// The text and hash of the block met last: most messages repeat it.
    last: Option<(Box<str>, u128)>,
}

impl Blocks {
    /// The block met last, and its hash.
    pub fn last(&self) -> Option<(&str, u128)> {
        self.last.as_ref().map(|(text, hash)| (text.as_ref(), *hash))
    }

    /// The block of this text, parsed at its first sight. `columns`: the names of all columns known so far.
    pub fn find<'c>(
        &mut self,
        text: &str,
        columns: impl ExactSizeIterator<Item = &'c str>,
    ) -> Result<&Block, &'static str> {
        let hash = match &self.last {
            Some((last, hash)) if **last == *text => *hash,
            _ => xxh3_128(text.as_bytes()),
        };
        if !self.known.contains_key(&hash) {
            let block = parse(text)?;
            if self.known.len() >= CACHED {
                self.known.clear();
            }
            self.known.insert(hash, block);
        }
        if self.last.as_ref().is_none_or(|(_, last)| *last != hash) {
            self.last = Some((text.into(), hash));
        }
        let block = self.known.get_mut(&hash).ok_or("the schema block got lost")?;
        for name in columns.skip(block.by_column.len()) {
            block.by_column.push(block.names.get(name).copied());
        }
        Ok(block)
    }
}

#[derive(Deserialize)]
struct Node<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow)]
    field: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    parameters: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    #[serde(borrow)]
    fields: Option<Vec<Node<'a>>>,
}

fn parse(text: &str) -> Result<Block, &'static str> {
    let root: Node<'_> = serde_json::from_str(text).map_err(|_| "the schema block cannot be read")?;
    let parts = root.fields.unwrap_or_default();
    // A delete-only stream could lack `after`; both describe the same table.
    let row =
        ["after", "before"].iter().find_map(|wanted| parts.iter().find(|part| part.field.as_deref() == Some(wanted)));
    let columns = row.and_then(|row| row.fields.as_ref()).ok_or("the schema block has no row")?;
    let names =
        columns.iter().filter_map(|column| Some((Box::from(column.field.as_deref()?), encoding(column)))).collect();
    Ok(Block { names, by_column: Vec::new() })
}

/// The wire form of one column. Semantic names first (Debezium's and Kafka Connect's), then Connect's base types.
fn encoding(node: &Node<'_>) -> Encoding {
    let parameter = |name: &str| node.parameters.as_ref()?.get(name)?.parse::<i32>().ok();
    if let Some(name) = node.name.as_deref() {
        let plain = match name {
            "io.debezium.time.Date" | "org.apache.kafka.connect.data.Date" | "io.debezium.time.IsoDate" => {
                Some(Kind::Date)
            }
            "io.debezium.time.MicroTime" | "io.debezium.time.IsoTime" => Some(Kind::Time),
            "io.debezium.time.ZonedTime" => Some(Kind::TimeTz),
            "io.debezium.time.MicroTimestamp" | "io.debezium.time.IsoTimestamp" => Some(Kind::Timestamp),
            "io.debezium.time.ZonedTimestamp" => Some(Kind::TimestampTz),
            "io.debezium.time.MicroDuration" | "io.debezium.time.Interval" => Some(Kind::Interval),
            "io.debezium.time.Year" => Some(Kind::Int4),
            "io.debezium.data.Json" => Some(Kind::Json),
            "io.debezium.data.Uuid" => Some(Kind::Uuid),
            "io.debezium.data.Xml"
            | "io.debezium.data.Enum"
            | "io.debezium.data.EnumSet"
            | "io.debezium.data.Ltree"
            | "io.debezium.data.TsVector" => Some(Kind::Text),
            _ => None,
        };
        if let Some(kind) = plain {
            return Encoding::Plain(kind);
        }
        match name {
            "io.debezium.time.Time" | "org.apache.kafka.connect.data.Time" => return Encoding::TimeMillis,
            "io.debezium.time.NanoTime" => return Encoding::TimeNanos,
            "io.debezium.time.Timestamp" | "org.apache.kafka.connect.data.Timestamp" => {
                return Encoding::TimestampMillis;
            }
            "io.debezium.time.NanoTimestamp" => return Encoding::TimestampNanos,
            "org.apache.kafka.connect.data.Decimal" => {
                return Encoding::Decimal { scale: parameter("scale").unwrap_or(0) };
            }
            "io.debezium.data.VariableScaleDecimal" => return Encoding::VariableDecimal,
            "io.debezium.data.Bits" => {
                return Encoding::Bits { length: parameter("length").and_then(|l| u32::try_from(l).ok()).unwrap_or(0) };
            }
            _ => {}
        }
    }
    match node.kind.as_deref() {
        Some("boolean") => Encoding::Plain(Kind::Bool),
        Some("int8" | "int16") => Encoding::Plain(Kind::Int2),
        Some("int32") => Encoding::Plain(Kind::Int4),
        Some("int64") => Encoding::Plain(Kind::Int8),
        Some("float" | "float32") => Encoding::Plain(Kind::Float4),
        Some("double" | "float64") => Encoding::Plain(Kind::Float8),
        Some("string") => Encoding::Plain(Kind::Text),
        Some("bytes") => Encoding::Plain(Kind::Bytea),
        Some("array" | "map" | "struct") => Encoding::Plain(Kind::Json),
        _ => Encoding::Guess(Kind::Text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_over_base_types() {
        let block = r#"{"type":"struct","fields":[{"type":"struct","field":"before","fields":[]},{"type":"struct","field":"after","fields":[
            {"type":"int32","name":"io.debezium.time.Date","version":1,"field":"d"},{"type":"int32","field":"i"},
            {"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2","connect.decimal.precision":"10"},"field":"n"},
            {"type":"bytes","field":"b"},{"type":"array","items":{"type":"string"},"field":"a"},
            {"type":"string","name":"com.example.Unknown","field":"s"},{"type":"bytes","name":"io.debezium.data.Bits","parameters":{"length":"5"},"field":"bits"}]}]}"#;
        let mut blocks = Blocks::default();
        let block = blocks.find(block, ["i", "zzz"].into_iter()).unwrap();
        assert_eq!(block.by_name("d"), Some(Encoding::Plain(Kind::Date)));
        assert_eq!(block.by_name("n"), Some(Encoding::Decimal { scale: 2 }));
        assert_eq!(block.by_name("b"), Some(Encoding::Plain(Kind::Bytea)));
        assert_eq!(block.by_name("a"), Some(Encoding::Plain(Kind::Json)));
        assert_eq!(block.by_name("s"), Some(Encoding::Plain(Kind::Text)));
        assert_eq!(block.by_name("bits"), Some(Encoding::Bits { length: 5 }));
        assert_eq!(block.by_index(0), Some(Encoding::Plain(Kind::Int4)));
        assert_eq!(block.by_index(1), None);
    }

    #[test]
    fn a_broken_block_is_an_error_and_many_blocks_are_bounded() {
        let mut blocks = Blocks::default();
        assert!(blocks.find("{", [].into_iter()).is_err());
        assert!(blocks.find("{}", [].into_iter()).is_err());
        assert!(blocks.find("7", [].into_iter()).is_err());
        for n in 0..10 * CACHED {
            let text = format!(r#"{{"version":{n},"fields":[{{"field":"after","fields":[]}}]}}"#);
            blocks.find(&text, [].into_iter()).unwrap();
        }
        assert!(blocks.known.len() <= CACHED);
    }
}
