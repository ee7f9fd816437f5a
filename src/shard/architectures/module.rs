//! A module of a network under construction: its place in the graph and the names that its tensors
//! have in the checkpoint, and the layers that all architectures are made of.

use super::config::Config;
use super::tensors::Tensors;
use crate::graph::skim::Stored;
use crate::graph::writer::{DataType, Scope, Value, float, int, text};
use crate::shard::error::ShardError;
use crate::store::Dtype;

/// What a model is made of, by names of the checkpoint.
pub type Graph = crate::graph::writer::Graph<Stored>;

/// A module.
pub struct Module<'g, 'a> {
    /// Its place in the graph.
    pub scope: Scope<'g, Stored>,
    tensors: &'g Tensors<'a>,
    /// What stands before the names of its tensors.
    prefix: String,
}

/// What a product with a weight is like.
#[derive(Clone, Copy)]
pub struct Product {
    /// Values that come in.
    pub depth: u64,
    /// Values that come out.
    pub rows: u64,
    pub has_bias: bool,
}

/// The functions between two products of a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    Gelu,
    /// By the hyperbolic tangent.
    GeluTanh,
    QuickGelu,
    Silu,
    Relu,
}

impl<'g, 'a> Module<'g, 'a> {
    /// The module at `path` of the graph, whose tensors' names begin with `prefix`.
    pub fn root(
        graph: &'g mut Graph,
        tensors: &'g Tensors<'a>,
        path: &str,
        prefix: &str,
    ) -> Module<'g, 'a> {
        let mut scope = graph.root();
        if !path.is_empty() {
            scope = scope.into_at(path);
        }
        Module { scope, tensors, prefix: prefix.to_string() }
    }

    /// The module `name` of this one.
    pub fn at(&mut self, name: &str) -> Module<'_, 'a> {
        let Module { scope, tensors, prefix } = self;
        Module { scope: scope.at(name), tensors, prefix: format!("{prefix}{name}.") }
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(&format!("{}{name}", self.prefix))
    }

    /// A tensor as a weight, float32 in the graph whatever the file holds.
    ///
    /// # Errors
    /// One that is missing, or of another shape.
    pub fn weight(&mut self, name: &str, shape: &[u64]) -> Result<Value, ShardError> {
        let name = format!("{}{name}", self.prefix);
        let is_known = self.tensors.is_taken(&name);
        let stored = self.tensors.take(&name, shape)?;
        let dtype = stored.dtype;
        if !is_known {
            self.scope.graph().weight(&name, shape, stored);
        }
        Ok(match dtype {
            Dtype::Fp16 => self.scope.cast(&name, DataType::Float),
            _ => name,
        })
    }

    /// `nn.Linear`: `x` times the transpose of a weight `[rows, depth]`.
    ///
    /// # Errors
    /// As [`Module::weight`].
    pub fn linear(&mut self, name: &str, x: &str, product: Product) -> Result<Value, ShardError> {
        let Product { depth, rows, has_bias } = product;
        let mut module = self.at(name);
        let weight = module.weight("weight", &[rows, depth])?;
        let turned = module.scope.transpose(&weight, &[1, 0]);
        let y = module.scope.op("MatMul", &[x, &turned]);
        if !has_bias {
            return Ok(y);
        }
        let bias = module.weight("bias", &[rows])?;
        Ok(module.scope.op("Add", &[&y, &bias]))
    }

    /// `nn.Embedding`: rows of a table by index.
    ///
    /// # Errors
    /// As [`Module::weight`].
    pub fn embedding(
        &mut self,
        name: &str,
        ids: &str,
        rows: u64,
        width: u64,
    ) -> Result<Value, ShardError> {
        let mut module = self.at(name);
        let table = module.weight("weight", &[rows, width])?;
        Ok(module.scope.op_with("Gather", &[&table, ids], vec![int("axis", 0)]))
    }

    /// `nn.LayerNorm`, whose tensors may have the names of before: gamma and beta.
    ///
    /// # Errors
    /// As [`Module::weight`].
    pub fn layer_norm(
        &mut self,
        name: &str,
        x: &str,
        width: u64,
        epsilon: f64,
    ) -> Result<Value, ShardError> {
        let mut module = self.at(name);
        let is_old = !module.has("weight") && module.has("gamma");
        let names = if is_old { ["gamma", "beta"] } else { ["weight", "bias"] };
        let scale = module.weight(names[0], &[width])?;
        let bias = module.weight(names[1], &[width])?;
        let attributes = vec![int("axis", -1), float("epsilon", epsilon as f32)];
        Ok(module.scope.op_with("LayerNormalization", &[x, &scale, &bias], attributes))
    }

    /// RMSNorm over the last axis.
    ///
    /// # Errors
    /// As [`Module::weight`].
    pub fn rms_norm(&mut self, name: &str, x: &str, norm: Norm) -> Result<Value, ShardError> {
        let mut module = self.at(name);
        let mut scale = module.weight("weight", &[norm.width])?;
        if norm.has_offset {
            let one = module.scope.constant_float(1.0);
            scale = module.scope.op("Add", &[&scale, &one]);
        }
        let attributes = vec![int("axis", -1), float("epsilon", norm.epsilon as f32)];
        Ok(module.scope.op_with("RMSNormalization", &[x, &scale], attributes))
    }

    /// `x` times a number.
    pub fn scaled(&mut self, x: &str, factor: f64) -> Value {
        let factor = self.scope.constant_float(factor as f32);
        self.scope.op("Mul", &[x, &factor])
    }
}

/// What an RMSNorm is like.
#[derive(Clone, Copy)]
pub struct Norm {
    pub width: u64,
    pub epsilon: f64,
    /// Whether the tensor lacks the 1 that belongs to it.
    pub has_offset: bool,
}

/// A feed-forward part of which one half opens the other.
pub struct Gated {
    pub width: u64,
    pub inner: u64,
    pub activation: Activation,
    pub has_bias: bool,
}

impl Gated {
    /// What comes of `x`.
    ///
    /// # Errors
    /// Tensors that are missing, or of other shapes.
    pub fn draw(&self, module: &mut Module, x: &str) -> Result<Value, ShardError> {
        let Gated { width, inner, activation, has_bias } = *self;
        let opening = Product { depth: width, rows: inner, has_bias };
        let gate = module.linear("gate_proj", x, opening)?;
        let gate = activation.apply(&mut module.scope, &gate);
        let up = module.linear("up_proj", x, opening)?;
        let hidden = module.scope.op("Mul", &[&gate, &up]);
        module.linear("down_proj", &hidden, Product { depth: inner, rows: width, has_bias })
    }
}

impl Activation {
    /// That which a key of a config names as transformers does.
    ///
    /// # Errors
    /// One that is not computed.
    pub fn of(config: &Config, key: &str, default: &str) -> Result<Activation, ShardError> {
        Ok(match config.given_text(key)?.unwrap_or(default) {
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => {
                Activation::GeluTanh
            }
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "relu" => Activation::Relu,
            _ => {
                let names = "gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, silu or relu";
                return Err(config.wrong(key, &format!("an activation that is computed: {names}")));
            }
        })
    }

    /// The function of `x`.
    pub fn apply(self, scope: &mut Scope<Stored>, x: &str) -> Value {
        match self {
            Activation::Gelu => scope.op("Gelu", &[x]),
            Activation::GeluTanh => scope.op_with("Gelu", &[x], vec![text("approximate", "tanh")]),
            Activation::QuickGelu => {
                let factor = scope.constant_float(1.702);
                let scaled = scope.op("Mul", &[x, &factor]);
                let gate = scope.op("Sigmoid", &[&scaled]);
                scope.op("Mul", &[x, &gate])
            }
            Activation::Silu => {
                let gate = scope.op("Sigmoid", &[x]);
                scope.op("Mul", &[x, &gate])
            }
            Activation::Relu => scope.op("Relu", &[x]),
        }
    }
}
