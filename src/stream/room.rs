//! While the disk under the image store is full a worker holds nothing: other workers have its partitions. It looks every
//! few seconds whether there is room again.

use std::time::{Duration, Instant};

use afterimage_state::{StateError, check_room};
use metrics::gauge;
use tokio::sync::oneshot;

use super::{RunError, RunSettings, upkeep};
use crate::telemetry::names;

/// Between two looks: short beside what it takes a person to make room.
const LOOK: Duration = Duration::from_secs(3);
/// It is told again so often why the worker does nothing.
const TELL: Duration = Duration::from_secs(600);

/// How the wait ended.
pub(super) enum Waited {
    /// There is room.
    RoomAgain,
    /// The worker was asked to stop.
    AskedToStop,
}

/// Lets `/readyz` and the metrics say that there is no room.
pub(super) fn show(settings: &RunSettings, why: &StateError) {
    gauge!(names::STATE_DISK_FULL).set(1.0);
    settings.health.disk_full(format!("the disk of the image store is full: {why}"));
}

/// Waits until there is room in the directory of the image store. Nobody has the store open.
///
/// # Errors
/// [`RunError::State`] when the directory is of no use for another reason.
pub(super) async fn wait(
    settings: &RunSettings,
    why: &StateError,
    stop: &mut oneshot::Receiver<()>,
) -> Result<Waited, RunError> {
    upkeep::tell_no_tasks();
    show(settings, why);
    let mut reason = why.to_string();
    let since = Instant::now();
    let mut told = None;
    loop {
        if told.is_none_or(|at: Instant| at.elapsed() >= TELL) {
            told = Some(Instant::now());
            tracing::error!(
                dir = %settings.state_dir.display(), reason,
                "the disk of the image store is full: until there is room this worker reads nothing and holds no partitions; \
                 nothing is lost. Free {} MiB under that directory and it goes on by itself (a dyno that is restarted gets \
                 an empty disk)",
                settings.state_options().room().div_ceil(1 << 20)
            );
        }
        tokio::select! {
            biased;
            _ = &mut *stop => return Ok(Waited::AskedToStop),
            () = tokio::time::sleep(LOOK) => {}
        }
        let (dir, options) = (settings.state_dir.clone(), settings.state_options());
        let looked = tokio::task::spawn_blocking(move || check_room(&dir, &options));
        let looked = tokio::select! {
            biased;
            _ = &mut *stop => return Ok(Waited::AskedToStop),
            looked = looked => looked.unwrap_or_else(|error| Err(StateError::Poisoned(error.to_string()))),
        };
        match looked {
            Ok(()) => break,
            // Somebody clears the store, which makes room.
            Err(error @ (StateError::Full { .. } | StateError::Locked(_))) => {
                show(settings, &error);
                reason = error.to_string();
            }
            Err(source) => return Err(settings.state_error(source)),
        }
    }
    tracing::info!(waited = ?since.elapsed(), "there is room on the disk of the image store again: starting anew");
    gauge!(names::STATE_DISK_FULL).set(0.0);
    settings.health.starting();
    Ok(Waited::RoomAgain)
}
