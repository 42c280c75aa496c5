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

/// Not a test by itself: the demo that the tests above end, a no-op without them.
#[tokio::test(flavor = "multi_thread")]
async fn play_the_demo() {
    let Some(program) = std::env::var_os(PLAY_DEMO) else { return };
    let orgs = vec!["emea".to_string(), "apac".to_string()];
    let options = DemoOptions { events: 20_000, seed: 1, orgs, workers: 2, keep: false, json: false };
    let error = run(options, WorkerCommand { program: program.into() }).await.unwrap_err();
    println!("ended: {error:#}");
}
