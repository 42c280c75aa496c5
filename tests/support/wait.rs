//! Waiting for facts. The only place in the tests that may sleep: between two looks at the world, never instead of one.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Long enough for a loaded two-core machine; reached only when the awaited fact is not going to come.
pub const LONG: Duration = Duration::from_secs(120);

const PAUSE: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value, and returns it. `Err` says what is still missing.
///
/// # Panics
/// After `limit`, naming `what` was awaited and what was missing at the last look.
pub async fn wait_for<T, E: Display>(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        // A look that hangs must not outlast the deadline either.
        match tokio::time::timeout(limit, look()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(missing)) if Instant::now() > deadline => {
                panic!("waited {limit:?} for {what}; last look: {missing}")
            }
            Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
            Err(_) => panic!("waited {limit:?} for {what}; a single look took that long"),
        }
    }
}

/// Looks until `look` says yes.
///
/// # Panics
/// After `limit`, naming `what` was awaited.
pub async fn wait_until(what: &str, limit: Duration, mut look: impl AsyncFnMut() -> bool) {
    wait_for(what, limit, async || if look().await { Ok(()) } else { Err("not yet") }).await
}

/// [`wait_for`] for code that is not async: the start of a shared server.
///
/// # Panics
/// As [`wait_for`].
pub fn wait_blocking<T, E: Display>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look() {
            Ok(value) => return value,
            Err(missing) if Instant::now() > deadline => panic!("waited {limit:?} for {what}; last look: {missing}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Whether `fact` comes true within `limit`: for what must *not* happen, where only time can tell.
pub fn happens_within(limit: Duration, mut fact: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if fact() {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// Lets time pass: for a load or a fault that has a pace of its own. Never in place of a fact.
pub async fn let_pass(time: Duration) {
    tokio::time::sleep(time).await;
}
