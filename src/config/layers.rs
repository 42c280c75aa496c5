//! Layers: where values come from, and which one wins. Flag > `AFTERIMAGE_*` > Heroku's own variables >
//! file > default, key by key; an `[[org]]` or `[[object]]` list of a higher layer replaces the whole list.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::{ConfigError, Problem};
use super::keys::{self, ENV_FILE, ENV_PREFIX, EXTRA, KEYS};

/// Everything a configuration is made from. Pure data: tests build it without touching the process.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file named by `--config`; without it `AFTERIMAGE_CONFIG`, else none.
    pub file: Option<PathBuf>,
    /// A file that is read if it exists and no other is named.
    pub default_file: Option<PathBuf>,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Values of flags: (flag as typed, key path, text).
    pub flags: Vec<(String, String, String)>,
    /// This machine's name, for the worker's default name.
    pub host: String,
    /// This process's id, likewise.
    pub pid: u32,
}

impl Sources {
    /// The environment, host name and id of this process; `afterimage.toml` in the working directory is
    /// read if no file is named.
    pub fn from_process() -> Self {
        // A value that is not UTF-8 is kept with marks in it, so that it is refused and not overlooked.
        let env: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        // A dyno's host name is a random id; its own name (`worker.1`) says more.
        let host = env.get("DYNO").cloned().or_else(|| {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
            Some(name.trim().to_owned()).filter(|name| !name.is_empty())
        });
        Self {
            file: None,
            default_file: Some(PathBuf::from("afterimage.toml")),
            env,
            flags: Vec::new(),
            host: host.unwrap_or_else(|| "localhost".to_owned()),
            pid: std::process::id(),
        }
    }

    /// Sets a key as a flag does.
    pub fn flag(&mut self, flag: &str, path: &str, value: impl Into<String>) {
        self.flags.push((flag.to_owned(), path.to_owned(), value.into()));
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in, or worked out from other values.
    Default,
    /// A configuration file.
    File(PathBuf),
    /// A variable that Heroku sets (`KAFKA_URL`, `DATABASE_URL`, …).
    Heroku(String),
    /// An `AFTERIMAGE_*` variable.
    Env(String),
    /// A command line flag.
    Flag(String),
}

impl Origin {
    /// The place in the order of precedence: a higher one wins, and of two equal ones the later.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File(_) => 1,
            Self::Heroku(_) => 2,
            Self::Env(_) => 3,
            Self::Flag(_) => 4,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Heroku(name) | Self::Env(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub value: Value,
    pub origin: Origin,
}

/// The winning entry of every key that is set.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub entries: BTreeMap<String, Entry>,
}

impl Layers {
    /// Reads all layers. Unknown keys and unreadable files are problems; values are not looked into yet.
    pub fn read(sources: &Sources, problems: &mut Vec<Problem>) -> Self {
        let mut layers = Self::default();
        for key in KEYS {
            if let Some(default) = key.default {
                layers.put(key.path, Value::String(default.to_owned()), Origin::Default);
            }
        }
        layers.read_file(sources, problems);
        layers.read_env(&sources.env, problems);
        for (flag, path, value) in &sources.flags {
            layers.read_text(path, value, Origin::Flag(flag.clone()), problems);
        }
        // After the others: which variables are read depends on a key.
        layers.read_heroku(&sources.env);
        layers
    }

    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    fn put(&mut self, path: &str, value: Value, origin: Origin) {
        // An empty text is "not set": a key with a default then keeps it.
        let default = keys::find(path).and_then(|key| key.default).is_some_and(|default| !default.is_empty());
        if default && value.as_str() == Some("") {
            return;
        }
        match self.entries.get(path) {
            Some(held) if held.origin.rank() > origin.rank() => {}
            _ => {
                self.entries.insert(path.to_owned(), Entry { value, origin });
            }
        }
    }

    fn read_file(&mut self, sources: &Sources, problems: &mut Vec<Problem>) {
        let named = sources
            .file
            .clone()
            .or_else(|| sources.env.get(ENV_FILE).filter(|name| !name.is_empty()).map(PathBuf::from));
        let (path, required) = match (named, &sources.default_file) {
            (Some(path), _) => (path, true),
            (None, Some(path)) => (path.clone(), false),
            (None, None) => return,
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => match parse_file(&text) {
                Ok(table) => self.read_table("", table, &path, problems),
                Err(reason) => problems.push(Problem {
                    place: path.display().to_string(),
                    reason,
                    next: "correct the file; `afterimage config show` then prints what was understood".to_owned(),
                }),
            },
            Err(error) if !required && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => problems.push(Problem {
                place: path.display().to_string(),
                reason: format!("the configuration file cannot be read: {error}"),
                next: format!("check the path given by --config or {ENV_FILE}"),
            }),
        }
    }

    fn read_table(&mut self, at: &str, table: Table, file: &Path, problems: &mut Vec<Problem>) {
        for (name, value) in table {
            let path = if at.is_empty() { name } else { format!("{at}.{name}") };
            let place = || format!("{}: {path}", file.display());
            let open = path.strip_prefix(EXTRA).is_some_and(|rest| rest.starts_with('.'));
            match value {
                Value::Table(inner) if open || keys::is_section(&path) => self.read_table(&path, inner, file, problems),
                value if open || keys::find(&path).is_some() => self.put(&path, value, Origin::File(file.to_owned())),
                _ if keys::is_section(&path) => problems.push(Problem {
                    place: place(),
                    reason: "is a section, not a value".to_owned(),
                    next: format!("write [{path}] and its keys below it"),
                }),
                _ => problems.push(unknown(place(), &path)),
            }
        }
    }

    fn read_env(&mut self, env: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
        for (name, text) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            // An empty variable is how many launchers say "not set".
            if name == ENV_FILE || text.is_empty() {
                continue;
            }
            let mut path = rest.replace("__", ".").to_ascii_lowercase();
            if let Some(property) = path.strip_prefix(EXTRA).and_then(|rest| rest.strip_prefix('.')) {
                // librdkafka's names have dots and no underscores; variables can't have dots.
                path = format!("{EXTRA}.{}", property.replace('_', "."));
            }
            if !is_open(&path) && keys::find(&path).is_none() {
                problems.push(unknown_variable(name));
                continue;
            }
            self.read_text(&path, text, Origin::Env(name.clone()), problems);
        }
    }

    /// A key given as text, by a variable or a flag. The lists are TOML: `[{ name = "emea", topics = ["…"] }]`.
    fn read_text(&mut self, path: &str, text: &str, origin: Origin, problems: &mut Vec<Problem>) {
        if !is_open(path) && keys::find(path).is_none() {
            problems.push(unknown(origin.to_string(), path));
            return;
        }
        let value = if path == "org" || path == "object" {
            match parse_file(&format!("list = {text}")).map(|mut table| table.remove("list")) {
                Ok(Some(value)) => value,
                Ok(None) | Err(_) => {
                    problems.push(Problem {
                        place: origin.to_string(),
                        reason: "is not a list of tables in TOML".to_owned(),
                        next: format!("write for example {origin}='[{{ name = \"emea\", … }}]'"),
                    });
                    return;
                }
            }
        } else {
            Value::String(text.to_owned())
        };
        self.put(path, value, origin);
    }

    fn read_heroku(&mut self, env: &BTreeMap<String, String>) {
        let attachment = match self.get("kafka.attachment").map(|entry| &entry.value) {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            _ => "KAFKA".to_owned(),
        };
        let mut variables = vec![
            (format!("{attachment}_URL"), "kafka.brokers"),
            (format!("{attachment}_TRUSTED_CERT"), "kafka.ca"),
            (format!("{attachment}_CLIENT_CERT"), "kafka.cert"),
            (format!("{attachment}_CLIENT_CERT_KEY"), "kafka.key"),
            (format!("{attachment}_PREFIX"), "kafka.prefix"),
        ];
        let postgres = ["TIME_MACHINE_URL", "DATABASE_URL"];
        if let Some(name) = postgres.into_iter().find(|name| env.get(*name).is_some_and(|url| !url.is_empty())) {
            variables.push((name.to_owned(), "postgres.url"));
        }
        for (name, path) in variables {
            if let Some(text) = env.get(&name).filter(|text| !text.is_empty()) {
                self.put(path, Value::String(text.clone()), Origin::Heroku(name));
            }
        }
    }
}

/// Whether a path is that of a librdkafka property.
fn is_open(path: &str) -> bool {
    path.strip_prefix(EXTRA).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
}

fn unknown_variable(name: &str) -> Problem {
    let rest = |name: &str| name.strip_prefix(ENV_PREFIX).unwrap_or_default().to_owned();
    let known: Vec<String> = KEYS.iter().map(|key| rest(&key.env())).chain([rest(ENV_FILE)]).collect();
    let next = match keys::nearest(&rest(name), known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {ENV_PREFIX}{near}? `afterimage config show` prints every key"),
        None => "unset it; `afterimage config show` prints every key".to_owned(),
    };
    Problem { place: name.to_owned(), reason: "is the variable of no key".to_owned(), next }
}

fn unknown(place: String, path: &str) -> Problem {
    let sections = KEYS.iter().filter_map(|key| key.path.split_once('.').map(|(section, _)| section));
    let known = KEYS.iter().map(|key| key.path).chain(sections).chain([EXTRA]);
    let next = match keys::nearest(path, known) {
        Some(near) => format!("did you mean {near}? `afterimage config show` prints every key"),
        None => "remove it; `afterimage config show` prints every key".to_owned(),
    };
    Problem { place, reason: format!("unknown key `{path}`"), next }
}

/// Parses TOML. The parser's own message quotes the offending line, which may hold a password, so only
/// its first line and the place are kept.
pub(super) fn parse_file(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let kind = error.message().lines().next().unwrap_or("not TOML");
        format!("line {line}, column {column}: {kind}")
    })
}

pub(super) fn finish<T>(value: T, problems: Vec<Problem>) -> Result<T, ConfigError> {
    if problems.is_empty() { Ok(value) } else { Err(ConfigError { problems }) }
}
