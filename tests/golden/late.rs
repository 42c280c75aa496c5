//! Late events that find their place, and some that find none.

use serde_json::{Value as Json, json};

use crate::script::{Script, TOPIC, X, story};
use crate::worker::{Plan, Restart, World};

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
    let mut script = Script::new();
    let [first, edited, again] = rows;
    script.insert(0, 1, first);
    script.update(0, 1, edited);
    script.update(0, 1, again);
    script.delete(0, 1);
    script.insert(1, 2, returned);
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
