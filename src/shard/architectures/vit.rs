//! Vision transformers: patches of an image with a class token in front, and layers that are normed
//! before each part.

use super::Network;
use super::config::Config;
use super::encoder::{Sizes, attend};
use super::module::{Graph, Module, Product};
use super::tensors::Tensors;
use crate::checkpoint::Checkpoint;
use crate::graph::writer::{DataType, Dim, Part, Value, int, ints};
use crate::shard::error::ShardError;

const BATCH: Dim = Dim::Any("batch_size");

/// Draws the model: `pixel_values [batch, channels, size, size]` to `last_hidden_state
/// [batch, 1 + patches, width]`, and to `logits [batch, labels]` where there is a classifier.
///
/// # Errors
/// A config or tensors that are none of such a model.
pub fn draw(
    graph: &mut Graph,
    _checkpoint: &Checkpoint,
    config: &Config,
    tensors: &Tensors,
) -> Result<Network, ShardError> {
    let sizes = Sizes::of(config)?;
    let width = sizes.width;
    let layers = super::layers(config, "num_hidden_layers", 12)?;
    let image = config.size("image_size", 224)?;
    let patch = config.size("patch_size", 16)?;
    let channels = config.size("num_channels", 3)?;
    let side = image / patch;
    let pixels = [BATCH, Dim::Is(channels), Dim::Is(image), Dim::Is(image)];
    graph.input("pixel_values", DataType::Float, &pixels);
    let prefix = tensors.prefix(&["vit.", ""], "embeddings.cls_token");
    let mut root = Module::root(graph, tensors, "", prefix);
    let mut module = root.at("embeddings");
    let class = module.weight("cls_token", &[1, 1, width])?;
    let places = module.weight("position_embeddings", &[1, side * side + 1, width])?;
    let patches = patches(&mut module.at("patch_embeddings"), width, channels, patch)?;
    let scope = &mut module.scope;
    let batch = scope.size("pixel_values", 0);
    let shape = scope.shape(&[Part::Of(&batch), Part::Is(1), Part::Is(width.cast_signed())]);
    let class = scope.op("Expand", &[&class, &shape]);
    let tokens = scope.concat(&[&class, &patches], 1);
    let mut x = scope.op("Add", &[&tokens, &places]);
    let mut encoder = root.at("encoder");
    for layer in 0..layers {
        x = vit_layer(&mut encoder.at(&format!("layer.{layer}")), &sizes, &x)?;
    }
    let x = root.layer_norm("layernorm", &x, width, sizes.epsilon)?;
    let logits = match tensors.shape("classifier.weight") {
        Some(&[labels, _]) => Some((classified(graph, tensors, &x, width, labels)?, labels)),
        _ => None,
    };
    let tokens = [BATCH, Dim::Is(side * side + 1), Dim::Is(width)];
    graph.output(&x, "last_hidden_state", &tokens);
    if let Some((logits, labels)) = logits {
        graph.output(&logits, "logits", &[BATCH, Dim::Is(labels)]);
    }
    let is_spare = |name: &str| name.trim_start_matches("vit.").starts_with("pooler.");
    let spare = tensors.rest("vit", is_spare)?;
    Ok(Network { layers, context: None, vocabulary: None, spare })
}

/// What the class token's vector says of labels.
fn classified(
    graph: &mut Graph,
    tensors: &Tensors,
    x: &str,
    width: u64,
    labels: u64,
) -> Result<Value, ShardError> {
    let mut root = Module::root(graph, tensors, "", "");
    let first = root.scope.constant_int(0);
    let class = root.scope.op_with("Gather", &[x, &first], vec![int("axis", 1)]);
    root.linear("classifier", &class, Product { depth: width, rows: labels, has_bias: true })
}

/// A vector for each patch, `[batch, patches, width]`.
fn patches(
    module: &mut Module,
    width: u64,
    channels: u64,
    patch: u64,
) -> Result<Value, ShardError> {
    let mut projection = module.at("projection");
    let weight = projection.weight("weight", &[width, channels, patch, patch])?;
    let bias = projection.weight("bias", &[width])?;
    let side = patch.cast_signed();
    let attributes = vec![ints("kernel_shape", &[side, side]), ints("strides", &[side, side])];
    let scope = &mut projection.scope;
    let x = scope.op_with("Conv", &["pixel_values", &weight, &bias], attributes);
    let shape = scope.constant_ints(&[0, width.cast_signed(), -1]);
    let x = scope.reshape(&x, &shape);
    Ok(scope.transpose(&x, &[0, 2, 1]))
}

fn vit_layer(module: &mut Module, sizes: &Sizes, x: &str) -> Result<Value, ShardError> {
    let Sizes { width, inner, .. } = *sizes;
    let normal = module.layer_norm("layernorm_before", x, width, sizes.epsilon)?;
    let mut attention = module.at("attention");
    let mixed = attend(&mut attention.at("attention"), sizes, &normal, None)?;
    let square = Product { depth: width, rows: width, has_bias: true };
    let mixed = attention.at("output").linear("dense", &mixed, square)?;
    let x = module.scope.op("Add", &[&mixed, x]);
    let normal = module.layer_norm("layernorm_after", &x, width, sizes.epsilon)?;
    let opening = Product { depth: width, rows: inner, has_bias: true };
    let hidden = module.at("intermediate").linear("dense", &normal, opening)?;
    let hidden = sizes.activation.apply(&mut module.scope, &hidden);
    let closing = Product { depth: inner, rows: width, has_bias: true };
    let hidden = module.at("output").linear("dense", &hidden, closing)?;
    Ok(module.scope.op("Add", &[&hidden, &x]))
}
