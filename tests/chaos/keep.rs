//! What it takes to look into a failure: the sink's tables and views, the topics, the workers' logs.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use futures::TryStreamExt;
use rdkafka::config::ClientConfig;
use tokio_postgres::Client;

use super::feed::Ends;
use super::topic;

/// Tables and views of the sink that are written down.
const RELATIONS: [&str; 16] = [
    "position",
    "claim",
    "record",
    "keyframe",
    "delta",
    "invalidation",
    "late_event",
    "old_key",
    "pending",
    "gap",
    "dead_letter",
    "field",
    "changes",
    "records",
    "late_events",
    "outcomes",
];

/// Writes tables, topics and findings into the run's directory, where the logs are already.
pub async fn everything(sink: &Client, client: &ClientConfig, ends: &Ends, lines: &[String], dir: &Path) {
    let tables = dir.join("sink");
    let written = fs::create_dir_all(&tables).and_then(|()| fs::write(dir.join("findings.txt"), lines.join("\n")));
    if let Err(error) = written {
        println!("  not kept: {error}");
    }
    for name in RELATIONS {
        if let Err(error) = relation(sink, name, &tables.join(format!("{name}.csv"))).await {
            println!("  {name} is not kept: {error:#}");
        }
    }
    let dumped = tokio::task::block_in_place(|| topic::dump(client, ends, &dir.join("topics.tsv")));
    if let Err(error) = dumped {
        println!("  the topics are not kept: {error}");
    }
}

async fn relation(sink: &Client, name: &str, path: &Path) -> anyhow::Result<()> {
    let copy = sink.copy_out(&format!("COPY (SELECT * FROM afterimage.{name}) TO STDOUT (FORMAT csv, HEADER)")).await?;
    let mut copy = std::pin::pin!(copy);
    let mut out = BufWriter::new(File::create(path)?);
    while let Some(bytes) = copy.try_next().await? {
        out.write_all(&bytes)?;
    }
    Ok(out.flush()?)
}

/// Panics in the workers' logs.
pub fn panics(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).into_owned();
            let lines = log.lines().filter(|line| line.contains("panicked at"));
            found.extend(lines.map(|line| format!("{}: {line}", path.display())));
        }
    }
    found
}
