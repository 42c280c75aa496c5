//! Waiting for what is outside: a server that comes up, a download. It blocks a thread, so async callers do it
//! [`off_the_runtime`]; there it ends when nobody waits for it any more, so that Ctrl-C is never held up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// The wish that a wait be given up. The default is never to.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Looks until `look` gives a value.
///
/// # Errors
/// What `look` fails with; after `limit`, naming `what` was awaited; and when the wait is to stop.
pub fn wait<T>(what: &str, limit: Duration, stop: &Stop, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if stop.is_wanted() {
            bail!("{what}: no longer waited for");
        }
        if Instant::now() > deadline {
            bail!("{what}: waited {limit:?} in vain");
        }
        std::thread::sleep(PAUSE);
    }
}

/// Runs blocking work on a thread of its own kind. When the future is dropped, the work is told to stop.
///
/// # Errors
/// The work's own.
pub async fn off_the_runtime<T: Send + 'static>(work: impl FnOnce(&Stop) -> Result<T> + Send + 'static) -> Result<T> {
    struct Dropped(Stop);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = Stop::default();
    let _dropped = Dropped(stop.clone());
    tokio::task::spawn_blocking(move || work(&stop)).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_fact_its_failure_or_its_limit() {
        let stop = Stop::default();
        let mut looks = 0;
        let found = wait("it", Duration::from_secs(60), &stop, || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), 3);
        let failed = wait::<()>("it", Duration::from_secs(60), &stop, || bail!("broken"));
        assert_eq!(failed.unwrap_err().to_string(), "broken");
        let vain = wait::<()>("a sign", Duration::ZERO, &stop, || Ok(None)).unwrap_err();
        assert!(vain.to_string().contains("a sign"), "{vain}");
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        let (ended, end) = std::sync::mpsc::channel();
        let work = off_the_runtime(move |stop| {
            let result = wait::<()>("never", Duration::from_secs(60), stop, || Ok(None));
            ended.send(result.unwrap_err().to_string()).unwrap();
            Ok(())
        });
        // Polled once, so that it begins; then dropped.
        let waited = tokio::time::timeout(Duration::from_millis(1), work).await;
        assert!(waited.is_err());
        let said = tokio::task::spawn_blocking(move || end.recv_timeout(Duration::from_secs(30))).await.unwrap();
        assert!(said.unwrap().contains("no longer"));
    }
}
