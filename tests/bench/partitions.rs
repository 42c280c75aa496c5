//! The memory of one worker with many partitions: 8 topics of 32, a mixed load at a steady rate, for half an hour.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::producer::Producer;
use serde::Serialize;
use tokio_postgres::Client;

use super::account::{Account, Place, sfid, write_deletion, write_key, write_update};
use super::check::{digest, sql_digest};
use super::cpu;
use super::feed::{self, Events, Feed, Message};
use super::options::Options;
use super::product::{self, Deployment, Product, Worker, metric};
use super::report::{grouped, short};
use super::stage::{Stage, Watched};
use super::support::audit;
use super::support::names::unique;
use super::support::wait::{let_pass, wait_for};

/// Topics, each with the table of an org of its own.
const TOPICS: usize = 8;
/// Messages a second, unless the command line says otherwise.
const RATE: u32 = 1_500;
/// How often the memory is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bounds a hang.
const LIMIT: Duration = Duration::from_secs(3_600);
/// Minutes that the table shows.
const SHOWN: [u32; 12] = [1, 2, 5, 10, 15, 20, 25, 30, 45, 60, 90, 120];

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Memory {
    /// Partitions in all.
    pub partitions: i32,
    /// Records at the beginning; about as many are there at the end.
    pub records: u32,
    /// Events a second.
    pub rate: u32,
    /// Messages in all.
    pub messages: u64,
    /// Outcomes that were wanted, and found.
    pub outcomes: BTreeMap<&'static str, i64>,
    /// Resident memory before the load, with everything claimed and the records of the beginning in the history.
    pub before: Sample,
    /// Second by second.
    pub samples: Vec<Sample>,
    /// Peak of resident memory since the start of the process, in bytes.
    pub peak: u64,
    /// CPU of the worker under the load, in cores.
    pub own: f64,
    /// The most messages that waited in Kafka, of all samples.
    pub most_lag: f64,
}

/// The worker's memory at one moment.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Sample {
    /// Seconds since the load began.
    pub at: f64,
    /// Resident, in bytes.
    pub resident: u64,
    /// Of it neither program nor mapped file.
    pub anonymous: u64,
}

impl Sample {
    fn now(worker: &Worker, begun: Instant) -> Sample {
        let pid = worker.pid();
        Sample { at: begun.elapsed().as_secs_f64(), resident: cpu::resident(pid), anonymous: cpu::anonymous(pid) }
    }
}

/// A table, and what its topic must become.
struct Table {
    topic: String,
    accounts: Vec<Account>,
    /// Which of them are there.
    live: Vec<u32>,
    deleted: Vec<u32>,
    /// Events so far.
    made: u64,
}

/// All tables, drawn from evenly.
struct Mix {
    rng: SmallRng,
    seed: u64,
    tables: Vec<Table>,
    outcomes: BTreeMap<&'static str, i64>,
    key: String,
    value: String,
}

impl Mix {
    fn new(topics: &[String], seed: u64) -> Mix {
        let table = |topic: &String| Table {
            topic: topic.clone(),
            accounts: Vec::new(),
            live: Vec::new(),
            deleted: Vec::new(),
            made: 0,
        };
        Mix {
            rng: SmallRng::seed_from_u64(seed),
            seed,
            tables: topics.iter().map(table).collect(),
            outcomes: BTreeMap::new(),
            key: String::new(),
            value: String::new(),
        }
    }

    fn count(&mut self, outcome: &'static str) {
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// A record that is new, in one of the tables.
    fn grow(&mut self, table: usize, send: &mut dyn FnMut(Message<'_>)) {
        let account = Account::new(&mut self.rng);
        let table_of = &mut self.tables[table];
        let index = table_of.accounts.len() as u32;
        table_of.accounts.push(account);
        table_of.live.push(index);
        self.count("baseline");
        self.update(table, index, send);
    }

    fn update(&mut self, table: usize, index: u32, send: &mut dyn FnMut(Message<'_>)) {
        let Table { topic, accounts, made, .. } = &mut self.tables[table];
        *made += 1;
        write_key(&mut self.key, index);
        let place = Place { at: now(), number: *made };
        write_update(&mut self.value, self.seed, index, &accounts[index as usize], place);
        send((topic, &self.key, Some(self.value.as_bytes())));
    }

    /// What the first versions and last images of all records must add up to.
    fn images(&self) -> (i64, u128) {
        let (mut records, mut sum) = (0, 0);
        for (number, table) in self.tables.iter().enumerate() {
            let mut is_deleted = vec![false; table.accounts.len()];
            table.deleted.iter().for_each(|index| is_deleted[*index as usize] = true);
            for (index, account) in table.accounts.iter().enumerate() {
                let (status, seq) =
                    if is_deleted[index] { ("deleted", account.changes + 1) } else { ("live", account.changes) };
                let (org, id) = (product::org(number), sfid(index as u32));
                records += 1;
                sum += digest(&format!("{org}|{id}|{seq}|{status}|{}|{}", account.phone, account.score));
            }
        }
        (records, sum)
    }
}

/// Of a hundred events: 62 touch a record, 25 change one, 6 are new, 6 delete one, and one is cut off in the middle.
impl Events for Mix {
    fn next(&mut self, send: &mut dyn FnMut(Message<'_>)) {
        let table = self.rng.random_range(0..self.tables.len());
        let at = self.rng.random_range(0..self.tables[table].live.len());
        let index = self.tables[table].live[at];
        match self.rng.random_range(0..100) {
            0..62 => {
                self.count("noop");
                self.update(table, index, send);
            }
            62..87 => {
                self.tables[table].accounts[index as usize].edit(&mut self.rng);
                self.count("delta");
                self.update(table, index, send);
            }
            87..93 => self.grow(table, send),
            93..99 => {
                let Table { topic, live, deleted, made, .. } = &mut self.tables[table];
                live.swap_remove(at);
                deleted.push(index);
                *made += 1;
                write_key(&mut self.key, index);
                write_deletion(&mut self.value, index, Place { at: now(), number: *made });
                send((topic, &self.key, Some(self.value.as_bytes())));
                send((topic, &self.key, None));
                self.count("delta");
                self.count("tombstone");
            }
            _ => {
                let Table { topic, made, .. } = &mut self.tables[table];
                write_key(&mut self.key, index);
                write_deletion(&mut self.value, index, Place { at: now(), number: *made });
                send((topic, &self.key, Some(&self.value.as_bytes()[..self.value.len() / 2])));
                self.count("dead_letter");
            }
        }
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// Measures it.
///
/// # Errors
/// What is wrong with the product's result.
pub async fn measure(options: &Options, stage: &Stage, product: &Product, dir: &Path) -> Result<Memory, String> {
    let records = options.records(&[100_000])[0].max(TOPICS as u32);
    let (partitions, rate) = (options.partitions(32), options.rate.unwrap_or(RATE));
    let name = unique("bench");
    let topics: Vec<String> = (0..TOPICS).map(|number| format!("{name}.org{number}.account")).collect();
    let (group, state, settings) =
        (format!("afterimage.{name}"), dir.join(format!("state-{name}")), options.settings());
    let deployment = Deployment { topics: &topics, group: &group, state: &state, settings: &settings };

    eprintln!("\n{} partitions, {records} records, {rate} events a second", partitions * TOPICS as i32);
    for topic in &topics {
        stage.create_topic(topic, partitions).await;
    }
    let producer = stage.producer(20, &options.compression);
    let mut mix = Mix::new(&topics, options.seed);
    for number in 0..records {
        mix.grow(number as usize % TOPICS, &mut |message| feed::send(&producer, message));
    }
    producer.flush(LIMIT).unwrap();
    let database = stage.create_database().await;
    let sink = stage.watch(&database).await;
    product.migrate(stage, &sink, &deployment);
    let mut worker = product.start(stage, &sink, &deployment);
    reach(&sink, &mut worker, u64::from(records)).await;

    let begun = Instant::now();
    let before = Sample::now(&worker, begun);
    let own = cpu::of_process(worker.pid());
    let feed = Feed::start(producer, rate, mix);
    let (mut samples, mut most_lag) = (Vec::new(), 0.0_f64);
    let end = Duration::from_secs(60) * options.minutes;
    let mut told = 0;
    while begun.elapsed() < end {
        let_pass(LOOK).await;
        worker.assert_running();
        let sample = Sample::now(&worker, begun);
        samples.push(sample);
        let lag = worker.metrics().and_then(|page| metric(&page, "afterimage_lag_messages")).unwrap_or_default();
        most_lag = most_lag.max(lag);
        let minute = (sample.at / 60.0) as u64;
        if minute > told {
            told = minute;
            eprintln!("   {minute} min: {} MB resident, {lag} messages wait", sample.resident >> 20);
        }
    }
    let own = (cpu::of_process(worker.pid()) - own).as_secs_f64() / begun.elapsed().as_secs_f64();
    let (mix, written) = feed.end();
    let messages = u64::from(records) + written;
    reach(&sink, &mut worker, messages).await;
    let peak = cpu::peak_memory(worker.pid());
    worker.stop().await;
    let mut ends = audit::Ends::new();
    for topic in &topics {
        let of = stage.broker.end_offsets(topic).await;
        ends.extend(of.into_iter().map(|(partition, end)| ((topic.clone(), partition), end)));
    }
    check(&sink.client, &mix, &ends).await?;
    sink.close(stage).await;
    if !options.keep {
        stage.drop_database(&database).await;
        for topic in &topics {
            stage.broker.delete_topic(topic).await;
        }
        std::fs::remove_dir_all(&state).unwrap();
    }
    Ok(Memory {
        partitions: partitions * TOPICS as i32,
        records,
        rate,
        messages,
        outcomes: mix.outcomes,
        before,
        samples,
        peak,
        own,
        most_lag,
    })
}

/// Waits until so many messages are committed.
async fn reach(sink: &Watched, worker: &mut Worker, messages: u64) {
    wait_for("the ends of the topics", LIMIT, async || {
        worker.assert_running();
        let next = "select coalesce(sum(next), 0)::bigint from afterimage.position where live";
        let next: i64 = sink.client.query_one(next, &[]).await.unwrap().get(0);
        if next as u64 == messages { Ok(()) } else { Err(format!("at {next} of {messages}")) }
    })
    .await;
}

async fn check(database: &Client, mix: &Mix, ends: &audit::Ends) -> Result<(), String> {
    let mut wrong = audit::faults(database, ends).await;
    let outcomes = "select outcome, sum(events)::bigint from afterimage.outcomes where events > 0 group by 1";
    let rows = database.query(outcomes, &[]).await.unwrap();
    let found: BTreeMap<&str, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    if found != mix.outcomes {
        wrong.push(format!("outcomes: {:?} wanted, {found:?} found", mix.outcomes));
    }
    let line = "concat(org, '|', sfid, '|', seq, '|', status, '|', image ->> 'phone', '|', image ->> 'score__c')";
    let images = format!("select count(*), {} from afterimage.records", sql_digest(line));
    let row = database.query_one(&images, &[]).await.unwrap();
    let found = (row.get::<_, i64>(0), row.get::<_, String>(1));
    let (records, sum) = mix.images();
    let wanted = (records, sum.to_string());
    if found != wanted {
        wrong.push(format!("last images (number, digest): {wanted:?} wanted, {found:?} found"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

impl Memory {
    /// Growth by least squares over the last half of the samples, in bytes a minute.
    fn slope(&self, figure: fn(&Sample) -> u64) -> f64 {
        let half = &self.samples[self.samples.len() / 2..];
        let count = half.len().max(1) as f64;
        let mean_at = half.iter().map(|sample| sample.at).sum::<f64>() / count;
        let mean = half.iter().map(|sample| figure(sample) as f64).sum::<f64>() / count;
        let (mut together, mut square) = (0.0, 0.0);
        for sample in half {
            together += (sample.at - mean_at) * (figure(sample) as f64 - mean);
            square += (sample.at - mean_at).powi(2);
        }
        if square > 0.0 { together / square * 60.0 } else { 0.0 }
    }
}

impl Display for Memory {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: f64| short(bytes / f64::from(1 << 20));
        let minutes = self.samples.last().map_or(0.0, |sample| sample.at) / 60.0;
        writeln!(
            f,
            "{} partitions in {TOPICS} topics, one worker: {} records, then {} events a second for {minutes:.0} minutes, {} messages in all",
            self.partitions,
            grouped(i64::from(self.records)),
            grouped(i64::from(self.rate)),
            grouped(self.messages as i64)
        )?;
        let outcomes: Vec<String> =
            self.outcomes.iter().map(|(name, events)| format!("{name} {}", grouped(*events))).collect();
        writeln!(f, "  outcomes           {}", outcomes.join(", "))?;
        writeln!(f, "\n  {:<34} {:>14} {:>14}", "minutes", "resident, MB", "anonymous, MB")?;
        let mut line = |name: &str, sample: &Sample| {
            let (resident, anonymous) = (megabytes(sample.resident as f64), megabytes(sample.anonymous as f64));
            writeln!(f, "  {name:<34} {resident:>14} {anonymous:>14}")
        };
        line("before the load", &self.before)?;
        for minute in SHOWN {
            // The last look is up to a second early.
            let after = self.samples.iter().find(|sample| sample.at >= f64::from(minute) * 60.0 - 1.5);
            if let Some(sample) = after {
                line(&minute.to_string(), sample)?;
            }
        }
        writeln!(
            f,
            "  {:<34} {:>14} {:>14}",
            "a minute more, over the last half",
            megabytes(self.slope(|sample| sample.resident)),
            megabytes(self.slope(|sample| sample.anonymous))
        )?;
        writeln!(f, "  {:<34} {:>14}", "peak", megabytes(self.peak as f64))?;
        writeln!(
            f,
            "  {} of a core of own CPU; at most {} messages waited",
            short(self.own),
            grouped(self.most_lag as i64)
        )
    }
}
