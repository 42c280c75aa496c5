//! The simulator as the driver of a real database: what happens to rows as statements on tables, and time as the
//! machine's own clock tells it.
//!
//! Nothing else changes: the same traces, and the same messages (a connector's real output can be held against them).
//! The pace of the traces stays simulated, but every moment that ends up in a row or counts as a commit is moved to
//! the present: Salesforce's stamps have to stand in the right order to the commits that the database really makes.

use super::Simulator;
use super::model::Row;
use super::tables::Role;
use super::values::{Micros, SECOND, Value};

/// What has to be done to the source database, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// A new row, as a transaction of its own. Values are in the order of [`super::tables::TableSpec::columns`], only
    /// of the columns that exist now.
    Insert {
        /// Index into [`Simulator::topics`].
        table: usize,
        /// (index of the column, value)
        values: Vec<(usize, Value)>,
    },
    /// An update of one row, as a transaction of its own.
    Update(RowUpdate),
    /// The delete of one row.
    Delete {
        /// Index of the table.
        table: usize,
        /// The row.
        id: i32,
    },
    /// `TRUNCATE … RESTART IDENTITY`
    Truncate {
        /// Index of the table.
        table: usize,
    },
    /// Columns that enter the mapping.
    AddColumns {
        /// Index of the table.
        table: usize,
        /// Indexes of the columns.
        columns: Vec<usize>,
    },
    /// Columns that leave it.
    DropColumns {
        /// Index of the table.
        table: usize,
        /// Indexes of the columns.
        columns: Vec<usize>,
    },
    /// A transaction makes this update, and stays open while others commit.
    Begin {
        /// Name of the transaction.
        transaction: u64,
        /// What it writes.
        update: RowUpdate,
    },
    /// The open transaction commits.
    Commit {
        /// Its name.
        transaction: u64,
    },
    /// `kill -9` of the connector between two flushes of its offsets, and its start anew.
    KillConnector,
}

/// An update of one row: the columns it writes, whether their values differ or not.
#[derive(Debug, Clone, PartialEq)]
pub struct RowUpdate {
    /// Index of the table.
    pub table: usize,
    /// The row.
    pub id: i32,
    /// (index of the column, value)
    pub set: Vec<(usize, Value)>,
}

/// What one step of a live run did.
#[derive(Debug, Default)]
pub struct LiveStep {
    /// To be applied to the database.
    pub operations: Vec<Operation>,
    /// What a connector ought to send for them; nothing is sent twice.
    pub messages: Vec<super::SimMessage>,
}

/// The part of a simulator that only a live run has.
#[derive(Debug)]
pub(super) struct Live {
    clock: fn() -> Micros,
    last_commit: Micros,
    operations: Vec<Operation>,
}

impl Simulator {
    /// A simulator for a real database, which tells the time by `clock` (microseconds since 1970-01-01 UTC).
    pub fn live(seed: u64, options: super::SimOptions, clock: fn() -> Micros) -> Self {
        let begun = clock();
        let live = Live { clock, last_commit: begun, operations: Vec::new() };
        Simulator::build(seed, options, begun - super::BEGIN, Some(live))
    }

    /// The rows that exist before the connector starts: index of the table, and its columns' values.
    pub fn initial_rows(&self) -> impl Iterator<Item = (usize, Vec<(usize, Value)>)> {
        let of_tables = self.tables.iter().enumerate();
        let rows = of_tables.flat_map(|(table, state)| (0..state.rows.len()).map(move |at| (table, state.rows.at(at))));
        rows.chain([(0, &self.account)]).map(|(table, row)| (table, self.columns_of(table, row)))
    }

    /// Lets one thing happen; `None` when all is over.
    pub fn step_live(&mut self) -> Option<LiveStep> {
        if !self.happen() {
            return None;
        }
        let operations = self.live.as_mut().map(|live| std::mem::take(&mut live.operations)).unwrap_or_default();
        Some(LiveStep { operations, messages: self.out.drain(..).collect() })
    }

    /// A simulated moment as it stands in rows and commits: moved to the present in a live run.
    pub(super) fn real(&self, moment: Micros) -> Micros {
        moment + self.offset
    }

    /// In a live run, makes the simulated present the clock's: before any moment is turned into a real one, because
    /// simulated time jumps.
    pub(super) fn sync_clock(&mut self) {
        if let Some(live) = &self.live {
            self.offset = (live.clock)() - self.now;
        }
    }

    /// The commit time of what happens now.
    pub(super) fn commit_now(&mut self) -> Micros {
        self.sync_clock();
        let now = self.real(self.now);
        let Some(live) = &mut self.live else { return now };
        live.last_commit = now.max(live.last_commit + 1);
        live.last_commit
    }

    /// Whether the database and its connector are real.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// The stamp (simulated) that an undelete gives now. In a live run the delete may have been a moment ago; a stamp of
    /// whole seconds has to lie after it all the same, or the row would seem to be reloaded.
    pub(super) fn undelete_moment(&self) -> Micros {
        if self.is_live() { self.now + 2 * SECOND } else { self.now - 5 * SECOND }
    }

    pub(super) fn record(&mut self, operation: impl FnOnce(&Self) -> Operation) {
        if self.is_live() {
            let operation = operation(self);
            if let Some(live) = &mut self.live {
                live.operations.push(operation);
            }
        }
    }

    pub(super) fn record_upsert(&mut self, table: usize, op: char, row: &Row, carried: Option<&[usize]>) {
        self.record(|simulator| match op {
            'c' => Operation::Insert { table, values: simulator.columns_of(table, row) },
            _ => Operation::Update(simulator.update_of(table, row, carried)),
        });
    }

    /// All columns that the table has now.
    fn columns_of(&self, table: usize, row: &Row) -> Vec<(usize, Value)> {
        let state = &self.tables[table];
        row.full(state.spec).into_iter().enumerate().filter(|(index, _)| state.shown[*index]).collect()
    }

    /// Connect writes whole rows; a long text only if it is among the `carried` (`None`: all are).
    pub(super) fn update_of(&self, table: usize, row: &Row, carried: Option<&[usize]>) -> RowUpdate {
        let spec = self.tables[table].spec;
        let mut set = self.columns_of(table, row);
        set.retain(|(index, _)| match spec.columns[*index].role {
            Role::Id => false,
            Role::LongText => carried.is_none_or(|written| written.contains(index)),
            _ => true,
        });
        RowUpdate { table, id: row.id, set }
    }
}
