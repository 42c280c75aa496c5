//! Committers: a few connections that write sealed batches, several small ones in one transaction.
//!
//! A batch that takes records over goes alone. Two committers per worker, so that one org's reload delays the
//! others by at most one group (protocol D2).

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::postgres::Client;
use metrics::{counter, histogram};
use tokio::sync::{mpsc, oneshot};

use crate::core::batch::SealedBatch;
use crate::core::event::Micros;
use crate::core::position::PositionId;
use crate::postgres::client::SinkSettings;
use crate::postgres::commit::{CommitError, Committed, Held, commit};
use crate::postgres::registry::ensure_months;
use crate::telemetry::names;

/// Rows in one transaction.
const MOST_ROWS: usize = 20_000;
/// Bytes in one transaction.
const MOST_BYTES: usize = 8 << 20;
/// A batch that met a deadlock or a lock time-out is sent again this often before its task rewinds.
const TRIES: u32 = 5;
/// A transaction that is not done by then never will be: whoever stands between here and the server has gone silent
/// without closing the connection. The server's own limits end each of its statements earlier.
const COMMIT_TIME: Duration = Duration::from_secs(45);

/// A batch on its way.
pub struct Request {
    /// What to write.
    pub batch: Arc<SealedBatch>,
    /// The positions it advances or may take records from.
    pub held: BTreeMap<PositionId, Held>,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Committed, CommitError>>,
    /// Called after the answer was sent.
    pub done: Arc<dyn Fn() + Send + Sync>,
}

impl Request {
    fn answer(self, result: Result<Committed, CommitError>) {
        let _ = self.answer.send(result);
        (self.done)();
    }
}

/// Where to send batches.
#[derive(Clone)]
pub struct Committers {
    queue: mpsc::UnboundedSender<Request>,
}

impl Committers {
    /// Starts `count` committers on the current runtime. They end when the last handle is dropped.
    pub fn start(sink: &SinkSettings, count: usize) -> Self {
        let (queue, requests) = mpsc::unbounded_channel();
        let requests = Arc::new(tokio::sync::Mutex::new(requests));
        let months = Arc::new(Mutex::new(HashSet::new()));
        for _ in 0..count {
            let committer = Committer {
                sink: sink.clone(),
                client: None,
                requests: Arc::clone(&requests),
                months: Arc::clone(&months),
            };
            let runtime = tokio::runtime::Handle::current();
            // A thread of its own: the driver encodes rows on it, which would hold up other work of the runtime.
            std::thread::spawn(move || runtime.block_on(committer.run()));
        }
        Committers { queue }
    }

    /// No committers, but what is sent to them.
    #[cfg(test)]
    pub(super) fn queued() -> (Self, mpsc::UnboundedReceiver<Request>) {
        let (queue, requests) = mpsc::unbounded_channel();
        (Committers { queue }, requests)
    }

    /// Sends a batch. If the committers are gone the answer's sender is dropped, which its receiver sees.
    pub fn send(&self, request: Request) {
        let _ = self.queue.send(request);
    }
}

struct Committer {
    sink: SinkSettings,
    client: Option<Client>,
    requests: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Request>>>,
    months: Arc<Mutex<HashSet<i64>>>,
}

impl Committer {
    async fn run(mut self) {
        while let Some(group) = self.next().await {
            self.serve(group).await;
        }
    }

    /// One batch that takes records over, or as many plain ones as are waiting and fit.
    async fn next(&mut self) -> Option<Vec<Request>> {
        let mut requests = self.requests.lock().await;
        let first = requests.recv().await?;
        let mut group = vec![first];
        if group[0].batch.takes_over() {
            return Some(group);
        }
        let (mut rows, mut bytes) = (group[0].batch.rows(), group[0].batch.bytes());
        while rows < MOST_ROWS && bytes < MOST_BYTES {
            let Ok(more) = requests.try_recv() else { break };
            if more.batch.takes_over() {
                // It cannot join, and order between topics does not matter: serve it by itself, now.
                drop(requests);
                self.serve(vec![more]).await;
                break;
            }
            rows += more.batch.rows();
            bytes += more.batch.bytes();
            group.push(more);
        }
        Some(group)
    }

    async fn serve(&mut self, group: Vec<Request>) {
        let mut tries = 0;
        let mut group = group;
        while !group.is_empty() {
            let started = Instant::now();
            let result = self.attempt(&group).await;
            histogram!(names::COMMIT_SECONDS, "step" => "whole").record(started.elapsed().as_secs_f64());
            let label = match &result {
                Ok(_) => "committed",
                Err(CommitError::Fenced { .. }) => "fenced",
                Err(CommitError::Rewind { .. }) => "rewound",
                Err(CommitError::Again(_)) => "again",
                Err(CommitError::Unknown(_) | CommitError::Silent(_)) => "unknown",
                Err(CommitError::Refused(_)) => "refused",
            };
            counter!(names::COMMITS, "result" => label).increment(1);
            match result {
                Ok(committed) => return answer_committed(group, committed),
                Err(CommitError::Fenced { positions, detail }) => {
                    counter!(names::FENCED_COMMITS).increment(1);
                    let named = |request: &Request| {
                        request.held.keys().any(|position| positions.contains(position)) || positions.is_empty()
                    };
                    let (fenced, rest): (Vec<_>, Vec<_>) = group.into_iter().partition(named);
                    for request in fenced {
                        let error = CommitError::Fenced { positions: positions.clone(), detail: detail.clone() };
                        request.answer(Err(error));
                    }
                    group = rest;
                }
                Err(CommitError::Again(error)) => {
                    tries += 1;
                    if tries >= TRIES {
                        let reason = crate::postgres::client::describe(&error);
                        return answer_all(group, |_| CommitError::Rewind {
                            reason: reason.clone(),
                            known: Committed::default(),
                        });
                    }
                }
                Err(error) if group.len() > 1 => {
                    self.client = None;
                    if error.leaves_open() {
                        return self.answer_unknown(group, error);
                    }
                    // One of them is to blame: each by itself.
                    for request in group {
                        Box::pin(self.serve(vec![request])).await;
                    }
                    return;
                }
                Err(error) => {
                    if error.leaves_open() {
                        self.client = None;
                    }
                    if let Some(request) = group.pop() {
                        request.answer(Err(error));
                    }
                }
            }
        }
    }

    fn answer_unknown(&mut self, group: Vec<Request>, error: CommitError) {
        self.client = None;
        let mut error = Some(error);
        for request in group {
            // The driver's error cannot be cloned; dropping the sender means "unknown" as well.
            match error.take() {
                Some(error) => request.answer(Err(error)),
                None => {
                    let Request { answer, done, .. } = request;
                    drop(answer);
                    done();
                }
            }
        }
    }

    async fn attempt(&mut self, group: &[Request]) -> Result<Committed, CommitError> {
        let within = COMMIT_TIME;
        tokio::time::timeout(within, self.write(group)).await.unwrap_or(Err(CommitError::Silent(within)))
    }

    async fn write(&mut self, group: &[Request]) -> Result<Committed, CommitError> {
        let client = match &mut self.client {
            Some(client) if !client.is_closed() => client,
            _ => {
                let client = self.sink.connect().await.map_err(not_connected)?;
                // It may have been restored meanwhile, from before a month was made.
                self.months.lock().unwrap_or_else(PoisonError::into_inner).clear();
                self.client.insert(client)
            }
        };
        let batches: Vec<&SealedBatch> = group.iter().map(|request| &*request.batch).collect();
        let mut missing: Vec<Micros> = Vec::new();
        {
            let known = self.months.lock().unwrap_or_else(PoisonError::into_inner);
            let mut seen = HashSet::new();
            for row in batches.iter().flat_map(|batch| batch.deltas.iter().chain(&batch.deltas_after)) {
                let month = month_of(row.at);
                if !known.contains(&month) && seen.insert(month) {
                    missing.push(row.at);
                }
            }
        }
        if !missing.is_empty() {
            ensure_months(client, &missing).await?;
            let mut known = self.months.lock().unwrap_or_else(PoisonError::into_inner);
            known.extend(missing.iter().map(|at| month_of(*at)));
        }
        let held: BTreeMap<PositionId, Held> =
            group.iter().flat_map(|request| request.held.iter().map(|(id, held)| (*id, *held))).collect();
        commit(client, &batches, &held).await
    }
}

/// Nothing was sent, so nothing was written: a rewind after a pause is enough.
fn not_connected(error: crate::postgres::client::ConnectError) -> CommitError {
    CommitError::Rewind { reason: error.to_string(), known: Committed::default() }
}

fn answer_committed(group: Vec<Request>, committed: Committed) {
    for request in group {
        let part = Committed {
            inval_seq: committed
                .inval_seq
                .iter()
                .filter(|(id, _)| request.held.contains_key(id))
                .map(|(id, seq)| (*id, *seq))
                .collect(),
            invalidated: committed
                .invalidated
                .iter()
                .filter(|gone| request.held.contains_key(&gone.position_id))
                .cloned()
                .collect(),
        };
        request.answer(Ok(part));
    }
}

fn answer_all(group: Vec<Request>, error: impl Fn(&Request) -> CommitError) {
    for request in group {
        let error = error(&request);
        request.answer(Err(error));
    }
}

/// Months since 0000-03, good enough to tell one from another.
fn month_of(at: Micros) -> i64 {
    let days = at.div_euclid(86_400_000_000) + 719_468;
    let era = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    era * 4800 + year * 12 + (5 * day_of_year + 2) / 153
}

/// How long a task waits before it tries again after `failures` refused commits in a row.
pub fn pause_after(failures: u32) -> Duration {
    Duration::from_millis(100u64.saturating_mul(1 << failures.min(8))).min(Duration::from_secs(15))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_of_one_month_are_one_month() {
        let day = 86_400_000_000;
        let first = 1_793_491_200_000_000; // 2026-11-01
        assert_eq!(month_of(first), month_of(first + 30 * day - 1));
        assert_ne!(month_of(first), month_of(first + 30 * day));
        assert_ne!(month_of(first), month_of(first - 1));
    }
}
