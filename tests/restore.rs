//! A worker whose image store is gone reads through, and fills the store again beside the stream: is what it fills in true,
//! whatever is committed, taken away or dies meanwhile (protocol D13)? `state verify` compares every image with the sink.
#![cfg(feature = "failpoints")]

mod support;

use std::path::{Path, PathBuf};

use afterimage::kafka::EmbeddedBroker;
use serde_json::Value;
use support::app::{App, Deployment, emea};
use support::audit::{assert_conserved, assert_same, caught_up, history};
use support::postgres::Database;
use support::stream::Stream;
use support::wait::{LONG, wait_for, wait_until};
use tokio_postgres::Client;

const TOPIC: &str = "calm.emea.account";
/// More than the first few blocks have together.
const RECORDS: u32 = 2_600;
const WHOLE: &str = "the image store is whole";

struct World {
    stream: Stream,
    sink: Database,
    client: Client,
    deployment: Deployment,
    gate: tempfile::TempDir,
    _broker: EmbeddedBroker,
}

impl World {
    /// A sink with some history of every record, read by worker `one`, whose image store is lost.
    async fn set() -> World {
        let broker = EmbeddedBroker::start(1).unwrap();
        let (sink, deployment) = emea(&broker.servers(), "[log]\nlevel = \"debug\"").await;
        let mut stream = Stream::new(&broker, TOPIC, 4);
        stream.rounds(RECORDS, 0..2);
        let client = sink.connect().await;
        let mut worker = deployment.worker("one");
        caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
        worker.stop();
        std::fs::remove_dir_all(deployment.state_dir("one")).unwrap();
        World { stream, sink, client, deployment, gate: tempfile::tempdir().unwrap(), _broker: broker }
    }

    fn gate(&self) -> PathBuf {
        self.gate.path().join("go on")
    }

    /// `one` with an empty store, held up when it has read the first records back and not put them in.
    async fn held_up(&self) -> App {
        self.held_up_and("").await
    }

    /// The same, with another failpoint.
    async fn held_up_and(&self, more: &str) -> App {
        let action = format!("restore.read=pause:{}{more}", self.gate().display());
        let mut one = self.deployment.worker_with("one", &[("FAILPOINTS", &action)]);
        one.wait_for_log("failpoint restore.read\n").await;
        one
    }

    fn go_on(&self) {
        std::fs::write(self.gate(), "").unwrap();
    }

    async fn assert_history(&self) {
        assert_same(&history(&self.client, "emea", "account").await, &self.stream.wanted());
        assert_conserved(&self.client, &self.stream.ends()).await;
    }

    /// The images of a worker that is gone are those of the sink. How many there are at positions that are level with it.
    fn verified(&self, worker: &str) -> u64 {
        let dir = self.deployment.state_dir(worker);
        let state = self.state(&dir);
        assert_eq!(state["different"], 0, "{state:#}");
        state["compared"].as_u64().unwrap()
    }

    fn state(&self, dir: &Path) -> Value {
        let output =
            self.deployment.verb("state", &["verify", "--all", "--json", "--state-dir", dir.to_str().unwrap()]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }
}

fn counted(metrics: &str, series: &str) -> f64 {
    let line =
        metrics.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series}:\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_store_that_was_lost_is_filled_again_and_then_serves_everything() {
    let mut world = World::set().await;
    let mut one = world.deployment.worker("one");
    one.wait_for_log(WHOLE).await;
    let metrics = one.metrics().await;
    let topic = "{topic=\"calm.emea.account\"}";
    assert_eq!(counted(&metrics, &format!("afterimage_restore_records_total{topic}")), f64::from(RECORDS), "{metrics}");
    assert_eq!(counted(&metrics, &format!("afterimage_restore_remaining_records{topic}")), 0.0);
    world.stream.rounds(RECORDS, 2..4);
    caught_up(&world.client, &world.stream.ends(), &mut [&mut one]).await;
    let metrics = one.metrics().await;
    assert!(
        !metrics.contains("afterimage_image_lookups_total{result=\"postgres\"}"),
        "nothing was missing:\n{metrics}"
    );
    one.stop();
    world.assert_history().await;
    assert_eq!(world.verified("one"), u64::from(RECORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_committed_after_it_was_read_back_is_not_overwritten() {
    let mut world = World::set().await;
    let mut one = world.held_up().await;
    let metrics = one.metrics().await;
    let left = |what| counted(&metrics, &format!("afterimage_restore_remaining_{what}{{topic=\"calm.emea.account\"}}"));
    assert_eq!(left("records"), f64::from(RECORDS));
    assert!(left("seconds").is_nan(), "nothing has come yet: when it is whole is not known");
    // Every record changes, and some keys go to other records.
    world.stream.rounds(RECORDS, 2..4);
    world.stream.reload();
    caught_up(&world.client, &world.stream.ends(), &mut [&mut one]).await;
    world.go_on();
    one.wait_for_log(WHOLE).await;
    world.stream.rounds(RECORDS / 2, 4..6);
    caught_up(&world.client, &world.stream.ends(), &mut [&mut one]).await;
    one.stop();
    world.assert_history().await;
    assert_eq!(world.verified("one"), u64::from(RECORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_commit_left_is_not_put_in_before_the_commit_is_known() {
    let mut world = World::set().await;
    let never = world.gate.path().join("never");
    let mut one = world.held_up_and(&format!(",commit.committed=pause:{}", never.display())).await;
    world.stream.rounds(RECORDS, 2..3);
    one.wait_for_log("failpoint commit.committed\n").await;
    world.go_on();
    // Three blocks of 500 were read before it.
    one.wait_for_log("records were read back before their commit is known here").await;
    one.kill9();
    let state = world.state(&world.deployment.state_dir("one"));
    let positions = state["positions"].as_array().unwrap();
    assert_eq!(positions.iter().map(|one| one["images"].as_u64().unwrap()).sum::<u64>(), 1_500, "{state:#}");
    let mut one = world.deployment.worker("one");
    caught_up(&world.client, &world.stream.ends(), &mut [&mut one]).await;
    one.wait_for_log(WHOLE).await;
    one.stop();
    world.assert_history().await;
    // What was put in was forgotten again: it may have been in the commit that was in flight.
    assert!(world.verified("one") >= u64::from(RECORDS) - 1_500);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_take_over_meanwhile_is_not_put_in() {
    let mut world = World::set().await;
    let mut one = world.held_up().await;
    let mut two = world.deployment.worker("two");
    let owners = "SELECT count(DISTINCT worker) FROM afterimage.positions";
    wait_for("two owners", LONG, async || {
        let owners: i64 = world.client.query_one(owners, &[]).await.unwrap().get(0);
        if owners == 2 { Ok(()) } else { Err(owners.to_string()) }
    })
    .await;
    // Records move both ways between the two; whoever is done first does not hear of what the other one takes after.
    for round in 2..5 {
        world.stream.reload();
        world.stream.rounds(RECORDS, round..round + 1);
        caught_up(&world.client, &world.stream.ends(), &mut [&mut one, &mut two]).await;
    }
    world.go_on();
    one.wait_for_log(WHOLE).await;
    world.stream.reload();
    world.stream.rounds(RECORDS, 5..7);
    caught_up(&world.client, &world.stream.ends(), &mut [&mut one, &mut two]).await;
    one.stop();
    two.stop();
    world.assert_history().await;
    // Each has what is at home with it, unless the other one took some after its last commit.
    for worker in ["one", "two"] {
        world.verified(worker);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_the_middle_of_it_goes_on_from_there() {
    let world = World::set().await;
    let mut one = world.deployment.worker_with("one", &[("FAILPOINTS", "restore.filled=exit@2")]);
    one.wait_for_log("failpoint restore.filled\n").await;
    one.ended();
    let state = world.state(&world.deployment.state_dir("one"));
    assert_eq!(state["different"], 0, "{state:#}");
    let compared = state["compared"].as_u64().unwrap();
    assert!(compared > 0 && compared < u64::from(RECORDS), "{state:#}");
    let mut one = world.deployment.worker("one");
    one.wait_for_log(WHOLE).await;
    let metrics = one.metrics().await;
    let again = counted(&metrics, "afterimage_restore_records_total{topic=\"calm.emea.account\"}");
    assert!(again < f64::from(RECORDS), "only what was missing is read: {again}");
    one.stop();
    assert_eq!(world.verified("one"), u64::from(RECORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_goes_away_in_the_middle_of_it_is_asked_again() {
    let world = World::set().await;
    let mut one = world.held_up().await;
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()";
    world.client.execute(end, &[&world.sink.name]).await.unwrap();
    world.go_on();
    one.wait_for_log(WHOLE).await;
    one.stop();
    assert_eq!(world.verified("one"), u64::from(RECORDS));
    wait_until("all sessions ended", LONG, async || {
        let query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()";
        world.client.query_one(query, &[&world.sink.name]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}
