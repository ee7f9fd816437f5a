//! Ctrl-C while a file is embedded: what is done stays, and how to go on is said.

use indicatif::ProgressBar;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use tokio::signal::unix::{SignalKind, signal};

/// The shell's exit code for SIGINT.
const INTERRUPTED: i32 = 130;

/// SIGINT in the kernel's masks of signals.
const MASK: u64 = 1 << (libc::SIGINT - 1);

/// An embedding that may be interrupted: how many lines are done, and where they are.
#[derive(Clone)]
pub struct Interruptible {
    pub partial: PathBuf,
    pub done: Arc<AtomicU64>,
    pub bar: ProgressBar,
}

impl Interruptible {
    /// From now on Ctrl-C ends the program with a word. Where it cannot be waited for, or was ignored
    /// when the program was started, as in the background, nothing changes.
    pub fn watch(self) {
        if is_ignored() {
            return;
        }
        let wait = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                signal(SignalKind::interrupt())?.recv().await;
                std::io::Result::Ok(())
            })?;
            self.end();
            std::io::Result::Ok(())
        };
        // Without it the program ends as any other does.
        drop(thread::Builder::new().name("interrupt".to_owned()).spawn(wait));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
        tell(&self.partial, self.done.load(Ordering::Relaxed));
        process::exit(INTERRUPTED);
    }
}

/// Says where to go on, or leaves nothing where nothing is done.
pub fn tell(partial: &Path, done: u64) {
    match done {
        // Whoever begins anew is not hindered by it either.
        0 => drop(fs::remove_file(partial)),
        1 => hermes_base::tell!(
            "hermesctl: 1 line is in {}: the same command goes on",
            partial.display()
        ),
        done => hermes_base::tell!(
            "hermesctl: {done} lines are in {}: the same command goes on",
            partial.display()
        ),
    }
}

fn is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & MASK != 0)
}
