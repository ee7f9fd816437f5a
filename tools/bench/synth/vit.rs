//! Vision transformers: `ViTForImageClassification`.

use super::Dims;
use super::modules::{Fill, Graph, Modules, Scope};
use hermes::graph::writer::{DataType, Dim, Part, Value, float, int, ints};

const EPSILON: f32 = 1e-12;
const CHANNELS: u64 = 3;

/// `pixel_values [batch_size, num_channels, height, width]` to `logits [batch_size, labels]`.
pub fn build(dims: Dims, image: u64, patch: u64, labels: u64) -> Graph {
    let mut graph = Graph::default();
    let batch = Dim::Any("batch_size");
    let pixels = [batch, Dim::Any("num_channels"), Dim::Any("height"), Dim::Any("width")];
    graph.input("pixel_values", DataType::Float, &pixels);
    let mut root = graph.root();
    let mut vit = root.at("vit");
    let mut x = embeddings(&mut vit.at("embeddings"), dims, image, patch);
    let mut encoder = vit.at("encoder");
    for i in 0..dims.layers {
        x = layer(&mut encoder.at(&format!("layer.{i}")), dims, &x);
    }
    let x = vit.layer_norm("layernorm", &x, dims.width, EPSILON);
    let first = root.constant_int(0);
    let class = root.op_with("Gather", &[&x, &first], vec![int("axis", 1)]);
    let logits = classifier(&mut root.at("classifier"), &class, dims.width, labels);
    graph.output(&logits, "logits", &[batch, Dim::Is(labels)]);
    graph
}

fn classifier(scope: &mut Scope, x: &str, width: u64, labels: u64) -> Value {
    let weight = scope.parameter("weight", &[labels, width], Fill::WEIGHT);
    let bias = scope.parameter("bias", &[labels], Fill::BIAS);
    let attributes = vec![float("alpha", 1.0), float("beta", 1.0), int("transB", 1)];
    scope.op_with("Gemm", &[x, &weight, &bias], attributes)
}

/// Patches and the class token, with their positions.
fn embeddings(scope: &mut Scope, dims: Dims, image: u64, patch: u64) -> Value {
    let side = image / patch;
    let class = scope.parameter("cls_token", &[1, 1, dims.width], Fill::WEIGHT);
    let positions = [1, side * side + 1, dims.width];
    let positions = scope.parameter("position_embeddings", &positions, Fill::WEIGHT);
    let batch = scope.size("pixel_values", 0);
    let patches = patches(&mut scope.at("patch_embeddings"), dims, patch);
    let shape = scope.shape(&[Part::Of(&batch), Part::Is(-1), Part::Is(-1)]);
    let class = scope.expand(&class, &shape);
    let tokens = scope.concat(&[&class, &patches], 1);
    scope.op("Add", &[&tokens, &positions])
}

fn patches(scope: &mut Scope, dims: Dims, patch: u64) -> Value {
    let side = patch as i64;
    let mut projection = scope.at("projection");
    let weight = [dims.width, CHANNELS, patch, patch];
    let weight = projection.parameter("weight", &weight, Fill::WEIGHT);
    let bias = projection.parameter("bias", &[dims.width], Fill::BIAS);
    let attributes = vec![
        ints("dilations", &[1, 1]),
        int("group", 1),
        ints("kernel_shape", &[side, side]),
        ints("pads", &[0, 0, 0, 0]),
        ints("strides", &[side, side]),
    ];
    let x = projection.op_with("Conv", &["pixel_values", &weight, &bias], attributes);
    let shape = scope.op("Shape", &[&x]);
    let axes = scope.constant_ints(&[0]);
    let start = scope.constant_ints(&[0]);
    let end = scope.constant_ints(&[2]);
    let kept = scope.op("Slice", &[&shape, &start, &end, &axes]);
    let rest = scope.constant_ints(&[-1]);
    let shape = scope.concat(&[&kept, &rest], 0);
    let x = scope.reshape(&x, &shape);
    scope.transpose(&x, &[0, 2, 1])
}

fn layer(scope: &mut Scope, dims: Dims, x: &str) -> Value {
    let normal = scope.layer_norm("layernorm_before", x, dims.width, EPSILON);
    let mut attention = scope.at("attention");
    let mixed = self_attention(&mut attention.at("attention"), dims, &normal);
    let mixed = attention.at("output").linear("dense", &mixed, dims.width, dims.width);
    let x = scope.op("Add", &[&mixed, x]);
    let normal = scope.layer_norm("layernorm_after", &x, dims.width, EPSILON);
    let mut intermediate = scope.at("intermediate");
    let inner = intermediate.linear("dense", &normal, dims.width, dims.inner);
    let inner = intermediate.gelu("intermediate_act_fn", &inner);
    let mut output = scope.at("output");
    let closed = output.linear("dense", &inner, dims.inner, dims.width);
    output.op("Add", &[&closed, &x])
}

fn self_attention(scope: &mut Scope, dims: Dims, x: &str) -> Value {
    let batch = scope.size(x, 0);
    let (heads, head) = (dims.heads as i64, dims.head() as i64);
    let parts = [Part::Of(&batch), Part::Is(-1), Part::Is(heads), Part::Is(head)];
    let key = scope.linear("key", x, dims.width, dims.width);
    let [key_shape, value_shape, query_shape] = [(); 3].map(|()| scope.shape(&parts));
    let key = scope.reshape(&key, &key_shape);
    let value = scope.linear("value", x, dims.width, dims.width);
    let value = scope.reshape(&value, &value_shape);
    let value = scope.transpose(&value, &[0, 2, 1, 3]);
    let query = scope.linear("query", x, dims.width, dims.width);
    let query = scope.reshape(&query, &query_shape);
    let query = scope.transpose(&query, &[0, 2, 1, 3]);
    let key = scope.transpose(&key, &[0, 2, 3, 1]);
    let root = (dims.head() as f32).powf(-0.25);
    let scale = scope.constant_float(root);
    let query = scope.op("Mul", &[&query, &scale]);
    let scale = scope.constant_float(root);
    let key = scope.op("Mul", &[&key, &scale]);
    let scores = scope.op("MatMul", &[&query, &key]);
    let shares = scope.op_with("Softmax", &[&scores], vec![int("axis", -1)]);
    let mixed = scope.op("MatMul", &[&shares, &value]);
    let mixed = scope.transpose(&mixed, &[0, 2, 1, 3]);
    let batch = scope.size(&mixed, 0);
    let length = scope.size(&mixed, 1);
    let width = dims.width as i64;
    let shape = scope.shape(&[Part::Of(&batch), Part::Of(&length), Part::Is(width)]);
    scope.reshape(&mixed, &shape)
}
