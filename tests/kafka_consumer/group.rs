//! Members join, leave, claim, lose and stop.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use afterimage::kafka::{Consumer, ConsumerState, EmbeddedBroker, Inbox, KafkaError, Ownership, TopicPartition};

use crate::support::*;

#[test]
fn every_message_is_read_once_while_members_join_leave_and_rewind() {
    let broker = EmbeddedBroker::start(3).unwrap();
    let (partitions, rounds) = (4, 6);
    let topics = topics(&broker, &["a", "b"], partitions);
    let ledger = Arc::new(Ledger::default());
    let settings = settings(&broker, "g");
    // Messages are under way all the time, at a pace that keeps far from the embedded broker's retention.
    let producer = broker.producer().unwrap();
    let written = Arc::new(AtomicUsize::new(0));
    let (done, count) = (Arc::new(AtomicBool::new(false)), Arc::clone(&written));
    let finished = Arc::clone(&done);
    let writer = thread::spawn(move || {
        while !finished.load(Ordering::Acquire) {
            let from = count.fetch_add(20, Ordering::AcqRel) as i64;
            for topic in ["a", "b"] {
                fill(&producer, topic, partitions, from, 20);
            }
        }
    });
    let total = || written.load(Ordering::Acquire) as i64 * 2 * i64::from(partitions);
    let mut workers = vec![Worker::start(&settings, &topics, &ledger, 7)];
    for round in 0..rounds {
        ledger.wait_for(total());
        if round % 2 == 0 {
            workers.push(Worker::start(&settings, &topics, &ledger, 7));
            eventually("both have partitions", || workers.iter().all(|worker| !worker.consumer.assigned().is_empty()));
        } else {
            workers.remove(0).stop();
        }
    }
    done.store(true, Ordering::Release);
    writer.join().unwrap();
    ledger.wait_for(total());
    let rewinds: usize = workers.iter().map(|worker| worker.rewinds.load(Ordering::Acquire)).sum();
    for worker in workers {
        worker.stop();
    }
    println!("{} messages, {rewinds} rewinds by the last worker", total());
    assert!(rewinds > 0);
    ledger.assert_in_order();
    for topic in topics {
        for partition in 0..partitions {
            let end = ledger.next(&TopicPartition::new(Arc::clone(&topic), partition));
            assert_eq!(end, written.load(Ordering::Acquire) as i64);
        }
    }
}

#[test]
fn a_rewind_while_the_revoke_callback_waits_for_the_same_thread_takes_effect_after_it() {
    let single = single(2, 50);
    drain(&single.inbox, 100);
    let ledger = Arc::new(Ledger::default());
    // The callback lets the topic thread (here: a thread of its own) rewind everything, and waits for it.
    let (consumer, inbox, other) = (single.consumer.clone(), Arc::clone(&single.inbox), Arc::clone(&ledger));
    let results = Arc::new(Mutex::new(Vec::new()));
    let written = Arc::clone(&results);
    *single.owner.on_revoke.lock().unwrap() = Some(Box::new(move || {
        let open: Vec<bool> = (0..2).map(|partition| inbox.progress(partition).is_some()).collect();
        let consumer = consumer.clone();
        let rewound = thread::spawn(move || consumer.rewind(&[(at(0), 10), (at(1), 10)])).join().unwrap();
        // Nothing may tell the group that the callback is done: the embedded broker needs 1 s to give the partition
        // to the other member.
        let early = crate::wait::happens_within(Duration::from_secs(3), || !other.positions.lock().unwrap().is_empty());
        written.lock().unwrap().push((open, rewound, early));
    }));
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    eventually("one partition went over", || !single.owner.revoked.lock().unwrap().is_empty());
    *single.owner.on_revoke.lock().unwrap() = None;
    let (gone, lost) = single.owner.revoked.lock().unwrap()[0].clone();
    assert!(!lost);
    let kept = 1 - gone.partition;
    match results.lock().unwrap().as_slice() {
        [(open, Err(KafkaError::NotAssigned(partitions)), early)] => {
            assert_eq!(partitions, std::slice::from_ref(&gone));
            assert_eq!(*open, (0..2).map(|partition| partition == kept).collect::<Vec<_>>());
            assert!(!early, "the other member got the partition during the callback");
        }
        other => panic!("{other:?}"),
    }
    let messages = drain(&single.inbox, 40);
    assert_eq!(messages.iter().map(|message| message.offset).collect::<Vec<_>>(), (10..50).collect::<Vec<_>>());
    assert!(messages.iter().all(|message| message.partition == kept));
    ledger.wait_for(50);
    second.stop();
}

#[test]
fn a_message_written_right_after_the_end_was_met_survives_a_rebalance() {
    // librdkafka resumes a partition from where it was polled; an end-of-partition mark must not count as a message.
    let single = single(2, 5);
    drain(&single.inbox, 10);
    eventually("the end is met", || {
        single.inbox.drain(&mut Vec::new(), 1, Duration::from_millis(10));
        (0..2).all(|partition| single.consumer.tail_position("t", partition) == Some(5))
    });
    let ledger = Arc::new(Ledger::default());
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    eventually("one partition went over", || !single.owner.revoked.lock().unwrap().is_empty());
    fill(&single.producer, "t", 2, 5, 1);
    let message = &drain(&single.inbox, 1)[0];
    assert_eq!((message.offset, message.timestamp_ms, message.key()), (5, Some(1_005), Some(&b"k"[..])));
    assert!(single.inbox.take_faults().is_empty());
    second.stop();
}

#[test]
fn partitions_that_are_not_read_can_be_taken_away_as_well() {
    let single = single(2, 5);
    single.consumer.release(&[at(0), at(1)]);
    let ledger = Arc::new(Ledger::default());
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    ledger.wait_for(5);
    assert_eq!(single.owner.revoked.lock().unwrap().len(), 1);
    single.consumer.stop(PATIENCE).unwrap();
    ledger.wait_for(10);
    second.stop();
}

#[test]
fn what_a_claim_leaves_out_is_claimed_again() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 2);
    fill(&broker.producer().unwrap(), "t", 2, 0, 5);
    let owner = Arc::new(Recorder { refuse: AtomicBool::new(true), ..Recorder::default() });
    let (consumer, inboxes) = Consumer::start(&settings(&broker, "g"), &topics, Arc::clone(&owner) as _).unwrap();
    eventually("claimed twice", || owner.claims.load(Ordering::Acquire) >= 2);
    assert!(consumer.assigned().is_empty());
    owner.refuse.store(false, Ordering::Release);
    drain(&inboxes[0], 10);
    assert_eq!(consumer.assigned().len(), 2);
}

#[test]
fn stopping_revokes_everything_and_leaves_the_group() {
    let single = single(3, 5);
    drain(&single.inbox, 15);
    single.consumer.commit_offsets(&[(at(0), 5)]);
    single.consumer.stop(PATIENCE).unwrap();
    assert_eq!(*single.owner.revoked.lock().unwrap(), (0..3).map(|p| (at(p), false)).collect::<Vec<_>>());
    assert!(matches!(single.consumer.state(), ConsumerState::Stopped));
    assert!(matches!(single.consumer.rewind(&[(at(0), 0)]), Err(KafkaError::Stopped)));
    assert_eq!(single.consumer.high_watermark("t", 0), None);
    assert_eq!(single.inbox.drain(&mut Vec::new(), 1, Duration::ZERO), 0);
    single.consumer.stop(Duration::ZERO).unwrap();
}

#[test]
fn the_last_handle_dropped_leaves_the_group_too() {
    let single = single(1, 0);
    let Single { owner, consumer, .. } = &single;
    drop(consumer.clone());
    thread::yield_now();
    assert!(matches!(consumer.state(), ConsumerState::Running));
    let owner = Arc::clone(owner);
    let Single { consumer, broker: _broker, .. } = single;
    drop(consumer);
    eventually("revoked", || *owner.revoked.lock().unwrap() == [(at(0), false)]);
}

#[test]
fn stopping_while_a_callback_waits_keeps_its_deadline() {
    let single = single(2, 0);
    // Revocation hangs until the gate opens.
    let gate = Arc::new((Mutex::new((false, false)), Condvar::new()));
    let inner = Arc::clone(&gate);
    *single.owner.on_revoke.lock().unwrap() = Some(Box::new(move || {
        let mut state = inner.0.lock().unwrap();
        state.0 = true;
        inner.1.notify_all();
        while !state.1 {
            state = inner.1.wait(state).unwrap();
        }
    }));
    let ledger = Arc::new(Ledger::default());
    let second = Worker::start(&single.settings, &[Arc::from("t")], &ledger, 0);
    let mut state = gate.0.lock().unwrap();
    while !state.0 {
        state = gate.1.wait(state).unwrap();
    }
    drop(state);
    assert!(matches!(single.consumer.stop(Duration::from_millis(50)), Err(KafkaError::StopTimeout)));
    // Neither may the other calls hang.
    assert!(single.consumer.assigned().len() < 2);
    single.consumer.release(&[at(0), at(1)]);
    gate.0.lock().unwrap().1 = true;
    gate.1.notify_all();
    single.consumer.stop(PATIENCE).unwrap();
    eventually("the other has both", || second.consumer.assigned().len() == 2);
    second.stop();
}

#[test]
fn topics_can_be_added() {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 1);
    let producer = broker.producer().unwrap();
    let owner = Arc::new(Recorder::default());
    let (consumer, _) = Consumer::start(&settings(&broker, "g"), &topics, Arc::clone(&owner) as _).unwrap();
    eventually("assigned", || consumer.assigned() == [at(0)]);
    broker.create_topic("u", 1).unwrap();
    fill(&producer, "u", 1, 0, 3);
    let added = consumer.add_topics(&[Arc::from("u"), Arc::from("t")]).unwrap();
    assert_eq!(drain(&added[0], 3).len(), 3);
    assert_eq!(&**added[1].topic(), "t");
    assert!(owner.revoked.lock().unwrap().is_empty());
}

/// An owner that releases what it claims while the first claim is still under way, as a topic's thread may.
struct Hasty {
    consumer: OnceLock<Consumer>,
    claims: AtomicUsize,
    then_reclaim: bool,
}

impl Ownership for Hasty {
    fn claim(&self, partitions: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
        if self.claims.fetch_add(1, Ordering::AcqRel) == 0 {
            let consumer = self.consumer.wait().clone();
            let (partitions, reclaim) = (partitions.to_vec(), self.then_reclaim);
            let released = thread::spawn(move || {
                consumer.release(&partitions);
                if reclaim {
                    consumer.reclaim(&partitions);
                }
            });
            released.join().unwrap();
        }
        partitions.iter().map(|of| (of.clone(), 0)).collect()
    }

    fn revoked(&self, _: &[TopicPartition], _: bool) {}
}

fn hasty(then_reclaim: bool) -> (EmbeddedBroker, Consumer, Arc<Inbox>, Arc<Hasty>) {
    let broker = EmbeddedBroker::start(1).unwrap();
    let topics = topics(&broker, &["t"], 1);
    fill(&broker.producer().unwrap(), "t", 1, 0, 5);
    let owner = Arc::new(Hasty { consumer: OnceLock::new(), claims: AtomicUsize::new(0), then_reclaim });
    let (consumer, inboxes) = Consumer::start(&settings(&broker, "g"), &topics, Arc::clone(&owner) as _).unwrap();
    assert!(owner.consumer.set(consumer.clone()).is_ok());
    (broker, consumer, Arc::clone(&inboxes[0]), owner)
}

#[test]
fn what_is_released_while_it_is_claimed_stays_released_until_it_is_reclaimed() {
    let (_broker, consumer, inbox, owner) = hasty(false);
    eventually("released", || consumer.holding().released == 1);
    let assigned = crate::wait::happens_within(Duration::from_secs(2), || !consumer.assigned().is_empty());
    assert!(!assigned, "assigned without an owner");
    consumer.reclaim(&[at(0)]);
    assert_eq!(drain(&inbox, 5).len(), 5);
    assert_eq!(owner.claims.load(Ordering::Acquire), 2);
}

#[test]
fn what_is_released_and_reclaimed_while_it_is_claimed_is_claimed_again() {
    let (_broker, _consumer, inbox, owner) = hasty(true);
    eventually("a second claim", || owner.claims.load(Ordering::Acquire) == 2);
    assert_eq!(drain(&inbox, 5).len(), 5);
}
