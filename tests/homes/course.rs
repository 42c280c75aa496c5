//! What the workers race over: a topic's messages, and what the table holds in the end.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::table::{Deed, Table, renumbered};
use crate::worker::{Log, Topic};

/// A range that is delivered again: from where, and how many messages, in thousandths of all.
pub type Again = (u16, u16);

/// What happens to the table. Reloads and re-keyings are frequent: they are what moves records.
pub fn deed(records: u8) -> impl Strategy<Value = Deed> {
    let value = any::<u8>;
    prop_oneof![
        4 => (0..records, value()).prop_map(|(record, value)| Deed::Insert(record, value)),
        12 => (0..records, any::<bool>(), value()).prop_map(|(record, long, value)| Deed::Edit(record, long, value)),
        4 => (0..records).prop_map(Deed::Touch),
        3 => (0..records).prop_map(Deed::Same),
        2 => (0..records).prop_map(Deed::Delete),
        1 => Just(Deed::Reload),
        1 => value().prop_map(Deed::Truncate),
        1 => value().prop_map(Deed::Copy),
        // With its long text: what came late is not placed here.
        4 => (0..records).prop_map(|record| Deed::ChangeKey(record, true)),
        1 => (0..1200u16).prop_map(Deed::Wait),
    ]
}

/// The same random things for the same seed.
pub fn drawn<T>(seed: u64, strategy: impl Strategy<Value = T>) -> T {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    strategy.new_tree(&mut TestRunner::new_with_rng(Config::default(), rng)).expect("a value").current()
}

/// See the module.
pub struct Course {
    pub topic: Topic,
    pub log: Log,
    /// The visible fields of every record that the stream told of; `None` = it is gone.
    pub finals: BTreeMap<String, Option<(String, Option<String>)>>,
}

impl Course {
    pub fn new(records: u8, partitions: i32, deeds: &[Deed], again: &[Again]) -> Course {
        let table = Table::after_deeds(records, i64::from(partitions), deeds);
        let mut messages = table.messages();
        for (from, length) in again {
            // As a connector that died re-emits what it did not note as sent: all partitions from one moment on.
            let to = messages.len() * usize::from(*from) / 1000;
            let back = (messages.len() * usize::from(*length) / 1000).min(to);
            let repeated = messages[to - back..to].to_vec();
            messages.splice(to..to, repeated);
        }
        let mut log = Log::new();
        for message in renumbered(messages).0 {
            log.entry((message.topic.clone(), message.partition)).or_default().push(message);
        }
        let live: BTreeMap<&String, _> =
            table.rows.values().filter_map(|row| Some((row.sfid.as_ref()?, row))).collect();
        let finals = table.told.iter().map(|(sfid, told)| {
            let row = live.get(sfid).map(|row| (row.name.clone(), told.notes.then(|| row.notes.clone())));
            (sfid.clone(), row)
        });
        let topic = table.script.world().topics.into_values().next().expect("a topic");
        Course { topic, log, finals: finals.collect() }
    }

    /// The partitions that have messages, with the end of each.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        self.log.iter().map(|((_, partition), lane)| (*partition, lane.len() as i64)).collect()
    }
}
