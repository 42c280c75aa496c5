//! A rate over the last seconds: what is happening now, not what happened on average since the start.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back a rate looks.
pub const WINDOW: Duration = Duration::from_secs(3);

/// A count that only grows, watched over [`WINDOW`].
#[derive(Debug, Default)]
pub struct Rate {
    seen: VecDeque<(Instant, i64)>,
}

impl Rate {
    /// The count is `count` at this moment; moments do not go back.
    pub fn saw(&mut self, at: Instant, count: i64) {
        self.seen.push_back((at, count));
        // The last one from before the window stays: the rate is measured from there.
        while self.seen.get(1).is_some_and(|(second, _)| at.duration_since(*second) >= WINDOW) {
            self.seen.pop_front();
        }
    }

    /// Per second, over the window up to the last look; 0 until there were two looks.
    pub fn per_second(&self) -> f64 {
        match (self.seen.front(), self.seen.back()) {
            (Some((from, before)), Some((to, now))) if to > from => {
                (now - before) as f64 / to.duration_since(*from).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_forgets_what_lies_before_its_window() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(), 0.0);
        rate.saw(at(0), 0);
        assert_eq!(rate.per_second(), 0.0);
        for second in 1..=10 {
            rate.saw(at(second * 1_000), second as i64 * 5_000);
        }
        assert!((rate.per_second() - 5_000.0).abs() < 1.0);
        // It stands still: three seconds later the rate says so, however much came before.
        for tenth in 1..=30 {
            rate.saw(at(10_000 + tenth * 100), 50_000);
        }
        assert_eq!(rate.per_second(), 0.0);
        rate.saw(at(14_000), 50_300);
        assert!((rate.per_second() - 100.0).abs() < 1.0, "{}", rate.per_second());
    }
}
