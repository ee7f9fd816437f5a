//! What one piece of work takes of the heap, whatever other threads do meanwhile.

use super::super::memory;
use super::{live_bytes, trim};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread took and did not give back; what it freed of others' counts too.
    static HELD: Cell<i64> = const { Cell::new(0) };
    /// Largest [`HELD`] since the work began.
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// What some work came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Bytes of the heap that it left allocated.
    pub held_bytes: u64,
    /// Most that it had allocated at once.
    pub peak_bytes: u64,
}

/// Does some work on this thread and measures it. What other threads allocate for it is not seen.
pub fn metered<T>(work: impl FnOnce() -> T) -> (T, Metered) {
    let (before, outer_peak) = (HELD.get(), PEAK.get());
    PEAK.set(before);
    let done = work();
    let above = |bytes: i64| u64::try_from(bytes - before).unwrap_or(0);
    let metered = Metered { held_bytes: above(HELD.get()), peak_bytes: above(PEAK.get()) };
    PEAK.set(outer_peak.max(PEAK.get()));
    (done, metered)
}

/// Does some work that is none of what is measured around it, as freeing what others allocated is.
pub fn unmetered<T>(work: impl FnOnce() -> T) -> T {
    let (held, peak) = (HELD.get(), PEAK.get());
    let done = work();
    HELD.set(held);
    PEAK.set(peak);
    done
}

/// What some work left in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    pub heap: Metered,
    /// Bytes between those that it left allocated: whole pages are held, of which what parsing
    /// leaves uses half.
    pub holes_bytes: u64,
}

impl Measured {
    /// Bytes that are resident for what the work left.
    pub fn resident_bytes(&self) -> u64 {
        self.heap.held_bytes + self.holes_bytes
    }
}

/// As [`metered`], and by what the kernel says of the process; what other threads allocate or free
/// meanwhile is left out as far as it is counted.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, Measured) {
    let look = || {
        trim();
        memory::process().anonymous_bytes.saturating_sub(live_bytes())
    };
    let before = look();
    let (done, heap) = metered(work);
    let holes_bytes = look().saturating_sub(before).min(heap.peak_bytes);
    (done, Measured { heap, holes_bytes })
}

/// Counts on this thread; it neither allocates nor fails, at a thread's end neither.
pub(super) fn grew(bytes: usize) {
    // Cells without destructors can be used as long as the thread runs.
    let held = HELD.get() + bytes as i64;
    HELD.set(held);
    if held > PEAK.get() {
        PEAK.set(held);
    }
}

pub(super) fn shrank(bytes: usize) {
    HELD.set(HELD.get() - bytes as i64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_measured_within_work() {
        let (inner, outer) = metered(|| {
            grew(100);
            let ((), inner) = metered(|| {
                grew(50);
                grew(30);
                shrank(50);
            });
            shrank(90);
            inner
        });
        assert_eq!(inner, Metered { held_bytes: 30, peak_bytes: 80 });
        assert_eq!(outer, Metered { held_bytes: 40, peak_bytes: 180 });
        let ((), none) = metered(|| shrank(40));
        assert_eq!(none, Metered { held_bytes: 0, peak_bytes: 0 });
    }

    /// A tokenizer for which a model was unloaded counted that model's bytes as its own, came to
    /// less than none, and kept all that building it had been granted: its model never loaded.
    #[test]
    fn what_is_freed_for_others_is_not_measured() {
        let ((), took) = metered(|| {
            grew(100);
            unmetered(|| {
                grew(300);
                shrank(1000);
            });
            shrank(20);
        });
        assert_eq!(took, Metered { held_bytes: 80, peak_bytes: 100 });
    }
}
