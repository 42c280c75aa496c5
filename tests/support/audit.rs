//! What must hold in a sink, asked in SQL through its public views: progress, the conservation laws, the history.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::app::App;
use super::wait::{LONG, wait_for};

/// End offsets of topics: what a sink's positions have to reach.
pub type Ends = BTreeMap<(String, i32), i64>;

/// Next offsets by topic and partition, as the sink has them.
pub async fn positions(sink: &Client) -> Ends {
    let rows = sink.query("SELECT topic, partition, next_offset FROM afterimage.positions", &[]).await.unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// Waits until every partition is read to its end, and what came late is in its place. No worker may end meanwhile.
pub async fn caught_up(sink: &Client, ends: &Ends, workers: &mut [&mut App]) {
    wait_for("positions at the topics' ends", LONG, async || {
        for worker in workers.iter_mut() {
            worker.assert_running();
        }
        let positions = positions(sink).await;
        let behind: Vec<_> = ends.iter().filter(|(of, end)| positions.get(of) != Some(end)).collect();
        if !behind.is_empty() {
            return Err(format!("wanted {behind:?}, there are {positions:?}"));
        }
        let late = "SELECT count(*) FROM afterimage.late_events WHERE settled_at IS NULL";
        match sink.query_one(late, &[]).await.unwrap().get::<_, i64>(0) {
            0 => Ok(()),
            late => Err(format!("{late} late events wait for their place")),
        }
    })
    .await;
}

/// Waits until a session of a worker waits for a lock: it is in the middle of a commit that someone holds up.
pub async fn held_up(sink: &Client) {
    wait_for("a commit that waits for a lock", LONG, async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'afterimage/%' \
                     AND datname = current_database() AND wait_event_type = 'Lock'";
        match sink.query_one(query, &[]).await.unwrap().get::<_, i64>(0) {
            0 => Err("none waits"),
            _ => Ok(()),
        }
    })
    .await;
}

/// The laws L1 and L2: every offset up to the topics' ends has exactly one outcome, and there are as many rows of
/// history as the positions say.
///
/// # Panics
/// When one of them is broken.
pub async fn assert_conserved(sink: &Client, ends: &Ends) {
    let faults = faults(sink, ends).await;
    assert!(faults.is_empty(), "{faults:#?}");
}

/// What breaks the laws of [`assert_conserved`].
pub async fn faults(sink: &Client, ends: &Ends) -> Vec<String> {
    let (mut topics, mut partitions, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    for ((topic, partition), end) in ends {
        topics.push(topic.clone());
        partitions.push(*partition);
        offsets.push(*end);
    }
    let mut faults = Vec::new();
    let wrong = sink
        .query(
            "SELECT format('%s %s: end %s, from %s, to %s, %s outcomes', coalesce(e.topic, p.topic), coalesce(e.partition, p.partition),
               e.last, p.first_offset, p.next_offset, o.events)
             FROM unnest($1::text[], $2::int[], $3::bigint[]) AS e(topic, partition, last)
             FULL JOIN afterimage.positions p USING (topic, partition)
             LEFT JOIN LATERAL (
               SELECT sum(events)::bigint AS events FROM afterimage.outcomes o
               WHERE o.topic = p.topic AND o.partition = p.partition) o ON true
             WHERE p.next_offset IS DISTINCT FROM e.last OR o.events IS DISTINCT FROM p.next_offset - p.first_offset",
            &[&topics, &partitions, &offsets],
        )
        .await
        .unwrap();
    faults.extend(wrong.iter().map(|row| format!("L1 is broken: {}", row.get::<_, &str>(0))));
    faults.extend(breaches(sink).await);
    let broken = sink
        .query(
            "SELECT format('%s.%s %s: %s versions, the last is %s', org, object, sfid, count(*), max(seq))
             FROM afterimage.changes GROUP BY org, object, sfid HAVING count(*) <> max(seq) + 1 OR min(seq) <> 0
             UNION ALL
             SELECT format('%s.%s %s: time falls at %s', org, object, sfid, seq) FROM (
               SELECT *, lag(at) OVER (PARTITION BY org, object, sfid ORDER BY seq) AS before FROM afterimage.changes) c
             WHERE at < before",
            &[],
        )
        .await
        .unwrap();
    faults.extend(broken.iter().map(|row| format!("a broken chain: {}", row.get::<_, &str>(0))));
    let nobodys = sink
        .query(
            "SELECT rid FROM afterimage.delta d WHERE NOT EXISTS (SELECT FROM afterimage.keyframe k WHERE k.rid = d.rid AND k.kf = d.kf)
             UNION ALL
             SELECT rid FROM afterimage.keyframe k WHERE NOT EXISTS (SELECT FROM afterimage.record r WHERE r.rid = k.rid)",
            &[],
        )
        .await
        .unwrap();
    faults
        .extend(nobodys.iter().map(|row| format!("rows of rid {} without a chain or a record", row.get::<_, i32>(0))));
    faults
}

/// What breaks L1, in each life of each partition, or L2, wherever the positions stand. Each is asked in one statement, so it
/// must hold at any moment.
pub async fn breaches(sink: &Client) -> Vec<String> {
    let wrong = sink
        .query(
            "SELECT format('%s %s, life %s: from %s, to %s, %s outcomes', p.topic, p.partition, p.incarnation, p.first_offset,
               p.next_offset, sum(o.events))
             FROM afterimage.positions p LEFT JOIN afterimage.outcomes o USING (topic, partition, incarnation)
             GROUP BY p.topic, p.partition, p.incarnation, p.first_offset, p.next_offset
             HAVING sum(o.events) IS DISTINCT FROM p.next_offset - p.first_offset",
            &[],
        )
        .await
        .unwrap();
    let mut breaches: Vec<String> =
        wrong.iter().map(|row| format!("L1 is broken: {}", row.get::<_, &str>(0))).collect();
    let row = sink
        .query_one(
            "SELECT (SELECT count(*) FROM afterimage.delta) + (SELECT count(*) FROM afterimage.keyframe WHERE kf = 0),
               (SELECT coalesce(sum(rows_written - rows_cancelled - rows_erased - rows_retired), 0)::bigint
                FROM afterimage.position),
               (SELECT count(*) FROM afterimage.changes)",
            &[],
        )
        .await
        .unwrap();
    let (rows, counted, shown): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if (rows, rows) != (counted, shown) {
        breaches.push(format!("L2 is broken: {rows} rows, {counted} counted, {shown} shown"));
    }
    breaches
}

/// At the end of a test, for what is dropped then: L1 and L2 hold in the sink that it wrote, whatever the test was about.
///
/// # Panics
/// When they do not, or the sink does not answer. Never while the test fails for a reason of its own.
pub fn assert_lawful(url: &str) {
    if std::thread::panicking() {
        return;
    }
    // The test's own runtime can't be waited for here.
    let breaches = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { breaches(&super::postgres::connect(url).await).await })
        });
        asked.join().unwrap_or_else(|_| vec!["the sink could not be asked".to_owned()])
    });
    assert!(breaches.is_empty(), "{breaches:#?}");
}

/// The counts of one outcome, over all partitions.
pub async fn outcome(sink: &Client, outcome: &str) -> i64 {
    let query = "SELECT coalesce(sum(events), 0)::bigint FROM afterimage.outcomes WHERE outcome = $1";
    sink.query_one(query, &[&outcome]).await.unwrap().get(0)
}

/// One version as the public view shows it, in a form to compare.
pub type Entry = (String, i32, String, serde_json::Value, i32, i64);

/// The whole history of an object, by record and number: (sfid, seq, op, changes, partition, offset).
pub async fn history(sink: &Client, org: &str, object: &str) -> Vec<Entry> {
    let rows = sink
        .query(
            "SELECT sfid, seq, op, changes, partition, \"offset\" FROM afterimage.changes
             WHERE org = $1 AND object = $2 ORDER BY sfid COLLATE \"C\", seq",
            &[&org, &object],
        )
        .await
        .unwrap();
    rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3), r.get(4), r.get(5))).collect()
}

/// Compares histories and shows the first difference only.
pub fn assert_same(found: &[Entry], wanted: &[Entry]) {
    if let Some(n) = (0..found.len().max(wanted.len())).find(|n| found.get(*n) != wanted.get(*n)) {
        panic!(
            "entry {n} of {} found and {} wanted:\n found {:?}\nwanted {:?}",
            found.len(),
            wanted.len(),
            found.get(n),
            wanted.get(n)
        );
    }
}
