//! A private PostgreSQL on a unix socket, and a fresh database for each test.
//!
//! The server is the child of a shell that waits on a pipe from this process: when this process ends, however
//! it does, the shell stops the server and removes its directory.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
set -e
bin=$1
dir=$(mktemp -d "${TMPDIR:-/tmp}/afterimage-sql.XXXXXX")
trap 'rm -rf "$dir"' EXIT
cd "$dir"
"$bin/initdb" -D data -E UTF8 --locale=C -A trust -U tester >initdb.log
"$bin/pg_ctl" -D data -l log -w -o "-k $dir -c listen_addresses='' -c fsync=off -c max_connections=60 -c timezone=America/New_York -c datestyle=SQL,DMY" start >/dev/null
echo "$dir"
read -r _ || true
"$bin/pg_ctl" -D data -m immediate stop >/dev/null
"#;

struct Cluster {
    dir: String,
    _shell: Child,
}

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let bin = std::env::var("PG_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
        let root = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m)).ok() == Some(0);
        // initdb refuses root.
        let mut command = if root { Command::new("runuser") } else { Command::new("sh") };
        if root {
            command.args(["-u", "postgres", "--", "sh"]);
        }
        let mut shell = command
            .args(["-c", SCRIPT, "sh", &bin])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell for PostgreSQL");
        let mut dir = String::new();
        let out = shell.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut dir).expect("an answer");
        assert!(!dir.is_empty(), "PostgreSQL did not start: see above");
        Cluster { dir: dir.trim().to_owned(), _shell: shell }
    })
}

/// A database of its own.
pub struct Database {
    name: String,
}

impl Database {
    /// Empty.
    pub async fn empty(encoding: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let admin = Self { name: "postgres".to_owned() }.connect().await;
        admin.batch_execute(&format!("create database {name} template template0 encoding '{encoding}'")).await.unwrap();
        Self { name }
    }

    /// Migrated.
    pub async fn sink() -> (Self, Client) {
        let db = Self::empty("UTF8").await;
        let mut client = db.connect().await;
        afterimage::postgres::migrate::migrate(&mut client).await.unwrap();
        (db, client)
    }

    pub async fn connect(&self) -> Client {
        self.connect_for_task().await.0
    }

    /// The connection's task ends when the server closes it.
    pub async fn connect_for_task(&self) -> (Client, JoinHandle<()>) {
        let config = format!("host={} user=tester dbname={}", cluster().dir, self.name);
        let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        (client, task)
    }
}
