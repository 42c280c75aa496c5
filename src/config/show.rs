//! The effective configuration, printable: every key with its value and where it came from.

use toml::{Table, Value};

use super::kafka::is_printable;
use super::keys::{self, EXTRA, KEYS};
use super::layers::{Layers, Origin};
use super::secret::MASK;

/// Keys, values and origins with the secrets masked already: nothing in here needs care any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    entries: Vec<(String, Option<Value>, Origin)>,
}

impl Shown {
    /// From the layers: masked where a key is secret; keys that are not set stand without value.
    pub(super) fn of(layers: &Layers) -> Self {
        let mut entries = Vec::new();
        for key in KEYS {
            // An empty text is "not set", wherever it stands.
            let unset = |value: &Value| value.as_str() == Some("") && key.default != Some("");
            let entry = layers.get(key.path).filter(|entry| !unset(&entry.value));
            let value = entry.map(|entry| match key.secret {
                true => Value::String(MASK.to_owned()),
                false => entry.value.clone(),
            });
            entries.push((key.path.to_owned(), value, entry.map_or(Origin::Default, |entry| entry.origin.clone())));
            if key.path == "kafka.verify_hostname" {
                let start = format!("{EXTRA}.");
                for (path, entry) in layers.entries.iter().filter(|(path, _)| path.starts_with(&start)) {
                    let value = if is_printable(path) { entry.value.clone() } else { Value::String(MASK.to_owned()) };
                    entries.push((path.clone(), Some(value), entry.origin.clone()));
                }
            }
        }
        Self { entries }
    }

    /// Replaces the value of a key by what became of it (a default that depends on others, a masked URL).
    pub(super) fn set(&mut self, path: &str, value: impl Into<Value>) {
        if let Some((_, held, _)) = self.entries.iter_mut().find(|(held, ..)| held == path) {
            *held = Some(value.into());
        }
    }

    /// The same for a value that another key brought (`sslmode` in a URL).
    pub(super) fn set_from(&mut self, path: &str, value: impl Into<Value>, origin: &Origin) {
        self.set(path, value);
        if let Some((_, _, held)) = self.entries.iter_mut().find(|(held, ..)| held == path) {
            *held = origin.clone();
        }
    }

    /// Where the value of a key stands, for messages about it.
    pub fn place(&self, path: &str) -> String {
        match self.entries.iter().find(|(held, ..)| held == path).map(|(.., origin)| origin) {
            Some(Origin::File(file)) => format!("{}: {path}", file.display()),
            Some(Origin::Default) | None => path.to_owned(),
            Some(origin) => format!("{origin} ({path})"),
        }
    }

    /// As a configuration file, each value with its origin as a comment, unset keys commented out.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for (path, value, origin) in &self.entries {
            let (at, name) = match path.strip_prefix(EXTRA).and_then(|rest| rest.strip_prefix('.')) {
                Some(property) => (EXTRA, format!("\"{property}\"")),
                None => match path.split_once('.') {
                    Some((at, name)) => (at, name.to_owned()),
                    None => {
                        lists(&mut text, path, value.as_ref(), origin);
                        continue;
                    }
                },
            };
            if at != section {
                let gap = if text.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{at}]\n"));
                section = at;
            }
            match value {
                Some(value) => text.push_str(&format!("{:<48} # {origin}\n", format!("{name} = {value}"))),
                None => {
                    let help = keys::find(path).map_or("", |key| key.help);
                    text.push_str(&format!("{:<48} # not set: {help}\n", format!("# {name} =")));
                }
            }
        }
        text
    }

    /// As one JSON object: the sections of the file, and `origins` by key path.
    pub fn json(&self) -> serde_json::Value {
        let mut whole = serde_json::Map::new();
        let mut origins = serde_json::Map::new();
        for (path, value, origin) in &self.entries {
            let value = value.as_ref().map_or(serde_json::Value::Null, |value| serde_json::json!(value));
            if !value.is_null() {
                origins.insert(path.clone(), origin.to_string().into());
            }
            let mut at = &mut whole;
            let mut name = path.as_str();
            let mut steps: Vec<&str> = Vec::new();
            if let Some(property) = path.strip_prefix(EXTRA).and_then(|rest| rest.strip_prefix('.')) {
                steps.extend(EXTRA.split('.'));
                name = property;
            } else if let Some((section, rest)) = path.split_once('.') {
                steps.push(section);
                name = rest;
            }
            for step in steps {
                let inner = at.entry(step).or_insert_with(|| serde_json::Value::Object(Default::default()));
                match inner.as_object_mut() {
                    Some(inner) => at = inner,
                    // A section's name is never a key's: the table of keys is tested for it.
                    None => return serde_json::Value::Null,
                }
            }
            at.insert(name.to_owned(), value);
        }
        whole.insert("origins".to_owned(), origins.into());
        whole.into()
    }
}

/// `[[org]]` and `[[object]]`, as written.
fn lists(text: &mut String, path: &str, value: Option<&Value>, origin: &Origin) {
    let tables: Vec<&Table> =
        value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_table).collect();
    if tables.is_empty() {
        let help = keys::find(path).map_or("", |key| key.help);
        text.push_str(&format!("\n# not set: {help}\n"));
    }
    for table in tables {
        text.push_str(&format!("\n{:<48} # {origin}\n", format!("[[{path}]]")));
        for (name, value) in table {
            text.push_str(&format!("{name} = {value}\n"));
        }
    }
}
