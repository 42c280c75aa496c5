//! How long a worker is away: from kill -9 to the first new commit, with its image store and without it, while messages go
//! on; and how fast a lost image store is filled again.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio_postgres::Statement;

use super::account::{Load, Source};
use super::check::Expected;
use super::feed::{Events, Feed, Message};
use super::options::Options;
use super::product::{Deployment, Product, Worker, disk};
use super::report::{Spread, grouped, short};
use super::restore::{self, Restored};
use super::stage::{Stage, Watched};
use super::support::names::unique;
use super::support::wait::{let_pass, wait_for};
use super::{cpu, rival};

/// Bounds a hang.
const LIMIT: Duration = Duration::from_secs(600);
/// How often the positions are looked at: this is how exact the times are.
const LOOK: Duration = Duration::from_millis(2);
/// Undisturbed work between two rounds.
const REST: Duration = Duration::from_secs(3);
/// Messages a second meanwhile, unless the command line says otherwise.
const RATE: u32 = 500;
/// Source time that is left for them, in microseconds: none of them lies in the future.
const LEFT: i64 = 86_400_000_000;

/// What was measured over one number of records.
#[derive(Debug, Serialize)]
pub struct Recovery {
    /// Records in the sink.
    pub records: u32,
    /// Their changes, before the messages that came meanwhile.
    pub changes: u64,
    /// Partitions.
    pub partitions: i32,
    /// Messages a second.
    pub rate: u32,
    /// A bare group member that is killed likewise: seconds from kill -9 to its first message.
    pub member: Vec<f64>,
    /// With the image store.
    pub warm: Vec<Round>,
    /// With its directory removed.
    pub empty: Vec<Round>,
    /// Filling the image store; `None` if the product has no such thing.
    pub restores: Vec<Restored>,
}

/// One kill -9; seconds from it unless said otherwise.
#[derive(Debug, Serialize)]
pub struct Round {
    /// To the start of the next process: the end of the last one, and removing its directory.
    pub start: f64,
    /// To the claim of all partitions.
    pub claim: f64,
    /// To the first commit after it.
    pub commit: f64,
    /// To a commit of each partition.
    pub each: f64,
    /// To the moment when no more is left than what was written in the last half second.
    pub in_step: f64,
    /// Peak of resident memory by then, in bytes.
    pub peak_memory: u64,
    /// Disk of the image store when the worker was killed, in bytes.
    pub state: u64,
}

/// Changes, one after the other.
struct Changes {
    topic: String,
    source: Source,
    expected: Expected,
}

impl Events for Changes {
    fn next(&mut self, send: &mut dyn FnMut(Message<'_>)) {
        let Changes { topic, source, expected } = self;
        let (key, value) = source.next(|change| expected.take(&change)).expect("a source without end");
        send((topic, std::str::from_utf8(key).unwrap(), Some(value)));
    }
}

/// Everything that a round needs.
struct Scene<'a> {
    stage: &'a Stage,
    product: &'a Product,
    deployment: Deployment<'a>,
    sink: &'a Watched,
    places: Statement,
    /// Messages before the feed's.
    filled: i64,
    feed: Feed<Changes>,
    rate: u32,
}

/// Epoch and next offset of each position.
type Places = BTreeMap<i32, (i64, i64)>;

impl Scene<'_> {
    async fn places(&self) -> Places {
        let rows = self.sink.client.query(&self.places, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
    }

    /// Messages that wait.
    fn behind(&self, places: &Places) -> i64 {
        self.filled + self.feed.written() as i64 - places.values().map(|(_, next)| next).sum::<i64>()
    }

    fn is_in_step(&self, places: &Places) -> bool {
        self.behind(places) <= i64::from(self.rate / 2)
    }

    async fn in_step(&self, worker: &mut Worker) {
        wait_for("a worker in step with the feed", LIMIT, async || {
            worker.assert_running();
            let places = self.places().await;
            if self.is_in_step(&places) { Ok(()) } else { Err(format!("{} behind", self.behind(&places))) }
        })
        .await;
    }

    async fn round(&self, worker: &mut Worker, empty: bool) -> Round {
        self.in_step(worker).await;
        let_pass(REST).await;
        let state = disk(self.deployment.state);
        let before = self.places().await;
        let killed = Instant::now();
        worker.kill();
        if empty {
            fs::remove_dir_all(self.deployment.state).unwrap();
        }
        let start = killed.elapsed().as_secs_f64();
        *worker = self.product.start(self.stage, self.sink, &self.deployment);

        // Where each position stood when it was claimed: a commit of the last process may still have come before.
        let mut at_claim = before.clone();
        let (mut claim, mut commit, mut each) = (None, None, None);
        let in_step = loop {
            worker.assert_running();
            let places = self.places().await;
            let now = killed.elapsed().as_secs_f64();
            let is_claimed = |id: &i32, epoch: i64| epoch > before[id].0;
            for (id, (epoch, next)) in &places {
                if !is_claimed(id, *epoch) || !is_claimed(id, at_claim[id].0) {
                    at_claim.insert(*id, (*epoch, *next));
                }
            }
            let has_moved =
                |(id, (_, next)): (&i32, &(i64, i64))| is_claimed(id, at_claim[id].0) && *next > at_claim[id].1;
            if places.iter().all(|(id, (epoch, _))| is_claimed(id, *epoch)) {
                claim.get_or_insert(now);
            }
            if places.iter().any(has_moved) {
                commit.get_or_insert(now);
            }
            if places.iter().all(has_moved) {
                each.get_or_insert(now);
            }
            if each.is_some() && self.is_in_step(&places) {
                break now;
            }
            assert!(killed.elapsed() < LIMIT, "not in step again: {} behind", self.behind(&places));
            let_pass(LOOK).await;
        };
        let seen = |moment: Option<f64>| moment.expect("before all are in step");
        let (claim, commit, each) = (seen(claim), seen(commit), seen(each));
        eprintln!("      claim after {claim:.2} s, first commit after {commit:.2} s, in step after {in_step:.2} s");
        Round { start, claim, commit, each, in_step, peak_memory: cpu::peak_memory(worker.pid()), state }
    }
}

/// Measures it over so many records.
///
/// # Errors
/// What is wrong with the product's result.
pub async fn measure(
    options: &Options,
    stage: &Stage,
    product: &Product,
    dir: &Path,
    records: u32,
) -> Result<Recovery, String> {
    let changes = options.events.unwrap_or(u64::from(records));
    let (partitions, rate) = (options.partitions(6), options.rate.unwrap_or(RATE));
    let mut load = Load { records, events: changes, noops: 0, seed: options.seed, from: 0 };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
    load.from = now - now % 1_000_000 - load.span() - LEFT;
    load.events = u64::MAX >> 32;
    let mut source = Source::new(load);
    let mut expected = Expected::new(records, changes, changes);
    let topic = format!("{}.salesforce.account", unique("bench"));
    let group = format!("afterimage.{topic}");
    let state = dir.join(format!("state-{topic}"));
    let mut settings = options.settings();
    if !settings.contains("kafka.static_member") {
        // As whoever has a disk that survives would have it.
        settings.push_str("kafka.static_member = true\n");
    }
    let topics = [topic.clone()];
    let deployment = Deployment { topics: &topics, group: &group, state: &state, settings: &settings };

    eprintln!("\nrecovery, {records} records, {changes} changes");
    eprintln!("   filling the topic");
    stage.create_topic(&topic, partitions).await;
    let filled = u64::from(records) + changes;
    let (ends, _) = stage.fill(&topic, &mut source, &mut expected, filled, &options.compression).await;
    let database = stage.create_database().await;
    let sink = stage.watch(&database).await;
    product.migrate(stage, &sink, &deployment);
    eprintln!("   afterimage run: first sights and changes");
    product.run(stage, &sink, &deployment, &ends, None).await;
    expected.compare(&source, true, &sink.client).await?;
    // As a sink is that has been there for a while; and no analysis begins while something is measured.
    sink.client.batch_execute("vacuum analyze").await.unwrap();

    let places = "select position_id, epoch, next from afterimage.position where live";
    let places = sink.client.prepare(places).await.unwrap();
    let events = Changes { topic: topic.clone(), source, expected };
    let feed = Feed::start(stage.producer(5, &options.compression), rate, events);
    let mut member = Vec::new();
    for round in 1..=options.repeat {
        eprintln!("   a bare member of a group, {round} of {}", options.repeat);
        member.push(rival::killed_member(stage, &topic));
    }
    let scene = Scene { stage, product, deployment, sink: &sink, places, filled: filled as i64, feed, rate };
    let mut worker = product.start(stage, &sink, &scene.deployment);
    let (mut warm, mut empty) = (Vec::new(), Vec::new());
    for round in 1..=options.repeat {
        eprintln!("   kill -9 with its image store, {round} of {}", options.repeat);
        warm.push(scene.round(&mut worker, false).await);
    }
    for round in 1..=options.repeat {
        eprintln!("   kill -9 without its image store, {round} of {}", options.repeat);
        empty.push(scene.round(&mut worker, true).await);
    }

    let Scene { deployment, feed, .. } = scene;
    let (Changes { source, mut expected, .. }, written) = feed.end();
    expected.more_events(written);
    let end = (filled + written) as i64;
    wait_for("the end of the topic", LIMIT, async || {
        worker.assert_running();
        let next = "select sum(next)::bigint from afterimage.position where live";
        let next: i64 = sink.client.query_one(next, &[]).await.unwrap().get(0);
        if next == end { Ok(()) } else { Err(format!("at {next} of {end}")) }
    })
    .await;
    worker.stop().await;
    expected.compare(&source, true, &sink.client).await?;

    let mut restores = Vec::new();
    for round in 1..=options.repeat {
        eprintln!("   filling an empty image store, {round} of {}", options.repeat);
        let Some(restored) = restore::measure(stage, product, &deployment, &sink, records).await? else {
            eprintln!("      this program does not do it");
            break;
        };
        restores.push(restored);
    }
    sink.close(stage).await;
    if !options.keep {
        stage.drop_database(&database).await;
        stage.broker.delete_topic(&topic).await;
        fs::remove_dir_all(&state).unwrap();
    }
    Ok(Recovery { records, changes, partitions, rate, member, warm, empty, restores })
}

impl Display for Recovery {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "recovery, {} records with {} changes: kill -9 and at once a new process, {} messages a second meanwhile, \
             all changes, {} partitions; median (least-most) of {}",
            grouped(i64::from(self.records)),
            grouped(self.changes as i64),
            self.rate,
            self.partitions,
            self.warm.len()
        )?;
        writeln!(f, "\n  {:<52} {:>24} {:>24}", "", "with its image store", "with an empty disk")?;
        let spread = |rounds: &[Round], figure: &dyn Fn(&Round) -> f64| {
            Spread::of(rounds.iter().map(figure)).map_or("-".into(), |spread| spread.to_string())
        };
        let mut line = |name: &str, figure: &dyn Fn(&Round) -> f64| {
            writeln!(f, "  {name:<52} {:>24} {:>24}", spread(&self.warm, figure), spread(&self.empty, figure))
        };
        let megabytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        line("kill -9 to the first new commit, s", &|round| round.commit)?;
        line("  kill -9 to the start of the process, s", &|round| round.start)?;
        line("  start of the process to its claim, s", &|round| round.claim - round.start)?;
        line("  claim to the first commit, s", &|round| round.commit - round.claim)?;
        line("start of the process to the first new commit, s", &|round| round.commit - round.start)?;
        line("kill -9 to a commit of each partition, s", &|round| round.each)?;
        line("kill -9 to in step with what is written, s", &|round| round.in_step)?;
        line("resident by then, peak, MB", &|round| megabytes(round.peak_memory))?;
        line("image store on disk, MB", &|round| megabytes(round.state))?;
        if let Some(member) = Spread::of(self.member.iter().copied()) {
            writeln!(f, "\n  a bare member of a group: kill -9 to the first message of the next one, {member} s")?;
            let ratio = |rounds: &[Round]| {
                let pairs = rounds.iter().zip(&self.member).map(|(round, member)| round.commit / member);
                Spread::of(pairs).map_or("-".into(), |spread| spread.to_string())
            };
            let name = "kill -9 to the first new commit, against it";
            writeln!(f, "  {name:<52} {:>22} x {:>22} x", ratio(&self.warm), ratio(&self.empty))?;
        }
        let Some(rate) = Spread::of(self.restores.iter().map(Restored::rate)) else { return Ok(()) };
        let seconds = |figure: fn(&Restored) -> f64| {
            Spread::of(self.restores.iter().map(figure)).map_or("-".into(), |spread| spread.to_string())
        };
        writeln!(f, "\n  an empty image store is filled: {rate} records a second, {} s", seconds(|one| one.seconds))?;
        writeln!(
            f,
            "    own CPU {} µs a record; PostgreSQL's {} µs; peak {} MB resident",
            seconds(|one| one.own / one.records * 1e6),
            seconds(|one| one.postgres / one.records * 1e6),
            seconds(|one| one.peak_memory as f64 / f64::from(1 << 20)),
        )?;
        let bytes = self.restores.first().map_or(0.0, |one| one.copied_bytes as f64);
        writeln!(
            f,
            "    COPY of the same rows to a client that drops them: {} s for {} MB; filling takes {} x",
            seconds(|one| one.copy),
            short(bytes / f64::from(1 << 20)),
            seconds(|one| one.seconds / one.copy),
        )
    }
}
