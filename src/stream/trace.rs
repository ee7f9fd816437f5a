//! What happened when during a pass, for people who want to see it.

use crate::sys::threads::ThreadClocks;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// The events of one pass, in the order in which they ended.
#[derive(Debug)]
pub struct Trace {
    began: Instant,
    events: Mutex<Vec<Event>>,
    /// Those of the compute threads, from the first node on.
    clocks: OnceLock<ThreadClocks>,
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
    Node(Node),
}

/// What is known of a node that was evaluated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub op: String,
    /// How often it multiplied a weight of the tape with something.
    pub multiplications: u64,
    /// Time of processors that the compute threads took meanwhile, in microseconds.
    pub processors_us: u64,
}

/// What the names of compute threads begin with.
pub const COMPUTE_THREADS: &str = "compute-";

impl Trace {
    /// An empty trace that begins now.
    pub fn begin() -> Trace {
        Trace { began: Instant::now(), events: Mutex::default(), clocks: OnceLock::new() }
    }

    /// Begins the evaluation of a node, which ends when the span is dropped.
    pub fn node(&self, node: Node) -> NodeSpan<'_> {
        let clocks = self.clocks.get_or_init(|| ThreadClocks::of(COMPUTE_THREADS));
        NodeSpan { trace: self, clocks, node, ran_us: clocks.total_us(), since: Instant::now() }
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

/// A node that is being evaluated.
#[derive(Debug)]
pub struct NodeSpan<'a> {
    trace: &'a Trace,
    clocks: &'a ThreadClocks,
    node: Node,
    ran_us: u64,
    since: Instant,
}

impl Drop for NodeSpan<'_> {
    fn drop(&mut self) {
        let mut node = std::mem::take(&mut self.node);
        node.processors_us = self.clocks.total_us().saturating_sub(self.ran_us);
        self.trace.note(What::Node(node), self.since);
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
