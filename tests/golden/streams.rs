//! The recorded streams against their truth, however they are read.

use afterimage::core::decode::IdentityRule;
use afterimage::core::position::Counter;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::memory::Change;
use crate::recorded::{Origins, Piece, STREAMS, Stream, arranged, folder};
use crate::truth;
use crate::worker::{Message, Plan, Restart, SMALL_FRONT, World};

type Export = Vec<(String, String, String, Change)>;

fn whole(stream: Stream) -> World {
    let mut world = stream.world(IdentityRule::Auto);
    world.read(&stream.log(), Plan::WHOLE);
    world
}

fn right(stream: Stream, world: &World, how: &str) {
    let wrong = truth::differences(&truth::load(&folder()), &world.sink, stream.snapshot);
    assert!(wrong.is_empty(), "{} {how}: {} differences\n{}", stream.file, wrong.len(), wrong.join("\n"));
}

/// The history with the offsets of the original log, where messages were put between or delivered again.
fn export_of(world: &World, origins: &Origins) -> Export {
    let mut export = world.sink.export();
    for (.., change) in &mut export {
        let lane = &origins[&(change.topic.clone(), change.partition)];
        change.offset = lane[change.offset as usize].expect("history comes from original messages only");
    }
    export
}

fn same(stream: Stream, want: &Export, got: &Export, how: &str) {
    for (want, got) in want.iter().zip(got) {
        assert_eq!(want, got, "{} {how}", stream.file);
    }
    assert_eq!(want.len(), got.len(), "{} {how}", stream.file);
}

fn copies(lane: &[Message]) -> Vec<Piece> {
    (0..lane.len()).map(Piece::Copy).collect()
}

#[test]
fn every_recorded_stream_gives_its_true_history() {
    for stream in STREAMS {
        let world = whole(stream);
        right(stream, &world, "whole");
        assert_eq!(world.count(Counter::Dead), 0, "{}: all of it can be decoded", stream.file);
        assert_eq!(world.count(Counter::Stale), 0, "{}: in time order nothing comes late", stream.file);
    }
}

#[test]
fn slices_and_restarts_change_nothing() {
    for stream in STREAMS {
        let log = stream.log();
        let want = whole(stream).sink.export();
        for batch in [1, 2, 3, 5, 8, 13, 40] {
            for restart in [Restart::Never, Restart::Warm, Restart::Cold] {
                for (chunk, pipelined) in [(1, false), (1000, false), (1, true), (4, true), (1000, true)] {
                    let plan =
                        Plan { chunk, batch, pipelined, restart, front: if batch % 2 == 0 { 0 } else { SMALL_FRONT } };
                    let mut world = stream.world(IdentityRule::Auto);
                    world.read(&log, plan);
                    same(stream, &want, &world.sink.export(), &format!("{plan:?}"));
                }
            }
        }
    }
}

#[test]
fn ranges_delivered_again_change_nothing() {
    for stream in STREAMS {
        let log = stream.log();
        let want = whole(stream).sink.export();
        for seed in 0..25 {
            let mut chance = SmallRng::seed_from_u64(seed);
            let (log, origins) = arranged(&log, |lane| again(lane, &mut chance));
            for plan in [Plan::WHOLE, Plan::slices(chance.random_range(1..30), Restart::Cold)] {
                let mut world = stream.world(IdentityRule::Auto);
                world.read(&log, plan);
                let how = format!("seed {seed} {plan:?}");
                same(stream, &want, &export_of(&world, &origins), &how);
                assert_eq!(world.count(Counter::Stale), 0, "{} {how}: nothing is taken for late", stream.file);
            }
        }
    }
}

/// A connector that lost its place sends a range of each partition once more, and goes on.
fn again(lane: &[Message], chance: &mut SmallRng) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for at in 0..lane.len() {
        pieces.push(Piece::Copy(at));
        if chance.random_bool(0.25) {
            let from = at.saturating_sub(chance.random_range(0..12));
            pieces.extend((from..=at).map(Piece::Copy));
        }
    }
    pieces
}

#[test]
fn a_stream_delivered_twice_adds_nothing() {
    for stream in STREAMS {
        let once = whole(stream);
        let (log, origins) = arranged(&stream.log(), |lane| [copies(lane), copies(lane)].concat());
        for plan in [Plan::WHOLE, Plan::slices(7, Restart::Warm), Plan::slices(7, Restart::Cold)] {
            let mut world = stream.world(IdentityRule::Auto);
            world.read(&log, plan);
            same(stream, &once.sink.export(), &export_of(&world, &origins), &format!("twice {plan:?}"));
            for counter in [Counter::Delta, Counter::Baseline, Counter::Stale, Counter::RowsWritten] {
                assert_eq!(world.count(counter), once.count(counter), "{} {plan:?}: {counter:?}", stream.file);
            }
            assert_eq!(world.sink.late, once.sink.late);
            assert_eq!(world.sink.pending.len(), once.sink.pending.len(), "{}: rows without an id", stream.file);
        }
    }
}

#[test]
fn junk_becomes_dead_letters_and_holds_nothing_up() {
    for stream in STREAMS {
        let log = stream.log();
        let want = whole(stream).sink.export();
        let mut junk = Vec::new();
        let mut nulls = 0;
        let (log, origins) = arranged(&log, |lane| {
            let (first, lane_id) = (&lane[0], (lane[0].topic.clone(), lane[0].partition));
            let mut pieces = Vec::new();
            for (at, (message, bytes)) in lane.iter().zip(std::iter::repeat(not_messages(first)).flatten()).enumerate()
            {
                junk.push((lane_id.clone(), pieces.len() as i64));
                pieces.push(Piece::Extra(message.key.clone(), Some(bytes)));
                pieces.push(Piece::Extra(message.key.clone(), None));
                pieces.push(Piece::Extra(None, None));
                pieces.push(Piece::Extra(message.key.clone(), Some(b"null".to_vec())));
                nulls += 3;
                pieces.push(Piece::Copy(at));
            }
            pieces
        });
        for plan in [Plan::WHOLE, Plan::slices(11, Restart::Cold)] {
            let mut world = stream.world(IdentityRule::Auto);
            world.read(&log, plan);
            same(stream, &want, &export_of(&world, &origins), "with junk");
            let lane = |position: i32| {
                let row = &world.sink.positions[&position];
                let topic = world.sink.sources.iter().find(|(_, ids)| ids.0 == row.source_id).expect("a source").0;
                (topic.clone(), row.partition)
            };
            let mut dead: Vec<_> = world.sink.dead.keys().map(|(at, offset)| (lane(*at), *offset)).collect();
            dead.sort();
            junk.sort();
            assert_eq!(dead, junk, "{}: dead letters are exactly the junk", stream.file);
            for row in world.sink.dead.values() {
                assert!(row.value.is_some() && !row.reason.is_empty(), "its bytes and why: {row:?}");
            }
            assert_eq!(
                world.count(Counter::Tombstone),
                whole(stream).count(Counter::Tombstone) + nulls,
                "{}: every null is a tombstone",
                stream.file
            );
            for row in world.sink.positions.values() {
                let source = world.sink.sources.iter().find(|(_, ids)| ids.0 == row.source_id).expect("a source").0;
                assert_eq!(row.next, log[&(source.clone(), row.partition)].len() as i64, "all of it is passed");
            }
        }
    }
}

/// Bytes that are no message, some of them nearly one.
fn not_messages(first: &Message) -> Vec<Vec<u8>> {
    let value = first.value.clone().expect("a lane begins with a row");
    vec![
        b"".to_vec(),
        b"\xff\xfe\x00\x01".to_vec(),
        b"\x00\x00\x00\x00\x07Obj\x01avro".to_vec(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"17".to_vec(),
        b"{\"op\":\"z\",\"source\":{\"table\":\"x\"}}".to_vec(),
        b"{\"op\":\"c\",\"after\":{\"id\":1,\"sfid\":\"001Ab00002tdk01IAA\"}}".to_vec(),
        b"{\"op\":\"u\",\"after\":null,\"source\":{\"table\":\"x\",\"ts_ms\":1,\"lsn\":1}}".to_vec(),
        value[..value.len() / 2].to_vec(),
        [b"[".repeat(100_000), b"]".repeat(100_000)].concat(),
        value[1..].to_vec(),
    ]
}

#[test]
fn partition_after_partition_no_final_image_is_wrong() {
    for stream in STREAMS {
        let merged = whole(stream);
        let log = stream.log();
        for backwards in [false, true] {
            let mut world = stream.world(IdentityRule::Auto);
            for name in world.topics.keys().cloned().collect::<Vec<_>>() {
                let mut lanes: Vec<_> = log.iter().filter(|((topic, _), _)| *topic == name).map(|(_, l)| l).collect();
                if backwards {
                    lanes.reverse();
                }
                let messages: Vec<Message> = lanes.into_iter().flatten().cloned().collect();
                world.read_in_order(&name, &messages, Plan::slices(6, Restart::Cold));
            }
            // What came too late is kept beside the history, none of it is lost.
            for (rid, row) in &merged.sink.records {
                let (org, object) = {
                    let object = merged.sink.object(row.object_id);
                    (&object.org, &object.name)
                };
                if world.sink.late.values().any(|late| world.sink.records[&late.event.rid].sfid == row.sfid) {
                    continue;
                }
                let got = world.sink.image(org, object, &row.sfid);
                assert_eq!(got, merged.sink.image(org, object, &row.sfid), "{} record {rid} {}", stream.file, row.sfid);
            }
        }
    }
}

#[test]
fn what_came_late_finds_its_place_however_the_partitions_were_read() {
    for stream in STREAMS {
        let want = whole(stream).sink.export();
        let log = stream.log();
        for seed in 0..40 {
            for chunk in [1, 3, 12, 50, usize::MAX] {
                let mut chance = SmallRng::seed_from_u64(seed);
                let mut world = stream.world(IdentityRule::Auto);
                for name in world.topics.keys().cloned().collect::<Vec<_>>() {
                    let lanes = log.iter().filter(|((topic, _), _)| *topic == name).map(|(_, lane)| lane);
                    let messages = in_turns(lanes.collect(), chunk, &mut chance);
                    // Now and then, and at the end.
                    let mut rest = &messages[..];
                    while !rest.is_empty() {
                        let (now, later) = rest.split_at(chance.random_range(1..=rest.len()));
                        world.read_in_order(&name, now, Plan::slices(chance.random_range(1..40), Restart::Warm));
                        let left = world.place_late();
                        assert!(left.is_empty(), "{} seed {seed} by {chunk}: {left:?}", stream.file);
                        rest = later;
                    }
                }
                let how = format!("seed {seed} by {chunk}");
                right(stream, &world, &how);
                same(stream, &want, &world.sink.export(), &how);
            }
        }
    }
}

/// Up to so many messages of one partition, then of another.
fn in_turns(lanes: Vec<&Vec<Message>>, chunk: usize, chance: &mut SmallRng) -> Vec<Message> {
    let mut lanes: Vec<&[Message]> = lanes.into_iter().map(Vec::as_slice).collect();
    let mut out = Vec::new();
    while !lanes.is_empty() {
        let at = chance.random_range(0..lanes.len());
        let (now, later) = lanes[at].split_at(chunk.min(lanes[at].len()));
        out.extend_from_slice(now);
        lanes[at] = later;
        lanes.retain(|lane| !lane.is_empty());
    }
    out
}
