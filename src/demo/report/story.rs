//! The report as people read it.

use std::fmt::{self, Display, Formatter};

use super::table::{Table, folded, size, thousands};
use super::{ARTICLE_BYTES_PER_VERSION, AccountVersion, DemoReport};
use crate::demo::options::{BrokerChoice, CaptureChoice};
use crate::demo::simulator::article;

/// Columns where the format asks for no other width.
const WIDTH: usize = 100;

/// Columns that the report is laid out for: the width of the format, as in `{report:80}`.
fn columns(out: &Formatter<'_>) -> usize {
    out.width().unwrap_or(WIDTH)
}

impl Display for DemoReport {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        self.write_account(out)?;
        self.write_totals(out)?;
        self.write_bytes(out)?;
        self.write_checks(out)?;
        self.write_next(out)
    }
}

impl DemoReport {
    fn write_account(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let account = &self.account;
        let org = self.orgs.first().map_or("", String::as_str);
        writeln!(out, "\n{} ({}.account, {})", article::NAME, org, article::SFID)?;
        let deltas = account.versions.len().saturating_sub(1);
        writeln!(
            out,
            "{} events came in; kept: {} version and {deltas} deltas\n",
            account.events,
            1.min(account.versions.len())
        )?;
        let mut table = Table::new(["event", "version", "op", "valid from", "changes"]);
        for (event, version) in self.account_lines() {
            match version {
                Some(version) => {
                    let mut place = [event, version.seq.to_string(), version.op.clone(), version.at.clone()];
                    // A line for each field.
                    for change in changes(version) {
                        table.row(place.iter().cloned().chain([change]));
                        place = Default::default();
                    }
                }
                None => table.row([event, String::new(), "no-op".to_string()]),
            }
        }
        writeln!(out, "{table:columns$}", columns = columns(out))?;
        writeln!(out, "The article's query, as it stands, under search_path = {org}_history:\n")?;
        writeln!(out, "{}", folded(&format!("  {}", account.query), columns(out), 4))?;
        let mut table = Table::new(&account.answer.columns);
        for row in &account.answer.rows {
            table.row(row.iter().map(|cell| cell.clone().unwrap_or_default()));
        }
        writeln!(
            out,
            "{table:columns$}  ({} rows; the listener's table gave 21)\n",
            account.answer.rows.len(),
            columns = columns(out)
        )
    }

    /// The 21 events in order, the no-ops between two versions drawn together. If the history is not the article's,
    /// no event can be told for a version.
    fn account_lines(&self) -> Vec<(String, Option<&AccountVersion>)> {
        let versions = &self.account.versions;
        if !self.account.right {
            return versions.iter().map(|version| ("?".to_string(), Some(version))).collect();
        }
        let starts = article::changing_events();
        let mut lines = Vec::new();
        for (place, (start, version)) in starts.iter().zip(versions).enumerate() {
            lines.push((start.to_string(), Some(version)));
            let next = starts.get(place + 1).copied().unwrap_or(article::VERSIONS.len() + 1);
            match next - start {
                1 => {}
                2 => lines.push(((start + 1).to_string(), None)),
                _ => lines.push((format!("{}-{}", start + 1, next - 1), None)),
            }
        }
        lines
    }

    fn write_totals(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let emitted = self.emitted;
        let rate = emitted.messages as f64 / self.processing_seconds.max(0.001);
        let totals = format!(
            "{} messages of {} org{} ({} row events) through {} and {} worker{} in {:.1} s: {} a second",
            thousands(emitted.messages as i64),
            self.orgs.len(),
            if self.orgs.len() == 1 { "" } else { "s" },
            thousands(emitted.events as i64),
            self.way(),
            self.workers,
            if self.workers == 1 { "" } else { "s" },
            self.processing_seconds,
            thousands(rate as i64)
        );
        write!(out, "{}", folded(&totals, columns(out), 2))?;
        if let Some(crash) = &self.crash {
            let killed = format!(
                "On the way: kill -9 of worker {}, which held {} partitions with {} uncommitted messages",
                crash.worker,
                crash.partitions,
                thousands(crash.waiting)
            );
            write!(out, "{}", folded(&killed, columns(out), 2))?;
        }
        if self.connector_kills > 0 {
            let killed = format!(
                "and {} kills of the connectors, which then repeated what they had sent last",
                self.connector_kills
            );
            write!(out, "{}", folded(&killed, columns(out), 2))?;
        }
        writeln!(out, "What became of each (afterimage.outcomes):\n")?;
        let all: i64 = self.outcomes.iter().map(|outcome| outcome.events).sum();
        let mut table = Table::new(["outcome", "reason", "messages", "share"]);
        for outcome in &self.outcomes {
            table.row([
                outcome.outcome.clone(),
                outcome.reason.clone().unwrap_or_default(),
                thousands(outcome.events),
                format!("{:.1}%", 100.0 * outcome.events as f64 / all.max(1) as f64),
            ]);
        }
        writeln!(out, "{table:columns$}", columns = columns(out))?;
        let stored: i64 = self.versions.values().sum();
        writeln!(out, "What is kept (afterimage.changes): {} versions\n", thousands(stored))?;
        let mut table = Table::new(["op", "versions"]);
        for (op, count) in &self.versions {
            table.row([op.clone(), thousands(*count)]);
        }
        writeln!(out, "{table:columns$}", columns = columns(out))
    }

    fn write_bytes(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let bytes = &self.bytes;
        let stored: i64 = self.versions.values().sum();
        let events = bytes.copied_events();
        writeln!(out, "What it costs, indexes included\n")?;
        let mut table = Table::new(["", "rows", "size", "bytes per event"]);
        let per_event = |size: f64| format!("{:.0}", size / events.max(1) as f64);
        let history = bytes.history() as f64;
        table.row(["time machine".to_string(), thousands(stored), size(history), per_event(history)]);
        let full = bytes.full_copies();
        table.row(["full copies, measured".to_string(), thousands(events as i64), size(full), per_event(full)]);
        let article = events as f64 * ARTICLE_BYTES_PER_VERSION;
        table.row([
            "full copies, the article's 506 B".to_string(),
            thousands(events as i64),
            size(article),
            per_event(article),
        ]);
        writeln!(out, "{table:columns$}", columns = columns(out))?;
        let smaller = format!(
            "  The time machine is {:.1} times smaller (deltas {}, keyframes {}, records {}; whole schema {}).",
            full / history.max(1.0),
            size(bytes.delta as f64),
            size(bytes.keyframe as f64),
            size(bytes.record as f64),
            size(bytes.schema as f64)
        );
        write!(out, "{}", folded(&smaller, columns(out), 2))?;
        let samples: Vec<String> = bytes
            .copies
            .iter()
            .map(|copies| {
                format!("{} {:.0} B ({} rows)", copies.object, copies.bytes_per_row, thousands(copies.sample as i64))
            })
            .collect();
        let measured =
            format!("  Measured on samples of the same events in tables like the article's: {}.", samples.join(", "));
        writeln!(out, "{}", folded(&measured, columns(out), 2))
    }

    fn write_checks(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "Checks\n")?;
        let account = &self.account;
        let kept = account.versions.len();
        check(out, account.right, &format!("the article's account: {} events, {kept} versions kept", account.events))?;
        let law = &self.conservation;
        let accounted = format!(
            "conservation: {} messages in {} partitions, {} outcomes, every position at its broker's end",
            thousands(law.messages),
            law.partitions,
            thousands(law.outcomes)
        );
        check(out, law.broken.is_empty(), &accounted)?;
        for partition in &law.broken {
            write!(out, "{}", folded(&format!("       {partition}"), columns(out), 9))?;
        }
        self.write_crash(out)?;
        let truth = &self.truth;
        let compared = format!(
            "records: {} of {} have the simulator's last image and number of versions",
            thousands(truth.right_histories as i64),
            thousands(truth.records as i64)
        );
        check(out, truth.ok(), &compared)?;
        for difference in &truth.differences {
            write!(out, "{}", folded(&format!("       {difference}"), columns(out), 9))?;
        }
        let aside = self.set_aside;
        let short = format!(
            "set aside: {} dead letters, {} gaps, {} late events",
            thousands(aside.dead_letters),
            thousands(aside.gaps),
            thousands(aside.late_events)
        );
        check(out, aside.dead_letters == 0 && aside.gaps == 0, &short)?;
        writeln!(out, "\nSeed {}, {:.1} s in all.", self.seed, self.total_seconds)
    }

    /// What the messages went through.
    fn way(&self) -> String {
        let release = self.debezium.version();
        let capture = match self.capture {
            CaptureChoice::Simulated => String::new(),
            CaptureChoice::Debezium => format!("Debezium {release}, "),
        };
        let broker = match &self.broker {
            BrokerChoice::Embedded => "an embedded broker",
            BrokerChoice::Kafka => "a private Kafka",
            BrokerChoice::Given(address) => return format!("{capture}Kafka at {address}"),
        };
        format!("{capture}{broker}")
    }

    fn write_crash(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Some(crash) = &self.crash else {
            return check(out, false, "no worker had anything in hand that could be killed");
        };
        let seconds = |seconds: Option<f64>| seconds.map_or("never".to_string(), |seconds| format!("{seconds:.1} s"));
        let (claimed, resumed) = (seconds(crash.claimed_after), seconds(crash.resumed_after));
        // A part of them may have gone on before the rest was claimed.
        let in_parts = crash.resumed_after.is_some_and(|at| crash.claimed_after.is_none_or(|all| at < all));
        let went_on = if in_parts {
            format!("the first of its partitions commits again after {resumed}, all are claimed again after {claimed}")
        } else {
            format!("all of its partitions are claimed again after {claimed}, the first commit follows after {resumed}")
        };
        let (worker, committed) = (&crash.worker, thousands(crash.committed));
        let went_on = format!(
            "kill -9 of worker {worker} with {} partitions, at {committed} committed messages: {went_on}",
            crash.partitions
        );
        check(out, crash.claimed_after.is_some(), &went_on)
    }

    fn write_next(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "\nTry next\n")?;
        let again = format!("make demo ARGS=\"--workers 4 --events 200000 --seed {}\"", self.seed.wrapping_add(1));
        let mut table = Table::plain();
        table.row(["make demo ARGS=\"--keep\"", "everything stays up: psql, metrics, SQL to paste"]);
        table.row(["make demo-real", "the same with real Debezium and a real Kafka (Java, Maven)"]);
        write!(out, "{table:columns$}", columns = columns(out))?;
        writeln!(out, "  {again}")
    }
}

/// A check's line.
fn check(out: &mut Formatter<'_>, right: bool, what: &str) -> fmt::Result {
    verdict(out, if right { "ok  " } else { "FAIL" }, what)
}

fn verdict(out: &mut Formatter<'_>, verdict: &str, what: &str) -> fmt::Result {
    write!(out, "{}", folded(&format!("  {verdict} {what}"), columns(out), 7))
}

/// Questions to paste into psql: (what is asked, SQL without double quotes).
pub fn questions(org: &str) -> [(&'static str, String); 3] {
    let sfid = article::SFID;
    let record = format!("org = '{org}' and object = '{}' and sfid = '{sfid}'", article::OBJECT);
    [
        (
            "who changed what, when",
            format!(
                "select seq, at, changed_by, field, old, new from afterimage.field_changes where {record} and seq > 0 order by seq"
            ),
        ),
        (
            "how the record looked in the middle of its history",
            format!(
                "select at, afterimage.as_of('{org}', '{}', '{sfid}', at) ->> 'phone' as phone \
                 from afterimage.changes where {record} and seq = 3",
                article::OBJECT
            ),
        ),
        (
            "what became of every message",
            "select outcome, reason, sum(events) from afterimage.outcomes group by 1, 2 order by 3 desc".to_string(),
        ),
    ]
}

/// `phone: a → b`, `score__c: 1 → 15`; of a whole image, and where no field changed, only the number of fields.
fn changes(version: &AccountVersion) -> Vec<String> {
    if version.seq == 0 || version.changes.is_empty() {
        return vec![format!("{} fields", version.changes.len())];
    }
    let shown = version.changes.iter().map(|(field, change)| {
        let side = |index: usize| match change.get(index) {
            None | Some(serde_json::Value::Null) => "null".to_string(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        format!("{field}: {} → {}", side(0), side(1))
    });
    shown.collect()
}
