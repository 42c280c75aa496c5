//! Troubles that last, and are met again and again while they do: told the first time, when the reason is another, and at
//! growing intervals.

use std::time::{Duration, Instant};

/// One that stays is told again after this long, then after twice as long …
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// … up to this.
const TELL_SELDOM: Duration = Duration::from_secs(3600);

/// What was told last, and when it is to be told again.
#[derive(Debug, Clone)]
pub struct Lasting {
    reason: String,
    since: Instant,
    again: Instant,
    pause: Duration,
}

impl Lasting {
    /// Whether to tell of it now. `known` = what was met last, if it is not over.
    pub fn tell(known: &mut Option<Lasting>, reason: &str, now: Instant) -> bool {
        match known {
            Some(known) if known.reason == reason => {
                let tell = now >= known.again;
                if tell {
                    known.pause = (known.pause * 2).min(TELL_SELDOM);
                    known.again = now + known.pause;
                }
                tell
            }
            _ => {
                let (reason, again) = (reason.to_owned(), now + TELL_AGAIN);
                *known = Some(Lasting { reason, since: now, again, pause: TELL_AGAIN });
                true
            }
        }
    }

    /// How long it has lasted.
    pub fn since(&self) -> Duration {
        self.since.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_told_at_growing_intervals_and_a_new_reason_at_once() {
        let start = Instant::now();
        let (mut known, mut told) = (None, Vec::new());
        // It is met again every second, for two hours.
        for second in 0..7200 {
            if Lasting::tell(&mut known, "cut", start + Duration::from_secs(second)) {
                told.push(second);
            }
        }
        assert_eq!(told, [0, 10, 30, 70, 150, 310, 630, 1270, 2550, 5110]);
        assert!(Lasting::tell(&mut known, "gone", start));
        assert_eq!(known.map(|known| known.pause), Some(TELL_AGAIN));
    }
}
