//! Private servers end and their files go with the process that started them, also when it is killed with SIGKILL.

mod support;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use afterimage::demo::postgres::{PostgresOptions, PrivatePostgres};
use support::wait::{LONG, wait_until};

/// Set in the copy of this test binary that plays the process to be killed.
const PLAY_VICTIM: &str = "AFTERIMAGE_TEST_PLAY_VICTIM";

#[tokio::test]
async fn a_killed_owner_leaves_neither_server_nor_files() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "play_the_victim", "--nocapture"])
        .env(PLAY_VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let said = lines.find_map(|line| line.unwrap().split_once("server=").map(|(_, said)| said.to_string())).unwrap();
    let (port, socket) = said.split_once(' ').unwrap();
    let (port, socket): (u16, &Path) = (port.parse().unwrap(), Path::new(socket));
    let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(answers() && socket.exists());

    victim.kill().unwrap(); // SIGKILL: no Drop, no signal handler
    victim.wait().unwrap();

    wait_until("the server's end", LONG, async || !answers()).await;
    wait_until("the files' removal", LONG, async || !socket.parent().unwrap().exists()).await;
}

/// Not a test by itself: the victim of the test above, a no-op without it.
#[test]
fn play_the_victim() {
    if std::env::var_os(PLAY_VICTIM).is_none() {
        return;
    }
    let server = PrivatePostgres::start(PostgresOptions::default()).unwrap();
    println!("server={} {}", server.port(), server.socket_dir().display());
    // Until the test has killed this process, or has itself ended and so closed the pipe.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
