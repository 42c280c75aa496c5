//! A partition that lags brings events after newer ones of their records: the program puts them in their place.

mod support;

use afterimage::kafka::EmbeddedBroker;
use support::app::{App, Deployment, emea};
use support::audit::{assert_conserved, assert_same, caught_up, history};
use support::postgres::Database;
use support::stream::Stream;
use support::wait::{LONG, wait_for};
use tokio_postgres::Client;

const TOPIC: &str = "calm.emea.account";

async fn deployment(broker: &EmbeddedBroker) -> (Database, Deployment) {
    emea(&broker.servers(), "[log]\nlevel = \"debug\"").await
}

/// A few rounds of a table, read by a worker.
async fn read_by_one(broker: &EmbeddedBroker) -> (Database, Deployment, Stream, App, Client) {
    let (sink, deployment) = deployment(broker).await;
    let mut stream = Stream::new(broker, TOPIC, 4);
    stream.rounds(30, 0..3);
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    (sink, deployment, stream, worker, client)
}

/// How many events were late, by outcome. All of them have been placed.
async fn placed(client: &Client) -> (i64, i64) {
    let query = "SELECT count(*) FILTER (WHERE settled_at IS NULL), count(*) FILTER (WHERE outcome = 'version'), \
                 count(*) FILTER (WHERE outcome = 'no-op'), count(*) FILTER (WHERE outcome = 'kept') FROM afterimage.late_events";
    let row = client.query_one(query, &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(3), 0, "all of them can be placed");
    assert_eq!(row.get::<_, i64>(0), 0, "and none waits");
    (row.get(1), row.get(2))
}

async fn assert_history(client: &Client, stream: &Stream) {
    assert_same(&history(client, "emea", "account").await, &stream.wanted());
    assert_conserved(client, &stream.ends()).await;
}

/// Edits, a reload and edits again, while one partition lags.
fn reload_while_one_lags(stream: &mut Stream, lagging: i32) {
    stream.hold(lagging);
    stream.rounds(30, 3..6);
    stream.reload();
    stream.rounds(30, 6..9);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_partition_brings_late_is_put_in_its_place() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_sink, _deployment, mut stream, mut worker, client) = read_by_one(&broker).await;

    let mut late = 0;
    for lagging in [0, 2] {
        reload_while_one_lags(&mut stream, lagging);
        caught_up(&client, &stream.arrived(), &mut [&mut worker]).await;
        stream.release();
        caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
        let (versions, noops) = placed(&client).await;
        assert!(versions > late && noops > 0, "{versions} {noops}");
        late = versions;
        assert_history(&client, &stream).await;
    }
    // Nothing of what was before is left in any cache.
    stream.rounds(30, 9..12);
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    assert_history(&client, &stream).await;
    let metrics = worker.metrics().await;
    assert!(
        metrics.contains("afterimage_late_events_placed_total{topic=\"calm.emea.account\",outcome=\"version\"}"),
        "{metrics}"
    );
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_another_partition_brings_it_and_the_home_of_the_record_places_it() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_sink, deployment, mut stream, mut one, client) = read_by_one(&broker).await;
    let mut two = deployment.worker("two");
    let owners = "SELECT count(DISTINCT worker) FROM afterimage.positions";
    wait_for("two owners", LONG, async || {
        let owners: i64 = client.query_one(owners, &[]).await.unwrap().get(0);
        if owners == 2 { Ok(()) } else { Err(owners.to_string()) }
    })
    .await;
    for lagging in 0..4 {
        reload_while_one_lags(&mut stream, lagging);
        caught_up(&client, &stream.arrived(), &mut [&mut one, &mut two]).await;
        stream.release();
        // A worker dies with late events in hand, or just placed; its image store is behind.
        if lagging % 2 == 1 {
            one.kill9();
            one = deployment.worker("one");
        }
        caught_up(&client, &stream.ends(), &mut [&mut one, &mut two]).await;
        placed(&client).await;
        assert_history(&client, &stream).await;
    }
    one.stop();
    two.stop();
}

/// Dead letters that were retried leave records at home where no worker is; so does the earlier life of a topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_home_has_no_worker_is_looked_after_by_another() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (_sink, deployment, mut stream, mut worker, client) = read_by_one(&broker).await;
    reload_while_one_lags(&mut stream, 1);
    caught_up(&client, &stream.arrived(), &mut [&mut worker]).await;
    worker.stop();
    let left = "WITH s AS ( \
                  INSERT INTO afterimage.source (name, kind, topic, org_id, object_id) \
                  SELECT name || ' (retry)', 'retry', name || ' (retry)', org_id, object_id FROM afterimage.source RETURNING source_id), \
                p AS ( \
                  INSERT INTO afterimage.position (source_id, partition, first_next, next, live) \
                  SELECT source_id, n, 0, 0, n = 0 FROM s, generate_series(0, 1) n RETURNING position_id) \
                UPDATE afterimage.record SET home = (SELECT min(position_id) + rid % 2 FROM p)";
    assert_eq!(client.execute(left, &[]).await.unwrap(), 30);
    // The image store must not believe what it has of records that were taken away.
    std::fs::remove_dir_all(deployment.state_dir("one")).unwrap();
    stream.release();
    let mut worker = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    let (versions, noops) = placed(&client).await;
    assert!(versions > 0 && noops > 0, "{versions} {noops}");
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    // And further on.
    stream.rounds(30, 9..12);
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    let mut ends = stream.ends();
    ends.extend((0..2).map(|partition| ((format!("{TOPIC} (retry)"), partition), 0)));
    assert_conserved(&client, &ends).await;
    worker.stop();
}

/// The same backlog by one worker, by three, and by three of which one dies on the way: one history, and it is the source's.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_with_reloads_gives_one_history_whoever_reads_it() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let mut stream = Stream::new(&broker, TOPIC, 6);
    stream.rounds(120, 0..3);
    for reload in 1..4 {
        stream.reload();
        stream.rounds(120, 3 * reload..3 * reload + 3);
    }
    for (names, dies) in [(&["one"][..], false), (&["one", "two", "three"], false), (&["one", "two", "three"], true)] {
        let (sink, deployment) = deployment(&broker).await;
        let client = sink.connect().await;
        let mut workers: Vec<_> = names.iter().map(|name| deployment.worker(name)).collect();
        if dies {
            wait_for("a third of it", LONG, async || {
                let read = "SELECT coalesce(sum(next_offset), 0)::bigint FROM afterimage.positions";
                let read: i64 = client.query_one(read, &[]).await.unwrap().get(0);
                if read * 3 > stream.ends().values().sum::<i64>() { Ok(()) } else { Err(read.to_string()) }
            })
            .await;
            workers[0].kill9();
            workers[0] = deployment.worker(names[0]);
        }
        caught_up(&client, &stream.ends(), &mut workers.iter_mut().collect::<Vec<_>>()).await;
        placed(&client).await;
        assert_history(&client, &stream).await;
        workers.into_iter().for_each(|mut worker| worker.stop());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_go_when_nothing_older_can_come() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let (sink, deployment) = deployment(&broker).await;
    let mut stream = Stream::new(&broker, TOPIC, 4);
    stream.rounds(30, 0..3);
    stream.reload();
    let mut worker = deployment.worker("one");
    let client = sink.connect().await;
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    worker.stop();
    let count =
        async || client.query_one("SELECT count(*) FROM afterimage.anchor", &[]).await.unwrap().get::<_, i64>(0);
    let mut dropper = sink.connect().await;
    let mut drop = async || afterimage::postgres::splice::drop_anchors(&mut dropper, 1_000).await.unwrap();
    assert_eq!(count().await, 60, "each record's delete, and its return");
    assert_eq!(drop().await, 0, "they are young");
    let old = "UPDATE afterimage.anchor SET recorded_at = recorded_at - interval '11 minutes'";
    client.execute(old, &[]).await.unwrap();
    client.execute("UPDATE afterimage.position SET source_at = '2020-01-01' WHERE partition = 1", &[]).await.unwrap();
    assert_eq!(drop().await, 0, "one partition may bring older events");
    let idle = "UPDATE afterimage.position SET committed_at = now() - interval '25 hours' WHERE partition = 1";
    client.execute(idle, &[]).await.unwrap();
    assert!(drop().await > 50, "it has been silent for a day");
    assert!(count().await < 10, "those of the newest moment stay");
}
