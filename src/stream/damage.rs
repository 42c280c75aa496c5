//! A damaged image store is dropped and filled again: all of it can be had from the sink, and nothing in it is believed
//! that a checksum contradicts.

use std::time::{Duration, Instant};

use afterimage_state::{StateError, wipe};
use metrics::counter;

use super::{RunError, RunSettings, upkeep};
use crate::telemetry::names;

/// Damaged again within this time, it is the disk or the memory, and somebody has to look.
const AGAIN: Duration = Duration::from_secs(600);

/// When the store was dropped last.
#[derive(Default)]
pub(super) struct Damage(Option<Instant>);

impl Damage {
    /// Whether a worker goes on after this: with an empty store.
    pub fn is_mended_by_dropping(&self, why: &StateError) -> bool {
        why.is_damage() && self.0.is_none_or(|at| at.elapsed() > AGAIN)
    }

    /// Drops the store, which nobody has open.
    ///
    /// # Errors
    /// [`RunError::State`] when the directory can't be written.
    pub fn drop_store(&mut self, settings: &RunSettings, why: &StateError) -> Result<(), RunError> {
        self.0 = Some(Instant::now());
        upkeep::tell_no_tasks();
        wipe(&settings.state_dir).map_err(|source| settings.state_error(source))?;
        counter!(names::STATE_CLEARED, "reason" => "damaged").increment(1);
        tracing::error!(
            dir = %settings.state_dir.display(), reason = %why,
            "the image store is damaged: it is dropped, and filled again from the sink beside the stream; nothing is lost. \
             If it happens again, look at the disk"
        );
        settings.health.starting();
        Ok(())
    }
}
