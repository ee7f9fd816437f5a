//! Modules of PyTorch as its TorchScript exporter writes them, with weights that are made up.

use hermes::graph::writer::{self, DataType, Value, float, int};

/// What a tensor is filled with: normal-like numbers.
#[derive(Clone, Copy, Debug)]
pub struct Fill {
    /// Mean of the elements.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
}

impl Fill {
    /// Weights of products, embeddings and convolutions.
    pub const WEIGHT: Fill = Fill { mean: 0.0, deviation: 0.02 };
    /// Biases: small but different from each other, or an exporter would merge them.
    pub const BIAS: Fill = Fill { mean: 0.0, deviation: 0.01 };
    /// Scales of a normalization.
    pub const SCALE: Fill = Fill { mean: 1.0, deviation: 0.01 };
}

/// A graph of such weights.
pub type Graph = writer::Graph<Fill>;
/// A place in it.
pub type Scope<'g> = writer::Scope<'g, Fill>;
/// One of its weights, float32.
pub type Tensor = writer::Weight<Fill>;

/// What the exporter makes of a module's call.
pub trait Modules {
    /// A product with a weight `[depth, rows]` that the exporter has transposed.
    fn product(&mut self, x: &str, depth: u64, rows: u64) -> Value;

    /// The module `nn.Linear` called `module`.
    fn linear(&mut self, module: &str, x: &str, depth: u64, rows: u64) -> Value;

    /// The module `nn.LayerNorm` called `module`.
    fn layer_norm(&mut self, module: &str, x: &str, width: u64, epsilon: f32) -> Value;

    /// The module `nn.Embedding` called `module`.
    fn embedding(&mut self, module: &str, ids: &str, rows: u64, width: u64) -> Value;

    /// GELU by its definition, with the error function.
    fn gelu(&mut self, module: &str, x: &str) -> Value;

    /// Products of queries and keys over the square root of the head's width, as
    /// `scaled_dot_product_attention` is exported where the width is traced. Both are scaled by
    /// the fourth root. `permutation` turns `keys` into `[batch, heads, width, tokens]`.
    fn scores(&mut self, queries: &str, keys: &str, permutation: &[i64]) -> Value;
}

impl Modules for Scope<'_> {
    fn product(&mut self, x: &str, depth: u64, rows: u64) -> Value {
        // Values of the trace are numbered; the number of nodes so far is one nobody else has.
        let name = format!("onnx::MatMul_{}", self.graph().nodes.len());
        self.graph().weight(&name, &[depth, rows], Fill::WEIGHT);
        self.op("MatMul", &[x, &name])
    }

    fn linear(&mut self, module: &str, x: &str, depth: u64, rows: u64) -> Value {
        let mut scope = self.at(module);
        let bias = scope.parameter("bias", &[rows], Fill::BIAS);
        let product = scope.product(x, depth, rows);
        scope.op("Add", &[&bias, &product])
    }

    fn layer_norm(&mut self, module: &str, x: &str, width: u64, epsilon: f32) -> Value {
        let mut scope = self.at(module);
        let scale = scope.parameter("weight", &[width], Fill::SCALE);
        let bias = scope.parameter("bias", &[width], Fill::BIAS);
        let attributes = vec![int("axis", -1), float("epsilon", epsilon)];
        scope.op_with("LayerNormalization", &[x, &scale, &bias], attributes)
    }

    fn embedding(&mut self, module: &str, ids: &str, rows: u64, width: u64) -> Value {
        let mut scope = self.at(module);
        let table = scope.parameter("weight", &[rows, width], Fill::WEIGHT);
        scope.op("Gather", &[&table, ids])
    }

    fn gelu(&mut self, module: &str, x: &str) -> Value {
        let mut scope = self.at(module);
        let root = scope.constant_float(std::f32::consts::SQRT_2);
        let scaled = scope.op("Div", &[x, &root]);
        let erf = scope.op("Erf", &[&scaled]);
        let one = scope.constant_float(1.0);
        let shifted = scope.op("Add", &[&erf, &one]);
        let product = scope.op("Mul", &[x, &shifted]);
        let half = scope.constant_float(0.5);
        scope.op("Mul", &[&product, &half])
    }

    fn scores(&mut self, queries: &str, keys: &str, permutation: &[i64]) -> Value {
        let shape = self.op("Shape", &[queries]);
        let start = self.constant_ints(&[-1]);
        let end = self.constant_ints(&[i64::MAX]);
        let width = self.op("Slice", &[&shape, &start, &end]);
        let width = self.cast(&width, DataType::Float);
        let root = self.op("Sqrt", &[&width]);
        let one = self.constant_float_vector(1.0);
        let scale = self.op("Div", &[&one, &root]);
        let scale = self.cast(&scale, DataType::Float);
        let keys = self.transpose(keys, permutation);
        let root = self.op("Sqrt", &[&scale]);
        let queries = self.op("Mul", &[queries, &root]);
        let root = self.op("Sqrt", &[&scale]);
        let keys = self.op("Mul", &[&keys, &root]);
        self.op("MatMul", &[&queries, &keys])
    }
}
