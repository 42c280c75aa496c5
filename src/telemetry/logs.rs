//! Log lines, on stderr: readable text, or one JSON object each.

use std::fmt;
use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogFormat, LogSettings, VALUE_PRINTING, check_level};

/// Logs could not be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogError(String);

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}

/// The filter of a level that [`check_level`] accepts.
fn filter(level: &str) -> Result<EnvFilter, LogError> {
    check_level(level).map_err(LogError)?;
    // Bare `debug` means ours: the drivers stay at warnings unless they are named.
    let mut whole = String::new();
    for target in VALUE_PRINTING {
        if !level.split(',').any(|part| part.trim().starts_with(&format!("{target}="))) {
            whole.push_str(&format!("{target}=warn,"));
        }
    }
    whole.push_str(level);
    EnvFilter::builder()
        .with_default_directive(LevelFilter::OFF.into())
        .parse(&whole)
        .map_err(|error| LogError(format!("log.level: {error}")))
}

/// Installs the process's subscriber, writing to stderr; colours only on a terminal, and not with
/// `NO_COLOR`. An error if one is installed already.
pub fn install(settings: &LogSettings) -> Result<(), LogError> {
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = subscriber(settings, ansi, std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError("logs are set up already".to_owned()))
}

/// A subscriber writing anywhere.
fn subscriber<W>(settings: &LogSettings, ansi: bool, writer: W) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&settings.level)?).with_writer(writer);
    Ok(match settings.format {
        LogFormat::Text => Box::new(builder.with_ansi(ansi).with_target(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).with_current_span(false).finish()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, level: &str, ansi: bool) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let settings = LogSettings { format, level: level.to_owned() };
        let subscriber = subscriber(&settings, ansi, move || writer.clone()).expect("a subscriber");
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::error_span!("task", topic = "t", partition = 3);
            let _entered = span.enter();
            tracing::info!(events = 5, "committed");
            tracing::debug!("a detail");
            tracing::debug!(target: "tokio_postgres::query", "executing statement with parameters [hunter2]");
            tracing::warn!(target: "tokio_postgres::connection", "a notice");
        });
        let bytes = lines.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn text_is_one_readable_line_without_escape_codes_off_a_terminal() {
        let text = logged(LogFormat::Text, "info", false);
        let first = text.lines().next().expect("a line");
        assert!(first.contains("INFO") && first.contains("committed") && first.contains("partition=3"), "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains("a detail"), "{text}");
        assert!(logged(LogFormat::Text, "info", true).contains('\u{1b}'));
    }

    #[test]
    fn json_is_one_object_per_line() {
        let text = logged(LogFormat::Json, "info", true);
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert!(line["message"].is_string() && line["level"].is_string(), "{line}");
        }
        assert!(text.contains("\"events\":5"), "{text}");
    }

    #[test]
    fn no_level_prints_what_drivers_print_of_rows() {
        for level in ["debug", "trace", "tokio_postgres=info,trace"] {
            let text = logged(LogFormat::Text, level, false);
            assert!(
                text.contains("a detail") && text.contains("a notice") && !text.contains("hunter2"),
                "{level}: {text}"
            );
        }
    }
}
