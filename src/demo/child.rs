//! Child processes that cannot outlive this one, however it ends.
//!
//! `Drop` does not run on `kill -9`, so the kernel is asked to do the work: each child is tied to its parent by
//! Linux's parent-death signal. Two hazards come with it, and this module is the one place that knows them:
//!
//! - the signal is tied to the *thread* that forked, not to the process: a child spawned from a test's thread or from
//!   a runtime's blocking pool would die with that thread. All spawning is therefore done by one thread that lives as
//!   long as the process does;
//! - the kernel forgets the setting when the child changes its user, so it has to be made after that; the standard
//!   library runs `pre_exec` hooks after its own `setuid`, which is why the user is changed with `Command::uid`.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, OnceLock, mpsc};

/// What a child is to receive when this process is gone, by any cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastSignal {
    /// SIGKILL: for children with nothing to put in order.
    Kill,
    /// SIGQUIT: PostgreSQL's "immediate shutdown", in which the server takes its own children along and frees its
    /// shared memory. SIGKILL would leave both behind.
    Quit,
    /// SIGTERM: for a child that finishes by itself and in short time.
    Terminate,
}

impl LastSignal {
    fn number(self) -> libc::c_int {
        match self {
            LastSignal::Kill => libc::SIGKILL,
            LastSignal::Quit => libc::SIGQUIT,
            LastSignal::Terminate => libc::SIGTERM,
        }
    }
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns `command` so that it gets `signal` when this process ends. The caller still owns the child: it stops and
/// reaps it in the ordinary way when it is done with it.
///
/// # Errors
/// What [`Command::spawn`] says; also when the parent was gone before the child could be tied to it.
pub fn spawn_bound(mut command: Command, signal: LastSignal) -> io::Result<Child> {
    bind_to_parent(&mut command, signal);
    let (reply, answer) = mpsc::channel();
    spawner().send((command, reply)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    answer.recv().map_err(|_| io::Error::other("the spawning thread is gone"))?
}

/// The thread all bound children are forked from. It is never joined: it ends with the process.
fn spawner() -> mpsc::Sender<Order> {
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let sender = SPAWNER.get_or_init(|| {
        let (send, orders) = mpsc::channel::<Order>();
        std::thread::Builder::new()
            .name("child-spawner".into())
            .spawn(move || {
                for (mut command, reply) in orders {
                    // A caller that no longer waits has dropped its end; its child is told to go at once.
                    if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                        let _ = orphan.kill();
                        let _ = orphan.wait();
                    }
                }
            })
            .expect("a process that cannot start one thread cannot start children either");
        Mutex::new(send)
    });
    sender.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
}

#[allow(unsafe_code)] // pre_exec is unsafe by type; the closure below keeps to what is allowed after fork.
fn bind_to_parent(command: &mut Command, signal: LastSignal) {
    let parent = std::process::id();
    let signal = signal.number();
    // SAFETY: between fork and exec only async-signal-safe calls may be made. prctl and getppid are plain system
    // calls, and neither path allocates or takes a lock (`from_raw_os_error` and `last_os_error` hold a number).
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died between fork and prctl; then no signal will ever come.
            if libc::getppid() as u32 != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}

/// Sends a signal to a child that this process owns and has not yet reaped, so that the id cannot have been reused.
///
/// # Errors
/// What `kill(2)` says.
#[allow(unsafe_code)] // kill(2) takes and returns numbers only.
pub fn signal(child: &Child, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    // SAFETY: no memory is shared with the call.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A child that is killed when nobody waits for it any more.
#[derive(Debug)]
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // A child that has been waited for is not signalled: the standard library knows.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A child that ended although nobody asked it to.
#[derive(Debug)]
pub struct Ended {
    /// What it was.
    pub what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Where its log is.
    pub log: PathBuf,
}

impl Ended {
    /// Looks whether a child runs still; one that does not is taken out of its place.
    pub fn look(child: &mut Option<Child>, what: &str, log: &Path) -> Option<Ended> {
        let status = child.as_mut()?.try_wait().ok()??;
        *child = None;
        Some(Ended { what: what.to_string(), status, log: log.to_path_buf() })
    }
}

impl Display for Ended {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{} has ended ({}); its log: {}", self.what, self.status, self.log.display())
    }
}

/// The last lines of a child's log, for an error message.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Whether this process runs as root, and so has to find another user for programs that refuse root.
#[allow(unsafe_code)] // geteuid(2) takes nothing and cannot fail.
pub fn is_root() -> bool {
    // SAFETY: no arguments, no memory, no failure.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;
    use std::time::Duration;

    /// Set in the copy of the test binary that plays the parent that is going to be killed.
    const PLAY_PARENT: &str = "AFTERIMAGE_TEST_PLAY_PARENT";

    fn state(pid: &str) -> Option<char> {
        let stat = std::fs::read_to_string(PathBuf::from("/proc").join(pid).join("stat")).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next()
    }

    fn is_gone(pid: &str) -> bool {
        matches!(state(pid), None | Some('Z'))
    }

    fn sleeper() -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$; exec sleep 600"]).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    #[test]
    fn a_bound_child_survives_the_thread_that_asked_for_it() {
        let mut child = std::thread::spawn(|| spawn_bound(sleeper(), LastSignal::Kill).unwrap()).join().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // The asking thread is joined, so its death signals (if any) are already sent; a killed child is at most one
        // scheduling away from being gone. A second thread's whole life is the fact that is awaited in between.
        std::thread::spawn(|| ()).join().unwrap();
        assert!(!is_gone(line.trim()), "the child died with the thread that asked for it");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_bound_child_is_gone_after_its_parent_was_killed() {
        // The parent is this very test binary, started again to play the part of the victim.
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "demo::child::tests::play_the_parent", "--nocapture"])
            .env(PLAY_PARENT, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines();
        let pid = lines.find_map(|line| line.unwrap().split_once("child=").map(|(_, pid)| pid.to_string())).unwrap();
        assert!(!is_gone(&pid));

        parent.kill().unwrap(); // SIGKILL
        parent.wait().unwrap();
        // The child inherited the victim's stdout: the stream ends when the last holder is gone, and not before.
        let (ended, end_of_stream) = mpsc::channel();
        std::thread::spawn(move || {
            lines.for_each(drop);
            let _ = ended.send(());
        });
        let outcome = end_of_stream.recv_timeout(Duration::from_secs(30));
        if outcome.is_err() {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
        assert!(outcome.is_ok(), "the child outlived its parent");
        // Its streams are closed a moment before the rest of it is gone.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !is_gone(&pid) {
            assert!(std::time::Instant::now() < deadline, "the child is still there");
            std::thread::yield_now();
        }
    }

    /// Not a test by itself: the victim of [`a_bound_child_is_gone_after_its_parent_was_killed`], a no-op without it.
    #[test]
    fn play_the_parent() {
        if std::env::var_os(PLAY_PARENT).is_none() {
            return;
        }
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null());
        let mut child = spawn_bound(command, LastSignal::Kill).unwrap();
        println!("child={}", child.id());
        child.wait().unwrap();
    }
}
