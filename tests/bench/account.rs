//! The load: one Connect-like table `account` of 30 columns, as Debezium's envelopes without schema, by a seed.
//!
//! First every record is seen once (the baseline), then come touches that change nothing a user would see (a no-op: only
//! `systemmodstamp` and `lastmodifieddate` are new, as in real ones), and edits like those of the article: a new phone
//! number, and in three of five a new score as well. One edit in ten is by a person, the others by one integration user.
#![allow(dead_code)] // two programs include this module, each uses its part

use std::fmt::Write as _;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// Microseconds since 1970-01-01 UTC.
pub type Micros = i64;

/// Columns and PostgreSQL types in the order of the table.
pub const COLUMNS: [(&str, &str); 30] = [
    ("createddate", "timestamp"),
    ("isdeleted", "boolean"),
    ("name", "text"),
    ("systemmodstamp", "timestamp"),
    ("accountnumber", "text"),
    ("phone", "text"),
    ("score__c", "double precision"),
    ("external_id__c", "text"),
    ("type", "text"),
    ("industry", "text"),
    ("rating", "text"),
    ("annualrevenue", "double precision"),
    ("numberofemployees", "integer"),
    ("billingstreet", "text"),
    ("billingcity", "text"),
    ("billingpostalcode", "text"),
    ("billingcountry", "text"),
    ("website", "text"),
    ("description", "text"),
    ("ownerid", "text"),
    ("parentid", "text"),
    ("createdbyid", "text"),
    ("lastmodifiedbyid", "text"),
    ("lastmodifieddate", "timestamp"),
    ("lastactivitydate", "date"),
    ("active__c", "boolean"),
    ("sfid", "text"),
    ("id", "integer"),
    ("_hc_lastop", "text"),
    ("_hc_err", "text"),
];

/// The types that a configuration has to declare, because JSON alone does not show them.
pub const DECLARED: &str = r#"{ createddate = "timestamp", systemmodstamp = "timestamp", lastmodifieddate = "timestamp", lastactivitydate = "date", score__c = "float8", annualrevenue = "float8", numberofemployees = "int4", id = "int4" }"#;

/// Source time between two events of the stream.
const STEP: Micros = 100_000;
/// Bytes of the source's log between two events.
const LOG_STEP: u64 = 480;

/// How a stream is made.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Records.
    pub records: u32,
    /// Events after each record was seen once.
    pub events: u64,
    /// Share of the events that change nothing, in hundredths of a percent.
    pub noops: u32,
    /// What everything random comes from.
    pub seed: u64,
    /// Source time of the first event.
    pub from: Micros,
}

impl Load {
    /// Source time from the first event to the last.
    pub fn span(&self) -> Micros {
        (i64::from(self.records) + self.events as i64) * STEP
    }
}

/// What one record must look like after the stream.
#[derive(Debug, Clone)]
pub struct Account {
    /// Phone number.
    pub phone: Box<str>,
    /// Score.
    pub score: u8,
    /// Number of changes so far.
    pub changes: u32,
    /// Who changed it last: 0 is the integration user.
    editor: u8,
}

/// A change as the history has to show it.
#[derive(Debug)]
pub struct Change<'a> {
    /// Index of the record.
    pub record: u32,
    /// Its version.
    pub seq: u32,
    /// Phone before and after.
    pub phone: (&'a str, &'a str),
    /// Score before and after, if it changed.
    pub score: Option<(u8, u8)>,
}

/// Makes the messages in order.
pub struct Source {
    load: Load,
    rng: SmallRng,
    accounts: Vec<Account>,
    /// Events so far, baseline included.
    made: u64,
    key: String,
    value: String,
}

impl Source {
    /// A source before its first event.
    pub fn new(load: Load) -> Self {
        let accounts = Vec::with_capacity(load.records as usize);
        let rng = SmallRng::seed_from_u64(load.seed);
        Source { load, rng, accounts, made: 0, key: String::new(), value: String::with_capacity(1_500) }
    }

    /// What the records look like now.
    pub fn accounts(&self) -> &[Account] {
        &self.accounts
    }

    /// Key and value of the next message; `None` at the end of the stream. `changed` is told of a change.
    pub fn next(&mut self, mut changed: impl FnMut(Change<'_>)) -> Option<(&[u8], &[u8])> {
        let records = u64::from(self.load.records);
        if self.made >= records + self.load.events {
            return None;
        }
        let index = if self.made < records {
            self.accounts.push(Account::new(&mut self.rng));
            self.made as u32
        } else {
            let index = self.rng.random_range(0..self.load.records);
            if self.rng.random_range(0..10_000) >= self.load.noops {
                self.edit(index, &mut changed);
            }
            index
        };
        let at = self.load.from + self.made as i64 * STEP + self.rng.random_range(0..STEP / 2);
        self.made += 1;
        self.write(index, at);
        Some((self.key.as_bytes(), self.value.as_bytes()))
    }

    fn edit(&mut self, index: u32, changed: &mut impl FnMut(Change<'_>)) {
        let account = &mut self.accounts[index as usize];
        let (old, scores) = account.edit(&mut self.rng);
        changed(Change { record: index, seq: account.changes, phone: (&old, &account.phone), score: scores });
    }

    fn write(&mut self, index: u32, at: Micros) {
        let place = Place { at, number: self.made };
        write_key(&mut self.key, index);
        write_update(&mut self.value, self.load.seed, index, &self.accounts[index as usize], place);
    }
}

impl Account {
    /// A record as it is when it is seen first.
    pub fn new(rng: &mut SmallRng) -> Account {
        Account { phone: phone(rng), score: rng.random_range(1..20), changes: 0, editor: 0 }
    }

    /// Changes it; the phone before, and the score before and after if it has another one now.
    pub fn edit(&mut self, rng: &mut SmallRng) -> (Box<str>, Option<(u8, u8)>) {
        let next = loop {
            let next = phone(rng);
            if next != self.phone {
                break next;
            }
        };
        // From 1 to 19, and another one than now.
        let score = rng.random_ratio(3, 5).then(|| (self.score + rng.random_range(0..18)) % 19 + 1);
        self.editor = if rng.random_ratio(1, 10) { rng.random_range(1..20) } else { 0 };
        self.changes += 1;
        let old = std::mem::replace(&mut self.phone, next);
        (old, score.map(|score| (std::mem::replace(&mut self.score, score), score)))
    }
}

/// Where a message stands in its source.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Source time.
    pub at: Micros,
    /// Number of the event; the place in the source's log comes of it.
    pub number: u64,
}

/// The key of a record's messages.
pub fn write_key(key: &mut String, index: u32) {
    key.clear();
    _ = write!(key, r#"{{"id":{}}}"#, row_id(index));
}

/// An update of a record, or its touch.
pub fn write_update(value: &mut String, seed: u64, index: u32, account: &Account, place: Place) {
    value.clear();
    value.push_str(r#"{"before":null,"after":"#);
    write_row(value, seed, index, account, place.at);
    write_tail(value, "u", place);
}

/// The deletion of a record: of the row it shows the key only, as with PostgreSQL's default replica identity.
pub fn write_deletion(value: &mut String, index: u32, place: Place) {
    value.clear();
    _ = write!(value, r#"{{"before":{{"id":{}}},"after":null"#, row_id(index));
    write_tail(value, "d", place);
}

/// A message with the row before the change as well, as `REPLICA IDENTITY FULL` gives it. For single measurements.
pub fn with_before(load: Load, index: u32, old: &Account, new: &Account, at: Micros) -> Vec<u8> {
    let mut value = r#"{"before":"#.to_string();
    write_row(&mut value, load.seed, index, old, at - STEP);
    value.push_str(r#","after":"#);
    write_row(&mut value, load.seed, index, new, at);
    write_tail(&mut value, "u", Place { at, number: 1 });
    value.into_bytes()
}

/// The 18-character id of the record with this index.
pub fn sfid(index: u32) -> String {
    id_of("001", 50_000_000 + u64::from(index))
}

/// The row's integer key.
fn row_id(index: u32) -> u32 {
    index + 1
}

fn write_row(out: &mut String, seed: u64, index: u32, account: &Account, at: Micros) {
    // What never changes comes from the record's own generator: nothing has to be remembered for it.
    let rng = &mut SmallRng::seed_from_u64(seed ^ (u64::from(index) << 20));
    let second = 1_000_000;
    let stamp = at.div_euclid(second) * second - rng.random_range(0..4) * second;
    let created = 1_546_300_800_000_000 + rng.random_range(0..31_536_000) * second;
    let (a, b, c) = (pick(rng, &NAMES), pick(rng, &NAMES), pick(rng, &NAMES));
    _ = write!(
        out,
        r#"{{"createddate":{created},"isdeleted":false,"name":"{a}, {b} and {c}","systemmodstamp":{stamp}"#
    );
    _ = write!(out, r#","accountnumber":"{}-{:06}""#, pick(rng, &COUNTRIES), rng.random_range(0..1_000_000));
    _ = write!(out, r#","phone":"{}","score__c":{}.0"#, account.phone, account.score);
    _ = write!(
        out,
        r#","external_id__c":"{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}{}""#,
        rng.random::<u32>(),
        rng.random::<u16>(),
        rng.random_range(0..0x1000),
        rng.random_range(0x8000..0xc000),
        rng.random_range(0..0x1_0000_0000_0000_u64),
        rng.random_range(1_580_000_000_000_i64..1_599_000_000_000)
    );
    _ = write!(out, r#","type":"{}","industry":"{}""#, pick(rng, &TYPES), pick(rng, &INDUSTRIES));
    _ = write!(
        out,
        r#","rating":"{}","annualrevenue":{}.0"#,
        pick(rng, &["Hot", "Warm", "Cold"]),
        rng.random_range(1..9_999) * 100
    );
    _ = write!(out, r#","numberofemployees":{}"#, rng.random_range(1..50_000));
    _ = write!(
        out,
        r#","billingstreet":"{} {} Street","billingcity":"{}""#,
        rng.random_range(1..400),
        pick(rng, &NAMES),
        pick(rng, &CITIES)
    );
    _ = write!(
        out,
        r#","billingpostalcode":"{:05}","billingcountry":"{}""#,
        rng.random_range(0..100_000),
        pick(rng, &COUNTRIES)
    );
    _ = write!(out, r#","website":"{}{}.example.com""#, b.to_lowercase(), rng.random_range(0..1_000));
    _ = write!(
        out,
        r#","description":"{}","ownerid":"{}""#,
        pick(rng, &REMARKS),
        id_of("005", rng.random_range(0..50))
    );
    _ = write!(out, r#","parentid":null,"createdbyid":"{}""#, id_of("005", rng.random_range(0..50)));
    _ = write!(
        out,
        r#","lastmodifiedbyid":"{}","lastmodifieddate":{stamp}"#,
        id_of("005", 100 + u64::from(account.editor))
    );
    _ = write!(out, r#","lastactivitydate":{},"active__c":{}"#, rng.random_range(18_000..18_500), rng.random::<bool>());
    _ = write!(out, r#","sfid":"{}","id":{},"_hc_lastop":"SYNCED","_hc_err":null}}"#, sfid(index), row_id(index));
}

fn write_tail(out: &mut String, op: &str, place: Place) {
    let Place { at, number } = place;
    let lsn = 0x16_B374_D848 + number * LOG_STEP;
    let done = at + 340_000;
    _ = write!(
        out,
        concat!(
            r#","source":{{"version":"2.7.4.Final","connector":"postgresql","name":"calm_connector_27001","ts_ms":{},"#,
            r#""snapshot":"false","db":"d8kbench","sequence":"[\"{}\",\"{}\"]","ts_us":{},"ts_ns":{},"schema":"salesforce","#,
            r#""table":"account","txId":{},"lsn":{},"xmin":null}},"transaction":null,"op":"{}","ts_ms":{},"ts_us":{},"#,
            r#""ts_ns":{}}}"#
        ),
        at / 1_000,
        lsn - LOG_STEP,
        lsn,
        at,
        at * 1_000,
        700_000 + number,
        lsn,
        op,
        done / 1_000,
        done,
        done * 1_000
    );
}

fn phone(rng: &mut SmallRng) -> Box<str> {
    let (a, b, c) = (rng.random_range(200..999), rng.random_range(200..999), rng.random_range(0..10_000));
    match rng.random_range(0..4) {
        0 => format!("{a}{b}{c:04}"),
        1 => format!("1-{a}-{b}-{c:04} x{}", rng.random_range(100..9_999)),
        2 => format!("{a}.{b}.{c:04} x{:03}", rng.random_range(0..1_000)),
        _ => format!("({a}) {b}-{c:04}"),
    }
    .into()
}

/// An id of Salesforce's form: 15 characters that count, 3 that check their case.
fn id_of(prefix: &str, mut number: u64) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    const CHECKS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
    let mut tail = [b'0'; 9];
    for digit in tail.iter_mut().rev() {
        *digit = DIGITS[(number % 62) as usize];
        number /= 62;
    }
    let mut id = format!("{prefix}f40{}", String::from_utf8_lossy(&tail));
    for group in 0..3 {
        let bits = id.as_bytes()[group * 5..group * 5 + 5].iter().enumerate();
        let index: usize = bits.map(|(bit, byte)| usize::from(byte.is_ascii_uppercase()) << bit).sum();
        id.push(char::from(CHECKS[index]));
    }
    id
}

fn pick<'a>(rng: &mut SmallRng, choices: &[&'a str]) -> &'a str {
    choices.choose(rng).copied().unwrap_or_default()
}

const NAMES: [&str; 14] = [
    "Borer",
    "Braun",
    "Gutmann",
    "Kilic",
    "Okafor",
    "Lindqvist",
    "Tanaka",
    "Moreau",
    "Brekke",
    "Novak",
    "Silva",
    "Haas",
    "Whitfield",
    "Abe",
];
const CITIES: [&str; 8] = ["Lisbon", "Osaka", "Krakow", "Nairobi", "Denver", "Leeds", "Perth", "Turin"];
const COUNTRIES: [&str; 8] = ["PT", "JP", "BR", "PL", "KE", "US", "GB", "AU"];
const TYPES: [&str; 4] = ["Customer - Direct", "Customer - Channel", "Prospect", "Technology Partner"];
const INDUSTRIES: [&str; 6] = ["Agriculture", "Banking", "Biotechnology", "Construction", "Energy", "Retail"];
const REMARKS: [&str; 4] = ["Asked for pricing", "Renewal", "Met at the fair", "Pilot until spring"];
