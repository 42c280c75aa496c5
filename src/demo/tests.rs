//! What is left of a demo that is ended: nothing, however it is ended. The product is played by a script here.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

/// Set in the copy of the test binary that plays the demo that is going to be ended: the script to use as product.
const PLAY_DEMO: &str = "AFTERIMAGE_TEST_PLAY_DEMO";

/// `migrate` makes the one view that the feed asks; `run` tells its process id and never commits anything.
const PRODUCT: &str = r#"#!/bin/sh
case "$1" in
migrate)
  psql=$(command -v psql || ls -d /usr/lib/postgresql/*/bin/psql | tail -1)
  exec "$psql" -q -c "create schema afterimage create table positions(topic text, partition int, next_offset bigint)" "$3" ;;
run) trap 'exit 0' TERM; echo "worker $$"; while :; do sleep 0.05; done ;;
esac
"#;

fn await_fact<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = fact() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next()).is_none_or(|state| state == 'Z')
}

fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))).collect()
}

/// A demo in a process of its own, far enough that everything runs.
struct Played {
    temp: ScratchDir,
    demo: Child,
    /// Two workers and the server.
    children: Vec<u32>,
}

impl Played {
    fn start() -> Played {
        let temp = ScratchDir::create("afterimage-test-demo").unwrap();
        let product = temp.path().join("product");
        fs::write(&product, PRODUCT).unwrap();
        fs::set_permissions(&product, fs::Permissions::from_mode(0o755)).unwrap();
        let demo = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "demo::tests::play_the_demo", "--nocapture"])
            .env(PLAY_DEMO, &product)
            .env("TMPDIR", temp.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let worker = |number: u8| {
            await_fact("a worker's first words", || {
                let dir = entries(temp.path(), PREFIX).pop()?;
                let log = fs::read_to_string(dir.join(format!("worker-{number}.log"))).ok()?;
                log.lines().find_map(|line| line.strip_prefix("worker ")?.parse().ok())
            })
        };
        let mut children = vec![worker(1), worker(2)];
        let server = entries(temp.path(), postgres::PREFIX).pop().unwrap();
        let pid_file = fs::read_to_string(server.join("data/postmaster.pid")).unwrap();
        children.push(pid_file.lines().next().unwrap().parse().unwrap());
        assert!(children.iter().all(|pid| !is_gone(*pid)));
        Played { temp, demo, children }
    }

    fn assert_nothing_is_left(&self) {
        for pid in &self.children {
            await_fact("a child is gone", || is_gone(*pid).then_some(()));
        }
        await_fact("the directories are gone", || entries(self.temp.path(), "afterimage-").is_empty().then_some(()));
    }

    fn said(&mut self) -> String {
        let mut said = String::new();
        self.demo.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        said
    }
}

#[test]
fn nothing_is_left_of_an_interrupted_demo() {
    for number in [libc::SIGINT, libc::SIGTERM] {
        let mut played = Played::start();
        child::signal(&played.demo, number).unwrap();
        assert!(played.said().contains("ended: interrupted"));
        played.demo.wait().unwrap();
        // Already now, not some time after.
        assert!(played.children.iter().all(|pid| is_gone(*pid)));
        assert!(entries(played.temp.path(), "afterimage-").is_empty());
    }
}

#[test]
fn nothing_is_left_of_a_killed_demo() {
    let mut played = Played::start();
    played.demo.kill().unwrap(); // SIGKILL
    played.demo.wait().unwrap();
    played.assert_nothing_is_left();
}

/// Stand-ins for the public views over a table that the worker below writes.
const VIEWS: &str = r#"
create schema afterimage; create schema emea_history;
set search_path = afterimage;
create table positions(topic text, partition int, incarnation int default 0, first_offset bigint default 0, next_offset bigint, epoch int default 1, worker text default 'demo-1', primary key(topic, partition));
create view outcomes as select topic, partition, incarnation, 'noop' as outcome, 'identical' as reason, next_offset as events from positions;
create table changes(org text, object text, sfid text, seq int, op text, at timestamptz, changes jsonb);
create table records(org text, object text, sfid text, status text, seq int, image jsonb);
create table dead_letters(); create table gaps(); create table late_events(org text, object text, sfid text, settled_at timestamptz);
create table record(rid int primary key); create table keyframe(rid int primary key);
create table delta(at timestamptz) partition by range(at);
create table emea_history.account(name text, sfid text, score__c float8, external_id__c text, id int);
"#;

/// Set in the copy of the test binary that plays a worker: its configuration file.
const PLAY_WORKER: &str = "AFTERIMAGE_TEST_PLAY_WORKER";

#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_lost_on_the_way_to_a_worker() {
    let dir = ScratchDir::create("afterimage-test-feed").unwrap();
    let (product, views) = (dir.path().join("product"), dir.path().join("views.sql"));
    fs::write(&views, VIEWS).unwrap();
    let script = format!(
        r#"#!/bin/sh
case "$1" in
migrate)
  psql=$(command -v psql || ls -d /usr/lib/postgresql/*/bin/psql | tail -1)
  exec "$psql" -q -v ON_ERROR_STOP=1 -f '{}' "$3" ;;
run) {PLAY_WORKER}="$3" exec '{}' --exact demo::tests::play_the_worker --nocapture ;;
esac
"#,
        views.display(),
        std::env::current_exe().unwrap().display()
    );
    fs::write(&product, script).unwrap();
    fs::set_permissions(&product, fs::Permissions::from_mode(0o755)).unwrap();
    // With schema blocks, more bytes per partition than the broker keeps.
    let options = DemoOptions { events: Some(12_000), workers: 1, json: true, ..DemoOptions::default() };
    let report = run(options, WorkerCommand { program: product }, 100).await.unwrap();
    assert!(report.conservation.broken.is_empty(), "{report}");
    assert_eq!(report.conservation.messages, report.emitted.messages as i64);
    assert!(!report.ok(), "this worker stores no history, and the report must say so");
}

/// Not a test by itself: a worker that reads everything, stores nothing but its positions, and ends if an offset is
/// missing; a no-op without its variable.
#[tokio::test(flavor = "multi_thread")]
async fn play_the_worker() {
    use rdkafka::Message as _;
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use std::collections::BTreeMap;

    let Some(config) = std::env::var_os(PLAY_WORKER) else { return };
    let config: toml::Table = fs::read_to_string(config).unwrap().parse().unwrap();
    let sink = Sink::connect(config["postgres"]["url"].as_str().unwrap()).await.unwrap();
    // As a worker claims: from now on these are this one's.
    sink.client().batch_execute("update afterimage.positions set epoch = epoch + 1").await.unwrap();
    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", config["kafka"]["brokers"].as_str().unwrap())
        .set("group.id", "played")
        .create()
        .unwrap();
    let committed = sink.committed().await.unwrap().into_iter();
    let mut next: BTreeMap<(String, i32), i64> =
        committed.map(|((topic, partition), next)| ((topic.to_string(), partition), next)).collect();
    let mut assignment = rdkafka::TopicPartitionList::new();
    for topic in consumer.fetch_metadata(None, Duration::from_secs(30)).unwrap().topics() {
        for partition in topic.partitions() {
            let begin = *next.entry((topic.name().to_string(), partition.id())).or_default();
            let offset = rdkafka::Offset::Offset(begin);
            assignment.add_partition_offset(topic.name(), partition.id(), offset).unwrap();
        }
    }
    consumer.assign(&assignment).unwrap();
    let mut uncommitted = 0;
    loop {
        let message = consumer.poll(Duration::from_millis(20));
        if let Some(message) = &message {
            let message = message.as_ref().unwrap();
            let expected = next.entry((message.topic().to_string(), message.partition())).or_default();
            assert_eq!(message.offset(), *expected, "{}/{}", message.topic(), message.partition());
            *expected += 1;
            uncommitted += 1;
        }
        // Slowly enough that the feed has to wait.
        if uncommitted >= 2_000 || (message.is_none() && uncommitted > 0) {
            for ((topic, partition), next) in &next {
                let upsert = "insert into afterimage.positions(topic, partition, next_offset) values ($1, $2, $3) \
                              on conflict (topic, partition) do update set next_offset = excluded.next_offset";
                sink.client().execute(upsert, &[topic, partition, next]).await.unwrap();
            }
            uncommitted = 0;
        }
    }
}

/// Not a test by itself: the demo that the tests above end, a no-op without them.
#[tokio::test(flavor = "multi_thread")]
async fn play_the_demo() {
    let Some(program) = std::env::var_os(PLAY_DEMO) else { return };
    let options = DemoOptions { events: Some(20_000), ..DemoOptions::default() };
    let error = run(options, WorkerCommand { program: program.into() }, 100).await.unwrap_err();
    println!("ended: {error:#}");
}
