//! Filling an image store that was lost: how fast, beside a plain COPY of the same rows.

use std::fs;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde::Serialize;

use super::cpu;
use super::product::{Deployment, Product, Worker, metric};
use super::stage::{Moment, Stage, Watched};
use super::support::wait::{let_pass, wait_for};

/// Bounds a hang.
const LIMIT: Duration = Duration::from_secs(3_600);
/// How often the worker's metrics are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A worker that does not tell of it by then does not do it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Records that the image store still lacks.
const LEFT: &str = "afterimage_restore_remaining_records";
/// Records that were read back.
const DONE: &str = "afterimage_restore_records_total";

/// What a restore reads, in two results: each record with its last keyframe, and the deltas that follow that keyframe.
const ROWS: [&str; 2] = [
    "copy (select r.rid, r.sfid, r.home, r.row_key, r.floor_lsn, r.floor_ts, k.kf, k.at, k.d
       from afterimage.record r
       join (select distinct on (rid) rid, kf, at, d from afterimage.keyframe order by rid desc, kf desc) k using (rid))
     to stdout (format binary)",
    "copy (select d.rid, d.kf, d.at, d.d
       from afterimage.delta d join (select rid, max(kf) as kf from afterimage.keyframe group by rid) k using (rid, kf))
     to stdout (format binary)",
];

/// One store that was filled.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// Records.
    pub records: f64,
    /// From the first look that showed records to be read to the one that showed none.
    pub seconds: f64,
    /// CPU of the worker meanwhile.
    pub own: f64,
    /// CPU of PostgreSQL meanwhile.
    pub postgres: f64,
    /// Peak of resident memory since the start, in bytes.
    pub peak_memory: u64,
    /// Seconds of the COPY.
    pub copy: f64,
    /// Its bytes.
    pub copied_bytes: u64,
}

impl Restored {
    /// Records a second.
    pub fn rate(&self) -> f64 {
        self.records / self.seconds
    }
}

/// Removes the image store of a worker that has stopped, starts the worker, and waits until the store is filled. Nothing is
/// written to the topic. `None` if the program does not do that.
///
/// # Errors
/// When another number of records was read back than there are.
pub async fn measure(
    stage: &Stage,
    product: &Product,
    deployment: &Deployment<'_>,
    sink: &Watched,
    records: u32,
) -> Result<Option<Restored>, String> {
    fs::remove_dir_all(deployment.state).map_err(|error| error.to_string())?;
    let copy = Instant::now();
    let mut copied_bytes = 0;
    for rows in ROWS {
        let mut bytes = Box::pin(sink.client.copy_out(rows).await.unwrap());
        while let Some(part) = bytes.next().await {
            copied_bytes += part.unwrap().len() as u64;
        }
    }
    let copy = copy.elapsed().as_secs_f64();

    let epochs = "select sum(epoch)::bigint, count(*) from afterimage.position where live";
    let row = sink.client.query_one(epochs, &[]).await.unwrap();
    let claims = row.get::<_, i64>(0) + row.get::<_, i64>(1);
    let mut worker = product.start(stage, sink, deployment);
    wait_for("the claim of all partitions", LIMIT, async || {
        worker.assert_running();
        let now: i64 = sink.client.query_one(epochs, &[]).await.unwrap().get(0);
        if now >= claims { Ok(()) } else { Err("not claimed") }
    })
    .await;
    let Some(begun) = begin(&mut worker, stage, sink).await else {
        worker.stop().await;
        return Ok(None);
    };
    while let Some(left) = figure(&worker, LEFT)
        && left > 0.0
    {
        worker.assert_running();
        assert!(begun.at.elapsed() < LIMIT, "{left} records are left");
        let_pass(LOOK).await;
    }
    let used = begun.until(&Moment::of(worker.pid(), stage, sink));
    let done = figure(&worker, DONE).unwrap_or_default();
    let peak_memory = cpu::peak_memory(worker.pid());
    worker.stop().await;
    if done != f64::from(records) {
        return Err(format!("records read back into an empty image store: {records} wanted, {done} found"));
    }
    let (seconds, own, postgres) = (used.wall, used.own, used.postgres);
    eprintln!("      {done} records in {seconds:.2} s");
    Ok(Some(Restored { records: done, seconds, own, postgres, peak_memory, copy, copied_bytes }))
}

/// The moment when records were left to be read first. A few may all have been read between two looks: then that of the
/// last look before.
async fn begin(worker: &mut Worker, stage: &Stage, sink: &Watched) -> Option<Moment> {
    let since = Instant::now();
    let mut before = Moment::of(worker.pid(), stage, sink);
    while since.elapsed() < PATIENCE {
        worker.assert_running();
        let now = Moment::of(worker.pid(), stage, sink);
        if figure(worker, LEFT).is_some_and(|left| left > 0.0) {
            return Some(now);
        }
        if figure(worker, DONE).is_some_and(|done| done > 0.0) {
            return Some(before);
        }
        before = now;
        let_pass(LOOK).await;
    }
    None
}

fn figure(worker: &Worker, name: &str) -> Option<f64> {
    metric(&worker.metrics()?, name)
}
