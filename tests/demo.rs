//! `afterimage demo` as its user starts it, on the embedded broker: what it says while it is kept, and how it ends.

mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use afterimage::demo::child::{self, LastSignal, Running};
use afterimage::demo::scratch::ScratchDir;
use serde_json::Value;
use support::terminal::Terminal;
use support::wait::{LONG, wait_for};

/// A running demo; its directories are below a place of its own.
struct Demo {
    running: Running,
    place: ScratchDir,
    told: Arc<Mutex<String>>,
    said: Arc<Mutex<String>>,
}

impl Demo {
    fn start(args: &[&str]) -> Demo {
        let place = ScratchDir::create("afterimage-test-demo").unwrap();
        let mut child = spawn(args, &place);
        let told = collected(child.stdout.take().unwrap());
        let said = collected(child.stderr.take().unwrap());
        Demo { running: Running(child), place, told, said }
    }

    /// What it has said on stderr.
    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    async fn says(&self, words: &str) {
        wait_for(&format!("{words:?} on stderr"), LONG, async || {
            let said = self.said();
            if said.contains(words) { Ok(()) } else { Err(said) }
        })
        .await;
    }

    /// A worker's log.
    fn log(&self, worker: &str) -> (PathBuf, String) {
        let number = worker.strip_prefix("demo-").unwrap();
        let dir =
            entries(self.place.path()).into_iter().find(|path| path.to_string_lossy().contains("afterimage-demo-"));
        let path = dir.unwrap().join(format!("worker-{number}.log"));
        let text = fs::read_to_string(&path).unwrap();
        (path, text)
    }

    /// kill -9 of its child whose command line holds this.
    fn kill(&self, words: &str) {
        let of = |process: &Path| {
            let stat = fs::read_to_string(process.join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()?;
            let line = fs::read(process.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (parent == self.running.0.id() && line.contains(words))
                .then(|| process.file_name().map(ToOwned::to_owned))?
        };
        let found: Vec<_> = entries(Path::new("/proc")).iter().filter_map(|process| of(process)).collect();
        assert_eq!(found.len(), 1, "one process of {words}");
        assert!(Command::new("kill").arg("-KILL").arg(&found[0]).status().unwrap().success());
    }

    /// Waits until nothing is left of its directories.
    async fn is_gone(&self) {
        wait_for("an empty place", LONG, async || {
            let left = entries(self.place.path()).into_iter().filter(|path| path.is_dir()).collect::<Vec<_>>();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        })
        .await;
    }

    async fn ended(&mut self) -> ExitStatus {
        wait_for("the demo's end", LONG, async || match self.running.0.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(self.said.lock().unwrap().clone()),
        })
        .await
    }
}

fn spawn(args: &[&str], place: &ScratchDir) -> Child {
    // Whoever runs the tests may ignore a hangup; that would be handed down.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_afterimage"), "demo"]).args(args);
    command.env("TMPDIR", place.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    child::spawn_bound(command, LastSignal::Kill).unwrap()
}

fn collected(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let collected = Arc::new(Mutex::new(String::new()));
    let to = Arc::clone(&collected);
    std::thread::spawn(move || {
        let mut bytes = [0; 4_096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    });
    collected
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_demo_can_be_looked_at_and_says_what_dies() {
    let mut demo = Demo::start(&["--keep", "--json", "--events", "12000"]);
    demo.says("was killed (kill -9)").await;
    let said = demo.said();
    let killed = said.split("worker ").nth(1).unwrap().split(' ').next().unwrap();
    let survivor = if killed == "demo-1" { "demo-2" } else { "demo-1" };
    let before = demo.log(survivor).1.len();
    demo.says("Still running").await;
    demo.says("  Kafka: ").await;
    let report: Value = serde_json::from_str(&demo.told.lock().unwrap()).unwrap();
    assert_eq!(report["crash"]["worker"], killed);
    assert!(report["crash"]["claimed_after"].is_number(), "{report:#}");
    // The group gave the dead one's partitions to its successor, once. Had the dead one been counted in, the survivor
    // would have had to hand some of its own over.
    let log = demo.log(survivor).1.split_off(before);
    let taken = |line: &&str| line.contains("partitions taken by the group") && !line.contains("partitions=[]");
    assert_eq!(log.lines().filter(taken).collect::<Vec<_>>(), [""; 0]);

    let said = demo.said();
    let status = said.lines().find(|line| line.contains(" status ")).unwrap();
    // Variables of the user's own deployment must not lead it there.
    let shell =
        Command::new("sh").args(["-c", status]).env("DATABASE_URL", "postgres://127.0.0.1:1/x").output().unwrap();
    assert!(shell.status.success() && String::from_utf8_lossy(&shell.stdout).contains("emea"), "{shell:?}");

    demo.kill("worker-1.toml");
    demo.says("worker demo-1 has ended (signal: 9 (SIGKILL)); its log: ").await;
    assert!(demo.said().contains(&demo.log("demo-1").0.display().to_string()));
    demo.kill("listen_addresses");
    assert_eq!(demo.ended().await.code(), Some(1));
    demo.says("the private PostgreSQL has ended (signal: 9 (SIGKILL))").await;
    demo.is_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_nobody_reads_any_more_ends_in_order() {
    let place = ScratchDir::create("afterimage-test-demo").unwrap();
    let mut child = spawn(&["--events", "3000"], &place);
    // As `2>&1 | head -0`.
    drop((child.stdout.take(), child.stderr.take()));
    let mut running = Running(child);
    let status = wait_for("the demo's end", LONG, async || running.0.try_wait().unwrap().ok_or("it runs")).await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_ends_with_130() {
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut demo = Demo::start(&[]);
        demo.says("starting workers").await;
        child::signal(&demo.running.0, number).unwrap();
        assert_eq!(demo.ended().await.code(), Some(130));
        demo.says("interrupted").await;
        demo.is_gone().await;
    }
}

/// On a terminal of 80 columns; and a hangup does not end it where it is ignored, as under nohup.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_fits_its_terminal_and_nohup_is_heeded() {
    let place = ScratchDir::create("afterimage-test-demo").unwrap();
    let (terminal, stdout) = Terminal::open(80, 30);
    let mut command = Command::new("sh");
    let script = format!("trap '' HUP; exec '{}' demo --events 3000", env!("CARGO_BIN_EXE_afterimage"));
    command.args(["-c", &script]).env("TMPDIR", place.path());
    command.env_remove("COLUMNS").stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    let mut child = child::spawn_bound(command, LastSignal::Kill).unwrap();
    let said = collected(child.stderr.take().unwrap());
    let mut running = Running(child);
    wait_for("workers", LONG, async || {
        let said = said.lock().unwrap().clone();
        if said.contains("starting workers") { Ok(()) } else { Err(said) }
    })
    .await;
    child::signal(&running.0, libc::SIGHUP).unwrap();
    let status = wait_for("the demo's end", LONG, async || running.0.try_wait().unwrap().ok_or("it runs")).await;
    assert_eq!(status.code(), Some(0), "{}", said.lock().unwrap());
    let written = wait_for("the report", LONG, async || {
        let written = terminal.written();
        if written.contains("Try next") && written.contains("--workers 4") { Ok(written) } else { Err(written) }
    })
    .await;
    let long: Vec<&str> = written.lines().map(str::trim_end).filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty() && written.contains("Checks"), "{long:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_cannot_be_written_is_no_full_disk_elsewhere() {
    let place = ScratchDir::create("afterimage-test-demo").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
    command.args(["demo", "--events", "3000"]).env("TMPDIR", place.path()).stdin(Stdio::null());
    command.stdout(fs::OpenOptions::new().write(true).open("/dev/full").unwrap()).stderr(Stdio::piped());
    let mut child = child::spawn_bound(command, LastSignal::Kill).unwrap();
    let said = collected(child.stderr.take().unwrap());
    let mut running = Running(child);
    let status = wait_for("the demo's end", LONG, async || running.0.try_wait().unwrap().ok_or("it runs")).await;
    assert_eq!(status.code(), Some(1));
    wait_for("the reason", LONG, async || {
        let said = said.lock().unwrap().clone();
        let right =
            said.contains("afterimage: stdout: No space left") && said.contains("  next: make room where the output");
        if right && !said.contains("TMPDIR") { Ok(()) } else { Err(said) }
    })
    .await;
}
