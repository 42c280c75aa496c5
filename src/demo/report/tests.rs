use super::gather::same;
use super::*;
use crate::demo::simulator::{FinalRecord, article};

fn account(rows: &[(&str, f64)]) -> AccountStory {
    let mut versions = Vec::new();
    for (seq, row) in rows.iter().enumerate() {
        let mut changes = serde_json::Map::new();
        if let Some(before) = seq.checked_sub(1).map(|before| rows[before]) {
            if before.0 != row.0 {
                changes.insert("phone".into(), serde_json::json!([before.0, row.0]));
            }
            if before.1 != row.1 {
                changes.insert("score__c".into(), serde_json::json!([before.1, row.1]));
            }
        }
        let op = if seq == 0 { "baseline" } else { "update" };
        versions.push(AccountVersion { seq: seq as i64, op: op.into(), at: "2020-09-08 10:00:00+00".into(), changes });
    }
    let answer = Answer {
        columns: ["name", "sfid", "score__c", "id"].map(String::from).to_vec(),
        rows: rows
            .iter()
            .enumerate()
            .map(|(id, row)| {
                vec![
                    Some(article::NAME.into()),
                    Some(article::SFID.into()),
                    Some(row.1.to_string()),
                    Some(id.to_string()),
                ]
            })
            .collect(),
    };
    AccountStory { events: 21, versions, query: article::QUERY.into(), answer, right: rows.len() == 6 }
}

fn report() -> DemoReport {
    let rows: Vec<(&str, f64)> = article::changing_events().iter().map(|event| article::VERSIONS[event - 1]).collect();
    let outcome = |outcome: &str, reason: Option<&str>, events| Outcome {
        outcome: outcome.into(),
        reason: reason.map(String::from),
        events,
    };
    DemoReport {
        seed: 1,
        workers: 2,
        orgs: vec!["emea".into(), "apac".into()],
        broker: BrokerChoice::Embedded,
        capture: CaptureChoice::Simulated,
        debezium: Debezium::V2_7,
        connector_kills: 0,
        crash: Some(Crash {
            worker: "demo-2".into(),
            committed: 24_000,
            partitions: 12,
            waiting: 812,
            resumed_after: Some(6.54),
            claimed_after: Some(6.31),
        }),
        processing_seconds: 4.0,
        total_seconds: 6.5,
        account: account(&rows),
        emitted: SimTotals { messages: 60_000, events: 58_000, others: 2_000, nothing: 41_000, pending: 900 },
        versions: [("baseline".to_string(), 3_000), ("update".to_string(), 12_000)].into(),
        outcomes: vec![outcome("noop", Some("identical"), 41_000), outcome("delta", None, 19_000)],
        set_aside: SetAside::default(),
        bytes: Bytes {
            delta: 1_048_576,
            keyframe: 2_097_152,
            record: 524_288,
            schema: 8_388_608,
            copies: vec![FullCopies { object: "account".into(), events: 50_000, sample: 1_000, bytes_per_row: 734.0 }],
        },
        conservation: Conservation { partitions: 24, messages: 60_000, outcomes: 60_000, broken: Vec::new() },
        truth: TruthCheck { records: 20, right_images: 20, right_histories: 20, ..TruthCheck::default() },
    }
}

/// The text without its line breaks, which depend on the lengths of numbers.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_story_shows_21_events_and_six_versions() {
    let text = report().to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert!(lines.contains(&"21 events came in; kept: 1 version and 5 deltas"), "{text}");
    let line = |start: &str| lines.iter().find(|line| line.starts_with(start)).copied().unwrap_or_default();
    assert!(line("2 ").ends_with("phone: 5555551212 → 967-160-7974 x6487"), "{text}");
    assert!(lines.contains(&"score__c: 1.0 → 15.0"), "{text}");
    assert!(line("3-7").ends_with("no-op"), "{text}");
    assert!(line("10-11").ends_with("no-op"), "{text}");
    assert!(line("14-21").ends_with("no-op"), "{text}");
    let words = words(&text);
    assert!(words.contains(article::QUERY), "the query stands there verbatim");
    for columns in [100, 80] {
        let text = format!("{:columns$}", report());
        assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}\n{text}");
        assert!(text.contains("967-160-7974 x6487"), "{text}");
    }
    assert!(text.contains("60,000 messages"), "{text}");
    assert!(words.contains("kill -9 of worker demo-2, which held 12 partitions with 812 uncommitted"), "{text}");
    let went_on = "all of its partitions are claimed again after 6.3 s, the first commit follows after 6.5 s";
    assert!(words.contains(went_on), "{text}");
    assert!(!text.contains("FAIL"), "{text}");
}

#[test]
fn the_story_names_what_the_messages_went_through() {
    let mut report = report();
    assert!(words(&report.to_string()).contains("through an embedded broker and 2 workers"));
    (report.capture, report.broker) = (CaptureChoice::Debezium, BrokerChoice::Given("h:9092".into()));
    assert!(
        words(&report.to_string()).contains("through Debezium 2.7.4.Final, Kafka at h:9092 and 2 workers"),
        "{report}"
    );
}

#[test]
fn a_failed_check_is_shown_and_fails_the_report() {
    let good = report();
    assert!(good.ok());
    let broken = |spoil: fn(&mut DemoReport)| {
        let mut report = good.clone();
        spoil(&mut report);
        assert!(!report.ok());
        assert!(report.to_string().contains("FAIL"), "{report}");
        report.to_string()
    };
    assert!(broken(|report| report.conservation.broken.push("t/0: lost".into())).contains("t/0: lost"));
    broken(|report| report.account.right = false);
    broken(|report| report.crash = None);
    let never = |report: &mut DemoReport| report.crash.as_mut().unwrap().claimed_after = None;
    assert!(words(&broken(never)).contains("claimed again after never"));
    broken(|report| report.truth.right_histories = 19);
    broken(|report| report.set_aside.dead_letters = 1);
    broken(|report| report.set_aside.gaps = 1);
}

#[test]
fn a_part_that_goes_on_before_the_rest_is_told_first() {
    let mut report = report();
    report.crash.as_mut().unwrap().claimed_after = Some(10.31);
    let went_on = "the first of its partitions commits again after 6.5 s, all are claimed again after 10.3 s";
    assert!(words(&report.to_string()).contains(went_on), "{report}");
}

#[test]
fn an_unexpected_history_is_shown_as_it_is() {
    let mut report = report();
    report.account = account(&[("5555551212", 1.0), ("1", 1.0)]);
    let text = report.to_string();
    assert!(text.contains("phone: 5555551212 → 1"), "{text}");
    assert!(text.contains('?'), "no event is claimed for a version: {text}");
}

#[test]
fn the_json_form_says_the_same() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["account"]["events"], 21);
    assert_eq!(json["account"]["versions"].as_array().unwrap().len(), 6);
    assert_eq!(json["conservation"]["broken"], serde_json::json!([]));
    assert_eq!(json["outcomes"][0]["reason"], "identical");
}

#[test]
fn end_states_are_compared_by_value() {
    let wanted = |status, versions| FinalRecord {
        status,
        versions,
        image: serde_json::json!({"score__c": 15.0, "name": "x"}).as_object().unwrap().clone(),
    };
    let stored = serde_json::json!({"name": "x", "score__c": 15});
    let mut check = TruthCheck::default();
    check.compare("a", &wanted("live", 3), "live", 2, &stored);
    assert_eq!((check.right_images, check.right_histories), (1, 1));
    check.compare("b", &wanted("live", 3), "live", 3, &stored);
    check.compare("c", &wanted("deleted", 3), "live", 2, &stored);
    check.compare("d", &wanted("live", 3), "live", 2, &serde_json::json!({"name": "y", "score__c": 15, "extra": 1}));
    check.compare("e", &wanted("live", 3), "live", 2, &serde_json::Value::Null);
    assert_eq!((check.right_images, check.right_histories), (2, 1));
    assert_eq!(check.differences.len(), 4);
    assert!(check.differences[2].contains("extra") && !check.differences[2].contains('y'), "{check:?}");
    assert!(same(&serde_json::json!([1, {"a": 2}]), &serde_json::json!([1.0, {"a": 2.0}])));
    assert!(!same(&serde_json::json!({"a": 1}), &serde_json::json!({"a": 1, "b": 1})));
}
