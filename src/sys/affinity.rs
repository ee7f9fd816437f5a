//! Pinning threads to cores, within what the system lets us use.
//!
//! The number of cores is asked here and nowhere else. [`CORES`] tells the program of another one, so
//! that what it does on a board of four or eight can be tried on a machine of two: it plans, starts
//! and pins threads for so many, and pins wrap around the cores that there are.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use std::sync::OnceLock;

/// The environment variable that says how many cores there are to be, from 1 to 256.
pub const CORES: &str = "HERMES_CORES";

/// More than any board has.
const MOST_CORES: usize = 256;

/// The cores this process may run on, ascending; by [`CORES`] the first numbers. Never empty: core 0
/// where the kernel does not say.
pub fn allowed_cores() -> Vec<usize> {
    told_cores().map_or_else(system_cores, |count| (0..count).collect())
}

/// Pins the calling thread to one of [`allowed_cores`]; a refusal is logged and the thread runs
/// unpinned.
pub fn pin_current_thread(core: usize) {
    let core = match told_cores() {
        Some(_) => *wrapped(core, all_cores()),
        None => core,
    };
    let mut set = CpuSet::new();
    let pinned = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(error) = pinned {
        log::warn!("cannot pin a thread to core {core} ({error}): it runs unpinned");
    }
}

/// How many cores [`CORES`] tells of, which is read at the first call.
fn told_cores() -> Option<usize> {
    static TOLD: OnceLock<Option<usize>> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let text = std::env::var_os(CORES)?;
        let told = parse(&text.to_string_lossy());
        if told.is_none() {
            log::warn!("{CORES}: {text:?} is no number from 1 to {MOST_CORES}");
        }
        // Before a thread is pinned: it asks for its own.
        all_cores();
        told
    })
}

fn parse(text: &str) -> Option<usize> {
    text.trim().parse().ok().filter(|count| (1..=MOST_CORES).contains(count))
}

/// What core `index` is where there are only these.
fn wrapped(index: usize, cores: &[usize]) -> &usize {
    &cores[index % cores.len()]
}

/// The cores that the calling thread may run on.
fn system_cores() -> Vec<usize> {
    let cores = sched_getaffinity(Pid::from_raw(0))
        .map(|set| (0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
        .unwrap_or_else(|_| vec![]);
    if cores.is_empty() { vec![0] } else { cores }
}

/// The cores that the first thread to ask may run on.
fn all_cores() -> &'static [usize] {
    static ALL: OnceLock<Vec<usize>> = OnceLock::new();
    ALL.get_or_init(system_cores)
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
        let (cores, system) = (allowed_cores(), system_cores());
        for core in &cores {
            let pin = || {
                pin_current_thread(*core);
                system_cores()
            };
            let found = std::thread::scope(|scope| scope.spawn(pin).join().unwrap());
            let expected = if told_cores().is_some() { wrapped(*core, &system) } else { core };
            assert_eq!(found, [*expected]);
        }
        assert_eq!(system_cores(), system, "the other threads stay where they were");
    }

    #[test]
    fn told_cores_wrap_around_those_there_are() {
        let check =
            |text: &str, expected: Option<usize>| assert_eq!(parse(text), expected, "{text}");
        check("4", Some(4));
        check(" 1 ", Some(1));
        check("0", None);
        check("257", None);
        check("four", None);
        let places = [0, 1, 2, 3, 7].map(|core| *wrapped(core, &[4, 6]));
        assert_eq!(places, [4, 6, 4, 6, 6]);
    }
}
