//! The program itself, as a deployment runs it: `afterimage migrate` and `afterimage run` as child processes, each with
//! a configuration file, a state directory and a log of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use afterimage::demo::child::{self, LastSignal};

use super::audit::assert_lawful;
use super::postgres::{Database, fresh_database};
use super::wait::{LONG, wait_blocking, wait_for};

/// One sink, one group, some topics: what its workers have in common.
pub struct Deployment {
    brokers: String,
    url: String,
    group: String,
    settings: String,
    tables: String,
    json_logs: bool,
    pooled: bool,
    /// It made its sink's schema, so it answers for what is in there when the test ends.
    migrated: AtomicBool,
    dir: tempfile::TempDir,
}

/// A sink of its own with its schema, and a deployment that reads the org `emea` of the connector `calm` into it, with these
/// lines of configuration.
pub async fn emea(brokers: &str, settings: &str) -> (Database, Deployment) {
    let sink = fresh_database().await;
    let org = "[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]";
    let deployment = Deployment::new(brokers, &sink, org).with(settings);
    deployment.migrate();
    (sink, deployment)
}

impl Deployment {
    /// A deployment of these `[[org]]` and `[[object]]` tables.
    pub fn new(brokers: &str, sink: &Database, tables: impl Into<String>) -> Deployment {
        Deployment {
            brokers: brokers.into(),
            url: sink.url.clone(),
            group: format!("afterimage.{}", sink.name),
            settings: String::new(),
            tables: tables.into(),
            json_logs: false,
            pooled: false,
            migrated: AtomicBool::new(false),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Adds lines of configuration; sections of their own (`[commit]`, `[kafka.extra]`).
    pub fn with(mut self, settings: &str) -> Deployment {
        self.settings.push_str(settings);
        self.settings.push('\n');
        self
    }

    /// Logs as JSON lines.
    pub fn json_logs(mut self) -> Deployment {
        self.json_logs = true;
        self
    }

    /// Its sink's URL leads to a pooler in transaction mode.
    pub fn pooled(mut self) -> Deployment {
        self.pooled = true;
        self
    }

    /// Another consumer group than the default.
    pub fn group(mut self, group: &str) -> Deployment {
        self.group = group.into();
        self
    }

    /// The consumer group.
    pub fn group_name(&self) -> &str {
        &self.group
    }

    /// Where the worker of this name keeps its records.
    pub fn state_dir(&self, worker: &str) -> PathBuf {
        self.dir.path().join(format!("state-{worker}"))
    }

    fn config(&self, worker: &str) -> PathBuf {
        let Deployment { brokers, url, group, settings, tables, .. } = self;
        let state = self.state_dir(worker);
        let pool_mode = if self.pooled { "transaction" } else { "session" };
        let text = format!(
            "{settings}\n[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{group}\"\n[postgres]\nurl = \"{url}\"\n\
             sslmode = \"disable\"\npool_mode = \"{pool_mode}\"\n[state]\ndir = \"{}\"\nmemory = \"32MB\"\n[metrics]\nlisten = \"127.0.0.1:0\"\n\
             [worker]\nname = \"{worker}\"\n{tables}",
            state.display()
        );
        let path = self.dir.path().join(format!("{worker}.toml"));
        fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, verb: &str, worker: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterimage"));
        command.arg(verb).arg("--config").arg(self.config(worker));
        // Nothing of the developer's environment may reach it.
        command.env_clear().env("HOME", self.dir.path()).current_dir(self.dir.path());
        command.stdin(Stdio::null());
        if self.json_logs {
            command.env("AFTERIMAGE_LOG__FORMAT", "json");
        }
        command
    }

    /// Starts `afterimage migrate`; two may run at once.
    pub fn spawn_migrate(&self) -> Child {
        let mut command = self.command("migrate", "migrate");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        child::spawn_bound(command, LastSignal::Kill).unwrap()
    }

    /// Runs `afterimage migrate`.
    ///
    /// # Panics
    /// When it fails.
    pub fn migrate(&self) -> String {
        let output = self.spawn_migrate().wait_with_output().unwrap();
        assert!(output.status.success(), "migrate: {output:?}");
        self.migrated.store(true, Ordering::Relaxed);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a worker that is expected to end by itself; its output.
    pub fn run_to_end(&self, worker: &str) -> Output {
        self.command("run", worker).output().unwrap()
    }

    /// Runs another verb to its end; its output.
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> Output {
        self.verb_with(verb, arguments, &[])
    }

    /// Runs another verb to its end, with more variables in its environment; its output.
    pub fn verb_with(&self, verb: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.command(verb, verb).args(arguments).envs(variables.iter().copied()).output().unwrap()
    }

    /// Starts another verb, which writes its result there.
    pub fn start(&self, verb: &str, arguments: &[&str], stdout: Stdio) -> App {
        self.start_with(verb, arguments, stdout, &[])
    }

    /// Starts another verb, with more variables in its environment.
    pub fn start_with(&self, verb: &str, arguments: &[&str], stdout: Stdio, variables: &[(&str, &str)]) -> App {
        let log = self.dir.path().join(format!("{verb}.log"));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command(verb, verb);
        command.args(arguments).envs(variables.iter().copied()).stdout(stdout).stderr(out);
        let from = fs::metadata(&log).map_or(0, |file| file.len());
        App { child: Some(child::spawn_bound(command, LastSignal::Kill).unwrap()), log, from: from as usize }
    }

    /// Starts a worker.
    pub fn worker(&self, name: &str) -> App {
        self.worker_with(name, &[])
    }

    /// Starts a worker with more variables in its environment.
    pub fn worker_with(&self, name: &str, variables: &[(&str, &str)]) -> App {
        let log = self.dir.path().join(format!("{name}.log"));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = self.command("run", name);
        command.envs(variables.iter().copied());
        command.stdout(out.try_clone().unwrap()).stderr(out);
        let from = fs::metadata(&log).map_or(0, |file| file.len());
        App { child: Some(child::spawn_bound(command, LastSignal::Kill).unwrap()), log, from: from as usize }
    }
}

/// Every test ends with the laws kept (`audit::assert_lawful`).
impl Drop for Deployment {
    fn drop(&mut self) {
        if *self.migrated.get_mut() {
            assert_lawful(&self.url);
        }
    }
}

/// A running worker. Killed when dropped; its log is shown when the test has failed.
pub struct App {
    child: Option<Child>,
    log: PathBuf,
    /// Where this run begins in the log of its name.
    from: usize,
}

impl App {
    /// What it has logged in this run.
    pub fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(self.from..).unwrap_or_default()).into_owned()
    }

    /// The log's file, which all runs of this name share.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What it writes to a pipe.
    pub fn stdout(&mut self) -> ChildStdout {
        self.child.as_mut().and_then(|child| child.stdout.take()).expect("a pipe")
    }

    /// # Panics
    /// When it has ended by itself.
    pub fn assert_running(&mut self) {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        assert!(ended.is_none(), "the worker ended with {ended:?}:\n{}", self.log());
    }

    /// kill -9, and waits for the end.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("running");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends any signal.
    pub fn signal(&self, signal: libc::c_int) {
        child::signal(self.child.as_ref().expect("running"), signal).unwrap();
    }

    /// SIGTERM.
    pub fn ask_to_stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Waits for the end: how it ended.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        wait_blocking("the worker's end", LONG, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(self.log()),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn stop(&mut self) {
        self.ask_to_stop();
        let status = self.ended();
        assert!(status.success(), "the worker ended with {status}:\n{}", self.log());
    }

    /// Waits until the log of this run says this.
    pub async fn wait_for_log(&mut self, text: &str) {
        wait_for(&format!("{text:?} in the log"), LONG, async || {
            let log = self.log();
            if log.contains(text) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// What `/metrics` answers.
    pub async fn metrics(&mut self) -> String {
        let answer = self.get("/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    /// What any path of the metrics endpoint answers, with its head.
    pub async fn get(&mut self, path: &str) -> String {
        self.wait_for_log("metrics are served at").await;
        let log = self.log();
        let address = log.split("http://").nth(1).and_then(|rest| rest.split("/metrics").next()).unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{}:\n{}", self.log.display(), lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}
