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

/// Threads of this process.
pub fn count() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_are_asked_for_are_there_at_once() {
        rehearse(0).unwrap();
        rehearse(40).unwrap();
        assert!(count() >= 1);
    }
}
