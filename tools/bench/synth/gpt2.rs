//! GPT-2 with its language-model head: `GPT2LMHeadModel`.

use super::Dims;
use super::modules::{Fill, Graph, Modules, Scope};
use hermes::graph::writer::{
    DataType, Dim, Part, Value, bool_tensor, float, int, tensor_attribute,
};

const EPSILON: f32 = 1e-5;

/// Whether past keys and values are inputs and outputs.
#[derive(Clone, Copy, PartialEq)]
pub enum Cache {
    /// The graph sees the whole sequence at once.
    None,
    /// `past_key_values.N.key` and `.value` in, `present.N.key` and `.value` out.
    Ports,
}

/// Token ids, mask and positions, int64 `[batch_size, sequence_length]`, to `logits`.
pub fn build(dims: Dims, vocabulary: u64, positions: u64, cache: Cache) -> Graph {
    let mut graph = Graph::default();
    inputs(&mut graph, dims, cache);
    let mut root = graph.root();
    let mut scope = root.at("transformer");
    let ids = flat_ids(&mut scope);
    let words = scope.embedding("wte", &ids.flat, vocabulary, dims.width);
    let span = span(&mut scope, &words, cache);
    let places = scope.embedding("wpe", "position_ids", positions, dims.width);
    let places = scope.cast(&places, DataType::Float);
    let mut x = scope.op("Add", &[&words, &places]);
    let mask = attention_mask(&mut scope, &ids.batch, &words, &span);
    let width = scope.last_size(&x);
    let mut presents = vec![];
    for i in 0..dims.layers {
        let past = (cache == Cache::Ports).then(|| format!("past_key_values.{i}"));
        let block = Block { dims, mask: &mask, past };
        x = block.build(&mut scope.at(&format!("h.{i}")), &x, &mut presents);
    }
    let x = scope.layer_norm("ln_f", &x, dims.width, EPSILON);
    let shape = scope.shape(&[Part::Is(-1), Part::Of(&ids.length), Part::Of(&width)]);
    let x = scope.reshape(&x, &shape);
    // The head is tied to the embedding: one initializer, gathered there and multiplied here.
    let head = graph.transpose_tied("transformer.wte.weight");
    let logits = graph.root().at("lm_head").op("MatMul", &[&x, &head]);
    outputs(&mut graph, dims, vocabulary, &logits, &presents);
    graph
}

const BATCH: Dim = Dim::Any("batch_size");
const SEQUENCE: Dim = Dim::Any("sequence_length");
const TOTAL: Dim = Dim::Any("past_sequence_length + sequence_length");

fn inputs(graph: &mut Graph, dims: Dims, cache: Cache) {
    graph.input("input_ids", DataType::Int64, &[BATCH, SEQUENCE]);
    let mut seen = SEQUENCE;
    if cache == Cache::Ports {
        seen = TOTAL;
        let past = Dim::Any("past_sequence_length");
        let shape = [BATCH, Dim::Is(dims.heads), past, Dim::Is(dims.head())];
        for i in 0..dims.layers {
            for part in ["key", "value"] {
                graph.input(&format!("past_key_values.{i}.{part}"), DataType::Float, &shape);
            }
        }
    }
    graph.input("attention_mask", DataType::Int64, &[BATCH, seen]);
    graph.input("position_ids", DataType::Int64, &[BATCH, SEQUENCE]);
}

fn outputs(graph: &mut Graph, dims: Dims, vocabulary: u64, logits: &str, presents: &[[Value; 2]]) {
    graph.output(logits, "logits", &[BATCH, SEQUENCE, Dim::Is(vocabulary)]);
    let shape = [BATCH, Dim::Is(dims.heads), TOTAL, Dim::Is(dims.head())];
    for (i, [key, value]) in presents.iter().enumerate() {
        graph.output(key, &format!("present.{i}.key"), &shape);
        graph.output(value, &format!("present.{i}.value"), &shape);
    }
}

/// The token ids as `[-1, tokens]`, with the sizes that later nodes ask for.
struct Ids {
    flat: Value,
    length: Value,
    batch: Value,
}

fn flat_ids(scope: &mut Scope) -> Ids {
    let length = scope.size("input_ids", 1);
    let shape = scope.shape(&[Part::Is(-1), Part::Of(&length)]);
    let flat = scope.reshape("input_ids", &shape);
    let batch = scope.size(&flat, 0);
    Ids { flat, length, batch }
}

/// The tokens of this run among all that attention sees.
struct Span {
    /// Places of this run's tokens.
    places: Value,
    /// Tokens seen, past ones included.
    total: Value,
}

fn span(scope: &mut Scope, words: &str, cache: Cache) -> Span {
    let past = (cache == Cache::Ports).then(|| scope.size("past_key_values.0.key", 2));
    let new = scope.size(words, 1);
    let (start, total) = match past {
        None => (scope.constant_int(0), new),
        Some(past) => {
            let total = scope.op("Add", &[&past, &new]);
            (scope.cast(&past, DataType::Int64), total)
        }
    };
    let end = scope.cast(&total, DataType::Int64);
    let step = scope.constant_int(1);
    let places = scope.op("Range", &[&start, &end, &step]);
    Span { places, total }
}

/// Whether each token may look at each: a bool `[batch, 1, tokens, total]`, causal and masked.
fn attention_mask(scope: &mut Scope, batch: &str, words: &str, span: &Span) -> Value {
    let shape = scope.shape(&[Part::Of(batch), Part::Is(-1)]);
    let seen = scope.reshape("attention_mask", &shape);
    let seen = scope.cast(&seen, DataType::Bool);
    let batch = scope.size(words, 0);
    let length = scope.size(&span.places, 0);
    let row = unsqueeze_all(scope, &span.places, &[0, 1, 3]);
    let batches = count(scope, &batch);
    let batches = unsqueeze_all(scope, &batches, &[1, 2, 3]);
    let columns = count(scope, &span.total);
    let columns = unsqueeze_all(scope, &columns, &[0, 1, 2]);
    let scalar = scope.constant_ints(&[]);
    let yes = tensor_attribute("value", bool_tensor(true));
    let yes = scope.op_with("ConstantOfShape", &[&scalar], vec![yes]);
    let causal = scope.op("LessOrEqual", &[&columns, &row]);
    let causal = scope.cast(&causal, DataType::Bool);
    let causal = scope.op("And", &[&yes, &causal]);
    let kept = gather_kept(scope, &seen, &batches, &columns);
    let mask = scope.op("And", &[&causal, &kept]);
    let total = Part::Of(&span.total);
    let shape = scope.shape(&[Part::Of(&batch), Part::Is(-1), Part::Of(&length), total]);
    scope.expand(&mask, &shape)
}

/// `seen[batches, columns]`, indexed as the exporter does it: in the flattened mask.
fn gather_kept(scope: &mut Scope, seen: &str, batches: &str, columns: &str) -> Value {
    let stride = scope.size(seen, 1);
    let flat = scope.op_with("Flatten", &[seen], vec![int("axis", 2)]);
    let start = scope.op("Mul", &[batches, &stride]);
    let index = scope.op("Add", &[columns, &start]);
    let kept = scope.op_with("Gather", &[&flat, &index], vec![int("axis", 0)]);
    let shape = scope.op("Shape", &[&index]);
    let rest = scope.constant_ints(&[-1]);
    let kept = scope.reshape(&kept, &rest);
    let shape = scope.concat(&[&shape], 0);
    let kept = scope.reshape(&kept, &shape);
    scope.cast(&kept, DataType::Bool)
}

/// The numbers from 0 up to a scalar.
fn count(scope: &mut Scope, end: &str) -> Value {
    let end = scope.cast(end, DataType::Int64);
    let start = scope.constant_int(0);
    let step = scope.constant_int(1);
    scope.op("Range", &[&start, &end, &step])
}

fn unsqueeze_all(scope: &mut Scope, x: &str, axes: &[i64]) -> Value {
    axes.iter().fold(x.to_string(), |x, axis| scope.unsqueeze(&x, *axis))
}

/// One layer.
struct Block<'a> {
    dims: Dims,
    mask: &'a str,
    /// Prefix of the inputs with this layer's past.
    past: Option<String>,
}

impl Block<'_> {
    fn build(&self, scope: &mut Scope, x: &str, presents: &mut Vec<[Value; 2]>) -> Value {
        let Dims { width, inner, layers, .. } = self.dims;
        // GPT-2's own initialization: what is added to the residual shrinks with the depth.
        let deviation = Fill::WEIGHT.deviation / (2.0 * layers as f32).sqrt();
        let closing = Fill { deviation, ..Fill::WEIGHT };
        let normal = scope.layer_norm("ln_1", x, width, EPSILON);
        let mut attention = scope.at("attn");
        let qkv = conv1d(&mut attention.at("c_attn"), &normal, width, 3 * width, Fill::WEIGHT);
        let mixed = self.attention(&mut attention, &qkv, presents);
        let mixed = conv1d(&mut attention.at("c_proj"), &mixed, width, width, closing);
        let x = scope.op("Add", &[&mixed, x]);
        let normal = scope.layer_norm("ln_2", &x, width, EPSILON);
        let mut mlp = scope.at("mlp");
        let hidden = conv1d(&mut mlp.at("c_fc"), &normal, width, inner, Fill::WEIGHT);
        let hidden = gelu_tanh(&mut mlp.at("act"), &hidden);
        let hidden = conv1d(&mut mlp.at("c_proj"), &hidden, inner, width, closing);
        scope.op("Add", &[&x, &hidden])
    }

    fn attention(&self, scope: &mut Scope, qkv: &str, presents: &mut Vec<[Value; 2]>) -> Value {
        let width = self.dims.width as i64;
        let split = scope.split(qkv, &[width; 3], 2);
        let [query, key, value] = [&split[0], &split[1], &split[2]];
        let batch = scope.size(key, 0);
        let length = scope.size(key, 1);
        let [key_shape, value_shape] = [(); 2].map(|()| self.heads_shape(scope, &batch, &length));
        let key = scope.reshape(key, &key_shape);
        let mut past_key = scope.transpose(&key, &[0, 2, 1, 3]);
        let value = scope.reshape(value, &value_shape);
        let mut value = scope.transpose(&value, &[0, 2, 1, 3]);
        let batch = scope.size(query, 0);
        let length = scope.size(query, 1);
        let shape = self.heads_shape(scope, &batch, &length);
        let query = scope.reshape(query, &shape);
        let query = scope.transpose(&query, &[0, 2, 1, 3]);
        if let Some(past) = &self.past {
            past_key = scope.concat(&[&format!("{past}.key"), &past_key], -2);
            value = scope.concat(&[&format!("{past}.value"), &value], -2);
            presents.push([past_key.clone(), value.clone()]);
        }
        let mask = self.seen_mask(scope, &past_key);
        let scores = match self.past {
            None => scope.scores(&query, &key, &[0, 2, 3, 1]),
            Some(_) => scope.scores(&query, &past_key, &[0, 1, 3, 2]),
        };
        let shares = masked_softmax(scope, &scores, &mask);
        let mixed = scope.op("MatMul", &[&shares, &value]);
        let mixed = scope.transpose(&mixed, &[0, 2, 1, 3]);
        let batch = scope.size(&mixed, 0);
        let length = scope.size(&mixed, 1);
        let shape = scope.shape(&[Part::Of(&batch), Part::Of(&length), Part::Is(-1)]);
        scope.reshape(&mixed, &shape)
    }

    fn heads_shape(&self, scope: &mut Scope, batch: &str, length: &str) -> Value {
        let head = Part::Is(self.dims.head() as i64);
        scope.shape(&[Part::Of(batch), Part::Of(length), Part::Is(-1), head])
    }

    /// The mask up to the last key.
    fn seen_mask(&self, scope: &mut Scope, keys: &str) -> Value {
        let length = scope.size(keys, 2);
        let axes = scope.constant_ints(&[3]);
        let start = scope.constant_ints(&[0]);
        let end = scope.unsqueeze(&length, 0);
        let step = scope.constant_ints(&[1]);
        scope.op("Slice", &[self.mask, &start, &end, &axes, &step])
    }
}

/// Softmax over what the mask keeps; a row that keeps nothing becomes zeros.
fn masked_softmax(scope: &mut Scope, scores: &str, mask: &str) -> Value {
    let zero = scope.constant_float_vector(0.0);
    let never = scope.constant_float_vector(f32::NEG_INFINITY);
    let bias = scope.op("Where", &[mask, &zero, &never]);
    let scores = scope.op("Add", &[scores, &bias]);
    let shares = scope.op_with("Softmax", &[&scores], vec![int("axis", -1)]);
    let empty = scope.op("IsNaN", &[&shares]);
    let zero = scope.constant_float_vector(0.0);
    scope.op("Where", &[&empty, &zero, &shares])
}

/// GPT-2's `Conv1D`: a Gemm over all tokens as rows, with a weight `[depth, rows]`.
fn conv1d(scope: &mut Scope, x: &str, depth: u64, rows: u64, fill: Fill) -> Value {
    let weight = scope.parameter("weight", &[depth, rows], fill);
    let bias = scope.parameter("bias", &[rows], Fill::BIAS);
    let batch = scope.size(x, 0);
    let length = scope.size(x, 1);
    let width = scope.last_size(x);
    let shape = scope.shape(&[Part::Is(-1), Part::Of(&width)]);
    let x = scope.reshape(x, &shape);
    let attributes = vec![float("alpha", 1.0), float("beta", 1.0)];
    let x = scope.op_with("Gemm", &[&x, &weight, &bias], attributes);
    let rows = Part::Is(rows as i64);
    let shape = scope.shape(&[Part::Of(&batch), Part::Of(&length), rows]);
    scope.reshape(&x, &shape)
}

/// GELU by the hyperbolic tangent.
fn gelu_tanh(scope: &mut Scope, x: &str) -> Value {
    let half = scope.constant_float(0.5);
    let half = scope.op("Mul", &[x, &half]);
    let three = scope.constant_float(3.0);
    let cube = scope.op("Pow", &[x, &three]);
    let factor = scope.constant_float(0.044715);
    let cube = scope.op("Mul", &[&cube, &factor]);
    let sum = scope.op("Add", &[x, &cube]);
    let factor = scope.constant_float(std::f32::consts::FRAC_2_PI.sqrt());
    let sum = scope.op("Mul", &[&sum, &factor]);
    let tanh = scope.op("Tanh", &[&sum]);
    let one = scope.constant_float(1.0);
    let shifted = scope.op("Add", &[&tanh, &one]);
    scope.op("Mul", &[&half, &shifted])
}
