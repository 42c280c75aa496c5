//! `make chaos`: three workers on real Kafka and real PostgreSQL while everything that can go wrong goes wrong, and then
//! a checker that shares no code with the product. What it does and what it found is in ../README.md.
//!
//! A test without the standard harness: without options it is the short form that `make test` runs.

mod check;
mod damage;
mod faults;
mod feed;
mod keep;
mod options;
mod plan;
mod proxy;
mod source;
#[path = "../support/mod.rs"]
mod support;
mod topic;
mod truth;
mod watch;
mod workers;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use afterimage::demo::postgres::{PostgresOptions, PrivatePostgres};
use tokio::sync::Mutex as AsyncMutex;

use check::Verdict;
use faults::{Stage, worker_name};
use feed::{Ends, Feed, topic};
use options::Options;
use plan::{Fault, WORKERS};
use proxy::Proxy;
use source::{Source, TABLES};
use support::kafka::Broker;
use support::wait::{LONG, let_pass, wait_until};
use watch::Watch;
use workers::{Deployment, Worker};

/// The sink's database.
const DATABASE: &str = "history";
/// Nothing was committed for so long, also on a busy machine with the broker away twice in a row: it will not get better.
const STUCK: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let options = Options::read();
    if options.list {
        println!("chaos: test\n\n1 test, 0 benchmarks");
        return ExitCode::SUCCESS;
    }
    let faults = plan::draw(options.seed(), options.faults, &options.only, options.gap());
    if options.dry_run {
        faults.iter().for_each(|fault| println!("{fault}"));
        return ExitCode::SUCCESS;
    }
    let meant = options.is_meant();
    println!("\nrunning {} test", u8::from(meant));
    if !meant {
        println!("\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out\n");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let passed = runtime.block_on(run(&options, faults));
    runtime.shutdown_background();
    println!("test chaos ... {}", if passed { "ok" } else { "FAILED" });
    let (result, counts) = if passed { ("ok", (1, 0)) } else { ("FAILED", (0, 1)) };
    println!(
        "\ntest result: {result}. {} passed; {} failed; 0 ignored; 0 measured; 0 filtered out\n",
        counts.0, counts.1
    );
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run from start to verdict; whether all was well.
async fn run(options: &Options, faults: Vec<Fault>) -> bool {
    let begun = Instant::now();
    let seed = options.seed();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("chaos-{seed}-{}", std::process::id()));
    workers::remove_dir(&dir).expect("an empty directory");
    std::fs::create_dir_all(&dir).expect("a directory");
    println!("seed {seed}: {} faults, about {:.0} s", faults.len(), faults_last(&faults).as_secs_f64());
    println!("everything of this run is in {}", dir.display());

    let broker = tokio::task::block_in_place(Broker::start);
    let settings = PostgresOptions::default().set("max_connections", "200").set("deadlock_timeout", "200ms");
    let postgres = tokio::task::block_in_place(|| PrivatePostgres::start(settings)).expect("PostgreSQL");
    postgres.create_database(DATABASE).await.expect("a database");
    for table in 0..TABLES.len() {
        broker.create_topic(&topic(table), options.partitions).await;
    }
    let client = broker.client();
    let url = postgres.url(DATABASE);
    let deployment = Deployment { brokers: broker.bootstrap(), database: DATABASE.into(), dir: dir.clone() };
    deployment.prepare(postgres.port());

    let (mut workers, mut proxies) = (Vec::new(), Vec::new());
    for index in 0..WORKERS {
        let proxy = Proxy::start(postgres.port()).await.expect("a proxy");
        let mut worker = Worker::new(&deployment, worker_name(index), proxy.port());
        worker.start();
        workers.push(Arc::new(AsyncMutex::new(worker)));
        proxies.push((proxy, AsyncMutex::new(())));
    }
    let source = Source::new(seed, options.partitions, feed::now());
    let stage = Arc::new(Stage {
        broker: AsyncMutex::new(broker),
        postgres: AsyncMutex::new(postgres),
        watch: Watch::start(url.clone()),
        feed: Feed::start(&client, source, options.records, options.rate),
        url,
        workers,
        proxies,
        dir: dir.clone(),
        misdeeds: Mutex::default(),
        missed: Mutex::default(),
        refused: AtomicU64::new(0),
        begun,
    });
    let all = TABLES.len() * options.partitions as usize;
    wait_until("the claim of all partitions", LONG, async || stage.watch.positions().len() == all).await;
    let first = stage.feed.given();
    wait_until("the first commits", LONG, async || stage.watch.has_reached(&first)).await;

    let supervisor = tokio::spawn(Arc::clone(&stage).supervise());
    let (struck, stuck) = strike(&stage, faults).await;
    stage.calm().await;

    let (mut problems, source, ends, settled) = come_to_rest(options, &stage, supervisor).await;
    if stuck {
        problems.push(format!("nothing was committed for {STUCK:?} while faults struck"));
    }
    let Some(stage) = Arc::into_inner(stage) else { panic!("a fault is still under way") };
    stage.note("at rest");
    let topics = tokio::task::block_in_place(|| topic::read(&client, &ends));
    stage.note("the topics are read");
    let sink = support::postgres::connect(&stage.url).await;
    let verdict = match check::check(&sink, &topics, &source.events, &ends).await {
        Ok(verdict) => verdict,
        Err(error) => {
            problems.push(format!("the sink does not answer the checker: {error:?}"));
            Verdict::default()
        }
    };
    problems.extend(stage.misdeeds.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
    problems.extend(keep::panics(&dir));
    stage.note("checked");
    if problems.is_empty() && verdict.findings.is_empty() && options.faults <= options::SHORT {
        match damage::unseen(&sink, &topics, &source.events, &ends).await {
            Ok(unseen) => problems.extend(unseen),
            Err(error) => problems.push(format!("the sink cannot be damaged: {error:?}")),
        }
    }
    let well = problems.is_empty() && verdict.is_right();

    let mut lines = problems;
    lines.extend(verdict.findings.iter().cloned());
    for line in &lines {
        println!("  {line}");
    }
    table(&stage);
    summary(options, &stage, &verdict, &topics, &source, struck, settled, well);
    if well && !options.keep {
        workers::remove_dir(&dir).expect("a removed directory");
    } else {
        keep::everything(&sink, &client, &ends, &lines, &dir).await;
        println!("logs, tables and topics are in {}", dir.display());
    }
    well
}

/// About how long a plan takes.
fn faults_last(faults: &[Fault]) -> Duration {
    faults.iter().map(|fault| fault.after).sum()
}

/// Lets all faults happen; how many there were, and whether it had to be given up.
async fn strike(stage: &Arc<Stage>, faults: Vec<Fault>) -> (usize, bool) {
    let (all, mut stuck, mut running, mut struck) = (faults.len(), false, tokio::task::JoinSet::new(), 0);
    for fault in faults {
        let_pass(fault.after).await;
        if stage.watch.standstill().0 > STUCK {
            stuck = true;
            break;
        }
        assert!(!stage.feed.has_ended(), "the feed has ended");
        running.spawn(Arc::clone(stage).inflict(fault));
        struck += 1;
        if struck % 25 == 0 {
            println!("{struck} of {all} faults after {:.0} s", stage.begun.elapsed().as_secs_f64());
        }
    }
    while let Some(done) = running.join_next().await {
        done.expect("a fault that could be carried out");
    }
    (struck, stuck)
}

/// Ends the load, waits until everything is committed, and stops the workers: what was wrong, the load, the ends of the
/// topics, and how long it took until the lag was zero.
async fn come_to_rest(
    options: &Options,
    stage: &Arc<Stage>,
    supervisor: tokio::task::JoinHandle<()>,
) -> (Vec<String>, Source, Ends, Duration) {
    let mut problems = Vec::new();
    let source = tokio::task::block_in_place(|| stage.feed.end());
    // All of it is delivered, once; that nothing else is there shows when the topics are read.
    let ends = stage.feed.given();
    stage.note("faults and load have ended");
    let (since, limit) = (Instant::now(), Duration::from_secs(options.settle));
    while !stage.watch.has_reached(&ends) && since.elapsed() < limit {
        let_pass(Duration::from_millis(50)).await;
    }
    let settled = since.elapsed();
    if !stage.watch.has_reached(&ends) {
        let positions = stage.watch.positions();
        problems.push(format!("the lag is not zero after {limit:?}: ends {ends:?}, positions {positions:?}"));
    }
    // The owners of the records' homes place them, seconds later.
    let sink = support::postgres::connect(&stage.url).await;
    let waiting = async || {
        let query = "SELECT count(*) FROM afterimage.late_events WHERE settled_at IS NULL";
        sink.query_one(query, &[]).await.map_or(i64::MAX, |row| row.get(0))
    };
    let since = Instant::now();
    while waiting().await > 0 {
        if since.elapsed() > limit {
            problems.push(format!("late events still have no place after {limit:?}"));
            break;
        }
        let_pass(Duration::from_millis(50)).await;
    }
    supervisor.abort();
    // It held the stage: wait until it has let go.
    let _ = supervisor.await;
    for worker in &stage.workers {
        let mut worker = worker.lock().await;
        problems.extend(worker.stop().await);
    }
    (problems, source, ends, settled)
}

fn seconds(time: Option<&Duration>) -> String {
    time.map_or("-".into(), |time| format!("{:.1}", time.as_secs_f64()))
}

/// Time from each fault to the commit of all that was written before it.
fn table(stage: &Stage) {
    println!("  fault          struck   median      max   (seconds until all that was written before is committed)");
    for (kind, recovery) in stage.watch.recoveries() {
        let times = &recovery.times;
        let (median, max) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
        println!("  {:<13} {:>7} {median:>8} {max:>8}", kind.name(), recovery.faults);
    }
}

#[allow(clippy::too_many_arguments)] // one line says it all
fn summary(
    options: &Options,
    stage: &Stage,
    verdict: &Verdict,
    topics: &topic::Topics,
    source: &Source,
    struck: usize,
    settled: Duration,
    well: bool,
) {
    let recoveries = stage.watch.recoveries();
    let mut all: Vec<Duration> = recoveries.values().flat_map(|recovery| recovery.times.iter().copied()).collect();
    all.sort();
    let kinds: Vec<String> =
        recoveries.iter().map(|(kind, recovery)| format!("{} {}", kind.name(), recovery.faults)).collect();
    let missed = stage.missed.lock().unwrap_or_else(PoisonError::into_inner).len();
    let refused = stage.refused.load(Ordering::Relaxed);
    let Verdict { versions, records, lost, doubled, wrong, broken, late, missing, touched_by_late, .. } = verdict;
    println!(
        "chaos {}: seed {}, {struck} faults ({}; {missed} met no COMMIT; {refused} starts refused) in {:.0} s, {} messages, {} events \
         ({} sent again, {} reloads), {records} records, {versions} deltas, lost {lost}, doubled {doubled}, wrong {wrong}, \
         laws broken {broken}, late {} (unsettled {}, {touched_by_late} records, {missing} versions missing), recovery \
         median {} s, max {} s, longest standstill {} s, lag zero after {:.1} s",
        if well { "ok" } else { "FAILED" },
        options.seed(),
        kinds.join(", "),
        stage.begun.elapsed().as_secs_f64(),
        topics.messages,
        topics.events,
        source.redelivered,
        source.reloads,
        late.0,
        late.1,
        seconds(all.get(all.len() / 2)),
        seconds(all.last()),
        seconds(Some(&stage.watch.standstill().1)),
        settled.as_secs_f64(),
    );
}
