//! Writes a graph and its weights to the disk, a chunk of a weight at a time.
//!
//! All lengths are known beforehand, so the layout of the file is computed first: encoded
//! messages, and between them regions of weights. Threads then fill the regions in any order.

use super::modules::{Fill, Graph, Tensor};
use super::random;
use anyhow::{Context, Result};
use prost::Message;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{
    GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
};

/// IR version that goes with the opset.
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// The longest message that protobuf allows.
const MESSAGE_LIMIT: u64 = i32::MAX as u64;

/// Weights below this many bytes stay inline even where there is external data.
const EXTERNAL_MIN_BYTES: u64 = 1024;

/// Alignment of external data, so that it can be mapped.
const EXTERNAL_ALIGN: u64 = 4096;

/// Bytes that a thread makes and writes at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// More threads than this only wait for the disk.
const MAX_THREADS: usize = 4;

/// Number of the field that holds a graph's nodes.
const GRAPH_NODE: u32 = 1;

/// Protobuf tags: field number and wire type 2, a length and that many bytes.
const MODEL_GRAPH: u8 = 7 << 3 | 2;
const GRAPH_INITIALIZER: u8 = 5 << 3 | 2;
const TENSOR_RAW_DATA: u8 = 9 << 3 | 2;

/// What has been written.
pub struct Written {
    /// Elements of all weights.
    pub parameters: u64,
    /// Bytes of the file or files.
    pub bytes: u64,
}

/// Where the elements of the weights go.
#[derive(Clone, Copy, PartialEq)]
pub enum Weights {
    /// Into the model's file.
    Inline,
    /// Into a second file, `_data` behind the model's name.
    External,
}

impl Weights {
    /// Inline, unless the message would become longer than protobuf allows.
    pub fn fitting(graph: &Graph) -> Weights {
        match Layout::inline(graph).model_bytes {
            0..=MESSAGE_LIMIT => Weights::Inline,
            _ => Weights::External,
        }
    }
}

/// Bytes of a weight's elements.
fn bytes_of(tensor: &Tensor) -> u64 {
    4 * tensor.elements()
}

/// Write `graph` to `path` with weights drawn from `seed`.
///
/// The files appear under their names when they are complete.
///
/// # Errors
/// Fails when a file cannot be created, when the disk is too small, or when writing fails.
pub fn write(graph: &Graph, path: &Path, weights: Weights, seed: u64) -> Result<Written> {
    let layout = match weights {
        Weights::Inline => Layout::inline(graph),
        Weights::External => Layout::external(graph, &file_name(&suffixed(path, "_data"))?),
    };
    let model = Target::create(path, layout.model_bytes)?;
    let data = (layout.data_bytes > 0)
        .then(|| Target::create(&suffixed(path, "_data"), layout.data_bytes))
        .transpose()?;
    for (offset, bytes) in &layout.messages {
        model.write(bytes, *offset)?;
    }
    fill_regions(&layout.regions, &model, data.as_ref(), seed)?;
    if let Some(data) = &data {
        data.finish()?;
    }
    model.finish()?;
    Ok(Written {
        parameters: graph.weights.iter().map(Tensor::elements).sum(),
        bytes: layout.model_bytes + layout.data_bytes,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Model,
    Data,
}

/// Bytes of one weight in one file.
struct Region<'a> {
    tensor: &'a Tensor,
    place: Place,
    offset: u64,
}

/// Where every byte of the files goes.
struct Layout<'a> {
    messages: Vec<(u64, Vec<u8>)>,
    regions: Vec<Region<'a>>,
    model_bytes: u64,
    data_bytes: u64,
}

impl<'a> Layout<'a> {
    fn inline(graph: &'a Graph) -> Layout<'a> {
        let weights = graph.weights.iter().map(|tensor| (tensor, header(tensor), true)).collect();
        Layout::new(graph, weights, vec![], 0)
    }

    fn external(graph: &'a Graph, location: &str) -> Layout<'a> {
        let mut weights = vec![];
        let mut regions = vec![];
        let mut end = 0u64;
        for tensor in &graph.weights {
            if bytes_of(tensor) < EXTERNAL_MIN_BYTES {
                weights.push((tensor, header(tensor), true));
                continue;
            }
            let offset = end.next_multiple_of(EXTERNAL_ALIGN);
            end = offset + bytes_of(tensor);
            weights.push((tensor, external_header(tensor, location, offset), false));
            regions.push(Region { tensor, place: Place::Data, offset });
        }
        Layout::new(graph, weights, regions, end)
    }

    /// `weights` are the initializers: each with its encoded fields and whether its elements
    /// follow them.
    fn new(
        graph: &'a Graph,
        weights: Vec<(&'a Tensor, Vec<u8>, bool)>,
        mut regions: Vec<Region<'a>>,
        data_bytes: u64,
    ) -> Layout<'a> {
        let (before, after) = graph_messages(graph);
        let mut initializers = vec![];
        let mut graph_bytes = (before.len() + after.len()) as u64;
        for (tensor, fields, is_inline) in weights {
            let (head, raw_bytes) = initializer(tensor, fields, is_inline);
            graph_bytes += head.len() as u64 + raw_bytes;
            initializers.push((tensor, head, raw_bytes));
        }
        let mut messages = vec![];
        let mut pending = model_message();
        let mut written = 0u64;
        push_field(&mut pending, MODEL_GRAPH, graph_bytes);
        pending.extend(before);
        for (tensor, head, raw_bytes) in initializers {
            pending.extend(head);
            if raw_bytes > 0 {
                let offset = written + pending.len() as u64;
                regions.push(Region { tensor, place: Place::Model, offset });
                messages.push((written, std::mem::take(&mut pending)));
                written = offset + raw_bytes;
            }
        }
        pending.extend(after);
        pending.extend(opset_message());
        let model_bytes = written + pending.len() as u64;
        messages.push((written, pending));
        Layout { messages, regions, model_bytes, data_bytes }
    }
}

/// The initializer up to its elements, and how many bytes of these follow.
fn initializer(tensor: &Tensor, mut fields: Vec<u8>, is_inline: bool) -> (Vec<u8>, u64) {
    let raw_bytes = if is_inline { bytes_of(tensor) } else { 0 };
    if is_inline {
        push_field(&mut fields, TENSOR_RAW_DATA, raw_bytes);
    }
    let mut head = vec![];
    push_field(&mut head, GRAPH_INITIALIZER, fields.len() as u64 + raw_bytes);
    head.extend(fields);
    (head, raw_bytes)
}

/// A field's tag and length; its bytes are the caller's to put behind.
fn push_field(out: &mut Vec<u8>, tag: u8, bytes: u64) {
    out.push(tag);
    prost::encoding::encode_varint(bytes, out);
}

fn tensor_message(tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: tensor.name.clone(),
        dims: tensor.dims.iter().map(|d| *d as i64).collect(),
        data_type: DataType::Float as i32,
        ..Default::default()
    }
}

fn header(tensor: &Tensor) -> Vec<u8> {
    tensor_message(tensor).encode_to_vec()
}

fn external_header(tensor: &Tensor, location: &str, offset: u64) -> Vec<u8> {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_string(), value };
    let mut message = tensor_message(tensor);
    message.data_location = Some(DataLocation::External as i32);
    message.external_data = vec![
        entry("location", location.to_string()),
        entry("offset", offset.to_string()),
        entry("length", bytes_of(tensor).to_string()),
    ];
    message.encode_to_vec()
}

fn model_message() -> Vec<u8> {
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "hermes-bench".to_string(),
        producer_version: env!("CARGO_PKG_VERSION").to_string(),
        ..Default::default()
    };
    model.encode_to_vec()
}

fn opset_message() -> Vec<u8> {
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: OPSET }];
    ModelProto { opset_import, ..Default::default() }.encode_to_vec()
}

/// The graph's fields that stand before the initializers in a file, and those that stand behind.
fn graph_messages(graph: &Graph) -> (Vec<u8>, Vec<u8>) {
    let mut before = vec![];
    for node in &graph.nodes {
        prost::encoding::message::encode(GRAPH_NODE, node, &mut before);
    }
    let name = GraphProto { name: "main_graph".to_string(), ..Default::default() };
    before.extend(name.encode_to_vec());
    let after = GraphProto {
        input: graph.inputs.clone(),
        output: graph.outputs.clone(),
        ..Default::default()
    };
    (before, after.encode_to_vec())
}

/// A file that gets its name when it is complete.
struct Target {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl Target {
    fn create(path: &Path, bytes: u64) -> Result<Target> {
        let partial = suffixed(path, ".partial");
        let file = File::create(&partial)
            .with_context(|| format!("cannot create {}", partial.display()))?;
        let target = Target { file, partial, path: path.to_path_buf() };
        let length = i64::try_from(bytes).context("model too large for a file")?;
        nix::fcntl::posix_fallocate(&target.file, 0, length).with_context(|| {
            format!("cannot reserve {bytes} bytes for {}", target.partial.display())
        })?;
        Ok(target)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .with_context(|| format!("cannot write {} at {offset}", self.partial.display()))
    }

    fn finish(&self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.partial.display()))?;
        fs::rename(&self.partial, &self.path)
            .with_context(|| format!("cannot create {}", self.path.display()))
    }
}

impl Drop for Target {
    /// What is not finished is of no use to anyone.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial);
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("{} is not a file name in UTF-8", path.display()))?.to_string())
}

/// One piece of work: part of a region.
struct Chunk {
    place: Place,
    offset: u64,
    bytes: u64,
    key: u64,
    fill: Fill,
}

/// The chunks of a region. Their keys depend on the weight's name and the chunk's number alone,
/// not on threads or on the layout.
fn chunks(region: &Region, seed: u64) -> impl Iterator<Item = Chunk> {
    let mut key = xxhash_rust::xxh3::xxh3_64_with_seed(region.tensor.name.as_bytes(), seed);
    let (place, start, end) =
        (region.place, region.offset, region.offset + bytes_of(region.tensor));
    let fill = region.tensor.content;
    (start..end).step_by(CHUNK_BYTES as usize).map(move |offset| {
        let bytes = CHUNK_BYTES.min(end - offset);
        Chunk { place, offset, bytes, key: random::split_mix(&mut key), fill }
    })
}

fn fill_regions(
    regions: &[Region],
    model: &Target,
    data: Option<&Target>,
    seed: u64,
) -> Result<()> {
    let chunks: Vec<Chunk> = regions.iter().flat_map(|region| chunks(region, seed)).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let bytes = &mut buffer[..chunk.bytes as usize];
            random::fill(bytes, chunk.key, chunk.fill);
            let target = match chunk.place {
                Place::Model => model,
                Place::Data => data.expect("a region in the data file makes one"),
            };
            target.write(bytes, chunk.offset)?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}
