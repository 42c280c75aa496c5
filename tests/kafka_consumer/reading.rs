//! One member alone: rewinds, back-pressure, ends of partitions, faults.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use afterimage::kafka::{Consumer, EmbeddedBroker, FaultKind, KafkaError, Producer};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::support::*;

#[test]
fn a_rewind_delivers_exactly_from_its_offset_on() {
    let (partitions, filled) = (3, 3_000);
    let single = single(partitions, filled);
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut next = vec![0_i64; partitions as usize];
    let mut generation = vec![0_u64; partitions as usize];
    let mut rewinds = 0;
    let mut total = filled;
    let deadline = Instant::now() + PATIENCE;
    let mut messages = Vec::new();
    while next.iter().any(|next| *next < total) || rewinds < 300 {
        assert!(Instant::now() < deadline, "{next:?} of {total}, {rewinds} rewinds");
        messages.clear();
        single.inbox.drain(&mut messages, random.random_range(1..500), Duration::from_millis(20));
        for message in &messages {
            let index = message.partition as usize;
            assert_eq!(message.offset, next[index], "partition {index} after {rewinds} rewinds");
            assert!(message.generation >= generation[index], "a message of a generation that was rewound");
            assert_eq!(message.payload(), Some(message.offset.to_string().as_bytes()));
            generation[index] = message.generation;
            next[index] = message.offset + 1;
        }
        if rewinds < 300 {
            // One partition or all; back to anywhere, or to where it is; while more is being written now and then.
            let mut back = Vec::new();
            for partition in 0..partitions {
                if random.random_bool(0.4) {
                    back.push((at(partition), random.random_range(0..=next[partition as usize])));
                }
            }
            if rewinds % 50 == 0 {
                fill(&single.producer, "t", partitions, total, 20);
                total += 20;
            }
            single.consumer.rewind(&back).unwrap();
            for (of, offset) in back {
                let index = of.partition as usize;
                next[index] = offset;
                generation[index] += 1;
                rewinds += 1;
            }
        }
    }
    assert!(single.owner.revoked.lock().unwrap().is_empty(), "the group must not notice a rewind");
    assert_eq!(single.owner.claims.load(Ordering::Acquire), 1);
}

#[test]
fn a_rewind_beside_a_draining_thread_never_lets_an_old_message_through() {
    let single = single(1, 2_000);
    // Where each generation began; the first one at 0.
    let starts = Mutex::new(BTreeMap::from([(single.inbox.progress(0).unwrap().generation, 0)]));
    let done = AtomicBool::new(false);
    let messages = thread::scope(|scope| {
        let drained = scope.spawn(|| {
            let mut messages = Vec::new();
            while !done.load(Ordering::Acquire) {
                single.inbox.drain(&mut messages, 3, Duration::from_millis(1));
            }
            messages
        });
        let mut random = SmallRng::seed_from_u64(1);
        for _ in 0..200 {
            let offset = random.random_range(0..1_000);
            single.consumer.rewind(&[(at(0), offset)]).unwrap();
            starts.lock().unwrap().insert(single.inbox.progress(0).unwrap().generation, offset);
            // Let some of them get going before the next one comes.
            if random.random_bool(0.5) {
                eventually("going on", || single.inbox.progress(0).unwrap().next > offset + 2);
            }
        }
        done.store(true, Ordering::Release);
        drained.join().unwrap()
    });
    let mut next = starts.into_inner().unwrap();
    assert_eq!(next.len(), 201);
    for message in &messages {
        let expected = next.get_mut(&message.generation).unwrap();
        assert_eq!(message.offset, *expected, "generation {}", message.generation);
        *expected += 1;
    }
    assert!(messages.len() > 200, "{}", messages.len());
}

#[test]
fn a_queue_that_nobody_drains_stops_the_fetching_of_its_partition_only() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 2);
    let mut settings = settings(&broker, "g");
    settings.queue_bytes = 512 << 10;
    // Small message sets, as from a real broker: a fetch brings one set whatever its size.
    settings.extra.insert("batch.size".into(), "20000".into());
    let producer = Producer::connect(&settings).unwrap();
    settings.extra.remove("batch.size");
    let (count, size) = (3_000, 1_000);
    for offset in 0..count {
        let text = format!("{offset:0size$}");
        producer.send("t", Some(0), None, Some(text.as_bytes()), None).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let (consumer, inboxes) = Consumer::start(&settings, &topics, Arc::new(Recorder::default())).unwrap();
    let inbox = &inboxes[0];
    // Each of these needs a fetch, and each fetch would also bring partition 0 on.
    let mut other = Vec::new();
    for round in 0..40 {
        producer.send("t", Some(1), None, Some(b"x"), None).unwrap();
        producer.flush(PATIENCE).unwrap();
        eventually("the other partition goes on", || {
            inbox.drain_with(
                &mut other,
                10,
                Duration::from_millis(50),
                |partition| if partition == 1 { 10 } else { 0 },
            );
            other.len() > round
        });
    }
    let queued = inbox.queued(0).unwrap();
    let bound = (settings.queue_bytes / 2 + 20_000) / size;
    assert!(queued <= bound, "{queued} messages queued, at most {bound} expected");
    assert!(queued > 50, "{queued} messages queued");
    let messages = drain(inbox, count as usize);
    let offsets: Vec<i64> = messages.iter().map(|message| message.offset).collect();
    assert_eq!(offsets, (0..count).collect::<Vec<_>>());
    consumer.stop(PATIENCE).unwrap();
}

#[test]
fn the_end_of_a_partition_is_known_again_after_every_message_and_rewind() {
    let single = single(2, 5);
    drain(&single.inbox, 10);
    let tail = |partition| {
        single.inbox.drain(&mut Vec::new(), 1, Duration::from_millis(10));
        single.consumer.tail_position("t", partition)
    };
    eventually("the end is met", || tail(0) == Some(5) && tail(1) == Some(5));
    assert_eq!(single.consumer.high_watermark("t", 0), Some(5));
    fill(&single.producer, "t", 1, 5, 1);
    assert_eq!(drain(&single.inbox, 1)[0].offset, 5);
    assert_ne!(single.consumer.tail_position("t", 0), Some(5), "the old end");
    eventually("the new end is met", || tail(0) == Some(6));
    assert_eq!((tail(1), single.consumer.high_watermark("t", 0)), (Some(5), Some(6)));
    // A rewind to the end itself: nothing to deliver, and the end must be met all the same.
    single.consumer.rewind(&[(at(0), 6)]).unwrap();
    assert_eq!(single.inbox.progress(0).unwrap().end, None);
    eventually("the end is met after a rewind", || tail(0) == Some(6));
    assert_eq!(single.consumer.high_watermark("t", 7), None);
    assert_eq!(single.consumer.tail_position("other", 0), None);
}

#[test]
fn a_released_partition_is_silent_until_it_is_reclaimed() {
    let single = single(2, 5);
    drain(&single.inbox, 10);
    single.consumer.release(&[at(0)]);
    assert_eq!(single.consumer.assigned(), [at(1)]);
    assert_eq!(single.inbox.progress(0), None);
    assert!(matches!(single.consumer.rewind(&[(at(0), 0)]), Err(KafkaError::NotAssigned(_))));
    fill(&single.producer, "t", 2, 5, 1);
    let message = &drain(&single.inbox, 1)[0];
    assert_eq!((message.partition, message.offset), (1, 5));
    single.owner.starts.lock().unwrap().insert(at(0), 3);
    single.consumer.reclaim(&[at(0), at(1)]);
    let offsets: Vec<_> = drain(&single.inbox, 3).iter().map(|message| (message.partition, message.offset)).collect();
    assert_eq!(offsets, [(0, 3), (0, 4), (0, 5)]);
    assert!(single.owner.revoked.lock().unwrap().is_empty(), "the group must not notice");
}

#[test]
fn an_offset_outside_the_log_is_a_fault_and_a_rewind_ends_it() {
    let single = single(2, 5);
    drain(&single.inbox, 10);
    single.consumer.rewind(&[(at(0), 100)]).unwrap();
    let mut faults = Vec::new();
    eventually("the fault", || {
        assert_eq!(single.inbox.drain(&mut Vec::new(), 1, Duration::from_millis(10)), 0);
        faults.extend(single.inbox.take_faults());
        !faults.is_empty()
    });
    assert_eq!((faults[0].partition, faults[0].kind), (0, FaultKind::OutOfRange), "{faults:?}");
    assert_eq!(faults[0].generation, single.inbox.progress(0).unwrap().generation);
    single.consumer.rewind(&[(at(0), 2)]).unwrap();
    let offsets: Vec<_> = drain(&single.inbox, 3).iter().map(|message| message.offset).collect();
    assert_eq!(offsets, [2, 3, 4]);
}

#[test]
fn waking_ends_a_wait() {
    let single = single(1, 0);
    let inbox = Arc::clone(&single.inbox);
    let waiting = thread::spawn(move || inbox.drain(&mut Vec::new(), 1, PATIENCE * 10));
    single.inbox.wake();
    eventually("woken", || waiting.is_finished());
    assert_eq!(waiting.join().unwrap(), 0);
}
