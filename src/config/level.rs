//! Log levels as people write them, and those that are refused.

/// Targets whose finer levels print the values of rows (statement parameters, message bytes).
pub const VALUE_PRINTING: &[&str] = &["tokio_postgres", "postgres", "rdkafka", "hyper"];

/// Checks a `log.level`: a level, or comma-separated `target=level` pairs, at most one bare level among
/// them. Levels that would print record values are refused.
pub fn check_level(text: &str) -> Result<(), String> {
    let mut bare = 0;
    for part in text.split(',') {
        let part = part.trim();
        let (target, level) = part.split_once('=').map_or((None, part), |(target, level)| (Some(target), level));
        let target_ok = target.is_none_or(|target| {
            !target.is_empty() && target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
        });
        let known = ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
        if !target_ok || !known {
            return Err(format!("`{part}` is neither a level (error, warn, info, debug, trace, off) nor target=level"));
        }
        bare += usize::from(target.is_none());
        let crate_name = target.and_then(|target| target.split("::").next()).unwrap_or_default();
        if matches!(level, "debug" | "trace") && VALUE_PRINTING.contains(&crate_name) {
            return Err(format!("`{part}` would print the values of records, which logs never hold"));
        }
    }
    if bare > 1 { Err(format!("`{text}` has more than one level without a target")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_refused() {
        for level in ["", "loud", "info,,debug", "=info", "a b=info", "info,debug", "x[y]=info"] {
            assert!(check_level(level).is_err(), "{level}");
        }
        for level in ["info", "warn,afterimage=debug", "afterimage::stream=trace,error", "off"] {
            assert_eq!(check_level(level), Ok(()), "{level}");
        }
    }

    #[test]
    fn a_level_that_would_print_record_values_is_refused() {
        for level in ["tokio_postgres=debug", "info,tokio_postgres::query=trace", "rdkafka=debug"] {
            assert!(check_level(level).is_err_and(|reason| reason.contains("values of records")), "{level}");
        }
    }
}
