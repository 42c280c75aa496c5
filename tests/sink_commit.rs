//! Claims, commits and lookups on a real PostgreSQL, without Kafka: what is refused leaves nothing, and what was written
//! is read back as it was judged.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use afterimage::core::batch::{DeadLetter, OpenBatch, SealedBatch};
use afterimage::core::event::{Class, Event, Micros, Op, Row};
use afterimage::core::front::Front;
use afterimage::core::judge::{Arrival, FieldFact, Judge, Need, ObjectFacts};
use afterimage::core::overlay::{Found, KeySlot, Overlay};
use afterimage::core::position::{Counter, Passage, PositionId};
use afterimage::core::record::{Record, key_hash};
use afterimage::core::value::{Kind, Value};
use afterimage::postgres::claim::{Claim, Claimant, Wanted, claim};
use afterimage::postgres::client::{SinkSettings, Tls};
use afterimage::postgres::commit::{CommitError, Committed, Held, commit};
use afterimage::postgres::registry::{self, Declared, RegistryError, SeenField, Source};
use afterimage::postgres::splice::place;
use afterimage::postgres::{lookup, migrate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::audit::assert_lawful;
use support::postgres::{Database, fresh_database};
use support::wait::{LONG, wait_until};
use tokio_postgres::Client;

/// 2026-11-02, where the events of these tests happen: one millisecond per LSN.
const START: Micros = 1_793_577_600_000_000;

/// A migrated sink with one topic, whose object has the visible fields `a`, `b`, `c` (1, 2, 3), `systemmodstamp` (4) and
/// `lastmodifiedbyid` (5).
struct Sink {
    database: Database,
    settings: SinkSettings,
    source: Source,
    facts: ObjectFacts,
    watcher: Client,
    reader: tokio::sync::Mutex<Client>,
}

fn declared(topic: &str, org: &str) -> Declared {
    Declared {
        topic: topic.into(),
        org: org.into(),
        object: "account".into(),
        identity: None,
        grace: 900_000_000,
        masked: Vec::new(),
        types: BTreeMap::new(),
        lookup: Vec::new(),
        config_hash: Vec::new(),
    }
}

/// Whatever was refused or undone, the laws are kept.
impl Drop for Sink {
    fn drop(&mut self) {
        assert_lawful(&self.database.url);
    }
}

impl Sink {
    async fn new() -> Sink {
        let database = fresh_database().await;
        let mut watcher = database.connect().await;
        migrate::migrate(&mut watcher).await.unwrap();
        let sources = registry::sources(&mut watcher, &[declared("t", "emea")], "cluster", "group").await.unwrap();
        let source = sources.into_iter().next().unwrap();
        let field = |name: &str, class| SeenField { name: name.into(), class, kind: Kind::Text, at: Some(START) };
        let seen = [
            field("a", Class::Visible),
            field("b", Class::Visible),
            field("c", Class::Visible),
            field("systemmodstamp", Class::System),
            field("lastmodifiedbyid", Class::System),
        ];
        registry::note_fields(&mut watcher, source.object_id, &seen).await.unwrap();
        registry::ensure_months(&watcher, &[START]).await.unwrap();
        let fact = FieldFact { kind: Kind::Text, first_seen: Some(START) };
        let facts = ObjectFacts {
            object_id: source.object_id,
            grace: 900_000_000,
            create_window: 86_400_000_000,
            fields: [1, 2, 3].into_iter().map(|no| (no, fact)).collect(),
            lookups: Vec::new(),
            stamp_no: Some(4),
            modified_no: None,
            modified_by_no: Some(5),
            created_no: None,
        };
        let settings = SinkSettings {
            url: database.url.clone(),
            tls: Tls::Disable,
            ca: None,
            worker: "test".into(),
            application: "afterimage/test".into(),
            pooled: false,
        };
        let reader = tokio::sync::Mutex::new(database.connect().await);
        Sink { database, settings, source, facts, watcher, reader }
    }

    async fn claim(&self, partitions: &[i32]) -> Vec<Claim> {
        let wanted = |partition: &i32| Wanted {
            source_id: self.source.source_id,
            topic: "t".into(),
            partition: *partition,
            earliest: 0,
            end: i64::MAX,
            found: None,
        };
        let wanted: Vec<Wanted> = partitions.iter().map(wanted).collect();
        let claimant = Claimant { worker: "test".into(), config_hash: Vec::new() };
        let (claims, halted) = claim(&self.settings, &claimant, &wanted).await.unwrap();
        assert!(halted.is_empty());
        claims
    }

    /// A worker that has claimed these partitions.
    async fn hand(&self, partitions: &[i32]) -> Hand<'_> {
        let claims = self.claim(partitions).await;
        let held = |claim: &Claim| Held { epoch: claim.epoch, next: claim.next, inval_seq: claim.inval_seq };
        Hand {
            sink: self,
            client: self.settings.connect().await.unwrap(),
            held: claims.iter().map(|claim| (claim.position_id, held(claim))).collect(),
            positions: claims.iter().map(|claim| (claim.partition, claim.position_id)).collect(),
            overlay: Overlay::default(),
            open: OpenBatch::new(1),
            front: Front::new(1 << 20),
        }
    }

    /// One number from the sink.
    async fn number(&self, query: &str) -> i64 {
        self.watcher.query_one(&format!("SELECT ({query})::bigint"), &[]).await.unwrap().get(0)
    }

    /// Rows in all tables that a batch writes.
    async fn rows(&self) -> i64 {
        let tables = ["delta", "keyframe", "late_event", "dead_letter", "pending", "old_key", "invalidation"];
        self.number(&tables.map(|table| format!("(SELECT count(*) FROM afterimage.{table})")).join(" + ")).await
    }

    /// The ops of a record's versions, in order.
    async fn ops(&self, identity: &str) -> String {
        let query = "SELECT coalesce(string_agg(op, ' ' ORDER BY seq), '') FROM afterimage.changes WHERE sfid = $1";
        self.watcher.query_one(query, &[&identity]).await.unwrap().get(0)
    }

    async fn found(&self, identity: &str) -> Found {
        let mut reader = self.reader.lock().await;
        let found = lookup::records(&mut reader, &self.facts, &[identity]).await.unwrap().pop();
        found.expect("registered").1
    }

    async fn record(&self, identity: &str) -> Record {
        self.found(identity).await.record
    }

    async fn key(&self, key: &str) -> KeySlot {
        lookup::keys(&mut *self.reader.lock().await, &self.facts, self.source.source_id, &[key])
            .await
            .unwrap()
            .pop()
            .unwrap()
            .1
    }
}

/// What a worker has in hand.
struct Hand<'s> {
    sink: &'s Sink,
    client: Client,
    held: BTreeMap<PositionId, Held>,
    positions: BTreeMap<i32, PositionId>,
    overlay: Overlay,
    open: OpenBatch,
    front: Front,
}

impl Hand<'_> {
    fn start(&self, partition: i32) -> afterimage::core::batch::Advance {
        let position_id = self.positions[&partition];
        let held = self.held[&position_id];
        afterimage::core::batch::Advance::standing(position_id, held.epoch, held.next)
    }

    async fn judge(&mut self, partition: i32, event: &Event) -> Counter {
        let start = self.start(partition);
        let position_id = start.position_id;
        let offset = self.open.next(position_id).unwrap_or(start.from);
        self.open.advance(position_id, || start, offset, None);
        let mut fields: Vec<(i16, Value)> =
            event.row.values.iter().map(|(no, value)| (*no as i16, value.clone())).collect();
        fields.sort_by_key(|(no, _)| *no);
        let outcome = loop {
            let arrival = Arrival {
                position_id,
                offset,
                message_time: START,
                now: START + 3_600_000_000,
                passed: false,
                event,
                fields: fields.clone(),
                print: None,
            };
            let mut judge = Judge {
                object: &self.sink.facts,
                overlay: &mut self.overlay,
                batch: &mut self.open,
                front: &mut self.front,
            };
            match judge.judge(arrival) {
                Ok(outcome) => break outcome,
                Err(Need::Record(identity)) => self.load(position_id, event, &identity).await,
                Err(Need::Key(key)) => {
                    let slot = self.sink.key(&key).await;
                    for identity in slot.owner.iter().chain(slot.old.iter().map(|old| &old.identity)) {
                        if self.overlay.record(identity).is_none() {
                            self.load(position_id, event, identity).await;
                        }
                    }
                    self.overlay.load_key(key, slot);
                }
            }
        };
        self.open.count(position_id, outcome, 1);
        outcome
    }

    async fn load(&mut self, position_id: PositionId, event: &Event, identity: &str) {
        let newcomer = (identity.into(), position_id, event.key.clone());
        lookup::register(&mut self.client, self.sink.facts.object_id, &mut [newcomer]).await.unwrap();
        self.overlay.load_found(identity.into(), self.sink.found(identity).await);
    }

    fn seal(&mut self) -> SealedBatch {
        let next = OpenBatch::new(self.open.number() + 1);
        let source = &self.sink.source;
        std::mem::replace(&mut self.open, next).seal(&mut self.overlay, source.source_id, source.object_id)
    }

    async fn commit(&mut self, batch: &SealedBatch) -> Result<Committed, CommitError> {
        let committed = commit(&mut self.client, &[batch], &self.held).await?;
        for advance in &batch.advances {
            self.held.get_mut(&advance.position_id).unwrap().next = advance.to;
        }
        for (position_id, seq) in &committed.inval_seq {
            self.held.get_mut(position_id).unwrap().inval_seq = *seq;
        }
        self.overlay.committed(batch.number);
        Ok(committed)
    }

    /// Judges and commits these.
    async fn write(&mut self, partition: i32, events: &[Event]) {
        for event in events {
            self.judge(partition, event).await;
        }
        let batch = self.seal();
        self.commit(&batch).await.unwrap();
    }
}

fn event(op: Op, key: &str, identity: &str, lsn: u64, a: &str) -> Event {
    let values = if op == Op::Delete { Vec::new() } else { vec![(1, Value::Text(a.into()))] };
    let stamp = if op == Op::Delete { None } else { Some(Some(START - 1_000_000)) };
    Event {
        op,
        key: key.into(),
        identity: (!identity.is_empty()).then(|| identity.into()),
        lsn,
        ts: Some(START + lsn as i64 * 1_000),
        tx_id: None,
        row: Row { values, stamp, ..Row::default() },
    }
}

fn create(key: &str, identity: &str, lsn: u64, a: &str) -> Event {
    event(Op::Create, key, identity, lsn, a)
}

fn update(key: &str, identity: &str, lsn: u64, a: &str) -> Event {
    event(Op::Update, key, identity, lsn, a)
}

fn delete(key: &str, lsn: u64) -> Event {
    event(Op::Delete, key, "", lsn, "")
}

#[track_caller]
fn assert_rewinds<T: std::fmt::Debug>(result: Result<T, CommitError>) -> (String, Committed) {
    match result {
        Err(CommitError::Rewind { reason, known }) => (reason, known),
        other => panic!("no rewind: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_commit_writes_nothing_and_the_new_owner_writes_it_once() {
    let sink = Sink::new().await;
    let mut old = sink.hand(&[0]).await;
    old.write(0, &[create("1", "X", 10, "one"), create("2", "Y", 11, "one")]).await;
    let before = sink.rows().await;
    // Something of every kind that a batch writes.
    let events = [
        create("3", "Z", 20, "new"),
        update("1", "X", 21, "two"),
        delete("2", 22),
        create("9", "", 23, "pending"),
        update("7", "X", 15, "late"),
    ];
    for event in &events {
        old.judge(0, event).await;
    }
    let position = old.positions[&0];
    old.open.push_dead(DeadLetter {
        position_id: position,
        offset: 99,
        reason: "not json".into(),
        detail: String::new(),
        sfid: None,
        key: None,
        value: Some(vec![0xff]),
        sha256: None,
    });
    let batch = old.seal();
    assert!(
        !batch.deltas.is_empty() && !batch.keyframes.is_empty() && !batch.dead.is_empty() && !batch.keys.is_empty()
    );

    let mut new = sink.hand(&[0]).await;
    match old.commit(&batch).await {
        Err(CommitError::Fenced { positions, detail }) => {
            assert_eq!(positions, [position]);
            assert!(detail.contains("fenced"), "{detail}");
        }
        other => panic!("not fenced: {other:?}"),
    }
    assert_eq!(sink.rows().await, before, "nothing was written");
    assert_eq!(sink.number("SELECT next FROM afterimage.position").await, 2);

    new.write(0, &events).await;
    assert_eq!(sink.number("SELECT next FROM afterimage.position").await, 7);
    assert_eq!((sink.ops("X").await.as_str(), sink.ops("Y").await.as_str()), ("create update", "create delete"));
    // And the old owner is still out, whatever it brings.
    old.overlay.clear();
    old.judge(0, &update("1", "X", 40, "zombie")).await;
    let batch = old.seal();
    assert!(matches!(old.commit(&batch).await, Err(CommitError::Fenced { .. })));
    assert_eq!(sink.ops("X").await, "create update");
}

/// Both halves of a key change, rows of a COPY: whoever claims next knows which of them came.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_tells_which_rows_of_the_last_place_were_delivered() {
    let sink = Sink::new().await;
    let mut hand = sink.hand(&[0]).await;
    let position = hand.positions[&0];
    hand.judge(0, &create("1", "X", 10, "one")).await;
    let mut passage = Passage::default();
    assert!(!passage.pass(Some(START + 10_000), 10, 1));
    hand.open.progress(position, (0, None, 0), &passage);
    let batch = hand.seal();
    hand.commit(&batch).await.unwrap();
    // What advances without such an event leaves it as it is.
    hand.write(0, &[update("1", "X", 11, "two")]).await;
    let claimed = &sink.claim(&[0]).await[0];
    assert_eq!(claimed.passage, passage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_written_once_also_under_a_valid_epoch() {
    let sink = Sink::new().await;
    let mut hand = sink.hand(&[0]).await;
    hand.write(0, &[create("1", "X", 10, "one")]).await;
    hand.judge(0, &update("1", "X", 11, "two")).await;
    let batch = hand.seal();
    let held = hand.held.clone();
    hand.commit(&batch).await.unwrap();
    // The same batch, as if its answer had been lost: the position has moved on.
    match commit(&mut hand.client, &[&batch], &held).await {
        Err(CommitError::Fenced { detail, .. }) => assert!(detail.contains("moved-on 2"), "{detail}"),
        other => panic!("written twice: {other:?}"),
    }
    assert_eq!(sink.ops("X").await, "create update");
    // First versions have a key of their own, which says so before the position does.
    let mut again = sink.hand(&[1]).await;
    again.judge(1, &create("5", "N", 12, "one")).await;
    let batch = again.seal();
    let held = again.held.clone();
    again.commit(&batch).await.unwrap();
    match commit(&mut again.client, &[&batch], &held).await {
        Err(CommitError::Fenced { positions, .. }) => assert_eq!(positions, [again.positions[&1]]),
        other => panic!("only a claim tells where it stands: {other:?}"),
    }
    assert_eq!(sink.ops("N").await, "create");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sees_a_record_first_is_followed_by_the_others_without_a_claim() {
    let sink = Sink::new().await;
    let (mut one, mut other) = (sink.hand(&[0]).await, sink.hand(&[1]).await);
    // Neither has committed when the other judges it: both believe it to be new. The home is whose name came first.
    let later = create("5", "X", 20, "two");
    assert_eq!(one.judge(0, &later).await, Counter::Delta);
    assert_eq!(other.judge(1, &create("1", "X", 10, "one")).await, Counter::Delta);
    let batch = other.seal();
    other.commit(&batch).await.unwrap();
    let batch = one.seal();
    let (reason, known) = assert_rewinds(one.commit(&batch).await);
    assert!(reason.contains("keyframe"), "{reason}");
    // Under the same claim, with what it has learned: an update of a record that has to be taken over.
    one.overlay.clear();
    for (position_id, seq) in known.inval_seq {
        one.held.get_mut(&position_id).unwrap().inval_seq = seq;
    }
    one.write(0, &[later]).await;
    assert_eq!(sink.ops("X").await, "create update");
    assert_eq!(sink.record("X").await.home, Some(one.positions[&0]));
}

/// Makes every COMMIT that has written a keyframe wait for a lock that the returned session holds.
async fn commits_wait(sink: &Sink) -> Client {
    sink.watcher
        .batch_execute(
            "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS
               'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END';
             CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON afterimage.keyframe DEFERRABLE INITIALLY DEFERRED
               FOR EACH ROW EXECUTE FUNCTION public.wait()",
        )
        .await
        .unwrap();
    let gate = sink.database.connect().await;
    gate.batch_execute("SELECT pg_advisory_lock(4711)").await.unwrap();
    gate
}

async fn someone_waits_for(sink: &Sink, locktype: &str) {
    let query = format!(
        "SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid
         WHERE a.datname = current_database() AND NOT l.granted AND l.locktype = '{locktype}'"
    );
    wait_until(&format!("a session that waits for a {locktype} lock"), LONG, async || sink.number(&query).await > 0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_waits_for_a_commit_under_way_and_so_knows_its_outcome() {
    let sink = Sink::new().await;
    let gate = commits_wait(&sink).await;
    let mut old = sink.hand(&[0]).await;
    old.judge(0, &create("1", "X", 10, "one")).await;
    let batch = old.seal();
    let claiming = async {
        // `advance` is done, COMMIT is under way: nobody can know yet.
        someone_waits_for(&sink, "advisory").await;
        let released = async {
            someone_waits_for(&sink, "transactionid").await;
            gate.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
        };
        tokio::join!(sink.hand(&[0]), released).0
    };
    let (committed, new) = tokio::join!(old.commit(&batch), claiming);
    committed.unwrap();
    assert_eq!(new.held.values().next().unwrap().next, 1, "the claim has seen the commit");
    assert_eq!(sink.ops("X").await, "create");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_ends_a_commit_that_does_not_end_and_what_it_wrote_is_void() {
    let sink = Sink::new().await;
    let _gate = commits_wait(&sink).await;
    let mut old = sink.hand(&[0]).await;
    old.judge(0, &create("1", "X", 10, "one")).await;
    let batch = old.seal();
    let claiming = async {
        someone_waits_for(&sink, "advisory").await;
        sink.hand(&[0]).await
    };
    let mut new;
    match tokio::join!(old.commit(&batch), claiming) {
        (Err(CommitError::Unknown(_)), claimed) => new = claimed,
        (other, _) => panic!("the frozen session was not ended: {other:?}"),
    }
    assert_eq!(new.held.values().next().unwrap().next, 0, "it did not commit");
    assert_eq!(sink.rows().await, 0);
    sink.watcher.batch_execute("DROP TRIGGER wait ON afterimage.keyframe").await.unwrap();
    new.write(0, &[create("1", "X", 10, "one")]).await;
    assert_eq!(sink.ops("X").await, "create");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_taken_over_is_taken_from_its_donor_too() {
    let sink = Sink::new().await;
    let (mut donor, mut taker) = (sink.hand(&[0]).await, sink.hand(&[1]).await);
    donor.write(0, &[create("1", "X", 10, "one"), create("2", "Y", 11, "one")]).await;
    let (from, to) = (donor.positions[&0], taker.positions[&1]);

    // The donor has judged X, a repeat that writes nothing, when X goes.
    assert_eq!(donor.judge(0, &update("1", "X", 12, "one")).await, Counter::Noop);
    let touching = donor.seal();
    assert_eq!(touching.rows(), 0);
    // Also content that is equal takes the record over: the key is another.
    taker.write(1, &[create("5", "X", 20, "one")]).await;
    let x = sink.record("X").await;
    assert_eq!((x.home, x.row_key.as_deref(), x.floor.lsn), (Some(to), Some("5"), 20));
    let told = "SELECT count(*) FROM afterimage.invalidation i JOIN afterimage.record r USING (rid) WHERE r.sfid = 'X' AND i.reason = 'm'";
    assert_eq!(sink.number(&format!("{told} AND i.position_id = {from} AND i.seq = 1")).await, 1);
    let row = sink.watcher.query_one("SELECT key_hash FROM afterimage.invalidation", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), key_hash(sink.facts.object_id, "X"));
    assert_eq!(sink.number(&format!("SELECT inval_seq FROM afterimage.position WHERE position_id = {from}")).await, 1);

    let (_, known) = assert_rewinds(donor.commit(&touching).await);
    assert_eq!(known.inval_seq.get(&from), Some(&1));
    assert_eq!(
        known.invalidated.iter().map(|gone| (gone.position_id, &*gone.identity)).collect::<Vec<_>>(),
        [(from, "X")]
    );

    // A batch that has not looked at X is committed, and learns of it.
    donor.overlay.clear();
    donor.judge(0, &update("2", "Y", 13, "two")).await;
    let batch = donor.seal();
    let committed = donor.commit(&batch).await.unwrap();
    assert_eq!(committed.invalidated.len(), 1);
    assert_eq!(donor.held[&from].inval_seq, 1);
    // Once.
    donor.judge(0, &update("2", "Y", 14, "three")).await;
    let batch = donor.seal();
    assert!(donor.commit(&batch).await.unwrap().invalidated.is_empty());
    assert_eq!(sink.ops("Y").await, "create update update");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_of_a_record_that_changed_meanwhile_is_judged_again() {
    let sink = Sink::new().await;
    let mut home = sink.hand(&[0]).await;
    let cases = ["home", "floor", "head", "head by another version of the same number"];
    for (n, what) in (0..).zip(cases) {
        let (identity, mine, theirs) = (format!("X{n}"), format!("1{n}"), format!("2{n}"));
        let lsn = 1_000 * (n + 1);
        home.write(0, &[create(&mine, &identity, lsn, "one")]).await;
        if n == 3 {
            home.write(0, &[delete(&mine, lsn + 1)]).await;
        }
        let arrives = create(&theirs, &identity, lsn + 500, "new");
        let mut taker = sink.hand(&[1]).await;
        taker.judge(1, &arrives).await;
        let batch = taker.seal();
        assert!(batch.takes_over());
        match n {
            // Another row under the record's key takes the key, and the record with it; nothing else of it changes.
            0 => sink.hand(&[2]).await.write(2, &[create(&mine, "Thief", lsn + 10, "x")]).await,
            1 => {
                let floor = format!("UPDATE afterimage.record SET floor_lsn = 5 WHERE sfid = '{identity}'");
                sink.watcher.batch_execute(&floor).await.unwrap();
            }
            2 => home.write(0, &[update(&mine, &identity, lsn + 10, "two")]).await,
            _ => {
                // The delete is taken back, and another version takes its number. Without source times the floor stays.
                let back = create(&mine, &identity, lsn + 10, "one");
                let edit = update(&mine, &identity, lsn + 11, "two");
                home.write(0, &[back, edit].map(|event| Event { ts: None, ..event })).await;
                let record = sink.record(&identity).await;
                assert_eq!((record.head.unwrap().seq, record.floor.lsn), (1, 0));
            }
        }
        let before = sink.rows().await;
        assert_rewinds(taker.commit(&batch).await);
        assert_eq!(sink.rows().await, before, "{what}: nothing is written");
        // Judged against what is there now, it goes through.
        let mut taker = sink.hand(&[1]).await;
        taker.write(1, &[arrives]).await;
        assert_eq!(sink.record(&identity).await.home, Some(taker.positions[&1]), "{what}");
    }
}

/// A late event puts another version into the place of one that says nothing new any more: the image changes, and home,
/// floor and newest version stay.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_of_a_record_that_was_spliced_meanwhile_is_judged_again() {
    let sink = Sink::new().await;
    let with = |no: u16, value: &str, mut event: Event| {
        event.row.values.push((no, Value::Text(value.into())));
        // An edit, and no backfill.
        event.row.stamp = Some(Some(START + 1));
        event
    };
    let mut home = sink.hand(&[0]).await;
    let news = [create("1", "X", 10, "one"), update("1", "X", 20, "two"), with(2, "new", update("1", "X", 30, "two"))];
    home.write(0, &news).await;
    let mut other = sink.hand(&[2]).await;
    other.write(2, &[with(3, "late", update("3", "X", 15, "two"))]).await;

    let arrives = with(3, "late", with(2, "new", create("2", "X", 40, "two")));
    let mut taker = sink.hand(&[1]).await;
    taker.judge(1, &arrives).await;
    let batch = taker.seal();
    let before = sink.record("X").await;
    let placed = place(&mut home.client, &sink.facts, &home.held, START).await.unwrap().expect("a late event to place");
    assert_eq!((placed.versions, placed.kept), (1, 0));
    let after = sink.record("X").await;
    assert_eq!((before.home, before.floor, before.head_id()), (after.home, after.floor, after.head_id()));
    assert_ne!(before.image, after.image);

    assert_rewinds(taker.commit(&batch).await);
    let mut taker = sink.hand(&[1]).await;
    taker.write(1, &[arrives]).await;
    assert_eq!(sink.record("X").await.home, Some(taker.positions[&1]));
    assert_eq!(sink.ops("X").await, "create update update", "the value that came late is not new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_is_taken_back_and_its_number_used_again_in_one_batch() {
    let sink = Sink::new().await;
    let mut hand = sink.hand(&[0]).await;
    // X's delete is an ordinary version; Y's opens a chain, so a keyframe goes and comes with it.
    hand.write(0, &[create("1", "X", 10, "one"), delete("1", 11)]).await;
    hand.write(0, &[create("2", "Y", 12, "0")]).await;
    let edits: Vec<Event> = (1..64).map(|n| update("2", "Y", 20 + n, &n.to_string())).collect();
    hand.write(0, &edits).await;
    hand.write(0, &[delete("2", 100)]).await;
    assert_eq!(sink.number("SELECT count(*) FROM afterimage.keyframe WHERE kf = 1").await, 1);

    let last = |key: &str| update(key, if key == "1" { "X" } else { "Y" }, 203, "after");
    let events = [create("1", "X", 200, "one"), create("2", "Y", 201, "63"), last("1"), last("2")];
    hand.write(0, &events).await;
    assert_eq!(sink.ops("X").await, "create update");
    assert_eq!(sink.ops("Y").await, format!("create{}", " update".repeat(64)));
    assert_eq!(sink.number("SELECT count(*) FROM afterimage.keyframe WHERE kf = 1").await, 1);
    assert_eq!(sink.number("SELECT sum(rows_cancelled) FROM afterimage.position").await, 2);
    let rows = "SELECT (SELECT count(*) FROM afterimage.changes) - sum(rows_written - rows_cancelled) FROM afterimage.position";
    assert_eq!(sink.number(rows).await, 0, "L2");
}

#[tokio::test(flavor = "multi_thread")]
async fn registering_known_records_burns_no_numbers() {
    let sink = Sink::new().await;
    let mut hand = sink.hand(&[0]).await;
    let home = hand.positions[&0];
    let newcomers = |from: u32| -> Vec<lookup::Newcomer> {
        (from..from + 100).rev().map(|n| (format!("N{n}").into(), home, n.to_string().into())).collect()
    };
    let mut other = sink.database.connect().await;
    for _ in 0..3 {
        // Two at once, overlapping, in opposite order: neither waits for the other in vain.
        let (mut mine, mut theirs) = (newcomers(0), newcomers(50));
        let (one, two) = tokio::join!(
            lookup::register(&mut hand.client, sink.facts.object_id, &mut mine),
            lookup::register(&mut other, sink.facts.object_id, &mut theirs)
        );
        one.unwrap();
        two.unwrap();
    }
    assert_eq!(sink.number("SELECT count(*) FROM afterimage.record").await, 150);
    let burned = sink.number("SELECT last_value FROM afterimage.record_rid_seq").await - 150;
    // Only the first round, where both met, may have cost some.
    assert!(burned <= 50, "{burned} numbers burned");
    lookup::register(&mut other, sink.facts.object_id, &mut newcomers(20)).await.unwrap();
    assert_eq!(sink.number("SELECT last_value FROM afterimage.record_rid_seq").await - 150, burned);
    // Without history they are nobody's: not shown, and no key leads to them.
    assert_eq!(sink.number("SELECT count(*) FROM afterimage.records").await, 0);
    assert_eq!(sink.key("7").await.owner, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_belongs_to_one_deployment_and_one_object() {
    let sink = Sink::new().await;
    let mut client = sink.database.connect().await;
    for (cluster, group) in [("cluster", "another"), ("elsewhere", "group")] {
        match registry::sources(&mut client, &[declared("t", "emea")], cluster, group).await {
            Err(RegistryError::Held { topic, group, cluster, .. }) => {
                assert_eq!((topic.as_str(), group.as_str(), cluster.as_str()), ("t", "group", "cluster"));
            }
            other => panic!("not refused: {other:?}"),
        }
    }
    match registry::sources(&mut client, &[declared("t", "apac")], "cluster", "group").await {
        Err(RegistryError::Moved { before, now, .. }) => {
            assert_eq!((before.as_str(), now.as_str()), ("emea.account", "apac.account"));
        }
        other => panic!("not refused: {other:?}"),
    }
    assert_eq!(sink.number("SELECT count(*) FROM afterimage.org").await, 1, "a refusal leaves nothing");
    let again = registry::sources(&mut client, &[declared("t", "emea")], "cluster", "group").await.unwrap();
    assert_eq!(again[0].source_id, sink.source.source_id);
}

/// Random events of a few records that move, are deleted, come back, wait for their ids: after every commit, what the
/// lookups read is what was judged.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_back_is_what_was_judged() {
    for seed in 0..3 {
        let sink = Sink::new().await;
        let mut random = StdRng::seed_from_u64(seed);
        let mut hand = sink.hand(&[0, 1]).await;
        let mut rows: BTreeMap<String, String> = BTreeMap::new();
        let (mut longest, mut deleted, mut waiting) = (0, 0, 0);
        let mut lsn = 10;
        for _ in 0..120 {
            for _ in 0..random.random_range(1..8) {
                lsn += 1;
                let identity = format!("X{}", random.random_range(0..3));
                let mut event = match rows.get(&identity).cloned() {
                    None => {
                        let key = random.random_range(0..9).to_string();
                        rows.retain(|_, held| *held != key);
                        rows.insert(identity.clone(), key.clone());
                        create(&key, &identity, lsn, "back")
                    }
                    Some(key) if random.random_bool(0.05) => {
                        rows.remove(&identity);
                        delete(&key, lsn)
                    }
                    Some(key) => update(&key, &identity, lsn, "new"),
                };
                if random.random_bool(0.03) {
                    event = create("77", "", lsn, "waits");
                }
                if event.op != Op::Delete {
                    event.row.values = Vec::new();
                    for no in 1..4 {
                        let value = match random.random_range(0..8) {
                            0 => continue,
                            1 => Value::Null,
                            2 => Value::Unknown,
                            // Bytes that the short form of a payload needs for itself.
                            3 => Value::Text("a\u{1f}b\u{2}\u{3}\"\\".into()),
                            n => Value::Text(format!("ü{n}{}", random.random_range(0..4)).into()),
                        };
                        event.row.values.push((no, value));
                    }
                    event.row.stamp = Some(Some(START + random.random_range(-90_000..90_000) * 1_000_000));
                    event.row.modified_by = Some(Some(format!("005{}", random.random_range(0..3)).into()));
                    event.row.local = random.random_bool(0.2);
                }
                let partition = i32::from(event.key.as_bytes().last().is_some_and(|byte| byte % 2 == 1));
                hand.judge(partition, &event).await;
            }
            let batch = hand.seal();
            hand.commit(&batch).await.unwrap();
            for stored in &batch.records {
                let mut found = sink.record(&stored.identity).await;
                let judged = &stored.record;
                if found.deleted_key.is_none()
                    && let Some(key) = &judged.deleted_key
                {
                    // Another record was seen under it since: then it names that one.
                    let slot = sink.key(key).await;
                    assert!(slot.owner.is_some() || slot.old.is_some_and(|old| old.identity != stored.identity));
                    found.deleted_key.clone_from(&judged.deleted_key);
                }
                assert_eq!(&found, &**judged, "seed {seed}, lsn {lsn}");
                longest = longest.max(found.head.as_ref().map_or(0, |head| head.seq));
                deleted += u32::from(found.before_delete.is_some());
            }
            for change in &batch.keys {
                let slot = sink.key(&change.key).await;
                assert_eq!(
                    (&slot.old, &slot.pending),
                    (&change.old, &change.pending),
                    "seed {seed}, key {}",
                    change.key
                );
                waiting += slot.pending.len();
            }
        }
        assert!(longest > 64 && deleted > 3 && waiting > 3, "{longest} {deleted} {waiting}");
        let json = "SELECT count(*) FROM afterimage.delta WHERE get_byte(d, 0) & 8 <> 0";
        let both = sink.number(json).await;
        assert!(both > 0 && both < sink.number("SELECT count(*) FROM afterimage.delta").await);
        assert!(sink.number("SELECT count(*) FROM afterimage.invalidation").await > 0, "records moved");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_notes_what_the_broker_no_longer_has() {
    let sink = Sink::new().await;
    sink.hand(&[0]).await.write(0, &[create("1", "X", 10, "one")]).await;
    let claimant = Claimant { worker: "late".into(), config_hash: Vec::new() };
    let wanted = |earliest, end| Wanted {
        source_id: sink.source.source_id,
        topic: "t".into(),
        partition: 0,
        earliest,
        end,
        found: None,
    };
    let (claims, _) = claim(&sink.settings, &claimant, &[wanted(5, 9)]).await.unwrap();
    assert_eq!((claims[0].next, claims[0].gap), (5, Some((1, 5))));
    assert_eq!(sink.number("SELECT c_gap FROM afterimage.position").await, 4);
    assert_eq!(sink.number("SELECT to_offset - from_offset FROM afterimage.gaps").await, 4);
    // A log that ends below what was read is another log.
    let (claims, halted) = claim(&sink.settings, &claimant, &[wanted(0, 3)]).await.unwrap();
    assert!(claims.is_empty() && halted.len() == 1, "{claims:?}");
    assert_eq!(sink.number("SELECT epoch FROM afterimage.position").await, 2, "and nothing is claimed");
    tokio::time::timeout(Duration::from_secs(60), sink.claim(&[0])).await.unwrap();
}

/// What the broker dropped before anybody read the partition was never covered: nothing of it is missing.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_claim_begins_where_the_log_begins_and_notes_no_gap() {
    let sink = Sink::new().await;
    let claimant = Claimant { worker: "first".into(), config_hash: Vec::new() };
    let wanted = |earliest| Wanted {
        source_id: sink.source.source_id,
        topic: "t".into(),
        partition: 0,
        earliest,
        end: 9,
        found: None,
    };
    for earliest in [5, 5, 4] {
        let (claims, halted) = claim(&sink.settings, &claimant, &[wanted(earliest)]).await.unwrap();
        assert_eq!((claims[0].next, claims[0].gap, halted.len()), (5, None, 0));
        assert_eq!(sink.number("SELECT first_next FROM afterimage.position").await, 5);
        assert_eq!(sink.number("SELECT next FROM afterimage.position").await, 5);
        assert_eq!(sink.number("SELECT c_gap FROM afterimage.position").await, 0);
        assert_eq!(sink.number("SELECT count(*) FROM afterimage.gap").await, 0);
    }
    // What goes after that is one.
    let (claims, _) = claim(&sink.settings, &claimant, &[wanted(7)]).await.unwrap();
    assert_eq!((claims[0].next, claims[0].gap), (7, Some((5, 7))));
    assert_eq!(sink.number("SELECT first_next FROM afterimage.position").await, 5);
    assert_eq!(sink.number("SELECT c_gap FROM afterimage.position").await, 2);
}

/// Every value that a record ever had in a lookup field is a key to it, in the commit that brings it; other fields' are
/// not, and a refused commit leaves none.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_keeps_every_value_of_a_lookup_field() {
    let mut sink = Sink::new().await;
    sink.facts.lookups = vec![1];
    let keys = async |sink: &Sink| -> Vec<String> {
        let query = "SELECT l.field_no || ' ' || l.value || ' ' || r.sfid FROM afterimage.record_lookup l \
                     JOIN afterimage.record r USING (rid) ORDER BY 1";
        sink.watcher.query(query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    let mut one = sink.hand(&[0]).await;
    let update = |key: &str, identity: &str, lsn, a: &str| event(Op::Update, key, identity, lsn, a);
    one.write(0, &[create("1", "A", 10, "x"), create("2", "B", 11, "x"), update("1", "A", 20, "y")]).await;
    assert_eq!(keys(&sink).await, ["1 x A", "1 x B", "1 y A"]);
    // Back to a value it had, on to another, and gone.
    one.write(0, &[update("1", "A", 30, "x"), update("2", "B", 31, "ä"), event(Op::Delete, "1", "A", 40, "")]).await;
    assert_eq!(keys(&sink).await, ["1 x A", "1 x B", "1 y A", "1 ä B"]);

    one.judge(0, &update("2", "B", 50, "lost")).await;
    let batch = one.seal();
    sink.claim(&[0]).await;
    assert!(matches!(one.commit(&batch).await, Err(CommitError::Fenced { .. })));
    assert_eq!(keys(&sink).await.len(), 4);

    // Too long for an index: told, not written.
    let mut two = sink.hand(&[0]).await;
    two.judge(0, &update("2", "B", 60, &"z".repeat(2_001))).await;
    assert_eq!(two.open.take_overlong().into_iter().collect::<Vec<_>>(), [1]);
    let batch = two.seal();
    assert!(batch.lookups.is_empty());
    two.commit(&batch).await.unwrap();
}
