//! A disk that is full, under a worker's image store and under PostgreSQL: what has to stop stops and says why, nothing is
//! lost, and it goes on by itself when there is room.
//!
//! Each test runs once more as a child, in a mount namespace of its own, with a small file system in it that nobody else
//! sees and that goes with the child. It is really full: the ballast is written until the system says ENOSPC.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use afterimage::demo::child::{self, LastSignal};
use afterimage::kafka::EmbeddedBroker;
use afterimage::telemetry::names;
use support::app::{App, Deployment};
use support::audit::{assert_conserved, assert_same, caught_up, history, positions};
use support::names::unique;
use support::postgres::{Database, fresh_database, shared};
use support::stream::Stream;
use support::wait::{LONG, wait_for};
use tokio_postgres::Client;

/// Where the child finds its disk.
const DISK: &str = "AFTERIMAGE_TEST_SMALL_DISK";
/// The child's exit code when there is no disk.
const NO_DISK: i32 = 77;

/// The small disk, in the child; `None` in the parent, for which the child has done it all.
///
/// # Panics
/// When the child fails, or may not mount.
fn on_a_small_disk(test: &str, megabytes: u32) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = format!("mount -t tmpfs -o size={megabytes}m,mode=0755 tmpfs \"$0\" || exit {NO_DISK}\n");
    let user = fs::metadata(dir.path()).unwrap();
    let mut command = Command::new("unshare");
    if child::is_root() {
        command.args(["--mount", "sh", "-c"]).arg(mount + "exec \"$@\"");
    } else {
        // Root of a namespace of its own may mount; then ourselves again, for PostgreSQL does not run as root.
        let own = format!("exec unshare --user --map-user={} --map-group={} \"$@\"", user.uid(), user.gid());
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]).arg(mount + &own);
    }
    command.arg(dir.path()).arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
    command.env(DISK, dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = child::spawn_bound(command, LastSignal::Kill).expect("unshare, of util-linux, can be run");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() != Some(NO_DISK) && !said.contains("unshare failed"),
        "this test mounts a small tmpfs in a mount namespace of its own: it needs root with CAP_SYS_ADMIN, or user \
         namespaces (`sysctl kernel.unprivileged_userns_clone=1`, or a container that allows them):\n{said}"
    );
    assert!(output.status.success(), "{}:\n{said}", output.status);
    assert!(said.contains("1 passed"), "{test} was not run:\n{said}");
    None
}

/// What fills a disk.
struct Ballast(PathBuf);

impl Ballast {
    /// Fills it to the last byte.
    fn fill(disk: &Path) -> Ballast {
        let path = disk.join("ballast");
        let mut file = File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            let piece = vec![1; size];
            let full = loop {
                if let Err(error) = file.write_all(&piece) {
                    break error;
                }
            };
            assert_eq!(full.raw_os_error(), Some(libc::ENOSPC), "{full}");
        }
        Ballast(path)
    }

    fn remove(self) {
        fs::remove_file(self.0).unwrap();
    }
}

fn org(topics: &str) -> String {
    format!("[[org]]\nname = \"emea\"\ntopics = [\"{topics}\"]\n")
}

/// A small image store in that directory.
fn small_store(dir: &Path) -> [(&str, &str); 2] {
    [("AFTERIMAGE_STATE__DIR", dir.to_str().unwrap()), ("AFTERIMAGE_STATE__MEMORY", "16MB")]
}

/// How often the log says it.
fn times(app: &App, text: &str) -> usize {
    app.log().lines().filter(|line| line.contains(text)).count()
}

/// The value of a metric without labels, or with these.
async fn metric(app: &mut App, series: &str) -> f64 {
    let metrics = app.metrics().await;
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{metrics}")).parse().unwrap()
}

/// Waits for an answer of `/readyz`.
async fn answers(app: &mut App, status: u16, text: &str) {
    wait_for(&format!("{status} {text:?} of /readyz"), LONG, async || {
        let answer = app.get("/readyz").await;
        let right = answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text);
        if right { Ok(()) } else { Err(answer) }
    })
    .await;
}

/// Writes rounds, as fast as they are committed, until the worker says this; the next round.
async fn write_until(
    app: &mut App,
    client: &Client,
    stream: &mut Stream,
    records: u32,
    rounds: u32,
    text: &str,
) -> u32 {
    let mut round = 3;
    wait_for(&format!("{text:?} in the log"), LONG, async || {
        app.assert_running();
        if times(app, text) > 0 {
            return Ok(round);
        }
        if positions(client).await == stream.ends() {
            stream.rounds(records, round..round + rounds);
            round += rounds;
        }
        Err(format!("{round} rounds were written"))
    })
    .await
}

/// The first line with this text says all of that.
fn says(app: &App, text: &str, all: &[&str]) {
    let log = app.log();
    let line = log.lines().find(|line| line.contains(text)).unwrap();
    for said in all {
        assert!(line.contains(said), "{said:?} is not in {line}");
    }
}

const STORE_FULL: &str = "the disk of the image store is full";
const ROOM_AGAIN: &str = "there is room on the disk of the image store again";
const AWAY: &str = "what it needs for that is away";
const SINK_FULL: &str = "the sink's disk is full";

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_disk_is_full_hands_over_and_comes_back_when_there_is_room() {
    let test = "a_worker_whose_disk_is_full_hands_over_and_comes_back_when_there_is_room";
    let Some(disk) = on_a_small_disk(test, 48) else { return };
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let deployment = Deployment::new(&broker.servers(), &sink, org("calm.emea.*"));
    deployment.migrate();
    let client = sink.connect().await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 4);
    stream.rounds(400, 0..3);

    let state = disk.join("state");
    let mut one = deployment.worker_with("one", &small_store(&state));
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    answers(&mut one, 200, "\"claimed\":4").await;
    let ballast = Ballast::fill(&disk);
    // What RocksDB has reserved for its log is still to be had.
    let round = write_until(&mut one, &client, &mut stream, 400, 3, STORE_FULL).await;
    says(&one, STORE_FULL, &[state.to_str().unwrap(), "No space left on device", "Free 8 MiB under that directory"]);
    answers(&mut one, 503, STORE_FULL).await;
    assert!(one.get("/healthz").await.starts_with("HTTP/1.1 200"), "there is nothing that a restart would mend");
    assert_eq!(metric(&mut one, names::STATE_DISK_FULL).await, 1.0);
    assert_eq!(metric(&mut one, &format!("{}{{state=\"running\"}}", names::TASKS)).await, 0.0);
    let metrics = one.metrics().await;
    let lags: Vec<&str> = metrics.lines().filter(|line| line.starts_with(names::LAG)).collect();
    assert!(lags.len() == 4 && lags.iter().all(|line| line.ends_with(" 0")), "{lags:?}");
    // Nobody reads now.
    stream.rounds(400, round..round + 3);
    assert_ne!(positions(&client).await, stream.ends());

    let mut two = deployment.worker("two");
    caught_up(&client, &stream.ends(), &mut [&mut one, &mut two]).await;
    answers(&mut two, 200, "\"claimed\":4").await;
    assert_eq!((times(&one, STORE_FULL), times(&one, ROOM_AGAIN)), (1, 0), "{}", one.log());

    ballast.remove();
    one.wait_for_log(ROOM_AGAIN).await;
    answers(&mut one, 200, "\"claimed\":2").await;
    assert_eq!(metric(&mut one, names::STATE_DISK_FULL).await, 0.0);
    stream.rounds(400, round + 3..round + 6);
    caught_up(&client, &stream.ends(), &mut [&mut one, &mut two]).await;
    // Alone again, it judges by what its store has kept of before and by what others have written since.
    two.stop();
    answers(&mut one, 200, "\"claimed\":4").await;
    stream.rounds(400, round + 6..round + 9);
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    one.stop();
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_on_a_full_disk_waits_and_stops_when_it_is_asked_to() {
    let test = "a_worker_that_starts_on_a_full_disk_waits_and_stops_when_it_is_asked_to";
    let Some(disk) = on_a_small_disk(test, 48) else { return };
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let deployment = Deployment::new(&broker.servers(), &sink, org("calm.emea.*"));
    deployment.migrate();
    let client = sink.connect().await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(100, 0..3);
    let state = disk.join("state");
    // A store that is there is opened on a full disk, and one is made there.
    for begun in [false, true] {
        if begun {
            let mut one = deployment.worker_with("one", &small_store(&state));
            caught_up(&client, &stream.ends(), &mut [&mut one]).await;
            one.kill9();
            stream.rounds(100, 3..6);
        }
        let ballast = Ballast::fill(&disk);
        let mut one = deployment.worker_with("one", &small_store(&state));
        one.wait_for_log(STORE_FULL).await;
        answers(&mut one, 503, STORE_FULL).await;
        one.stop();
        assert_eq!(times(&one, ROOM_AGAIN), 0);
        let mut one = deployment.worker_with("one", &small_store(&state));
        one.wait_for_log(STORE_FULL).await;
        if begun {
            // What is in it may be thrown away meanwhile: that, too, makes room.
            let cleared = deployment.verb("state", &["clear", "--state-dir", state.to_str().unwrap()]);
            assert!(cleared.status.success(), "{cleared:?}");
            assert!(!state.join("images").exists());
        }
        ballast.remove();
        one.wait_for_log(ROOM_AGAIN).await;
        caught_up(&client, &stream.ends(), &mut [&mut one]).await;
        one.stop();
    }
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;
}

/// Lets nobody into a database any more, or again.
async fn admit(sink: &Database, admit: bool) {
    let admin = support::postgres::connect(&shared().url("postgres")).await;
    admin.batch_execute(&format!("ALTER DATABASE {} ALLOW_CONNECTIONS {admit}", sink.name)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_begins_anew_waits_for_sink_and_broker_where_a_first_start_fails() {
    let test = "a_worker_that_begins_anew_waits_for_sink_and_broker_where_a_first_start_fails";
    let Some(disk) = on_a_small_disk(test, 48) else { return };
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let deployment = Deployment::new(&broker.servers(), &sink, org("calm.emea.*"));
    deployment.migrate();
    let client = sink.connect().await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(50, 0..3);
    let ballast = Ballast::fill(&disk);
    let mut one = deployment.worker_with("one", &small_store(&disk.join("state")));
    one.wait_for_log(STORE_FULL).await;

    admit(&sink, false).await;
    ballast.remove();
    one.wait_for_log(ROOM_AGAIN).await;
    one.wait_for_log(AWAY).await;
    says(&one, AWAY, &["is not currently accepting connections"]);
    answers(&mut one, 503, "waiting to begin anew").await;
    assert_eq!(deployment.run_to_end("two").status.code(), Some(1));
    broker.set_reachable(false);
    admit(&sink, true).await;
    answers(&mut one, 503, "waiting to begin anew: no answer from Kafka").await;
    assert_eq!(deployment.run_to_end("two").status.code(), Some(1));
    one.assert_running();
    broker.set_reachable(true);
    answers(&mut one, 200, "\"claimed\":2").await;
    // With a new client: the old one does not get over it.
    stream.grow(&broker.servers(), 2);
    stream.rounds(50, 3..6);
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;
    one.stop();
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;
}

/// A database whose tables lie on that disk.
async fn database_on(disk: &Path) -> Database {
    let place = disk.join("tablespace");
    fs::create_dir(&place).unwrap();
    let admin = support::postgres::connect(&shared().url("postgres")).await;
    let row = admin.query_one("SELECT current_setting('data_directory')", &[]).await.unwrap();
    let owner = fs::metadata(row.get::<_, &str>(0)).unwrap();
    chown(&place, Some(owner.uid()), Some(owner.gid())).unwrap();
    let name = unique("small");
    for made in [
        format!("CREATE TABLESPACE {name} LOCATION '{}'", place.display()),
        format!("CREATE DATABASE {name} TABLESPACE {name}"),
    ] {
        admin.batch_execute(&made).await.unwrap();
    }
    Database { url: shared().url(&name), name }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_disk_is_full_is_waited_for() {
    let Some(disk) = on_a_small_disk("a_sink_whose_disk_is_full_is_waited_for", 64) else { return };
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = database_on(&disk).await;
    let deployment = Deployment::new(&broker.servers(), &sink, org("calm.emea.*"));
    deployment.migrate();
    let client = sink.connect().await;
    let mut stream = Stream::new(&broker, "calm.emea.account", 2);
    stream.rounds(200, 0..3);
    let mut worker = deployment.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    answers(&mut worker, 200, "ready").await;

    let ballast = Ballast::fill(&disk);
    // There is room left in the pages that the tables have.
    let mut round = write_until(&mut worker, &client, &mut stream, 200, 1, SINK_FULL).await;
    says(&worker, SINK_FULL, &["SQLSTATE 53100", "No space left on device", "Free or add space under PostgreSQL"]);
    answers(&mut worker, 503, SINK_FULL).await;
    // It tries again, at growing intervals, and tells of it once.
    let refused = format!("{}{{result=\"refused\"}}", names::COMMITS);
    wait_for("more tries", LONG, async || {
        let tries = metric(&mut worker, &refused).await;
        if tries >= 5.0 { Ok(()) } else { Err(tries) }
    })
    .await;
    worker.assert_running();
    assert_eq!(times(&worker, "53100"), 1, "{}", worker.log());
    assert_ne!(positions(&client).await, stream.ends());

    ballast.remove();
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    worker.wait_for_log("the sink takes batches again").await;
    answers(&mut worker, 200, "ready").await;
    // Records that are new have to be written down before they are judged: that is waited for as well.
    let ballast = Ballast::fill(&disk);
    let mut records = 400;
    let before = times(&worker, SINK_FULL);
    wait_for("a full sink that is noticed again", LONG, async || {
        if times(&worker, SINK_FULL) > before {
            return Ok(());
        }
        if positions(&client).await == stream.ends() {
            stream.rounds(records, round..round + 1);
            (records, round) = (records + 400, round + 1);
        }
        Err(format!("{records} records were written"))
    })
    .await;
    answers(&mut worker, 503, SINK_FULL).await;
    ballast.remove();
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    worker.stop();
    assert_same(&history(&client, "emea", "account").await, &stream.wanted());
    assert_conserved(&client, &stream.ends()).await;
}
