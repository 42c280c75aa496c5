//! `afterimage dead-letters`: what could not be decoded.

use std::io::Write;

use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::operator_args::{Choice, DeadLettersArgs, DeadLettersCommand, DropArgs, ListArgs, RetryArgs, ShowArgs};
use super::reach::{Sink, asked, confirmed};
use super::status::{aligned, moment};
use super::{print, seam};
use crate::config::Config;
use crate::demo::report::thousands;
use crate::postgres::claim::Claimant;
use crate::postgres::dead_letters::{self, Letter, Letters};
use crate::stream::retry::{self, Retried, RetryError};

/// Runs the verb.
pub(super) async fn run(config: Config, args: DeadLettersArgs) -> Result<(), Failure> {
    match args.command {
        DeadLettersCommand::List(args) => list(&config, args).await,
        DeadLettersCommand::Show(args) => show(&config, args).await,
        DeadLettersCommand::Retry(args) => retry(&config, args).await,
        DeadLettersCommand::Drop(args) => drop(&config, args).await,
    }
}

fn letters(choice: Choice, resolved: bool) -> Letters {
    let Choice { org, object, topic, partition, offset, reason } = choice;
    Letters { org, object, topic, partition, offset, reason, resolved }
}

/// What changes dead letters must be told which, or that it is all of them.
fn chosen(verb: &str, choice: Choice, all: bool) -> Result<Letters, Failure> {
    let Choice { org, object, topic, partition, offset, reason } = &choice;
    let some = [org, object, topic, reason].iter().any(|one| one.is_some()) || partition.is_some() || offset.is_some();
    if all && some {
        return Err(
            Failure::new(Exit::Usage, verb, "--all stands beside flags that choose").next("leave one of them out")
        );
    }
    if !all && !some {
        return Err(Failure::new(Exit::Usage, verb, "nothing says which dead letters are meant")
            .next("choose with --topic, --partition, --offset, --reason, --org, --object, or say --all"));
    }
    Ok(letters(choice, false))
}

fn as_json(letter: &Letter) -> Value {
    json!({
        "org": letter.org, "object": letter.object, "topic": letter.topic, "partition": letter.partition,
        "incarnation": letter.incarnation, "offset": letter.offset, "at": moment(letter.at),
        "reason": letter.reason, "detail": letter.detail, "sfid": letter.sfid,
        "key_bytes": letter.key_bytes, "value_bytes": letter.value_bytes, "cut": letter.cut,
        "resolved_at": letter.resolved.as_ref().map(|(at, _)| moment(*at)),
        "outcome": letter.resolved.as_ref().map(|(_, outcome)| outcome),
    })
}

async fn list(config: &Config, args: ListArgs) -> Result<(), Failure> {
    const VERB: &str = "dead-letters list";
    let sink = Sink::connect(config, VERB).await?;
    let which = letters(args.choice, args.resolved);
    let all = asked(VERB, dead_letters::count(&sink.client, &which)).await?;
    let found = asked(VERB, dead_letters::list(&sink.client, &which, None, args.limit.into())).await?;
    if args.json {
        let shown: Vec<Value> = found.iter().map(as_json).collect();
        return print::stdout(&format!("{:#}\n", json!({ "count": all, "dead_letters": shown })));
    }
    if found.is_empty() {
        return print::stdout("no dead letter fits\n");
    }
    let header = ["partition", "life", "offset", "at", "reason", "detail", "bytes", "state"];
    let mut topic = None;
    let lines: Vec<(Option<String>, Vec<String>)> = found
        .iter()
        .map(|letter| {
            let head =
                (topic != Some(&letter.topic)).then(|| format!("{}.{}  {}", letter.org, letter.object, letter.topic));
            topic = Some(&letter.topic);
            let at = moment(letter.at);
            let line = vec![
                letter.partition.to_string(),
                letter.incarnation.to_string(),
                letter.offset.to_string(),
                at.get(..19).map_or(at.clone(), |at| format!("{at}Z")),
                letter.reason.clone(),
                letter.detail.clone().unwrap_or_default(),
                letter.value_bytes.map_or("null".to_owned(), |bytes| thousands(bytes.into())),
                letter.resolved.as_ref().map_or("open", |(_, outcome)| outcome).to_owned(),
            ];
            (head, line)
        })
        .collect();
    let mut text = aligned(&header, &lines);
    if all > found.len() as i64 {
        text.push_str(&format!("\n{} of {}: more with --limit\n", thousands(found.len() as i64), thousands(all)));
    }
    print::stdout(&text)
}

async fn show(config: &Config, args: ShowArgs) -> Result<(), Failure> {
    const VERB: &str = "dead-letters show";
    let sink = Sink::connect(config, VERB).await?;
    let which = Letters {
        topic: Some(args.topic.clone()),
        partition: Some(args.partition),
        offset: Some(args.offset),
        resolved: true,
        ..Letters::default()
    };
    let found = asked(VERB, dead_letters::list(&sink.client, &which, None, 100)).await?;
    // The newest life of the topic.
    let Some(letter) = found.into_iter().max_by_key(|letter| letter.incarnation) else {
        let reason = format!("there is no dead letter at offset {} of {}/{}", args.offset, args.topic, args.partition);
        return Err(Failure::new(Exit::Usage, VERB, reason)
            .next(format!("afterimage dead-letters list --topic {} --resolved", args.topic)));
    };
    if args.key || args.value {
        let bytes = asked(VERB, dead_letters::bytes(&sink.client, letter.position_id, letter.offset)).await?;
        let (key, value) = bytes.unwrap_or_default();
        let bytes = if args.key { key } else { value };
        let Some(bytes) = bytes else {
            return Err(Failure::new(
                Exit::Failed,
                VERB,
                if args.key { "its key is null" } else { "its value is null" },
            ));
        };
        let mut out = std::io::stdout().lock();
        return match out.write_all(&bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                Err(Failure::new(Exit::Failed, "stdout", error))
            }
            _ => Ok(()),
        };
    }
    if args.json {
        return print::stdout(&format!("{:#}\n", as_json(&letter)));
    }
    let bytes =
        |bytes: Option<i32>| bytes.map_or("null".to_owned(), |bytes| format!("{} bytes", thousands(bytes.into())));
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<10}{value}\n"));
    line(
        "message",
        &format!("{}/{} offset {}, life {}", letter.topic, letter.partition, letter.offset, letter.incarnation),
    );
    line("of", &format!("{}.{}", letter.org, letter.object));
    line("put aside", &moment(letter.at));
    line("reason", &letter.reason);
    line("detail", letter.detail.as_deref().unwrap_or("-"));
    line("sfid", letter.sfid.as_deref().unwrap_or("-"));
    line("key", &bytes(letter.key_bytes));
    let cut = if letter.cut { ", cut: it can't be retried" } else { "" };
    line("value", &format!("{}{cut}", bytes(letter.value_bytes)));
    let state = letter.resolved.as_ref();
    line("state", &state.map_or("open".to_owned(), |(at, outcome)| format!("{outcome}, {}", moment(*at))));
    text.push_str("\n--value writes its value as it came, --key its key\n");
    print::stdout(&text)
}

async fn drop(config: &Config, args: DropArgs) -> Result<(), Failure> {
    const VERB: &str = "dead-letters drop";
    let which = chosen(VERB, args.choice, args.all)?;
    let sink = Sink::connect(config, VERB).await?;
    let open = asked(VERB, dead_letters::count(&sink.client, &which)).await?;
    let tell = |dropped: u64| {
        let told = json!({ "open": open, "dropped": dropped, "dry_run": args.dry_run });
        let text = if args.dry_run {
            format!("{} open dead letters would be dropped\n", thousands(open))
        } else {
            format!(
                "{} dead letters are dropped; the rows stay in afterimage.dead_letters\n",
                thousands(dropped as i64)
            )
        };
        print::stdout(&if args.json { format!("{told:#}\n") } else { text })
    };
    if args.dry_run || open == 0 {
        return tell(0);
    }
    confirmed(VERB, args.yes, &format!("drop {} dead letters: they will not be retried any more", thousands(open)))?;
    tell(asked(VERB, dead_letters::drop(&sink.client, &which)).await?)
}

async fn retry(config: &Config, args: RetryArgs) -> Result<(), Failure> {
    const VERB: &str = "dead-letters retry";
    let which = chosen(VERB, args.choice, args.all)?;
    let sink = Sink::connect(config, VERB).await?;
    let topics = asked(VERB, dead_letters::topics(&sink.client, &which)).await?;
    let plans = seam::plans(config, &topics)?;
    let claimant =
        Claimant { worker: format!("retry/{}", std::process::id()), config_hash: config.history_hash().to_vec() };
    let mut all = Retried::default();
    for plan in &plans {
        let retried = retry::retry(sink.settings(), &claimant, plan, &which, args.dry_run).await;
        let retried = retried.map_err(|error| {
            let exit = if matches!(error, RetryError::Registry(_)) { Exit::Halted } else { Exit::Failed };
            Failure::new(exit, format!("{VERB} {}", plan.declared.topic), error)
                .next("run it again: what was brought in before this is marked, and is not brought in twice")
        })?;
        for (to, from) in [(&mut all.outcomes, retried.outcomes), (&mut all.still, retried.still)] {
            from.into_iter().for_each(|(name, n)| *to.entry(name).or_default() += n);
        }
        all.cut += retried.cut;
    }
    if args.json {
        let told = json!({
            "dry_run": args.dry_run, "brought_in": all.outcomes, "still_undecodable": all.still, "cut": all.cut,
        });
        return print::stdout(&format!("{told:#}\n"));
    }
    let mut text = String::new();
    for (outcome, n) in &all.outcomes {
        text.push_str(&format!("{} {outcome}\n", thousands(*n as i64)));
    }
    for (reason, n) in &all.still {
        text.push_str(&format!("{} still can't be decoded: {reason}\n", thousands(*n as i64)));
    }
    if all.cut > 0 {
        text.push_str(&format!(
            "{} were cut when they were put aside, and can't be retried\n",
            thousands(all.cut as i64)
        ));
    }
    if text.is_empty() {
        text.push_str("no open dead letter fits\n");
    }
    print::stdout(&text)
}
