//! The source database: tables as Heroku Connect makes them, in a private Postgres with logical decoding, and the
//! writer that does to them in plain SQL what the simulator says happens.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

use super::child::Ended;
use super::postgres::{PostgresOptions, PrivatePostgres};
use super::simulator::live::{Operation, RowUpdate};
use super::simulator::tables::{ColumnSpec, Mapped, Role, TABLES, TableSpec};
use super::simulator::values::Value;
use super::simulator::{SOURCE_DATABASE, SimTopic, Simulator};

/// A statement that cannot get its lock has met a mistake of the simulator: two of its transactions want one row.
const PATIENCE: &str = "set lock_timeout = '30s'; set statement_timeout = '60s'";

/// The captured database and the sessions that write to it.
pub struct Source {
    server: PrivatePostgres,
    tables: Vec<SourceTable>,
    session: Session,
    /// Sessions whose transaction is open, by its name.
    open: HashMap<u64, Session>,
    /// Sessions that had one.
    spare: Vec<Session>,
}

/// A table of the simulator.
#[derive(Debug, Clone)]
struct SourceTable {
    schema: String,
    spec: &'static TableSpec,
}

impl SourceTable {
    fn name(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(self.spec.object))
    }
}

impl Source {
    /// Makes the server, the tables, and the rows that exist before a connector starts.
    ///
    /// # Errors
    /// When the server does not start, or refuses a statement.
    pub async fn start(simulator: &Simulator) -> Result<Source> {
        let server = PrivatePostgres::start(PostgresOptions::logical())?;
        server.create_database(SOURCE_DATABASE).await?;
        let session = Session::connect(&server.url(SOURCE_DATABASE)).await?;
        let mut tables = Vec::new();
        for SimTopic { org, object, .. } in simulator.topics() {
            let spec = TABLES.iter().find(|spec| spec.object == object).context("a topic without a table")?;
            let table = SourceTable { schema: org, spec };
            session.client.batch_execute(&create_table(&table)).await.context("cannot make a source table")?;
            tables.push(table);
        }
        let mut source = Source { server, tables, session, open: HashMap::new(), spare: Vec::new() };
        source.session.client.batch_execute("begin").await?;
        for (table, values) in simulator.initial_rows() {
            source.insert(table, &values).await?;
        }
        source.session.client.batch_execute("commit; analyze").await?;
        Ok(source)
    }

    /// Port of the server on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Whether its server has ended by itself since this was asked last.
    pub fn ended(&mut self) -> Option<Ended> {
        self.server.ended().map(|ended| Ended { what: "the captured PostgreSQL".to_string(), ..ended })
    }

    /// The captured database.
    pub fn url(&self) -> String {
        self.server.url(SOURCE_DATABASE)
    }

    /// Whether a connector reads this replication slot now: from then on each committed change is captured.
    ///
    /// # Errors
    /// When the query fails.
    pub async fn is_captured(&self, slot: &str) -> Result<bool> {
        let query = "select 1 from pg_replication_slots where slot_name = $1 and active";
        Ok(self.session.client.query_opt(query, &[&slot]).await?.is_some())
    }

    /// Does one thing; it is committed when this returns. [`Operation::KillConnector`] is not the database's.
    ///
    /// # Errors
    /// When the server refuses a statement: the simulator's rows are not the database's then.
    pub async fn apply(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::Insert { table, values } => self.insert(*table, values).await?,
            Operation::Update(update) => {
                let table = self.tables[update.table].clone();
                self.session.update(&table, update).await?;
            }
            Operation::Delete { table, id } => {
                let sql = format!("delete from {} where id = $1", self.tables[*table].name());
                let statement = self.session.prepared(sql).await?;
                one_row(self.session.client.execute(&statement, &[id]).await?)?;
            }
            Operation::Truncate { table } => {
                self.session
                    .client
                    .batch_execute(&format!("truncate {} restart identity", self.tables[*table].name()))
                    .await?;
            }
            Operation::AddColumns { table, columns } => {
                self.alter(*table, columns, |column| format!("add column {}", definition(column))).await?;
            }
            Operation::DropColumns { table, columns } => {
                self.alter(*table, columns, |column| format!("drop column {}", quoted(column.name))).await?;
            }
            Operation::Begin { transaction, update } => {
                let mut session = match self.spare.pop() {
                    Some(session) => session,
                    None => Session::connect(&self.url()).await?,
                };
                session.client.batch_execute("begin").await?;
                let table = self.tables[update.table].clone();
                session.update(&table, update).await?;
                self.open.insert(*transaction, session);
            }
            Operation::Commit { transaction } => {
                let session = self.open.remove(transaction).context("a transaction ends that never began")?;
                session.client.batch_execute("commit").await?;
                self.spare.push(session);
            }
            Operation::KillConnector => {}
        }
        Ok(())
    }

    async fn insert(&mut self, table: usize, values: &[(usize, Value)]) -> Result<()> {
        let table = self.tables[table].clone();
        let columns = || values.iter().map(|(index, _)| &table.spec.columns[*index]);
        let names: Vec<String> = columns().map(|column| quoted(column.name)).collect();
        let places: Vec<String> = columns().enumerate().map(|(at, column)| place(at + 1, column)).collect();
        let sql = format!("insert into {} ({}) values ({})", table.name(), names.join(", "), places.join(", "));
        let statement = self.session.prepared(sql).await?;
        let texts = texts(values);
        one_row(self.session.client.execute(&statement, &parameters(&texts)).await?)
    }

    async fn alter(&mut self, table: usize, columns: &[usize], change: impl Fn(&ColumnSpec) -> String) -> Result<()> {
        let table = &self.tables[table];
        let changes: Vec<String> = columns.iter().map(|index| change(&table.spec.columns[*index])).collect();
        if !changes.is_empty() {
            let sql = format!("alter table {} {}", table.name(), changes.join(", "));
            self.session.client.batch_execute(&sql).await?;
        }
        Ok(())
    }
}

/// A connection with its prepared statements.
struct Session {
    client: Client,
    statements: HashMap<String, Statement>,
}

impl Session {
    async fn connect(url: &str) -> Result<Session> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("cannot reach the source")?;
        // It ends with the client; an error shows in the next statement.
        tokio::spawn(connection);
        client.batch_execute(PATIENCE).await?;
        Ok(Session { client, statements: HashMap::new() })
    }

    async fn prepared(&mut self, sql: String) -> Result<Statement> {
        if let Some(statement) = self.statements.get(&sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&sql).await.with_context(|| format!("the source refused: {sql}"))?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    async fn update(&mut self, table: &SourceTable, update: &RowUpdate) -> Result<()> {
        let set: Vec<String> = update
            .set
            .iter()
            .enumerate()
            .map(|(at, (index, _))| {
                let column = &table.spec.columns[*index];
                format!("{} = {}", quoted(column.name), place(at + 2, column))
            })
            .collect();
        let statement = self.prepared(format!("update {} set {} where id = $1", table.name(), set.join(", "))).await?;
        let texts = texts(&update.set);
        let mut all: Vec<&(dyn ToSql + Sync)> = vec![&update.id];
        all.extend(parameters(&texts));
        one_row(self.client.execute(&statement, &all).await?)
    }
}

/// As Connect makes it: an integer key from a sequence, the Salesforce id unique, an index on the stamp. Long texts are
/// not compressed, so that one of 2,000 bytes always lies out of line and an update that leaves it alone doesn't carry it.
fn create_table(table: &SourceTable) -> String {
    let (schema, name, spec) = (quoted(&table.schema), table.name(), table.spec);
    let present = |column: &&ColumnSpec| column.mapped != Mapped::AddedLater;
    let columns: Vec<String> = spec.columns.iter().filter(present).map(definition).collect();
    let mut sql = format!("create schema if not exists {schema}; create table {name} ({});", columns.join(", "));
    for column in spec.columns.iter().filter(|column| column.role == Role::LongText) {
        sql.push_str(&format!("alter table {name} alter column {} set storage external;", quoted(column.name)));
    }
    for (role, unique) in [(Role::Sfid, "unique"), (Role::Stamp, "")] {
        let column = spec.columns[spec.index_of(role)].name;
        sql.push_str(&format!("create {unique} index on {name} ({});", quoted(column)));
    }
    sql
}

fn definition(column: &ColumnSpec) -> String {
    match column.role {
        Role::Id => format!("{} serial primary key", quoted(column.name)),
        _ => format!("{} {}", quoted(column.name), column.kind.sql()),
    }
}

/// Parameters are texts: the simulator spells values as Postgres reads them.
fn place(number: usize, column: &ColumnSpec) -> String {
    format!("${number}::text::{}", column.kind.sql())
}

fn texts(values: &[(usize, Value)]) -> Vec<Option<String>> {
    values.iter().map(|(_, value)| value.sql_text()).collect()
}

fn parameters(texts: &[Option<String>]) -> Vec<&(dyn ToSql + Sync)> {
    texts.iter().map(|text| text as &(dyn ToSql + Sync)).collect()
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn one_row(rows: u64) -> Result<()> {
    anyhow::ensure!(rows == 1, "a statement of the simulator met {rows} rows instead of one");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::simulator::SimOptions;

    fn now() -> i64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as i64
    }

    /// All traces and upheavals fit real tables: every statement meets its one row, no lock is waited for, and in the
    /// end the tables hold what the simulator's truth says of the living.
    #[tokio::test]
    async fn the_tables_end_as_the_simulator_says() {
        let mut simulator = Simulator::live(1, SimOptions::new(6_000), now);
        let mut source = Source::start(&simulator).await.unwrap();
        let mut sent = 0;
        while let Some(step) = simulator.step_live() {
            for operation in &step.operations {
                source.apply(operation).await.unwrap_or_else(|error| panic!("{operation:?}: {error:#}"));
            }
            sent += step.messages.len() as u64;
        }
        assert!(source.open.is_empty());
        assert_eq!(sent, simulator.totals().messages);
        let client = &source.session.client;
        let mut compared = 0;
        for (org, object, sfid, wanted) in simulator.finals() {
            let query = format!("select to_jsonb(t)::text from {}.{} t where sfid = $1", quoted(org), quoted(object));
            let row = client.query_opt(&query, &[&sfid]).await.unwrap();
            assert_eq!(row.is_some(), wanted.status == "live", "{org}.{object} {sfid}");
            let Some(row) = row else { continue };
            let row: serde_json::Value = serde_json::from_str(row.get(0)).unwrap();
            for (column, value) in &wanted.image {
                // A column that has left the table keeps its last value in the history; an unknown text is there.
                let Some(found) = row.get(column).filter(|_| !value.is_object()) else { continue };
                let found = found.as_str().map_or(found.clone(), |text| text.replace('T', " ").into());
                let value = value.as_str().map_or(value.clone(), |text| text.replace('T', " ").into());
                let same = found == value || (found.is_number() && found.as_f64() == value.as_f64());
                assert!(same, "{org}.{object} {sfid} {column}: {found} for {value}");
            }
            compared += 1;
        }
        assert!(compared > 300, "{compared}");
    }
}
