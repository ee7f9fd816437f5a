//! What the engine has done, counted.

use super::pressure::Pressure;
use super::request::Cancel;
use crate::sys::lock::lock;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Declares the counters of a model once: as atomics and as the figures read from them.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one model, from the daemon's start; loading it anew goes on counting.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// What a model's counters stood at.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counted {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The figures now.
            pub fn read(&self) -> Counted {
                Counted { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Requests that got their outputs.
    answered,
    /// Requests that failed: wrong, too large, or a fault of ours.
    failed,
    /// Requests whose client went away or whose time ran out.
    cancelled,
    /// Requests turned away because the queue was full.
    refused,
    /// Traversals of the tape.
    passes,
    /// Requests that took part in them; more than `passes` where some shared one.
    seats,
    /// Time requests waited for their pass.
    queue_us,
    /// Time passes took, from the first node to the last.
    pass_us,
    /// Time compute waited for blocks.
    stall_us,
    /// Bytes of tape read.
    bytes_read,
    /// Blocks whose memory was given back.
    blocks_released,
    /// Texts that were begun.
    sessions,
    /// Those that began as one that was kept.
    prefix_hits,
    /// Tokens of their prompts.
    prompt_tokens,
    /// Of these, those whose keys and values were kept.
    cached_tokens,
    /// Tokens that were generated.
    generated_tokens,
    /// Tokens that were proposed, to be looked at by the pass that read the one before.
    proposed_tokens,
    /// Of these, those that the text went on with.
    accepted_tokens,
    /// Times the model was loaded.
    loads,
    /// Time that took.
    load_us,
}

impl Counters {
    /// Adds to a counter.
    pub(super) fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// The counters of every model that was ever asked for.
#[derive(Debug, Default)]
pub(super) struct CounterSet(Mutex<BTreeMap<String, Arc<Counters>>>);

impl CounterSet {
    /// The counters of a model of the store.
    pub fn of(&self, model: &str) -> Arc<Counters> {
        let mut set = lock(&self.0);
        match set.get(model) {
            Some(counters) => Arc::clone(counters),
            None => Arc::clone(set.entry(model.to_string()).or_default()),
        }
    }

    /// The counters of a model, where it has any: whatever name a client may invent.
    pub fn known(&self, model: &str) -> Option<Arc<Counters>> {
        lock(&self.0).get(model).cloned()
    }

    /// Every model's figures.
    pub fn read(&self) -> BTreeMap<String, Counted> {
        let set = lock(&self.0);
        set.iter().map(|(name, counters)| (name.clone(), counters.read())).collect()
    }
}

/// What a model holds in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub version: String,
    pub variant: String,
    /// Whether it answers; false after a disk error.
    pub in_service: bool,
    /// Bytes of the tape on disk.
    pub tape_bytes: u64,
    /// Bytes of the graph in memory.
    pub graph_bytes: u64,
    /// Bytes of the tape that stay in memory.
    pub pinned_bytes: u64,
}

/// One model's figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStats {
    pub name: String,
    /// What it holds, where it is loaded.
    pub loaded: Option<Loaded>,
    pub counted: Counted,
}

/// The engine's figures at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineStats {
    /// Every model that is loaded or was asked for, by name.
    pub models: Vec<ModelStats>,
    /// Requests that wait.
    pub waiting: usize,
    /// Most that may wait.
    pub waiting_limit: usize,
    /// Texts that are generated, or wait for that.
    pub sessions: usize,
    /// Bytes granted for them, and for those that are kept.
    pub session_bytes: u64,
    /// Of these, what texts are kept in that have ended.
    pub kept_text_bytes: u64,
    /// Bytes of tape that a pass may hold.
    pub window_bytes: u64,
    pub pressure: Pressure,
}

/// Whether the engine moves, for a watchdog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The engine's thread is at work on something.
    pub busy: bool,
    /// Grows with every block that arrives or is leased, every node and every job.
    pub beats: u64,
}

/// What shows that the engine moves, and ends it.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    busy: AtomicBool,
    pub beats: Arc<AtomicU64>,
    /// Ends whatever is under way.
    pub stopping: Cancel,
}

impl Pulse {
    /// The engine moves.
    pub fn beat(&self) {
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it is at work on something.
    pub fn set_busy(&self, is_busy: bool) {
        self.busy.store(is_busy, Ordering::Relaxed);
    }

    /// What a watchdog sees.
    pub fn progress(&self) -> Progress {
        let beats = self.beats.load(Ordering::Relaxed);
        Progress { busy: self.busy.load(Ordering::Relaxed), beats }
    }
}
