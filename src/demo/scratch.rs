//! Directories that do not outlive the process that made them, not even after `kill -9`.
//!
//! Three nets, one below the other: `Drop` removes the directory; a watching shell, waiting on a pipe that only this
//! process holds open, removes it when the process is gone without `Drop`; and [`sweep_stale`], called before new
//! ones are made, removes what is left when both were killed or the machine went down.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// The file whose lock says "the owner lives". The kernel frees the lock with the process, so that neither a reused
/// process id nor another pid namespace can make a dead owner look alive, or a live one dead.
const LOCK: &str = "owner.lock";

/// How the watcher removes: it lets the programs that still write there go first (they get their death signal at the
/// same moment), and tries again for up to ten seconds if one of them made a new file meanwhile.
const WATCH: &str = r#"
cat >/dev/null
n=0
while [ -e "$1" ] && [ "$n" -lt 100 ]; do
  rm -rf -- "$1" 2>/dev/null && [ ! -e "$1" ] && break
  n=$((n + 1)); sleep 0.1
done
"#;

/// A directory owned by this process, mode 0711: other users may reach what is given to them inside by name (a server
/// that runs as another user needs that), but may not list it.
#[derive(Debug)]
pub struct ScratchDir {
    path: PathBuf,
    watcher: Option<Child>,
    keep: bool,
    // Held for its lock; closed last, so that no sweep can meet a half-removed directory of a live owner.
    _lock: File,
}

impl ScratchDir {
    /// Makes `<base>/<prefix>-<pid>-<n>` where `base` is `$TMPDIR` or `/tmp` ([`base_dir`]).
    ///
    /// # Errors
    /// When the directory or the watching shell cannot be made.
    pub fn create(prefix: &str) -> io::Result<ScratchDir> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let base = base_dir();
        loop {
            let n = COUNTER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{prefix}-{}-{n}", std::process::id());
            // Locked under a name no sweep looks at, then moved: a sweep never sees an unlocked live directory.
            let unborn = base.join(format!(".new-{name}"));
            match DirBuilder::new().mode(0o711).create(&unborn) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", unborn.display()))),
                Ok(()) => {}
            }
            // The umask may have taken the x bits that other users need.
            fs::set_permissions(&unborn, fs::Permissions::from_mode(0o711))?;
            let lock = File::create(unborn.join(LOCK))?;
            lock.lock()?;
            let path = base.join(&name);
            if path.exists() {
                // A leftover of an earlier process with this id that nobody has swept yet.
                fs::remove_dir_all(&unborn)?;
                continue;
            }
            fs::rename(&unborn, &path)?;
            let mut dir = ScratchDir { path, watcher: None, keep: false, _lock: lock };
            dir.watcher = Some(watch(&dir.path)?);
            return Ok(dir);
        }
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory inside, for one user only (mode 0700); `owner` is (uid, gid) where it is not this user.
    ///
    /// # Errors
    /// When it exists, or cannot be made or given away.
    pub fn subdir(&self, name: &str, owner: Option<(u32, u32)>) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        Ok(path)
    }

    /// Leaves the directory where it is when this value is dropped (to look into it after a failure). It is still
    /// removed when the process is killed, and by the next sweep.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        if self.keep {
            // The watcher must not take the directory either: it is stopped before its pipe is closed.
            if let Some(watcher) = &mut self.watcher {
                let _ = watcher.kill();
            }
        } else if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, path = %self.path.display(), "left to the watcher");
        }
        if let Some(watcher) = &mut self.watcher {
            drop(watcher.stdin.take()); // the end of the pipe is the watcher's sign
            let _ = watcher.wait();
        }
    }
}

/// The parent of all scratch directories: `$TMPDIR` if other users can pass through it, else `/tmp`. A server that
/// runs as another user could not reach its data below a private `$TMPDIR`.
pub fn base_dir() -> PathBuf {
    let wanted = std::env::temp_dir();
    if wanted.is_absolute() && private_part(&wanted).is_none() { wanted } else { PathBuf::from("/tmp") }
}

/// Which of its directories, itself included, other users can't pass through.
fn private_part(wanted: &Path) -> Option<&Path> {
    wanted.ancestors().find(|dir| !fs::metadata(dir).is_ok_and(|meta| meta.permissions().mode() & 0o001 != 0))
}

/// `TMPDIR` names no place for a demo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct BadPlace {
    /// What it names.
    pub place: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Longest path of a socket, in bytes, without the closing zero.
const SOCKET_MAX: usize = 107;

/// Looks whether directories can be made where `TMPDIR` says. What comes back is to be told: it is not used.
///
/// # Errors
/// [`BadPlace`] with what is wrong with it.
pub fn check_place() -> Result<Option<String>, BadPlace> {
    let Some(named) = std::env::var_os("TMPDIR").filter(|dir| !dir.is_empty()) else { return Ok(None) };
    check(Path::new(&named), &base_dir())
}

fn check(named: &Path, used: &Path) -> Result<Option<String>, BadPlace> {
    let bad = |reason: String| Err(BadPlace { place: named.display().to_string(), reason });
    if !named.is_absolute() {
        return bad("it is not an absolute path".to_owned());
    }
    match fs::metadata(named) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return bad("it is not a directory".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return bad("there is no such directory".to_owned()),
        Err(error) => return bad(error.to_string()),
    }
    if named != used
        && let Some(part) = private_part(named)
    {
        let why = if part == named { "it".to_owned() } else { part.display().to_string() };
        return Ok(Some(format!(
            "{} is used, not TMPDIR ({}): other users can't pass through {why}, and PostgreSQL may run as one",
            used.display(),
            named.display()
        )));
    }
    let longest = SOCKET_MAX - format!("/{}-{}-99/socket/.s.PGSQL.65535", super::postgres::PREFIX, u32::MAX).len();
    let length = named.as_os_str().len();
    if length > longest {
        return bad(format!("its {length} bytes leave no room for the path of a socket; {longest} do"));
    }
    // Rights do not tell of a file system that is read-only; making a directory does.
    let tried = named.join(format!(".new-afterimage-{}", std::process::id()));
    match fs::create_dir(&tried).and_then(|()| fs::remove_dir(&tried)) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => bad("its disk is full".to_owned()),
        Err(error) => bad(format!("no directory can be made in it: {error}")),
    }
}

/// Removes the scratch directories of this prefix whose owner is gone, and says how many. Directories of live owners,
/// of other users and of other prefixes are left alone, and so is what cannot be removed: leftovers are not worth
/// failing for.
pub fn sweep_stale(prefix: &str) -> usize {
    let Ok(entries) = fs::read_dir(base_dir()) else { return 0 };
    let named = format!("{prefix}-");
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with(&named)))
        .filter(|entry| sweep_one(&entry.path()).unwrap_or(false))
        .count()
}

fn sweep_one(dir: &Path) -> io::Result<bool> {
    // A link could lead the removal elsewhere; scratch directories are never links.
    if !fs::symlink_metadata(dir)?.is_dir() {
        return Ok(false);
    }
    let lock = File::open(dir.join(LOCK))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    end_leftover_servers(dir);
    fs::remove_dir_all(dir)?;
    Ok(true)
}

/// Ends what still runs on a dead owner's directory. That takes a server which lost its death signal, so it is rare;
/// but a server whose files are removed under it must not go on answering.
fn end_leftover_servers(dir: &Path) {
    let Ok(processes) = fs::read_dir("/proc") else { return };
    let Some(wanted) = dir.to_str() else { return };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let cmdline = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = cmdline.split(|byte| *byte == 0);
        let program = words.next().and_then(|word| std::str::from_utf8(word).ok()).unwrap_or_default();
        let serves_it =
            words.any(|word| std::str::from_utf8(word).is_ok_and(|word| Path::new(word).starts_with(wanted)));
        if serves_it && Path::new(program).file_name().is_some_and(|name| name == "postgres" || name == "java") {
            tracing::warn!(pid, path = wanted, "ending a server whose owner is gone");
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
    }
}

/// Starts the shell that removes `dir` when the write end of its standard input is closed, which the kernel does when
/// this process ends. It is in a process group of its own, so that a Ctrl-C at the terminal does not take it along,
/// and holds none of this process's output streams open.
fn watch(dir: &Path) -> io::Result<Child> {
    Command::new("sh")
        .args(["-c", WATCH, "afterimage-cleanup"])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_directory_is_gone() {
        let dir = ScratchDir::create("afterimage-test-drop").unwrap();
        let path = dir.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        let inner = dir.subdir("inner", None).unwrap();
        assert_eq!(fs::metadata(&inner).unwrap().permissions().mode() & 0o777, 0o700);
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn the_watcher_removes_what_drop_could_not() {
        let mut dir = ScratchDir::create("afterimage-test-watch").unwrap();
        let path = dir.path().to_owned();
        // As after kill -9: nothing of Drop runs, the pipe is closed all the same.
        let mut watcher = dir.watcher.take().unwrap();
        std::mem::forget(dir);
        drop(watcher.stdin.take());
        assert!(watcher.wait().unwrap().success());
        assert!(!path.exists());
    }

    #[test]
    fn a_sweep_takes_the_dead_and_leaves_the_living() {
        let prefix = format!("afterimage-test-sweep-{}", std::process::id());
        let living = ScratchDir::create(&prefix).unwrap();
        let mut dead = ScratchDir::create(&prefix).unwrap();
        let dead_path = dead.path().to_owned();
        // Both nets fail: the watcher is killed too, and the lock is freed without a removal.
        let mut watcher = dead.watcher.take().unwrap();
        watcher.kill().unwrap();
        watcher.wait().unwrap();
        dead.keep();
        drop(dead);
        assert!(dead_path.exists());

        assert_eq!(sweep_stale(&prefix), 1);
        assert!(!dead_path.exists());
        assert!(living.path().exists());
    }

    #[test]
    fn a_place_where_nothing_can_be_made_is_refused_with_the_reason() {
        let dir = ScratchDir::create("afterimage-test-place").unwrap();
        let refused = |place: &Path| check(place, place).unwrap_err().reason;
        assert_eq!(check(dir.path(), dir.path()), Ok(None));
        assert_eq!(refused(Path::new("a/b")), "it is not an absolute path");
        assert_eq!(refused(&dir.path().join("none")), "there is no such directory");
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert_eq!(refused(&file), "it is not a directory");
        let deep = dir.path().join("d".repeat(80));
        fs::create_dir(&deep).unwrap();
        assert!(refused(&deep).contains("no room for the path of a socket"), "{}", refused(&deep));
        // Where even root can make nothing.
        assert!(refused(Path::new("/proc")).starts_with("no directory can be made in it: "));
        let private = dir.subdir("private", None).unwrap();
        let told = check(&private, Path::new("/tmp")).unwrap().unwrap();
        assert!(told.starts_with("/tmp is used, not TMPDIR (") && told.contains("pass through it"), "{told}");
    }

    #[test]
    fn the_base_can_be_passed_by_other_users() {
        let base = base_dir();
        for dir in base.ancestors() {
            assert_ne!(fs::metadata(dir).unwrap().permissions().mode() & 0o001, 0, "{}", dir.display());
        }
    }
}
