//! Pinning threads to cores, within what the system lets us use.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

/// The cores this process may run on, ascending. Never empty: core 0 where the kernel does not
/// say.
pub fn allowed_cores() -> Vec<usize> {
    let cores = sched_getaffinity(Pid::from_raw(0))
        .map(|set| (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
        .unwrap_or_else(|_| vec![]);
    if cores.is_empty() { vec![0] } else { cores }
}

/// Pins the calling thread to one core; a refusal is logged and the thread runs unpinned.
pub fn pin_current_thread(core: usize) {
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        log::warn!("cannot pin a thread to core {core} ({error}): it runs unpinned");
    }
}

/// Time of processors that the calling thread has taken, in microseconds (getrusage(2),
/// RUSAGE_THREAD).
pub fn thread_cpu_us() -> u64 {
    let micros = |time: TimeVal| time.num_microseconds().max(0) as u64;
    getrusage(UsageWho::RUSAGE_THREAD)
        .map_or(0, |usage| micros(usage.user_time()) + micros(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_run_on_its_core_alone() {
        let cores = allowed_cores();
        for core in &cores {
            let pin = || {
                pin_current_thread(*core);
                allowed_cores()
            };
            assert_eq!(std::thread::scope(|scope| scope.spawn(pin).join().unwrap()), [*core]);
        }
        assert_eq!(allowed_cores(), cores, "the other threads stay where they were");
    }
}
