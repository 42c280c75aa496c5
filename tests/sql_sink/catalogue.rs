use super::cluster::Database;
use super::story;

/// Every table, view, view column and function says what it is for; generated ones too.
#[tokio::test]
async fn every_public_name_and_column_has_a_comment() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    client
        .batch_execute("select afterimage.ensure_month('2026-01-01'), afterimage.refresh_object_views(1::smallint)")
        .await
        .unwrap();
    let rows = client
        .query(
            "with ours as (select oid, nspname from pg_namespace where nspname = 'afterimage' or nspname like '%\\_history')
             select 'schema ' || nspname from ours where obj_description(oid, 'pg_namespace') is null
             union all
             select 'relation ' || c.oid::regclass from pg_class c join ours on ours.oid = c.relnamespace
             where c.relkind in ('r', 'p', 'v') and obj_description(c.oid, 'pg_class') is null
             union all
             select 'column ' || c.oid::regclass || '.' || a.attname from pg_class c join ours on ours.oid = c.relnamespace
             join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
             where c.relkind = 'v' and col_description(c.oid, a.attnum) is null
             union all
             select 'function ' || p.oid::regprocedure from pg_proc p join ours on ours.oid = p.pronamespace
             where obj_description(p.oid, 'pg_proc') is null",
            &[],
        )
        .await
        .unwrap();
    let bare: Vec<String> = rows.iter().map(|r| r.get(0)).collect();
    assert!(bare.is_empty(), "without a comment: {bare:#?}");
}

/// Names and order of the public columns: what people and tools rely on.
#[tokio::test]
async fn the_public_views_have_these_columns() {
    let (_db, client) = Database::sink().await;
    for (view, columns) in [
        (
            "changes",
            "org object sfid seq op at salesforce_at recorded_at changed_by changes local topic partition offset",
        ),
        (
            "field_changes",
            "org object sfid seq op at salesforce_at recorded_at changed_by local topic partition offset field old new",
        ),
        ("records", "org object sfid status seq first_at last_at image"),
        (
            "positions",
            "org object topic partition incarnation first_offset next_offset epoch source_at committed_at worker live halted_at halt",
        ),
        ("gaps", "org object topic partition incarnation from_offset to_offset at reason"),
        (
            "dead_letters",
            "org object topic partition incarnation offset at reason detail sfid key value sha256 resolved_at outcome",
        ),
        (
            "late_events",
            "org object topic partition incarnation offset at reason sfid op recorded_at settled_at outcome",
        ),
        ("outcomes", "org object topic partition incarnation outcome reason events"),
        ("declarations", "org object at masked types"),
        ("fields", "org object field class type first_seen lookup misfit_at misfit_message note"),
        ("typed_views", "org object schema view refreshed_at left_out note"),
    ] {
        let sql = "select string_agg(attname, ' ' order by attnum) from pg_attribute
            where attrelid = ('afterimage.' || $1::text)::regclass and attnum > 0";
        let found: String = client.query_one(sql, &[&view]).await.unwrap().get(0);
        assert_eq!(found, columns, "{view}");
    }
}
