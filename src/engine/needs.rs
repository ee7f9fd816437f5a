//! What loading a model and serving a request take, as far as a manifest tells. Pure.

use crate::store::manifest::{Dim, HEAP_BYTES_PER_BYTE, Manifest};
use crate::store::{Demand, Store};
use crate::stream::MARGIN_BYTES;
use serde::Serialize;

/// What a request holds besides its inputs: its connection, names, figures.
pub(super) const REQUEST_BYTES: u64 = 64 << 10;

/// Default window, and the smallest the program chooses by itself.
pub(super) const WINDOW_BYTES: u64 = 16 << 20;
pub(super) const SMALLEST_WINDOW_BYTES: u64 = 4 << 20;

/// What a copy takes beside its heap's limit: relocated data, stacks, the C library's own; measured,
/// 1.5 MiB.
const COPY_BYTES: u64 = 4 << 20;

/// What parsing and optimizing a graph holds at its peak where the manifest does not say: several
/// forms of it at once. Measured on the real models, 6 to 32 bytes a byte of the file.
const LOADING_BYTES_PER_FILE_BYTE: u64 = 20;

/// The least that is believed: the file, its messages, and a graph of them.
const LEAST_BYTES_PER_FILE_BYTE: u64 = 4;

/// What loading holds besides: the tape, the layer files' indexes.
pub(super) const TAPE_BYTES: u64 = 1 << 20;

/// Heap that loading a model with a graph of so many bytes is granted. What was measured where it was
/// built is the same here but for a processor's own packing of the small weights; the largest of what
/// was measured counts.
pub(super) fn loading_bytes(file_bytes: u64, measured_bytes: Option<u64>) -> u64 {
    let import_bytes = match measured_bytes {
        Some(bytes) => bytes
            .saturating_add(bytes / 16)
            .max(file_bytes.saturating_mul(LEAST_BYTES_PER_FILE_BYTE)),
        None => file_bytes.saturating_mul(LOADING_BYTES_PER_FILE_BYTE),
    };
    import_bytes.saturating_add(TAPE_BYTES)
}

/// Heap that a graph of so many bytes comes to hold as a model: its tape and indexes too.
pub(super) fn held_by_graph(graph_bytes: u64) -> u64 {
    graph_bytes.saturating_add(graph_bytes / 16).saturating_add(TAPE_BYTES)
}

/// Heap that finding out which precisions a version's tensors have is granted.
pub(super) fn ladder_bytes(manifest: &Manifest) -> u64 {
    let file_bytes = manifest.precision.as_ref().map_or(0, |file| file.bytes);
    file_bytes.saturating_mul(HEAP_BYTES_PER_BYTE).saturating_add(TAPE_BYTES)
}

/// Bytes that trying a graph takes, where importing it takes so many.
pub(super) fn trying_bytes(import_bytes: u64) -> u64 {
    import_bytes.saturating_add(COPY_BYTES)
}

/// What any model of a store takes to serve the usual request, where every open dimension has this
/// length, and a text.
pub(super) fn needed_by_any(store: &Store, length: u64) -> u64 {
    let models = store.models().unwrap_or_default();
    let demands = models.iter().filter_map(|model| store.demand(model).ok());
    demands.map(|demand| needed_with_texts(&demand, length)).max().unwrap_or(0)
}

/// What serving the usual request takes where every open dimension has this length, and a text where
/// the model has a tokenizer: one of so many tokens, read and written, where it writes texts. No text is
/// longer than its makers say.
pub(super) fn needed_with_texts(demand: &Demand, length: u64) -> u64 {
    let length = length.min(demand.longest_text().unwrap_or(u64::MAX));
    let tokenizer_bytes = demand.tokenizer_bytes();
    // While it is loaded, the window has what it has of a budget of that size.
    let window_bytes = tokenizer_bytes.clamp(SMALLEST_WINDOW_BYTES, WINDOW_BYTES);
    let tokenizing = [window_bytes, REQUEST_BYTES, tokenizer_bytes];
    let tokenizing = tokenizing.into_iter().fold(0, u64::saturating_add);
    // A tokenizer gives way to its model, if need be, but not to one that writes by it.
    let serving = match demand.writing_bytes() {
        Some(held_bytes) => needed_to_write(demand, length).saturating_add(held_bytes),
        None => needed_bytes(demand, demand.inputs_bytes(length), length),
    };
    serving.max(tokenizing)
}

/// What writing a text of so many tokens takes beside the process itself and the tokenizer. It is read
/// token by token, if need be.
pub(super) fn needed_to_write(demand: &Demand, tokens: u64) -> u64 {
    let kept_bytes = demand.inputs_bytes(tokens);
    let kept_bytes = kept_bytes.saturating_add(kept_bytes / 8);
    let copies = if demand.needs.as_ref().is_some_and(|needs| needs.appends) { 1 } else { 2 };
    needed_bytes(demand, kept_bytes.saturating_mul(copies), 1)
}

/// Heap that a parsed manifest holds for each byte of its text; measured, 1.5 to 1.8.
const MANIFEST_BYTES_PER_BYTE: u64 = 2;

/// A budget in which requests of a length are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Of each open dimension; none where there is no such.
    pub length: Option<u64>,
    pub bytes: u64,
}

/// The smallest budgets that would do, by the length of requests, none longer than the model's texts,
/// where the daemon itself holds so many bytes; none for what an older program built, which does not
/// tell what passes take. In whole MiB, none smaller than what a refusal names.
pub fn budgets(demand: &Demand, daemon_bytes: u64) -> Vec<Budget> {
    const LENGTHS: [u64; 3] = [16, 128, 512];
    let mut dims = demand.inputs.iter().flat_map(|port| &port.shape);
    let is_open = dims.any(|dim| matches!(dim, Dim::Symbol(_)));
    let longest = demand.longest_text().unwrap_or(u64::MAX);
    let mut lengths =
        if is_open { LENGTHS.map(|each| Some(each.min(longest))).to_vec() } else { vec![None] };
    lengths.dedup();
    let of = |length: Option<u64>| {
        let each = length.unwrap_or(1);
        let bytes = daemon_bytes.saturating_add(needed_with_texts(demand, each));
        let bytes = bytes.saturating_add(MARGIN_BYTES);
        Budget { length, bytes: bytes.checked_next_multiple_of(1 << 20).unwrap_or(bytes) }
    };
    match demand.needs {
        Some(_) => lengths.into_iter().map(of).collect(),
        None => vec![],
    }
}

/// What serving a request takes beside the process itself, loading the model among it, where its
/// inputs take so many bytes and its longest open dimension has this length.
pub(super) fn needed_bytes(demand: &Demand, inputs_bytes: u64, length: u64) -> u64 {
    let needs = demand.needs.as_ref();
    let graph_bytes = held_by_graph(needs.map_or(0, |needs| needs.graph_bytes));
    let pass_bytes = needs.map_or(0, |needs| needs.pass_bytes(length));
    let serving = [SMALLEST_WINDOW_BYTES, graph_bytes, pass_bytes];
    let serving = serving.into_iter().fold(0, u64::saturating_add);
    let loading = loading_bytes(demand.graph.bytes, demand.loading_bytes);
    let loading = if demand.is_tried { loading } else { trying_bytes(loading) };
    // What is known of a model is kept beside it, once for those who ask and once for itself.
    let manifest_bytes = demand.text_bytes.saturating_mul(2 * MANIFEST_BYTES_PER_BYTE);
    let own = [inputs_bytes, REQUEST_BYTES, manifest_bytes];
    own.into_iter().fold(serving.max(loading), u64::saturating_add)
}
