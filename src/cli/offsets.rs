//! `afterimage offsets`: where partitions stand, and what a person may do about one that is halted.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::operator_args::{AdoptArgs, OffsetsArgs, OffsetsCommand, OffsetsShowArgs, ResetArgs, ResumeArgs, SkipArgs};
use super::reach::{Log, Sink, answered, asked, confirmed, logs};
use super::status::{aligned, moment};
use super::{print, terminal};
use crate::config::Config;
use crate::core::intervention::{self, Refusal, may_change, skipped};
use crate::core::lineage::{self, Lineage, lineage};
use crate::demo::report::{folded, thousands};
use crate::kafka::TopicPartition;
use crate::postgres::client::ANSWER_TIME;
use crate::postgres::operator::{self, Adoption, Life, Standing, Which, standings};

/// Runs the verb.
pub(super) async fn run(config: Config, args: OffsetsArgs) -> Result<(), Failure> {
    match args.command {
        OffsetsCommand::Show(args) => show(&config, args).await,
        OffsetsCommand::Adopt(args) => adopt(&config, args).await,
        OffsetsCommand::Skip(args) => skip(&config, args).await,
        OffsetsCommand::Resume(args) => resume(&config, args).await,
        OffsetsCommand::Reset(args) => reset(&config, args).await,
    }
}

fn of(at: &Standing) -> TopicPartition {
    TopicPartition::new(at.topic.as_str(), at.partition)
}

/// The positions of a topic, with the logs that they are about.
struct Looked {
    sink: Sink,
    cluster: String,
    rows: Vec<(Standing, Option<Log>)>,
}

impl Looked {
    /// The present positions of one topic, of one partition if it is named.
    async fn at(config: &Config, verb: &'static str, topic: &str, partition: Option<i32>) -> Result<Looked, Failure> {
        let sink = Sink::connect(config, verb).await?;
        let which = Which { topic: Some(topic.to_owned()), ..Which::default() };
        let found = asked(verb, standings(&sink.client, &which)).await?;
        if found.is_empty() {
            let all = asked(verb, standings(&sink.client, &Which::default())).await?;
            return Err(Failure::new(Exit::Usage, verb, format!("the sink holds no position of a topic {topic}"))
                .next(there("topics", all.into_iter().map(|one| one.topic))));
        }
        let partitions: Vec<String> = found.iter().map(|one| one.partition.to_string()).collect();
        let found: Vec<Standing> =
            found.into_iter().filter(|one| partition.is_none_or(|wanted| wanted == one.partition)).collect();
        if found.is_empty() {
            let reason =
                format!("the sink holds no position of partition {} of {topic}", partition.unwrap_or_default());
            return Err(Failure::new(Exit::Usage, verb, reason).next(there("partitions", partitions.into_iter())));
        }
        let wanted = found.iter().map(|one| (of(one), one.last.map(|last| last.offset))).collect();
        let (cluster, mut logs) = logs(config, verb, wanted).await?;
        let rows = found.into_iter().map(|one| {
            let log = logs.remove(&of(&one));
            (one, log)
        });
        Ok(Looked { rows: rows.collect(), sink, cluster })
    }

    /// The only one, which the cluster must have.
    fn one(&self, verb: &str) -> Result<(&Standing, Log), Failure> {
        let (at, log) = &self.rows[0];
        let log = log.ok_or_else(|| {
            Failure::new(Exit::Failed, verb, format!("the cluster has no partition {} of {}", at.partition, at.topic))
                .next("make the topic again, or `afterimage offsets adopt` once it is there")
        })?;
        Ok((at, log))
    }
}

fn there(what: &str, names: impl Iterator<Item = String>) -> String {
    let names: BTreeSet<String> = names.collect();
    if names.is_empty() {
        return "nothing was read yet: start a worker with `afterimage run`".to_owned();
    }
    format!("there are {what} {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

fn refused(verb: &str, at: &Standing, refusal: &Refusal) -> Failure {
    let exit = if matches!(refusal, Refusal::Held(_)) { Exit::Halted } else { Exit::Usage };
    Failure::new(exit, format!("{verb} {}/{}", at.topic, at.partition), refusal)
        .next(refusal.next(&at.topic, at.partition))
}

/// What is to be thought of a log. Where the cluster does not have the partition, it is as if its log were empty.
fn judged(at: &Standing, log: Option<Log>) -> Lineage {
    let log = log.unwrap_or(Log { earliest: 0, end: 0, found: None });
    lineage(at.next, log.end, at.last, log.found)
}

fn say(json_wanted: bool, json: &Value, text: &str) -> Result<(), Failure> {
    print::stdout(&if json_wanted { format!("{json:#}\n") } else { folded(text, terminal::width(), 0) })
}

// ---- show -----------------------------------------------------------------------------------------------

async fn show(config: &Config, args: OffsetsShowArgs) -> Result<(), Failure> {
    const VERB: &str = "offsets show";
    let sink = Sink::connect(config, VERB).await?;
    let which =
        Which { org: args.org, object: args.object, topic: args.topic, partition: args.partition, former: args.former };
    let rows = asked(VERB, standings(&sink.client, &which)).await?;
    let (known, trouble) = if args.no_broker || rows.is_empty() {
        (None, None)
    } else {
        let live = rows.iter().filter(|one| one.live);
        match logs(config, VERB, live.map(|one| (of(one), one.last.map(|last| last.offset))).collect()).await {
            Ok((cluster, logs)) => (Some((cluster, logs)), None),
            Err(failure) => (None, failure.messages.first().map(|(_, reason, _)| reason.clone())),
        }
    };
    let log = |at: &Standing| known.as_ref().filter(|_| at.live).and_then(|(_, logs)| logs.get(&of(at)).copied());
    let word = |at: &Standing| (known.is_some() && at.live).then(|| judged(at, log(at)).word());
    if args.json {
        let rows = rows.iter().map(|at| {
            json!({
                "org": at.org, "object": at.object, "topic": at.topic, "partition": at.partition,
                "incarnation": at.incarnation, "live": at.live, "first_offset": at.first, "next_offset": at.next,
                "earliest_offset": log(at).map(|log| log.earliest), "end_offset": log(at).map(|log| log.end),
                "last_offset": at.last.map(|last| last.offset), "log": word(at),
                "worker": at.holder.worker, "worker_seen": at.holder.seen, "epoch": at.epoch,
                "cluster": at.cluster, "group": at.group,
                "halted_at": at.halt.as_ref().map(|(since, _)| moment(*since)),
                "halt": at.halt.as_ref().map(|(_, reason)| reason), "halt_stays": at.halt_stays,
            })
        });
        let cluster = known.as_ref().map(|(cluster, _)| cluster);
        let all = json!({ "cluster": cluster, "partitions": rows.collect::<Vec<_>>(), "broker_error": trouble });
        return print::stdout(&format!("{all:#}\n"));
    }
    if rows.is_empty() {
        return print::stdout("no position fits: `afterimage offsets show` without flags shows all that are read\n");
    }
    let header = ["partition", "life", "first", "next", "last read", "earliest", "end", "log", "state"];
    let mut lines = Vec::with_capacity(rows.len());
    let mut topic = None;
    for at in &rows {
        let head = (topic != Some(&at.topic)).then(|| {
            format!("{}.{}  {}  held by group {} on cluster {}", at.org, at.object, at.topic, at.group, at.cluster)
        });
        topic = Some(&at.topic);
        let number = |number: Option<i64>| number.map_or("-".to_owned(), thousands);
        let state = match (&at.halt, &at.holder.worker) {
            _ if !at.live => "former".to_owned(),
            (Some(_), _) => "halted".to_owned(),
            (None, Some(worker)) if at.holder.seen => worker.clone(),
            (None, _) => "free".to_owned(),
        };
        let line = vec![
            at.partition.to_string(),
            at.incarnation.to_string(),
            thousands(at.first),
            thousands(at.next),
            number(at.last.map(|last| last.offset)),
            number(log(at).map(|log| log.earliest)),
            number(log(at).map(|log| log.end)),
            word(at).unwrap_or("-").to_owned(),
            state,
        ];
        lines.push((head, line));
    }
    let mut text = aligned(&header, &lines);
    for at in rows.iter().filter(|at| at.halt.is_some()) {
        let (since, reason) = at.halt.as_ref().map_or((0, ""), |(since, reason)| (*since, reason));
        let told = format!("\nhalted: {}/{} since {}: {reason}", at.topic, at.partition, moment(since));
        text.push_str(&folded(&told, terminal::width(), 0));
    }
    if let Some(trouble) = trouble {
        text.push_str(&folded(&format!("\nthe logs are not known: {trouble}"), terminal::width(), 0));
    }
    print::stdout(&text)
}

// ---- adopt ----------------------------------------------------------------------------------------------

async fn adopt(config: &Config, args: AdoptArgs) -> Result<(), Failure> {
    const VERB: &str = "offsets adopt";
    let group = config.kafka()?.group.clone();
    let mut looked = Looked::at(config, VERB, &args.topic, args.partition).await?;
    let rows = std::mem::take(&mut looked.rows);
    let found: Vec<lineage::Partition> =
        rows.iter().map(|(at, log)| (at.partition, judged(at, *log), at.next > at.first)).collect();
    // A part of a topic does not tell whether all of it was made anew.
    let meant: BTreeSet<i32> = match args.partition {
        Some(_) => found.iter().filter(|(_, lineage, _)| lineage.halts()).map(|(partition, ..)| *partition).collect(),
        None => lineage::to_adopt(&found),
    };
    let anew = args.partition.is_none() && lineage::made_anew(&found);
    let (before_cluster, before_group) = rows.first().map_or(("", ""), |(at, _)| (&at.cluster, &at.group));
    let other_holder = (before_cluster, before_group) != (looked.cluster.as_str(), group.as_str());
    if other_holder && args.partition.is_some() {
        return Err(Failure::new(Exit::Usage, VERB, "the topic passes to another group or cluster as a whole")
            .next(format!("afterimage offsets adopt {}", args.topic)));
    }
    let passed: Vec<_> = rows.iter().filter(|(at, _)| at.next > at.first).map(|(at, _)| at.passed).collect();
    let shared = lineage::inherited(&passed);
    let lives: Vec<Life<'_>> = rows
        .iter()
        .filter(|(at, _)| meant.contains(&at.partition))
        .map(|(at, log)| Life {
            old: at,
            start: log.map(|log| log.earliest),
            // Where keys may be dealt to partitions in another way now, one partition's word is not enough.
            passed: if anew { shared } else { at.passed },
        })
        .collect();
    let seen: Vec<&Standing> =
        rows.iter().map(|(at, _)| at).filter(|at| other_holder || meant.contains(&at.partition)).collect();
    for at in &seen {
        may_change(&at.holder).map_err(|refusal| refused(VERB, at, &refusal))?;
    }
    let holder = other_holder.then_some((looked.cluster.as_str(), group.as_str()));
    let told = json!({
        "topic": args.topic, "dry_run": args.dry_run,
        "holder": holder.map(|(cluster, group)| json!({
            "cluster": cluster, "group": group, "before": { "cluster": before_cluster, "group": before_group },
        })),
        "partitions": lives.iter().map(|life| json!({
            "partition": life.old.partition, "incarnation": life.start.map(|_| life.old.incarnation + 1),
            "before": life.old.next, "first_offset": life.start,
        })).collect::<Vec<_>>(),
    });
    if holder.is_none() && lives.is_empty() {
        let text = format!(
            "{}: nothing to adopt: no log is another than the one that was read, and the group holds it\n",
            args.topic
        );
        return say(args.json, &told, &text);
    }
    let will = if args.dry_run { "would" } else { "will" };
    let mut text = String::new();
    if let Some((cluster, group)) = holder {
        text.push_str(&format!(
            "{}: {will} be held by group {group} on cluster {cluster}, not by group {before_group} on cluster {before_cluster}\n",
            args.topic
        ));
    }
    for life in &lives {
        text.push_str(&match life.start {
            Some(start) => format!(
                "partition {}: {will} be read from offset {start} as another life of the topic; the old one ends at {}\n",
                life.old.partition, life.old.next
            ),
            None => format!("partition {}: is not there any more; its life {will} end at {}\n", life.old.partition, life.old.next),
        });
    }
    if !args.dry_run {
        let adoption = Adoption { source_id: rows[0].0.source_id, holder, lives, seen };
        answered(VERB, ANSWER_TIME, operator::adopt(&mut looked.sink.client, &adoption)).await?;
        text.push_str("done: workers that are running take it up by themselves\n");
    }
    say(args.json, &told, &text)
}

// ---- skip -----------------------------------------------------------------------------------------------

async fn skip(config: &Config, args: SkipArgs) -> Result<(), Failure> {
    const VERB: &str = "offsets skip";
    let mut looked = Looked::at(config, VERB, &args.topic, Some(args.partition)).await?;
    let (at, log) = looked.one(VERB)?;
    let at = at.clone();
    may_change(&at.holder).map_err(|refusal| refused(VERB, &at, &refusal))?;
    let left_out = skipped(at.next, args.to, log.end).map_err(|refusal| refused(VERB, &at, &refusal))?;
    let another_log = judged(&at, Some(log)).halts();
    let told = json!({
        "topic": at.topic, "partition": at.partition, "from_offset": at.next, "to_offset": args.to,
        "skipped": left_out, "another_log": another_log, "dry_run": args.dry_run,
    });
    let range = match left_out {
        0 => format!("read {}/{} on at {} as it is", at.topic, at.partition, at.next),
        n => format!(
            "leave {} offsets of {}/{} out, from {} until before {}: what they changed will be missing from the history",
            thousands(n),
            at.topic,
            at.partition,
            at.next,
            args.to
        ),
    };
    if args.dry_run {
        return say(args.json, &told, &format!("it would {range}\n"));
    }
    confirmed(VERB, args.yes || left_out == 0, &range)?;
    let reason = args.reason.as_deref().map_or("skipped by hand".to_owned(), |why| format!("skipped by hand: {why}"));
    answered(VERB, ANSWER_TIME, operator::skip(&mut looked.sink.client, &at, args.to, another_log, &reason)).await?;
    let rest = if left_out > 0 { "; the range stands in afterimage.gaps" } else { "" };
    let text = format!("{}/{}: the next offset to read is {}{rest}\n", at.topic, at.partition, args.to);
    say(args.json, &told, &text)
}

// ---- resume ---------------------------------------------------------------------------------------------

async fn resume(config: &Config, args: ResumeArgs) -> Result<(), Failure> {
    const VERB: &str = "offsets resume";
    let mut sink = Sink::connect(config, VERB).await?;
    let which = Which { topic: Some(args.topic.clone()), partition: args.partition, ..Which::default() };
    let rows = asked(VERB, standings(&sink.client, &which)).await?;
    let halted: Vec<&Standing> = rows.iter().filter(|at| at.halt_stays).collect();
    let told = json!({
        "topic": args.topic,
        "resumed": halted.iter().map(|at| at.partition).collect::<Vec<_>>(),
    });
    let text = if halted.is_empty() {
        let looks = rows.iter().any(|at| at.halt.is_some());
        let why = if looks { ": what it is halted for has to be settled, see `afterimage offsets show`" } else { "" };
        format!("{}: nothing to resume{why}\n", args.topic)
    } else {
        answered(VERB, ANSWER_TIME, operator::resume(&mut sink.client, &halted)).await?;
        let partitions: Vec<String> = halted.iter().map(|at| at.partition.to_string()).collect();
        format!("{}: partitions {} are read again\n", args.topic, partitions.join(", "))
    };
    say(args.json, &told, &text)
}

// ---- reset ----------------------------------------------------------------------------------------------

async fn reset(config: &Config, args: ResetArgs) -> Result<(), Failure> {
    const VERB: &str = "offsets reset";
    let to = match args.to.as_str() {
        "earliest" => None,
        typed => Some(typed.parse::<i64>().ok().filter(|to| *to >= 0).ok_or_else(|| {
            Failure::new(Exit::Usage, VERB, format!("`{typed}` is no offset")).next("name an offset, or earliest")
        })?),
    };
    let looked = Looked::at(config, VERB, &args.topic, Some(args.partition)).await?;
    let (at, log) = looked.one(VERB)?;
    let found = intervention::reset(at.next, to, log.earliest, log.end).map_err(|refusal| match refusal {
        Refusal::BeyondEnd { end } => {
            Failure::new(Exit::Usage, VERB, format!("the position is {end}: that is not back")).next(format!(
                "afterimage offsets skip {} --partition {} --to OFFSET goes forwards",
                at.topic, at.partition
            ))
        }
        other => refused(VERB, at, &other),
    })?;
    let told = json!({
        "topic": at.topic, "partition": at.partition, "next_offset": at.next, "from_offset": found.from,
        "read_again": found.again, "possible": false,
    });
    let means = format!(
        "{}/{}: from {} on, {} offsets would be read again. Each of them has its outcome already: what is delivered again is \
         recognised by time and LSN and changes nothing, and the counts of a position that went back would not add up any \
         more.",
        at.topic,
        at.partition,
        found.from,
        thousands(found.again)
    );
    if args.dry_run {
        return say(args.json, &told, &format!("{means} So there is no such reset: this is all it would come to.\n"));
    }
    Err(Failure::new(Exit::Halted, VERB, format!("{means} Nothing was changed")).next(format!(
        "to read what could not be decoded again: afterimage dead-letters retry; if the topic was made anew: afterimage \
         offsets adopt {}",
        at.topic
    )))
}
