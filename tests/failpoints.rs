//! What is left when a worker ends, fails or is held up between any two steps of a claim, a restore or a commit (protocol
//! D1, D3-D5, D13), or of the transaction that puts late events in their place (D20): whatever it was, the history comes out whole. `src/failpoint.rs` has the list of the places.
#![cfg(feature = "failpoints")]

mod support;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use afterimage::failpoint::{POINTS, SPLICE};
use afterimage::kafka::EmbeddedBroker;
use futures::StreamExt;
use support::app::{App, Deployment};
use support::audit::{Ends, assert_conserved, assert_same, caught_up, history};
use support::postgres::{Database, fresh_database};
use support::stream::Stream;
use support::wait::{LONG, wait_for};

const TABLES: &str = "[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n";

/// Failpoints that a worker with an empty disk comes by, and only that.
const EMPTY_DISK: [&str; 3] = ["restore.cleared", "restore.read", "restore.filled"];

/// A topic that is partly read: by worker `one`, which left, and then by another one, to whose partitions every record of
/// `one` has moved since. When `one` returns, its store is behind and partly void, and more moves are to be read. So it
/// comes by every failpoint.
struct Scene {
    broker: EmbeddedBroker,
    stream: Stream,
    sink: Database,
    state: PathBuf,
    /// Ends of positions that no worker reads for.
    others: Ends,
    _deployment: Deployment,
}

impl Scene {
    async fn set() -> Scene {
        let broker = EmbeddedBroker::start(1).unwrap();
        let sink = fresh_database().await;
        let deployment = Deployment::new(&broker.servers(), &sink, TABLES);
        deployment.migrate();
        let mut stream = Stream::new(&broker, "calm.emea.account", 3);
        let client = sink.connect().await;
        for (worker, rounds) in [("one", 0..3), ("two", 3..6)] {
            stream.rounds(12, rounds);
            let mut worker = deployment.worker(worker);
            caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
            worker.stop();
            stream.reload();
        }
        // Two of these are new.
        stream.rounds(14, 6..9);
        let state = deployment.state_dir("one");
        Scene { broker, stream, sink, state, others: Ends::new(), _deployment: deployment }
    }

    /// A topic that is read but for one partition, which lagged while the records moved: what it brings is late. Half of the
    /// records are at home where no worker is.
    async fn late() -> Scene {
        let broker = EmbeddedBroker::start(1).unwrap();
        let sink = fresh_database().await;
        let deployment = Deployment::new(&broker.servers(), &sink, TABLES);
        deployment.migrate();
        let mut stream = Stream::new(&broker, "calm.emea.account", 3);
        stream.rounds(12, 0..3);
        stream.hold(1);
        stream.rounds(12, 3..6);
        stream.reload();
        stream.rounds(12, 6..9);
        let client = sink.connect().await;
        let mut worker = deployment.worker("one");
        caught_up(&client, &stream.arrived(), &mut [&mut worker]).await;
        worker.stop();
        let retried = "WITH s AS ( \
                         INSERT INTO afterimage.source (name, kind, topic, org_id, object_id) \
                         SELECT name || ' (retry)', 'retry', name || ' (retry)', org_id, object_id FROM afterimage.source \
                         RETURNING source_id), \
                       p AS ( \
                         INSERT INTO afterimage.position (source_id, partition, first_next, next, live) \
                         SELECT source_id, 0, 0, 0, false FROM s RETURNING position_id) \
                       UPDATE afterimage.record SET home = (SELECT position_id FROM p) WHERE rid % 2 = 0";
        assert_eq!(client.execute(retried, &[]).await.unwrap(), 6);
        stream.release();
        let others = Ends::from([((format!("{} (retry)", stream.topic), 0), 0)]);
        // No store knows of these moves, so nobody gets that of `one`.
        let state = deployment.state_dir("one");
        Scene { broker, stream, sink, state, others, _deployment: deployment }
    }

    /// A copy of the sink and of what `one` has on disk, read by a group of its own.
    async fn copy(&self) -> (Database, Deployment) {
        let sink = self.sink.copy().await;
        let deployment =
            Deployment::new(&self.broker.servers(), &sink, TABLES).with("[commit]\nlinger = \"20ms\"\nmax_rows = 10");
        let client = sink.connect().await;
        client.execute("UPDATE afterimage.source SET group_id = $1", &[&deployment.group_name()]).await.unwrap();
        (sink, deployment)
    }

    /// The worker reads the rest, and the history is whole.
    async fn assert_whole(&self, sink: &Database, worker: &mut App) {
        let client = sink.connect().await;
        caught_up(&client, &self.stream.ends(), &mut [worker]).await;
        assert_same(&history(&client, "emea", "account").await, &self.stream.wanted());
        let ends = self.stream.ends().into_iter().chain(self.others.clone());
        assert_conserved(&client, &ends.collect()).await;
    }
}

fn copy_state(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_between_any_two_steps_loses_and_doubles_nothing() {
    let scene = Scene::set().await;
    // Also later than the first time, where something else is under way.
    let again = ["commit.begun@2", "commit.locked@2", "commit.advanced@2", "commit.committed@2", "store.batched@2"];
    let mut cases: BTreeMap<String, &str> = POINTS.iter().map(|(name, _)| (format!("{name}@1"), *name)).collect();
    cases.extend(again.map(|case| (case.to_owned(), case.split_once('@').unwrap().0)));
    // Several at a time: a dead member of a group is waited for longest.
    let mut running = futures::stream::iter(cases)
        .map(async |(case, name)| {
            let (sink, deployment) = scene.copy().await;
            // These are come by with an empty disk only.
            if !EMPTY_DISK.contains(&name) {
                copy_state(&scene.state, &deployment.state_dir("one"));
            }
            let action = case.replace('@', "=exit@");
            let mut dies = deployment.worker_with("one", &[("FAILPOINTS", &action)]);
            dies.wait_for_log(&format!("failpoint {name}\n")).await;
            assert_eq!(dies.ended().signal(), Some(libc::SIGABRT), "{case}");
            let mut worker = deployment.worker("one");
            scene.assert_whole(&sink, &mut worker).await;
            worker.kill9();
            case
        })
        .buffer_unordered(10);
    while let Some(case) = running.next().await {
        println!("{case}: whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_is_taken_again() {
    let scene = Scene::set().await;
    let (sink, deployment) = scene.copy().await;
    copy_state(&scene.state, &deployment.state_dir("one"));
    let fails: Vec<&str> = POINTS.iter().filter(|(_, can_fail)| *can_fail).map(|(name, _)| *name).collect();
    let actions: Vec<String> = fails.iter().map(|name| format!("{name}=error")).collect();
    let mut worker = deployment.worker_with("one", &[("FAILPOINTS", &actions.join(","))]);
    scene.assert_whole(&sink, &mut worker).await;
    let log = worker.log();
    for name in fails.iter().filter(|name| !EMPTY_DISK.contains(*name)) {
        assert!(log.contains(&format!("failpoint {name}\n")), "{name} was not come by:\n{log}");
    }
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_held_up_before_commit_loses_its_partitions_and_writes_nothing_more() {
    let scene = Scene::set().await;
    let (sink, deployment) = scene.copy().await;
    let client = sink.connect().await;
    let gate = tempfile::tempdir().unwrap();
    let file = gate.path().join("go on");
    // Everything is written and `advance` has answered: its locks are held, and COMMIT is not sent.
    let action = format!("commit.advanced=pause:{}", file.display());
    let mut frozen = deployment.worker_with("frozen", &[("FAILPOINTS", &action)]);
    frozen.wait_for_log("failpoint commit.advanced\n").await;
    let rows = "SELECT count(*) FROM afterimage.delta";
    let before: i64 = client.query_one(rows, &[]).await.unwrap().get(0);
    let mut other = deployment.worker("other");
    wait_for("a commit by the other", LONG, async || {
        let now: i64 = client.query_one(rows, &[]).await.unwrap().get(0);
        if now > before { Ok(()) } else { Err(format!("{now} rows")) }
    })
    .await;
    std::fs::write(&file, "").unwrap();
    let ends = scene.stream.ends();
    caught_up(&client, &ends, &mut [&mut frozen, &mut other]).await;
    scene.assert_whole(&sink, &mut other).await;
    for worker in [&mut frozen, &mut other] {
        worker.stop();
    }
}

/// All that came late has a place, and a worker that stops leaves the images that the sink has.
async fn assert_placed(sink: &Database, deployment: &Deployment, worker: &mut App) {
    let query = "SELECT count(*) FILTER (WHERE outcome = 'version'), count(*) FILTER (WHERE outcome = 'no-op'), count(*) \
                 FROM afterimage.late_events";
    let row = sink.connect().await.query_one(query, &[]).await.unwrap();
    let (versions, noops, all): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert!(versions > 0 && noops > 0 && versions + noops == all, "{versions} {noops} of {all}");
    worker.stop();
    let dir = deployment.state_dir("one");
    let state = deployment.verb("state", &["verify", "--all", "--json", "--state-dir", dir.to_str().unwrap()]);
    assert!(state.status.success(), "{state:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn late_events_are_placed_whatever_step_of_it_a_worker_dies_at() {
    let scene = Scene::late().await;
    let mut cases: Vec<(&str, String)> = SPLICE.iter().map(|(name, _)| (*name, format!("{name}=exit"))).collect();
    // And where one record has been written, and others are not.
    cases.push(("splice.written", "splice.written=exit@2".to_owned()));
    let mut running = futures::stream::iter(cases)
        .map(async |(name, action)| {
            let (sink, deployment) = scene.copy().await;
            let mut dies = deployment.worker_with("one", &[("FAILPOINTS", &action)]);
            dies.wait_for_log(&format!("failpoint {name}\n")).await;
            assert_eq!(dies.ended().signal(), Some(libc::SIGABRT), "{action}");
            let mut worker = deployment.worker("one");
            scene.assert_whole(&sink, &mut worker).await;
            assert_placed(&sink, &deployment, &mut worker).await;
            action
        })
        .buffer_unordered(8);
    while let Some(action) = running.next().await {
        println!("{action}: whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_events_are_placed_after_every_step_of_it_has_failed() {
    let scene = Scene::late().await;
    let (sink, deployment) = scene.copy().await;
    let actions: Vec<String> = SPLICE.iter().map(|(name, _)| format!("{name}=error")).collect();
    let mut worker = deployment.worker_with("one", &[("FAILPOINTS", &actions.join(","))]);
    scene.assert_whole(&sink, &mut worker).await;
    let log = worker.log();
    for (name, _) in SPLICE {
        assert!(log.contains(&format!("failpoint {name}\n")), "{name} was not come by:\n{log}");
    }
    assert_placed(&sink, &deployment, &mut worker).await;
}
