//! What a person has to decide, on a real Kafka and a real PostgreSQL: topics that were made anew, partitions that can't be
//! decoded, and the verbs for both.
#![cfg(feature = "java-tests")]

mod support;

use std::process::Output;
use std::time::Duration;

use afterimage::failpoint::DOUBT;
use serde_json::Value;
use support::app::{App, Deployment};
use support::audit::{Ends, assert_same, breaches, caught_up, history};
use support::kafka::Broker;
use support::names::unique;
use support::postgres::{Database, fresh_database};
use support::stream::{Stream, VALUE};
use support::wait::{LONG, let_pass, wait_for};
use tokio_postgres::Client;

/// A sink with its schema, and a deployment that reads `<connector>.emea.*` into it.
struct World {
    broker: &'static Broker,
    connector: String,
    deployment: Deployment,
    client: Client,
    _sink: Database,
}

impl World {
    async fn new() -> World {
        let broker = Broker::shared();
        let connector = unique("calm");
        let sink = fresh_database().await;
        let deployment = Deployment::new(&broker.bootstrap(), &sink, org(&connector));
        deployment.migrate();
        let client = sink.connect().await;
        World { broker, connector, deployment, client, _sink: sink }
    }

    fn topic(&self, table: &str) -> String {
        format!("{}.emea.{table}", self.connector)
    }

    async fn stream(&self, table: &str, partitions: i32) -> Stream {
        let topic = self.topic(table);
        self.broker.create_topic(&topic, partitions).await;
        Stream::on(&self.broker.bootstrap(), &topic, partitions)
    }

    /// The topic is deleted and made again, empty.
    async fn make_anew(&self, stream: &mut Stream) {
        self.broker.delete_topic(&stream.topic).await;
        wait_for("the topic's end", LONG, async || {
            if self.broker.topics().await.contains(&stream.topic) { Err("it is still there") } else { Ok(()) }
        })
        .await;
        let partitions = stream.next.len();
        self.broker.create_topic(&stream.topic, partitions as i32).await;
        stream.next.fill(0);
        stream.grow(&self.broker.bootstrap(), partitions);
    }

    /// Next offsets of present lives.
    async fn next(&self) -> Ends {
        let query = "SELECT topic, partition, next_offset FROM afterimage.positions WHERE live";
        let rows = self.client.query(query, &[]).await.unwrap();
        rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
    }

    async fn read_to(&self, ends: &Ends, worker: &mut App) {
        wait_for("positions at the topics' ends", LONG, async || {
            worker.assert_running();
            let next = self.next().await;
            if ends.iter().all(|(of, end)| next.get(of) == Some(end)) {
                Ok(())
            } else {
                Err(format!("{next:?}, not {ends:?}"))
            }
        })
        .await;
    }

    /// The law L1, for each life of each partition, and L2.
    async fn assert_conserved(&self) {
        let breaches = breaches(&self.client).await;
        assert!(breaches.is_empty(), "{breaches:#?}");
    }

    async fn number(&self, query: &str) -> i64 {
        self.client.query_one(&format!("SELECT ({query})::bigint"), &[]).await.unwrap().get(0)
    }

    /// Runs a verb that must succeed; its output.
    fn done(&self, verb: &str, arguments: &[&str]) -> String {
        let output = self.deployment.verb(verb, arguments);
        assert!(output.status.success(), "{verb} {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, verb: &str, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(verb, &[arguments, &["--json"]].concat())).unwrap()
    }

    /// Waits until so many partitions are said to be halted, by the worker and in the sink.
    async fn halted(&self, worker: &mut App, count: usize) {
        let series = format!("afterimage_task_state{{state=\"halted\"}} {count}");
        wait_for("halted tasks", LONG, async || {
            worker.assert_running();
            let metrics = worker.metrics().await;
            let states = metrics.lines().filter(|line| line.starts_with("afterimage_task_state")).collect::<Vec<_>>();
            if states.contains(&series.as_str()) { Ok(()) } else { Err(states.join("\n")) }
        })
        .await;
        let halts = self.number("SELECT count(*) FROM afterimage.positions WHERE halted_at IS NOT NULL").await;
        assert_eq!(halts, count as i64);
    }
}

fn org(connector: &str) -> String {
    format!("[[org]]\nname = \"emea\"\ntopics = [\"{connector}.emea.*\"]\n")
}

/// (exit code, what it said on stderr)
fn refused(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_halted_longer_or_shorter_until_it_is_adopted() {
    let world = World::new().await;
    let mut longer = world.stream("account", 2).await;
    let mut shorter = world.stream("contact", 1).await;
    let mut old = world.stream("lead", 1).await;
    for stream in [&mut longer, &mut shorter, &mut old] {
        stream.rounds(8, 0..6);
    }
    let mut ends = Ends::new();
    ends.extend([&longer, &shorter, &old].into_iter().flat_map(Stream::ends));
    let mut worker = world.deployment.worker("one");
    world.read_to(&ends, &mut worker).await;
    worker.stop();

    world.make_anew(&mut longer).await;
    longer.rounds(8, 6..24);
    world.make_anew(&mut shorter).await;
    shorter.rounds(8, 6..8);
    old.rounds(8, 6..8);
    assert!(longer.ends().iter().all(|(of, end)| *end > ends[of]), "{:?}", longer.ends());
    ends.extend(old.ends());

    // Those that are as they were go on; the others are not touched.
    let mut worker = world.deployment.worker("one");
    world.read_to(&ends, &mut worker).await;
    world.halted(&mut worker, 3).await;
    assert_eq!(world.next().await, ends);
    let status = world.json("status", &[]);
    for at in status["partitions"].as_array().unwrap() {
        let (topic, halt) = (at["topic"].as_str().unwrap(), at["halt"].as_str());
        let command = format!("`afterimage offsets adopt {topic} --partition {}`", at["partition"]);
        assert_eq!(halt.is_some_and(|halt| halt.contains(&command)), topic != old.topic, "{at}");
        assert_eq!(at["halted_at"].is_string(), topic != old.topic, "{at}");
    }
    let text = world.done("status", &[]);
    assert_eq!(text.matches("\nhalted: ").count(), 3, "{text}");
    let shown = world.json("offsets", &["show"]);
    let logs: Vec<_> = shown["partitions"].as_array().unwrap().iter().map(|at| at["log"].as_str().unwrap()).collect();
    assert_eq!(logs, ["other", "other", "short", "same"]);

    // Looked at, then done, under the worker that waits.
    let told = world.json("offsets", &["adopt", &longer.topic, "--dry-run"]);
    assert_eq!(told["partitions"].as_array().unwrap().len(), 2, "{told}");
    assert_eq!(world.next().await, ends, "nothing has moved");
    for topic in [&longer.topic, &shorter.topic, &old.topic] {
        world.done("offsets", &["adopt", topic]);
    }
    ends.extend([&longer, &shorter].into_iter().flat_map(Stream::ends));
    world.read_to(&ends, &mut worker).await;
    world.halted(&mut worker, 0).await;
    let lives = "SELECT count(*) FROM afterimage.positions WHERE incarnation = 1 AND live";
    assert_eq!(world.number(lives).await, 3, "and the topic that is as it was is left alone");
    assert!(world.done("offsets", &["adopt", &longer.topic]).contains("nothing to adopt"));
    for stream in [&longer, &shorter, &old] {
        let object = stream.topic.rsplit('.').next().unwrap();
        assert_same(&history(&world.client, "emea", object).await, &stream.wanted());
    }
    world.assert_conserved().await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_and_is_gone_is_no_other_topic() {
    let world = World::new().await;
    let mut stream = world.stream("account", 2).await;
    stream.rounds(8, 0..6);
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    worker.stop();
    // Partition 0 has lost all that was read, and a message more; partition 1 only a part of it.
    let (read, other) = (stream.next[0], stream.next[1]);
    stream.rounds(8, 6..12);
    world.broker.delete_before(&stream.topic, 0, read + 1).await;
    world.broker.delete_before(&stream.topic, 1, other - 2).await;
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    let gaps = "SELECT count(*) FROM afterimage.gaps";
    assert_eq!(world.number(gaps).await, 1);
    assert_eq!(world.number("SELECT to_offset - from_offset FROM afterimage.gaps").await, 1);
    world.halted(&mut worker, 0).await;
    world.assert_conserved().await;
    worker.stop();
    // And once more, where all messages are gone and the position stands at the end.
    for partition in 0..2 {
        world.broker.delete_before(&stream.topic, partition, stream.next[partition as usize]).await;
    }
    let mut worker = world.deployment.worker("one");
    stream.rounds(8, 12..14);
    world.read_to(&stream.ends(), &mut worker).await;
    assert_eq!(world.number(gaps).await, 1, "nothing more is missing");
    world.halted(&mut worker, 0).await;
    worker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_cannot_be_decoded_halts_its_partition_and_the_others_go_on() {
    let world = World::new().await;
    let mut stream = world.stream("account", 2).await;
    let mut contact = world.stream("contact", 1).await;
    stream.rounds(8, 0..3);
    contact.rounds(8, 0..3);
    let before = stream.next[0];
    for n in 0..1_700 {
        stream.send(0, Some(format!("{{\"id\":{n}}}").as_bytes()), Some(format!("{VALUE} \u{1} {n}").as_bytes()));
    }
    stream.flush();
    let mut ends = stream.ends();
    ends.extend(contact.ends());
    ends.insert((stream.topic.clone(), 0), before + 1_000);

    let mut worker = world.deployment.worker("one");
    world.read_to(&ends, &mut worker).await;
    world.halted(&mut worker, 1).await;
    assert_eq!(world.number("SELECT count(*) FROM afterimage.dead_letters").await, 1_000);
    assert_eq!(world.number("SELECT sum(events) FROM afterimage.outcomes WHERE outcome = 'dead_letter'").await, 1_000);
    world.assert_conserved().await;
    let shown = world.json("offsets", &["show", "--topic", &stream.topic, "--partition", "0"]);
    let halt = shown["partitions"][0]["halt"].as_str().unwrap();
    for part in ["more than 1,000 messages in a row", "not json", "offsets skip", "offsets resume", "[[org]]"] {
        assert!(halt.contains(part), "{halt}");
    }
    // The others go on, and so they do after a restart, which lifts no halt.
    contact.rounds(8, 3..5);
    ends.extend(contact.ends());
    world.read_to(&ends, &mut worker).await;
    worker.stop();
    let mut worker = world.deployment.worker("two");
    contact.rounds(8, 5..6);
    ends.extend(contact.ends());
    world.read_to(&ends, &mut worker).await;
    world.halted(&mut worker, 1).await;
    assert_eq!(world.next().await, ends);

    world.done("offsets", &["resume", &stream.topic]);
    ends.extend(stream.ends());
    world.read_to(&ends, &mut worker).await;
    world.halted(&mut worker, 0).await;
    assert_eq!(world.number("SELECT count(*) FROM afterimage.dead_letters").await, 1_700);
    assert_same(&history(&world.client, "emea", "account").await, &stream.wanted());
    world.assert_conserved().await;
    worker.stop();
    let log = std::fs::read_to_string(worker.log_file()).unwrap();
    assert!(!log.contains(VALUE));

    // What was put aside can be looked at, and settled.
    let listed = world.json("dead-letters", &["list", "--topic", &stream.topic, "--limit", "3"]);
    assert_eq!((&listed["count"], listed["dead_letters"].as_array().unwrap().len()), (&1_700.into(), 3));
    assert!(!listed.to_string().contains(VALUE));
    let first = before.to_string();
    let one = ["show", &stream.topic, "--partition", "0", "--offset", &first];
    assert!(!world.done("dead-letters", &one).contains(VALUE), "bytes are shown to whoever asks for them");
    assert_eq!(world.done("dead-letters", &[&one[..], &["--value"]].concat()), format!("{VALUE} \u{1} 0"));
    let drop = ["drop", "--topic", &stream.topic, "--partition", "0", "--offset", &first];
    let (code, said) = refused(&world.deployment.verb("dead-letters", &drop));
    assert!(code == 2 && said.contains("--yes"), "{code} {said}");
    assert_eq!(
        refused(&world.deployment.verb("dead-letters", &["drop", "--yes"])).0,
        2,
        "of all, only if that is said"
    );
    assert_eq!(world.json("dead-letters", &[&drop[..], &["--dry-run"]].concat())["open"], 1);
    let open = "SELECT count(*) FROM afterimage.dead_letters WHERE resolved_at IS NULL";
    assert_eq!(world.number(open).await, 1_700);
    assert_eq!(world.json("dead-letters", &[&drop[..], &["--yes"]].concat())["dropped"], 1);
    assert_eq!(world.number(open).await, 1_699);
    assert_eq!(world.json("dead-letters", &["drop", "--all", "--yes"])["dropped"], 1_699);
    let dropped = "SELECT count(*) FROM afterimage.dead_letters WHERE outcome = 'dropped'";
    assert_eq!(world.number(dropped).await, 1_700, "the rows stay");
    world.assert_conserved().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skip_is_a_gap_and_nobodys_partition_is_pulled_away() {
    let world = World::new().await;
    let mut stream = world.stream("account", 1).await;
    stream.rounds(8, 0..3);
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    let read = stream.next[0];
    let topic = stream.topic.clone();
    let skip = |to: i64| {
        let to = to.to_string();
        world
            .deployment
            .verb("offsets", &["skip", &topic, "--partition", "0", "--to", &to, "--yes", "--reason", "a test"])
    };
    let (code, said) = refused(&skip(read));
    assert!(code == 4 && said.contains("worker one holds it"), "{code} {said}");
    worker.stop();
    let (code, said) = refused(&skip(read + 1));
    assert!(code == 2 && said.contains(&format!("the log ends at {read}")), "{code} {said}");
    let (code, said) = refused(&skip(read - 1));
    assert!(code == 2 && said.contains("offsets reset"), "{code} {said}");
    for n in 0..5 {
        stream.send(0, None, Some(format!("{VALUE} {n}").as_bytes()));
    }
    stream.flush();
    let ask = ["skip", &topic, "--partition", "0", "--to", &(read + 5).to_string()].map(str::to_owned);
    let ask: Vec<&str> = ask.iter().map(String::as_str).collect();
    assert_eq!(refused(&world.deployment.verb("offsets", &ask)).0, 2, "nobody has confirmed it");
    assert_eq!(world.json("offsets", &[&ask[..], &["--dry-run"]].concat())["skipped"], 5);
    assert_eq!(world.next().await[&(topic.clone(), 0)], read);
    let output = skip(read + 5);
    assert!(output.status.success(), "{output:?}");
    let gap = world.client.query_one("SELECT from_offset, to_offset, reason FROM afterimage.gaps", &[]).await.unwrap();
    assert_eq!((gap.get(0), gap.get(1), gap.get(2)), (read, read + 5, "skipped by hand: a test"));
    world.assert_conserved().await;
    stream.rounds(8, 3..5);
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    assert_eq!(world.number("SELECT count(*) FROM afterimage.dead_letters").await, 0);
    assert_same(&history(&world.client, "emea", "account").await, &stream.wanted());
    worker.stop();

    // Going back is explained, not done.
    let back = ["reset", &topic, "--partition", "0", "--to", "earliest"];
    let told = world.json("offsets", &[&back[..], &["--dry-run"]].concat());
    assert_eq!((&told["read_again"], &told["possible"]), (&stream.next[0].into(), &false.into()));
    let (code, said) = refused(&world.deployment.verb("offsets", &back));
    assert!(code == 4 && said.contains("offsets adopt") && said.contains("Nothing was changed"), "{code} {said}");
    assert_eq!(world.next().await, stream.ends());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_group_may_take_a_topic_over_when_it_says_so() {
    let world = World::new().await;
    let mut stream = world.stream("account", 1).await;
    stream.rounds(8, 0..3);
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    let others = Deployment::new(&world.broker.bootstrap(), &world._sink, org(&world.connector)).group("another");
    let (code, said) = refused(&others.run_to_end("two"));
    let command = format!("`afterimage offsets adopt {}`", stream.topic);
    assert!(code == 4 && said.contains(&command) && said.contains(" since 20"), "{code} {said}");
    let (code, said) = refused(&others.verb("offsets", &["adopt", &stream.topic]));
    assert!(code == 4 && said.contains("worker one holds it"), "{code} {said}");
    worker.stop();
    let output = others.verb("offsets", &["adopt", &stream.topic]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.number("SELECT count(*) FROM afterimage.positions").await, 1, "its log is the one that was read");
    stream.rounds(8, 3..5);
    let mut worker = others.worker("two");
    world.read_to(&stream.ends(), &mut worker).await;
    assert_same(&history(&world.client, "emea", "account").await, &stream.wanted());
    worker.stop();
    assert_eq!(refused(&world.deployment.run_to_end("one")).0, 4, "and now it is the other's");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_brought_in_once_beside_a_worker() {
    let world = World::new().await;
    let servers = world.broker.bootstrap();
    // Other topics, to have messages of other times made for the same records; they are not read.
    let aside = unique("aside");
    let mut older = Stream::on(&servers, &format!("{aside}.emea.older"), 1);
    let mut newer = Stream::on(&servers, &format!("{aside}.emea.newer"), 1);
    for stream in [&older, &newer] {
        world.broker.create_topic(&stream.topic, 1).await;
    }
    older.rounds(2, 0..1);
    newer.apart = 300_000;
    newer.rounds(3, 0..1);
    let mut stream = world.stream("account", 1).await;
    stream.rounds(2, 0..2);
    let first = stream.next[0];
    for n in 0..6 {
        stream.send(0, None, Some(format!("{VALUE} {n}").as_bytes()));
    }
    stream.flush();
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;

    // As if this program had learned to read five of them: the newest first, and two that are older than their records.
    let mut messages = world.broker.read_all(&newer.topic).await;
    messages.reverse();
    messages.extend(world.broker.read_all(&older.topic).await);
    for (n, message) in messages.iter().enumerate() {
        let set = "UPDATE afterimage.dead_letter SET key = $2, value = $3 WHERE \"offset\" = $1";
        let offset = first + n as i64;
        assert_eq!(world.client.execute(set, &[&offset, &message.key, &message.value]).await.unwrap(), 1);
    }
    let retry = ["retry", "--topic", &stream.topic];
    let looked = world.json("dead-letters", &[&retry[..], &["--dry-run"]].concat());
    assert_eq!((&looked["brought_in"]["decoded"], &looked["still_undecodable"]["not json"]), (&5.into(), &1.into()));
    assert_eq!(world.number("SELECT count(*) FROM afterimage.dead_letters WHERE resolved_at IS NOT NULL").await, 0);

    // The newest of its record first, by itself: what comes in another run is late, and not taken for a repetition.
    let newest = (first + 2).to_string();
    let done = world.json("dead-letters", &[&retry[..], &["--offset", &newest]].concat());
    assert_eq!(done["brought_in"], serde_json::json!({ "delta": 1 }), "{done}");
    let done = world.json("dead-letters", &retry);
    assert_eq!(done["brought_in"], serde_json::json!({ "delta": 2, "stale": 2 }), "{done}");
    let again = world.json("dead-letters", &["retry", "--all"]);
    assert_eq!((&again["brought_in"], &again["still_undecodable"]["not json"]), (&serde_json::json!({}), &1.into()));
    let outcomes = "SELECT string_agg(outcome || ' ' || \"offset\" - $1, ', ' ORDER BY \"offset\") FROM afterimage.dead_letters \
                    WHERE resolved_at IS NOT NULL";
    let outcomes: String = world.client.query_one(outcomes, &[&first]).await.unwrap().get(0);
    assert_eq!(outcomes, "delta 0, delta 1, delta 2, stale 3, stale 4");
    assert_eq!(world.number("SELECT count(*) FROM afterimage.late_events").await, 2);
    let brought = "SELECT count(*) FROM afterimage.changes WHERE topic LIKE '% (retry)'";
    assert_eq!(world.number(brought).await, 3);

    // The worker takes its records back, and goes on from what was brought in.
    stream.apart = 1_000_000;
    stream.rounds(2, 2..5);
    world.read_to(&stream.ends(), &mut worker).await;
    world.assert_conserved().await;
    let rows = world.client.query("SELECT sfid, image FROM afterimage.records ORDER BY 1", &[]).await.unwrap();
    let found: Vec<(String, Value)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut wanted = stream.images();
    wanted.insert(support::stream::sfid(3), newer.images().remove(&support::stream::sfid(3)).unwrap());
    assert_eq!(found, wanted.into_iter().collect::<Vec<_>>());
    worker.stop();
    assert!(!std::fs::read_to_string(worker.log_file()).unwrap().contains(VALUE));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_store_at_rest_can_be_looked_into_compared_and_thrown_away() {
    let world = World::new().await;
    let mut stream = world.stream("account", 2).await;
    stream.rounds(9, 0..4);
    let dir = world.deployment.state_dir("one");
    let dir = dir.to_str().unwrap();
    let there = |verb: &'static str| [verb, "--state-dir", dir];
    let empty = world.json("state", &there("inspect"));
    assert_eq!(empty["positions"], serde_json::json!([]));
    assert!(!std::path::Path::new(dir).exists(), "looking makes nothing");
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    for verb in ["inspect", "verify", "clear"] {
        let (code, said) = refused(&world.deployment.verb("state", &there(verb)));
        assert!(code == 1 && said.contains("is in use by another process"), "{verb}: {code} {said}");
    }
    worker.stop();
    let held = world.json("state", &there("inspect"));
    let sum = |of: &str| held["positions"].as_array().unwrap().iter().map(|one| one[of].as_i64().unwrap()).sum::<i64>();
    assert_eq!((sum("images"), sum("row_keys"), sum("next_offset")), (9, 9, stream.next.iter().sum::<i64>()));
    let verified = world.json("state", &[&there("verify")[..], &["--all"]].concat());
    assert_eq!((&verified["compared"], &verified["different"]), (&9.into(), &0.into()), "{verified}");
    assert!(verified["positions"].as_array().unwrap().iter().all(|one| one["state"] == "level"), "{verified}");

    // Whatever differs is found, and a value is never shown.
    let spoil = "UPDATE afterimage.delta SET d = overlay(d placing '\\x7a'::bytea from length(d) for 1) \
                 WHERE rid = (SELECT min(rid) FROM afterimage.record)";
    assert!(world.client.execute(spoil, &[]).await.unwrap() > 0);
    let output = world.deployment.verb("state", &there("verify"));
    let (code, said) = refused(&output);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(code == 1 && said.contains("1 of 9 images are not what the sink says"), "{code} {said} {shown}");
    assert!(shown.contains("differs") && !shown.contains(VALUE), "{shown}");

    assert_eq!(world.json("state", &[&there("clear")[..], &["--dry-run"]].concat())["positions"], 2);
    assert_eq!(world.json("state", &there("inspect"))["positions"].as_array().unwrap().len(), 2);
    world.done("state", &there("clear"));
    assert_eq!(world.json("state", &there("inspect"))["positions"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_under_a_worker_is_halted_longer_or_shorter_until_it_is_adopted() {
    let world = World::new().await;
    let mut longer = world.stream("account", 1).await;
    let mut shorter = world.stream("lead", 1).await;
    let mut contact = world.stream("contact", 1).await;
    longer.rounds(8, 0..6);
    shorter.rounds(8, 0..6);
    contact.rounds(8, 0..2);
    let mut worker = world.deployment.worker("one");
    let mut ends = longer.ends();
    ends.extend(shorter.ends());
    ends.extend(contact.ends());
    world.read_to(&ends, &mut worker).await;
    world.make_anew(&mut longer).await;
    longer.rounds(8, 6..24);
    world.make_anew(&mut shorter).await;
    shorter.rounds(8, 6..8);
    world.halted(&mut worker, 2).await;
    contact.rounds(8, 2..4);
    ends.extend(contact.ends());
    world.read_to(&contact.ends(), &mut worker).await;
    let halted = world.next().await;
    assert!(shorter.ends().keys().all(|of| halted[of] == ends[of]), "{halted:?}, not {ends:?}");
    assert_eq!(world.number("SELECT count(*) FROM afterimage.gaps").await, 0, "none of it is taken for a gap");
    for (stream, log) in [(&longer, "other"), (&shorter, "short")] {
        let shown = world.json("offsets", &["show", "--topic", &stream.topic]);
        assert_eq!(shown["partitions"][0]["log"], log, "{shown}");
        let halt = shown["partitions"][0]["halt"].as_str().unwrap();
        assert!(halt.contains(&format!("`afterimage offsets adopt {}", stream.topic)), "{halt}");
        world.done("offsets", &["adopt", &stream.topic]);
        ends.extend(stream.ends());
    }
    world.read_to(&ends, &mut worker).await;
    // What was read of the longer one before it was noticed makes what stands before it late.
    caught_up(&world.client, &Ends::new(), &mut [&mut worker]).await;
    world.halted(&mut worker, 0).await;
    for stream in [&longer, &shorter, &contact] {
        let object = stream.topic.rsplit('.').next().unwrap();
        assert_same(&history(&world.client, "emea", object).await, &stream.wanted());
    }
    worker.stop();
}

/// Dead before it has told the sink, which knows the new log's last message already: the next worker looks at what this one
/// had looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_under_a_worker_that_dies_is_halted_by_the_next_one() {
    let world = World::new().await;
    let mut stream = world.stream("account", 2).await;
    stream.rounds(8, 0..6);
    let dir = tempfile::tempdir().unwrap();
    let action = format!("{}=pause:{}", DOUBT.0, dir.path().join("never").display());
    let mut worker = world.deployment.worker_with("one", &[("FAILPOINTS", &action)]);
    world.read_to(&stream.ends(), &mut worker).await;
    wait_for("what the logs are known by", LONG, async || {
        let pins = world.number("SELECT count(pin_offset) FROM afterimage.position").await;
        if pins == 2 { Ok(()) } else { Err(format!("{pins} of 2")) }
    })
    .await;
    // It finds the new log where the old one was, and as long.
    worker.signal(libc::SIGSTOP);
    world.make_anew(&mut stream).await;
    stream.rounds(8, 6..24);
    worker.signal(libc::SIGCONT);
    world.read_to(&stream.ends(), &mut worker).await;
    worker.kill9();
    let mut next = world.deployment.worker("two");
    world.halted(&mut next, 2).await;
    world.done("offsets", &["adopt", &stream.topic]);
    world.read_to(&stream.ends(), &mut next).await;
    caught_up(&world.client, &Ends::new(), &mut [&mut next]).await;
    world.halted(&mut next, 0).await;
    assert_same(&history(&world.client, "emea", "account").await, &stream.wanted());
    next.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_drops_under_a_worker_before_it_is_read_is_a_gap() {
    let world = World::new().await;
    let mut stream = world.stream("account", 2).await;
    stream.rounds(8, 0..3);
    let mut worker = world.deployment.worker("one");
    world.read_to(&stream.ends(), &mut worker).await;
    // What is dropped would be dead letters if anybody read it. A fetch that is under way when the worker is stopped may
    // bring it in all the same: then once more.
    let gaps = "SELECT count(*) FROM afterimage.gaps";
    let (mut read, mut rounds) = (stream.next[0], 3);
    while world.number(gaps).await == 0 {
        assert!(rounds < 10, "it is never late:\n{}", worker.log());
        read = stream.next[0];
        worker.signal(libc::SIGSTOP);
        // As long as the broker keeps a fetch.
        let_pass(Duration::from_secs(1)).await;
        for n in 0..7 {
            stream.send(0, None, Some(format!("{VALUE} {n}").as_bytes()));
        }
        stream.flush();
        world.broker.delete_before(&stream.topic, 0, read + 7).await;
        stream.rounds(8, rounds..rounds + 1);
        rounds += 1;
        worker.signal(libc::SIGCONT);
        world.read_to(&stream.ends(), &mut worker).await;
    }
    let query = "SELECT topic, partition, from_offset, to_offset, reason FROM afterimage.gaps";
    let gap = world.client.query_one(query, &[]).await.unwrap();
    assert_eq!((gap.get::<_, &str>(0), gap.get(1)), (&*stream.topic, 0));
    assert_eq!(
        (gap.get(2), gap.get(3), gap.get::<_, &str>(4)),
        (read, read + 7, "the broker dropped them before they were read")
    );
    assert_eq!(world.number("SELECT sum(events) FROM afterimage.outcomes WHERE outcome = 'gap'").await, 7);
    let log = worker.log();
    for part in ["the broker does not deliver", "gap: offsets were gone before they were read"] {
        assert!(log.contains(part), "{part}:\n{log}");
    }
    world.halted(&mut worker, 0).await;
    assert_same(&history(&world.client, "emea", "account").await, &stream.wanted());
    world.assert_conserved().await;
    worker.stop();
}
