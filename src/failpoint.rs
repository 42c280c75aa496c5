//! Failpoints: named places between two steps, at which a test ends this process, holds it up, or makes the step fail.
//!
//! There in builds with the feature `failpoints` only, which only tests ask for; in every other build `failpoint!` is
//! nothing at all. The variable `FAILPOINTS` of the process says what happens where:
//!
//! ```text
//! FAILPOINTS=commit.advanced=exit             ends as by kill -9, the first time it comes there
//! FAILPOINTS=commit.locked=error@3            the third time it comes there, the step fails
//! FAILPOINTS=commit.locked=pause:/tmp/x       makes the file /tmp/x.here, and goes on when /tmp/x is there
//! ```
//!
//! Several are separated by commas.
//!
//! A check may also be left out, so that a test sees what it is needed for: `LEFT_OUT=lineage`.

/// A place between two steps. With a second argument the step can be made to fail there: that is what it fails with.
#[cfg(feature = "failpoints")]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::reached($name)
    };
    ($name:literal, $error:expr) => {
        if $crate::failpoint::reached($name) {
            return Err($error);
        }
    };
}

/// Nothing: this build has no failpoints.
#[cfg(not(feature = "failpoints"))]
macro_rules! failpoint {
    ($($any:tt)*) => {};
}

/// Whether a test has this check left out.
#[cfg(feature = "failpoints")]
macro_rules! left_out {
    ($name:literal) => {
        $crate::failpoint::left_out($name)
    };
}

/// Never: this build has all its checks.
#[cfg(not(feature = "failpoints"))]
macro_rules! left_out {
    ($name:literal) => {
        false
    };
}

#[cfg(feature = "failpoints")]
pub use with_feature::{DOUBT, Failpoint, POINTS, SPLICE, VERBS, left_out, reached};

#[cfg(feature = "failpoints")]
mod with_feature {
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    /// A failpoint: its name, and whether the step can be made to fail there.
    pub type Failpoint = (&'static str, bool);

    /// Those of claim, restore and commit, in the order in which a worker comes by.
    pub const POINTS: &[Failpoint] = &[
        ("claim.locked", true),
        ("claim.raised", true),
        ("claim.noted", true),
        ("claim.committed", true),
        ("restore.decided", true),
        ("restore.cleared", true),
        ("restore.invalidated", true),
        ("restore.forgotten", false),
        ("restore.read", false),
        ("restore.filled", false),
        ("lookup.registered", false),
        ("commit.begun", true),
        ("commit.appended", true),
        ("commit.locked", true),
        ("commit.taken", true),
        ("commit.settled", true),
        ("commit.advanced", true),
        ("commit.committed", true),
        ("store.batched", false),
        ("store.written", false),
        ("offsets.told", false),
    ];

    /// That of a worker that has found another log under it.
    pub const DOUBT: Failpoint = ("logs.doubted", false);

    /// Those of the transaction that puts late events in their place.
    pub const SPLICE: &[Failpoint] = &[
        ("splice.found", true),
        ("splice.locked", true),
        ("splice.adopted", true),
        ("splice.written", true),
        ("splice.invalidated", true),
        ("splice.advanced", true),
        ("splice.committed", true),
    ];

    /// Those of what a person asks for, verb by verb. What a retry brings in is a claim and commits as any.
    pub const VERBS: &[Failpoint] = &[
        ("skip.looked", false),
        ("skip.locked", false),
        ("skip.noted", false),
        ("skip.moved", false),
        ("skip.fenced", false),
        ("skip.committed", false),
        ("resume.looked", false),
        ("resume.locked", false),
        ("resume.lifted", false),
        ("resume.committed", false),
        ("adopt.looked", false),
        ("adopt.locked", false),
        ("adopt.held", false),
        ("adopt.fenced", false),
        ("adopt.ended", false),
        ("adopt.begun", false),
        ("adopt.committed", false),
        ("drop.committed", false),
        ("retry.registered", false),
        ("retry.ended", false),
        ("retry.begun", false),
        ("retry.claimed", false),
        ("retry.judged", false),
        ("retry.committed", false),
    ];

    /// Checks that can be left out.
    const CHECKS: &[&str] = &["lineage"];

    /// Whether `LEFT_OUT` names this check.
    ///
    /// # Panics
    /// When it names another one than there are.
    pub fn left_out(name: &'static str) -> bool {
        let left_out = std::env::var("LEFT_OUT").unwrap_or_default();
        assert!(left_out.is_empty() || CHECKS.contains(&&*left_out), "there is no check {left_out}");
        left_out == name
    }

    enum Action {
        Exit,
        Error,
        Pause(PathBuf),
    }

    struct Armed {
        name: &'static str,
        action: Action,
        /// At which visit, counted down.
        left: AtomicU32,
    }

    fn armed() -> &'static [Armed] {
        static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();
        ARMED.get_or_init(|| {
            let text = std::env::var("FAILPOINTS").unwrap_or_default();
            text.split(',').filter(|one| !one.is_empty()).map(read).collect()
        })
    }

    /// # Panics
    /// On anything that would make a test test nothing.
    fn read(text: &str) -> Armed {
        let (name, rest) = text.split_once('=').unwrap_or_else(|| panic!("FAILPOINTS: {text} has no action"));
        let (name, can_fail) = find(name);
        let (action, visit) = rest.split_once('@').unwrap_or((rest, "1"));
        let action = match action.split_once(':') {
            Some(("pause", file)) => Action::Pause(file.into()),
            None if action == "exit" => Action::Exit,
            None if action == "error" && can_fail => Action::Error,
            _ => panic!("FAILPOINTS: {name} has no action {action}"),
        };
        let left = visit.parse().unwrap_or_else(|_| panic!("FAILPOINTS: {visit} is not a number of visits"));
        Armed { name, action, left: AtomicU32::new(left) }
    }

    fn find(name: &str) -> Failpoint {
        let mut all = [POINTS, SPLICE, VERBS, &[DOUBT]].into_iter().flatten();
        *all.find(|(known, _)| *known == name).unwrap_or_else(|| panic!("there is no failpoint {name}"))
    }

    /// A process is at this place; true = the step has to fail.
    pub fn reached(name: &'static str) -> bool {
        let mut fails = false;
        for one in armed().iter().filter(|one| one.name == name) {
            let due = one.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if due != Ok(1) {
                continue;
            }
            eprintln!("failpoint {name}");
            match &one.action {
                Action::Exit => std::process::abort(),
                Action::Error => fails = true,
                Action::Pause(file) => pause(file),
            }
        }
        fails
    }

    fn pause(file: &Path) {
        let mut here = file.as_os_str().to_owned();
        here.push(".here");
        if let Err(error) = std::fs::write(&here, "") {
            panic!("FAILPOINTS: {}: {error}", file.display());
        }
        while !file.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
