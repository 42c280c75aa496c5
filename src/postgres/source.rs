//! The columns of tables that a connector captures, as their own database has them. Asks the catalogues only, which any
//! role that can connect may read.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::client::describe;

/// Why there are no columns.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No such schema.
    #[error("the database has no schema {schema}")]
    NoSchema {
        /// What was asked for.
        schema: String,
        /// The schemas that have tables.
        there: Vec<String>,
    },
    /// The schema has no such table, or none at all.
    #[error("schema {schema} has no table{}", table.as_ref().map(|table| format!(" {table}")).unwrap_or_default())]
    NoTable {
        /// Schema.
        schema: String,
        /// What was asked for.
        table: Option<String>,
        /// The tables that are there.
        there: Vec<String>,
    },
    /// The statement failed.
    #[error("the database: {}", describe(.0))]
    Query(#[from] tokio_postgres::Error),
}

/// A table and its columns in their order, each with its type as `format_type` spells it; a domain's is that below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    /// Table.
    pub name: String,
    /// Column, type.
    pub columns: Vec<(String, String)>,
}

/// The tables of a schema in order of their names: one, or all but those whose names begin with an underscore (Heroku
/// Connect's own).
///
/// # Errors
/// When there is no such schema or table, or the query fails.
pub async fn tables(client: &Client, schema: &str, table: Option<&str>) -> Result<Vec<SourceTable>, SourceError> {
    let rows = client
        .query_typed(
            "SELECT c.relname::text, a.attname::text, \
               (WITH RECURSIVE below(oid, base) AS ( \
                  SELECT t.oid, t.typbasetype UNION ALL \
                  SELECT b.oid, b.typbasetype FROM below JOIN pg_catalog.pg_type b ON b.oid = below.base) \
                SELECT pg_catalog.format_type(oid, -1) FROM below WHERE base = 0) \
             FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
             WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND a.attgenerated = '' \
               AND CASE WHEN $2::text IS NULL THEN c.relname NOT LIKE '\\_%' ELSE c.relname = $2 END \
             ORDER BY c.relname, a.attnum",
            &[(&schema, Type::TEXT), (&table, Type::TEXT)],
        )
        .await?;
    let mut tables: Vec<SourceTable> = Vec::new();
    for row in &rows {
        let (name, column, kind): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        match tables.last_mut() {
            Some(last) if last.name == name => last.columns.push((column, kind)),
            _ => tables.push(SourceTable { name, columns: vec![(column, kind)] }),
        }
    }
    if tables.is_empty() {
        return Err(missing(client, schema, table).await?);
    }
    Ok(tables)
}

async fn missing(client: &Client, schema: &str, table: Option<&str>) -> Result<SourceError, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_namespace n \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p') \
             WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' ORDER BY 1, 2",
            &[],
        )
        .await?;
    let mut found: Vec<(String, String)> = Vec::with_capacity(rows.len());
    for row in &rows {
        found.push((row.try_get(0)?, row.try_get(1)?));
    }
    let rows = client
        .query_typed("SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1", &[(&schema, Type::TEXT)])
        .await?;
    Ok(if rows.is_empty() {
        let mut there: Vec<String> = found.into_iter().map(|(schema, _)| schema).collect();
        there.dedup();
        SourceError::NoSchema { schema: schema.into(), there }
    } else {
        let there = found.into_iter().filter(|(of, _)| of == schema).map(|(_, table)| table).collect();
        SourceError::NoTable { schema: schema.into(), table: table.map(str::to_owned), there }
    })
}
