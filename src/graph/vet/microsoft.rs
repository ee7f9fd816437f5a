//! Operators of `com.microsoft`, which ONNX Runtime's optimizer and its exporters make.

use super::Operator;
use super::Rule::{Any, NoInput, Only};
use super::Value::{Float, Int, Text};

pub const OPERATORS: &[Operator] = &[
    Operator { name: "BiasGelu", rules: &[] },
    Operator { name: "FastGelu", rules: &[] },
    Operator {
        name: "GatherBlockQuantized",
        rules: &[
            Only("bits", &[Int(4)]),
            Any(&["block_size"]),
            Only("gather_axis", &[Int(0)]),
            Only("quantize_axis", &[Int(1), Int(-1)]),
        ],
    },
    Operator { name: "Gelu", rules: &[] },
    Operator {
        name: "GroupQueryAttention",
        rules: &[
            Any(&["causal", "do_rotary", "kv_num_heads", "local_window_size", "num_heads"]),
            Any(&["rotary_interleaved", "scale"]),
            Only("k_quant_type", &[Text("NONE")]),
            Only("qk_output", &[Int(0)]),
            Only("sliding_window_cache", &[Int(0)]),
            Only("smooth_softmax", &[Int(0)]),
            Only("softcap", &[Float(0.0)]),
            Only("v_quant_type", &[Text("NONE")]),
        ],
    },
    Operator {
        name: "MatMulNBits",
        // How exactly to compute is left to whoever computes.
        rules: &[Any(&["K", "N", "accuracy_level", "bits", "block_size"])],
    },
    Operator {
        name: "MultiHeadAttention",
        rules: &[
            // What is filled in where a mask says so; masks are refused.
            Any(&["mask_filter_value", "num_heads", "scale"]),
            Only("unidirectional", &[Int(0), Int(1)]),
        ],
    },
    Operator { name: "QuickGelu", rules: &[Any(&["alpha"])] },
    Operator {
        name: "RotaryEmbedding",
        rules: &[
            Any(&["interleaved", "num_heads", "rotary_embedding_dim"]),
            Only("is_packed_batching", &[Int(0)]),
            Only("scale", &[Float(1.0)]),
        ],
    },
    Operator {
        name: "SimplifiedLayerNormalization",
        rules: &[Any(&["axis", "epsilon"]), Only("stash_type", &[Int(1)])],
    },
    Operator { name: "SkipLayerNormalization", rules: &[Any(&["epsilon"])] },
    Operator {
        name: "SkipSimplifiedLayerNormalization",
        rules: &[Any(&["epsilon"]), NoInput(3, "bias")],
    },
];
