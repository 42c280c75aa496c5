//! Traces that no recording holds, each read whole, in slices, with restarts and with either store.

use afterimage::core::event::Op;
use afterimage::core::format::VersionOp;
use afterimage::core::position::Counter;
use afterimage::core::value::Value;
use serde_json::json;

use crate::memory::Change;
use crate::script::{SECOND, Script, TOPIC, UNTOUCHED, X, Y, every_way, story, story_in};
use crate::worker::{Plan, Topic, World, merged};

fn changes(world: &World, sfid: &str) -> Vec<Change> {
    world.sink.changes("emea", "account", sfid)
}

// ---- delete, grace, reload ----------------------------------------------------------------------------------

#[test]
fn a_touched_record_that_is_reloaded_leaves_nothing() {
    let mut script = Script::new();
    let old = script.stamp(500);
    script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": old}));
    script.wait(100);
    let touched = script.stamp(2);
    script.update(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": touched}));
    script.wait(60);
    script.delete(0, 1);
    script.insert(1, 7, json!({"sfid": X, "name": "A", "systemmodstamp": touched}));
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A"], "{how}");
        assert_eq!(world.count(Counter::RowsCancelled), 1, "{how}");
        assert_eq!(world.count(Counter::RowsWritten), 2, "{how}");
        assert!(world.sink.image("emea", "account", X).is_some_and(|(live, _)| live), "{how}");
    });
}

#[test]
fn an_undelete_in_salesforce_is_one() {
    for seconds_before_delete in [0, -1] {
        let mut script = Script::new();
        script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": script.stamp(500)}));
        script.wait(60);
        script.delete(0, 1);
        let raised = script.stamp(seconds_before_delete);
        script.insert(1, 7, json!({"sfid": X, "name": "A", "systemmodstamp": raised}));
        script.each_way(|world, how| {
            assert_eq!(story(world, X), ["create name=A", "delete", "undelete"], "{how}");
        });
    }
}

#[test]
fn a_row_touched_in_the_millisecond_of_its_reload_was_not_undeleted() {
    // Seen in real streams: committed at …27.0982 with the stamp …27.099, deleted at …27.099206; and deleted at …48.228037,
    // undeleted with the stamp …48.228.
    for (touched, wanted) in [(true, 1), (false, 3)] {
        let mut script = Script::new();
        script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": script.stamp(500)}));
        script.wait(60);
        let committed = script.now + SECOND;
        let stamp = committed / 1_000 * 1_000 + 1_000;
        if touched {
            script.update(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": stamp}));
        }
        script.now = committed + 1_100 - SECOND;
        script.delete(0, 1);
        script.insert(1, 7, json!({"sfid": X, "name": "A", "systemmodstamp": stamp}));
        let mut world = script.world();
        let messages = merged(script.log().values());
        world.read_in_order(&script.topic, &messages, Plan::WHOLE);
        assert_eq!(story(&world, X).len(), wanted, "touched: {touched}");
        if !touched {
            script.each_way(|world, how| assert_eq!(story(world, X).len(), wanted, "{how}"));
        }
    }
}

#[test]
fn a_record_that_comes_back_after_the_grace_was_deleted() {
    for (minutes, kept) in [(14, 1), (16, 3)] {
        let mut script = Script::new();
        let stamp = script.stamp(500);
        script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": stamp}));
        script.delete(0, 1);
        script.wait(minutes * 60);
        script.insert(0, 2, json!({"sfid": X, "name": "A", "systemmodstamp": stamp}));
        script.each_way(|world, how| assert_eq!(story(world, X).len(), kept, "{minutes} min {how}"));
    }
}

#[test]
fn a_reload_that_changes_something_is_an_undelete_with_the_change() {
    let mut script = Script::new();
    let stamp = script.stamp(500);
    script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": stamp}));
    script.delete(0, 1);
    script.insert(0, 2, json!({"sfid": X, "name": "B", "systemmodstamp": stamp}));
    script.each_way(|world, how| assert_eq!(story(world, X), ["create name=A", "delete", "undelete name=B"], "{how}"));
}

#[test]
fn a_delete_shows_its_key_alone_and_keeps_the_image() {
    let mut script = Script::new();
    script.insert(0, 1, json!({"sfid": X, "name": "A"}));
    script.insert(0, 2, json!({"sfid": Y, "name": "B"}));
    script.delete(0, 1);
    script.delete(0, 99);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "delete"], "{how}");
        assert_eq!(story(world, Y), ["create name=B"], "{how}");
        let (live, image) = world.sink.image("emea", "account", X).expect("a record");
        assert!(!live && image["name"] == Value::Text("A".into()), "{how}");
        assert_eq!(world.count(Counter::DeleteUnknown), 1, "{how}: nobody had that key");
        assert_eq!(world.count(Counter::Tombstone), 2, "{how}");
    });
}

#[test]
fn a_delete_that_opened_a_chain_is_taken_back_with_its_keyframe() {
    let mut script = Script::new();
    let stamp = script.stamp(5_000);
    let row = |n: i64| json!({"sfid": X, "name": format!("n{n}"), "systemmodstamp": stamp});
    script.insert(0, 1, row(0));
    for n in 1..64 {
        script.update(0, 1, row(n));
    }
    let keyframes = |world: &World| world.sink.keyframes.len();
    script.delete(0, 1);
    script.each_way(|world, how| {
        assert_eq!((changes(world, X)[64].op, keyframes(world)), (VersionOp::Delete, 2), "{how}")
    });
    script.insert(1, 2, row(63));
    script.each_way(|world, how| {
        assert_eq!((changes(world, X).len(), keyframes(world)), (64, 1), "{how}");
    });
    script.update(1, 2, row(64));
    script.delete(1, 2);
    script.insert(0, 3, row(64));
    script.update(0, 3, row(65));
    script.each_way(|world, how| {
        let changes = changes(world, X);
        assert_eq!((changes.len(), keyframes(world)), (66, 2), "{how}");
        assert_eq!(changes[65].op, VersionOp::Update, "{how}");
        assert_eq!(world.count(Counter::RowsCancelled), 2, "{how}");
    });
}

#[test]
fn a_delete_taken_back_and_a_new_version_in_one_batch() {
    let mut script = Script::new();
    let stamp = script.stamp(500);
    let row = |name: &str| json!({"sfid": X, "name": name, "systemmodstamp": stamp});
    script.insert(0, 1, row("A"));
    script.delete(0, 1);
    script.insert(1, 2, row("A"));
    script.update(1, 2, row("B"));
    script.delete(1, 2);
    script.insert(0, 3, row("B"));
    script.delete(0, 3);
    script.insert(1, 4, row("B"));
    script.delete(1, 4);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=B", "delete"], "{how}");
        assert_eq!(world.count(Counter::RowsCancelled), 3, "{how}");
    });
}

#[test]
fn a_text_that_a_reload_brings_to_light_is_a_backfill_and_the_delete_is_taken_back() {
    let mut script = Script::new();
    let stamp = script.stamp(500);
    script.update(0, 1, json!({"sfid": X, "name": "A", "notes__c": UNTOUCHED, "systemmodstamp": stamp}));
    script.delete(0, 1);
    script.insert(1, 2, json!({"sfid": X, "name": "A", "notes__c": "long", "systemmodstamp": stamp}));
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["baseline name=A notes__c=?", "backfill notes__c=long"], "{how}");
        assert_eq!(changes(world, X)[1].fields["notes__c"].0, Some(Value::Unknown), "{how}");
    });
}

// ---- keys ---------------------------------------------------------------------------------------------------

#[test]
fn ids_that_come_back_after_a_truncate_belong_to_their_new_rows() {
    let mut script = Script::new();
    let row = |sfid: &str, name: &str| json!({"sfid": sfid, "name": name});
    script.insert(0, 1, row(X, "A"));
    script.insert(1, 2, row(Y, "B"));
    // TRUNCATE … RESTART IDENTITY: nothing is sent. The rows come back in another order.
    script.insert(0, 1, row(Y, "B"));
    script.insert(1, 2, row(X, "A"));
    // The connector sends the first insert once more: X must not get its old key back.
    script.again(0);
    script.delete(0, 1);
    script.update(1, 2, row(X, "A2"));
    for merged in [true, false] {
        let look = |world: &World, how: &str| {
            assert_eq!(story(world, Y), ["create name=B", "delete"], "{how}: the new owner of id 1 is deleted");
            assert_eq!(story(world, X), ["create name=A", "update name=A2"], "{how}");
            assert_eq!(world.count(Counter::Stale), 0, "{how}");
        };
        if merged { script.each_way(look) } else { script.as_sent_each_way(look) }
    }
}

#[test]
fn a_record_whose_key_was_taken_is_found_again_by_its_own_insert() {
    // Its new insert has a lower LSN than the event that took its key, and is read later.
    let mut script = Script::new();
    let row = |sfid: &str, name: &str| json!({"sfid": sfid, "name": name});
    script.insert(0, 1, row(X, "A"));
    script.insert(1, 2, row(X, "A2"));
    script.insert(0, 1, row(Y, "B"));
    script.messages.swap(1, 2);
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=A2"], "{how}");
        assert_eq!(story(world, Y), ["create name=B"], "{how}");
    });
}

#[test]
fn a_primary_key_change_leaves_nothing_on_one_partition() {
    let mut script = Script::new();
    let row = json!({"sfid": X, "name": "A", "systemmodstamp": script.stamp(500)});
    script.insert(0, 26, row.clone());
    script.delete(0, 26);
    let mut moved = row.clone();
    moved["id"] = json!(9001);
    script.same_transaction(0, "c", 9001, json!(null), moved);
    script.update(0, 9001, json!({"sfid": X, "name": "B", "systemmodstamp": script.stamp(0)}));
    script.delete(0, 9001);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=B", "delete"], "{how}");
        assert_eq!(world.count(Counter::Duplicate), 0, "{how}");
    });
}

#[test]
fn a_primary_key_change_over_two_partitions_in_either_order() {
    let mut script = Script::new();
    let row = json!({"sfid": X, "name": "A", "systemmodstamp": script.stamp(500)});
    script.insert(0, 26, row.clone());
    script.delete(0, 26);
    let mut moved = row.clone();
    moved["id"] = json!(9001);
    script.same_transaction(1, "c", 9001, json!(null), moved);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A"], "{how}");
        assert_eq!(world.count(Counter::RowsCancelled), 1, "{how}");
    });
    // The insert first: the delete under the old key says nothing new of the record, and is kept.
    let insert = script.messages.pop().expect("sent above");
    script.messages.insert(1, insert);
    script.update(1, 9001, json!({"sfid": X, "name": "B", "systemmodstamp": script.stamp(0)}));
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=B"], "{how}");
        assert_eq!(world.sink.late.len(), 1, "{how}");
    });
}

#[test]
fn an_older_event_of_a_partition_that_lags_is_kept_beside_the_history() {
    let mut script = Script::new();
    let row = |name: &str| json!({"sfid": X, "name": name});
    script.insert(0, 1, row("A"));
    script.update(0, 1, row("B"));
    script.insert(1, 2, row("C"));
    // Partition 1 is read first: what partition 0 still has is older.
    script.messages.swap(1, 2);
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=C"], "{how}");
        assert_eq!(world.count(Counter::Stale), 1, "{how}");
        let late = world.sink.late.values().next().expect("kept");
        assert!(
            late.event.op == Op::Update && late.event.d.is_some() && &*late.event.row_key == "1",
            "{how}: {late:?}"
        );
    });
}

#[test]
fn a_move_without_a_change_still_bounds_what_is_older() {
    let mut script = Script::new();
    let row = |name: &str| json!({"sfid": X, "name": name});
    script.insert(0, 1, row("A"));
    script.update(0, 1, row("B"));
    script.update(0, 1, row("A"));
    // A reload by TRUNCATE with the same content: the record moves, no version tells so.
    script.insert(1, 2, row("A"));
    let moved = script.messages.remove(3);
    script.messages.insert(1, moved);
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A"], "{how}");
        assert_eq!(world.count(Counter::Stale), 2, "{how}");
    });
}

#[test]
fn a_record_that_gets_its_first_id_again_is_not_deleted_by_what_was_between() {
    let mut script = Script::new();
    let row = json!({"sfid": X, "name": "A", "systemmodstamp": script.stamp(500)});
    script.insert(0, 5, row.clone());
    // TRUNCATE … RESTART IDENTITY, a reload by DELETE, and another TRUNCATE: 5, 1, 5.
    script.insert(1, 1, row.clone());
    script.delete(1, 1);
    script.insert(0, 5, row.clone());
    script.each_way(|world, how| assert_eq!(story(world, X), ["create name=A"], "{how}"));
    // Partition 0 is read first: its second insert changes nothing, and yet it is the newest there is.
    let last = script.messages.pop().expect("sent above");
    script.messages.insert(1, last);
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A"], "{how}");
        assert!(!world.sink.late.is_empty(), "{how}: what was between is kept");
    });
}

#[test]
fn a_source_that_was_replaced_starts_its_log_anew() {
    let mut script = Script::new();
    script.lsn = 1_000_000;
    let row = |name: &str| json!({"sfid": X, "name": name});
    script.insert(0, 1, row("A"));
    script.wait(120);
    script.lsn = 500;
    script.update(0, 1, row("B"));
    script.update(0, 1, row("C"));
    script.again(2);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=B", "update name=C"], "{how}");
        assert_eq!(world.count(Counter::Duplicate), 1, "{how}");
    });
}

#[test]
fn a_log_that_falls_for_a_moment_is_no_other_source() {
    let mut script = Script::new();
    let row = |name: &str| json!({"sfid": X, "name": name});
    script.insert(0, 1, row("A"));
    script.update(0, 1, row("B"));
    script.wait(20);
    script.lsn = 500;
    script.update(0, 1, row("C"));
    script.each_way(|world, how| assert_eq!(story(world, X), ["create name=A", "update name=B"], "{how}"));
}

#[test]
fn a_record_registered_for_another_position_belongs_to_the_one_that_writes_it() {
    // A batch of partition 1 registered it and was lost; partition 0 brings its first row that is committed.
    let mut script = Script::new();
    script.insert(0, 1, json!({"sfid": X, "name": "A"}));
    for plan in every_way(2) {
        let mut world = script.world();
        let (source, object) = world.sink.source(TOPIC, "emea", "account");
        let lost = world.sink.position(source, 1, 0);
        world.sink.register(object, X, lost, "7");
        world.read_in_order(TOPIC, &script.messages, plan);
        let here = world.sink.position(source, 0, 0);
        let row = &world.sink.records[&1];
        assert_eq!((row.home, row.row_key.as_deref()), (Some(here), Some("1")), "{plan:?}");
    }
}

#[test]
fn a_number_written_otherwise_is_the_same_number() {
    let mut script = Script::new();
    for score in ["15.0", "15", "1.5e1", "16"] {
        let score: serde_json::Value = serde_json::from_str(score).expect("a number");
        script.update(0, 1, json!({"sfid": X, "score__c": score}));
    }
    for zero in ["0.0", "-0.0"] {
        let zero: serde_json::Value = serde_json::from_str(zero).expect("a number");
        script.update(0, 1, json!({"sfid": X, "score__c": zero}));
    }
    script.each_way(|world, how| assert_eq!(story(world, X).len(), 3, "{how}: {:?}", story(world, X)));
}

#[test]
fn two_orgs_with_the_same_record_ids_stay_apart() {
    let (mut emea, mut apac) = (Script::of("demo.emea.account"), Script::of("demo.apac.account"));
    emea.insert(0, 1, json!({"sfid": X, "name": "A"}));
    apac.insert(0, 1, json!({"sfid": X, "name": "copy"}));
    emea.update(0, 1, json!({"sfid": X, "name": "B"}));
    apac.delete(0, 1);
    let topic = |org: &str| Topic::new(&format!("demo.{org}.account"), org, "account");
    let mut log = emea.log();
    log.extend(apac.log());
    for plan in every_way(4) {
        let mut world = World::new([topic("emea"), topic("apac")]);
        world.read(&log, plan);
        assert_eq!(story_in(&world, "emea", X), ["create name=A", "update name=B"]);
        assert_eq!(story_in(&world, "apac", X), ["create name=copy", "delete"]);
    }
}

// ---- rows that wait for an id -------------------------------------------------------------------------------

fn waiting(name: &str, notes: &str) -> serde_json::Value {
    json!({"sfid": null, "name": name, "notes__c": notes, "isdeleted": null, "createddate": null,
           "systemmodstamp": null, "_hc_lastop": "PENDING"})
}

#[test]
fn a_local_insert_is_created_when_it_was_made_with_its_long_text() {
    let mut script = Script::new();
    script.insert(0, 3, waiting("A", "long"));
    let made = script.now;
    let mut named = waiting("A", UNTOUCHED);
    (named["sfid"], named["_hc_lastop"]) = (json!(X), json!("INSERTED"));
    script.update(0, 3, named.clone());
    let stamp = script.stamp(0);
    let mut synced = named;
    (synced["isdeleted"], synced["createddate"]) = (json!(false), json!(stamp));
    (synced["systemmodstamp"], synced["_hc_lastop"]) = (json!(stamp), json!("SYNCED"));
    script.update(0, 3, synced);
    script.each_way(|world, how| {
        let changes = changes(world, X);
        assert_eq!(story(world, X)[0], "create name=A notes__c=long", "{how}");
        assert_eq!((changes.len(), changes[0].at), (2, made), "{how}: valid from the insert");
        let resolved: Vec<&str> = changes[1].fields.keys().map(String::as_str).collect();
        assert_eq!(resolved, ["createddate", "isdeleted"], "{how}");
        assert!(world.sink.pending.is_empty(), "{how}: it waits no longer");
    });
}

#[test]
fn edits_while_waiting_keep_their_own_time() {
    let mut script = Script::new();
    script.insert(0, 3, waiting("A", "long"));
    script.update(0, 3, waiting("B", UNTOUCHED));
    let edited = script.now;
    let mut named = waiting("B", UNTOUCHED);
    named["sfid"] = json!(X);
    script.update(0, 3, named);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A notes__c=long", "update name=B"], "{how}");
        assert_eq!(changes(world, X)[1].at, edited, "{how}");
        assert_eq!(world.count(Counter::Pending), 2, "{how}");
    });
}

#[test]
fn a_waiting_row_that_is_deleted_leaves_nothing() {
    let mut script = Script::new();
    script.insert(0, 3, waiting("A", "long"));
    script.delete(0, 3);
    script.insert(0, 4, json!({"sfid": Y, "name": "B"}));
    script.each_way(|world, how| {
        assert_eq!(world.sink.export().len(), 1, "{how}");
        assert!(world.sink.pending.is_empty(), "{how}");
        assert_eq!(world.count(Counter::Pending), 2, "{how}");
    });
}

#[test]
fn an_insert_under_the_key_of_a_waiting_row_is_another_row() {
    let mut script = Script::new();
    script.insert(0, 3, waiting("A", "long"));
    script.insert(0, 3, json!({"sfid": Y, "name": "B", "notes__c": null}));
    script.each_way(|world, how| {
        assert_eq!(story(world, Y), ["create name=B"], "{how}");
        assert!(world.sink.pending.is_empty(), "{how}");
    });
}

#[test]
fn a_waiting_row_is_taken_by_its_id_also_when_that_comes_late() {
    let mut script = Script::new();
    script.insert(0, 3, waiting("A", "long"));
    let made = script.now;
    let mut named = waiting("A", UNTOUCHED);
    named["sfid"] = json!(X);
    script.update(0, 3, named);
    script.insert(1, 9, json!({"sfid": X, "name": "C", "notes__c": "long"}));
    // The partition of the reload is read first.
    let reloaded = script.messages.pop().expect("sent above");
    script.messages.insert(0, reloaded);
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=C notes__c=long"], "{how}");
        assert!(world.sink.pending.is_empty(), "{how}: nobody else may take it");
        let late = world.sink.late.values().next().expect("kept");
        assert_eq!(late.event.at, made, "{how}: with the time of the insert");
        let d = String::from_utf8_lossy(late.event.d.as_ref().expect("a payload")).into_owned();
        assert!(d.contains("long"), "{how}: and its text");
    });
}

#[test]
fn what_is_delivered_again_leaves_a_newer_waiting_row_alone() {
    let mut script = Script::new();
    let row = |name: &str| json!({"sfid": Y, "name": name, "notes__c": "y"});
    script.insert(0, 3, row("A"));
    script.snapshot(0, 3, row("A"));
    script.update(0, 3, row("B"));
    script.delete(0, 3);
    // Ids restart: key 3 belongs to a row that has no record id yet.
    script.insert(0, 3, waiting("C", "long"));
    for at in 0..5 {
        script.again(at);
    }
    let mut named = waiting("C", UNTOUCHED);
    named["sfid"] = json!(X);
    script.update(0, 3, named);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=C notes__c=long"], "{how}");
        assert_eq!(story(world, Y), ["create name=A notes__c=y", "update name=B", "delete"], "{how}");
        assert!(world.sink.pending.is_empty(), "{how}");
    });
}

// ---- content ------------------------------------------------------------------------------------------------

#[test]
fn a_field_added_to_the_mapping_is_filled_and_later_edited() {
    let mut script = Script::new();
    let old = script.stamp(500);
    script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": old}));
    script.insert(0, 2, json!({"sfid": Y, "name": "B", "systemmodstamp": old}));
    // The resync shows X first; Y was edited in Salesforce after the field was mapped.
    script.update(0, 1, json!({"sfid": X, "name": "A", "tier__c": "gold", "systemmodstamp": old}));
    script.wait(10);
    script.update(0, 2, json!({"sfid": Y, "name": "B", "tier__c": "tin", "systemmodstamp": script.stamp(2)}));
    script.update(0, 1, json!({"sfid": X, "name": "A", "tier__c": null, "systemmodstamp": script.stamp(0)}));
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "backfill tier__c=gold", "update tier__c=∅"], "{how}");
        assert_eq!(changes(world, X)[1].fields["tier__c"].0, None, "{how}: never observed before");
        assert_eq!(story(world, Y), ["create name=B", "update tier__c=tin"], "{how}");
    });
}

#[test]
fn a_fill_and_an_edit_in_one_event_are_two_versions() {
    let mut script = Script::new();
    let old = script.stamp(500);
    script.insert(0, 1, json!({"sfid": X, "name": "A", "systemmodstamp": old}));
    script.update(0, 1, json!({"sfid": X, "name": "B", "tier__c": "gold", "systemmodstamp": old}));
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "backfill tier__c=gold", "update name=B"], "{how}");
        let changes = changes(world, X);
        assert_eq!(changes[1].offset, changes[2].offset, "{how}");
    });
}

#[test]
fn columns_that_vanish_stay_as_they_were_last_seen() {
    let mut script = Script::new();
    script.insert(0, 1, json!({"sfid": X, "name": "A", "legacy__c": "v"}));
    script.update(0, 1, json!({"sfid": X, "name": "A"}));
    script.update(0, 1, json!({"sfid": X, "name": "B"}));
    script.update(0, 1, json!({"sfid": X, "name": "B", "legacy__c": "v"}));
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create legacy__c=v name=A", "update name=B"], "{how}");
    });
}

#[test]
fn a_placeholder_is_never_a_value() {
    let mut script = Script::new();
    script.insert(0, 1, json!({"sfid": X, "name": "A", "notes__c": "long"}));
    script.update(0, 1, json!({"sfid": X, "name": "B", "notes__c": UNTOUCHED}));
    script.update(0, 1, json!({"sfid": X, "name": "B", "notes__c": format!("see {UNTOUCHED}, it said")}));
    script.update(0, 2, json!({"sfid": Y, "name": "C", "notes__c": UNTOUCHED}));
    script.update(0, 2, json!({"sfid": Y, "name": "C", "notes__c": "\u{1f}long\u{2}"}));
    script.each_way(|world, how| {
        let inside = format!("update notes__c=see {UNTOUCHED}, it said");
        assert_eq!(story(world, X), ["create name=A notes__c=long", "update name=B", &inside], "{how}");
        assert_eq!(story(world, Y), ["baseline name=C notes__c=?", "update notes__c=\u{1f}long\u{2}"], "{how}");
    });
}

#[test]
fn a_touch_is_no_version_and_says_so() {
    let mut script = Script::new();
    let row = |stamp: i64, op: &str| json!({"sfid": X, "name": "A", "systemmodstamp": stamp, "_hc_lastop": op});
    let (old, new) = (script.stamp(500), script.stamp(-2));
    script.insert(0, 1, row(old, "SYNCED"));
    script.update(0, 1, row(old, "SYNCED"));
    script.update(0, 1, row(old, "PENDING"));
    script.update(0, 1, row(new, "SYNCED"));
    script.again(3);
    for plan in [Plan::WHOLE, Plan { pipelined: true, ..Plan::WHOLE }] {
        let mut world = script.world();
        world.read_in_order(TOPIC, &script.messages, plan);
        assert_eq!(story(&world, X), ["create name=A"]);
        let of = |counter| world.count(counter);
        assert_eq!((of(Counter::Noop), of(Counter::NoopStatus), of(Counter::NoopSystem)), (2, 1, 1));
    }
}

#[test]
fn the_account_of_the_article_has_a_first_version_and_five_changes() {
    const PHONES: [&str; 4] = ["5555551212", "967-160-7974 x6487", "1-151-183-4668 x379", "504.976.9652 x047"];
    let seen = [(0, 1, 1), (1, 15, 6), (0, 15, 1), (2, 5, 3), (0, 5, 1), (3, 2, 9)];
    let mut script = Script::new();
    for (phone, score, times) in seen {
        for _ in 0..times {
            let row = json!({"sfid": "001f400001MDeYzAAL", "name": "Borer, Braun and Gutmann",
                             "phone": PHONES[phone], "score__c": score, "systemmodstamp": script.stamp(0)});
            if script.messages.is_empty() { script.insert(0, 33351, row) } else { script.update(0, 33351, row) }
        }
    }
    assert_eq!(script.messages.len(), 21);
    script.each_way(|world, how| {
        let want = [
            "create name=Borer, Braun and Gutmann phone=5555551212 score__c=1",
            "update phone=967-160-7974 x6487 score__c=15",
            "update phone=5555551212",
            "update phone=1-151-183-4668 x379 score__c=5",
            "update phone=5555551212",
            "update phone=504.976.9652 x047 score__c=2",
        ];
        assert_eq!(story(world, "001f400001MDeYzAAL"), want, "{how}");
        let noops = [Counter::Noop, Counter::NoopStatus, Counter::NoopSystem].map(|counter| world.count(counter));
        assert_eq!(noops.iter().sum::<i64>(), 15, "{how}");
    });
}

#[test]
fn time_that_falls_is_raised_and_remembered() {
    let mut script = Script::new();
    script.insert(0, 1, json!({"sfid": X, "name": "A"}));
    let first = script.now;
    script.wait(-30);
    script.update(0, 1, json!({"sfid": X, "name": "B"}));
    script.each_way(|world, how| {
        let changes = changes(world, X);
        assert_eq!((changes[0].at, changes[1].at), (first, first), "{how}");
        let stored = world.sink.versions(world.sink.rid(1, X).expect("a record"));
        assert_eq!(stored[1].header.raw_at, Some(first - 29 * SECOND), "{how}");
    });
}
