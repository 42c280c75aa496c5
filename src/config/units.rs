//! Sizes as people write them.

/// Bytes of `128MB` (decimal units), `128MiB` (binary units) or a plain number.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_').len();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("`{text}` is not a size: write for example 8MB or 128MiB")),
    };
    let number: u64 =
        number.replace('_', "").parse().map_err(|_| format!("`{text}` is not a size: write for example 8MB"))?;
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_decimal_and_binary_units() {
        for (text, bytes) in
            [("8MB", 8_000_000), ("8 MiB", 8_388_608), ("20_000", 20_000), ("1k", 1_000), ("2GiB", 2_147_483_648)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "8 bananas", "-1", "99999999999999999999", "9999999999999GB", "1.5MB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
