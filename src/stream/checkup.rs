//! Looking into an image store at rest: what it holds, and whether that is what the sink says.

use std::collections::HashMap;
use std::sync::Arc;

use afterimage_state::Mark;
use uuid::Uuid;

use super::dictionary::Dictionary;
use super::images;
use crate::core::judge::ObjectFacts;
use crate::core::overlay::Found;
use crate::core::position::PositionId;
use crate::core::record::Record;
use crate::core::unshown::Unshown;
use crate::postgres::lookup::{self, LookupError};
use crate::postgres::operator::Known;
use crate::postgres::{Client, registry};

/// How a position's mark stands to the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// It has all that is committed: images can be compared.
    Level,
    /// The sink is further: a worker would bring it up, or drop it.
    Behind,
    /// It is further than the sink: a worker would drop it.
    Ahead,
    /// It comes from another sink, or from a claim that this one does not know: a worker would drop it.
    Foreign,
}

impl Level {
    /// In one word, for tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Level::Level => "level",
            Level::Behind => "behind",
            Level::Ahead => "ahead",
            Level::Foreign => "foreign",
        }
    }
}

/// Compares a mark with what the sink knows of its position.
pub fn level(mark: &Mark, sink_id: Uuid, known: Option<&Known>) -> Level {
    let Some(known) = known.filter(|known| mark.sink_id == sink_id.into_bytes() && known.token.is_some()) else {
        return Level::Foreign;
    };
    if known.token != Some(Uuid::from_bytes(mark.token)) {
        Level::Foreign
    } else if mark.next > known.next || mark.inval_seq > known.inval_seq {
        Level::Ahead
    } else if mark.next < known.next || mark.inval_seq < known.inval_seq {
        Level::Behind
    } else {
        Level::Level
    }
}

/// An image of the store that is not the sink's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its record.
    pub identity: Box<str>,
    /// What differs; never a value.
    pub what: &'static str,
}

/// Compares stored images with the sink's history.
#[derive(Default)]
pub struct Checkup {
    objects: HashMap<i16, Arc<ObjectFacts>>,
}

impl Checkup {
    /// Compares images of one position and one object: which differ.
    ///
    /// # Errors
    /// When the sink cannot be asked, or holds what cannot be read.
    pub async fn compare(
        &mut self,
        client: &mut Client,
        position: PositionId,
        object_id: i16,
        stored: &[(Box<str>, Vec<u8>)],
    ) -> Result<Vec<Difference>, LookupError> {
        let facts = match self.objects.get(&object_id) {
            Some(facts) => Arc::clone(facts),
            None => {
                let fields = registry::fields(client, object_id).await?;
                let facts = ObjectFacts { object_id, ..ObjectFacts::default() };
                let facts = Arc::clone(Dictionary::new(facts, fields).facts());
                self.objects.insert(object_id, Arc::clone(&facts));
                facts
            }
        };
        let identities: Vec<&str> = stored.iter().map(|(identity, _)| &**identity).collect();
        let found: HashMap<Box<str>, Found> = lookup::records(client, &facts, &identities).await?.into_iter().collect();
        let mut differences = Vec::new();
        for (identity, bytes) in stored {
            let what = match (images::decode(bytes, position), found.get(identity)) {
                (None, _) => Some("it cannot be read"),
                (_, None) => Some("the sink has no such record"),
                (Some(stored), Some(found)) => difference(&stored, &found.record),
            };
            differences.extend(what.map(|what| Difference { identity: identity.clone(), what }));
        }
        Ok(differences)
    }
}

fn difference(stored: &Record, record: &Record) -> Option<&'static str> {
    let place =
        |record: &Record| record.head.as_ref().map(|head| (head.seq, head.op, head.at, head.position_id, head.offset));
    if stored.rid != record.rid {
        Some("its number")
    } else if stored.home != record.home {
        Some("its home")
    } else if stored.row_key != record.row_key {
        Some("its key")
    } else if stored.floor != record.floor {
        Some("its floor")
    } else if stored.unshown != record.unshown && stored.unshown != Unshown::default() {
        // An older release leaves it out.
        Some("what no row has shown since its last move")
    } else if place(stored) != place(record) {
        Some("its newest version")
    } else if !stored.image.fields().eq(record.image.fields()) {
        Some("its fields")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_level_only_with_the_very_sink_claim_and_place() {
        let mark = Mark {
            sink_id: [1; 16],
            position_id: 7,
            epoch: 3,
            token: [2; 16],
            next: 10,
            inval_seq: 4,
            missing_after: None,
        };
        let sink = Uuid::from_bytes([1; 16]);
        let known = Known { next: 10, inval_seq: 4, token: Some(Uuid::from_bytes([2; 16])) };
        let of = |known: Option<&Known>| level(&mark, sink, known);
        assert_eq!(of(Some(&known)), Level::Level);
        assert_eq!(of(None), Level::Foreign);
        assert_eq!(level(&mark, Uuid::nil(), Some(&known)), Level::Foreign);
        assert_eq!(of(Some(&Known { token: None, ..known })), Level::Foreign, "no such claim");
        assert_eq!(of(Some(&Known { token: Some(Uuid::nil()), ..known })), Level::Foreign);
        assert_eq!(of(Some(&Known { next: 11, ..known })), Level::Behind);
        assert_eq!(of(Some(&Known { inval_seq: 5, ..known })), Level::Behind);
        assert_eq!(of(Some(&Known { next: 9, ..known })), Level::Ahead);
        assert_eq!(of(Some(&Known { inval_seq: 3, ..known })), Level::Ahead);
    }
}
