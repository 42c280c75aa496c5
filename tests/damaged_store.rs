//! An image store that is damaged: it is told, dropped and filled again, and nothing in it is believed (protocol D13).

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use afterimage::kafka::EmbeddedBroker;
use serde_json::Value;
use support::app::{App, Deployment, emea};
use support::audit::{assert_conserved, assert_same, caught_up, history};
use support::postgres::Database;
use support::stream::Stream;
use support::wait::{LONG, wait_for};
use tokio_postgres::Client;

const TOPIC: &str = "calm.emea.account";
const RECORDS: u32 = 300;
const DROPPED: &str = "the image store is damaged: it is dropped";
const WHOLE: &str = "the image store is whole";

struct World {
    stream: Stream,
    sink: Database,
    client: Client,
    deployment: Deployment,
    broker: EmbeddedBroker,
}

impl World {
    /// Some history, read by worker `one`, whose image store has all of it in files.
    async fn set() -> World {
        let broker = EmbeddedBroker::start(1).unwrap();
        let (sink, deployment) = emea(&broker.servers(), "").await;
        let mut stream = Stream::new(&broker, TOPIC, 3);
        let client = sink.connect().await;
        for rounds in [0..2, 2..4] {
            // At its second start the log of the first is written to a file.
            stream.rounds(RECORDS, rounds);
            let mut worker = deployment.worker("one");
            caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
            worker.stop();
        }
        World { stream, sink, client, deployment, broker }
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let images = self.deployment.state_dir("one").join("images");
        let all = fs::read_dir(images).unwrap().map(|file| file.unwrap().path());
        let found: Vec<_> = all.filter(|path| path.to_string_lossy().contains(ending)).collect();
        assert!(!found.is_empty(), "no {ending}");
        found
    }

    fn state(&self, verb: &str, more: &[&str]) -> (Option<i32>, String) {
        let dir = self.deployment.state_dir("one");
        let output =
            self.deployment.verb("state", &[&[verb, "--json", "--state-dir", dir.to_str().unwrap()], more].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap())
    }

    /// It has told of the damage, has its store again, and what it writes from then on is right.
    async fn assert_mended(mut self, mut worker: App) {
        worker.wait_for_log(DROPPED).await;
        worker.wait_for_log(WHOLE).await;
        let metrics = worker.metrics().await;
        assert!(metrics.contains("afterimage_state_cleared_total{reason=\"damaged\"} 1"), "{metrics}");
        self.stream.reload();
        self.stream.rounds(RECORDS, 6..8);
        caught_up(&self.client, &self.stream.ends(), &mut [&mut worker]).await;
        worker.stop();
        assert_same(&history(&self.client, "emea", "account").await, &self.stream.wanted());
        assert_conserved(&self.client, &self.stream.ends()).await;
        let (code, said) = self.state("verify", &["--all"]);
        assert_eq!(code, Some(0), "{said}");
        let verified: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(verified["compared"], RECORDS, "{said}");
    }
}

/// A server process that stands still until this is dropped.
struct Frozen(libc::pid_t);

impl Frozen {
    fn freeze(pid: i32) -> Frozen {
        let frozen = Frozen(pid);
        frozen.signal(libc::SIGSTOP);
        frozen
    }

    fn signal(&self, signal: libc::c_int) {
        let killed = std::process::Command::new("kill").args([format!("-{signal}"), self.0.to_string()]).status();
        assert!(killed.unwrap().success());
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal(libc::SIGCONT);
    }
}

/// Overwrites the rows in a file, and leaves alone what stands at its end and is read when it is opened.
fn overwrite_rows(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let rows = bytes.len() / 2;
    bytes[..rows].fill(0x5a);
    fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_opened_is_dropped_and_filled_again() {
    let mut world = World::set().await;
    for manifest in world.files("MANIFEST") {
        fs::write(manifest, b"no manifest").unwrap();
    }
    for verb in ["inspect", "verify"] {
        let (code, said) = world.state(verb, &[]);
        assert!(code == Some(1) && said.contains("is corrupted") && said.contains("state clear"), "{code:?} {said}");
    }
    world.stream.rounds(RECORDS, 4..6);
    let worker = world.deployment.worker("one");
    world.assert_mended(worker).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_met_while_it_runs_costs_nothing_but_the_store() {
    let mut world = World::set().await;
    world.files(".sst").iter().for_each(|file| overwrite_rows(file));
    let mut worker = world.deployment.worker("one");
    worker.wait_for_log("reading").await;
    world.stream.rounds(RECORDS, 4..6);
    caught_up(&world.client, &world.stream.ends(), &mut [&mut worker]).await;
    world.assert_mended(worker).await;
}

/// One topic's thread waits for the sink's answer while another meets the damage: the store can't be closed before it has it.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_is_met_while_a_thread_waits_for_the_sink_costs_nothing_but_the_store() {
    let mut world = World::set().await;
    let mut contact = Stream::new(&world.broker, "calm.emea.contact", 1);
    contact.rounds(10, 0..2);
    let mut worker = world.deployment.worker("one");
    let ends = world.stream.ends().into_iter().chain(contact.ends()).collect();
    caught_up(&world.client, &ends, &mut [&mut worker]).await;

    let locking = world.sink.connect().await;
    locking.batch_execute("BEGIN; LOCK TABLE afterimage.record IN ACCESS EXCLUSIVE MODE").await.unwrap();
    contact.rounds(20, 2..3);
    // Where it waits for a lock it can be found; then its server process is frozen, and says nothing any more.
    let asking = wait_for("a question that waits for the lock", LONG, async || {
        worker.assert_running();
        let waits = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%= wanted.sfid%' \
                     AND datname = current_database()";
        let found = world.client.query_opt(waits, &[]).await.unwrap();
        found.map(|row| Frozen::freeze(row.get(0))).ok_or_else(|| worker.log())
    })
    .await;
    locking.batch_execute("ROLLBACK").await.unwrap();
    world.files(".sst").iter().for_each(|file| overwrite_rows(file));
    world.stream.rounds(RECORDS, 4..6);
    worker.wait_for_log("still has it open").await;
    assert!(worker.get("/readyz").await.contains("the image store is damaged"));
    assert!(!worker.log().contains(DROPPED), "{}", worker.log());
    drop(asking);
    worker.wait_for_log(DROPPED).await;
    worker.wait_for_log(WHOLE).await;
    world.stream.rounds(RECORDS, 6..8);
    contact.rounds(20, 3..5);
    let ends = world.stream.ends().into_iter().chain(contact.ends()).collect();
    caught_up(&world.client, &ends, &mut [&mut worker]).await;
    worker.stop();
    assert_same(&history(&world.client, "emea", "account").await, &world.stream.wanted());
    assert_same(&history(&world.client, "emea", "contact").await, &contact.wanted());
    assert_conserved(&world.client, &ends).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_can_be_thrown_away() {
    let world = World::set().await;
    for current in world.files("CURRENT") {
        fs::write(current, b"nothing").unwrap();
    }
    let dir = world.deployment.state_dir("one");
    let cleared = world.deployment.verb("state", &["clear", "--state-dir", dir.to_str().unwrap()]);
    assert!(cleared.status.success(), "{cleared:?}");
    let mut worker = world.deployment.worker("one");
    worker.wait_for_log(WHOLE).await;
    assert!(!worker.log().contains(DROPPED), "{}", worker.log());
    worker.stop();
    let (code, said) = world.state("verify", &["--all"]);
    assert_eq!(code, Some(0), "{said}");
}
