//! Lookup fields and typed views: what lets people find records by their own keys, and see them as rows.
//!
//! A lookup's rows must be complete before a view may read them, whatever other workers do. So which fields are lookups
//! stands in the sink, not in a worker's configuration alone; and a change makes every worker of the object claim its
//! partitions again (its commits are refused by their old epoch), whereby it reads the list anew.

use std::collections::BTreeSet;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use crate::core::event::FieldNo;

/// Makes the declared lookup fields those of an object. Fields that are new are built, and those that are gone are
/// dropped, by [`work`].
///
/// # Errors
/// When a statement fails.
pub(super) async fn declare(
    transaction: &Transaction<'_>,
    object_id: i16,
    declared: &[String],
) -> Result<(), tokio_postgres::Error> {
    let rows = transaction
        .query_typed(
            "SELECT name FROM afterimage.lookup WHERE object_id = $1 AND state <> 'dropping'",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    let known: BTreeSet<&str> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let declared: BTreeSet<&str> = declared.iter().map(String::as_str).collect();
    if known == declared {
        return Ok(());
    }
    let names: Vec<&str> = declared.into_iter().collect();
    transaction.batch_execute("SET LOCAL statement_timeout = '60s'").await?;
    // Waits for commits under way: what they wrote is there for building, and none under the old epochs comes after.
    let rows = transaction
        .query_typed(
            "SELECT p.position_id FROM afterimage.position p JOIN afterimage.source s USING (source_id) \
             WHERE s.object_id = $1 AND p.live ORDER BY p.position_id FOR NO KEY UPDATE OF p",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    let fenced: Vec<i32> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    transaction.execute_typed("SELECT afterimage.fence($1)", &[(&fenced, Type::INT4_ARRAY)]).await?;
    transaction
        .execute_typed(
            "UPDATE afterimage.lookup SET state = 'dropping' WHERE object_id = $1 AND NOT name = ANY($2)",
            &[(&object_id, Type::INT2), (&names, Type::TEXT_ARRAY)],
        )
        .await?;
    transaction
        .execute_typed(
            "INSERT INTO afterimage.lookup (object_id, name, state, upto_rid, fenced) \
             SELECT $1, n.name, 'building', (SELECT coalesce(max(rid), 0) FROM afterimage.record), $3 \
             FROM unnest($2::text[]) AS n(name) ORDER BY n.name \
             ON CONFLICT (object_id, name) DO UPDATE SET state = 'building', done_rid = 0, upto_rid = excluded.upto_rid, \
               fenced = excluded.fenced, declared_at = now(), ready_at = NULL, note = NULL \
             WHERE lookup.state = 'dropping'",
            &[(&object_id, Type::INT2), (&names, Type::TEXT_ARRAY), (&fenced, Type::INT4_ARRAY)],
        )
        .await?;
    tracing::info!(object_id, lookup = names.join(", "), "lookup fields declared");
    Ok(())
}

/// What [`work`] has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing was to be done.
    Idle,
    /// A step; ask again.
    More,
    /// The typed view can be made anew; then ask again.
    Changed,
}

/// One bounded step of building or dropping an object's lookups. Any number of workers may ask; a step that is cut off
/// is done again.
///
/// # Errors
/// When the function fails.
pub async fn work(client: &Client, object_id: i16) -> Result<Progress, tokio_postgres::Error> {
    let rows = client.query_typed("SELECT afterimage.work_lookups($1)", &[(&object_id, Type::INT2)]).await?;
    Ok(match rows[0].try_get(0)? {
        "more" => Progress::More,
        "changed" => Progress::Changed,
        _ => Progress::Idle,
    })
}

/// Gives a lookup field up, because one of its values is too long for an index.
///
/// # Errors
/// When the statement fails.
pub async fn refuse(client: &Client, object_id: i16, field_no: FieldNo) -> Result<(), tokio_postgres::Error> {
    client
        .query_typed("SELECT afterimage.refuse_lookup($1, $2)", &[(&object_id, Type::INT2), (&field_no, Type::INT2)])
        .await?;
    Ok(())
}

/// A typed view after it was brought up to date.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypedView {
    /// Schema and name.
    pub name: String,
    /// Fields that have no room in it.
    pub left_out: i32,
    /// Why it is not what it should be, and what to do.
    pub note: Option<String>,
}

/// Schema and name of an object's typed view.
///
/// # Errors
/// When the query fails.
pub async fn view_name(client: &Client, object_id: i16) -> Result<String, tokio_postgres::Error> {
    let rows = client
        .query_typed(
            "SELECT o.name || '_history.' || b.name FROM afterimage.object b JOIN afterimage.org o USING (org_id) \
             WHERE b.object_id = $1",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    rows.first().map_or(Ok(String::new()), |row| row.try_get(0))
}

/// Leaves it in `typed_views` why a view could not be brought up to date, until it is: then it is made anew.
///
/// # Errors
/// When the statement fails.
pub async fn note_view(client: &Client, object_id: i16, note: &str) -> Result<(), tokio_postgres::Error> {
    client
        .execute_typed(
            "INSERT INTO afterimage.object_view (object_id, definition, refreshed_at, left_out, lookups, note) \
             VALUES ($1, '', NULL, 0, '{}', $2) \
             ON CONFLICT (object_id) DO UPDATE SET definition = '', note = excluded.note",
            &[(&object_id, Type::INT2), (&note, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Brings the typed view of an object up to date. Waits for no one: whoever has the view open makes this fail with
/// SQLSTATE 55P03 after a fifth of a second, for as long as it waited it would hold up everyone who comes after.
///
/// # Errors
/// When the function fails.
pub async fn refresh_view(client: &mut Client, object_id: i16) -> Result<TypedView, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '120s'").await?;
    transaction.query_typed("SELECT afterimage.refresh_object_views($1)", &[(&object_id, Type::INT2)]).await?;
    let rows = transaction
        .query_typed(
            "SELECT o.name || '_history.' || b.name, w.left_out, w.note FROM afterimage.object_view w \
             JOIN afterimage.object b USING (object_id) JOIN afterimage.org o USING (org_id) WHERE w.object_id = $1",
            &[(&object_id, Type::INT2)],
        )
        .await?;
    let view = TypedView { name: rows[0].try_get(0)?, left_out: rows[0].try_get(1)?, note: rows[0].try_get(2)? };
    transaction.commit().await?;
    Ok(view)
}
