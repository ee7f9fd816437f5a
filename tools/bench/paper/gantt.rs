//! Pictures of passes in time: who loads, when compute works and waits, what is held.

use hermes::stream::{Event, What};
use serde::{Deserialize, Serialize};

/// The events of a pass that its picture needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    pub loads: Vec<Load>,
    pub nodes: Vec<Span>,
    pub waits: Vec<Span>,
    pub releases: Vec<Release>,
}

/// Microseconds from the pass's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span(pub u64, pub u64);

/// A block brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub loader: usize,
    pub block: usize,
    pub bytes: u64,
    pub span: Span,
}

/// A block let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub block: usize,
    pub at_us: u64,
}

impl Traced {
    /// Sorts the events of a trace by what they are.
    pub fn of(events: &[Event]) -> Traced {
        let mut traced = Traced::default();
        for event in events {
            let span = Span(event.start_us, event.start_us + event.length_us);
            match event.what {
                What::Load { block, bytes } => {
                    let number = event.thread.rsplit('-').next().and_then(|n| n.parse().ok());
                    let loader = number.unwrap_or(0);
                    traced.loads.push(Load { loader, block, bytes, span });
                }
                What::Release { block } => {
                    traced.releases.push(Release { block, at_us: span.1 });
                }
                What::Wait { .. } => traced.waits.push(span),
                What::Node { .. } => traced.nodes.push(span),
                What::Lease { .. } => {}
            }
        }
        traced
    }
}
