//! `afterimage state`: the image store of a worker that is not running.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;

use afterimage_state::{Contents, Mark, PositionId, StateError, StateOptions, Store, wipe};
use serde_json::{Value, json};
use uuid::Uuid;

use super::failure::{Exit, Failure};
use super::operator_args::{ClearArgs, InspectArgs, StateArgs, StateCommand, VerifyArgs};
use super::print;
use super::reach::{Sink, asked};
use super::status::aligned;
use crate::config::Config;
use crate::demo::report::thousands;
use crate::postgres::{operator, registry};
use crate::stream::checkup::{Checkup, Level, level};

/// Images that are compared in one question to the sink.
const CHUNK: usize = 500;
/// So many differences are told.
const TOLD: usize = 20;

/// Stored images by identity.
type Images = Vec<(Box<str>, Vec<u8>)>;

/// Runs the verb.
pub(super) async fn run(config: Config, args: StateArgs) -> Result<(), Failure> {
    match args.command {
        StateCommand::Inspect(args) => inspect(&config, args),
        StateCommand::Verify(args) => verify(&config, args).await,
        StateCommand::Clear(args) => clear(&config, args),
    }
}

fn failed(verb: &str, error: &StateError) -> Failure {
    let failure = Failure::new(Exit::Failed, verb, error);
    match error {
        StateError::Locked(_) => {
            failure.next("stop the worker that uses it, or name another directory with --state-dir")
        }
        StateError::Corrupted { .. } | StateError::Format { .. } => {
            failure.next("`afterimage state clear` throws it away: all of it can be had from the sink")
        }
        error if error.is_full() => {
            failure.next("make room under the directory, or throw the store away: `afterimage state clear`")
        }
        _ => failure.next("name a directory that can be read with --state-dir"),
    }
}

/// The store in the configured directory; none if there is no store there. Nothing is made by looking.
fn open(config: &Config, verb: &str) -> Result<Option<Store>, Failure> {
    let dir = &config.state.dir;
    if !is_there(dir) {
        return Ok(None);
    }
    let options =
        StateOptions { memory: usize::try_from(config.state.memory).unwrap_or(usize::MAX), ..StateOptions::default() };
    Store::open(dir, &options).map(Some).map_err(|error| failed(verb, &error))
}

fn is_there(dir: &Path) -> bool {
    dir.join("images").is_dir()
}

fn nothing(config: &Config, json_wanted: bool) -> Result<(), Failure> {
    let dir = config.state.dir.display();
    print::stdout(&if json_wanted {
        format!("{:#}\n", json!({ "directory": dir.to_string(), "positions": [] }))
    } else {
        format!("there is no image store in {dir}\n")
    })
}

fn marks(store: &Store, verb: &str) -> Result<Vec<(Mark, Contents)>, Failure> {
    let look = || -> Result<Vec<(Mark, Contents)>, StateError> {
        let marks = store.marks()?.into_iter();
        marks.map(|mark| Ok((mark, store.contents(PositionId(mark.position_id))?))).collect()
    };
    look().map_err(|error| failed(verb, &error))
}

fn as_json(mark: &Mark, contents: &Contents) -> Value {
    json!({
        "position_id": mark.position_id, "sink_id": Uuid::from_bytes(mark.sink_id).to_string(), "epoch": mark.epoch,
        "next_offset": mark.next, "inval_seq": mark.inval_seq, "whole": mark.missing_after.is_none(),
        "images": contents.images, "row_keys": contents.row_keys, "bytes": contents.bytes,
    })
}

fn number(number: u64) -> String {
    thousands(i64::try_from(number).unwrap_or(i64::MAX))
}

fn inspect(config: &Config, args: InspectArgs) -> Result<(), Failure> {
    const VERB: &str = "state inspect";
    let Some(store) = open(config, VERB)? else { return nothing(config, args.json) };
    let found = marks(&store, VERB)?;
    let stats = store.stats();
    if args.json {
        let all = json!({
            "directory": config.state.dir.display().to_string(), "instance_id": store.instance_id(),
            "disk_bytes": stats.disk_bytes,
            "positions": found.iter().map(|(mark, contents)| as_json(mark, contents)).collect::<Vec<_>>(),
        });
        return print::stdout(&format!("{all:#}\n"));
    }
    let mut text = format!(
        "{}: instance {}, {} bytes in table files\n",
        config.state.dir.display(),
        store.instance_id(),
        number(stats.disk_bytes)
    );
    let mut lines: BTreeMap<[u8; 16], Vec<Vec<String>>> = BTreeMap::new();
    for (mark, contents) in &found {
        lines.entry(mark.sink_id).or_default().push(vec![
            mark.position_id.to_string(),
            mark.epoch.to_string(),
            thousands(mark.next),
            number(contents.images),
            number(contents.row_keys),
            number(contents.bytes),
            if mark.missing_after.is_none() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    for (sink, lines) in lines {
        text.push_str(&format!("\nof sink {}\n", Uuid::from_bytes(sink)));
        let lines: Vec<_> = lines.into_iter().map(|line| (None, line)).collect();
        text.push_str(&aligned(&["position", "epoch", "next", "images", "row keys", "bytes", "whole"], &lines));
    }
    print::stdout(&text)
}

async fn verify(config: &Config, args: VerifyArgs) -> Result<(), Failure> {
    const VERB: &str = "state verify";
    config.postgres()?;
    let Some(store) = open(config, VERB)? else { return nothing(config, args.json) };
    let mut sink = Sink::connect(config, VERB).await?;
    let found = marks(&store, VERB)?;
    let sink_id = asked(VERB, registry::sink_id(&sink.client)).await?;
    let wanted: Vec<(i32, i64)> = found.iter().map(|(mark, _)| (mark.position_id, mark.epoch)).collect();
    let known = asked(VERB, operator::known(&sink.client, &wanted)).await?;
    let mut checkup = Checkup::default();
    let (mut positions, mut told, mut compared, mut wrong) = (Vec::new(), Vec::new(), 0, 0);
    let progress = std::io::stderr().is_terminal();
    for (mark, contents) in &found {
        let level = level(mark, sink_id, known.get(&mark.position_id));
        let mut here = (0, 0);
        if level == Level::Level {
            let all = contents.images;
            let every = if args.all { 1 } else { (all / u64::from(args.sample.max(1))).max(1) };
            let (mut after, mut nth) = (None, 0);
            loop {
                let images = store.images(PositionId(mark.position_id), after.as_ref(), CHUNK);
                let images = images.map_err(|error| failed(VERB, &error))?;
                let Some((last, _)) = images.last() else { break };
                after = Some(last.clone());
                let mut chosen: BTreeMap<i16, Images> = BTreeMap::new();
                for (key, bytes) in images {
                    if nth % every == 0 {
                        let identity = String::from_utf8_lossy(key.last()).into();
                        chosen.entry(key.object_id()).or_default().push((identity, bytes));
                    }
                    nth += 1;
                }
                for (object_id, stored) in chosen {
                    let differ = checkup.compare(&mut sink.client, mark.position_id, object_id, &stored).await;
                    let differ = differ.map_err(|error| Failure::new(Exit::Failed, VERB, error))?;
                    here.0 += stored.len();
                    here.1 += differ.len();
                    told.extend(differ.into_iter().map(|one| (mark.position_id, one)));
                    told.truncate(TOLD);
                }
                if progress {
                    eprint!("\rposition {}: {} of {} looked at\x1b[K", mark.position_id, number(nth), number(all));
                }
            }
        }
        compared += here.0;
        wrong += here.1;
        positions.push((mark, contents, level, here));
    }
    if progress {
        eprint!("\r\x1b[K");
    }
    let text = if args.json {
        let positions = positions.iter().map(|(mark, contents, level, (compared, wrong))| {
            let mut one = as_json(mark, contents);
            one["state"] = level.word().into();
            one["compared"] = (*compared).into();
            one["different"] = (*wrong).into();
            one
        });
        let told = told
            .iter()
            .map(|(position, one)| json!({ "position_id": position, "record": one.identity, "what": one.what }));
        let all = json!({
            "directory": config.state.dir.display().to_string(), "compared": compared, "different": wrong,
            "positions": positions.collect::<Vec<_>>(), "differences": told.collect::<Vec<_>>(),
        });
        format!("{all:#}\n")
    } else {
        let lines: Vec<(Option<String>, Vec<String>)> = positions
            .iter()
            .map(|(mark, contents, level, (compared, wrong))| {
                let line = vec![
                    mark.position_id.to_string(),
                    thousands(mark.next),
                    level.word().to_owned(),
                    number(contents.images),
                    thousands(*compared as i64),
                    thousands(*wrong as i64),
                ];
                (None, line)
            })
            .collect();
        let mut text = aligned(&["position", "next", "state", "images", "compared", "different"], &lines);
        for (position, one) in &told {
            text.push_str(&format!("position {position}, record {}: {} differs\n", one.identity, one.what));
        }
        text
    };
    print::stdout(&text)?;
    if wrong > 0 {
        let reason =
            format!("{} of {} images are not what the sink says", thousands(wrong as i64), thousands(compared as i64));
        return Err(Failure::new(Exit::Failed, VERB, reason)
            .next("`afterimage state clear` throws the store away; and tell the authors: this must not happen"));
    }
    Ok(())
}

fn clear(config: &Config, args: ClearArgs) -> Result<(), Failure> {
    const VERB: &str = "state clear";
    let dir = &config.state.dir;
    // A damaged store has to go all the more, and one that can't be opened since it fills the disk; one in use stays.
    let held = match open(config, VERB) {
        Ok(None) => return nothing(config, args.json),
        Ok(Some(store)) => {
            let stats = store.stats();
            Some((stats.positions, stats.disk_bytes))
        }
        Err(failure) => match wipeable(dir) {
            true => None,
            false => return Err(failure),
        },
    };
    if !args.dry_run {
        wipe(dir).map_err(|error| failed(VERB, &error))?;
    }
    let told = json!({
        "directory": dir.display().to_string(), "dry_run": args.dry_run,
        "positions": held.map(|(positions, _)| positions), "disk_bytes": held.map(|(_, bytes)| bytes),
    });
    let what = held.map_or("what is left of it".to_owned(), |(positions, bytes)| {
        format!("images of {positions} positions, {} bytes in table files", number(bytes))
    });
    let done = if args.dry_run { "would go" } else { "are gone" };
    print::stdout(&if args.json { format!("{told:#}\n") } else { format!("{}: {what} {done}\n", dir.display()) })
}

/// Whether a store that can't be opened is damaged, or its disk full, and it is not in use or out of reach.
fn wipeable(dir: &Path) -> bool {
    use StateError::{Corrupted, Format, Full};
    matches!(Store::open(dir, &StateOptions::default()), Err(Corrupted { .. } | Format { .. } | Full { .. }))
}
