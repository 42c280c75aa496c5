//! Events that repeat what was said before, where that is not nothing: the hash front must not take them for no-ops.

use afterimage::core::position::Counter;
use serde_json::json;

use crate::script::{Script, X, Y, story};

#[test]
fn what_came_late_and_comes_true_again_is_an_edit() {
    let mut script = Script::new();
    let row = |name: &str| json!({"sfid": X, "name": name});
    script.insert(0, 1, row("A"));
    script.update(0, 1, row("B"));
    script.insert(1, 2, row("C"));
    // The record comes back under its old key, with just what was read too late.
    script.update(0, 1, row("B"));
    script.messages.swap(1, 2);
    script.as_sent_each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "update name=C", "update name=B"], "{how}");
        assert_eq!(world.count(Counter::Stale), 1, "{how}");
    });
}

#[test]
fn a_record_that_lost_its_key_takes_it_back_by_a_row_that_changes_nothing() {
    let mut script = Script::new();
    let row = |sfid: &str, name: &str| json!({"sfid": sfid, "name": name});
    script.insert(0, 5, row(X, "A"));
    script.update(0, 5, row(X, "A"));
    script.insert(0, 5, row(Y, "B"));
    script.update(0, 5, row(X, "A"));
    script.delete(0, 5);
    script.each_way(|world, how| {
        assert_eq!(story(world, X), ["create name=A", "delete"], "{how}");
        assert_eq!(story(world, Y), ["create name=B"], "{how}");
    });
}
