//! Ctrl-C, and being told to end: who has begun to write into a store removes what it wrote.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use std::process;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

/// Nothing is written: a signal ends the process at once.
const IDLE: u8 = 0;
/// A signal is waited for by [`check`].
const WRITING: u8 = 1;
/// It has come; the next one ends the process.
const ASKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// The shell's exit code for SIGINT.
const INTERRUPTED: i32 = 130;

/// Takes SIGINT, SIGTERM and SIGHUP from now on. To be called before there are other threads, which
/// inherit that they do not get them.
pub fn begin() -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().context("cannot take signals")?;
    let wait = move || {
        while signals.wait().is_ok() {
            let asked =
                STATE.compare_exchange(WRITING, ASKED, Ordering::Relaxed, Ordering::Relaxed);
            if asked.is_err() {
                process::exit(INTERRUPTED);
            }
        }
    };
    thread::Builder::new().name("signals".to_string()).spawn(wait)?;
    Ok(())
}

/// From now on there is something to remove.
pub fn writing() {
    STATE.store(WRITING, Ordering::Relaxed);
}

/// Fails once a signal has come.
pub fn check() -> Result<()> {
    if STATE.load(Ordering::Relaxed) == ASKED {
        bail!("interrupted; what was written is removed");
    }
    Ok(())
}
