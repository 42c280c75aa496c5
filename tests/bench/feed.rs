//! A load with a pace: messages that are written beside what is measured, on a thread of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::stage;

/// Written at each beat is what is due by then.
const BEAT: Duration = Duration::from_millis(10);

/// A message: topic, key, and value unless it is a tombstone.
pub type Message<'a> = (&'a str, &'a str, Option<&'a [u8]>);

/// Makes events, each of one or more messages.
pub trait Events: Send + 'static {
    /// The next one.
    fn next(&mut self, send: &mut dyn FnMut(Message<'_>));
}

/// A load under way.
pub struct Feed<E> {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: JoinHandle<E>,
}

impl<E: Events> Feed<E> {
    /// Writes `rate` events a second from now on.
    pub fn start(producer: BaseProducer, rate: u32, mut events: E) -> Feed<E> {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let mut beat = tokio::time::interval(BEAT);
                let (begun, mut made) = (Instant::now(), 0);
                while !stopped.load(Ordering::Acquire) {
                    beat.tick().await;
                    let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                    while made < due {
                        events.next(&mut |message| {
                            send(&producer, message);
                            count.fetch_add(1, Ordering::AcqRel);
                        });
                        made += 1;
                    }
                    producer.poll(Duration::ZERO);
                }
            });
            producer.flush(Duration::from_secs(600)).unwrap();
            events
        });
        Feed { stop, written, thread }
    }

    /// Messages so far.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Ends it: the maker of its events, and how many messages they were. All of them are in the topic then.
    pub fn end(self) -> (E, u64) {
        self.stop.store(true, Ordering::Release);
        let events = self.thread.join().expect("a feed that works");
        (events, self.written.load(Ordering::Acquire))
    }
}

/// Hands a message over.
pub fn send(producer: &BaseProducer, (topic, key, value): Message<'_>) {
    let mut record = BaseRecord::to(topic).key(key.as_bytes());
    record.payload = value;
    stage::send(producer, record);
}
