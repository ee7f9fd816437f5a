//! What happened when during a pass, for people who want to see it.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// The events of one pass, in the order in which they ended.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    events: Mutex<Vec<Event>>,
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Name of the thread it happened on.
    pub thread: String,
    pub what: What,
    /// Microseconds from the trace's beginning.
    pub start_us: u64,
    pub length_us: u64,
}

/// What it was. Blocks are numbered along the tape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A loader brought a block in and verified it.
    Load { block: usize, bytes: u64 },
    /// A loader let a block's memory go.
    Release { block: usize },
    /// Compute waited for a block.
    Wait { block: usize },
    /// Compute held a lease of a block.
    Lease { block: usize },
    /// A node of the graph was evaluated.
    Node { name: String },
}

impl Trace {
    /// An empty trace that begins now.
    pub fn begin() -> Trace {
        Trace { began: Instant::now(), events: Mutex::default() }
    }

    /// Begins an event, which ends when the span is dropped.
    pub fn span(&self, what: What) -> Span<'_> {
        Span { trace: self, what: Some(what), since: Instant::now() }
    }

    /// Notes an event that began at `since` and ends now, on this thread.
    pub fn note(&self, what: What, since: Instant) {
        let start_us = since.saturating_duration_since(self.began).as_micros() as u64;
        let length_us = since.elapsed().as_micros() as u64;
        let thread = std::thread::current().name().unwrap_or("unnamed").to_string();
        let event = Event { thread, what, start_us, length_us };
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// The events so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// An event under way.
#[derive(Debug)]
pub struct Span<'a> {
    trace: &'a Trace,
    what: Option<What>,
    since: Instant,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        if let Some(what) = self.what.take() {
            self.trace.note(what, self.since);
        }
    }
}
