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
/// Full again within this time, the store needed more than was there.
const SOON: Duration = Duration::from_secs(600);
/// How long it is then waited for more, before it is tried again with what sufficed before. Longer each time …
const FIRST_PATIENCE: Duration = Duration::from_secs(60);
/// … up to so many times.
const MOST: u32 = 5;

/// How the wait ended.
pub(super) enum Waited {
    /// There is room.
    RoomAgain,
    /// The worker was asked to stop.
    AskedToStop,
}

/// How much room is waited for. What a store needs that has files to merge can't be told beforehand, and each try in vain
/// has the whole group deal out its partitions anew: so a worker that was full again soon waits for twice as much, and if that
/// does not come tries again only after a while.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// How often in a row it was full again soon.
    in_vain: u32,
    /// When there was room last.
    since: Option<Instant>,
}

impl Room {
    fn note_full(&mut self, now: Instant) {
        let soon = self.since.is_some_and(|at| now.duration_since(at) < SOON);
        self.in_vain = if soon { (self.in_vain + 1).min(MOST) } else { 0 };
    }

    /// Bytes that are waited for, after this long, where so many are needed at least.
    fn needed(&self, least: u64, waited: Duration) -> u64 {
        match self.in_vain.checked_sub(1) {
            Some(before) if waited < FIRST_PATIENCE * 2_u32.pow(before) => least << self.in_vain,
            _ => least,
        }
    }
}

/// Lets `/readyz` and the metrics say that there is no room.
pub(super) fn show(settings: &RunSettings, why: &StateError) {
    gauge!(names::STATE_DISK_FULL).set(1.0);
    settings.health.holds_nothing(format!("the disk of the image store is full: {why}"));
}

impl Room {
    /// Waits until there is room in the directory of the image store. Nobody has the store open.
    ///
    /// # Errors
    /// [`RunError::State`] when the directory is of no use for another reason.
    pub(super) async fn wait(
        &mut self,
        settings: &RunSettings,
        why: &StateError,
        stop: &mut oneshot::Receiver<()>,
    ) -> Result<Waited, RunError> {
        upkeep::tell_no_tasks();
        show(settings, why);
        let mut reason = why.to_string();
        let since = Instant::now();
        self.note_full(since);
        let mut told = None;
        loop {
            let needed = self.needed(settings.state_options().room(), since.elapsed());
            if told.is_none_or(|at: Instant| at.elapsed() >= TELL) {
                told = Some(Instant::now());
                tracing::error!(
                    dir = %settings.state_dir.display(), reason,
                    "the disk of the image store is full: until there is room this worker reads nothing and holds no \
                     partitions; nothing is lost. Free {} MiB under that directory and it goes on by itself (a dyno that is \
                     restarted gets an empty disk)",
                    needed.div_ceil(1 << 20)
                );
            }
            tokio::select! {
                biased;
                _ = &mut *stop => return Ok(Waited::AskedToStop),
                () = tokio::time::sleep(LOOK) => {}
            }
            let (dir, least) = (settings.state_dir.clone(), settings.state_options().room());
            let looked = tokio::task::spawn_blocking(move || check_room(&dir, needed, least));
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
        self.since = Some(Instant::now());
        Ok(Waited::RoomAgain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_full_again_soon_waits_for_more_or_for_longer() {
        let (mut room, start) = (Room::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let needed = |room: &Room, waited| room.needed(8, Duration::from_secs(waited));
        room.note_full(start);
        assert_eq!([0, 1_000].map(|waited| needed(&room, waited)), [8, 8]);
        room.since = Some(at(10));
        room.note_full(at(12));
        assert_eq!([0, 59, 60].map(|waited| needed(&room, waited)), [16, 16, 8]);
        room.since = Some(at(72));
        room.note_full(at(74));
        assert_eq!([0, 119, 120].map(|waited| needed(&room, waited)), [32, 32, 8]);
        // It does not grow for ever.
        for _ in 0..100 {
            room.note_full(at(75));
        }
        assert_eq!([0, 959, 960].map(|waited| needed(&room, waited)), [256, 256, 8]);
        // A store that had room for a while is full for another reason.
        room.note_full(at(72 + 600));
        assert_eq!(needed(&room, 0), 8);
    }
}
