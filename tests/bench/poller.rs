//! The floor: librdkafka alone, which counts the messages and looks at nothing.

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::rival::{Done, Order, SILENCE, assign, ready};

/// With the client's ordinary call.
pub fn one_by_one(consumer: &BaseConsumer, order: &Order) -> Done {
    ready();
    assign(consumer, order);
    let mut done = Done { messages: 0, bytes: 0 };
    while done.messages < order.messages {
        let message = consumer.poll(SILENCE).expect("a message in time").unwrap();
        done.messages += 1;
        done.bytes += (message.key_len() + message.payload_len()) as u64;
    }
    done
}

/// With the call for many messages, which costs the application's thread a quarter as much.
#[allow(unsafe_code)] // the crate does not wrap this one call
pub fn in_batches(consumer: &BaseConsumer, order: &Order) -> Done {
    use rdkafka::bindings as rd;

    let mut slots: Vec<*mut rd::rd_kafka_message_t> = vec![std::ptr::null_mut(); 1_000];
    // SAFETY: the client is alive as long as the consumer, and this function borrows it. A manual assignment is used, so
    // no rebalance event can be lost on this queue.
    let queue = unsafe { rd::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
    assert!(!queue.is_null(), "a consumer has a queue");
    ready();
    assign(consumer, order);
    let mut done = Done { messages: 0, bytes: 0 };
    while done.messages < order.messages {
        // The call waits until it has as many as it was asked for.
        let wanted = slots.len().min(usize::try_from(order.messages - done.messages).unwrap_or(usize::MAX));
        // SAFETY: `slots` has room for as many messages as are asked for; the queue is valid until it is destroyed below.
        let got =
            unsafe { rd::rd_kafka_consume_batch_queue(queue, SILENCE.as_millis() as i32, slots.as_mut_ptr(), wanted) };
        assert!(got > 0, "no message in {SILENCE:?}");
        for message in &slots[..got as usize] {
            // SAFETY: the first `got` slots hold messages that are ours until they are destroyed, once each.
            unsafe {
                assert!((**message).err as i32 == 0, "{:?}", (**message).err);
                done.messages += 1;
                done.bytes += ((**message).key_len + (**message).len) as u64;
                rd::rd_kafka_message_destroy(*message);
            }
        }
    }
    // SAFETY: our reference, given back once.
    unsafe { rd::rd_kafka_queue_destroy(queue) };
    done
}

/// As a member of a group with the product's settings: says so when it has its first message, and reads on until it is
/// killed.
pub fn member(order: &Order) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &order.brokers).set("group.id", format!("{}.member", order.topic));
    config.set("session.timeout.ms", "6000").set("heartbeat.interval.ms", "2000").set("max.poll.interval.ms", "60000");
    config.set("partition.assignment.strategy", "cooperative-sticky").set("auto.offset.reset", "earliest");
    config.set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    consumer.subscribe(&[&order.topic]).unwrap();
    let mut said = false;
    loop {
        // An error here is a broker that is asked again.
        if let Some(Ok(_)) = consumer.poll(SILENCE)
            && !said
        {
            said = true;
            println!("reads");
        }
    }
}
