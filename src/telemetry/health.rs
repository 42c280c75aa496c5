//! Is this process alive, and is it of use? Answered at `/healthz` and `/readyz` for whoever restarts it or sends it work.
//!
//! *Alive*: its threads come round. A sink or a broker that does not answer is no reason to restart the worker, so it
//! does not count here. *Ready*: started, its partitions claimed or none given to it, the sink answers, with the schema
//! that this program needs, and neither its own disk nor the sink's is full.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A thread that was not seen for this long hangs: the longest single wait of any is a connection attempt, 10 s.
const HANGS: Duration = Duration::from_secs(60);
/// How long after an answer the sink is asked again how it is.
pub const ASK_SINK: Duration = Duration::from_secs(2);
/// The sink's last answer is believed for this long, whatever the asking meanwhile: so long it takes at most until a sink
/// that fell silent is told of. What is left of it for the next answer is ample for one that is not overloaded.
const SINK_ANSWER: Duration = Duration::from_secs(5);
/// That the sink's disk is full is believed for this long, or until a commit: whoever met it tries again more often, but may
/// have lost the partitions meanwhile.
const SINK_FULL: Duration = Duration::from_secs(60);

/// What the process knows of its own health. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    since: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    beats: BTreeMap<String, Arc<AtomicU64>>,
    sink: Option<(Instant, Result<(), String>)>,
    partitions: Option<Partitions>,
    /// Why the worker holds nothing.
    holds_nothing: Option<String>,
    /// Why the sink takes nothing.
    sink_full: Option<(Instant, String)>,
    stopping: bool,
}

/// The partitions that the group gave to this worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Partitions {
    /// Claimed and being read.
    pub claimed: usize,
    /// Given, and not claimed yet.
    pub unclaimed: usize,
    /// Resting after another worker had claimed them.
    pub resting: usize,
    /// Halted: a person has to look at them. They don't make the worker less ready.
    pub halted: usize,
}

/// A thread's sign of life; it is forgotten when this is dropped.
#[derive(Debug)]
pub struct Beat {
    health: Health,
    thread: String,
    at: Arc<AtomicU64>,
}

impl Beat {
    /// The thread moves.
    pub fn now(&self) {
        self.at.store(self.health.elapsed(), Ordering::Relaxed);
    }

    /// What it belongs to.
    pub fn health(&self) -> &Health {
        &self.health
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.health.lock().beats.remove(&self.thread);
    }
}

impl Default for Health {
    fn default() -> Self {
        Health(Arc::new(Inner { since: Instant::now(), state: Mutex::default() }))
    }
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.0.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Watches over a thread from now on.
    pub fn beat(&self, thread: impl Into<String>) -> Beat {
        let (thread, at) = (thread.into(), Arc::new(AtomicU64::new(self.elapsed())));
        self.lock().beats.insert(thread.clone(), Arc::clone(&at));
        Beat { health: self.clone(), thread, at }
    }

    /// The sink answered, or why it is of no use.
    pub fn sink(&self, answer: Result<(), String>) {
        self.lock().sink = Some((Instant::now(), answer));
    }

    /// What the group gave to this worker. The first call says that it has started.
    pub fn partitions(&self, partitions: Partitions) {
        self.lock().partitions = Some(partitions);
    }

    /// The worker holds no partitions and waits: for room on its own disk, or, since it has to begin anew, for the sink or the
    /// broker; with the reason.
    pub fn holds_nothing(&self, reason: String) {
        self.lock().holds_nothing = Some(reason);
    }

    /// It begins anew: nothing that was said of its partitions and the sink is true any more.
    pub fn starting(&self) {
        let mut state = self.lock();
        let State { sink, partitions, holds_nothing, sink_full, .. } = &mut *state;
        (*sink, *partitions, *holds_nothing, *sink_full) = (None, None, None, None);
    }

    /// The sink refused something because its disk is full, with the reason; or it takes commits again: `None`.
    pub fn sink_full(&self, reason: Option<String>) {
        self.lock().sink_full = reason.map(|reason| (Instant::now(), reason));
    }

    /// The process is about to end.
    pub fn stopping(&self) {
        self.lock().stopping = true;
    }

    /// `/healthz`: whether it is well, and the body.
    pub fn healthz(&self) -> (bool, Value) {
        let now = self.elapsed();
        let state = self.lock();
        let beats = state.beats.iter().map(|(thread, at)| (now.saturating_sub(at.load(Ordering::Relaxed)), thread));
        let oldest = beats.max();
        match oldest {
            Some((age, thread)) if u128::from(age) >= HANGS.as_millis() => {
                (false, json!({ "status": "stuck", "thread": thread, "seconds": age / 1000 }))
            }
            _ => (true, json!({ "status": "ok", "threads": state.beats.len() })),
        }
    }

    /// `/readyz`: whether it is ready, and the body.
    pub fn readyz(&self) -> (bool, Value) {
        let state = self.lock();
        let not = |reason: &str| (false, json!({ "status": "not ready", "reason": reason }));
        if state.stopping {
            return not("stopping");
        }
        if let Some(reason) = &state.holds_nothing {
            return not(reason);
        }
        let Some(partitions) = state.partitions else { return not("starting") };
        match &state.sink {
            None => return not("the sink was not asked yet"),
            Some((_, Err(reason))) => return not(reason),
            Some((at, Ok(()))) if at.elapsed() > SINK_ANSWER => return not("the sink does not answer"),
            Some((_, Ok(()))) => {}
        }
        if let Some((at, reason)) = &state.sink_full
            && at.elapsed() < SINK_FULL
        {
            return not(reason);
        }
        let Partitions { claimed, unclaimed, resting, halted } = partitions;
        let counts = json!({ "claimed": claimed, "unclaimed": unclaimed, "resting": resting, "halted": halted });
        if unclaimed > 0 {
            return (
                false,
                json!({ "status": "not ready", "reason": "partitions are not claimed yet", "partitions": counts }),
            );
        }
        (true, json!({ "status": "ready", "partitions": counts }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_started_with_a_sink_and_nothing_unclaimed() {
        let health = Health::default();
        let reason = |health: &Health| {
            let (ready, body) = health.readyz();
            assert_eq!(ready, body["status"] == "ready", "{body}");
            body["reason"].as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(reason(&health), "starting");
        health.partitions(Partitions::default());
        assert_eq!(reason(&health), "the sink was not asked yet");
        health.sink(Err("the database has no afterimage schema".into()));
        assert_eq!(reason(&health), "the database has no afterimage schema");
        health.sink(Ok(()));
        assert_eq!(reason(&health), "", "waiting for an assignment is ready");
        health.partitions(Partitions { claimed: 3, unclaimed: 1, ..Partitions::default() });
        assert_eq!(reason(&health), "partitions are not claimed yet");
        health.partitions(Partitions { claimed: 4, halted: 1, ..Partitions::default() });
        let (ready, body) = health.readyz();
        assert!(
            ready && body["partitions"] == json!({"claimed": 4, "unclaimed": 0, "resting": 0, "halted": 1}),
            "{body}"
        );
        health.sink_full(Some("no room there".into()));
        assert_eq!(reason(&health), "no room there");
        health.sink_full(None);
        assert_eq!(reason(&health), "");
        health.lock().sink_full = Some((Instant::now() - SINK_FULL, "no room there".into()));
        assert_eq!(reason(&health), "", "whoever told it would have met it again by now");
        health.holds_nothing("no room here".into());
        health.partitions(Partitions::default());
        assert_eq!(reason(&health), "no room here");
        health.starting();
        assert_eq!(reason(&health), "starting", "what was said before is no longer true");
        health.holds_nothing("no room here".into());
        health.stopping();
        assert_eq!(reason(&health), "stopping");
    }

    #[test]
    fn an_answer_of_the_sink_is_believed_for_five_seconds() {
        let health = Health::default();
        health.partitions(Partitions::default());
        let answered = |ago: u64| {
            health.lock().sink = Some((Instant::now() - Duration::from_secs(ago), Ok(())));
            health.readyz()
        };
        assert!(answered(4).0);
        let (ready, body) = answered(5);
        assert!(!ready && body["reason"] == "the sink does not answer", "{body}");
    }

    #[test]
    fn a_thread_that_does_not_come_round_is_named_and_one_that_has_ended_is_not() {
        let health = Health::default();
        let (well, ill) = (health.beat("kafka"), health.beat("topic t"));
        assert_eq!(health.healthz(), (true, json!({ "status": "ok", "threads": 2 })));
        // As if the process had begun long ago.
        let old = Health(Arc::new(Inner { since: Instant::now() - Duration::from_secs(100), state: Mutex::default() }));
        let beats = [old.beat("kafka"), old.beat("topic t")];
        beats[1].at.store(0, Ordering::Relaxed);
        let (alive, body) = old.healthz();
        assert!(!alive && body["thread"] == "topic t" && body["seconds"].as_u64() >= Some(99), "{body}");
        beats[1].now();
        assert!(old.healthz().0);
        drop((well, ill));
        assert_eq!(health.healthz().1["threads"], 0);
    }
}
