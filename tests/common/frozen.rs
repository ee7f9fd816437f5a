//! Threads of another process held still, as by a deadlock or a disk that does not answer.

#![allow(unsafe_code)]

use libc::{PTRACE_DETACH, PTRACE_INTERRUPT, PTRACE_SEIZE, c_uint, c_void, pid_t};
use std::time::{Duration, Instant};
use std::{fs, thread};

/// Longest wait for a thread that is to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Threads that stand still until this is dropped, by the thread that made it.
pub struct Frozen(Vec<pid_t>);

impl Frozen {
    /// Stops every thread of `process` whose name begins with one of `names`.
    pub fn new(process: u32, names: &[&str]) -> Frozen {
        let since = Instant::now();
        let mut threads = called(process, names);
        // A thread that has just been started has not its name yet.
        while threads.is_empty() {
            assert!(since.elapsed() < PATIENCE, "no thread is called {names:?}");
            thread::sleep(Duration::from_millis(2));
            threads = called(process, names);
        }
        for thread in &threads {
            trace(PTRACE_SEIZE, *thread);
            trace(PTRACE_INTERRUPT, *thread);
            let mut status = 0;
            // SAFETY: the status is an integer of ours.
            assert_eq!(unsafe { libc::waitpid(*thread, &mut status, libc::__WALL) }, *thread);
        }
        Frozen(threads)
    }
}

fn called(process: u32, names: &[&str]) -> Vec<pid_t> {
    let mut threads = vec![];
    for entry in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let path = entry.unwrap().path();
        // One may end meanwhile.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        if names.iter().any(|start| name.starts_with(start)) {
            threads.push(path.file_name().unwrap().to_str().unwrap().parse().unwrap());
        }
    }
    threads
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.iter().for_each(|thread| trace(PTRACE_DETACH, *thread));
    }
}

fn trace(request: c_uint, thread: pid_t) {
    let nothing = std::ptr::null_mut::<c_void>();
    // SAFETY: these requests read and write no memory of ours.
    let result = unsafe { libc::ptrace(request, thread, nothing, nothing) };
    let error = std::io::Error::last_os_error();
    assert!(result == 0, "ptrace({request}) of thread {thread}: {error}");
}
