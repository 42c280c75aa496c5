//! Odd rows as two versions of the connector really sent them.

use std::collections::BTreeMap;

use afterimage::core::decode::IdentityRule;
use afterimage::core::position::Counter;
use afterimage::core::value::Value;

use crate::recorded::{EDGES, Stream};
use crate::script::story_of;
use crate::worker::{Plan, Restart, World};

fn read(stream: Stream, identity: IdentityRule) -> World {
    let log = stream.log();
    let mut whole = stream.world(identity.clone());
    whole.read(&log, Plan::WHOLE);
    for restart in [Restart::Never, Restart::Warm, Restart::Cold] {
        let mut sliced = stream.world(identity.clone());
        sliced.read(&log, Plan::slices(3, restart));
        assert_eq!(whole.sink.export(), sliced.sink.export(), "{} {restart:?}", stream.file);
    }
    whole
}

fn field(world: &World, object: &str, id: &str, name: &str) -> String {
    let (_, image) = world.sink.image("emea", object, id).unwrap_or_else(|| panic!("{object} {id} is stored"));
    match image.get(name) {
        Some(Value::Text(text)) => text.to_string(),
        other => format!("{other:?}"),
    }
}

#[test]
fn values_at_the_edge_of_their_types_are_stored_as_postgres_prints_them() {
    for stream in EDGES {
        let world = read(stream, IdentityRule::Key);
        assert_eq!(world.count(Counter::Dead), 0, "{}", stream.file);
        for (id, column, want) in [
            ("8", "amount__c", "NaN"),
            ("9", "amount__c", "Infinity"),
            ("10", "amount__c", "-Infinity"),
            ("2", "amount__c", "1.7976931348623157e+308"),
            ("3", "amount__c", "5e-324"),
            ("4", "amount__c", "0.3333333333333333"),
            ("5", "amount__c", "1.2345678901234568e+17"),
            ("6", "amount__c", "1e+21"),
            ("7", "amount__c", "15"),
            ("11", "due__c", "infinity"),
            ("12", "due__c", "-infinity"),
            ("13", "due__c", "0001-01-01"),
            ("14", "due__c", "0044-03-15 BC"),
            ("15", "due__c", "9999-12-31"),
            ("16", "due__c", "1582-10-10"),
            ("17", "due__c", "294276-12-31"),
            ("18", "started__c", "infinity"),
            ("19", "started__c", "-infinity"),
            ("20", "started__c", "2026-02-28 23:59:59.123457"),
            ("22", "started__c", "9999-12-31 23:59:59.999999"),
            ("23", "started__c", "1969-12-31 23:59:59.999999"),
            ("24", "name", "quote \" back \\ nl \n tab \t cr \r"),
            ("25", "name", ""),
        ] {
            assert_eq!(field(&world, "job__c", id, column), want, "{} job__c {id} {column}", stream.file);
        }
        assert!(field(&world, "job__c", "21", "started__c").ends_with(" BC"), "{}", stream.file);
        // Both marks of the stored form, and one that only looks like one.
        let text = field(&world, "job__c", "24", "payload__c");
        assert!(text.contains('\u{1}') && text.contains('\u{1f}') && text.contains('\u{7f}'), "{text:?}");
    }
}

#[test]
fn both_versions_of_the_connector_give_the_same_images() {
    // Infinite dates and timestamps are garbage of another kind in each.
    let images = EDGES.map(|stream| {
        let world = read(stream, IdentityRule::Key);
        let mut images = BTreeMap::new();
        for (org, object, id, _) in world.sink.export() {
            let image = world.sink.image(&org, &object, &id);
            images.insert((org, object, id), image);
        }
        images
    });
    assert!(images[0].len() > 30, "{}", images[0].len());
    for (of, image) in &images[0] {
        let (Some((lives, old)), Some(Some((lived, new)))) = (image, images[1].get(of)) else {
            panic!("{of:?} is in both")
        };
        assert_eq!(lives, lived, "{of:?}");
        // The older recording's connector was told to leave one column out.
        for name in old.keys().chain(new.keys()).filter(|name| *name != "legacy_code__c") {
            assert_eq!(old.get(name), new.get(name), "{of:?} {name}");
        }
    }
    assert_eq!(images[0].len(), images[1].len());
}

#[test]
fn ids_that_could_be_two_are_dead_letters() {
    for stream in EDGES {
        let world = read(stream, IdentityRule::Auto);
        // The recording's ids with a capital letter carry check characters of one without.
        let jobs: Vec<_> = world.sink.export().into_iter().filter(|row| row.0 == "emea" && row.1 == "job__c").collect();
        assert!(jobs.iter().all(|row| row.2.ends_with("AAA") && row.2[..15].bytes().all(|c| !c.is_ascii_uppercase())));
        assert!(jobs.iter().any(|row| row.2 == "a01000000000008AAA"), "{}", stream.file);
        // Ids 10 to 26 in letters, the primary-key change of the last counted twice.
        assert_eq!(world.count(Counter::Dead), 18, "{}", stream.file);
        assert!(world.sink.dead.values().all(|dead| dead.reason == "bad sfid"), "{}", stream.file);
    }
}

#[test]
fn texts_out_of_line_and_columns_that_come_and_go() {
    for stream in EDGES {
        let world = read(stream, IdentityRule::Auto);
        let story = |id: &str| story_of(&world, "apac", "job__c", id);
        // A long text: inserted, not touched by two updates, rewritten with the same words, deleted.
        let toast = story("a02000000000001AAA");
        assert!(toast[0].starts_with("create ") && toast[0].contains("name=toast payload__c=c4ca"), "{}", toast[0]);
        assert_eq!(toast[1..], ["update name=toast b", "delete"], "{}", stream.file);
        // A column that appears empty, one with a default, one that is dropped inside a transaction.
        let columns = story("a02000000000002AAA");
        assert!(columns[0].starts_with("create ") && columns[0].ends_with("name=tier null"), "{}", columns[0]);
        let rest: Vec<&str> = columns[1..].iter().map(String::as_str).collect();
        let want = [
            "update tier__c=gold",
            "update lvl__c=7 name=after default",
            "update lvl__c=∅",
            "update name=same txn 1",
            "update name=same txn 2",
        ];
        assert_eq!(rest, want, "{}", stream.file);
        // A column that was renamed: the old name is not "empty now".
        assert!(story("a02000000000003AAA")[0].contains("title__c="), "{}", stream.file);
    }
}

#[test]
fn a_primary_key_change_is_a_delete_and_a_create_where_the_key_is_the_identity() {
    for stream in EDGES {
        let world = read(stream, IdentityRule::Key);
        let words = |id: &str| -> Vec<String> {
            let story = story_of(&world, "emea", "job__c", id);
            story.iter().map(|words| words.split(' ').next().unwrap_or_default().to_string()).collect()
        };
        assert_eq!(words("26"), ["create", "delete"], "{}", stream.file);
        assert_eq!(words("9001"), ["create"], "{}", stream.file);
    }
}
