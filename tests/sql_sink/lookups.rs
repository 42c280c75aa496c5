//! Lookup fields: a filter reaches an index, and nothing else is different for it.

use afterimage::core::format::VersionOp;
use afterimage::core::value::Value;
use afterimage::postgres::migrate::migrate;
use afterimage::postgres::search::{self, Progress};
use afterimage::postgres::status;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::Client;

use super::cluster::Database;
use super::story::{self, DAY, EXTERNAL_ID, NAME, NEW_YEAR, SCORE, Version, text};

/// The article's query, as it stands, but for the value.
const ARTICLE: &str = "select name, sfid, score__c, id from account where External_id__c = ";

async fn declare(client: &Client, name: &str) {
    let sql = "insert into afterimage.lookup(object_id, name, state, upto_rid, fenced)
        select 1, $1, 'building', (select max(rid) from afterimage.record), '{1,2,3}'";
    client.execute(sql, &[&name]).await.unwrap();
}

async fn refresh(client: &Client) {
    client.batch_execute("select afterimage.refresh_object_views(1::smallint)").await.unwrap();
}

/// Does what a worker does until there is nothing left to do; how many steps it took.
async fn work_off(client: &Client) -> u32 {
    let mut steps = 0;
    loop {
        refresh(client).await;
        match search::work(client, 1).await.unwrap() {
            Progress::Idle => return steps,
            Progress::More | Progress::Changed => steps += 1,
        }
    }
}

async fn strings(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// `count` records of three versions in the object `account`, each with an external id of its own.
async fn fill(client: &Client, count: i32) {
    story::setup(client).await;
    let sql = "insert into afterimage.record(object_id, sfid, home)
        select 1, to_char(i, '\"001\"FM000000000000000'), 1 from generate_series(1, $1) i returning rid";
    let rids: Vec<i32> = client.query(sql, &[&count]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let versions: Vec<Vec<Version>> = (0..count)
        .map(|i| {
            let id = text(&format!("7f4acaad-6c77-4342-a533-83bb580aaf68{i}"));
            let first = [(NAME, text("Borer")), (SCORE, text("1")), (EXTERNAL_ID, id)];
            let edit = |n: i64| Version::new(VersionOp::Update, NEW_YEAR + n * DAY, &[(SCORE, text(&n.to_string()))]);
            vec![Version::new(VersionOp::Baseline, NEW_YEAR, &first), edit(1), edit(2)]
        })
        .collect();
    let records: Vec<(i32, &[Version])> = rids.iter().copied().zip(versions.iter().map(Vec::as_slice)).collect();
    story::write(client, &records).await;
    client.batch_execute("vacuum analyze").await.unwrap();
}

#[tokio::test]
async fn the_articles_query_starts_at_the_index() {
    let (_db, client) = Database::sink().await;
    fill(&client, 20_000).await;
    refresh(&client).await;
    client.batch_execute("set search_path = emea_history").await.unwrap();
    let query = format!("{ARTICLE}'7f4acaad-6c77-4342-a533-83bb580aaf684711' ORDER BY id;");
    let explain = format!("explain (verbose, costs off) {query}");
    let scans = |plan: &[String]| {
        let tables = ["record", "keyframe", "record_lookup"];
        plan.iter().any(|line| tables.iter().any(|table| line.contains(&format!("Seq Scan on afterimage.{table} "))))
    };

    let before = strings(&client, &explain).await;
    assert!(scans(&before), "without the lookup every record is folded: {before:#?}");
    let names = strings(&client, &query).await;
    assert_eq!(names, ["Borer"; 3]);

    client.batch_execute("reset search_path").await.unwrap();
    declare(&client, "external_id__c").await;
    assert!(work_off(&client).await >= 10, "20,000 records are more than one step");
    client.batch_execute("analyze afterimage.record_lookup; set search_path = emea_history").await.unwrap();
    let after = strings(&client, &explain).await;
    assert!(!scans(&after), "{after:#?}");
    assert!(after.iter().any(|line| line.contains("record_lookup_pkey")), "{after:#?}");
    assert_eq!(strings(&client, &query).await, names);

    // As of a moment, by prefix, and for a prepared statement that knows no value yet.
    for sql in [
        "select * from account_as_of('2026-01-02Z') where external_id__c = 'x'",
        "select * from account where external_id__c like '7f4acaad-6c77-4342-a533-83bb580aaf684711%'",
        "execute p('x')",
    ] {
        let prepare = "prepare p(text) as select id from account where external_id__c = $1; \
                       set plan_cache_mode = force_generic_plan";
        client.batch_execute(&format!("deallocate all; {prepare}")).await.unwrap();
        let plan = strings(&client, &format!("explain (verbose, costs off) {sql}")).await;
        assert!(!scans(&plan) && plan.iter().any(|line| line.contains("record_lookup_pkey")), "{sql}: {plan:#?}");
    }
    // Where the column is not asked for, nothing is joined for it.
    let plan = strings(&client, "explain (verbose, costs off) select count(*), max(name) from account").await;
    assert!(plan.iter().all(|line| !line.contains("record_lookup")), "{plan:#?}");
}

/// Records whose external ids come, go, return, are null, unknown, or hold the bytes of the stored form.
#[tokio::test]
async fn results_are_the_same_with_and_without_it() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let mut rng = StdRng::seed_from_u64(7);
    let ids = ["a", "b", "", "ä", "\u{1f}", "\u{3}", "1", "01"].map(text);
    for n in 0..60 {
        let mut versions = Vec::new();
        for seq in 0..rng.random_range(1..90i64) {
            let id = match rng.random_range(0..12) {
                0 => Value::Null,
                1 if seq == 0 => Value::Unknown,
                k => ids[k % ids.len()].clone(),
            };
            let op = if seq == 0 { VersionOp::Create } else { VersionOp::Update };
            let mut fields = vec![(SCORE, text(&seq.to_string()))];
            if rng.random_bool(0.3) || seq == 0 {
                fields.push((EXTERNAL_ID, id));
            }
            versions.push(Version::new(op, NEW_YEAR + seq * 1_000_000, &fields));
        }
        story::record(&client, 1 + n % 2, &format!("r{n}"), &versions).await;
    }
    refresh(&client).await;
    let all = "select a::text from emea_history.account a order by sfid, id";
    let as_of = "select a::text from emea_history.account_as_of('2026-01-01 00:00:20Z') a order by sfid, id";
    let filters: Vec<String> = [
        "= 'a'",
        "= ''",
        "= 'ä'",
        "= E'\\x1f'",
        "= E'\\x03'",
        "in ('1', 'b')",
        "is null",
        "<> 'a'",
        "> 'a'",
        "is distinct from 'b'",
    ]
    .iter()
    .map(|filter| {
        format!("select sfid || ' ' || id from emea_history.account where external_id__c {filter} order by sfid, id")
    })
    .collect();
    let queries: Vec<&str> = [all, as_of].into_iter().chain(filters.iter().map(String::as_str)).collect();
    let mut before = Vec::new();
    for query in &queries {
        before.push(strings(&client, query).await);
    }
    assert!(before.iter().all(|rows| !rows.is_empty()), "every query finds something");

    declare(&client, "external_id__c").await;
    work_off(&client).await;
    let used: bool = client
        .query_one("select lookups = '{11}' from afterimage.object_view where object_id = 1", &[])
        .await
        .unwrap()
        .get(0);
    assert!(used, "the view reads the lookup");
    for (query, rows) in queries.iter().zip(&before) {
        assert_eq!(&strings(&client, query).await, rows, "{query}");
    }
}

#[tokio::test]
async fn it_is_built_in_steps_by_any_number_of_sessions_and_dropped_again() {
    let (db, client) = Database::sink().await;
    fill(&client, 5_000).await;
    declare(&client, "external_id__c").await;
    let rows =
        async || client.query_one("select count(*) from afterimage.record_lookup", &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(search::work(&client, 1).await.unwrap(), Progress::More);
    assert_eq!(rows().await, 2_000, "a bounded step");
    // A step that is cut off leaves nothing, and is done again.
    client.batch_execute("begin; select afterimage.work_lookups(1::smallint); rollback").await.unwrap();
    assert_eq!(rows().await, 2_000);
    let others = (0..4).map(|_| async { work_off(&db.connect().await).await });
    let steps: u32 = futures::future::join_all(others).await.into_iter().sum::<u32>() + work_off(&client).await;
    assert_eq!((rows().await, steps), (5_000, 3), "two steps of records, one to finish");

    client.batch_execute("create view public.mine as select external_id__c from emea_history.account").await.unwrap();
    client.batch_execute("update afterimage.lookup set state = 'dropping'").await.unwrap();
    assert_eq!(search::work(&client, 1).await.unwrap(), Progress::Idle, "rows that a view reads stay");
    work_off(&client).await;
    assert_eq!(rows().await, 0);
    assert_eq!(strings(&client, "select name from afterimage.lookup").await, [""; 0]);
    let found: i64 = client
        .query_one("select count(*) from public.mine where external_id__c like '%684711'", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(found, 3, "what was built on the view goes on");
}

#[tokio::test]
async fn a_value_that_no_index_holds_ends_it_and_is_shown() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    let long: String = (0..3_000u32).map(|i| char::from(33 + (i.wrapping_mul(2_654_435_761) >> 26) as u8)).collect();
    story::record(&client, 1, "r", &[Version::new(VersionOp::Create, NEW_YEAR, &[(EXTERNAL_ID, text(&long))])]).await;
    declare(&client, "external_id__c").await;
    work_off(&client).await;
    assert_eq!(strings(&client, "select external_id__c from emea_history.account").await, [long]);
    let sql = "select lookup || ': ' || note from afterimage.fields where object = 'account' and org = 'emea' and lookup is not null";
    assert_eq!(
        strings(&client, sql).await,
        ["refused: a value is longer than 2000 bytes: take the field out of `lookup`"]
    );
}

#[tokio::test]
async fn a_position_that_was_overlooked_is_fenced_before_it_is_ready() {
    let (_db, client) = Database::sink().await;
    fill(&client, 10).await;
    client.batch_execute("update afterimage.position set epoch = 5").await.unwrap();
    let sql = "insert into afterimage.lookup(object_id, name, state, upto_rid, fenced) values (1, 'external_id__c', 'building', 10, '{1,3}')";
    client.batch_execute(sql).await.unwrap();
    work_off(&client).await;
    let epochs = strings(&client, "select position_id || ':' || epoch from afterimage.position order by 1").await;
    assert_eq!(epochs, ["1:5", "2:6", "3:5"]);
    assert_eq!(strings(&client, "select state from afterimage.lookup").await, ["ready"]);
    let claims =
        strings(&client, "select position_id || ':' || epoch || ' from ' || from_next from afterimage.claim").await;
    assert_eq!(claims, ["2:6 from 0"], "in the line of claims, by which local records are believed");
}

const CLAIMS: &str =
    "select position_id || ':' || epoch || ' ' || coalesce(worker, '-') || coalesce(', ' || reason, '')
    from afterimage.claim order by position_id, epoch";

/// A worker that has to claim again, because a lookup was declared, is at work all the same.
#[tokio::test]
async fn the_owner_of_a_fenced_position_stays_known() {
    let (_db, client) = Database::sink().await;
    story::setup(&client).await;
    client
        .batch_execute(
            "insert into afterimage.claim(position_id, epoch, token, from_next, worker)
             values (1, 1, gen_random_uuid(), 0, 'one'), (1, 2, gen_random_uuid(), 0, 'two'), (2, 1, gen_random_uuid(), 0, 'one');
             update afterimage.position set epoch = 3 - position_id;
             select afterimage.fence('{1,2,3}'); select afterimage.fence('{1}')",
        )
        .await
        .unwrap();
    let wanted = [(0, Some("two")), (4, Some("one")), (5, None)];
    let wanted: Vec<(i32, Option<String>)> = wanted.map(|(at, worker)| (at, worker.map(str::to_owned))).into();
    let places = status::places(&client, &[1]).await.unwrap();
    let mut found: Vec<_> = places.into_iter().map(|place| (place.partition, place.worker)).collect();
    found.sort();
    assert_eq!(found, wanted);
    let shown = status::partitions(&client, None, None).await.unwrap();
    assert_eq!(shown.into_iter().map(|one| (one.partition, one.worker)).collect::<Vec<_>>(), wanted);
    let sql = "select partition, worker from afterimage.positions order by 1";
    let rows = client.query(sql, &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| (row.get(0), row.get(1))).collect::<Vec<_>>(), wanted);
    let changed = "lookup fields changed";
    assert_eq!(
        strings(&client, CLAIMS).await,
        [
            "1:1 one".to_owned(),
            "1:2 two".to_owned(),
            format!("1:3 two, {changed}"),
            format!("1:4 two, {changed}"),
            "2:1 one".to_owned(),
            format!("2:2 one, {changed}"),
            format!("3:1 -, {changed}")
        ]
    );
}

#[tokio::test]
async fn fences_of_an_older_schema_name_the_owner_after_an_upgrade() {
    let (_db, mut client) = Database::sink().await;
    story::setup(&client).await;
    client
        .batch_execute(
            "drop function afterimage.fence; alter table afterimage.claim drop column reason;
             delete from afterimage.migration where number = 10;
             insert into afterimage.claim(position_id, epoch, token, from_next, worker)
             select position_id, epoch, gen_random_uuid(), 0, worker from (values
               (1, 1, 'one'), (1, 2, 'lookup fields changed'), (1, 3, 'lookup fields changed'), (1, 4, 'two'),
               (1, 5, 'lookup fields changed'), (2, 1, 'lookup fields changed')) c(position_id, epoch, worker)",
        )
        .await
        .unwrap();
    migrate(&mut client).await.unwrap();
    let changed = ", lookup fields changed";
    let wanted = [
        "1:1 one".to_owned(),
        format!("1:2 one{changed}"),
        format!("1:3 one{changed}"),
        "1:4 two".to_owned(),
        format!("1:5 two{changed}"),
        format!("2:1 -{changed}"),
    ];
    assert_eq!(strings(&client, CLAIMS).await, wanted);
}

#[tokio::test]
async fn only_text_columns_are_read_through_it() {
    let (_db, client) = Database::sink().await;
    fill(&client, 10).await;
    declare(&client, "score__c").await;
    work_off(&client).await;
    let scores: i64 =
        client.query_one("select count(*) from emea_history.account where score__c = 2", &[]).await.unwrap().get(0);
    assert_eq!(scores, 10);
    let sql = "select note from afterimage.fields where field = 'score__c' and lookup = 'ready'";
    assert_eq!(
        strings(&client, sql).await,
        ["not used by the typed view: only columns shown as text can be looked up"]
    );
}
