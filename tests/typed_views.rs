//! Typed views and lookup fields beside running workers: `afterimage` as child processes on the embedded broker and a
//! private PostgreSQL.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use afterimage::kafka::{EmbeddedBroker, Producer};
use serde_json::{Value, json};
use support::app::Deployment;
use support::audit::{Ends, assert_conserved, caught_up};
use support::postgres::{Database, fresh_database};
use support::wait::{LONG, wait_for};
use tokio_postgres::Client;

const TOPIC: &str = "calm.emea.account";

/// A topic of two partitions, filled as a connector without schema blocks does.
struct Stream {
    producer: Producer,
    next: [i64; 2],
    start: i64,
    lsn: i64,
}

impl Stream {
    fn new(broker: &EmbeddedBroker) -> Stream {
        broker.create_topic(TOPIC, 2).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
        Stream { producer: broker.producer().unwrap(), next: [0; 2], start: now - 3_600_000_000, lsn: 1_000 }
    }

    /// An insert or update of row `n`, whose sfid follows from it.
    fn row(&mut self, op: &str, n: usize, mut after: Value) {
        self.lsn += 10;
        let ts = self.start + self.lsn * 1_000;
        after["id"] = json!(n);
        after["sfid"] = json!(sfid(n));
        let value = json!({
            "before": null, "after": after, "op": op, "ts_ms": ts / 1_000,
            "source": {"version": "2.7.4.Final", "connector": "postgresql", "name": "calm", "ts_ms": ts / 1_000,
                "ts_us": ts, "snapshot": "false", "db": "d", "schema": "emea", "table": "account", "lsn": self.lsn},
        });
        let (key, partition) = (json!({"id": n}).to_string(), n % 2);
        let payload = value.to_string();
        self.producer
            .send(TOPIC, Some(partition as i32), Some(key.as_bytes()), Some(payload.as_bytes()), None)
            .unwrap();
        self.next[partition] += 1;
    }

    fn ends(&self) -> Ends {
        self.producer.flush(Duration::from_secs(60)).unwrap();
        (0..2).map(|partition| ((TOPIC.to_string(), partition as i32), self.next[partition])).collect()
    }
}

fn sfid(n: usize) -> String {
    format!("001{n:012}AAA")
}

fn deployment(broker: &EmbeddedBroker, sink: &Database, object: &str) -> Deployment {
    let object = if object.is_empty() {
        String::new()
    } else {
        format!("[[object]]\norg = \"emea\"\nname = \"account\"\n{object}\n")
    };
    Deployment::new(&broker.servers(), sink, format!("[[org]]\nname = \"emea\"\ntopics = [\"calm.emea.*\"]\n{object}"))
}

async fn strings(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()).collect()
}

/// Waits until a query says this.
async fn said(client: &Client, sql: &str, wanted: &[&str]) {
    wait_for(sql, LONG, async || match client.query(sql, &[]).await {
        Ok(rows) => {
            let found: Vec<String> =
                rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_default()).collect();
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        }
        Err(error) => Err(format!("{error:?}")),
    })
    .await;
}

const COLUMNS: &str = "select attname || ' ' || format_type(atttypid, atttypmod) from pg_attribute
    where attrelid = to_regclass('emea_history.account') and attnum > 8 and not attisdropped order by attnum";

/// A transaction that has read a view holds up neither the stream nor, for longer than a moment, other readers; the view
/// follows when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_held_open_holds_up_no_writer() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let before = deployment(&broker, &sink, "");
    before.migrate();
    let mut stream = Stream::new(&broker);
    let mut worker = before.worker("one");
    let (client, reader) = (sink.connect().await, sink.connect().await);
    for n in 0..10 {
        stream.row("c", n, json!({"name": format!("n{n}"), "due__c": 20_543 + n}));
    }
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    said(&client, COLUMNS, &["due__c numeric", "name text"]).await;

    reader.batch_execute("begin; select * from emea_history.account").await.unwrap();
    for round in 0..20 {
        for n in 0..10 {
            stream.row("u", n, json!({"name": format!("n{n}"), "due__c": 20_543 + n, "more__c": format!("m{round}")}));
        }
        // Committed to the end, round after round, while the view is held open.
        caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    }
    worker.wait_for_log("typed view emea_history.account waits for a session that has it open").await;
    worker.assert_running();
    assert_eq!(strings(&client, COLUMNS).await, ["due__c numeric", "name text"]);
    let read = client.query_one("select count(*) from emea_history.account", &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(read, 10 + 20 * 10, "others read it meanwhile");
    reader.batch_execute("commit").await.unwrap();
    said(&client, COLUMNS, &["due__c numeric", "name text", "more__c text"]).await;
    worker.stop();

    // A declared type makes a new view, and shows what came before it. One that does not fit is told once and left.
    let types = "types = { due__c = \"date\", name = \"date\" }";
    let after = deployment(&broker, &sink, types);
    let mut worker = after.worker("one");
    reader.batch_execute("begin; select * from emea_history.account").await.unwrap();
    for n in 0..10 {
        stream.row("u", n, json!({"name": format!("other {n}"), "due__c": 20_543 + n, "more__c": "m19"}));
    }
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    reader.batch_execute("commit").await.unwrap();
    said(&client, COLUMNS, &["due__c date", "name date", "more__c text"]).await;
    let dates = "select distinct to_char(due__c, 'YYYY-MM-DD') from emea_history.account order by 1 limit 2";
    assert_eq!(strings(&client, dates).await, ["2026-03-31", "2026-04-01"], "also of versions from before");
    let misfits = "select field from afterimage.fields where misfit_at is not null and misfit_message like 'calm.emea.account, partition _, offset %'";
    said(&client, misfits, &["name"]).await;
    said(
        &client,
        "select (col_description('emea_history.account'::regclass, 10) like '%do not fit came since%')::text",
        &["true"],
    )
    .await;
    worker.stop();
    let log = worker.log();
    assert_eq!(log.matches("does not fit the type declared").count(), 1, "{log}");
    assert_conserved(&client, &stream.ends()).await;
}

/// Values of `key__c` as the history has them, and as they can be looked up.
const IN_HISTORY: &str = "select distinct sfid || ' ' || (new #>> '{}') from afterimage.field_changes
    where field = 'key__c' and jsonb_typeof(new) = 'string' order by 1";
const LOOKED_UP: &str =
    "select r.sfid || ' ' || l.value from afterimage.record_lookup l join afterimage.record r using (rid) order by 1";
const STATE: &str = "select state from afterimage.lookup";

/// A lookup that is declared by a worker that joins is complete, although another worker, whose configuration does not
/// have it, goes on writing.
#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_declared_beside_a_running_worker_is_complete() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let sink = fresh_database().await;
    let (without, with) = (deployment(&broker, &sink, ""), deployment(&broker, &sink, "lookup = [\"key__c\"]"));
    without.migrate();
    let mut stream = Stream::new(&broker);
    let client = sink.connect().await;
    let write = |stream: &mut Stream, rounds: std::ops::Range<usize>| {
        for round in rounds {
            for n in 0..50 {
                let op = if round == 0 { "c" } else { "u" };
                stream.row(op, n, json!({"name": format!("n{n}"), "key__c": format!("k{}", (round * 7 + n) % 11)}));
            }
        }
    };
    write(&mut stream, 0..5);
    let mut one = without.worker("one");
    caught_up(&client, &stream.ends(), &mut [&mut one]).await;

    // While it reads a backlog.
    write(&mut stream, 5..40);
    let mut two = with.worker("two");
    write(&mut stream, 40..60);
    caught_up(&client, &stream.ends(), &mut [&mut one, &mut two]).await;
    said(&client, STATE, &["ready"]).await;
    write(&mut stream, 60..70);
    for n in 50..60 {
        stream.row("c", n, json!({"name": "late", "key__c": "new"}));
    }
    caught_up(&client, &stream.ends(), &mut [&mut one, &mut two]).await;
    let wanted = strings(&client, IN_HISTORY).await;
    assert!(wanted.len() > 500, "{}", wanted.len());
    assert_eq!(strings(&client, LOOKED_UP).await, wanted);
    said(&client, "select lookups::text from afterimage.object_view", &["{2}"]).await;
    let found = "select distinct sfid from emea_history.account where key__c = 'new' order by 1";
    assert_eq!(strings(&client, found).await, (50..60).map(sfid).collect::<Vec<_>>());
    one.stop();
    two.stop();
    // Who is only asked to read the lookup fields anew claims again at once: nobody else wants these partitions.
    for log in [one.log(), two.log()] {
        assert!(!log.contains("another worker holds a partition"), "{log}");
    }
    assert!(one.log().contains("the lookup fields of its object have changed"), "{}", one.log());
    assert_conserved(&client, &stream.ends()).await;

    // No longer declared: its rows go, what they found is found all the same.
    let mut worker = without.worker("three");
    write(&mut stream, 70..71);
    caught_up(&client, &stream.ends(), &mut [&mut worker]).await;
    said(&client, STATE, &[]).await;
    assert_eq!(strings(&client, LOOKED_UP).await, [""; 0]);
    assert_eq!(strings(&client, found).await, (50..60).map(sfid).collect::<Vec<_>>());
    worker.stop();
}
