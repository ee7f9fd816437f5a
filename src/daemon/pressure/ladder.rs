//! How signs of pressure become levels, a step at a time.

use crate::engine::Pressure;
use std::time::{Duration, Instant};

/// Shortest stay on a level before the next one up: time to see whether it helped. Less than the
/// 2 s between two signs of the kernel's.
const DWELL: Duration = Duration::from_millis(1500);

/// Time without a sign before a step down: two of the kernel's windows of 2 s.
const CALM: Duration = Duration::from_secs(4);

/// The level, and since when.
#[derive(Debug)]
pub struct Ladder {
    level: Pressure,
    changed: Instant,
    /// The last sign of what the level is for.
    unrest: Instant,
}

impl Ladder {
    /// At its foot.
    pub fn new(now: Instant) -> Ladder {
        Ladder { level: Pressure::None, changed: now, unrest: now }
    }

    /// The level now.
    pub fn level(&self) -> Pressure {
        self.level
    }

    /// Memory is short, as far as `most` says. Whether the level has changed.
    pub fn climb(&mut self, most: Pressure, now: Instant) -> bool {
        if most < self.level {
            return false;
        }
        self.unrest = now;
        let has_dwelt = now.duration_since(self.changed) >= DWELL;
        let may = most > self.level && (has_dwelt || self.level == Pressure::None);
        may && self.step(usize::from(self.level as u8) + 1, now)
    }

    /// Memory is not short, but not so plentiful that anything should be pinned again.
    pub fn stay(&mut self, now: Instant) {
        if self.level == Pressure::Pins {
            self.unrest = now;
        }
    }

    /// When [`Ladder::descend`] is due unless there is a sign before.
    pub fn calm_at(&self) -> Option<Instant> {
        (self.level > Pressure::None).then(|| self.unrest.max(self.changed) + CALM)
    }

    /// A step down, if it is due. Whether the level has changed.
    pub fn descend(&mut self, now: Instant) -> bool {
        let due = self.calm_at().is_some_and(|due| now >= due);
        due && self.step(usize::from(self.level as u8) - 1, now)
    }

    fn step(&mut self, to: usize, now: Instant) -> bool {
        let Some(level) = Pressure::ALL.get(to) else { return false };
        self.level = *level;
        self.changed = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Pressure::{Hold, None, Pins, Window};

    /// What happens at a time in ms, and the level after it.
    fn check(steps: &[(u64, &str, Pressure)]) {
        let start = Instant::now();
        let mut ladder = Ladder::new(start);
        for (ms, what, level) in steps {
            let now = start + Duration::from_millis(*ms);
            let before = ladder.level();
            let changed = match *what {
                "short" => ladder.climb(Hold, now),
                "at most window" => ladder.climb(Window, now),
                "at most pins" => ladder.climb(Pins, now),
                "tight" => {
                    ladder.stay(now);
                    false
                }
                _ => ladder.descend(now),
            };
            assert_eq!(ladder.level(), *level, "at {ms} ms");
            assert_eq!(changed, before != *level, "at {ms} ms");
            assert_eq!(ladder.calm_at().is_some(), *level > None, "at {ms} ms");
        }
    }

    #[test]
    fn each_step_up_takes_a_sign_and_a_dwell() {
        check(&[
            (0, "short", Pins),
            (1499, "short", Pins),
            (1500, "short", Window),
            (2999, "short", Window),
            (9000, "short", Hold),
            (20000, "short", Hold),
        ]);
    }

    #[test]
    fn each_step_down_takes_a_calm() {
        check(&[
            (0, "", None),
            (0, "short", Pins),
            (2000, "short", Window),
            (4000, "short", Hold),
            (5000, "short", Hold),
            (8999, "", Hold),
            (9000, "", Window),
            (9001, "", Window),
            (12999, "", Window),
            (13000, "", Pins),
            // A sign on the way down turns the way, once the dwell is over.
            (14000, "short", Pins),
            (14500, "short", Window),
            (18500, "", Pins),
            // What is tight is not calm, and no reason to climb.
            (22000, "tight", Pins),
            (25999, "", Pins),
            (26000, "", None),
            (26001, "short", Pins),
        ]);
    }

    /// A shortage that lasts, and is mild, has nobody wait for ever.
    #[test]
    fn a_mild_sign_holds_no_higher_level() {
        check(&[
            (0, "at most pins", Pins),
            (2000, "at most pins", Pins),
            (3000, "at most window", Window),
            (5000, "at most window", Window),
            (6000, "short", Hold),
            (7000, "at most window", Hold),
            (9000, "tight", Hold),
            (10000, "", Window),
            (13000, "at most window", Window),
            (14000, "", Window),
            (16000, "at most pins", Window),
            (17000, "", Pins),
            (20000, "at most pins", Pins),
            (23999, "", Pins),
            (24000, "", None),
        ]);
    }
}
