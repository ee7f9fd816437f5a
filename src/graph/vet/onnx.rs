//! ONNX's own operators.

use super::Operator;
use super::Rule::{Any, NoOutput, Only, Since, Until};
use super::Value::{Int, Text, Texts};

/// An operator none of whose attributes is honoured, or that has none.
const fn plain(name: &'static str) -> Operator {
    Operator { name, rules: &[] }
}

/// An operator of which these attributes are honoured at any value.
const fn read(name: &'static str, rules: &'static [super::Rule]) -> Operator {
    Operator { name, rules }
}

const AXIS: &[super::Rule] = &[Any(&["axis"])];
const ALPHA: &[super::Rule] = &[Any(&["alpha"])];
const REDUCE: &[super::Rule] = &[Any(&["keepdims", "noop_with_empty_axes"]), Until(18, &["axes"])];
const CONVOLUTION: &[super::Rule] =
    &[Any(&["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"])];
const WINDOW: &[super::Rule] = &[Any(&["output_datatype", "periodic"])];
const NORMALIZATION: &[super::Rule] = &[Any(&["axis", "epsilon"]), Only("stash_type", &[Int(1)])];
/// The layout and the direction are repaired. Names of activations are not case-sensitive.
const DIRECTIONS: super::Rule =
    Only("direction", &[Text("forward"), Text("reverse"), Text("bidirectional")]);

pub const OPERATORS: &[Operator] = &[
    plain("Abs"),
    plain("Acos"),
    plain("Acosh"),
    plain("Add"),
    plain("And"),
    read("ArgMax", &[Any(&["axis", "keepdims", "select_last_index"])]),
    read("ArgMin", &[Any(&["axis", "keepdims", "select_last_index"])]),
    plain("Asin"),
    plain("Asinh"),
    plain("Atan"),
    plain("Atanh"),
    read(
        "Attention",
        &[
            Any(&["is_causal", "kv_num_heads", "left_window_size", "q_num_heads", "scale"]),
            Any(&["qk_matmul_output_mode", "right_window_size", "softcap", "softmax_precision"]),
        ],
    ),
    read(
        "AveragePool",
        &[
            Any(&["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape"]),
            Any(&["pads", "strides"]),
        ],
    ),
    read(
        "BatchNormalization",
        &[
            // Training was the default.
            Since(7),
            // How fast running means follow matters in training alone.
            Any(&["epsilon", "momentum"]),
            Only("spatial", &[Int(1)]),
            Only("training_mode", &[Int(0)]),
            NoOutput(1, "mean"),
        ],
    ),
    read("BitShift", &[Only("direction", &[Text("LEFT"), Text("RIGHT")])]),
    plain("BitwiseAnd"),
    plain("BitwiseNot"),
    plain("BitwiseOr"),
    plain("BitwiseXor"),
    read("BlackmanWindow", WINDOW),
    // Rounding and saturation are of types of 8 bits and less, which tract does not have.
    read("Cast", &[Any(&["round_mode", "saturate", "to"])]),
    read("CastLike", &[Any(&["round_mode", "saturate"])]),
    plain("Ceil"),
    read("Celu", ALPHA),
    read("Clip", &[Until(11, &["max", "min"])]),
    read("Compress", AXIS),
    read("Concat", AXIS),
    read(
        "Constant",
        &[
            Any(&["value", "value_float", "value_floats", "value_int", "value_ints"]),
            Any(&["value_string", "value_strings"]),
        ],
    ),
    read("ConstantOfShape", &[Any(&["value"])]),
    read("Conv", CONVOLUTION),
    read("ConvInteger", CONVOLUTION),
    read(
        "ConvTranspose",
        &[
            Any(&["auto_pad", "dilations", "group", "kernel_shape", "output_padding"]),
            Any(&["output_shape", "pads", "strides"]),
        ],
    ),
    plain("Cos"),
    plain("Cosh"),
    read("CumSum", &[Any(&["exclusive", "reverse"])]),
    read("DFT", &[Any(&["inverse", "onesided"]), Until(20, &["axis"])]),
    read("DepthToSpace", &[Any(&["blocksize", "mode"])]),
    read(
        "DequantizeLinear",
        &[Any(&["axis"]), Only("block_size", &[Int(0)]), Only("output_dtype", &[Int(0), Int(1)])],
    ),
    plain("Div"),
    // Nothing is dropped but in training, so the seed and the ratio say nothing.
    read("Dropout", &[Since(7), Any(&["ratio", "seed"])]),
    plain("DynamicQuantizeLinear"),
    read("Einsum", &[Any(&["equation"])]),
    read("Elu", ALPHA),
    plain("Equal"),
    plain("Erf"),
    plain("Exp"),
    plain("Expand"),
    read("EyeLike", &[Any(&["dtype", "k"])]),
    read("Flatten", AXIS),
    plain("Floor"),
    read(
        "GRU",
        &[
            Any(&["hidden_size", "layout", "linear_before_reset"]),
            Only(
                "activations",
                &[Texts(&["Sigmoid", "Tanh"]), Texts(&["Sigmoid", "Tanh", "Sigmoid", "Tanh"])],
            ),
            DIRECTIONS,
        ],
    ),
    read("Gather", AXIS),
    read("GatherElements", AXIS),
    read("GatherND", &[Any(&["batch_dims"])]),
    read("Gelu", &[Only("approximate", &[Text("none"), Text("tanh")])]),
    read("Gemm", &[Any(&["alpha", "beta", "transA", "transB"])]),
    plain("GlobalAveragePool"),
    read("GlobalLpPool", &[Any(&["p"])]),
    plain("GlobalMaxPool"),
    plain("Greater"),
    plain("GreaterOrEqual"),
    read("GridSample", &[Any(&["align_corners", "mode", "padding_mode"])]),
    read("GroupNormalization", &[Any(&["epsilon", "num_groups"]), Only("stash_type", &[Int(1)])]),
    read("HammingWindow", WINDOW),
    read("HannWindow", WINDOW),
    read("HardSigmoid", &[Any(&["alpha", "beta"])]),
    plain("HardSwish"),
    read("Hardmax", AXIS),
    plain("Identity"),
    read("If", &[Any(&["else_branch", "then_branch"])]),
    read("InstanceNormalization", &[Any(&["epsilon"])]),
    read("IsInf", &[Any(&["detect_negative", "detect_positive"])]),
    plain("IsNaN"),
    read("LRN", &[Any(&["alpha", "beta", "bias", "size"])]),
    read(
        "LSTM",
        &[
            Any(&["hidden_size", "layout"]),
            Only(
                "activations",
                &[
                    Texts(&["Sigmoid", "Tanh", "Tanh"]),
                    Texts(&["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Tanh"]),
                ],
            ),
            DIRECTIONS,
            Only("input_forget", &[Int(0)]),
        ],
    ),
    read("LayerNormalization", &[Any(&["axis", "epsilon", "stash_type"])]),
    read("LeakyRelu", ALPHA),
    plain("Less"),
    plain("LessOrEqual"),
    plain("Log"),
    read("LogSoftmax", AXIS),
    read("LpNormalization", &[Any(&["axis"]), Only("p", &[Int(2), Int(1)])]),
    plain("MatMul"),
    plain("MatMulInteger"),
    plain("Max"),
    read(
        "MaxPool",
        &[
            Any(&["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order"]),
            Any(&["strides"]),
        ],
    ),
    plain("Mean"),
    read("MeanVarianceNormalization", &[Any(&["axes"])]),
    read("MelWeightMatrix", &[Any(&["output_datatype"])]),
    plain("Min"),
    plain("Mish"),
    read("Mod", &[Any(&["fmod"])]),
    plain("Mul"),
    read("Multinomial", &[Any(&["dtype", "sample_size", "seed"])]),
    plain("Neg"),
    read("NegativeLogLikelihoodLoss", &[Any(&["ignore_index", "reduction"])]),
    read("NonMaxSuppression", &[Any(&["center_point_box"])]),
    plain("NonZero"),
    plain("Not"),
    read("OneHot", AXIS),
    plain("Or"),
    // The slope was of the channels.
    read("PRelu", &[Since(7)]),
    read("Pad", &[Any(&["mode"]), Until(11, &["pads", "value"])]),
    plain("Pow"),
    read("QLinearConv", CONVOLUTION),
    plain("QLinearMatMul"),
    read(
        "QuantizeLinear",
        &[
            // Saturation is of types of 8 bits that are floats, which tract does not have.
            Any(&["axis", "saturate"]),
            Only("block_size", &[Int(0)]),
            // Without a zero point the type is unsigned; with one it has the zero point's.
            Only("output_dtype", &[Int(0), Int(2)]),
            Only("precision", &[Int(0), Int(1)]),
        ],
    ),
    read("RMSNormalization", NORMALIZATION),
    read(
        "RNN",
        &[
            Any(&["hidden_size", "layout"]),
            Only("activations", &[Texts(&["Tanh"]), Texts(&["Tanh", "Tanh"])]),
            DIRECTIONS,
        ],
    ),
    read("RandomNormal", &[Any(&["dtype", "mean", "scale", "seed", "shape"])]),
    read("RandomNormalLike", &[Any(&["dtype", "mean", "scale", "seed"])]),
    read("RandomUniform", &[Any(&["dtype", "high", "low", "seed", "shape"])]),
    read("RandomUniformLike", &[Any(&["dtype", "high", "low", "seed"])]),
    read("Range", &[Only("stash_type", &[Int(1)])]),
    plain("Reciprocal"),
    read("ReduceL1", REDUCE),
    read("ReduceL2", REDUCE),
    read("ReduceLogSum", REDUCE),
    read("ReduceLogSumExp", REDUCE),
    read("ReduceMax", REDUCE),
    read("ReduceMean", REDUCE),
    read("ReduceMin", REDUCE),
    read("ReduceProd", REDUCE),
    read("ReduceSum", &[Any(&["keepdims", "noop_with_empty_axes"]), Until(13, &["axes"])]),
    read("ReduceSumSquare", REDUCE),
    plain("Relu"),
    read("Reshape", &[Any(&["allowzero"])]),
    read(
        "Resize",
        &[
            Any(&["antialias", "axes", "coordinate_transformation_mode", "cubic_coeff_a"]),
            Any(&["exclude_outside", "extrapolation_value", "keep_aspect_ratio_policy", "mode"]),
            Any(&["nearest_mode"]),
        ],
    ),
    read("RotaryEmbedding", &[Any(&["interleaved", "num_heads", "rotary_embedding_dim"])]),
    plain("Round"),
    read("STFT", &[Any(&["onesided"])]),
    read(
        "Scan",
        &[
            Any(&["body", "num_scan_inputs", "scan_input_axes", "scan_input_directions"]),
            Any(&["scan_output_axes", "scan_output_directions"]),
        ],
    ),
    read("Scatter", AXIS),
    read("ScatterElements", &[Any(&["axis", "reduction"])]),
    read("ScatterND", &[Any(&["reduction"])]),
    read("Selu", &[Any(&["alpha", "gamma"])]),
    read("Shape", &[Any(&["end", "start"])]),
    read("Shrink", &[Any(&["bias", "lambd"])]),
    plain("Sigmoid"),
    plain("Sign"),
    // ONNX Runtime's exporters put it into ONNX's own domain.
    read("SimplifiedLayerNormalization", NORMALIZATION),
    plain("Sin"),
    plain("Sinh"),
    plain("Size"),
    read("Slice", &[Until(10, &["axes", "ends", "starts"])]),
    read("Softmax", AXIS),
    read("SoftmaxCrossEntropyLoss", &[Any(&["ignore_index", "reduction"])]),
    plain("Softplus"),
    plain("Softsign"),
    read("SpaceToDepth", &[Any(&["blocksize"]), Only("mode", &[Text("DCR"), Text("CRD")])]),
    // The number of outputs is seen from the outputs.
    read("Split", &[Any(&["axis", "num_outputs"]), Until(13, &["split"])]),
    plain("Sqrt"),
    read("Squeeze", &[Until(13, &["axes"])]),
    plain("Sub"),
    plain("Sum"),
    read("Swish", ALPHA),
    plain("Tan"),
    plain("Tanh"),
    read("ThresholdedRelu", ALPHA),
    plain("Tile"),
    // Sorted values are one of the orders that may be given where none is asked for.
    read("TopK", &[Any(&["axis", "largest", "sorted"])]),
    read("Transpose", &[Any(&["perm"])]),
    read("Trilu", &[Any(&["upper"])]),
    read("Unsqueeze", &[Until(13, &["axes"])]),
    plain("Where"),
    plain("Xor"),
];
