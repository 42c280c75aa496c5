//! That no broker can be reached is met again with every attempt to connect: many times a second. It is told when it begins,
//! now and then while it lasts, and when it is over.

use std::time::{Duration, Instant};

/// Told again after so long.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// Between two questions whether it is over.
const ASK: Duration = Duration::from_secs(1);

/// One that lasts.
#[derive(Debug)]
struct Lasting {
    since: Instant,
    told: Instant,
    asked: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outage(Option<Lasting>);

impl Outage {
    /// No broker can be reached; whether to tell of it now.
    pub fn met(&mut self, now: Instant) -> bool {
        let Some(lasting) = &mut self.0 else {
            self.0 = Some(Lasting { since: now, told: now, asked: now });
            return true;
        };
        let tell = now.duration_since(lasting.told) >= TELL_AGAIN;
        if tell {
            lasting.told = now;
        }
        tell
    }

    /// Whether to ask now if it is over: the client does not tell.
    pub fn is_to_be_asked(&mut self, now: Instant) -> bool {
        let Some(lasting) = self.0.as_mut().filter(|lasting| now.duration_since(lasting.asked) >= ASK) else {
            return false;
        };
        lasting.asked = now;
        true
    }

    /// A broker has answered: how long none did, if that is news.
    pub fn over(&mut self, now: Instant) -> Option<Duration> {
        self.0.take().map(|lasting| now.duration_since(lasting.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_when_it_begins_now_and_then_and_when_it_is_over() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(outage.over(at(0)), None, "there is none");
        assert!(!outage.is_to_be_asked(at(0)));
        // Met again every 100 ms, for 100 seconds.
        let told: Vec<u64> = (0..1000).map(|n| n * 100).filter(|ms| outage.met(at(*ms))).collect();
        assert_eq!(told, [0, 30_000, 60_000, 90_000]);
        let asked: Vec<u64> = (0..30).map(|n| n * 100).filter(|ms| outage.is_to_be_asked(at(100_000 + ms))).collect();
        assert_eq!(asked, [0, 1_000, 2_000]);
        assert_eq!(outage.over(at(103_000)), Some(Duration::from_secs(103)));
        assert_eq!(outage.over(at(103_000)), None);
        assert!(outage.met(at(103_100)), "another one");
    }
}
