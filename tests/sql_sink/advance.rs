use tokio_postgres::{Client, Error, GenericClient};

use super::cluster::Database;

/// What a batch says of one position.
#[derive(Clone, Copy)]
struct Step {
    position: i32,
    epoch: i64,
    from: i64,
    to: i64,
    inval_seq: i64,
}

async fn advance(client: &impl GenericClient, steps: &[Step]) -> Result<(), Error> {
    let n = steps.len() as i64;
    // Counter k of step i: 100 · i + k, so that each lands where it should or shows.
    client
        .execute(
            "select afterimage.advance($1, $2, $3, $4, $5,
               (select array_agg(x - 1) from unnest($4::bigint[]) x),
               (select array_agg(timestamptz '2026-01-01 00:00Z' + x * interval '1 s') from unnest($4::bigint[]) x),
               (select array_agg(x * 7) from unnest($4::bigint[]) x),
               (select array_agg(timestamptz '2026-01-01 00:00Z' + x * interval '1 s') from unnest($4::bigint[]) x),
               (select array_agg(x * 3) from unnest($4::bigint[]) x),
               (select array_agg(int8send(x * 5)) from unnest($4::bigint[]) x),
               (select array_agg(100 * i + k order by i, k) from generate_series(0, $6::bigint - 1) i, generate_series(1, 19) k))",
            &[
                &steps.iter().map(|s| s.position).collect::<Vec<_>>(),
                &steps.iter().map(|s| s.epoch).collect::<Vec<_>>(),
                &steps.iter().map(|s| s.from).collect::<Vec<_>>(),
                &steps.iter().map(|s| s.to).collect::<Vec<_>>(),
                &steps.iter().map(|s| s.inval_seq).collect::<Vec<_>>(),
                &n,
            ],
        )
        .await
        .map(|_| ())
}

async fn positions(client: &Client, n: i32) {
    client
        .execute(
            "insert into afterimage.position(source_id, partition, first_next, next, epoch, inval_seq)
             select 1, i, 10, 10, 1, 3 from generate_series(1, $1::int) i",
            &[&n],
        )
        .await
        .unwrap();
}

fn good(position: i32) -> Step {
    Step { position, epoch: 1, from: 10, to: 25, inval_seq: 3 }
}

async fn next(client: &Client) -> Vec<i64> {
    let rows = client.query("select next from afterimage.position order by position_id", &[]).await.unwrap();
    rows.iter().map(|r| r.get(0)).collect()
}

#[tokio::test]
async fn moves_positions_and_adds_counters_each_to_its_own() {
    let (_db, client) = Database::sink().await;
    positions(&client, 3).await;
    advance(&client, &[good(3), good(1)]).await.unwrap();
    assert_eq!(next(&client).await, [25, 10, 25]);
    advance(&client, &[Step { from: 25, to: 25, ..good(1) }]).await.unwrap();
    let row = client
        .query_one(
            "select array[c_delta, c_baseline, c_noop, c_noop_status, c_noop_system, c_duplicate, c_stale, c_tombstone,
               c_ignored, c_pending, c_dead, c_delete_unknown, c_forgotten, c_hole, c_gap,
               rows_written, rows_cancelled, rows_erased, rows_retired],
               last_offset, last_hash, source_lsn, last_ts = source_at and source_at = '2026-01-01 00:00:25Z',
               committed_at is not null
             from afterimage.position where position_id = 1",
            &[],
        )
        .await
        .unwrap();
    // First call: position 1 was the second of two; second call: the first of one.
    assert_eq!(row.get::<_, Vec<i64>>(0), (1..=19).map(|k| 100 + k + k).collect::<Vec<i64>>());
    assert_eq!((row.get::<_, i64>(1), row.get::<_, i64>(2), row.get::<_, i64>(3)), (24, 175, 75));
    assert!(row.get::<_, bool>(4) && row.get::<_, bool>(5));
}

#[tokio::test]
async fn raises_unless_every_position_matches_and_then_moves_none() {
    let (_db, client) = Database::sink().await;
    positions(&client, 4).await;
    client
        .batch_execute(
            "update afterimage.position set epoch = 2 where position_id = 1;
             update afterimage.position set next = 12 where position_id = 2;
             update afterimage.position set inval_seq = 4 where position_id = 3",
        )
        .await
        .unwrap();
    let refused = |error: Error| {
        let db = error.as_db_error().unwrap();
        (db.code().code().to_owned(), db.detail().unwrap_or("").to_owned())
    };
    for (position, detail) in [(1, "1:fenced 2"), (2, "2:moved-on 12"), (3, "3:invalidated 4"), (9, "9:missing")] {
        let error = advance(&client, &[good(4), good(position)]).await.unwrap_err();
        assert_eq!(refused(error), ("AI001".to_owned(), detail.to_owned()));
    }
    let error = advance(&client, &[good(9), good(3), good(2), good(4), good(1)]).await.unwrap_err();
    assert_eq!(refused(error).1, "1:fenced 2,2:moved-on 12,3:invalidated 4,9:missing");
    assert_eq!(next(&client).await, [10, 12, 10, 10]);
    for steps in [vec![good(4), good(4)], vec![Step { to: 9, ..good(4) }]] {
        assert_eq!(refused(advance(&client, &steps).await.unwrap_err()).0, "22023");
    }
    advance(&client, &[]).await.unwrap();
    advance(&client, &[good(4)]).await.unwrap();
}

#[tokio::test]
async fn the_source_pair_never_falls_and_the_fingerprint_stays_without_a_record() {
    let (_db, client) = Database::sink().await;
    positions(&client, 1).await;
    let call = |from: i64, offset: &str, at: &str, lsn: &str| {
        let sql = format!(
            "select afterimage.advance('{{1}}', '{{1}}', '{{{from}}}', '{{{}}}', '{{3}}', array[{offset}]::bigint[],
               array[timestamptz '2026-01-01Z'], array[{offset}]::bigint[], array[{at}]::timestamptz[], array[{lsn}]::bigint[],
               array[null]::bytea[], array_fill(0::bigint, array[19]))",
            from + 1
        );
        let client = &client;
        async move {
            client.batch_execute(&sql).await.unwrap();
            let row = client
                .query_one(
                    "select last_offset, last_hash, extract(day from source_at at time zone 'UTC')::int, source_lsn from afterimage.position",
                    &[],
                )
                .await
                .unwrap();
            (
                row.get::<_, Option<i64>>(0),
                row.get::<_, Option<i64>>(1),
                row.get::<_, Option<i32>>(2),
                row.get::<_, Option<i64>>(3),
            )
        }
    };
    assert_eq!(call(10, "null", "null", "null").await, (None, None, None, None));
    assert_eq!(call(11, "11", "'2026-01-02Z'", "50").await, (Some(11), Some(11), Some(2), Some(50)));
    assert_eq!(call(12, "12", "'2026-01-02Z'", "40").await, (Some(12), Some(12), Some(2), Some(50)));
    assert_eq!(call(13, "null", "'2026-01-03Z'", "null").await, (Some(12), Some(12), Some(3), None));
    assert_eq!(call(14, "14", "'2026-01-03Z'", "1").await, (Some(14), Some(14), Some(3), Some(1)));
    assert_eq!(call(15, "15", "null", "99").await, (Some(15), Some(15), Some(3), Some(1)));
}

#[tokio::test]
async fn rows_of_a_place_are_kept_until_others_come_and_an_older_release_leaves_them() {
    let (_db, client) = Database::sink().await;
    positions(&client, 1).await;
    let call = |from: i64, rows: &str| {
        let sql = format!(
            "select afterimage.advance('{{1}}', '{{1}}', '{{{from}}}', '{{{}}}', '{{3}}', array[null]::bigint[],
               array[null]::timestamptz[], array[null]::bigint[], array[null]::timestamptz[], array[null]::bigint[],
               {rows} array_fill(0::bigint, array[19]))",
            from + 1
        );
        let client = &client;
        async move {
            client.batch_execute(&sql).await.unwrap();
            let row = client.query_one("select passed_rows from afterimage.position", &[]).await.unwrap();
            row.get::<_, Option<Vec<u8>>>(0)
        }
    };
    assert_eq!(call(10, "array[null]::bytea[],").await, None);
    assert_eq!(call(11, r"array['\x0102']::bytea[],").await, Some(vec![1, 2]));
    assert_eq!(call(12, "array[null]::bytea[],").await, Some(vec![1, 2]));
    assert_eq!(call(13, "").await, Some(vec![1, 2]), "with the arguments of an older release");
    assert_eq!(call(14, r"array['\x03']::bytea[],").await, Some(vec![3]));
}

/// Two committers with the same positions in opposite orders meet at the middle one, which is held until both
/// wait: had each locked in its own order, each would now hold what the other needs next.
#[tokio::test]
async fn opposite_orders_do_not_deadlock() {
    let (db, client) = Database::sink().await;
    positions(&client, 3).await;
    let mut gate = db.connect().await;
    let held = gate.transaction().await.unwrap();
    held.batch_execute("select from afterimage.position where position_id = 2 for update").await.unwrap();
    let committer = |order: [i32; 3]| {
        let db = &db;
        async move { advance(&db.connect().await, &order.map(good)).await }
    };
    let release = async {
        let waiting = "select count(*) = 2 from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'";
        while !client.query_one(waiting, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::task::yield_now().await;
        }
        held.commit().await.unwrap();
    };
    let (one, other, ()) = tokio::join!(committer([1, 2, 3]), committer([3, 2, 1]), release);
    let refused: Vec<_> = [one, other].into_iter().filter_map(Result::err).collect();
    let codes: Vec<_> = refused.iter().map(|e| e.code().map(|c| c.code())).collect();
    assert_eq!(codes, [Some("AI001")]);
    assert_eq!(next(&client).await, [25; 3]);
}
