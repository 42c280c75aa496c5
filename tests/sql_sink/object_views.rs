use afterimage::core::format::VersionOp;
use afterimage::postgres::search;
use tokio_postgres::Client;

use super::cluster::Database;
use super::story::{self, DAY, EXTERNAL_ID, NAME, NEW_YEAR, SCORE, Version, text};

async fn refresh(client: &Client) {
    client.batch_execute("select afterimage.refresh_object_views(1::smallint)").await.unwrap();
}

async fn columns(client: &Client) -> String {
    let sql = "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attnum)
        from pg_attribute where attrelid = 'emea_history.account'::regclass and attnum > 0";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

const FIRST: &str = "id integer, sfid text, _seq integer, _op text, _at timestamp with time zone, \
    _salesforce_at timestamp with time zone, _recorded_at timestamp with time zone, _changed_by text, name text, \
    score__c double precision, active__c boolean, due__c date, notes__c text, count__c integer, amount__c numeric, external_id__c text";

#[tokio::test]
async fn the_articles_query_runs_as_it_stands_minus_the_repeats() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    refresh(&client).await;
    assert_eq!(columns(&client).await, FIRST);
    let external = "7f4acaad-6c77-4342-a533-83bb580aaf681586878813";
    let first = [(NAME, text("Borer, Braun and Gutmann")), (SCORE, text("1")), (EXTERNAL_ID, text(external))];
    let mut versions = vec![Version::new(VersionOp::Baseline, NEW_YEAR, &first)];
    for (i, score) in ["15", "5", "2"].into_iter().enumerate() {
        versions.push(Version::new(VersionOp::Update, NEW_YEAR + (i as i64 + 1) * DAY, &[(SCORE, text(score))]));
    }
    versions.push(Version::new(VersionOp::Delete, NEW_YEAR + 9 * DAY, &[]));
    story::record(&client, 1, "001f400001MDeYzAAL", &versions).await;
    client.batch_execute("set search_path = emea_history").await.unwrap();
    let rows = client
        .query(
            "select name, sfid, score__c, id from account where External_id__c = '7f4acaad-6c77-4342-a533-83bb580aaf681586878813' ORDER BY id;",
            &[],
        )
        .await
        .unwrap();
    let rows: Vec<(String, String, f64, i32)> = rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3))).collect();
    let expected: Vec<_> = [1.0, 15.0, 5.0, 2.0, 2.0]
        .into_iter()
        .enumerate()
        .map(|(i, score)| ("Borer, Braun and Gutmann".to_owned(), "001f400001MDeYzAAL".to_owned(), score, i as i32))
        .collect();
    assert_eq!(rows, expected, "the delete shows the last image");
    let gone: i64 =
        client.query_one("select count(*) from account_as_of('2026-01-10 00:00Z')", &[]).await.unwrap().get(0);
    let there: i64 =
        client.query_one("select count(*) from account_as_of('2026-01-09 00:00Z')", &[]).await.unwrap().get(0);
    assert_eq!((there, gone), (1, 0));
}

#[tokio::test]
async fn values_that_do_not_fit_are_null_not_errors() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    refresh(&client).await;
    let bad = [
        (1, text("\u{3}")),
        (2, text("1e400")),
        (3, text("maybe")),
        (4, text("day:123456789")),
        (7, afterimage::core::value::Value::Unknown),
        (8, text("2147483648")),
        (10, text("1e999999999")),
    ];
    story::record(&client, 1, "r", &[Version::new(VersionOp::Baseline, NEW_YEAR, &bad)]).await;
    let row = client
        .query_one(
            "select name, num_nulls(score__c, active__c, due__c, notes__c, count__c, amount__c) from emea_history.account
             where coalesce(score__c, 0) = 0 and due__c is null",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), ("\u{3}", 6));
}

#[tokio::test]
async fn new_fields_are_appended_and_dependents_survive() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    refresh(&client).await;
    client
        .batch_execute(
            "create view public.mine as select sfid, score__c from emea_history.account;
             create view public.then as select sfid, score__c from emea_history.account_as_of('2027-01-01Z');
             insert into afterimage.field values (1, 12, 'Odd \"name''', 'v', '[{\"type\": \"uuid\"}]')",
        )
        .await
        .unwrap();
    refresh(&client).await;
    assert_eq!(columns(&client).await, format!("{FIRST}, Odd \"name' uuid"));
    story::record(&client, 1, "r", &[Version::new(VersionOp::Baseline, NEW_YEAR, &[(SCORE, text("7"))])]).await;
    for view in ["mine", "then"] {
        let score: f64 = client.query_one(&format!("select score__c from public.{view}"), &[]).await.unwrap().get(0);
        assert_eq!(score, 7.0, "{view}");
    }
    let oid = "select 'emea_history.account_as_of(timestamptz)'::regprocedure::oid";
    let before: u32 = client.query_one(oid, &[]).await.unwrap().get(0);
    refresh(&client).await;
    let after: u32 = client.query_one(oid, &[]).await.unwrap().get(0);
    assert_eq!(before, after, "nothing new: nothing is made again");
}

#[tokio::test]
async fn a_changed_type_takes_a_new_view_unless_someone_depends_on_it() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    refresh(&client).await;
    story::record(
        &client,
        1,
        "r",
        &[Version::new(VersionOp::Baseline, NEW_YEAR, &[(SCORE, text("7")), (8, text("3000000000"))])],
    )
    .await;
    let change = "update afterimage.field set types = types || '[{\"type\": \"bigint\"}]' where object_id = 1 and name = 'count__c';
        update afterimage.field set class = 'x' where object_id = 1 and name = 'notes__c'";
    client
        .batch_execute("create view public.mine as select count__c, notes__c from emea_history.account")
        .await
        .unwrap();
    client.batch_execute(change).await.unwrap();
    refresh(&client).await;
    assert_eq!(columns(&client).await, FIRST, "in use: stays");
    let row = client.query_one("select count__c, notes__c, score__c from emea_history.account", &[]).await.unwrap();
    assert_eq!(
        (row.get::<_, Option<i32>>(0), row.get::<_, Option<String>>(1), row.get::<_, f64>(2)),
        (None, None, 7.0)
    );
    client
        .batch_execute("insert into afterimage.field values (1, 12, 'more__c', 'v', '[{\"type\": \"text\"}]')")
        .await
        .unwrap();
    refresh(&client).await;
    assert_eq!(columns(&client).await, format!("{FIRST}, more__c text"));

    client.batch_execute("drop view public.mine").await.unwrap();
    refresh(&client).await;
    let expected = FIRST.replace("count__c integer", "count__c bigint").replace("notes__c text, ", "");
    assert_eq!(columns(&client).await, format!("{expected}, more__c text"));
    let count: i64 =
        client.query_one("select count__c from emea_history.account_as_of('2027-01-01Z')", &[]).await.unwrap().get(0);
    assert_eq!(count, 3_000_000_000);
}

#[tokio::test]
async fn any_name_will_do_and_the_tables_own_columns_come_first() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    client
        .batch_execute(
            "insert into afterimage.org(name) values ('E\"vil'';'), ('at');
             insert into afterimage.object(org_id, name, identity) values (3, 'tab\"le; --', 'key'), (4, 'at', 'key');
             insert into afterimage.field(object_id, field_no, name, class, types)
               select b, n, name, 'v', '[{\"type\": \"integer\"}]' from (values (4), (5)) o(b), (values (1, 'id'), (2, 'sfid'), (3, '_seq'), (4, 'at'), (5, 'select'), (6, '%s')) f(n, name);
             select afterimage.refresh_object_views(4::smallint), afterimage.refresh_object_views(5::smallint)",
        )
        .await
        .unwrap();
    story::record(&client, 5, "8", &[Version::new(VersionOp::Create, NEW_YEAR, &[(1, text("8")), (4, text("9"))])])
        .await;
    for source in ["at_history.at", "at_history.at_as_of('2027-01-01Z')"] {
        let row = client
            .query_one(&format!("select id, sfid, _seq, at, \"select\", \"%s\" from {source}"), &[])
            .await
            .unwrap();
        let found: Vec<Option<i32>> = (0..6).map(|i| row.get(i)).collect();
        assert_eq!(found, [Some(8), None, Some(0), Some(9), None, None]);
    }
    let empty: i64 =
        client.query_one("select count(*) from \"E\"\"vil';_history\".\"tab\"\"le; --\"", &[]).await.unwrap().get(0);
    assert_eq!(empty, 0);
}

#[tokio::test]
async fn many_refreshes_at_once_are_safe() {
    let (db, client) = Database::sink().await;
    story::setup(&client).await;
    futures::future::join_all((0..5).map(|_| async { refresh(&db.connect().await).await })).await;
    assert_eq!(columns(&client).await, FIRST);
}

/// Whoever has the view open is not waited for, and nobody behind them; it is done when they have gone.
#[tokio::test]
async fn a_view_that_is_open_is_left_alone_until_later() {
    let (db, client) = Database::sink().await;
    story::setup(&client).await;
    refresh(&client).await;
    let (reader, mut worker) = (db.connect().await, db.connect().await);
    reader.batch_execute("begin; select * from emea_history.account").await.unwrap();
    client
        .batch_execute("insert into afterimage.field values (1, 12, 'more__c', 'v', '[{\"type\": \"text\"}]')")
        .await
        .unwrap();
    let error = search::refresh_view(&mut worker, 1).await.unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("55P03"), "{error:?}");
    // Others read on meanwhile, and the reader too.
    client.batch_execute("select * from emea_history.account").await.unwrap();
    reader.batch_execute("select * from emea_history.account; commit").await.unwrap();
    let view = search::refresh_view(&mut worker, 1).await.unwrap();
    assert_eq!((view.name.as_str(), view.left_out, view.note), ("emea_history.account", 0, None));
    assert_eq!(columns(&client).await, format!("{FIRST}, more__c text"));
}

#[tokio::test]
async fn what_was_granted_and_built_is_kept_and_what_is_held_up_is_said() {
    let (_db, mut client) = Database::sink().await;
    story::setup(&client).await;
    refresh(&client).await;
    client
        .batch_execute(
            "create role \"a reader\"; grant select on emea_history.account to \"a reader\", public;
             revoke execute on function emea_history.account_as_of(timestamptz) from public;
             grant execute on function emea_history.account_as_of(timestamptz) to \"a reader\" with grant option;
             create view public.mine as select count__c from emea_history.account;
             update afterimage.field set types = types || '[{\"type\": \"bigint\"}]' where object_id = 1 and name = 'count__c'",
        )
        .await
        .unwrap();
    let acl = "select relacl::text || proacl::text from pg_class, pg_proc
        where pg_class.oid = 'emea_history.account'::regclass and pg_proc.oid = 'emea_history.account_as_of(timestamptz)'::regprocedure";
    let before: String = client.query_one(acl, &[]).await.unwrap().get(0);
    let view = search::refresh_view(&mut client, 1).await.unwrap();
    let note = view.note.expect("it is held up");
    assert!(
        note.contains("count__c")
            && note.contains("view public.mine depends on")
            && note.contains("refresh_object_views(1"),
        "{note}"
    );
    let shown = "select obj_description('emea_history.account'::regclass), (select note from afterimage.typed_views)";
    let row = client.query_one(shown, &[]).await.unwrap();
    assert!(row.get::<_, String>(0).contains(&note) && row.get::<_, String>(1) == note);

    client.batch_execute("drop view public.mine").await.unwrap();
    let view = search::refresh_view(&mut client, 1).await.unwrap();
    assert_eq!(view.note, None);
    assert_eq!(columns(&client).await, FIRST.replace("count__c integer", "count__c bigint"));
    let after: String = client.query_one(acl, &[]).await.unwrap().get(0);
    assert_eq!(after, before, "a new view, the old rights");
    client.batch_execute("drop owned by \"a reader\"; drop role \"a reader\"").await.unwrap();
}

#[tokio::test]
async fn more_fields_than_a_view_has_room_for_stay_reachable() {
    let (_db, mut client) = Database::sink().await;
    story::setup(&client).await;
    client
        .batch_execute(
            "insert into afterimage.field(object_id, field_no, name, class, types)
             select 1, 11 + i, 'f' || i, 'v', '[{\"type\": \"text\"}]' from generate_series(1, 2000) i",
        )
        .await
        .unwrap();
    let view = search::refresh_view(&mut client, 1).await.unwrap();
    // 8 of ours, 8 of the story's fields, 2,000 more.
    assert_eq!(view.left_out, 416);
    let fields = [(NAME, text("n")), (11 + 1584, text("last")), (11 + 1585, text("no room"))];
    story::record(&client, 1, "r", &[Version::new(VersionOp::Baseline, NEW_YEAR, &fields)]).await;
    let row = client
        .query_one(
            "select f1584, (select image ->> 'f1585' from afterimage.records), obj_description('emea_history.account'::regclass),
               (select left_out from afterimage.typed_views)
             from emea_history.account",
            &[],
        )
        .await
        .unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1), row.get::<_, i32>(3)), ("last", "no room", 416));
    let note = view.note.expect("a note");
    assert!(note.starts_with("416 fields have no room here") && row.get::<_, &str>(2).contains(&note), "{note}");
}

/// One such field must not keep the others out.
#[tokio::test]
async fn a_field_that_can_have_no_column_is_left_out_and_said_to_be() {
    let (_db, mut client) = Database::sink().await;
    story::setup(&client).await;
    let sql = "insert into afterimage.field(object_id, field_no, name, class, types)
        select 1, 11 + i, name, 'v', '[{\"type\": \"text\"}]' from unnest($1::text[]) with ordinality n(name, i)";
    let (long, longer) = ("l".repeat(63), "l".repeat(64));
    let names = ["", "_at", &long, &longer, &"ä".repeat(40), "fine"];
    client.execute(sql, &[&names.as_slice()]).await.unwrap();
    let view = search::refresh_view(&mut client, 1).await.unwrap();
    let cut = "ä".repeat(31);
    assert_eq!(columns(&client).await, format!("{FIRST}, {long} text, {cut} text, fine text"));
    let note = view.note.expect("a note");
    assert!(note.starts_with(&format!("field \"\", field _at, field {longer} can have no column here")), "{note}");
    assert_eq!(view.left_out, 3);
    let said = "select note, left_out from afterimage.typed_views";
    let row = client.query_one(said, &[]).await.unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, i32>(1)), (note, 3));
    // As it should be, as far as it can be: nothing is made again.
    let made = "select refreshed_at from afterimage.object_view";
    let before: std::time::SystemTime = client.query_one(made, &[]).await.unwrap().get(0);
    search::refresh_view(&mut client, 1).await.unwrap();
    assert_eq!(client.query_one(made, &[]).await.unwrap().get::<_, std::time::SystemTime>(0), before);
}

#[tokio::test]
async fn what_keeps_a_view_from_being_made_is_noted_until_it_is() {
    let (_db, mut client) = Database::sink().await;
    story::setup(&client).await;
    assert_eq!(search::view_name(&client, 1).await.unwrap(), "emea_history.account");
    let said =
        "select note || coalesce(' ' || refreshed_at, ' never') from afterimage.typed_views where view = 'account'";
    search::note_view(&client, 1, "not up to date: no right").await.unwrap();
    let note: String = client.query_one(said, &[]).await.unwrap().get(0);
    assert_eq!(note, "not up to date: no right never");
    let view = search::refresh_view(&mut client, 1).await.unwrap();
    assert_eq!((view.note, columns(&client).await), (None, FIRST.to_owned()));
    // Over one that is as it should be: the next success takes the note back all the same.
    search::note_view(&client, 1, "not up to date: another").await.unwrap();
    assert_eq!(search::refresh_view(&mut client, 1).await.unwrap().note, None);
}

/// Bare numbers from before their type was declared.
#[tokio::test]
async fn values_from_before_a_declaration_are_shown_converted() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let first = [(4, text("20543")), (7, text("2026-03-01T10:15:02Z")), (8, text("7.0"))];
    story::record(&client, 1, "r", &[Version::new(VersionOp::Baseline, NEW_YEAR, &first)]).await;
    client
        .batch_execute(
            "update afterimage.field set types = types || '[{\"type\": \"timestamp with time zone\"}]' where name = 'notes__c';
             select afterimage.refresh_object_views(1::smallint); set timezone = 'UTC'; set datestyle = 'ISO'",
        )
        .await
        .unwrap();
    let row =
        client.query_one("select due__c::text, notes__c::text, count__c from emea_history.account", &[]).await.unwrap();
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, &str>(1), row.get::<_, i32>(2)),
        ("2026-03-31", "2026-03-01 10:15:02+00", 7)
    );
}

#[tokio::test]
async fn the_rights_of_a_replaced_function_are_kept_over_an_upgrade() {
    let db = Database::empty("UTF8").await;
    let mut client = db.connect().await;
    afterimage::postgres::migrate::migrate(&mut client).await.unwrap();
    let definer =
        "select prosecdef from pg_proc where oid = 'afterimage.refresh_object_views(smallint, boolean)'::regprocedure";
    assert!(!client.query_one(definer, &[]).await.unwrap().get::<_, bool>(0));
    // The last migration once more, over a function that the owner has made `security definer`.
    client
        .batch_execute(
            "alter function afterimage.refresh_object_views(smallint, boolean) security definer;
             drop function afterimage.fence; alter table afterimage.claim drop column reason;
             delete from afterimage.migration where number = 10",
        )
        .await
        .unwrap();
    afterimage::postgres::migrate::migrate(&mut client).await.unwrap();
    assert!(client.query_one(definer, &[]).await.unwrap().get::<_, bool>(0), "as the owner made it");
}
