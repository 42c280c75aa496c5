//! The sink is restored from an older dump (protocol D14): images of the life that it lost are never believed, whoever comes
//! back with them, and the history of the life that it has comes out whole.

mod support;

use std::collections::BTreeMap;

use afterimage::kafka::EmbeddedBroker;
use serde_json::json;
use support::app::{App, Deployment, emea};
use support::audit::{assert_conserved, assert_same, caught_up, history};
use support::names;
use support::postgres::{Database, connect, shared};
use support::stream::{Stream, VALUE, sfid};
use support::wait::{LONG, wait_for};

const TOPIC: &str = "calm.emea.account";
/// Batches of another size than the first time.
const OTHER_BATCHES: (&str, &str) = ("AFTERIMAGE_COMMIT__MAX_ROWS", "7");

/// A sink of which there is a dump, and what is written to its topic.
struct Scene {
    _broker: EmbeddedBroker,
    stream: Stream,
    sink: Database,
    /// The copy's name.
    dump: String,
    deployment: Deployment,
}

impl Scene {
    /// Twenty records at score 1, read by `one`, which still runs.
    async fn set() -> (Scene, App) {
        let broker = EmbeddedBroker::start(1).unwrap();
        let (sink, deployment) = emea(&broker.servers(), "").await;
        let stream = Stream::new(&broker, TOPIC, 4).began_earlier(40);
        let mut scene = Scene { _broker: broker, stream, sink, dump: names::unique("dump"), deployment };
        scene.write(1..=20, 1);
        let mut one = scene.deployment.worker("one");
        scene.read(&mut one).await;
        (scene, one)
    }

    fn write(&mut self, records: std::ops::RangeInclusive<u32>, score: u32) {
        for n in records {
            let hidden = json!({"id": n, "sfid": sfid(n), "_hc_lastop": "SYNCED", "_hc_err": null,
                "systemmodstamp": 1_700_000_000_000_000_i64 + i64::from(score) * 1_000_000});
            let visible = json!({"name": format!("{VALUE} {n}"), "score__c": score});
            self.stream.upsert(&json!({"id": n}), &sfid(n), &hidden, visible);
        }
        self.stream.flush();
    }

    /// The second part as `one` reads it: twenty edits and forty new records, two partitions after the others. So the new
    /// records have other numbers than for whoever reads all of it at once. It is of another month, for which the dump has
    /// no tables.
    async fn read_second_part(&mut self, one: &mut App) {
        self.stream.days_pass(40);
        for partition in [0, 1] {
            self.stream.hold(partition);
        }
        self.write(1..=20, 2);
        self.write(21..=60, 1);
        self.read(one).await;
        self.stream.release();
        self.read(one).await;
    }

    /// Back to what the images of the second part hold, or away from it.
    fn write_last_part(&mut self) {
        self.write(1..=10, 2);
        self.write(11..=20, 1);
        self.write(21..=60, 2);
    }

    /// The worker reads what has arrived.
    async fn read(&self, worker: &mut App) {
        caught_up(&self.sink.connect().await, &self.stream.arrived(), &mut [worker]).await;
    }

    /// Copies the sink as it is now. Workers may run.
    async fn dump(&self) {
        let Scene { sink, dump, .. } = self;
        alone(&sink.name, &format!("CREATE DATABASE {dump} TEMPLATE {}", sink.name)).await;
    }

    /// The dump takes the sink's place. Workers may run.
    async fn restore(&self) {
        let Scene { sink, dump, .. } = self;
        let lost = names::unique("lost");
        alone(&sink.name, &format!("ALTER DATABASE {} RENAME TO {lost}", sink.name)).await;
        let admin = connect(&shared().url("postgres")).await;
        admin.batch_execute(&format!("ALTER DATABASE {dump} RENAME TO {}", sink.name)).await.unwrap();
    }

    async fn assert_whole(&self, worker: &mut App) {
        self.read(worker).await;
        let client = self.sink.connect().await;
        assert_same(&history(&client, "emea", "account").await, &self.stream.wanted());
        assert_conserved(&client, &self.stream.ends()).await;
    }

    /// The worker has thrown its images of all partitions away for this reason, and what it writes from then on is right.
    async fn assert_dropped(&mut self, mut worker: App, reason: &str) {
        self.assert_whole(&mut worker).await;
        assert_eq!(cleared(&mut worker).await, BTreeMap::from([(reason.to_owned(), 4)]), "{}", worker.log());
        self.write(1..=60, 9);
        self.assert_whole(&mut worker).await;
        worker.stop();
    }

    /// A worker `two` without images reads all that there is, in other batches, and some edits more.
    async fn another_reads_past(&mut self) {
        self.write(1..=10, 3);
        let mut two = self.deployment.worker_with("two", &[OTHER_BATCHES]);
        self.assert_whole(&mut two).await;
        two.stop();
    }
}

/// Does this to a database without anybody's sessions, which are ended.
async fn alone(database: &str, statement: &str) {
    let admin = connect(&shared().url("postgres")).await;
    wait_for("a moment without sessions", LONG, async || {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        admin.query(end, &[&database]).await.map_err(|error| format!("{error:?}"))?;
        admin.batch_execute(statement).await.map_err(|error| format!("{error:?}"))
    })
    .await;
}

/// Why this run of a worker has thrown local records away, with the number of positions.
async fn cleared(worker: &mut App) -> BTreeMap<String, u32> {
    let metrics = worker.metrics().await;
    let of_interest = metrics.lines().filter_map(|line| line.strip_prefix("afterimage_state_cleared_total{reason=\""));
    let counts = of_interest.filter_map(|line| {
        let (reason, count) = line.split_once("\"} ")?;
        Some((reason.to_owned(), count.parse().unwrap()))
    });
    counts.filter(|(_, count)| *count > 0).collect()
}

/// The images' claim was lost with the life that it was made in: another stands under its epoch.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_a_claim_that_was_lost_are_dropped() {
    let (mut scene, mut one) = Scene::set().await;
    one.stop();
    scene.dump().await;
    let mut one = scene.deployment.worker("one");
    scene.read_second_part(&mut one).await;
    one.stop();
    scene.restore().await;
    scene.another_reads_past().await;
    scene.write_last_part();
    let one = scene.deployment.worker("one");
    scene.assert_dropped(one, "unknown_claim").await;
}

/// The dump knows the images' claim, since it was made while that lasted: but the next claim begins before their mark.
#[tokio::test(flavor = "multi_thread")]
async fn images_from_past_the_next_claim_are_dropped() {
    let (mut scene, mut one) = Scene::set().await;
    scene.dump().await;
    scene.read_second_part(&mut one).await;
    one.stop();
    assert!(!one_claimed_again(&scene).await, "otherwise this is the test above");
    scene.restore().await;
    scene.another_reads_past().await;
    scene.write_last_part();
    let one = scene.deployment.worker("one");
    scene.assert_dropped(one, "ahead").await;
}

async fn one_claimed_again(scene: &Scene) -> bool {
    let client = scene.sink.connect().await;
    client.query_one("SELECT max(epoch) > 1 FROM afterimage.claim", &[]).await.unwrap().get(0)
}

/// Nobody was there in between: the same worker comes back, ahead of the sink.
#[tokio::test(flavor = "multi_thread")]
async fn images_ahead_of_the_sink_are_dropped() {
    let (mut scene, mut one) = Scene::set().await;
    scene.dump().await;
    scene.read_second_part(&mut one).await;
    scene.write(1..=10, 3);
    scene.read(&mut one).await;
    one.stop();
    assert!(!one_claimed_again(&scene).await, "otherwise its claim is not the dump's");
    scene.restore().await;
    scene.write_last_part();
    let one = scene.deployment.worker_with("one", &[OTHER_BATCHES]);
    scene.assert_dropped(one, "ahead").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_under_which_the_sink_is_restored_goes_on_from_there() {
    let (mut scene, mut one) = Scene::set().await;
    scene.dump().await;
    scene.read_second_part(&mut one).await;
    scene.write(1..=10, 3);
    scene.read(&mut one).await;
    scene.restore().await;
    scene.write_last_part();
    scene.assert_dropped(one, "ahead").await;
}

/// Nothing comes that would show it that the sink has gone back.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_under_which_the_sink_is_restored_reads_again_what_that_has_lost() {
    let (mut scene, mut one) = Scene::set().await;
    scene.dump().await;
    scene.read_second_part(&mut one).await;
    scene.restore().await;
    scene.assert_whole(&mut one).await;
    one.stop();
}

/// The control: where only how far the two have read is compared, images of the lost life go into the history.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn without_the_lineage_the_history_is_wrong() {
    let (mut scene, mut one) = Scene::set().await;
    scene.dump().await;
    scene.read_second_part(&mut one).await;
    one.stop();
    scene.restore().await;
    scene.another_reads_past().await;
    scene.write_last_part();
    let mut one = scene.deployment.worker_with("one", &[("LEFT_OUT", "lineage")]);
    scene.read(&mut one).await;
    assert_eq!(cleared(&mut one).await, BTreeMap::new());
    let client = scene.sink.connect().await;
    assert_ne!(history(&client, "emea", "account").await, scene.stream.wanted());
    one.kill9();
}
