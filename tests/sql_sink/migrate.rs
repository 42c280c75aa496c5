use afterimage::postgres::migrate::{MigrateError, SCHEMA_VERSION, check, migrate};

use super::cluster::Database;

#[tokio::test]
async fn a_second_run_has_nothing_to_do() {
    let db = Database::empty("UTF8").await;
    let mut client = db.connect().await;
    assert!(matches!(check(&client).await, Err(MigrateError::TooOld { found: None, .. })));
    let first = migrate(&mut client).await.unwrap();
    assert_eq!(first.applied.iter().map(|m| m.0).collect::<Vec<_>>(), (1..=SCHEMA_VERSION).collect::<Vec<_>>());
    let schema = check(&client).await.unwrap();
    assert_eq!(schema.version, SCHEMA_VERSION);
    let identifier: i64 =
        client.query_one("select system_identifier from pg_control_system()", &[]).await.unwrap().get(0);
    assert_eq!(schema.system_identifier, Some(identifier));

    let second = migrate(&mut client).await.unwrap();
    assert_eq!((second.applied.len(), second.version), (0, SCHEMA_VERSION));
    assert_eq!(check(&client).await.unwrap(), schema, "the sink keeps its identity");
}

#[tokio::test]
async fn many_runs_at_once_apply_each_migration_once() {
    let db = Database::empty("UTF8").await;
    let runs = (0..4).map(|_| async {
        let mut client = db.connect().await;
        migrate(&mut client).await.unwrap().applied.len()
    });
    let applied: usize = futures::future::join_all(runs).await.into_iter().sum();
    assert_eq!(applied, SCHEMA_VERSION as usize);
    check(&db.connect().await).await.unwrap();
}

#[tokio::test]
async fn a_changed_migration_is_refused() {
    let (_db, mut client) = Database::sink().await;
    client
        .batch_execute("update afterimage.migration set checksum = sha256('another') where number = 2")
        .await
        .unwrap();
    let error = migrate(&mut client).await.unwrap_err();
    assert!(matches!(&error, MigrateError::Changed { name } if name == "0002_functions"), "{error}");
}

#[tokio::test]
async fn another_schema_version_says_what_to_do() {
    let (_db, mut client) = Database::sink().await;
    client
        .batch_execute(
            "create temp table later as select * from afterimage.migration where number > 1;
             delete from afterimage.migration where number > 1",
        )
        .await
        .unwrap();
    let error = check(&client).await.unwrap_err().to_string();
    assert!(error.contains("the sink is at schema 1") && error.contains("run `afterimage migrate`"), "{error}");

    client
        .batch_execute(
            "insert into afterimage.migration select * from later;
             insert into afterimage.migration(number, name, checksum) values (999, '0999_later', 'x')",
        )
        .await
        .unwrap();
    for error in [check(&client).await.unwrap_err().to_string(), migrate(&mut client).await.unwrap_err().to_string()] {
        assert_eq!(error, format!("this binary knows schema {SCHEMA_VERSION}, the sink is at 999: upgrade afterimage"));
    }
}

#[tokio::test]
async fn only_utf8_will_do() {
    let db = Database::empty("LATIN1").await;
    let mut client = db.connect().await;
    let error = migrate(&mut client).await.unwrap_err();
    assert!(matches!(&error, MigrateError::Encoding(e) if e == "LATIN1"), "{error}");
    let there: bool = client.query_one("select to_regnamespace('afterimage') is not null", &[]).await.unwrap().get(0);
    assert!(!there);
}

/// One record of what was done: both go by it, whatever else says.
#[tokio::test]
async fn run_and_migrate_go_by_the_same_record() {
    let (_db, mut client) = Database::sink().await;
    for wrong in [1, 999] {
        client.execute("update afterimage.meta set schema_version = $1", &[&wrong]).await.unwrap();
        assert_eq!(check(&client).await.unwrap().version, SCHEMA_VERSION);
        assert!(migrate(&mut client).await.unwrap().applied.is_empty());
        let told: i32 = client.query_one("select schema_version from afterimage.meta", &[]).await.unwrap().get(0);
        assert_eq!(told, SCHEMA_VERSION, "and what people read is put right");
    }
}

#[tokio::test]
async fn a_schema_that_is_not_ours_is_left_as_it_is() {
    for foreign in [
        "create schema afterimage; create table afterimage.meta(x int)",
        "create schema afterimage; create function afterimage.f() returns int language sql return 1",
        "create schema afterimage; create table afterimage.migration(id int)",
        // What a run of an older version left behind.
        "create schema afterimage; create table afterimage.photos(x int); create table afterimage.migration (
           number int primary key, name text not null, checksum bytea not null, applied_at timestamptz not null default now())",
    ] {
        let db = Database::empty("UTF8").await;
        let mut client = db.connect().await;
        client.batch_execute(foreign).await.unwrap();
        let names = "select string_agg(relname, ',' order by relname) from pg_class where relnamespace = 'afterimage'::regnamespace";
        let before: Option<String> = client.query_one(names, &[]).await.unwrap().get(0);
        for error in [migrate(&mut client).await.unwrap_err(), check(&client).await.unwrap_err()] {
            assert!(matches!(error, MigrateError::Foreign { .. }), "{foreign}: {error}");
        }
        let after: Option<String> = client.query_one(names, &[]).await.unwrap().get(0);
        assert_eq!(before, after, "{foreign}");
    }
    let db = Database::empty("UTF8").await;
    let mut client = db.connect().await;
    client.batch_execute("create schema afterimage").await.unwrap();
    migrate(&mut client).await.expect("one that was made for us, and is empty");
}
