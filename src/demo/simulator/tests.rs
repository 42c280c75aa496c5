use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;

fn run(seed: u64, events: u64) -> (Vec<SimMessage>, Simulator) {
    let mut simulator = Simulator::new(seed, SimOptions::new(events));
    let messages: Vec<SimMessage> = simulator.by_ref().collect();
    (messages, simulator)
}

fn payload(value: &[u8]) -> serde_json::Value {
    let json: serde_json::Value = serde_json::from_slice(value).unwrap();
    if json.get("payload").is_some() { json["payload"].clone() } else { json }
}

#[test]
fn the_same_seed_gives_the_same_messages() {
    let (first, _) = run(7, 2_000);
    let (second, _) = run(7, 2_000);
    let (other, _) = run(8, 2_000);
    assert!(first == second);
    assert!(first != other);
}

#[test]
fn every_trace_occurs() {
    let (_, simulator) = run(1, 12_000);
    let expected = [
        "A",
        "B",
        "C",
        "C2",
        "D",
        "E",
        "F",
        "G",
        "H",
        "I",
        "J",
        "K by DELETE",
        "K by TRUNCATE",
        "L",
        "M",
        "N",
        "late commit",
        "redelivery",
    ];
    let seen: Vec<&str> = simulator.traces().keys().copied().collect();
    assert_eq!(seen, expected);
}

#[test]
fn about_seven_of_ten_events_change_nothing() {
    for (seed, events) in [(1, 20_000), (2, 20_000), (3, 6_000)] {
        let (messages, simulator) = run(seed, events);
        let totals = simulator.totals();
        assert_eq!(totals.messages, messages.len() as u64);
        assert_eq!(totals.messages, totals.events + totals.others);
        assert!(totals.events >= events && totals.events < events + events / 10, "{totals:?}");
        let share = totals.nothing as f64 / totals.events as f64;
        assert!((0.65..0.75).contains(&share), "seed {seed}: {share}");
    }
}

#[test]
fn the_articles_account_has_its_21_events() {
    let (messages, simulator) = run(1, 5_000);
    assert_eq!(simulator.account_events(), 21);
    let mut rows = Vec::new();
    let mut images = Vec::new();
    for message in &messages {
        let Some(value) = &message.value else { continue };
        let payload = payload(value);
        let after = &payload["after"];
        if after["sfid"] == article::SFID && payload["source"]["schema"] == "emea" {
            assert_eq!(after["external_id__c"], article::EXTERNAL_ID);
            assert_eq!(after["name"], article::NAME);
            rows.push((after["phone"].as_str().unwrap().to_string(), after["score__c"].as_f64().unwrap()));
            images.push(after.clone());
        }
    }
    let expected: Vec<(String, f64)> =
        article::VERSIONS.iter().map(|(phone, score)| ((*phone).to_string(), *score)).collect();
    assert_eq!(rows, expected);
    // The 15 repeats differ in stamps (and the removed field) only.
    for (number, pair) in images.windows(2).enumerate() {
        if article::changing_events().contains(&(number + 2)) {
            continue;
        }
        let (before, after) = (pair[0].as_object().unwrap(), pair[1].as_object().unwrap());
        let different: Vec<&String> =
            after.iter().filter(|(name, value)| before.get(*name) != Some(value)).map(|(name, _)| name).collect();
        let stamps = ["systemmodstamp", "lastmodifieddate", "lastmodifiedbyid"];
        assert!(different.iter().all(|name| stamps.contains(&name.as_str())), "{different:?}");
    }
    let account = simulator.finals().find(|(org, _, sfid, _)| *org == "emea" && *sfid == article::SFID).unwrap();
    assert_eq!(account.3.versions, 6);
    assert_eq!(account.3.image["score__c"], 2.0);
}

#[test]
fn salesforce_ids_are_valid_and_shared_between_orgs() {
    let (_, simulator) = run(3, 5_000);
    let mut orgs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (org, object, sfid, _) in simulator.finals() {
        assert_eq!(sfid.len(), 18);
        assert_eq!(sfid::check_characters(&sfid[..15]), sfid[15..]);
        assert!(sfid.starts_with(match object {
            "account" => "001",
            "contact" => "003",
            _ => "006",
        }));
        orgs.entry(org).or_default().insert(sfid);
    }
    assert!(orgs["emea"].intersection(&orgs["apac"]).count() > 100);
    assert!(orgs["emea"].difference(&orgs["apac"]).count() > 5);
}

#[test]
fn the_log_is_one_a_database_could_have_written() {
    let (messages, _) = run(5, 12_000);
    let mut last_commit = 0;
    let mut last_lsn = 0;
    let mut falls = 0;
    let mut row_lsn: HashMap<(String, i64), i64> = HashMap::new();
    let mut seen: BTreeSet<(String, i64)> = BTreeSet::new();
    let mut repeated = 0;
    let mut live: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for message in &messages {
        assert!((0..4).contains(&message.partition));
        let Some(value) = &message.value else { continue };
        let payload = payload(value);
        let source = &payload["source"];
        let (commit, lsn) = (source["ts_us"].as_i64().unwrap(), source["lsn"].as_i64().unwrap());
        let topic = message.topic.to_string();
        if !seen.insert((topic.clone(), lsn)) {
            repeated += 1;
            continue;
        }
        assert!(commit > last_commit, "commits are in order");
        assert!(payload["ts_us"].as_i64().unwrap() > commit);
        falls += i32::from(lsn < last_lsn);
        (last_commit, last_lsn) = (commit, lsn);
        let rows = live.entry(topic.clone()).or_default();
        match payload["op"].as_str().unwrap() {
            "t" => rows.clear(),
            op => {
                let image = if op == "d" { &payload["before"] } else { &payload["after"] };
                let id = image["id"].as_i64().unwrap();
                assert!(row_lsn.insert((topic, id), lsn).is_none_or(|before| before < lsn), "a row's LSNs rise");
                match op {
                    "c" => _ = rows.insert(id),
                    "d" => _ = rows.remove(&id),
                    _ => {}
                }
                let key: serde_json::Value = serde_json::from_slice(message.key.as_ref().unwrap()).unwrap();
                let key = if key.get("payload").is_some() { &key["payload"] } else { &key };
                assert_eq!(key["id"], id);
            }
        }
    }
    assert!(falls > 5, "transactions overlap: {falls}");
    assert!(repeated > 100, "ranges are re-delivered: {repeated}");
}

#[test]
fn a_long_text_shows_only_the_placeholder_until_it_is_written() {
    let (messages, simulator) = run(5, 12_000);
    let texts: Vec<serde_json::Value> = messages
        .iter()
        .filter_map(|message| message.value.as_deref())
        .map(|value| payload(value)["after"]["description"].clone())
        .collect();
    assert!(texts.iter().any(|text| *text == envelope::PLACEHOLDER));
    assert!(texts.iter().any(|text| text.as_str().is_some_and(|text| text.len() >= 2_000)));
    let unknown = serde_json::json!({"$unknown": true});
    assert!(simulator.finals().any(|(.., record)| record.image.values().any(|value| *value == unknown)));
    let leaked =
        simulator.finals().any(|(.., record)| record.image.values().any(|value| *value == envelope::PLACEHOLDER));
    assert!(!leaked);
}

#[test]
fn ids_come_back_on_other_records_after_a_truncate() {
    let (messages, _) = run(5, 12_000);
    let mut owners: BTreeMap<(String, i64), BTreeSet<String>> = BTreeMap::new();
    let mut truncates = 0;
    for message in &messages {
        let Some(value) = &message.value else { continue };
        let payload = payload(value);
        truncates += i32::from(payload["op"] == "t");
        if let (Some(id), Some(sfid)) = (payload["after"]["id"].as_i64(), payload["after"]["sfid"].as_str()) {
            owners.entry((message.topic.to_string(), id)).or_default().insert(sfid.to_string());
        }
    }
    assert!(truncates >= 2);
    assert!(owners.values().any(|owners| owners.len() > 1));
}

#[test]
fn an_org_without_schema_block_has_its_ambiguous_columns_declared() {
    let (_, simulator) = run(5, 500);
    let topics = simulator.topics();
    assert_eq!(topics.len(), 6);
    assert_eq!(&*topics[0].name, "calm_connector_27001.emea.account");
    assert!(topics.iter().all(|topic| topic.with_schema == (topic.org == "emea")));
    for topic in topics {
        assert!(!tables::declared_types(topic.object).is_empty());
    }
}

#[test]
fn a_reload_waits_for_the_transactions_that_have_written_to_the_table() {
    let open = |simulator: &Simulator| {
        let late = simulator.steps.iter().find(|Reverse(step)| matches!(step.step, Step::LateCommit { .. }));
        late.map(|Reverse(step)| step.table)
    };
    let mut simulator = Simulator::new(5, SimOptions::new(12_000));
    let table = loop {
        assert!(simulator.happen(), "no transaction committed late");
        if let Some(table) = open(&simulator) {
            break table;
        }
    };
    simulator.upheave(Upheaval::ReloadByDelete { table });
    assert_eq!(open(&simulator), None);
}
