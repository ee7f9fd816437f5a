//! What a traced pass did, small enough to be handed on: who loaded, when compute worked and
//! waited, what was held.

use hermes::store::ModelDir;
use hermes::store::layer_file::Layout;
use hermes::stream::{Event, What};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The events of a pass that its picture needs, in microseconds from the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced {
    pub loads: Vec<Load>,
    pub nodes: Vec<Span>,
    pub waits: Vec<Span>,
    pub releases: Vec<Release>,
}

/// From when to when.
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
        let began = events.iter().map(|event| event.start_us).min().unwrap_or(0);
        for event in events {
            let start = event.start_us - began;
            let span = Span(start, start + event.length_us);
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
                What::Node(_) => traced.nodes.push(span),
                What::Lease { .. } => {}
            }
        }
        traced
    }

    /// When the last event ended.
    pub fn end_us(&self) -> u64 {
        let spans = self.nodes.iter().chain(&self.waits).copied();
        spans.chain(self.loads.iter().map(|load| load.span)).map(|span| span.1).max().unwrap_or(0)
    }

    /// Loaders that loaded anything, by their numbers.
    pub fn loaders(&self) -> Vec<usize> {
        let mut loaders: Vec<usize> = self.loads.iter().map(|load| load.loader).collect();
        loaders.sort_unstable();
        loaders.dedup();
        loaders
    }

    /// Bytes held as they change: when, and how many from then on. A block counts from the
    /// beginning of its load.
    pub fn held(&self) -> Vec<(u64, u64)> {
        let sizes: HashMap<usize, u64> =
            self.loads.iter().map(|load| (load.block, load.bytes)).collect();
        let taken = self.loads.iter().map(|load| (load.span.0, load.bytes as i64));
        let given = self
            .releases
            .iter()
            .filter_map(|release| Some((release.at_us, -(*sizes.get(&release.block)? as i64))));
        let mut changes: Vec<(u64, i64)> = taken.chain(given).collect();
        changes.sort_unstable();
        let mut held = 0i64;
        let steps = changes.into_iter().map(|(at_us, bytes)| {
            held += bytes;
            (at_us, held.max(0) as u64)
        });
        steps.collect()
    }
}

/// How many blocks of a model's tape each layer has, as far as its layer files tell: where a
/// weight is used twice there are more.
pub fn blocks_of_layers(dir: &ModelDir, variant: Option<&str>) -> anyhow::Result<Vec<usize>> {
    let manifest = &dir.manifest;
    let variant = variant.or(manifest.variants.first().map(String::as_str)).unwrap_or_default();
    let mut counts = vec![];
    for layer in 0..manifest.layers.len() {
        let file = dir.open_layer(layer, variant)?;
        let streamed = file.index.tensors.iter().filter(|tensor| tensor.layout != Layout::Rows);
        counts.push(streamed.map(|tensor| tensor.block_count).sum());
    }
    Ok(counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hermes::stream::Node;

    fn event(thread: &str, what: What, start_us: u64, length_us: u64) -> Event {
        Event { thread: thread.to_string(), what, start_us, length_us }
    }

    #[test]
    fn events_are_sorted_and_begin_at_nothing() {
        let traced = Traced::of(&[
            event("loader-1", What::Load { block: 0, bytes: 10 }, 100, 20),
            event("loader-0", What::Load { block: 1, bytes: 7 }, 110, 20),
            event("engine", What::Wait { block: 0 }, 101, 19),
            event("engine", What::Node(Node::default()), 101, 40),
            event("engine", What::Lease { block: 0 }, 120, 5),
            event("loader-1", What::Release { block: 0 }, 125, 1),
        ]);
        assert_eq!(traced.loaders(), [0, 1]);
        assert_eq!(traced.loads[0].span, Span(0, 20));
        assert_eq!((traced.waits[0], traced.nodes[0]), (Span(1, 20), Span(1, 41)));
        assert_eq!(traced.end_us(), 41);
        assert_eq!(traced.held(), [(0, 10), (10, 17), (26, 7)]);
    }

    #[test]
    fn nothing_happened() {
        let traced = Traced::of(&[]);
        assert_eq!((traced.end_us(), traced.held(), traced.loaders()), (0, vec![], vec![]));
    }
}
