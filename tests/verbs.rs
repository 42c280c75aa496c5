//! The verbs that change a sink, where something comes between: the process dies at any step, or somebody else was quicker.
//! And what a script reads of them.
#![cfg(feature = "failpoints")]

mod support;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};

use afterimage::failpoint::VERBS;
use afterimage::kafka::{EmbeddedBroker, KafkaSettings, Producer};
use futures::StreamExt;
use serde_json::{Value, json};
use support::app::{App, Deployment};
use support::audit::{Entry, assert_lawful, history};
use support::postgres::{Database, fresh_database};
use support::stream::{Stream, Waiting};
use support::wait::{LONG, wait_for, wait_until};
use tokio_postgres::Client;

const TABLES: &str = "[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n";
const TOPIC: &str = "calm.emea.account";
/// Records; each round has an event of each.
const RECORDS: u32 = 8;
/// Messages that nobody can decode, in front of what is not read yet.
const JUNK: i64 = 5;

/// A verb as it is typed.
type Verb = (&'static str, Vec<String>);

/// A topic that was read as far as messages of which a version behind could not decode a round, and one that nobody can; then
/// the worker has left. Unread are more of the latter, and two rounds. On another broker stands a topic of the same name that
/// was made anew before those rounds.
struct Scene {
    broker: EmbeddedBroker,
    anew: EmbeddedBroker,
    sink: Database,
    /// Ends in the log that was read, and in the one made anew.
    ends: (i64, i64),
    /// Next offset to read.
    next: i64,
    /// What must come of it when all that can be decoded is brought in.
    wanted: Vec<Version>,
    _deployment: Deployment,
}

/// A version, wherever it was read: record, number, op, changes.
type Version = (String, i32, String, Value);

fn versions(entries: Vec<Entry>) -> Vec<Version> {
    entries.into_iter().map(|(sfid, seq, op, changes, ..)| (sfid, seq, op, changes)).collect()
}

/// What so many rounds bring, without sending it.
fn rounds(stream: &mut Stream, rounds: std::ops::Range<u32>) -> Vec<Waiting> {
    stream.hold(0);
    stream.rounds(RECORDS, rounds);
    let messages = stream.take_held().remove(&0).unwrap();
    stream.next[0] -= messages.len() as i64;
    messages
}

impl Scene {
    async fn set() -> Scene {
        let (broker, anew) = (EmbeddedBroker::start(1).unwrap(), EmbeddedBroker::start(1).unwrap());
        let sink = fresh_database().await;
        let deployment = Deployment::new(&broker.servers(), &sink, TABLES);
        deployment.migrate();
        let mut stream = Stream::new(&broker, TOPIC, 1);
        stream.rounds(RECORDS, 0..3);
        let first = stream.next[0];
        let damaged = rounds(&mut stream, 3..4);
        for n in 0..=damaged.len() {
            stream.send(0, None, Some(format!("not json {n}").as_bytes()));
        }
        stream.flush();
        let client = sink.connect().await;
        let mut worker = deployment.worker("one");
        read_to(&client, stream.next[0], &mut worker).await;
        worker.stop();
        // As if this program had learned to read them.
        for (n, (key, value)) in damaged.iter().enumerate() {
            let set = "UPDATE afterimage.dead_letter SET key = $2, value = $3 WHERE \"offset\" = $1";
            assert_eq!(client.execute(set, &[&(first + n as i64), key, value]).await.unwrap(), 1);
        }
        let next = stream.next[0];
        for n in 0..JUNK {
            stream.send(0, None, Some(format!("not json either {n}").as_bytes()));
        }
        let rest = rounds(&mut stream, 4..6);
        for (key, value) in &rest {
            stream.send(0, key.as_deref(), value.as_deref());
        }
        stream.flush();
        anew.create_topic(TOPIC, 1).unwrap();
        let producer = Producer::connect(&KafkaSettings::new(anew.servers(), "")).unwrap();
        for (key, value) in &rest {
            producer.send(TOPIC, Some(0), key.as_deref(), value.as_deref(), None).unwrap();
        }
        producer.flush(LONG).unwrap();
        let (ends, wanted) = ((stream.next[0], rest.len() as i64), versions(stream.wanted()));
        Scene { broker, anew, sink, ends, next, wanted, _deployment: deployment }
    }

    /// A copy of the sink, and who gives the verb there. A partition that is to be resumed is halted first.
    async fn copy(&self, verb: &str) -> At<'_> {
        let sink = self.sink.copy().await;
        let broker = if verb == "adopt" { &self.anew } else { &self.broker };
        let deployment = Deployment::new(&broker.servers(), &sink, TABLES);
        let client = sink.connect().await;
        client.execute("UPDATE afterimage.source SET group_id = $1", &[&deployment.group_name()]).await.unwrap();
        if verb == "resume" {
            let halt =
                "UPDATE afterimage.position SET halted_at = clock_timestamp(), halt = 'a flood', halt_stays = true";
            client.execute(halt, &[]).await.unwrap();
        }
        At { scene: self, deployment, client, sink, end: if verb == "adopt" { self.ends.1 } else { self.ends.0 } }
    }

    /// The verb as it is typed here. `claim` and `commit` are what a retry does.
    fn verb(&self, name: &str) -> Verb {
        let strings = |arguments: &[&str]| arguments.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        let (to, junk) = ((self.next + JUNK).to_string(), (self.next - 1).to_string());
        match name {
            "skip" => ("offsets", strings(&["skip", TOPIC, "--partition", "0", "--to", &to, "--yes", "--json"])),
            "resume" => ("offsets", strings(&["resume", TOPIC, "--json"])),
            "adopt" => ("offsets", strings(&["adopt", TOPIC, "--json"])),
            "drop" => ("dead-letters", strings(&["drop", "--topic", TOPIC, "--offset", &junk, "--yes", "--json"])),
            "retry" | "claim" | "commit" => ("dead-letters", strings(&["retry", "--topic", TOPIC, "--json"])),
            other => panic!("no verb {other}"),
        }
    }
}

/// A copy of the sink.
struct At<'a> {
    scene: &'a Scene,
    deployment: Deployment,
    client: Client,
    sink: Database,
    end: i64,
}

impl At<'_> {
    fn give(&self, verb: &str, failpoints: &str) -> Output {
        let (verb, arguments) = self.scene.verb(verb);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.deployment.verb_with(verb, &arguments, &[("FAILPOINTS", failpoints)])
    }

    /// Gives a verb that must succeed: what a script reads.
    fn done(&self, verb: &str) -> Value {
        let output = self.give(verb, "");
        assert!(output.status.success(), "{verb}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Starts a verb that waits at this failpoint until the file is there.
    async fn paused(&self, verb: &str, at: &str, file: &Path) -> App {
        let action = format!("{at}=pause:{}", file.display());
        let (name, arguments) = self.scene.verb(verb);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let app = self.deployment.start_with(name, &arguments, Stdio::null(), &[("FAILPOINTS", &action)]);
        let here = file.with_extension("here");
        wait_until("the verb at its failpoint", LONG, async || here.exists()).await;
        app
    }

    /// All that a verb changes, but for epochs.
    async fn facts(&self) -> Value {
        let query = "SELECT jsonb_build_object(
            'positions', (SELECT jsonb_agg(jsonb_build_array(p.partition, p.incarnation, p.live, p.first_next, p.next, p.halt, p.c_gap)
                                           ORDER BY p.position_id)
                          FROM afterimage.position p JOIN afterimage.source s USING (source_id) WHERE s.kind = 'kafka'),
            'gaps', (SELECT jsonb_agg(jsonb_build_array(from_offset, to_offset, reason)) FROM afterimage.gaps),
            'clusters', (SELECT jsonb_agg(cluster_id) FROM afterimage.source WHERE kind = 'kafka'),
            'letters', (SELECT jsonb_agg(jsonb_build_array(\"offset\", outcome) ORDER BY \"offset\") FROM afterimage.dead_letter),
            'versions', (SELECT count(*) FROM afterimage.changes))";
        self.client.query_one(query, &[]).await.unwrap().get(0)
    }

    /// What can be decoded is brought in, and a worker reads the rest: the history is whole.
    async fn assert_whole(&self) {
        self.done("retry");
        let mut worker = self.deployment.worker("two");
        read_to(&self.client, self.end, &mut worker).await;
        assert_eq!(versions(history(&self.client, "emea", "account").await), self.scene.wanted);
        worker.stop();
        assert_lawful(&self.sink.url);
    }
}

async fn read_to(client: &Client, end: i64, worker: &mut App) {
    wait_for("the end of the log", LONG, async || {
        worker.assert_running();
        let query = "SELECT next_offset FROM afterimage.positions WHERE live AND topic = $1";
        let next: Option<i64> = client.query_opt(query, &[&TOPIC]).await.unwrap().map(|row| row.get(0));
        if next == Some(end) { Ok(()) } else { Err(format!("{next:?}, not {end}")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verb_that_dies_between_any_two_steps_has_done_all_or_nothing_and_can_be_given_again() {
    let scene = Scene::set().await;
    // What a retry brings in is claimed and committed as by a worker.
    let of_a_worker = ["claim.raised", "claim.committed", "commit.locked", "commit.advanced", "commit.committed"];
    let points = VERBS.iter().map(|(name, _)| *name).chain(of_a_worker);
    let mut running = futures::stream::iter(points)
        .map(async |point| {
            let (verb, step) = point.split_once('.').unwrap();
            let undisturbed = scene.copy(verb).await;
            undisturbed.done(verb);
            let (at, wanted) = (scene.copy(verb).await, undisturbed.facts().await);
            let before = at.facts().await;
            assert_ne!(before, wanted, "{point}");
            let died = at.give(verb, &format!("{point}=exit"));
            assert_eq!(died.status.signal(), Some(libc::SIGABRT), "{point}: {died:?}");
            let done = step == "committed" && verb != "claim";
            assert_eq!(at.facts().await, if done { wanted.clone() } else { before }, "{point}");
            assert_lawful(&at.sink.url);
            at.done(verb);
            assert_eq!(at.facts().await, wanted, "{point}");
            at.assert_whole().await;
            point
        })
        .buffer_unordered(8);
    while let Some(point) = running.next().await {
        println!("{point}: whole");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_moved_since_it_was_looked_at_is_left_as_it_is() {
    let scene = Scene::set().await;
    // Somebody else skips, or adopts as well.
    for (verb, other) in [("skip", "skip"), ("resume", "skip"), ("adopt", "adopt")] {
        let at = scene.copy(verb).await;
        let gate = tempfile::tempdir().unwrap();
        let file = gate.path().join("gate");
        let mut slow = at.paused(verb, &format!("{verb}.looked"), &file).await;
        at.done(other);
        let facts = at.facts().await;
        std::fs::write(&file, "").unwrap();
        let (status, said) = (slow.ended(), slow.log());
        assert_eq!(status.code(), Some(4), "{verb}: {said}");
        assert!(said.contains("partition 0 has moved since it was looked at"), "{verb}: {said}");
        assert_eq!(at.facts().await, facts, "{verb}");
        at.assert_whole().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_has_claimed_since_it_was_looked_at_is_not_skipped() {
    let scene = Scene::set().await;
    let at = scene.copy("skip").await;
    let gate = tempfile::tempdir().unwrap();
    let file = gate.path().join("gate");
    let mut slow = at.paused("skip", "skip.looked", &file).await;
    // It has claimed, and committed nothing yet: `next` is what it was.
    let wait = format!("commit.begun=pause:{}", gate.path().join("commit").display());
    let mut worker = at.deployment.worker_with("two", &[("FAILPOINTS", &wait)]);
    worker.wait_for_log("claimed").await;
    let facts = at.facts().await;
    std::fs::write(&file, "").unwrap();
    let (status, said) = (slow.ended(), slow.log());
    assert_eq!(status.code(), Some(4), "{said}");
    assert!(said.contains("partition 0 has moved since it was looked at: a worker has claimed it"), "{said}");
    assert_eq!(at.facts().await, facts);
    std::fs::write(gate.path().join("commit"), "").unwrap();
    read_to(&at.client, at.end, &mut worker).await;
    worker.stop();
    assert_eq!(at.facts().await["gaps"], Value::Null);
    assert_lawful(&at.sink.url);
}

/// How many messages were brought in.
fn brought_in(told: &Value) -> u64 {
    told["brought_in"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_another_overtakes_says_so_and_nothing_is_brought_in_twice() {
    let scene = Scene::set().await;
    let at = scene.copy("retry").await;
    let gate = tempfile::tempdir().unwrap();
    let file = gate.path().join("gate");
    let mut slow = at.paused("retry", "retry.judged", &file).await;
    // The other leaves some of it, which is what the slow one is refused.
    let one = (scene.next - 2).to_string();
    let other = at.deployment.verb("dead-letters", &["retry", "--topic", TOPIC, "--offset", &one, "--json"]);
    assert_eq!(brought_in(&serde_json::from_slice(&other.stdout).unwrap()), 1, "{other:?}");
    let facts = at.facts().await;
    std::fs::write(&file, "").unwrap();
    let (status, said) = (slow.ended(), slow.log());
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("another retry of this topic has begun meanwhile"), "{said}");
    assert!(said.contains("run it again"), "{said}");
    assert_eq!(at.facts().await, facts);
    assert_eq!(brought_in(&at.done("retry")), u64::from(RECORDS) - 1);
    at.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_under_a_retry_is_left_out_and_the_rest_is_brought_in() {
    let scene = Scene::set().await;
    let at = scene.copy("retry").await;
    let gate = tempfile::tempdir().unwrap();
    let file = gate.path().join("gate");
    let out = gate.path().join("out");
    let stdout = std::fs::File::create(&out).unwrap();
    let action = format!("retry.judged=pause:{}", file.display());
    let retry = ["retry", "--topic", TOPIC, "--json"];
    let mut slow = at.deployment.start_with("dead-letters", &retry, stdout.into(), &[("FAILPOINTS", &action)]);
    let here = file.with_extension("here");
    wait_until("the retry at its failpoint", LONG, async || here.exists()).await;
    let last = scene.next - 2;
    let drop = ["drop", "--topic", TOPIC, "--offset", &last.to_string(), "--yes"].map(str::to_owned);
    let drop: Vec<&str> = drop.iter().map(String::as_str).collect();
    assert!(at.deployment.verb("dead-letters", &drop).status.success());
    std::fs::write(&file, "").unwrap();
    assert!(slow.ended().success(), "{}", slow.log());
    let told: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
    assert_eq!(brought_in(&told), u64::from(RECORDS) - 1, "{told}");
    let outcome = "SELECT outcome FROM afterimage.dead_letter WHERE \"offset\" = $1";
    let outcome: String = at.client.query_one(outcome, &[&last]).await.unwrap().get(0);
    assert_eq!(outcome, "dropped");
    assert_lawful(&at.sink.url);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reads_all_of_a_dead_letter_but_its_bytes() {
    let scene = Scene::set().await;
    let at = scene.copy("drop").await;
    let junk = scene.next - 1;
    let show = ["show", TOPIC, "--partition", "0", "--offset", &junk.to_string(), "--json"].map(str::to_owned);
    let show: Vec<&str> = show.iter().map(String::as_str).collect();
    let shown = at.deployment.verb("dead-letters", &show);
    let mut shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let time = shown["at"].take();
    let told = "SELECT at = $1::text::timestamptz FROM afterimage.dead_letter WHERE \"offset\" = $2";
    let same: bool = at.client.query_one(told, &[&time.as_str().unwrap(), &junk]).await.unwrap().get(0);
    assert!(same, "{time}");
    let detail = shown["detail"].take();
    assert!(detail.is_string(), "{detail}");
    let wanted = json!({
        "org": "emea", "object": "account", "topic": TOPIC, "partition": 0, "incarnation": 0, "offset": junk, "at": null,
        "reason": "not json", "detail": null, "sfid": null, "key_bytes": null, "value_bytes": "not json 8".len(),
        "cut": false, "resolved_at": null, "outcome": null,
    });
    assert_eq!(shown, wanted);
    assert_eq!(at.done("drop"), json!({ "open": 1, "dropped": 1, "dry_run": false }));
    let shown: Value = serde_json::from_slice(&at.deployment.verb("dead-letters", &show).stdout).unwrap();
    assert_eq!(shown["outcome"], "dropped");
    assert!(shown["resolved_at"].is_string(), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reads_which_partitions_were_resumed() {
    let scene = Scene::set().await;
    let at = scene.copy("resume").await;
    assert_eq!(at.done("resume"), json!({ "topic": TOPIC, "resumed": [0] }));
    assert_eq!(at.done("resume"), json!({ "topic": TOPIC, "resumed": [] }));
    at.assert_whole().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reads_what_would_be_adopted_and_what_was() {
    let scene = Scene::set().await;
    let at = scene.copy("adopt").await;
    let cluster: String = at.client.query_one("SELECT cluster_id FROM afterimage.source", &[]).await.unwrap().get(0);
    let group = at.deployment.group_name();
    let looked = at.deployment.verb("offsets", &["adopt", TOPIC, "--json", "--dry-run"]);
    let looked: Value = serde_json::from_slice(&looked.stdout).unwrap();
    let facts = at.facts().await;
    let done = at.done("adopt");
    let now: String = at.client.query_one("SELECT cluster_id FROM afterimage.source", &[]).await.unwrap().get(0);
    assert_ne!(now, cluster);
    let wanted = json!({
        "topic": TOPIC, "dry_run": false,
        "holder": { "cluster": now, "group": group, "before": { "cluster": cluster, "group": group } },
        "partitions": [{ "partition": 0, "incarnation": 1, "before": scene.next, "first_offset": 0 }],
    });
    assert_eq!(done, wanted);
    let mut planned = wanted;
    planned["dry_run"] = json!(true);
    assert_eq!(looked, planned, "a look says what would be done");
    assert_ne!(at.facts().await, facts);
    assert_eq!(at.done("adopt"), json!({ "topic": TOPIC, "dry_run": false, "holder": null, "partitions": [] }));
    at.assert_whole().await;
}
