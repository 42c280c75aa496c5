//! Writes records' histories the way the processor does, through the Rust encoder.

use std::collections::BTreeSet;

use afterimage::core::event::{FieldNo, Micros};
use afterimage::core::format::{CHAIN, Header, VersionOp, encode, fold};
use afterimage::core::value::Value;
use tokio_postgres::Client;

pub const DAY: Micros = 86_400_000_000;
/// 2026-01-01 00:00 UTC.
pub const NEW_YEAR: Micros = 1_767_225_600_000_000;

/// (name, class, type); the number is the place, from 1.
pub const FIELDS: [(&str, char, &str); 11] = [
    ("name", 'v', "text"),
    ("score__c", 'v', "double precision"),
    ("active__c", 'v', "boolean"),
    ("due__c", 'v', "date"),
    ("systemmodstamp", 's', "timestamp without time zone"),
    ("lastmodifiedbyid", 's', "text"),
    ("notes__c", 'v', "text"),
    ("count__c", 'v', "integer"),
    ("secret__c", 'x', "text"),
    ("amount__c", 'v', "numeric"),
    ("external_id__c", 'v', "text"),
];
pub const NAME: FieldNo = 1;
pub const SCORE: FieldNo = 2;
pub const STAMP: FieldNo = 5;
pub const USER: FieldNo = 6;
pub const EXTERNAL_ID: FieldNo = 11;

#[derive(Debug, Clone)]
pub struct Version {
    pub op: VersionOp,
    pub at: Micros,
    pub recorded: Micros,
    pub raw_at: Option<Micros>,
    pub stamp: Option<Micros>,
    pub local: bool,
    pub offset: i64,
    pub lsn: u64,
    pub fields: Vec<(FieldNo, Value)>,
}

impl Version {
    pub fn new(op: VersionOp, at: Micros, fields: &[(FieldNo, Value)]) -> Self {
        let fields = fields.to_vec();
        Self { op, at, recorded: at + 1000, raw_at: None, stamp: None, local: false, offset: 7, lsn: 77, fields }
    }

    fn header(&self, n: u8) -> Header {
        Header {
            op: self.op,
            n,
            local: self.local,
            no_source_time: false,
            raw_at: self.raw_at,
            stamp: self.stamp,
            modified_is_stamp: true,
            position_id: 2,
            offset: self.offset,
            lsn: self.lsn,
            recorded: self.recorded,
        }
    }
}

pub fn text(t: &str) -> Value {
    Value::Text(t.into())
}

/// Org `emea`, object `account` with [`FIELDS`], a topic of three partitions (positions 1 to 3).
pub async fn setup(client: &Client) {
    client
        .batch_execute(
            "insert into afterimage.org(name) values ('emea'), ('apac');
             insert into afterimage.object(org_id, name) values (1, 'account'), (1, 'job__c'), (2, 'account');
             insert into afterimage.source(name, kind, topic, org_id, object_id) values ('t', 'kafka', 'c.emea.account', 1, 1);
             insert into afterimage.position(source_id, partition, first_next, next) values (1, 0, 0, 0), (1, 4, 0, 0), (1, 5, 0, 0)",
        )
        .await
        .unwrap();
    for (i, (name, class, kind)) in FIELDS.iter().enumerate() {
        client
            .execute(
                "insert into afterimage.field(object_id, field_no, name, class, types)
                 select b, $1::smallint, $2::text, $3::text::\"char\", jsonb_build_array(
                   jsonb_build_object('type', 'text'), jsonb_build_object('type', $4::text))
                 from generate_series(1, 3) b",
                &[&(i as i16 + 1), name, &class.to_string(), kind],
            )
            .await
            .unwrap();
    }
}

/// A record of the object, and its versions from 0 on, with keyframes; its rid.
pub async fn record(client: &Client, object_id: i16, sfid: &str, versions: &[Version]) -> i32 {
    let rid = client
        .query_one(
            "insert into afterimage.record(object_id, sfid, home) values ($1, $2, 2) returning rid",
            &[&object_id, &sfid],
        )
        .await
        .unwrap()
        .get(0);
    write(client, &[(rid, versions)]).await;
    rid
}

/// Rows of many records at once.
pub async fn write(client: &Client, records: &[(i32, &[Version])]) {
    let mut keyframes: (Vec<i32>, Vec<i32>, Vec<i64>, Vec<Vec<u8>>) = Default::default();
    let mut deltas = keyframes.clone();
    let mut months = BTreeSet::new();
    for (rid, versions) in records {
        let mut image = Vec::new();
        for (seq, version) in versions.iter().enumerate() {
            let (kf, n) = (seq / usize::from(CHAIN), (seq % usize::from(CHAIN)) as u8);
            if n == 0 && kf > 0 {
                let shown = &versions[seq - 1];
                keyframes.0.push(*rid);
                keyframes.1.push(kf as i32);
                keyframes.2.push(shown.at);
                keyframes.3.push(encode(shown.at, &shown.header(0), Some(STAMP), &image));
            }
            fold(&mut image, &version.fields);
            let rows = if seq == 0 { &mut keyframes } else { &mut deltas };
            rows.0.push(*rid);
            rows.1.push(kf as i32);
            rows.2.push(version.at);
            rows.3.push(encode(version.at, &version.header(n), Some(STAMP), &version.fields));
            months.insert(version.at);
        }
    }
    client
        .execute(
            "select afterimage.ensure_month(m) from (
               select distinct date_trunc('month', (timestamp '1970-01-01' + x * interval '1 microsecond'))::date as m
               from unnest($1::bigint[]) x) y",
            &[&months.into_iter().collect::<Vec<_>>()],
        )
        .await
        .unwrap();
    for (table, rows) in [("keyframe", keyframes), ("delta", deltas)] {
        client
            .execute(
                &format!(
                    "insert into afterimage.{table}(rid, kf, at, d)
                     select rid, kf, timestamptz '1970-01-01 00:00Z' + at * interval '1 microsecond', d
                     from unnest($1::int[], $2::int[], $3::bigint[], $4::bytea[]) x(rid, kf, at, d)"
                ),
                &[&rows.0, &rows.1, &rows.2, &rows.3],
            )
            .await
            .unwrap();
    }
}

/// SQL that turns a timestamptz into microseconds since 1970, infinities into the ends of bigint.
pub fn micros(expression: &str) -> String {
    format!(
        "case when {expression} = 'infinity' then 9223372036854775807 when {expression} = '-infinity' then -9223372036854775808
         else (extract(epoch from {expression}) * 1000000)::bigint end"
    )
}

/// SQL for the moment of a bigint parameter in microseconds.
pub fn moment(parameter: &str) -> String {
    format!("(timestamptz '1970-01-01 00:00Z' + {parameter}::bigint * interval '1 microsecond')")
}
