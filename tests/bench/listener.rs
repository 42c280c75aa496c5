//! The article's listener as its own program: the full row of every event becomes a row of a table with typed columns, a
//! serial key and three more b-trees. It is a kind one: compiled, with a typed parser and a prepared statement.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;
use serde::Deserialize;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::account::COLUMNS;
use super::rival::{Done, Order, SILENCE, assign, ready};
use super::support::postgres;

/// Which columns have a b-tree besides the serial key.
const INDEXED: [&str; 3] = ["sfid", "external_id__c", "systemmodstamp"];

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    after: Row<'a>,
}

/// The row, in the order of [`COLUMNS`].
#[derive(Deserialize)]
struct Row<'a> {
    createddate: Option<i64>,
    isdeleted: Option<bool>,
    name: Option<&'a str>,
    systemmodstamp: Option<i64>,
    accountnumber: Option<&'a str>,
    phone: Option<&'a str>,
    #[serde(rename = "score__c")]
    score: Option<f64>,
    #[serde(rename = "external_id__c")]
    external_id: Option<&'a str>,
    #[serde(rename = "type")]
    kind: Option<&'a str>,
    industry: Option<&'a str>,
    rating: Option<&'a str>,
    annualrevenue: Option<f64>,
    numberofemployees: Option<i32>,
    billingstreet: Option<&'a str>,
    billingcity: Option<&'a str>,
    billingpostalcode: Option<&'a str>,
    billingcountry: Option<&'a str>,
    website: Option<&'a str>,
    description: Option<&'a str>,
    ownerid: Option<&'a str>,
    parentid: Option<&'a str>,
    createdbyid: Option<&'a str>,
    lastmodifiedbyid: Option<&'a str>,
    lastmodifieddate: Option<i64>,
    lastactivitydate: Option<i32>,
    #[serde(rename = "active__c")]
    active: Option<bool>,
    sfid: Option<&'a str>,
    id: Option<i32>,
    _hc_lastop: Option<&'a str>,
    _hc_err: Option<&'a str>,
}

/// Reads and writes until all is committed; `rows` in one transaction, 1 = each by itself.
pub fn run(consumer: &BaseConsumer, order: &Order, rows: u32) -> Done {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = postgres::connect(&order.url).await;
        client.batch_execute(&table()).await.unwrap();
        let insert = client.prepare_typed(&statement(), &types()).await.unwrap();
        ready();
        assign(consumer, order);
        let mut done = Done { messages: 0, bytes: 0 };
        let mut open = 0;
        while done.messages < order.messages {
            let message = consumer.poll(SILENCE).expect("a message in time").unwrap();
            let value = message.payload().expect("a value");
            if rows > 1 && open == 0 {
                client.batch_execute("begin").await.unwrap();
            }
            write(&client, &insert, value).await;
            open += 1;
            done.messages += 1;
            done.bytes += (message.key_len() + value.len()) as u64;
            if rows > 1 && (open == rows || done.messages == order.messages) {
                client.batch_execute("commit").await.unwrap();
                open = 0;
            }
        }
        done
    })
}

async fn write(client: &Client, insert: &Statement, value: &[u8]) {
    let Row {
        createddate,
        isdeleted,
        name,
        systemmodstamp,
        accountnumber,
        phone,
        score,
        external_id,
        kind,
        industry,
        rating,
        annualrevenue,
        numberofemployees,
        billingstreet,
        billingcity,
        billingpostalcode,
        billingcountry,
        website,
        description,
        ownerid,
        parentid,
        createdbyid,
        lastmodifiedbyid,
        lastmodifieddate,
        lastactivitydate,
        active,
        sfid,
        id,
        _hc_lastop,
        _hc_err,
    } = serde_json::from_slice::<Envelope<'_>>(value).unwrap().after;
    let (createddate, systemmodstamp, lastmodifieddate) =
        (moment(createddate), moment(systemmodstamp), moment(lastmodifieddate));
    let values: [&(dyn ToSql + Sync); 30] = [
        &createddate,
        &isdeleted,
        &name,
        &systemmodstamp,
        &accountnumber,
        &phone,
        &score,
        &external_id,
        &kind,
        &industry,
        &rating,
        &annualrevenue,
        &numberofemployees,
        &billingstreet,
        &billingcity,
        &billingpostalcode,
        &billingcountry,
        &website,
        &description,
        &ownerid,
        &parentid,
        &createdbyid,
        &lastmodifiedbyid,
        &lastmodifieddate,
        &lastactivitydate,
        &active,
        &sfid,
        &id,
        &_hc_lastop,
        &_hc_err,
    ];
    client.execute(insert, &values).await.unwrap();
}

fn moment(micros: Option<i64>) -> Option<SystemTime> {
    micros.map(|micros| UNIX_EPOCH + Duration::from_micros(micros.unsigned_abs()))
}

fn table() -> String {
    // The serial key takes the name that the article's query has for it; the source's id becomes an ordinary column.
    let mut sql = "create table account (version_id bigserial primary key".to_string();
    for (name, kind) in COLUMNS {
        _ = write!(sql, ", {name} {kind}");
    }
    sql.push_str(");");
    for name in INDEXED {
        _ = write!(sql, "create index on account ({name});");
    }
    sql
}

fn statement() -> String {
    let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
    let values = COLUMNS.iter().enumerate().map(|(n, (_, kind))| match *kind {
        "date" => format!("date '1970-01-01' + ${}", n + 1),
        _ => format!("${}", n + 1),
    });
    format!("insert into account ({}) values ({})", names.join(", "), values.collect::<Vec<_>>().join(", "))
}

fn types() -> Vec<Type> {
    let kind = |(_, kind): &(&str, &str)| match *kind {
        "timestamp" => Type::TIMESTAMP,
        "boolean" => Type::BOOL,
        "double precision" => Type::FLOAT8,
        "integer" | "date" => Type::INT4,
        _ => Type::TEXT,
    };
    COLUMNS.iter().map(kind).collect()
}
