//! Late events that find their place, and some that find none.

use serde_json::{Value as Json, json};

use crate::script::{Script, TOPIC, X, story};
use crate::worker::{Message, Plan, Restart, World};

/// Reads the messages as they were sent; whether there are anchors is up to `look`, before the late ones are placed.
fn placed(script: &Script, mut look: impl FnMut(&mut World)) -> (World, Vec<String>) {
    let mut world = script.world();
    world.read_in_order(TOPIC, &script.messages, Plan::slices(2, Restart::Cold));
    assert!(!world.sink.late.is_empty(), "something is late");
    look(&mut world);
    let left = world.place_late();
    (world, left)
}

/// Everything late finds its place, and this comes of it.
fn assert_story(script: &Script, want: &[&str]) {
    let (world, left) = placed(script, |_| {});
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(story(&world, X), want);
}

/// What partition 1 has of a moved record is read before what partition 0 still has of it from `late` on.
fn first_partition_1(mut script: Script, late: usize) -> Script {
    let tail = script.messages.split_off(late);
    let (late, newer): (Vec<_>, Vec<_>) = tail.into_iter().partition(|message| message.partition == 0);
    script.messages.extend(newer);
    script.messages.extend(late);
    script
}

/// A record that is edited twice under its first id, and comes back under another one as `returned`.
fn moved(rows: [Json; 3], returned: Json) -> Script {
    moved_and_updated(rows, returned, &[])
}

/// And is shown like this there.
fn moved_and_updated(rows: [Json; 3], returned: Json, there: &[Json]) -> Script {
    let mut script = Script::new();
    let [first, edited, again] = rows;
    script.insert(0, 1, first);
    script.update(0, 1, edited);
    script.update(0, 1, again);
    script.delete(0, 1);
    script.insert(1, 2, returned);
    there.iter().for_each(|row| script.update(1, 2, row.clone()));
    first_partition_1(script, 1)
}

fn row(name: &str) -> Json {
    json!({"sfid": X, "name": name})
}

#[test]
fn without_the_event_that_moved_the_record_the_history_stays_as_it_was() {
    let mut script = moved([row("A"), row("B"), row("A")], row("A"));
    assert_story(&script, &["create name=A", "update name=B", "update name=A"]);
    // Its last edit before the move does not come.
    script.messages.remove(3);
    let (world, left) = placed(&script, |world| world.sink.anchors.clear());
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(story(&world, X), ["create name=A"], "the last image stays");
}

#[test]
fn a_field_that_the_mapping_lost_keeps_what_the_late_event_gave_it() {
    let with = |extra: &str| json!({"sfid": X, "name": "A", "extra__c": extra});
    let script = moved([with("e"), with("f"), with("g")], row("A"));
    assert_story(&script, &["create extra__c=e name=A", "update extra__c=f", "update extra__c=g"]);
}

#[test]
fn a_long_text_that_the_move_did_not_show_is_that_of_the_late_event() {
    let with = |text: &str| json!({"sfid": X, "name": "A", "notes__c": text});
    let script = moved([with("e"), with("f"), with("g")], with(crate::script::UNTOUCHED));
    assert_story(&script, &["create name=A notes__c=e", "update notes__c=f", "update notes__c=g"]);
}

/// As where a topic is made anew under a worker, and read from its start later: what was read of it comes again, late, and
/// is one with its version.
#[test]
fn a_late_event_that_was_judged_before_takes_the_place_of_its_version() {
    let mut script = Script::new();
    let with = |name: &str, extra: &str| json!({"sfid": X, "name": name, "extra__c": extra});
    script.insert(0, 1, with("A", "e"));
    script.update(0, 1, with("A", "f"));
    script.update(0, 1, with("B", "e"));
    script.update(0, 1, with("C", "e"));
    // Partition 1 is the next life: it has all of it, and only its end was read under the first one.
    let all = script.messages.clone();
    let mut messages = vec![all[0].clone(), all[2].clone(), all[3].clone()];
    for (offset, message) in (1..).zip(&mut messages[1..]) {
        message.offset = offset;
    }
    messages.extend(all.into_iter().map(|message| Message { partition: 1, ..message }));
    script.messages = messages;
    assert_story(
        &script,
        &["create extra__c=e name=A", "update extra__c=f", "update extra__c=e name=B", "update name=C"],
    );
}

/// It stands before the event that brought its id, which tells less.
#[test]
fn a_row_that_waited_for_its_id_keeps_its_create_when_only_that_id_comes_again() {
    let mut script = Script::new();
    let with = |sfid: Option<&str>, name: &str, notes: &str| json!({"sfid": sfid, "name": name, "notes__c": notes});
    let untouched = crate::script::UNTOUCHED;
    script.insert(0, 7, with(None, "A", "long"));
    script.update(0, 7, with(Some(X), "A", untouched));
    script.update(0, 7, with(Some(X), "B", untouched));
    script.update(1, 7, with(Some(X), "C", untouched));
    let again = Message { partition: 1, offset: 0, ..script.messages[1].clone() };
    script.messages[3].offset = 1;
    script.messages.insert(3, again);
    assert_story(&script, &["create name=A notes__c=long", "update name=B", "update name=C"]);
}

#[test]
fn a_long_text_that_was_set_back_is_not_that_of_the_late_event() {
    let with = |text: &str| json!({"sfid": X, "name": "A", "notes__c": text});
    let untouched = || with(crate::script::UNTOUCHED);
    // Three rows that change nothing of what is known when they are read; the second one shows the text first.
    let there = [untouched(), with("e"), with("e")];
    let script = moved_and_updated([with("e"), with("f"), with("g")], untouched(), &there);
    let story = ["create name=A notes__c=e", "update notes__c=f", "update notes__c=g", "update notes__c=e"];
    assert_story(&script, &story);
    assert_eq!(placed(&script, |_| {}).0.sink.anchors.len(), 2, "the insert, and that row");
}

#[test]
fn a_field_that_was_emptied_when_it_was_mapped_again_does_not_keep_a_late_value() {
    let with = |extra: Option<&str>| json!({"sfid": X, "name": "A", "extra__c": extra});
    let there = [with(None), row("A"), with(None), with(None)];
    let script = moved_and_updated([row("A"), with(Some("f")), with(Some("g"))], row("A"), &there);
    assert_story(&script, &["create name=A", "backfill extra__c=f", "update extra__c=g", "update extra__c=∅"]);
    assert_eq!(placed(&script, |_| {}).0.sink.anchors.len(), 2, "the insert, and the first of those rows");
}

#[test]
fn a_first_sight_with_an_empty_field_that_earlier_events_did_not_have() {
    let mut script = Script::new();
    script.insert(0, 1, row("A"));
    script.delete(0, 1);
    script.wait(3_600);
    script.insert(1, 2, json!({"sfid": X, "name": "A", "extra__c": null}));
    script.delete(1, 2);
    assert_story(&first_partition_1(script, 0), &["create name=A", "delete", "undelete", "delete"]);
}

#[test]
fn both_halves_of_a_key_change_are_first_deliveries_though_they_share_their_place() {
    let mut script = Script::new();
    script.insert(0, 1, row("A"));
    script.delete(0, 1);
    let with_id = json!({"id": 3, "sfid": X, "name": "A"});
    script.same_transaction(0, "c", 3, Json::Null, with_id);
    script.wait(3_600);
    script.delete(0, 3);
    script.insert(1, 2, row("A"));
    let script = first_partition_1(script, 0);
    let mut world = script.world();
    world.read_in_order(TOPIC, &script.messages, Plan::slices(3, Restart::Never));
    assert!(world.place_late().is_empty());
    // The delete an hour later and the insert after it are a reload.
    assert_eq!(story(&world, X), ["create name=A"]);
}
