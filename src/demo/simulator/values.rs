//! Field values of the simulated rows, and their two spellings: Debezium's JSON and PostgreSQL's text.

use std::fmt::Write as _;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::sfid::sfid;
use super::tables::Flavour;

/// Microseconds since 1970-01-01 UTC.
pub type Micros = i64;

/// Microseconds in a second.
pub const SECOND: Micros = 1_000_000;
/// Microseconds in a day.
pub const DAY: Micros = 86_400 * SECOND;

/// The column types that Connect tables use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `varchar` or `text`
    Text,
    /// `double precision`
    Float8,
    /// `integer`
    Int4,
    /// `boolean`
    Bool,
    /// `date`
    Date,
    /// `timestamp without time zone`, in UTC
    Timestamp,
}

impl ColumnType {
    /// The type's name in SQL.
    pub fn sql(self) -> &'static str {
        match self {
            ColumnType::Text => "text",
            ColumnType::Float8 => "double precision",
            ColumnType::Int4 => "integer",
            ColumnType::Bool => "boolean",
            ColumnType::Date => "date",
            ColumnType::Timestamp => "timestamp without time zone",
        }
    }

    /// The type's name in the `types` of a configuration.
    pub fn declared(self) -> &'static str {
        match self {
            ColumnType::Text => "text",
            ColumnType::Float8 => "float8",
            ColumnType::Int4 => "int4",
            ColumnType::Bool => "bool",
            ColumnType::Date => "date",
            ColumnType::Timestamp => "timestamp",
        }
    }

    /// The `"type":…` part of a Connect schema's field.
    pub fn connect_schema(self) -> &'static str {
        match self {
            ColumnType::Text => r#""type":"string""#,
            ColumnType::Float8 => r#""type":"double""#,
            ColumnType::Int4 => r#""type":"int32""#,
            ColumnType::Bool => r#""type":"boolean""#,
            ColumnType::Date => r#""type":"int32""#,
            ColumnType::Timestamp => r#""type":"int64""#,
        }
    }

    /// The semantic type's name, where the Connect type alone does not say it.
    pub fn connect_name(self) -> Option<&'static str> {
        match self {
            ColumnType::Date => Some("io.debezium.time.Date"),
            ColumnType::Timestamp => Some("io.debezium.time.MicroTimestamp"),
            _ => None,
        }
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// SQL null.
    Null,
    /// Text.
    Text(String),
    /// Double.
    Float(f64),
    /// Integer.
    Int(i64),
    /// Boolean.
    Bool(bool),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since 1970-01-01 UTC.
    Timestamp(Micros),
}

impl Value {
    /// Whether this is SQL null.
    pub fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Whether the database would keep this text out of line, so that an update of other columns does not carry it.
    pub fn is_toasted(&self) -> bool {
        matches!(self, Value::Text(text) if text.len() >= 2_000)
    }

    /// Appends the value as Debezium's JSON converter writes it.
    pub fn write_json(&self, out: &mut String) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Text(text) => out.push_str(&json_string(text)),
            Value::Float(number) => out.push_str(&java_double(*number)),
            Value::Int(number) | Value::Timestamp(number) => _ = write!(out, "{number}"),
            Value::Bool(flag) => _ = write!(out, "{flag}"),
            Value::Date(days) => _ = write!(out, "{days}"),
        }
    }

    /// The value in the form of the history's images: numbers and booleans as JSON, the rest as PostgreSQL's text.
    pub fn image_json(&self) -> serde_json::Value {
        match self {
            Value::Null => serde_json::Value::Null,
            Value::Float(number) => serde_json::json!(number),
            Value::Int(number) => serde_json::json!(number),
            Value::Bool(flag) => serde_json::json!(flag),
            Value::Text(_) | Value::Date(_) | Value::Timestamp(_) => serde_json::json!(self.sql_text()),
        }
    }

    /// The value as text that PostgreSQL reads as the column's type; `None` for null.
    pub fn sql_text(&self) -> Option<String> {
        match self {
            Value::Null => None,
            Value::Text(text) => Some(text.clone()),
            Value::Float(number) => Some(number.to_string()),
            Value::Int(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(if *flag { "t" } else { "f" }.to_string()),
            Value::Date(days) => Some(date_text(i64::from(*days))),
            Value::Timestamp(micros) => Some(timestamp_text(*micros)),
        }
    }
}

/// A JSON string literal.
pub fn json_string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A double as Java's `Double.toString` spells it, which is what stands in Debezium's JSON.
fn java_double(number: f64) -> String {
    let magnitude = number.abs();
    if magnitude == 0.0 || (1e-3..1e7).contains(&magnitude) {
        return format!("{number:?}");
    }
    let scientific = format!("{number:e}");
    match scientific.split_once('e') {
        Some((mantissa, exponent)) if mantissa.contains('.') => format!("{mantissa}E{exponent}"),
        Some((mantissa, exponent)) => format!("{mantissa}.0E{exponent}"),
        None => scientific,
    }
}

/// `YYYY-MM-DD` of a day number; years 1 to 9999 only, which is all the simulator makes.
pub fn date_text(days: i64) -> String {
    // Howard Hinnant's days-to-civil: eras of 400 years that begin on March 1st.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]` as PostgreSQL prints it, without trailing zeros.
pub fn timestamp_text(micros: Micros) -> String {
    let in_day = micros.rem_euclid(DAY);
    let seconds = in_day / SECOND;
    let mut text = format!(
        "{} {:02}:{:02}:{:02}",
        date_text(micros.div_euclid(DAY)),
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    );
    let fraction = in_day % SECOND;
    if fraction != 0 {
        let digits = format!("{fraction:06}");
        text.push('.');
        text.push_str(digits.trim_end_matches('0'));
    }
    text
}

const COMPANIES: [&str; 12] = [
    "Borer",
    "Braun",
    "Gutmann",
    "Kilic",
    "Okafor",
    "Lindqvist",
    "Tanaka",
    "Moreau",
    "O'Hara",
    "Müller",
    "Żak",
    "Silva",
];
const FIRST_NAMES: [&str; 12] =
    ["Ada", "Bola", "Chiara", "Dmitri", "Élodie", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kemal", "Lucía"];
const CITIES: [&str; 10] =
    ["Lisbon", "Osaka", "São Paulo", "Kraków", "Nairobi", "Denver", "Leeds", "Perth", "Turin", "Pune"];
const COUNTRIES: [&str; 8] = ["PT", "JP", "BR", "PL", "KE", "US", "GB", "AU"];
const WORDS: [&str; 20] = [
    "renewal",
    "called",
    "again",
    "pricing",
    "asked",
    "for",
    "the",
    "quarter",
    "contract",
    "legal",
    "review",
    "met",
    "team",
    "budget",
    "pilot",
    "rollout",
    "“soon”",
    "次回",
    "follow-up",
    "№ 4",
];

/// A new value of this flavour; now and then null. `now` is the simulated moment that days and moments lie around.
pub fn make(flavour: Flavour, rng: &mut impl Rng, now: Micros) -> Value {
    // A field that somebody emptied; machinery and names stay filled.
    if !matches!(flavour, Flavour::Company | Flavour::LastName | Flavour::ExternalId) && rng.random_ratio(1, 25) {
        return Value::Null;
    }
    let text = match flavour {
        Flavour::Company => {
            format!("{}, {} and {}", pick(&COMPANIES, rng), pick(&COMPANIES, rng), pick(&COMPANIES, rng))
        }
        Flavour::FirstName => pick(&FIRST_NAMES, rng).to_string(),
        Flavour::LastName => format!("{}-{}", pick(&COMPANIES, rng), pick(&COMPANIES, rng)),
        Flavour::Phone => phone(rng),
        Flavour::Email => {
            format!("{}.{}@example.test", pick(&COMPANIES, rng).to_lowercase(), rng.random_range(1..100_000))
        }
        Flavour::Website => format!("https://{}.example.test", rng.random_range(1..100_000)),
        Flavour::Street => format!("{} {} Street", rng.random_range(1..400), pick(&COMPANIES, rng)),
        Flavour::City => pick(&CITIES, rng).to_string(),
        Flavour::Country => pick(&COUNTRIES, rng).to_string(),
        Flavour::Picklist(choices) => pick(choices, rng).to_string(),
        Flavour::Code => format!("{}-{:05}", pick(&COUNTRIES, rng), rng.random_range(0..100_000)),
        Flavour::Prose => prose(rng),
        Flavour::Reference(prefix) => sfid(prefix, rng.random_range(0..5_000)),
        Flavour::ExternalId => external_id(rng),
        Flavour::Amount(bound) => {
            // Two decimals, as money has; whole numbers are common and must stay equal however they are spelled.
            let cents = rng.random_range(0.0..bound * 100.0).floor();
            let whole = rng.random_bool(0.4);
            return Value::Float(if whole { (cents / 100.0).floor() } else { cents / 100.0 });
        }
        Flavour::Count(bound) => return Value::Int(rng.random_range(0..bound)),
        Flavour::Flag => return Value::Bool(rng.random()),
        Flavour::Day => return Value::Date((now / DAY) as i32 + rng.random_range(-12_000..700)),
        Flavour::Moment => {
            let moment = now - rng.random_range(0..400 * DAY);
            // Salesforce has whole seconds; the odd application writes microseconds.
            return Value::Timestamp(if rng.random_ratio(1, 5) { moment } else { moment - moment.rem_euclid(SECOND) });
        }
        Flavour::Machinery => return Value::Null,
    };
    Value::Text(text)
}

/// A value that differs from the present one.
pub fn make_other(flavour: Flavour, rng: &mut impl Rng, now: Micros, present: &Value) -> Value {
    loop {
        let value = make(flavour, rng, now);
        if value != *present {
            return value;
        }
    }
}

/// Text long enough to be stored out of line.
pub fn long_prose(rng: &mut impl Rng) -> Value {
    let mut text = String::new();
    let length = rng.random_range(2_100..3_600);
    while text.len() < length {
        _ = write!(text, "{} {:04x} ", pick(&WORDS, rng), rng.random::<u16>());
    }
    Value::Text(text.trim_end().to_string())
}

fn prose(rng: &mut impl Rng) -> String {
    let words = rng.random_range(3..14);
    let mut text = String::new();
    for _ in 0..words {
        text.push_str(pick(&WORDS, rng));
        text.push(' ');
    }
    // Distinct enough that an edit is an edit.
    _ = write!(text, "{:04x}", rng.random::<u16>());
    text
}

fn phone(rng: &mut impl Rng) -> String {
    let (a, b, c) = (rng.random_range(200..999), rng.random_range(200..999), rng.random_range(0..10_000));
    match rng.random_range(0..4) {
        0 => format!("{a}{b}{c:04}"),
        1 => format!("1-{a}-{b}-{c:04} x{}", rng.random_range(100..9_999)),
        2 => format!("{a}.{b}.{c:04}"),
        _ => format!("({a}) {b}-{c:04}"),
    }
}

fn external_id(rng: &mut impl Rng) -> String {
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}{}",
        rng.random::<u32>(),
        rng.random::<u16>(),
        rng.random_range(0..0x1000),
        rng.random_range(0x8000..0xc000),
        rng.random_range(0..0x1_0000_0000_0000_u64),
        rng.random_range(1_580_000_000_000_i64..1_599_000_000_000)
    )
}

fn pick<'a>(choices: &[&'a str], rng: &mut impl Rng) -> &'a str {
    choices.choose(rng).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_moments_are_spelled_as_postgres_does() {
        assert_eq!(date_text(0), "1970-01-01");
        assert_eq!(date_text(20_543), "2026-03-31");
        assert_eq!(date_text(-141_432), "1582-10-10");
        assert_eq!(date_text(-719_162), "0001-01-01");
        assert_eq!(date_text(11_016), "2000-02-29");
        assert_eq!(timestamp_text(-1), "1969-12-31 23:59:59.999999");
        assert_eq!(timestamp_text(1_772_360_102_000_000), "2026-03-01 10:15:02");
        assert_eq!(timestamp_text(1_772_360_102_120_000), "2026-03-01 10:15:02.12");
    }

    #[test]
    fn doubles_are_spelled_as_java_does() {
        for (number, text) in [
            (15.0, "15.0"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (108_410.31, "108410.31"),
            (1e7, "1.0E7"),
            (12_345_678.9, "1.23456789E7"),
            (1e21, "1.0E21"),
            (0.000_5, "5.0E-4"),
            (f64::MAX, "1.7976931348623157E308"),
        ] {
            assert_eq!(java_double(number), text);
        }
    }
}
