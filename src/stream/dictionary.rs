//! The fields of one object, between the decoder's columns and the sink's numbers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::core::decode::Decoder;
use crate::core::event::{Class, Event, FieldNo, Micros};
use crate::core::judge::{FieldFact, ObjectFacts};
use crate::core::value::{Kind, Value};
use crate::postgres::registry::{Field, SeenField};

/// Maps columns to field numbers and keeps the facts that judging needs.
#[derive(Debug)]
pub struct Dictionary {
    /// Shared: every look-up takes them along.
    facts: Arc<ObjectFacts>,
    /// By the decoder's column index: what the sink knows of it.
    known: Vec<Option<(FieldNo, Class, Kind)>>,
    by_name: HashMap<String, Field>,
    /// Fields whose misfits were told, with the type they had then.
    misfits: HashMap<FieldNo, Kind>,
}

impl Dictionary {
    /// The dictionary as loaded from the sink.
    pub fn new(facts: ObjectFacts, fields: Vec<Field>) -> Self {
        let mut dictionary =
            Dictionary { facts: Arc::new(facts), known: Vec::new(), by_name: HashMap::new(), misfits: HashMap::new() };
        dictionary.take(fields);
        dictionary
    }

    /// What judging needs.
    pub fn facts(&self) -> &Arc<ObjectFacts> {
        &self.facts
    }

    /// Columns whose number, class or type the sink does not know yet. `first_seen(index)` is the source time of the
    /// event that brought a column; it decides later what counts as a backfill.
    pub fn unknown(&mut self, decoder: &Decoder, first_seen: impl Fn(usize) -> Option<Micros>) -> Vec<SeenField> {
        let columns = decoder.columns();
        for column in columns.iter().skip(self.known.len()) {
            let field = self.by_name.get(&*column.name);
            self.known.push(field.map(|field| (field.no, field.class, field.kind)));
        }
        columns
            .iter()
            .zip(&self.known)
            .enumerate()
            .filter(|(_, (column, known))| known.is_none_or(|known| (known.1, known.2) != (column.class, column.kind)))
            .map(|(index, (column, _))| SeenField {
                name: column.name.to_string(),
                class: column.class,
                kind: column.kind,
                at: first_seen(index),
            })
            .collect()
    }

    /// Takes the sink's dictionary in.
    pub fn take(&mut self, fields: Vec<Field>) {
        self.by_name = fields.into_iter().map(|field| (field.name.clone(), field)).collect();
        self.known.clear();
        let system =
            |name: &str| self.by_name.get(name).filter(|field| field.class == Class::System).map(|field| field.no);
        let facts = Arc::make_mut(&mut self.facts);
        facts.stamp_no = system("systemmodstamp");
        facts.modified_no = system("lastmodifieddate");
        facts.modified_by_no = system("lastmodifiedbyid");
        let created = self.by_name.get("createddate").filter(|field| field.class == Class::Visible);
        facts.created_no = created.map(|field| field.no);
        facts.lookups = self
            .by_name
            .values()
            .filter(|field| field.class == Class::Visible && field.lookup)
            .map(|field| field.no)
            .collect();
        facts.fields = self
            .by_name
            .values()
            .filter(|field| field.class == Class::Visible)
            .map(|field| (field.no, FieldFact { kind: field.kind, first_seen: field.first_seen }))
            .collect();
    }

    /// The column of a field.
    pub fn name(&self, no: FieldNo) -> &str {
        self.by_name.values().find(|field| field.no == no).map_or("", |field| &field.name)
    }

    /// Whether it is news that values of a field do not fit its type.
    pub fn says_misfit(&mut self, no: FieldNo) -> bool {
        let kind = self.facts.fields.get(&no).map_or(Kind::Text, |fact| fact.kind);
        self.misfits.insert(no, kind) != Some(kind)
    }

    /// An event's visible fields by number, ascending. Every column must be known.
    pub fn number(&self, event: &Event) -> Vec<(FieldNo, Value)> {
        let mut fields: Vec<(FieldNo, Value)> = event
            .row
            .values
            .iter()
            .filter_map(|(index, value)| {
                let (no, ..) = (*self.known.get(usize::from(*index))?)?;
                Some((no, value.clone()))
            })
            .collect();
        fields.sort_by_key(|(no, _)| *no);
        fields
    }
}
