//! Verbs that help to write a configuration.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::json;

use super::args::TypesArgs;
use super::failure::{Exit, Failure};
use super::{print, seam};
use crate::config::{Config, Sources, check_org_name, commented_file, nearest};
use crate::core::decode::TIMESTAMPS;
use crate::core::value::Kind;
use crate::postgres::client::ANSWER_TIME;
use crate::postgres::source::{self, SourceError, SourceTable};

/// `config init`.
pub(super) fn init(output: &Path, force: bool) -> Result<(), Failure> {
    let text = commented_file();
    if output == Path::new("-") {
        return print::stdout(&text);
    }
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let place = output.display();
    if output.is_dir() {
        let next = format!("name a file in it: --output {}", output.join("afterimage.toml").display());
        return Err(Failure::new(Exit::Usage, place.to_string(), "it is a directory").next(next));
    }
    let mut file = options.open(output).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => Failure::new(Exit::Usage, place.to_string(), "the file is there already")
            .next("name another with --output, or write over it with --force"),
        _ => Failure::new(Exit::Failed, place.to_string(), error)
            .next("check the directory and its rights, or use --output -"),
    })?;
    file.write_all(text.as_bytes()).map_err(|error| Failure::new(Exit::Failed, output.display().to_string(), error))?;
    print::stdout(&format!("wrote {}\n", output.display()))
}

/// `config types`.
pub(super) async fn types(args: &TypesArgs) -> Result<(), Failure> {
    // As a sink's URL is read, TLS included, but from nothing else than the flag.
    let mut sources = Sources { host: "config".to_owned(), ..Sources::default() };
    sources.flag("--from", "postgres.url", args.from.as_str());
    let config = Config::load(&sources)?;
    seam::check_url(&config)?;
    let org = args.org.as_deref().unwrap_or(&args.schema);
    check_org_name(org).map_err(|reason| {
        let place = if args.org.is_some() { "--org" } else { "--schema" };
        Failure::new(Exit::Usage, place, reason).next("name the org, as [[org]] has it, with --org")
    })?;
    let settings = seam::sink_settings(config.postgres()?, &config, Some("config types"));
    let client = settings.connect().await.map_err(|error| {
        let next = seam::connect_hint(&error)
            .unwrap_or("check the address, and that the server is up; without a CA at hand add ?sslmode=require");
        Failure::new(Exit::Failed, "config types", error).next(next)
    })?;
    let asked = tokio::time::timeout(ANSWER_TIME, source::tables(&client, &args.schema, args.table.as_deref())).await;
    let tables = asked
        .map_err(|_| {
            let reason =
                format!("no answer from the database at {} within {} s", settings.place(), ANSWER_TIME.as_secs());
            Failure::new(Exit::Failed, "config types", reason).next("check that the server is up and not overloaded")
        })?
        .map_err(source_failure)?;
    let mut found: Vec<(&str, Vec<(&str, &str)>)> =
        tables.iter().map(|table| (table.name.as_str(), declared(table))).collect();
    for (table, types) in &mut found {
        types.retain(|(column, _)| {
            let nameable = !column.chars().any(char::is_control);
            if !nameable {
                eprintln!("afterimage: {column:?} of {table} is left out: its name holds a control character");
            }
            nameable
        });
    }
    found.retain(|(_, types)| !types.is_empty());
    if args.json {
        let objects: Vec<_> = found
            .iter()
            .map(|(name, types)| {
                let types: serde_json::Map<_, _> =
                    types.iter().map(|(column, kind)| ((*column).to_owned(), json!(kind))).collect();
                json!({ "org": org, "name": name, "types": types })
            })
            .collect();
        return print::stdout(&format!("{:#}\n", json!({ "object": objects })));
    }
    if found.is_empty() {
        eprintln!("afterimage: nothing to declare: JSON tells the types of all columns");
    }
    let mut text = String::new();
    for (name, types) in &found {
        let quoted = |name: &str| toml::Value::from(name).to_string();
        let key = |name: &str| match name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
            true if !name.is_empty() => name.to_owned(),
            _ => quoted(name),
        };
        let types: Vec<String> = types.iter().map(|(column, kind)| format!("{} = \"{kind}\"", key(column))).collect();
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!(
            "{gap}[[object]]\norg = {}\nname = {}\ntypes = {{ {} }}\n",
            quoted(org),
            quoted(name),
            types.join(", ")
        ));
    }
    print::stdout(&text)
}

/// Columns that are part of history and whose types JSON does not tell. Heroku Connect's own columns are built in.
fn declared(table: &SourceTable) -> Vec<(&str, &'static str)> {
    let by_sfid = table.columns.iter().any(|(name, _)| name == "sfid");
    table
        .columns
        .iter()
        .filter(|(name, _)| {
            !(name.starts_with("_hc_") || TIMESTAMPS.contains(&name.as_str()) || (by_sfid && name == "id"))
        })
        .filter_map(|(name, kind)| Some((name.as_str(), brief(Kind::from_sql_name(kind)?)?)))
        .collect()
}

/// The briefest name of a type, if JSON does not tell it.
fn brief(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Text | Kind::Bool | Kind::Json => return None,
        Kind::Int2 => "int2",
        Kind::Int4 => "int4",
        Kind::Int8 => "int8",
        Kind::Float4 => "float4",
        Kind::Float8 => "float8",
        Kind::Timestamp => "timestamp",
        Kind::TimestampTz => "timestamptz",
        Kind::Time => "time",
        Kind::TimeTz => "timetz",
        Kind::Numeric | Kind::Date | Kind::Interval | Kind::Bytea | Kind::Uuid => kind.sql(),
    })
}

fn source_failure(error: SourceError) -> Failure {
    let choice = |asked: &str, there: &[String], none: &str| match nearest(asked, there.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None if there.is_empty() => none.to_owned(),
        None => format!("there are: {}", there.join(", ")),
    };
    match &error {
        SourceError::NoSchema { schema, there } => Failure::new(Exit::Usage, "--schema", &error).next(choice(
            schema,
            there,
            "the database has no tables: check --from",
        )),
        SourceError::NoTable { table: Some(table), there, .. } => {
            Failure::new(Exit::Usage, "--table", &error).next(choice(table, there, "name another --schema"))
        }
        SourceError::NoTable { there, .. } => {
            Failure::new(Exit::Usage, "--schema", &error).next(choice("", there, "name another --schema"))
        }
        SourceError::Query(_) => Failure::new(Exit::Failed, "config types", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_but_those_that_json_tells_has_a_brief_name_that_is_read_back() {
        for kind in Kind::ALL {
            match brief(kind) {
                Some(name) => assert_eq!(Kind::from_sql_name(name), Some(kind)),
                None => assert!(matches!(kind, Kind::Text | Kind::Bool | Kind::Json)),
            }
        }
    }
}
