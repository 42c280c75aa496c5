use super::cluster::Database;

#[tokio::test]
async fn a_month_is_opened_once_by_whoever_comes_first() {
    let (db, client) = Database::sink().await;
    let opened = futures::future::join_all((0..6).map(|_| async {
        let client = db.connect().await;
        client.query_one("select afterimage.ensure_month('2026-02-11')", &[]).await.unwrap().get::<_, bool>(0)
    }))
    .await;
    assert_eq!(opened.into_iter().filter(|o| *o).count(), 1);
    // Months are UTC's, whatever the session's time zone.
    client
        .batch_execute(
            "set timezone = 'Pacific/Auckland';
             select afterimage.ensure_month('2026-03-31');
             insert into afterimage.delta values ('2026-02-01 00:00Z', 1, 0, ''), ('2026-02-28 23:59:59.999999Z', 1, 0, ''),
               ('2026-03-01 00:00Z', 1, 0, '')",
        )
        .await
        .unwrap();
    let rows = client
        .query("select tableoid::regclass::text, count(*) from afterimage.delta group by 1 order by 1", &[])
        .await
        .unwrap();
    let counts: Vec<(String, i64)> = rows.iter().map(|r| (r.get(0), r.get(1))).collect();
    assert_eq!(counts, [("afterimage.delta_202602".into(), 2), ("afterimage.delta_202603".into(), 1)]);
    let error = client.execute("insert into afterimage.delta values ('2026-04-01 00:00Z', 1, 0, '')", &[]).await;
    assert_eq!(error.unwrap_err().code().map(|c| c.code()), Some("23514"), "no default partition");
}

#[tokio::test]
async fn opening_a_month_waits_for_no_writer_and_no_reader() {
    let (db, client) = Database::sink().await;
    client.batch_execute("select afterimage.ensure_month('2026-01-01')").await.unwrap();
    let mut other = db.connect().await;
    let tx = other.transaction().await.unwrap();
    tx.batch_execute(
        "insert into afterimage.delta values ('2026-01-05 00:00Z', 1, 0, ''); select * from afterimage.changes",
    )
    .await
    .unwrap();
    client.batch_execute("set lock_timeout = '5s'; select afterimage.ensure_month('2026-02-01')").await.unwrap();
    tx.commit().await.unwrap();
}
