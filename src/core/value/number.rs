//! Numbers as PostgreSQL writes them, and their equality by value.

use num_bigint::{BigInt, BigUint, Sign};

/// A decimal exponent beyond this is kept as it came instead of being written out: no `numeric` is that long
/// (131072 digits before the point, 16383 after), and writing it out is how a short text fills the memory.
const WRITE_OUT: i64 = 131_072;

/// A `double precision` as PostgreSQL prints it with `extra_float_digits` 1: the shortest digits that read back
/// as the same number, scientific below 1e-4 and from 1e15 on.
pub fn float8_text(value: f64) -> String {
    match special(value) {
        Some(text) => text.to_owned(),
        None => layout(&shortest8(value), 15),
    }
}

/// The same for `real` (scientific from 1e6 on).
pub fn float4_text(value: f32) -> String {
    match special(f64::from(value)) {
        Some(text) => text.to_owned(),
        None => layout(&shortest4(value), 6),
    }
}

fn special(value: f64) -> Option<&'static str> {
    if value.is_nan() {
        Some("NaN")
    } else if value.is_infinite() {
        Some(if value > 0.0 { "Infinity" } else { "-Infinity" })
    } else if value == 0.0 {
        Some(if value.is_sign_negative() { "-0" } else { "0" })
    } else {
        None
    }
}

/// The shortest digits as `[-]d.ddde±x`, by the algorithm that PostgreSQL uses too (Ryū; Rust's own formatter breaks
/// ties the other way: 230012797091856.625 is …56.62 there, …56.63 here).
///
/// One difference is left: when the shortest decimal lies exactly halfway to the neighbouring float, Ryū takes it
/// (reading rounds to even), but PostgreSQL does not trust readers to. A halfway point has an odd numerator of 54
/// bits, so with at most 17 digits it can only be a large integer or nearly one.
fn shortest8(value: f64) -> String {
    let short = scientific(ryu::Buffer::new().format_finite(value));
    let size = value.abs();
    if (4e15..1e41).contains(&size) {
        let halves = [midpoint(size.next_down(), size), midpoint(size, size.next_up())];
        return strict(short, &halves, |digits| format!("{value:.digits$e}"));
    }
    short
}

/// The same for 25 bits and at most 9 digits.
fn shortest4(value: f32) -> String {
    let short = scientific(ryu::Buffer::new().format_finite(value));
    let size = value.abs();
    if (2e6..1e20).contains(&size) {
        let (down, up) = (size.next_down().into(), size.next_up().into());
        let halves = [midpoint(down, size.into()), midpoint(size.into(), up)];
        return strict(short, &halves, |digits| format!("{value:.digits$e}"));
    }
    short
}

/// A decimal text as `[-]d.ddde±x`.
fn scientific(text: &str) -> String {
    let Some((negative, digits, exponent)) = Decimal::parse(text).map(Decimal::normal) else { return text.to_owned() };
    let exponent = exponent + digits.len() as i64 - 1;
    let digits = String::from_utf8_lossy(&digits);
    let (first, rest) = digits.split_at(1);
    let (sign, point) = (if negative { "-" } else { "" }, if rest.is_empty() { "" } else { "." });
    format!("{sign}{first}{point}{rest}e{exponent}")
}

/// 2048 times the middle between two floats, exactly.
fn midpoint(a: f64, b: f64) -> BigUint {
    magnified(a) + magnified(b)
}

/// 1024 times a normal float of at least 2^20, an integer.
fn magnified(value: f64) -> BigUint {
    let bits = value.to_bits();
    let shift = (bits >> 52 & 0x7ff) as i64 - 1075 + 10;
    let mantissa = BigUint::from(bits & ((1 << 52) - 1) | 1 << 52);
    if shift >= 0 { mantissa << shift } else { mantissa >> -shift }
}

fn strict(short: String, halves: &[BigUint; 2], longer: impl Fn(usize) -> String) -> String {
    let on_a_half = |text: &str| scaled(text).is_some_and(|n| halves.contains(&n));
    if !on_a_half(&short) {
        return short;
    }
    (1..18).map(longer).find(|text| text.len() > short.len() && !on_a_half(text)).unwrap_or(short)
}

/// 2048 times the magnitude of `d.ddde±x` if that is an integer (to compare with [`midpoint`]).
fn scaled(text: &str) -> Option<BigUint> {
    let Decimal { digits, exponent, .. } = Decimal::parse(text)?;
    let n = BigUint::parse_bytes(&digits, 10)? * 2048u32;
    match u32::try_from(exponent) {
        Ok(up) if up < 64 => Some(n * BigUint::from(10u8).pow(up)),
        Ok(_) => None,
        Err(_) => {
            let by = BigUint::from(10u8).pow(u32::try_from(-exponent).ok().filter(|&e| e < 64)?);
            (&n % &by == BigUint::ZERO).then(|| n / by)
        }
    }
}

/// Lays `[-]d.ddde±x` out as PostgreSQL does.
fn layout(scientific: &str, from: i32) -> String {
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", mantissa),
    };
    // A rounded-up longer form may end in zeros.
    let mantissa = if mantissa.contains('.') { mantissa.trim_end_matches('0').trim_end_matches('.') } else { mantissa };
    if exponent < -4 || exponent >= from {
        let mark = if exponent < 0 { '-' } else { '+' };
        return format!("{sign}{mantissa}e{mark}{:02}", exponent.abs());
    }
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    plain(sign, &digits, i64::from(exponent) + 1)
}

/// Writes `0.digits × 10^point` without an exponent.
fn plain(sign: &str, digits: &str, point: i64) -> String {
    let len = digits.len() as i64;
    let mut text = String::from(sign);
    if point <= 0 {
        text.push_str("0.");
        text.extend(std::iter::repeat_n('0', point.unsigned_abs() as usize));
        text.push_str(digits);
    } else if point >= len {
        text.push_str(digits);
        text.extend(std::iter::repeat_n('0', (point - len) as usize));
    } else {
        let (whole, fraction) = digits.split_at(point as usize);
        text.push_str(whole);
        text.push('.');
        text.push_str(fraction);
    }
    text
}

/// A decimal text as a `numeric` column prints it: without exponent, plus sign or leading zeros, with its scale
/// kept (`1.50` stays, `1.5E1` is `15`). The specials in PostgreSQL's and Java's spellings become `NaN`,
/// `Infinity`, `-Infinity`. `None` if it is no number; an exponent too large to write out keeps the text.
pub fn numeric_text(text: &str) -> Option<String> {
    if let Some(special) = numeric_special(text) {
        return Some(special.to_owned());
    }
    let Decimal { negative, digits, exponent } = Decimal::parse(text)?;
    if exponent.unsigned_abs() > WRITE_OUT as u64 {
        return Some(text.to_owned());
    }
    let digits = std::str::from_utf8(&digits).ok()?;
    let significant = digits.trim_start_matches('0');
    let sign = if negative && !significant.is_empty() { "-" } else { "" };
    if exponent >= 0 {
        return Some(match significant {
            "" => "0".to_owned(),
            _ => plain(sign, significant, significant.len() as i64 + exponent),
        });
    }
    let scale = exponent.unsigned_abs() as usize;
    // At least one digit before the point.
    let padded = if significant.len() <= scale {
        format!("{significant:0>width$}", width = scale + 1)
    } else {
        significant.to_owned()
    };
    Some(plain(sign, &padded, (padded.len() - scale) as i64))
}

/// The special values of `numeric` under the names that PostgreSQL (`NaN`) and Debezium's string mode
/// (`NAN`, `POSITIVE_INFINITY`, …) give them.
pub fn numeric_special(text: &str) -> Option<&'static str> {
    match text {
        "NaN" | "NAN" => Some("NaN"),
        "Infinity" | "POSITIVE_INFINITY" => Some("Infinity"),
        "-Infinity" | "NEGATIVE_INFINITY" => Some("-Infinity"),
        _ => None,
    }
}

/// A big-endian two's-complement integer times 10^-scale, as `org.apache.kafka.connect.data.Decimal` encodes
/// it; `None` if the scale is absurd.
pub fn unscaled_text(bytes: &[u8], scale: i64) -> Option<String> {
    let number = BigInt::from_signed_bytes_be(bytes);
    if scale.unsigned_abs() > WRITE_OUT as u64 || bytes.len() > WRITE_OUT as usize {
        return None;
    }
    let sign = if number.sign() == Sign::Minus { "-" } else { "" };
    numeric_text(&format!("{sign}{}e{}", number.magnitude(), -scale))
}

/// Whether two decimal texts are the same number, exactly: `15` = `15.0` = `1.5E1`. Works on the digits, so an
/// exponent of nine digits costs nothing. Texts that are not numbers are compared as texts.
pub fn numeric_equal(a: &str, b: &str) -> bool {
    match (numeric_special(a), numeric_special(b)) {
        (None, None) => match (Decimal::parse(a), Decimal::parse(b)) {
            (Some(a), Some(b)) => a.normal() == b.normal(),
            _ => a == b,
        },
        (a, b) => a == b,
    }
}

/// The shortest text of a decimal, the same for equal numbers: the canonical form of a number inside a key.
pub fn numeric_normal(text: &str) -> Option<String> {
    let (negative, digits, exponent) = Decimal::parse(text)?.normal();
    let (sign, digits) = (if negative { "-" } else { "" }, String::from_utf8(digits).ok()?);
    Some(match exponent {
        0 => format!("{sign}{digits}"),
        e if e.abs() <= 40 => numeric_text(&format!("{sign}{digits}e{e}"))?,
        e => format!("{sign}{digits}e{e}"),
    })
}

/// Whether a text is exactly one JSON number.
pub fn is_json_number(text: &str) -> bool {
    matches!(text.as_bytes().first(), Some(b'-' | b'0'..=b'9'))
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

/// digits × 10^exponent.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    exponent: i64,
}

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.as_bytes().first()? {
            b'-' => (true, text.get(1..)?),
            b'+' => (false, text.get(1..)?),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            // Eighteen digits of exponent cannot overflow in the sums below; more is no number to anyone.
            Some(at) => (text.get(..at)?, text.get(at + 1..).filter(|e| e.len() <= 18)?.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if whole.len() + fraction.len() == 0 || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = whole.bytes().chain(fraction.bytes()).collect();
        Some(Self { negative, digits, exponent: exponent - fraction.len() as i64 })
    }

    /// Without leading or trailing zeros; zero is (false, "0", 0).
    fn normal(mut self) -> (bool, Vec<u8>, i64) {
        while self.digits.last() == Some(&b'0') {
            self.digits.pop();
            self.exponent += 1;
        }
        let leading = self.digits.iter().take_while(|&&b| b == b'0').count();
        self.digits.drain(..leading);
        if self.digits.is_empty() {
            return (false, vec![b'0'], 0);
        }
        (self.negative, self.digits, self.exponent)
    }
}

/// Whether this is a JSON number of at most fifteen digits and nothing else: every numeric type prints it as it is.
pub fn is_short_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text).as_bytes();
    (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit) && digits.first() != Some(&b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_print_as_postgres_does() {
        for (value, text) in [
            (15.0, "15"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1e21, "1e+21"),
            (5e-324, "5e-324"),
            (1.797_693_134_862_315_7e308, "1.7976931348623157e+308"),
            (123_456_789_012_345_680.0, "1.2345678901234568e+17"),
            (1e15, "1e+15"),
            (999_999_999_999_999.0, "999999999999999"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-482_127.599_709_031_4, "-482127.5997090314"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(float8_text(value), text);
        }
        assert_eq!(float4_text(1.1), "1.1");
        assert_eq!(float4_text(1e6), "1e+06");
        assert_eq!(float4_text(999_999.0), "999999");
    }

    #[test]
    fn numerics_keep_their_scale_and_lose_their_exponent() {
        for (text, wanted) in [
            ("1234.50", "1234.50"),
            ("1.5E1", "15"),
            ("-0.0", "0.0"),
            ("1e-3", "0.001"),
            ("007.5", "7.5"),
            ("12e2", "1200"),
            ("0e5", "0"),
            ("NAN", "NaN"),
            ("POSITIVE_INFINITY", "Infinity"),
            ("1e999999999", "1e999999999"),
        ] {
            assert_eq!(numeric_text(text).as_deref(), Some(wanted), "{text}");
        }
        for junk in ["", "-", ".", "e5", "1e", "0x10", "1 2", "١", "1e99999999999999999999"] {
            assert_eq!(numeric_text(junk), None, "{junk}");
        }
    }

    #[test]
    fn unscaled_bytes_are_decimals() {
        assert_eq!(unscaled_text(&[0x01, 0xe2, 0x3a], 2).as_deref(), Some("1234.50"));
        assert_eq!(unscaled_text(&[0xfb], 2).as_deref(), Some("-0.05"));
        assert_eq!(unscaled_text(&[], 2).as_deref(), Some("0.00"));
        assert_eq!(unscaled_text(&[12], -2).as_deref(), Some("1200"));
        assert_eq!(unscaled_text(&[1], i64::MIN), None);
    }

    #[test]
    fn equality_is_by_exact_value() {
        assert!(numeric_equal("15", "15.0") && numeric_equal("15", "1.5E1") && numeric_equal("-0.0", "0"));
        assert!(numeric_equal("1e999999999", "10e999999998"));
        assert!(!numeric_equal("9007199254740993", "9007199254740992"));
        assert!(!numeric_equal("0.1", "0.1000000000000000055511151231257827"));
        assert!(numeric_equal("NAN", "NaN") && !numeric_equal("NaN", "0"));
        assert!(!numeric_equal("abc", "ABC") && numeric_equal("abc", "abc"));
        assert_eq!(numeric_normal("9.00").as_deref(), Some("9"));
        assert_eq!(numeric_normal("900").as_deref(), Some("900"));
    }
}
