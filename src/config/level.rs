//! Log levels as people write them, and those that are refused.

use std::fmt;

use super::keys::nearest;

/// Targets whose finer levels print the values of rows (statement parameters, message bytes).
pub const VALUE_PRINTING: &[&str] = &["tokio_postgres", "postgres", "rdkafka", "hyper"];

/// Our own modules: what may stand behind `afterimage::`.
const MODULES: &[&str] = &["cli", "config", "core", "demo", "kafka", "postgres", "stream", "telemetry"];
/// Who logs.
const CRATES: &[&str] = &[
    "afterimage",
    "afterimage_state",
    "afterimage_proto",
    "librdkafka",
    "rdkafka",
    "tokio_postgres",
    "postgres",
    "hyper",
];
/// Levels.
const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

/// Why a level is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLevel {
    /// The reason.
    pub reason: String,
    /// What was likely meant.
    pub near: Option<String>,
}

impl fmt::Display for BadLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<String> for BadLevel {
    fn from(reason: String) -> Self {
        Self { reason, near: None }
    }
}

/// Checks a `log.level`: a level, or comma-separated `target=level` pairs, at most one bare level among
/// them. Levels that would print record values are refused, and targets that are nearly one of ours.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn check_level(text: &str) -> Result<(), BadLevel> {
    let mut bare = 0;
    for part in text.split(',') {
        let part = part.trim();
        let (target, level) = part.split_once('=').map_or((None, part), |(target, level)| (Some(target), level));
        let target_ok = target.is_none_or(|target| {
            !target.is_empty() && target.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-'))
        });
        if !target_ok || !LEVELS.contains(&level) {
            return Err(BadLevel {
                reason: format!("`{part}` is neither a level (error, warn, info, debug, trace, off) nor target=level"),
                near: nearest(level, LEVELS.iter().copied())
                    .filter(|near| target_ok && *near != level)
                    .map(|near| target.map_or_else(|| near.to_owned(), |target| format!("{target}={near}"))),
            });
        }
        check_target(target.unwrap_or("afterimage"), level)?;
        bare += usize::from(target.is_none());
        let crate_name = target.and_then(|target| target.split("::").next()).unwrap_or_default();
        if matches!(level, "debug" | "trace") && VALUE_PRINTING.contains(&crate_name) {
            return Err(format!("`{part}` would print the values of records, which logs never hold").into());
        }
    }
    if bare > 1 { Err(format!("`{text}` has more than one level without a target").into()) } else { Ok(()) }
}

/// A target that nobody logs under would have no effect. The list of crates is not whole, so one that is near to none of
/// them is let through.
fn check_target(target: &str, level: &str) -> Result<(), BadLevel> {
    let (name, rest) = target.split_once("::").map_or((target, ""), |(name, rest)| (name, rest));
    let spelt = name.replace('-', "_");
    let near = nearest(&spelt, CRATES.iter().copied()).filter(|near| *near != name && !CRATES.contains(&name));
    if let Some(near) = near {
        let behind = if rest.is_empty() { String::new() } else { format!("::{rest}") };
        return Err(BadLevel {
            reason: format!("nothing logs as {name}"),
            near: Some(format!("{near}{behind}={level}")),
        });
    }
    let module = rest.split("::").next().unwrap_or_default();
    if name == "afterimage" && !rest.is_empty() && !MODULES.contains(&module) {
        return Err(BadLevel {
            reason: format!("afterimage has no module {module}, only {}", MODULES.join(", ")),
            near: nearest(module, MODULES.iter().copied()).map(|near| format!("afterimage::{near}={level}")),
        });
    }
    Ok(())
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
            assert!(check_level(level).is_err_and(|bad| bad.reason.contains("values of records")), "{level}");
        }
    }

    #[test]
    fn what_was_likely_meant_is_told() {
        for (level, near) in [
            ("debgu", Some("debug")),
            ("info,afterimage=trase", Some("afterimage=trace")),
            ("info,afterimag=debug", Some("afterimage=debug")),
            ("after_image::stream=debug", Some("afterimage::stream=debug")),
            ("afterimage-state=debug", Some("afterimage_state=debug")),
            ("info,afterimage::strem=debug", Some("afterimage::stream=debug")),
            ("rdkafak=info", Some("rdkafka=info")),
            ("afterimage::nonsense=debug", None),
            ("very loud", None),
        ] {
            assert_eq!(check_level(level).expect_err(level).near.as_deref(), near, "{level}");
        }
        for level in ["librdkafka=debug", "afterimage_state=debug", "some_crate=info", "afterimage::kafka::inbox=trace"]
        {
            assert_eq!(check_level(level), Ok(()), "{level}");
        }
    }

    #[test]
    fn the_modules_are_those_of_the_library() {
        let library = include_str!("../lib.rs");
        let there: Vec<&str> =
            library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
        // Failpoints are in builds for tests only.
        let there: Vec<&str> = there.into_iter().filter(|module| *module != "failpoint").collect();
        assert_eq!(there, MODULES);
    }
}
