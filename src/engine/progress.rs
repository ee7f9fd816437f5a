//! Whether the engine moves, for whoever watches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The engine at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the engine's thread is in a job, or one waits for it.
    pub busy: bool,
    /// Grows with each block leased, node evaluated and job finished.
    pub beats: u64,
}

/// The engine's side of [`Progress`]. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Beats(Arc<State>);

#[derive(Debug, Default)]
struct State {
    busy: AtomicBool,
    beats: AtomicU64,
}

impl Beats {
    /// Something moved.
    pub fn beat(&self) {
        self.0.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins a job, which ends when what is returned is dropped.
    pub fn job(&self) -> JobBeat<'_> {
        self.0.busy.store(true, Ordering::Relaxed);
        JobBeat(self)
    }

    /// The engine now.
    pub fn progress(&self) -> Progress {
        Progress {
            busy: self.0.busy.load(Ordering::Relaxed),
            beats: self.0.beats.load(Ordering::Relaxed),
        }
    }
}

/// A job under way.
pub struct JobBeat<'a>(&'a Beats);

impl Drop for JobBeat<'_> {
    fn drop(&mut self) {
        self.0.beat();
        self.0.0.busy.store(false, Ordering::Relaxed);
    }
}
