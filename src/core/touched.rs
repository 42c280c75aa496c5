//! Which records a batch judged.

use super::record::KeyHashes;

/// So many may be noted before repeats are looked for.
const FEWEST: usize = 1 << 16;

/// The [`key_hash`](super::record::key_hash)es of the records that a batch judged, changed or not (protocol D9).
///
/// Every event adds one; whether one of them was taken over by another position is asked once in a commit, and seldom
/// there. So adding is an append, and asking reads them all.
#[derive(Debug, Clone, Default)]
pub struct Touched {
    /// With repeats.
    hashes: Vec<i64>,
    /// Length when repeats were taken out last.
    distinct: usize,
}

impl Touched {
    /// Notes a record. Memory is bounded by twice the records, however many events there are.
    pub fn add(&mut self, key_hash: i64) {
        if self.hashes.len() >= self.distinct * 2 + FEWEST {
            self.hashes.sort_unstable();
            self.hashes.dedup();
            self.distinct = self.hashes.len();
        }
        self.hashes.push(key_hash);
    }

    /// Whether one of these is among them.
    pub fn any_of(&self, key_hashes: impl IntoIterator<Item = i64>) -> bool {
        let wanted: KeyHashes = key_hashes.into_iter().collect();
        !wanted.is_empty() && self.hashes.iter().any(|hash| wanted.contains(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_also_after_repeats_were_taken_out() {
        let mut touched = Touched::default();
        assert!(!touched.any_of([0]));
        for n in 0..1_000_000 {
            touched.add(n % 70_000);
            assert!(touched.hashes.len() <= 2 * 70_000 + FEWEST);
        }
        assert!((0..70_000).step_by(997).all(|hash| touched.any_of([-1, hash])));
        assert!(!touched.any_of([-1, 70_000]));
        assert!(!touched.any_of([]));
    }
}
