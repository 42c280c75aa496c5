//! The hash front: tells events that repeat what was judged last, before they are decoded (protocol D15).
//!
//! Sound because judging is idempotent: a row whose visible bytes and key equal those of its record's last judged
//! event, and which comes after that event in the source's order, is a no-op, whatever it holds. What stands here is
//! therefore the *last judged event* of a record, not its image, and only of a record that this position is home
//! to. An entry goes as soon as its record changes in any other way ([`Front::forget`]), and all of them go with a
//! rewind or a claim.
//!
//! A bounded table without a list of what was used last: a record that finds no room is judged the long way.

use super::decode::Print;
use super::event::Lsn;
use super::position::{Counter, PositionId};

/// Entries with one hash that are looked through.
const WAYS: usize = 8;
/// Sets of a new table.
const FEWEST: usize = 128;

/// One record's last judged event; `lsn` 0 = free.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    record: i64,
    content: [u64; 2],
    lsn: Lsn,
    status: u32,
    system: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Front {
    entries: Vec<Entry>,
    used: usize,
    most: usize,
}

impl Front {
    /// An empty one that takes at most this many bytes; 0 switches it off.
    pub fn new(bytes: usize) -> Self {
        // A power of two of sets, and growing holds two tables for a moment.
        let sets = bytes / (WAYS * size_of::<Entry>());
        let most = if sets == 0 { 0 } else { WAYS << sets.ilog2() };
        Front { entries: Vec::new(), used: 0, most }
    }

    /// Bytes taken now.
    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the event repeats the last judged one. Says nothing of events that come later.
    #[inline]
    pub fn would_repeat(&self, position_id: PositionId, print: &Print, lsn: Lsn) -> bool {
        self.repeated(position_id, print, lsn).is_some()
    }

    /// Takes an update that repeats the last judged event: the outcome with its reason. `None`: not known to repeat
    /// anything, so it must be judged.
    pub fn repeat(&mut self, position_id: PositionId, print: &Print, lsn: Lsn) -> Option<Counter> {
        let at = self.repeated(position_id, print, lsn)?;
        let entry = self.entries.get_mut(at)?;
        let reason = if entry.system != print.system {
            Counter::NoopSystem
        } else if entry.status != print.status {
            Counter::NoopStatus
        } else {
            Counter::Noop
        };
        *entry = Entry { lsn, status: print.status, system: print.system, ..*entry };
        Some(reason)
    }

    /// Notes an event whose *content* was judged, delta or no-op, in the source's order. Not for duplicates and stale
    /// events: one of those would arm the front with what is no longer so.
    pub fn remember(&mut self, position_id: PositionId, print: &Print, lsn: Lsn) {
        if self.most == 0 || lsn == 0 {
            return;
        }
        let content = mix(position_id, print);
        self.put(Entry { record: print.record, content, lsn, status: print.status, system: print.system });
    }

    /// Hashes of the status and system columns of the record's last judged event.
    pub fn sides(&self, record: i64) -> Option<(u32, u32)> {
        let entry = self.entries.get(self.find(record)?)?;
        Some((entry.status, entry.system))
    }

    /// The record changed otherwise than by an event that is remembered.
    pub fn forget(&mut self, record: i64) {
        if let Some(at) = self.find(record)
            && let Some(entry) = self.entries.get_mut(at)
        {
            *entry = Entry::default();
            self.used -= 1;
        }
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.entries.fill(Entry::default());
        self.used = 0;
    }

    /// The entry that the event repeats: equal content, and later.
    fn repeated(&self, position_id: PositionId, print: &Print, lsn: Lsn) -> Option<usize> {
        self.find(print.record).filter(|at| {
            self.entries.get(*at).is_some_and(|entry| entry.content == mix(position_id, print) && entry.lsn < lsn)
        })
    }

    fn set(&self, record: i64) -> std::ops::Range<usize> {
        let sets = self.entries.len() / WAYS;
        let set = if sets == 0 { 0 } else { record as u64 as usize & (sets - 1) };
        set * WAYS..(set * WAYS + WAYS).min(self.entries.len())
    }

    fn find(&self, record: i64) -> Option<usize> {
        self.set(record).find(|at| self.entries.get(*at).is_some_and(|entry| entry.record == record && entry.lsn != 0))
    }

    fn put(&mut self, new: Entry) {
        let known = self.find(new.record);
        let mut room = self.room(new.record);
        // Sets fill unevenly: one that is full asks for a larger table before the table as a whole is.
        if known.is_none() && room.is_none() && self.entries.len() < self.most && self.used >= self.entries.len() / 4 {
            self.grow();
            room = self.room(new.record);
        }
        let set = self.set(new.record);
        // Without room one goes: which one does not matter, so long as it is not always the same.
        let at = known.or(room).unwrap_or(set.start + (new.content[0] as usize) % WAYS);
        if let Some(entry) = self.entries.get_mut(at) {
            self.used += usize::from(entry.lsn == 0);
            *entry = new;
        }
    }

    fn grow(&mut self) {
        let size = (self.entries.len() * 2).clamp(FEWEST * WAYS, self.most.max(FEWEST * WAYS)).min(self.most);
        let old = std::mem::replace(&mut self.entries, vec![Entry::default(); size]);
        self.used = 0;
        for entry in old.into_iter().filter(|entry| entry.lsn != 0) {
            self.put_back(entry);
        }
    }

    /// A free entry of the record's set.
    fn room(&self, record: i64) -> Option<usize> {
        self.set(record).find(|at| self.entries.get(*at).is_some_and(|entry| entry.lsn == 0))
    }

    fn put_back(&mut self, entry: Entry) {
        if let Some(slot) = self.room(entry.record).and_then(|at| self.entries.get_mut(at)) {
            *slot = entry;
            self.used += 1;
        }
    }
}

/// A row under a key that now comes from another partition is no repeat: its record has to move there.
fn mix(position_id: PositionId, print: &Print) -> [u64; 2] {
    let position = u64::from(position_id as u32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [print.content as u64 ^ position, (print.content >> 64) as u64]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(record: i64, content: u128) -> Print {
        Print { record, content, status: 1, system: 1 }
    }

    #[test]
    fn a_repeat_is_an_equal_row_that_comes_later() {
        let mut front = Front::new(1 << 20);
        assert_eq!(front.repeat(1, &print(7, 70), 10), None);
        front.remember(1, &print(7, 70), 10);
        assert!(front.would_repeat(1, &print(7, 70), 11));
        assert_eq!(front.repeat(1, &print(7, 70), 11), Some(Counter::Noop));
        assert_eq!(front.repeat(1, &print(7, 70), 11), None, "the same event again may be anything but in turn");
        assert_eq!(front.repeat(1, &print(7, 71), 12), None, "another content");
        assert_eq!(front.repeat(2, &print(7, 70), 12), None, "another partition");
        assert_eq!(front.repeat(1, &print(8, 70), 12), None, "another record");
    }

    #[test]
    fn the_reason_is_what_changed_beside_the_content() {
        let mut front = Front::new(1 << 20);
        front.remember(1, &print(7, 70), 10);
        let stamped = Print { system: 2, status: 2, ..print(7, 70) };
        assert_eq!(front.repeat(1, &stamped, 11), Some(Counter::NoopSystem));
        assert_eq!(front.repeat(1, &Print { status: 3, ..stamped }, 12), Some(Counter::NoopStatus));
        assert_eq!(front.repeat(1, &Print { status: 3, ..stamped }, 13), Some(Counter::Noop));
    }

    #[test]
    fn what_is_forgotten_is_not_repeated() {
        let mut front = Front::new(1 << 20);
        front.remember(1, &print(7, 70), 10);
        front.remember(1, &print(8, 80), 10);
        front.forget(7);
        front.forget(9);
        assert_eq!(front.repeat(1, &print(7, 70), 11), None);
        assert_eq!(front.repeat(1, &print(8, 80), 11), Some(Counter::Noop));
        front.clear();
        assert_eq!(front.repeat(1, &print(8, 80), 12), None);
    }

    #[test]
    fn it_grows_to_its_bound_and_no_further() {
        let mut front = Front::new(1 << 20);
        for record in 0..100_000i64 {
            let record = record.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64);
            front.remember(1, &print(record, record as u128), 10);
        }
        assert!(front.bytes() <= 1 << 20 && front.bytes() > 1 << 19, "{}", front.bytes());
        assert!(front.used <= front.entries.len());
        let kept = (0..100_000i64)
            .map(|record| record.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64))
            .filter(|record| front.would_repeat(1, &print(*record, *record as u128), 11))
            .count();
        assert!(kept > front.entries.len() / 2, "{kept} of {}", front.entries.len());
        let mut off = Front::new(0);
        off.remember(1, &print(7, 70), 10);
        assert_eq!((off.repeat(1, &print(7, 70), 11), off.bytes()), (None, 0));
    }
}
