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
    client.batch_execute("update afterimage.meta set schema_version = 1").await.unwrap();
    let error = check(&client).await.unwrap_err().to_string();
    assert!(error.contains("the sink is at schema 1") && error.contains("run `afterimage migrate`"), "{error}");

    client
        .batch_execute(
            "update afterimage.meta set schema_version = 999;
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
