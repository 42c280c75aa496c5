//! Watches the committed positions: how soon after each fault everything written before it is committed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::feed::{Ends, topic};
use super::plan::Kind;
use super::source::TABLES;
use super::support::wait::let_pass;

/// Looks this often.
const LOOK: Duration = Duration::from_millis(50);
/// A look that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// A fault, and what was in Kafka when it struck.
struct Mark {
    kind: Kind,
    struck: Instant,
    ends: Ends,
    recovered: Option<Duration>,
}

#[derive(Default)]
struct Shared {
    marks: Vec<Mark>,
    positions: Ends,
    moved: Option<Instant>,
    standstill: Duration,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Watch(Arc<Mutex<Shared>>);

/// Time from faults of one kind to the commit of everything that was written before.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// How many struck.
    pub faults: usize,
    /// Of those that have recovered, in order.
    pub times: Vec<Duration>,
}

impl Watch {
    /// Watches a database, directly, until the runtime ends.
    pub fn start(url: String) -> Watch {
        let watch = Watch::default();
        let ours = watch.clone();
        tokio::spawn(async move {
            loop {
                // A server that is away is looked for again.
                let _ = ours.look(&url).await;
                let_pass(LOOK).await;
            }
        });
        watch
    }

    async fn look(&self, url: &str) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        let driver = tokio::spawn(connection);
        loop {
            let asked = tokio::time::timeout(PATIENCE, positions(&client)).await;
            let Ok(Ok(positions)) = asked else {
                driver.abort();
                return Ok(());
            };
            self.seen(positions);
            let_pass(LOOK).await;
        }
    }

    fn seen(&self, positions: Ends) {
        let mut shared = self.lock();
        let now = Instant::now();
        if positions != shared.positions || shared.moved.is_none() {
            shared.moved = Some(now);
        }
        let still = shared.moved.map_or(Duration::ZERO, |moved| now - moved);
        shared.standstill = shared.standstill.max(still);
        for mark in shared.marks.iter_mut().filter(|mark| mark.recovered.is_none()) {
            if reached(&positions, &mark.ends) {
                mark.recovered = Some(now - mark.struck);
            }
        }
        shared.positions = positions;
    }

    /// A fault strikes now; so much is in Kafka.
    pub fn strikes(&self, kind: Kind, ends: Ends) {
        self.lock().marks.push(Mark { kind, struck: Instant::now(), ends, recovered: None });
    }

    /// Whether everything up to here is committed.
    pub fn has_reached(&self, ends: &Ends) -> bool {
        reached(&self.lock().positions, ends)
    }

    /// Where the partitions stand.
    pub fn positions(&self) -> Ends {
        self.lock().positions.clone()
    }

    /// How long nothing has moved now, and the longest it ever did.
    pub fn standstill(&self) -> (Duration, Duration) {
        let shared = self.lock();
        (shared.moved.map_or(Duration::ZERO, |moved| moved.elapsed()), shared.standstill)
    }

    /// Recovery by kind of fault.
    pub fn recoveries(&self) -> BTreeMap<Kind, Recovery> {
        let mut found: BTreeMap<Kind, Recovery> = BTreeMap::new();
        for mark in &self.lock().marks {
            let of = found.entry(mark.kind).or_insert(Recovery { faults: 0, times: Vec::new() });
            of.faults += 1;
            of.times.extend(mark.recovered);
        }
        found.values_mut().for_each(|recovery| recovery.times.sort());
        found
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reached(positions: &Ends, ends: &Ends) -> bool {
    ends.iter().all(|(of, end)| positions.get(of).is_some_and(|next| next >= end))
}

async fn positions(client: &tokio_postgres::Client) -> Result<Ends, tokio_postgres::Error> {
    let query = "SELECT s.topic, p.partition, p.next FROM afterimage.position p
                 JOIN afterimage.source s ON s.source_id = p.source_id WHERE p.live";
    let mut found = Ends::new();
    for row in client.query(query, &[]).await? {
        let name: String = row.get(0);
        if let Some(table) = (0..TABLES.len()).find(|table| topic(*table) == name) {
            found.insert((table, row.get(1)), row.get(2));
        }
    }
    Ok(found)
}
