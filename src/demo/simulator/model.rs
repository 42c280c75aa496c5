//! The simulated tables: rows with Connect's columns, the id sequence, Salesforce's recycle bin.

use std::collections::HashMap;
use std::sync::Arc;

use super::envelope;
use super::release::Debezium;
use super::tables::{Mapped, Role, TableSpec};
use super::values::{Micros, Value};

/// A row of a Connect table.
#[derive(Debug, Clone)]
pub struct Row {
    /// The simulator's own name of the row, stable when `id` moves.
    pub uid: u64,
    /// Primary key, and so the Kafka key.
    pub id: i32,
    /// The Salesforce id, once Salesforce has given one.
    pub sfid: Option<String>,
    /// One value per column of the table; the places of `id`, `sfid` and the status columns are not used.
    pub cells: Vec<Value>,
    /// `_hc_lastop`
    pub last_op: &'static str,
    /// `_hc_err`
    pub err: Option<String>,
    /// A trace of several steps is under way on this row; no other trace may touch it.
    pub busy: bool,
}

impl Row {
    /// The row's value of the column with this role.
    pub fn get(&self, spec: &TableSpec, role: Role) -> &Value {
        &self.cells[spec.index_of(role)]
    }

    /// Sets the column with this role.
    pub fn set(&mut self, spec: &TableSpec, role: Role, value: Value) {
        self.cells[spec.index_of(role)] = value;
    }

    /// `systemmodstamp`, if the row has one.
    pub fn stamp(&self, spec: &TableSpec) -> Option<Micros> {
        match self.get(spec, Role::Stamp) {
            Value::Timestamp(micros) => Some(*micros),
            _ => None,
        }
    }

    /// All columns as they stand in the table, machinery included.
    pub fn full(&self, spec: &TableSpec) -> Vec<Value> {
        let text = |text: &str| Value::Text(text.to_string());
        spec.columns
            .iter()
            .zip(&self.cells)
            .map(|(column, cell)| match column.role {
                Role::Id => Value::Int(i64::from(self.id)),
                Role::Sfid => self.sfid.as_deref().map_or(Value::Null, text),
                Role::LastOp => text(self.last_op),
                Role::Err => self.err.as_deref().map_or(Value::Null, text),
                _ => cell.clone(),
            })
            .collect()
    }
}

/// The rows of a table: picked by place, found by name. Order depends on the history of the run alone.
#[derive(Debug, Default)]
pub struct Rows {
    rows: Vec<Row>,
    places: HashMap<u64, usize>,
}

impl Rows {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The row at a place below [`Self::len`].
    pub fn at(&self, place: usize) -> &Row {
        &self.rows[place]
    }

    /// The row with this name, if it is still there.
    pub fn find(&mut self, uid: u64) -> Option<&mut Row> {
        self.places.get(&uid).map(|&place| &mut self.rows[place])
    }

    /// Adds a row.
    pub fn insert(&mut self, row: Row) {
        self.places.insert(row.uid, self.rows.len());
        self.rows.push(row);
    }

    /// Takes a row out.
    pub fn remove(&mut self, uid: u64) -> Option<Row> {
        let place = self.places.remove(&uid)?;
        let row = self.rows.swap_remove(place);
        if let Some(moved) = self.rows.get(place) {
            self.places.insert(moved.uid, place);
        }
        Some(row)
    }

    /// Empties the table.
    pub fn take_all(&mut self) -> Vec<Row> {
        self.places.clear();
        std::mem::take(&mut self.rows)
    }
}

/// One org's table of one object.
#[derive(Debug)]
pub struct Table {
    /// The org's name, which is also its schema in the source database.
    pub org: String,
    /// The connector's release.
    pub release: Debezium,
    /// Name of the connector that captures the org: the prefix of its topics.
    pub connector: String,
    /// Columns and their roles.
    pub spec: &'static TableSpec,
    /// The Kafka topic.
    pub topic: Arc<str>,
    /// Whether this connector writes the schema block with every message.
    pub with_schema: bool,
    /// Whether this connector shows TRUNCATE (`skipped.operations=none`).
    pub shows_truncate: bool,
    /// Which columns are mapped now.
    pub shown: Vec<bool>,
    /// The schema block for these columns, made once for all messages until a mapping changes.
    pub schema_block: String,
    /// The rows.
    pub rows: Rows,
    /// Rows deleted in Salesforce, oldest first, with the time of the delete.
    pub bin: Vec<(Micros, Row)>,
    next_id: i32,
}

impl Table {
    /// An empty table.
    pub fn new(org: &str, connector: &str, spec: &'static TableSpec, with_schema: bool, release: Debezium) -> Table {
        let mut table = Table {
            org: org.to_string(),
            release,
            connector: connector.to_string(),
            spec,
            topic: format!("{connector}.{org}.{}", spec.object).into(),
            with_schema,
            shows_truncate: !with_schema,
            shown: spec.columns.iter().map(|column| column.mapped != Mapped::AddedLater).collect(),
            rows: Rows::default(),
            bin: Vec::new(),
            schema_block: String::new(),
            next_id: 1,
        };
        table.schema_block = envelope::schema_block(&table);
        table
    }

    /// Columns enter or leave the mapping.
    pub fn set_mapped(&mut self, which: Mapped, shown: bool) {
        for (index, column) in self.spec.columns.iter().enumerate() {
            if column.mapped == which {
                self.shown[index] = shown;
            }
        }
        self.schema_block = envelope::schema_block(self);
    }

    /// The next value of the id sequence.
    pub fn take_id(&mut self) -> i32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// `TRUNCATE … RESTART IDENTITY`: all rows leave, and ids begin at 1 again, on other records.
    pub fn truncate(&mut self) -> Vec<Row> {
        self.next_id = 1;
        self.rows.take_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(uid: u64) -> Row {
        Row { uid, id: uid as i32, sfid: None, cells: Vec::new(), last_op: "SYNCED", err: None, busy: false }
    }

    #[test]
    fn rows_are_found_by_name_after_others_left() {
        let mut rows = Rows::default();
        (1..=5).for_each(|uid| rows.insert(row(uid)));
        assert_eq!(rows.remove(2).map(|row| row.uid), Some(2));
        assert_eq!(rows.remove(5).map(|row| row.uid), Some(5));
        assert!(rows.remove(2).is_none());
        for uid in [1, 3, 4] {
            assert_eq!(rows.find(uid).map(|row| row.uid), Some(uid));
        }
        assert_eq!(rows.len(), 3);
    }
}
