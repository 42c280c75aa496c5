//! `afterimage status`: where every partition stands, as a table or JSON, once or again and again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args::StatusArgs;
use super::failure::{Exit, Failure};
use super::print;
use super::seam::{RIGHTS_HINT, SINK_HINT, connect_failure, kafka_settings, schema_failure, sink_settings};
use super::terminal::{self, Screen};
use crate::config::Config;
use crate::core::event::Micros;
use crate::core::value::calendar::timestamp_text;
use crate::demo::report::{folded, thousands};
use crate::kafka::{KafkaError, KafkaSettings, Metadata, TopicPartition};
use crate::postgres::Client;
use crate::postgres::client::{ANSWER_TIME, SinkSettings, describe};
use crate::postgres::migrate;
use crate::postgres::status::{OUTCOMES, PartitionStatus, partitions};

/// Broker questions, all together.
const BROKER_TIME: Duration = Duration::from_secs(5);
/// Longest name of an owner that is shown whole.
const OWNER: usize = 24;

/// So many halts are told in words; JSON has all of them.
const HALTS: usize = 5;

/// What one look found.
struct Look {
    rows: Vec<Row>,
    /// Why the ends are not known.
    broker: Option<String>,
}

struct Row {
    at: PartitionStatus,
    /// The broker's end of the partition.
    end: Option<i64>,
}

impl Row {
    fn lag(&self) -> Option<i64> {
        self.end.map(|end| (end - self.at.next).max(0))
    }

    /// Seconds by the source's clock; `None` = not known.
    fn behind(&self) -> Option<i64> {
        match self.lag()? {
            0 => Some(0),
            _ => self.at.source_at.map(|at| (self.at.now.saturating_sub(at) / 1_000_000).max(0)),
        }
    }
}

/// Runs the verb.
pub(super) async fn run(config: Config, args: StatusArgs) -> Result<(), Failure> {
    let sink = sink_settings(config.postgres()?, &config, Some("status"));
    let kafka = match config.kafka() {
        _ if args.no_broker => Err("--no-broker".to_owned()),
        Ok(kafka) => Ok(kafka_settings(kafka, &config)),
        Err(error) => Err(error.problems.first().map_or_else(String::new, |problem| problem.reason.clone())),
    };
    let mut asker = Asker { sink, kafka, metadata: None, client: None };
    let Some(seconds) = args.watch else {
        let look = asker.look(&args).await?;
        return print::stdout(&if args.json { format!("{:#}\n", look.json()) } else { look.table(terminal::width()) });
    };
    let [mut term, mut int] = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?];
    // Whatever is being waited for: who has seen enough waits for nothing.
    tokio::select! {
        ended = watch(&mut asker, &args, seconds) => ended,
        _ = term.recv() => Ok(()),
        _ = int.recv() => Ok(()),
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Failed, "signals can't be handled", error))
}

/// Looks again and again, until nobody reads it any more.
async fn watch(asker: &mut Asker, args: &StatusArgs, seconds: u16) -> Result<(), Failure> {
    let mut resized = listen(SignalKind::window_change())?;
    let mut screen = Screen::of_stdout().filter(|_| !args.json);
    let mut look = asker.look(args).await?;
    // Later on, trouble may pass: whoever watches sees it and may stop.
    let mut trouble = None;
    loop {
        let is_read = match (&mut screen, &trouble) {
            (Some(screen), _) => look.draw(screen, seconds, trouble.as_ref())?,
            (None, Some(failure)) => {
                eprint!("{failure}");
                true
            }
            (None, None) if args.json => print::to_reader(&format!("{}\n", look.json()))?,
            (None, None) => print::to_reader(&format!("{}\n", look.table(terminal::width())))?,
        };
        if !is_read {
            return Ok(());
        }
        let next = async {
            tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            asker.look(args).await
        };
        tokio::pin!(next);
        let found = loop {
            tokio::select! {
                found = &mut next => break found,
                _ = resized.recv() => if let Some(screen) = &mut screen {
                    look.draw(screen, seconds, trouble.as_ref())?;
                },
            }
        };
        match found {
            Ok(found) => (look, trouble) = (found, None),
            Err(failure) => trouble = Some(failure),
        }
    }
}

struct Asker {
    sink: SinkSettings,
    /// How to reach the broker, or why it is not asked.
    kafka: Result<KafkaSettings, String>,
    metadata: Option<Arc<Metadata>>,
    client: Option<Client>,
}

impl Asker {
    async fn look(&mut self, args: &StatusArgs) -> Result<Look, Failure> {
        let found = tokio::time::timeout(ANSWER_TIME, self.partitions(args)).await.unwrap_or_else(|_| {
            let reason = format!("no answer from the sink at {} within {} s", self.sink.place(), ANSWER_TIME.as_secs());
            Err(Failure::new(Exit::Failed, "status", reason).next(SINK_HINT))
        });
        if found.is_err() {
            self.client = None;
        }
        let found = found?;
        let (ends, broker) = match self.ends(&found).await {
            Ok(ends) => (ends, None),
            Err(reason) => (HashMap::new(), Some(reason)),
        };
        let rows = found.into_iter().map(|at| {
            let end = ends.get(&TopicPartition::new(at.topic.as_str(), at.partition)).copied();
            Row { at, end }
        });
        Ok(Look { rows: rows.collect(), broker })
    }

    async fn partitions(&mut self, args: &StatusArgs) -> Result<Vec<PartitionStatus>, Failure> {
        let client = match &mut self.client {
            Some(client) => client,
            slot => {
                let client = self.sink.connect().await;
                let client = client.map_err(|error| connect_failure("status", &error))?;
                migrate::check(&client).await.map_err(|error| schema_failure(&error, RIGHTS_HINT))?;
                slot.insert(client)
            }
        };
        let failed = |error| Failure::new(Exit::Failed, "status", describe(&error));
        let found = partitions(client, args.org.as_deref(), args.object.as_deref()).await.map_err(failed)?;
        if found.is_empty() && (args.org.is_some() || args.object.is_some()) {
            let mut names: Vec<String> = partitions(client, None, None)
                .await
                .map_err(failed)?
                .iter()
                .map(|one| format!("{}.{}", one.org, one.object))
                .collect();
            names.dedup();
            if !names.is_empty() {
                let (org, object) = (args.org.as_deref().unwrap_or("*"), args.object.as_deref().unwrap_or("*"));
                return Err(Failure::new(Exit::Usage, "status", format!("nothing is read of {org}.{object}"))
                    .next(format!("there are {}", names.join(", "))));
            }
        }
        Ok(found)
    }

    async fn ends(&mut self, found: &[PartitionStatus]) -> Result<HashMap<TopicPartition, i64>, String> {
        let kafka = self.kafka.clone()?;
        let wanted: Vec<TopicPartition> =
            found.iter().map(|one| TopicPartition::new(one.topic.as_str(), one.partition)).collect();
        let known = self.metadata.take();
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = match known {
                Some(metadata) => metadata,
                None => Arc::new(Metadata::connect(&kafka)?),
            };
            let ends = match metadata.ends(&wanted, BROKER_TIME) {
                // A topic is gone: the others can still be asked.
                Err(KafkaError::Request { .. }) => metadata
                    .watermarks(&wanted, BROKER_TIME)
                    .map(|found| found.into_iter().map(|(of, marks)| (of, marks.high)).collect()),
                other => other,
            };
            Ok((ends, metadata))
        });
        let (ends, metadata) =
            asked.await.map_err(|error| error.to_string())?.map_err(|error: KafkaError| error.to_string())?;
        self.metadata = Some(metadata);
        ends.map(|ends| ends.into_iter().collect()).map_err(|error| error.to_string())
    }
}

impl Look {
    /// Draws it, with what has been wrong since.
    fn draw(&self, screen: &mut Screen, seconds: u16, trouble: Option<&Failure>) -> Result<bool, Failure> {
        let width = terminal::width();
        let mut text = self.table(width);
        // The last sum, the blank line above it and what follows are never left out.
        let sum = text.lines().rev().position(|line| line.trim_start().starts_with("sum"));
        let mut tail = sum.map_or(text.lines().count(), |below| below + 2);
        let mut more = String::from("\n");
        if let Some(failure) = trouble {
            more.push_str(&folded(&failure.to_string(), width, 0));
        }
        let at = self.rows.first().map(|row| moment(row.at.now)).unwrap_or_default();
        // To the second: `2026-01-31T12:00:00`.
        let at = at.get(..19).map_or(String::new(), |at| format!("as of {at}Z, "));
        more.push_str(&format!("{at}every {seconds} s until Ctrl-C\n"));
        tail += more.lines().count();
        text.push_str(&more);
        screen.draw(&text, tail)
    }

    fn sums(&self) -> (Option<i64>, Option<i64>, [i64; OUTCOMES.len()]) {
        let mut outcomes = [0; OUTCOMES.len()];
        for row in &self.rows {
            outcomes.iter_mut().zip(row.at.outcomes).for_each(|(sum, one)| *sum += one);
        }
        // A sum with a part missing is none.
        let lag = self.rows.iter().map(Row::lag).sum();
        let behind = self.rows.iter().map(Row::behind).collect::<Option<Vec<_>>>();
        (lag, behind.map(|all| all.into_iter().max().unwrap_or(0)), outcomes)
    }

    fn json(&self) -> Value {
        let outcomes = |counts: &[i64; OUTCOMES.len()]| -> Value {
            OUTCOMES
                .iter()
                .zip(counts)
                .map(|(name, count)| ((*name).to_owned(), Value::from(*count)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let rows = self.rows.iter().map(|row| {
            let at = &row.at;
            json!({
                "org": at.org, "object": at.object, "topic": at.topic, "partition": at.partition,
                "worker": at.worker, "worker_seen": at.worker_seen, "epoch": at.epoch,
                "first_offset": at.first, "next_offset": at.next, "end_offset": row.end,
                "lag_messages": row.lag(), "lag_seconds": row.behind(),
                "source_at": at.source_at.map(moment), "committed_at": at.committed_at.map(moment),
                "halted_at": at.halt.as_ref().map(|(since, _)| moment(*since)),
                "halt": at.halt.as_ref().map(|(_, reason)| reason),
                "outcomes": outcomes(&at.outcomes),
            })
        });
        let (lag, behind, sums) = self.sums();
        let at = self.rows.first().map(|row| moment(row.at.now));
        json!({
            "at": at,
            "partitions": rows.collect::<Vec<_>>(),
            "sum": { "lag_messages": lag, "lag_seconds": behind, "outcomes": outcomes(&sums) },
            "broker_error": self.broker,
        })
    }

    fn table(&self, width: usize) -> String {
        if self.rows.is_empty() {
            return "no partition has been claimed yet: start a worker with `afterimage run`\n".to_owned();
        }
        let places = ["partition", "owner", "epoch", "position", "lag", "behind"];
        let counts = ["kept", "no-op", "dup", "stale", "dead", "gap", "other"];
        let number = |value: Option<i64>| value.map_or("?".to_owned(), thousands);
        let behind = |value: Option<i64>| value.map_or("?".to_owned(), duration);
        let mut lines: Vec<(Option<String>, Vec<String>, Vec<String>)> = Vec::new();
        let mut topic = None;
        for row in &self.rows {
            let at = &row.at;
            let head = format!("{}.{}  {}", at.org, at.object, at.topic);
            let head = (topic != Some(&at.topic)).then_some(head);
            topic = Some(&at.topic);
            let place = vec![
                at.partition.to_string(),
                owner(at),
                thousands(at.epoch),
                thousands(at.next),
                number(row.lag()),
                behind(row.behind()),
            ];
            lines.push((head, place, compact(&at.outcomes)));
        }
        let (lag, most_behind, sums) = self.sums();
        let next = self.rows.iter().map(|row| row.at.next).sum();
        let place =
            vec!["sum".to_owned(), String::new(), String::new(), thousands(next), number(lag), behind(most_behind)];
        lines.push((Some(String::new()), place, compact(&sums)));

        let whole = |line: &(Option<String>, Vec<String>, Vec<String>)| {
            (line.0.clone(), line.1.iter().chain(&line.2).cloned().collect())
        };
        let header: Vec<&str> = places.iter().chain(&counts).copied().collect();
        let mut text = aligned(&header, &lines.iter().map(whole).collect::<Vec<_>>());
        if text.lines().any(|line| line.chars().count() > width) {
            // Too wide for one: where it stands, then what became of it.
            let first: Vec<_> = lines.iter().map(|(head, place, _)| (head.clone(), place.clone())).collect();
            let second: Vec<_> = lines
                .iter()
                .map(|(head, place, counts)| (head.clone(), place[..1].iter().chain(counts).cloned().collect()))
                .collect();
            let header: Vec<&str> = places[..1].iter().chain(&counts).copied().collect();
            text = format!("{}\n{}", aligned(&places, &first), aligned(&header, &second));
        }
        let halted: Vec<_> = self.rows.iter().filter_map(|row| Some((&row.at, row.at.halt.as_ref()?))).collect();
        for (at, (since, reason)) in halted.iter().take(HALTS) {
            let since = moment(*since);
            let since = since.get(..19).unwrap_or(&since);
            let text_of = format!("halted: {}/{} since {since}Z: {reason}", at.topic, at.partition);
            text.push('\n');
            text.push_str(&folded(&text_of, width, 0));
        }
        if halted.len() > HALTS {
            text.push_str(&format!("\nhalted: {} more\n", halted.len() - HALTS));
        }
        if let Some(reason) = &self.broker {
            text.push('\n');
            text.push_str(&folded(&format!("lag is not known: {reason}"), width, 0));
        } else if lag.is_none() {
            text.push_str("\n?: the broker does not have this partition\n");
        }
        text
    }
}

/// The outcomes of the table's columns.
fn compact(outcomes: &[i64; OUTCOMES.len()]) -> Vec<String> {
    let of = |name: &str| OUTCOMES.iter().position(|one| *one == name).map_or(0, |at| outcomes[at]);
    let shown = [of("delta") + of("baseline"), of("noop"), of("duplicate"), of("stale"), of("dead_letter"), of("gap")];
    let other = outcomes.iter().sum::<i64>() - shown.iter().sum::<i64>();
    shown.iter().chain([&other]).map(|count| thousands(*count)).collect()
}

fn owner(at: &PartitionStatus) -> String {
    let Some(worker) = &at.worker else { return "-".to_owned() };
    let mut name: String = worker.chars().take(OWNER).collect();
    if worker.chars().count() > OWNER {
        name.pop();
        name.push('…');
    }
    if at.worker_seen { name } else { format!("{name} (gone)") }
}

/// Columns below their names, numbers to the right; a head of its own line before a row that has one.
pub(super) fn aligned(header: &[&str], rows: &[(Option<String>, Vec<String>)]) -> String {
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows.iter().map(|(_, row)| row.get(column).map_or(0, |cell| cell.chars().count()));
            cells.chain([header[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (column, cell) in cells.enumerate() {
            let blanks = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            if column > 0 {
                line.push_str("  ");
            }
            if header[column] == "owner" {
                line.push_str(cell);
                line.push_str(&blanks);
            } else {
                line.push_str(&blanks);
                line.push_str(cell);
            }
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    };
    let mut text = line(&mut header.iter().copied());
    for (head, row) in rows {
        if let Some(head) = head {
            text.push_str(head);
            text.push('\n');
        }
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Seconds in the two largest units: `0`, `42s`, `3m 5s`, `2h 0m`, `45d 3h`.
fn duration(seconds: i64) -> String {
    match seconds {
        0 => "0".to_owned(),
        1..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// ISO 8601, UTC.
pub(super) fn moment(at: Micros) -> String {
    timestamp_text(at, false).replace(' ', "T") + "Z"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(object: &str, partition: i32, next: i64, end: Option<i64>) -> Row {
        let mut outcomes = [0; OUTCOMES.len()];
        (outcomes[0], outcomes[1], outcomes[2], outcomes[5]) =
            (next / 4, 10, next / 2, next - next / 4 - next / 2 - 10);
        let at = PartitionStatus {
            org: "emea".into(),
            object: object.into(),
            topic: format!("calm_connector_27001.emea.{object}"),
            partition,
            worker: Some("worker-1".into()),
            worker_seen: partition != 1,
            epoch: 3,
            first: 0,
            next,
            source_at: Some(1_000_000_000_000_000),
            committed_at: None,
            now: 1_000_000_000_000_000 + 3_725_000_000,
            halt: None,
            outcomes,
        };
        Row { at, end }
    }

    #[test]
    fn rows_stand_below_their_topic_with_a_sum_and_fit_100_columns() {
        let rows = vec![
            row("account", 0, 1_234_567, Some(1_234_567)),
            row("account", 1, 99_000, Some(100_234)),
            row("contact", 0, 40, Some(40)),
        ];
        let text = Look { rows, broker: None }.table(100);
        let wanted = "\
partition  owner            epoch   position    lag  behind     kept    no-op  dup  stale  dead  gap    other
emea.account  calm_connector_27001.emea.account
        0  worker-1             3  1,234,567      0       0  308,651  617,283    0      0     0    0  308,633
        1  worker-1 (gone)      3     99,000  1,234   1h 2m   24,760   49,500    0      0     0    0   24,740
emea.contact  calm_connector_27001.emea.contact
        0  worker-1             3         40      0       0       20       20    0      0     0    0        0

      sum                          1,333,607  1,234   1h 2m  333,431  666,803    0      0     0    0  333,373
";
        // One table where it fits, two where it does not.
        let rows = || {
            vec![
                row("account", 0, 1_234_567, Some(1_234_567)),
                row("account", 1, 99_000, Some(100_234)),
                row("contact", 0, 40, Some(40)),
            ]
        };
        assert_eq!(Look { rows: rows(), broker: None }.table(120), wanted);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert_eq!(text.matches("partition  ").count(), 2, "{text}");
        assert_eq!(text.matches("sum").count(), 2, "{text}");
    }

    #[test]
    fn what_is_not_known_is_a_question_mark_and_makes_no_sum() {
        let rows = vec![row("account", 0, 40, Some(50)), row("account", 1, 40, None)];
        let look = Look { rows, broker: Some("no answer from Kafka".into()) };
        let text = look.table(120);
        assert!(text.contains("lag is not known: no answer from Kafka"), "{text}");
        let sum = text.lines().find(|line| line.contains("sum")).expect("a sum");
        assert!(sum.contains("80    ?       ?"), "{text}");
        let json = look.json();
        assert_eq!(
            (&json["partitions"][0]["lag_messages"], &json["partitions"][1]["lag_messages"]),
            (&json!(10), &Value::Null)
        );
        assert_eq!((&json["sum"]["lag_messages"], &json["sum"]["outcomes"]["delta"]), (&Value::Null, &json!(20)));
        assert_eq!(json["broker_error"], "no answer from Kafka");
        assert_eq!(json["partitions"][0]["source_at"], "2001-09-09T01:46:40Z");
    }

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!([0, 999, 1_000, -1_234_567].map(thousands), ["0", "999", "1,000", "-1,234,567"]);
        assert_eq!([0, 59, 61, 7_200, 3_900_000].map(duration), ["0", "59s", "1m 1s", "2h 0m", "45d 3h"]);
    }
}
