//! A damaged image store is dropped and filled again: all of it can be had from the sink, and nothing in it is believed
//! that a checksum contradicts.

use std::time::{Duration, Instant};

use afterimage_state::{StateError, wipe};
use metrics::counter;
use tokio::sync::oneshot;

use super::{RunError, RunSettings, upkeep};
use crate::telemetry::names;

/// Damaged again within this time, it is the disk or the memory, and somebody has to look.
const AGAIN: Duration = Duration::from_secs(600);
/// A thread of this worker that waits for the sink may have the store open for so long: a question is given up after 30 s, a
/// commit after 45.
const OWN_THREADS: Duration = Duration::from_secs(90);
/// Between two looks whether it still has.
const LOOK: Duration = Duration::from_millis(250);

/// When the store was dropped last.
#[derive(Default)]
pub(super) struct Damage(Option<Instant>);

/// Lets `/readyz` say so.
pub(super) fn show(settings: &RunSettings, why: &StateError) {
    settings.health.holds_nothing(format!("the image store is damaged: {why}"));
}

impl Damage {
    /// Whether a worker goes on after this: with an empty store.
    pub fn is_mended_by_dropping(&self, why: &StateError) -> bool {
        why.is_damage() && self.0.is_none_or(|at| at.elapsed() > AGAIN)
    }

    /// Drops the store, once none of this worker's threads has it open any more. False = asked to stop meanwhile.
    ///
    /// # Errors
    /// [`RunError::State`] when the directory can't be written, or somebody keeps the store open.
    pub async fn drop_store(
        &mut self,
        settings: &RunSettings,
        why: &StateError,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result<bool, RunError> {
        self.0 = Some(Instant::now());
        upkeep::tell_no_tasks();
        show(settings, why);
        let (since, mut told) = (Instant::now(), false);
        loop {
            match wipe(&settings.state_dir) {
                Ok(()) => break,
                Err(StateError::Locked(_)) if since.elapsed() < OWN_THREADS => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            dir = %settings.state_dir.display(), reason = %why,
                            "the image store is damaged, and a thread that waits for an answer still has it open: it is \
                             dropped as soon as that has ended"
                        );
                    }
                }
                Err(source) => return Err(settings.state_error(source)),
            }
            tokio::select! {
                biased;
                _ = &mut *stop => return Ok(false),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        counter!(names::STATE_CLEARED, "reason" => "damaged").increment(1);
        tracing::error!(
            dir = %settings.state_dir.display(), reason = %why,
            "the image store is damaged: it is dropped, and filled again from the sink beside the stream; nothing is lost. \
             If it happens again, look at the disk"
        );
        settings.health.starting();
        Ok(true)
    }
}
