//! Whether the engine may be called alive: it is idle, or something has moved of late.

use crate::engine::Progress;
use std::time::{Duration, Instant};

/// What the engine did when it was last seen to move.
#[derive(Debug)]
pub struct Watchdog {
    patience: Duration,
    seen: Progress,
    moved: Instant,
}

impl Watchdog {
    /// A busy engine may stand still for `patience`.
    pub fn new(patience: Duration, now: Instant) -> Watchdog {
        Watchdog { patience, seen: Progress::default(), moved: now }
    }

    /// How long a busy engine has stood still beyond what it may; `None` where it is alive.
    pub fn check(&mut self, progress: Progress, now: Instant) -> Option<Duration> {
        if !progress.busy || progress != self.seen {
            self.seen = progress;
            self.moved = now;
        }
        let still = now.duration_since(self.moved);
        (still > self.patience).then_some(still)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_busy_engine_that_stands_still_is_dead() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(Duration::from_secs(10), start);
        let mut check = |second: u64, busy: bool, beats: u64, expected: bool| {
            let now = start + Duration::from_secs(second);
            let dead = watchdog.check(Progress { busy, beats }, now).is_some();
            assert_eq!(dead, expected, "at {second} s");
        };
        check(5, false, 0, false);
        check(100, false, 0, false);
        check(105, true, 0, false);
        check(115, true, 0, false);
        check(116, true, 0, true);
        check(120, true, 1, false);
        check(130, true, 1, false);
        check(135, true, 1, true);
        check(140, false, 1, false);
        check(200, true, 2, false);
    }
}
