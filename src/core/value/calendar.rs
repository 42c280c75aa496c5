//! Dates and times as PostgreSQL writes them, over its whole range and beyond it.
//!
//! Proleptic Gregorian throughout, as PostgreSQL and Debezium's stream agree (4714-11-24 BC to 5874897-12-31 for
//! dates, to 294276-12-31 for timestamps): no calendar crate reaches that far. Every function here is total.

use crate::core::event::Micros;

const DAY: i64 = 86_400_000_000;
/// First day that PostgreSQL's `date` and `timestamp` hold: 4714-11-24 BC, in days since 1970-01-01.
const FIRST_DAY: i64 = -2_440_588;
/// First day that `date` no longer holds: 5874898-01-01.
const DATE_END: i64 = 2_145_042_906;
/// First microsecond that `timestamp` no longer holds: 294277-01-01. Thirty years beyond what 64 bits of
/// microseconds since 1970 can say, so such a late time is only met in text form.
const TIMESTAMP_END: i128 = 9_224_318_016_000_000_000;

/// A timestamp without upper bound.
pub const INFINITY: Micros = i64::MAX;
/// A timestamp without lower bound.
pub const MINUS_INFINITY: Micros = i64::MIN;

/// Days since 1970-01-01 as `date` prints them. The five day numbers by which Debezium 2.7 and 3.7 spell the
/// infinities (stream and snapshot differ) become `infinity` and `-infinity`; a day that `date` cannot hold
/// stays visible as `day:N`.
pub fn date_text(days: i64) -> String {
    match days {
        -2_147_472_692 | 2_146_033_979 | -622_191_234 => "infinity".to_owned(),
        -2_147_472_691 | -625_821_272 => "-infinity".to_owned(),
        FIRST_DAY..DATE_END => {
            let (year, month, day) = civil(days);
            let mut text = String::with_capacity(13);
            push_date(&mut text, year, month, day);
            push_era(&mut text, year);
            text
        }
        _ => format!("day:{days}"),
    }
}

/// Microseconds as Debezium sends them: its 2.7 spelling of ±infinity becomes that of 3.7, the limits of 64 bits;
/// other numbers unchanged.
pub fn fold_infinity(micros: i64) -> Micros {
    match micros {
        9_223_372_036_825_200_000 => INFINITY,
        -9_223_372_036_832_400_000 => MINUS_INFINITY,
        _ => micros,
    }
}

/// The same for a column sent in milliseconds, where the infinities may come cut to milliseconds or as they are
/// in microseconds. `None`: no timestamp reaches that far.
pub fn micros_from_millis(millis: i64) -> Option<Micros> {
    match millis {
        9_223_372_036_825_200 | 9_223_372_036_825_200_000 | i64::MAX => Some(INFINITY),
        -9_223_372_036_832_400 | -9_223_372_036_832_400_000 | i64::MIN => Some(MINUS_INFINITY),
        _ => millis.checked_mul(1000),
    }
}

/// Microseconds since 1970-01-01 as `timestamp` prints them (`zoned`: as `timestamptz` does in UTC). A number
/// that no timestamp can hold stays visible as `us:N`.
pub fn timestamp_text(micros: Micros, zoned: bool) -> String {
    match micros {
        INFINITY => "infinity".to_owned(),
        MINUS_INFINITY => "-infinity".to_owned(),
        _ => finite_text(micros.into(), zoned).unwrap_or_else(|| format!("us:{micros}")),
    }
}

/// The same for a number of any size; `None` if no timestamp can hold it.
pub fn finite_text(micros: i128, zoned: bool) -> Option<String> {
    if !(i128::from(FIRST_DAY * DAY)..TIMESTAMP_END).contains(&micros) {
        return None;
    }
    let (days, time) = (micros.div_euclid(DAY.into()), micros.rem_euclid(DAY.into()));
    let (year, month, day) = civil(i64::try_from(days).ok()?);
    let mut text = String::with_capacity(32);
    push_date(&mut text, year, month, day);
    text.push(' ');
    push_time(&mut text, i64::try_from(time).ok()?);
    if zoned {
        text.push_str("+00");
    }
    push_era(&mut text, year);
    Some(text)
}

/// A time that was written out, however far away: a text form beyond PostgreSQL's range is how Java's limits
/// stand for the infinities (`+292278994-08-17T07:12:55.807Z`), as are the spellings of [`fold_infinity`].
pub fn wide_text(micros: i128, zoned: bool) -> String {
    let folded = i64::try_from(micros).map(fold_infinity);
    match (folded, finite_text(micros, zoned)) {
        (Ok(INFINITY | MINUS_INFINITY), _) | (_, None) => if micros > 0 { "infinity" } else { "-infinity" }.to_owned(),
        (_, Some(text)) => text,
    }
}

/// Microseconds since midnight as `time` prints them; `us:N` outside 00:00:00 to 24:00:00.
pub fn time_text(micros: i64) -> String {
    if !(0..=DAY).contains(&micros) {
        return format!("us:{micros}");
    }
    let mut text = String::with_capacity(15);
    push_time(&mut text, micros);
    text
}

/// An interval as `IntervalStyle postgres` prints it.
pub fn interval_text(months: i64, days: i64, micros: i64) -> String {
    let mut text = String::new();
    let mut before = false; // a sign is repeated after a negative part only
    for (n, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if n == 0 {
            continue;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        if before && n > 0 {
            text.push('+');
        }
        text.push_str(&format!("{n} {unit}{}", if n == 1 { "" } else { "s" }));
        before = n < 0;
    }
    if text.is_empty() || micros != 0 {
        if !text.is_empty() {
            text.push(' ');
        }
        if micros < 0 {
            text.push('-');
        } else if before {
            text.push('+');
        }
        let micros = micros.unsigned_abs();
        text.push_str(&format!(
            "{:02}:{:02}:{:02}",
            micros / 3_600_000_000,
            micros / 60_000_000 % 60,
            micros / 1_000_000 % 60
        ));
        push_fraction(&mut text, micros % 1_000_000);
    }
    text
}

/// An ISO 8601 duration as Debezium writes it (`P1Y2M3DT4H5M6.78S`, every part may be negative), as an interval
/// prints; `None` if it is not one.
pub fn interval_from_iso(text: &str) -> Option<String> {
    let (mut months, mut days, mut micros) = (0i64, 0i64, 0i64);
    let mut rest = text.strip_prefix('P')?;
    let mut in_time = false;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        if !in_time && let Some(after) = rest.strip_prefix('T') {
            in_time = true;
            rest = after;
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = (rest.get(..end)?, rest.as_bytes().get(end)?);
        rest = rest.get(end + 1..)?;
        if *unit == b'S' {
            micros = micros.checked_add(seconds_to_micros(number)?)?;
            continue;
        }
        let n: i64 = number.parse().ok()?;
        let (sum, factor) = match (unit, in_time) {
            (b'Y', false) => (&mut months, 12),
            (b'M', false) => (&mut months, 1),
            (b'W', false) => (&mut days, 7),
            (b'D', false) => (&mut days, 1),
            (b'H', true) => (&mut micros, 3_600_000_000),
            (b'M', true) => (&mut micros, 60_000_000),
            _ => return None,
        };
        *sum = sum.checked_add(n.checked_mul(factor)?)?;
    }
    Some(interval_text(months, days, micros))
}

/// A text form of a date or time, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// A date alone, in days since 1970-01-01.
    Date(i64),
    /// A date and time, in microseconds since 1970-01-01 and, where the text had a zone, already in UTC.
    Timestamp(i128),
    /// `infinity` (`true`) or `-infinity`.
    Infinite(bool),
}

/// Reads what PostgreSQL, Java's ISO formatters and people write: `2026-03-01`, `2026-03-01 10:15:02.5+00`,
/// `2026-03-01T10:15:02Z`, `0044-03-15 BC`, `-0043-03-15T00:00:00Z` (year 0 is 1 BC), `+294247-01-10T…`.
/// `None` for everything else. Digits after the sixth of a second are cut off.
pub fn parse(text: &str) -> Option<Parsed> {
    match text {
        "infinity" => return Some(Parsed::Infinite(true)),
        "-infinity" => return Some(Parsed::Infinite(false)),
        _ => {}
    }
    let (text, bc) = match text.strip_suffix(" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let (text, negative) = match text.as_bytes().first()? {
        b'-' => (text.get(1..)?, true),
        b'+' => (text.get(1..)?, false),
        _ => (text, false),
    };
    let (year, rest) = text.split_once('-')?;
    if year.len() < 4 || year.len() > 9 {
        return None;
    }
    let year = digits(year)?;
    let year = match (negative, bc) {
        (true, true) => return None,
        (true, false) => -year,
        (false, true) => 1 - year,
        (false, false) => year,
    };
    let (month, day) = (digits(rest.get(..2)?)?, digits(rest.get(3..5)?)?);
    if rest.as_bytes().get(2) != Some(&b'-') || !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day)
    {
        return None;
    }
    let days = days_from_civil(year, month, day);
    let rest = rest.get(5..)?;
    let Some(separator) = rest.as_bytes().first() else { return Some(Parsed::Date(days)) };
    if !matches!(separator, b'T' | b' ') {
        return None;
    }
    let (micros, offset) = parse_time(rest.get(1..)?)?;
    Some(Parsed::Timestamp(
        i128::from(days) * i128::from(DAY) + i128::from(micros) - i128::from(offset.unwrap_or(0)) * 1_000_000,
    ))
}

/// Reads a time of day with an optional zone: microseconds since midnight as written, and the zone's offset in
/// seconds east of UTC.
pub fn parse_time(text: &str) -> Option<(i64, Option<i64>)> {
    let (clock, offset) = match text.strip_suffix('Z') {
        Some(clock) => (clock, Some(0)),
        None => match text.find(['+', '-']) {
            Some(at) => (text.get(..at)?, Some(parse_offset(text.get(at..)?)?)),
            None => (text, None),
        },
    };
    let hour = digits(clock.get(..2)?)?;
    let minute = digits(clock.get(3..5)?)?;
    if clock.as_bytes().get(2) != Some(&b':') || hour > 24 || minute > 59 {
        return None;
    }
    let seconds = match clock.get(5..)? {
        "" => 0, // Java leaves `:00` out
        rest => {
            let rest = rest.strip_prefix(':')?;
            if rest.len() < 2 || !rest.as_bytes().iter().take(2).all(u8::is_ascii_digit) {
                return None;
            }
            seconds_to_micros(rest)?
        }
    };
    let micros = hour * 3_600_000_000 + minute * 60_000_000 + seconds;
    (seconds < 61_000_000 && micros <= DAY).then_some((micros, offset))
}

/// An offset in seconds as PostgreSQL prints it: `+00`, `-05:30`.
pub fn offset_text(seconds: i64) -> String {
    let (sign, s) = (if seconds < 0 { '-' } else { '+' }, seconds.unsigned_abs());
    let mut text = format!("{sign}{:02}", s / 3600);
    if s % 3600 != 0 {
        text.push_str(&format!(":{:02}", s / 60 % 60));
    }
    if s % 60 != 0 {
        text.push_str(&format!(":{:02}", s % 60));
    }
    text
}

fn parse_offset(text: &str) -> Option<i64> {
    let negative = match text.as_bytes().first()? {
        b'+' => false,
        b'-' => true,
        _ => return None,
    };
    let text = text.get(1..)?;
    let parts: Vec<&str> = if text.len() == 4 && !text.contains(':') {
        vec![text.get(..2)?, text.get(2..)?]
    } else {
        text.split(':').collect()
    };
    if parts.len() > 3 || parts.iter().any(|p| p.len() != 2) {
        return None;
    }
    let mut seconds = 0;
    for (part, factor) in parts.iter().zip([3600, 60, 1]) {
        seconds += digits(part)? * factor;
    }
    Some(if negative { -seconds } else { seconds })
}

/// `[-]digits[.digits]` seconds in microseconds; digits after the sixth are cut off.
fn seconds_to_micros(text: &str) -> Option<i64> {
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut micros = digits(whole)?.checked_mul(1_000_000)?;
    let mut unit = 100_000;
    for digit in fraction.bytes().take(6) {
        micros = micros.checked_add(i64::from(digit - b'0') * unit)?;
        unit /= 10;
    }
    Some(if negative { -micros } else { micros })
}

fn digits(text: &str) -> Option<i64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

fn push_date(text: &mut String, year: i64, month: i64, day: i64) {
    let year = if year > 0 { year } else { 1 - year };
    text.push_str(&format!("{year:04}-{month:02}-{day:02}"));
}

fn push_era(text: &mut String, year: i64) {
    if year <= 0 {
        text.push_str(" BC");
    }
}

fn push_time(text: &mut String, micros: i64) {
    let seconds = micros / 1_000_000;
    text.push_str(&format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    push_fraction(text, (micros % 1_000_000).unsigned_abs());
}

fn push_fraction(text: &mut String, micros: u64) {
    if micros != 0 {
        let fraction = format!(".{micros:06}");
        text.push_str(fraction.trim_end_matches('0'));
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 → (year, month, day); year 0 is 1 BC. Counted in 400-year cycles from March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_proleptic_gregorian_with_eras() {
        for (days, text) in [
            (0, "1970-01-01"),
            (20_543, "2026-03-31"),
            (-141_432, "1582-10-10"),
            (-719_162, "0001-01-01"),
            (-719_163, "0001-12-31 BC"),
            (-735_160, "0044-03-15 BC"),
            (106_762_939, "294276-12-31"),
            (FIRST_DAY, "4714-11-24 BC"),
            (DATE_END - 1, "5874897-12-31"),
        ] {
            assert_eq!(date_text(days), text);
            assert_eq!(parse(text), Some(Parsed::Date(days)), "{text}");
        }
    }

    #[test]
    fn days_that_no_date_holds_stay_visible() {
        assert_eq!(date_text(DATE_END), format!("day:{DATE_END}"));
        assert_eq!(date_text(FIRST_DAY - 1), format!("day:{}", FIRST_DAY - 1));
        assert_eq!(date_text(i64::MIN), format!("day:{}", i64::MIN));
        for days in [-2_147_472_692, 2_146_033_979, -622_191_234] {
            assert_eq!(date_text(days), "infinity");
        }
        for days in [-2_147_472_691, -625_821_272] {
            assert_eq!(date_text(days), "-infinity");
        }
    }

    #[test]
    fn timestamps_print_as_postgres_does() {
        for (micros, text) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59.999999"),
            (1_772_360_102_500_000, "2026-03-01 10:15:02.5"),
            (FIRST_DAY * DAY, "4714-11-24 00:00:00 BC"),
            (INFINITY, "infinity"),
            (MINUS_INFINITY, "-infinity"),
        ] {
            assert_eq!(timestamp_text(micros, false), text);
        }
        assert_eq!(timestamp_text(-735_160 * DAY + 1, true), "0044-03-15 00:00:00.000001+00 BC");
        assert_eq!(timestamp_text(FIRST_DAY * DAY - 1, false), format!("us:{}", FIRST_DAY * DAY - 1));
        assert_eq!(fold_infinity(9_223_372_036_825_200_000), INFINITY);
        assert_eq!(fold_infinity(-9_223_372_036_832_400_000), MINUS_INFINITY);
        assert_eq!(fold_infinity(i64::MAX), INFINITY);
    }

    #[test]
    fn text_forms_are_read() {
        let at = |text: &str| match parse(text) {
            Some(Parsed::Timestamp(t)) => t,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(at("2026-03-01T10:15:02.500Z"), 1_772_360_102_500_000);
        assert_eq!(at("2026-03-01 10:15:02.5"), 1_772_360_102_500_000);
        assert_eq!(at("2026-03-01 12:15:02.5+02"), 1_772_360_102_500_000);
        assert_eq!(at("2026-03-01T10:15Z"), 1_772_360_100_000_000);
        assert_eq!(at("-0043-03-15T00:00:00Z"), i128::from(-735_160 * DAY));
        assert_eq!(at("+294247-01-10T04:00:25.200Z"), 9_223_372_036_825_200_000);
        for junk in [
            "",
            "-",
            "2026",
            "2026-02-30",
            "2026-13-01",
            "2026-03-01x",
            "2026-03-01 1:2",
            "+-3-01-01",
            "2026-03-01 10:15:0é",
            "🦀🦀-01-01",
        ] {
            assert_eq!(parse(junk), None, "{junk}");
        }
    }

    #[test]
    fn intervals_print_as_postgres_does() {
        for (iso, text) in [
            ("P1Y2M3DT4H5M6.78S", "1 year 2 mons 3 days 04:05:06.78"),
            ("P0Y0M0DT0H0M0S", "00:00:00"),
            ("P-1Y-2M3DT-4H-5M-6S", "-1 years -2 mons +3 days -04:05:06"),
            ("P0Y0M-1DT2H0M0S", "-1 days +02:00:00"),
            ("P0Y14M0DT100H0M0.000001S", "1 year 2 mons 100:00:00.000001"),
        ] {
            assert_eq!(interval_from_iso(iso).as_deref(), Some(text));
        }
        for junk in ["", "P", "1 day", "P1X", "PT1", "P99999999999999999999Y", "Pé"] {
            assert_eq!(interval_from_iso(junk), None, "{junk}");
        }
    }

    #[test]
    fn times_and_zones() {
        assert_eq!(time_text(86_400_000_000), "24:00:00");
        assert_eq!(time_text(3_723_000_100), "01:02:03.0001");
        assert_eq!(time_text(-1), "us:-1");
        assert_eq!(parse_time("13:37:03.1Z"), Some((49_023_100_000, Some(0))));
        assert_eq!(parse_time("13:37-05:30"), Some((49_020_000_000, Some(-19_800))));
        assert_eq!(offset_text(-19_800), "-05:30");
        assert_eq!(offset_text(0), "+00");
    }
}
