//! What the tensors of a GGUF file are called in transformers, and the shapes that they must have.

use super::header::Header;
use super::sizes::{Size, Sizes};
use crate::checkpoint::{CheckpointError, Tensor};
use std::collections::BTreeMap;
use std::mem;

use Size::{Head, Hidden, Inner, Keys, Pairs, Positions, Queries, Triple, Types, Vocabulary};

/// A tensor of the whole, or of each layer.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    name: &'static str,
    own: &'static str,
    shape: &'static [Size],
    is_needed: bool,
}

const fn needed(name: &'static str, own: &'static str, shape: &'static [Size]) -> Part {
    Part { name, own, shape, is_needed: true }
}

const fn optional(name: &'static str, own: &'static str, shape: &'static [Size]) -> Part {
    Part { name, own, shape, is_needed: false }
}

/// The tensors of an architecture.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// What transformers' names of the layers' tensors begin with.
    layers: &'static str,
    whole: &'static [Part],
    layer: &'static [&'static [Part]],
}

pub const LLAMA: Names =
    Names { layers: "model.layers", whole: DECODER, layer: &[ATTENTION, BIASES, GATED, POST_NORM] };

pub const QWEN2: Names = Names {
    layers: "model.layers",
    whole: DECODER,
    layer: &[ATTENTION, QKV_BIASES, GATED, POST_NORM],
};

pub const QWEN3: Names = Names {
    layers: "model.layers",
    whole: DECODER,
    layer: &[ATTENTION, BIASES, HEAD_NORMS, GATED, POST_NORM],
};

pub const GEMMA3: Names = Names {
    layers: "model.layers",
    whole: DECODER,
    layer: &[ATTENTION, HEAD_NORMS, GATED, FOUR_NORMS],
};

pub const GPT2: Names = Names {
    layers: "transformer.h",
    whole: &[
        needed("token_embd.weight", "transformer.wte.weight", &[Vocabulary, Hidden]),
        needed("position_embd.weight", "transformer.wpe.weight", &[Positions, Hidden]),
        needed("output_norm.weight", "transformer.ln_f.weight", &[Hidden]),
        needed("output_norm.bias", "transformer.ln_f.bias", &[Hidden]),
        optional("output.weight", "lm_head.weight", &[Vocabulary, Hidden]),
    ],
    layer: &[&[
        needed("attn_norm.weight", "ln_1.weight", &[Hidden]),
        needed("attn_norm.bias", "ln_1.bias", &[Hidden]),
        needed("attn_qkv.weight", "attn.c_attn.weight", &[Triple, Hidden]),
        needed("attn_qkv.bias", "attn.c_attn.bias", &[Triple]),
        needed("attn_output.weight", "attn.c_proj.weight", &[Hidden, Hidden]),
        needed("attn_output.bias", "attn.c_proj.bias", &[Hidden]),
        needed("ffn_norm.weight", "ln_2.weight", &[Hidden]),
        needed("ffn_norm.bias", "ln_2.bias", &[Hidden]),
        needed("ffn_up.weight", "mlp.c_fc.weight", &[Inner, Hidden]),
        needed("ffn_up.bias", "mlp.c_fc.bias", &[Inner]),
        needed("ffn_down.weight", "mlp.c_proj.weight", &[Hidden, Inner]),
        needed("ffn_down.bias", "mlp.c_proj.bias", &[Hidden]),
    ]],
};

pub const BERT: Names = Names {
    layers: "encoder.layer",
    whole: &[
        needed("token_embd.weight", "embeddings.word_embeddings.weight", &[Vocabulary, Hidden]),
        needed(
            "position_embd.weight",
            "embeddings.position_embeddings.weight",
            &[Positions, Hidden],
        ),
        needed("token_types.weight", "embeddings.token_type_embeddings.weight", &[Types, Hidden]),
        needed("token_embd_norm.weight", "embeddings.LayerNorm.weight", &[Hidden]),
        needed("token_embd_norm.bias", "embeddings.LayerNorm.bias", &[Hidden]),
    ],
    layer: &[&[
        needed("attn_q.weight", "attention.self.query.weight", &[Hidden, Hidden]),
        needed("attn_q.bias", "attention.self.query.bias", &[Hidden]),
        needed("attn_k.weight", "attention.self.key.weight", &[Hidden, Hidden]),
        needed("attn_k.bias", "attention.self.key.bias", &[Hidden]),
        needed("attn_v.weight", "attention.self.value.weight", &[Hidden, Hidden]),
        needed("attn_v.bias", "attention.self.value.bias", &[Hidden]),
        needed("attn_output.weight", "attention.output.dense.weight", &[Hidden, Hidden]),
        needed("attn_output.bias", "attention.output.dense.bias", &[Hidden]),
        needed("attn_output_norm.weight", "attention.output.LayerNorm.weight", &[Hidden]),
        needed("attn_output_norm.bias", "attention.output.LayerNorm.bias", &[Hidden]),
        needed("ffn_up.weight", "intermediate.dense.weight", &[Inner, Hidden]),
        needed("ffn_up.bias", "intermediate.dense.bias", &[Inner]),
        needed("ffn_down.weight", "output.dense.weight", &[Hidden, Inner]),
        needed("ffn_down.bias", "output.dense.bias", &[Hidden]),
        needed("layer_output_norm.weight", "output.LayerNorm.weight", &[Hidden]),
        needed("layer_output_norm.bias", "output.LayerNorm.bias", &[Hidden]),
    ]],
};

const DECODER: &[Part] = &[
    needed("token_embd.weight", "model.embed_tokens.weight", &[Vocabulary, Hidden]),
    needed("output_norm.weight", "model.norm.weight", &[Hidden]),
    optional("output.weight", "lm_head.weight", &[Vocabulary, Hidden]),
    optional("rope_freqs.weight", "rope_freqs.weight", &[Pairs]),
];

const ATTENTION: &[Part] = &[
    needed("attn_norm.weight", "input_layernorm.weight", &[Hidden]),
    needed("attn_q.weight", "self_attn.q_proj.weight", &[Queries, Hidden]),
    needed("attn_k.weight", "self_attn.k_proj.weight", &[Keys, Hidden]),
    needed("attn_v.weight", "self_attn.v_proj.weight", &[Keys, Hidden]),
    needed("attn_output.weight", "self_attn.o_proj.weight", &[Hidden, Queries]),
];

const BIASES: &[Part] = &[
    optional("attn_q.bias", "self_attn.q_proj.bias", &[Queries]),
    optional("attn_k.bias", "self_attn.k_proj.bias", &[Keys]),
    optional("attn_v.bias", "self_attn.v_proj.bias", &[Keys]),
    optional("attn_output.bias", "self_attn.o_proj.bias", &[Hidden]),
    optional("ffn_gate.bias", "mlp.gate_proj.bias", &[Inner]),
    optional("ffn_up.bias", "mlp.up_proj.bias", &[Inner]),
    optional("ffn_down.bias", "mlp.down_proj.bias", &[Hidden]),
];

const QKV_BIASES: &[Part] = &[
    needed("attn_q.bias", "self_attn.q_proj.bias", &[Queries]),
    needed("attn_k.bias", "self_attn.k_proj.bias", &[Keys]),
    needed("attn_v.bias", "self_attn.v_proj.bias", &[Keys]),
];

const HEAD_NORMS: &[Part] = &[
    needed("attn_q_norm.weight", "self_attn.q_norm.weight", &[Head]),
    needed("attn_k_norm.weight", "self_attn.k_norm.weight", &[Head]),
];

const GATED: &[Part] = &[
    needed("ffn_gate.weight", "mlp.gate_proj.weight", &[Inner, Hidden]),
    needed("ffn_up.weight", "mlp.up_proj.weight", &[Inner, Hidden]),
    needed("ffn_down.weight", "mlp.down_proj.weight", &[Hidden, Inner]),
];

const POST_NORM: &[Part] =
    &[needed("ffn_norm.weight", "post_attention_layernorm.weight", &[Hidden])];

const FOUR_NORMS: &[Part] = &[
    needed("post_attention_norm.weight", "post_attention_layernorm.weight", &[Hidden]),
    needed("ffn_norm.weight", "pre_feedforward_layernorm.weight", &[Hidden]),
    needed("post_ffw_norm.weight", "post_feedforward_layernorm.weight", &[Hidden]),
];

impl Names {
    /// Takes all tensors of a header, under the names that transformers has for them.
    ///
    /// # Errors
    /// One is missing, is of another shape, or is none of this architecture: what is computed
    /// without it would be something else.
    pub fn translate(
        &self,
        header: &mut Header,
        sizes: &Sizes,
    ) -> Result<BTreeMap<String, Tensor>, CheckpointError> {
        let mut left = mem::take(&mut header.tensors);
        let mut translated = BTreeMap::new();
        let path = header.keys.path();
        let mut take = |part: &Part, name: String, own: String| {
            let Some(mut tensor) = left.remove(&name) else {
                return match part.is_needed {
                    true => Err(CheckpointError::tensor(path, &name, "it is missing")),
                    false => Ok(()),
                };
            };
            let expected: Vec<u64> = part.shape.iter().map(|size| sizes.of(*size)).collect();
            // Where the file says that it is a matrix of one row and the like.
            while tensor.shape.len() > expected.len() && tensor.shape[0] == 1 {
                tensor.shape.remove(0);
            }
            if tensor.shape != expected {
                let what =
                    format!("its shape is {:?}, expected {expected:?}, rows first", tensor.shape);
                return Err(CheckpointError::tensor(&tensor.file, &name, what));
            }
            if !tensor.kind.is_decoded() {
                let what = format!("it is of type {}, expected floats", tensor.kind.name());
                return Err(CheckpointError::tensor(&tensor.file, &name, what));
            }
            translated.insert(own, tensor);
            Ok(())
        };
        for part in self.whole {
            take(part, part.name.to_owned(), part.own.to_owned())?;
        }
        for layer in 0..sizes.layers {
            for part in self.layer.iter().copied().flatten() {
                let name = format!("blk.{layer}.{}", part.name);
                take(part, name, format!("{}.{layer}.{}", self.layers, part.own))?;
            }
        }
        match left.into_iter().find(|(name, _)| !name.starts_with("cls.")) {
            None => Ok(translated),
            Some((name, tensor)) => {
                let what = "nothing is known here of what is computed with it";
                Err(CheckpointError::strange(&tensor.file, &name, what))
            }
        }
    }
}
