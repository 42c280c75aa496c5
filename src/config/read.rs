//! From layers to typed values. Collects every problem instead of stopping at the first.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use toml::{Table, Value};

use super::error::Problem;
use super::keys;
use super::layers::{Entry, Layers, Origin};
use super::level::check_level;
use super::orgs::{
    DEFAULT_GRACE, GRACE_MAX, Identity, ObjectConfig, OrgConfig, TopicPattern, check_identifier, check_org_name,
};
use super::topics::is_side_topic;
use super::units::parse_size;
use crate::core::value::Kind;

/// The types to choose from, as they are written most briefly.
const TYPES: &[&str] = &[
    "text",
    "boolean",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "uuid",
    "json",
    "bytea",
];

/// Columns that never make a version by themselves, unless `mask_remove` says otherwise.
pub(super) const SYSTEM: [&str; 5] =
    ["systemmodstamp", "lastmodifieddate", "lastmodifiedbyid", "lastvieweddate", "lastreferenceddate"];

/// One of some texts, or why not, and the nearest of them.
pub(super) fn choose<'c, T: Copy>(
    text: &str,
    choices: &'c [(&'static str, T)],
) -> Result<T, (String, Option<&'c str>)> {
    let names = || choices.iter().map(|(name, _)| *name);
    match choices.iter().find(|(name, _)| *name == text) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let all: Vec<&str> = names().collect();
            Err((format!("`{text}` is not one of {}", all.join(", ")), keys::nearest(text, names())))
        }
    }
}

/// The next step where a name is near to a known one.
pub(super) fn did_you_mean(near: &str) -> String {
    format!("did you mean {near}?")
}

pub(super) struct Reader<'a> {
    pub layers: &'a Layers,
    pub problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub fn new(layers: &'a Layers, problems: Vec<Problem>) -> Self {
        Self { layers, problems }
    }

    /// Where a key got its value, for messages.
    pub fn place(&self, path: &str) -> String {
        match self.layers.get(path).map(|entry| &entry.origin) {
            Some(Origin::File(file)) => format!("{}: {path}", file.display()),
            Some(Origin::Default) | None => path.to_owned(),
            Some(origin) => format!("{origin} ({path})"),
        }
    }

    pub fn problem(&mut self, path: &str, reason: impl Into<String>, next: impl Into<String>) {
        let place = self.place(path);
        self.problems.push(Problem { place, reason: reason.into(), next: next.into() });
    }

    fn refuse(&mut self, path: &str, reason: impl Into<String>) {
        let next = keys::find(path).map_or_else(|| "correct it".to_owned(), |key| format!("{path} is: {}", key.help));
        self.problem(path, reason, next);
    }

    /// The value as text; numbers and booleans of a file as their text. An empty text is "not set".
    pub fn text(&mut self, path: &str) -> Option<String> {
        let entry = self.layers.get(path)?;
        let text = match &entry.value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Boolean(truth) => truth.to_string(),
            _ => {
                self.refuse(path, "must be a text");
                return None;
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// A text that a function reads further. Its reason must not quote a secret.
    pub fn parsed<T>(&mut self, path: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(path)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.refuse(path, reason);
                None
            }
        }
    }

    /// One of some texts.
    pub fn chosen<T: Copy>(&mut self, path: &str, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(path)?;
        match choose(&text, choices) {
            Ok(choice) => Some(choice),
            Err((reason, Some(near))) => {
                self.problem(path, reason, did_you_mean(near));
                None
            }
            Err((reason, None)) => {
                self.refuse(path, reason);
                None
            }
        }
    }

    pub fn log_level(&mut self) -> Option<String> {
        let text = self.text("log.level")?;
        match check_level(&text) {
            Ok(()) => return Some(text),
            Err(bad) => match bad.near {
                Some(near) => self.problem("log.level", bad.reason, did_you_mean(&near)),
                None => self.refuse("log.level", bad.reason),
            },
        }
        None
    }

    pub fn number<T: FromStr + PartialOrd + std::fmt::Display>(&mut self, path: &str, from: T, to: T) -> Option<T> {
        self.parsed(path, |text| match text.replace('_', "").parse::<T>() {
            Ok(number) if number >= from && number <= to => Ok(number),
            Ok(_) => Err(format!("{text} is outside {from} to {to}")),
            Err(_) => Err(format!("`{text}` is not a whole number")),
        })
    }

    pub fn truth(&mut self, path: &str) -> Option<bool> {
        self.chosen(path, &[("true", true), ("false", false)])
    }

    pub fn size(&mut self, path: &str, from: u64, to: u64) -> Option<u64> {
        self.parsed(path, |text| match parse_size(text)? {
            size if size >= from && size <= to => Ok(size),
            _ => Err(format!("`{text}` is outside {from} to {to} bytes")),
        })
    }

    pub fn duration(&mut self, path: &str, to: Duration) -> Option<Duration> {
        self.parsed(path, |text| parse_duration(text, to))
    }

    /// A list, given as a TOML array of texts or as one comma-separated text.
    pub fn joined(&mut self, path: &str) -> Option<String> {
        if let Some(Entry { value: Value::Array(items), .. }) = self.layers.get(path) {
            let texts: Option<Vec<&str>> = items.iter().map(Value::as_str).collect();
            return match texts {
                Some(texts) => Some(texts.join(",")),
                None => {
                    self.refuse(path, "must be a list of texts");
                    None
                }
            };
        }
        self.text(path)
    }

    /// The properties below `kafka.extra`, by name, as text.
    pub fn extra(&mut self) -> Vec<(String, String)> {
        let start = format!("{}.", keys::EXTRA);
        let layers = self.layers;
        let mut found = Vec::new();
        for path in layers.entries.keys().filter(|path| path.starts_with(&start)) {
            if let Some(text) = self.text(path) {
                found.push((path[start.len()..].to_owned(), text));
            }
        }
        found
    }

    /// `[[org]]` or `[[object]]` as tables.
    fn tables(&mut self, path: &str) -> Vec<&'a Table> {
        let Some(entry) = self.layers.get(path) else { return Vec::new() };
        let tables: Option<Vec<&Table>> =
            entry.value.as_array().and_then(|list| list.iter().map(Value::as_table).collect());
        tables.unwrap_or_else(|| {
            self.problem(
                path,
                format!("`{path}` must be a list of tables"),
                format!("write [[{path}]], in double brackets"),
            );
            Vec::new()
        })
    }

    /// `prefix` stands before every topic's name.
    pub fn orgs(&mut self, prefix: &str) -> Vec<OrgConfig> {
        let mut orgs: Vec<OrgConfig> = Vec::new();
        for (i, table) in self.tables("org").into_iter().enumerate() {
            let at = format!("[[org]] {}", i + 1);
            self.known(&at, "org", table, &["name", "topics"]);
            let Some(name) = self.required_name(&at, "org", table, "name") else { continue };
            if let Err(reason) = check_org_name(&name) {
                self.problem("org", format!("{at}: {reason}"), "rename it");
            }
            if orgs.iter().any(|org| org.name == name) {
                self.problem(
                    "org",
                    format!("{at}: there is an org {name} already"),
                    "put all its topics into one [[org]]",
                );
                continue;
            }
            let mut topics = Vec::new();
            for text in self.texts(&at, "org", table, "topics") {
                match TopicPattern::parse(&text) {
                    Ok(pattern) if is_side_topic(pattern.as_str()) => self.problem(
                        "org",
                        format!(
                            "{at} ({name}): topic pattern `{text}` fits no table's topic, only others of a connector"
                        ),
                        "write <connector>.<schema>.<table>, with at most one `*` per segment",
                    ),
                    Ok(pattern) if pattern.as_str().split('.').count() < 3 => self.problem(
                        "org",
                        format!(
                            "{at} ({name}): topic pattern `{text}` has fewer segments than a table's topic, \
                             <connector>.<schema>.<table>: nothing would be read"
                        ),
                        match text.contains('.') {
                            true => {
                                format!("write {text}.* for all tables of that schema; one `*` stands for one segment")
                            }
                            false => "write <connector>.<schema>.<table>; one `*` stands for one segment".to_owned(),
                        },
                    ),
                    Ok(pattern) => topics.push(pattern),
                    Err(reason) => self.problem(
                        "org",
                        format!("{at} ({name}): {reason}"),
                        "write <connector>.<schema>.<table>, with at most one `*` per segment",
                    ),
                }
            }
            if table.get("topics").is_none_or(|topics| topics.as_array().is_some_and(Vec::is_empty)) {
                self.problem(
                    "org",
                    format!("{at} ({name}): it has no topics"),
                    "write topics = [\"<connector>.<schema>.*\"]",
                );
            }
            let org = OrgConfig { name, topics };
            for other in &orgs {
                let both = org.topics.iter().flat_map(|one| other.topics.iter().map(move |another| (one, another)));
                if let Some((one, another)) = both.into_iter().find(|(one, another)| one.meets(another, prefix)) {
                    let (one, another) = (one.as_str(), another.as_str());
                    let reason = if one == another {
                        format!("{at}: topics {one} belongs to two orgs, {} and {}", other.name, org.name)
                    } else {
                        format!(
                            "{at}: a topic can fit {another} of org {} and {one} of org {}, and belongs to one of them only",
                            other.name, org.name
                        )
                    };
                    self.problem("org", reason, "make the topics of the [[org]] entries disjoint");
                }
            }
            orgs.push(org);
        }
        orgs
    }

    pub fn objects(&mut self, orgs: &[OrgConfig]) -> Vec<ObjectConfig> {
        let mut objects: Vec<ObjectConfig> = Vec::new();
        let keys = ["org", "name", "identity", "types", "mask_add", "mask_remove", "lookup", "grace"];
        for (i, table) in self.tables("object").into_iter().enumerate() {
            let at = format!("[[object]] {}", i + 1);
            self.known(&at, "object", table, &keys);
            let (org, name) =
                (self.required_name(&at, "object", table, "org"), self.required_name(&at, "object", table, "name"));
            let (Some(org), Some(name)) = (org, name) else { continue };
            let at = format!("{at} ({org}.{name})");
            if !orgs.is_empty() && !orgs.iter().any(|known| known.name == org) {
                let known: Vec<&str> = orgs.iter().map(|org| org.name.as_str()).collect();
                self.problem(
                    "object",
                    format!("{at}: there is no org {org}"),
                    format!("the orgs are: {}", known.join(", ")),
                );
            }
            if orgs.is_empty()
                && let Err(reason) = check_org_name(&org)
            {
                self.problem("object", format!("{at}: {reason}"), "write the org's name");
            }
            if let Err(reason) = check_identifier("the object", &name) {
                self.problem("object", format!("{at}: {reason}"), "write the table's name");
            }
            if objects.iter().any(|object| object.org == org && object.name == name) {
                self.problem("object", format!("{at}: it is declared twice"), "keep one of the two");
                continue;
            }
            let object = ObjectConfig {
                identity: self.identity(&at, table),
                types: self.types(&at, table),
                mask_add: self.columns(&at, table, "mask_add").into_iter().collect(),
                mask_remove: self.columns(&at, table, "mask_remove").into_iter().collect(),
                lookup: self.columns(&at, table, "lookup"),
                grace: self.grace(&at, table),
                org,
                name,
            };
            self.masks(&at, &object);
            objects.push(object);
        }
        objects
    }

    /// Masks that contradict something, or do nothing.
    fn masks(&mut self, at: &str, object: &ObjectConfig) {
        let both: Vec<&str> = object.mask_add.intersection(&object.mask_remove).map(String::as_str).collect();
        if !both.is_empty() {
            let reason = format!("{at}: {} stands in mask_add and in mask_remove", both.join(", "));
            self.problem("object", reason, "keep it in one of them");
        }
        for column in &object.mask_add {
            let (identifies, next) = match &object.identity {
                Some(Identity::Columns(columns)) => (columns.contains(column), "keep it in one of them"),
                Some(Identity::Key) => (false, ""),
                // Where the table has it.
                None | Some(Identity::Sfid) => {
                    (column == "sfid", "take it out of mask_add, or say what else identifies: identity = \"key\"")
                }
            };
            if identifies {
                self.problem("object", format!("{at}: {column} is masked, but part of the identity"), next);
            }
        }
        for column in object.mask_remove.iter().filter(|column| !SYSTEM.contains(&column.as_str())) {
            let reason = if column.starts_with("_hc_") {
                format!("{at}: {column} in mask_remove: columns that start with _hc_ are never stored")
            } else {
                format!("{at}: {column} in mask_remove is not masked by default")
            };
            let next = match keys::nearest(column, SYSTEM) {
                Some(near) => did_you_mean(near),
                None => format!("take it out of mask_remove, which knows {}", SYSTEM.join(", ")),
            };
            self.problem("object", reason, next);
        }
        for column in &object.lookup {
            let why = if object.mask_add.contains(column) {
                "masked"
            } else if column.starts_with("_hc_") {
                "never stored"
            } else if SYSTEM.contains(&column.as_str()) && !object.mask_remove.contains(column) {
                "masked by default"
            } else {
                continue;
            };
            let reason = format!("{at}: {column} is {why}, but a lookup field");
            let next = if why == "masked by default" {
                "take it out of lookup, or put it into mask_remove"
            } else {
                "keep it in one of them"
            };
            self.problem("object", reason, next);
        }
    }

    fn identity(&mut self, at: &str, table: &Table) -> Option<Identity> {
        match table.get("identity")? {
            Value::String(text) if text == "sfid" => return Some(Identity::Sfid),
            Value::String(text) if text == "key" => return Some(Identity::Key),
            Value::Array(items) if !items.is_empty() => {
                let columns: BTreeSet<String> = self.columns(at, table, "identity").into_iter().collect();
                if columns.len() == items.len() {
                    return Some(Identity::Columns(columns.into_iter().collect()));
                }
            }
            _ => {}
        }
        let near = table.get("identity").and_then(Value::as_str).and_then(|text| keys::nearest(text, ["sfid", "key"]));
        self.problem(
            "object",
            format!("{at}: identity is not \"sfid\", \"key\" or a list of different columns"),
            near.map_or_else(|| "write identity = \"sfid\", \"key\" or [\"a\", \"b\"]".to_owned(), did_you_mean),
        );
        None
    }

    fn types(&mut self, at: &str, table: &Table) -> BTreeMap<String, Kind> {
        let mut types = BTreeMap::new();
        let Some(value) = table.get("types") else { return types };
        let Some(declared) = value.as_table() else {
            self.problem("object", format!("{at}: types is not a table"), "write types = { due__c = \"date\" }");
            return types;
        };
        for (column, kind) in declared {
            let name = kind.as_str().unwrap_or_default();
            match (Kind::from_sql_name(name), check_identifier("the column", column)) {
                (Some(kind), Ok(())) => {
                    types.insert(column.clone(), kind);
                }
                (None, _) => {
                    let next = match keys::nearest(name, TYPES.iter().copied()) {
                        Some(near) => format!("did you mean {near}?"),
                        None => format!("use a PostgreSQL type: {}", TYPES.join(", ")),
                    };
                    self.problem("object", format!("{at}: the type of {column} is not known: `{name}`"), next);
                }
                (_, Err(reason)) => self.problem("object", format!("{at}: {reason}"), "write the column's name"),
            }
        }
        types
    }

    fn grace(&mut self, at: &str, table: &Table) -> Duration {
        let Some(value) = table.get("grace") else { return DEFAULT_GRACE };
        match value
            .as_str()
            .ok_or_else(|| "it is not a text".to_owned())
            .and_then(|text| parse_duration(text, GRACE_MAX))
        {
            Ok(grace) => grace,
            Err(reason) => {
                self.problem(
                    "object",
                    format!("{at}: grace: {reason}"),
                    "write for example grace = \"15min\"; it must stay below the sealing delay, one day",
                );
                DEFAULT_GRACE
            }
        }
    }

    /// A list of column names, in order, without repeats.
    fn columns(&mut self, at: &str, table: &Table, key: &str) -> Vec<String> {
        let mut columns: Vec<String> = Vec::new();
        for column in self.texts(at, "object", table, key) {
            if let Err(reason) = check_identifier("the column", &column) {
                self.problem("object", format!("{at}: {key}: {reason}"), "write the column's name");
            } else if !columns.contains(&column) {
                columns.push(column);
            }
        }
        columns
    }

    fn texts(&mut self, at: &str, path: &str, table: &Table, key: &str) -> Vec<String> {
        let Some(value) = table.get(key) else { return Vec::new() };
        let texts =
            value.as_array().and_then(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect());
        texts.unwrap_or_else(|| {
            self.problem(path, format!("{at}: {key} is not a list of texts"), format!("write {key} = [\"…\"]"));
            Vec::new()
        })
    }

    fn required_name(&mut self, at: &str, path: &str, table: &Table, key: &str) -> Option<String> {
        let name = table.get(key).and_then(Value::as_str).filter(|name| !name.is_empty());
        if name.is_none() {
            self.problem(path, format!("{at}: {key} is missing, empty or not a text"), format!("write {key} = \"…\""));
        }
        name.map(str::to_owned)
    }

    fn known(&mut self, at: &str, path: &str, table: &Table, known: &[&str]) {
        for name in table.keys().filter(|name| !known.contains(&name.as_str())) {
            let next = match keys::nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("the keys of [[{path}]] are: {}", known.join(", ")),
            };
            self.problem(path, format!("{at}: unknown key `{name}`"), next);
        }
    }
}

fn parse_duration(text: &str, to: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= to => Ok(duration),
        Ok(_) => Err(format!("`{text}` is longer than {}", humantime::format_duration(to))),
        Err(_) => Err(format!("`{text}` is not a duration: write for example 100ms, 15min or 24h")),
    }
}
