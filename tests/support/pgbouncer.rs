//! PgBouncer in transaction mode before a private PostgreSQL, for whoever must do without sessions of its own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use afterimage::demo::child::{self, LastSignal};
use afterimage::demo::postgres::PrivatePostgres;

use super::postgres::Database;
use super::wait::{LONG, wait_blocking};

/// A running pooler; it ends with this.
pub struct PgBouncer {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one with so many server sessions for each database. Everything else is as it comes out of the box: no
    /// parameter is ignored, nothing is reset between two clients.
    ///
    /// # Panics
    /// When pgbouncer is not installed, or does not start.
    pub fn start(server: &PrivatePostgres, sessions: usize) -> PgBouncer {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = {sessions}\n",
            server.port(),
            user(server),
        );
        let file = dir.path().join("pgbouncer.ini");
        fs::write(&file, settings).unwrap();
        let mut command = Command::new(program());
        if child::is_root() {
            // Like PostgreSQL it refuses to run as root: it runs as whoever runs the server.
            let owner = fs::metadata(server.socket_dir()).unwrap();
            chown(dir.path(), Some(owner.uid()), Some(owner.gid())).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            command.uid(owner.uid()).gid(owner.gid());
        }
        let log = File::create(dir.path().join("log")).unwrap();
        command.arg(&file).current_dir("/").stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = child::spawn_bound(command, LastSignal::Kill).expect("pgbouncer can be started");
        let bouncer = PgBouncer { child, port, dir };
        wait_blocking("pgbouncer", LONG, || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|_| bouncer.log()));
        bouncer
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A database of the server, reached through it.
    pub fn database(&self, of: &Database) -> Database {
        let (before, name) = of.url.rsplit_once('/').unwrap();
        let (before, _) = before.rsplit_once(':').unwrap();
        Database { name: of.name.clone(), url: format!("{before}:{}/{name}", self.port) }
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("pgbouncer:\n{}", self.log());
        }
    }
}

fn user(server: &PrivatePostgres) -> String {
    let url = server.url("postgres");
    let rest = url.split_once("://").unwrap().1;
    rest.split_once('@').unwrap().0.to_owned()
}

/// Debian keeps it where a user's `PATH` does not lead.
fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut there = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).map(|dir| dir.join("pgbouncer"));
    there.find(|file| file.is_file()).expect("pgbouncer is installed: `.ci/packages test` does that")
}
