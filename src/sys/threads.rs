//! Whether there may be as many threads as will be needed: a unit's TasksMax=, a cgroup's pids.max
//! or a user's limit of processes may be below.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Stack of a thread that only waits.
const STACK_BYTES: usize = 64 << 10;

/// Fewer threads than were asked for.
#[derive(Debug)]
pub struct Shortage {
    /// Those that there were.
    pub had: usize,
    /// Why there was not one more.
    pub error: io::Error,
}

/// Starts `count` threads that wait for each other, and ends them all.
///
/// # Errors
/// [`Shortage`] where the system refuses one of them.
pub fn rehearse(count: usize) -> Result<(), Shortage> {
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let wait = |gate: Arc<(Mutex<bool>, Condvar)>| {
        let (is_open, opened) = &*gate;
        let closed = is_open.lock().unwrap_or_else(PoisonError::into_inner);
        let _open = opened.wait_while(closed, |is_open| !*is_open);
    };
    let mut threads = Vec::with_capacity(count);
    let mut refused = None;
    for _ in 0..count {
        let gate = Arc::clone(&gate);
        let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
        match builder.spawn(move || wait(gate)) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    *gate.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    gate.1.notify_all();
    let had = threads.len();
    threads.into_iter().for_each(|thread| drop(thread.join()));
    refused.map_or(Ok(()), |error| Err(Shortage { had, error }))
}

/// Processor time of some threads of this process, read while they run.
#[derive(Debug)]
pub struct ThreadClocks(Vec<libc::clockid_t>);

/// How the kernel numbers the clock of what a thread has run: its id inverted, above these bits
/// (CPUCLOCK_PERTHREAD and CPUCLOCK_SCHED in the kernel's posix-timers.h).
const THREAD_CLOCK: libc::clockid_t = 4 | 2;
const CLOCK_BITS: u32 = 3;

impl ThreadClocks {
    /// Those of the threads that there are now whose names begin with `prefix`.
    pub fn of(prefix: &str) -> ThreadClocks {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let named = tasks.filter(|task| {
            let name = std::fs::read_to_string(task.path().join("comm"));
            name.is_ok_and(|name| name.starts_with(prefix))
        });
        let id = |task: std::fs::DirEntry| task.file_name().to_str()?.parse().ok();
        let clock = |id: libc::clockid_t| !id << CLOCK_BITS | THREAD_CLOCK;
        ThreadClocks(named.filter_map(id).map(clock).collect())
    }

    /// What they have run, all together, in microseconds. A thread that has ended counts nothing.
    pub fn total_us(&self) -> u64 {
        let time_us = |clock: &libc::clockid_t| {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: `time` is a timespec of ours, which the call fills or leaves as it is.
            unsafe { libc::clock_gettime(*clock, &raw mut time) };
            time.tv_sec.unsigned_abs() * 1_000_000 + time.tv_nsec.unsigned_abs() / 1000
        };
        self.0.iter().map(time_us).sum()
    }
}

/// Threads of this process.
pub fn count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::affinity::thread_cpu_us;

    #[test]
    fn clocks_tell_what_threads_have_run() {
        let spun_us = 3000;
        let spin = move || {
            let none = ThreadClocks::of("clocked").total_us();
            while thread_cpu_us() < spun_us {
                std::hint::spin_loop();
            }
            (none, ThreadClocks::of("clocked").total_us())
        };
        let thread = std::thread::Builder::new().name("clocked-0".to_owned());
        let (before_us, after_us) = thread.spawn(spin).unwrap().join().unwrap();
        assert!(before_us < after_us && after_us >= spun_us, "{before_us} and {after_us}");
    }

    #[test]
    fn as_many_as_are_asked_for_are_there_at_once() {
        rehearse(0).unwrap();
        rehearse(40).unwrap();
        assert!(count() >= 1);
    }
}
