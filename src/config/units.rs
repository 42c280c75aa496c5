//! Sizes and column types as people write them.

use crate::core::value::Kind;

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

/// The column type of a PostgreSQL type name, in the usual spellings.
pub(super) fn parse_kind(name: &str) -> Option<Kind> {
    let name = name.trim().to_ascii_lowercase();
    // varchar(40), numeric(18,2), timestamp(3) without time zone: the modifier changes no text form.
    let base = match (name.find('('), name.rfind(')')) {
        (Some(open), Some(close)) if open < close => {
            let inner = &name[open + 1..close];
            if inner.is_empty() || !inner.chars().all(|c| c.is_ascii_digit() || c == ',' || c == ' ') {
                return None;
            }
            format!("{}{}", name[..open].trim_end(), &name[close + 1..])
        }
        (None, None) => name,
        _ => return None,
    };
    Some(match base.split_whitespace().collect::<Vec<_>>().join(" ").as_str() {
        "bool" | "boolean" => Kind::Bool,
        "int2" | "smallint" => Kind::Int2,
        "int" | "int4" | "integer" => Kind::Int4,
        "int8" | "bigint" => Kind::Int8,
        "float4" | "real" => Kind::Float4,
        "float8" | "float" | "double precision" => Kind::Float8,
        "numeric" | "decimal" => Kind::Numeric,
        "text" | "varchar" | "character varying" | "char" | "character" | "bpchar" | "citext" | "name" => Kind::Text,
        "date" => Kind::Date,
        "time" | "time without time zone" => Kind::Time,
        "timetz" | "time with time zone" => Kind::TimeTz,
        "timestamp" | "timestamp without time zone" => Kind::Timestamp,
        "timestamptz" | "timestamp with time zone" => Kind::TimestampTz,
        "interval" => Kind::Interval,
        "bytea" => Kind::Bytea,
        "json" | "jsonb" => Kind::Json,
        "uuid" => Kind::Uuid,
        _ => return None,
    })
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

    #[test]
    fn type_names_are_read_in_postgres_spellings() {
        for (name, kind) in [
            ("date", Kind::Date),
            ("Double  Precision", Kind::Float8),
            ("varchar(40)", Kind::Text),
            ("numeric(18, 2)", Kind::Numeric),
            ("timestamp(3) with time zone", Kind::TimestampTz),
        ] {
            assert_eq!(parse_kind(name), Some(kind), "{name}");
        }
        for name in ["", "datetime", "varchar(", ")(", "varchar()", "text; drop"] {
            assert_eq!(parse_kind(name), None, "{name}");
        }
    }
}
