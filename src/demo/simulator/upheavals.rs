//! What happens to whole tables: reloads (K), fields added to (L) and removed from (M) a mapping, a killed connector.

use std::collections::VecDeque;

use rand::Rng;
use rand::seq::SliceRandom;

use super::envelope;
use super::live::Operation;
use super::model::Row;
use super::tables::{Mapped, TABLES};
use super::traces::{Step, just_before};
use super::values::{self, SECOND};
use super::{Reverse, Simulator};

/// Something that happens to a whole table, or to the connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upheaval {
    /// L: a field is added to the mapping and filled row by row.
    FieldAdded { table: usize },
    /// M: a field is removed from the mapping.
    FieldRemoved { table: usize },
    /// K: all rows are deleted and loaded again.
    ReloadByDelete { table: usize },
    /// K: the table is truncated and loaded again; ids begin at 1 anew, on other records.
    ReloadByTruncate { table: usize },
    /// The connector dies between two offset flushes.
    ConnectorKilled,
}

/// The upheavals of a run, each at its share of the events, in order.
///
/// Nothing of the kind happens to the first org's accounts, so that the article's account has exactly its 21 events
/// (a removed field excepted, which is no event).
pub fn plan(orgs: usize) -> VecDeque<(f64, Upheaval)> {
    let (account, contact, opportunity) = (0, 1, 2);
    let mut plan = vec![(0.50, Upheaval::ConnectorKilled), (0.85, Upheaval::ConnectorKilled)];
    for org in 0..orgs {
        let table = |object: usize| org * TABLES.len() + object;
        let later = 0.02 * org as f64 / orgs as f64;
        plan.push((0.25 + later, Upheaval::FieldAdded { table: table(contact) }));
        plan.push((0.30 + later, Upheaval::FieldAdded { table: table(opportunity) }));
        plan.push((0.40 + later, Upheaval::FieldRemoved { table: table(account) }));
        plan.push((0.45 + later, Upheaval::FieldRemoved { table: table(contact) }));
        plan.push((0.55 + later, Upheaval::ReloadByDelete { table: table(contact) }));
        plan.push((0.70 + later, Upheaval::ReloadByTruncate { table: table(opportunity) }));
        if org > 0 {
            plan.push((0.60 + later, Upheaval::ReloadByDelete { table: table(account) }));
            plan.push((0.75 + later, Upheaval::ReloadByTruncate { table: table(account) }));
            plan.push((0.80 + later, Upheaval::ReloadByDelete { table: table(opportunity) }));
        }
    }
    plan.sort_by(|a, b| a.0.total_cmp(&b.0));
    plan.into()
}

impl Simulator {
    /// Lets an upheaval happen, from beginning to end.
    pub(super) fn upheave(&mut self, upheaval: Upheaval) {
        match upheaval {
            Upheaval::FieldAdded { table } => self.field_added(table),
            Upheaval::FieldRemoved { table } => {
                self.note("M");
                self.finish_open_transactions(table);
                self.record(|simulator| Operation::DropColumns {
                    table,
                    columns: simulator.tables[table].spec.columns_mapped(Mapped::RemovedLater),
                });
                self.tables[table].set_mapped(Mapped::RemovedLater, false);
            }
            Upheaval::ReloadByDelete { table } => self.reload_by_delete(table),
            Upheaval::ReloadByTruncate { table } => self.reload_by_truncate(table),
            Upheaval::ConnectorKilled => self.redeliver(),
        }
    }

    fn field_added(&mut self, table: usize) {
        self.note("L");
        self.finish_open_transactions(table);
        self.tables[table].set_mapped(Mapped::AddedLater, true);
        let spec = self.tables[table].spec;
        let added = spec.columns_mapped(Mapped::AddedLater);
        self.record(|_| Operation::AddColumns { table, columns: spec.columns_mapped(Mapped::AddedLater) });
        let rows: Vec<Row> =
            (0..self.tables[table].rows.len()).map(|at| self.tables[table].rows.at(at).clone()).collect();
        for mut row in rows {
            // A row that waits for its Salesforce id has nothing to be filled from.
            if row.sfid.is_none() {
                continue;
            }
            for &index in &added {
                row.cells[index] = values::make(spec.columns[index].flavour, &mut self.rng, self.now);
            }
            self.put_back(table, &row);
            self.emit_upsert(table, 'u', &row, Some(&added));
        }
    }

    fn reload_by_delete(&mut self, table: usize) {
        self.note("K by DELETE");
        self.finish_open_transactions(table);
        let rows = self.tables[table].rows.take_all();
        for row in &rows {
            self.emit_delete(table, row);
        }
        self.now += 5 * SECOND;
        let mut coming = Vec::new();
        for row in rows {
            // A record deleted in Salesforce meanwhile does not come back now; it may be undeleted there later.
            if row.sfid.is_some() && self.rng.random_ratio(1, 100) {
                let now = self.now;
                self.tables[table].bin.push((now, row));
            } else {
                coming.push(row);
            }
        }
        self.load(table, coming);
    }

    fn reload_by_truncate(&mut self, table: usize) {
        self.note("K by TRUNCATE");
        self.finish_open_transactions(table);
        let rows = self.tables[table].truncate();
        self.record(|_| Operation::Truncate { table });
        if self.tables[table].shows_truncate {
            let at = self.next_point();
            let draft = envelope::truncate(&self.tables[table], at);
            self.totals.others += 1;
            self.send(table, None, Some(draft), at.commit);
        }
        self.now += 5 * SECOND;
        // All records come back: whether one has gone for good only a comparison with the table could tell.
        self.load(table, rows);
    }

    /// Connect inserts what Salesforce has, in another order than before.
    fn load(&mut self, table: usize, mut rows: Vec<Row>) {
        let spec = self.tables[table].spec;
        rows.shuffle(&mut self.rng);
        for mut row in rows {
            // A row that had no Salesforce id was never there, and vanishes.
            if row.sfid.is_none() {
                continue;
            }
            row.id = self.tables[table].take_id();
            let moment = just_before(self.now);
            if row.stamp(spec).is_none() {
                self.salesforce_fills(table, &mut row, moment);
            } else if self.rng.random_ratio(1, 50) {
                self.edit(table, &mut row, 1);
                self.stamp(table, &mut row, moment);
            }
            row.last_op = "SYNCED";
            row.err = None;
            self.emit_upsert(table, 'c', &row, None);
            self.tables[table].rows.insert(row);
        }
    }

    /// A table lock waits for the transactions that have written to the table.
    fn finish_open_transactions(&mut self, table: usize) {
        let (open, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.steps)
            .into_sorted_vec()
            .into_iter()
            .rev()
            .map(|Reverse(step)| step)
            .partition(|step| step.table == table && matches!(step.step, Step::LateCommit { .. }));
        self.steps = others.into_iter().map(Reverse).collect();
        for step in open {
            self.step(table, step.step);
        }
    }
}
