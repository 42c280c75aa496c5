//! Late events into their place, between two batches: see `core/judge/splice.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::counter;

use super::group::Group;
use super::task::Task;
use crate::postgres::splice::{Placed, place};
use crate::telemetry::names;

/// What is in hand is given so long to be committed first.
const IN_HAND: Duration = Duration::from_secs(2);
/// One transaction takes at most so long, or its outcome is unknown.
const TIME: Duration = Duration::from_secs(30);

impl Group {
    /// Places what was found to be late of records at home here. Nothing is in hand meanwhile: what is judged next is
    /// judged on the new images.
    pub(super) fn place_late(&mut self) {
        if !self.parts.align.take_late() {
            return;
        }
        self.finish(Instant::now() + IN_HAND);
        // If it can't be done now, it is found again.
        if self.in_flight.is_some() || !self.open.is_empty() || !self.tasks.values().all(Task::caught_up) {
            return;
        }
        let mut more = true;
        while std::mem::take(&mut more) && !self.tasks.is_empty() && !self.stopping {
            self.parts.beat.now();
            let held: BTreeMap<_, _> = self.tasks.values().map(|task| (task.position_id, task.held())).collect();
            let facts = Arc::clone(self.parts.dictionary.facts());
            let now = Group::now();
            let (runtime, sink) = (self.parts.runtime.clone(), self.parts.sink.clone());
            let reader = &mut self.reader;
            let asked = async {
                let client = match reader {
                    Some(client) if !client.is_closed() => client,
                    slot => match sink.connect().await {
                        Ok(client) => slot.insert(client),
                        Err(_) => return Ok(None),
                    },
                };
                place(client, &facts, &held, now).await
            };
            let answer = runtime.block_on(async { tokio::time::timeout(TIME, asked).await });
            match answer {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(placed))) => {
                    more = placed.more;
                    self.placed(placed);
                }
                Ok(Err(error)) => {
                    self.reader = None;
                    self.failed(error);
                }
                Err(_) => {
                    self.reader = None;
                    self.claim_again("the sink did not say in time whether late events were placed");
                }
            }
        }
    }

    fn placed(&mut self, placed: Placed) {
        let Placed { committed, versions, noops, kept, reason, .. } = placed;
        let topic = &self.parts.topic;
        for (outcome, events) in [("version", versions), ("no-op", noops), ("kept", kept)] {
            if events > 0 {
                counter!(names::LATE_PLACED, "topic" => topic.to_string(), "outcome" => outcome).increment(events);
            }
        }
        tracing::debug!(%topic, versions, noops, "late events placed");
        if let Some(reason) = reason {
            tracing::warn!(%topic, events = kept, reason, "late events cannot be placed; they stand in afterimage.late_events");
        }
        self.take_known(committed);
        self.overlay.clear();
    }
}
