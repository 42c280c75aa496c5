//! Salesforce's stamp: two or four bytes beside `at`, or text in the payload when it does not fit there.
//! The text is PostgreSQL's for `timestamp without time zone`.

use super::FormatError;
use crate::core::event::Micros;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// (distance from `at` cut to the whole second, true = in ms); `None` if it is not exact or too far.
pub(super) fn offset(at: Micros, stamp: Micros) -> Option<(i32, bool)> {
    let base = at.div_euclid(SECOND);
    let (distance, ms) = if stamp % SECOND == 0 {
        (stamp / SECOND - base, false)
    } else if stamp % 1000 == 0 {
        (stamp / 1000 - base * 1000, true)
    } else {
        return None;
    };
    i32::try_from(distance).ok().filter(|d| *d != i32::MIN).map(|d| (d, ms))
}

/// Writes a distance, or that there is none; true = in two bytes.
pub(super) fn put(out: &mut Vec<u8>, distance: Option<i32>) -> bool {
    let short = distance.map_or(Some(i16::MIN), |distance| i16::try_from(distance).ok().filter(|d| *d != i16::MIN));
    match (short, distance) {
        (Some(short), _) => out.extend_from_slice(&short.to_be_bytes()),
        (None, long) => out.extend_from_slice(&long.unwrap_or(i32::MIN).to_be_bytes()),
    }
    short.is_some()
}

/// Reads what [`put`] wrote.
pub(super) fn take(bytes: &mut &[u8], short: bool) -> Result<Option<i32>, FormatError> {
    let distance = if short {
        let (two, rest) = bytes.split_first_chunk().ok_or(FormatError::Short)?;
        *bytes = rest;
        Some(i16::from_be_bytes(*two)).filter(|d| *d != i16::MIN).map(i32::from)
    } else {
        let (four, rest) = bytes.split_first_chunk().ok_or(FormatError::Short)?;
        *bytes = rest;
        Some(i32::from_be_bytes(*four)).filter(|d| *d != i32::MIN)
    };
    Ok(distance)
}

pub(super) fn absolute(at: Micros, offset: i32, ms: bool) -> Option<Micros> {
    let unit = if ms { 1000 } else { SECOND };
    (at.div_euclid(SECOND) * SECOND).checked_add(i64::from(offset) * unit)
}

pub(super) fn to_text(t: Micros) -> String {
    match t {
        i64::MAX => return "infinity".into(),
        i64::MIN => return "-infinity".into(),
        _ => {}
    }
    let (year, month, day) = civil(t.div_euclid(DAY));
    let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    let micros = t.rem_euclid(DAY);
    let seconds = micros / SECOND;
    let mut text =
        format!("{shown:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros % SECOND != 0 {
        let fraction = format!(".{:06}", micros % SECOND);
        text.push_str(fraction.trim_end_matches('0'));
    }
    text + era
}

pub(super) fn from_text(text: &str) -> Option<Micros> {
    match text {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (text, bc) = text.strip_suffix(" BC").map_or((text, false), |t| (t, true));
    let (date, time) = text.split_once(' ')?;
    let mut date = date.split('-').map(|p| p.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.split(':').map(|p| p.parse::<i64>().ok());
    let (h, m, s) = (time.next()??, time.next()??, time.next()??);
    let sane = (1..=300_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&h)
        && (0..60).contains(&m)
        && (0..60).contains(&s)
        && fraction.len() <= 6
        && fraction.bytes().all(|b| b.is_ascii_digit());
    if !sane {
        return None;
    }
    let micros: i64 = format!("{fraction:0<6}").parse().ok()?;
    days(if bc { 1 - year } else { year }, month, day)
        .checked_mul(DAY)?
        .checked_add((h * 3600 + m * 60 + s) * SECOND + micros)
}

/// Days since 1970-01-01 → proleptic Gregorian (year 0 = 1 BC), counted in years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let doy = (153 * mp + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_postgres_prints() {
        for (t, text) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59.999999"),
            (1_709_164_800_120_000, "2024-02-29 00:00:00.12"),
            (-62_135_596_800_000_000, "0001-01-01 00:00:00"),
            (-62_135_596_800_000_001, "0001-12-31 23:59:59.999999 BC"),
            (i64::MAX, "infinity"),
            (i64::MIN, "-infinity"),
        ] {
            assert_eq!(to_text(t), text);
            assert_eq!(from_text(text), Some(t), "{text}");
        }
    }

    #[test]
    fn a_stamp_fits_in_seconds_or_in_milliseconds_or_not_at_all() {
        let at = 1_700_000_000_900_000;
        assert_eq!(offset(at, 1_700_000_001_000_000), Some((1, false)));
        assert_eq!(offset(at, 1_699_999_999_500_000), Some((-500, true)));
        assert_eq!(offset(at, at + 1), None);
        assert_eq!(offset(at, at - 30 * DAY), None, "milliseconds reach 24 days");
        assert_eq!(offset(at, i64::MAX), None);
        assert_eq!(offset(at, i64::MIN), None);
        // The mark for "none" is not a distance.
        let far = (at.div_euclid(SECOND) + i64::from(i32::MIN)) * SECOND;
        assert_eq!(offset(at, far), None);
        assert_eq!(offset(at, far + SECOND), Some((i32::MIN + 1, false)));
    }
}
