//! What a worker looks after beside the stream: topics that appear, its health, and what slows the sink down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::gauge;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::align::Boards;
use super::ownership::Claims;
use super::watch::{Logs, reclaim_lost};
use crate::kafka::{Consumer, KafkaSettings, Metadata, Topic};
use crate::postgres::claim::keep_pins;
use crate::postgres::client::{SinkSettings, describe};
use crate::postgres::{migrate, splice, status};
use crate::telemetry::{ASK_SINK, Health, Partitions, names};

/// An answer that takes longer is none.
const SINK_TIME: Duration = Duration::from_secs(10);
/// Anchors are looked through this often, and again at once where so many have gone …
const DROP_ANCHORS: Duration = Duration::from_secs(30);
/// … as are dropped at a time.
const ANCHORS: i64 = 20_000;
/// So often the sink is asked whether it still has what was committed.
const LOOK_FOR_LOSS: Duration = Duration::from_secs(10);
/// How often the worker's own state is told.
const TELL: Duration = Duration::from_secs(1);
/// Broker questions.
const BROKER_TIME: Duration = Duration::from_secs(10);
/// The consumer's thread is not taken for stuck before it has not come round for this long: claims may wait.
const CONSUMER_ROUND: Duration = Duration::from_secs(30);

/// Looks for topics from time to time, on a thread of its own: a broker that does not answer holds up nothing else. It
/// ends with the receiver.
pub(super) fn find_topics(kafka: &KafkaSettings) -> mpsc::Receiver<Vec<Topic>> {
    let (sender, receiver) = mpsc::channel(1);
    let kafka = kafka.clone();
    tokio::spawn(async move {
        let mut metadata: Option<Arc<Metadata>> = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(kafka.metadata_refresh()) => {}
                () = sender.closed() => return,
            }
            let (settings, known) = (kafka.clone(), metadata.take());
            let asked = tokio::task::spawn_blocking(move || {
                let metadata = match known {
                    Some(metadata) => metadata,
                    None => Arc::new(Metadata::connect(&settings)?),
                };
                metadata.topics(BROKER_TIME, |_| true).map(|topics| (topics, metadata))
            });
            match asked.await {
                Ok(Ok((topics, client))) => {
                    metadata = Some(client);
                    if sender.send(topics).await.is_err() {
                        return;
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "topics not looked for"),
                Err(error) => tracing::warn!(%error, "topics not looked for"),
            }
        }
    });
    receiver
}

/// Asks the sink now and then: does it answer, is the schema still the right one, how old is its oldest snapshot, do late
/// events wait for their place, does it still have what was committed? And drops the anchors that no late event can need any more,
/// and keeps by which messages the logs are known.
pub(super) async fn look_at_sink(sink: SinkSettings, health: Health, boards: Boards, logs: Logs, claims: Arc<Claims>) {
    let mut client = None;
    let (mut dropped, mut more, mut looked) = (Instant::now(), false, Instant::now());
    loop {
        let asked = tokio::time::timeout(SINK_TIME, async {
            let client = match &mut client {
                Some(client) => client,
                slot => slot.insert(sink.connect().await.map_err(|error| error.to_string())?),
            };
            migrate::check(client).await.map_err(|error| error.to_string())?;
            let waiting = splice::waiting(client).await.map_err(|error| describe(&error))?;
            for board in boards.all() {
                let ours = waiting.iter().filter(|(source, _)| *source == board.source_id);
                ours.for_each(|(_, partition)| board.late_in(*partition));
            }
            if looked.elapsed() > LOOK_FOR_LOSS {
                looked = Instant::now();
                reclaim_lost(client, &logs, &claims).await.map_err(|error| describe(&error))?;
                keep_pins(client, &logs.pins()).await.map_err(|error| describe(&error))?;
            }
            let seconds = status::oldest_snapshot_seconds(client).await.map_err(|error| describe(&error))?;
            // Last: what takes too long keeps nothing else from being asked.
            if more || dropped.elapsed() > DROP_ANCHORS {
                (dropped, more) = (Instant::now(), false);
                let gone = splice::drop_anchors(client, ANCHORS).await.map_err(|error| describe(&error))?;
                more = i64::try_from(gone).is_ok_and(|gone| gone >= ANCHORS);
            }
            Ok(seconds)
        });
        let answer = asked.await.unwrap_or_else(|_| Err("the sink does not answer".to_owned()));
        match answer {
            Ok(seconds) => {
                gauge!(names::OLDEST_SNAPSHOT).set(seconds);
                health.sink(Ok(()));
            }
            Err(reason) => {
                tracing::debug!(%reason, "the sink was asked how it is");
                client = None;
                health.sink(Err(reason));
            }
        }
        tokio::time::sleep(ASK_SINK).await;
    }
}

/// Behind a pooler, where no session tells that this worker lives, a row does: as long as this runs.
pub(super) async fn show_alive(sink: SinkSettings, process: Uuid) {
    let (mut client, mut told) = (None, false);
    loop {
        let shown = tokio::time::timeout(SINK_TIME, async {
            let client = match &mut client {
                Some(client) => client,
                slot => slot.insert(sink.connect().await.map_err(|error| error.to_string())?),
            };
            status::show_alive(client, &sink.worker, process).await.map_err(|error| describe(&error))
        });
        match shown.await.unwrap_or_else(|_| Err("the sink does not answer".to_owned())) {
            Ok(()) => told = false,
            Err(reason) => {
                client = None;
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%reason, "others may take this worker for gone");
                }
            }
        }
        tokio::time::sleep(ASK_SINK).await;
    }
}

/// The end of it, if the sink answers soon.
pub(super) async fn show_gone(sink: &SinkSettings, process: Uuid) {
    let asked = async {
        let client = sink.connect().await.ok()?;
        status::show_gone(&client, &sink.worker, process).await.ok()
    };
    let _ = tokio::time::timeout(TELL, asked).await;
}

/// The states of partitions, for the metric.
const TASK_STATES: [&str; 6] = ["created", "restoring", "running", "waiting", "closed", "halted"];

/// Tells the metrics that this worker holds nothing.
pub(super) fn tell_no_tasks() {
    for state in TASK_STATES {
        gauge!(names::TASKS, "state" => state).set(0.0);
    }
}

/// Tells metrics and health how many partitions are in which state.
pub(super) async fn tell(health: Health, consumer: Consumer, claims: Arc<Claims>, boards: Boards) {
    let beat = health.beat("kafka");
    loop {
        if Instant::now().saturating_duration_since(consumer.last_polled()) < CONSUMER_ROUND {
            beat.now();
        }
        let holding = consumer.holding();
        let refused = claims.halted().min(holding.unclaimed);
        let (mut restoring, mut running, mut waiting, mut resting) = (0, 0, 0, 0);
        for board in boards.all() {
            let tasks = board.tasks();
            restoring += tasks[0];
            running += tasks[1];
            waiting += tasks[2];
            resting += tasks[3];
        }
        // Halted is what can't be claimed as things are, and what rests in front of a message that must not be read.
        let (created, resting) = (holding.unclaimed - refused, holding.released.min(resting));
        let (closed, halted) = (holding.released - resting, refused + resting);
        let counts = [created, restoring, running, waiting, closed, halted];
        for (state, count) in TASK_STATES.into_iter().zip(counts) {
            gauge!(names::TASKS, "state" => state).set(count as f64);
        }
        health.partitions(Partitions { claimed: holding.assigned, unclaimed: created, resting: closed, halted });
        tokio::time::sleep(TELL).await;
    }
}
