//! What happens to single rows: the traces A to J and N, as steps that lie seconds to minutes apart, so that traces of
//! different rows interleave as they do in a real log.

use std::cmp::Ordering;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::envelope::SourcePoint;
use super::live::Operation;
use super::model::Row;
use super::tables::{Flavour, Role};
use super::values::{self, Micros, SECOND, Value};
use super::{Simulator, sfid, whole_second};

/// A later step of a trace.
#[derive(Debug)]
pub struct Scheduled {
    pub(super) at: Micros,
    pub(super) number: u64,
    pub(super) table: usize,
    pub(super) step: Step,
}

impl Scheduled {
    fn order(&self) -> (Micros, u64) {
        (self.at, self.number)
    }
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// What a step does. The row may be gone or moved by then; a step that finds no row does nothing.
#[derive(Debug)]
pub enum Step {
    /// The commit of a transaction that wrote its change earlier: an LSN below those of commits before it.
    LateCommit { uid: u64, column: usize, value: Value, point: SourcePoint, transaction: u64 },
    /// Connect has sent a local write to Salesforce.
    Acknowledged { uid: u64 },
    /// Salesforce's stamps come back for a local write, and its spelling of a text if that differs.
    Synced { uid: u64, respelled: Option<(usize, Value)> },
    /// Salesforce refused a local write.
    Refused { uid: u64, column: usize, before: Value },
    /// Connect puts the refused value back.
    Reverted { uid: u64, column: usize, before: Value },
    /// A second local write before the first has come back.
    SecondWrite { uid: u64, column: usize, first: Value },
    /// What Salesforce said of the first write lands after the second.
    Echo { uid: u64, column: usize, first: Value, second: Value },
    /// And then of the second.
    EchoEnd { uid: u64, column: usize, second: Value },
    /// A locally inserted row has got its Salesforce id.
    Inserted { uid: u64, sfid: String },
    /// Salesforce's own fields of a locally inserted row.
    Resolved { uid: u64 },
    /// A twin that never got an id is cleaned away.
    TwinDropped { uid: u64 },
    /// A row deleted locally while it was edited in Salesforce comes back.
    Revived { row: Row },
    /// And is deleted after all.
    DeletedAgain { uid: u64 },
}

/// What an application wrote.
struct LocalWrite {
    uid: u64,
    column: usize,
    before: Value,
    written: Value,
    trimmed: Value,
}

/// Traces and their weights: about seven of ten events change nothing, as in the article.
const WEIGHTS: [(&str, u32); 13] = [
    ("A", 25),
    ("B", 115),
    ("C", 500),
    ("C2", 330),
    ("D", 10),
    ("E", 24),
    ("F", 5),
    ("G", 12),
    ("H", 8),
    ("I", 4),
    ("J", 4),
    ("N", 3),
    ("late commit", 5),
];

impl Simulator {
    /// Begins a trace on some table.
    pub(super) fn begin_trace(&mut self) {
        let table = self.pick_table();
        let Ok(&(trace, _)) = WEIGHTS.choose_weighted(&mut self.rng, |(_, weight)| *weight) else { return };
        let happened = match trace {
            "A" => self.created_in_salesforce(table),
            "B" => self.edited_in_salesforce(table),
            "C" => self.read_again(table),
            "C2" => self.touched(table),
            "D" => self.inserted_locally(table, false),
            "E" => self.edited_locally(table),
            "F" => self.edited_in_vain(table),
            "G" => self.deleted(table),
            "H" => self.undeleted(table),
            "I" => self.flip_flop(table),
            "J" => self.deleted_while_edited(table),
            "N" => self.inserted_locally(table, true),
            _ => self.committed_late(table),
        };
        if happened.is_some() {
            self.note(trace);
        }
    }

    /// The next step of a trace.
    pub(super) fn step(&mut self, table: usize, step: Step) {
        match step {
            Step::LateCommit { uid, column, value, point, transaction } => {
                self.now += 100;
                self.record(|_| Operation::Commit { transaction });
                let at = SourcePoint { commit: self.commit_now(), last_commit: self.last_commit, ..point };
                let Some(row) = self.tables[table].rows.find(uid) else { return };
                row.cells[column] = value;
                row.busy = false;
                let row = row.clone();
                self.emit_upsert_at(table, 'u', &row, Some(&[column]), at);
            }
            Step::Acknowledged { uid } => self.change(table, uid, &[], |row| row.last_op = "UPDATED"),
            Step::Synced { uid, respelled } => {
                let column = respelled.as_ref().map(|(column, _)| *column);
                self.sync(table, uid, respelled, column.as_slice(), true);
            }
            Step::Refused { uid, column, before } => {
                self.change(table, uid, &[], |row| {
                    row.last_op = "FAILED";
                    row.err =
                        Some(r#"{"op":"UPDATE","msg":"FIELD_CUSTOM_VALIDATION_EXCEPTION: not allowed"}"#.to_string());
                });
                self.schedule(30 * SECOND, table, Step::Reverted { uid, column, before });
            }
            Step::Reverted { uid, column, before } => self.change(table, uid, &[column], |row| {
                row.cells[column] = before;
                row.last_op = "SYNCED";
                row.err = None;
                row.busy = false;
            }),
            Step::SecondWrite { uid, column, first } => {
                let flavour = self.tables[table].spec.columns[column].flavour;
                let second = values::make_other(flavour, &mut self.rng, self.now, &first);
                let written = second.clone();
                self.change(table, uid, &[column], |row| {
                    row.cells[column] = written;
                    row.last_op = "PENDING";
                });
                self.schedule(12 * SECOND, table, Step::Echo { uid, column, first, second });
            }
            Step::Echo { uid, column, first, second } => {
                self.sync(table, uid, Some((column, first)), &[column], false);
                self.schedule(25 * SECOND, table, Step::EchoEnd { uid, column, second });
            }
            Step::EchoEnd { uid, column, second } => {
                self.sync(table, uid, Some((column, second)), &[column], true);
            }
            Step::Inserted { uid, sfid } => self.change(table, uid, &[], |row| {
                row.sfid = Some(sfid);
                row.last_op = "INSERTED";
            }),
            Step::Resolved { uid } => {
                let Some(row) = self.tables[table].rows.find(uid) else { return };
                row.busy = false;
                let mut row = row.clone();
                if row.stamp(self.tables[table].spec).is_some() {
                    return; // a reload in between has brought Salesforce's fields already
                }
                let moment = self.now - 5 * SECOND;
                self.salesforce_fills(table, &mut row, moment);
                self.put_back(table, &row);
                self.emit_upsert(table, 'u', &row, Some(&[]));
            }
            Step::TwinDropped { uid } | Step::DeletedAgain { uid } => {
                if let Some(row) = self.tables[table].rows.remove(uid) {
                    self.emit_delete(table, &row);
                }
            }
            Step::Revived { mut row } => {
                row.id = self.tables[table].take_id();
                self.edit(table, &mut row, 1);
                let moment = self.undelete_moment();
                self.stamp(table, &mut row, moment);
                self.emit_upsert(table, 'c', &row, None);
                let uid = row.uid;
                self.tables[table].rows.insert(row);
                self.schedule(15 * SECOND, table, Step::DeletedAgain { uid });
            }
        }
    }

    /// A: created in Salesforce.
    fn created_in_salesforce(&mut self, table: usize) -> Option<()> {
        let sfid = self.take_sfid(table);
        let mut row = self.new_row(table, Some(sfid));
        let moment = self.now - 20 * SECOND;
        self.salesforce_fills(table, &mut row, moment);
        self.emit_upsert(table, 'c', &row, None);
        self.tables[table].rows.insert(row);
        Some(())
    }

    /// B: edited in Salesforce.
    fn edited_in_salesforce(&mut self, table: usize) -> Option<()> {
        let uid = self.pick_row(table)?;
        let mut row = self.tables[table].rows.find(uid)?.clone();
        let fields = self.rng.random_range(1..4);
        let carried = self.edit(table, &mut row, fields);
        let moment = self.now - self.rng.random_range(2 * SECOND..240 * SECOND);
        self.stamp(table, &mut row, moment);
        self.put_back(table, &row);
        self.emit_upsert(table, 'u', &row, Some(&carried));
        Some(())
    }

    /// C: the same row written again; now and then with the long text spelled out again.
    fn read_again(&mut self, table: usize) -> Option<()> {
        let uid = self.pick_row(table)?;
        let row = self.tables[table].rows.find(uid)?.clone();
        let carried: Option<&[usize]> = if self.rng.random_ratio(1, 30) { None } else { Some(&[]) };
        self.emit_upsert(table, 'u', &row, carried);
        Some(())
    }

    /// C2: touched in Salesforce without a visible change.
    fn touched(&mut self, table: usize) -> Option<()> {
        let uid = self.pick_row(table)?;
        let mut row = self.tables[table].rows.find(uid)?.clone();
        let moment = self.now - self.rng.random_range(2 * SECOND..60 * SECOND);
        self.stamp(table, &mut row, moment);
        self.put_back(table, &row);
        self.emit_upsert(table, 'u', &row, Some(&[]));
        Some(())
    }

    /// D: inserted by an application; with a twin (N) that Salesforce takes for a duplicate and never gives an id.
    fn inserted_locally(&mut self, table: usize, with_twin: bool) -> Option<()> {
        let mut row = self.new_row(table, None);
        row.last_op = "PENDING";
        row.busy = true;
        self.emit_upsert(table, 'c', &row, None);
        if with_twin {
            let mut twin = row.clone();
            twin.uid = self.next_uid;
            self.next_uid += 1;
            twin.id = self.tables[table].take_id();
            self.emit_upsert(table, 'c', &twin, None);
            if self.rng.random() {
                self.schedule(120 * SECOND, table, Step::TwinDropped { uid: twin.uid });
            }
            self.tables[table].rows.insert(twin);
        }
        let uid = row.uid;
        self.tables[table].rows.insert(row);
        let sfid = self.take_sfid(table);
        self.schedule(4 * SECOND, table, Step::Inserted { uid, sfid });
        self.schedule(40 * SECOND, table, Step::Resolved { uid });
        Some(())
    }

    /// E: edited by an application.
    fn edited_locally(&mut self, table: usize) -> Option<()> {
        // Salesforce trims texts; the padded spelling was in the table for a while all the same.
        let padded = self.rng.random_ratio(1, 6);
        let write = self.local_write(table, padded)?;
        let uid = write.uid;
        let respelled = (write.written != write.trimmed).then_some((write.column, write.trimmed));
        self.schedule(3 * SECOND, table, Step::Acknowledged { uid });
        self.schedule(20 * SECOND, table, Step::Synced { uid, respelled });
        Some(())
    }

    /// F: edited by an application, and refused by Salesforce.
    fn edited_in_vain(&mut self, table: usize) -> Option<()> {
        let LocalWrite { uid, column, before, .. } = self.local_write(table, false)?;
        self.schedule(4 * SECOND, table, Step::Refused { uid, column, before });
        Some(())
    }

    /// G: deleted in Salesforce.
    fn deleted(&mut self, table: usize) -> Option<()> {
        let uid = self.pick_row(table)?;
        let row = self.tables[table].rows.remove(uid)?;
        self.emit_delete(table, &row);
        let now = self.now;
        self.tables[table].bin.push((now, row));
        Some(())
    }

    /// H: undeleted in Salesforce.
    fn undeleted(&mut self, table: usize) -> Option<()> {
        let candidates = self.tables[table].bin.iter().filter(|(at, _)| self.now - at > 60 * SECOND).count();
        if candidates == 0 {
            return None;
        }
        // The bin is in order of time, so the first ones are old enough.
        let chosen = self.rng.random_range(0..candidates);
        let (_, mut row) = self.tables[table].bin.remove(chosen);
        row.id = self.tables[table].take_id();
        let moment = self.undelete_moment();
        self.stamp(table, &mut row, moment);
        self.emit_upsert(table, 'c', &row, None);
        self.tables[table].rows.insert(row);
        Some(())
    }

    /// I: two quick local writes, the first one's echo landing after the second.
    fn flip_flop(&mut self, table: usize) -> Option<()> {
        let LocalWrite { uid, column, written: first, .. } = self.local_write(table, false)?;
        self.schedule(2 * SECOND, table, Step::SecondWrite { uid, column, first });
        Some(())
    }

    /// J: deleted by an application while it is edited in Salesforce.
    fn deleted_while_edited(&mut self, table: usize) -> Option<()> {
        let uid = self.pick_row(table)?;
        let mut row = self.tables[table].rows.remove(uid)?;
        self.emit_delete(table, &row);
        row.busy = true;
        self.schedule(20 * SECOND, table, Step::Revived { row });
        Some(())
    }

    /// A transaction writes its change now and commits after others have: commit order is not log order.
    fn committed_late(&mut self, table: usize) -> Option<()> {
        let uid = self.pick_row(table)?;
        let point = self.next_point();
        let column = self.pick_column(table)?;
        let flavour = self.tables[table].spec.columns[column].flavour;
        let present = self.tables[table].rows.find(uid)?.cells[column].clone();
        let value = values::make_other(flavour, &mut self.rng, self.now, &present);
        self.tables[table].rows.find(uid)?.busy = true;
        if self.is_live() {
            let mut row = self.tables[table].rows.find(uid)?.clone();
            row.cells[column] = value.clone();
            self.record(|simulator| Operation::Begin {
                transaction: point.tx,
                update: simulator.update_of(table, &row, Some(&[column])),
            });
        }
        let gap = 2 * self.mean_gap;
        self.schedule(gap, table, Step::LateCommit { uid, column, value, point, transaction: point.tx });
        Some(())
    }

    /// First step of E, F and I: an application writes one field, a text with blanks around it if `padded`.
    fn local_write(&mut self, table: usize, padded: bool) -> Option<LocalWrite> {
        let uid = self.pick_row(table)?;
        let column = self.pick_column(table)?;
        let flavour = self.tables[table].spec.columns[column].flavour;
        let before = self.tables[table].rows.find(uid)?.cells[column].clone();
        let trimmed = values::make_other(flavour, &mut self.rng, self.now, &before);
        let written = match &trimmed {
            Value::Text(text) if padded => Value::Text(format!(" {text} ")),
            other => other.clone(),
        };
        let value = written.clone();
        self.change(table, uid, &[column], |row| {
            row.cells[column] = value;
            row.last_op = "PENDING";
            row.busy = true;
        });
        Some(LocalWrite { uid, column, before, written, trimmed })
    }

    /// Applies a change to a row, if it is still there, and emits it.
    fn change(&mut self, table: usize, uid: u64, carried: &[usize], change: impl FnOnce(&mut Row)) {
        let Some(row) = self.tables[table].rows.find(uid) else { return };
        change(row);
        let row = row.clone();
        self.emit_upsert(table, 'u', &row, Some(carried));
    }

    /// What Salesforce says of a row arrives: stamps, and a value if it differs.
    fn sync(&mut self, table: usize, uid: u64, value: Option<(usize, Value)>, carried: &[usize], last: bool) {
        let Some(row) = self.tables[table].rows.find(uid) else { return };
        row.busy = !last;
        let mut row = row.clone();
        if let Some((column, value)) = value {
            row.cells[column] = value;
        }
        let moment = self.now - 2 * SECOND;
        self.stamp(table, &mut row, moment);
        self.put_back(table, &row);
        self.emit_upsert(table, 'u', &row, Some(carried));
    }

    /// Gives some business columns other values; says which.
    pub(super) fn edit(&mut self, table: usize, row: &mut Row, fields: usize) -> Vec<usize> {
        let mut carried = Vec::new();
        for _ in 0..fields {
            let Some(column) = self.pick_column(table) else { break };
            if carried.contains(&column) {
                continue;
            }
            let spec = self.tables[table].spec.columns[column];
            let present = &row.cells[column];
            row.cells[column] = if spec.role == Role::LongText && self.rng.random_ratio(1, 8) {
                values::long_prose(&mut self.rng)
            } else {
                values::make_other(spec.flavour, &mut self.rng, self.now, present)
            };
            carried.push(column);
        }
        carried
    }

    pub(super) fn put_back(&mut self, table: usize, row: &Row) {
        if let Some(place) = self.tables[table].rows.find(row.uid) {
            *place = row.clone();
        }
    }

    fn pick_table(&mut self) -> usize {
        let tables = &self.tables;
        let all: Vec<usize> = (0..tables.len()).collect();
        all.choose_weighted(&mut self.rng, |&table| tables[table].spec.share).copied().unwrap_or(0)
    }

    /// A row that no other trace is busy with; some rows are far more active than others.
    fn pick_row(&mut self, table: usize) -> Option<u64> {
        let rows = &self.tables[table].rows;
        for _ in 0..8 {
            let skewed: f64 = self.rng.random::<f64>().powi(2);
            let place = (skewed * rows.len() as f64) as usize;
            if place < rows.len() && !rows.at(place).busy {
                return Some(rows.at(place).uid);
            }
        }
        None
    }

    /// A mapped column that people edit.
    fn pick_column(&mut self, table: usize) -> Option<usize> {
        let state = &self.tables[table];
        let editable: Vec<usize> = (0..state.spec.columns.len())
            .filter(|&index| state.shown[index])
            .filter(|&index| {
                let column = &state.spec.columns[index];
                matches!(column.role, Role::Business | Role::LongText) && column.flavour != Flavour::ExternalId
            })
            .collect();
        editable.choose(&mut self.rng).copied()
    }

    fn take_sfid(&mut self, table: usize) -> String {
        // After the copy the orgs create their own records: the same number never means the same record.
        let serial = self.next_serial[table];
        self.next_serial[table] += 1;
        sfid::sfid(self.tables[table].spec.key_prefix, serial + 1_000_000 * (table as u64 + 1))
    }
}

/// Keeps the moment of a reload's edits after the delete that came before it, in whole seconds.
pub(super) fn just_before(now: Micros) -> Micros {
    whole_second(now - SECOND)
}
