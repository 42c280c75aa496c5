//! A private PostgreSQL server: a cluster of its own in a scratch directory, on 127.0.0.1 and an ephemeral port, gone
//! with the process that started it. The demo shows its result in one, and the tests run against one; the machine's
//! own clusters are neither used nor touched.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::child::{self, Ended, LastSignal};
use super::scratch::{self, ScratchDir};

/// Start of the names of all data directories made here.
pub const PREFIX: &str = "afterimage-postgres";

/// The oldest server major version that is tried. PostgreSQL 14 brought what the history's SQL needs.
const OLDEST_MAJOR: u32 = 14;

/// How long a server may take to accept connections, and to stop. Generous: it only bounds a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// The only role, a superuser.
const ROLE: &str = "postgres";

/// How the server is set up. The default suits throw-away data: nothing is synced to disk.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Whether a commit waits for the disk. `false` makes an answered commit fall back after a power loss, not after a
    /// kill of the server; `true` is for tests and benches that need the true cost or that kill the whole machine.
    pub fsync: bool,
    /// `wal_level=logical` with slots enough for several connectors, as on the source side of Debezium.
    pub logical: bool,
    /// `max_connections`; each costs the server some memory from the start.
    pub max_connections: u32,
    /// Further `name = value` settings, passed last, so that they win.
    pub settings: Vec<(String, String)>,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        PostgresOptions { fsync: false, logical: false, max_connections: 100, settings: Vec::new() }
    }
}

impl PostgresOptions {
    /// The source side of a connector: `wal_level=logical`.
    pub fn logical() -> Self {
        PostgresOptions { logical: true, ..Default::default() }
    }

    /// Adds one server setting.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    fn lines(&self) -> Vec<(String, String)> {
        let on_off = |on: bool| if on { "on" } else { "off" }.to_string();
        let mut all: Vec<(String, String)> = vec![
            ("max_connections".into(), self.max_connections.to_string()),
            ("fsync".into(), on_off(self.fsync)),
            ("full_page_writes".into(), on_off(self.fsync)),
            // Not off with fsync: an answered commit must be in the kernel's hands, or a crash of the server loses it.
            ("synchronous_commit".into(), "on".into()),
            ("timezone".into(), "UTC".into()),
            ("log_timezone".into(), "UTC".into()),
            // Shared memory as files in the data directory: a killed server leaves nothing in /dev/shm.
            ("dynamic_shared_memory_type".into(), "mmap".into()),
            ("shared_buffers".into(), "64MB".into()),
            ("log_min_messages".into(), "warning".into()),
        ];
        if self.logical {
            all.push(("wal_level".into(), "logical".into()));
            all.push(("max_replication_slots".into(), "16".into()));
            all.push(("max_wal_senders".into(), "16".into()));
            // A connector stopped in a debugger or on a slow machine keeps its slot.
            all.push(("wal_sender_timeout".into(), "0".into()));
        }
        all.extend(self.settings.iter().cloned());
        all
    }
}

/// A running server. It stops, and its files go, when this is dropped; when the process is killed, the kernel and
/// [`ScratchDir`]'s watcher see to the same.
#[derive(Debug)]
pub struct PrivatePostgres {
    // Order matters on drop: the server is stopped (in `Drop`) before its directory is removed.
    server: Option<Child>,
    dir: ScratchDir,
    port: u16,
    bin: PathBuf,
    account: Option<Account>,
    options: PostgresOptions,
}

impl PrivatePostgres {
    /// Makes a cluster and starts its server; returns when it accepts connections, half a second on an idle machine.
    /// Blocks: call it through `spawn_blocking` where that matters.
    ///
    /// # Errors
    /// When no server binaries of version 14 or newer are found, when started by root and no other account is there,
    /// or when the server does not come up (then with the end of its log).
    pub fn start(options: PostgresOptions) -> Result<PrivatePostgres> {
        sweep_stale();
        let bin = find_binaries()?;
        let account = if child::is_root() { Some(Account::unprivileged()?) } else { None };
        let dir = ScratchDir::create(PREFIX).context("cannot make a directory for a private PostgreSQL")?;
        let owner = account.as_ref().map(|account| (account.uid, account.gid));
        dir.subdir("data", owner)?;
        dir.subdir("socket", owner)?;

        let mut server = PrivatePostgres { server: None, dir, port: 0, bin, account, options };
        server.initdb()?;
        server.launch()?;
        Ok(server)
    }

    /// Connection URL of a database of this server, for psql, libpq and the project's own configuration.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{ROLE}@{}:{}/{database}", Ipv4Addr::LOCALHOST, self.port)
    }

    /// The TCP port on 127.0.0.1. It stays the same over [`Self::restart`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the unix socket; only root and the server's own account can pass through it.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Makes an empty database.
    ///
    /// # Errors
    /// When the server refuses: the name exists, or a session is connected to `template1`.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let (client, connection) = tokio_postgres::connect(&self.url("postgres"), tokio_postgres::NoTls)
            .await
            .context("private PostgreSQL")?;
        let connection = tokio::spawn(connection);
        let quoted = name.replace('"', "\"\"");
        let made = client.batch_execute(&format!("CREATE DATABASE \"{quoted}\"")).await;
        drop(client);
        connection.await??;
        made.with_context(|| format!("cannot create the database {name}"))
    }

    /// Stops the server in order (SIGINT, "fast shutdown": sessions are ended, data is written) and waits for it. The
    /// data stay; [`Self::restart`] brings it back.
    ///
    /// # Errors
    /// When the server ends with a failure or not in time; it is killed then.
    pub fn stop(&mut self) -> Result<()> {
        self.end(libc::SIGINT)
    }

    /// Ends the server as a crash would (SIGQUIT: no checkpoint, sessions cut), and waits for it. Nothing that was
    /// committed is lost: the next start recovers from the log.
    ///
    /// # Errors
    /// When the server does not end in time.
    pub fn crash(&mut self) -> Result<()> {
        // An immediate shutdown is not a failure here, whatever the exit status.
        self.end(libc::SIGQUIT).or_else(|error| if self.server.is_none() { Ok(()) } else { Err(error) })
    }

    /// Starts the stopped or crashed server again on the same port and data.
    ///
    /// # Errors
    /// When it is running, or does not come up.
    pub fn restart(&mut self) -> Result<()> {
        if self.server.is_some() {
            bail!("the private PostgreSQL is running already");
        }
        self.launch_on(self.port)?.map_err(|log| anyhow!("the private PostgreSQL did not start again:\n{log}"))
    }

    /// Whether it has ended by itself since this was asked last.
    pub fn ended(&mut self) -> Option<Ended> {
        let log = self.log_path();
        Ended::look(&mut self.server, "the private PostgreSQL", &log)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("postgres.log")
    }

    fn initdb(&self) -> Result<()> {
        let mut command = self.command("initdb");
        command
            .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"])
            .arg(format!("--username={ROLE}"))
            .arg("--pgdata")
            .arg(self.data());
        let output = command.stdin(Stdio::null()).output().context("cannot run initdb")?;
        if !output.status.success() {
            bail!("initdb failed ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(())
    }

    /// Starts on a free port. Between the choice of the port and the server's `bind` another process may take it, so
    /// this is tried a few times.
    fn launch(&mut self) -> Result<()> {
        let mut log = String::new();
        for _ in 0..5 {
            let port = free_port().context("no free port on 127.0.0.1")?;
            match self.launch_on(port)? {
                Ok(()) => return Ok(()),
                Err(why) if why.contains("Address already in use") => log = why,
                Err(why) => bail!("the private PostgreSQL did not start:\n{why}"),
            }
        }
        bail!("the private PostgreSQL found no free port:\n{log}")
    }

    /// The inner error is the server's log when it ended instead of coming up.
    fn launch_on(&mut self, port: u16) -> Result<std::result::Result<(), String>> {
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let seen = log.metadata()?.len() as usize;
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data());
        let mut settings = self.options.lines();
        settings.push(("listen_addresses".into(), Ipv4Addr::LOCALHOST.to_string()));
        settings.push(("port".into(), port.to_string()));
        settings.push(("unix_socket_directories".into(), self.socket_dir().display().to_string()));
        for (name, value) in settings {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut server = child::spawn_bound(command, LastSignal::Quit).context("cannot run postgres")?;

        let ready = wait_ready(&mut server, &self.data().join("postmaster.pid"));
        match ready {
            Ok(true) => {
                self.server = Some(server);
                self.port = port;
                Ok(Ok(()))
            }
            Ok(false) => Ok(Err(self.log().get(seen..).unwrap_or_default().trim_end().to_string())),
            Err(error) => {
                let _ = server.kill();
                let _ = server.wait();
                Err(error).with_context(|| self.log())
            }
        }
    }

    fn end(&mut self, signal: libc::c_int) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        child::signal(&server, signal).context("cannot signal the private PostgreSQL")?;
        match wait_exit(&mut server, PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the private PostgreSQL ended with {status}:\n{}", self.log()),
            None => {
                let _ = server.kill();
                let _ = server.wait();
                bail!("the private PostgreSQL did not stop in {PATIENCE:?} and was killed")
            }
        }
    }

    /// A PostgreSQL program, run as the unprivileged account where there has to be one.
    fn command(&self, program: &str) -> Command {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(self.bin.join(program));
        // Both refuse to run, or warn, in a directory that their account cannot read.
        command.current_dir("/");
        // A session's settings for clients (PGDATA, PGOPTIONS, PGPORT…) are not for this server.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PG")) {
                command.env_remove(name);
            }
        }
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // Nothing of the data is wanted any more, so the fastest way that leaves no process behind.
        if let Err(error) = self.crash() {
            tracing::warn!(%error, "the private PostgreSQL did not stop in order");
        }
    }
}

/// Removes what killed processes left behind and nobody else removed; says how many clusters.
pub fn sweep_stale() -> usize {
    scratch::sweep_stale(PREFIX)
}

/// A TCP port on 127.0.0.1 that was free a moment ago. It is taken from below the range the kernel hands to outgoing
/// connections: a server that comes up seconds later, or again after a crash, must not find a client on its port.
///
/// # Errors
/// When the system has none.
pub fn free_port() -> io::Result<u16> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr();
    let drawn = (0..64).find_map(|_| bind(rand::random_range(15_000..32_000)).ok());
    Ok(drawn.map_or_else(|| bind(0), Ok)?.port())
}

/// `true` when the server says "ready" in its pid file (the state it writes once it accepts connections, the one
/// `pg_ctl` waits for); `false` when it ended.
fn wait_ready(server: &mut Child, pid_file: &Path) -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if server.try_wait()?.is_some() {
            return Ok(false);
        }
        // Line 1 is the pid: a file left by a crash names another process until this one has replaced it.
        let written = fs::read_to_string(pid_file).unwrap_or_default();
        let mut lines = written.lines();
        let own = lines.next().is_some_and(|pid| pid.trim() == server.id().to_string());
        if own && lines.nth(6).is_some_and(|status| status.trim() == "ready") {
            return Ok(true);
        }
        if Instant::now() > deadline {
            bail!("the private PostgreSQL was not ready in {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn wait_exit(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The directory of the server's programs: `$PATH` first, then Debian's versioned directories, newest first.
fn find_binaries() -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .filter(|dir| has_server(dir))
        // Wrappers and links do not sit beside initdb's own share files; follow them to the real place.
        .filter_map(|dir| fs::canonicalize(dir.join("postgres")).ok()?.parent().map(Path::to_path_buf));
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, dir)| has_server(dir))
        .collect();
    debian.sort_unstable_by(|a, b| b.cmp(a));
    let mut tried = Vec::new();
    for dir in on_path.chain(debian.into_iter().map(|(_, dir)| dir)) {
        match major_version(&dir) {
            Some(major) if major >= OLDEST_MAJOR => return Ok(dir),
            major => {
                tried.push(format!("{} (version {})", dir.display(), major.map_or("unknown".into(), |m| m.to_string())))
            }
        }
    }
    if tried.is_empty() {
        bail!("no PostgreSQL server found on $PATH or in /usr/lib/postgresql; on Debian: apt-get install postgresql")
    }
    bail!("PostgreSQL {OLDEST_MAJOR} or newer is needed; found only {}", tried.join(", "))
}

fn has_server(dir: &Path) -> bool {
    dir.join("postgres").is_file() && dir.join("initdb").is_file()
}

/// `postgres (PostgreSQL) 15.14 (Debian …)` → 15.
fn major_version(dir: &Path) -> Option<u32> {
    let output = Command::new(dir.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// An entry of the system's account file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// Whom the server runs as when this process is root: PostgreSQL refuses root.
    fn unprivileged() -> Result<Account> {
        let passwd = fs::read_to_string("/etc/passwd").context("cannot read the accounts")?;
        Account::find(&passwd, "postgres")
            .or_else(|| Account::find(&passwd, "nobody"))
            .ok_or_else(|| anyhow!("PostgreSQL refuses to run as root, and there is no account postgres or nobody"))
    }

    fn find(passwd: &str, name: &str) -> Option<Account> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            let mut numbers = fields.skip(1).map(str::parse);
            let account = Account { uid: numbers.next()?.ok()?, gid: numbers.next()?.ok()? };
            (account.uid != 0).then_some(account)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_read_from_what_postgres_says() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL)"), None);
        assert_eq!(parse_major(""), None);
    }

    #[test]
    fn an_account_is_found_by_its_whole_name_and_never_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgresx:x:1:1::/:/\npostgres:x:105:110:PostgreSQL:/var:/bin/bash\nbad\ntoor:x:0:0::/:/\n";
        assert_eq!(Account::find(passwd, "postgres"), Some(Account { uid: 105, gid: 110 }));
        assert_eq!(Account::find(passwd, "toor"), None);
        assert_eq!(Account::find(passwd, "bad"), None);
        assert_eq!(Account::find(passwd, "nobody"), None);
    }

    #[tokio::test]
    async fn a_server_answers_survives_a_crash_and_leaves_nothing() {
        let mut server = PrivatePostgres::start(PostgresOptions::logical().set("work_mem", "5MB")).unwrap();
        let dir = server.dir.path().to_owned();
        server.create_database("odd \"name\"").await.unwrap();
        server.create_database("plain").await.unwrap();
        assert!(server.create_database("plain").await.is_err(), "a database of this name exists");

        let (client, connection) = tokio_postgres::connect(&server.url("plain"), tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let shown =
            async |name: &str| -> String { client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0) };
        assert_eq!(shown("wal_level").await, "logical");
        assert_eq!(shown("work_mem").await, "5MB");
        assert_eq!(shown("server_encoding").await, "UTF8");
        assert_eq!(shown("listen_addresses").await, "127.0.0.1");
        client
            .batch_execute("CREATE TABLE kept AS SELECT 7 AS n; CHECKPOINT; INSERT INTO kept VALUES (8)")
            .await
            .unwrap();

        let port = server.port();
        server.crash().unwrap();
        assert!(connection.await.unwrap().is_err(), "the session was cut");
        server.restart().unwrap();
        assert_eq!(server.port(), port);
        assert!(server.restart().is_err(), "it is running");

        let (client, connection) = tokio_postgres::connect(&server.url("plain"), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let sum: i64 = client.query_one("SELECT sum(n) FROM kept", &[]).await.unwrap().get(0);
        assert_eq!(sum, 15, "fsync off loses nothing on a crash of the server alone");
        server.stop().unwrap();
        drop(server);
        assert!(!dir.exists());
    }

    #[test]
    fn a_bad_setting_is_told_with_the_servers_own_words() {
        let error = PrivatePostgres::start(PostgresOptions::default().set("no_such_setting", "1")).unwrap_err();
        assert!(format!("{error:#}").contains("no_such_setting"), "{error:#}");
    }
}
