//! Log lines, on stderr: readable text, or one JSON object each (`ts`, `level`, `target`, `message`, `fields`).

use std::fmt;
use std::io::IsTerminal;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

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
    check_level(level).map_err(|bad| LogError(bad.to_string()))?;
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
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError("logs are set up already".to_owned()))?;
    if settings.format == LogFormat::Json {
        JSON.store(true, Ordering::Release);
        panic::set_hook(Box::new(|info| eprintln!("{}", panic_line(info))));
    }
    Ok(())
}

/// Logs are JSON lines.
static JSON: AtomicBool = AtomicBool::new(false);

/// Whether everything on stderr has to be a JSON line: [`install`] said so.
pub fn is_json() -> bool {
    JSON.load(Ordering::Acquire)
}

/// A line of the log's form for what is said outside of it: an error that ends the process.
pub fn json_line(level: &str, target: &str, message: &str, fields: &Value) -> String {
    let mut ts = String::new();
    // Writing to a string can't fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut ts));
    json!({ "ts": ts, "level": level, "target": target, "message": message, "fields": fields }).to_string()
}

/// Not through the log: the panic may have happened in it, or a filter may hide it.
fn panic_line(info: &panic::PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let thread = std::thread::current();
    let place = info.location().map(ToString::to_string);
    let fields = json!({ "thread": thread.name(), "place": place });
    json_line("ERROR", "panic", &format!("panicked: {}", text.unwrap_or("without a text")), &fields)
}

/// One JSON object for each event.
struct JsonLines;

#[derive(Default)]
struct Fields {
    message: String,
    fields: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            ("message", other) => self.message = other.to_string(),
            (name, value) => drop(self.fields.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut found = Fields::default();
        event.record(&mut found);
        let meta = event.metadata();
        writeln!(
            writer,
            "{}",
            json_line(meta.level().as_str(), meta.target(), &found.message, &Value::Object(found.fields))
        )
    }
}

/// A subscriber writing anywhere.
fn subscriber<W>(settings: &LogSettings, ansi: bool, writer: W) -> Result<Box<dyn Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&settings.level)?).with_writer(writer);
    Ok(match settings.format {
        LogFormat::Text => Box::new(builder.with_ansi(ansi).with_target(false).finish()),
        LogFormat::Json => Box::new(builder.event_format(JsonLines).finish()),
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
        assert_eq!(text.lines().count(), 2, "{text}");
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let keys: Vec<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
            assert_eq!(keys, ["fields", "level", "message", "target", "ts"]);
            assert!(line["ts"].as_str().expect("text").ends_with('Z'), "{line}");
        }
        let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        assert_eq!(
            (&line["message"], &line["level"], &line["fields"]),
            (&json!("committed"), &json!("INFO"), &json!({"events": 5}))
        );
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
