//! The race on a real PostgreSQL: four threads, each with connections of its own, through the claim, the lookups and the
//! commit of the product. Sessions are ended at any moment of a commit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use afterimage::core::batch::SealedBatch;
use afterimage::core::event::{Class, Micros};
use afterimage::core::judge::ObjectFacts;
use afterimage::core::overlay::KeySlot;
use afterimage::core::position::PositionId;
use afterimage::core::record::Record;
use afterimage::core::value::Kind;
use afterimage::postgres::claim::{Claim, Claimant, Wanted, claim};
use afterimage::postgres::client::{SinkSettings, Tls};
use afterimage::postgres::commit::{CommitError, Held, Invalidated, commit};
use afterimage::postgres::registry::{self, Declared, SeenField};
use afterimage::postgres::{lookup, migrate};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;
use tokio_postgres::Client;

use crate::course::{Again, Course, deed, drawn};
use crate::memory::{Field, ObjectRow};
use crate::racer::{self, Gone, Move, Outcome, Race, Racer, Shared, Undone, race, race_course};
use crate::support::audit;
use crate::support::postgres::{Database, fresh_database};
use crate::table::Deed;
use crate::twin;
use crate::worker::{FRONT, SMALL_FRONT, Sink, Standing, Store, Topic, Worker};

const RECORDS: u8 = 12;
const PARTITIONS: i32 = 8;
const WORKERS: usize = 4;
/// Only bounds a hang: on an idle machine a race takes a few seconds.
const LONGEST: Duration = Duration::from_secs(180);

/// One worker's way to the sink.
struct Door {
    runtime: Runtime,
    settings: SinkSettings,
    /// Of the commits, with its process id; made anew when it breaks.
    client: Option<(Client, i32)>,
    /// Of the questions.
    reader: Client,
    /// It ends the sessions of commits.
    killer: Client,
    chance: StdRng,
    ids: (i16, i16),
    facts: ObjectFacts,
    held: BTreeMap<i32, (Standing, i64)>,
    undone: Undone,
    /// Whether sessions are ended.
    cuts: bool,
    killed: usize,
}

impl Door {
    fn new(settings: SinkSettings, ids: (i16, i16), seed: u64, undone: Undone) -> Door {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reader = runtime.block_on(settings.connect()).unwrap();
        let killer = runtime.block_on(settings.connect()).unwrap();
        let (facts, chance) = (ObjectFacts::default(), StdRng::seed_from_u64(seed));
        let held = BTreeMap::new();
        Door {
            runtime,
            settings,
            client: None,
            reader,
            killer,
            chance,
            ids,
            facts,
            held,
            undone,
            cuts: true,
            killed: 0,
        }
    }

    fn fields(&mut self, fields: Vec<registry::Field>) -> ObjectRow {
        let fields = fields.into_iter().map(|field| {
            let registry::Field { no, name, class, kind, first_seen, .. } = field;
            Field { no, name, class, kind, first_seen }
        });
        let row = ObjectRow {
            org: "emea".into(),
            name: "account".into(),
            identity: Some("sfid".into()),
            fields: fields.collect(),
        };
        let topic = Topic::new("", "", "");
        self.facts = row.facts(self.ids.1, topic.grace, topic.create_window);
        row
    }
}

impl Sink for Door {
    fn source(&mut self, _: &Topic) -> (i16, i16) {
        self.ids
    }

    fn object(&mut self, object_id: i16) -> ObjectRow {
        let fields = self.runtime.block_on(registry::fields(&self.reader, object_id)).unwrap();
        self.fields(fields)
    }

    fn note(&mut self, object_id: i16, _: Option<String>, columns: &[(String, Class, Kind)], at: Option<Micros>) {
        let seen =
            columns.iter().map(|(name, class, kind)| SeenField { name: name.clone(), class: *class, kind: *kind, at });
        let seen: Vec<SeenField> = seen.collect();
        self.runtime.block_on(registry::note_fields(&mut self.reader, object_id, &seen)).unwrap();
    }

    fn standing(&mut self, _: i16, partition: i32, _: i64) -> Standing {
        self.held[&partition].0.clone()
    }

    fn register(&mut self, object_id: i16, identity: &str, home: PositionId, row_key: &str) {
        let mut newcomers = [(identity.into(), home, row_key.into())];
        self.runtime.block_on(lookup::register(&mut self.reader, object_id, &mut newcomers)).unwrap();
    }

    fn record(&mut self, _: i16, identity: &str) -> Option<Record> {
        let found = self.runtime.block_on(lookup::records(&mut self.reader, &self.facts, &[identity]));
        found.unwrap().pop().map(|(_, found)| found.record)
    }

    fn key(&mut self, source_id: i16, _: i16, key: &str) -> KeySlot {
        let found = self.runtime.block_on(lookup::keys(&mut self.reader, &self.facts, source_id, &[key]));
        found.unwrap().pop().unwrap().1
    }
}

impl Shared for Door {
    fn claim(&mut self, partition: i32) -> PositionId {
        let claimant = Claimant { worker: self.settings.worker.clone(), config_hash: Vec::new() };
        let wanted = [Wanted {
            source_id: self.ids.0,
            topic: "calm.emea.account".into(),
            partition,
            earliest: 0,
            end: i64::MAX,
            found: None,
        }];
        let (claims, halted) = self.runtime.block_on(claim(&self.settings, &claimant, &wanted)).unwrap();
        assert!(halted.is_empty(), "{halted:?}");
        let claim = &claims[0];
        let Claim { position_id, epoch, next, .. } = *claim;
        let standing = Standing { position_id, epoch, next, passage: claim.passage.clone() };
        self.held.insert(partition, (standing, claim.inval_seq));
        position_id
    }

    fn held(&self) -> BTreeMap<i32, i64> {
        self.held.iter().map(|(partition, (standing, _))| (*partition, standing.next)).collect()
    }

    fn lost(&mut self, partition: i32) {
        self.held.remove(&partition);
    }

    fn commit(&mut self, batch: &SealedBatch) -> Outcome {
        let held = |(standing, inval_seq): &(Standing, i64)| {
            (standing.position_id, Held { epoch: standing.epoch, next: standing.next, inval_seq: *inval_seq })
        };
        let held: BTreeMap<PositionId, Held> = match self.undone {
            // What is not held is not looked at.
            Undone::InvalidationCheck => BTreeMap::new(),
            _ => self.held.values().map(held).collect(),
        };
        let cut = (self.cuts && self.chance.random_ratio(1, 10)).then(|| self.chance.random_range(0..40u32));
        let (settings, killer, slot) = (&self.settings, &self.killer, &mut self.client);
        let result = self.runtime.block_on(async {
            let (client, pid) = match slot {
                Some(open) if !open.0.is_closed() => open,
                _ => {
                    let client = settings.connect().await.unwrap();
                    let row = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
                    slot.insert((client, row.get(0)))
                }
            };
            let pid = *pid;
            let batches = [batch];
            let cutting = async {
                if let Some(turns) = cut {
                    // A commit is a few dozen turns of this thread long.
                    for _ in 0..turns {
                        tokio::task::yield_now().await;
                    }
                    killer.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
                }
            };
            tokio::join!(commit(client, &batches, &held), cutting).0
        });
        if cut.is_some() {
            (self.client, self.killed) = (None, self.killed + 1);
        }
        let gone = |gone: Vec<Invalidated>| -> Vec<Gone> {
            gone.into_iter().map(|gone| (gone.position_id, gone.identity)).collect()
        };
        let mut take = |inval_seq: &std::collections::HashMap<PositionId, i64>| {
            for (standing, known) in self.held.values_mut() {
                *known = inval_seq.get(&standing.position_id).copied().unwrap_or(*known);
            }
        };
        match result {
            Ok(committed) => {
                take(&committed.inval_seq);
                for advance in &batch.advances {
                    let of = |(standing, _): &&mut (Standing, i64)| standing.position_id == advance.position_id;
                    let (standing, _) = self.held.values_mut().find(of).expect("a partition that is held");
                    (standing.next, standing.passage) = (advance.to, advance.passage.clone());
                }
                Outcome::Done(gone(committed.invalidated))
            }
            Err(CommitError::Rewind { known, .. }) => {
                take(&known.inval_seq);
                Outcome::Rewind(gone(known.invalidated))
            }
            Err(CommitError::Again(_)) => Outcome::Rewind(Vec::new()),
            Err(CommitError::Fenced { positions, .. }) => {
                let of = |(partition, (standing, _)): (&i32, &(Standing, i64))| {
                    positions.contains(&standing.position_id).then_some(*partition)
                };
                Outcome::Fenced(self.held.iter().filter_map(of).collect())
            }
            Err(CommitError::Unknown(_) | CommitError::Silent(_)) => Outcome::Unknown,
            Err(error @ CommitError::Refused(_)) => panic!("refused: {error}"),
        }
    }
}

/// Mostly reading and committing; a claim takes a partition from another about every hundredth step.
fn next_move(chance: &mut StdRng) -> Move {
    match chance.random_range(0..200) {
        0..110 => Move::Read(chance.random(), chance.random_range(1..8)),
        110..150 => Move::Seal,
        150..195 => Move::Commit,
        195..197 => Move::Rewind,
        197 => Move::Restart(chance.random()),
        _ => Move::Claim(chance.random()),
    }
}

/// How a race went.
#[derive(Debug, Default)]
struct Report {
    faults: Vec<String>,
    events: i64,
    moves: i64,
    late: i64,
    killed: usize,
}

/// What the threads of a race share.
struct Track {
    failed: AtomicBool,
    killed: AtomicUsize,
    until: Instant,
}

fn named(settings: &SinkSettings, me: usize) -> SinkSettings {
    let (worker, application) = (format!("racer-{me}"), format!("afterimage/racer-{me}"));
    SinkSettings { worker, application, ..settings.clone() }
}

fn race_on(course: &Course, settings: &SinkSettings, ids: (i16, i16), me: usize, seed: u64, all: &Track) {
    let mut chance = StdRng::seed_from_u64(seed * 31 + me as u64);
    let mut door = Door::new(named(settings, me), ids, chance.random(), Undone::Nothing);
    let (mut store, mut outcomes) = (Store::new(), Vec::new());
    let front = [0, SMALL_FRONT, FRONT][chance.random_range(0..3)];
    let worker = Worker::start(&course.topic, &mut door, &mut store, &mut outcomes, front);
    let mut racer = Racer::new(worker, &course.log, Undone::Nothing);
    let partitions: Vec<i32> = course.ends().into_keys().collect();
    for partition in partitions.iter().skip(me).step_by(WORKERS) {
        racer.claim(*partition);
    }
    let mut steps = course.log.values().map(Vec::len).sum::<usize>() / WORKERS;
    while !all.failed.load(Ordering::SeqCst) && Instant::now() < all.until {
        assert!(racer.failures < 200, "a batch fails again and again");
        if steps > 0 {
            steps -= 1;
            racer.step(next_move(&mut chance), &partitions);
        } else if racer.is_done() {
            // Claims come with steps, so it will be given no more; what it lost is another's to finish.
            break;
        } else {
            racer.finish(chance.random());
        }
    }
    drop(racer);
    all.killed.fetch_add(door.killed, Ordering::SeqCst);
}

fn ends(course: &Course) -> audit::Ends {
    let topic = &course.topic.name;
    course.ends().into_iter().map(|(partition, end)| ((topic.clone(), partition), end)).collect()
}

async fn sink_of(course: &Course) -> (Database, SinkSettings, (i16, i16)) {
    let database = fresh_database().await;
    let mut client = database.connect().await;
    migrate::migrate(&mut client).await.unwrap();
    let declared = Declared {
        topic: course.topic.name.clone(),
        org: "emea".into(),
        object: "account".into(),
        identity: Some("sfid".into()),
        grace: course.topic.grace,
        masked: Vec::new(),
        types: BTreeMap::new(),
        lookup: Vec::new(),
        config_hash: Vec::new(),
    };
    let sources = registry::sources(&mut client, &[declared], "cluster", "group").await.unwrap();
    let times = course.log.values().flatten().map(|message| message.timestamp_ms * 1000);
    let (first, last) = times.fold((i64::MAX, i64::MIN), |(first, last), at| (first.min(at), last.max(at)));
    let day = 86_400_000_000;
    let months: Vec<Micros> = (0..=(last - first) / day + 1).map(|n| first + n * day).collect();
    registry::ensure_months(&client, &months).await.unwrap();
    let settings = SinkSettings {
        url: database.url.clone(),
        tls: Tls::Disable,
        ca: None,
        worker: String::new(),
        application: String::new(),
        pooled: false,
    };
    (database, settings, (sources[0].source_id, sources[0].object_id))
}

/// Runs a race to its end, then asks the sink, in SQL, what is wrong.
async fn run(seed: u64, deeds: usize) -> Report {
    let strategy = (prop::collection::vec(deed(RECORDS), deeds), prop::collection::vec((0..1000u16, 0..100u16), 3));
    let (deeds, again): (Vec<Deed>, Vec<Again>) = drawn(seed, strategy);
    let course = Course::new(RECORDS, PARTITIONS, &deeds, &again);
    let (database, settings, ids) = sink_of(&course).await;
    let all = Track { failed: AtomicBool::new(false), killed: AtomicUsize::new(0), until: Instant::now() + LONGEST };
    let mut report = Report::default();
    let outcomes: Vec<Result<(), String>> = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let (course, settings, all) = (&course, &settings, &all);
            let start = |me| {
                scope.spawn(move || {
                    let raced = || race_on(course, settings, ids, me, seed, all);
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(raced)).map_err(|panic| {
                        all.failed.store(true, Ordering::SeqCst);
                        racer::words(panic)
                    })
                })
            };
            let threads: Vec<_> = (0..WORKERS).map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    });
    report.faults.extend(outcomes.into_iter().filter_map(Result::err));
    report.killed = all.killed.into_inner();
    let sink = database.connect().await;
    report.faults.extend(audit::faults(&sink, &ends(&course)).await);
    report.faults.extend(faults(&sink, &course).await);
    let number = async |query: &str| -> i64 { sink.query_one(query, &[]).await.unwrap().get(0) };
    report.events = number("SELECT sum(next - first_next)::bigint FROM afterimage.position").await;
    report.moves = number("SELECT count(*) FROM afterimage.invalidation").await;
    report.late = number("SELECT count(*) FROM afterimage.late_event").await;
    report
}

/// Name and notes of a record.
type Fields = (Option<String>, Option<String>);

/// Versions stored twice, broken chains, wrong last images.
async fn faults(sink: &Client, course: &Course) -> Vec<String> {
    let mut faults = Vec::new();
    let wrong = [
        (
            "stored twice",
            "SELECT r.sfid, format('chain %s, version %s, %s times', kf, get_byte(d, 1) & 63, count(*)) \
             FROM afterimage.delta JOIN afterimage.record r USING (rid) GROUP BY r.sfid, kf, get_byte(d, 1) & 63 HAVING count(*) > 1",
        ),
        (
            "out of order",
            "SELECT sfid, format('%s: %s after %s', seq, op, before) FROM ( \
               SELECT sfid, seq, op, lag(op) OVER (PARTITION BY sfid ORDER BY seq) AS before FROM afterimage.changes) c \
             WHERE (before IS NULL) <> (op IN ('create', 'baseline')) OR (op = 'undelete') <> coalesce(before = 'delete', false)",
        ),
        (
            "changed nothing",
            "SELECT sfid, format('%s: %s %s', seq, op, changes) FROM afterimage.changes \
             WHERE op IN ('update', 'backfill') AND changes = '{}' \
                OR EXISTS (SELECT FROM jsonb_each(changes) f WHERE f.value -> 0 = f.value -> 1)",
        ),
        (
            "two holders of a key",
            "SELECT min(sfid), convert_from(row_key, 'UTF8') FROM afterimage.record r \
             WHERE row_key IS NOT NULL AND EXISTS (SELECT FROM afterimage.keyframe k WHERE k.rid = r.rid AND k.kf = 0) \
             GROUP BY object_id, row_key HAVING count(*) > 1",
        ),
    ];
    for (what, query) in wrong {
        let rows = sink.query(query, &[]).await.unwrap();
        faults.extend(rows.iter().map(|row| format!("{what}: {}: {}", row.get::<_, &str>(0), row.get::<_, &str>(1))));
    }
    let query = "SELECT sfid, status = 'live', image ->> 'name', image ->> 'notes__c' FROM afterimage.records";
    let found: BTreeMap<String, Option<Fields>> = (sink.query(query, &[]).await.unwrap().iter())
        .map(|row| (row.get(0), row.get::<_, bool>(1).then(|| (row.get(2), row.get(3)))))
        .collect();
    for (sfid, wanted) in &course.finals {
        let unknown = || Some(r#"{"$unknown": true}"#.to_owned());
        let wanted = wanted.clone().map(|(name, notes)| (Some(name), notes.or_else(unknown)));
        if found.get(sfid) != Some(&wanted) {
            faults.push(format!("wrong image: {sfid}: the sink has {:?}, the table {wanted:?}", found.get(sfid)));
        }
    }
    faults
}

#[tokio::test(flavor = "multi_thread")]
async fn four_racing_writers_leave_every_record_with_one_history() {
    let (mut moves, mut late, mut killed) = (0, 0, 0);
    for seed in 1..=3 {
        let report = run(seed, 250).await;
        println!("seed {seed}: {report:?}");
        assert!(report.faults.is_empty(), "seed {seed}: {:#?}", report.faults);
        (moves, late, killed) = (moves + report.moves, late + report.late, killed + report.killed);
    }
    assert!(moves > 40 && late > 50 && killed > 0, "{moves} moves, {late} late events, {killed} sessions ended");
}

/// Runs a race in steps: what is wrong then.
async fn in_steps(race: &Race, undone: Undone) -> Vec<String> {
    let course = race_course(race);
    let (database, settings, ids) = sink_of(&course).await;
    let (.., steps, front) = race;
    let driven = tokio::task::block_in_place(|| {
        let mut doors: Vec<Door> = (0..racer::WORKERS)
            .map(|me| Door { cuts: false, ..Door::new(named(&settings, me), ids, 0, undone) })
            .collect();
        let driven = || racer::drive(&course, &mut doors, steps, *front, undone, || {});
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(driven)).map_err(racer::words)
    });
    let sink = database.connect().await;
    let mut wrong: Vec<String> = driven.err().into_iter().collect();
    wrong.extend(audit::faults(&sink, &ends(&course)).await);
    wrong.extend(faults(&sink, &course).await);
    wrong
}

/// What the memory twin takes well, PostgreSQL does. The histories may differ in what came late: the twin knows nothing of an
/// append that another worker was first with.
#[tokio::test(flavor = "multi_thread")]
async fn races_in_steps_come_out_right_in_postgres_too() {
    for seed in 0..4 {
        let race = drawn(seed, race());
        twin::run(&race, Undone::Nothing).unwrap();
        let faults = in_steps(&race, Undone::Nothing).await;
        assert!(faults.is_empty(), "seed {seed}: {faults:#?}");
    }
}

/// Races that the twin loses without a part of the protocol are lost here too.
#[tokio::test(flavor = "multi_thread")]
async fn each_part_of_the_protocol_is_needed_in_postgres() {
    for undone in Undone::EACH {
        let lost =
            (0..300).map(|seed| (seed, drawn(seed, race()))).filter(|(_, race)| twin::run(race, undone).is_err());
        let mut found = Vec::new();
        for (seed, race) in lost.take(12) {
            found = in_steps(&race, undone).await;
            if !found.is_empty() {
                println!("without {undone:?}, race {seed}: {found:#?}");
                break;
            }
        }
        assert!(!found.is_empty(), "without {undone:?} nothing went wrong");
    }
}
