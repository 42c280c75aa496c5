//! The configuration file that `config init` writes: every key, commented out, with what it means.

use super::keys::KEYS;

const HEAD: &str = "\
# Configuration of afterimage. Every key is here, commented out, with its default or an example.
# Flag > AFTERIMAGE_<SECTION>__<NAME> > Heroku's variables > this file > default.
# `afterimage config show` prints what is in effect, and where each value came from.
";

/// Examples of keys without a fixed default.
const EXAMPLES: &[(&str, &str)] = &[
    ("kafka.brokers", "127.0.0.1:9092"),
    ("kafka.group", "afterimage.history"),
    ("kafka.ca", "/etc/afterimage/ca.pem"),
    ("kafka.cert", "/etc/afterimage/client.pem"),
    ("kafka.key", "/etc/afterimage/client.key"),
    ("kafka.verify_hostname", "true"),
    ("postgres.url", "postgres://me@localhost/history"),
    ("postgres.name", "history"),
    ("postgres.sslmode", "verify-full"),
    ("postgres.ca", "/etc/afterimage/postgres-ca.pem"),
    ("state.dir", "/var/lib/afterimage"),
    ("worker.name", "worker.1"),
];

const EXTRA: &str = r#"
# librdkafka's own properties, but none that correctness stands on.
[kafka.extra]
# "sasl.mechanism" = "SCRAM-SHA-512"
# "client.rack" = "eu-central-1a"
"#;

const LISTS: &str = r#"
# Which topics belong to which Salesforce org: <connector>.<schema>.<table>, one `*` for each segment. The org's typed
# views will be in <name>_history. Without any [[org]] the schema in the topic's name is the org.
# [[org]]
# name = "emea"
# topics = ["calm_connector_27001.emea.*"]

# An object (table) that needs something special. `afterimage config types --from postgres://…` prints `types`.
# [[object]]
# org = "emea"
# name = "account"
# identity = "sfid"                           # "sfid" | "key" | a list of columns; default: sfid where there is one
# types = { due__c = "date", amount__c = "float8" }   # for connectors without schema blocks
# lookup = ["external_id__c"]                 # text columns that the typed view finds records by
# mask_add = ["ssn__c"]                       # never stored
# mask_remove = ["lastmodifiedbyid"]          # counts as a change here
# grace = "15min"                             # how long a delete waits for its equal re-insert
"#;

/// The whole file. As it stands it changes no default.
pub fn commented_file() -> String {
    let mut text = HEAD.to_owned();
    let mut section = "";
    for key in KEYS {
        let Some((at, name)) = key.path.split_once('.') else { continue };
        if at != section {
            if section == "kafka" {
                text.push_str(EXTRA);
            }
            text.push_str(&format!("\n[{at}]\n"));
            section = at;
        }
        for line in wrapped(key.help) {
            text.push_str(&format!("# {line}\n"));
        }
        let example = EXAMPLES.iter().find(|(path, _)| *path == key.path).map(|(_, example)| *example);
        let value = example.or(key.default).unwrap_or_default();
        let value = match value {
            "true" | "false" => value.to_owned(),
            number if !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()) => number.to_owned(),
            text => toml::Value::from(text).to_string(),
        };
        text.push_str(&format!("# {name} = {value}\n"));
    }
    text.push_str(LISTS);
    text
}

/// Lines of at most 110 characters.
fn wrapped(help: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in help.split(' ') {
        let full = lines.last().is_some_and(|line| line.chars().count() + word.chars().count() > 108);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn load(text: &str) -> Config {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.toml");
        std::fs::write(&path, text).expect("writes");
        let sources = Sources { file: Some(path), host: "box".to_owned(), pid: 7, ..Sources::default() };
        Config::load(&sources).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    /// The values, without where they came from.
    fn values(config: &Config) -> serde_json::Value {
        let mut values = config.shown().json();
        values["origins"] = serde_json::Value::Null;
        values
    }

    #[test]
    fn the_file_as_written_gives_the_defaults() {
        let config = load(&commented_file());
        assert_eq!(values(&config), values(&load("")));
        assert!(config.shown().toml().lines().all(|line| !line.contains("c.toml")), "nothing is set");
    }

    #[test]
    fn every_key_is_there_and_every_example_is_good() {
        let text = commented_file();
        let setting = |line: &str| {
            line.strip_prefix("# ").is_some_and(|rest| {
                rest.starts_with("[[") || rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
            })
        };
        // The PEM files of the examples are not there, and TLS needs them: those three stay comments.
        let pem = |line: &str| ["# ca =", "# cert =", "# key ="].iter().any(|start| line.starts_with(start));
        let live: Vec<&str> =
            text.lines().map(|line| if setting(line) && !pem(line) { &line[2..] } else { line }).collect();
        let config = load(&live.join("\n"));
        assert_eq!((config.orgs.len(), config.objects.len()), (1, 1));
        assert_eq!(config.objects[0].lookup, ["external_id__c"]);
        for key in KEYS.iter().filter(|key| key.path.contains('.')) {
            let (section, name) = key.path.split_once('.').expect("a section");
            let below = text.split(&format!("\n[{section}]\n")).nth(1).expect(section);
            let below = below.split("\n[").next().unwrap_or_default();
            assert!(below.lines().any(|line| line.starts_with(&format!("# {name} = "))), "{}", key.path);
        }
    }
}
